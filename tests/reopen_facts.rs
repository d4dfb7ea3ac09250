//! What opening `/proc/self/fd/N` anew gives for each kind of file, through the daemon: the facts that
//! its Reopen stands on, so that a kernel that changes one is noticed.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::Path,
    process::{Command, Stdio},
};

use fdstash::{Access, Error, Gift, Refusal, Reopening, blocking::Client};
use kit::{
    Attribute, Daemon, Group, Mount, SOON, file, gift, identity, install_program, is_root, name,
    only, pattern, skipped, wait_until,
};
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    fs::{
        CWD, FileType, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, mknodat,
    },
    pipe::pipe,
    time::{TimerfdClockId, TimerfdFlags, timerfd_create},
};

const CHOICES: [Access; 3] = [Access::Read, Access::Write, Access::ReadWrite];

fn for_access(access: Access) -> Reopening {
    Reopening { access: Some(access), ..Reopening::new(name("it")) }
}

/// Gives one descriptor, to be reopened with all the access that its giver has.
fn keep(client: &mut Client, fd: impl AsFd) {
    client.give(&[gift("it", fd)]).expect("it can be given");
}

fn keep_wider(client: &mut Client, fd: impl AsFd) -> Result<(), String> {
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("it", fd) };
    why(client.give(&[wider]).map(drop))
}

/// What a Reopen hands out, or the name of its errno.
fn reopen(client: &mut Client, reopening: Reopening) -> Result<File, String> {
    why(client.reopen(&[reopening])).map(only)
}

fn why<T>(outcome: Result<T, Error>) -> Result<T, String> {
    match outcome {
        Ok(done) => Ok(done),
        Err(Error::Refused(Refusal::ReopenFailed { errno_name, .. })) => Err(errno_name),
        Err(Error::Refused(Refusal::AccessDenied { .. })) => Err("AccessDenied".into()),
        Err(other) => panic!("{other:?}"),
    }
}

fn reopens_in_every_way(client: &mut Client, given: &File) {
    keep(client, given);
    for access in CHOICES {
        let handed = reopen(client, for_access(access)).expect("it can be reopened");
        assert_eq!(identity(&handed), identity(given), "{access:?}");
        let mut byte = [0];
        assert_eq!(handed.read_at(&mut byte, 0).is_ok(), access != Access::Write);
        assert_eq!(handed.write_at(b"x", 0).is_ok(), access != Access::Read);
    }
}

#[test]
fn a_regular_file_reopens_in_every_way() {
    let daemon = Daemon::spawn();

    reopens_in_every_way(&mut daemon.client(), &file(daemon.path("a"), "a"));
}

#[test]
fn an_unlinked_file_reopens_though_its_name_is_used_again() {
    let daemon = Daemon::spawn();
    let unlinked = file(daemon.path("a"), "a");
    fs::remove_file(daemon.path("a")).unwrap();
    file(daemon.path("a"), "another");

    reopens_in_every_way(&mut daemon.client(), &unlinked);
}

#[test]
fn a_file_that_never_had_a_name_reopens() {
    let daemon = Daemon::spawn();
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let Ok(nameless) = rustix::fs::open(daemon.path(""), flags, Mode::RUSR) else {
        return skipped("the file system of the temporary folder has no O_TMPFILE");
    };

    reopens_in_every_way(&mut daemon.client(), &nameless.into());
}

#[test]
fn a_memfd_reopens_in_every_way() {
    let daemon = Daemon::spawn();
    let memfd = memfd_create("memfd", MemfdFlags::CLOEXEC).unwrap();

    reopens_in_every_way(&mut daemon.client(), &memfd.into());
}

#[test]
fn a_sealed_memfd_reopens_for_writing_and_stays_sealed() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = File::from(memfd_create("sealed", flags).unwrap());
    sealed.write_at(b"a", 0).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SEAL).unwrap();
    keep(&mut client, &sealed);

    let handed = reopen(&mut client, for_access(Access::ReadWrite)).unwrap();

    let error = handed.write_at(b"x", 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn a_path_reopens_as_what_its_giver_could_have_opened() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let named = file(daemon.path("a"), "a");
    let path = rustix::fs::open(daemon.path("a"), OFlags::PATH, Mode::empty()).unwrap();
    keep(&mut client, &path);
    let as_it_is = reopen(&mut client, Reopening::new(name("it"))).unwrap();
    let denied = reopen(&mut client, for_access(Access::Read));
    keep_wider(&mut client, &path).unwrap();

    let handed = reopen(&mut client, for_access(Access::ReadWrite)).unwrap();

    assert_eq!(denied.unwrap_err(), "AccessDenied");
    assert_eq!(identity(&as_it_is), identity(&named));
    assert_eq!(identity(&handed), identity(&named));
    handed.write_at(b"b", 0).unwrap();
}

#[test]
fn the_end_of_a_pipe_reopens_as_that_end_alone() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (reader, writer) = pipe().unwrap();
    keep(&mut client, &reader);

    let mut handed = reopen(&mut client, Reopening::new(name("it"))).unwrap();
    File::from(writer).write_all(b"a").unwrap();
    let mut byte = [0];
    handed.read_exact(&mut byte).unwrap();

    assert_eq!(byte, *b"a");
    assert_eq!(reopen(&mut client, for_access(Access::Write)).unwrap_err(), "AccessDenied");
    assert_eq!(reopen(&mut client, for_access(Access::ReadWrite)).unwrap_err(), "AccessDenied");
    assert_eq!(keep_wider(&mut client, &reader).unwrap_err(), "AccessDenied");
}

#[test]
fn a_pipe_reopens_with_no_flag_that_it_does_not_have() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (reader, _writer) = pipe().unwrap();
    keep(&mut client, &reader);

    let direct = Reopening { direct: Some(true), ..Reopening::new(name("it")) };

    assert_eq!(reopen(&mut client, direct).unwrap_err(), "EINVAL");
}

#[test]
fn a_named_pipe_reopens_without_waiting_for_its_other_end() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let path = daemon.path("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let open_reader = || {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&path).unwrap()
    };
    let reader = open_reader();
    let writer = File::options().write(true).open(&path).unwrap();

    rustix::fs::fcntl_setfl(&reader, OFlags::empty()).unwrap();
    keep(&mut client, &reader);
    let handed = reopen(&mut client, Reopening::new(name("it"))).unwrap();
    assert!(!rustix::fs::fcntl_getfl(&handed).unwrap().contains(OFlags::NONBLOCK));
    drop(handed);
    keep(&mut client, &writer);
    reopen(&mut client, Reopening::new(name("it"))).unwrap();
    drop(reader);

    // When nobody reads any more, for which an open would wait; a process that another test is just
    // starting still has the reader for a moment.
    wait_until(SOON, || {
        reopen(&mut client, Reopening::new(name("it"))).is_err_and(|errno| errno == "ENXIO")
    });
}

#[test]
fn what_has_no_file_cannot_be_reopened_and_stays_as_it_was() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let flags = TimerfdFlags::CLOEXEC;
    let table: [(&str, OwnedFd); 5] = [
        ("socket", socket.into()),
        ("TCP socket", listener.into()),
        ("eventfd", eventfd(0, EventfdFlags::CLOEXEC).unwrap()),
        ("epoll", epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
        ("timerfd", timerfd_create(TimerfdClockId::Monotonic, flags).unwrap()),
    ];

    for (kind, fd) in table {
        keep(&mut client, &fd);
        let before = client.list(&pattern("*")).unwrap();

        assert_eq!(reopen(&mut client, Reopening::new(name("it"))).unwrap_err(), "ENXIO", "{kind}");
        assert_eq!(client.list(&pattern("*")).unwrap(), before, "{kind}");
        assert_eq!(identity(only(client.copy(&[name("it")]).unwrap())), identity(&fd), "{kind}");
    }
}

#[test]
fn a_device_that_would_be_another_one_is_not_reopened() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();

    for path in ["/dev/ptmx", "/dev/net/tun", "/dev/tty"] {
        match File::options().read(true).write(true).open(path) {
            Ok(device) => {
                keep(&mut client, &device);
                let outcome = reopen(&mut client, Reopening::new(name("it")));
                assert_eq!(outcome.unwrap_err(), "EOPNOTSUPP", "{path}");
            }
            Err(error) => skipped(&format!("{path} cannot be opened here: {error}")),
        }
    }
}

#[test]
fn the_memory_devices_reopen() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    keep(&mut client, File::options().read(true).write(true).open("/dev/zero").unwrap());

    let mut handed = reopen(&mut client, for_access(Access::Read)).unwrap();

    let mut byte = [1];
    handed.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [0]);
    let direct = Reopening { direct: Some(true), ..Reopening::new(name("it")) };
    assert_eq!(reopen(&mut client, direct).unwrap_err(), "EINVAL");
}

#[test]
fn a_directory_reopens_for_reading_only() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let directory = File::open(daemon.path("")).unwrap();
    keep(&mut client, &directory);

    let handed = reopen(&mut client, Reopening::new(name("it"))).unwrap();

    assert_eq!(identity(handed), identity(&directory));
    assert_eq!(keep_wider(&mut client, &directory).unwrap_err(), "EISDIR");
}

#[test]
fn on_a_read_only_mount_nothing_reopens_for_writing() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let folder = daemon.path("mount");
    fs::create_dir(&folder).unwrap();
    let writable = file(folder.join("a"), "a");
    let Some(mount) = Mount::over_itself(&folder) else {
        return skipped("a mount takes root, and the right to mount");
    };
    assert!(mount.make_read_only());
    let read_only = File::open(folder.join("a")).unwrap();
    assert_eq!(identity(&read_only), identity(&writable));

    assert_eq!(keep_wider(&mut client, &read_only).unwrap_err(), "EROFS");
    keep(&mut client, &read_only);
    reopen(&mut client, Reopening::new(name("it"))).unwrap();
    // The descriptor's own mount counts.
    keep(&mut client, &writable);
    reopen(&mut client, for_access(Access::ReadWrite)).unwrap();
}

#[test]
fn a_running_program_does_not_reopen_for_writing() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let path = daemon.path("sleep");
    install_program(Path::new("/bin/sleep"), &path);
    keep_wider(&mut client, File::open(&path).unwrap()).unwrap();
    // What the daemon has opened to see whether it may be written, is closed a moment later.
    wait_until(SOON, || Command::new(&path).arg("0").status().is_ok());
    let _running = Group::spawn(Command::new(&path).arg("60"));

    let to_write = reopen(&mut client, for_access(Access::ReadWrite));
    let to_read = reopen(&mut client, for_access(Access::Read));

    assert_eq!(to_write.unwrap_err(), "ETXTBSY");
    assert!(to_read.is_ok());
}

#[test]
fn an_immutable_file_reopens_for_reading_only() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let path = daemon.path("a");
    keep(&mut client, file(&path, "a"));
    let Some(_immutable) = Attribute::set(&path, 'i') else {
        return skipped("chattr +i takes root, and a file system that has it");
    };

    assert_eq!(reopen(&mut client, for_access(Access::ReadWrite)).unwrap_err(), "EPERM");
    reopen(&mut client, for_access(Access::Read)).unwrap();
}

#[test]
fn an_append_only_file_reopens_for_appending_only() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let path = daemon.path("log");
    keep(&mut client, File::options().append(true).create(true).open(&path).unwrap());
    let Some(_append_only) = Attribute::set(&path, 'a') else {
        return skipped("chattr +a takes root, and a file system that has it");
    };

    let overwriting = Reopening { append: Some(false), ..Reopening::new(name("it")) };
    assert_eq!(reopen(&mut client, overwriting).unwrap_err(), "EPERM");
    let mut log = reopen(&mut client, Reopening::new(name("it"))).unwrap();
    log.write_all(b"a line").unwrap();
}

#[test]
fn a_terminal_reopens_until_it_is_hung_up() {
    // By the kernel's headers; it takes back a terminal from all who have it open.
    const HANG_UP: &str = "
import fcntl, os, sys
TIOCVHANGUP = 0x5437
master, slave = os.openpty()
print(os.ttyname(slave), flush=True)
sys.stdin.readline()
fcntl.ioctl(slave, TIOCVHANGUP)
print('hung up', flush=True)
sys.stdin.readline()
";
    if !is_root() {
        return skipped("to hang a terminal up takes root");
    }
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut python = kit::python();
    python.args(["-c", HANG_UP]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap();
    let mut lines = std::io::BufReader::new(python.stdout.take().unwrap());
    let mut say = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        line.trim().to_owned()
    };
    let noctty = OFlags::NOCTTY.bits() as i32;
    let terminal = OpenOptions::new().read(true).write(true).custom_flags(noctty).open(say());
    keep(&mut client, terminal.unwrap());

    let before = reopen(&mut client, Reopening::new(name("it")));
    python.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(say(), "hung up");
    let after = reopen(&mut client, Reopening::new(name("it")));
    python.stdin = None;
    python.wait().unwrap();

    assert!(before.is_ok());
    // Who had it once must not get it back from whoever has it now.
    assert_eq!(after.unwrap_err(), "EIO");
}
