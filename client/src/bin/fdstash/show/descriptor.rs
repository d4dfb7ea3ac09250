//! What the kernel tells of a descriptor to whoever has a duplicate of it.

use std::{
    fs,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
};

use fdstash::Kind;
use rustix::{
    fs::{AtFlags, SealFlags, Statx, StatxFlags, fcntl_get_seals, statx},
    io::ioctl_fionread,
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, getpeername, getsockname,
        sockopt::{socket_acceptconn, socket_domain, socket_peercred, socket_type},
    },
    path::DecInt,
    pipe::fcntl_getpipe_size,
};

use serde_json::Value;

use super::path::link;
use crate::{
    names::user,
    words::{bytes, plain},
};

/// How many lines of the kernel's are shown of one kind: an epoll has one for each descriptor in it.
const MOST_LINES: usize = 8;

/// A fact, by its name in JSON, and for people.
pub(crate) struct Fact {
    pub(crate) key: &'static str,
    pub(crate) value: Told,
}

/// What is told, in words or as a number.
pub(crate) enum Told {
    Words(String),
    Number(u64),
    Bytes(u64),
}

impl Told {
    /// For people.
    pub(crate) fn tell(&self) -> String {
        match self {
            Self::Words(words) => words.clone(),
            Self::Number(number) => number.to_string(),
            Self::Bytes(count) if *count < 1024 => bytes(*count),
            Self::Bytes(count) => format!("{} ({count} bytes)", bytes(*count)),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Words(words) => Value::from(words.as_str()),
            Self::Number(number) | Self::Bytes(number) => Value::from(*number),
        }
    }
}

impl From<String> for Told {
    fn from(words: String) -> Self {
        Self::Words(words)
    }
}

/// The facts, in the order in which they are shown.
#[derive(Default)]
struct Facts(Vec<Fact>);

impl Facts {
    fn add(&mut self, key: &'static str, value: Option<impl Into<Told>>) {
        self.0.extend(value.map(|value| Fact { key, value: value.into() }));
    }
}

/// Everything that there is to tell of a descriptor of this kind.
pub(crate) fn facts(fd: BorrowedFd<'_>, kind: Kind) -> Vec<Fact> {
    let fdinfo = fdinfo(fd);
    let file = look(fd);
    let offset = || field(&fdinfo, "pos").and_then(|pos| pos.parse().ok()).map(Told::Number);
    let mut facts = Facts::default();
    match kind {
        Kind::Regular => {
            facts.add("size", file.map(|file| Told::Bytes(file.stx_size)));
            facts.add("names", file.filter(|it| it.stx_nlink != 1).map(|it| names(it.stx_nlink)));
            facts.add("seals", fcntl_get_seals(fd).ok().map(seals));
            facts.add("offset", offset());
        }
        Kind::Directory => facts.add("offset", offset()),
        Kind::Block => {
            facts.add("device", file.map(|file| device(&file)));
            facts.add("size", file.and_then(|file| block_size(&file)).map(Told::Bytes));
            facts.add("offset", offset());
        }
        Kind::Character => facts.add("device", file.map(|file| device(&file))),
        Kind::Fifo => {
            facts.add("unread", ioctl_fionread(fd).ok().map(Told::Bytes));
            let room = fcntl_getpipe_size(fd).ok().and_then(|room| room.try_into().ok());
            facts.add("room", room.map(Told::Bytes));
        }
        Kind::Socket => socket(fd, &mut facts),
        Kind::Anonymous => {}
    }
    of_its_kind(&fdinfo, &mut facts);
    facts.0
}

/// What the kernel calls the descriptor of ours.
fn own_path(folder: &str, fd: impl AsFd) -> String {
    format!("/proc/self/{folder}/{}", DecInt::from_fd(fd).as_str())
}

/// Where the file is now.
pub(crate) fn path_now(fd: impl AsFd) -> Option<String> {
    link(&own_path("fd", fd))
}

/// Looks without asking a file server.
fn look(fd: BorrowedFd<'_>) -> Option<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(fd, c"", flags, StatxFlags::BASIC_STATS).ok()
}

fn fdinfo(fd: BorrowedFd<'_>) -> String {
    fs::read_to_string(own_path("fdinfo", fd)).unwrap_or_default()
}

fn field(fdinfo: &str, name: &str) -> Option<String> {
    let mut lines = fdinfo.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| *key == name).map(|(_, value)| plain(value.trim()))
}

/// The lines that only descriptors of its kind have: an eventfd's count, a TUN's interface, what an
/// epoll waits for.
fn of_its_kind(fdinfo: &str, facts: &mut Facts) {
    let others = |line: &&str| {
        let key = line.split(':').next().unwrap_or_default();
        !matches!(key, "pos" | "flags" | "mnt_id" | "ino" | "lock" | "scm_fds")
            && line.contains(':')
    };
    let lines: Vec<_> = fdinfo.lines().filter(others).collect();
    for line in lines.iter().take(MOST_LINES) {
        let words: Vec<_> = line.split_whitespace().collect();
        facts.add("kernel", Some(plain(&words.join(" "))));
    }
    let rest = lines.len().saturating_sub(MOST_LINES);
    facts.add("kernel", (rest > 0).then(|| format!("and {rest} lines more")));
}

fn names(count: u32) -> String {
    match count {
        0 => "none: deleted, or never had one; its content goes with the last who holds it"
            .to_owned(),
        _ => format!("{count} hard links"),
    }
}

fn seals(seals: SealFlags) -> String {
    let words: Vec<_> = seals.iter_names().map(|(name, _)| name.to_lowercase()).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(",") }
}

fn device(file: &Statx) -> String {
    format!("{}:{}", file.stx_rdev_major, file.stx_rdev_minor)
}

fn block_size(file: &Statx) -> Option<u64> {
    let sectors = fs::read_to_string(format!("/sys/dev/block/{}/size", device(file))).ok()?;
    // Of 512 bytes, whatever the device's own are.
    Some(sectors.trim().parse::<u64>().ok()?.saturating_mul(512))
}

fn socket(fd: BorrowedFd<'_>, facts: &mut Facts) {
    let kind = socket_type(fd).map(|kind| match kind {
        SocketType::STREAM => "stream",
        SocketType::DGRAM => "datagram",
        SocketType::SEQPACKET => "seqpacket",
        SocketType::RAW => "raw",
        _ => "other",
    });
    let family = socket_domain(fd);
    let domain = family.map(|family| match family {
        AddressFamily::UNIX => "unix".to_owned(),
        AddressFamily::INET => "ipv4".to_owned(),
        AddressFamily::INET6 => "ipv6".to_owned(),
        AddressFamily::NETLINK => "netlink".to_owned(),
        AddressFamily::VSOCK => "vsock".to_owned(),
        other => format!("family {}", other.as_raw()),
    });
    let is_listening = socket_acceptconn(fd).unwrap_or_default();
    let state = if is_listening { ", listening" } else { "" };
    facts.add(
        "socket",
        kind.ok().zip(domain.ok()).map(|(kind, domain)| format!("{domain} {kind}{state}")),
    );
    facts.add("local", getsockname(fd).ok().map(address));
    let peer = getpeername(fd).ok().flatten().map(address);
    let by = (family == Ok(AddressFamily::UNIX)).then(|| socket_peercred(fd).ok()).flatten();
    let by = by.map(|by| format!("{}, pid {}", user(by.uid.as_raw()), by.pid.as_raw_nonzero()));
    let peer = peer.map(|peer| by.map_or(peer.clone(), |by| format!("{peer}, connected by {by}")));
    if is_listening {
        facts.add("unaccepted", waiting(fd).map(Told::Number));
    } else {
        facts.add("peer", Some(peer.unwrap_or_else(|| "not connected".to_owned())));
        facts.add("unread", ioctl_fionread(fd).ok().map(Told::Bytes));
    }
}

fn address(address: SocketAddrAny) -> String {
    if let Ok(unix) = SocketAddrUnix::try_from(address.clone()) {
        if let Some(path) = unix.path_bytes() {
            return plain(&String::from_utf8_lossy(path));
        }
        let name = unix.abstract_name().map(|name| String::from_utf8_lossy(name).into_owned());
        return name
            .map_or_else(|| "without a name".to_owned(), |name| format!("@{}", plain(&name)));
    }
    SocketAddr::try_from(address.clone())
        .map_or_else(|_| format!("{address:?}"), |address| address.to_string())
}

/// How many connections wait at a listening TCP socket, where it is of this process's network.
fn waiting(fd: BorrowedFd<'_>) -> Option<u64> {
    let inode = look(fd)?.stx_ino.to_string();
    ["tcp", "tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(format!("/proc/self/net/{table}")).ok()?;
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.get(9) == Some(&inode.as_str()))?;
        // Of a listener the second of the queues is that of connections.
        u64::from_str_radix(row.get(4)?.split_once(':')?.1, 16).ok()
    })
}
