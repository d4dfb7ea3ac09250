//! Strategies for names, calls and replies, for the property tests of every crate.

use proptest::{collection, option, prelude::*, sample};

use crate::{
    Access, Call, Change, Clash, Entry, Explanation, Flags, Gift, Handed, Info, Keeper, Kind,
    Labels, Mirror, Name, Notice, Pattern, Peer, Reason, Refusal, Reopening, Reply, Share,
    Statistics, Taking, Ticket, Verdict,
};

/// Any name.
pub fn name() -> impl Strategy<Value = Name> {
    "[ -9;-~]{1,40}".prop_filter_map("a name", |text| Name::new(&text).ok())
}

/// One of a few names, so that calls meet.
pub fn common_name() -> impl Strategy<Value = Name> {
    sample::select(vec!["a", "b", "vm/disk0", "vm/disk1"])
        .prop_filter_map("a name", |text| Name::new(text).ok())
}

/// Any ticket.
pub fn ticket() -> impl Strategy<Value = Ticket> {
    "[!-~]{1,64}".prop_filter_map("a ticket", |text| Ticket::new(&text).ok())
}

/// One of a few tickets, so that calls are repeated.
pub fn common_ticket() -> impl Strategy<Value = Ticket> {
    sample::select(vec!["1", "2", "3", "4", "5", "6"])
        .prop_filter_map("a ticket", |text| Ticket::new(text).ok())
}

/// Any access.
pub fn access() -> impl Strategy<Value = Access> {
    sample::select(vec![Access::Read, Access::Write, Access::ReadWrite, Access::Path])
}

/// A gift of the given descriptor.
pub fn gift<F: Clone + std::fmt::Debug>(name: Name, fd: F) -> impl Strategy<Value = Gift<F>> {
    (
        prop::bool::weighted(0.1),
        option::weighted(0.2, access()),
        option::weighted(0.2, 0u64..1000),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        share(),
        labels(),
    )
        .prop_map(
            move |(fresh, may_reopen, expire_usec, ephemeral, close_on_hangup, share, labels)| {
                Gift {
                    fresh,
                    may_reopen,
                    expire_usec,
                    ephemeral,
                    close_on_hangup,
                    share,
                    labels,
                    ..Gift::new(name.clone(), fd.clone())
                }
            },
        )
}

/// A reopening of an entry; never by path.
pub fn reopening(name: Name) -> impl Strategy<Value = Reopening> {
    let maybe = || option::weighted(0.3, any::<bool>());
    let accesses = || option::weighted(0.3, access());
    (accesses(), accesses(), maybe(), maybe(), maybe(), maybe(), maybe(), maybe()).prop_map(
        move |(access, hand_out, direct, sync, dsync, append, nonblock, noatime)| Reopening {
            access,
            hand_out,
            direct,
            sync,
            dsync,
            append,
            nonblock,
            noatime,
            ..Reopening::new(name.clone())
        },
    )
}

/// Any call over names and tickets of the given kinds, with `()` for each descriptor.
pub fn call<S, T>(names: impl Fn() -> S, tickets: impl Fn() -> T) -> impl Strategy<Value = Call<()>>
where
    S: Strategy<Value = Name> + 'static,
    T: Strategy<Value = Ticket> + 'static,
{
    let ticket = || option::weighted(0.5, tickets());
    let distinct = |names: S| collection::btree_set(names, 0..4);
    let gifts = distinct(names())
        .prop_flat_map(|names| names.into_iter().map(|name| gift(name, ())).collect::<Vec<_>>());
    let reopenings = distinct(names())
        .prop_flat_map(|names| names.into_iter().map(reopening).collect::<Vec<_>>());
    let vec = move |names| distinct(names).prop_map(|names| names.into_iter().collect::<Vec<_>>());
    let taking = sample::select(vec![Taking::Move, Taking::Move, Taking::Copy, Taking::Fresh]);
    let clash = prop::bool::weighted(0.2)
        .prop_map(|refuse| if refuse { Clash::Refuse } else { Clash::Replace });
    let timeout = prop_oneof![4 => Just(0u64), 1 => 1u64..1000];
    prop_oneof![
        6 => (gifts, clash, ticket())
            .prop_map(|(gifts, clash, ticket)| Call::Give { gifts, clash, ticket }),
        6 => (vec(names()), taking, timeout).prop_map(|(names, taking, timeout_usec)| {
            Call::Take { names, taking, timeout_usec }
        }),
        3 => (vec(names()), ticket()).prop_map(|(names, ticket)| Call::Close { names, ticket }),
        3 => reopenings.prop_map(|reopenings| Call::Reopen { reopenings }),
        2 => Just(Call::Begin),
        2 => ticket().prop_map(|ticket| Call::Commit { ticket }),
        1 => Just(Call::Rollback),
        1 => Just(Call::List { pattern: Pattern::all() }),
        1 => Just(Call::Watch { pattern: Pattern::all() }),
        1 => Just(Call::GetStatistics),
    ]
}

fn share() -> impl Strategy<Value = Share> {
    // The last is nobody's.
    let id = || prop_oneof![9 => 0u32..4, 1 => Just(u32::MAX)];
    (collection::vec(id(), 0..3), collection::vec(id(), 0..3))
        .prop_map(|(uids, gids)| Share { uids, gids })
}

/// Any entry, as List and Watch show it.
pub fn entry() -> impl Strategy<Value = Entry> {
    (
        (name(), kind(), access(), flags(), flags(), access()),
        (option::of("[ -~]{1,20}"), count(), count(), peer(), count(), option::of(count())),
        (count(), option::of(peer()), labels()),
        (option::of(share()), option::of(any::<bool>()), option::of(any::<bool>())),
    )
        .prop_map(|(what, whence, how, terms)| {
            let (name, kind, access, flags, drifted, may_reopen) = what;
            let (target, device, inode, giver, given_at_usec, expires_at_usec) = whence;
            let (revision, held_by, labels) = how;
            let (share, ephemeral, close_on_hangup) = terms;
            Entry {
                name,
                kind,
                access,
                flags,
                drifted,
                may_reopen,
                target,
                device,
                inode,
                giver,
                given_at_usec,
                expires_at_usec,
                revision,
                held_by,
                labels,
                share,
                ephemeral,
                close_on_hangup,
            }
        })
}

/// Any reply, with `()` for each descriptor.
pub fn reply() -> impl Strategy<Value = Reply<()>> {
    let handed = collection::btree_set(name(), 0..4).prop_map(|names| {
        names.into_iter().map(|name| Handed { name, fd: () }).collect::<Vec<_>>()
    });
    prop_oneof![
        2 => Just(Reply::Done),
        1 => collection::vec(name(), 0..3).prop_map(|replaced| Reply::Given { replaced }),
        4 => handed.prop_map(Reply::Handed),
        2 => collection::vec(entry(), 0..3).prop_map(Reply::Listed),
        2 => notice().prop_map(Reply::Notice),
        1 => statistics().prop_map(Reply::Statistics),
        1 => explanation().prop_map(Reply::Explained),
        1 => "[0-9.]{1,8}".prop_map(|version| Reply::Info(Info::of_fdstash(&version))),
        1 => "[ -~\n]{0,40}".prop_map(Reply::Description),
    ]
}

/// Any refusal.
pub fn refusal() -> impl Strategy<Value = Refusal> {
    let text = || "[ -~]{0,20}";
    prop_oneof![
        text().prop_map(|name| Refusal::NotFound { name }),
        text().prop_map(|name| Refusal::AlreadyExists { name }),
        (text(), peer()).prop_map(|(name, held_by)| Refusal::Busy { name, held_by }),
        text().prop_map(|reason| Refusal::TransactionState { reason }),
        (text(), text()).prop_map(|(name, reason)| Refusal::InvalidName { name, reason }),
        (text(), text()).prop_map(|(name, verb)| Refusal::AccessDenied { name, verb }),
        (text(), 1i32..200, text(), text()).prop_map(|(name, errno, errno_name, message)| {
            Refusal::ReopenFailed { name, errno, errno_name, message }
        }),
        (text(), 0i64..1000).prop_map(|(limit, value)| Refusal::LimitExceeded { limit, value }),
        (0i64..300, 0i64..300).prop_map(|(expected, received)| {
            Refusal::FileDescriptorMissing { expected, received }
        }),
        text().prop_map(|reason| Refusal::NotDurable { reason }),
        text().prop_map(|interface| Refusal::InterfaceNotFound { interface }),
        text().prop_map(|method| Refusal::MethodNotFound { method }),
        text().prop_map(|method| Refusal::MethodNotImplemented { method }),
        text().prop_map(|parameter| Refusal::InvalidParameter { parameter }),
        Just(Refusal::PermissionDenied),
        Just(Refusal::ExpectedMore),
    ]
}

fn notice() -> impl Strategy<Value = Notice> {
    let change = sample::select(vec![
        Change::Given,
        Change::Replaced,
        Change::Taken,
        Change::Closed,
        Change::Reopened,
        Change::Expired,
        Change::HungUp,
    ]);
    prop_oneof![
        1 => Just(Notice::Standing),
        1 => count().prop_map(Notice::Lost),
        3 => (change, entry()).prop_map(|(change, entry)| {
            Notice::Changed { change, entry: Box::new(entry) }
        }),
    ]
}

fn statistics() -> impl Strategy<Value = Statistics> {
    let keepers = vec![Keeper::Process, Keeper::ProcessAndSystemd, Keeper::Nobody];
    (sample::select(keepers), collection::vec(count(), 12)).prop_map(|(keeper, counts)| {
        let count = |at: usize| counts.get(at).copied().unwrap_or_default();
        Statistics {
            entries: count(0),
            max_entries: count(1),
            connections: count(2),
            transactions: count(3),
            keeper,
            restores: count(4),
            given: count(5),
            taken: count(6),
            copied: count(7),
            closed: count(8),
            reopened: count(9),
            expired: count(10),
            refused: count(11),
            mirror: (count(0) % 2 == 0).then(|| Mirror {
                bundles: count(1),
                puts: count(2),
                entries: count(3),
                waiting: count(4),
                behind_usec: count(5),
            }),
        }
    })
}

fn explanation() -> impl Strategy<Value = Explanation> {
    let verdicts = vec![Verdict::Allowed, Verdict::Denied, Verdict::Hidden];
    let reasons = vec![Reason::Root, Reason::Allow, Reason::Reserve, Reason::Nothing];
    let rule = option::of(("[ -~]{1,20}", any::<u32>()));
    (sample::select(verdicts), sample::select(reasons), rule).prop_map(|(verdict, reason, rule)| {
        let (file, line) = rule.unzip();
        Explanation { verdict, reason, file, line }
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    sample::select(vec![
        Kind::Regular,
        Kind::Directory,
        Kind::Block,
        Kind::Character,
        Kind::Fifo,
        Kind::Socket,
        Kind::Anonymous,
    ])
}

fn flags() -> impl Strategy<Value = Flags> {
    const EACH: [Flags; 6] =
        [Flags::DIRECT, Flags::SYNC, Flags::DSYNC, Flags::APPEND, Flags::NONBLOCK, Flags::NOATIME];
    any::<[bool; 6]>().prop_map(|on| {
        EACH.into_iter().zip(on).fold(Flags::NONE, |flags, (flag, on)| flags.with(flag, on))
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    (any::<u32>(), any::<u32>(), 0..i32::MAX).prop_map(|(uid, gid, pid)| Peer { uid, gid, pid })
}

fn labels() -> impl Strategy<Value = Labels> {
    collection::btree_map("[a-z]{1,4}", "[ -~]{0,8}", 0..3)
}

/// A number that the interface's `int` can hold.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..100, 0..=u64::MAX / 2]
}
