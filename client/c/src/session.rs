//! [`Session`]: the stash that this process speaks to, and the one connection that its threads share.
//!
//! A connection is one process's. A child of fork(2) has its parent's socket too, and would mix its
//! calls with the parent's; so who finds itself in another process connects anew, and only lets go of
//! the socket, which leaves the parent's connection as it is.

use std::{
    cell::Cell,
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fdstash::{Error, Handed, Name, blocking::Client};
use libc::c_int;

use crate::failure::Failure;

/// Held for moments only, and never while the daemon is waited for.
static SESSION: Mutex<Option<Session>> = Mutex::new(None);

thread_local! {
    /// What the thread that forks holds meanwhile.
    static HELD: Cell<Option<MutexGuard<'static, Option<Session>>>> = const { Cell::new(None) };
}

struct Session {
    pid: u32,
    connection: Arc<Connection>,
    /// By their numbers, also of those that are closed by now.
    opened: BTreeMap<c_int, Opened>,
}

struct Connection {
    socket: PathBuf,
    /// Held by the thread whose call is on its way. None before the first call, and while a call has
    /// it: one that panics takes its connection with it.
    client: Mutex<Option<Client>>,
}

/// What was opened through the stash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Under which name it is kept.
    pub(crate) name: Name,
    /// Its device and inode.
    pub(crate) identity: (u64, u64),
}

/// Connects, and has the session be with that stash from now on.
pub(crate) fn begin(socket: PathBuf) -> Result<(), Failure> {
    let client = Mutex::new(Some(Client::connect_to(&socket)?));
    let connection = Arc::new(Connection { socket, client });
    let mut session = lock(&SESSION);
    // What was opened stays known: most likely it is the same stash, and what is reopened is compared.
    let opened = session.take().map(|former| former.opened).unwrap_or_default();
    *session = Some(Session { pid: process::id(), connection, opened });
    Ok(())
}

/// Ends the session; its connection closes when the calls that are on their way are done.
pub(crate) fn end() {
    lock(&SESSION).take();
}

/// Makes calls over the session's connection, when those of other threads are done.
pub(crate) fn with<T>(call: impl FnOnce(&mut Client) -> Result<T, Failure>) -> Result<T, Failure> {
    let connection = connection()?;
    let mut place = lock(&connection.client);
    let mut client = match place.take() {
        Some(client) => client,
        None => Client::connect_to(&connection.socket)?,
    };
    let outcome = call(&mut client);
    place.replace(client);
    outcome
}

/// Takes note of what a number stands for.
pub(crate) fn note(fd: c_int, opened: Opened) {
    if let Some(session) = lock(&SESSION).as_mut() {
        session.opened.insert(fd, opened);
    }
}

/// Takes note that a number stands for nothing any more.
pub(crate) fn strike(fd: c_int) {
    if let Some(session) = lock(&SESSION).as_mut() {
        session.opened.remove(&fd);
    }
}

/// What a number stood for when it was noted last.
pub(crate) fn noted(fd: c_int) -> Option<Opened> {
    lock(&SESSION).as_ref()?.opened.get(&fd).cloned()
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

fn connection() -> Result<Arc<Connection>, Failure> {
    let mut session = lock(&SESSION);
    let session = session.as_mut().ok_or(Failure::NotInitialised)?;
    if session.pid != process::id() {
        // We are a child. Where a thread of the parent was in the midst of a call at the fork, its
        // connection is never released here, so that nobody finds it half changed.
        let socket = session.connection.socket.clone();
        session.connection = Arc::new(Connection { socket, client: Mutex::new(None) });
        session.pid = process::id();
    }
    Ok(Arc::clone(&session.connection))
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
