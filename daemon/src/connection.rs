//! One connection: the task that moves bytes and descriptors between its socket and its [`Seat`].
//!
//! A connection has one call at a time; what it sends meanwhile waits, at first here and then in its
//! socket, so that a client that asks faster than it is answered slows down itself and nobody else.
//! Reading, calling and sending stand in one file, since each of them waits for the other two.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use fdstash_proto::{
    Hangup, Inbox, Incoming, Info, MAX_DESCRIPTORS, Reply, Request, reply,
    socket::{self, Received},
};
use fdstash_stash::ConnectionId;
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout_at},
};

use crate::{
    descriptor::Descriptor,
    door::no_room,
    inspect::is_hung_up,
    ledger::{Charge, Need},
    run::{Daemon, Input},
    seat::{Current, Left, PIECE, Scratch, Seat, State, fitting},
    steps::step,
};

/// How long the message may take to come whose descriptors came with those before it. Their
/// `sendmsg` is under way by then, so this is the time for a kernel to wake its sender.
const STRANDED_TIME: Duration = Duration::from_millis(250);

/// How often to look whether a client is still there of which nothing is read.
const GLANCE: Duration = Duration::from_secs(1);

/// With so many bytes yet to leave, no further call is begun; nor with more descriptors than one
/// message has, or with any while the user has all in flight that it may: those take room here until
/// the client reads.
const MUCH_TO_SEND: usize = 256 << 10;

/// How many entries one part of a List has.
const LIST_PART: usize = 100;

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
    /// The client read nothing for too long.
    #[error("it read nothing of what was sent for too long")]
    NotReading,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// One connection's task. Owns the socket and what has come over it.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) socket: UnixStream,
    pub(crate) seat: Rc<Seat>,
    pub(crate) daemon: Rc<RefCell<Daemon>>,
    scratch: Rc<RefCell<Scratch>>,
    /// Counts the socket.
    charge: Charge,
    pub(crate) inbox: Inbox<Descriptor>,
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
}

impl Connection {
    pub(crate) fn new(
        id: ConnectionId,
        socket: UnixStream,
        seat: Rc<Seat>,
        daemon: &Rc<RefCell<Daemon>>,
    ) -> Self {
        let (patience, scratch) = {
            let daemon = daemon.borrow();
            (daemon.patience(), Rc::clone(&daemon.scratch))
        };
        let charge = seat.account.charge();
        charge.hold();
        Self {
            id,
            socket,
            seat,
            charge,
            daemon: Rc::clone(daemon),
            scratch,
            patience,
            inbox: Inbox::for_calls(),
            ended: false,
            whole_by: None,
            read_by: None,
        }
    }

    /// Serves the connection to its end.
    pub(crate) async fn run(mut self) {
        let end = loop {
            match self.turn().await {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        let peer = self.seat.who.peer;
        match &end {
            End::Closed => tracing::debug!(uid = peer.uid, pid = peer.pid, "connection closed"),
            End::Socket(error) if is_gone(error) => {
                tracing::debug!(uid = peer.uid, pid = peer.pid, "connection closed");
            }
            End::Hangup(_) | End::HalfMessage | End::NotReading | End::Socket(_) => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, reason = %end, "hanging up");
            }
        }
        self.daemon.borrow_mut().handle(Input::Disconnected(self.id));
        // What is still unread in it may be the last of a descriptor that takes its time to close.
        if let Ok(socket) = self.socket.into_std() {
            self.charge.close(socket.into());
        }
    }

    /// Does all that can be done without waiting, and then waits for one thing.
    async fn turn(&mut self) -> Result<(), End> {
        self.seat.set_awake(true);
        loop {
            let began = self.begin_calls()?;
            let sent = self.flush()?;
            self.seat.tell_lost();
            if !began && !sent {
                break;
            }
        }
        let (sending, idle, closing) = {
            let state = self.seat.state.borrow();
            (!state.outbox.is_empty(), matches!(state.call, Current::None), state.closing)
        };
        if self.seat.state.borrow().is_cut {
            return Err(End::Closed);
        }
        // A call that still waits when the daemon ends, is undone.
        if !sending && (closing || (idle && self.ended)) {
            return Err(self.end());
        }
        if let Some(rest) = self.rest() {
            return self.wait_for_thaw(rest).await;
        }
        self.set_deadlines(idle, sending);
        // Behind a call that is not finished one read is enough to see the client go.
        let reading = !self.ended && (self.inbox.is_empty() || (idle && !sending));
        if !reading {
            // Others can use it.
            drop(self.seat.take_room());
        }
        self.seat.set_awake(false);
        self.wait(reading, sending).await
    }

    /// How a connection ends that nothing more is to be done for.
    fn end(&self) -> End {
        if !self.ended || self.inbox.is_empty() {
            End::Closed
        } else if self.inbox.is_stranded() {
            Hangup::UnnamedDescriptors.into()
        } else {
            Hangup::EndWithinMessage.into()
        }
    }

    /// Begins the calls that have come, until one does not finish at once. Whether there was one.
    fn begin_calls(&mut self) -> Result<bool, End> {
        let mut began = false;
        loop {
            {
                let mut state = self.seat.state.borrow_mut();
                let most = if self.seat.account.is_full() { 0 } else { MAX_DESCRIPTORS };
                if state.outbox.len() > MUCH_TO_SEND || state.unread.count() > most {
                    return Ok(began);
                }
                match &state.call {
                    Current::None if state.closing || self.is_frozen() => return Ok(began),
                    Current::None => {}
                    Current::Listing(..) => {
                        self.list_part(&mut state);
                        began = true;
                        continue;
                    }
                    Current::Waiting(_) | Current::Leaving | Current::Watching => {
                        return Ok(began);
                    }
                }
            }
            let Some(incoming) = self.inbox.next_call()? else { return Ok(began) };
            self.whole_by = None;
            step("before a call");
            self.begin(incoming);
            step("after a call");
            began = true;
        }
    }

    fn begin(&mut self, incoming: Incoming<Descriptor>) {
        let Incoming { request, mode, unused, last } = incoming;
        self.seat.state.borrow_mut().call = Current::Waiting(mode);
        match request {
            Ok(Request::Stash(call)) => {
                self.daemon.borrow_mut().handle(Input::Call(self.id, call));
            }
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

    /// Puts the next part of a list into the outbox.
    fn list_part(&self, state: &mut State) {
        let Current::Listing(pattern, after) = &mut state.call else { return };
        let (mut entries, mut next) =
            self.daemon.borrow().list(self.id, pattern, after.as_ref(), LIST_PART);
        let fitting = fitting(&entries);
        if fitting < entries.len() {
            entries.truncate(fitting);
            next = entries.last().map(|entry| entry.name.clone());
        }
        let continues = next.is_some();
        *after = next;
        state.outbox.push(reply::write(Ok(Reply::Listed(entries)), continues), Left::Nothing);
        if !continues {
            state.call = Current::None;
        }
    }

    /// Sends what the socket takes. Whether it has taken something.
    fn flush(&mut self) -> Result<bool, End> {
        let mut sent = false;
        loop {
            let mut confirmed = false;
            {
                let State { outbox, unread, call, .. } = &mut *self.seat.state.borrow_mut();
                if outbox.is_empty() {
                    self.read_by = None;
                    return Ok(sent);
                }
                let bytes = &mut self.scratch.borrow_mut().write;
                let fds = outbox.next_send(bytes, PIECE);
                step("before a send");
                let sending = self.send(bytes, fds);
                step("after a send");
                let count = match sending {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(sent),
                    Err(error) => return Err(error.into()),
                };
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
        self.socket.try_io(Interest::WRITABLE, || socket::send(&self.socket, bytes, fds))
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

    async fn wait(&mut self, reading: bool, sending: bool) -> Result<(), End> {
        let waits_for_room = reading && self.seat.waits_for_room();
        // Behind an unfinished call, or when the client sends no more, no read sees it go. What it has
        // sent before it went is still to be read, when there is room.
        let glance = (!reading && !sending).then(|| Instant::now() + GLANCE);
        let reading = reading && !waits_for_room;
        let whole_by = self.whole_by.map(|(by, _)| by);
        let overdue = [whole_by, self.read_by, glance].into_iter().flatten().min();
        let event = async {
            tokio::select! {
                ready = self.socket.readable(), if reading => ready.map(|()| true),
                ready = self.socket.writable(), if sending => ready.map(|()| false),
                () = self.seat.news() => Ok(false),
            }
        };
        let readable: io::Result<bool> = match overdue {
            Some(overdue) => match timeout_at(overdue, event).await {
                Ok(readable) => readable,
                Err(_) => return self.overdue(),
            },
            None => event.await,
        };
        if readable? { self.read() } else { Ok(()) }
    }

    fn overdue(&self) -> Result<(), End> {
        let now = Instant::now();
        if self.read_by.is_some_and(|by| by <= now) {
            return Err(End::NotReading);
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
    /// and what the client has sent waits in the kernel meanwhile.
    fn read(&mut self) -> Result<(), End> {
        let need = if self.inbox.is_empty() { Need::Receive } else { Need::ReceiveRest };
        // Kept until what has come counts itself.
        let room = self.seat.take_room();
        let room = room.or_else(|| self.daemon.borrow().line.room(&self.seat.account, need));
        let scratch = Rc::clone(&self.scratch);
        let Scratch { read: buffer, fds, .. } = &mut *scratch.borrow_mut();
        step("before a receive");
        let received = self.socket.try_io(Interest::READABLE, || match &room {
            Some(_) => socket::receive(&self.socket, buffer, fds).map(Some),
            None => socket::receive_without_descriptors(&self.socket, buffer),
        });
        step("after a receive");
        let Some(received) = received.transpose() else {
            self.daemon.borrow_mut().await_room(self.id, &self.seat, need);
            return Ok(());
        };
        let fds = fds.drain(..).map(|fd| Descriptor::new(fd, &self.seat.account));
        match received {
            Ok(Received::Bytes(count)) => {
                self.inbox.feed(&buffer[..count], fds)?;
                Ok(())
            }
            Ok(Received::End) => {
                self.ended = true;
                if is_hung_up(&self.socket)
                    && !matches!(self.seat.state.borrow().call, Current::None)
                {
                    return Err(End::Closed);
                }
                Ok(())
            }
            Ok(Received::Truncated(_)) => {
                // To the closer; the drain alone would close them here.
                fds.for_each(drop);
                self.refuse_for_room();
                Err(Hangup::DescriptorsLost.into())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a client whose descriptors found no room here why it is hung up on. What is left of the
    /// order of its descriptors is lost with them, so nothing it has sent can be answered.
    fn refuse_for_room(&self) {
        let frame = no_room(self.daemon.borrow().places());
        let no_fds: [OwnedFd; 0] = [];
        // If it does not get even this, it still sees its connection close.
        let _ = self.send(&frame.bytes, &no_fds);
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
