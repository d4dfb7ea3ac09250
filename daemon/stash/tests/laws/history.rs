//! Strategies for histories: what several peers, the kernel and the clock do to one stash.

use fdstash_proto::{Call, Pattern, Peer, Reopening, Taking, proptest as proto};
use fdstash_stash::{
    Allow, Limits, Origin, Quota, QuotaRule, Reserve, Rules, UNMAPPED, Verb, Who, Whom,
};
use proptest::{
    collection, option,
    prelude::*,
    sample,
    strategy::ValueTree,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

/// All times are multiples of it, so that things become due together, and exactly now.
const BEAT_USEC: u64 = 100;

/// A history, and the room in which it takes place.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) limits: Limits,
    pub(crate) steps: Vec<Step>,
}

/// One thing that happens. A number stands for one of those that are there when it happens.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// One of [`people`] connects.
    Connect(usize),
    /// A connection ends.
    Disconnect(usize),
    /// A connection without a call in progress calls.
    Call(usize, Call<()>),
    /// Files that were to be opened are open; or the one of this number cannot be opened.
    Opened(usize, Option<usize>),
    /// An answer with descriptors has left, or never will.
    Leave(usize, bool),
    /// What is polled has hung up.
    HangUp(usize),
    /// It is known where the descriptor of an entry points.
    Point(usize),
    /// Time passes, and the stash is told.
    Tick(u64),
    /// Time passes, and the stash is not told yet.
    Pass(u64),
    /// The journal is written anew.
    Rewrite,
    /// Other rules are in force from here on.
    Rules(Rules),
    /// Another stash goes on, with all connections that can go on.
    Upgrade,
}

/// Those who connect: two connections of one user, two users who share a group; two of whom nobody can say
/// who they are, one of them in that group; and root.
pub(crate) fn people() -> [Who; 6] {
    let who = |uid, gid, pid, groups: &[u32]| Who {
        peer: Peer { uid, gid, pid },
        groups: groups.to_vec().into(),
    };
    [
        who(1, 1, 100, &[]),
        who(1, 1, 101, &[3]),
        who(2, 2, 102, &[3]),
        who(UNMAPPED, UNMAPPED, 104, &[3]),
        who(UNMAPPED, 2, 105, &[UNMAPPED]),
        who(0, 0, 103, &[]),
    ]
}

/// Histories in a room so small that calls meet its walls.
pub(crate) fn histories() -> impl Strategy<Value = History> {
    let first = option::of(rules().prop_map(Step::Rules));
    (limits(), first, collection::vec(step(), 1..60)).prop_map(|(limits, first, steps)| {
        let steps = first.into_iter().chain(steps).collect();
        History { limits, steps }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let limits = (3usize..10, 10usize..14, 14usize..20, 1usize..3);
    // Whose quotas are large, meets the walls of the room.
    let quota = option::of(quota(Just(300).boxed()));
    let limits =
        (limits, prop_oneof![Just(0), Just(30usize)], sample::select(vec![0, 0, 0, 1]), quota);
    limits.prop_map(|((entries, connections, places, opens), root_share, owner, quota)| {
        let quota = quota.map_or(Quota::NONE, |quota| Quota {
            // Those who are there from the beginning find room.
            connections: quota.connections.unwrap_or(4).max(2),
            watches: quota.watches.unwrap_or(3).max(1),
            entries: quota.entries.unwrap_or(5),
            label_bytes: quota.label_bytes.unwrap_or(100),
            waits: quota.waits.unwrap_or(3),
            transactions: quota.transactions.unwrap_or(2),
            names: quota.names.unwrap_or(4),
            opens: quota.opens.unwrap_or(2),
            descriptors: 0,
            bytes: 0,
            idle_usec: quota.idle_usec.unwrap_or(u64::MAX),
        });
        Limits { opens, root_share, owner, quota, ..Limits::new(entries, connections, places) }
    })
}

thread_local! {
    /// Made once, since to make it takes as long as some steps.
    static STEP: BoxedStrategy<Step> = step().boxed();
}

/// The history that some bytes are the seeds of: the first four of the room, all others of a step each. So
/// who changes some bytes changes some steps, and all others stay as they are.
pub(crate) fn of_seeds(bytes: &[u8]) -> History {
    let (room, steps) = bytes.split_at(bytes.len().min(4));
    let step = |seed| STEP.with(|step| of_seed(step, seed));
    History {
        limits: of_seed(&limits(), room),
        steps: steps.chunks(4).take(32).map(step).collect(),
    }
}

fn of_seed<T>(strategy: &impl Strategy<Value = T>, seed: &[u8]) -> T {
    let seed = seed.iter().fold(1, |seed, byte| seed << 8 | u128::from(*byte));
    // Seeds that are near each other are to make steps that are not.
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_le_bytes();
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    strategy.new_tree(&mut runner).expect("a value").current()
}

fn step() -> impl Strategy<Value = Step> {
    let which = || 0usize..12;
    let call = || {
        let call = proto::call(proto::common_name, proto::common_ticket).prop_map(on_the_beat);
        (call, option::of(path())).prop_map(|(call, path)| by_path(call, path))
    };
    prop_oneof![
        20 => (which(), call()).prop_map(|(by, call)| Step::Call(by, call)),
        // Often enough that several wait for the same.
        4 => (which(), wait()).prop_map(|(by, call)| Step::Call(by, call)),
        4 => (which(), rotate()).prop_map(|(by, call)| Step::Call(by, call)),
        6 => (which(), option::weighted(0.3, 0usize..4)).prop_map(|(by, at)| Step::Opened(by, at)),
        6 => (which(), prop::bool::weighted(0.7)).prop_map(|(by, left)| Step::Leave(by, left)),
        1 => which().prop_map(Step::HangUp),
        1 => which().prop_map(Step::Point),
        1 => ticks().prop_map(Step::Tick),
        1 => (0u64..3).prop_map(|beats| Step::Pass(beats * BEAT_USEC)),
        1 => Just(Step::Rewrite),
        1 => rules().prop_map(Step::Rules),
        1 => Just(Step::Upgrade),
        1 => which().prop_map(Step::Connect),
        1 => which().prop_map(Step::Disconnect),
    ]
}

/// Rules over the people, the names and the paths that there are.
pub(crate) fn rules() -> impl Strategy<Value = Rules> {
    let id = || prop_oneof![9 => 0u32..4, 1 => Just(UNMAPPED)];
    let ids = move || collection::btree_set(id(), 0..4);
    let whom = || (ids(), ids()).prop_map(|(users, groups)| Whom { users, groups });
    let pattern = || {
        sample::select(vec!["*", "a", "vm/*", "?", "vm/disk1", "x*"])
            .prop_filter_map("a pattern", |text| Pattern::new(text).ok())
    };
    let names = || collection::vec(pattern(), 1..3);
    let verbs = || collection::btree_set(sample::select(Verb::ALL.to_vec()), 1..4);
    let below = || sample::select(vec!["/images", "/images/vm", "/"]).prop_map(Into::into);
    let allow = (whom(), names(), verbs(), collection::vec(below(), 1..3)).prop_map(
        |(whom, names, verbs, below)| Allow { whom, names, verbs, below, origin: origin() },
    );
    let reserve =
        (whom(), names()).prop_map(|(whom, names)| Reserve { whom, names, origin: origin() });
    let idle_usec = || (1u64..6).prop_map(|beats| beats * BEAT_USEC).boxed();
    let quota = (option::of(whom()), quota(idle_usec())).prop_map(|(whom, quota)| QuotaRule {
        whom,
        quota,
        origin: origin(),
    });
    // Or by path hardly anything would ever be opened.
    let broad = option::of(Just(Allow {
        whom: Whom { users: [0, 1, 2].into(), groups: [].into() },
        names: vec![Pattern::all()],
        verbs: [Verb::ReopenByPath].into(),
        below: vec!["/images".into()],
        origin: origin(),
    }));
    let (allow, reserve) = (collection::vec(allow, 0..6), collection::vec(reserve, 0..2));
    let quota = prop_oneof![2 => Just(Vec::new()), 1 => collection::vec(quota, 1..3)];
    (broad, allow, reserve, quota).prop_map(|(broad, allow, reserve, quota)| {
        let allow = broad.into_iter().chain(allow).collect();
        Rules { allow, reserve, quota }
    })
}

/// How much somebody may have of a few things, never much.
fn quota(idle_usec: BoxedStrategy<u64>) -> impl Strategy<Value = Quota<Option<u64>>> {
    let some = |most: u64| option::weighted(0.4, 0..most);
    let all = (some(6), some(5), some(40), some(4), some(3), some(3), some(3), some(5));
    (all, option::weighted(0.4, idle_usec)).prop_map(|(all, idle_usec)| {
        let (entries, connections, label_bytes, waits, watches, transactions, opens, names) = all;
        Quota {
            entries,
            connections,
            label_bytes,
            waits,
            watches,
            transactions,
            names,
            opens,
            descriptors: None,
            bytes: None,
            idle_usec,
        }
    })
}

fn origin() -> Origin {
    Origin { file: "policy.toml".into(), line: 1 }
}

/// A Reopen of one entry by path, and nothing else.
fn rotate() -> impl Strategy<Value = Call<()>> {
    (proto::common_name(), path()).prop_map(|(name, path)| {
        let path = Some(path.to_owned());
        Call::Reopen { reopenings: vec![Reopening { path, ..Reopening::new(name) }] }
    })
}

/// Where a Reopen may want another file, or may not.
fn path() -> impl Strategy<Value = &'static str> {
    sample::select(vec![
        "/images/vm/new",
        "/images//other",
        "/images/vm",
        "/imagesque",
        "images/vm",
    ])
}

/// The same call; a Reopen opens what stands at the path.
fn by_path(mut call: Call<()>, path: Option<&str>) -> Call<()> {
    if let Call::Reopen { reopenings } = &mut call {
        // Some by path, and some not.
        reopenings.iter_mut().step_by(2).for_each(|it| it.path = path.map(str::to_owned));
    }
    call
}

/// A few beats, and now and then so long that tickets are forgotten.
fn ticks() -> impl Strategy<Value = u64> {
    prop_oneof![20 => (0u64..7).prop_map(|beats| beats * BEAT_USEC), 1 => Just(60_000_000)]
}

/// A Take that waits, mostly for one name.
fn wait() -> impl Strategy<Value = Call<()>> {
    let names = collection::btree_set(proto::common_name(), 1..3);
    let taking = sample::select(vec![Taking::Move, Taking::Move, Taking::Copy]);
    (names, taking, 1u64..10).prop_map(|(names, taking, beats)| Call::Take {
        names: names.into_iter().collect(),
        taking,
        timeout_usec: beats * BEAT_USEC,
    })
}

/// The same call, with times on the beat.
fn on_the_beat(mut call: Call<()>) -> Call<()> {
    if let Call::Give { gifts, .. } = &mut call {
        let times = gifts.iter_mut().filter_map(|gift| gift.expire_usec.as_mut());
        times.for_each(|usec| *usec -= *usec % BEAT_USEC);
    }
    if let Call::Take { timeout_usec, .. } = &mut call {
        *timeout_usec -= *timeout_usec % BEAT_USEC;
    }
    call
}
