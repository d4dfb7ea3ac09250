//! [`Steps`]: what a thread of another process does, counted.

use std::{fs, thread, time::Duration};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// How long a thread sleeps that has nothing left to do, at least.
const REST: Duration = Duration::from_millis(100);

/// The first thread of a process, traced by the thread that counts. Let go when it is dropped.
#[derive(Debug)]
pub struct Steps {
    pid: Pid,
}

impl Steps {
    /// Has a process's first thread counted. None, where this machine lets nobody look, which it says.
    #[must_use]
    pub fn of(pid: rustix::process::Pid) -> Option<Self> {
        let pid = Pid::from_raw(pid.as_raw_pid());
        match ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD) {
            Ok(()) => Some(Self { pid }),
            Err(error) => {
                crate::skipped(&format!("the process cannot be traced: {error}"));
                None
            }
        }
    }

    /// Waits until nothing is left of what the thread was given to do before.
    ///
    /// # Panics
    ///
    /// If it does not come to rest.
    pub fn await_rest(&self) {
        crate::wait_until(crate::SOON, || {
            let before = self.sleeps();
            thread::sleep(REST);
            self.sleeps() == before && self.is_waiting()
        });
    }

    /// How many system calls the thread makes from where it waits for something to happen, through what `act`
    /// gives it to do, until it waits again.
    ///
    /// # Panics
    ///
    /// If the thread ends.
    pub fn system_calls(&self, act: impl FnOnce()) -> usize {
        self.stop();
        act();
        // Each stops it twice, before and after.
        let mut stops = 0;
        let mut signal = None;
        while let Some(next) = self.go_to_call(signal) {
            signal = next;
            stops += 1;
        }
        // It waits, and is to go on freely.
        self.stop();
        ptrace::cont(self.pid, None).expect("it is stopped");
        stops / 2
    }

    /// Has it go on to the next begin or end of a system call, with the signal that it is to get then; and the
    /// next such signal. None if it waits for something to happen.
    fn go_to_call(&self, signal: Option<Signal>) -> Option<Option<Signal>> {
        ptrace::syscall(self.pid, signal).expect("it is stopped");
        loop {
            let stopped = self.look();
            if stopped.is_some() {
                return stopped;
            }
            if self.is_waiting() {
                return None;
            }
            thread::yield_now();
        }
    }

    fn stop(&self) {
        ptrace::interrupt(self.pid).expect("it is traced");
        while self.look().is_none() {
            thread::yield_now();
        }
    }

    /// Whether it has stopped, and with which signal that it is yet to get.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nix's states, of which these are stops")]
    fn look(&self) -> Option<Option<Signal>> {
        let status = loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                status => break status.expect("it is traced"),
            }
        };
        match status {
            WaitStatus::StillAlive => None,
            WaitStatus::Stopped(_, signal) => Some(Some(signal)),
            WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => Some(None),
            ended => panic!("it has ended: {ended:?}"),
        }
    }

    /// How often it has gone to sleep so far, as its status tells in a line.
    fn sleeps(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{0}/task/{0}/status", self.pid));
        let status = status.expect("it is traced");
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.expect("the kernel counts them").to_owned()
    }

    /// Whether it waits in the system call in which its loop waits.
    fn is_waiting(&self) -> bool {
        let of = |file| fs::read_to_string(format!("/proc/{0}/task/{0}/{file}", self.pid));
        let is_asleep = of("stat").is_ok_and(|stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
        });
        let call = of("syscall").unwrap_or_default();
        let call = call.split_whitespace().next().and_then(|call| call.parse().ok());
        is_asleep && call.is_some_and(|call: libc::c_long| WAITS.contains(&call))
    }
}

/// The system calls that wait for events.
#[cfg(target_arch = "x86_64")]
const WAITS: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
#[cfg(not(target_arch = "x86_64"))]
const WAITS: &[libc::c_long] = &[libc::SYS_epoll_pwait];

impl Drop for Steps {
    fn drop(&mut self) {
        if ptrace::interrupt(self.pid).is_ok() {
            while self.look().is_none() {
                thread::yield_now();
            }
            let _ = ptrace::detach(self.pid, None);
        }
    }
}
