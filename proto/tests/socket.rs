//! What this crate believes of the kernel, asked of the kernel.

mod kernel;

use std::{
    io::ErrorKind,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
};

use fdstash_proto::{
    Call, Clash, Gift, Inbox, MAX_DESCRIPTORS, Mode, Name, Outbox, Request, call,
    socket::{self, Received},
};
use proptest::{collection, prelude::*, sample, test_runner::FileFailurePersistence};
use rustix::{
    fs::{MemfdFlags, fstat, memfd_create},
    io::{FdFlags, fcntl_getfd},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

#[test]
fn a_descriptor_that_comes_is_the_file_that_was_sent() {
    let (here, there) = pair();
    let file = file();

    socket::send(&here, b"x", &[&file]).unwrap();
    let (received, bytes, fds) = receive(&there, 10);

    assert_eq!((received, bytes.as_slice()), (Received::Bytes(1), b"x".as_slice()));
    assert_eq!(identities(&fds), [identity(&file)]);
}

#[test]
fn the_sender_keeps_its_own() {
    let (here, there) = pair();
    let file = file();

    socket::send(&here, b"x", &[&file]).unwrap();
    drop(receive(&there, 10));

    assert_eq!(rustix::io::write(&file, b"still open"), Ok(10));
}

#[test]
fn descriptors_come_in_the_order_in_which_they_were_sent() {
    let (here, there) = pair();
    let files = [file(), file(), file()];

    socket::send(&here, b"x", &files).unwrap();
    let (_, _, fds) = receive(&there, 10);

    assert_eq!(identities(&fds), identities(&files));
}

#[test]
fn what_comes_is_appended_to_what_is_there() {
    let (here, there) = pair();
    let files = [file(), file()];
    let mut fds = Vec::new();

    for file in &files {
        socket::send(&here, b"x", &[file]).unwrap();
        socket::receive(&there, &mut [0; 10], &mut fds).unwrap();
    }

    assert_eq!(identities(&fds), identities(&files));
}

#[test]
fn what_comes_is_close_on_exec() {
    let (here, there) = pair();
    let inheritable = memfd_create("inheritable", MemfdFlags::empty()).unwrap();

    socket::send(&here, b"x", &[&inheritable]).unwrap();
    let (_, _, fds) = receive(&there, 10);

    assert_eq!(fcntl_getfd(&inheritable), Ok(FdFlags::empty()));
    assert_eq!(fcntl_getfd(&fds[0]), Ok(FdFlags::CLOEXEC));
}

#[test]
fn a_message_carries_253_descriptors() {
    let (here, there) = pair();
    let file = file();

    let sent = socket::send(&here, b"x", &[&file; MAX_DESCRIPTORS]).unwrap();
    let (received, _, fds) = receive(&there, 10);

    assert_eq!((sent, received), (1, Received::Bytes(1)));
    assert_eq!(identities(&fds), [identity(&file); MAX_DESCRIPTORS]);
}

#[test]
fn a_message_does_not_carry_254_descriptors() {
    let (here, there) = pair();
    let file = file();

    let refused = socket::send(&here, b"x", &[&file; MAX_DESCRIPTORS + 1]).unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert_eq!(try_receive(&there, 10).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_read_ends_after_the_bytes_that_brought_descriptors_and_not_before_them() {
    let (here, there) = pair();
    let (first, second) = (file(), file());
    socket::send(&here, b"without ", NONE).unwrap();
    socket::send(&here, b"first ", &[&first]).unwrap();
    socket::send(&here, b"second ", &[&second]).unwrap();
    socket::send(&here, b"after", NONE).unwrap();

    let reads: Vec<_> = (0..3).map(|_| receive(&there, 100)).collect();

    let reads = reads.iter().map(|(_, bytes, fds)| (bytes.as_slice(), identities(fds)));
    let expected: [(&[u8], _); 3] = [
        (b"without first ", vec![identity(&first)]),
        (b"second ", vec![identity(&second)]),
        (b"after", vec![]),
    ];
    assert_eq!(reads.collect::<Vec<_>>(), expected);
}

#[test]
fn descriptors_come_with_the_first_byte_and_the_rest_is_read_on_into_the_next() {
    let (here, there) = pair();
    let (first, second) = (file(), file());
    socket::send(&here, b"first", &[&first]).unwrap();
    socket::send(&here, b"second", &[&second]).unwrap();

    let (_, begin, of_first) = receive(&there, 1);
    let (_, rest, of_second) = receive(&there, 100);

    assert_eq!(
        (begin.as_slice(), identities(&of_first)),
        (b"f".as_slice(), vec![identity(&first)])
    );
    assert_eq!(rest, b"irstsecond");
    assert_eq!(identities(&of_second), [identity(&second)]);
}

#[test]
fn a_send_that_is_accepted_in_part_has_brought_all_its_descriptors() {
    let (here, there) = pair();
    here.set_nonblocking(true).unwrap();
    let file = file();
    let much = vec![b'x'; 16 << 20];

    let accepted = socket::send(&here, &much, &[&file, &file]).unwrap();
    let (_, _, fds) = receive(&there, 1);

    assert!((1..much.len()).contains(&accepted), "{accepted} bytes of {}", much.len());
    assert_eq!(identities(&fds), [identity(&file); 2]);
}

#[test]
fn a_full_socket_accepts_nothing_and_no_descriptor() {
    let (here, there) = pair();
    here.set_nonblocking(true).unwrap();
    let (file, much) = (file(), vec![b'x'; 1 << 16]);
    while socket::send(&here, &much, NONE).is_ok() {}

    let with = socket::send(&here, b"x", &[&file]).unwrap_err();
    let without = socket::send(&here, b"x", NONE).unwrap_err();

    assert_eq!(with.kind(), ErrorKind::WouldBlock);
    assert_eq!(without.kind(), ErrorKind::WouldBlock);
    assert!(receive_all(&there).is_empty());
}

#[test]
fn an_empty_nonblocking_socket_would_block() {
    let (_here, there) = pair();

    let blocked = try_receive(&there, 10).unwrap_err();

    assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_closed_connection_ends_after_what_was_sent() {
    let (here, there) = pair();
    let file = file();
    socket::send(&here, b"last", &[&file]).unwrap();

    drop(here);

    let (received, bytes, fds) = receive(&there, 10);
    assert_eq!((received, bytes.as_slice()), (Received::Bytes(4), b"last".as_slice()));
    assert_eq!(identities(&fds), [identity(&file)]);
    assert_eq!(receive(&there, 10).0, Received::End);
    assert_eq!(receive(&there, 10).0, Received::End);
}

#[test]
fn a_send_into_a_closed_connection_fails_and_kills_nobody() {
    let (here, there) = pair();
    let file = file();

    drop(there);

    assert_eq!(socket::send(&here, b"x", NONE).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(socket::send(&here, b"x", &[&file]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// In a process of its own, since it leaves no descriptor to whoever shares its table.
#[test]
fn descriptors_for_which_there_is_no_room_are_told_as_truncation() {
    const ALONE: &str = "FDSTASH_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return truncation_alone();
    }

    let outcome = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "descriptors_for_which_there_is_no_room_are_told_as_truncation"])
        .env(ALONE, "1")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

fn truncation_alone() {
    let (here, there) = pair();
    let sent = file();
    socket::send(&here, b"payload", &[&sent; 10]).expect("ten descriptors pass");
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).expect("a lower limit");
    let mut fill: Vec<OwnedFd> = std::iter::from_fn(|| rustix::io::dup(&sent).ok()).collect();
    fill.truncate(fill.len() - 3);

    let (received, bytes, fds) = receive(&there, 100);

    assert_eq!((received, bytes.as_slice()), (Received::Truncated(7), b"payload".as_slice()));
    assert_eq!(identities(&fds), [identity(&sent); 3]);
}

#[test]
fn calls_and_their_files_go_through_a_socket_that_accepts_little_at_a_time() {
    let (here, there) = pair();
    here.set_nonblocking(true).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&here, 1).unwrap();
    let files: Vec<OwnedFd> = (0..6).map(|_| file()).collect();
    let label = "x".repeat(3000);
    let mut outbox = Outbox::new();
    for (at, pair) in files.chunks(2).enumerate() {
        let gifts = pair.iter().enumerate().map(|(of, file)| Gift {
            labels: [("label".to_owned(), label.clone())].into(),
            ..Gift::new(name(&format!("{at}/{of}")), file)
        });
        let give = Call::Give { gifts: gifts.collect(), clash: Clash::Replace, ticket: None };
        outbox.push(call::write(give, Mode::Once), ());
        outbox.push(call::write(Call::Commit { ticket: None }, Mode::Once), ());
    }
    let mut inbox = Inbox::for_calls();

    let (mut given, mut commits, mut blocked) = (Vec::new(), 0, 0);
    let mut bytes = Vec::new();
    while commits < 3 {
        let fds = outbox.next_send(&mut bytes, 100);
        match socket::send(&here, &bytes, fds) {
            Ok(sent) => outbox.advance(sent, |_, ()| {}),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                blocked += 1;
                let (_, bytes, fds) = receive(&there, 1000);
                inbox.feed(&bytes, fds).unwrap();
            }
        }
        if outbox.is_empty() {
            let (_, bytes, fds) = receive(&there, 1000);
            inbox.feed(&bytes, fds).unwrap();
        }
        while let Some(incoming) = inbox.next_call().unwrap() {
            match incoming.request.unwrap() {
                Request::Stash(Call::Give { gifts, .. }) => given.extend(gifts),
                Request::Stash(_) | Request::GetInfo | Request::GetInterfaceDescription(_) => {
                    commits += 1;
                }
            }
        }
    }

    assert!(blocked > 0, "the socket took everything at once");
    let names: Vec<_> = given.iter().map(|gift| gift.name.as_str()).collect();
    assert_eq!(names, ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]);
    assert_eq!(given.iter().map(|gift| identity(&gift.fd)).collect::<Vec<_>>(), identities(&files));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/socket.proptest-regressions",
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_model_reads_as_the_kernel_does(steps in collection::vec(step(), 1..30)) {
        let (here, there) = pair();
        let files: Vec<OwnedFd> = (0..4).map(|_| file()).collect();
        let mut model = kernel::Stream::new();

        for step in steps {
            match step {
                Step::Send { bytes, fds } => {
                    let borrowed: Vec<&OwnedFd> = fds.iter().map(|&fd| &files[fd]).collect();
                    prop_assert_eq!(socket::send(&here, &bytes, &borrowed).unwrap(), bytes.len());
                    model.send(&bytes, fds);
                }
                Step::Read { most } => {
                    let (bytes, fds) = model.read(most);
                    let fds = fds.into_iter().map(|fd| identity(&files[fd])).collect::<Vec<_>>();

                    let read = try_receive(&there, most).map(|(_, bytes, fds)| {
                        (bytes, identities(&fds))
                    });
                    match read {
                        Ok(read) => prop_assert_eq!(read, (bytes, fds)),
                        Err(error) => {
                            prop_assert_eq!(error.kind(), ErrorKind::WouldBlock);
                            prop_assert_eq!((bytes.len(), fds.len()), (0, 0));
                        }
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send { bytes: Vec<u8>, fds: Vec<usize> },
    Read { most: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let fds = prop_oneof![Just(vec![]), collection::vec(0usize..4, 1..4)];
    let most = prop_oneof![1usize..10, 1usize..100, Just(10_000)];
    let bytes = sample::select(vec![1usize, 2, 5, 20, 50]);
    prop_oneof![
        (bytes, any::<u8>(), fds).prop_map(|(count, first, fds)| {
            let bytes = (0..count).map(|at| first.wrapping_add(at as u8)).collect();
            Step::Send { bytes, fds }
        }),
        most.prop_map(|most| Step::Read { most }),
    ]
}

const NONE: &[BorrowedFd<'_>] = &[];

/// Two ends, of which the second does not wait.
fn pair() -> (UnixStream, UnixStream) {
    let (here, there) = UnixStream::pair().expect("a socket pair");
    there.set_nonblocking(true).expect("a socket that does not wait");
    (here, there)
}

/// A file like no other.
fn file() -> OwnedFd {
    memfd_create("test", MemfdFlags::CLOEXEC).expect("a memfd")
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

type Read = (Received, Vec<u8>, Vec<OwnedFd>);

fn try_receive(socket: &UnixStream, most: usize) -> std::io::Result<Read> {
    let (mut buffer, mut fds) = (vec![0; most], Vec::new());
    let received = socket::receive(socket, &mut buffer, &mut fds)?;
    buffer.truncate(match received {
        Received::Bytes(count) | Received::Truncated(count) => count,
        Received::End => 0,
    });
    Ok((received, buffer, fds))
}

fn receive(socket: &UnixStream, most: usize) -> Read {
    try_receive(socket, most).expect("something to read")
}

/// The descriptors beside all that can be read.
fn receive_all(socket: &UnixStream) -> Vec<OwnedFd> {
    std::iter::from_fn(|| try_receive(socket, 1 << 16).ok()).flat_map(|(_, _, fds)| fds).collect()
}

/// Which file it is, whatever its number.
fn identity(fd: impl AsFd) -> (u64, u64) {
    let stat = fstat(fd).expect("a status");
    (stat.st_dev, stat.st_ino)
}

fn identities(fds: &[impl AsFd]) -> Vec<(u64, u64)> {
    fds.iter().map(identity).collect()
}
