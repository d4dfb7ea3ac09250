//! [`Audit`]: an event of the log for each descriptor given, taken, copied, reopened or closed, and for each
//! call refused, where that is wanted (`--audit`): who did what to which.
//!
//! Nobody fills the journal by it: of what users other than root and the daemon's own do, so much is told
//! each second, and of what is refused to any user less; what is left out is counted, and the count told.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use fdstash_proto::{Change, Peer, Refusal};
use fdstash_stash::{Deed, Details};

/// How much is told of a user's deeds: so many at once, and so many each second after that.
const DEEDS: Allowance = Allowance { most: 1000, each_second: 100 };

/// The same of what it is refused.
const REFUSALS: Allowance = Allowance { most: 20, each_second: 1 };

/// Of so many users at most each has an allowance; all others share one.
const MOST_USERS: usize = 1024;

/// So much is told of why something was refused, which may name what is longer than a line of the log.
const SAID: usize = 1000;

/// How often what was left out is told.
pub(crate) const PAUSE: Duration = Duration::from_secs(10);

/// Tells of deeds and refusals, if it is to.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    is_on: bool,
    /// The daemon's own user.
    owner: u32,
    /// The names of this machine's own users.
    users: BTreeMap<u32, String>,
    spent: BTreeMap<(Option<u32>, bool), Spent>,
    left_out: u64,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    most: u32,
    each_second: u32,
}

/// How far a user's allowance is used up.
#[derive(Debug)]
struct Spent {
    left: u32,
    since: Instant,
    /// How many were left out, of which nothing was said yet.
    untold: u64,
}

impl Audit {
    pub(crate) fn new(is_on: bool) -> Self {
        let owner = rustix::process::geteuid().as_raw();
        let users = if is_on { users_of(&passwd()) } else { BTreeMap::new() };
        Self { is_on, owner, users, ..Self::default() }
    }

    /// Whether it is to tell of anything.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// How much it has left out.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Tells what somebody has done with entries; or the stash itself, with what such a one had given.
    pub(crate) fn done(&mut self, by: Option<Peer>, done: &[(Deed, Arc<Details>)]) {
        for (deed, details) in done {
            let Details { id, name, facts, giver, .. } = &**details;
            let peer = by.unwrap_or(*giver);
            let is_free = peer.uid == 0 || peer.uid == self.owner;
            if !is_free && !self.may_tell(peer.uid, false) {
                continue;
            }
            tracing::info!(
                target: "audit",
                audit = deed.as_str(),
                name = name.as_str(),
                entry = id.0,
                kind = facts.kind.as_str(),
                access = facts.access.as_str(),
                device = facts.device,
                inode = facts.inode,
                uid = by.map(|peer| peer.uid),
                pid = by.map(|peer| peer.pid),
                user = by.and_then(|peer| self.users.get(&peer.uid)).map(String::as_str),
                giver = giver.uid,
                // The last, since it may be longer than a line of the log.
                file = facts.target.as_deref(),
                "descriptor {}",
                deed.as_str(),
            );
        }
    }

    /// Tells what has ended with an earlier server.
    pub(crate) fn ended(&mut self, ended: &[Arc<Details>]) {
        if self.is_on {
            let closed = |details| (Deed::Changed(Change::Closed), Arc::clone(details));
            self.done(None, &ended.iter().map(closed).collect::<Vec<_>>());
        }
    }

    /// Tells what somebody was refused.
    pub(crate) fn refused(&mut self, peer: Peer, refusal: &Refusal) {
        if !self.is_on || !self.may_tell(peer.uid, true) {
            return;
        }
        let said: String = refusal.to_string().chars().take(SAID).collect();
        tracing::info!(
            target: "audit",
            audit = "refused",
            error = refusal.error(),
            uid = peer.uid,
            pid = peer.pid,
            user = self.users.get(&peer.uid).map(String::as_str),
            "{said}",
        );
    }

    /// Tells how much was left out since it last did.
    pub(crate) fn tell_left_out(&mut self) {
        for ((uid, is_refusal), spent) in &mut self.spent {
            let count = std::mem::take(&mut spent.untold);
            if count > 0 {
                let what = if *is_refusal { "refused" } else { "done" };
                tracing::warn!(target: "audit", audit = "left_out", uid, what, count, "more than is told");
            }
        }
    }

    /// Whether there is something left of a user's allowance, of which one is used up.
    fn may_tell(&mut self, uid: u32, is_refusal: bool) -> bool {
        let now = Instant::now();
        let of = if is_refusal { REFUSALS } else { DEEDS };
        if self.spent.len() >= 2 * MOST_USERS {
            self.spent.retain(|_, spent| spent.untold > 0 || spent.since.elapsed() < PAUSE);
        }
        let is_known =
            self.spent.len() < 2 * MOST_USERS || self.spent.contains_key(&(Some(uid), is_refusal));
        let whose = if is_known { Some(uid) } else { None };
        let new = || Spent { left: of.most, since: now, untold: 0 };
        let spent = self.spent.entry((whose, is_refusal)).or_insert_with(new);
        if spent.take(of, now) {
            return true;
        }
        spent.untold += 1;
        self.left_out += 1;
        false
    }
}

impl Spent {
    /// Takes one, if there is one.
    fn take(&mut self, of: Allowance, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds > 0 {
            let more = u64::from(of.each_second).saturating_mul(seconds);
            let left = u64::from(self.left).saturating_add(more).min(of.most.into());
            self.left = u32::try_from(left).unwrap_or(of.most);
            self.since += Duration::from_secs(seconds);
        }
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        true
    }
}

/// The users that this machine has itself. Those of directory services go by their numbers here: to ask
/// for them may take long.
fn passwd() -> String {
    fs::read_to_string("/etc/passwd").unwrap_or_default()
}

fn users_of(passwd: &str) -> BTreeMap<u32, String> {
    let one = |line: &str| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some((uid, name.to_owned()))
    };
    // Of several with one number the first is the one that others show, too.
    passwd.lines().rev().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_used_up_and_comes_back_with_time() {
        let of = Allowance { most: 3, each_second: 2 };
        let begin = Instant::now();
        let mut spent = Spent { left: of.most, since: begin, untold: 0 };
        let mut taken = |after: u64| {
            let now = begin + Duration::from_millis(after);
            (0..10).filter(|_| spent.take(of, now)).count()
        };

        assert_eq!([0, 999, 1000, 1999, 2000, 3_600_000].map(&mut taken), [3, 0, 2, 0, 2, 3]);
    }

    #[test]
    fn the_first_user_of_a_number_is_the_one_that_is_named() {
        let users = users_of("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\nbad\nvm:x:107:1::/:");

        assert_eq!(users, BTreeMap::from([(0, "root".to_owned()), (107, "vm".to_owned())]));
    }

    #[test]
    fn what_a_user_may_not_tell_any_more_is_counted_and_others_are_told_of() {
        let mut audit = Audit::new(true);

        let told = (0..100).filter(|_| audit.may_tell(7, true)).count();

        assert_eq!((told, audit.left_out()), (20, 80));
        assert!(audit.may_tell(8, true) && audit.may_tell(7, false));
        for uid in 0..10_000 {
            audit.may_tell(uid, true);
        }
        assert!(audit.spent.len() <= 2 * MOST_USERS + 2);
    }
}
