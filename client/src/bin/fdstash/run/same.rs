//! Whether two descriptors are one open file description, also where kcmp(2) does not tell, as in many
//! containers.
//!
//! An epoll does: it knows what it watches by number *and* description, so the same number with the same
//! description is there already, and with another one is not. It takes no regular files.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    fs::{FileType, SeekFrom, fcntl_getfl, fstat, seek},
    io::{DupFlags, Errno, dup3},
};

use crate::kcmp;

/// How two descriptors are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Likeness {
    Same,
    /// Nobody tells whether they are the same: of one file, open in the same way, at the same offset.
    Alike,
    Different,
}

pub(super) fn compare(one: impl AsFd, other: impl AsFd) -> io::Result<Likeness> {
    match kcmp::is_same(&one, &other) {
        Ok(true) => Ok(Likeness::Same),
        Ok(false) => Ok(Likeness::Different),
        Err(_) => without_kcmp(one.as_fd(), other.as_fd()),
    }
}

fn without_kcmp(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<Likeness> {
    let (stat, others) = (fstat(one)?, fstat(other)?);
    if (stat.st_dev, stat.st_ino) != (others.st_dev, others.st_ino) {
        return Ok(Likeness::Different);
    }
    // Of a file in FUSE its server would be asked, and waited for.
    if FileType::from_raw_mode(stat.st_mode).is_file() {
        return alike(one, other);
    }
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let watch =
        |seat: &OwnedFd| epoll::add(&epoll, seat, EventData::new_u64(0), EventFlags::empty());
    let mut seat = one.try_clone_to_owned()?;
    match watch(&seat) {
        Err(Errno::PERM) => return alike(one, other),
        outcome => outcome?,
    }
    // The first description is still watched under this number, since `one` has it.
    dup3(other, &mut seat, DupFlags::CLOEXEC)?;
    match watch(&seat) {
        Err(Errno::EXIST) => Ok(Likeness::Same),
        outcome => Ok(outcome.map(|()| Likeness::Different)?),
    }
}

fn alike(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<Likeness> {
    let offset = |fd| seek(fd, SeekFrom::Current(0)).ok();
    let is_alike = offset(one) == offset(other) && fcntl_getfl(one)? == fcntl_getfl(other)?;
    Ok(if is_alike { Likeness::Alike } else { Likeness::Different })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::unix::net::UnixStream};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn without(one: impl AsFd, other: impl AsFd) -> Likeness {
        without_kcmp(one.as_fd(), other.as_fd()).unwrap()
    }

    #[test]
    fn a_duplicate_is_the_same_and_another_of_its_kind_is_not() {
        let (one, two) = UnixStream::pair().unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (first, second) = (event(), event());
        let table = [
            (one.as_fd(), one.try_clone().unwrap().into(), Likeness::Same),
            (one.as_fd(), OwnedFd::from(two), Likeness::Different),
            (first.as_fd(), first.try_clone().unwrap(), Likeness::Same),
            // All eventfds have one inode.
            (first.as_fd(), second, Likeness::Different),
        ];

        for (fd, other, expected) in table {
            assert_eq!(without(fd, &other), expected);
            assert_eq!(compare(fd, &other).unwrap(), expected);
        }
    }

    #[test]
    fn a_file_is_alike_where_it_is_open_in_the_same_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut one = File::create(&path).unwrap();
        let again = || File::options().write(true).open(&path).unwrap();

        assert_eq!(without(&one, again()), Likeness::Alike);
        assert_eq!(without(&one, File::open(&path).unwrap()), Likeness::Different);
        one.write_all(b"further").unwrap();
        assert_eq!(without(&one, again()), Likeness::Different);
        assert_eq!(without(&one, one.try_clone().unwrap()), Likeness::Alike);
    }
}
