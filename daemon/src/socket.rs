//! [`Socket`]: a connection's socket, and what the event loop hears of it.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::polled::polled;

/// A connection's socket. Owns it.
///
/// The event loop hears of it from the first wait on: many a connection has made its one call before.
pub(crate) struct Socket {
    stream: Rc<UnixStream>,
    heard: Option<AsyncFd<Rc<UnixStream>>>,
}

impl Socket {
    /// A socket that does not block.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream: Rc::new(stream), heard: None }
    }

    /// Reads or writes, unless it is known that it would have to wait.
    ///
    /// # Errors
    ///
    /// Those of what is done, and `WouldBlock` in its place.
    pub(crate) fn attempt<T>(
        &self,
        interest: Interest,
        f: impl FnOnce(&UnixStream) -> io::Result<T>,
    ) -> io::Result<T> {
        match &self.heard {
            Some(heard) => heard.try_io(interest, |stream| f(stream)),
            None => f(&self.stream),
        }
    }

    /// Waits until it can be read or written again, whichever is asked for.
    ///
    /// # Errors
    ///
    /// The kernel's, if the event loop cannot hear of it.
    pub(crate) async fn ready(&mut self, reading: bool, sending: bool) -> io::Result<()> {
        let heard = match &mut self.heard {
            Some(heard) => heard,
            none => {
                let both = Interest::READABLE | Interest::WRITABLE;
                none.insert(polled(Rc::clone(&self.stream), both)?)
            }
        };
        tokio::select! {
            biased;
            ready = heard.readable(), if reading => drop(ready?),
            ready = heard.writable(), if sending => drop(ready?),
        }
        Ok(())
    }

    /// What is left of it, to which nothing else refers any more.
    pub(crate) fn into_fd(self) -> Option<OwnedFd> {
        let Self { stream, heard } = self;
        drop(heard);
        Rc::into_inner(stream).map(OwnedFd::from)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
