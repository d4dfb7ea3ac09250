//! Who on this machine holds the same open file, or has opened the same file on its own.
//!
//! Asked of `/proc` with the rights of who runs this: for root everybody, for others their own processes
//! that let themselves be looked at. The daemon's do not, but to root. Nobody can see what is on its way
//! in the queue of a socket.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::Path,
};

use fdstash::{Access, Kind};
use rustix::{
    fs::{AtFlags, CWD, OFlags, StatxFlags, statx},
    io::Errno,
    path::DecInt,
    process::{Pid, getpid},
};

use super::path::identity;
use crate::{kcmp, words::plain};

/// Who holds the file.
#[derive(Default)]
pub(crate) struct Holders {
    /// The daemon's own processes.
    pub(crate) keepers: Vec<Holder>,
    /// Others with a duplicate: the same offset, flags and locks.
    pub(crate) same: Vec<Holder>,
    /// Those that have the same file open otherwise.
    pub(crate) separate: Vec<Holder>,
    /// Those of which the kernel does not tell which of the two.
    pub(crate) either: Vec<Holder>,
    /// How many processes this user may not look into.
    pub(crate) unseen: usize,
}

/// A process that holds it.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) command: String,
    pub(crate) uid: u32,
    /// The numbers of its descriptors, and what for they are opened.
    pub(crate) fds: Vec<(i32, Option<Access>)>,
}

/// What a descriptor of another's is to the kept one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sameness {
    Same,
    Separate,
    Untold,
}

impl Holders {
    /// Looks for them.
    ///
    /// # Errors
    ///
    /// If there is no `/proc`.
    pub(crate) fn find(fd: BorrowedFd<'_>, kind: Kind, socket: &Path) -> io::Result<Self> {
        let wanted = Wanted::new(fd, kind)?;
        let listener = listener_of(socket);
        let mut found = Self::default();
        let processes = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
            Pid::from_raw(entry.file_name().to_str()?.parse().ok()?).filter(|pid| *pid != getpid())
        });
        for pid in processes {
            match Looked::at(pid, &wanted, listener) {
                Ok(looked) => found.add(pid, looked),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.unseen += 1,
                // It has ended meanwhile.
                Err(_) => {}
            }
        }
        Ok(found)
    }

    fn add(&mut self, pid: Pid, looked: Looked) {
        let holder = |fds: Vec<(i32, Option<Access>)>| {
            (!fds.is_empty()).then(|| Holder {
                pid: pid.as_raw_pid(),
                command: command_of(pid),
                uid: fs::metadata(format!("/proc/{pid}")).map_or(u32::MAX, |it| it.uid()),
                fds,
            })
        };
        let same = if looked.is_daemon { &mut self.keepers } else { &mut self.same };
        same.extend(holder(looked.same));
        self.separate.extend(holder(looked.separate));
        self.either.extend(holder(looked.untold));
    }
}

/// What is looked for.
struct Wanted {
    number: kcmp::Number,
    identity: (u64, u64),
    /// Whether others that are not the same have the same inode all the same.
    shares_inode: bool,
}

impl Wanted {
    fn new(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let file = statx(fd, c"", flags, StatxFlags::BASIC_STATS)?;
        let number = DecInt::from_fd(fd.as_fd()).as_str().parse().map_err(|_| Errno::BADF)?;
        Ok(Self { number, identity: identity(&file), shares_inode: kind == Kind::Anonymous })
    }
}

/// What one process has of it.
#[derive(Default)]
struct Looked {
    same: Vec<(i32, Option<Access>)>,
    separate: Vec<(i32, Option<Access>)>,
    untold: Vec<(i32, Option<Access>)>,
    is_daemon: bool,
}

impl Looked {
    fn at(pid: Pid, wanted: &Wanted, listener: Listener) -> io::Result<Self> {
        let mut looked = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
            let Ok(file) = statx(CWD, entry.path(), flags, StatxFlags::BASIC_STATS) else {
                continue;
            };
            looked.is_daemon |=
                listener == Listener::Inode(file.stx_ino) && is_socket(&entry.path());
            if identity(&file) != wanted.identity {
                continue;
            }
            let opened = (number, access_of(pid, number));
            match sameness(wanted, pid, number) {
                Some(Sameness::Same) => looked.same.push(opened),
                Some(Sameness::Separate) => looked.separate.push(opened),
                Some(Sameness::Untold) => looked.untold.push(opened),
                None => {}
            }
        }
        looked.is_daemon |= listener == Listener::Unknown && command_of(pid) == "fdstashd";
        Ok(looked)
    }
}

fn sameness(wanted: &Wanted, pid: Pid, number: i32) -> Option<Sameness> {
    match kcmp::is_same_there(wanted.number, pid, number) {
        Ok(true) => Some(Sameness::Same),
        // Of what has no inode of its own, those are other things.
        Ok(false) | Err(_) if wanted.shares_inode => None,
        Ok(false) => Some(Sameness::Separate),
        // Closed meanwhile.
        Err(Errno::BADF | Errno::SRCH) => None,
        Err(_) => Some(Sameness::Untold),
    }
}

/// How the daemon's processes are known: by what they listen at, or where that cannot be told, as it is
/// in another network namespace, by their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Inode(u64),
    Unknown,
}

fn listener_of(socket: &Path) -> Listener {
    let bound = UnixStream::connect(socket).and_then(|line| line.peer_addr()).ok();
    let bound = bound.and_then(|address| address.as_pathname().map(Path::to_owned));
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let inode = bound.and_then(|bound| {
        table.lines().find_map(|line| {
            // Number, references, protocol, flags, type, state, inode, path.
            let words: Vec<_> = line.split_whitespace().collect();
            let [_, _, _, "00010000", _, _, inode, path] = words.as_slice() else { return None };
            if Path::new(path) == bound { inode.parse().ok() } else { None }
        })
    });
    inode.map_or(Listener::Unknown, Listener::Inode)
}

fn is_socket(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
}

fn command_of(pid: Pid) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    plain(command.trim_end_matches('\n'))
}

/// What a descriptor of another process is opened for.
fn access_of(pid: Pid, number: i32) -> Option<Access> {
    let fdinfo = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = OFlags::from_bits_retain(u32::from_str_radix(flags.trim(), 8).ok()?);
    if flags.contains(OFlags::PATH) {
        return Some(Access::Path);
    }
    match flags & OFlags::RWMODE {
        OFlags::RDONLY => Some(Access::Read),
        OFlags::WRONLY => Some(Access::Write),
        OFlags::RDWR => Some(Access::ReadWrite),
        _ => None,
    }
}
