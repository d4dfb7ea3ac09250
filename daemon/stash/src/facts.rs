//! What is known of a descriptor and of the time, as plain data that others have found out.

use std::sync::Arc;

use fdstash_proto::{Access, Flags, Kind};

/// What the kernel says of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What kind of file it refers to.
    pub kind: Kind,
    /// What it may be used for.
    pub access: Access,
    /// Its status flags.
    pub flags: Flags,
    /// The file's device number.
    pub device: u64,
    /// The file's inode number.
    pub inode: u64,
    /// What it points at: a path, or `socket:[...]` and the like.
    pub target: Option<Box<str>>,
}

impl Facts {
    /// Whether both are of one file.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// A descriptor and what is known of it. Owns `fd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected<F> {
    /// The descriptor.
    pub fd: F,
    /// What the kernel says of it.
    pub facts: Facts,
}

impl<F> Inspected<F> {
    /// The same descriptor, to be shared between the stash and those whom it lends to.
    pub(crate) fn shared(self) -> Inspected<Arc<F>> {
        Inspected { fd: Arc::new(self.fd), facts: self.facts }
    }
}

/// The time, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since the machine was started, time asleep included: what expiry goes by.
    pub boot_usec: u64,
    /// Microseconds since 1970: what people are shown.
    pub wall_usec: u64,
}
