//! Calls of which each is made once where little and once where much is held, expires, is connected, waits or
//! is remembered: for `tests/steps.rs`, which counts the instructions of each.
//!
//! It takes how many there are of each of those, and says the names of the calls in their order.

use std::{env, hint::black_box};

use fdstash_proto::{
    Access, Call, Clash, Flags, Gift, Keeper, Kind, Name, Pattern, Peer, Reopening, Taking, Ticket,
};
use fdstash_stash::{ConnectionId, Effect, Facts, Inspected, Limits, Now, Stash, Who};

/// After how long everything expires that does.
const HOUR_USEC: u64 = 3_600_000_000;

fn main() {
    let many = env::args().nth(1).and_then(|many| many.parse().ok()).unwrap_or(1);
    let mut world = World::new(many);
    for (name, call) in calls() {
        println!("{name}");
        measured(&mut world, call);
    }
    for (name, act) in acts() {
        println!("{name}");
        measured_act(&mut world, act);
    }
}

/// The one function that is counted.
#[inline(never)]
fn measured(world: &mut World, call: Call<Inspected<u32>>) {
    world.call(call);
}

/// The same of what is no call.
#[inline(never)]
fn measured_act(world: &mut World, act: fn(&mut World)) {
    act(world);
}

/// A stash with as many as there are to be of everything, and one connection that calls.
struct World {
    stash: Stash<u32>,
    caller: ConnectionId,
    now: Now,
}

impl World {
    fn new(many: u64) -> Self {
        let most = 100_000;
        let mut stash = Stash::new(Limits::new(most, most, 4 * most), Keeper::Process);
        let caller = stash.connect(root()).expect("there is room");
        let mut world = Self { stash, caller, now: Now { boot_usec: 1, wall_usec: 1 } };
        for at in 0..many {
            // On both sides of what is called for.
            let side = if at % 2 == 0 { "a" } else { "c" };
            world.caller = world.stash.connect(root()).expect("there is room");
            let expire_usec = Some(HOUR_USEC + at);
            let kept = Gift { expire_usec, ..gift(&format!("{side}/{at}")) };
            let ticket = Ticket::new(&format!("t{at}")).ok();
            world.call(Call::Give { gifts: vec![kept], clash: Clash::Refuse, ticket });
            let names = vec![name(&format!("{side}/waits/{at}"))];
            world.call(Call::Take { names, taking: Taking::Move, timeout_usec: HOUR_USEC + at });
        }
        world.caller = caller;
        world
    }

    /// Makes a call, and all that the daemon makes of it.
    fn call(&mut self, call: Call<Inspected<u32>>) {
        black_box(self.stash.weight_of(&call));
        let effects = self.stash.call(self.caller, call, self.now);
        let mut follows = Vec::new();
        for effect in effects {
            match effect {
                Effect::Open { by, openings } => {
                    let files =
                        openings.iter().map(|opening| opening.wanted().map(|_| file()).collect());
                    follows.extend(self.stash.opened(by, Ok(files.collect()), self.now));
                }
                Effect::Answer { to, confirm: true, .. } => {
                    follows.extend(self.stash.sent(to, self.now));
                }
                Effect::List { to, pattern } => {
                    black_box(self.stash.list(to, &pattern, None, 16));
                }
                Effect::Record(_)
                | Effect::Answer { .. }
                | Effect::Poll(..)
                | Effect::Unpoll(..)
                | Effect::Close(_)
                | Effect::Forget(..)
                | Effect::Tell { .. }
                | Effect::Audit { .. } => {}
            }
        }
        black_box((follows, self.stash.weight(), self.stash.next_due(), self.stash.count()));
    }
}

/// What is called for, in this order: each finds what the one before it has left.
fn calls() -> Vec<(&'static str, Call<Inspected<u32>>)> {
    let give = |gift| Call::Give { gifts: vec![gift], clash: Clash::Replace, ticket: None };
    let take = |taking, timeout_usec| Call::Take { names: vec![name("b")], taking, timeout_usec };
    let ticket = Ticket::new("a-ticket").ok();
    vec![
        ("give", give(gift("b"))),
        ("replace", give(gift("b"))),
        ("copy", take(Taking::Copy, 0)),
        ("list one", Call::List { pattern: pattern("b") }),
        ("list some", Call::List { pattern: pattern("b*") }),
        ("reopen", Call::Reopen { reopenings: vec![Reopening::new(name("b"))] }),
        ("take", take(Taking::Move, 0)),
        ("take what is not there", take(Taking::Move, 0)),
        ("give what expires", give(Gift { expire_usec: Some(HOUR_USEC / 2), ..gift("b") })),
        ("close", Call::Close { names: vec![name("b")], ticket: None }),
        ("begin", Call::Begin),
        ("give in a transaction", give(gift("b"))),
        ("roll back", Call::Rollback),
        ("begin again", Call::Begin),
        ("give in it", give(Gift { ephemeral: true, ..gift("b") })),
        ("commit", Call::Commit { ticket }),
        ("statistics", Call::GetStatistics),
        ("watch", Call::Watch { pattern: pattern("b*") }),
        ("close what is watched", Call::Close { names: vec![name("b")], ticket: None }),
        ("give what expires at once", give(Gift { expire_usec: Some(1), ..gift("b") })),
    ]
}

/// What something is called, and what does it.
type Act = (&'static str, fn(&mut World));

/// What happens beside calls.
fn acts() -> [Act; 4] {
    [
        ("expire", |world| {
            let now = Now { boot_usec: 10, wall_usec: 10 };
            black_box(world.stash.tick(now));
        }),
        ("begin to wait", |world| {
            let names = vec![name("b")];
            world.call(Call::Take { names, taking: Taking::Move, timeout_usec: HOUR_USEC });
        }),
        ("disconnect", |world| {
            black_box(world.stash.disconnect(world.caller, world.now));
        }),
        ("connect", |world| {
            world.caller = world.stash.connect(root()).expect("there is room");
        }),
    ]
}

fn root() -> Who {
    Who { peer: Peer { uid: 0, gid: 0, pid: 1 }, groups: [].into() }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a good pattern")
}

fn gift(text: &str) -> Gift<Inspected<u32>> {
    Gift::new(name(text), file())
}

fn file() -> Inspected<u32> {
    let (kind, access, flags) = (Kind::Regular, Access::ReadWrite, Flags::NONE);
    Inspected { fd: 7, facts: Facts { kind, access, flags, device: 1, inode: 1, target: None } }
}
