//! What rules come to, said as shortly as possible and without a thought for its cost: all rights of
//! somebody on a name are put together, and then looked at.

use std::collections::BTreeSet;

use fdstash_proto::{Name, Share};
use fdstash_stash::{Limits, Quota, Rules, UNMAPPED, Verb, Verdict, Who, Whom};

/// What somebody may do with something that somebody else has given.
pub(crate) fn rights(
    rules: &Rules,
    who: &Who,
    name: &Name,
    giver: u32,
    share: &Share,
) -> BTreeSet<Verb> {
    let shared = groups(who).any(|gid| share.gids.contains(&gid))
        || users(who).any(|uid| share.uids.contains(&uid));
    let mut rights = BTreeSet::new();
    if users(who).any(|uid| uid == 0 || uid == giver) || shared {
        rights.extend(Verb::ALL.into_iter().filter(|verb| *verb != Verb::ReopenByPath));
    }
    for allow in &rules.allow {
        if is_one_of(who, &allow.whom) && allow.names.iter().any(|names| names.matches(name)) {
            rights.extend(&allow.verbs);
        }
    }
    rights
}

pub(crate) fn verdict(
    rules: &Rules,
    who: &Who,
    verb: Verb,
    name: &Name,
    giver: u32,
    share: &Share,
) -> Verdict {
    let rights = rights(rules, who, name, giver, share);
    match (rights.contains(&verb), rights.is_empty()) {
        (true, _) => Verdict::Allowed,
        (false, true) => Verdict::Hidden,
        (false, false) => Verdict::Denied,
    }
}

/// Whether somebody may not give a name, since it is for others.
pub(crate) fn is_kept_from(rules: &Rules, who: &Who, name: &Name) -> bool {
    let of_name: Vec<_> = rules
        .reserve
        .iter()
        .filter(|rule| rule.names.iter().any(|names| names.matches(name)))
        .collect();
    let is_its = of_name.iter().any(|rule| is_one_of(who, &rule.whom));
    let is_root = who.peer.uid == 0;
    // Of whom nobody can say who it is, nobody could say whose its gift is.
    users(who).next().is_none() || !(of_name.is_empty() || is_its || is_root)
}

/// Whether somebody may have opened what stands at a path.
pub(crate) fn may_open_at(rules: &Rules, who: &Who, name: &Name, path: &str) -> bool {
    let mine = rules.allow.iter().filter(|allow| {
        is_one_of(who, &allow.whom)
            && allow.names.iter().any(|names| names.matches(name))
            && allow.verbs.contains(&Verb::ReopenByPath)
    });
    let parts = |path: &str| {
        path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut below = mine.flat_map(|allow| &allow.below);
    path.starts_with('/') && below.any(|below| parts(path).starts_with(&parts(below)))
}

/// How much somebody may have: of each thing what the first rule says that says anything of it to this
/// one, or else what holds for those who are not exempt.
pub(crate) fn quota(limits: &Limits, rules: &Rules, who: &Who) -> Quota {
    let first = |of: fn(&Quota<Option<u64>>) -> Option<u64>, default: u64| {
        for rule in &rules.quota {
            let concerns = match &rule.whom {
                Some(whom) => is_one_of(who, whom),
                None => !is_exempt(limits, who),
            };
            if let (true, Some(most)) = (concerns, of(&rule.quota)) {
                return most;
            }
        }
        if is_exempt(limits, who) { u64::MAX } else { default }
    };
    let default = limits.quota;
    Quota {
        entries: first(|it| it.entries, default.entries),
        connections: first(|it| it.connections, default.connections),
        label_bytes: first(|it| it.label_bytes, default.label_bytes),
        waits: first(|it| it.waits, default.waits),
        watches: first(|it| it.watches, default.watches),
        transactions: first(|it| it.transactions, default.transactions),
        names: first(|it| it.names, default.names),
        opens: first(|it| it.opens, default.opens),
        descriptors: first(|it| it.descriptors, default.descriptors),
        bytes: first(|it| it.bytes, default.bytes),
        idle_usec: first(|it| it.idle_usec, default.idle_usec),
    }
}

/// The limits as they are for somebody, without root's share.
pub(crate) fn limits(limits: &Limits, who: &Who) -> Limits {
    let rest = |all: usize| all - (all as u128 * limits.root_share as u128 / 100) as usize;
    let Limits { entries, connections, places, opens, .. } = *limits;
    if is_exempt(limits, who) {
        return *limits;
    }
    Limits {
        entries: rest(entries),
        connections: rest(connections),
        places: rest(places),
        opens: rest(opens),
        ..*limits
    }
}

fn is_exempt(limits: &Limits, who: &Who) -> bool {
    [0, limits.owner].contains(&who.peer.uid)
}

fn is_one_of(who: &Who, whom: &Whom) -> bool {
    users(who).any(|uid| whom.users.contains(&uid))
        || groups(who).any(|gid| whom.groups.contains(&gid))
}

/// The user, unless it has no number.
fn users(who: &Who) -> impl Iterator<Item = u32> {
    [who.peer.uid].into_iter().filter(|uid| *uid != UNMAPPED)
}

/// The groups that have numbers.
fn groups(who: &Who) -> impl Iterator<Item = u32> {
    who.groups.iter().copied().chain([who.peer.gid]).filter(|gid| *gid != UNMAPPED)
}
