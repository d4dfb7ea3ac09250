//! The file of a set that cannot be opened anew, wherever it stands in it and whatever the errno: all
//! is as it was. The opens of a file system of the tests' own fail as they are told to; those of real
//! ones for reasons of their own. What "as it was" means is said once, for all of them, so this is
//! one file.
//!
//! The kernel passes on every errno that a FUSE file system answers an open with, but ENOSYS: that says
//! that its files need no open. After ESTALE and ECHILD it asks once more before it gives up.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
    process::Command,
};

use fdstash::{Access, Entry, Error, Gift, Name, Refusal, Reopening, blocking::Client};
use kit::{
    Attribute, Daemon, Fuse, Group, Lease, Mount, Opens, Raw, SOON, User, call, file, gift,
    install_program, is_root, name, names, only, pattern, skipped, wait_until,
};
use rustix::{
    fs::OFlags,
    process::{Resource, getrlimit, prlimit},
};
use serde_json::{Value, json};

/// How many files a set has.
const FILES: usize = 5;

/// The largest errno that a program gets: EHWPOISON.
const LAST: i32 = 133;

/// By this a FUSE file system says that its files need no open: the kernel gives it to nobody.
const ENOSYS: i32 = 38;

/// How a Reopen is asked for.
const WAYS: [fn(&mut Set, &[Reopening]) -> Failed; 3] = [alone, in_a_transaction, by_the_library];

/// What a ReopenFailed tells: the name, the errno, its name, what it means.
type Failed = (String, i32, String, String);

/// Entries of a daemon, of files that were given in this order.
struct Set {
    daemon: Daemon,
    client: Client,
    raw: Raw,
    names: Vec<Name>,
    /// How many descriptors the daemon has at rest, whatever was reopened: as many as it keeps, two
    /// connections, and its own.
    descriptors: usize,
    /// Where the offsets of the kept open file descriptions were set to last.
    mark: u64,
}

impl Set {
    fn of(gifts: &[Gift<File>]) -> Self {
        let daemon = Daemon::spawn();
        let (client, raw) = (daemon.client(), daemon.raw());
        Self::given(daemon, client, raw, gifts)
    }

    fn of_user(user: &User, gifts: &[Gift<File>]) -> Self {
        let daemon = Daemon::spawn();
        let (client, raw) = user.run(|| (daemon.client(), daemon.raw()));
        Self::given(daemon, client, raw, gifts)
    }

    fn given(daemon: Daemon, mut client: Client, raw: Raw, gifts: &[Gift<File>]) -> Self {
        client.give(gifts).expect("there is room");
        wait_until(SOON, || client.statistics().is_ok_and(|told| told.connections == 2));
        let names = gifts.iter().map(|gift| gift.name.clone()).collect();
        let descriptors = daemon.held_at_rest() + 2;
        Self { daemon, client, raw, names, descriptors, mark: 0 }
    }

    /// What is listed before a call that is to change nothing. Marks each kept open file description
    /// by its offset, which no other one has.
    fn before(&mut self) -> Vec<Entry> {
        self.mark += 1;
        for copy in self.client.copy(&self.names).expect("they are there") {
            // A socket has none.
            let _ = File::from(copy.fd).seek(SeekFrom::Start(self.mark));
        }
        self.client.list(&pattern("*")).expect("a list")
    }

    #[track_caller]
    fn assert_as_it_was(&mut self, before: &[Entry], after: &str) {
        // Who holds an entry is told there too.
        assert_eq!(self.client.list(&pattern("*")).expect("a list"), before, "{after}");
        for copy in self.client.copy(&self.names).expect("they are there") {
            let offset = File::from(copy.fd).stream_position();
            assert!(!offset.is_ok_and(|offset| offset != self.mark), "{} {after}", copy.name);
        }
        wait_until(SOON, || self.daemon.open_descriptors() == self.descriptors);
    }

    fn reopenings(&self, wish: &Reopening) -> Vec<Reopening> {
        let for_each = |name: &Name| Reopening { name: name.clone(), ..wish.clone() };
        self.names.iter().map(for_each).collect()
    }
}

/// What can be wished for: opened with the daemon's rights, and on a thread with its peer's.
fn wishes() -> [Reopening; 5] {
    let wish = || Reopening::new(name("any"));
    [
        Reopening { direct: Some(true), ..wish() },
        Reopening { append: Some(false), ..wish() },
        Reopening { access: Some(Access::Read), ..wish() },
        Reopening { dsync: Some(true), noatime: Some(true), ..wish() },
        Reopening { hand_out: Some(Access::Read), ..wish() },
    ]
}

/// In one call, outside of a transaction.
fn alone(set: &mut Set, reopenings: &[Reopening]) -> Failed {
    let entries: Vec<Value> = reopenings.iter().map(as_json).collect();

    let reply = set.raw.call("Reopen", &json!({ "entries": entries }));

    assert_eq!(reply["error"], "org.fdstash.Stash.ReopenFailed", "{reply}");
    assert!(set.raw.fds().is_empty(), "nothing is handed out");
    let text = |field: &str| reply["parameters"][field].as_str().unwrap_or_default().to_owned();
    let errno = reply["parameters"]["errno"].as_i64().and_then(|errno| errno.try_into().ok());
    let errno = errno.expect("an errno is a number");
    (text("name"), errno, text("errnoName"), text("message"))
}

/// In a caller's own transaction, which goes on after it and is committed.
fn in_a_transaction(set: &mut Set, reopenings: &[Reopening]) -> Failed {
    let mut transaction = set.client.transaction().expect("one can begin");

    let failed = failed(transaction.reopen(reopenings));

    transaction.commit().expect("it goes on");
    failed
}

/// In the transaction that the library makes of it.
fn by_the_library(set: &mut Set, reopenings: &[Reopening]) -> Failed {
    failed(set.client.reopen(reopenings))
}

fn failed<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Failed {
    match outcome {
        Err(Error::Refused(Refusal::ReopenFailed { name, errno, errno_name, message })) => {
            (name, errno, errno_name, message)
        }
        other => panic!("no ReopenFailed: {other:?}"),
    }
}

fn as_json(reopening: &Reopening) -> Value {
    json!({
        "name": reopening.name.as_str(),
        "access": reopening.access.map(Access::as_str),
        "handOut": reopening.hand_out.map(Access::as_str),
        "direct": reopening.direct,
        "append": reopening.append,
        "dsync": reopening.dsync,
        "nonblock": reopening.nonblock,
        "noatime": reopening.noatime,
    })
}

/// The names of the errnos, as the kernel's headers have them.
fn errno_names() -> BTreeMap<i32, String> {
    let headers = ["/usr/include/asm-generic/errno-base.h", "/usr/include/asm-generic/errno.h"];
    let text: String = headers.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    if text.is_empty() {
        skipped("there are no kernel headers to compare the names of errnos with");
    }
    let define = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|word| *word == "#define").and(words.next())?;
        Some((words.next()?.parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(define).collect()
}

/// What an errno means, as the C library says it.
fn meaning(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// A file system, and a set of so many files on it: the even ones are given fresh, the odd ones shared.
fn set_on_fuse(files: usize) -> Option<(Fuse, Set)> {
    let Some(fuse) = Fuse::mount() else {
        skipped("to have a file system of one's own takes root, the right to mount, and /dev/fuse");
        return None;
    };
    let gifts = (0..files).map(|at| Gift {
        fresh: at % 2 == 0,
        ..gift(&format!("f/{at:03}"), fuse.open(at as u64, OFlags::APPEND))
    });
    let gifts: Vec<_> = gifts.collect();
    let set = Set::of(&gifts);
    drop(gifts);
    wait_until(SOON, || fuse.open_descriptions() == files);
    Some((fuse, set))
}

/// Has the k-th file fail, from its first open on or from its second.
fn fails(fuse: &Fuse, set: &mut Set, opens: (usize, Opens), way: usize, wish: usize) -> Failed {
    let (at, ends) = opens;
    let before = set.before();
    fuse.set(at as u64, ends);

    let reopenings = set.reopenings(&wishes()[wish]);
    let failed = WAYS[way](set, &reopenings);

    let after = format!("after {failed:?}, asked for in way {way}, with wish {wish}");
    assert_eq!(failed.0, set.names[at].as_str(), "{after}");
    set.assert_as_it_was(&before, &after);
    // The file system knows of nobody that has one more: each that was opened is closed again.
    wait_until(SOON, || fuse.open_descriptions() == set.names.len());
    fuse.set(at as u64, Opens::Work);
    failed
}

/// Every errno, at every file, at its first open and at the second.
fn every_errno_at_every_file_of(files: usize) {
    let Some((fuse, mut set)) = set_on_fuse(files) else { return };
    let known = errno_names();
    let mut rounds = 0;

    for errno in (1..=LAST).filter(|errno| *errno != ENOSYS) {
        for (at, after) in (0..files).flat_map(|at| [(at, 0), (at, 1)]) {
            // Each errno comes by each way, and with each wish, though not every pair of them.
            let (way, wish) = (rounds % WAYS.len(), rounds % wishes().len());
            rounds += if at + 1 == files && after == 1 { 2 } else { 1 };

            let opens = (at, Opens::Fail { after, errno });
            let (_, told, errno_name, message) = fails(&fuse, &mut set, opens, way, wish);

            assert_eq!(told, errno, "{message}");
            let is_out_of_room = ["EMFILE", "ENFILE"].contains(&errno_name.as_str());
            // It is the file system that says so, and no verdict of the daemon's.
            assert!(is_out_of_room || message.starts_with(&meaning(errno)), "{errno}: {message}");
            let Some(known) = known.get(&errno) else { continue };
            assert_eq!(&errno_name, known, "{errno}: {message}");
        }
        // Nobody holds them: anybody else can have them opened anew at once, and all are.
        let handed = set.daemon.client().reopen(&set.reopenings(&Reopening::new(name("any"))));
        assert_eq!(handed.expect("they work again").len(), files);
        wait_until(SOON, || fuse.open_descriptions() == files);
    }
}

#[test]
fn whatever_the_errno_and_whichever_the_file_all_is_as_it_was() {
    every_errno_at_every_file_of(FILES);
}

#[test]
fn one_file_alone_fails_with_every_errno_and_is_as_it_was() {
    every_errno_at_every_file_of(1);
}

#[test]
fn of_more_files_than_a_message_carries_any_one_undoes_all() {
    let Some((fuse, mut set)) = set_on_fuse(260) else { return };
    let library = WAYS.len() - 1;

    // The last of the first message's, the first of the second's, and both ends.
    for (at, after) in [0, 252, 253, 259].into_iter().flat_map(|at| [(at, 0), (at, 1)]) {
        let opens = (at, Opens::Fail { after, errno: 5 });
        assert_eq!(fails(&fuse, &mut set, opens, library, 0).2, "EIO");
    }

    assert_eq!(set.client.reopen(&set.reopenings(&wishes()[0])).unwrap().len(), 260);
}

#[test]
fn what_a_transaction_has_done_already_stays_done_where_a_reopen_in_it_fails() {
    let Some((fuse, mut set)) = set_on_fuse(FILES) else { return };
    fuse.set(3, Opens::Fail { after: 1, errno: 5 });
    let reopenings = set.reopenings(&wishes()[0]);

    let mut transaction = set.client.transaction().unwrap();
    transaction.reopen(&reopenings[..2]).unwrap();
    assert_eq!(failed(transaction.reopen(&reopenings)).2, "EIO");
    assert_eq!(failed(transaction.reopen(&reopenings[2..])).0, "f/003");
    transaction.commit().unwrap();

    let direct = set.client.list(&pattern("*")).unwrap().into_iter().map(|entry| {
        assert_eq!(entry.held_by, None);
        entry.flags.contains(fdstash::Flags::DIRECT)
    });
    assert_eq!(direct.collect::<Vec<_>>(), [true, true, false, false, false]);
}

#[test]
fn a_file_system_that_needs_no_open_reopens() {
    let Some((fuse, mut set)) = set_on_fuse(1) else { return };
    fuse.set(0, Opens::Fail { after: 0, errno: ENOSYS });

    let handed = set.client.reopen(&set.reopenings(&wishes()[0])).unwrap();

    assert_eq!(handed.len(), 1);
}

#[test]
fn opens_that_hang_stop_nobody_and_fail_with_their_file_server() {
    const HANGING: usize = 8;
    let Some((mut fuse, mut set)) = set_on_fuse(FILES + HANGING) else { return };
    let set_files = set.names.split_off(HANGING);
    let (alone, last) = (set.names.clone(), FILES - 1);
    set.names = set_files;
    let before = set.before();
    let kept = file(set.daemon.path("kept"), "");
    set.client.give(&[gift("kept", &kept)]).unwrap();
    for at in (0..HANGING).chain([HANGING + last]) {
        fuse.set(at as u64, Opens::Hang);
    }

    let waiting: Vec<_> = alone
        .iter()
        .map(|name| (name.as_str().to_owned(), vec![json!({ "name": name.as_str() })]))
        .chain([(
            set.names[last].as_str().to_owned(),
            set.reopenings(&wishes()[0]).iter().map(as_json).collect(),
        )])
        .map(|(culprit, entries)| {
            let raw = set.daemon.raw();
            raw.say(&call("Reopen", &json!({ "entries": entries })));
            (culprit, raw)
        })
        .collect();
    wait_until(SOON, || fuse.hanging() == HANGING + 1);

    // Everybody else goes on; and who wants what waits, is told who has it.
    let mut other = set.daemon.client();
    only(other.reopen(&[Reopening { sync: Some(true), ..Reopening::new(name("kept")) }]).unwrap());
    only(other.reopen(&[Reopening { sync: Some(false), ..Reopening::new(name("kept")) }]).unwrap());
    let held = other.close(&set.names).unwrap_err();
    assert!(matches!(held, Error::Refused(Refusal::Busy { .. })), "{held:?}");
    other.give(&[gift("new", &kept)]).unwrap();
    other.close(&names(["new"])).unwrap();
    drop(other);
    fuse.kill();

    for (culprit, mut raw) in waiting {
        let reply = raw.reply();
        assert_eq!(reply["parameters"]["name"], culprit.as_str(), "{reply}");
        let errno = reply["parameters"]["errnoName"].as_str().unwrap_or_default();
        assert!(["ECONNABORTED", "ENOTCONN"].contains(&errno), "{reply}");
        assert!(raw.fds().is_empty());
    }
    set.client.close(&names(["kept"])).unwrap();
    set.assert_as_it_was(&before, "after the death of the file server");
}

#[test]
fn the_command_says_which_file_and_why_and_fails() {
    let Some((fuse, set)) = set_on_fuse(3) else { return };
    fuse.set(1, Opens::Fail { after: 1, errno: 5 });

    let mut reopen = set.daemon.command();
    let output = reopen.args(["reopen", "f/000", "f/001", "f/002", "--direct", "on"]).output();

    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let which = "entry \"f/001\" could not be opened anew: input/output error (EIO)";
    assert!(said.contains(which) && said.contains("the stash is as it was"), "{said}");
}

/// Has each of three files be the one that cannot be opened as wished for, in every way of asking: what
/// `make` gives first and `spoil` then spoils, for as long as what it returns lives.
fn spoiled<T>(
    errno_name: &str,
    wish: &Reopening,
    user: Option<&User>,
    make: impl Fn(&Path) -> Gift<File>,
    spoil: impl Fn(&Path) -> Option<T>,
) {
    for at in 0..3 {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let good =
            |at: usize| gift(&format!("good/{at}"), file(folder.path().join(at.to_string()), ""));
        let mut gifts = vec![good(0), good(1)];
        gifts.insert(at, make(folder.path()));
        let mut set = match user {
            None => Set::of(&gifts),
            Some(user) => Set::of_user(user, &gifts),
        };
        drop(gifts);
        let Some(_spoiled) = spoil(folder.path()) else {
            return skipped(&format!("{errno_name}: this machine does not let us bring it about"));
        };
        for way in WAYS {
            let before = set.before();

            let reopenings = set.reopenings(wish);
            let failed = way(&mut set, &reopenings);

            assert_eq!((failed.0.as_str(), failed.2.as_str()), ("bad", errno_name), "{failed:?}");
            set.assert_as_it_was(&before, errno_name);
        }
    }
}

/// A file that is open for reading, and may be reopened for writing.
fn may_be_written(path: &Path) -> Gift<File> {
    Gift {
        may_reopen: Some(Access::ReadWrite),
        ..gift("bad", File::open(path).expect("it is there"))
    }
}

fn as_it_is() -> Reopening {
    Reopening::new(name("any"))
}

fn to_write() -> Reopening {
    Reopening { access: Some(Access::ReadWrite), ..as_it_is() }
}

#[test]
fn a_mount_that_was_made_read_only_refuses_and_all_is_as_it_was() {
    let mounts = std::cell::RefCell::new(Vec::new());
    let make = |folder: &Path| {
        let below = folder.join("mount");
        fs::create_dir(&below).unwrap();
        file(below.join("bad"), "");
        mounts.borrow_mut().extend(Mount::over_itself(&below));
        may_be_written(&below.join("bad"))
    };
    let spoil = |_: &Path| mounts.borrow_mut().pop().filter(Mount::make_read_only);

    spoiled("EROFS", &to_write(), None, make, spoil);
}

#[test]
fn a_file_that_was_made_immutable_refuses_and_all_is_as_it_was() {
    let make = |folder: &Path| gift("bad", file(folder.join("bad"), ""));

    spoiled("EPERM", &as_it_is(), None, make, |folder| Attribute::set(&folder.join("bad"), 'i'));
}

#[test]
fn a_program_that_runs_refuses_and_all_is_as_it_was() {
    let make = |folder: &Path| {
        install_program(Path::new("/bin/sleep"), &folder.join("bad"));
        may_be_written(&folder.join("bad"))
    };
    let spoil = |folder: &Path| Some(Group::spawn(Command::new(folder.join("bad")).arg("60")));

    spoiled("ETXTBSY", &to_write(), None, make, spoil);
}

#[test]
fn a_file_that_is_leased_refuses_who_does_not_wait_and_all_is_as_it_was() {
    let make = |folder: &Path| {
        drop(file(folder.join("bad"), ""));
        may_be_written(&folder.join("bad"))
    };
    let at_once = Reopening { nonblock: Some(true), ..to_write() };

    spoiled("EAGAIN", &at_once, None, make, |folder| Some(Lease::of(&folder.join("bad"))));
}

#[test]
fn a_file_that_its_user_may_no_longer_write_refuses_and_all_is_as_it_was() {
    if !is_root() {
        return skipped("to be another user takes root");
    }
    let make = |folder: &Path| {
        drop(file(folder.join("bad"), ""));
        fs::set_permissions(folder.join("bad"), Permissions::from_mode(0o666)).unwrap();
        may_be_written(&folder.join("bad"))
    };
    let spoil =
        |folder: &Path| fs::set_permissions(folder.join("bad"), Permissions::from_mode(0o644)).ok();

    spoiled("EACCES", &to_write(), Some(&User::new(4242)), make, spoil);
}

#[test]
fn what_cannot_be_opened_so_refuses_and_all_is_as_it_was() {
    let socket = |_: &Path| gift("bad", File::from(OwnedFd::from(UnixStream::pair().unwrap().0)));
    let pipe = |_: &Path| gift("bad", File::from(rustix::pipe::pipe().unwrap().0));
    let of_the_kernel = |_: &Path| gift("bad", File::open("/proc/self/status").unwrap());
    let direct = Reopening { direct: Some(true), ..as_it_is() };

    spoiled("ENXIO", &as_it_is(), None, socket, |_| Some(()));
    spoiled("EINVAL", &direct, None, pipe, |_| Some(()));
    spoiled("EOPNOTSUPP", &as_it_is(), None, of_the_kernel, |_| Some(()));
}

#[test]
fn a_daemon_that_is_out_of_descriptors_at_any_file_leaves_all_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |at: usize| gift(&format!("f/{at}"), file(folder.path().join(at.to_string()), ""));
    let mut set = Set::of(&(0..FILES).map(kept).collect::<Vec<_>>());
    let server = set.daemon.server().0;
    let mut limit = getrlimit(Resource::Nofile);
    let mut culprits = Vec::new();

    // One descriptor more each time: what was opened so far was too much at every place once.
    let reopenings = set.reopenings(&as_it_is());
    let entries: Vec<Value> = reopenings.iter().map(as_json).collect();
    for most in 3.. {
        let before = set.before();
        limit.current = Some(most);
        prlimit(Some(server), Resource::Nofile, limit).unwrap();
        let reply = set.raw.call("Reopen", &json!({ "entries": entries }));
        if reply["error"].is_null() {
            break;
        }
        assert_eq!(reply["parameters"]["errnoName"], "EMFILE", "{reply}");
        assert!(set.raw.fds().is_empty());
        set.assert_as_it_was(&before, "out of descriptors");
        culprits.push(reply["parameters"]["name"].as_str().unwrap().to_owned());
    }

    assert_eq!(set.raw.fds().len(), FILES);
    culprits.dedup();
    assert_eq!(culprits, (0..FILES).map(|at| format!("f/{at}")).collect::<Vec<_>>());
}
