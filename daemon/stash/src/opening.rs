//! Calls whose files must be opened before they can go on: Reopen, and what is fresh. While they wait,
//! the names are held; if one of the files cannot be opened, nothing has happened.

use std::sync::Arc;

use fdstash_proto::{Change, Handed, Name, Refusal, Reopening, Reply};

use crate::{
    ConnectionId, Deed, Details, Effect, Effects, Facts, Inspected, Kept, Now, OpenFailure,
    Opening, Stash, Verb,
    entry::Then,
    give::{Accepted, adds},
    reopen::{self, denied},
    stash::{Client, Room, Unfinished, answer},
    usage::{self, Usage},
    weight::weight_of_gift,
};

/// What files are opened for.
pub(crate) enum Purpose<F> {
    /// Gifts that are fresh, or may be reopened with more access than they have.
    Give(Vec<Accepted<F>>),
    /// Copies with an open file description of their own, of entries that may be gone by then, and the names
    /// that were not held before.
    Copy(Vec<Arc<Details>>, Vec<Name>),
    /// A Reopen, of names of which the second list was not held before.
    Reopen(Vec<Name>, Vec<Name>),
}

/// What a call needs that nothing stands against.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needed {
    /// Places in the process's table.
    pub(crate) places: usize,
    /// Of its user's quota, beside what its holds take.
    pub(crate) quota: Usage,
}

impl<F> Stash<F> {
    /// Has files opened for a call, and keeps room for those of them that it will stage.
    pub(crate) fn open(
        &mut self,
        by: ConnectionId,
        openings: Vec<Opening<F>>,
        purpose: Purpose<F>,
        Needed { places, quota }: Needed,
        effects: &mut Effects<F>,
    ) {
        let room = Room { places, bytes: self.weight_for(&purpose, &openings), quota };
        self.charge_client(by, quota.plus(Usage::OPEN));
        let uid = self.clients.get(&by).map(Client::uid);
        self.openings.extend(uid.map(|uid| (by, uid)));
        self.counts.held += room.places;
        self.counts.bytes_promised += room.bytes;
        self.wait_for(by, Unfinished::Opening(purpose, room));
        effects.push(Effect::Open { by, openings });
    }

    fn weight_for(&self, purpose: &Purpose<F>, openings: &[Opening<F>]) -> usize {
        match purpose {
            Purpose::Give(accepted) => {
                accepted.iter().map(|accepted| weight_of_gift(&accepted.gift)).sum()
            }
            Purpose::Copy(..) => 0,
            Purpose::Reopen(..) => {
                let weight = |opening: &Opening<F>| {
                    self.weight_reopened(&opening.name, opening.place.is_some())
                };
                openings.iter().map(weight).sum()
            }
        }
    }

    /// What files are being opened for, for a connection, and the room kept for them is free.
    pub(crate) fn opening(&mut self, by: ConnectionId) -> Option<Purpose<F>> {
        match self
            .clients
            .get_mut(&by)?
            .unfinished
            .take_if(|is| matches!(is, Unfinished::Opening(..)))
        {
            Some(Unfinished::Opening(purpose, room)) => {
                self.counts.held -= room.places;
                self.counts.bytes_promised -= room.bytes;
                self.discharge_client(by, room.quota);
                Some(purpose)
            }
            Some(Unfinished::Leaving(_) | Unfinished::Waiting(_)) | None => None,
        }
    }

    pub(crate) fn reopen(
        &mut self,
        by: ConnectionId,
        reopenings: &[Reopening],
        effects: &mut Effects<F>,
    ) {
        let (openings, needed) = match self.plan(by, reopenings) {
            Ok(planned) => planned,
            Err(refusal) => return self.refuse(by, refusal, Vec::new(), effects),
        };
        if openings.is_empty() {
            return answer(by, Ok(Reply::Handed(Vec::new())), effects);
        }
        let names: Vec<Name> = openings.iter().map(|opening| opening.name.clone()).collect();
        let newly = names.iter().filter(|name| self.hold(by, name)).cloned().collect();
        self.open(by, openings, Purpose::Reopen(names, newly), needed, effects);
    }

    /// What is to be opened for a Reopen, and what it needs.
    fn plan(
        &self,
        by: ConnectionId,
        reopenings: &[Reopening],
    ) -> Result<(Vec<Opening<F>>, Needed), Refusal> {
        let client = self.client(by)?;
        let plan_one = |wanted: &Reopening| {
            let Some(path) = &wanted.path else {
                let Kept { fd, details } = self.existing(by, &wanted.name, Verb::Reopen)?;
                return reopen::plan(&client.who, details, fd, wanted, None);
            };
            let Kept { fd, details } = self.existing(by, &wanted.name, Verb::ReopenByPath)?;
            let place = self.rules.place(&client.who, &wanted.name, path);
            let place = place.ok_or_else(|| denied(&wanted.name, Verb::ReopenByPath))?;
            reopen::plan(&client.who, details, fd, wanted, Some(place))
        };
        let openings: Vec<_> = reopenings.iter().map(plan_one).collect::<Result<_, _>>()?;
        let adds = |wanted: &&Reopening| adds(client, by, self.slots.get(&wanted.name));
        let places = reopenings.iter().filter(adds).count();
        let (uid, in_transaction) = (client.uid(), client.in_transaction());
        self.check_names(by, reopenings.iter().map(|wanted| &wanted.name))?;
        let quota = usage::more(
            uid,
            reopenings.iter().map(|wanted| {
                let before = self.standing(&wanted.name);
                (before, before.reopened(uid, in_transaction))
            }),
        );
        self.check_quota(&client.who, quota)?;
        self.check_room(&client.who, places, 0)?;
        if !openings.is_empty() {
            self.check_open(&client.who)?;
        }
        Ok((openings, Needed { places, quota }))
    }

    /// Goes on with a call whose files are open.
    pub(crate) fn go_on(
        &mut self,
        by: ConnectionId,
        purpose: Purpose<F>,
        files: Vec<Vec<Inspected<Arc<F>>>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        match purpose {
            Purpose::Give(accepted) => self.keep_gifts(by, accepted, files, now, effects),
            Purpose::Copy(copied, _) => {
                self.counts.copied += copied.len() as u64;
                let copies = files.into_iter().flatten().map(|file| file.fd);
                let named = copied.iter().map(|details| details.name.clone()).zip(copies);
                let handed = named.map(|(name, fd)| Handed { name, fd }).collect();
                answer(by, Ok(Reply::Handed(handed)), effects);
                self.audit(by, Deed::Copied, copied, effects);
            }
            Purpose::Reopen(names, _) => {
                let mut handed = Vec::with_capacity(names.len());
                for (name, mut copies) in names.iter().zip(files) {
                    let (Some(lent), Some(kept)) = (copies.pop(), copies.pop()) else { continue };
                    let Some(kept) = self.successor(by, name, kept) else { continue };
                    self.stage(by, name, Then::New(kept, Change::Reopened), effects);
                    handed.push(Handed { name: name.clone(), fd: lent.fd });
                }
                if self.client(by).is_ok_and(Client::in_transaction) {
                    let lent = self.seen(by, &names);
                    self.audit(by, Deed::Lent, lent, effects);
                }
                self.finish(by, names, Reply::Handed(handed), now, effects);
            }
        }
    }

    /// Ends a call whose files could not be opened: all is as it was.
    pub(crate) fn give_up(
        &mut self,
        by: ConnectionId,
        purpose: Purpose<F>,
        failure: OpenFailure,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let (name, newly, unwanted) = match purpose {
            Purpose::Give(accepted) => {
                let opened = |accepted: &Accepted<F>| {
                    usize::from(accepted.fresh_at.is_some()) + usize::from(accepted.is_probed())
                };
                let mut at = failure.at;
                let culprit = accepted.iter().find(|accepted| {
                    let is_it = at < opened(accepted);
                    at = at.saturating_sub(opened(accepted));
                    is_it
                });
                let name = culprit.map(|accepted| accepted.gift.name.clone());
                let newly = accepted.iter().filter(|accepted| accepted.newly_held);
                let newly = newly.map(|accepted| accepted.gift.name.clone()).collect();
                let unwanted = accepted.into_iter().map(|accepted| accepted.gift.fd.fd);
                (name, newly, unwanted.collect())
            }
            Purpose::Copy(copied, newly) => {
                (copied.get(failure.at).map(|details| details.name.clone()), newly, Vec::new())
            }
            Purpose::Reopen(names, newly) => (names.into_iter().nth(failure.at), newly, Vec::new()),
        };
        let refusal = Refusal::ReopenFailed {
            name: name.map_or_else(String::new, |name| name.as_str().to_owned()),
            errno: failure.errno,
            errno_name: failure.errno_name,
            message: failure.message,
        };
        self.refuse(by, refusal, unwanted, effects);
        self.release(by, newly, effects, now);
    }

    /// What an entry becomes by a Reopen: all stays but the descriptor and what it can do, and by path
    /// which file it is.
    fn successor(
        &mut self,
        by: ConnectionId,
        name: &Name,
        opened: Inspected<Arc<F>>,
    ) -> Option<Kept<F>> {
        let id = self.next_entry();
        let old = &self.view(by, name)?.details;
        let is_same = old.facts.is_same_file(&opened.facts);
        // The way to the same file is the one that its giver had.
        let target = if is_same { old.facts.target.clone() } else { opened.facts.target };
        let facts = Facts { target, ..opened.facts };
        let details = Details { id, facts, ..Details::clone(old) };
        Some(Kept { fd: opened.fd, details: Arc::new(details) })
    }
}

impl<F> Purpose<F> {
    /// The descriptors that came with the call.
    pub(crate) fn into_fds(self) -> Vec<Arc<F>> {
        match self {
            Self::Give(accepted) => {
                accepted.into_iter().map(|accepted| accepted.gift.fd.fd).collect()
            }
            Self::Copy(..) | Self::Reopen(..) => Vec::new(),
        }
    }
}
