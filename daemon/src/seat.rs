//! [`Seat`]: what the event loop and a connection's task share of a connection.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
};

use fdstash_proto::{Entry, Frame, Mode, Name, Notice, Outbox, Pattern, Refusal, Reply, reply};
use fdstash_stash::Who;
use tokio::sync::Notify;

use crate::{
    descriptor::Descriptor,
    ledger::{Account, Load, Room},
    told::Told,
    turns::User,
};

/// With so many bytes yet to leave, changes are counted for a watcher and no longer told.
const TOO_MUCH_TO_TELL: usize = 1 << 20;

/// The longest single message that a client can be expected to read, as sd-varlink's do.
const MAX_ANSWER: usize = 16 << 20;

/// How many entries one part of a List has.
const LIST_PART: usize = 100;

/// With so many bytes a part of a List is complete, however few entries it has.
const MUCH_TO_LIST: usize = 256 << 10;

/// The most bytes that are read or sent at once.
pub(crate) const PIECE: usize = 64 << 10;

/// Room for one read and one write, shared by all connections, since they take turns.
pub(crate) struct Scratch {
    pub(crate) read: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) write: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { read: vec![0; PIECE], fds: Vec::new(), write: Vec::with_capacity(PIECE) }
    }
}

/// What the event loop and a connection's task share of it. Owns what waits to be sent.
pub(crate) struct Seat {
    pub(crate) who: Who,
    /// Whom its turns are of.
    pub(crate) user: Rc<User>,
    /// To whom its descriptors count.
    pub(crate) account: Account,
    pub(crate) state: RefCell<State>,
    /// Room to read with, where that has to be waited for.
    grant: RefCell<Grant>,
    /// How many descriptors came with the call that it is at.
    pub(crate) gifts: Cell<usize>,
    /// Wakes the task, when something else than its socket has news for it.
    news: Notify,
    /// The task is at work, and sees the news anyway.
    awake: Cell<bool>,
}

pub(crate) struct State {
    pub(crate) outbox: Outbox<Arc<Descriptor>, Left>,
    pub(crate) call: Current,
    /// The descriptors that are in the outbox.
    pub(crate) unread: Load,
    /// Whether the connection is to close, as soon as its answers have left.
    pub(crate) closing: bool,
    /// Whether it is to close, whatever it is at.
    pub(crate) is_cut: bool,
    /// Changes of which it is not seen yet whether a watcher watches their names.
    unseen: VecDeque<Rc<Told>>,
    unseen_bytes: usize,
    /// Changes that a watcher was not told of.
    pub(crate) lost: u64,
}

/// How far it is with room to read.
#[derive(Default)]
enum Grant {
    /// It has not asked.
    #[default]
    None,
    /// It waits for some.
    Waiting,
    /// It has some.
    Room(Room),
}

/// What the stash wants to know when an answer has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Confirm,
}

/// The call that a connection is at.
pub(crate) enum Current {
    None,
    /// It waits for its answer.
    Waiting(Mode),
    /// Its answer is a list, which is being written.
    Listing(List),
    /// Its answer is to be confirmed when it has left.
    Leaving,
    /// It has been answered, and will be again for every change.
    Watching,
}

/// A list that is being written.
pub(crate) struct List {
    pattern: Pattern,
    /// The name up to which it is.
    after: Option<Name>,
    in_parts: bool,
    /// What is not in the outbox yet.
    part: reply::Listing,
}

impl State {
    /// How many bytes are yet to leave, or may be, those of a list that is being written among them.
    pub(crate) fn bytes(&self) -> usize {
        let listed = match &self.call {
            Current::Listing(list) => list.part.bytes(),
            Current::None | Current::Waiting(_) | Current::Leaving | Current::Watching => 0,
        };
        self.outbox.len() + self.unseen_bytes + listed
    }

    /// Whether nothing is left to be said.
    pub(crate) fn is_quiet(&self) -> bool {
        self.outbox.is_empty() && self.unseen.is_empty()
    }

    /// Gives up a list that is written in one message, if it is long.
    pub(crate) fn give_up_list(&mut self, refusal: impl FnOnce() -> Refusal) {
        let Current::Listing(list) = &self.call else { return };
        if !list.in_parts && list.part.bytes() > PIECE {
            self.call = Current::None;
            self.outbox.push(reply::write(Err(refusal()), false), Left::Nothing);
        }
    }

    /// Goes on with a list, with some entries behind a name, and after which name to go on, if there are
    /// more.
    pub(crate) fn list(
        &mut self,
        some: impl FnOnce(&Pattern, Option<&Name>) -> (Vec<Entry>, Option<Name>),
    ) {
        let Current::Listing(List { pattern, after, in_parts, part }) = &mut self.call else {
            return;
        };
        let (entries, last) = some(pattern, after.as_ref());
        entries.into_iter().for_each(|entry| part.push(entry));
        *after = last;
        let continues = after.is_some();
        let frame = if !*in_parts && part.bytes() > MAX_ANSWER {
            let value = i64::try_from(MAX_ANSWER).unwrap_or(i64::MAX);
            let limit = "bytesPerReply".into();
            self.call = Current::None;
            reply::write(Err(Refusal::LimitExceeded { limit, value }), false)
        } else if !continues {
            let part = mem::take(part);
            self.call = Current::None;
            part.finish(false)
        } else if *in_parts && (part.entries() >= LIST_PART || part.bytes() >= MUCH_TO_LIST) {
            mem::take(part).finish(true)
        } else {
            return;
        };
        self.outbox.push(frame, Left::Nothing);
    }
}

impl Seat {
    pub(crate) fn new(who: Who, user: Rc<User>, account: Account) -> Self {
        Self::at(who, user, account, Current::None, 0)
    }

    /// One that is at a call already, and was not told of so many changes.
    pub(crate) fn at(who: Who, user: Rc<User>, account: Account, call: Current, lost: u64) -> Self {
        let (outbox, unread) = (Outbox::new(), account.load());
        let (unseen, unseen_bytes) = (VecDeque::new(), 0);
        let (closing, is_cut) = (false, false);
        let state = State { outbox, call, unread, closing, is_cut, unseen, unseen_bytes, lost };
        Self {
            who,
            user,
            account,
            state: RefCell::new(state),
            grant: RefCell::default(),
            gifts: Cell::new(0),
            news: Notify::new(),
            awake: Cell::new(false),
        }
    }

    /// Answers the connection's call. Whether what is handed out will not leave, because the call
    /// wanted no answer.
    pub(crate) fn answer(
        &self,
        outcome: Result<Reply<Arc<Descriptor>>, Refusal>,
        confirm: bool,
    ) -> Answered {
        let mut state = self.state.borrow_mut();
        let Current::Waiting(mode) = state.call else { return Answered::Unsent };
        state.call = Current::None;
        if mode == Mode::Oneway {
            // What was sent behind it can begin now.
            self.wake();
            return Answered::Unsent;
        }
        let continues = matches!(outcome, Ok(Reply::Notice(_)));
        if continues {
            state.call = Current::Watching;
        }
        if confirm {
            state.call = Current::Leaving;
        }
        let left = if confirm { Left::Confirm } else { Left::Nothing };
        let frame = reply::write(outcome, continues);
        state.unread.add(frame.fds.len());
        state.outbox.push(frame, left);
        self.wake();
        Answered::Sending
    }

    /// Begins to answer the connection's List.
    pub(crate) fn list(&self, pattern: Pattern) {
        let mut state = self.state.borrow_mut();
        let Current::Waiting(mode) = state.call else { return };
        let in_parts = mode == Mode::More;
        let part = reply::Listing::new();
        state.call = match mode {
            Mode::Oneway => Current::None,
            Mode::More | Mode::Once => {
                Current::Listing(List { pattern, after: None, in_parts, part })
            }
        };
        self.wake();
    }

    /// Has a watcher see to a change in its own turn, if it is not too far behind.
    pub(crate) fn tell(&self, told: &Rc<Told>) {
        let mut state = self.state.borrow_mut();
        if !matches!(state.call, Current::Watching) {
            return;
        }
        let bytes = state.unseen_bytes + told.bytes();
        if bytes > self.too_much_to_tell() {
            state.lost += 1;
        } else {
            state.unseen_bytes = bytes;
            state.unseen.push_back(Rc::clone(told));
        }
        self.wake();
    }

    /// Sends a watcher the next change, if it watches that name and is not too far behind. Whether there
    /// was one.
    pub(crate) fn see(&self, watches: impl FnOnce(&Name) -> bool) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(told) = state.unseen.pop_front() else { return false };
        state.unseen_bytes -= told.bytes();
        if !watches(told.name()) {
            return true;
        }
        let message = told.message();
        if state.lost > 0 || state.outbox.len() + message.len() > self.too_much_to_tell() {
            state.lost += 1;
        } else {
            let frame = Frame { bytes: message.to_vec(), fds: Vec::new() };
            state.outbox.push(frame, Left::Nothing);
        }
        true
    }

    fn too_much_to_tell(&self) -> usize {
        if self.account.is_heavy() { PIECE } else { TOO_MUCH_TO_TELL }
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state.borrow();
        let is_answering = matches!(state.call, Current::Listing(..) | Current::Leaving);
        state.is_quiet() && !is_answering
    }

    /// Whether it waits for room to read.
    pub(crate) fn waits_for_room(&self) -> bool {
        matches!(*self.grant.borrow(), Grant::Waiting)
    }

    /// Has it wait for room.
    pub(crate) fn await_room(&self) {
        *self.grant.borrow_mut() = Grant::Waiting;
    }

    /// Gives it the room that it waits for.
    pub(crate) fn grant(&self, room: Room) {
        *self.grant.borrow_mut() = Grant::Room(room);
        self.wake();
    }

    /// The room that it was given.
    pub(crate) fn take_room(&self) -> Option<Room> {
        let mut grant = self.grant.borrow_mut();
        match mem::take(&mut *grant) {
            Grant::Room(room) => Some(room),
            Grant::None => None,
            Grant::Waiting => {
                *grant = Grant::Waiting;
                None
            }
        }
    }

    /// Waits for news from elsewhere than the socket.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// Says whether the task is at work, so that it needs no waking.
    pub(crate) fn set_awake(&self, awake: bool) {
        self.awake.set(awake);
    }

    /// Has the task look for news.
    pub(crate) fn wake(&self) {
        if !self.awake.get() {
            self.news.notify_one();
        }
    }

    /// Closes the connection when its answers have left.
    pub(crate) fn close_soon(&self) {
        self.state.borrow_mut().closing = true;
        self.wake();
    }

    /// Closes the connection, whatever it is at.
    pub(crate) fn cut(&self) {
        self.state.borrow_mut().is_cut = true;
        self.wake();
    }

    /// Tells a watcher that has caught up how much it has missed.
    pub(crate) fn tell_lost(&self) {
        let mut state = self.state.borrow_mut();
        if state.lost > 0 && state.is_quiet() {
            let notice = Notice::Lost(mem::take(&mut state.lost));
            let frame = reply::write(Ok(Reply::Notice(notice)), true);
            state.outbox.push(frame, Left::Nothing);
        }
    }
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It is on its way.
    Sending,
    /// Nobody gets it.
    Unsent,
}
