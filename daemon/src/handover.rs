//! Going on with the next version of this program, and with a keeper that has died. It is one file,
//! since what one side does is right only as the other expects it.
//!
//! A server that hands over begins no further call, lets those end that have begun, writes down which
//! connections there are, and is still: from then on it changes nothing. Its keeper execs the next
//! version, whose first server takes over by a byte on a socket, the *baton*; only then this one
//! ends. If the keeper dies instead, or thinks better of it, this one goes on as if nothing had been.
//! Which of the two serves is decided by the kernel: a byte sent before the baton was shut down is a
//! byte received, and afterwards none can be sent.

use std::{cell::RefCell, collections::BTreeMap, io, os::fd::OwnedFd, rc::Rc, time::Duration};

use anyhow::{Context, Result, bail};
use fdstash_stash::{Carried, ConnectionId, write_handover};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send,
        shutdown, socketpair,
    },
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getppid, pidfd_open, pidfd_send_signal, waitpid,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    heart::{Heart, State, Stored, Wish},
    inherited::{number, set_survives_exec},
    lasting::Lasting,
    mirror::Mirror,
    polled::polled,
    rest::Rest,
    run::Daemon,
    server::{Event, Signals},
    spare,
    steps::step,
    systemd::capacity,
};

/// How long what has begun may take to end: transactions, opens, answers that are being read. Whose
/// does not, is hung up on.
const DRAIN: Duration = Duration::from_secs(3);

/// How long those may take that are hung up on.
const CUT: Duration = Duration::from_secs(1);

/// How long the next server may take to take over.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// Room for a line of a few numbers, and for the frame of a line.
const SMALL: usize = 64;

/// Between two looks whether the mirror has come to rest.
const GLANCE: Duration = Duration::from_millis(2);

/// How long to wait with making another keeper, after that has failed.
const AGAIN: Duration = Duration::from_millis(200);

/// How far a daemon has stopped, so that another may go on.
#[derive(Default)]
pub(crate) struct Pause {
    /// Whether no call is begun but those of open transactions.
    pub(crate) is_frozen: bool,
    /// Whether nothing is changed any more.
    pub(crate) is_still: bool,
    resting: BTreeMap<ConnectionId, Rest>,
    /// Wakes who waits for all to rest.
    news: Rc<Notify>,
}

impl Pause {
    /// Takes note that a connection rests.
    pub(crate) fn rest(&mut self, id: ConnectionId, rest: Rest) {
        self.resting.insert(id, rest);
        self.news.notify_one();
    }

    /// Takes note that it does so no longer, or has ended.
    pub(crate) fn forget(&mut self, id: ConnectionId) {
        self.resting.remove(&id);
        self.news.notify_one();
    }
}

/// Stops, and lets the next version of this program go on. Returns if that did not come about, and
/// everything goes on here.
pub(crate) async fn hand_over(
    daemon: &Rc<RefCell<Daemon>>,
    heart: Heart,
    keeper: &mut Keeper,
    signals: &mut Signals,
) {
    tracing::info!("making way for the next version");
    step("before the drain");
    let stopped = match rest_mirror(daemon).await {
        Ok(()) => {
            freeze(daemon).await;
            step("after the drain");
            stop(&mut daemon.borrow_mut())
        }
        Err(error) => Err(error),
    };
    match stopped {
        Ok(baton) => {
            heart.set_baton(number(&baton.theirs));
            step("before the keeper is told");
            heart.set_state(State::Drained);
            keeper.tell();
            step("after the keeper is told");
            baton.wait(heart, keeper, signals).await;
        }
        Err(error) => tracing::error!(%error, "making way failed"),
    }
    tracing::info!("going on");
    thaw(&mut daemon.borrow_mut());
    heart.set_state(State::Serving);
}

/// Lets come to an end what has begun.
async fn freeze(daemon: &Rc<RefCell<Daemon>>) {
    daemon.borrow_mut().pause.is_frozen = true;
    wake_all(&daemon.borrow());
    let news = Rc::clone(&daemon.borrow().pause.news);
    let all_rest = || {
        let daemon = daemon.borrow();
        let rests = |id| daemon.pause.resting.contains_key(id);
        daemon.seats.iter().all(|(id, seat)| rests(id) && seat.is_quiet())
    };
    let rest = |until: Instant| {
        let news = Rc::clone(&news);
        async move {
            while !all_rest() {
                if timeout_at(until, news.notified()).await.is_err() {
                    return;
                }
            }
        }
    };
    rest(Instant::now() + DRAIN).await;
    let cut: Vec<_> = {
        let daemon = daemon.borrow();
        let busy = daemon.seats.iter().filter(|(id, _)| !daemon.pause.resting.contains_key(id));
        busy.map(|(_, seat)| Rc::clone(seat)).collect()
    };
    if !cut.is_empty() {
        tracing::warn!(connections = cut.len(), "hanging up on those who do not come to an end");
        cut.iter().for_each(|seat| seat.cut());
    }
    rest(Instant::now() + CUT).await;
}

/// Has nothing told to the service manager's store any more.
async fn rest_mirror(daemon: &Rc<RefCell<Daemon>>) -> io::Result<()> {
    daemon.borrow().mirror.iter().for_each(Mirror::pause);
    let until = Instant::now() + DRAIN;
    while !daemon.borrow().mirror.as_ref().is_none_or(Mirror::is_at_rest) {
        if Instant::now() > until {
            return Err(io::Error::other("the service manager does not take what is being stored"));
        }
        sleep(GLANCE).await;
    }
    Ok(())
}

/// Writes down who goes on, and leaves everything open that the next server needs.
fn stop(daemon: &mut Daemon) -> io::Result<Baton> {
    daemon.pause.is_still = true;
    let mut carried = Vec::new();
    for (id, doing) in daemon.stash.carry() {
        // Who was told something since it rests, would never hear of it.
        let is_quiet = daemon.seats.get(&id).is_some_and(|seat| seat.is_quiet());
        let rest = daemon.pause.resting.remove(&id).filter(|_| is_quiet);
        let Some(Rest { socket, mode, lost, bytes, fds }) = rest else { continue };
        carried.push(Carried { id, number: socket, mode, doing, lost, bytes, fds });
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_survives_exec(&theirs, true)?;
    for kept in daemon.stash.kept() {
        set_survives_exec(&*kept.fd, true)?;
    }
    let begin = daemon.stash.begin_journal();
    let mut line = Vec::new();
    write_handover(&carried, &mut line);
    step("before a handover");
    daemon.journal.make_room(2 * SMALL + line.len() + daemon.stash.weight().promised)?;
    // Numbers of connections that have left no other trace are not used again either.
    daemon.journal.append(|bytes| begin.write(bytes))?;
    daemon.journal.append(|bytes| bytes.extend_from_slice(&line))?;
    step("after a handover");
    Ok(Baton { ours: polled(ours, Interest::READABLE)?, theirs })
}

/// Goes on where everything stopped.
fn thaw(daemon: &mut Daemon) {
    for kept in daemon.stash.kept() {
        // What was possible the other way round, is.
        let _ = set_survives_exec(&*kept.fd, false);
    }
    daemon.reopen_journal();
    daemon.pause.is_frozen = false;
    daemon.pause.is_still = false;
    daemon.ask_anew();
    daemon.pause.resting.clear();
    daemon.mirror.iter().for_each(Mirror::resume);
    daemon.handle_pending();
    wake_all(daemon);
}

fn wake_all(daemon: &Daemon) {
    daemon.seats.values().for_each(|seat| seat.wake());
}

/// By which the next server says that it has taken over.
struct Baton {
    ours: AsyncFd<OwnedFd>,
    /// The next one's end. This table has it as well, so it never hangs up.
    theirs: OwnedFd,
}

impl Baton {
    /// Waits until the next server has taken over, which this one does not survive; or until it is
    /// sure that none will.
    async fn wait(self, heart: Heart, keeper: &mut Keeper, signals: &mut Signals) {
        let until = Instant::now() + TAKE_OVER;
        loop {
            let event = async {
                tokio::select! {
                    _ = self.ours.readable() => None,
                    event = signals.next(keeper) => Some(event),
                }
            };
            match timeout_at(until, event).await {
                Ok(None) => break,
                Ok(Some(Event::Look)) if heart.wish() == Wish::Drain => {}
                // The next server may be serving already: whoever of the two serves, ends.
                Ok(Some(Event::Upgrade | Event::End)) => {}
                Ok(Some(Event::KeeperHangs)) => keeper.kill(),
                Ok(Some(Event::Look | Event::KeeperGone)) => break,
                Err(_) => {
                    tracing::error!("the next version does not take over");
                    keeper.kill();
                    let _ = timeout(TAKE_OVER, keeper.gone()).await;
                    break;
                }
            }
        }
        if self.is_passed() {
            tracing::info!("the next version has taken over");
            if signals.has_ended {
                keeper.end();
            }
            // Whatever this process still has open, the other one has, too.
            std::process::exit(0);
        }
    }

    /// Whether another server has taken over; if not, none can from now on.
    fn is_passed(&self) -> bool {
        let _ = shutdown(self.ours.get_ref(), Shutdown::Both);
        let mut byte = [0];
        matches!(recv(self.ours.get_ref(), &mut byte, RecvFlags::DONTWAIT), Ok((_, 1)))
    }
}

/// The keeper, as its server sees it.
pub(crate) struct Keeper {
    pid: Pid,
    /// None, where it had died before it could be watched.
    process: Option<AsyncFd<OwnedFd>>,
    /// Whether its death was seen.
    is_gone: bool,
    /// Whether it is one that this server has made itself.
    is_spare: bool,
}

impl Keeper {
    /// This server's, by the number that it had when it made this process. It may have died since.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn find(heart: Heart) -> Result<Self> {
        let pid = heart.keeper().context("the keeper has no number here")?;
        Self::watch(pid, false).context("watching the keeper")
    }

    fn watch(pid: Pid, is_spare: bool) -> io::Result<Self> {
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            // As long as it is this one's parent, or child, its number is nobody else's.
            Ok(process) if is_spare || getppid() == Some(pid) => {
                Some(polled(process, Interest::READABLE)?)
            }
            Ok(_) | Err(Errno::SRCH) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { pid, process, is_gone: false, is_spare })
    }

    /// Makes another one in the place of the one that has died, which holds what that held.
    pub(crate) async fn replace(&mut self, lasting: &Lasting, heart: Heart) {
        if self.is_spare {
            // It is this one's child.
            let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        }
        // It cannot count what is stored from now on: as much as there can be.
        let stored = heart.stored();
        let stored = Stored {
            next_life: stored.next_life + 1,
            most_bundles: stored.most_bundles.max(capacity().unwrap_or_default() as u64),
            ..stored
        };
        let spare = spare::make(heart, lasting.tell(None, stored));
        match spare.and_then(|pid| Self::watch(pid, true)) {
            Ok(spare) => {
                tracing::error!(
                    spare = spare.pid.as_raw_pid(),
                    server = std::process::id(),
                    "the keeper has died, made another: nothing is lost"
                );
                *self = spare;
            }
            Err(error) => {
                tracing::error!(%error, "the keeper has died, making another failed");
                sleep(AGAIN).await;
            }
        }
    }

    /// Its number.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Waits until it has died; and for as long as there is no other, it has.
    pub(crate) async fn gone(&mut self) {
        if let Some(process) = self.process.as_ref().filter(|_| !self.is_gone) {
            let _ = process.readable().await;
        }
        self.is_gone = true;
    }

    /// Has it look at what its server says.
    fn tell(&self) {
        self.signal(Signal::USR1);
    }

    /// Asks it for an upgrade.
    pub(crate) fn ask_for_upgrade(&self) {
        if self.is_spare || self.is_gone {
            tracing::warn!(
                "ignoring a SIGHUP: the keeper has died, and its spare upgrades nothing, and loads no \
                 policy, until the server has died too (kill -9 it: nothing is lost)"
            );
        } else {
            self.signal(Signal::HUP);
        }
    }

    /// Asks it to end the daemon.
    fn end(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it, since it hangs.
    pub(crate) fn kill(&self) {
        if !self.is_gone {
            tracing::error!(pid = self.pid(), "the keeper hangs, ending it");
            self.signal(Signal::KILL);
        }
    }

    /// By what watches it, since its number may be another's when it is gone.
    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process.get_ref(), signal);
        }
    }

    /// Takes over from the server of the version before.
    ///
    /// # Errors
    ///
    /// If that one goes on instead.
    pub(crate) fn take_over(&self, lasting: &Lasting) -> Result<()> {
        let Some(baton) = &lasting.baton else { return Ok(()) };
        step("before the baton");
        let sent = send(baton, &[1], SendFlags::NOSIGNAL);
        step("after the baton");
        match sent {
            Ok(_) => Ok(()),
            // It goes on only after its keeper has died, which is this one's; else it has ended after
            // another server of this version had taken over.
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) if getppid() == Some(self.pid) => {
                Ok(())
            }
            Err(_) => bail!("the version before goes on"),
        }
    }
}
