//! How long the files are that entries hold, as far as their paths still lead to them. The daemon does not
//! say: a size changes unseen, and to ask a file server for it may take for ever.

use std::{
    collections::BTreeMap,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use fdstash::{Entry, Kind, Name};

use crate::show::path::{identity, known};

/// So long a list waits for all file systems together: a dead one must not hide what is kept.
const PATIENCE: Duration = Duration::from_millis(250);

/// What was found out in time, in bytes.
pub(super) struct Sizes(BTreeMap<Name, u64>);

impl Sizes {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let files = entries.iter().filter(|entry| entry.kind == Kind::Regular);
        let files = files.filter_map(|entry| {
            let path = entry.target.clone().filter(|target| target.starts_with('/'))?;
            Some((entry.name.clone(), path, entry.device, entry.inode))
        });
        let files: Vec<_> = files.collect();
        let (sender, receiver) = mpsc::channel();
        // A thread that waits for a dead file server ends with the process.
        thread::spawn(move || {
            for (name, path, device, inode) in files {
                // One that has been asked for by a request that its server has read cannot be killed.
                let found = known(&path).ok();
                let found = found.filter(|found| identity(found) == (device, inode));
                if found.is_some_and(|found| sender.send((name, found.stx_size)).is_err()) {
                    return;
                }
            }
        });
        let end = Instant::now() + PATIENCE;
        let mut sizes = BTreeMap::new();
        while let Ok((name, size)) =
            receiver.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            sizes.insert(name, size);
        }
        Self(sizes)
    }

    pub(super) fn get(&self, entry: &Entry) -> Option<u64> {
        self.0.get(&entry.name).copied()
    }
}
