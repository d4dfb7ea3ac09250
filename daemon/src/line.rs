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

/// Gives room to those who wait for it, each user's in the order in which they came.
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

    /// Room, if there is some and no other connection of the user waits.
    pub(crate) fn room(&self, account: &Account, need: Need) -> Option<Room> {
        if self.waiting.contains_key(&account.uid()) {
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
        // What has begun takes no room for longer than it must.
        if need == Need::ReceiveRest {
            let at = line.iter().position(|other| other.need != need).unwrap_or(line.len());
            line.insert(at, waiter);
        } else {
            line.push_back(waiter);
        }
        self.ledger.set_awaited(true);
        // What was freed just before, nobody has told of.
        self.serve();
    }

    /// Forgets a connection that has ended.
    pub(crate) fn forget(&mut self, by: ConnectionId, uid: u32) {
        let Some(line) = self.waiting.get_mut(&uid) else { return };
        line.retain(|waiter| waiter.by != by);
        if line.is_empty() {
            self.waiting.remove(&uid);
        }
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
