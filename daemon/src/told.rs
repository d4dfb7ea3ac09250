//! [`Told`]: a change that watchers are told of, each in its own turn.

use std::{
    cell::OnceCell,
    sync::{Arc, Weak},
};

use fdstash_proto::{Change, Entry, Name, Notice, Reply, reply};

use crate::{descriptor::Descriptor, inspect::as_it_is};

/// A change, and what is said of it to whoever watches the name: written once, when the first of them has its
/// turn.
pub(crate) struct Told {
    change: Change,
    entry: Box<Entry>,
    /// Its descriptor, as long as that is kept.
    fd: Weak<Descriptor>,
    message: OnceCell<Vec<u8>>,
}

impl Told {
    /// A change of an entry that is there now, or was, with this descriptor.
    pub(crate) fn new(change: Change, entry: Box<Entry>, fd: &Arc<Descriptor>) -> Self {
        let (entry, fd) = match change {
            Change::Given | Change::Replaced | Change::Reopened => (entry, Arc::downgrade(fd)),
            // Nobody can look at it later.
            Change::Taken | Change::Closed | Change::Expired | Change::HungUp => {
                (Box::new(as_it_is(*entry, fd)), Weak::new())
            }
        };
        Self { change, entry, fd, message: OnceCell::new() }
    }

    /// Of what it tells.
    pub(crate) fn name(&self) -> &Name {
        &self.entry.name
    }

    /// What is said of it.
    pub(crate) fn message(&self) -> &[u8] {
        self.message.get_or_init(|| {
            let mut entry = self.entry.clone();
            if let Some(fd) = self.fd.upgrade() {
                entry = Box::new(as_it_is(*entry, &fd));
            }
            let notice = Notice::Changed { change: self.change, entry };
            reply::write::<Arc<Descriptor>>(Ok(Reply::Notice(notice)), true).bytes
        })
    }

    /// How many bytes it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let Entry { name, labels, target, .. } = &*self.entry;
        let labels = labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let target = target.as_ref().map_or(0, String::len);
        2 * size_of::<Entry>() + name.as_str().len() + labels + target
    }
}
