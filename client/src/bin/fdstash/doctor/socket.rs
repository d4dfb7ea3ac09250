//! The socket: whether it is there, may be reached, and has somebody behind it who answers.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Access, access},
    io::Errno,
    net::sockopt::socket_peercred,
    process::getuid,
};

use super::{Finding, units::Manager};
use crate::names::{group, user};

/// How long a daemon that is well may take at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who has answered.
pub(crate) struct Reached {
    /// The process that listens, or has begun to, where this process has a number for it.
    pub(crate) pid: Option<i32>,
    /// Its user.
    pub(crate) uid: u32,
}

/// Looks whether somebody answers at the socket; else says why not.
pub(crate) fn look(socket: &Path, manager: Option<&Manager>) -> Result<Reached, Finding> {
    let file = match fs::metadata(socket) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(shut_above(socket));
        }
        Err(error) => return Err(missing(socket, &error, manager)),
    };
    if !file.file_type().is_socket() {
        return Err(Finding::wrong(
            format!("{} is no socket", socket.display()),
            "nobody can listen there as long as something else has the name",
            format!("see what it is (ls -l {}), and choose another --socket", socket.display()),
        ));
    }
    let line = UnixStream::connect(socket).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED) => left_behind(socket, manager),
        Some(Errno::ACCESS | Errno::PERM) => shut(socket, &file),
        Some(_) | None => Finding::wrong(
            format!("{} cannot be connected to: {error}", socket.display()),
            "no program of this user can reach the daemon",
            start(socket, manager),
        ),
    })?;
    answers(&line).map_err(|error| silent(socket, &error, manager))?;
    let by = socket_peercred(&line);
    let pid = by.ok().map(|by| by.pid.as_raw_pid()).filter(|pid| *pid > 0);
    Ok(Reached { pid, uid: by.map_or(u32::MAX, |by| by.uid.as_raw()) })
}

/// What starts a daemon there, with what this machine has.
pub(crate) fn start(socket: &Path, manager: Option<&Manager>) -> String {
    match manager {
        Some(manager) if manager.has_units() => manager.command("enable --now fdstashd.socket"),
        Some(_) | None => format!("fdstashd --socket {} &", socket.display()),
    }
}

/// Any daemon that speaks Varlink answers this, whoever asks.
fn answers(mut line: &UnixStream) -> io::Result<()> {
    line.set_read_timeout(Some(PATIENCE))?;
    line.set_write_timeout(Some(PATIENCE))?;
    line.write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0")?;
    match line.read(&mut [0; 64])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn silent(socket: &Path, error: &io::Error, manager: Option<&Manager>) -> Finding {
    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        let restart = manager.filter(|manager| manager.has_units()).map_or_else(
            || "see its log and what it waits for: ps -C fdstashd -o pid,stat,wchan,cmd".to_owned(),
            |manager| manager.log("fdstashd.service"),
        );
        return Finding::wrong(
            format!("nobody has answered at {} for {} s", socket.display(), PATIENCE.as_secs()),
            "the connection waits: the daemon cannot start, is stopped, or hangs",
            restart,
        );
    }
    Finding::wrong(
        format!("the connection to {} has ended without an answer: {error}", socket.display()),
        "the daemon ends, turns this user away, or is another program",
        "try again; then see the daemon's log",
    )
}

fn missing(socket: &Path, error: &io::Error, manager: Option<&Manager>) -> Finding {
    let place = socket.ancestors().skip(1).find(|place| !place.as_os_str().is_empty());
    let what = match place.filter(|place| !place.exists()) {
        Some(place) => {
            format!("there is no daemon at {}: no {} either", socket.display(), place.display())
        }
        None => format!("there is no daemon at {}: {error}", socket.display()),
    };
    Finding::wrong(what, "nothing can be given or taken", start(socket, manager))
}

fn left_behind(socket: &Path, manager: Option<&Manager>) -> Finding {
    Finding::wrong(
        format!("nobody listens at {}, though the socket is there", socket.display()),
        "its daemon was killed, and left the name behind; the next one takes it over",
        match manager {
            Some(manager) if manager.has_units() => manager.command("restart fdstashd.socket"),
            Some(_) | None => start(socket, None),
        },
    )
}

/// The first directory on the way that this user may not pass.
fn shut_above(socket: &Path) -> Finding {
    let mut above: Vec<PathBuf> = socket.ancestors().skip(1).map(Path::to_owned).collect();
    above.reverse();
    let shut = above.into_iter().find(|place| access(place, Access::EXEC_OK).is_err());
    let shut = shut.unwrap_or_else(|| socket.to_owned());
    Finding::wrong(
        format!("{} lets {} not pass{}", shut.display(), user(getuid().as_raw()), mode(&shut)),
        "this user cannot reach the daemon",
        format!(
            "as its owner: chmod o+x {}; or use a socket that is for this user",
            shut.display()
        ),
    )
}

fn mode(path: &Path) -> String {
    fs::metadata(path).map_or_else(|_| String::new(), |file| format!(": {}", whose(&file)))
}

fn whose(file: &fs::Metadata) -> String {
    let mode = file.mode() & 0o7777;
    format!("it is of {} and {}, mode {mode:04o}", user(file.uid()), group(file.gid()))
}

fn shut(socket: &Path, file: &fs::Metadata) -> Finding {
    // To connect takes the right to write.
    let advice = if file.mode() & 0o020 != 0 && file.gid() != 0 {
        let group = group(file.gid());
        format!("have root put this user into {group}: usermod -aG ...; then log in anew")
    } else {
        "have root set SocketMode= and SocketGroup= of fdstashd.socket (systemctl edit), or the mode".to_owned()
    };
    Finding::wrong(
        format!(
            "{} lets {} not connect: {}",
            socket.display(),
            user(getuid().as_raw()),
            whose(file)
        ),
        "this user cannot reach the daemon",
        advice,
    )
}
