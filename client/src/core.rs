//! [`Core`]: the flow of every call, once for both ways to wait: which connection it takes, when it
//! is sent again, and how what was not finished is undone.

use std::{
    mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use fdstash_proto::{Call, Entry, Handed, Hangup, Info, Name, Notice, Pattern, Reply, Statistics};

use crate::{
    Error,
    connection::{Connection, Patience},
    job::{Finality, Job, Repetition},
    transport::Transport,
};

/// How often a call is sent again: a call that ends the daemon each time must not do so for ever.
const MOST_REPETITIONS: usize = 2;

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
    /// What has arrived, while the daemon's answer to its Commit has not.
    arrived: Vec<Reply<OwnedFd>>,
    /// What had arrived when that answer never came.
    unconfirmed: Vec<Reply<OwnedFd>>,
}

impl<T: Transport> Core<T> {
    pub(crate) async fn connect(socket: PathBuf) -> Result<Self, Error> {
        let connection = Some(Connection::open(&socket, Patience::Queue).await?);
        let (arrived, unconfirmed) = (Vec::new(), Vec::new());
        Ok(Self { socket, connection, is_staged: false, was_there: true, arrived, unconfirmed })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Does a job, again if its connection is lost and that is harmless.
    pub(crate) async fn run(&mut self, job: &Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let mut repetitions = 0;
        loop {
            // What a dropped call has left there is not this one's.
            self.unconfirmed.append(&mut self.arrived);
            let mut connection = self.take_connection().await?;
            let outcome = match job.finality {
                Finality::AtOnce => connection.ask_all(job).await,
                Finality::Together => self.run_together(&mut connection, job).await,
            };
            self.put_back(connection);
            let Err(Error::ConnectionLost { may_be_done }) = outcome else { return outcome };
            let is_harmless = job.repetition == Repetition::Harmless || !may_be_done;
            if !is_harmless || repetitions == MOST_REPETITIONS {
                return outcome;
            }
            repetitions += 1;
        }
    }

    /// What arrived for a take or a reopen whose end the daemon could not confirm.
    pub(crate) fn take_unconfirmed(&mut self) -> Vec<Handed<OwnedFd>> {
        self.unconfirmed.append(&mut self.arrived);
        handed(mem::take(&mut self.unconfirmed))
    }

    /// A transaction of the library's own: all arrives and is checked before the Commit is sent.
    async fn run_together(
        &mut self,
        connection: &mut Connection<T>,
        job: &Job<'_>,
    ) -> Result<Vec<Reply<OwnedFd>>, Error> {
        connection.tell(Call::Begin).await.map_err(undone)?;
        let replies = match connection.ask_all(job).await {
            Ok(replies) => replies,
            Err(error) => {
                roll_back(connection).await;
                return Err(undone(error));
            }
        };
        // From here until the answer, nobody here knows whose they are. They stay reachable also
        // where this future is dropped.
        self.arrived = replies;
        let committed = commit(connection).await;
        let replies = mem::take(&mut self.arrived);
        match committed {
            Ok(()) => Ok(replies),
            Err(error) => {
                if !is_certainly_undone(&error) {
                    self.unconfirmed.extend(replies);
                }
                Err(error)
            }
        }
    }

    /// The connection if it still stands, or a new one.
    async fn take_connection(&mut self) -> Result<Connection<T>, Error> {
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

    fn put_back(&mut self, connection: Connection<T>) {
        self.connection = Some(connection).filter(Connection::is_in_step);
    }
}

/// The caller's own transaction. Its connection is never replaced by another.
pub(crate) struct Staged<'a, T> {
    core: &'a mut Core<T>,
}

impl<'a, T: Transport> Staged<'a, T> {
    pub(crate) async fn begin(core: &'a mut Core<T>) -> Result<Self, Error> {
        core.run(&Job::begin()).await?;
        core.is_staged = true;
        Ok(Self { core })
    }

    pub(crate) fn socket(&self) -> &Path {
        self.core.socket()
    }

    /// Does a job within the transaction. Where only a part of it can be undone, or what it handed
    /// out did not arrive, all is: a Commit must not make that final.
    pub(crate) async fn run(&mut self, job: &Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        let mut connection = self.take_connection()?;
        let outcome = connection.ask_all(job).await;
        self.core.put_back(connection);
        let is_clean = |error| job.len() == 1 && left_all_as_it_was(error);
        if !outcome.as_ref().map_or_else(is_clean, |_| true) {
            self.abandon();
        }
        outcome.map_err(undone)
    }

    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        let mut connection = self.take_connection()?;
        self.core.is_staged = false;
        let outcome = commit(&mut connection).await;
        self.core.put_back(connection);
        outcome
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
        let mut repetitions = 0;
        loop {
            let mut connection = Connection::open(&self.socket, Patience::Restart).await?;
            match connection.watch(&self.pattern).await {
                Err(Error::ConnectionLost { .. }) if repetitions < MOST_REPETITIONS => {
                    repetitions += 1;
                }
                outcome => {
                    self.connection = outcome.is_ok().then_some(connection);
                    return outcome;
                }
            }
        }
    }
}

/// All that was handed out. What a question's answer is, the codec has seen to.
pub(crate) fn handed(replies: Vec<Reply<OwnedFd>>) -> Vec<Handed<OwnedFd>> {
    let parts = replies
        .into_iter()
        .filter_map(|reply| if let Reply::Handed(handed) = reply { Some(handed) } else { None });
    parts.flatten().collect()
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

/// What the daemon is.
pub(crate) fn info(mut replies: Vec<Reply<OwnedFd>>) -> Result<Info, Error> {
    let Some(Reply::Info(info)) = replies.pop() else { return Err(not_due()) };
    Ok(info)
}

fn not_due() -> Error {
    Error::Protocol(Hangup::NotAReply)
}

/// A refused Commit leaves nothing open.
async fn commit<T: Transport>(connection: &mut Connection<T>) -> Result<(), Error> {
    let outcome = connection.tell(Call::Commit { ticket: None }).await;
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
