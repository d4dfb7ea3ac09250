//! [`Mapped`]: a part of a file of ours, to be written to without a system call.

use std::{
    io,
    ops::Range,
    os::fd::AsFd,
    ptr::{self, NonNull},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What a part begins and ends with is a multiple of it.
const PAGE: u64 = 64 << 10;

/// A part of a file, in memory. What is written there is in the file at once, for every process that
/// reads it, and stays there when this one dies.
pub(crate) struct Mapped {
    at: NonNull<u8>,
    part: Range<u64>,
}

impl Mapped {
    /// Maps what there is of a file from `from` on, up to `to`. The kernel must have given memory for all of
    /// that (`fallocate`), and nobody may make the file shorter while this is written to: it would be a
    /// write to nowhere, which is the end of the process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    #[expect(unsafe_code, reason = "a mapping is memory that Rust does not know of")]
    pub(crate) fn new(file: impl AsFd, from: u64, to: u64) -> io::Result<Self> {
        let part = from / PAGE * PAGE..to.next_multiple_of(PAGE);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // What it takes to reach the memory is taken now, and not when something is written down.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        let len = length(&part)?;
        // SAFETY: the kernel chooses an address where nothing is.
        let at = unsafe { mmap(ptr::null_mut(), len, prot, flags, file, part.start)? };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, part })
    }

    /// Writes at a place of the file. Whether it is all in this part of it; else nothing is written.
    #[expect(unsafe_code, reason = "a mapping is memory that Rust does not know of")]
    pub(crate) fn write(&mut self, bytes: &[u8], at: u64) -> bool {
        let end = at.checked_add(bytes.len() as u64);
        if at < self.part.start || end.is_none_or(|end| end > self.part.end) {
            return false;
        }
        let Ok(offset) = usize::try_from(at - self.part.start) else { return false };
        // SAFETY: all of it lies within the mapping, to which nothing else points; others may read the
        // same memory by the file, as they may a file that is being written.
        unsafe {
            let to = self.at.as_ptr().add(offset);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        true
    }
}

impl Drop for Mapped {
    #[expect(unsafe_code, reason = "a mapping is memory that Rust does not know of")]
    fn drop(&mut self) {
        let Ok(len) = length(&self.part) else { return };
        // SAFETY: it was mapped with this length, and nothing points to it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), len) };
    }
}

fn length(part: &Range<u64>) -> io::Result<usize> {
    usize::try_from(part.end - part.start).map_err(|_| io::ErrorKind::OutOfMemory.into())
}
