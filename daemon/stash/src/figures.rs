//! The figures: for everybody, and for whoever watches over the daemon.

use fdstash_proto::{Kind, Statistics};

use crate::{Stash, Usage};

/// All that an entry can be.
const KINDS: [Kind; 7] = [
    Kind::Regular,
    Kind::Directory,
    Kind::Block,
    Kind::Character,
    Kind::Fifo,
    Kind::Socket,
    Kind::Anonymous,
];

/// What there is of what [`Statistics`] does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// How many entries there are of each kind.
    pub kinds: [(Kind, u64); 7],
    /// How many of what counts as given came back, and was given to an earlier server.
    pub restored: u64,
    /// What all users have of what is bounded for each.
    pub all: Usage,
    /// The users with the most entries, and how many each has; the most first.
    pub users: Vec<(u32, u64)>,
}

impl<F> Stash<F> {
    /// The figures.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let counts = &self.counts;
        Statistics {
            entries: counts.kept as u64,
            max_entries: self.limits.entries as u64,
            connections: self.clients.len() as u64,
            transactions: counts.transactions,
            keeper: self.keeper,
            restores: self.restores,
            given: counts.given,
            taken: counts.taken,
            copied: counts.copied,
            closed: counts.closed,
            reopened: counts.reopened,
            expired: counts.expired,
            refused: counts.refused,
            mirror: None,
        }
    }

    /// What there is, in as many steps as there are users; of so many users one by one.
    #[must_use]
    pub fn census(&self, most_users: usize) -> Census {
        let mut users: Vec<_> = self.usage().map(|(uid, usage)| (uid, usage.entries)).collect();
        users.retain(|(_, entries)| *entries > 0);
        users.sort_by_key(|(uid, entries)| (u64::MAX - entries, *uid));
        users.truncate(most_users);
        Census {
            kinds: KINDS.map(|kind| (kind, self.counts.kinds[kind as usize])),
            restored: self.counts.restored,
            all: self.usage().fold(Usage::default(), |all, (_, usage)| all.plus(usage)),
            users,
        }
    }
}
