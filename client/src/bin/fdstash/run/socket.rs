//! [`Socket`]: where the service's messages arrive, with who has sent each and the descriptors beside it.
//!
//! It is a file, as systemd's own is, and no abstract name: whoever is free to take the name of one whose
//! process has been killed would be sent descriptors by a service that is still there.

use std::{
    env, fs,
    fs::{DirBuilder, Permissions},
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, UCred, recvmsg,
        sockopt::set_socket_passcred,
    },
    process::geteuid,
};

/// The most bytes of a message: as much as systemd reads of one.
const MAX_TEXT: usize = 4096;

/// The kernel's limit on descriptors in a message.
const MAX_DESCRIPTORS: usize = 253;

/// How the folders begin whose names end in a number.
const FOLDER: &str = "fdstash-run-";

/// What a folder has.
const FILE: &str = "notify";

/// A bound socket.
#[derive(Debug)]
pub(super) struct Socket(UnixDatagram);

/// Its file, which goes when this is dropped; that of a killed process goes with the next one's start.
#[derive(Debug)]
pub(super) struct Place(PathBuf);

/// What has arrived.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) text: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// Whom the kernel vouches for.
    pub(super) sender: Option<UCred>,
    /// Whether there was no room for some of it.
    pub(super) is_cut: bool,
}

/// Makes one.
pub(super) fn bind() -> anyhow::Result<(Socket, Place)> {
    let place = Place(folder()?);
    let path = place.path();
    let socket = UnixDatagram::bind(&path)
        .with_context(|| format!("could not make the socket {}", path.display()))?;
    // A service may have given up its rights; who has sent a message, the message tells.
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    set_socket_passcred(&socket, true)?;
    Ok((Socket(socket), place))
}

impl Socket {
    /// Waits until something has arrived.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut ask = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut ask, None))?;
        Ok(())
    }

    /// What has arrived next; none, if nothing has.
    pub(super) fn receive(&self) -> io::Result<Option<Datagram>> {
        let mut text = vec![0; MAX_TEXT];
        let mut space = [MaybeUninit::uninit();
            rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let outcome = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut control, flags)
        });
        let message = match outcome {
            Err(Errno::AGAIN) => return Ok(None),
            outcome => outcome?,
        };
        let (mut fds, mut sender) = (Vec::new(), None);
        for ancillary in control.drain() {
            match ancillary {
                RecvAncillaryMessage::ScmRights(received) => fds.extend(received),
                RecvAncillaryMessage::ScmCredentials(from) => sender = Some(from),
                _ => {}
            }
        }
        text.truncate(message.bytes);
        let is_cut = message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
        Ok(Some(Datagram { text, fds, sender, is_cut }))
    }
}

impl Place {
    pub(super) fn path(&self) -> PathBuf {
        self.0.join(FILE)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path());
        let _ = fs::remove_dir(&self.0);
    }
}

/// A folder of our own, in which others may look only for what they know of.
fn folder() -> anyhow::Result<PathBuf> {
    let mut last = None;
    for place in places() {
        sweep(&place);
        for number in 0..100 {
            let folder = place.join(format!("{FOLDER}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o711).create(&folder) {
                Ok(()) => {
                    // The umask may have taken off what the service needs.
                    fs::set_permissions(&folder, Permissions::from_mode(0o711))?;
                    return Ok(folder);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    last = Some(anyhow::Error::new(error).context(folder.display().to_string()));
                    break;
                }
            }
        }
    }
    let error = last.unwrap_or_else(|| anyhow::anyhow!("all names are taken"));
    Err(error.context("there is no place for a notification socket: name one with TMPDIR"))
}

/// Where it may be, the best first. What root starts may become another user, who cannot reach root's own.
fn places() -> Vec<PathBuf> {
    let own = if geteuid().is_root() {
        Some("/run".into())
    } else {
        env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|place| place.is_absolute())
    };
    own.into_iter().chain([env::temp_dir()]).collect()
}

/// Removes what our own processes have left that were killed.
fn sweep(place: &Path) {
    for folder in fs::read_dir(place).into_iter().flatten().flatten() {
        let is_one = folder.file_name().to_string_lossy().starts_with(FOLDER);
        let is_ours = || folder.metadata().is_ok_and(|meta| meta.uid() == geteuid().as_raw());
        if !is_one || !is_ours() {
            continue;
        }
        let file = folder.path().join(FILE);
        let probe = UnixDatagram::unbound().and_then(|probe| probe.connect(&file));
        // In one that is not there yet, somebody is about to bind.
        if probe.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = fs::remove_file(file);
            let _ = fs::remove_dir(folder.path());
        }
    }
}
