//! What the end-to-end tests are made of: a daemon of their own, peers that speak to it byte by byte
//! or as another user, and the few things of the machine that it takes to bring about what happens
//! rarely.
//!
//! Nothing here sleeps but [`wait_until`], and descriptors are compared by [`identity`] or by what
//! comes through them, never by number.

mod builder;
mod cgroup;
mod daemon;
mod fuse;
mod group;
mod images;
mod io;
mod libvirt;
mod machine;
mod nbd;
mod package;
mod page;
mod program;
mod qemu;
mod random;
mod raw;
mod reader;
mod refusal;
mod steps;
mod systemd;
mod user;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fdstash::{Gift, Name, Pattern, Share, blocking::Client};

pub use crate::{
    builder::Builder,
    cgroup::Cgroup,
    daemon::Daemon,
    fuse::{Fuse, Opens},
    group::Group,
    images::{Image, ImageFile},
    io::{Ended, Io, Written},
    libvirt::{Host, domain},
    machine::{Attribute, Lease, Mount, is_root, python, raise_open_files, skipped},
    nbd::Nbd,
    package::{Packages, shell},
    page::{Block, Page, Tried},
    program::{install_program, install_script, program, program_with_steps, varlinkctl},
    qemu::{Monitor, Qemu},
    random::{Random, seed},
    raw::{Raw, call, gifts, messages},
    reader::Reader,
    refusal::{denied, errno_name, exceeded, not_found, refusal},
    steps::Steps,
    systemd::{Systemd, below, install, uninstall},
    user::{User, can_be_others},
};

/// How long anything may take that happens soon.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits until a condition holds.
///
/// # Panics
///
/// If it does not within the limit.
#[track_caller]
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "what was waited for did not happen within {limit:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A name, which must be a good one.
#[must_use]
pub fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

/// Names, which must be good ones.
#[must_use]
pub fn names<const N: usize>(texts: [&str; N]) -> [Name; N] {
    texts.map(name)
}

/// A pattern, which must be a good one.
#[must_use]
pub fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a good pattern")
}

/// A gift with nothing but a name.
pub fn gift<F>(text: &str, fd: F) -> Gift<F> {
    Gift::new(name(text), fd)
}

/// The same gift, shared with these users and groups.
pub fn shared<F>(gift: Gift<F>, uids: &[u32], gids: &[u32]) -> Gift<F> {
    Gift { share: Share { uids: uids.to_vec(), gids: gids.to_vec() }, ..gift }
}

/// The names of all entries that a client may know of.
///
/// # Panics
///
/// If it gets no list.
#[track_caller]
pub fn listed(client: &mut Client) -> Vec<String> {
    let entries = client.list(&pattern("*")).expect("a list");
    entries.iter().map(|entry| entry.name.to_string()).collect()
}

/// Which file a descriptor refers to, whatever its number and its path: device and inode.
#[must_use]
pub fn identity(fd: impl AsFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).expect("a descriptor can be looked at");
    (stat.st_dev, stat.st_ino)
}

/// Makes a file and opens it for reading and writing.
pub fn file(path: impl AsRef<Path>, content: &str) -> File {
    std::fs::write(&path, content).expect("a file can be made");
    File::options().read(true).write(true).open(path).expect("a file can be opened")
}

/// A file that is always there, for reading: what is given where it does not matter what it is.
#[must_use]
pub fn null() -> File {
    File::open("/dev/null").expect("there is a /dev/null")
}

/// So many of them, each opened on its own.
#[must_use]
pub fn nulls(count: usize) -> Vec<File> {
    (0..count).map(|_| null()).collect()
}

/// The one descriptor that was handed out.
///
/// # Panics
///
/// If there are more, or none.
#[track_caller]
pub fn only(handed: Vec<fdstash::Handed<OwnedFd>>) -> File {
    let [handed]: [fdstash::Handed<OwnedFd>; 1] =
        handed.try_into().unwrap_or_else(|handed| panic!("not one: {handed:?}"));
    handed.fd.into()
}
