//! What a connection finds under a name: what it may see, if it may do so, and if no other holds it; and
//! the rules that say so.

use std::{ops::Bound, sync::Arc};

use fdstash_proto::{Entry, Explanation, Name, Notice, Pattern, Peer, Refusal, Reply};

use crate::{
    Because, ConnectionId, Effects, Kept, Now, Rules, Stash, UNMAPPED, Usage, Verb, Verdict, Who,
    entry::Slot,
    explain, judge, reopen,
    stash::{Client, answer},
};

/// With so many bytes that were shown, a part of a List is complete.
const MUCH_TO_SHOW: usize = 64 << 10;

/// An entry for a List, and its descriptor, lent, to see which flags have drifted.
#[derive(Debug)]
pub struct Listed<F> {
    /// The entry.
    pub entry: Entry,
    /// Its descriptor.
    pub fd: Arc<F>,
}

impl<F> Stash<F> {
    /// Has these rules decide from here on who may do what, on connections that there are as well. What
    /// is under way was allowed when it was asked for; who waits for what it may have now, gets it.
    /// Of what somebody has too much by them, nothing ends, and nothing comes to it.
    pub fn set_rules(&mut self, rules: Rules, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        self.idle_by(rules);
        self.try_all_again(&mut effects, now);
        effects
    }

    /// The next entries that a connection may know of, in the order of their names, and after which name
    /// to go on, if there may be more. Looks at no more than `most` names, be they of interest or not, and
    /// at fewer where much is kept with them, so that the time it takes is bounded.
    #[must_use]
    pub fn list(
        &self,
        by: ConnectionId,
        pattern: &Pattern,
        after: Option<&Name>,
        most: usize,
    ) -> (Vec<Listed<F>>, Option<Name>) {
        let Some(client) = self.clients.get(&by) else { return (Vec::new(), None) };
        let prefix = pattern.prefix();
        let from = match after {
            Some(name) => Bound::Excluded(name.as_str()),
            None => Bound::Included(prefix),
        };
        let (mut listed, mut weight) = (Vec::new(), 0);
        let near = self
            .slots
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.as_str().starts_with(prefix));
        for (at, (name, slot)) in near.enumerate() {
            // The rights first: what one may not know of costs less than a match.
            let may_know = |kept: &&Kept<F>| {
                judge(&self.rules, &client.who, Verb::List, &kept.details) == Verdict::Allowed
                    && pattern.matches(name)
            };
            if let Some(kept) = slot.view(by).filter(may_know) {
                weight += kept.details.weight();
                let holder = self.holder(slot);
                let entry = if client.who.is_giver_or_root(kept.details.giver) {
                    kept.details.show_all(holder)
                } else {
                    kept.details.show(holder)
                };
                listed.push(Listed { entry, fd: Arc::clone(&kept.fd) });
            }
            if at + 1 == most || weight >= MUCH_TO_SHOW {
                return (listed, Some(name.clone()));
            }
        }
        (listed, None)
    }

    /// Has a connection told of changes from here on.
    pub(crate) fn watch(&mut self, by: ConnectionId, pattern: Pattern, effects: &mut Effects<F>) {
        if !self.watchers.contains_key(&by) {
            let checked = self.client(by).and_then(|it| self.check_quota(&it.who, Usage::WATCH));
            if let Err(refusal) = checked {
                return self.refuse(by, refusal, Vec::new(), effects);
            }
        }
        self.begin_watch(by, pattern);
        answer(by, Ok(Reply::Notice(Notice::Standing)), effects);
    }

    /// Whether a connection watches a name.
    #[must_use]
    pub fn watches(&self, by: ConnectionId, name: &Name) -> bool {
        self.watchers.get(&by).is_some_and(|pattern| pattern.matches(name))
    }

    pub(crate) fn begin_watch(&mut self, by: ConnectionId, pattern: Pattern) {
        if self.watchers.insert(by, pattern).is_none() {
            self.charge_client(by, Usage::WATCH);
        }
    }

    /// Says to root what the rules say to somebody of what everybody sees under a name.
    pub(crate) fn explain(
        &self,
        by: ConnectionId,
        uid: u32,
        gids: &[u32],
        verb: Verb,
        name: &Name,
    ) -> Result<Explanation, Refusal> {
        if self.client(by)?.who.peer.uid != 0 {
            return Err(Refusal::PermissionDenied);
        }
        let gid = gids.first().copied().unwrap_or(UNMAPPED);
        let who = Who { peer: Peer { uid, gid, pid: 0 }, groups: gids.into() };
        let kept = self.slots.get(name).and_then(|slot| slot.kept.as_ref());
        let details = kept.map(|kept| &*kept.details);
        let (verdict, Because { reason, rule }) = explain(&self.rules, &who, verb, name, details);
        let file = rule.map(|rule| rule.file.to_string());
        Ok(Explanation { verdict, reason, file, line: rule.map(|rule| rule.line) })
    }

    /// Who a connection is.
    pub(crate) fn client(&self, by: ConnectionId) -> Result<&Client<F>, Refusal> {
        self.clients.get(&by).ok_or(Refusal::PermissionDenied)
    }

    /// What a connection sees under a name, if it is there, it may do this to it, and no other
    /// connection holds it.
    pub(crate) fn existing(
        &self,
        by: ConnectionId,
        name: &Name,
        verb: Verb,
    ) -> Result<&Kept<F>, Refusal> {
        let client = self.client(by)?;
        let kept = self.find(by, name, verb)?.ok_or_else(|| not_found(name))?;
        self.allowed(client, verb, kept)?;
        Ok(kept)
    }

    /// What a connection sees under a name that no other connection holds.
    pub(crate) fn find(
        &self,
        by: ConnectionId,
        name: &Name,
        verb: Verb,
    ) -> Result<Option<&Kept<F>>, Refusal> {
        let Some(slot) = self.slots.get(name) else { return Ok(None) };
        if slot.held_by().is_none_or(|holder| holder == by) {
            return Ok(slot.view(by));
        }
        match self.holder(slot) {
            Some(held_by) if self.knows_of(by, slot, held_by)? => {
                Err(Refusal::Busy { name: name.as_str().to_owned(), held_by })
            }
            Some(_) | None if verb == Verb::Give => Err(reopen::denied(name, verb)),
            Some(_) | None => Err(not_found(name)),
        }
    }

    /// Whether a connection may know of a name that another holds. Where nothing is kept or staged,
    /// since what shall be kept is not open yet or has gone again, its holder's user knows.
    fn knows_of(&self, by: ConnectionId, slot: &Slot<F>, held_by: Peer) -> Result<bool, Refusal> {
        let who = &self.client(by)?.who;
        let is_known =
            |kept: &Kept<F>| judge(&self.rules, who, Verb::List, &kept.details) != Verdict::Hidden;
        if slot.all().next().is_none() {
            return Ok(who.peer.uid == 0 || who.is_user(held_by.uid));
        }
        Ok(slot.all().any(is_known))
    }

    fn allowed(&self, client: &Client<F>, verb: Verb, kept: &Kept<F>) -> Result<(), Refusal> {
        match judge(&self.rules, &client.who, verb, &kept.details) {
            Verdict::Allowed => Ok(()),
            Verdict::Hidden => Err(not_found(&kept.details.name)),
            Verdict::Denied => Err(reopen::denied(&kept.details.name, verb)),
        }
    }

    pub(crate) fn view(&self, by: ConnectionId, name: &Name) -> Option<&Kept<F>> {
        self.slots.get(name)?.view(by)
    }

    pub(crate) fn holder(&self, slot: &Slot<F>) -> Option<Peer> {
        let client = self.clients.get(&slot.held_by()?)?;
        Some(client.who.peer)
    }
}

fn not_found(name: &Name) -> Refusal {
    Refusal::NotFound { name: name.as_str().to_owned() }
}
