//! Coming back to what was kept: the journal says what each open descriptor is, and what it says
//! nothing of is closed.

use std::{
    mem::ManuallyDrop,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use fdstash_proto::Keeper;
use fdstash_stash::{Carried, Details, Effects, Kept, Number, Replay, Stash};

use crate::{
    args::Config,
    descriptor::Descriptor,
    heart::Heart,
    inherited::{Inherited, number},
    journal,
    keeper::Start,
    lasting::Lasting,
    ledger::{Ledger, ROOT},
    mirror::bundle,
    peer,
    steps::step,
};

/// How long to wait for the closing of what nobody knows. It frees numbers, of which this server
/// needs some; but a close may wait for a server that is dead.
const TIDYING: Duration = Duration::from_secs(1);

/// What is left of an earlier server: what the journal says, and the descriptors that it names.
pub(crate) struct Left {
    replay: Replay,
    carried: Vec<Carried>,
    /// What has ended with the connections of a server that died.
    ended: Vec<Arc<Details>>,
    open: Inherited,
    /// All that is open for others than this daemon.
    foreign: Inherited,
    bundles: ManuallyDrop<Vec<OwnedFd>>,
    closed: usize,
}

/// A stash of what was kept, and what goes with it. Owns every descriptor of the process that is not
/// [`Lasting`], nor this server's.
pub(crate) struct Restored {
    /// Never dropped: what that would close, the journal names, and the next server is to find.
    pub(crate) stash: ManuallyDrop<Stash<Descriptor>>,
    pub(crate) effects: Effects<Descriptor>,
    /// The connections that go on.
    pub(crate) connections: Vec<Connected>,
    /// What has ended with those that do not.
    pub(crate) ended: Vec<Arc<Details>>,
    pub(crate) ledger: Ledger,
    /// What the service manager has been given to store, by whomever. Not dropped where this server
    /// fails: the next one comes back to that too, if there is no journal yet.
    pub(crate) bundles: ManuallyDrop<Vec<OwnedFd>>,
    /// What of all that is open is not this daemon's own.
    pub(crate) foreign: Inherited,
    /// How many descriptors were closed that nobody knew.
    pub(crate) closed: usize,
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

/// Finds what is left of an earlier server, and closes what nobody knows. To be called before this
/// server opens anything.
///
/// # Errors
///
/// If the journal cannot be read, or `/proc` does not tell what is open. Then nothing is closed.
pub(crate) fn find(lasting: &Lasting, start: Start) -> Result<Left> {
    let standard: [Number; 3] = [0, 1, 2];
    let mut open = Inherited::all_but(lasting.numbers().chain(standard))?;
    step("before the journal is read");
    let mut replay = Replay::default();
    journal::read(&lasting.journal, |line| replay.add(line)).context("reading the journal")?;
    let ended = match start {
        Start::Serve => replay.forget_connections(),
        Start::TakeOver => Vec::new(),
    };
    if replay.is_the_first() {
        adopt(&mut replay, &mut open, &lasting.stored)?;
    }
    let carried = replay.take_carried();
    let of_connections = carried.iter().flat_map(|one| one.fds.iter().chain([&one.number]));
    let known: Vec<_> = replay.numbers().chain(of_connections.copied()).collect();
    step("before what nobody knows is closed");
    // What the journal still names of it is ephemeral, and no server ever comes back to that.
    let unknown = open.claim_all_but(known);
    let (bundles, unknown): (Vec<_>, Vec<_>) = unknown.into_iter().partition(bundle::is_one);
    let (bundles, closed) = (ManuallyDrop::new(bundles), unknown.len());
    close_all(unknown)?;
    step("after what nobody knew is closed");
    Ok(Left { replay, carried, ended, foreign: open.clone(), open, bundles, closed })
}

/// Closes on a thread of its own, and does not wait for ever. There is no loop yet, and no closer.
fn close_all(fds: Vec<OwnedFd>) -> Result<()> {
    let (done, is_done) = mpsc::channel();
    let close = move || {
        drop(fds);
        // Fails if nobody waits any more.
        let _ = done.send(());
    };
    thread::Builder::new().spawn(close).context("starting a thread")?;
    // What has not been closed by then has lost its number at least, or waits behind what has.
    let _ = is_done.recv_timeout(TIDYING);
    Ok(())
}

/// Restores what is left.
pub(crate) fn restore(left: Left, config: &Config, heart: Heart, ledger: Ledger) -> Restored {
    let Left { replay, carried, ended, mut open, foreign, bundles, closed } = left;
    let mut claim = |number: Number| open.claim(number);
    let mut connections = Vec::new();
    for carried in carried {
        let socket = claim(carried.number);
        let who = socket.as_ref().and_then(|socket| peer::who(socket).ok());
        let account = ledger.account(who.map_or(ROOT, |who| who.peer.uid));
        let fds = carried.fds.iter().map(|number| Some(Descriptor::new(claim(*number)?, &account)));
        let fds = fds.collect::<Option<Vec<_>>>();
        // Without one of them, the others would be taken for what they are not.
        let (Some(socket), Some(fds)) = (socket, fds) else { continue };
        connections.push(Connected { carried, socket, fds });
    }
    let (mut back, mut missing) = (0, 0);
    let claim_kept = |kept: &Kept<Number>| {
        // However many there are, the keeper sees that it goes on.
        heart.beat();
        let fd = claim(*kept.fd);
        match &fd {
            Some(_) => back += 1,
            None => {
                missing += 1;
                let name = &kept.details.name;
                tracing::error!(%name, number = *kept.fd, "a kept descriptor is not there");
            }
        }
        fd.map(|fd| {
            let fd = Descriptor::new(fd, &ledger.account(kept.details.giver.uid));
            fd.hold();
            Arc::new(fd)
        })
    };
    let (stash, effects) = Stash::restore(config.limits, Keeper::Process, replay, claim_kept);
    step("after a restore");
    let stash = ManuallyDrop::new(stash);
    Restored { stash, effects, connections, ended, ledger, bundles, foreign, closed, back, missing }
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
