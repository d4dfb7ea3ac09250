//! [`Transaction`]: several calls that become final together.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use fdstash_proto::{Clash, Gift, Handed, Name, Reopening, Taking};

use super::{Blocking, now};
use crate::{
    Error,
    core::{Staged, handed, replaced},
    job::Job,
};

/// A transaction on a client's connection. Until it is committed, nobody else can touch the names in
/// it; dropped, it is rolled back.
///
/// Where the connection is lost in it, all of it is rolled back and every further call fails with
/// [`Error::RolledBack`]. So it is where [`Error::NoRoom`] has lost a descriptor that was handed out,
/// and where a call of more than 253 descriptors, which is several messages, fails half-way.
#[must_use = "dropped, it is rolled back"]
pub struct Transaction<'a>(pub(super) Staged<'a, Blocking>);

impl Transaction<'_> {
    /// Keeps descriptors, and tells the names whose old ones will make room. They are only borrowed.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn give<F: AsFd>(&mut self, gifts: &[Gift<F>]) -> Result<Vec<Name>, Error> {
        now(self.0.run(Job::give(gifts, Clash::Replace)?)).map(replaced)
    }

    /// Keeps descriptors under names that are free, else none of them.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn give_new<F: AsFd>(&mut self, gifts: &[Gift<F>]) -> Result<(), Error> {
        now(self.0.run(Job::give(gifts, Clash::Refuse)?)).map(drop)
    }

    /// Takes descriptors, in the order of the names. They are the caller's; the stash lets go of
    /// them at the commit.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn take(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.take_within(names, Duration::ZERO)
    }

    /// Takes, and waits so long for names that are not there yet or held by another's transaction.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn take_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::take(names, wait)?)).map(handed)
    }

    /// Hands out duplicates, in the order of the names. They are the caller's.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn copy(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.copy_within(names, Duration::ZERO)
    }

    /// Hands out duplicates, and waits so long for names that are not there yet or held by another's
    /// transaction.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn copy_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::copy(names, Taking::Copy, wait)?)).map(handed)
    }

    /// Hands out open file descriptions of their own, in the order of the names. They are the
    /// caller's.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn copy_fresh(&mut self, names: &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        self.copy_fresh_within(names, Duration::ZERO)
    }

    /// Hands out open file descriptions of their own, and waits so long for names that are not there
    /// yet or held by another's transaction.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn copy_fresh_within(
        &mut self,
        names: &[Name],
        wait: Duration,
    ) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::copy(names, Taking::Fresh, wait)?)).map(handed)
    }

    /// Closes descriptors and forgets them.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn close(&mut self, names: &[Name]) -> Result<(), Error> {
        now(self.0.run(Job::close(names)?)).map(drop)
    }

    /// Opens kept files anew, and hands out descriptors of the same kind, in the order of the
    /// reopenings. They are the caller's.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then it has done nothing.
    pub fn reopen(&mut self, reopenings: &[Reopening]) -> Result<Vec<Handed<OwnedFd>>, Error> {
        now(self.0.run(Job::reopen(reopenings)?)).map(handed)
    }

    /// Makes all of it final.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then nothing of it was done, except after [`Error::ConnectionLost`], which
    /// tells.
    pub fn commit(mut self) -> Result<(), Error> {
        now(self.0.commit())
    }

    /// Undoes all of it. It cannot fail: what is not committed is undone with the connection's end
    /// too. When it returns, the names are free for others, unless the connection was lost.
    pub fn rollback(mut self) {
        now(self.0.rollback());
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("socket", &self.0.socket()).finish_non_exhaustive()
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        now(self.0.rollback());
    }
}
