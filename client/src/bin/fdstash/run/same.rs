//! Whether two descriptors are one open file description.
//!
//! kcmp(2) would say so, but takes a capability in many containers. An epoll does, too: it knows what it
//! watches by number *and* description, so the same number with the same description is there already,
//! and with another one is not.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    fs::{FileType, SeekFrom, fcntl_getfl, fstat, seek},
    io::Errno,
};

/// Whether both are one description. Of what cannot be polled, like a regular file, it is taken for that if
/// it is open in the same way, at the same offset of the same file.
pub(super) fn same(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (stat, others) = (fstat(&one)?, fstat(&other)?);
    if (stat.st_dev, stat.st_ino) != (others.st_dev, others.st_ino) {
        return Ok(false);
    }
    // Of a file in FUSE its server would be asked, and waited for.
    if FileType::from_raw_mode(stat.st_mode).is_file() {
        return alike(one, other);
    }
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut seat: OwnedFd = one.as_fd().try_clone_to_owned()?;
    match epoll::add(&epoll, &seat, EventData::new_u64(0), EventFlags::empty()) {
        Err(Errno::PERM) => return alike(one, other),
        outcome => outcome?,
    }
    // The first description is still watched under this number, since `one` has it.
    rustix::io::dup3(&other, &mut seat, rustix::io::DupFlags::CLOEXEC)?;
    match epoll::add(&epoll, &seat, EventData::new_u64(0), EventFlags::empty()) {
        Err(Errno::EXIST) => Ok(true),
        outcome => Ok(outcome.map(|()| false)?),
    }
}

fn alike(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let offset = |fd: BorrowedFd<'_>| seek(fd, SeekFrom::Current(0)).ok();
    let (one, other) = (one.as_fd(), other.as_fd());
    Ok(offset(one) == offset(other) && fcntl_getfl(one)? == fcntl_getfl(other)?)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::unix::net::UnixStream};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_and_another_of_its_kind_is_not() {
        let (one, two) = UnixStream::pair().unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (first, second) = (event(), event());

        assert!(same(&one, one.try_clone().unwrap()).unwrap());
        assert!(!same(&one, &two).unwrap());
        assert!(same(&first, first.try_clone().unwrap()).unwrap());
        assert!(!same(&first, &second).unwrap(), "all eventfds have one inode");
        assert!(!same(&first, &one).unwrap());
    }

    #[test]
    fn a_file_is_the_same_where_it_is_open_in_the_same_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut one = File::create(&path).unwrap();

        assert!(same(&one, one.try_clone().unwrap()).unwrap());
        assert!(!same(&one, File::open(&path).unwrap()).unwrap());
        one.write_all(b"further").unwrap();
        assert!(!same(&one, File::options().write(true).open(&path).unwrap()).unwrap());
        assert!(same(folder_of(&folder), folder_of(&folder)).unwrap());
    }

    fn folder_of(folder: &tempfile::TempDir) -> File {
        File::open(folder.path()).unwrap()
    }
}
