//! [`Limits`], how much there may be of everything; and [`Quota`], how much of it one user may have, so
//! that nobody can use up what is there for all.

use fdstash_proto::{Name, Refusal};

use crate::{ConnectionId, Origin, Rules, Stash, Who, Whom};

/// How much there may be of what peers can make grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names, kept and held.
    pub entries: usize,
    /// Connections.
    pub connections: usize,
    /// Descriptors, kept and staged, and connections together: each takes a place in the process's
    /// table.
    pub places: usize,
    /// Calls whose files are being opened: each takes a thread.
    pub opens: usize,
    /// How much of each of these is for root and the owner alone, in percent.
    pub root_share: usize,
    /// The user whose daemon it is.
    pub owner: u32,
    /// What others may have, each, unless the rules say otherwise.
    pub quota: Quota,
}

impl Limits {
    /// As much of everything for everybody as there is of it, in a daemon of root's.
    #[must_use]
    pub fn new(entries: usize, connections: usize, places: usize) -> Self {
        let opens = usize::MAX;
        let quota = Quota::NONE;
        Self { entries, connections, places, opens, root_share: 0, owner: 0, quota }
    }

    /// Whether a user is bound by no quota, and has the share of root.
    pub(crate) fn is_exempt(&self, uid: u32) -> bool {
        uid == 0 || uid == self.owner
    }
}

/// How much one user may have at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota<T = u64> {
    /// Names that it keeps or holds; and descriptors that it has staged in the place of what is kept.
    pub entries: T,
    /// Connections.
    pub connections: T,
    /// Bytes of the labels and share lists of these entries; and of what is staged in their place.
    pub label_bytes: T,
    /// Names in Takes that wait.
    pub waits: T,
    /// Watches.
    pub watches: T,
    /// Open transactions.
    pub transactions: T,
    /// Names that one transaction holds, or one call without a transaction: they are settled in one step,
    /// for which all others wait.
    pub names: T,
    /// Calls whose files are being opened.
    pub opens: T,
    /// Descriptors on their way in or out, which the daemon counts.
    pub descriptors: T,
    /// Bytes of what it has half sent or not read, which the daemon counts.
    pub bytes: T,
    /// For how long a transaction may be idle, in microseconds.
    pub idle_usec: T,
}

/// Says how much of some things somebody may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaRule {
    /// For whom, each; or for everybody but root and the user whose daemon it is.
    pub whom: Option<Whom>,
    /// What it says, and of the rest nothing.
    pub quota: Quota<Option<u64>>,
    /// Where it stands.
    pub origin: Origin,
}

impl Quota {
    /// No bounds at all.
    pub const NONE: Self = Self::all(u64::MAX);
}

impl<T: Copy> Quota<T> {
    /// As much of everything.
    #[must_use]
    pub const fn all(of_each: T) -> Self {
        Self {
            entries: of_each,
            connections: of_each,
            label_bytes: of_each,
            waits: of_each,
            watches: of_each,
            transactions: of_each,
            names: of_each,
            opens: of_each,
            descriptors: of_each,
            bytes: of_each,
            idle_usec: of_each,
        }
    }

    fn zip<U: Copy, V>(self, other: Quota<U>, with: impl Fn(T, U) -> V) -> Quota<V> {
        Quota {
            entries: with(self.entries, other.entries),
            connections: with(self.connections, other.connections),
            label_bytes: with(self.label_bytes, other.label_bytes),
            waits: with(self.waits, other.waits),
            watches: with(self.watches, other.watches),
            transactions: with(self.transactions, other.transactions),
            names: with(self.names, other.names),
            opens: with(self.opens, other.opens),
            descriptors: with(self.descriptors, other.descriptors),
            bytes: with(self.bytes, other.bytes),
            idle_usec: with(self.idle_usec, other.idle_usec),
        }
    }
}

impl Rules {
    /// What the rules say to somebody: of each thing, the first that concerns it and says something.
    fn quota_of(&self, who: &Who, is_exempt: bool) -> Quota<Option<u64>> {
        let concerns = |rule: &&QuotaRule| match &rule.whom {
            Some(whom) => whom.has(who),
            None => !is_exempt,
        };
        let rules = self.quota.iter().filter(concerns).map(|rule| rule.quota);
        rules.fold(Quota::all(None), |before, rule| before.zip(rule, Option::or))
    }
}

impl<F> Stash<F> {
    /// How much somebody may have. Root, and the user whose daemon it is, may have all that there is,
    /// unless a rule names them.
    #[must_use]
    pub fn quota_of(&self, who: &Who) -> Quota {
        let is_exempt = self.limits.is_exempt(who.peer.uid);
        let default = if is_exempt { Quota::NONE } else { self.limits.quota };
        self.rules.quota_of(who, is_exempt).zip(default, Option::unwrap_or)
    }

    /// Finds out whether a connection may hold these names, beside what its transaction holds.
    pub(crate) fn check_names<'a>(
        &self,
        by: ConnectionId,
        names: impl IntoIterator<Item = &'a Name>,
    ) -> Result<(), Refusal> {
        let client = self.client(by)?;
        let more = names.into_iter().filter(|name| !client.holds.contains(*name)).count();
        let most = self.quota_of(&client.who).names;
        if more > 0 && (client.holds.len() + more) as u64 > most {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            return Err(limit_exceeded("namesPerTransaction", most));
        }
        Ok(())
    }
}

pub(crate) fn limit_exceeded(limit: &str, value: usize) -> Refusal {
    Refusal::LimitExceeded {
        limit: limit.to_owned(),
        value: i64::try_from(value).unwrap_or(i64::MAX),
    }
}
