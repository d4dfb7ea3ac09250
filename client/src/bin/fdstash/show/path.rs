//! Where a kept file was found when it was given, and what stands there now.

use std::{fs, io};

use fdstash::{Entry, Kind};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, makedev, openat2, statx},
    io::Errno,
};
use std::os::fd::{AsFd, OwnedFd};

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
    match known(path) {
        Err(Errno::AGAIN) => {}
        outcome => return Ok(identity(&outcome?)),
    }
    // Who waits for a request that a server has read cannot be killed.
    if is_served(path, &fs::read_to_string("/proc/self/mountinfo")?) {
        return Err(io::Error::other("a file server has it, which may not answer"));
    }
    // When it was told, there was no link in it; one that is now may lead to such a server.
    match open(path, ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => Ok((0, 0)),
        outcome => Ok(identity(&look(outcome?)?)),
    }
}

/// What the kernel knows of what stands at a path without asking a file system; `EAGAIN`, if nothing. Of
/// a file that is open somewhere it knows all parts of its path.
pub(crate) fn known(path: &str) -> Result<Statx, Errno> {
    match open(path, ResolveFlags::CACHED) {
        // A kernel before 5.12, or a sandbox.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::TOOBIG) => {
            let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
            statx(CWD, path, flags, StatxFlags::BASIC_STATS)
        }
        outcome => look(outcome?),
    }
}

fn open(path: &str, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)
}

fn look(file: OwnedFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(file, c"", flags, StatxFlags::BASIC_STATS)
}

/// Whether a path leads to a file system that asks a server, as the kernel's table of mounts has it.
fn is_served(path: &str, mounts: &str) -> bool {
    let escapes = [("\\", r"\134"), (" ", r"\040"), ("\t", r"\011"), ("\n", r"\012")];
    let path =
        escapes.iter().fold(path.to_owned(), |path, (plain, as_is)| path.replace(plain, as_is));
    // Which file system is mounted where; of two at one place the last hides the other.
    let mount = |line: &str| {
        let (before, behind) = line.split_once(" - ")?;
        let place = before.split(' ').nth(4)?.to_owned();
        Some((place, behind.split(' ').next()?.to_owned()))
    };
    let over = mounts
        .lines()
        .filter_map(mount)
        .filter(|(place, _)| std::path::Path::new(&path).starts_with(place));
    let nearest = over.max_by_key(|(place, _)| place.len());
    nearest.is_some_and(|(_, kind)| {
        let begins = ["fuse", "nfs", "virtiofs", "cifs", "smb", "9p", "ceph", "afs", "autofs"];
        begins.iter().any(|begin| kind.starts_with(begin))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_a_path_is_told_by_the_nearest_mount() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      2 1 0:50 / /mnt/a\\040b rw,x shared:1 - fuse.sshfs host: rw\n\
                      3 2 8:2 / /mnt/a\\040b/disk rw - xfs /dev/sdb rw\n\
                      4 1 0:51 / /net rw - nfs4 host:/ rw\n\
                      5 4 0:52 / /net rw - tmpfs none rw\n";
        for (path, expected) in [
            ("/etc/x", false),
            ("/mnt/a b/x", true),
            ("/mnt/a bc", false),
            ("/mnt/a b/disk/x", false),
            ("/net/x", false),
        ] {
            assert_eq!(is_served(path, mounts), expected, "{path}");
        }
    }

    #[test]
    fn what_is_open_is_known_and_what_a_link_leads_to_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let file = fs::File::create(at("a")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("b")).unwrap();

        let own = look(file.into()).unwrap();

        assert_eq!(identity(&known(&at("a")).unwrap()), identity(&own));
        assert_eq!(look_at(&at("a")).unwrap(), identity(&own));
        assert_eq!(look_at(&at("c")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
