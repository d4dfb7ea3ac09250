//! How a connection rests while the daemon stops, and goes on with another server.

use std::{cell::RefCell, io, rc::Rc};

use fdstash_proto::Mode;
use fdstash_stash::{Carried, Doing, Number};
use tokio::task::spawn_local;

use crate::{
    connection::{Connection, End},
    inherited::{number, set_survives_exec},
    peer,
    restore::Connected,
    run::{Daemon, Input},
    seat::{Current, Seat},
    socket::Socket,
};

/// A connection that does nothing for now, and what is needed to go on with it.
pub(crate) struct Rest {
    pub(crate) socket: Number,
    pub(crate) mode: Mode,
    pub(crate) lost: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<Number>,
}

impl Connection {
    /// Goes on with a connection that another server had.
    pub(crate) fn resume(daemon: &Rc<RefCell<Daemon>>, connected: Connected) {
        let Connected { carried, socket, fds } = connected;
        let Carried { id, mode, doing, lost, bytes, .. } = carried;
        let call = call_of(&doing, mode);
        let who = peer::who(&socket).unwrap_or_else(|_| peer::nobody());
        let (user, account) = {
            let mut daemon = daemon.borrow_mut();
            (daemon.users.get(who.peer.uid), daemon.account(&who))
        };
        let seat = Rc::new(Seat::at(who.clone(), user, account, call, lost));
        daemon.borrow_mut().resume(id, who, doing, &seat);
        let mut connection = Self::new(id, Socket::new(socket.into()), seat, daemon);
        match connection.inbox.feed(&bytes, fds) {
            Ok(()) => drop(spawn_local(connection.run())),
            Err(error) => {
                tracing::error!(%error, "going on with a connection failed");
                daemon.borrow_mut().handle(Input::Disconnected(id));
            }
        }
    }

    /// Whether no call is to be begun, since the daemon stops. A transaction with something in it is let
    /// come to its end.
    pub(crate) fn is_frozen(&self) -> bool {
        let daemon = self.daemon.borrow();
        daemon.pause.is_frozen && daemon.stash.can_be_carried(self.id)
    }

    /// What is needed to go on with this connection elsewhere, if the daemon stops and nothing that
    /// has begun is yet to end.
    pub(crate) fn rest(&self) -> Option<Rest> {
        let daemon = self.daemon.borrow();
        if !daemon.pause.is_frozen || !daemon.stash.can_be_carried(self.id) {
            return None;
        }
        let state = self.seat.state.borrow();
        let mode = match state.call {
            Current::None | Current::Watching => Mode::Once,
            Current::Waiting(mode) => mode,
            Current::Listing(_) | Current::Leaving => return None,
        };
        if !state.is_quiet() {
            return None;
        }
        let (bytes, fds) = self.inbox.unread();
        Some(Rest {
            socket: number(&self.socket),
            mode,
            lost: state.lost,
            bytes: bytes.to_vec(),
            fds: fds.map(number).collect(),
        })
    }

    /// Rests until the daemon goes on. What the client does meanwhile waits in its socket.
    pub(crate) async fn wait_for_thaw(&self, rest: Rest) -> Result<(), End> {
        self.survive_exec(true)?;
        self.daemon.borrow_mut().pause.rest(self.id, rest);
        self.seat.set_awake(false);
        self.seat.news().await;
        self.daemon.borrow_mut().pause.forget(self.id);
        self.survive_exec(false)?;
        Ok(())
    }

    fn survive_exec(&self, survives: bool) -> io::Result<()> {
        let (_, mut fds) = self.inbox.unread();
        fds.try_for_each(|fd| set_survives_exec(fd, survives))?;
        set_survives_exec(&self.socket, survives)
    }
}

fn call_of(doing: &Doing, mode: Mode) -> Current {
    match doing {
        Doing::Nothing => Current::None,
        Doing::Waiting { .. } => Current::Waiting(mode),
        Doing::Watching(_) => Current::Watching,
        Doing::InTransaction(doing) | Doing::Failed(doing) => call_of(doing, mode),
    }
}
