//! What the mirror's bundles believe of the kernel, asked of the kernel: what a queue of messages
//! with descriptors does when it is looked at, taken from, full, and left alone.

use std::{
    io::{IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::fstat,
    io::{Errno, dup},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg,
        socketpair, sockopt::set_socket_linger,
    },
    pipe::pipe,
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
    thread::{Uid, set_thread_res_uid},
};

/// How many descriptors the kernel takes in a message.
const MOST: usize = 253;

#[test]
fn a_queue_keeps_its_descriptors_when_everybody_else_is_gone() {
    let (sender, receiver) = pair();
    let (reader, writer) = pipe().unwrap();
    send(&sender, b"x", &[writer.as_fd()]).unwrap();

    drop((sender, writer));

    assert!(!is_closed(&reader));
    drop(receiver);
    assert!(is_closed(&reader));
}

#[test]
fn a_queue_whose_sender_is_gone_polls_as_hung_up() {
    let (sender, receiver) = pair();
    send(&sender, b"x", &[]).unwrap();

    drop(sender);

    let mut polled = [PollFd::new(&receiver, PollFlags::empty())];
    assert_eq!(poll(&mut polled, Some(&Timespec::default())), Ok(1));
    assert!(polled[0].revents().contains(PollFlags::HUP));
}

#[test]
fn a_queue_is_walked_by_peeking_from_an_offset_and_left_as_it_was() {
    let (sender, receiver) = pair();
    let files: Vec<OwnedFd> = (0..200).map(|_| file()).collect();
    for file in &files {
        send(&sender, b"ten bytes!", &[file.as_fd()]).unwrap();
    }
    drop(sender);

    let walks = [walk(&receiver), walk(&receiver)];

    assert_eq!(walks[0], files.iter().map(inode).collect::<Vec<_>>());
    assert_eq!(walks[0], walks[1]);
}

#[test]
fn what_one_holder_of_an_end_takes_the_other_has_no_more() {
    let (sender, receiver) = pair();
    let other = dup(&receiver).unwrap();
    send(&sender, b"first", &[file().as_fd()]).unwrap();
    send(&sender, b"second", &[file().as_fd()]).unwrap();

    assert_eq!(take(&receiver), Ok(5));

    assert_eq!(take(&other), Ok(6));
    assert_eq!(take(&receiver), Err(Errno::AGAIN));
}

#[test]
fn what_is_sent_after_an_end_was_shared_is_every_holder_s() {
    let (sender, receiver) = pair();
    let other = dup(&receiver).unwrap();
    drop(receiver);

    send(&sender, b"later", &[file().as_fd()]).unwrap();

    assert_eq!(walk(&other).len(), 1);
}

#[test]
fn a_receive_without_room_for_descriptors_closes_them() {
    let (sender, receiver) = pair();
    let (reader, writer) = pipe().unwrap();
    send(&sender, b"x", &[writer.as_fd()]).unwrap();
    drop(writer);
    assert!(!is_closed(&reader));

    assert_eq!(take(&receiver), Ok(1));

    assert!(is_closed(&reader));
}

#[test]
fn a_message_has_left_the_queue_before_what_it_closes_makes_anybody_wait() {
    let (sender, receiver) = pair();
    let (socket, _peer) = socket_whose_last_close_waits();
    send(&sender, b"hangs", &[socket.as_fd()]).unwrap();
    send(&sender, b"next", &[]).unwrap();
    drop(socket);
    let other = dup(&receiver).unwrap();
    let began = Instant::now();

    let hanging = thread::spawn(move || (take(&other), began.elapsed()));
    // Without room for descriptors here too: to peek at one would be to keep it open.
    while recv(&receiver, &mut [0; 100], RecvFlags::PEEK).map(|(_, length)| length) == Ok(5) {
        thread::yield_now();
    }

    assert_eq!(take(&receiver), Ok(4));
    assert!(began.elapsed() < Duration::from_secs(1));
    let (taken, lasted) = hanging.join().unwrap();
    assert_eq!(taken, Ok(5));
    assert!(lasted >= Duration::from_secs(1), "it did not wait: {lasted:?}");
}

#[test]
fn a_message_has_at_most_253_descriptors() {
    let (sender, _receiver) = pair();
    let file = file();

    assert_eq!(send(&sender, b"x", &[file.as_fd(); MOST]), Ok(()));
    assert_eq!(send(&sender, b"x", &[file.as_fd(); MOST + 1]), Err(Errno::INVAL));
}

#[test]
fn a_queue_takes_messages_until_its_buffer_is_full_and_again_when_one_is_taken() {
    let (sender, receiver) = pair();
    let file = file();
    let mut count = 0;
    let full = loop {
        match send(&sender, &[7; 24], &[file.as_fd(); 10]) {
            Ok(()) => count += 1,
            Err(errno) => break errno,
        }
    };

    assert_eq!(full, Errno::AGAIN);
    // Many more than a bundle has, and many more than net.unix.max_dgram_qlen, which is 10.
    assert!(count >= 100, "{count}");
    take(&receiver).unwrap();
    assert_eq!(send(&sender, &[7; 24], &[file.as_fd(); 10]), Ok(()));
}

#[test]
fn a_user_has_no_more_in_flight_than_it_may_have_open() {
    const ALONE: &str = "FDSTASH_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return in_flight_alone();
    }
    if !geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }

    let outcome = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_user_has_no_more_in_flight_than_it_may_have_open", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.contains("1 passed"), "{said}");
}

/// Changes the user of its thread, and a limit of its process.
fn in_flight_alone() {
    let (sender, receiver) = pair();
    let file = file();
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(50), ..limits })
        .expect("the kernel does so");
    // One as whom nothing else here runs.
    let nobody_else = Uid::from_raw(54_321);
    set_thread_res_uid(nobody_else, nobody_else, nobody_else).expect("the kernel does so");
    let send_ten = || send(&sender, b"x", &[file.as_fd(); 10]);

    let sent = (0..20).take_while(|_| send_ten().is_ok()).count();

    // What is asked is whether there are too many before it.
    assert_eq!(sent, 6);
    assert_eq!(send_ten(), Err(Errno::TOOMANYREFS));
    take(&receiver).expect("the kernel does so");
    assert_eq!(send_ten(), Ok(()));
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("the kernel does so")
}

fn send(sender: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(sender, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT).map(drop)
}

/// Receives without room for descriptors; tells how long the message was.
fn take(receiver: &OwnedFd) -> Result<usize, Errno> {
    recv(receiver, &mut [0; 100], RecvFlags::DONTWAIT).map(|(_, count)| count)
}

/// The inodes of what is in a queue, found by peeking.
fn walk(receiver: &OwnedFd) -> Vec<u64> {
    peek_from(receiver, 0);
    let mut inodes = Vec::new();
    loop {
        let mut bytes = [0; 100];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(receiver, parts, &mut control, flags) {
            Ok(message) if message.bytes > 0 => {}
            Ok(_) | Err(Errno::AGAIN) => return inodes,
            Err(errno) => panic!("{errno}"),
        }
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                inodes.extend(received.map(inode));
            }
        }
    }
}

#[expect(unsafe_code, clippy::disallowed_methods, reason = "rustix has no SO_PEEK_OFF")]
fn peek_from(receiver: &OwnedFd, offset: i32) {
    let number = receiver.as_raw_fd();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    // SAFETY: the option is an int of four bytes, which outlives the call.
    let outcome = unsafe { libc::setsockopt(number, level, name, (&raw const offset).cast(), 4) };
    assert_eq!(outcome, 0);
}

fn file() -> OwnedFd {
    tempfile::tempfile().expect("the kernel does so").into()
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).expect("the kernel does so").st_ino
}

/// Whether the writing end of a pipe is closed everywhere.
fn is_closed(reader: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(reader, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())) == Ok(1)
}

/// A socket whose last close waits for seconds, as that of a file does whose server is dead; and
/// its peer, which reads nothing.
fn socket_whose_last_close_waits() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel does so");
    let mut socket = TcpStream::connect(listener.local_addr().expect("the kernel does so"))
        .expect("the kernel does so");
    let (peer, _) = listener.accept().expect("the kernel does so");
    socket.set_nonblocking(true).expect("the kernel does so");
    while socket.write(&[0; 65_536]).is_ok() {}
    socket.set_nonblocking(false).expect("the kernel does so");
    set_socket_linger(&socket, Some(Duration::from_secs(2))).expect("the kernel does so");
    (socket.into(), peer)
}
