//! [`Connection`]: one connection to the daemon, on which one question is asked at a time.

use std::{
    io, mem,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use fdstash_proto::{
    Call, Frame, Hangup, Inbox, MAX_MESSAGE, Name, Notice, Pattern, Reply, Request, Ticket,
    reply::{Answer, Expect},
    socket::Received,
};
use rustix::{io::Errno, net::SendFlags};

use crate::{
    Error,
    job::{Job, Question, in_order},
    transport::Transport,
};

/// How much one read takes at first, which is enough for most answers, and at most: a few hundred
/// entries of a List.
const READ: usize = 4 << 10;
const LONG_READ: usize = 64 << 10;

/// About how many bytes of an answer are an entry's, beside its name.
const ENTRY: usize = 36;

/// The pauses before a socket at which nobody listens is tried again, two seconds in all: a daemon
/// that restarts is back in less.
const PAUSES_MSEC: [u64; 9] = [1, 4, 15, 40, 90, 200, 350, 500, 800];

/// For what the opening of a connection waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For a daemon whose queue is full.
    Queue,
    /// Also for one that is about to come back.
    Restart,
}

impl Patience {
    fn covers(self, error: &io::Error) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
        let is_away = matches!(error.kind(), NotFound | ConnectionRefused);
        error.kind() == WouldBlock || (is_away && self == Self::Restart)
    }
}

/// One connection. Its end undoes what is not final.
pub(crate) struct Connection<T> {
    transport: T,
    inbox: Inbox<OwnedFd>,
    buffer: Vec<u8>,
    /// Whether every question has had its answer whole, so that the next can be asked.
    in_step: bool,
    /// Whether descriptors have come that found no room: those of the last message that has come.
    is_truncated: bool,
    /// Whether the answer to a Rollback is yet to come, for which nobody waited.
    owed: bool,
}

impl<T: Transport> Connection<T> {
    /// Connects, and tries again as long as `patience` tells.
    pub(crate) async fn open(socket: &Path, patience: Patience) -> Result<Self, Error> {
        let mut pauses = PAUSES_MSEC.into_iter();
        loop {
            let source = match T::connect(socket).await {
                Ok(transport) => return Ok(Self::new(transport)),
                Err(source) => source,
            };
            if matches!(Errno::from_io_error(&source), Some(Errno::MFILE | Errno::NFILE)) {
                return Err(Error::NoRoom);
            }
            let Some(pause) = pauses.next().filter(|_| patience.covers(&source)) else {
                return Err(Error::NoDaemon { socket: socket.to_owned(), source });
            };
            T::pause(Duration::from_millis(pause)).await;
        }
    }

    fn new(transport: T) -> Self {
        let inbox = Inbox::for_replies();
        Self {
            transport,
            inbox,
            buffer: vec![0; READ],
            in_step: true,
            is_truncated: false,
            owed: false,
        }
    }

    /// Whether it can be used for the next question.
    pub(crate) fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// Takes in what is owed, and tells whether the connection can be used.
    pub(crate) async fn settle(&mut self) -> bool {
        if mem::take(&mut self.owed)
            && self.answer(Expect::Done, &[], Delivery::Whole).await.is_err()
        {
            return false;
        }
        self.in_step
    }

    /// Asks all questions of a job, one after another, up to the first that fails; with a ticket if
    /// it is final at once.
    pub(crate) async fn ask_all(
        &mut self,
        job: &mut Job<'_>,
        ticket: Option<&Ticket>,
    ) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let mut replies = Vec::with_capacity(job.len());
        for question in job.questions(ticket) {
            self.ask(&question, &mut replies).await?;
        }
        Ok(replies)
    }

    /// Asks the questions of a job in a transaction that it begins, as [`Connection::ask_all`] does. The
    /// Begin leaves together with the first of them, which saves a round trip.
    pub(crate) async fn ask_in_transaction(
        &mut self,
        job: &mut Job<'_>,
    ) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let begin = Request::Stash(Call::Begin);
        let mut begin = Some(Question::new(&begin));
        let mut replies = Vec::with_capacity(job.len());
        for question in job.questions(None) {
            match begin.take() {
                Some(begin) => self.ask_both(begin, &question, &mut replies).await?,
                None => self.ask(&question, &mut replies).await?,
            }
        }
        if let Some(begin) = begin {
            self.ask(&begin, &mut Vec::new()).await?;
        }
        Ok(replies)
    }

    /// Asks for a Begin and one question behind it, and appends the answer to that to `replies`.
    async fn ask_both(
        &mut self,
        begin: Question<'_, '_>,
        question: &Question<'_, '_>,
        replies: &mut Vec<Reply<OwnedFd>>,
    ) -> Result<(), Error> {
        let Question { message: Frame { mut bytes, .. }, due, .. } = begin;
        check_length(&question.message)?;
        bytes.extend(&question.message.bytes);
        let delivery = self.send(&Frame { bytes, fds: question.message.fds.clone() }).await?;
        let begun = self.answer(due, &[], delivery).await;
        // The answer to the question is yet to come. Where the Begin is refused, which it is in a
        // transaction alone, the connection's end undoes that with what the question did in it.
        self.in_step = false;
        begun?.outcome?;
        self.hear(question, delivery, replies).await
    }

    /// Makes a call whose reply says nothing but that it was done.
    pub(crate) async fn tell(&mut self, call: Call<BorrowedFd<'_>>) -> Result<(), Error> {
        self.ask(&Question::new(&Request::Stash(call)), &mut Vec::new()).await
    }

    /// Asks one question, and appends its answer to `replies`. Where it is dropped half-way, the
    /// connection is out of step and its owner drops it, which undoes what is not final.
    async fn ask(
        &mut self,
        question: &Question<'_, '_>,
        replies: &mut Vec<Reply<OwnedFd>>,
    ) -> Result<(), Error> {
        check_length(&question.message)?;
        let delivery = self.send(&question.message).await?;
        self.hear(question, delivery, replies).await
    }

    async fn hear(
        &mut self,
        question: &Question<'_, '_>,
        delivery: Delivery,
        replies: &mut Vec<Reply<OwnedFd>>,
    ) -> Result<(), Error> {
        loop {
            let answer = self.answer(question.due, &question.asked, delivery).await?;
            replies.push(self.checked(answer.outcome?, &question.asked)?);
            if !answer.continues {
                return Ok(());
            }
            if !question.in_parts {
                return Err(self.broken());
            }
        }
    }

    /// A reply that hands out exactly what was asked for, in that order.
    pub(crate) fn checked(
        &mut self,
        reply: Reply<OwnedFd>,
        asked: &[Name],
    ) -> Result<Reply<OwnedFd>, Error> {
        let Reply::Handed(handed) = reply else { return Ok(reply) };
        in_order(asked, handed).map(Reply::Handed).ok_or_else(|| self.broken())
    }

    /// Begins a watch on this connection, which is good for nothing else from then on.
    pub(crate) async fn watch(&mut self, pattern: &Pattern) -> Result<(), Error> {
        let call = Call::Watch { pattern: pattern.clone() };
        let question = Question::new(&Request::Stash(call)).message;
        check_length(&question)?;
        let delivery = self.send(&question).await?;
        let answer = self.answer(Expect::Notice, &[], delivery).await?;
        let stands = matches!(answer.outcome?, Reply::Notice(Notice::Standing));
        if stands && answer.continues { Ok(()) } else { Err(self.broken()) }
    }

    /// The next notice of the watch, and whether more follow. Where it is dropped, none is lost.
    pub(crate) async fn next_notice(&mut self) -> Result<(Notice, bool), Error> {
        let answer = self.answer(Expect::Notice, &[], Delivery::Whole).await?;
        let Reply::Notice(notice) = answer.outcome? else { return Err(self.broken()) };
        Ok((notice, answer.continues))
    }

    /// Asks for a Rollback without waiting for its answer, and tells whether that could be done. If
    /// not, the connection has to be dropped, which comes to the same.
    pub(crate) fn abandon(&mut self) -> bool {
        let rollback = Question::new(&Request::Stash(Call::Rollback)).message.bytes;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.owed = rustix::net::send(self.transport.fd(), &rollback, flags)
            .is_ok_and(|sent| sent == rollback.len());
        self.owed
    }

    /// Sends what may be several calls. Their answers are then asked for, one after another.
    pub(crate) async fn send(
        &mut self,
        message: &Frame<BorrowedFd<'_>>,
    ) -> Result<Delivery, Error> {
        self.in_step = false;
        let mut sent = 0;
        while sent < message.bytes.len() {
            let fds = if sent == 0 { message.fds.as_slice() } else { &[] };
            match self.transport.send(&message.bytes[sent..], fds).await {
                Ok(count) => sent += count,
                // The daemon may have said why before it hung up, so that is still read.
                Err(error) if means_lost(&error) && sent == 0 => return Ok(Delivery::Nothing),
                Err(error) if means_lost(&error) => return Ok(Delivery::CutShort),
                Err(error) => return Err(Error::Io(error)),
            }
        }
        Ok(Delivery::Whole)
    }

    /// Reads until an answer is whole. Where it is dropped, what has come waits in the inbox.
    pub(crate) async fn answer(
        &mut self,
        due: Expect,
        asked: &[Name],
        delivery: Delivery,
    ) -> Result<Answer<OwnedFd>, Error> {
        self.make_room(asked);
        loop {
            match self.inbox.next_reply_to(due, asked) {
                Ok(None) => {}
                // Where this hands nothing out, what is lacking is of an answer behind it.
                Ok(Some(answer)) if !self.is_truncated || !hands_out(&answer) => {
                    self.in_step = self.inbox.is_empty() && !answer.continues;
                    return Ok(answer);
                }
                Ok(Some(_)) => return Err(self.no_room()),
                // The bytes are all there, only their descriptors are not.
                Err(_) if self.is_truncated && due == Expect::Handed => return Err(self.no_room()),
                Err(hangup) => return Err(Error::Protocol(hangup)),
            }
            self.read(delivery).await?;
        }
    }

    /// Reads once.
    async fn read(&mut self, delivery: Delivery) -> Result<(), Error> {
        let mut fds = Vec::new();
        let count = match self.transport.receive(&mut self.buffer, &mut fds).await {
            Ok(Received::Bytes(count)) => count,
            Ok(Received::Truncated(count)) => {
                self.is_truncated = true;
                count
            }
            Ok(Received::End) => return Err(delivery.lost()),
            Err(error) if means_lost(&error) => return Err(delivery.lost()),
            Err(error) => return Err(Error::Io(error)),
        };
        self.inbox.feed(&self.buffer[..count], fds).map_err(Error::Protocol)?;
        if count == self.buffer.len() {
            self.buffer.resize(LONG_READ, 0);
        }
        Ok(())
    }

    /// Lets one read take an answer that hands all of this out.
    fn make_room(&mut self, asked: &[Name]) {
        if asked.len() * ENTRY <= self.buffer.len() / 2 {
            return;
        }
        let names: usize = asked.iter().map(|name| name.as_str().len()).sum();
        let len = (names + asked.len() * ENTRY).clamp(self.buffer.len(), LONG_READ);
        self.buffer.resize(len, 0);
    }

    /// What is told where descriptors have come and found no room. Which of the others are whose, nobody
    /// knows then.
    fn no_room(&mut self) -> Error {
        self.is_truncated = false;
        drop(self.inbox.take_unnamed());
        self.in_step = self.inbox.is_empty();
        Error::NoRoom
    }

    /// What is told of a daemon that lies, whose connection is then good for nothing.
    pub(crate) fn broken(&mut self) -> Error {
        self.in_step = false;
        Error::Protocol(Hangup::NotAReply)
    }
}

/// How much of a question the kernel took for the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// All of it.
    Whole,
    /// Nothing.
    Nothing,
    /// Less, and what has no end is not carried out.
    CutShort,
}

impl Delivery {
    fn lost(self) -> Error {
        Error::ConnectionLost { may_be_done: self == Self::Whole }
    }
}

fn hands_out(answer: &Answer<OwnedFd>) -> bool {
    matches!(&answer.outcome, Ok(Reply::Handed(handed)) if !handed.is_empty())
}

fn check_length(message: &Frame<BorrowedFd<'_>>) -> Result<(), Error> {
    let is_too_long = message.bytes.len() > MAX_MESSAGE;
    if is_too_long { Err(Error::CallTooLong { limit: MAX_MESSAGE }) } else { Ok(()) }
}

fn means_lost(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED | Errno::NOTCONN)
    )
}
