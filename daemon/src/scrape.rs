//! Telling the metrics, over HTTP, on a Unix socket or a port of this machine alone: threads of their own,
//! each of which serves one who asks after the other, for a second each at most, and for less where others
//! wait. So nobody who asks can hold up the loop, which is asked for its figures once a second and no more
//! often.

use std::{
    fs::{self, DirBuilder},
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::DirBuilderExt, net::UnixListener},
    },
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use prometheus_client::{encoding::text, registry::Registry};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::Mode,
    io::Errno,
    net::{
        RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, accept_with, getsockname, recv, send,
    },
    process::umask,
};
use tokio::{sync::mpsc::UnboundedSender, task::spawn_local, time::sleep};

use crate::{listen, metrics::Figures, run::Input};

/// How many are served at a time.
const THREADS: usize = 4;

/// How long one may take to ask and to read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same where others wait: who asks has mostly done so by the time that it is its turn.
const HURRY: Duration = Duration::from_millis(20);

/// How old the figures may be that are told.
const FRESH: Duration = Duration::from_secs(1);

/// How long to rest where nobody can be served, and behind each who was.
const PAUSE: Duration = Duration::from_millis(20);

/// How long to wait with a thread that could not be had.
const AGAIN: Duration = Duration::from_secs(1);

/// The most bytes of a question.
const MOST: usize = 8 << 10;

/// Where metrics are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Unix(PathBuf),
    Port(SocketAddr),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Port(address)),
            Ok(address) => Err(format!("{} can be reached from elsewhere", address.ip())),
            Err(_) => Err("neither unix:PATH nor 127.0.0.1:PORT".to_owned()),
        }
    }
}

impl Place {
    /// Listens there; at a path for whoever is in the daemon's group.
    ///
    /// # Errors
    ///
    /// If another does, or it cannot be.
    pub(crate) fn listen(&self) -> Result<OwnedFd> {
        match self {
            Self::Port(address) => {
                let listener = TcpListener::bind(address);
                let listener =
                    listener.with_context(|| format!("telling the metrics at {address}"))?;
                Ok(listener.into())
            }
            Self::Unix(path) => {
                if let Some(folder) = path.parent() {
                    // If it cannot be, or is there, the rest says so.
                    let _ = DirBuilder::new().mode(0o755).create(folder);
                }
                listen::remove_dead(path, "--metrics").context("telling the metrics")?;
                let before = umask(Mode::from_raw_mode(0o117));
                let listener = UnixListener::bind(path);
                umask(before);
                let listener = listener
                    .with_context(|| format!("telling the metrics at {}", path.display()))?;
                Ok(listener.into())
            }
        }
    }

    /// Whether one of these sockets is bound there.
    pub(crate) fn is_of(&self, sockets: &[OwnedFd]) -> bool {
        let Self::Unix(path) = self else { return false };
        sockets.iter().any(|socket| {
            let bound = getsockname(socket).ok().and_then(|at| SocketAddrUnix::try_from(at).ok());
            bound.is_some_and(|at| at.path_bytes() == Some(path.as_os_str().as_bytes()))
        })
    }

    /// Removes what is left of it: the daemon ends.
    pub(crate) fn remove(&self) {
        if let Self::Unix(path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// Who tells the metrics.
pub(crate) struct Scrape {
    /// For as long as this server is the one that serves.
    is_open: Arc<AtomicBool>,
}

/// What the threads share.
struct Shared {
    listeners: &'static [OwnedFd],
    is_open: Arc<AtomicBool>,
    inputs: UnboundedSender<Input>,
    /// What was told last, and when it was asked for.
    told: Mutex<Option<(Instant, String)>>,
}

impl Scrape {
    /// Begins to tell them, as soon as there can be threads for that: what is kept does not depend on it.
    pub(crate) fn start(listeners: &'static [OwnedFd], inputs: UnboundedSender<Input>) -> Self {
        let is_open = Arc::new(AtomicBool::new(true));
        let told = Mutex::default();
        let shared = Arc::new(Shared { listeners, is_open: Arc::clone(&is_open), inputs, told });
        if !listeners.is_empty() {
            spawn_local(start_threads(shared));
        }
        Self { is_open }
    }

    /// Leaves those who ask to whoever goes on, or begins again.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.is_open.store(is_open, Relaxed);
    }
}

/// Starts the threads, however long it takes until the machine has room for them.
async fn start_threads(shared: Arc<Shared>) {
    for listener in shared.listeners {
        if let Err(error) = rustix::io::ioctl_fionbio(listener, true) {
            return tracing::error!(%error, "telling the metrics failed");
        }
    }
    let mut is_said = false;
    for _ in 0..THREADS {
        while let Err(error) = start_thread(Arc::clone(&shared)) {
            if !is_said {
                tracing::warn!(%error, "there is no thread to tell metrics, trying again");
            }
            is_said = true;
            sleep(AGAIN).await;
        }
    }
}

fn start_thread(shared: Arc<Shared>) -> io::Result<()> {
    thread::Builder::new().name("metrics".into()).spawn(move || shared.serve()).map(drop)
}

impl Shared {
    /// Serves one after the other for ever.
    fn serve(&self) {
        loop {
            let asks = |listener| PollFd::new(listener, PollFlags::IN);
            let mut asks: Vec<_> = self.listeners.iter().map(asks).collect();
            // Who asks wakes all of these threads, and one of them serves it.
            let _ = poll(&mut asks, None);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            for listener in self.listeners.iter().filter(|_| self.is_open.load(Relaxed)) {
                if let Ok(socket) = accept_with(listener, flags) {
                    // Who has gone is not to be told.
                    let _ = self.answer(&socket);
                }
            }
            thread::sleep(PAUSE);
        }
    }

    fn answer(&self, socket: &OwnedFd) -> io::Result<()> {
        let question = read_question(socket, self.until())?;
        let (status, kind, body) = match asked_for(&question) {
            Asked::Metrics => match self.text() {
                Some(text) => ("200 OK", OPEN_METRICS, text),
                None => ("503 Service Unavailable", PLAIN, "the daemon is busy\n".to_owned()),
            },
            Asked::Elsewhere => ("404 Not Found", PLAIN, "ask for /metrics\n".to_owned()),
            Asked::Otherwise => ("405 Method Not Allowed", PLAIN, "only GET\n".to_owned()),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        write(socket, (head + &body).as_bytes(), self.until())
    }

    /// Until when somebody may ask, or read.
    fn until(&self) -> Instant {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let asks = |listener| PollFd::new(listener, PollFlags::IN);
        let mut others: Vec<_> = self.listeners.iter().map(asks).collect();
        let do_others_wait = poll(&mut others, Some(&now)).is_ok_and(|count| count > 0);
        Instant::now() + if do_others_wait { HURRY } else { PATIENCE }
    }

    /// The metrics as they are, or were less than [`FRESH`] ago.
    fn text(&self) -> Option<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
        if let Some((_, text)) = last {
            return Some(text.clone());
        }
        let asked = Instant::now();
        let (to, figures) = sync_channel(1);
        self.inputs.send(Input::Figures(to)).ok()?;
        let text = write_down(figures.recv_timeout(PATIENCE).ok()?)?;
        *told = Some((asked, text.clone()));
        Some(text)
    }
}

/// To whom the figures are to be told.
pub(crate) type Asking = SyncSender<Figures>;

/// The figures as text.
fn write_down(figures: Figures) -> Option<String> {
    let mut registry = Registry::with_prefix("fdstash");
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    text::encode(&mut text, &registry).ok()?;
    Some(text)
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What somebody asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    Elsewhere,
    Otherwise,
}

fn asked_for(question: &[u8]) -> Asked {
    let line = question.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next();
    match (method, path) {
        (Some(b"GET"), Some(b"/metrics")) => Asked::Metrics,
        (Some(b"GET"), _) => Asked::Elsewhere,
        (_, _) => Asked::Otherwise,
    }
}

/// Reads to the end of the question's head, behind which there is nothing.
fn read_question(socket: &OwnedFd, until: Instant) -> io::Result<Vec<u8>> {
    let mut question = Vec::new();
    let mut piece = [0; 1024];
    loop {
        match recv(socket, &mut piece, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, count)) => question.extend_from_slice(&piece[..count]),
            Err(Errno::AGAIN) => wait(socket, PollFlags::IN, until)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_end = |end: &[u8]| question.windows(end.len()).any(|window| window == end);
        if is_end(b"\r\n\r\n") || is_end(b"\n\n") {
            return Ok(question);
        }
        if question.len() > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn write(socket: &OwnedFd, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, until)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(socket: &OwnedFd, what: PollFlags, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(socket, what)], Some(&left)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_on_this_machine_alone() {
        assert_eq!("unix:/run/m".parse(), Ok(Place::Unix("/run/m".into())));
        for address in ["127.0.0.1:9123", "[::1]:9123"] {
            assert_eq!(address.parse(), Ok(Place::Port(address.parse().unwrap())));
        }
        for bad in ["0.0.0.0:9123", "[::]:9123", "192.168.0.1:9123", "9123", "/run/m", ""] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_metrics_are_there_and_only_to_be_read() {
        assert_eq!(asked_for(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Asked::Metrics);
        assert_eq!(asked_for(b"GET /metrics?name=x HTTP/1.0\n\n"), Asked::Metrics);
        assert_eq!(asked_for(b"GET / HTTP/1.1\r\n\r\n"), Asked::Elsewhere);
        assert_eq!(asked_for(b"POST /metrics HTTP/1.1\r\n\r\n"), Asked::Otherwise);
        assert_eq!(asked_for(b"\r\n\r\n"), Asked::Otherwise);
    }
}
