//! Whether two descriptors, of whichever processes, are of one open file description.

use rustix::{
    io::Errno,
    process::{Pid, getpid},
};

/// A descriptor's number in a process.
pub(crate) type Number = i32;

/// Whether a descriptor of this process and one of another are of one open file description.
///
/// # Errors
///
/// If this process may not look into the other (`EPERM`), a descriptor is not there (any more), or the
/// kernel cannot tell (`ENOSYS`).
#[expect(unsafe_code, reason = "no safe function compares descriptors")]
pub(crate) fn is_same(own: Number, other: Pid, number: Number) -> Result<bool, Errno> {
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
    use std::{fs::File, os::fd::AsFd};

    use rustix::path::DecInt;

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_and_another_open_of_the_file_is_not() {
        let file = File::open("/dev/null").unwrap();
        let (duplicate, another) = (file.try_clone().unwrap(), File::open("/dev/null").unwrap());
        let number = |fd: &File| DecInt::from_fd(fd.as_fd()).as_str().parse().unwrap();
        let compared = |other: &File| is_same(number(&file), getpid(), number(other));

        assert_eq!(compared(&duplicate), Ok(true));
        assert_eq!(compared(&another), Ok(false));
        assert_eq!(is_same(number(&file), getpid(), -1), Err(Errno::BADF));
    }
}
