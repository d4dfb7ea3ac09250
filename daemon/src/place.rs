//! Finding what stands at a path below a directory, and nothing that the path leads to elsewhere.
//!
//! It is found before it is opened, so that nothing is opened that is not what an entry can be: the open
//! of a pipe would wait for its other end, and that of a device can do something by itself.
//!
//! The kernel's `openat2` would do it in one call, but the unit's `RestrictSUIDSGID=` has it answer
//! ENOSYS, since its flags cannot be seen in advance. So it is done part by part: each is opened below
//! the one before, no link is followed by the kernel, and the way back is the one that it came.

use std::{
    collections::VecDeque,
    ffi::OsString,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Component, Path},
};

use fdstash_proto::Kind;
use fdstash_stash::Place;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, openat, readlinkat},
    io::Errno,
};

use crate::inspect::{kind, look};

/// How many links a path may lead over: as many as the kernel follows.
const MOST_LINKS: u32 = 40;

/// How many directories below the first it may lead into: each takes a descriptor meanwhile.
const DEEPEST: usize = 64;

/// A file that was found, and is not open: it can only be opened anew.
pub(crate) struct Found {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: Kind,
}

/// Finds the file at a place, for an entry of a kind. With the rights of the thread that calls this.
///
/// # Errors
///
/// The kernel's; EXDEV where the path leads out of the directory. EOPNOTSUPP for what is neither a
/// regular file nor a block device, nor of the entry's kind.
pub(crate) fn find(place: &Place, entry: Kind) -> Result<Found, Errno> {
    const FOLDER: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);
    let below = openat(CWD, &*place.below, FOLDER, Mode::empty())?;
    let found = walk(below, Path::new(&*place.path))?;
    let kind = kind(&look(found.as_fd())?);
    if !matches!(kind, Kind::Regular | Kind::Block) && kind != entry {
        return Err(Errno::OPNOTSUPP);
    }
    Ok(Found { fd: found, kind })
}

/// What a path leads to from a directory without ever leaving it.
fn walk(below: OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    const PART: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
    let (mut way, mut here, mut links) = (Vec::new(), below, 0);
    let mut rest = parts(path)?;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            // The way that it came, wherever the directory may have been moved meanwhile.
            here = way.pop().ok_or(Errno::XDEV)?;
            continue;
        }
        let next = openat(&here, &part, PART, Mode::empty())?;
        match FileType::from_raw_mode(look(next.as_fd())?.stx_mode.into()) {
            FileType::Symlink => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = readlinkat(&next, c"", Vec::new())?;
                let mut led = parts(Path::new(&OsString::from_vec(target.into_bytes())))?;
                led.append(&mut rest);
                rest = led;
            }
            FileType::Directory if way.len() == DEEPEST => return Err(Errno::NAMETOOLONG),
            FileType::Directory => way.push(std::mem::replace(&mut here, next)),
            FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                return if rest.is_empty() { Ok(next) } else { Err(Errno::NOTDIR) };
            }
        }
    }
    Ok(here)
}

/// The parts of a path that does not begin anew at the root.
fn parts(path: &Path) -> Result<VecDeque<OsString>, Errno> {
    let mut parts = VecDeque::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir | Component::Normal(_) => {
                parts.push_back(part.as_os_str().to_owned());
            }
            Component::RootDir | Component::Prefix(_) => return Err(Errno::XDEV),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt, symlink},
    };

    use super::*;

    #[test]
    fn a_path_leads_to_what_is_below_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        fs::create_dir_all(below.join("a/b")).unwrap();
        for path in ["below/file", "below/a/b/file", "outside", "below2"] {
            File::create(folder.path().join(path)).unwrap();
        }
        let link = |target: &str, at: &str| symlink(target, below.join(at)).unwrap();
        link("file", "to-file");
        link("a/b", "to-b");
        link("../../file", "a/b/up");
        link("../../../outside", "a/b/out");
        link("../outside", "out");
        link("..", "to-above");
        link("/etc/passwd", "absolute");
        link("round", "round");
        link("nothing", "dangling");
        let file = || Ok(below.join("file"));

        for (path, expected) in [
            ("file", file()),
            ("./a/../file", file()),
            ("a/b/../../file", file()),
            ("to-file", file()),
            ("to-b/up", file()),
            ("to-b/../../file", file()),
            ("to-b/file", Ok(below.join("a/b/file"))),
            ("", Err(Errno::OPNOTSUPP)),
            ("a", Err(Errno::OPNOTSUPP)),
            ("a/..", Err(Errno::OPNOTSUPP)),
            ("..", Err(Errno::XDEV)),
            ("../outside", Err(Errno::XDEV)),
            ("../below/file", Err(Errno::XDEV)),
            ("a/../../outside", Err(Errno::XDEV)),
            ("out", Err(Errno::XDEV)),
            ("to-b/out", Err(Errno::XDEV)),
            ("to-above/outside", Err(Errno::XDEV)),
            ("absolute", Err(Errno::XDEV)),
            ("/file", Err(Errno::XDEV)),
            ("round", Err(Errno::LOOP)),
            ("dangling", Err(Errno::NOENT)),
            ("nothing", Err(Errno::NOENT)),
            ("file/more", Err(Errno::NOTDIR)),
            ("file/..", Err(Errno::NOTDIR)),
            ("to-file/../file", Err(Errno::NOTDIR)),
        ] {
            let place = Place { below: below.to_str().unwrap().into(), path: path.into() };

            let found = find(&place, Kind::Fifo);

            let inode = |path| fs::metadata::<std::path::PathBuf>(path).unwrap().ino();
            let found = found.map(|found| look(found.fd.as_fd()).unwrap().stx_ino);
            assert_eq!(found, expected.map(inode), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_too_deep_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let deep = |count: usize| format!("{}file", "d/".repeat(count));
        fs::create_dir_all(folder.path().join("d/".repeat(DEEPEST + 1))).unwrap();
        for count in [DEEPEST, DEEPEST + 1] {
            File::create(folder.path().join(deep(count))).unwrap();
        }
        let found = |count| {
            let below = folder.path().to_str().unwrap().into();
            find(&Place { below, path: deep(count).into() }, Kind::Fifo).map(|found| found.kind)
        };

        assert_eq!(found(DEEPEST), Ok(Kind::Regular));
        assert_eq!(found(DEEPEST + 1), Err(Errno::NAMETOOLONG));
    }
}
