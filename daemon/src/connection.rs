//! One connection: the task that moves bytes and descriptors between its socket and its [`Seat`].
//!
//! A connection has one call at a time; what it sends meanwhile waits, at first here and then in its
//! socket, so that a client that asks faster than it is answered slows down itself and nobody else.
//! Reading, calling and sending stand in one file, since each of them waits for the other two.

use std::{
    cell::RefCell,
    io, mem,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use fdstash_proto::{
    Call, Frame, Hangup, Inbox, Incoming, Info, MAX_DESCRIPTORS, Name, Refusal, Reply, Request,
    reply,
    socket::{Received, receive, receive_without_descriptors, send},
};
use fdstash_stash::{ConnectionId, Inspected};
use rustix::io::Errno;
use tokio::{
    io::Interest,
    time::{Instant, timeout_at},
};

use crate::{
    descriptor::Descriptor,
    door::no_room,
    inspect::{inspect, is_hung_up},
    ledger::{Bytes, Charge, Need},
    run::{Daemon, Input},
    seat::{Current, Left, PIECE, Scratch, Seat, State},
    socket::Socket,
    steps::step,
    turns::Turn,
};

/// How long the message may take to come whose descriptors came with those before it. Their
/// `sendmsg` is under way by then, so this is the time for a kernel to wake its sender.
const STRANDED_TIME: Duration = Duration::from_millis(250);

/// How often to look whether a client is still there of which nothing is read.
const GLANCE: Duration = Duration::from_secs(1);

/// How long to wait where the kernel passes on no more descriptors of this daemon's user for now.
const CONGESTION: Duration = Duration::from_millis(20);

/// With so many bytes yet to leave, no further call is begun; nor with more descriptors than one
/// message has, or with any while the user has all in flight that it may: those take room here until
/// the client reads.
const MUCH_TO_SEND: usize = 256 << 10;

/// More gifts than this are kept in a turn of their own, after the one in which they were looked at.
const MANY_GIFTS: usize = 32;

/// How many names are looked at for a List at once.
const LOOK: usize = 16;

/// A message of more bytes is read on a thread: that may take milliseconds.
const LONG: usize = 16 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The client has closed it, or the daemon ends.
    #[error("closed")]
    Closed,
    /// The client broke the protocol.
    #[error(transparent)]
    Hangup(#[from] Hangup),
    /// A message was not whole in time.
    #[error("the rest of a message did not come in time")]
    HalfMessage,
    /// It is at a long message, and its user has more bytes half sent or not read than it may.
    #[error("its user has too much half sent or not read")]
    TooHeavy,
    /// The client read nothing for too long.
    #[error("it read nothing of what was sent for too long")]
    NotReading,
    /// Others of the daemon's user had too many descriptors under way for too long.
    #[error("too many descriptors of this daemon's user are on their way elsewhere")]
    Congested,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// One connection's task. Owns the socket and what has come over it.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) socket: Socket,
    pub(crate) seat: Rc<Seat>,
    pub(crate) daemon: Rc<RefCell<Daemon>>,
    scratch: Rc<RefCell<Scratch>>,
    /// Counts the socket.
    charge: Charge,
    pub(crate) inbox: Inbox<Descriptor>,
    /// Counts what has come and is yet to leave.
    bytes: Bytes,
    /// How long the rest of a message may take to come, in which its descriptors take room here; and
    /// how long the client may read nothing of what is sent to it.
    patience: Duration,
    /// The client will send no more.
    ended: bool,
    /// When it must have sent the rest of what it began; and whether what it began are descriptors
    /// without a message.
    whole_by: Option<(Instant, bool)>,
    /// When it must have read some of what it was sent.
    read_by: Option<Instant>,
    /// When to try again to send what the kernel did not pass on (ETOOMANYREFS): the descriptors under way
    /// are counted for each user, whoever sent them and whoever does not fetch them.
    again_at: Option<Instant>,
}

impl Connection {
    pub(crate) fn new(
        id: ConnectionId,
        socket: Socket,
        seat: Rc<Seat>,
        daemon: &Rc<RefCell<Daemon>>,
    ) -> Self {
        let (patience, scratch) = {
            let daemon = daemon.borrow();
            (daemon.patience(), Rc::clone(&daemon.scratch))
        };
        let charge = seat.account.charge();
        charge.hold();
        let bytes = seat.account.bytes();
        Self {
            id,
            socket,
            seat,
            charge,
            bytes,
            daemon: Rc::clone(daemon),
            scratch,
            patience,
            inbox: Inbox::for_calls(),
            ended: false,
            whole_by: None,
            read_by: None,
            again_at: None,
        }
    }

    /// Serves the connection to its end.
    pub(crate) async fn run(mut self) {
        let user = Rc::clone(&self.seat.user);
        // An end that is seen in a turn is handled in it, before what the client does next elsewhere.
        let (end, mut turn) = loop {
            self.seat.set_awake(true);
            let mut turn = user.turn().await;
            let work = self.work(&mut turn).await;
            let work = self.weigh().and(work);
            // From here on, what is new is not seen.
            self.seat.set_awake(false);
            match work {
                Ok(Work::Left) => continue,
                Ok(Work::Done) => drop(turn),
                Err(end) => break (end, turn),
            }
            if let Err(end) = self.wait().await {
                break (end, user.turn().await);
            }
        };
        let peer = self.seat.who.peer;
        match &end {
            End::Closed => tracing::debug!(uid = peer.uid, pid = peer.pid, "connection closed"),
            End::Socket(error) if is_gone(error) => {
                tracing::debug!(uid = peer.uid, pid = peer.pid, "connection closed");
            }
            End::Hangup(_)
            | End::HalfMessage
            | End::TooHeavy
            | End::NotReading
            | End::Congested
            | End::Socket(_) => {
                self.daemon.borrow_mut().complain(peer, &end);
            }
        }
        while self.shed() {
            turn.let_others().await;
        }
        self.daemon.borrow_mut().handle(Input::Disconnected(self.id));
        // What is still unread in it may be the last of a descriptor that takes its time to close.
        if let Some(socket) = self.socket.into_fd() {
            self.charge.close(socket);
        }
        drop(turn);
    }

    fn shed(&self) -> bool {
        self.daemon.borrow_mut().shed(self.id)
    }

    /// Reads, calls and sends until the turn is over or nothing is left to do.
    async fn work(&mut self, turn: &mut Turn<'_>) -> Result<Work, End> {
        loop {
            let began = self.begin_calls(turn).await? | self.see_changes(turn);
            let sent = self.flush(turn)?;
            self.seat.tell_lost();
            if !began && !sent {
                if let Some(end) = self.end() {
                    return Err(end);
                }
                let is_reading = self.is_reading() && !self.seat.waits_for_room();
                // Tried before the event loop is asked: a client that was answered on this processor has often
                // called again by now.
                if !is_reading || !self.read()? {
                    return Ok(Work::Done);
                }
            }
            if turn.is_over() {
                return Ok(Work::Left);
            }
        }
    }

    /// Counts what has come and is yet to leave. Whoever is at a long message when its user has too
    /// much of that, is refused.
    fn weigh(&mut self) -> Result<(), End> {
        self.bytes.set(self.inbox.len() + self.seat.state.borrow().bytes());
        if self.inbox.len() > PIECE && self.seat.account.is_heavy() {
            self.refuse_at_last(&reply::write(Err(self.too_heavy()), false));
            return Err(End::TooHeavy);
        }
        Ok(())
    }

    fn too_heavy(&self) -> Refusal {
        let value = i64::try_from(self.seat.account.most_bytes()).unwrap_or(i64::MAX);
        Refusal::LimitExceeded { limit: "bytesPerUser".into(), value }
    }

    /// How the connection ends, if nothing more is to be done for it.
    fn end(&self) -> Option<End> {
        let (sending, idle) = self.is_sending_or_idle();
        let state = self.seat.state.borrow();
        if state.is_cut {
            return Some(End::Closed);
        }
        // A call that still waits when the daemon ends, is undone.
        if sending || !(state.closing || (idle && self.ended)) {
            return None;
        }
        Some(if !self.ended || self.inbox.is_empty() {
            End::Closed
        } else if self.inbox.is_stranded() {
            Hangup::UnnamedDescriptors.into()
        } else {
            Hangup::EndWithinMessage.into()
        })
    }

    /// Whether something is yet to leave, and whether there is no call.
    fn is_sending_or_idle(&self) -> (bool, bool) {
        let state = self.seat.state.borrow();
        (!state.outbox.is_empty(), matches!(state.call, Current::None))
    }

    /// Whether to read what comes.
    fn is_reading(&self) -> bool {
        let (sending, idle) = self.is_sending_or_idle();
        // Behind a call that is not finished one read is enough to see the client go.
        !self.ended && (self.inbox.is_empty() || (idle && !sending)) && !self.is_frozen()
    }

    /// Begins the calls that have come, until one does not finish at once, or the turn is over. Whether
    /// there was one.
    async fn begin_calls(&mut self, turn: &mut Turn<'_>) -> Result<bool, End> {
        let mut began = false;
        loop {
            {
                let mut state = self.seat.state.borrow_mut();
                let most = if self.seat.account.is_full() { 0 } else { MAX_DESCRIPTORS };
                let is_heavy = self.seat.account.is_heavy();
                let much = if is_heavy { 0 } else { MUCH_TO_SEND };
                if state.outbox.len() > much || state.unread.count() > most {
                    return Ok(began);
                }
                if is_heavy {
                    state.give_up_list(|| self.too_heavy());
                }
                match &state.call {
                    Current::None if state.closing || self.is_frozen() => return Ok(began),
                    Current::None => {}
                    Current::Listing(_) => {
                        if began && turn.is_over() {
                            return Ok(began);
                        }
                        let daemon = self.daemon.borrow();
                        state.list(|pattern, after| daemon.list(self.id, pattern, after, LOOK));
                        began = true;
                        continue;
                    }
                    Current::Waiting(_) | Current::Leaving | Current::Watching => {
                        return Ok(began);
                    }
                }
            }
            if self.inbox.is_empty() || (began && turn.is_over()) {
                return Ok(began);
            }
            let Some(incoming) = self.next_call().await? else { return Ok(began) };
            self.whole_by = None;
            step("before a call");
            self.begin(incoming, turn).await;
            step("after a call");
            began = true;
        }
    }

    /// Sees to changes of which a watcher may want to know, until the turn is over. Whether there was one.
    fn see_changes(&self, turn: &Turn<'_>) -> bool {
        let daemon = self.daemon.borrow();
        let mut saw = false;
        while !(saw && turn.is_over()) && self.seat.see(|name| daemon.stash.watches(self.id, name))
        {
            saw = true;
        }
        saw
    }

    /// The next call that has come.
    async fn next_call(&mut self) -> Result<Option<Incoming<Descriptor>>, Hangup> {
        if self.inbox.next_len()?.is_none_or(|len| len <= LONG) {
            return self.inbox.next_call();
        }
        let inbox = mem::replace(&mut self.inbox, Inbox::for_calls());
        let reader = self.daemon.borrow().reader.clone();
        // None only when the daemon ends, and everything with it.
        let read = reader.next_call(self.seat.account.uid(), inbox).await;
        let Some((inbox, call)) = read else { return Ok(None) };
        self.inbox = inbox;
        call
    }

    async fn begin(&mut self, incoming: Incoming<Descriptor>, turn: &mut Turn<'_>) {
        let Incoming { request, mode, unused, last } = incoming;
        self.seat.state.borrow_mut().call = Current::Waiting(mode);
        match request {
            Ok(Request::Stash(call)) => self.call(call, turn).await,
            Ok(Request::GetInfo) => {
                let info = Info::of_fdstash(env!("CARGO_PKG_VERSION"));
                self.seat.answer(Ok(Reply::Info(info)), false);
            }
            Ok(Request::GetInterfaceDescription(text)) => {
                self.seat.answer(Ok(Reply::Description(text.to_owned())), false);
            }
            Err(refusal) => {
                self.daemon.borrow_mut().handle(Input::Misunderstood(self.id, refusal));
            }
        }
        drop(unused);
        if last {
            self.seat.close_soon();
        }
    }

    /// Makes a call, when it is known what its gifts are.
    async fn call(&mut self, call: Call<Descriptor>, turn: &mut Turn<'_>) {
        let input = match inspect_gifts(call, turn).await {
            Ok(call) => Input::Call(self.id, call),
            Err((name, errno)) => {
                tracing::debug!(%name, %errno, "looking at a descriptor failed");
                let reason = format!("looking at the descriptor failed: {errno}");
                Input::Misunderstood(self.id, Refusal::NotDurable { reason })
            }
        };
        self.daemon.borrow_mut().handle(input);
    }

    /// Sends what the socket takes, until the turn is over. Whether it has taken something.
    fn flush(&mut self, turn: &Turn<'_>) -> Result<bool, End> {
        let mut sent = false;
        if self.again_at.is_some_and(|at| Instant::now() < at) {
            return Ok(sent);
        }
        loop {
            let mut confirmed = false;
            {
                let State { outbox, unread, call, .. } = &mut *self.seat.state.borrow_mut();
                if outbox.is_empty() {
                    self.read_by = None;
                    return Ok(sent);
                }
                if sent && turn.is_over() {
                    return Ok(sent);
                }
                let bytes = &mut self.scratch.borrow_mut().write;
                let fds = outbox.next_send(bytes, PIECE);
                step("before a send");
                let sending = self.send(bytes, fds);
                step("after a send");
                let count = match sending {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.again_at = None;
                        return Ok(sent);
                    }
                    Err(error) if is_congested(&error) => {
                        self.again_at = Some(Instant::now() + CONGESTION);
                        return Ok(sent);
                    }
                    Err(error) => return Err(error.into()),
                };
                self.again_at = None;
                outbox.advance(count, |frame, left| {
                    confirmed |= left == Left::Confirm;
                    unread.remove(frame.fds.len());
                });
                if confirmed {
                    *call = Current::None;
                }
            }
            sent = true;
            self.read_by = None;
            if confirmed {
                self.daemon.borrow_mut().handle(Input::Sent(self.id));
            }
        }
    }

    fn send(&self, bytes: &[u8], fds: &[impl AsFd]) -> io::Result<usize> {
        self.socket.attempt(Interest::WRITABLE, |socket| send(socket, bytes, fds))
    }

    fn set_deadlines(&mut self, idle: bool, sending: bool) {
        if sending && self.read_by.is_none() {
            self.read_by = Some(Instant::now() + self.patience);
        }
        let stranded = self.inbox.is_stranded();
        if !idle || self.inbox.is_empty() {
            self.whole_by = None;
        } else if self.whole_by.is_none_or(|(_, was_stranded)| was_stranded != stranded) {
            let time = if stranded { STRANDED_TIME } else { self.patience };
            self.whole_by = Some((Instant::now() + time, stranded));
        }
    }

    /// Waits for one thing: the socket, news, or that something is overdue.
    async fn wait(&mut self) -> Result<(), End> {
        if let Some(rest) = self.rest() {
            // Others can use it, who are yet to come to rest.
            drop(self.seat.take_room());
            return self.wait_for_thaw(rest).await;
        }
        let (sending, idle) = self.is_sending_or_idle();
        let reading = self.is_reading();
        if !reading {
            // Others can use it.
            drop(self.seat.take_room());
        }
        self.set_deadlines(idle, sending);
        let sending = sending && self.again_at.is_none();
        // Behind an unfinished call, or when the client sends no more, no read sees it go. What it has
        // sent before it went is still to be read, when there is room.
        let glance = (!reading && !sending).then(|| Instant::now() + GLANCE);
        let reading = reading && !self.seat.waits_for_room();
        let whole_by = self.whole_by.map(|(by, _)| by);
        let overdue = [whole_by, self.read_by, self.again_at, glance].into_iter().flatten().min();
        let Self { socket, seat, .. } = self;
        let event = async {
            tokio::select! {
                biased;
                ready = socket.ready(reading, sending), if reading || sending => ready,
                () = seat.news() => Ok(()),
            }
        };
        match overdue {
            Some(overdue) => match timeout_at(overdue, event).await {
                Ok(ready) => Ok(ready?),
                Err(_) => self.overdue(),
            },
            None => Ok(event.await?),
        }
    }

    fn overdue(&self) -> Result<(), End> {
        let now = Instant::now();
        if self.read_by.is_some_and(|by| by <= now) {
            return Err(if self.again_at.is_some() { End::Congested } else { End::NotReading });
        }
        if self.whole_by.is_some_and(|(by, _)| by <= now) {
            return Err(match self.inbox.is_stranded() {
                true => Hangup::UnnamedDescriptors.into(),
                false => End::HalfMessage,
            });
        }
        if is_hung_up(&self.socket) { Err(End::Closed) } else { Ok(()) }
    }

    /// Reads once, if there is room for what comes. If not, the connection is woken when there is some,
    /// and what the client has sent waits in the kernel meanwhile. Whether something has come, be it the
    /// end.
    fn read(&mut self) -> Result<bool, End> {
        let need = if self.inbox.is_empty() { Need::Receive } else { Need::ReceiveRest };
        // Kept until what has come counts itself.
        let room = self.seat.take_room();
        let room = room.or_else(|| self.daemon.borrow().line.room(&self.seat.account, need));
        let scratch = Rc::clone(&self.scratch);
        let Scratch { read: buffer, fds, .. } = &mut *scratch.borrow_mut();
        step("before a receive");
        let received = self.socket.attempt(Interest::READABLE, |socket| match &room {
            Some(_) => receive(socket, buffer, fds).map(Some),
            None => receive_without_descriptors(socket, buffer),
        });
        step("after a receive");
        let Some(received) = received.transpose() else {
            self.daemon.borrow_mut().await_room(self.id, &self.seat, need);
            return Ok(false);
        };
        let fds = fds.drain(..).map(|fd| Descriptor::new(fd, &self.seat.account));
        match received {
            Ok(Received::Bytes(count)) => {
                self.inbox.feed(&buffer[..count], fds)?;
                Ok(true)
            }
            Ok(Received::End) => {
                self.ended = true;
                if !matches!(self.seat.state.borrow().call, Current::None)
                    && is_hung_up(&self.socket)
                {
                    return Err(End::Closed);
                }
                Ok(true)
            }
            Ok(Received::Truncated(_)) => {
                // To the closer; the drain alone would close them here.
                fds.for_each(drop);
                self.refuse_for_room();
                Err(Hangup::DescriptorsLost.into())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a client whose descriptors found no room here why it is hung up on. What is left of the
    /// order of its descriptors is lost with them, so nothing it has sent can be answered.
    fn refuse_for_room(&self) {
        self.refuse_at_last(&no_room(self.daemon.borrow().places()));
    }

    fn refuse_at_last(&self, frame: &Frame<OwnedFd>) {
        let no_fds: [OwnedFd; 0] = [];
        // If it does not get even this, it still sees its connection close.
        let _ = self.send(&frame.bytes, &no_fds);
    }
}

/// What a turn has left undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Something, perhaps.
    Left,
    /// Nothing that can be done without waiting.
    Done,
}

/// Finds out what the gifts of a call are, in more than one turn where they are many: to keep them all is one
/// step, which then has a turn of its own.
async fn inspect_gifts(
    call: Call<Descriptor>,
    turn: &mut Turn<'_>,
) -> Result<Call<Inspected<Descriptor>>, (Name, Errno)> {
    let Call::Give { gifts, clash, ticket } = call else { return call.try_map(inspect) };
    let many = gifts.len() > MANY_GIFTS;
    let mut inspected = Vec::with_capacity(gifts.len());
    for gift in gifts {
        if turn.is_over() {
            turn.let_others().await;
        }
        let name = gift.name.clone();
        inspected.push(gift.try_map(inspect).map_err(|errno| (name, errno))?);
    }
    if many {
        turn.let_others().await;
    }
    Ok(Call::Give { gifts: inspected, clash, ticket })
}

fn is_congested(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TOOMANYREFS)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
