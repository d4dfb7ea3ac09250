//! [`Core`]: the flow of every call, once for both ways to wait: which connection it takes, when it
//! is sent again, and how what was not finished is undone. It is one file, since all calls go this one way.

use std::{
    mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use fdstash_proto::{
    Call, Entry, Explanation, Handed, Hangup, Info, Name, Notice, Pattern, Refusal, Reply,
    Statistics, Ticket,
};

use crate::{
    Error,
    connection::{Connection, Patience},
    job::{Finality, Job},
    repetition::{Repetitions, Tickets},
    transport::Transport,
};

/// What is behind a client.
pub(crate) struct Core<T> {
    socket: PathBuf,
    /// None while a call has it, so that a call which is dropped half-way closes it; then what is
    /// not final is undone by the daemon, and the next call connects anew.
    connection: Option<Connection<T>>,
    /// Whether the caller's own transaction is open on the connection.
    is_staged: bool,
    /// Whether the daemon was there when it was last looked for: then one that is away restarts.
    was_there: bool,
    pub(crate) tickets: Tickets,
    /// What has arrived, while the daemon's answer to its Commit has not.
    arrived: Vec<Reply<OwnedFd>>,
    /// What had arrived when that answer never came.
    unconfirmed: Vec<Reply<OwnedFd>>,
}

impl<T: Transport> Core<T> {
    pub(crate) async fn connect(socket: PathBuf) -> Result<Self, Error> {
        let connection = Some(Connection::open(&socket, Patience::Queue).await?);
        Ok(Self {
            socket,
            connection,
            is_staged: false,
            was_there: true,
            tickets: Tickets::new(),
            arrived: Vec::new(),
            unconfirmed: Vec::new(),
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Does a job, and does it exactly once, however often its connection is lost.
    pub(crate) async fn run(&mut self, mut job: Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        // What a dropped call has left there is not this one's.
        self.unconfirmed.append(&mut self.arrived);
        match job.finality {
            Finality::AtOnce => self.run_at_once(&mut job).await,
            Finality::Together => self.run_together(&mut job).await,
        }
    }

    /// What arrived for a take or a reopen whose end the daemon could not confirm.
    pub(crate) fn take_unconfirmed(&mut self) -> Vec<Handed<OwnedFd>> {
        self.unconfirmed.append(&mut self.arrived);
        handed(mem::take(&mut self.unconfirmed))
    }

    /// One request, which by its ticket is known when it comes again.
    async fn run_at_once(&mut self, job: &mut Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let ticket = job.leaves_doubt().then(|| self.tickets.next());
        let mut repetitions = Repetitions::new();
        loop {
            match self.ask(job, ticket.as_ref()).await {
                Ok(replies) => return Ok(replies),
                Err(error) if job.leaves_doubt() => repetitions.after::<T>(error).await?,
                Err(error) => repetitions.after::<T>(undone(error)).await?,
            }
        }
    }

    async fn ask(
        &mut self,
        job: &mut Job<'_>,
        ticket: Option<&Ticket>,
    ) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let mut connection = self.take_connection().await?;
        let outcome = connection.ask_all(job, ticket).await;
        self.put_back(connection);
        outcome
    }

    /// A transaction of the library's own. Where the answer to its Commit is lost, its ticket tells
    /// what became of it; and if it never was, all is done anew.
    async fn run_together(&mut self, job: &mut Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let ticket = &self.tickets.next();
        let mut repetitions = Repetitions::new();
        loop {
            let outcome = if repetitions.is_in_doubt() {
                self.is_committed(ticket).await
            } else {
                self.transact(job, ticket).await.map(|()| true)
            };
            match outcome {
                Ok(true) => return Ok(mem::take(&mut self.arrived)),
                // What has arrived is let go of only when it has arrived once more: a daemon that
                // lost its memory would say the same.
                Ok(false) => repetitions.end_doubt(),
                Err(error) => repetitions.after::<T>(error).await?,
            }
        }
    }

    async fn transact(&mut self, job: &mut Job<'_>, ticket: &Ticket) -> Result<(), Error> {
        let mut connection = self.take_connection().await?;
        let outcome = self.transact_on(&mut connection, job, ticket).await;
        self.put_back(connection);
        outcome
    }

    /// All arrives and is checked before the Commit is sent.
    async fn transact_on(
        &mut self,
        connection: &mut Connection<T>,
        job: &mut Job<'_>,
        ticket: &Ticket,
    ) -> Result<(), Error> {
        let replies = match connection.ask_in_transaction(job).await {
            Ok(replies) => replies,
            Err(error) => {
                roll_back(connection).await;
                return Err(undone(error));
            }
        };
        // From here until the answer, nobody here knows whose they are. They stay reachable also
        // where this future is dropped.
        self.arrived = replies;
        let committed = commit(connection, ticket).await;
        if committed.as_ref().is_err_and(is_certainly_undone) {
            self.arrived.clear();
        }
        committed
    }

    /// Whether a Commit has happened whose answer was lost.
    async fn is_committed(&mut self, ticket: &Ticket) -> Result<bool, Error> {
        let mut connection = self.take_connection().await?;
        let outcome = connection.tell(Call::Commit { ticket: Some(ticket.clone()) }).await;
        self.put_back(connection);
        match outcome {
            Ok(()) => Ok(true),
            Err(Error::Refused(Refusal::TransactionState { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The connection if there is one, or a new one. Whether the daemon is still there, sending tells.
    pub(crate) async fn take_connection(&mut self) -> Result<Connection<T>, Error> {
        // Whoever leaked a transaction (`mem::forget`) does not get its calls mixed with later ones.
        if mem::take(&mut self.is_staged) {
            self.connection = None;
        }
        if let Some(mut connection) = self.connection.take() {
            if connection.settle().await {
                return Ok(connection);
            }
        }
        let patience = if self.was_there { Patience::Restart } else { Patience::Queue };
        let outcome = Connection::open(&self.socket, patience).await;
        self.was_there = !matches!(outcome, Err(Error::NoDaemon { .. }));
        outcome
    }

    pub(crate) fn put_back(&mut self, connection: Connection<T>) {
        self.connection = Some(connection).filter(Connection::is_in_step);
    }
}

/// The caller's own transaction. Its connection is never replaced by another.
pub(crate) struct Staged<'a, T> {
    core: &'a mut Core<T>,
}

impl<'a, T: Transport> Staged<'a, T> {
    pub(crate) async fn begin(core: &'a mut Core<T>) -> Result<Self, Error> {
        core.run(Job::begin()).await?;
        core.is_staged = true;
        Ok(Self { core })
    }

    pub(crate) fn socket(&self) -> &Path {
        self.core.socket()
    }

    /// Does a job within the transaction. Where only a part of it can be undone, or what it handed
    /// out did not arrive, all is: a Commit must not make that final.
    pub(crate) async fn run(&mut self, mut job: Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let mut connection = self.take_connection()?;
        let outcome = connection.ask_all(&mut job, None).await;
        self.core.put_back(connection);
        let is_clean = |error| job.len() == 1 && left_all_as_it_was(error);
        if !outcome.as_ref().map_or_else(is_clean, |_| true) {
            self.abandon();
        }
        outcome.map_err(undone)
    }

    /// Makes all of it final. What was not, cannot be done anew here: its calls are the caller's.
    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        let mut connection = self.take_connection()?;
        self.core.is_staged = false;
        let ticket = self.core.tickets.next();
        let outcome = commit(&mut connection, &ticket).await;
        self.core.put_back(connection);
        let Err(error) = outcome else { return Ok(()) };
        let mut repetitions = Repetitions::new();
        repetitions.after::<T>(error).await?;
        while repetitions.is_in_doubt() {
            match self.core.is_committed(&ticket).await {
                Ok(true) => return Ok(()),
                Ok(false) => repetitions.end_doubt(),
                Err(error) => repetitions.after::<T>(error).await?,
            }
        }
        Err(Error::ConnectionLost { may_be_done: false })
    }

    pub(crate) async fn rollback(&mut self) {
        let Ok(mut connection) = self.take_connection() else { return };
        self.core.is_staged = false;
        roll_back(&mut connection).await;
        self.core.put_back(connection);
    }

    /// Rolls back without waiting: what is asked next on this connection comes after it.
    pub(crate) fn abandon(&mut self) {
        if mem::take(&mut self.core.is_staged) {
            self.core.connection = self.core.connection.take().and_then(|mut connection| {
                let is_asked = connection.abandon();
                is_asked.then_some(connection)
            });
        }
    }

    fn take_connection(&mut self) -> Result<Connection<T>, Error> {
        let connection = if self.core.is_staged { self.core.connection.take() } else { None };
        connection.ok_or(Error::RolledBack)
    }
}

/// What is behind a watch: a connection of its own, and another when that is lost.
pub(crate) struct Watching<T> {
    socket: PathBuf,
    pattern: Pattern,
    connection: Option<Connection<T>>,
    has_ended: bool,
}

impl<T: Transport> Watching<T> {
    /// Returns when the watch stands.
    pub(crate) async fn begin(socket: PathBuf, pattern: Pattern) -> Result<Self, Error> {
        let mut watching = Self { socket, pattern, connection: None, has_ended: false };
        watching.stand().await?;
        Ok(watching)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next notice; [`Notice::Standing`] when the watch had to begin anew. After an error or
    /// the watch's end, none. Where it is dropped, no notice is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Notice>, Error> {
        if self.has_ended {
            return Ok(None);
        }
        let outcome = self.wait().await;
        self.has_ended |= outcome.is_err();
        if self.has_ended {
            self.connection = None;
        }
        outcome.map(Some)
    }

    async fn wait(&mut self) -> Result<Notice, Error> {
        if let Some(connection) = &mut self.connection {
            match connection.next_notice().await {
                Ok((notice, continues)) => {
                    self.has_ended = !continues;
                    return Ok(notice);
                }
                Err(Error::ConnectionLost { .. }) => self.connection = None,
                Err(error) => return Err(error),
            }
        }
        self.stand().await?;
        Ok(Notice::Standing)
    }

    /// Connects and has the watch begin, again if a daemon that was about to end had taken it.
    async fn stand(&mut self) -> Result<(), Error> {
        let mut repetitions = Repetitions::new();
        loop {
            let mut connection = Connection::open(&self.socket, Patience::Restart).await?;
            match connection.watch(&self.pattern).await {
                Ok(()) => {
                    self.connection = Some(connection);
                    return Ok(());
                }
                Err(error) => repetitions.after::<T>(undone(error)).await?,
            }
        }
    }
}

/// All that was handed out. What a question's answer is, the codec has seen to.
pub(crate) fn handed(replies: Vec<Reply<OwnedFd>>) -> Vec<Handed<OwnedFd>> {
    let parts = replies
        .into_iter()
        .filter_map(|reply| if let Reply::Handed(handed) = reply { Some(handed) } else { None });
    parts
        .reduce(|mut all, part| {
            all.extend(part);
            all
        })
        .unwrap_or_default()
}

/// All names whose old descriptors made room.
pub(crate) fn replaced(replies: Vec<Reply<OwnedFd>>) -> Vec<Name> {
    let parts = replies.into_iter().filter_map(|reply| {
        if let Reply::Given { replaced } = reply { Some(replaced) } else { None }
    });
    parts.flatten().collect()
}

/// All entries, of every part of the answer.
pub(crate) fn entries(replies: Vec<Reply<OwnedFd>>) -> Vec<Entry> {
    let parts = replies
        .into_iter()
        .filter_map(|reply| if let Reply::Listed(entries) = reply { Some(entries) } else { None });
    parts.flatten().collect()
}

/// The figures.
pub(crate) fn statistics(mut replies: Vec<Reply<OwnedFd>>) -> Result<Statistics, Error> {
    let Some(Reply::Statistics(statistics)) = replies.pop() else { return Err(not_due()) };
    Ok(statistics)
}

/// What the policy says.
pub(crate) fn explained(mut replies: Vec<Reply<OwnedFd>>) -> Result<Explanation, Error> {
    let Some(Reply::Explained(explanation)) = replies.pop() else { return Err(not_due()) };
    Ok(explanation)
}

/// What the daemon is.
pub(crate) fn info(mut replies: Vec<Reply<OwnedFd>>) -> Result<Info, Error> {
    let Some(Reply::Info(info)) = replies.pop() else { return Err(not_due()) };
    Ok(info)
}

fn not_due() -> Error {
    Error::Protocol(Hangup::NotAReply)
}

/// A refused Commit leaves nothing open.
async fn commit<T: Transport>(
    connection: &mut Connection<T>,
    ticket: &Ticket,
) -> Result<(), Error> {
    let outcome = connection.tell(Call::Commit { ticket: Some(ticket.clone()) }).await;
    if outcome.is_err() {
        roll_back(connection).await;
    }
    outcome
}

/// Waits until nothing of the transaction is left, as far as the connection allows.
async fn roll_back<T: Transport>(connection: &mut Connection<T>) {
    if connection.is_in_step() {
        // Whatever it fails with, the connection is then dropped, or there was nothing to undo.
        let _ = connection.tell(Call::Rollback).await;
    }
}

/// What was not committed is undone with its connection.
fn undone(error: Error) -> Error {
    let is_lost = matches!(error, Error::ConnectionLost { .. });
    if is_lost { Error::ConnectionLost { may_be_done: false } } else { error }
}

fn is_certainly_undone(error: &Error) -> bool {
    !matches!(error, Error::ConnectionLost { may_be_done: true } | Error::Protocol(_))
}

/// Whether the one call that failed so did nothing, and its connection still stands.
fn left_all_as_it_was(error: &Error) -> bool {
    matches!(error, Error::Refused(_) | Error::UnknownRefusal { .. } | Error::CallTooLong { .. })
}
