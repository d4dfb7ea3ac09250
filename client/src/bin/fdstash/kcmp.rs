//! Whether two descriptors of this process are one open file description: what alone tells that something
//! is the very same, since two ends of a pipe share device and inode, and all eventfds do.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use rustix::process::getpid;

/// Asks the kernel.
///
/// # Errors
///
/// Where it does not tell: it was built without `kcmp`, or a sandbox forbids that.
pub(crate) fn is_same(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    const KCMP_FILE: libc::c_int = 0;
    let own = getpid().as_raw_pid();
    #[expect(clippy::disallowed_methods, reason = "the numbers go to the kernel, and no further")]
    let [one, other] = [one.as_fd().as_raw_fd(), other.as_fd().as_raw_fd()];
    #[expect(unsafe_code, reason = "no safe function compares descriptors")]
    // SAFETY: it takes nothing but numbers, and changes nothing.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, one, other) };
    if order < 0 { Err(io::Error::last_os_error()) } else { Ok(order == 0) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_and_another_open_of_the_file_is_not() {
        let file = File::open("/dev/null").unwrap();
        let (duplicate, other) = (file.try_clone().unwrap(), File::open("/dev/null").unwrap());

        assert!(is_same(&file, &duplicate).unwrap());
        assert!(!is_same(&file, &other).unwrap());
    }
}
