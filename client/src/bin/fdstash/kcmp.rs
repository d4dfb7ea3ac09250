//! Whether two descriptors, of whichever processes, are of one open file description: what alone tells that
//! something is the very same, since two ends of a pipe share device and inode, and all eventfds do.

use std::os::fd::{AsFd, AsRawFd};

use rustix::{
    io::Errno,
    process::{Pid, getpid},
};

/// A descriptor's number in a process.
pub(crate) type Number = i32;

/// Whether two descriptors of this process are of one open file description.
///
/// # Errors
///
/// If the kernel does not tell: it was built without `kcmp`, or a sandbox forbids that.
pub(crate) fn is_same(one: impl AsFd, other: impl AsFd) -> Result<bool, Errno> {
    #[expect(clippy::disallowed_methods, reason = "the numbers go to the kernel, and no further")]
    let [one, other] = [one.as_fd(), other.as_fd()].map(|fd| fd.as_raw_fd());
    is_same_there(one, getpid(), other)
}

/// Whether a descriptor of this process and one of another are of one open file description.
///
/// # Errors
///
/// If this process may not look into the other (`EPERM`), a descriptor is not there (any more), or the
/// kernel cannot tell (`ENOSYS`).
#[expect(unsafe_code, reason = "no safe function compares descriptors")]
pub(crate) fn is_same_there(own: Number, other: Pid, number: Number) -> Result<bool, Errno> {
    const KCMP_FILE: libc::c_int = 0;
    let (this, other) = (getpid().as_raw_pid(), other.as_raw_pid());
    // SAFETY: it takes nothing but numbers, and changes nothing.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, this, other, KCMP_FILE, own, number) };
    if order < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(order == 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_and_another_open_of_the_file_is_not() {
        let file = File::open("/dev/null").unwrap();
        let (duplicate, another) = (file.try_clone().unwrap(), File::open("/dev/null").unwrap());

        assert_eq!(is_same(&file, &duplicate), Ok(true));
        assert_eq!(is_same(&file, &another), Ok(false));
        assert_eq!(is_same_there(0, getpid(), -1), Err(Errno::BADF));
    }
}
