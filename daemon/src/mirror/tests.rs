//! The mirror, with a store that keeps duplicates as systemd does. Who dies is the mirror: what is
//! left then is what the store has. It is one file with the store that they all share.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
};

use fdstash_proto::{Access, Flags, Kind, Name, Peer};
use fdstash_stash::{
    Facts,
    mirror::{BUNDLE_ENTRIES, MESSAGE_ENTRIES},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, fcntl_getfl, fstat, open},
    io::dup,
    net::sockopt::set_socket_linger,
    pipe::pipe,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::*;

const SOON: Duration = Duration::from_secs(10);
const PLENTY: Room = Room { bundles: 100, in_flight: usize::MAX };

#[test]
fn what_was_put_is_in_the_store_when_the_daemon_is_gone() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let (reader, writer) = pipe().unwrap();
    let writer = put(&mirror, 1, writer);
    mirror.flush(SOON).unwrap();

    drop((mirror, writer));
    let found = store.read_back();

    assert_eq!(ids(&found), [1]);
    File::from(dup(&found[0].1).unwrap()).write_all(b"still").unwrap();
    let mut text = [0; 5];
    File::from(reader).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still");
}

#[test]
fn reading_twice_gives_the_same() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let held: Vec<_> = (0..1_000).map(|id| put(&mirror, id, file())).collect();
    mirror.flush(SOON).unwrap();

    drop((mirror, held));
    let [once, twice] = [store.read_back(), store.read_back()];

    assert_eq!(ids(&once), (0..1_000).collect::<Vec<_>>());
    assert_eq!(ids(&once), ids(&twice));
    assert_eq!(inode(&once[7].1), inode(&twice[7].1));
}

#[test]
fn a_mirror_that_was_paused_stores_nothing_until_it_is_resumed() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    mirror.pause();
    while !mirror.is_at_rest() {
        thread::yield_now();
    }

    let held = put(&mirror, 1, file());
    mirror.flush(4 * PACE).unwrap_err();
    assert!(mirror.is_at_rest());
    assert_eq!(mirror.standing().bundles, 0);

    mirror.resume();
    mirror.flush(SOON).unwrap();
    drop((mirror, held));
    assert_eq!(ids(&store.read_back()), [1]);
}

#[test]
fn somebody_elses_socket_is_no_bundle_whatever_it_says() {
    let own = Bundle::new().unwrap();
    own.append(&[b"record".to_vec()], &[file().as_fd()]).unwrap();

    assert!(bundle::is_one(own.receiver()));
    assert!(!bundle::is_one(&file()));
}

#[test]
fn what_is_gone_is_closed_and_the_others_stay() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let (reader, writer) = pipe().unwrap();
    let others: Vec<_> = (0..1_500).map(|id| put(&mirror, id, file())).collect();
    let writer = put(&mirror, 1_500, writer);
    mirror.flush(SOON).unwrap();
    assert!(!hangs_up(&reader, Duration::ZERO));

    mirror.gone(EntryId(1_500));
    drop(writer);

    assert!(hangs_up(&reader, SOON));
    mirror.flush(SOON).unwrap();
    drop((mirror, others));
    assert_eq!(ids(&store.read_back()), (0..1_500).collect::<Vec<_>>());
}

#[test]
fn what_comes_and_goes_within_a_batch_never_goes_there() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);

    for id in 0..100 {
        let held = put(&mirror, id, file());
        mirror.gone(EntryId(id));
        drop(held);
    }
    mirror.flush(SOON).unwrap();

    assert_eq!(mirror.standing().told, 0);
}

#[test]
fn an_entry_that_is_closed_before_it_is_told_so_holds_nothing_up() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let stays = put(&mirror, 1, file());
    drop(put(&mirror, 2, file()));

    mirror.flush(SOON).unwrap();

    assert_eq!(mirror.standing().entries, 1);
    drop((mirror, stays));
    assert_eq!(ids(&store.read_back()), [1]);
}

#[test]
fn the_store_is_told_of_bundles_and_not_of_entries() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let held: Vec<_> = (0..3_000).map(|id| put(&mirror, id, file())).collect();

    mirror.flush(SOON).unwrap();

    let standing = mirror.standing();
    assert_eq!((standing.entries, standing.waiting, standing.behind_usec), (3_000, 0, 0));
    assert!(standing.bundles <= 2 * 3_000 / BUNDLE_ENTRIES + 6);
    assert_eq!(standing.told, standing.bundles as u64);
    drop(held);
}

#[test]
fn what_the_store_has_no_room_for_waits_and_is_told() {
    let store = FakeStore::default();
    let mirror = store.mirror(Room { bundles: 1, in_flight: usize::MAX });
    let held: Vec<_> = (0..1_100).map(|id| put(&mirror, id, file())).collect();

    let behind = mirror.flush(Duration::from_millis(300));

    // What does not fit waits, and at most the message that it would have been in.
    let waiting = behind.unwrap_err().waiting;
    assert!((92..92 + MESSAGE_ENTRIES).contains(&waiting), "{waiting}");
    assert!(mirror.standing().behind_usec >= 300_000);

    (0..400).for_each(|id| mirror.gone(EntryId(id)));
    mirror.flush(SOON).unwrap();
    drop((mirror, held));
    assert_eq!(ids(&store.read_back()), (400..1_100).collect::<Vec<_>>());
}

#[test]
fn a_store_that_fails_is_tried_again() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    store.0.lock().unwrap().fails = true;
    let held = put(&mirror, 1, file());
    assert_eq!(mirror.flush(Duration::from_millis(200)), Err(Behind { waiting: 1 }));

    store.0.lock().unwrap().fails = false;

    mirror.flush(SOON).unwrap();
    drop((mirror, held));
    assert_eq!(ids(&store.read_back()), [1]);
}

#[test]
fn the_bundles_of_an_earlier_life_go_when_all_is_in_new_ones() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let held: Vec<_> = (0..300).map(|id| put(&mirror, id, file())).collect();
    mirror.flush(SOON).unwrap();
    drop((mirror, held));

    let old = store.claim();
    let names = old.names.clone();
    let life =
        names.iter().filter_map(|name| bundle::parse(name)).map(|(life, _)| life).max().unwrap()
            + 1;
    let mirror = Mirror::start(store.clone(), encode, life, PLENTY).unwrap();
    let held: Vec<_> = store.read_back().into_iter().map(|(id, fd)| put(&mirror, id, fd)).collect();
    mirror.retire(old);
    mirror.flush(SOON).unwrap();

    let stored = store.names();
    assert!(!stored.is_empty() && stored.iter().all(|name| !names.contains(name)), "{stored:?}");
    drop((mirror, held));
    assert_eq!(ids(&store.read_back()), (0..300).collect::<Vec<_>>());
}

#[test]
fn sockets_survive_in_a_bundle_whoever_else_is_gone() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (here, there) = UnixStream::pair().unwrap();
    let listening = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let fds = [here.into(), there.into(), listening];
    let held: Vec<_> = (0..).zip(fds).map(|(id, fd)| put(&mirror, id, fd)).collect();
    mirror.flush(SOON).unwrap();

    drop((mirror, held));
    // Closing any Unix socket makes the kernel look for sockets that are in flight alone.
    (0..100).for_each(|_| drop(UnixStream::pair().unwrap()));
    let mut found = store.read_back();

    let listener = UnixListener::from(found.remove(2).1);
    let _caller = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    let (mut there, mut here) =
        (UnixStream::from(found.remove(1).1), UnixStream::from(found.remove(0).1));
    here.write_all(b"x").unwrap();
    there.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_path_descriptor_and_two_names_for_one_file_are_mirrored_as_they_are() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let path = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let one = file();
    let same = dup(&one).unwrap();
    let expected = inode(&one);
    let held = [put(&mirror, 0, path), put(&mirror, 1, one), put(&mirror, 2, same)];
    mirror.flush(SOON).unwrap();

    drop((mirror, held));
    let found = store.read_back();

    assert!(fcntl_getfl(&found[0].1).unwrap().contains(OFlags::PATH));
    assert_eq!([inode(&found[1].1), inode(&found[2].1)], [expected; 2]);
}

#[test]
fn a_close_that_hangs_holds_up_no_other_entry() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let _peer;
    let hangs = {
        let (fd, peer) = socket_whose_last_close_waits();
        _peer = peer;
        put(&mirror, 0, fd)
    };
    mirror.flush(SOON).unwrap();
    mirror.gone(EntryId(0));
    drop(hangs);

    for id in 1..4 {
        let (reader, writer) = pipe().unwrap();
        let writer = put(&mirror, id, writer);
        mirror.flush(SOON).unwrap();
        mirror.gone(EntryId(id));
        drop(writer);
        assert!(hangs_up(&reader, Duration::from_secs(2)));
    }
}

#[test]
fn a_damaged_message_is_told_and_the_others_are_read() {
    let bundle = Bundle::new().unwrap();
    let file = file();
    bundle.append(&[b"first".to_vec()], &[file.as_fd()]).unwrap();
    bundle.append_garbage();
    bundle.append(&[b"third".to_vec()], &[file.as_fd()]).unwrap();
    let mut records = Vec::new();

    let receivers = [dup(bundle.receiver()).unwrap()];
    let unread = bundle::read_back(&receivers, |record, _| records.push(record));

    assert_eq!(records, [b"first", b"third"]);
    let reason = bundle::Reason::Damaged("it has no descriptors");
    assert_eq!(unread, [bundle::Unread { bundle: 0, number: 1, reason }]);
}

#[test]
fn descriptors_for_which_there_is_no_room_are_told_and_not_lost() {
    const ALONE: &str = "FDSTASH_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return no_room_alone();
    }

    let outcome = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "mirror::tests::descriptors_for_which_there_is_no_room_are_told_and_not_lost",
        ])
        .env(ALONE, "1")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.contains("1 passed"), "{said}");
}

fn no_room_alone() {
    let bundle = Bundle::new().unwrap();
    let file = file();
    bundle.append(&vec![b"x".to_vec(); 200], &[file.as_fd(); 200]).unwrap();
    let receivers = [dup(bundle.receiver()).unwrap()];
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..before }).unwrap();
    let mut found = Vec::new();

    let unread = bundle::read_back(&receivers, |_, fd| found.push(fd));
    assert_eq!((found.len(), unread.len()), (0, 1));
    assert_eq!(unread[0].reason, bundle::Reason::NoRoom);

    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(bundle::read_back(&receivers, |_, fd| found.push(fd)), []);
    assert_eq!(found.len(), 200);
}

#[test]
fn a_bundle_s_name_tells_its_life() {
    assert_eq!(bundle::parse(&bundle::name(7, BundleId(12))), Some((7, 12)));
    assert_eq!(bundle::parse("varlink"), None);
    assert_eq!(bundle::parse("fdstash.7.x"), None);
}

#[test]
#[ignore = "it measures, and proves nothing"]
fn measure() {
    let store = FakeStore::default();
    let mirror = store.mirror(PLENTY);
    let file = file();
    let count = 9_500;
    let held: Vec<_> = (0..count).map(|_| Arc::new(dup(&file).unwrap())).collect();

    let began = Instant::now();
    for (id, fd) in (0..).zip(&held) {
        mirror.put(EntryId(id), Arc::downgrade(fd), details(id));
    }
    println!("to tell of one put: {:?}", began.elapsed() / count);
    let began = Instant::now();
    mirror.flush(SOON).unwrap();
    println!(
        "to mirror {count} at once: {:?}, each {:?}",
        began.elapsed(),
        began.elapsed() / count
    );

    let began = Instant::now();
    (0..10).for_each(|number| mirror.gone(EntryId(number * 950 + 400)));
    mirror.flush(SOON).unwrap();
    println!("to take 10 out, one of each bundle: {:?}", began.elapsed());

    let began = Instant::now();
    for id in 0..20 {
        mirror.put(EntryId(20_000 + id), Arc::downgrade(&held[0]), details(20_000 + id));
        mirror.flush(SOON).unwrap();
    }
    println!("to mirror one alone: {:?}", began.elapsed() / 20);

    let began = Instant::now();
    let mut found = Vec::new();
    let receivers: Vec<OwnedFd> = store.claim().ends;
    assert_eq!(bundle::read_back(&receivers, |_, fd| found.push(fd)), []);
    println!("to read {} back: {:?}", found.len(), began.elapsed());
}

/// Keeps what it is given, for whoever has a clone of it.
#[derive(Debug, Clone, Default)]
struct FakeStore(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    bundles: BTreeMap<String, OwnedFd>,
    fails: bool,
}

impl Store for FakeStore {
    fn store(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        if kept.fails {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert!(kept.bundles.insert(name.to_owned(), dup(fd)?).is_none(), "{name} is taken");
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().bundles.remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn barrier(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn retired(&mut self) {}
}

impl FakeStore {
    fn mirror(&self, room: Room) -> Mirror<OwnedFd> {
        Mirror::start(self.clone(), encode, 1, room).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().bundles.keys().cloned().collect()
    }

    /// What a new process is started with.
    fn claim(&self) -> Old {
        let kept = self.0.lock().unwrap();
        let names = kept.bundles.keys().cloned().collect();
        Old { names, ends: kept.bundles.values().map(|fd| dup(fd).unwrap()).collect(), room: 100 }
    }

    /// What is in the store, each entry once, in the order of their ids.
    fn read_back(&self) -> Vec<(u64, OwnedFd)> {
        let mut found = BTreeMap::new();
        let receivers: Vec<OwnedFd> = self.claim().ends;
        let unread = bundle::read_back(&receivers, |record, fd| {
            let id: [u8; 8] = record[..8].try_into().unwrap();
            found.insert(u64::from_le_bytes(id), fd);
        });
        assert_eq!(unread, []);
        found.into_iter().collect()
    }
}

fn put(mirror: &Mirror<OwnedFd>, id: u64, fd: impl Into<OwnedFd>) -> Arc<OwnedFd> {
    let fd = Arc::new(fd.into());
    mirror.put(EntryId(id), Arc::downgrade(&fd), details(id));
    fd
}

/// About as long as real ones are.
fn encode(details: &Details) -> Vec<u8> {
    let mut record = details.id.0.to_le_bytes().to_vec();
    record.extend([b'x'; 250]);
    record
}

fn ids(found: &[(u64, OwnedFd)]) -> Vec<u64> {
    found.iter().map(|(id, _)| *id).collect()
}

fn file() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).unwrap().st_ino
}

/// Whether the other end of a pipe is closed everywhere, within a time.
fn hangs_up(reader: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    let mut polled = [PollFd::new(reader, PollFlags::empty())];
    poll(&mut polled, Some(&limit)).unwrap() == 1
}

/// A socket whose last close waits for seconds, as that of a file does whose server is dead; and
/// its peer, which reads nothing.
fn socket_whose_last_close_waits() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65_536]).is_ok() {}
    set_socket_linger(&socket, Some(Duration::from_secs(4))).unwrap();
    (socket.into(), peer)
}

fn details(id: u64) -> Arc<Details> {
    let facts = Facts {
        kind: Kind::Regular,
        access: Access::Read,
        flags: Flags::NONE,
        device: 1,
        inode: id,
        target: None,
    };
    Arc::new(Details {
        id: EntryId(id),
        name: Name::new(&format!("entry-{id}")).unwrap(),
        facts,
        may_reopen: Access::Read,
        giver: Peer { uid: 0, gid: 0, pid: 1 },
        given_at_usec: 0,
        notes: None,
        revision: id,
    })
}
