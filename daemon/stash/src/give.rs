//! Give: finding everything that stands against it, and keeping what was given.

use std::sync::Arc;

use fdstash_proto::{Change, Clash, Gift, Kind, Peer, Refusal, Reply};

use crate::{
    ConnectionId, Details, Effects, Facts, Inspected, Kept, Notes, Now, Opening, Stash, UNMAPPED,
    Usage, Verb, Verdict,
    entry::{Ends, Expiry, Slot, Then},
    judge,
    opening::{Needed, Purpose},
    reopen,
    stash::{Client, close_all},
    usage::{self, label_bytes},
};

/// A gift that nothing stands against but the opening of its file.
pub(crate) struct Accepted<F> {
    pub(crate) gift: Gift<Inspected<Arc<F>>>,
    /// Whether an entry of the name makes room for it.
    pub(crate) replaces: bool,
    /// Whether the name was not held before the call.
    pub(crate) newly_held: bool,
    /// Which of the opened files is to be kept in the place of the one that came.
    pub(crate) fresh_at: Option<usize>,
}

/// What a Give needs that nothing stands against.
struct Checked<F> {
    /// What must be opened.
    openings: Vec<Opening<F>>,
    /// For each gift, whether an entry makes room for it, and which of that is to be kept in its place.
    each: Vec<(bool, Option<usize>)>,
    needed: Needed,
}

impl<F> Stash<F> {
    pub(crate) fn give(
        &mut self,
        by: ConnectionId,
        gifts: Vec<Gift<Inspected<F>>>,
        clash: Clash,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let gifts: Vec<_> = gifts.into_iter().map(|gift| gift.map(Inspected::shared)).collect();
        let Checked { openings, each, needed } = match self.check_gifts(by, &gifts, clash) {
            Ok(checked) => checked,
            Err(refusal) => {
                let unwanted = gifts.into_iter().map(|gift| gift.fd.fd).collect();
                return self.refuse(by, refusal, unwanted, effects);
            }
        };
        if openings.is_empty() && !self.client(by).is_ok_and(Client::in_transaction) {
            return self.keep_at_once(by, gifts, each, now, effects);
        }
        let accepted: Vec<_> = gifts
            .into_iter()
            .zip(each)
            .map(|(gift, (replaces, fresh_at))| Accepted {
                replaces,
                newly_held: self.hold(by, &gift.name),
                gift,
                fresh_at,
            })
            .collect();
        if openings.is_empty() {
            self.keep_gifts(by, accepted, Vec::new(), now, effects);
        } else {
            self.open(by, openings, Purpose::Give(accepted), needed, effects);
        }
    }

    /// Finds everything that could stand against a Give.
    fn check_gifts(
        &self,
        by: ConnectionId,
        gifts: &[Gift<Inspected<Arc<F>>>],
        clash: Clash,
    ) -> Result<Checked<F>, Refusal> {
        let client = self.client(by)?;
        let (mut openings, mut each) = (Vec::new(), Vec::with_capacity(gifts.len()));
        for (at, gift) in gifts.iter().enumerate() {
            // First of all, so that it tells nothing of what is there.
            let may_give = client.who.has_user();
            if !may_give || self.rules.keep_from(&client.who, &gift.name).is_some() {
                return Err(reopen::denied(&gift.name, Verb::Give));
            }
            let Inspected { fd, facts } = &gift.fd;
            let old = self.find(by, &gift.name, Verb::Give)?;
            if let Some(old) = old {
                match (clash, judge(&self.rules, &client.who, Verb::Give, &old.details)) {
                    (Clash::Replace, Verdict::Allowed) => {}
                    (Clash::Refuse, Verdict::Allowed | Verdict::Denied) => {
                        return Err(Refusal::AlreadyExists { name: gift.name.as_str().to_owned() });
                    }
                    // A name that is taken cannot be given; that much its next giver must be told.
                    (_, Verdict::Hidden) | (Clash::Replace, Verdict::Denied) => {
                        return Err(reopen::denied(&gift.name, Verb::Give));
                    }
                }
            }
            if gift.fresh && !matches!(facts.kind, Kind::Regular | Kind::Block) {
                let parameter = format!("entries[{at}].fresh");
                return Err(Refusal::InvalidParameter { parameter });
            }
            if let Some(wanted) = gift.may_reopen {
                openings.extend(reopen::probe(&client.who, &gift.name, fd, facts, wanted)?);
            }
            each.push((old.is_some(), gift.fresh.then_some(openings.len())));
            if gift.fresh {
                openings.push(reopen::again(&client.who, &gift.name, fd, facts));
            }
        }
        let needed = self.needed_for(by, gifts, openings.is_empty())?;
        Ok(Checked { openings, each, needed })
    }

    /// What a Give needs that may be done but for lack of room, if there is room.
    fn needed_for(
        &self,
        by: ConnectionId,
        gifts: &[Gift<Inspected<Arc<F>>>],
        opens_nothing: bool,
    ) -> Result<Needed, Refusal> {
        let client = self.client(by)?;
        let (uid, in_transaction) = (client.uid(), client.in_transaction());
        self.check_names(by, gifts.iter().map(|gift| &gift.name))?;
        let (mut new_names, mut places) = (0, 0);
        let changes = gifts.iter().map(|gift| {
            let slot = self.slots.get(&gift.name);
            new_names += usize::from(slot.is_none());
            places += usize::from(adds(client, by, slot));
            let before = slot.map(Slot::standing).unwrap_or_default();
            let bytes = label_bytes(&gift.labels, &gift.share);
            (before, before.given(uid, bytes, in_transaction))
        });
        let quota = usage::more(uid, changes);
        self.check_quota(&client.who, quota)?;
        self.check_room(&client.who, places, new_names)?;
        if !opens_nothing {
            self.check_open(&client.who)?;
        }
        // New names are counted as soon as they are held.
        let quota = quota.less(Usage::entries(new_names));
        Ok(Needed { places, quota })
    }

    /// The rest of a Give that is no part of a transaction and waits for no file.
    fn keep_at_once(
        &mut self,
        by: ConnectionId,
        gifts: Vec<Gift<Inspected<Arc<F>>>>,
        each: Vec<(bool, Option<usize>)>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let mut replaced = Vec::new();
        let mut changes = Vec::with_capacity(gifts.len());
        for (gift, (replaces, _)) in gifts.into_iter().zip(each) {
            let name = gift.name.clone();
            let change = if replaces { Change::Replaced } else { Change::Given };
            if replaces {
                replaced.push(name.clone());
            }
            let kept = self.entry_of(by, gift, None, now, &mut Vec::new());
            changes.push((name, Then::New(kept, change)));
        }
        self.settle_free(by, changes, Some(Reply::Given { replaced }), now, effects);
    }

    /// The rest of any other Give, which cannot fail.
    pub(crate) fn keep_gifts(
        &mut self,
        by: ConnectionId,
        accepted: Vec<Accepted<F>>,
        mut files: Vec<Vec<Inspected<Arc<F>>>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let mut replaced = Vec::new();
        let mut names = Vec::with_capacity(accepted.len());
        let mut unwanted = Vec::new();
        for Accepted { gift, replaces, fresh_at, .. } in accepted {
            let name = gift.name.clone();
            let fresh = fresh_at.and_then(|at| files.get_mut(at)).and_then(Vec::pop);
            let kept = self.entry_of(by, gift, fresh, now, &mut unwanted);
            let change = if replaces { Change::Replaced } else { Change::Given };
            self.stage(by, &name, Then::New(kept, change), effects);
            if replaces {
                replaced.push(name.clone());
            }
            names.push(name);
        }
        self.finish(by, names, Reply::Given { replaced }, now, effects);
        close_all(unwanted, effects);
    }

    fn entry_of(
        &mut self,
        by: ConnectionId,
        gift: Gift<Inspected<Arc<F>>>,
        fresh: Option<Inspected<Arc<F>>>,
        now: Now,
        unwanted: &mut Vec<Arc<F>>,
    ) -> Kept<F> {
        let Inspected { fd, facts } = match fresh {
            Some(fresh) => {
                unwanted.push(gift.fd.fd);
                // The way to the file is the one that the giver had.
                let facts = Facts { target: gift.fd.facts.target, ..fresh.facts };
                Inspected { fd: fresh.fd, facts }
            }
            None => gift.fd,
        };
        let expiry = gift.expire_usec.map(|after_usec| Expiry {
            after_usec,
            boot_usec: now.boot_usec.saturating_add(after_usec),
        });
        let ephemeral_of = gift.ephemeral.then_some(by);
        let ends = Ends { expiry, ephemeral_of, close_on_hangup: gift.close_on_hangup };
        let giver = self.clients.get(&by).map(|client| client.who.peer);
        let details = Details {
            id: self.next_entry(),
            name: gift.name,
            may_reopen: gift.may_reopen.unwrap_or(facts.access),
            facts,
            giver: giver.unwrap_or(NOBODY),
            given_at_usec: now.wall_usec,
            notes: Notes { share: gift.share, labels: gift.labels, ends }.into_box(),
            revision: 0,
        };
        Kept { fd, details: Arc::new(details) }
    }
}

/// Whether a descriptor that a connection stages in a slot comes to those that are there already: outside
/// a transaction what was kept makes room for it; and in one only what this has staged itself, since what
/// is kept stays until Commit.
pub(crate) fn adds<F>(client: &Client<F>, by: ConnectionId, slot: Option<&Slot<F>>) -> bool {
    if client.in_transaction() {
        !slot.is_some_and(|slot| slot.has_staged(by))
    } else {
        slot.is_none_or(|slot| slot.kept.is_none())
    }
}

impl<F> Accepted<F> {
    pub(crate) fn is_probed(&self) -> bool {
        self.gift.may_reopen.is_some_and(|wanted| !self.gift.fd.facts.access.covers(wanted))
    }
}

/// Stands where a connection has gone between its call and its entry, which the types cannot say
/// does not happen.
const NOBODY: Peer = Peer { uid: UNMAPPED, gid: UNMAPPED, pid: 0 };
