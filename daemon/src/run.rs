//! The event loop: one closed [`Input`], one match.
//!
//! Everything runs on one thread but what may wait for a file system. A task for each source of
//! inputs waits, and gives what comes to [`Daemon::handle`], which does all of it before it returns.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    mem::ManuallyDrop,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result};
use fdstash_proto::{Call, Entry, Name, Pattern, Refusal};
use fdstash_stash::{ConnectionId, Effects, EntryId, Inspected, Now, OpenFailure, Rules, Stash};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::{spawn_local, yield_now},
};

use crate::{
    args::Config,
    audit::Audit,
    clock::{self, Alarm},
    connection::Connection,
    descriptor::Descriptor,
    handover::Pause,
    hangups::Hangups,
    heart::Heart,
    inspect::as_it_is,
    journal::Journal,
    lasting::Lasting,
    ledger::Ledger,
    line::Line,
    metrics::Metrics,
    opener::Opener,
    own::Own,
    reader::Reader,
    reminder::{Reminder, Reminders},
    restore::Restored,
    rewrite::rewrite,
    scrape::Asking,
    seat::{Scratch, Seat},
    store::{self, DaemonsMirror},
    systemd::{Figures, Status},
    targets::Targets,
    turns::Users,
};

/// Everything that can happen.
pub(crate) enum Input {
    /// A connection makes a call.
    Call(ConnectionId, Call<Inspected<Descriptor>>),
    /// A connection makes a call that the wire refuses.
    Misunderstood(ConnectionId, Refusal),
    /// Files that a call waits for are open, or cannot be opened.
    Opened(ConnectionId, Result<Vec<Vec<Inspected<Descriptor>>>, OpenFailure>),
    /// An answer that hands something out for good has left.
    Sent(ConnectionId),
    /// Such an answer will not leave.
    Unsent(ConnectionId),
    /// A connection has ended.
    Disconnected(ConnectionId),
    /// An entry has hung up.
    HungUp(EntryId),
    /// Other rules are in force.
    Rules(Rules),
    /// Somebody wants to see the figures.
    Figures(Asking),
    /// Something is due.
    Tick,
}

/// The stash, and who and what there is around it.
pub(crate) struct Daemon {
    /// Never dropped: what that would close, the journal names.
    pub(crate) stash: ManuallyDrop<Stash<Descriptor>>,
    pub(crate) journal: Journal,
    pub(crate) heart: Heart,
    pub(crate) scratch: Rc<RefCell<Scratch>>,
    pub(crate) seats: BTreeMap<ConnectionId, Rc<Seat>>,
    pub(crate) users: Users,
    pub(crate) hangups: Rc<Hangups>,
    pub(crate) inputs: mpsc::UnboundedSender<Input>,
    /// What steps have led to that is yet to be handled.
    pub(crate) pending: VecDeque<Input>,
    /// Speaks when calls are refused for lack of room.
    pub(crate) reminder: Reminder,
    /// Tells of what is done, if it is to.
    pub(crate) audit: Audit,
    /// What is measured, if somebody wants to see it.
    pub(crate) metrics: Option<Metrics>,
    /// Speaks when somebody is hung up on.
    pub(crate) complaints: Reminders,
    pub(crate) ledger: Ledger,
    /// Who waits for room.
    pub(crate) line: Line,
    /// Which entries it is yet to ask where they point.
    pub(crate) targets: Targets,
    pub(crate) opener: Opener,
    pub(crate) reader: Reader,
    alarm: Rc<Alarm>,
    alarm_at: Option<u64>,
    /// Wakes who writes the journal anew.
    pub(crate) heavy: Rc<Notify>,
    pub(crate) mirror: Option<DaemonsMirror>,
    /// What nobody may give it.
    pub(crate) own: Own,
    status: Status,
    /// The generation of the rules that it goes by.
    pub(crate) rules_of: u64,
    places: usize,
    patience: Duration,
    /// Wakes who waits for the last connection to end.
    pub(crate) all_gone: Rc<Notify>,
    /// How far it has stopped, so that another may go on.
    pub(crate) pause: Pause,
}

impl Daemon {
    /// A daemon that goes on with what was restored, and the inputs that come to it from elsewhere.
    pub(crate) fn new(
        lasting: &'static Lasting,
        config: &Config,
        heart: Heart,
        restored: Restored,
        status: Status,
        users: Users,
    ) -> Result<(Rc<RefCell<Self>>, mpsc::UnboundedReceiver<Input>)> {
        let Restored {
            stash,
            effects,
            connections,
            ended,
            ledger,
            bundles,
            foreign,
            closed,
            back,
            missing,
        } = restored;
        let (inputs, received) = mpsc::unbounded_channel();
        let mut journal = Journal::open(&lasting.journal).context("opening the journal")?;
        rewrite(&mut journal, &stash).context("writing the journal anew")?;
        let restores = stash.statistics().restores;
        let daemon = Self {
            stash,
            journal,
            heart,
            seats: BTreeMap::new(),
            users,
            scratch: Rc::new(RefCell::new(Scratch::new())),
            hangups: Rc::new(Hangups::new()?),
            inputs,
            pending: VecDeque::new(),
            reminder: Reminder::default(),
            complaints: Reminders::default(),
            audit: Audit::new(config.audit),
            metrics: lasting.metrics.first().map(|_| Metrics::new(config.limits)),
            line: Line::new(ledger.clone()),
            ledger,
            targets: Targets::default(),
            opener: Opener::new(Handle::current()),
            reader: Reader::new(Handle::current()),
            alarm: Rc::new(Alarm::new()?),
            alarm_at: None,
            heavy: Rc::default(),
            mirror: None,
            own: Own::default(),
            status,
            rules_of: 0,
            places: config.limits.places,
            patience: config.patience,
            all_gone: Rc::default(),
            pause: Pause::default(),
        };
        let daemon = Rc::new(RefCell::new(daemon));
        if restores > 0 {
            let connections = connections.len();
            tracing::info!(
                entries = back,
                lost = missing,
                connections,
                leftovers = closed,
                "came back to what was kept, closed what the last server left over"
            );
        }
        // Now that it has all that it needs for itself, and nothing from anybody.
        daemon.borrow_mut().own =
            Own::find(lasting, &foreign).context("looking at what is open")?;
        daemon.borrow_mut().stash.set_audited(config.audit);
        daemon.borrow_mut().audit.ended(&ended);
        daemon.borrow_mut().perform(effects);
        daemon.borrow_mut().ask_anew();
        daemon.borrow_mut().load_rules(&lasting.policy);
        for connected in connections {
            Connection::resume(&daemon, connected);
        }
        let mut borrowed = daemon.borrow_mut();
        store::mirror(&mut borrowed, lasting, heart, ManuallyDrop::into_inner(bundles))?;
        let effects = borrowed.stash.go_without(clock::now());
        borrowed.perform(effects);
        borrowed.handle(Input::Tick);
        // All of what expired meanwhile, before anybody can ask for it.
        while borrowed.stash.next_due().is_some_and(|due| due <= clock::now().boot_usec) {
            borrowed.handle(Input::Tick);
        }
        drop(borrowed);
        Ok((daemon, received))
    }

    /// Has it handle what comes from elsewhere than its connections.
    pub(crate) fn listen_to_itself(
        daemon: &Rc<RefCell<Self>>,
        mut inputs: mpsc::UnboundedReceiver<Input>,
    ) {
        let of_pool = Rc::clone(daemon);
        spawn_local(async move {
            while let Some(input) = inputs.recv().await {
                of_pool.borrow_mut().handle(input);
                yield_now().await;
            }
        });
        let (of_line, ledger) = (Rc::clone(daemon), daemon.borrow().ledger.clone());
        spawn_local(async move {
            loop {
                ledger.freed().await;
                of_line.borrow_mut().line.serve();
            }
        });
        let (of_alarm, alarm) = (Rc::clone(daemon), Rc::clone(&daemon.borrow().alarm));
        spawn_local(async move {
            loop {
                alarm.ring().await;
                of_alarm.borrow_mut().handle(Input::Tick);
                yield_now().await;
            }
        });
        Self::rewrite_when_heavy(daemon);
        Self::ask_for_targets(daemon);
        let (of_hangups, hangups) = (Rc::clone(daemon), Rc::clone(&daemon.borrow().hangups));
        spawn_local(async move {
            loop {
                for id in hangups.next().await {
                    of_hangups.borrow_mut().handle(Input::HungUp(id));
                    yield_now().await;
                }
            }
        });
    }

    /// Does all that an input leads to.
    pub(crate) fn handle(&mut self, input: Input) {
        self.pending.push_back(input);
        if self.pause.is_still {
            // It is for whoever goes on.
            return;
        }
        self.handle_pending();
    }

    /// Ends some of what a connection that is at its end gave for its lifetime. Whether there may be more.
    pub(crate) fn shed(&mut self, id: ConnectionId) -> bool {
        if self.pause.is_still {
            return false;
        }
        let Some(effects) = self.stash.shed(id, clock::now()) else { return false };
        self.perform(effects);
        self.handle_pending();
        true
    }

    /// Does all that is to be done.
    pub(crate) fn handle_pending(&mut self) {
        while let Some(input) = self.pending.pop_front() {
            let now = clock::now();
            let is_call = matches!(input, Input::Call(..));
            let effects = match input {
                Input::Call(by, call) => self.call(by, call, now),
                Input::Misunderstood(by, refusal) => self.stash.misunderstood(by, refusal),
                Input::Opened(by, outcome) => {
                    self.metrics.iter_mut().for_each(|metrics| metrics.opened(by));
                    outcome.iter().flatten().flatten().for_each(|file| file.fd.hold());
                    self.stash.opened(by, outcome, now)
                }
                Input::Sent(by) => self.stash.sent(by, now),
                Input::Unsent(by) => self.stash.unsent(by, now),
                Input::Disconnected(by) => {
                    self.pause.forget(by);
                    self.forget(by);
                    self.all_gone.notify_one();
                    self.stash.disconnect(by, now)
                }
                Input::HungUp(id) => self.stash.hung_up(id, now),
                Input::Rules(rules) => {
                    let effects = self.stash.set_rules(rules, now);
                    // Each user has what the rules now say.
                    self.seats.values().for_each(|seat| drop(self.account(&seat.who)));
                    effects
                }
                Input::Figures(to) => {
                    // Who has given up waiting is told nothing.
                    self.figures().into_iter().for_each(|figures| drop(to.try_send(figures)));
                    Effects::new()
                }
                Input::Tick => {
                    // The alarm that rang is off.
                    self.alarm_at = None;
                    self.stash.tick(now)
                }
            };
            self.perform(effects);
            if is_call {
                self.metrics.iter_mut().for_each(|metrics| metrics.called(now.boot_usec));
            }
        }
        if self.journal.is_heavy(self.stash.weight().kept) {
            self.heavy.notify_one();
        }
        let due = self.stash.next_due();
        if due != self.alarm_at {
            self.alarm.set(due);
            self.alarm_at = due;
        }
        self.count();
    }

    pub(crate) fn count(&self) {
        let (entries, connections) = (self.stash.count(), self.seats.len());
        self.status.set(Figures { entries, connections });
    }

    /// Makes the threads that are always there.
    pub(crate) fn start_threads(&self) {
        self.ledger.closer().start();
        self.opener.start();
    }

    /// The next entries that a connection may see, as they are now.
    pub(crate) fn list(
        &self,
        by: ConnectionId,
        pattern: &Pattern,
        after: Option<&Name>,
        most: usize,
    ) -> (Vec<Entry>, Option<Name>) {
        let (listed, next) = self.stash.list(by, pattern, after, most);
        let entries = listed.into_iter().map(|listed| as_it_is(listed.entry, &listed.fd));
        (entries.collect(), next)
    }

    /// How long a client may leave a message half sent, or an answer unread.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// How many descriptors and connections there can be.
    pub(crate) fn places(&self) -> usize {
        self.places
    }

    /// Makes a call, if nothing of it is the daemon's own and it can be written down.
    fn call(
        &mut self,
        by: ConnectionId,
        call: Call<Inspected<Descriptor>>,
        now: Now,
    ) -> Effects<Descriptor> {
        if let Some(refusal) = self.own_among(&call) {
            return self.stash.misunderstood(by, refusal);
        }
        self.hold_gifts(by, &call);
        // All that can fail comes before all that changes. For what adds nothing, there is room.
        let added = self.stash.weight_of(&call);
        let needed = if added > 0 { self.stash.weight().promised + added } else { 0 };
        if let Err(error) = self.journal.make_room(needed) {
            tracing::error!(%error, "there is no memory for the journal");
            let reason = format!("there is no memory to write it down: {error}");
            return self.stash.misunderstood(by, Refusal::NotDurable { reason });
        }
        self.stash.call(by, call, now)
    }
}
