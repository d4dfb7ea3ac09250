//! [`Manager`]: the service manager above, if there is one, which hears from us what its service says.

use std::{
    env,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Where it wants to be told.
#[derive(Debug, Clone)]
pub(super) struct Manager(Option<SocketAddr>);

impl Manager {
    /// The one that `NOTIFY_SOCKET` names.
    pub(super) fn from_env() -> Self {
        let Some(place) = env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else {
            return Self(None);
        };
        let address = match place.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(&place),
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        if let Err(error) = &address {
            crate::complain(format_args!(
                "the manager at NOTIFY_SOCKET={place:?} is not told: {error}"
            ));
        }
        Self(address.ok())
    }

    /// Passes a message on, and waits for room for it.
    pub(super) fn tell(&self, text: &[u8], fd: Option<&OwnedFd>) {
        let Some(place) = &self.0 else { return };
        if let Err(error) = send(place, text, fd) {
            let text = String::from_utf8_lossy(text);
            crate::complain(format_args!("could not tell the service manager {text:?}: {error}"));
        }
    }
}

fn send(place: &SocketAddr, text: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(place)?;
    let fds = fd.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.is_some() {
        // Cannot fail: the space is that of one.
        control.push(SendAncillaryMessage::ScmRights(fds.as_slice()));
    }
    let parts = [IoSlice::new(text)];
    rustix::io::retry_on_intr(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}
