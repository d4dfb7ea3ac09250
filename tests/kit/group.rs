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

    /// Ends all of its processes without a warning, and waits until they have, and nothing is open any
    /// more that they had.
    pub fn kill(&mut self) {
        self.end();
        let group = self.pid();
        wait_until(SOON, || of_group(group).all(|found| found.threads == 1));
    }

    /// The same, but does not wait for threads that hang in the kernel, as they may until the test has ended.
    pub(crate) fn end(&mut self) {
        let group = self.pid();
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
        wait_until(SOON, || of_group(group).all(|found| found.is_dead));
    }

    /// How many of its processes live.
    #[must_use]
    pub fn alive(&self) -> usize {
        of_group(self.pid()).filter(|found| !found.is_dead).count()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// A process of a group.
struct Found {
    /// Whether its first thread has ended, whether somebody has taken note or not.
    is_dead: bool,
    /// How many threads it has, the first among them. Its files are open as long as there is another.
    threads: usize,
}

fn of_group(group: Pid) -> impl Iterator<Item = Found> {
    let number = group.as_raw_pid().to_string();
    let processes = fs::read_dir("/proc").expect("there is a /proc");
    processes.flatten().filter_map(move |process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // Behind the name, which may have anything in it: state, parent, group, and 15 on, threads.
        let fields: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
        let [state, group, threads] = [0, 2, 17].map(|at| fields.get(at));
        let is_dead = matches!(*state?, "Z" | "X");
        (*group? == number).then_some(Found { is_dead, threads: threads?.parse().ok()? })
    })
}
