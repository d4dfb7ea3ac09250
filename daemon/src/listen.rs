//! The listening socket at a path: one daemon for each, and none in the way of a dead one's.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{FlockOperation, Mode, XattrFlags, flock, fsetxattr, setxattr},
    io::Errno,
    process::umask,
};

/// The path of a listening socket that this daemon has made, and the lock that says so.
pub(crate) struct Place {
    path: PathBuf,
    /// Locked for as long as the daemon lives.
    lock: File,
}

/// Listens at a path, for everybody: who may do what is decided by credentials.
///
/// # Errors
///
/// If another daemon lives there, or the path cannot be used.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, Place)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        match DirBuilder::new().mode(0o755).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| {
                    format!("making the folder {} for the socket", folder.display())
                });
            }
            Ok(()) | Err(_) => {}
        }
    }
    let lock = lock(path)?;
    remove_dead(path, "--socket")?;
    // So that the socket is never there with less than its mode.
    let before = umask(Mode::from_raw_mode(0o111));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.with_context(|| format!("listening at {}", path.display()))?;
    tag(&listener, path);
    Ok((listener, Place { path: path.to_owned(), lock }))
}

/// Tells who looks for Varlink services that this is one, as systemd's own do. Sockets have such attributes from
/// Linux 7.0 on; where there is none, it is found by its name alone.
fn tag(listener: &UnixListener, path: &Path) {
    const ROLE: &str = "user.varlink";
    let tagged = setxattr(path, ROLE, b"entrypoint", XattrFlags::empty())
        .and_then(|()| fsetxattr(listener, ROLE, b"listen", XattrFlags::empty()));
    if let Err(error) = tagged {
        tracing::debug!(%error, "the socket bears no attribute that says Varlink");
    }
}

/// Locks the place, so that of two daemons that start at a time one sees the other.
fn lock(path: &Path) -> Result<File> {
    let beside = beside(path);
    loop {
        // Nobody else may open it: whoever can, can lock it too, and keep the daemon from starting.
        let lock = File::options().create(true).append(true).mode(0o600).open(&beside);
        let lock = lock.with_context(|| format!("opening {}", beside.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // Another may have removed it at its end, after it was opened here: then nobody else
            // would ever see this one locked.
            Ok(()) if is_at(&lock, &beside) => return Ok(lock),
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => bail!(
                "another fdstashd serves {}: stop it first, or choose another --socket",
                path.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("locking {}", beside.display()));
            }
        }
    }
}

/// The file whose lock says that the place is taken.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    beside.into()
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Removes the socket that stands at a path, if nobody listens there any more. `option` says where to listen.
///
/// # Errors
///
/// If somebody does, or something else stands there.
pub(crate) fn remove_dead(path: &Path, option: &str) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
        Ok(file) if !file.file_type().is_socket() => {
            bail!("{} is there already and no socket: choose another {option}", path.display());
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a daemon that is gone");
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
        }
        Ok(_) => bail!(
            "somebody serves {} already: stop it first, or choose another {option}",
            path.display()
        ),
        Err(error) => {
            Err(error).with_context(|| format!("finding out who serves {}", path.display()))
        }
    }
}

impl Place {
    /// The place that an earlier version of this program has left, with its lock.
    pub(crate) fn from_before(path: PathBuf, lock: File) -> Self {
        Self { path, lock }
    }

    /// The folder that has both.
    pub(crate) fn folder(&self) -> &Path {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new("."))
    }

    /// The descriptor that has the lock.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Whether the place is still this daemon's, and not another's that came after its end.
    pub(crate) fn is_ours(&self) -> bool {
        is_at(&self.lock, &beside(&self.path))
    }

    /// Removes the socket, and then the lock: the daemon ends.
    pub(crate) fn remove(&self) {
        remove(&self.path);
        remove(&beside(&self.path));
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "tidying up failed");
    }
}
