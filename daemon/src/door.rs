//! [`Door`]: admits connections, and turns away those for whom there is no room, telling them so.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result};
use fdstash_proto::{Frame, Peer, Refusal, reply};
use fdstash_stash::{ConnectionId, Doing, Who};
use rustix::{
    io::Errno,
    net::{SendFlags, SocketFlags, accept_with, sockopt::set_socket_passcred},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{spawn_local, yield_now},
};

use crate::{
    clock,
    connection::{Connection, End},
    metrics::Metrics,
    open::no_thread,
    peer,
    polled::polled,
    reminder::Reminder,
    run::{Daemon, Input},
    seat::Seat,
    socket::Socket,
    steps::step,
};

/// How long to wait where the kernel cannot give a connection for a reason that will pass.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening socket, and what is needed to turn somebody away when no descriptor is left.
pub(crate) struct Door {
    listener: AsyncFd<UnixListener>,
    daemon: Rc<RefCell<Daemon>>,
    /// Keeps one number free: given up, there is a place for the connection to be turned away on.
    spare: Option<File>,
    reminder: Reminder,
}

impl Door {
    pub(crate) fn new(listener: UnixListener, daemon: Rc<RefCell<Daemon>>) -> Result<Self> {
        // With it, a read would end where who sends changes, and not tell that there is more.
        set_socket_passcred(&listener, false).context("asking for no credentials")?;
        listener.set_nonblocking(true).context("making the listening socket non-blocking")?;
        let listener =
            polled(listener, Interest::READABLE).context("waiting for the listening socket")?;
        let spare = Some(spare().context("opening /dev/null")?);
        Ok(Self { listener, daemon, spare, reminder: Reminder::default() })
    }

    /// Admits connections for ever.
    pub(crate) async fn admit(mut self) {
        loop {
            match self.listener.async_io(Interest::READABLE, accept).await {
                Ok(socket) => {
                    self.welcome(socket);
                    // Those who are here already are not to wait for all who come.
                    yield_now().await;
                }
                Err(error) => {
                    self.turn_away(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn welcome(&mut self, socket: UnixStream) {
        let who = match peer::who(&socket) {
            Ok(who) => who,
            Err(error) => {
                if self.reminder.is_due() {
                    tracing::warn!(%error, "hanging up on a peer whom the kernel does not know");
                }
                return;
            }
        };
        let peer = who.peer;
        let account = self.daemon.borrow().account(&who);
        let admitted = self.daemon.borrow_mut().connect(who);
        match admitted {
            Ok((id, seat)) => {
                tracing::debug!(uid = peer.uid, pid = peer.pid, "connection admitted");
                step("before a welcome");
                spawn_local(Connection::new(id, Socket::new(socket), seat, &self.daemon).run());
            }
            Err(refusal) => {
                let mut daemon = self.daemon.borrow_mut();
                daemon.audit.refused(peer, &refusal);
                daemon.metrics.iter_mut().for_each(Metrics::turned_away);
                drop(daemon);
                self.remind(&refusal.to_string());
                refuse(&socket, &reply::write(Err(refusal), false));
                account.charge().close(socket.into());
            }
        }
    }

    /// Deals with a failed accept: at the limit of descriptors the spare one is given up for as long
    /// as it takes to tell the next in line.
    fn turn_away(&mut self, error: &io::Error) {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        if !matches!(errno, Some(Errno::MFILE | Errno::NFILE)) {
            if self.reminder.is_due() {
                tracing::error!(%error, "accepting a connection failed, trying again");
            }
            return;
        }
        self.daemon.borrow_mut().metrics.iter_mut().for_each(Metrics::turned_away);
        self.remind("no descriptors left");
        drop(self.spare.take());
        if let Ok(socket) = accept(self.listener.get_ref()) {
            refuse(&socket, &no_room(self.daemon.borrow().places()));
        }
        self.spare = spare().ok();
    }

    fn remind(&mut self, reason: &str) {
        if self.reminder.is_due() {
            tracing::warn!(reason, "turning connections away");
        }
    }
}

impl Daemon {
    /// Gives a connection a seat, or says why there is none.
    pub(crate) fn connect(&mut self, who: Who) -> Result<(ConnectionId, Rc<Seat>), Refusal> {
        let account = self.account(&who);
        if account.is_full_of_closes() {
            let value = i64::try_from(account.most()).unwrap_or(i64::MAX);
            return Err(Refusal::LimitExceeded { limit: "descriptorsPerUser".into(), value });
        }
        let id = self.stash.connect(who.clone())?;
        let user = self.users.get(who.peer.uid);
        let seat = Rc::new(Seat::new(who, user, account));
        self.seats.insert(id, Rc::clone(&seat));
        self.count();
        Ok((id, seat))
    }

    /// Gives a connection its seat back that another server had.
    pub(crate) fn resume(&mut self, id: ConnectionId, who: Who, doing: Doing, seat: &Rc<Seat>) {
        self.stash.resume(id, who, doing, clock::now());
        self.seats.insert(id, Rc::clone(seat));
    }

    /// Tells the log who is hung up on. Whoever breaks the protocol all the time, fills no disk by that.
    pub(crate) fn complain(&mut self, peer: Peer, reason: &End) {
        if self.complaints.is_due(peer.uid) {
            tracing::warn!(uid = peer.uid, pid = peer.pid, %reason, "hanging up");
        } else {
            tracing::debug!(uid = peer.uid, pid = peer.pid, %reason, "hanging up");
        }
    }

    /// Takes its seat from a connection that has ended, and its place in every line.
    pub(crate) fn forget(&mut self, by: ConnectionId) {
        let Some(seat) = self.seats.remove(&by) else { return };
        let uid = seat.account.uid();
        let (waited, queued) = (self.line.forget(by, uid), self.opener.forget(by, uid));
        if waited || queued {
            // The stash counts a call among those under way until it hears what came of it.
            self.pending.push_back(Input::Opened(by, Err(no_thread())));
        }
    }
}

fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok(socket.into())
}

/// Sends a last message, and does not wait: if the client does not get even this, it still sees its
/// connection close.
fn refuse(socket: impl AsFd, frame: &Frame<OwnedFd>) {
    let _ = rustix::net::send(socket, &frame.bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// The message to a client for whom there is no room in the process's table.
pub(crate) fn no_room(places: usize) -> Frame<OwnedFd> {
    let value = i64::try_from(places).unwrap_or(i64::MAX);
    reply::write(Err(Refusal::LimitExceeded { limit: "descriptors".into(), value }), false)
}

fn spare() -> io::Result<File> {
    File::open("/dev/null")
}
