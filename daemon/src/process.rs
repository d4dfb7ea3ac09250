//! What a process can do with itself that is nobody's safe function: clone itself with its table of
//! descriptors, become another program, and keep signals for when it asks for them.

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString},
    io, mem,
    os::{
        fd::BorrowedFd,
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::Command,
    ptr,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Pid, Signal, geteuid, set_dumpable_behavior},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};

use crate::{inherited::set_survives_exec, lasting};

/// The signals that a keeper waits for.
const AWAITED: [Signal; 5] = [Signal::CHILD, Signal::HUP, Signal::TERM, Signal::INT, Signal::USR1];

/// Lets a program that is to be started have descriptors of this process.
#[expect(unsafe_code, reason = "only the child may leave it open")]
pub(crate) fn leaving_open<'a>(
    command: &'a mut Command,
    fds: [BorrowedFd<'static>; 4],
) -> &'a mut Command {
    // SAFETY: what is called in the child is one system call for each descriptor, which this
    // process never closes; and the child has a table of its own.
    unsafe { command.pre_exec(move || fds.iter().try_for_each(|fd| set_survives_exec(fd, true))) }
}

/// Has signals do what they do by themselves, whatever whoever started this program has made of them:
/// where SIGCHLD is ignored, the death of a server is told to nobody. But SIGXFSZ is ignored, so that
/// a limit on the size of files is an error of the call that meets it, and not the end of each server.
/// SIGINT stays ignored where it is, as in what a shell has started in the background. SIGHUP has a handler,
/// which is never called where it is waited for: while it is, the kernel does not tell others that it is
/// blocked, and systemd (262) starts no service that it reloads by a signal which would end it.
#[expect(unsafe_code, reason = "no safe function says what signals do")]
pub(crate) fn settle_signals() {
    extern "C" fn is_heard(_: libc::c_int) {}
    for signal in AWAITED.into_iter().filter(|signal| *signal != Signal::INT) {
        // SAFETY: no handler is set, and none was before, since this process has just begun.
        unsafe { libc::signal(signal.as_raw(), libc::SIG_DFL) };
    }
    // SAFETY: the same.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let handler: extern "C" fn(libc::c_int) = is_heard;
    // SAFETY: it does nothing, so it may interrupt anything.
    unsafe { libc::signal(libc::SIGHUP, handler as libc::sighandler_t) };
}

/// Closes this process to the others of its user: none of them may look at its descriptors (`/proc`),
/// get at one (`pidfd_getfd`) or trace it. A process that is cloned from it is so too; one that it
/// becomes by an exec is open until it says the same. A thread that takes on another user has the kernel
/// set this anew, to what `fs.suid_dumpable` says.
pub(crate) fn close_to_others() {
    // Fails for no such value as this one.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Whether this process can take on other users: root's can, and one with the capability. Such a daemon
/// is the system's, and any other its user's.
pub(crate) fn can_be_others() -> bool {
    geteuid().is_root()
        || capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::SETUID))
}

/// Gives up all power of this thread beyond that of its user. The kernel does so by itself where root
/// becomes somebody else, but not where another user does that has capabilities.
///
/// # Errors
///
/// If it still has some.
pub(crate) fn give_up_power() -> Result<(), Errno> {
    let own = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..own })?;
    let left = capabilities(None)?.effective;
    if left.is_empty() { Ok(()) } else { Err(Errno::PERM) }
}

/// Keeps the signals that the keeper waits for from coming in any other way. For as long as this
/// process is one thread, and across an exec.
pub(crate) fn block_signals() {
    mask(libc::SIG_BLOCK);
}

/// Lets them come as they do to other processes.
pub(crate) fn unblock_signals() {
    mask(libc::SIG_UNBLOCK);
}

#[expect(unsafe_code, reason = "no safe function sets a mask of signals")]
fn awaited() -> libc::sigset_t {
    // SAFETY: a set of signals is plain bytes, which `sigemptyset` makes an empty set, and the
    // pointers are to it.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in AWAITED {
            libc::sigaddset(&raw mut set, signal.as_raw());
        }
        set
    }
}

#[expect(unsafe_code, reason = "no safe function sets a mask of signals")]
fn mask(how: libc::c_int) {
    let set = awaited();
    // SAFETY: the pointer is to a set of signals that outlives the call.
    unsafe { libc::sigprocmask(how, &raw const set, ptr::null_mut()) };
}

/// The next signal, if one comes within the time.
#[expect(unsafe_code, reason = "no safe function waits for a signal")]
pub(crate) fn wait_for_signal(patience: Duration) -> Option<Signal> {
    let set = awaited();
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    // SAFETY: both pointers are to values that outlive the call; nobody asks for the details.
    let signal = unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const time) };
    Signal::from_named_raw(signal)
}

/// Makes a second process with a copy of this one's memory, and with its very table of descriptors.
/// Gives the other one's number here, and none there.
#[expect(unsafe_code, reason = "a process that shares its descriptors is nobody's safe function")]
pub(crate) fn clone() -> io::Result<Option<Pid>> {
    const FLAGS: libc::c_int = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack of its own the child goes on as one of `fork` does,
    // with a copy of all memory. The keeper has one thread, so that no lock is held by somebody who is
    // not there; the spare keeper has not, and makes nothing but system calls. Descriptors that both
    // think they own are never dropped by either: `Lasting` is leaked, and the server ends with
    // `exit` (tests/crash.rs).
    let pid = unsafe { libc::syscall(libc::SYS_clone, FLAGS, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(Pid::from_raw(pid)),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Replaces this program by another, with its arguments, and returns only if that fails. Unlike
/// `Command::exec` it leaves the signals blocked that are: one that came meanwhile would end it.
#[expect(unsafe_code, reason = "std's exec lets signals in")]
pub(crate) fn exec(
    program: &Path,
    kept: Vec<(OsString, OsString)>,
) -> Result<Infallible, io::Error> {
    let program = text(program.as_os_str())?;
    let (args, variables) = environment(kept)?;
    let (argv, envp) = (pointers(&args), pointers(&variables));
    // SAFETY: both lists end with null, and their texts outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// The arguments and the environment of what this program becomes, which is told what is kept.
pub(crate) fn environment(
    kept: Vec<(OsString, OsString)>,
) -> io::Result<(Vec<CString>, Vec<CString>)> {
    let args = env::args_os().map(|arg| text(&arg)).collect::<Result<_, _>>()?;
    let stays = |(key, _): &(OsString, OsString)| !lasting::is_for_one_process(key);
    let variables = env::vars_os().filter(stays).chain(kept).map(|(mut both, value)| {
        both.push("=");
        both.push(value);
        text(&both)
    });
    Ok((args, variables.collect::<Result<_, _>>()?))
}

/// Where texts begin, as exec wants to be told.
pub(crate) fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

fn text(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::from)
}
