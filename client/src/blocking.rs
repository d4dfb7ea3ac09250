//! The blocking client: each call returns when it is done.
//!
//! ```no_run
//! use fdstash::{Gift, blocking::Client};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::connect()?;
//! let image = std::fs::File::open("/var/lib/images/vm7.img")?;
//! client.give(&[Gift::new("vm7-disk0".parse()?, &image)])?;
//! # Ok(())
//! # }
//! ```

mod file;
mod image;
mod transaction;
mod transport;

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use fdstash_proto::{
    Clash, Entry, Explanation, Gift, Handed, Info, Name, Notice, Pattern, Reopening, Statistics,
    Taking, Verb,
};

use crate::{
    Error, Outcome, Pipeline,
    core::{Core, Staged, Watching, entries, explained, handed, info, replaced, statistics},
    default_socket,
    job::Job,
    repetition::Repetitions,
};

pub(crate) use self::transport::Blocking;
pub use self::{file::File, image::Image, transaction::Transaction};

/// A connection to the daemon, renewed when it is lost.
pub struct Client(Core<Blocking>);

impl Client {
    /// Connects to the daemon at [`default_socket`].
    ///
    /// # Errors
    ///
    /// [`Error::NoDaemon`] if nobody can be reached there.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(default_socket())
    }

    /// Connects to the daemon at a socket.
    ///
    /// # Errors
    ///
    /// [`Error::NoDaemon`] if nobody can be reached there.
    pub fn connect_to(socket: impl Into<PathBuf>) -> Result<Self, Error> {
        now(Core::connect(socket.into())).map(Self)
    }

    /// The socket that it is connected to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.0.socket()
    }

    /// Keeps descriptors, and tells the names whose old ones made room. They are only borrowed, and
    /// stay the caller's too. What they outlive, [`Statistics::keeper`](crate::Statistics) tells.
    ///
    /// An ephemeral gift lives as long as this connection, also where the client renews it unseen.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then none of them is kept, except after [`Error::ConnectionLost`], which tells.
    pub fn give<F: AsFd>(&mut self, gifts: &[Gift<F>]) -> Result<Vec<Name>, Error> {
        now(self.0.run(Job::give(gifts, Clash::Replace)?)).map(replaced)
    }

    /// Keeps descriptors under names that are free, else none of them.
    ///
    /// # Errors
    ///
    /// As [`Client::give`], and [`Refusal::AlreadyExists`](crate::Refusal::AlreadyExists).
    pub fn give_new<F: AsFd>(&mut self, gifts: &[Gift<F>]) -> Result<(), Error> {
        now(self.0.run(Job::give(gifts, Clash::Refuse)?)).map(drop)
    }

    /// Takes descriptors out of the stash, in the order of the names. They are the caller's alone,
    /// and close-on-exec. The stash lets go of them only when all have arrived.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then the stash keeps them all, but for those that [`Client::unconfirmed`] has.
    pub fn take(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.take_within(names, Duration::ZERO)
    }

    /// Takes as [`Client::take`] does, and waits so long for names that are not there yet or held by
    /// another's transaction.
    ///
    /// # Errors
    ///
    /// As [`Client::take`].
    pub fn take_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::take(names, wait)?)).map(handed)
    }

    /// Takes as [`Client::take`] does, but in one round trip: the stash lets go of the descriptors as its
    /// answer leaves for here, and waits for no word that they have arrived. What is on its way when this
    /// process dies is lost with it, as is what finds no room here ([`Error::NoRoom`]). Where the
    /// daemon dies or the connection is lost, nothing is: what has not left is still kept, and taken again.
    ///
    /// More than 253 are taken as [`Client::take`] does.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; but for [`Error::NoRoom`], the stash then keeps them all.
    pub fn take_at_once(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.take_at_once_within(names, Duration::ZERO)
    }

    /// Takes as [`Client::take_at_once`] does, and waits so long for names that are not there yet or
    /// held by another's transaction.
    ///
    /// # Errors
    ///
    /// As [`Client::take_at_once`].
    pub fn take_at_once_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::take_at_once(names, wait)?)).map(handed)
    }

    /// Hands out descriptors that earlier calls have left here: they had arrived, and then the daemon
    /// did not confirm the take or the reopen, since it did not come back, or not with what it had
    /// kept; so it may have let go of them. Until they are fetched, the client keeps them.
    pub fn unconfirmed(&mut self) -> Vec<Handed<OwnedFd>> {
        self.0.take_unconfirmed()
    }

    /// Hands out duplicates, in the order of the names, which share offset, flags and locks with
    /// what the stash keeps. They are the caller's, and close-on-exec.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then none is handed out.
    pub fn copy(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.copy_within(names, Duration::ZERO)
    }

    /// Copies as [`Client::copy`] does, and waits so long for names that are not there yet or held
    /// by another's transaction.
    ///
    /// # Errors
    ///
    /// As [`Client::copy`].
    pub fn copy_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::copy(names, Taking::Copy, wait)?)).map(handed)
    }

    /// Hands out open file descriptions of their own, in the order of the names, so that nothing
    /// done to them touches what the stash keeps. They are the caller's, and close-on-exec.
    ///
    /// # Errors
    ///
    /// As [`Client::copy`], and [`Refusal::ReopenFailed`](crate::Refusal::ReopenFailed) for what
    /// cannot be opened anew, as a socket.
    pub fn copy_fresh(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.copy_fresh_within(names, Duration::ZERO)
    }

    /// Copies as [`Client::copy_fresh`] does, and waits so long for names that are not there yet or
    /// held by another's transaction.
    ///
    /// # Errors
    ///
    /// As [`Client::copy_fresh`].
    pub fn copy_fresh_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::copy(names, Taking::Fresh, wait)?)).map(handed)
    }

    /// Has the daemon close descriptors and forget them.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then all are still kept, except after [`Error::ConnectionLost`], which tells.
    pub fn close(&mut self, names: &[Name]) -> Result<(), Error> {
        now(self.0.run(Job::close(names)?)).map(drop)
    }

    /// Opens kept files anew with other flags, and hands out descriptors of the same kind, or with less
    /// access where that is asked for ([`Reopening::hand_out`]), that share nothing with what is kept,
    /// in the order of the reopenings. They are the caller's, and close-on-exec.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then the stash keeps all as it was, except after [`Error::ConnectionLost`]
    /// that may be done: what was handed out then, [`Client::unconfirmed`] has.
    pub fn reopen(&mut self, reopenings: &[Reopening]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::reopen(reopenings)?)).map(handed)
    }

    /// Lists the entries whose names match, in the order of their names.
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the connection.
    pub fn list(&mut self, pattern: &Pattern) -> Result<Vec<Entry>, Error> {
        now(self.0.run(Job::list(pattern))).map(entries)
    }

    /// Asks for the daemon's figures.
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the connection.
    pub fn statistics(&mut self) -> Result<Statistics, Error> {
        now(self.0.run(Job::statistics())).and_then(statistics)
    }

    /// Asks what the policy says to a user who is in these groups, and why. It takes root.
    ///
    /// # Errors
    ///
    /// PermissionDenied to others, and any [`Error`] of the connection.
    pub fn explain_policy(
        &mut self,
        uid: u32,
        gids: &[u32],
        verb: Verb,
        name: &Name,
    ) -> Result<Explanation, Error> {
        now(self.0.run(Job::explain_policy(uid, gids, verb, name))).and_then(explained)
    }

    /// Asks the daemon what it is.
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the connection.
    pub fn info(&mut self) -> Result<Info, Error> {
        now(self.0.run(Job::info())).and_then(info)
    }

    /// Does the calls of a pipeline, one after another, and tells for each what became of it, in their
    /// order. Where the connection is lost, those without an answer are sent again, each once.
    ///
    /// A give or a close whose answer was lost, where one behind it in the pipeline is known to be done, was
    /// done or refused, and the daemon no longer knows which: of that, and of nothing else,
    /// [`Error::ConnectionLost`] says that it may be done.
    pub fn run(&mut self, pipeline: Pipeline<'_>) -> Vec<Result<Outcome, Error>> {
        now(self.0.run_pipeline(pipeline))
    }

    /// Begins a transaction: what is done in it becomes final together, or not at all.
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the connection.
    pub fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        now(Staged::begin(&mut self.0)).map(Transaction)
    }

    /// Does several calls as one: `act` in a transaction, and then its commit. Where the connection is
    /// lost before that is final, as when the daemon is killed or upgraded in its middle, all of it is
    /// undone and done anew; so `act` may be called more than once, and what it returned last is what
    /// was committed. Where `act` fails, all is rolled back.
    ///
    /// # Errors
    ///
    /// What `act` fails with, or any [`Error`] of the commit. With [`Error::ConnectionLost`] that may be
    /// done, what `act` returned is dropped, and may be the last of what it took: who takes in it, keeps what
    /// arrives in a variable of its own.
    pub fn transact<T>(
        &mut self,
        mut act: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut repetitions = Repetitions::new();
        loop {
            match self.try_transact(&mut act) {
                Ok(done) => return Ok(done),
                Err(error) => now(repetitions.after_undone::<Blocking>(error))?,
            }
        }
    }

    fn try_transact<T>(
        &mut self,
        act: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut transaction = self.transaction()?;
        let done = act(&mut transaction)?;
        transaction.commit()?;
        Ok(done)
    }

    /// Watches the entries whose names match, on a connection of its own. When it returns, the watch
    /// stands: every change from then on is told.
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the connection.
    pub fn watch(&self, pattern: &Pattern) -> Result<Watch, Error> {
        now(Watching::begin(self.0.socket().to_owned(), pattern.clone())).map(Watch)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("socket", &self.0.socket()).finish_non_exhaustive()
    }
}

/// The changes of the entries that a watch is about, for ever: each waits for the next.
///
/// [`Notice::Standing`] says that the connection was lost and the watch stands anew: changes may have
/// gone untold, so list anew. After an error it ends.
pub struct Watch(Watching<Blocking>);

impl Iterator for Watch {
    type Item = Result<Notice, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        now(self.0.next()).transpose()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("socket", &self.0.socket()).finish_non_exhaustive()
    }
}

/// Runs the flow over a transport that never lets it wait.
fn now<F: Future>(flow: F) -> F::Output {
    match pin!(flow).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("no future of the blocking transport is ever pending"),
    }
}
