//! Who may do what to an entry. Asked before the stash is touched; default deny.

use std::sync::Arc;

use fdstash_proto::Peer;

use crate::Details;

/// A peer as the kernel knows it. Nothing of it comes from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// `SO_PEERCRED`.
    pub peer: Peer,
    /// The supplementary groups, as they were when it connected.
    pub groups: Arc<[u32]>,
}

/// What somebody wants of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Put another in its place.
    Give,
    /// Have it, and end the stash's hold.
    Take,
    /// Have it as well.
    Copy,
    /// End the stash's hold.
    Close,
    /// Have its file opened anew.
    Reopen,
    /// Have another file opened in its place, by path.
    ReopenByPath,
    /// Know of it.
    List,
}

impl Verb {
    /// The word that AccessDenied has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Give => "give",
            Self::Take => "take",
            Self::Copy => "copy",
            Self::Close => "close",
            Self::Reopen => "reopen",
            Self::ReopenByPath => "reopen by path",
            Self::List => "list",
        }
    }
}

/// What [`judge`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may not do this, but may know of the entry.
    Denied,
    /// For this peer there is no such entry.
    Hidden,
}

/// Whether somebody may do something to an entry: its giver's user, root, and those whom the giver
/// shares it with, may do everything; for others it does not exist. To put another in its place is
/// to close it, so that whoever may close may do that too. Opening by path is nobody's until a
/// policy names directories.
#[must_use]
pub fn judge(who: &Who, verb: Verb, entry: &Details) -> Verdict {
    let peer = &who.peer;
    let shares = |gid: &u32| *gid == peer.gid || who.groups.contains(gid);
    let known = peer.uid == 0
        || peer.uid == entry.giver.uid
        || entry.share.uids.contains(&peer.uid)
        || entry.share.gids.iter().any(shares);
    match (known, verb) {
        (false, _) => Verdict::Hidden,
        (true, Verb::ReopenByPath) => Verdict::Denied,
        (true, Verb::Give | Verb::Take | Verb::Copy | Verb::Close | Verb::Reopen | Verb::List) => {
            Verdict::Allowed
        }
    }
}

#[cfg(test)]
mod tests {
    use fdstash_proto::{Access, Flags, Kind, Labels, Name, Share};

    use super::*;
    use crate::{EntryId, Facts};

    #[test]
    fn whoever_may_know_of_an_entry_may_do_everything_but_open_by_path() {
        use Verb::{Close, Copy, Give, List, Reopen, ReopenByPath, Take};
        let entry = entry_of(1, Share { uids: vec![2], gids: vec![30, 31] });

        let known = [
            ("root", who(0, 0, &[])),
            ("its giver's user, in another group and process", who(1, 99, &[])),
            ("a user that it is shared with", who(2, 99, &[])),
            ("a primary group", who(3, 30, &[])),
            ("a supplementary group", who(3, 99, &[98, 31])),
        ];
        let hidden = [
            ("a stranger", who(3, 99, &[98])),
            ("a user with the number of a group", who(30, 99, &[])),
            ("a group with the number of the giver, of root and of a user", who(3, 1, &[0, 2])),
        ];

        for verb in [Give, Take, Copy, Close, Reopen, List] {
            for (what, who) in &known {
                assert_eq!(judge(who, verb, &entry), Verdict::Allowed, "{what}, {verb:?}");
            }
            for (what, who) in &hidden {
                assert_eq!(judge(who, verb, &entry), Verdict::Hidden, "{what}, {verb:?}");
            }
        }
        for (what, who) in &known {
            assert_eq!(judge(who, ReopenByPath, &entry), Verdict::Denied, "{what}");
        }
        for (what, who) in &hidden {
            assert_eq!(judge(who, ReopenByPath, &entry), Verdict::Hidden, "{what}");
        }
    }

    #[test]
    fn an_entry_that_is_shared_with_nobody_is_its_givers_and_roots() {
        let entry = entry_of(1, Share::default());

        let verdicts = [0, 1, 2].map(|uid| judge(&who(uid, uid, &[]), Verb::Take, &entry));

        assert_eq!(verdicts, [Verdict::Allowed, Verdict::Allowed, Verdict::Hidden]);
    }

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Who {
        Who { peer: Peer { uid, gid, pid: 7 }, groups: groups.into() }
    }

    fn entry_of(uid: u32, share: Share) -> Details {
        let facts = Facts {
            kind: Kind::Regular,
            access: Access::ReadWrite,
            flags: Flags::NONE,
            device: 1,
            inode: 1,
            target: None,
        };
        Details {
            id: EntryId(1),
            name: Name::new("disk").unwrap(),
            facts,
            may_reopen: Access::ReadWrite,
            giver: Peer { uid, gid: 10, pid: 6 },
            given_at_usec: 0,
            expiry: None,
            ephemeral_of: None,
            close_on_hangup: false,
            share,
            labels: Labels::new(),
            revision: 1,
        }
    }
}
