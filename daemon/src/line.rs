//! [`Line`]: who waits for room in the process's table, users in turn.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use fdstash_proto::Call;
use fdstash_stash::{ConnectionId, Inspected, Quota, Who};

use crate::{
    descriptor::Descriptor,
    ledger::{Account, Ledger, Need, Room},
    run::Daemon,
    seat::Seat,
};

/// Gives room to those who wait for it, those of one user by rank, and else in the order in which
/// they came.
pub(crate) struct Line {
    ledger: Ledger,
    waiting: BTreeMap<u32, VecDeque<Waiter>>,
    /// The user who was given some last.
    last: u32,
}

struct Waiter {
    by: ConnectionId,
    account: Account,
    need: Need,
    then: Box<dyn FnOnce(Room)>,
}

impl Line {
    /// An empty line.
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger, waiting: BTreeMap::new(), last: 0 }
    }

    /// Room, if there is some and no other connection of the user is before it.
    pub(crate) fn room(&self, account: &Account, need: Need) -> Option<Room> {
        let first = self.waiting.get(&account.uid()).and_then(VecDeque::front);
        if first.is_some_and(|first| rank(first.need) <= rank(need)) {
            return None;
        }
        account.room(need)
    }

    /// Lets a connection wait for room, and have it when it comes. `then` runs in the middle of
    /// something else, and only hands it on.
    pub(crate) fn wait(
        &mut self,
        by: ConnectionId,
        account: &Account,
        need: Need,
        then: impl FnOnce(Room) + 'static,
    ) {
        let (account, then) = (account.clone(), Box::new(then));
        let line = self.waiting.entry(account.uid()).or_default();
        let waiter = Waiter { by, account, need, then };
        let at = line.iter().position(|other| rank(other.need) > rank(need));
        line.insert(at.unwrap_or(line.len()), waiter);
        self.ledger.set_awaited(true);
        // What was freed just before, nobody has told of.
        self.serve();
    }

    /// Forgets a connection that has ended. Whether it had a call whose files were yet to be opened.
    pub(crate) fn forget(&mut self, by: ConnectionId, uid: u32) -> bool {
        let Some(line) = self.waiting.get_mut(&uid) else { return false };
        let is_open = |waiter: &Waiter| waiter.by == by && matches!(waiter.need, Need::Open(_));
        let opens = line.iter().any(is_open);
        line.retain(|waiter| waiter.by != by);
        if line.is_empty() {
            self.waiting.remove(&uid);
        }
        opens
    }

    /// Gives what room there is to those who wait.
    pub(crate) fn serve(&mut self) {
        while let Some((uid, room)) = self.next() {
            self.last = uid;
            let Some(line) = self.waiting.get_mut(&uid) else { return };
            let waiter = line.pop_front();
            if line.is_empty() {
                self.waiting.remove(&uid);
            }
            if let Some(waiter) = waiter {
                (waiter.then)(room);
            }
        }
        self.ledger.set_awaited(!self.waiting.is_empty());
    }

    /// The next user whose first in line finds room, and that room.
    fn next(&self) -> Option<(u32, Room)> {
        let after = self.waiting.range(self.last.saturating_add(1)..);
        let in_turn = after.chain(self.waiting.range(..=self.last));
        in_turn
            .filter_map(|(uid, line)| {
                let first = line.front()?;
                Some((*uid, first.account.room(first.need)?))
            })
            .next()
    }
}

/// Whose turn it is among those of one user: the lowest's. A call that waits for its files has
/// descriptors in flight until it has them, as half a message has until it is whole; so neither waits
/// for what has not begun, which waits for them.
fn rank(need: Need) -> u8 {
    match need {
        Need::Open(_) => 0,
        Need::ReceiveRest => 1,
        Need::Receive => 2,
    }
}

impl Daemon {
    /// To whom the descriptors of a peer are counted, and what waits of its messages.
    pub(crate) fn account(&self, who: &Who) -> Account {
        let account = self.ledger.account(who.peer.uid);
        let Quota { descriptors, bytes, .. } = self.stash.quota_of(who);
        account.set_most(usize::try_from(descriptors).unwrap_or(usize::MAX));
        account.set_most_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
        account
    }

    /// Has the stash's what a call gives, and no longer in flight.
    pub(crate) fn hold_gifts(&self, by: ConnectionId, call: &Call<Inspected<Descriptor>>) {
        let Some(seat) = self.seats.get(&by) else { return };
        let Call::Give { gifts, .. } = call else { return seat.gifts.set(0) };
        gifts.iter().for_each(|gift| gift.fd.fd.hold());
        seat.gifts.set(gifts.len());
    }

    /// Gives a connection room to receive with when there is some.
    pub(crate) fn await_room(&mut self, by: ConnectionId, seat: &Rc<Seat>, need: Need) {
        seat.await_room();
        let waiting = Rc::downgrade(seat);
        self.line.wait(by, &seat.account, need, move |room| {
            if let Some(seat) = waiting.upgrade() {
                seat.grant(room);
            }
        });
    }
}
