//! Where a kept file was found when it was given, and what stands there now.

use std::{fs, io};

use fdstash::{Entry, Kind};
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, makedev, statx};
use std::os::fd::AsFd;

use super::descriptor::path_now;

/// What has become of the path that an entry's file had when it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    /// The very file stands there.
    Same,
    /// It has another name now, and nothing stands at the old one.
    Renamed(String),
    /// Another file stands there.
    Replaced,
    /// Nothing stands there.
    Gone,
    /// This user cannot look there: the kernel's words.
    Unseen(String),
}

impl Path {
    /// In one word.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Renamed(_) => "renamed",
            Self::Replaced => "replaced",
            Self::Gone => "gone",
            Self::Unseen(_) => "unseen",
        }
    }

    /// For people.
    pub(crate) fn tell(&self) -> String {
        match self {
            Self::Same => "still this very file".to_owned(),
            Self::Renamed(now) => format!("the file is now at {now}"),
            Self::Replaced => "another file stands there now".to_owned(),
            Self::Gone => "nothing stands there now".to_owned(),
            Self::Unseen(why) => format!("what stands there cannot be looked at: {why}"),
        }
    }
}

/// What stands where an entry was found when it was given: of files and directories, which alone have
/// a path of their own. With a duplicate of it, also where it is now.
pub(crate) fn path_of(entry: &Entry, fd: Option<impl AsFd>) -> Option<Path> {
    let target = entry.target.as_deref().filter(|target| target.starts_with('/'))?;
    if matches!(entry.kind, Kind::Socket | Kind::Anonymous) || target.starts_with("/memfd:") {
        return None;
    }
    let stands = match look_at(target) {
        Ok(identity) if identity == (entry.device, entry.inode) => return Some(Path::Same),
        Ok(_) => Path::Replaced,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Path::Gone,
        Err(error) => Path::Unseen(error.to_string()),
    };
    let now = fd.and_then(|fd| path_now(&fd)).filter(|now| now != target);
    let is_there = |now: &String| look_at(now).is_ok_and(|it| it == (entry.device, entry.inode));
    Some(now.filter(is_there).map_or(stands, Path::Renamed))
}

/// Device and inode of what stands at a path, without asking a file server that may be dead.
fn look_at(path: &str) -> io::Result<(u64, u64)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let file = statx(CWD, path, flags, StatxFlags::BASIC_STATS)?;
    Ok(identity(&file))
}

/// The device and inode number of a file, as `stat` has them.
pub(crate) fn identity(file: &Statx) -> (u64, u64) {
    (makedev(file.stx_dev_major, file.stx_dev_minor), file.stx_ino)
}

/// Where a link of `/proc` points, without what the kernel adds to a name that is gone.
pub(crate) fn link(path: &str) -> Option<String> {
    let target = fs::read_link(path).ok()?.to_string_lossy().into_owned();
    Some(target.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(target))
}
