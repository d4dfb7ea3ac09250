//! Control groups, for what they bound.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use rustix::process::Pid;

use crate::{SOON, wait_until};

/// A control group of the test's own. Goes when it is dropped; what is in it must have ended, or goes
/// back to where it came from.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    /// Whose it came from.
    parent: PathBuf,
}

impl Cgroup {
    /// One of a controller; none, where this machine does not let us.
    #[must_use]
    pub fn new(controller: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = Path::new("/sys/fs/cgroup").join(controller);
        let parent = if parent.exists() { parent } else { "/sys/fs/cgroup".into() };
        let name = format!("fdstash-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed));
        let folder = parent.join(name);
        fs::create_dir(&folder).ok()?;
        let group = Self { folder, parent };
        let files = fs::read_dir(&group.folder).ok()?;
        let prefix = format!("{controller}.");
        let has = |name: &str| name.starts_with(&prefix);
        let is_there = files.flatten().any(|file| has(&file.file_name().to_string_lossy()));
        is_there.then_some(group)
    }

    /// Puts a process into it.
    ///
    /// # Panics
    ///
    /// If it cannot be put there.
    pub fn add(&self, pid: Pid) {
        let moved = fs::write(self.folder.join("cgroup.procs"), pid.as_raw_pid().to_string());
        moved.expect("a process can be moved");
    }

    /// Sets what it bounds.
    ///
    /// # Panics
    ///
    /// If there is no such bound.
    pub fn set(&self, file: &str, value: &str) {
        fs::write(self.folder.join(file), value).expect("a bound can be set");
    }

    /// Bounds the memory of what is in it.
    ///
    /// # Panics
    ///
    /// If it cannot be bounded.
    pub fn bound_memory(&self, bytes: u64) {
        // The second version calls it otherwise than the first.
        let names = ["memory.max", "memory.limit_in_bytes"];
        let name = names.into_iter().find(|name| self.folder.join(name).exists());
        self.set(name.expect("memory can be bounded"), &bytes.to_string());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        if !std::thread::panicking() {
            wait_until(SOON, || fs::remove_dir(&self.folder).is_ok());
        } else {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}
