//! Who may do what: what the interface grants to givers, to those whom they share with and to root, and
//! beside that the rules of a policy. Asked before the stash is touched; default deny.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use fdstash_proto::{Name, Pattern, Peer, Reason, Verb, Verdict};

use crate::{Details, QuotaRule};

/// The number of a user or group that has none here, since the daemon's user namespace has no place for
/// it. No user has it: two of whom this is said are not one, and neither can be named by it.
pub const UNMAPPED: u32 = u32::MAX;

/// A peer as the kernel knows it. Nothing of it comes from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// `SO_PEERCRED`.
    pub peer: Peer,
    /// The supplementary groups, as they were when it connected.
    pub groups: Arc<[u32]>,
}

/// The rules of a policy: none, unless somebody says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Who may do what, beside those whom the interface lets.
    pub allow: Vec<Allow>,
    /// Which names not everybody may give.
    pub reserve: Vec<Reserve>,
    /// How much somebody may have.
    pub quota: Vec<QuotaRule>,
}

/// Gives somebody verbs on names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// To whom.
    pub whom: Whom,
    /// On which names.
    pub names: Vec<Pattern>,
    /// What they may do.
    pub verbs: BTreeSet<Verb>,
    /// Below which directories a Reopen by path may open, as absolute paths.
    pub below: Vec<Box<str>>,
    /// Where it stands.
    pub origin: Origin,
}

/// Keeps names for somebody: nobody else but root may give them, be they free or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    /// For whom.
    pub whom: Whom,
    /// Which names.
    pub names: Vec<Pattern>,
    /// Where it stands.
    pub origin: Origin,
}

/// Users and groups, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whom {
    /// These users.
    pub users: BTreeSet<u32>,
    /// Whoever is in one of these groups, as its primary one or as another.
    pub groups: BTreeSet<u32>,
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// In which file.
    pub file: Arc<str>,
    /// In which line of it, counted from 1.
    pub line: u32,
}

/// What a verdict comes from, with the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Because<'a> {
    /// Why.
    pub reason: Reason,
    /// Where the rule stands that decides, if one does.
    pub rule: Option<&'a Origin>,
}

/// Whether somebody may do something to an entry. Its giver's user, root, and those whom the giver
/// shares it with, may do everything but open by path; that, and what others may do, the rules say. To
/// put another in its place is to close it, so that whoever may close as a giver may do that too. For
/// whom there is no right at all, the entry does not exist.
///
/// What [`Rules::keep_from`] says comes on top.
#[must_use]
pub fn judge(rules: &Rules, who: &Who, verb: Verb, entry: &Details) -> Verdict {
    weigh(rules, who, verb, &entry.name, Some(entry)).0
}

/// What is to be said to somebody who wants to do something under a name where this is kept, or
/// nothing, and why.
#[must_use]
pub fn explain<'a>(
    rules: &'a Rules,
    who: &Who,
    verb: Verb,
    name: &Name,
    entry: Option<&Details>,
) -> (Verdict, Because<'a>) {
    if verb == Verb::Give {
        if !who.has_user() {
            return (Verdict::Denied, Reason::Nothing.into());
        }
        if let Some(origin) = rules.keep_from(who, name) {
            return (Verdict::Denied, by(Reason::Reserve, origin));
        }
        if entry.is_none() {
            let rule = rules.reserve.iter().find(|rule| rule.concerns(name));
            let because = match rule {
                _ if is_root(who) => Reason::Root.into(),
                Some(rule) => by(Reason::Reserve, &rule.origin),
                None => Reason::Free.into(),
            };
            return (Verdict::Allowed, because);
        }
    }
    weigh(rules, who, verb, name, entry)
}

fn weigh<'a>(
    rules: &'a Rules,
    who: &Who,
    verb: Verb,
    name: &Name,
    entry: Option<&Details>,
) -> (Verdict, Because<'a>) {
    let granted = granted(who, entry);
    let mut is_known = granted.is_some();
    if let (Some(reason), true) = (granted, verb != Verb::ReopenByPath) {
        return (Verdict::Allowed, reason.into());
    }
    for rule in rules.allow.iter().filter(|rule| rule.concerns(who, name)) {
        if rule.verbs.contains(&verb) {
            return (Verdict::Allowed, by(Reason::Allow, &rule.origin));
        }
        is_known |= !rule.verbs.is_empty();
    }
    (if is_known { Verdict::Denied } else { Verdict::Hidden }, Reason::Nothing.into())
}

fn by(reason: Reason, rule: &Origin) -> Because<'_> {
    Because { reason, rule: Some(rule) }
}

impl From<Reason> for Because<'_> {
    fn from(reason: Reason) -> Self {
        Self { reason, rule: None }
    }
}

/// By what the interface grants everything to somebody, whatever the rules say.
fn granted(who: &Who, entry: Option<&Details>) -> Option<Reason> {
    if is_root(who) {
        return Some(Reason::Root);
    }
    let entry = entry?;
    if who.is_user(entry.giver.uid) {
        return Some(Reason::Giver);
    }
    let share = &entry.notes().share;
    let is_shared = share.uids.iter().any(|uid| who.is_user(*uid))
        || share.gids.iter().any(|gid| who.is_in(*gid));
    is_shared.then_some(Reason::Share)
}

fn is_root(who: &Who) -> bool {
    who.peer.uid == 0
}

impl Who {
    /// Whether it is somebody who can be told from all others. Who cannot, gives nothing, since nobody could
    /// say whose that is, and has only what its groups may.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.peer.uid != UNMAPPED
    }

    /// Whether nothing of it is unmapped, so that one can act with its rights and no others: a group
    /// that is left out can be more than one, where a file's mode is stricter to its group than to others.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.has_user() && self.peer.gid != UNMAPPED && !self.groups.contains(&UNMAPPED)
    }

    pub(crate) fn is_user(&self, uid: u32) -> bool {
        self.has_user() && uid == self.peer.uid
    }

    /// Whether what was said when it was given is its business too.
    pub(crate) fn is_giver_or_root(&self, giver: Peer) -> bool {
        is_root(self) || self.is_user(giver.uid)
    }

    fn is_in(&self, gid: u32) -> bool {
        gid != UNMAPPED && (gid == self.peer.gid || self.groups.contains(&gid))
    }
}

impl Whom {
    /// Whether somebody is one of them. Asked for each rule, of whom it does not concern as a rule.
    pub(crate) fn has(&self, who: &Who) -> bool {
        (who.has_user() && self.users.contains(&who.peer.uid))
            || self.groups.iter().any(|gid| who.is_in(*gid))
    }
}

impl Allow {
    fn concerns(&self, who: &Who, name: &Name) -> bool {
        self.whom.has(who) && self.names.iter().any(|pattern| pattern.matches(name))
    }
}

impl Reserve {
    fn concerns(&self, name: &Name) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }
}

impl Rules {
    /// The rule that keeps a name for others than somebody, so that it may not give it.
    #[must_use]
    pub fn keep_from(&self, who: &Who, name: &Name) -> Option<&Origin> {
        if is_root(who) {
            return None;
        }
        let mut reserved = self.reserve.iter().filter(|rule| rule.concerns(name)).peekable();
        let first = reserved.peek().map(|rule| &rule.origin);
        if reserved.any(|rule| rule.whom.has(who)) { None } else { first }
    }

    /// The directory below which a Reopen by somebody may open what stands at a path, and the way from
    /// there: the widest of those that the rules name for it, since nothing leads out of one.
    #[must_use]
    pub(crate) fn place(&self, who: &Who, name: &Name, path: &str) -> Option<Place> {
        let rules = self.allow.iter().filter(|rule| rule.verbs.contains(&Verb::ReopenByPath));
        let below = rules.filter(|rule| rule.concerns(who, name)).flat_map(|rule| &rule.below);
        let places = below.filter_map(|below| {
            let rest = Path::new(path).strip_prefix(&**below).ok()?.to_str()?;
            Some(Place { below: below.clone(), path: rest.into() })
        });
        places.min_by_key(|place| place.below.len())
    }
}

/// A place in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// An absolute path to a directory.
    pub below: Box<str>,
    /// The way from there, out of which nothing may lead.
    pub path: Box<str>,
}
