//! Coming back to what was kept: the journal says what each open descriptor is, and what it says
//! nothing of is closed.

use std::{io, os::fd::OwnedFd, sync::Arc};

use anyhow::{Context, Result, bail};
use fdstash_proto::Keeper;
use fdstash_stash::{Carried, Details, Effects, Kept, Number, Replay, Stash};

use crate::{
    args::Config,
    closer::Closer,
    descriptor::Descriptor,
    inherited::{Inherited, number},
    journal,
    keeper::Start,
    lasting::Lasting,
    mirror::bundle,
};

/// A stash of what was kept, and what goes with it. Owns every descriptor of the process that is not
/// [`Lasting`], nor this server's.
pub(crate) struct Restored {
    pub(crate) stash: Stash<Descriptor>,
    pub(crate) effects: Effects<Descriptor>,
    /// The connections that go on.
    pub(crate) connections: Vec<Connected>,
    /// What nobody knows, to be closed.
    pub(crate) unknown: Vec<OwnedFd>,
    /// How many entries came back.
    pub(crate) back: usize,
    /// How many did not, though they should have.
    pub(crate) missing: usize,
}

/// A connection that goes on.
pub(crate) struct Connected {
    pub(crate) carried: Carried,
    pub(crate) socket: OwnedFd,
    /// What came with what has come over it and is not yet understood.
    pub(crate) fds: Vec<Descriptor>,
}

/// What is open and not [`Lasting`]: to be asked for before this server opens anything.
///
/// # Errors
///
/// If `/proc` does not tell.
pub(crate) fn left_open(lasting: &Lasting) -> Result<Inherited> {
    let standard: [Number; 3] = [0, 1, 2];
    Inherited::all_but(lasting.numbers().chain(standard))
}

/// Restores from the journal. Owns what was left open.
///
/// # Errors
///
/// If the journal cannot be read. Then nothing is closed.
pub(crate) fn restore(
    lasting: &Lasting,
    config: &Config,
    start: Start,
    mut open: Inherited,
    closer: &Closer,
) -> Result<Restored> {
    let mut replay = Replay::default();
    let read = journal::read(&lasting.journal, |line| replay.add(line));
    read.context("reading the journal")?;
    if start == Start::Serve {
        replay.forget_connections();
    }
    if replay.is_the_first() {
        adopt(&mut replay, &mut open, &lasting.stored)?;
    }
    let mut claim = |number: Number| open.claim(number);
    let mut connections = Vec::new();
    for carried in replay.take_carried() {
        let fds = carried.fds.iter().filter_map(|number| claim(*number));
        let fds = fds.map(|fd| Descriptor::new(fd, closer)).collect();
        let Some(socket) = claim(carried.number) else { continue };
        connections.push(Connected { carried, socket, fds });
    }
    let (mut back, mut missing) = (0, 0);
    let claim_kept = |kept: &Kept<Number>| {
        let fd = claim(*kept.fd);
        match &fd {
            Some(_) => back += 1,
            None => {
                missing += 1;
                let name = &kept.details.name;
                tracing::error!(%name, number = *kept.fd, "a kept descriptor is not there");
            }
        }
        fd.map(|fd| Arc::new(Descriptor::new(fd, closer)))
    };
    let (stash, effects) = Stash::restore(config.limits, Keeper::Process, replay, claim_kept);
    let unknown = open.claim_rest();
    Ok(Restored { stash, effects, connections, unknown, back, missing })
}

/// Takes in what the service manager has kept for an earlier daemon, and leaves it there as it is.
///
/// # Errors
///
/// If there is no room for all of it. To go on without would end with its removal from the store.
fn adopt(replay: &mut Replay, open: &mut Inherited, stored: &[Number]) -> Result<()> {
    let ends: Vec<_> = stored.iter().filter_map(|number| open.claim(*number)).collect();
    let unread = bundle::read_back(&ends, |record, fd| match Details::read(&record) {
        // One that is here twice closes again.
        Ok(details) => {
            let kept = Kept { fd: Arc::new(number(&fd)), details: Arc::new(details) };
            if replay.adopt(kept) {
                open.give_back(fd);
            }
        }
        Err(error) => tracing::error!(%error, "what the service manager has kept is unreadable"),
    });
    if let Some(error) = unread.iter().find(|unread| unread.is_for_lack_of_room()) {
        bail!(
            "not all that the service manager has kept finds room here, {error}: raise LimitNOFILE= \
             (ulimit -n); until then nothing is removed from its store"
        );
    }
    for error in unread {
        tracing::error!(%error, "reading what the service manager has kept failed");
    }
    if !ends.is_empty() {
        tracing::info!(bundles = ends.len(), entries = replay.len(), "read what systemd has kept");
    }
    ends.into_iter().for_each(|end| open.give_back(end));
    Ok(())
}

/// Writes all of a journal anew, with room for what may have to follow.
///
/// # Errors
///
/// If there is no memory for it; then it is as it was.
pub(crate) fn rewrite(journal: &mut journal::Journal, stash: &Stash<Descriptor>) -> io::Result<()> {
    journal.rewrite(stash.weight().promised, |lines| {
        lines.push(|bytes| stash.begin_journal().write(bytes));
        for record in stash.records() {
            lines.push(|bytes| record.write(|fd| number(fd), bytes));
        }
    })
}
