//! [`Session`]: the stash that this process speaks to, and the one connection that its threads share.
//!
//! A connection is one process's. A child of fork(2) has its parent's socket too, and would mix its
//! calls with the parent's; so who finds itself in another process begins a session of its own, and
//! only lets go of the socket, which leaves the parent's connection as it is.

use std::{
    cell::Cell,
    os::fd::OwnedFd,
    path::PathBuf,
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fdstash::{Error, Handed, blocking::Client};

use crate::failure::Failure;

/// Held for moments only, and never while the daemon is waited for.
static SESSION: Mutex<Option<Arc<Session>>> = Mutex::new(None);

thread_local! {
    /// What the thread that forks holds meanwhile.
    static HELD: Cell<Option<MutexGuard<'static, Option<Arc<Session>>>>> = const { Cell::new(None) };
}

struct Session {
    pid: u32,
    socket: PathBuf,
    /// Held by the thread whose call is on its way. None before the first call, and while a call has
    /// it: one that panics takes its connection with it.
    client: Mutex<Option<Client>>,
}

/// Connects, and has the session be with that stash from now on.
pub(crate) fn begin(socket: PathBuf) -> Result<(), Failure> {
    let client = Client::connect_to(&socket)?;
    let session = Session { pid: process::id(), socket, client: Mutex::new(Some(client)) };
    lock(&SESSION).replace(Arc::new(session));
    Ok(())
}

/// Ends the session; its connection closes when the calls that are on their way are done.
pub(crate) fn end() {
    lock(&SESSION).take();
}

/// Makes calls over the session's connection, when those of other threads are done.
pub(crate) fn with<T>(call: impl FnOnce(&mut Client) -> Result<T, Failure>) -> Result<T, Failure> {
    let session = current()?;
    let mut place = lock(&session.client);
    let mut client = match place.take() {
        Some(client) => client,
        None => Client::connect_to(&session.socket)?,
    };
    let outcome = call(&mut client);
    place.replace(client);
    outcome
}

/// The one descriptor that a call has handed out. It is so too where it had arrived and the daemon went
/// away for good before it confirmed that: then nobody else may have it any more.
pub(crate) fn handed(
    stash: &mut Client,
    outcome: Result<Vec<Handed<OwnedFd>>, Error>,
) -> Result<OwnedFd, Failure> {
    let mut handed = match outcome {
        Ok(handed) => handed,
        Err(error) => match stash.unconfirmed() {
            arrived if arrived.is_empty() => return Err(error.into()),
            arrived => arrived,
        },
    };
    // The library has seen to it that it is what was asked for.
    Ok(handed.remove(0).fd)
}

fn current() -> Result<Arc<Session>, Failure> {
    let mut current = lock(&SESSION);
    let session = current.as_ref().ok_or(Failure::NotInitialised)?;
    if session.pid == process::id() {
        return Ok(Arc::clone(session));
    }
    // We are a child. Where a thread of the parent was in the midst of a call at the fork, what that
    // has of the parent's session is never released here, so that nobody finds it half changed.
    let socket = session.socket.clone();
    let own = Arc::new(Session { pid: process::id(), socket, client: Mutex::new(None) });
    current.replace(Arc::clone(&own));
    Ok(own)
}

/// For pthread_atfork(3): holds the session still, so that a child never finds it held by a thread
/// that it does not have.
pub(crate) extern "C" fn before_fork() {
    let _ = HELD.try_with(|held| held.set(Some(lock(&SESSION))));
}

/// For pthread_atfork(3), in both processes.
pub(crate) extern "C" fn after_fork() {
    let _ = HELD.try_with(|held| held.set(None));
}

/// Locks also what a thread has held when it panicked: what it left there is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
