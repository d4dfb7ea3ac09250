//! A file system of the test's own, whose opens end as the test says.
//!
//! It speaks the kernel's FUSE protocol itself: of its forty requests a file system of this sort
//! answers six, and a library for the rest would be larger than all that the tests use besides.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags, open as open_path, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
    path::DecInt,
};

use crate::User;

/// What a request asks for, as `linux/fuse.h` numbers it.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// The version of the protocol that is spoken here.
const VERSION: [u32; 2] = [7, 31];

/// The bytes in front of each request, and in front of each answer.
const REQUEST: usize = 40;
const ANSWER: usize = 16;

/// The node of the file with the number 0. The root's is 1.
const FIRST: u64 = 2;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_666;

/// How the opens of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// They work.
    Work,
    /// So many work, and then all fail with an errno.
    Fail {
        /// How many work yet.
        after: usize,
        /// What the others fail with.
        errno: i32,
    },
    /// They wait until the file system dies.
    Hang,
}

/// A file system with files named by numbers, every one of which there is. Dies when it is dropped.
///
/// It is mounted nowhere, so nothing is left behind: its files are reached through a descriptor.
#[derive(Debug)]
pub struct Fuse {
    root: OwnedFd,
    state: Arc<Mutex<State>>,
    /// Its end is the server's.
    stop: Option<UnixStream>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    opens: BTreeMap<u64, Opens>,
    /// How many open file descriptions there are of all files.
    open: usize,
    /// How many opens wait.
    hanging: usize,
}

impl Fuse {
    /// Has one; none, where this machine does not let us.
    #[must_use]
    pub fn mount() -> Option<Self> {
        Self::mount_for(None)
    }

    /// Has one that only this user may see; none, where this machine does not let us.
    #[must_use]
    pub fn mount_for(user: Option<&User>) -> Option<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = File::from(open_path("/dev/fuse", flags, Mode::empty()).ok()?);
        let root = mount(&device, user).ok()?;
        let (stop, stopped) = UnixStream::pair().expect("sockets can be made");
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let server = thread::spawn(move || serve(device, &stopped, &shared));
        Some(Self { root, state, stop: Some(stop), server: Some(server) })
    }

    /// Opens a file for reading and writing, and with other flags.
    ///
    /// # Panics
    ///
    /// If it cannot be opened.
    #[must_use]
    pub fn open(&self, number: u64, flags: OFlags) -> File {
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
        let opened = openat(&self.root, number.to_string(), flags, Mode::empty());
        opened.expect("its files can be opened").into()
    }

    /// Says how the opens of a file end from here on.
    pub fn set(&self, number: u64, opens: Opens) {
        lock(&self.state).opens.insert(FIRST + number, opens);
    }

    /// How many open file descriptions there are of all its files, as it has been told.
    #[must_use]
    pub fn open_descriptions(&self) -> usize {
        lock(&self.state).open
    }

    /// How many opens wait.
    #[must_use]
    pub fn hanging(&self) -> usize {
        lock(&self.state).hanging
    }

    /// Ends it as the death of its server does, and waits until it has: the kernel fails what waits.
    pub fn kill(&mut self) {
        self.stop = None;
        if let Some(server) = self.server.take() {
            let ended = server.join();
            assert!(ended.is_ok() || thread::panicking(), "the file system has panicked");
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mount(device: &File, user: Option<&User>) -> rustix::io::Result<OwnedFd> {
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "fd", DecInt::from_fd(device).as_str())?;
    fsconfig_set_string(&context, "rootmode", format!("{DIRECTORY:o}"))?;
    fsconfig_set_string(&context, "user_id", uid.to_string())?;
    fsconfig_set_string(&context, "group_id", gid.to_string())?;
    if user.is_none() {
        fsconfig_set_flag(&context, "allow_other")?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Answers until the file system is gone, or `stopped` tells that it shall end; with the device its
/// connection ends.
fn serve(mut device: File, stopped: &UnixStream, state: &Mutex<State>) {
    let mut request = vec![0; 128 << 10];
    loop {
        let mut ask = [
            PollFd::new(&device, PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        if poll(&mut ask, None).is_err() {
            continue;
        }
        if !ask[1].revents().is_empty() {
            return;
        }
        match device.read(&mut request) {
            Ok(length) => serve_one(&mut device, &request[..length], state),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => return,
            // It was interrupted before it was read.
            Err(error) if is_nothing(&error) => {}
            Err(error) => panic!("reading a request failed: {error}"),
        }
    }
}

fn is_nothing(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::AGAIN | Errno::INTR | Errno::NOENT))
}

fn serve_one(device: &mut File, request: &[u8], state: &Mutex<State>) {
    let (header, body) = request.split_at(REQUEST);
    let unique = u64_at(header, 8);
    let Some(answer) = answer(u32_at(header, 4), u64_at(header, 16), body, state) else { return };
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(errno) => (-errno, Vec::new()),
    };
    let length = u32::try_from(ANSWER + body.len()).expect("answers are short");
    let mut bytes = Vec::with_capacity(ANSWER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(body);
    match device.write(&bytes) {
        Ok(_) => {}
        // Who asked waits no longer.
        Err(error) if is_nothing(&error) => {}
        Err(error) => panic!("answering failed: {error}"),
    }
}

/// The answer to a request, or none for one that has none, or not yet.
fn answer(
    opcode: u32,
    node: u64,
    body: &[u8],
    state: &Mutex<State>,
) -> Option<Result<Vec<u8>, i32>> {
    match opcode {
        opcode::INIT => Some(Ok(init())),
        opcode::LOOKUP => Some(lookup(body)),
        opcode::GETATTR => Some(Ok([words(&[u64::MAX >> 1, 0]), attributes(node)].concat())),
        opcode::OPEN => open(node, &mut lock(state)),
        opcode::RELEASE => {
            lock(state).open -= 1;
            Some(Ok(Vec::new()))
        }
        // Of a file system without a size.
        opcode::STATFS => Some(Ok(words(&[0; 10]))),
        opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => None,
        _ => Some(Err(Errno::NOSYS.raw_os_error())),
    }
}

fn open(node: u64, state: &mut State) -> Option<Result<Vec<u8>, i32>> {
    match state.opens.get_mut(&node) {
        Some(Opens::Fail { after: 0, errno }) => return Some(Err(*errno)),
        Some(Opens::Hang) => {
            state.hanging += 1;
            return None;
        }
        Some(Opens::Fail { after, .. }) => *after -= 1,
        Some(Opens::Work) | None => {}
    }
    state.open += 1;
    Some(Ok(words(&[0, 0])))
}

fn lookup(body: &[u8]) -> Result<Vec<u8>, i32> {
    let name = body.split(|&byte| byte == 0).next().unwrap_or_default();
    let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<u64>().ok());
    let node = FIRST + number.ok_or(Errno::NOENT.raw_os_error())?;
    // The node, its generation, and for how long both this and its attributes hold: for ever.
    let times = [u64::MAX >> 1, u64::MAX >> 1, 0];
    Ok([words(&[node, 0]), words(&times), attributes(node)].concat())
}

/// `struct fuse_init_out`: the version, no feature, and writes of a page at most.
fn init() -> Vec<u8> {
    let mut bytes: Vec<u8> = VERSION.into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.resize(20, 0);
    bytes.extend(4096_u32.to_ne_bytes());
    bytes.resize(64, 0);
    bytes
}

/// `struct fuse_attr` of an empty file, or of the root.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node < FIRST { DIRECTORY } else { REGULAR };
    let mut bytes = words(&[node]);
    // No size, no blocks, no times.
    bytes.resize(60, 0);
    bytes.extend(mode.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.resize(88, 0);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
