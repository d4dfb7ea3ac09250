//! One life of a server: it comes back to what was kept, serves, and ends in order: what has been asked
//! is answered, if its client reads it in time.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{Shutdown, shutdown};
use tokio::{
    runtime::{Builder, Handle, LocalOptions},
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinHandle, spawn_local},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    args::Config,
    audit,
    door::Door,
    handover,
    heart::{Heart, Pulse, State, Wish},
    keeper::Start,
    lasting::Lasting,
    ledger::Ledger,
    listen::Place,
    peer, process,
    restore::{self, Restored},
    run::Daemon,
    sandbox,
    scrape::Scrape,
    steps::step,
    systemd::{self, Notify, Status},
    turns::{Looks, Users},
};

/// How often the keeper is told that this server lives.
const BEAT: Duration = Duration::from_secs(1);

/// How long connections may take to end when the daemon does.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long the service manager may take, at the end, to have everything. Less than it gives us.
const WRITE_OUT: Duration = Duration::from_secs(20);

/// Serves, in a process of its own, until it is asked to end. Gives the process's exit code.
pub(crate) fn run(lasting: &'static Lasting, config: &Config, heart: Heart, start: Start) -> u8 {
    match try_run(lasting, config, heart, start) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            1
        }
    }
}

fn try_run(lasting: &'static Lasting, config: &Config, heart: Heart, start: Start) -> Result<()> {
    #[cfg(feature = "crash-steps")]
    // Whose first server dies while it starts, does not start.
    if !crate::journal::is_new(&lasting.journal)? {
        crate::steps::born();
    }
    peer::look_at_namespace();
    let own = sandbox::Own {
        folder: lasting.place.as_ref().map(Place::folder),
        has_abstract_manager: lasting.manager.as_ref().is_some_and(Notify::is_abstract),
    };
    let is_confined = sandbox::enter(&own);
    let left = restore::find(lasting, start)?;
    if !is_confined {
        // Now that what an earlier server has left is closed there is a number free.
        sandbox::confine(&own);
    }
    let looks = Looks::default();
    let of_loop = looks.clone();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(move || of_loop.add())
        .build_local(LocalOptions::default())
        .context("starting the event loop")?;
    let outcome = runtime.block_on(async {
        let ledger = Ledger::new(config.table, Handle::current());
        let restored = restore::restore(left, config, heart, ledger);
        serve(lasting, config, heart, start, restored, Users::new(looks)).await
    });
    // A close or an open that hangs shall not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(
    lasting: &'static Lasting,
    config: &Config,
    heart: Heart,
    start: Start,
    restored: Restored,
    users: Users,
) -> Result<()> {
    let mut signals = Signals::new(heart)?;
    let mut keeper = handover::Keeper::find(heart)?;
    if start == Start::TakeOver {
        keeper.take_over(lasting)?;
    }
    // From here on whoever was before is gone, and nobody but this server has the journal.
    heart.set_state(State::Serving);
    let manager = lasting.manager.as_ref();
    let (status, reporting) = Status::new(lasting.manager.clone());
    let (daemon, received) = Daemon::new(lasting, config, heart, restored, status, users)?;
    step("before the door opens");
    spawn_local(beat(heart));
    Daemon::listen_to_itself(&daemon, received);
    daemon.borrow().start_threads();
    tracing::debug!(pid = std::process::id(), keeper = keeper.pid(), "server ready");
    let mut door = Open::door(lasting, &daemon)?;
    let reporting = spawn_local(reporting);
    let scrape = Scrape::start(&lasting.metrics, daemon.borrow().inputs.clone());
    spawn_local(tell_left_out(Rc::clone(&daemon)));
    loop {
        match signals.next(&mut keeper).await {
            Event::End => break,
            Event::Look if heart.wish() == Wish::Drain => {
                daemon.borrow_mut().load_rules(&lasting.policy);
                door.close().await;
                scrape.set_open(false);
                systemd::progress(manager, "Making way for the next version.").await;
                handover::hand_over(&daemon, heart, &mut keeper, &mut signals).await;
                if signals.has_ended {
                    break;
                }
                door = Open::door(lasting, &daemon)?;
                scrape.set_open(true);
                systemd::stays(manager).await;
            }
            // What it wished before has come to nothing.
            Event::Look => {
                daemon.borrow_mut().load_rules(&lasting.policy);
                systemd::stays(manager).await;
            }
            Event::Upgrade => keeper.ask_for_upgrade(),
            Event::KeeperGone => keeper.replace(lasting, heart).await,
            Event::KeeperHangs => keeper.kill(),
        }
    }
    reporting.abort();
    systemd::stopping(manager).await;
    door.close().await;
    if let Some(place) = &lasting.place {
        // Who comes back finds nobody here, and not a queue that nobody serves.
        let _ = shutdown(&lasting.listener, Shutdown::Both);
        place.remove();
    }
    farewell(&daemon).await;
    let kept = daemon.borrow().stash.count();
    systemd::progress(manager, &format!("Writing out {kept} descriptors.")).await;
    write_out(&daemon.borrow(), heart, kept);
    heart.set_state(State::Ended);
    Ok(())
}

/// Tells now and then how much the audit has left out.
async fn tell_left_out(daemon: Rc<RefCell<Daemon>>) {
    if !daemon.borrow().audit.is_on() {
        return;
    }
    let mut pause = interval(audit::PAUSE);
    loop {
        pause.tick().await;
        daemon.borrow_mut().audit.tell_left_out();
    }
}

/// Tells the keeper every second that the loop turns.
async fn beat(heart: Heart) {
    let mut second = interval(BEAT);
    loop {
        second.tick().await;
        heart.beat();
    }
}

/// Sends everybody away, when what they have asked is answered.
async fn farewell(daemon: &Rc<RefCell<Daemon>>) {
    let all_gone = Rc::clone(&daemon.borrow().all_gone);
    for seat in daemon.borrow().seats.values() {
        seat.close_soon();
    }
    let _ = tokio::time::timeout(FAREWELL, async {
        while !daemon.borrow().seats.is_empty() {
            all_gone.notified().await;
        }
    })
    .await;
}

/// Has the service manager hold everything that is kept, for whoever comes after this daemon.
fn write_out(daemon: &Daemon, heart: Heart, kept: usize) {
    let Some(mirror) = &daemon.mirror else {
        if kept > 0 {
            tracing::warn!(kept, "what is kept ends with the daemon");
        }
        return;
    };
    match beating(heart, || mirror.flush(WRITE_OUT)) {
        Ok(()) => tracing::info!(kept, "the service manager has everything that is kept"),
        Err(error) => tracing::error!(%error, kept, "ending all the same, and not all is kept"),
    }
}

/// Does what may take longer than the keeper would wait for a server that says nothing.
fn beating<R>(heart: Heart, work: impl FnOnce() -> R) -> R {
    thread::scope(|scope| {
        let (over, is_over) = mpsc::channel::<()>();
        // Without a thread it may be ended too early, and not more.
        let _ = thread::Builder::new().spawn_scoped(scope, move || {
            while is_over.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                heart.beat();
            }
        });
        let outcome = work();
        drop(over);
        outcome
    })
}

/// The door, and who stands at it for as long as it is open.
struct Open(Option<JoinHandle<()>>);

impl Open {
    fn door(lasting: &Lasting, daemon: &Rc<RefCell<Daemon>>) -> Result<Self> {
        // A descriptor of its own for the same socket: the keeper's stays where it is.
        let listener = lasting.listener.try_clone().context("serving the listening socket")?;
        let door = Door::new(listener.into(), Rc::clone(daemon))?;
        Ok(Self(Some(spawn_local(door.admit()))))
    }

    /// Closes it, if it is not closed already.
    async fn close(&mut self) {
        if let Some(admitting) = self.0.take() {
            admitting.abort();
            let _ = admitting.await;
        }
    }
}

/// What a server listens to beside its clients.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    look: Signal,
    hang_up: Signal,
    look_at_keeper: LookAtKeeper,
    /// Whether it has been asked to end.
    pub(crate) has_ended: bool,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It shall end.
    End,
    /// The keeper wishes something.
    Look,
    /// Somebody who does not know which process is which wants an upgrade.
    Upgrade,
    /// The keeper has died.
    KeeperGone,
    /// The keeper does nothing any more. What it holds it holds, but it would start no other server.
    KeeperHangs,
}

impl Signals {
    fn new(heart: Heart) -> Result<Self> {
        let on = |kind| signal(kind).context("waiting for signals");
        let signals = Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            look: on(SignalKind::user_defined1())?,
            hang_up: on(SignalKind::hangup())?,
            look_at_keeper: LookAtKeeper::new(heart),
            has_ended: false,
        };
        // Those that came before wait: one that killed this server while it starts would leave the
        // version before, of which it was to take over, to go on.
        process::unblock_signals();
        Ok(signals)
    }

    /// Waits for the next event.
    pub(crate) async fn next(&mut self, keeper: &mut handover::Keeper) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => {
                tracing::info!("ending on SIGTERM");
                self.has_ended = true;
                Event::End
            }
            _ = self.interrupt.recv() => {
                tracing::info!("ending on SIGINT");
                self.has_ended = true;
                Event::End
            }
            _ = self.look.recv() => Event::Look,
            _ = self.hang_up.recv() => Event::Upgrade,
            () = keeper.gone() => Event::KeeperGone,
            () = self.look_at_keeper.until_it_hangs() => Event::KeeperHangs,
        }
    }
}

/// Looks at the keeper once a second.
struct LookAtKeeper {
    heart: Heart,
    pulse: Pulse,
    second: Interval,
}

impl LookAtKeeper {
    fn new(heart: Heart) -> Self {
        let mut second = interval(Duration::from_secs(1));
        // Looks that were missed, since this loop did not turn, say nothing of the keeper.
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { heart, pulse: Pulse::default(), second }
    }

    async fn until_it_hangs(&mut self) {
        loop {
            self.second.tick().await;
            if self.pulse.hangs(self.heart.beats_of_keeper()) {
                return;
            }
        }
    }
}
