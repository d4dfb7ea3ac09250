//! Take, and the Takes that wait for names that are not there yet, or held by another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fdstash_proto::{Change, Handed, Name, Refusal, Reply, Taking};

use crate::{
    ConnectionId, Deed, Effect, Effects, Kept, Now, Stash, Verb, Verdict,
    entry::Then,
    judge,
    opening::{Needed, Purpose},
    reopen,
    stash::{Client, Unfinished, answer},
    transaction::Due,
    usage::Usage,
};

/// Who waits for which name, the longest waiting first.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    by_name: BTreeMap<Name, BTreeSet<(u64, ConnectionId)>>,
    last_turn: u64,
}

/// One waiting Take.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) names: Vec<Name>,
    pub(crate) taking: Taking,
    /// Its place in the line.
    pub(crate) turn: u64,
    pub(crate) until_boot_usec: u64,
}

impl<F> Stash<F> {
    /// Hands out what is asked for, or waits for it, or says why not.
    pub(crate) fn take_or_wait(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        taking: Taking,
        timeout_usec: u64,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let Err(refusal) = self.take(by, &names, taking, effects) else { return };
        if timeout_usec == 0 || !may_pass(&refusal) {
            return self.refuse(by, refusal, Vec::new(), effects);
        }
        let waits = Usage::waits(names.len());
        let checked = self.client(by).and_then(|client| self.check_quota(&client.who, waits));
        if let Err(refusal) = checked {
            return self.refuse(by, refusal, Vec::new(), effects);
        }
        self.queue(by, names, taking, now.boot_usec.saturating_add(timeout_usec));
    }

    /// Puts a call that waits at the end of the line.
    pub(crate) fn queue(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        taking: Taking,
        until_boot_usec: u64,
    ) {
        self.waiters.last_turn += 1;
        let turn = self.waiters.last_turn;
        for name in &names {
            self.waiters.by_name.entry(name.clone()).or_default().insert((turn, by));
        }
        self.due.insert((until_boot_usec, Due::Wait(by)), None);
        self.charge_client(by, Usage::waits(names.len()));
        let waiting = Waiting { names, taking, turn, until_boot_usec };
        self.wait_for(by, Unfinished::Waiting(waiting));
    }

    /// Hands out what is asked for, or says why not.
    pub(crate) fn take(
        &mut self,
        by: ConnectionId,
        names: &[Name],
        taking: Taking,
        effects: &mut Effects<F>,
    ) -> Result<(), Refusal> {
        let verb = if taking == Taking::Move { Verb::Take } else { Verb::Copy };
        let mut handed = Vec::with_capacity(names.len());
        let (mut openings, mut copied) = (Vec::new(), Vec::new());
        for name in names {
            let Kept { fd, details } = self.existing(by, name, verb)?;
            if taking == Taking::Fresh {
                let who = &self.client(by)?.who;
                openings.push(reopen::again(who, name, fd, &details.facts));
                copied.push(Arc::clone(details));
            }
            handed.push(Handed { name: name.clone(), fd: Arc::clone(fd) });
        }
        let client = self.client(by)?;
        let in_transaction = client.in_transaction();
        let holds = in_transaction || taking == Taking::Move;
        if holds {
            self.check_names(by, names)?;
        }
        if !openings.is_empty() {
            self.check_open(&client.who)?;
        }
        let newly = names.iter().filter(|name| holds && self.hold(by, name)).cloned().collect();
        match taking {
            Taking::Fresh if openings.is_empty() => answer(by, Ok(Reply::Handed(handed)), effects),
            Taking::Fresh => {
                let purpose = Purpose::Copy(copied, newly);
                self.open(by, openings, purpose, Needed::default(), effects);
            }
            Taking::Copy => {
                self.counts.copied += names.len() as u64;
                answer(by, Ok(Reply::Handed(handed)), effects);
                let copied = self.seen(by, names);
                self.audit(by, Deed::Copied, copied, effects);
            }
            Taking::Move => {
                if !in_transaction {
                    self.wait_for(by, Unfinished::Leaving(names.to_vec()));
                }
                let outcome = Ok(Reply::Handed(handed));
                effects.push(Effect::Answer { to: by, outcome, confirm: !in_transaction });
                if in_transaction {
                    let lent = self.seen(by, names);
                    self.audit(by, Deed::Lent, lent, effects);
                }
                for name in names {
                    self.stage(by, name, Then::Gone(Change::Taken), effects);
                }
            }
        }
        Ok(())
    }

    /// The names whose descriptors are on their way to a connection.
    pub(crate) fn leaving(&mut self, by: ConnectionId) -> Option<Vec<Name>> {
        match self
            .clients
            .get_mut(&by)?
            .unfinished
            .take_if(|is| matches!(is, Unfinished::Leaving(_)))
        {
            Some(Unfinished::Leaving(names)) => Some(names),
            Some(Unfinished::Opening(..) | Unfinished::Waiting(_)) | None => None,
        }
    }

    /// The names that somebody waits for.
    pub(crate) fn awaited(&self) -> Vec<Name> {
        self.waiters.by_name.keys().cloned().collect()
    }

    /// Lets those who wait for these names have another try, the longest waiting first, for as long
    /// as there is something to have. Each that waits for one of them is looked at once for that name,
    /// and tried once at most, if it may know of what is there: so it costs no more than one look for
    /// each name that somebody waits for, and one for each name of those who may have one of these, of
    /// both of which every user's quota bounds the number.
    pub(crate) fn wake(&mut self, names: &[Name], effects: &mut Effects<F>, now: Now) {
        // One line for each name; the next to try is the longest waiting of those at their heads.
        let mut heads: BTreeSet<_> =
            names.iter().filter_map(|name| self.next_in_line(name, 0)).collect();
        let mut last_tried = 0;
        while let Some((turn, id, name)) = heads.pop_first() {
            let Some(kept) = self.free(name) else { continue };
            // Who waits for several of these names stands at the heads of all their lines in a row.
            if turn != last_tried && self.may_know(id, kept) {
                last_tried = turn;
                self.try_again(id, effects, now);
            }
            heads.extend(self.next_in_line(name, turn));
        }
    }

    /// Refuses a Take whose time is up, for what stands against it now.
    pub(crate) fn stop_waiting(&mut self, id: ConnectionId, effects: &mut Effects<F>, now: Now) {
        let Some(waiting) = self.waiting(id) else { return };
        self.forget_wait(id, &waiting);
        if let Err(refusal) = self.take(id, &waiting.names, waiting.taking, effects) {
            self.refuse(id, refusal, Vec::new(), effects);
        }
        self.begin_idling(id, now);
    }

    /// Takes a waiting call out of the line.
    pub(crate) fn forget_wait(&mut self, id: ConnectionId, waiting: &Waiting) {
        for name in &waiting.names {
            if let Some(line) = self.waiters.by_name.get_mut(name) {
                line.remove(&(waiting.turn, id));
                if line.is_empty() {
                    self.waiters.by_name.remove(name);
                }
            }
        }
        self.due.remove(&(waiting.until_boot_usec, Due::Wait(id)));
        self.discharge_client(id, Usage::waits(waiting.names.len()));
    }

    /// Lets all who wait have another try, the longest waiting first.
    pub(crate) fn try_all_again(&mut self, effects: &mut Effects<F>, now: Now) {
        let all: BTreeSet<_> = self.waiters.by_name.values().flatten().copied().collect();
        for (_, id) in all {
            self.try_again(id, effects, now);
        }
    }

    /// What is kept under a name that nobody holds.
    fn free(&self, name: &Name) -> Option<&Kept<F>> {
        let slot = self.slots.get(name).filter(|slot| slot.hold.is_none())?;
        slot.kept.as_ref()
    }

    /// Whether there is such an entry for a connection at all.
    fn may_know(&self, id: ConnectionId, kept: &Kept<F>) -> bool {
        let judge = |client: &Client<F>| judge(&self.rules, &client.who, Verb::List, &kept.details);
        self.clients.get(&id).map(judge).is_some_and(|verdict| verdict != Verdict::Hidden)
    }

    fn next_in_line<'a>(
        &self,
        name: &'a Name,
        after: u64,
    ) -> Option<(u64, ConnectionId, &'a Name)> {
        let line = self.waiters.by_name.get(name)?;
        let (turn, id) = line.range((after + 1, ConnectionId(0))..).next()?;
        Some((*turn, *id, name))
    }

    fn try_again(&mut self, id: ConnectionId, effects: &mut Effects<F>, now: Now) {
        let Some(waiting) = self.waiting(id) else { return };
        match self.take(id, &waiting.names, waiting.taking, effects) {
            Ok(()) => self.forget_wait(id, &waiting),
            Err(refusal) if may_pass(&refusal) => {
                self.wait_for(id, Unfinished::Waiting(waiting));
            }
            Err(refusal) => {
                self.forget_wait(id, &waiting);
                self.refuse(id, refusal, Vec::new(), effects);
            }
        }
        self.begin_idling(id, now);
    }

    /// Takes out what a connection waits for, if that is a place in the line.
    pub(crate) fn waiting(&mut self, id: ConnectionId) -> Option<Waiting> {
        match self
            .clients
            .get_mut(&id)?
            .unfinished
            .take_if(|is| matches!(is, Unfinished::Waiting(_)))
        {
            Some(Unfinished::Waiting(waiting)) => Some(waiting),
            Some(Unfinished::Opening(..) | Unfinished::Leaving(_)) | None => None,
        }
    }
}

/// Whether waiting can help against a refusal.
fn may_pass(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NotFound { .. } | Refusal::Busy { .. })
}
