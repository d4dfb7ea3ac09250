//! What a Reopen opens, and with whose rights: never more than the giver allowed.

use std::{iter, sync::Arc};

use fdstash_proto::{Access, Flags, Kind, Name, Refusal, Reopening};

use crate::{Details, Facts, Place, Verb, Who};

/// One file to open anew, of which `fd` is lent.
#[derive(Debug, Clone)]
pub struct Opening<F> {
    /// The entry it is for.
    pub name: Name,
    /// The descriptor whose very file is to be opened.
    pub fd: Arc<F>,
    /// Where another file stands that is to be opened in its place.
    pub place: Option<Place>,
    /// What the file is known to be: what was opened must be the same device and inode, but where it is
    /// another's place.
    pub facts: Facts,
    /// For which access.
    pub access: Access,
    /// With which flags.
    pub flags: Flags,
    /// With whose rights.
    pub rights: Rights,
    /// Who asks for it.
    pub asker: Who,
    /// How many open file descriptions of it are wanted. None: only that it can be opened so.
    pub count: usize,
    /// For which access one more of it is wanted, after those, to be handed out: no more than `access`.
    pub hand_out: Option<Access>,
}

impl<F> Opening<F> {
    /// Each open file description that is wanted: for which access it is to be opened.
    pub fn wanted(&self) -> impl Iterator<Item = Access> + use<F> {
        iter::repeat_n(self.access, self.count).chain(self.hand_out)
    }
}

/// With whose rights a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The daemon's own, or the asker's where those are not enough: it gives no more than the kept
    /// descriptor gives already.
    Daemon,
    /// The asker's alone, so that the daemon lends nobody its power.
    Asker,
}

/// Why one of several files could not be opened; none of them is open then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFailure {
    /// Which of them, counted from 0.
    pub at: usize,
    /// The errno.
    pub errno: i32,
    /// Its name.
    pub errno_name: String,
    /// What it means here.
    pub message: String,
}

/// How an entry's file is opened for a Reopen: once to keep and once to hand out, so that what is kept
/// is lent to nobody, nor narrowed by whoever wants less. What stands at a place is opened with the
/// peer's rights, however little it gives.
///
/// # Errors
///
/// AccessDenied for more access than the giver allows, or more handed out than is kept; of a pipe,
/// for its other end, since that would be another thing than the one given.
pub(crate) fn plan<F>(
    who: &Who,
    entry: &Details,
    fd: &Arc<F>,
    wanted: &Reopening,
    place: Option<Place>,
) -> Result<Opening<F>, Refusal> {
    let facts = &entry.facts;
    let access = wanted.access.unwrap_or(facts.access);
    let hand_out = wanted.hand_out.unwrap_or(access);
    let widens = !facts.access.covers(access);
    if !entry.may_reopen.covers(access)
        || !access.covers(hand_out)
        || (widens && facts.kind == Kind::Fifo)
    {
        return Err(denied(&entry.name, Verb::Reopen));
    }
    let flags = [
        (Flags::DIRECT, wanted.direct),
        (Flags::SYNC, wanted.sync),
        (Flags::DSYNC, wanted.dsync),
        (Flags::APPEND, wanted.append),
        (Flags::NONBLOCK, wanted.nonblock),
        (Flags::NOATIME, wanted.noatime),
    ]
    .into_iter()
    .filter_map(|(flag, on)| Some((flag, on?)))
    .fold(facts.flags, |flags, (flag, on)| flags.with(flag, on));
    let changed = facts.flags.differing(flags);
    let overwrites = changed.contains(Flags::APPEND) && !flags.contains(Flags::APPEND);
    // The kernel grants it to the file's owner alone, and the daemon may be more.
    let unseen = changed.contains(Flags::NOATIME) && flags.contains(Flags::NOATIME);
    let more = widens || overwrites || unseen || place.is_some();
    let rights = if more { Rights::Asker } else { Rights::Daemon };
    let hand_out = Some(hand_out);
    Ok(Opening { access, flags, rights, hand_out, place, ..again(who, &entry.name, fd, facts) })
}

/// How a file is opened once more as it is.
pub(crate) fn again<F>(who: &Who, name: &Name, fd: &Arc<F>, facts: &Facts) -> Opening<F> {
    Opening {
        name: name.clone(),
        fd: Arc::clone(fd),
        place: None,
        facts: facts.clone(),
        access: facts.access,
        flags: facts.flags,
        rights: Rights::Daemon,
        asker: who.clone(),
        count: 1,
        hand_out: None,
    }
}

/// How it is found out that a giver could have opened its gift with as much access as it allows to
/// a Reopen; none, where it allows no more than the gift has.
///
/// # Errors
///
/// AccessDenied for the other end of a pipe.
pub(crate) fn probe<F>(
    who: &Who,
    name: &Name,
    fd: &Arc<F>,
    facts: &Facts,
    may_reopen: Access,
) -> Result<Option<Opening<F>>, Refusal> {
    if facts.access.covers(may_reopen) {
        return Ok(None);
    }
    if facts.kind == Kind::Fifo {
        return Err(denied(name, Verb::Reopen));
    }
    let rights = Rights::Asker;
    Ok(Some(Opening { access: may_reopen, rights, count: 0, ..again(who, name, fd, facts) }))
}

pub(crate) fn denied(name: &Name, verb: Verb) -> Refusal {
    Refusal::AccessDenied { name: name.as_str().to_owned(), verb: verb.as_str().to_owned() }
}

#[cfg(test)]
mod tests {
    use fdstash_proto::Peer;

    use super::*;
    use crate::EntryId;

    const READ: Access = Access::Read;
    const WRITE: Access = Access::Write;
    const BOTH: Access = Access::ReadWrite;
    const PATH: Access = Access::Path;

    /// What a plan comes to: a file opened with the daemon's rights, or with the peer's, or none.
    #[derive(Debug, PartialEq)]
    enum Comes {
        AsDaemon(Access, Flags),
        AsPeer(Access, Flags),
        Denied,
    }
    use Comes::{AsDaemon, AsPeer, Denied};

    #[test]
    fn no_more_access_than_allowed_and_more_than_there_is_only_as_the_peer() {
        let file = Kind::Regular;
        let pipe = Kind::Fifo;

        // What it is, what it has, what the giver allows, what is wanted, and what comes of it.
        for (kind, has, may, wanted, comes) in [
            (file, BOTH, BOTH, None, AsDaemon(BOTH, Flags::NONE)),
            (file, BOTH, BOTH, Some(BOTH), AsDaemon(BOTH, Flags::NONE)),
            (file, BOTH, BOTH, Some(READ), AsDaemon(READ, Flags::NONE)),
            (file, BOTH, BOTH, Some(PATH), AsDaemon(PATH, Flags::NONE)),
            (file, READ, READ, Some(READ), AsDaemon(READ, Flags::NONE)),
            (file, READ, READ, Some(WRITE), Denied),
            (file, READ, READ, Some(BOTH), Denied),
            (file, READ, BOTH, Some(BOTH), AsPeer(BOTH, Flags::NONE)),
            (file, READ, BOTH, Some(WRITE), AsPeer(WRITE, Flags::NONE)),
            (file, READ, WRITE, Some(WRITE), AsPeer(WRITE, Flags::NONE)),
            (file, READ, WRITE, Some(BOTH), Denied),
            (file, PATH, PATH, Some(READ), Denied),
            (file, PATH, READ, Some(READ), AsPeer(READ, Flags::NONE)),
            // What the giver allows is the most, also where that is less than there is.
            (file, BOTH, READ, None, Denied),
            (file, BOTH, READ, Some(READ), AsDaemon(READ, Flags::NONE)),
            (pipe, READ, READ, None, AsDaemon(READ, Flags::NONE)),
            (pipe, BOTH, BOTH, Some(WRITE), AsDaemon(WRITE, Flags::NONE)),
            // A pipe's end never becomes the other end, whoever asks and whatever was allowed.
            (pipe, READ, BOTH, Some(WRITE), Denied),
            (pipe, READ, BOTH, Some(BOTH), Denied),
            (pipe, WRITE, BOTH, Some(READ), Denied),
        ] {
            let entry = entry(kind, has, may, Flags::NONE);
            let reopening = Reopening { access: wanted, ..reopening() };

            let plan = plan(&peer(), &entry, &Arc::new(()), &reopening, None);

            assert_eq!(came(plan), comes, "{kind:?} {has:?}, at most {may:?}, for {wanted:?}");
        }
    }

    #[test]
    fn flags_stay_as_they_are_but_for_those_that_are_named() {
        let two = Flags::DIRECT.with(Flags::APPEND, true);
        let all = [Flags::SYNC, Flags::DSYNC, Flags::NONBLOCK, Flags::NOATIME]
            .into_iter()
            .fold(two, |flags, flag| flags.with(flag, true));
        let (on, off) = (Some(true), Some(false));
        let wanted = reopening;

        // What it has, what is wanted, and what comes of it.
        for (has, wanted, comes) in [
            (two, wanted(), AsDaemon(BOTH, two)),
            (all, wanted(), AsDaemon(BOTH, all)),
            (Flags::NONE, Reopening { direct: on, ..wanted() }, AsDaemon(BOTH, Flags::DIRECT)),
            (two, Reopening { direct: off, ..wanted() }, AsDaemon(BOTH, Flags::APPEND)),
            (two, Reopening { direct: on, append: on, ..wanted() }, AsDaemon(BOTH, two)),
            (Flags::NONE, Reopening { sync: on, ..wanted() }, AsDaemon(BOTH, Flags::SYNC)),
            (Flags::SYNC, Reopening { sync: off, ..wanted() }, AsDaemon(BOTH, Flags::NONE)),
            (Flags::NONE, Reopening { dsync: on, ..wanted() }, AsDaemon(BOTH, Flags::DSYNC)),
            (Flags::NONE, Reopening { nonblock: on, ..wanted() }, AsDaemon(BOTH, Flags::NONBLOCK)),
            (Flags::NONE, Reopening { append: on, ..wanted() }, AsDaemon(BOTH, Flags::APPEND)),
            // Without O_APPEND a writer can overwrite: that is more than it had.
            (two, Reopening { append: off, ..wanted() }, AsPeer(BOTH, Flags::DIRECT)),
            // O_NOATIME is its owner's to ask for.
            (Flags::NONE, Reopening { noatime: on, ..wanted() }, AsPeer(BOTH, Flags::NOATIME)),
            (Flags::NOATIME, Reopening { noatime: on, ..wanted() }, AsDaemon(BOTH, Flags::NOATIME)),
            (Flags::NOATIME, Reopening { noatime: off, ..wanted() }, AsDaemon(BOTH, Flags::NONE)),
            (
                Flags::NONE,
                Reopening { noatime: off, append: off, ..wanted() },
                AsDaemon(BOTH, Flags::NONE),
            ),
        ] {
            let entry = entry(Kind::Regular, BOTH, BOTH, has);

            let plan = plan(&peer(), &entry, &Arc::new(()), &wanted, None);

            assert_eq!(came(plan), comes, "{has:?}, for {wanted:?}");
        }
    }

    #[test]
    fn what_is_reopened_is_opened_once_to_keep_and_once_to_lend() {
        let entry = entry(Kind::Regular, BOTH, BOTH, Flags::NONE);

        let opening = plan(&peer(), &entry, &Arc::new("disk"), &reopening(), None).unwrap();

        assert_eq!(opening.wanted().collect::<Vec<_>>(), [BOTH, BOTH]);
        assert_eq!((*opening.fd, opening.facts), ("disk", entry.facts));
    }

    #[test]
    fn what_is_handed_out_can_do_no_more_than_what_is_kept() {
        let file = Kind::Regular;
        let pipe = Kind::Fifo;
        let as_daemon = |kept, handed| Some((AsDaemon(kept, Flags::NONE), handed));
        let as_peer = |kept, handed| Some((AsPeer(kept, Flags::NONE), handed));

        // What it is, what it has, what the giver allows, what is wanted of what is kept and of what is
        // handed out, and what comes of it: what is kept, and what is handed out.
        for (kind, has, may, wanted, hand_out, comes) in [
            (file, BOTH, BOTH, None, Some(READ), as_daemon(BOTH, READ)),
            (file, BOTH, BOTH, None, Some(WRITE), as_daemon(BOTH, WRITE)),
            (file, BOTH, BOTH, None, Some(BOTH), as_daemon(BOTH, BOTH)),
            (file, BOTH, BOTH, None, Some(PATH), as_daemon(BOTH, PATH)),
            (file, BOTH, BOTH, Some(READ), None, as_daemon(READ, READ)),
            (file, BOTH, BOTH, Some(READ), Some(PATH), as_daemon(READ, PATH)),
            (file, BOTH, BOTH, Some(PATH), Some(PATH), as_daemon(PATH, PATH)),
            // What is kept from then on counts, not what was kept before.
            (file, BOTH, BOTH, Some(READ), Some(BOTH), None),
            (file, BOTH, BOTH, Some(PATH), Some(READ), None),
            (file, READ, BOTH, None, Some(BOTH), None),
            (file, READ, READ, None, Some(WRITE), None),
            (file, WRITE, BOTH, None, Some(READ), None),
            // With the rights that what is kept needs, no others.
            (file, READ, BOTH, Some(BOTH), Some(READ), as_peer(BOTH, READ)),
            (file, READ, BOTH, Some(BOTH), Some(BOTH), as_peer(BOTH, BOTH)),
            (file, PATH, READ, Some(READ), Some(PATH), as_peer(READ, PATH)),
            // It is what is kept that must not be more than allowed, also where less is handed out.
            (file, READ, READ, Some(BOTH), Some(READ), None),
            (file, BOTH, READ, None, Some(READ), None),
            (pipe, BOTH, BOTH, None, Some(READ), as_daemon(BOTH, READ)),
            (pipe, BOTH, BOTH, None, Some(WRITE), as_daemon(BOTH, WRITE)),
            (pipe, READ, BOTH, None, Some(WRITE), None),
            (pipe, READ, BOTH, None, Some(BOTH), None),
            (pipe, READ, BOTH, Some(BOTH), Some(READ), None),
            (pipe, WRITE, BOTH, None, Some(READ), None),
        ] {
            let entry = entry(kind, has, may, Flags::NONE);
            let reopening = Reopening { access: wanted, hand_out, ..reopening() };

            let plan = plan(&peer(), &entry, &Arc::new(()), &reopening, None);

            let case =
                format!("{kind:?} {has:?}, at most {may:?}, for {wanted:?} and {hand_out:?}");
            let handed = plan.as_ref().map(|opening| opening.wanted().last());
            match (handed, comes) {
                (Ok(handed), Some((kept, expected))) => {
                    assert_eq!(handed, Some(expected), "{case}");
                    assert_eq!(came(plan), kept, "{case}");
                }
                (_, expected) => assert_eq!((came(plan), expected), (Denied, None), "{case}"),
            }
        }
    }

    #[test]
    fn what_is_handed_out_has_the_flags_of_what_is_kept() {
        let entry = entry(Kind::Regular, BOTH, BOTH, Flags::APPEND);
        let wanted = Reopening {
            hand_out: Some(READ),
            direct: Some(true),
            append: Some(false),
            ..reopening()
        };

        let opening = plan(&peer(), &entry, &Arc::new(()), &wanted, None).unwrap();

        // Who could then overwrite with what is kept needs the right to it, whatever is handed out.
        assert_eq!(opening.wanted().collect::<Vec<_>>(), [BOTH, READ]);
        assert_eq!(came(Ok(opening)), AsPeer(BOTH, Flags::DIRECT));
    }

    #[test]
    fn it_is_found_out_whether_a_giver_has_the_access_that_it_allows() {
        for (kind, has, may, comes) in [
            (Kind::Regular, BOTH, READ, None),
            (Kind::Regular, READ, READ, None),
            (Kind::Regular, READ, PATH, None),
            (Kind::Regular, READ, BOTH, Some(AsPeer(BOTH, Flags::DIRECT))),
            (Kind::Regular, PATH, READ, Some(AsPeer(READ, Flags::DIRECT))),
            (Kind::Fifo, READ, READ, None),
            (Kind::Fifo, READ, BOTH, Some(Denied)),
        ] {
            let Details { name, facts, .. } = entry(kind, has, may, Flags::DIRECT);

            let probe = probe(&peer(), &name, &Arc::new(()), &facts, may).transpose();

            let count = probe.iter().flatten().flat_map(Opening::wanted).count();
            assert_eq!(probe.map(came), comes, "{kind:?} {has:?}, at most {may:?}");
            assert_eq!(count, 0, "nothing of it is kept");
        }
    }

    fn came<F>(outcome: Result<Opening<F>, Refusal>) -> Comes {
        match outcome {
            Ok(Opening { access, flags, rights: Rights::Daemon, .. }) => AsDaemon(access, flags),
            Ok(Opening { access, flags, rights: Rights::Asker, asker, .. }) => {
                assert_eq!(asker, peer());
                AsPeer(access, flags)
            }
            Err(refusal) => {
                let (name, verb) = ("disk".into(), "reopen".into());
                assert_eq!(refusal, Refusal::AccessDenied { name, verb });
                Denied
            }
        }
    }

    fn peer() -> Who {
        Who { peer: Peer { uid: 1, gid: 1, pid: 1 }, groups: [2].into() }
    }

    fn reopening() -> Reopening {
        Reopening::new(Name::new("disk").unwrap())
    }

    fn entry(kind: Kind, access: Access, may_reopen: Access, flags: Flags) -> Details {
        Details {
            id: EntryId(1),
            name: Name::new("disk").unwrap(),
            facts: Facts { kind, access, flags, device: 1, inode: 2, target: None },
            may_reopen,
            giver: Peer { uid: 3, gid: 3, pid: 3 },
            given_at_usec: 0,
            notes: None,
            revision: 1,
        }
    }
}
