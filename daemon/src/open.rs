//! Opening files anew through `/proc/self/fd`: the very file, whatever its path is called today, or what
//! was found at a place.
//!
//! Runs on the blocking pool, since an open may wait for a server that is dead. Everything that is
//! opened is close-on-exec, is never truncated or created, and is proved to be the file that was
//! meant before anybody gets it.
//!
//! What gives no more than is kept the daemon opens, and where it may not, whoever asks for it: to a
//! file server that knows no root the daemon is nobody (`root_squash`).

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
};

use fdstash_proto::{Access, Flags, Kind};
use fdstash_stash::{Inspected, OpenFailure, Opening, Rights, Who};
use rustix::{
    fs::{Mode, OFlags, Statx, fcntl_setfl, fstatfs, open},
    io::Errno,
    process::{getegid, geteuid, getgroups},
    thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    descriptor::Descriptor,
    errno,
    inspect::{DSYNC, facts, identity, is_hung_up, look, proc_path, target},
    ledger::Account,
    place::{self, Found},
    process,
    steps::step,
};

/// Why a file was not opened.
struct Failed {
    errno: Errno,
    /// What that means here, where it is a verdict of ours and not the file system's.
    verdict: Option<&'static str>,
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self { errno, verdict: None }
    }
}

impl Failed {
    fn because(errno: Errno, verdict: &'static str) -> Self {
        Self { errno, verdict: Some(verdict) }
    }
}

/// What is told of a table that is full.
const NO_ROOM: &str =
    "the daemon has no descriptors left: reopen fewer at a time, or have some closed";

/// That files are not opened for which there will be no room.
pub(crate) fn no_room() -> OpenFailure {
    unopened(Errno::MFILE, NO_ROOM)
}

/// That files are not opened because the machine has no thread for it.
pub(crate) fn no_thread() -> OpenFailure {
    unopened(Errno::AGAIN, "the machine has no thread left to open it with, try again later")
}

fn unopened(errno: Errno, message: &str) -> OpenFailure {
    let (number, errno_name) = (errno.raw_os_error(), errno::name(errno));
    OpenFailure { at: 0, errno: number, errno_name, message: message.to_owned() }
}

/// Opens all of them, each as often and for such access as is asked for, or none.
pub(crate) fn open_all(
    openings: &[Opening<Descriptor>],
    account: &Account,
) -> Result<Vec<Vec<Inspected<Descriptor>>>, OpenFailure> {
    let open_one = |(at, opening): (usize, &Opening<Descriptor>)| {
        open_each(opening, account).map_err(|failed| failure(at, opening, &failed))
    };
    openings.iter().enumerate().map(open_one).collect()
}

fn open_each(
    opening: &Opening<Descriptor>,
    account: &Account,
) -> Result<Vec<Inspected<Descriptor>>, Failed> {
    let opened = open_with(opening.rights, opening, account);
    let may_not = |failed: &Failed| {
        failed.verdict.is_none() && matches!(failed.errno, Errno::ACCESS | Errno::PERM)
    };
    match opened {
        Err(failed) if opening.rights == Rights::Daemon && may_not(&failed) => {
            // Nobody gets more by that: it is the asker's own right. Why the daemon may not, is told.
            open_with(Rights::Asker, opening, account).map_err(|_| failed)
        }
        opened => opened,
    }
}

fn open_with(
    rights: Rights,
    opening: &Opening<Descriptor>,
    account: &Account,
) -> Result<Vec<Inspected<Descriptor>>, Failed> {
    // Once: what is kept and what is handed out are the same file.
    let found = find(opening)?;
    let (source, target) = match &found {
        Some(Found { fd, kind }) => (Source { fd: fd.as_fd(), kind: *kind }, target(fd)),
        None => {
            let source = Source { fd: opening.fd.as_fd(), kind: opening.facts.kind };
            (source, opening.facts.target.clone())
        }
    };
    let held = look_before(source)?;
    let open_one = |access| {
        step("before an open");
        let asker = &opening.asker;
        let (fd, file) = with(rights, asker, || open_file(opening, source, access, &held))?;
        step("after an open");
        let fd = Descriptor::new(fd, account);
        let facts = facts(fd.as_fd(), &file, target.clone())?;
        Ok(Inspected { fd, facts })
    };
    let opened = opening.wanted().map(open_one).collect::<Result<Vec<_>, Failed>>()?;
    if opened.is_empty() {
        // What is only probed is opened too, and closed at once.
        open_one(opening.access)?;
    }
    Ok(opened)
}

/// The file that is opened.
#[derive(Clone, Copy)]
struct Source<'a> {
    fd: BorrowedFd<'a>,
    kind: Kind,
}

/// What stands at the place that an opening is of, if it is of one.
fn find(opening: &Opening<Descriptor>) -> Result<Option<Found>, Failed> {
    let Some(place) = &opening.place else { return Ok(None) };
    let found = with(opening.rights, &opening.asker, || Ok(place::find(place, opening.facts.kind)));
    match found? {
        Err(errno @ Errno::XDEV) => {
            let verdict = "the path leads out of the directory that the policy names";
            Err(Failed::because(errno, verdict))
        }
        Err(errno @ Errno::OPNOTSUPP) => {
            let verdict = "what stands there is no plain file, no block device and not of the kind of \
                           what is kept";
            Err(Failed::because(errno, verdict))
        }
        found => Ok(Some(found?)),
    }
}

/// What is held, if it is something to open again.
fn look_before(source: Source<'_>) -> Result<Statx, Failed> {
    let held = look(source.fd)?;
    if source.kind == Kind::Character && !is_same_when_reopened(&held) {
        let verdict = "opening this device again would make another one";
        return Err(Failed::because(Errno::OPNOTSUPP, verdict));
    }
    // It is opened by this process, whoever's rights it has: in its namespaces and its cgroup.
    let has_file_system = matches!(source.kind, Kind::Regular | Kind::Directory);
    if has_file_system && goes_by_its_opener(source.fd)? {
        let verdict = "what this file of the kernel gives goes by who opens it";
        return Err(Failed::because(Errno::OPNOTSUPP, verdict));
    }
    Ok(held)
}

fn open_file(
    opening: &Opening<Descriptor>,
    source: Source<'_>,
    access: Access,
    held: &Statx,
) -> Result<(OwnedFd, Statx), Failed> {
    let wanted = to_oflags(access, opening.flags);
    // The open of a pipe's end would wait for the other one, and that of a terminal for its line.
    let hurried = matches!(source.kind, Kind::Fifo | Kind::Character)
        && access != Access::Path
        && !wanted.contains(OFlags::NONBLOCK);
    let flags = if hurried { wanted | OFlags::NONBLOCK } else { wanted };
    let fd = open(proc_path(source.fd), flags, Mode::empty())?;
    let opened = look(fd.as_fd())?;
    if identity(&opened) != identity(held) {
        let verdict = "what was opened is not the file that is kept";
        return Err(Failed::because(Errno::STALE, verdict));
    }
    // A terminal's next user takes it back from those before (vhangup), who shall not have it again.
    // Asked after the open: what is hung up later is so for both.
    if source.kind == Kind::Character && is_hung_up(source.fd) {
        return Err(Errno::IO.into());
    }
    if hurried {
        fcntl_setfl(&fd, wanted)?;
    }
    Ok((fd, opened))
}

/// Opens with rights and no others.
fn with<T: Send>(
    rights: Rights,
    asker: &Who,
    open: impl FnOnce() -> Result<T, Failed> + Send,
) -> Result<T, Failed> {
    match rights {
        Rights::Daemon => open(),
        Rights::Asker => open_as(asker, open),
    }
}

/// Opens with the rights of a peer and no others, on a thread that gives up the daemon's, its capabilities
/// included, and then ends. Where the daemon is nobody special, it can be its own user and no other.
///
/// There is no [`Descriptor`] on that thread: the end of one may add a thread to the pool, and that
/// would have the peer's rights too, for all that it opens later.
fn open_as<T: Send>(
    who: &Who,
    open: impl FnOnce() -> Result<T, Failed> + Send,
) -> Result<T, Failed> {
    let peer = who.peer;
    if !who.is_mapped() {
        // To the kernel these numbers say that the thread shall stay who it is.
        return Err(Errno::PERM.into());
    }
    if !process::can_be_others() && is_oneself(who)? {
        return open();
    }
    thread::scope(|scope| {
        let opener = thread::Builder::new().spawn_scoped(scope, || {
            let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            let (uid, gid) = (Uid::from_raw(peer.uid), Gid::from_raw(peer.gid));
            set_thread_groups(&groups)?;
            set_thread_res_gid(None, gid, None)?;
            // Only the effective one: whoever has the real or the saved one may send the thread a
            // signal, and so end the daemon.
            set_thread_res_uid(None, uid, None)?;
            process::close_to_others();
            if !uid.is_root() {
                process::give_up_power()?;
            }
            open()
        });
        opener.map_err(|_| Errno::AGAIN)?.join().unwrap_or_else(|_| Err(Errno::IO.into()))
    })
}

/// Whether somebody is the daemon's own user, and in the same groups: with one more than the asker is in,
/// the daemon would lend that.
fn is_oneself(who: &Who) -> Result<bool, Errno> {
    let own: BTreeSet<u32> = getgroups()?.into_iter().chain([getegid()]).map(Gid::as_raw).collect();
    let theirs = who.groups.iter().copied().chain([who.peer.gid]).collect();
    Ok(geteuid().as_raw() == who.peer.uid && own == theirs)
}

/// Whether opening a character device again gives the same object: it does for the memory devices,
/// terminals and the ends of pseudo-terminals, but for `/dev/tty0`, which is whatever console is in front
/// when it is opened; a `/dev/ptmx`, `tun` or `kvm` opened again is a new one, and of most others nobody
/// can tell.
fn is_same_when_reopened(device: &Statx) -> bool {
    match device.stx_rdev_major {
        1 | 136..=143 => true,
        4 => device.stx_rdev_minor != 0,
        _ => false,
    }
}

/// Whether a file is the kernel's own, and what it gives goes by who opens it and when: a kept
/// `/proc/PID/mem` is of the program that ran then, and opened again by the daemon it is of whatever
/// runs there now (`a_reopen_lends_no_power_over_other_processes`). Nobody needs those opened again.
fn goes_by_its_opener(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    const MAGICS: [i64; 14] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x6265_6570, // configfs
        0xde5e_81e4, // efivarfs
        0xf97c_ff8c, // selinuxfs
        0x4341_5d53, // smackfs
        0x0765_5821, // resctrl
        0x4249_4e4d, // binfmt_misc
    ];
    let magic = fstatfs(fd)?.f_type as i64 & 0xffff_ffff;
    Ok(MAGICS.contains(&magic))
}

fn to_oflags(access: Access, flags: Flags) -> OFlags {
    let mode = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
        Access::Path => return OFlags::PATH | OFlags::CLOEXEC,
    };
    [
        (Flags::DIRECT, OFlags::DIRECT),
        (Flags::SYNC, OFlags::SYNC),
        (Flags::DSYNC, DSYNC),
        (Flags::APPEND, OFlags::APPEND),
        (Flags::NONBLOCK, OFlags::NONBLOCK),
        (Flags::NOATIME, OFlags::NOATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(mode | OFlags::CLOEXEC | OFlags::NOCTTY, |all, (_, oflag)| all | oflag)
}

fn failure(at: usize, opening: &Opening<Descriptor>, failed: &Failed) -> OpenFailure {
    let errno = failed.errno;
    let (number, errno_name) = (errno.raw_os_error(), errno::name(errno));
    let meaning = std::io::Error::from(errno).to_string();
    let meaning = meaning.split(" (os error").next().unwrap_or_default().to_lowercase();
    let kind = opening.facts.kind;
    let message = match (errno, opening.rights) {
        (_, _) if failed.verdict.is_some() => failed.verdict.unwrap_or_default().to_owned(),
        (Errno::NXIO, _) if matches!(kind, Kind::Socket | Kind::Anonymous | Kind::Character) => {
            format!("a {} of this sort cannot be opened again, only shared", kind.as_str())
        }
        (Errno::ROFS, _) if opening.place.is_some() => {
            format!(
                "{meaning} for the daemon, unless its unit names the directory in ReadWritePaths="
            )
        }
        (Errno::MFILE | Errno::NFILE, _) => NO_ROOM.to_owned(),
        (Errno::PERM | Errno::ACCESS, Rights::Asker) => {
            format!("{meaning} with the rights of uid {}", opening.asker.peer.uid)
        }
        (Errno::INVAL, _) if opening.flags.contains(Flags::DIRECT) => {
            format!("{meaning}; what it is on may not do O_DIRECT")
        }
        (_, _) => meaning,
    };
    OpenFailure { at, errno: number, errno_name, message }
}
