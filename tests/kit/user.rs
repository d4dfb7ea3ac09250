//! Other users of the machine.

use std::thread;

use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::{is_root, skipped};

/// Whether the test can be other users; says so if not.
#[must_use]
pub fn can_be_others() -> bool {
    if !is_root() {
        skipped("to be other users takes root");
    }
    is_root()
}

/// Somebody with rights of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Who it is.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

impl User {
    /// Somebody of a group of the same number.
    #[must_use]
    pub fn new(uid: u32) -> Self {
        Self { uid, gid: uid, groups: Vec::new() }
    }

    /// The same, and also in these groups.
    #[must_use]
    pub fn in_groups(self, groups: &[u32]) -> Self {
        Self { groups: groups.to_vec(), ..self }
    }

    /// Does something as this user, on a thread that is nobody else. What connects there is this user
    /// to the kernel, and so to the daemon, for as long as the connection lasts. It takes root.
    ///
    /// # Panics
    ///
    /// Where `act` does.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
                let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
                set_thread_groups(&groups).expect("root can leave groups");
                set_thread_res_gid(gid, gid, gid).expect("root can be of any group");
                set_thread_res_uid(uid, uid, uid).expect("root can be anybody");
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
