//! The event loop: one closed [`Input`], one match.
//!
//! Everything runs on one thread but what may wait for a file system. A task for each source of
//! inputs waits, and gives what comes to [`Daemon::handle`], which does all of it before it returns.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    future::Future,
    os::unix::net::UnixListener,
    rc::Rc,
    time::Duration,
};

use anyhow::Result;
use fdstash_proto::{Call, Entry, Keeper, Name, Pattern, Refusal};
use fdstash_stash::{ConnectionId, Effects, EntryId, Inspected, Limits, OpenFailure, Stash, Who};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::spawn_local,
};

use crate::{
    clock::{self, Alarm},
    closer::Closer,
    descriptor::Descriptor,
    door::Door,
    hangups::Hangups,
    inspect::{flags_now, inspect},
    reminder::Reminder,
    seat::Seat,
    systemd::{self, Figures, Status},
};

/// How long connections may take to end when the daemon does.
const FAREWELL: Duration = Duration::from_secs(2);

/// Everything that can happen.
pub(crate) enum Input {
    /// A connection makes a call.
    Call(ConnectionId, Call<Descriptor>),
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
    /// Something is due.
    Tick,
}

/// The stash, and who and what there is around it.
pub(crate) struct Daemon {
    pub(crate) stash: Stash<Descriptor>,
    pub(crate) seats: BTreeMap<ConnectionId, Rc<Seat>>,
    pub(crate) hangups: Rc<Hangups>,
    pub(crate) inputs: mpsc::UnboundedSender<Input>,
    /// What steps have led to that is yet to be handled.
    pub(crate) pending: VecDeque<Input>,
    /// Speaks when calls are refused for lack of room.
    pub(crate) reminder: Reminder,
    closer: Closer,
    alarm: Rc<Alarm>,
    alarm_at: Option<u64>,
    status: Status,
    places: usize,
    patience: Duration,
    /// Wakes who waits for the last connection to end.
    all_gone: Rc<Notify>,
}

/// Serves a listening socket until `shutdown` is there, and then ends in order: what has been asked
/// is answered, if its client reads it in time.
///
/// # Errors
///
/// If the kernel has no epoll or timer for it.
pub(crate) async fn run(
    listener: UnixListener,
    limits: Limits,
    patience: Duration,
    manager: Option<systemd::Notify>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let (inputs, mut received) = mpsc::unbounded_channel();
    let hangups = Rc::new(Hangups::new()?);
    let alarm = Rc::new(Alarm::new()?);
    let all_gone = Rc::new(Notify::new());
    let (status, reporting) = Status::new(manager.clone());
    let daemon = Rc::new(RefCell::new(Daemon {
        stash: Stash::new(limits, Keeper::Nobody),
        seats: BTreeMap::new(),
        hangups: Rc::clone(&hangups),
        inputs,
        pending: VecDeque::new(),
        reminder: Reminder::default(),
        closer: Closer::new(Handle::current()),
        alarm: Rc::clone(&alarm),
        alarm_at: None,
        status,
        places: limits.places,
        patience,
        all_gone: Rc::clone(&all_gone),
    }));
    let door = Door::new(listener, Rc::clone(&daemon))?;

    let of_pool = Rc::clone(&daemon);
    spawn_local(async move {
        while let Some(input) = received.recv().await {
            of_pool.borrow_mut().handle(input);
        }
    });
    let of_alarm = Rc::clone(&daemon);
    spawn_local(async move {
        loop {
            alarm.ring().await;
            of_alarm.borrow_mut().handle(Input::Tick);
        }
    });
    let of_hangups = Rc::clone(&daemon);
    spawn_local(async move {
        loop {
            for id in hangups.next().await {
                of_hangups.borrow_mut().handle(Input::HungUp(id));
            }
        }
    });
    let admitting = spawn_local(door.admit());
    let reporting = spawn_local(reporting);

    shutdown.await;
    reporting.abort();
    systemd::stopping(manager.as_ref()).await;
    admitting.abort();
    // The door is closed before anybody is sent away, so that who comes back finds nobody there, and
    // not a queue that nobody serves.
    let _ = admitting.await;
    for seat in daemon.borrow().seats.values() {
        seat.close_soon();
    }
    let _ = tokio::time::timeout(FAREWELL, async {
        while !daemon.borrow().seats.is_empty() {
            all_gone.notified().await;
        }
    })
    .await;
    Ok(())
}

impl Daemon {
    /// Does all that an input leads to.
    pub(crate) fn handle(&mut self, input: Input) {
        self.pending.push_back(input);
        while let Some(input) = self.pending.pop_front() {
            let now = clock::now();
            let effects = match input {
                Input::Call(by, call) => self.call(by, call),
                Input::Misunderstood(by, refusal) => self.stash.misunderstood(by, refusal),
                Input::Opened(by, outcome) => self.stash.opened(by, outcome, now),
                Input::Sent(by) => self.stash.sent(by, now),
                Input::Unsent(by) => self.stash.unsent(by, now),
                Input::Disconnected(by) => {
                    self.seats.remove(&by);
                    self.all_gone.notify_one();
                    self.stash.disconnect(by, now)
                }
                Input::HungUp(id) => self.stash.hung_up(id, now),
                Input::Tick => {
                    // The alarm that rang is off.
                    self.alarm_at = None;
                    self.stash.tick(now)
                }
            };
            self.perform(effects);
        }
        let due = self.stash.next_due();
        if due != self.alarm_at {
            self.alarm.set(due);
            self.alarm_at = due;
        }
        self.count();
    }

    fn count(&self) {
        let (entries, connections) = (self.stash.kept(), self.seats.len());
        self.status.set(Figures { entries, connections });
    }

    /// Gives a connection a seat, or says why there is none.
    pub(crate) fn connect(&mut self, who: Who) -> Result<(ConnectionId, Rc<Seat>), Refusal> {
        let id = self.stash.connect(who.clone())?;
        let seat = Rc::new(Seat::new(who));
        self.seats.insert(id, Rc::clone(&seat));
        self.count();
        Ok((id, seat))
    }

    /// The next entries that a connection may see, with the flags that have drifted.
    pub(crate) fn list(
        &self,
        by: ConnectionId,
        pattern: &Pattern,
        after: Option<&Name>,
        most: usize,
    ) -> (Vec<Entry>, Option<Name>) {
        let (listed, next) = self.stash.list(by, pattern, after, most);
        let entries = listed.into_iter().map(|listed| with_drift(listed.entry, &listed.fd));
        (entries.collect(), next)
    }

    /// Who closes what is held no longer.
    pub(crate) fn closer(&self) -> &Closer {
        &self.closer
    }

    /// How long a client may leave a message half sent, or an answer unread.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// How many descriptors and connections there can be.
    pub(crate) fn places(&self) -> usize {
        self.places
    }

    /// Finds out what the gifts of a call are, and makes it.
    fn call(&mut self, by: ConnectionId, call: Call<Descriptor>) -> Effects<Descriptor> {
        match call.try_map(inspect) {
            Ok(call) => self.stash.call(by, call, clock::now()),
            Err((name, errno)) => {
                tracing::error!(%name, %errno, "looking at a descriptor failed");
                let reason = format!("looking at the descriptor failed: {errno}");
                self.stash.misunderstood(by, Refusal::NotDurable { reason })
            }
        }
    }
}

/// An entry with the flags that somebody else has changed on its open file description.
pub(crate) fn with_drift(entry: Entry, fd: &Descriptor) -> Entry {
    let drifted = flags_now(fd).map_or(entry.drifted, |now| now.differing(entry.flags));
    Entry { drifted, ..entry }
}
