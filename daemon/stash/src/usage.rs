//! [`Usage`]: how much each user has of what its quota bounds, and what stands against more.
//!
//! What is under a name counts as much as it can come to, however the hold of it ends: so that nothing
//! that was accepted can exceed a quota later, at Commit or when it was opened.

use fdstash_proto::{Labels, Name, Refusal, Share};

use crate::{
    ConnectionId, Details, Limits, Notes, Stash, Who,
    entry::{Hold, Slot, Then},
    quota::limit_exceeded,
    stash::Client,
};

/// How much a user has of what its quota bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Names under which something is kept, or may be, that it gave; and those that it holds where
    /// nothing is.
    pub entries: u64,
    /// Bytes of the labels and share lists there.
    pub label_bytes: u64,
    /// Descriptors that it has staged in the place of what is kept.
    pub staged: u64,
    /// Bytes of the labels and share lists there.
    pub staged_label_bytes: u64,
    /// Connections.
    pub connections: u64,
    /// Names in Takes that wait.
    pub waits: u64,
    /// Watches.
    pub watches: u64,
    /// Open transactions.
    pub transactions: u64,
    /// Calls whose files are being opened, also those whose connection has ended meanwhile.
    pub opens: u64,
}

impl Usage {
    pub(crate) const CONNECTION: Self = Self { connections: 1, ..Self::NONE };
    pub(crate) const WATCH: Self = Self { watches: 1, ..Self::NONE };
    pub(crate) const TRANSACTION: Self = Self { transactions: 1, ..Self::NONE };
    pub(crate) const OPEN: Self = Self { opens: 1, ..Self::NONE };
    const NONE: Self = Self {
        entries: 0,
        label_bytes: 0,
        staged: 0,
        staged_label_bytes: 0,
        connections: 0,
        waits: 0,
        watches: 0,
        transactions: 0,
        opens: 0,
    };

    pub(crate) fn entries(names: usize) -> Self {
        Self { entries: names as u64, ..Self::NONE }
    }

    pub(crate) fn waits(names: usize) -> Self {
        Self { waits: names as u64, ..Self::NONE }
    }

    pub(crate) fn plus(self, more: Self) -> Self {
        self.with(more, u64::saturating_add)
    }

    /// What is left of it, or nothing.
    pub(crate) fn less(self, less: Self) -> Self {
        self.with(less, u64::saturating_sub)
    }

    fn with(self, other: Self, of_each: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            entries: of_each(self.entries, other.entries),
            label_bytes: of_each(self.label_bytes, other.label_bytes),
            staged: of_each(self.staged, other.staged),
            staged_label_bytes: of_each(self.staged_label_bytes, other.staged_label_bytes),
            connections: of_each(self.connections, other.connections),
            waits: of_each(self.waits, other.waits),
            watches: of_each(self.watches, other.watches),
            transactions: of_each(self.transactions, other.transactions),
            opens: of_each(self.opens, other.opens),
        }
    }
}

/// An entry, as far as it counts.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Its giver's user.
    uid: u32,
    label_bytes: u64,
}

/// What stands under a name, as far as it counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    kept: Option<Counted>,
    /// The user of the connection that holds it.
    holder: Option<u32>,
    staged: Option<Counted>,
}

impl Standing {
    /// How much of it is a user's.
    pub(crate) fn of(&self, uid: u32) -> Usage {
        let is_holder = self.holder == Some(uid);
        let is_there = self.kept.or(self.staged).is_some();
        let own = [self.kept, self.staged].map(|it| it.filter(|it| it.uid == uid));
        let in_place = self.staged.filter(|_| is_holder && self.kept.is_some());
        let bytes = |it: Option<Counted>| it.map_or(0, |it| it.label_bytes);
        let has_name = own.iter().any(Option::is_some) || (is_holder && !is_there);
        Usage {
            entries: has_name.into(),
            label_bytes: own.into_iter().map(bytes).max().unwrap_or_default(),
            staged: in_place.is_some().into(),
            staged_label_bytes: bytes(in_place),
            ..Usage::NONE
        }
    }

    /// The users some of it is of.
    fn users(&self) -> impl Iterator<Item = u32> + use<> {
        let [kept, staged] = [self.kept, self.staged].map(|it| it.map(|it| it.uid));
        let others = [self.holder.filter(|it| kept != Some(*it))];
        let staged = staged.filter(|it| kept != Some(*it) && self.holder != Some(*it));
        kept.into_iter().chain(others.into_iter().flatten()).chain(staged)
    }

    /// The same when a user has given something there, in a transaction or not.
    pub(crate) fn given(self, by: u32, label_bytes: usize, in_transaction: bool) -> Self {
        let gift = Some(Counted { uid: by, label_bytes: label_bytes as u64 });
        if in_transaction {
            Self { holder: Some(by), staged: gift, ..self }
        } else {
            Self { kept: gift, ..Self::default() }
        }
    }

    /// The same when a user has had reopened what it sees there, in a transaction or not.
    pub(crate) fn reopened(self, by: u32, in_transaction: bool) -> Self {
        let reopened = self.staged.or(self.kept);
        if in_transaction {
            Self { holder: Some(by), staged: reopened, ..self }
        } else {
            Self { kept: reopened, ..Self::default() }
        }
    }
}

impl Limits {
    /// How much of so many a user may help itself to: all of it, or what is not root's alone.
    fn share_of(&self, who: &Who, all: usize) -> usize {
        let of_root = all.saturating_mul(self.root_share.min(100)) / 100;
        if self.is_exempt(who.peer.uid) { all } else { all - of_root }
    }
}

impl<F> Stash<F> {
    /// How much every user has who has anything, by its number.
    pub fn usage(&self) -> impl Iterator<Item = (u32, Usage)> {
        self.usage.iter().map(|(uid, usage)| (*uid, *usage))
    }

    /// Finds out whether somebody may have so much more.
    pub(crate) fn check_quota(&self, who: &Who, more: Usage) -> Result<(), Refusal> {
        let (quota, now) = (self.quota_of(who), self.usage_of(who.peer.uid));
        let bounds = [
            ("entriesPerUser", now.entries, more.entries, quota.entries),
            ("entriesPerUser", now.staged, more.staged, quota.entries),
            ("labelBytesPerUser", now.label_bytes, more.label_bytes, quota.label_bytes),
            (
                "labelBytesPerUser",
                now.staged_label_bytes,
                more.staged_label_bytes,
                quota.label_bytes,
            ),
            ("connectionsPerUser", now.connections, more.connections, quota.connections),
            ("waitsPerUser", now.waits, more.waits, quota.waits),
            ("watchesPerUser", now.watches, more.watches, quota.watches),
            ("transactionsPerUser", now.transactions, more.transactions, quota.transactions),
            ("opensPerUser", now.opens, more.opens, quota.opens),
        ];
        let exceeds = |(_, now, more, most): &(_, u64, u64, u64)| {
            *more > 0 && now.saturating_add(*more) > *most
        };
        match bounds.into_iter().find(exceeds) {
            Some((limit, .., most)) => {
                Err(limit_exceeded(limit, usize::try_from(most).unwrap_or(usize::MAX)))
            }
            None => Ok(()),
        }
    }

    /// Whether there is room for another connection of somebody.
    pub(crate) fn check_connection(&self, who: &Who) -> Result<(), Refusal> {
        self.check_quota(who, Usage::CONNECTION)?;
        let connections = self.limits.share_of(who, self.limits.connections);
        if self.clients.len() >= connections {
            return Err(limit_exceeded("connections", connections));
        }
        let places = self.limits.share_of(who, self.limits.places);
        if self.counts.held + self.clients.len() >= places {
            return Err(limit_exceeded("descriptors", places));
        }
        Ok(())
    }

    /// Whether there is room for so many more descriptors, under so many more names. A name that is
    /// held counts also where nothing is left under it, or a transaction could grow without end; what
    /// it stages in the place of another is no further entry, but takes a place.
    pub(crate) fn check_room(
        &self,
        who: &Who,
        descriptors: usize,
        names: usize,
    ) -> Result<(), Refusal> {
        let entries = self.limits.share_of(who, self.limits.entries);
        if names > 0 && self.slots.len() + names > entries {
            return Err(limit_exceeded("entries", entries));
        }
        let places = self.limits.share_of(who, self.limits.places);
        if descriptors > 0 && self.counts.held + descriptors + self.clients.len() > places {
            return Err(limit_exceeded("descriptors", places));
        }
        Ok(())
    }

    /// Whether another call of somebody may have files opened.
    pub(crate) fn check_open(&self, who: &Who) -> Result<(), Refusal> {
        self.check_quota(who, Usage::OPEN)?;
        let opens = self.limits.share_of(who, self.limits.opens);
        if self.openings.len() >= opens {
            return Err(limit_exceeded("opens", opens));
        }
        Ok(())
    }

    /// Takes note that a user has so much more.
    pub(crate) fn charge(&mut self, uid: u32, more: Usage) {
        if more != Usage::NONE {
            let usage = self.usage.entry(uid).or_default();
            *usage = usage.plus(more);
        }
    }

    /// Takes note that a user has so much less.
    pub(crate) fn discharge(&mut self, uid: u32, less: Usage) {
        let Some(usage) = self.usage.get_mut(&uid) else { return };
        *usage = usage.less(less);
        if *usage == Usage::NONE {
            self.usage.remove(&uid);
        }
    }

    /// The same for a connection's user.
    pub(crate) fn charge_client(&mut self, by: ConnectionId, more: Usage) {
        if let Some(uid) = self.uid_of(by) {
            self.charge(uid, more);
        }
    }

    pub(crate) fn discharge_client(&mut self, by: ConnectionId, less: Usage) {
        if let Some(uid) = self.uid_of(by) {
            self.discharge(uid, less);
        }
    }

    /// Takes note of how what stands under a name has changed.
    pub(crate) fn recount(&mut self, before: Standing, after: Standing) {
        let is_new = |uid: &u32| before.users().all(|other| other != *uid);
        for uid in before.users().chain(after.users().filter(is_new)) {
            let (less, more) = (before.of(uid), after.of(uid));
            if less != more {
                self.charge(uid, more);
                self.discharge(uid, less);
            }
        }
    }

    /// Counts a name under which nothing is, and that a connection holds from now on.
    pub(crate) fn charge_bare_name(&mut self, by: ConnectionId) {
        self.charge_client(by, Usage::entries(1));
    }

    /// What stands under a name, as far as it counts.
    pub(crate) fn standing(&self, name: &Name) -> Standing {
        self.slots.get(name).map(Slot::standing).unwrap_or_default()
    }

    pub(crate) fn uid_of(&self, by: ConnectionId) -> Option<u32> {
        self.clients.get(&by).map(Client::uid)
    }

    fn usage_of(&self, uid: u32) -> Usage {
        self.usage.get(&uid).copied().unwrap_or_default()
    }
}

impl<F> Slot<F> {
    /// What stands here, as far as it counts.
    pub(crate) fn standing(&self) -> Standing {
        let staged = match self.hold.as_deref() {
            Some(Hold { then: Then::New(kept, _), .. }) => Some(kept),
            Some(Hold { then: Then::Same | Then::Gone(_), .. }) | None => None,
        };
        Standing {
            kept: self.kept.as_ref().map(|kept| kept.details.counted()),
            holder: self.hold.as_ref().and_then(|hold| hold.uid),
            staged: staged.map(|kept| kept.details.counted()),
        }
    }
}

impl Details {
    fn counted(&self) -> Counted {
        let Notes { share, labels, .. } = self.notes();
        let label_bytes = label_bytes(labels, share) as u64;
        Counted { uid: self.giver.uid, label_bytes }
    }
}

/// How much more a user has when such names have changed so.
pub(crate) fn more(uid: u32, changes: impl Iterator<Item = (Standing, Standing)>) -> Usage {
    let none = (Usage::NONE, Usage::NONE);
    let (before, after) = changes.fold(none, |(before, after), change| {
        (before.plus(change.0.of(uid)), after.plus(change.1.of(uid)))
    });
    after.less(before)
}

/// How many bytes of an entry are its giver's to choose: an id of a share list has four.
pub(crate) fn label_bytes(labels: &Labels, share: &Share) -> usize {
    let labels: usize = labels.iter().map(|(key, note)| key.len() + note.len()).sum();
    labels + 4 * (share.uids.len() + share.gids.len())
}
