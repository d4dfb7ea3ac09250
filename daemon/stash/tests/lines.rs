//! The lines of a journal, as bytes: what this version writes, every later one reads; and what nobody
//! has written is refused, whatever it is.

use std::sync::Arc;

use fdstash_proto::{
    Access, Flags, Keeper, Kind, Labels, Mode, Name, Pattern, Peer, Share, Taking, Ticket,
    proptest as proto,
};
use fdstash_stash::{
    Begin, Carried, ConnectionId, Details, Doing, Done, Effect, Effects, Ends, EntryId, Expiry,
    Facts, Kept, Limits, Line, Notes, Number, Record, Replay, Stash, Unreadable, write_handover,
};
use proptest::{collection, prelude::*, sample::Index};

/// A journal of version 1 with every field in use, a line each. These bytes are never changed: where
/// they cannot be read any more, an upgrade loses what is kept.
const JOURNAL_1: [&str; 4] = [
    "010103ac02ffffffffffffffffff01808080808020",
    "01020205ac0280808080802009766d372f6469736b3003033f81808040ffffffffffffffffff0101112f\
     6465762f766d372d6469736b3020c3bc01e80764ffffffff0f8080f9c0c1c4820301c096b102c0dadb24\
     0109010200e90701ffffffff0f0205656d7074790002766d05736576656ef0a204ad0200036c6f670502\
     0000000004000001000000000000000201ffffffffffffffffff010109e80707376633612e3132020976\
     6d372f6469736b30036c6f67818ece1c",
    "01020107ad0200036c6f6705020000000004000001000000000000000000",
    "010305010c0100010000020c020205766d372f2a020a7b226d6574686f64223a020d0e030c0101020976\
     6d372f6469736b30036c6f67018080808020030a7b226d6574686f64223a020d0e040c03010209766d37\
     2f6469736b30036c6f67028080808020040a7b226d6574686f64223a020d0ef4030c01010209766d372f\
     6469736b30036c6f67038080808020f4030a7b226d6574686f64223a020d0e",
];

/// The same of an entry that is kept elsewhere, together with its descriptor.
const DETAILS_1: &str = "01ac0280808080802009766d372f6469736b3003033f81808040ffffffffffffffffff0101112f646576\
     2f766d372d6469736b3020c3bc01e80764ffffffff0f8080f9c0c1c4820301c096b102c0dadb24010901\
     0200e90701ffffffff0f0205656d7074790002766d05736576656e";

#[test]
fn a_journal_of_version_1_is_read_for_ever() {
    let [begin, change, empty, handover] = JOURNAL_1.map(|hex| Line::read(&bytes_of(hex)).unwrap());

    let Line::Begin(begin) = begin else { panic!("{begin:?}") };
    assert_eq!(begin, the_begin());
    let Line::Change(change) = change else { panic!("{change:?}") };
    assert_same(&change, &the_record());
    let Line::Change(empty) = empty else { panic!("{empty:?}") };
    assert_same(&empty, &Record { put: vec![kept(7, plain())], gone: vec![], done: None });
    let Line::Handover(handover) = handover else { panic!("{handover:?}") };
    assert_eq!(handover, the_carried());
    assert_eq!(Details::read(&bytes_of(DETAILS_1)).unwrap(), details());
}

#[test]
fn this_version_writes_version_1() {
    let plain = Record { put: vec![kept(7, plain())], gone: vec![], done: None };
    let written = [
        line(|bytes| the_begin().write(bytes)),
        line(|bytes| the_record().write(|number| *number, bytes)),
        line(|bytes| plain.write(|number| *number, bytes)),
        line(|bytes| write_handover(&the_carried(), bytes)),
    ];

    assert_eq!(written.map(|line| hex_of(&line)), JOURNAL_1);
    assert_eq!(hex_of(&line(|bytes| details().write(bytes))), DETAILS_1);
}

#[test]
fn what_is_cut_short_or_goes_on_is_refused() {
    for hex in JOURNAL_1 {
        let line = bytes_of(hex);
        for cut in 0..line.len() {
            assert!(Line::read(&line[..cut]).is_err(), "{cut} bytes of {hex}");
        }
        let longer: Vec<_> = line.iter().copied().chain([0]).collect();
        assert_eq!(Line::read(&longer).unwrap_err(), Unreadable::Strange, "{hex}");
    }
    let details = bytes_of(DETAILS_1);
    for cut in 0..details.len() {
        assert!(Details::read(&details[..cut]).is_err(), "{cut} bytes of the details");
    }
}

#[test]
fn another_version_and_another_kind_are_refused() {
    for hex in JOURNAL_1.into_iter().chain([DETAILS_1]) {
        let mut line = bytes_of(hex);
        line[0] = 2;
        assert_eq!(Line::read(&line).unwrap_err(), Unreadable::Version(2));
        assert_eq!(Details::read(&line).unwrap_err(), Unreadable::Version(2));
    }
    for kind in (0..=u8::MAX).filter(|kind| !(1..=3).contains(kind)) {
        assert_eq!(Line::read(&[1, kind]).unwrap_err(), Unreadable::Strange);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in collection::vec(any::<u8>(), 0..200), kind in 0u8..5) {
        read(&bytes);
        bytes.splice(0..0, [1, kind]);
        read(&bytes);
    }

    #[test]
    fn any_change_of_a_line_is_read_or_refused(
        which in 0..JOURNAL_1.len(),
        changes in collection::vec((any::<Index>(), any::<u8>(), 0u8..3), 1..4),
    ) {
        let mut line = bytes_of(JOURNAL_1[which]);
        for (at, byte, how) in changes {
            let at = at.index(line.len());
            match how {
                0 => line[at] = byte,
                1 => line.insert(at, byte),
                _ => {
                    line.remove(at);
                }
            }
        }

        read(&line);
    }

    #[test]
    fn a_record_comes_back_as_it_was(
        put in collection::vec((any::<Number>(), any_details()), 0..4),
        gone in collection::vec(any::<u64>().prop_map(EntryId), 0..4),
        done in proptest::option::of(any_done()),
    ) {
        let put = put.into_iter().map(|(number, details)| kept(number, details)).collect();
        let record = Record { put, gone, done };

        let Ok(Line::Change(read)) = Line::read(&line(|bytes| record.write(|it| *it, bytes))) else {
            panic!("a change")
        };

        assert_same(&read, &record);
    }
}

#[test]
fn of_two_entries_under_one_name_the_last_comes_back_and_the_other_is_closed() {
    let [first, last] = [3, 4].map(|id| Details { id: EntryId(id), ..plain() });
    let put = vec![kept(7, first), kept(8, last)];
    let mut replay = Replay::default();
    replay.add(Line::Change(Record { put, gone: vec![], done: None }));

    let (stash, effects) = restored(replay);

    assert_eq!(stash.kept().map(|kept| *kept.fd).collect::<Vec<_>>(), [8]);
    assert_eq!(stash.count(), 1);
    let [Effect::Close(closed)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(closed[..], [Arc::new(7)]);
}

#[test]
fn counting_never_goes_back() {
    let mut replay = Replay::default();
    replay.add(Line::Begin(Begin { restores: 2, last_entry: 5, ..Begin::default() }));
    let put = vec![kept(7, Details { id: EntryId(9), revision: 8, ..plain() })];
    replay.add(Line::Change(Record { put, gone: vec![], done: None }));
    replay.add(Line::Begin(Begin { restores: 1, last_connection: 4, ..Begin::default() }));

    let (stash, _) = restored(replay);

    let counted = Begin { restores: 3, last_entry: 9, last_connection: 4, revision: 8 };
    assert_eq!(stash.begin_journal(), counted);
}

#[test]
fn what_cannot_be_counted_on_is_no_fault() {
    let highest = Begin {
        restores: u64::MAX,
        last_entry: u64::MAX,
        last_connection: u64::MAX,
        revision: u64::MAX,
    };
    let mut replay = Replay::default();
    replay.add(Line::Begin(highest));
    replay.add(Line::Change(Record { put: vec![], gone: vec![EntryId(1)], done: None }));

    let (stash, _) = restored(replay);

    assert_eq!(stash.begin_journal(), highest);
}

fn restored(replay: Replay) -> (Stash<Number>, Effects<Number>) {
    let limits = Limits::new(10, 10, 20);
    Stash::restore(limits, Keeper::Nobody, replay, |kept| Some(Arc::clone(&kept.fd)))
}

/// Reads what may be anything, which takes no more room than it has bytes.
fn read(bytes: &[u8]) {
    let most = match Line::read(bytes) {
        Ok(Line::Begin(_)) | Err(_) => 0,
        Ok(Line::Change(Record { put, gone, done })) => put.len() + gone.len() + done.iter().len(),
        Ok(Line::Handover(carried)) => carried.len(),
    };
    assert!(most <= bytes.len());
    let _ = Details::read(bytes);
}

fn any_details() -> impl Strategy<Value = Details> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let expiry = proptest::option::of((any::<u64>(), any::<u64>()));
    let of = proptest::option::of(any::<u64>());
    // An entry has what of this is not random here.
    (proto::entry(), numbers, expiry, of, proto::gift(name("x"), ()), any::<i32>()).prop_map(
        |(entry, (id, revision, device, inode, given_at_usec), expiry, of, gift, pid)| Details {
            id: EntryId(id),
            name: entry.name,
            facts: Facts {
                kind: entry.kind,
                access: entry.access,
                flags: entry.flags,
                device,
                inode,
                target: entry.target.map(Into::into),
            },
            may_reopen: entry.may_reopen,
            giver: Peer { pid, ..entry.giver },
            given_at_usec,
            notes: Notes {
                share: gift.share,
                labels: entry.labels,
                ends: Ends {
                    expiry: expiry.map(|(after_usec, boot_usec)| Expiry { after_usec, boot_usec }),
                    ephemeral_of: of.map(ConnectionId),
                    close_on_hangup: gift.close_on_hangup,
                },
            }
            .into_box(),
            revision,
        },
    )
}

fn any_done() -> impl Strategy<Value = Done> {
    let replaced = collection::vec(proto::name(), 0..4);
    (any::<u64>(), any::<u32>(), proto::ticket(), replaced, any::<u64>()).prop_map(
        |(by, uid, ticket, replaced, until_boot_usec)| Done {
            by: ConnectionId(by),
            uid,
            ticket,
            replaced,
            until_boot_usec,
        },
    )
}

fn assert_same(one: &Record<Number>, other: &Record<Number>) {
    let put = |record: &Record<Number>| {
        let put = record.put.iter().map(|kept| (*kept.fd, Details::clone(&kept.details)));
        put.collect::<Vec<_>>()
    };
    assert_eq!(put(one), put(other));
    assert_eq!((&one.gone, &one.done), (&other.gone, &other.done));
}

fn the_begin() -> Begin {
    Begin { restores: 3, last_entry: 300, last_connection: u64::MAX, revision: 1 << 40 }
}

fn the_record() -> Record<Number> {
    Record {
        put: vec![kept(5, details()), kept(70_000, plain())],
        gone: vec![EntryId(1), EntryId(u64::MAX)],
        done: Some(Done {
            by: ConnectionId(9),
            uid: 1000,
            ticket: Ticket::new("7f3a.12").expect("as it should be"),
            replaced: vec![name("vm7/disk0"), name("log")],
            until_boot_usec: 60_000_001,
        }),
    }
}

fn the_carried() -> Vec<Carried> {
    let names = vec![name("vm7/disk0"), name("log")];
    let waiting =
        |taking| Doing::Waiting { names: names.clone(), taking, until_boot_usec: 1 << 33 };
    let one = |id, mode, doing| Carried {
        id: ConnectionId(id),
        number: 12,
        mode,
        doing,
        lost: id,
        bytes: b"{\"method\":".to_vec(),
        fds: vec![13, 14],
    };
    vec![
        Carried { bytes: vec![], fds: vec![], ..one(1, Mode::Once, Doing::Nothing) },
        one(2, Mode::More, Doing::Watching(Pattern::new("vm7/*").expect("as it should be"))),
        one(3, Mode::Once, waiting(Taking::Move)),
        one(4, Mode::Oneway, waiting(Taking::Copy)),
        one(500, Mode::Once, waiting(Taking::Fresh)),
    ]
}

fn details() -> Details {
    let flags = [Flags::DIRECT, Flags::SYNC, Flags::DSYNC, Flags::NONBLOCK, Flags::NOATIME];
    Details {
        id: EntryId(300),
        name: name("vm7/disk0"),
        facts: Facts {
            kind: Kind::Block,
            access: Access::ReadWrite,
            flags: flags.into_iter().fold(Flags::APPEND, |all, flag| all.with(flag, true)),
            device: 0x0800_0001,
            inode: u64::MAX,
            target: Some("/dev/vm7-disk0 \u{fc}".into()),
        },
        may_reopen: Access::Read,
        giver: Peer { uid: 1000, gid: 100, pid: -1 },
        given_at_usec: 1_700_000_000_000_000,
        notes: Notes {
            share: Share { uids: vec![0, 1001], gids: vec![u32::MAX] },
            labels: Labels::from([("vm".into(), "seven".into()), ("empty".into(), String::new())]),
            ends: Ends {
                expiry: Some(Expiry { after_usec: 5_000_000, boot_usec: 77_000_000 }),
                ephemeral_of: Some(ConnectionId(9)),
                close_on_hangup: true,
            },
        }
        .into_box(),
        revision: 1 << 40,
    }
}

/// An entry that has nothing but what every entry has.
fn plain() -> Details {
    Details {
        id: EntryId(301),
        name: name("log"),
        facts: Facts {
            kind: Kind::Fifo,
            access: Access::Write,
            flags: Flags::NONE,
            device: 0,
            inode: 0,
            target: None,
        },
        may_reopen: Access::Path,
        giver: Peer { uid: 0, gid: 0, pid: 1 },
        given_at_usec: 0,
        notes: None,
        revision: 0,
    }
}

fn kept(number: Number, details: Details) -> Kept<Number> {
    Kept { fd: Arc::new(number), details: Arc::new(details) }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("as it should be")
}

fn line(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).expect("as it should be"), 16)
            .expect("as it should be")
    };
    digits.map(byte).collect()
}
