//! The spare keeper: what a server makes itself when its keeper has died.
//!
//! It shares the server's table as the first one did, but its memory is that of a process with many
//! threads, of which it is only one: a lock that another had is locked for ever. So it calls nothing
//! but the kernel, and when the server dies it does not clone the next one: it execs this program,
//! which begins with clean memory, and with every descriptor still open.

use std::{
    ffi::{CString, OsString},
    io,
    mem::MaybeUninit,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, RawDir, open},
    process::{
        Pid, PidfdFlags, Resource, Signal, getpid, getrlimit, pidfd_open, pidfd_send_signal,
    },
};

use crate::{
    heart::{Heart, Pulse, State},
    process,
};

/// Between two looks at the server.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Everything that is needed to exec, in memory that is there already.
struct Next {
    program: CString,
    args: Vec<CString>,
    variables: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

/// Makes a spare keeper of this process, and gives its number. `kept` is what the program is told
/// that the keeper becomes.
///
/// # Errors
///
/// If there can be no other process.
pub(crate) fn make(heart: Heart, kept: Vec<(OsString, OsString)>) -> io::Result<Pid> {
    let next = Next::new(kept)?;
    let server = pidfd_open(getpid(), PidfdFlags::empty())?;
    match process::clone()? {
        // `server` is the keeper's as well, whose table this is: it stays open in both.
        Some(pid) => {
            std::mem::forget(server);
            Ok(pid)
        }
        None => {
            process::block_signals();
            keep(heart, &server, &next)
        }
    }
}

/// Keeps until the server has died. Here, and in what is called from here, nothing allocates and
/// nothing locks.
fn keep(heart: Heart, server: &impl std::os::fd::AsFd, next: &Next) -> ! {
    let mut pulse = Pulse::default();
    loop {
        heart.keeper_beats();
        let mut ask = [PollFd::new(server, PollFlags::IN)];
        if let Ok(1..) = poll(&mut ask, Some(&LOOK)) {
            next.go_on(heart);
            continue;
        }
        if pulse.hangs(heart.beats()) {
            let _ = pidfd_send_signal(server, Signal::KILL);
            let _ = poll(&mut [PollFd::new(server, PollFlags::IN)], Some(&LOOK));
            // One of its threads may wait in the kernel and not be woken: it will do nothing any more.
            next.go_on(heart);
        }
    }
}

impl Next {
    fn new(kept: Vec<(OsString, OsString)>) -> io::Result<Self> {
        let (args, variables) = process::environment(kept)?;
        let argv = process::pointers(&args);
        let envp = process::pointers(&variables);
        // The very file that runs, whatever stands at its path today.
        let program = CString::from(c"/proc/self/exe");
        Ok(Self { program, args, variables, argv, envp })
    }

    /// Goes on without the server that there was: ends, if that had ended as it was asked to, and
    /// otherwise becomes the program. Returns only if that fails, for lack of memory, say: what is kept
    /// is kept, and it is to be tried again.
    fn go_on(&self, heart: Heart) {
        if heart.state() == State::Ended {
            exit();
        }
        self.exec();
        let _ = poll(&mut [], Some(&LOOK));
    }

    /// Becomes the program, with all that is open. Returns only if that fails.
    #[expect(unsafe_code, reason = "in this process nothing but system calls may be made")]
    fn exec(&self) {
        debug_assert!(self.args.len() < self.argv.len() && self.variables.len() < self.envp.len());
        leave_all_open();
        // SAFETY: both lists end with null, and their texts live as long as `self`.
        unsafe { libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
    }
}

/// Leaves everything open for the program that this one becomes. Only what is open is asked for: the
/// limit on descriptors may be a thousand million.
fn leave_all_open() {
    let mut buffer = [MaybeUninit::uninit(); 4 << 10];
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = open(c"/proc/self/fd", flags, Mode::empty()) else {
        // There is no number left for it, so every one is of something.
        return (3..getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)).for_each(leave_open);
    };
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let digits = entry.file_name().to_bytes();
        if digits.iter().all(u8::is_ascii_digit) {
            leave_open(digits.iter().fold(0, |all, digit| all * 10 + u64::from(digit - b'0')));
        }
    }
}

#[expect(unsafe_code, reason = "in this process there are numbers, and no owners of them")]
fn leave_open(number: u64) {
    let number = libc::c_int::try_from(number).unwrap_or(-1);
    if number > 2 {
        // SAFETY: a flag of a number that is nobody's is an error and nothing else; those that are
        // open stay so, and this process has no owner of them that would mind.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    }
}

#[expect(unsafe_code, reason = "std's exit would run what the server has left to be run")]
fn exit() -> ! {
    // SAFETY: it ends this process, of which nobody expects anything any more.
    unsafe { libc::_exit(0) }
}
