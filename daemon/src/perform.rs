//! Effects carried out, from first to last, without knowing why.

use std::{rc::Rc, sync::Arc};

use fdstash_proto::{Change, Entry, Refusal, Reply};
use fdstash_stash::{ConnectionId, Effect, Effects, Opening, Record};

use crate::{
    descriptor::Descriptor,
    inherited::number,
    ledger::{Need, ROOT},
    open::no_room,
    opener::{self, BESIDE},
    run::{Daemon, Input},
    seat::Answered,
    steps::step,
    store::mirror_one,
    told::Told,
};

impl Daemon {
    pub(crate) fn perform(&mut self, effects: Effects<Descriptor>) {
        for effect in effects {
            step("between two effects");
            match effect {
                Effect::Record(record) => self.record(&record),
                Effect::Answer { to, outcome, confirm } => self.answer(to, outcome, confirm),
                Effect::List { to, pattern } => {
                    let Some(seat) = self.seats.get(&to) else { continue };
                    seat.list(pattern);
                }
                Effect::Open { by, openings } => self.open(by, openings),
                Effect::Poll(id, fd) => self.hangups.add(id, &fd),
                Effect::Unpoll(_, fd) => self.hangups.remove(&fd),
                // Whoever drops the last one hands it to the closer.
                Effect::Close(fds) => drop(fds),
                Effect::Forget(by, names) => {
                    let uid = self.seats.get(&by).map_or(ROOT, |seat| seat.account.uid());
                    self.reader.forget(uid, names);
                }
                Effect::Tell { to, change, entry, fd } => self.tell(&to, change, entry, &fd),
                Effect::Audit { by, done } => {
                    let seat = by.and_then(|by| self.seats.get(&by));
                    self.audit.done(seat.map(|seat| seat.who.peer), &done);
                }
            }
        }
    }

    /// Writes a record down, and sees to what comes and goes by it.
    fn record(&mut self, record: &Record<Descriptor>) {
        self.write_down(record);
        record.put.iter().for_each(|kept| self.targets.add(kept));
        if let Some(mirror) = &self.mirror {
            record.gone.iter().for_each(|id| mirror.gone(*id));
            record.put.iter().for_each(|kept| mirror_one(mirror, kept));
        }
    }

    /// Writes a record down. There is room for it; where it cannot be written all the same, this
    /// server knows what the next will not, and must not say it to anybody.
    pub(crate) fn write_down(&mut self, record: &Record<Descriptor>) {
        let written = self.journal.append(|bytes| record.write(|fd| number(fd), bytes));
        if let Err(error) = written {
            tracing::error!(%error, "writing the journal failed, starting anew from what it says");
            std::process::abort();
        }
    }

    fn answer(
        &mut self,
        to: ConnectionId,
        mut outcome: Result<Reply<Arc<Descriptor>>, Refusal>,
        confirm: bool,
    ) {
        let Some(seat) = self.seats.get(&to) else { return };
        self.heart.answered();
        if let Ok(Reply::Statistics(told)) = &mut outcome {
            told.mirror = self.mirrored();
        }
        if let Err(refusal) = &outcome {
            let peer = seat.who.peer;
            self.audit.refused(peer, refusal);
            self.metrics.iter_mut().for_each(|metrics| metrics.refused(refusal));
            tracing::debug!(uid = peer.uid, pid = peer.pid, %refusal, "call refused");
            if matches!(refusal, Refusal::LimitExceeded { .. }) && self.reminder.is_due() {
                tracing::warn!(uid = peer.uid, pid = peer.pid, %refusal, "refusing for lack of room");
            }
        }
        if seat.answer(outcome, confirm) == Answered::Unsent && confirm {
            self.pending.push_back(Input::Unsent(to));
        }
    }

    /// What is in the service manager's store.
    pub(crate) fn mirrored(&self) -> Option<fdstash_proto::Mirror> {
        let standing = self.mirror.as_ref()?.standing();
        Some(fdstash_proto::Mirror {
            bundles: standing.bundles as u64,
            puts: standing.told,
            entries: standing.entries as u64,
            waiting: standing.waiting as u64,
            behind_usec: standing.behind_usec,
        })
    }

    /// Opens on threads, when there is room; what comes of it comes back as an input.
    fn open(&mut self, by: ConnectionId, openings: Vec<Opening<Descriptor>>) {
        let Some(seat) = self.seats.get(&by) else { return };
        self.metrics.iter_mut().for_each(|metrics| metrics.open(by));
        let account = seat.account.clone();
        let mut gifts = account.load();
        gifts.add(seat.gifts.take());
        let count = openings.iter().map(|opening| opening.wanted().count().max(1)).sum::<usize>();
        let need = Need::Open(count + BESIDE);
        let (opener, inputs) = (self.opener.clone(), self.inputs.clone());
        let of = account.clone();
        let open = move |room| {
            let account = of;
            opener.open(opener::Call { by, openings, account, inputs, gifts, room });
        };
        if let Some(room) = self.line.room(&account, need) {
            open(room);
        } else if account.will_fit(need) {
            self.line.wait(by, &account, need, open);
        } else {
            self.pending.push_back(Input::Opened(by, Err(no_room())));
        }
    }

    /// Has watchers told of a change.
    fn tell(&self, to: &[ConnectionId], change: Change, entry: Box<Entry>, fd: &Arc<Descriptor>) {
        let told = Rc::new(Told::new(change, entry, fd));
        for seat in to.iter().filter_map(|id| self.seats.get(id)) {
            seat.tell(&told);
        }
    }
}
