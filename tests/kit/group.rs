//! Programs that are more than one process.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{SOON, wait_until};

/// A program with all the processes that it starts, killed when it is dropped.
#[derive(Debug)]
pub struct Group(Child);

impl Group {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.process_group(0).spawn().expect("a program can be started"))
    }

    /// The first of its processes.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// The first of its processes, as the standard library has it.
    pub fn first(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits until the first of its processes ends by itself.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until(SOON, || self.0.try_wait().is_ok_and(|ended| ended.is_some()));
        self.0.wait().expect("it has ended")
    }

    /// Ends the first of its processes without a warning, and no other.
    pub fn kill_first(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Ends all of its processes without a warning, and waits until they have.
    pub fn kill(&mut self) {
        let group = self.pid();
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
        wait_until(SOON, || alive(group).is_empty());
    }

    /// How many of its processes live.
    #[must_use]
    pub fn alive(&self) -> usize {
        alive(self.pid()).len()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes of a group that have not ended, whether somebody has taken note or not.
fn alive(group: Pid) -> Vec<Pid> {
    let number = group.as_raw_pid().to_string();
    let processes = fs::read_dir("/proc").expect("there is a /proc");
    let ours = processes.flatten().filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // Behind the name, which may have anything in it: state, parent, group, and 14 on, threads.
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        let has_first_thread = !matches!(fields.next()?, "Z" | "X");
        let is_ours = fields.nth(1)? == number;
        // A process's files are open as long as any of its threads is there.
        let is_dead = !has_first_thread && fields.nth(14)? == "1";
        Pid::from_raw(pid).filter(|_| is_ours && !is_dead)
    });
    ours.collect()
}
