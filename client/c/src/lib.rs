//! The C library of fdstash: `libfdstash.so` and `fdstash.h`.
//!
//! This file is the border: the functions of the header, whose comments stand here. It turns what C
//! hands in into types that own or borrow, and a [`Failure`] into an errno; and it lets neither a panic
//! nor a `SIGPIPE` through. Nothing else here is unsafe.
#![allow(clippy::missing_safety_doc, reason = "what C has to see to is said in the header's words")]

#[forbid(unsafe_code)]
mod failure;
#[forbid(unsafe_code)]
mod file;
#[forbid(unsafe_code)]
mod session;

use std::{
    ffi::{CStr, OsStr},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    ptr,
    sync::OnceLock,
};

use fdstash::{Gift, Name};
use libc::{c_char, c_int, mode_t};

use crate::failure::Failure;

/// Connects this process to the stash that listens at a socket. NULL stands for the one that
/// $FDSTASH_SOCKET names, else for the user's own stash, else for the system's.
///
/// Called again, it goes on with the stash that it is told then. A child of fork(2) need not call it:
/// its first call connects anew, to the same stash.
///
/// Returns 0. On failure a connection that there was is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdstash_init(socket: *const c_char) -> c_int {
    answer(|| {
        // SAFETY: C promises a string, or NULL.
        let socket = unsafe { text(socket) };
        let socket = socket.map_or_else(fdstash::default_socket, as_path);
        watch_forks()?;
        session::begin(socket)?;
        Ok(0)
    })
}

/// Closes the connection. What the stash keeps stays there.
#[unsafe(no_mangle)]
pub extern "C" fn fdstash_cleanup() {
    answer(|| {
        session::end();
        Ok(0)
    });
}

/// Has the stash keep a duplicate of a descriptor under a name, in place of what was there. The
/// descriptor itself stays the caller's; both share one open file description, and so its offset, its
/// flags and its locks. No other thread may close it meanwhile.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdstash_give(name: *const c_char, fd: c_int) -> c_int {
    answer(|| {
        // SAFETY: C promises a string, or NULL, and not to close the descriptor meanwhile.
        let (name, fd) = unsafe { (as_name(name)?, borrowed(fd)?) };
        session::with(|stash| Ok(stash.give(&[Gift::new(name, fd)])?))?;
        Ok(0)
    })
}

/// Takes the descriptor that is kept under a name out of the stash, which lets go of it only when it
/// has arrived here.
///
/// Returns the descriptor, which is close-on-exec and the caller's; -ENOENT where there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdstash_take(name: *const c_char) -> c_int {
    answer(|| {
        // SAFETY: C promises a string, or NULL.
        let name = unsafe { as_name(name) }?;
        let fd = session::with(|stash| {
            let outcome = stash.take(&[name]);
            session::handed(stash, outcome)
        })?;
        Ok(fd.into_raw_fd())
    })
}

/// Opens a file as open(2) does, but looks in the stash first: under the file's absolute path, where
/// ':', '%' and all that is not printable ASCII stand as '%' and two hexadecimal digits, and then for an
/// entry whose file had that path when it was given. Only what this user or root has given is taken. A
/// file that is not there is opened by its path, with this process's own rights, and put into the stash.
///
/// So a program that is started again, or may not open the file any more, or finds it renamed or
/// deleted, gets the very file that it had. A regular file or block device shares neither offset nor
/// flags nor locks with what the stash keeps.
///
/// The flags are an access mode and O_CREAT, O_APPEND, O_DIRECT, O_SYNC, O_DSYNC, O_NOATIME; O_CLOEXEC
/// and O_NOCTTY are implied. The mode is for O_CREAT, and less the umask; else 0.
///
/// Returns the descriptor, which is close-on-exec and the caller's; close(2) closes it and no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdstash_open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    answer(|| {
        // SAFETY: C promises a string, or NULL.
        let path = unsafe { text(path) }.ok_or(Failure::Null { argument: "the path" })?;
        let (fd, opened) = file::open(&as_path(path), flags, mode)?;
        let number = fd.into_raw_fd();
        session::note(number, opened);
        Ok(number)
    })
}

/// Opens the very file again that fdstash_open has opened, whatever its path is called by now, with the
/// flags given here and no others; as there, but without O_CREAT. Only when that has succeeded does the
/// descriptor, under the same number, refer to what was opened. On failure it is as it was.
///
/// Its offset is then 0, and it has no locks; those of F_SETLK, which go with any close of the file, this
/// process has lost. Duplicates of the descriptor still refer to what was open before. What the stash
/// keeps has the new flags too, but never less access than before, so that one can go back. Access that
/// it does not have takes this user's own right to it, else -EACCES.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdstash_reopen(fd: c_int, flags: c_int) -> c_int {
    answer(|| {
        // SAFETY: C promises not to close the descriptor meanwhile.
        let opened = file::reopen(fd, unsafe { borrowed(fd) }?, flags)?;
        put(&opened, fd)?;
        Ok(0)
    })
}

/// Has the stash forget a file that fdstash_open has opened, and closes the descriptor. On failure both
/// are as they were.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdstash_close(fd: c_int) -> c_int {
    answer(|| {
        // SAFETY: C promises not to close the descriptor meanwhile.
        file::forget(fd, unsafe { borrowed(fd) }?)?;
        session::strike(fd);
        // SAFETY: C has handed it over to be closed. What close(2) fails with changes nothing of that.
        unsafe { libc::close(fd) };
        Ok(0)
    })
}

/// Tells what happened at the last failure in this thread, to what, and what can be done about it; an
/// empty string before the first. The string is the library's, and is there until this thread's next
/// failure.
#[unsafe(no_mangle)]
pub extern "C" fn fdstash_error() -> *const c_char {
    failure::last_words()
}

/// Does what a function is for, and makes its outcome what C expects.
fn answer(act: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    let outcome = without_sigpipe(|| panic::catch_unwind(AssertUnwindSafe(act)));
    match outcome.unwrap_or(Err(Failure::Fault)) {
        Ok(result) => result,
        Err(failure) => {
            failure::remember(&failure);
            -failure.errno()
        }
    }
}

/// Does something that may send descriptors to a daemon that is gone: `sendfd` does that without
/// `MSG_NOSIGNAL`. The `SIGPIPE` that comes of it is this thread's, and is taken off before anybody
/// sees it; one that waits here already stays.
fn without_sigpipe<T>(act: impl FnOnce() -> T) -> T {
    let [mut pipe, mut before, mut pending] = [MaybeUninit::<libc::sigset_t>::uninit(); 3];
    // SAFETY: each set is written by the call that is given it first, before another reads it; with a
    // signal that there is and sets that there are, none of the calls fails.
    let was_pending = unsafe {
        libc::sigemptyset(pipe.as_mut_ptr());
        libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
        libc::sigpending(pending.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr());
        libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1
    };

    let outcome = act();

    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `pipe` and `before` were written above; NULL stands for what is not to be told.
    unsafe {
        if !was_pending {
            libc::sigtimedwait(pipe.as_ptr(), ptr::null_mut(), &at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
    }
    outcome
}

/// Has every fork of this process leave a session that its child can use. Once is enough.
fn watch_forks() -> Result<(), Failure> {
    static WATCHED: OnceLock<c_int> = OnceLock::new();
    let errno = WATCHED.get_or_init(|| {
        // SAFETY: the functions are there as long as this library, and glibc forgets them with it.
        unsafe {
            libc::pthread_atfork(
                Some(session::before_fork),
                Some(session::after_fork),
                Some(session::after_fork),
            )
        }
    });
    match *errno {
        0 => Ok(()),
        errno => Err(Failure::system("watch forks", io::Error::from_raw_os_error(errno))),
    }
}

/// Has a number of the caller's refer to what was opened, and be close-on-exec or not as it was.
fn put(opened: &OwnedFd, number: c_int) -> Result<(), Failure> {
    let done = |result: c_int| match result {
        ..0 => Err(Failure::system(
            format!("put it under number {number}"),
            io::Error::last_os_error(),
        )),
        result => Ok(result),
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "dup3(2) takes a number; `opened` outlives the call"
    )]
    let opened = opened.as_raw_fd();
    // SAFETY: both look at numbers. What `number` referred to is the caller's, who wants it replaced.
    unsafe {
        let is_cloexec = done(libc::fcntl(number, libc::F_GETFD))? & libc::FD_CLOEXEC != 0;
        done(libc::dup3(opened, number, if is_cloexec { libc::O_CLOEXEC } else { 0 }))?;
    }
    Ok(())
}

/// A string of C's, which NULL is not.
///
/// # Safety
///
/// `text` is NULL, or a string that stays as it is while the result is used.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: as the caller promises.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// The name of an entry.
///
/// # Safety
///
/// As [`text`].
unsafe fn as_name(name: *const c_char) -> Result<Name, Failure> {
    // SAFETY: as the caller promises.
    let name = unsafe { text(name) }.ok_or(Failure::Null { argument: "the name" })?;
    let name = name.to_string_lossy();
    Name::new(&name).map_err(|why| Failure::BadName { name: name.into_owned(), why })
}

fn as_path(text: &CStr) -> PathBuf {
    OsStr::from_bytes(text.to_bytes()).into()
}

/// A descriptor that is open.
///
/// # Safety
///
/// Nobody closes it while the result is used.
unsafe fn borrowed<'fd>(fd: c_int) -> Result<BorrowedFd<'fd>, Failure> {
    // SAFETY: F_GETFD looks at the number alone.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Failure::BadDescriptor { fd });
    }
    // SAFETY: it is open, hence not -1, and stays so as the caller promises.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
