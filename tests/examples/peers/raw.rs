//! The limits: what the kernel itself takes to pass descriptors, and the smallest server.
//!
//! `raw` is two processes at the ends of one socket, with blocking calls. `floor` is a server of one
//! thread for any number of connections: `epoll_wait`, `recvmsg`, `sendmsg`, `close`, and one place for a
//! descriptor in each connection. What is asked for is one byte, and so is what is answered.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::epoll,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, accept_with, recvmsg, sendmsg,
        socketpair,
    },
    path::DecInt,
    process::{Signal, set_parent_process_death_signal},
};

use crate::told::answer;

/// How many descriptors a message carries at most.
const MOST: usize = 253;

/// How many messages are sent before the first answer is read.
const AHEAD: usize = 16;

// What a client asks for.
/// Close what comes with this.
const GIVE: u8 = b'g';
/// Keep it.
const KEEP: u8 = b'k';
/// Hand that out, and close it.
const TAKE: u8 = b't';
/// Hand out one that the server has anyway.
const COPY: u8 = b'c';
/// As many times as a message carries.
const COPIES: u8 = b'C';

/// Sends bytes, and descriptors beside them.
fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads once, and tells how many bytes came.
fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    mut each: impl FnMut(OwnedFd),
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            fds.for_each(&mut each);
        }
    }
    Ok(message.bytes)
}

/// A connection, as its server has it.
struct Connection {
    socket: OwnedFd,
    kept: Option<OwnedFd>,
}

impl Connection {
    /// Serves what one read brings. Tells whether the other side is still there.
    fn serve(&mut self, null: &File, gifts: &mut Vec<OwnedFd>) -> io::Result<bool> {
        let mut bytes = [0; 256];
        let read = match receive(&self.socket, &mut bytes, |fd| gifts.push(fd)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            read => read?,
        };
        for byte in &bytes[..read] {
            match *byte {
                GIVE => gifts.clear(),
                KEEP => self.kept = gifts.pop(),
                TAKE => {
                    let kept = self.kept.take();
                    let fd = kept.as_ref().ok_or(io::ErrorKind::NotFound)?;
                    send(&self.socket, b"f", &[fd.as_fd()])?;
                    continue;
                }
                COPY => {
                    send(&self.socket, b"f", &[null.as_fd()])?;
                    continue;
                }
                COPIES => {
                    send(&self.socket, b"f", &[null.as_fd(); MOST])?;
                    continue;
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
            send(&self.socket, b"a", &[])?;
        }
        Ok(read > 0)
    }
}

/// The server of `raw`, whose standard input is its end of the socket.
pub(crate) fn raw_server() -> io::Result<()> {
    let null = kit::null();
    let mut connection =
        Connection { socket: io::stdin().as_fd().try_clone_to_owned()?, kept: None };
    let mut gifts = Vec::with_capacity(MOST);
    while connection.serve(&null, &mut gifts)? {}
    Ok(())
}

/// The server of `floor`, at an abstract address, which costs no walk of a path.
pub(crate) fn floor_server(name: &str) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let null = kit::null();
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    println!("ready");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64;
    epoll::add(&epoll, &listener, data(0), epoll::EventFlags::IN)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut gifts = Vec::with_capacity(MOST);
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let Some(place) = usize::try_from(event.data.u64()).unwrap_or(0).checked_sub(1) else {
                let free = connections.iter().position(Option::is_none);
                let place = free.unwrap_or(connections.len());
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = accept_with(&listener, flags)?;
                epoll::add(&epoll, &socket, data(place as u64 + 1), epoll::EventFlags::IN)?;
                connections.resize_with(connections.len().max(place + 1), || None);
                connections[place] = Some(Connection { socket, kept: None });
                continue;
            };
            let connection = connections[place].as_mut();
            // Who is gone is not there any more, whatever it left unread.
            if !connection.is_some_and(|it| it.serve(&null, &mut gifts).unwrap_or(false)) {
                connections[place] = None;
            }
        }
    }
}

/// The client of `raw`, which starts its server.
pub(crate) fn raw_client() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mut server = Command::new(std::env::current_exe()?);
    let server = server.arg("--raw-server").stdin(Stdio::from(theirs)).spawn()?.id().to_string();
    client(ours, None, &server)
}

/// A client of `floor`, which has so many more connections that say nothing.
pub(crate) fn floor_client(name: &str, server: &str, idle: usize) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(name)?;
    let idle = (0..idle).map(|_| UnixStream::connect_addr(&address));
    let _idle: Vec<_> = idle.collect::<Result<_, _>>()?;
    let socket = UnixStream::connect_addr(&address)?.into();
    client(socket, Some(address), server)
}

fn client(socket: OwnedFd, address: Option<SocketAddr>, server: &str) -> io::Result<()> {
    let null = kit::null();
    let file = tempfile::tempfile()?;
    let by_number = format!("/proc/self/fd/{}", DecInt::from_fd(&file).as_str()).into();
    let client = Client { socket, address, null, by_number };
    answer(server, |operation| client.operation(operation))
}

struct Client {
    socket: OwnedFd,
    /// Of the server, where it has one.
    address: Option<SocketAddr>,
    null: File,
    /// A file of this process's, by its descriptor.
    by_number: PathBuf,
}

impl Client {
    /// Does an operation, and says how long it took.
    fn operation(&self, operation: &str) -> Option<io::Result<Duration>> {
        let did = match operation {
            "give" => timed(|| self.give(&self.socket, GIVE, 1)),
            "take" => timed(|| self.take(&[COPY], 1)),
            "give253" => timed(|| self.give(&self.socket, GIVE, MOST)),
            "take253" => timed(|| self.take(&[COPIES], MOST)),
            "cycle" => timed(|| {
                self.give(&self.socket, KEEP, 1)?;
                self.take(&[TAKE], 1)
            }),
            "pipe16_give" => timed(|| {
                (0..AHEAD).try_for_each(|_| send(&self.socket, &[GIVE], &[self.null.as_fd()]))?;
                acknowledged(&self.socket, AHEAD)
            }),
            "pipe16_take" => timed(|| self.take(&[COPY; AHEAD], AHEAD)),
            "conn_give" => {
                let address = self.address.as_ref()?;
                timed(|| self.give(UnixStream::connect_addr(address)?, GIVE, 1))
            }
            "reopen" => {
                let began = Instant::now();
                let opened = OpenOptions::new().read(true).write(true).open(&self.by_number);
                let took = self.take(&[COPY], 1).map(|()| began.elapsed());
                opened.and(took)
            }
            _ => return None,
        };
        Some(did)
    }

    fn give(&self, socket: impl AsFd, how: u8, count: usize) -> io::Result<()> {
        send(&socket, &[how], &[self.null.as_fd(); MOST][..count])?;
        acknowledged(&socket, 1)
    }

    /// Asks, and closes as many descriptors as come.
    fn take(&self, bytes: &[u8], count: usize) -> io::Result<()> {
        send(&self.socket, bytes, &[])?;
        let mut came = 0;
        while came < count {
            if receive(&self.socket, &mut [0; 16], |_| came += 1)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

/// Reads as many answers that bring nothing.
fn acknowledged(socket: impl AsFd, count: usize) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        match rustix::io::read(&socket, &mut [0; 64])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

fn timed(operation: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let began = Instant::now();
    operation()?;
    Ok(began.elapsed())
}
