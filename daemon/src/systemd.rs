//! Talking to the service manager, over its notification socket (`NOTIFY_SOCKET`, `sd_notify(3)`);
//! one file with the manager that its tests play, which are most of it.
//!
//! Every message goes through a socket of its own, connected: a connected one can be polled for room
//! in the manager's queue, which is short (`net.unix.max_dgram_qlen`, 10 on many machines), where an
//! unconnected one always seems to have some; and a new one finds a manager that has begun anew.
//!
//! The manager answers nothing. That a message was sent says that it is in the queue,
//! [`Notify::barrier`] that those before it were *read*, and nothing that a descriptor was kept: one
//! too many, or one that is refused, is a line in the manager's log. So whoever stores counts against
//! [`capacity`], and stores under names that are good. Nor does the manager keep what hangs up,
//! unless it is told not to poll (`FDPOLL=0`), which [`Notify::store`] always does; nor ever a second
//! copy of a description that it has, nor `O_PATH`.

use std::{
    env,
    ffi::{OsStr, OsString},
    future::Future,
    io::{self, IoSlice},
    mem::{self, MaybeUninit},
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrAny, SocketAddrUnix,
        sendmsg,
    },
    pipe::{PipeFlags, pipe_with},
    time::{ClockId, clock_gettime},
};
use tokio::sync::watch;

/// How long a message waits for room in the manager's queue. With thousands of units to load again,
/// the manager reads nothing for seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the keeper's do, whose server would hold it for one that hangs after ten seconds.
const KEEPERS_PATIENCE: Duration = Duration::from_secs(4);

/// How often the manager is told what is held, at most.
const PAUSE: Duration = Duration::from_secs(1);

/// The way to the service manager.
#[derive(Debug, Clone)]
pub(crate) struct Notify {
    place: SocketAddr,
}

impl Notify {
    /// The way to whoever has started this process and wants to be told; none, if nobody does.
    ///
    /// # Errors
    ///
    /// If what `NOTIFY_SOCKET` says is no Unix socket's address.
    pub(crate) fn from_env() -> Result<Option<Self>> {
        let place = env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty());
        place.map(|place| Self::at(&place)).transpose()
    }

    fn at(place: &OsStr) -> Result<Self> {
        let address = match place.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(place),
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            // A virtual machine's manager may have one on a vsock, but gives none to its services.
            _ => bail!("NOTIFY_SOCKET is {place:?}, which is no Unix socket"),
        };
        let place = address.with_context(|| format!("NOTIFY_SOCKET is {place:?}"))?;
        Ok(Self { place })
    }

    /// Whether it leads to an abstract socket.
    pub(crate) fn is_abstract(&self) -> bool {
        self.place.as_abstract_name().is_some()
    }

    /// Where it leads, as the kernel tells it of what is connected there.
    pub(crate) fn address(&self) -> Option<SocketAddrAny> {
        let path = self.place.as_pathname().map(SocketAddrUnix::new);
        let name = || self.place.as_abstract_name().map(SocketAddrUnix::new_abstract_name);
        path.or_else(name)?.ok().map(SocketAddrAny::from)
    }

    /// Sends a message, and waits for room without holding up the event loop. For who is on it.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut`, if the manager reads nothing for too long.
    pub(crate) async fn tell(&self, text: &str) -> io::Result<()> {
        let socket = tokio::net::UnixDatagram::from_std(self.connect()?)?;
        tokio::time::timeout(PATIENCE, socket.send(text.as_bytes())).await??;
        Ok(())
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&self.place)?;
        Ok(socket)
    }
}

impl Notify {
    /// Sends a message, a descriptor beside it, and waits for room. It only borrows the descriptor.
    /// Not for the event loop, which it would hold up.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut`, if the manager reads nothing for too long.
    pub(crate) fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send_until(text, fd, Instant::now() + PATIENCE)
    }

    fn send_until(&self, text: &str, fd: Option<BorrowedFd<'_>>, end: Instant) -> io::Result<()> {
        let socket = self.connect()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if fd.is_some() {
                // Cannot fail: the space is that of one.
                control.push(SendAncillaryMessage::ScmRights(fd.as_slice()));
            }
            let parts = [IoSlice::new(text.as_bytes())];
            match sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait(&socket, PollFlags::OUT, end)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Has the manager keep a duplicate of a descriptor, under a name that others may have too, until
    /// it is removed or the service has ended for good. It only borrows the descriptor.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, if the manager would not take the name; otherwise as [`Notify::send`].
    pub(crate) fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let name = good(name)?;
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(fd))
    }

    /// Has the manager close every descriptor that it keeps under a name.
    ///
    /// # Errors
    ///
    /// As [`Notify::store`].
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={}", good(name)?), None)
    }

    /// Waits until the manager has read what was sent before, by whomever.
    ///
    /// # Errors
    ///
    /// `TimedOut`, if it has not within the limit; otherwise as [`Notify::send`].
    pub(crate) fn barrier(&self, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        self.send_until("BARRIER=1", Some(theirs.as_fd()), end)?;
        // The manager closes it when it comes to it, and has then the last one.
        drop(theirs);
        wait(&ours, PollFlags::empty(), end)
    }

    /// Says that the daemon is about to begin anew; [`READY`] ends that.
    ///
    /// # Errors
    ///
    /// As [`Notify::send`].
    pub(crate) fn reloading(&self) -> io::Result<()> {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        let text = format!("RELOADING=1\nMONOTONIC_USEC={usec}");
        self.send_until(&text, None, Instant::now() + KEEPERS_PATIENCE)
    }
}

/// How many descriptors the manager keeps for this service, where it says so (systemd 254 and later).
pub(crate) fn capacity() -> Option<usize> {
    capacity_of(env::var_os("FDSTORE"))
}

fn capacity_of(value: Option<OsString>) -> Option<usize> {
    value?.to_str()?.parse().ok()
}

/// A name that the manager takes; under any other it would store as `stored`, and say nothing.
fn good(name: &str) -> io::Result<&str> {
    let printable = name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':');
    if !name.is_empty() && name.len() <= 255 && printable {
        return Ok(name);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("systemd takes no name {name:?}")))
}

/// Waits for a descriptor to be as asked, or hung up.
fn wait(fd: impl AsFd, flags: PollFlags, end: Instant) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&fd, flags)], Some(&limit)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says that the daemon serves.
const READY: &str = "READY=1";

/// What an operator is shown by `systemctl status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    /// How many entries are kept.
    pub(crate) entries: usize,
    /// How many clients are connected.
    pub(crate) connections: usize,
}

impl Figures {
    fn message(self) -> String {
        let Self { entries, connections } = self;
        format!("STATUS=Descriptors held: {entries}; connections: {connections}.")
    }
}

/// What the manager is to be told; whether there is one or not.
pub(crate) struct Status(watch::Sender<Figures>);

impl Status {
    /// Tells the manager that the daemon serves, now, and then what there is, when it has changed and
    /// at most once a second, for as long as what is returned is polled.
    pub(crate) fn new(manager: Option<Notify>) -> (Self, impl Future<Output = ()>) {
        let (sender, figures) = watch::channel(Figures { entries: 0, connections: 0 });
        (Self(sender), report(manager, figures))
    }

    /// Says what there is.
    pub(crate) fn set(&self, new: Figures) {
        self.0.send_if_modified(|old| mem::replace(old, new) != new);
    }
}

async fn report(manager: Option<Notify>, mut figures: watch::Receiver<Figures>) {
    let Some(manager) = manager else { return };
    let now = figures.borrow_and_update().message();
    say(&manager, &format!("{READY}\n{now}")).await;
    loop {
        tokio::time::sleep(PAUSE).await;
        if figures.changed().await.is_err() {
            return;
        }
        let now = figures.borrow_and_update().message();
        say(&manager, &now).await;
    }
}

/// Tells the manager that the daemon goes on as it was, after it has said that it begins anew.
pub(crate) async fn stays(manager: Option<&Notify>) {
    if let Some(manager) = manager {
        say(manager, &format!("{READY}\nSTATUS=Serving. The last upgrade failed: see the log."))
            .await;
    }
}

/// Tells the manager what the daemon is at, beside serving.
pub(crate) async fn progress(manager: Option<&Notify>, what: &str) {
    if let Some(manager) = manager {
        say(manager, &format!("STATUS={what}")).await;
    }
}

/// Tells the manager that the daemon ends.
pub(crate) async fn stopping(manager: Option<&Notify>) {
    if let Some(manager) = manager {
        say(manager, "STOPPING=1\nSTATUS=Ending.").await;
    }
}

/// The stash does not depend on what the manager is told.
async fn say(manager: &Notify, text: &str) {
    if let Err(error) = manager.tell(text).await {
        tracing::warn!(%error, message = ?text, "telling the service manager failed");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read,
        os::fd::OwnedFd,
        path::PathBuf,
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    #[test]
    fn a_descriptor_is_stored_under_its_name_and_removed_by_it() {
        let manager = Manager::at_path();
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();

        manager.notify().store("bundle 1", theirs.as_fd()).unwrap();
        manager.notify().remove("bundle 1").unwrap();
        drop(theirs);

        let (text, fd) = manager.read();
        assert_eq!(text, "FDSTORE=1\nFDNAME=bundle 1\nFDPOLL=0");
        io::Write::write_all(&mut File::from(fd.unwrap()), b"it").unwrap();
        let mut said = String::new();
        File::from(ours).read_to_string(&mut said).unwrap();
        assert_eq!(said, "it");
        let (text, fd) = manager.read();
        assert_eq!(text, "FDSTOREREMOVE=1\nFDNAME=bundle 1");
        assert!(fd.is_none());
    }

    #[test]
    fn a_name_that_the_manager_would_replace_in_silence_is_refused() {
        let manager = Manager::at_path();
        let fd = io::stderr();

        for name in ["", "a:b", "a\nFDNAME=b", "a\x7f", "ä", &"x".repeat(256)] {
            let stored = manager.notify().store(name, fd.as_fd());
            assert_eq!(stored.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
            assert!(manager.notify().remove(name).is_err(), "{name:?}");
        }

        manager.notify().store(&"x".repeat(255), fd.as_fd()).unwrap();
        assert!(manager.read().1.is_some());
        assert!(manager.is_idle());
    }

    #[test]
    fn an_abstract_address_is_one_too() {
        let manager = Manager::at_abstract_name();

        manager.notify().send("STATUS=there", None).unwrap();

        assert_eq!(manager.read().0, "STATUS=there");
    }

    #[test]
    fn what_is_no_address_is_not_guessed_at() {
        for place in ["vsock:2:1", "relative", &format!("/{}", "x".repeat(200))] {
            assert!(Notify::at(OsStr::new(place)).is_err(), "{place}");
        }
        assert!(
            Notify::at(OsStr::new("/nonexistent/socket")).unwrap().send("READY=1", None).is_err()
        );
    }

    #[test]
    fn while_the_queue_is_full_a_message_waits_and_none_is_lost() {
        let manager = Manager::at_path();
        let queued = manager.fill();
        let notify = manager.notify();

        let sender = thread::spawn(move || {
            for number in 0..50 {
                notify.send(&format!("STATUS={number}"), None).unwrap();
            }
        });
        let told: Vec<String> = (0..queued + 50).map(|_| manager.read().0).collect();

        sender.join().unwrap();
        assert!(told[..queued].iter().all(|text| text == "full"));
        let expected: Vec<String> = (0..50).map(|number| format!("STATUS={number}")).collect();
        assert_eq!(told[queued..], expected);
    }

    #[test]
    fn a_manager_that_reads_nothing_is_not_waited_for_for_ever() {
        let manager = Manager::at_path();
        manager.fill();
        let end = Instant::now() + Duration::from_millis(50);

        let sent = manager.notify().send_until("READY=1", None, end);

        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(Instant::now() >= end);
    }

    #[test]
    fn a_barrier_ends_when_the_manager_has_come_to_it() {
        let manager = Manager::at_path();
        let notify = manager.notify();
        notify.send("STATUS=before", None).unwrap();

        let waiting = thread::spawn(move || notify.barrier(PATIENCE));

        assert_eq!(manager.read().0, "STATUS=before");
        let (text, fd) = manager.read();
        assert_eq!(text, "BARRIER=1");
        assert!(!waiting.is_finished());
        drop(fd);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_barrier_that_the_manager_does_not_come_to_times_out() {
        let manager = Manager::at_path();
        let limit = Duration::from_millis(50);

        let unread = manager.notify().barrier(limit);
        let _held = manager.read();
        let read_and_held = manager.notify().barrier(limit);

        assert_eq!(unread.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(read_and_held.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_time_of_a_reload_is_of_the_clock_that_systemd_compares_it_with() {
        let manager = Manager::at_path();
        let usec = || Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap().as_micros();
        let before = usec();

        manager.notify().reloading().unwrap();

        let told = manager.read().0;
        let told: u128 =
            told.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(before <= told && told <= usec());
    }

    #[test]
    fn the_event_loop_goes_on_while_the_queue_is_full() {
        let manager = Manager::at_path();
        let queued = manager.fill();
        let notify = manager.notify();

        on_a_loop(async {
            let telling = tokio::task::spawn_local(async move { notify.tell(READY).await });
            // The manager reads on this very loop: had the message held it up, it never would.
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(!telling.is_finished());
            for _ in 0..queued {
                assert_eq!(manager.read().0, "full");
            }
            telling.await.unwrap().unwrap();
            assert_eq!(manager.read().0, READY);
        });
    }

    #[test]
    fn what_there_is_is_told_when_it_changes_and_once_a_second_at_most() {
        let manager = Manager::at_path();
        let (status, report) = Status::new(Some(manager.notify()));
        let told = on_a_loop(async {
            let began = Instant::now();
            tokio::task::spawn_local(report);
            for entries in 0..1000 {
                status.set(Figures { entries, connections: 1 });
                if entries % 100 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            tokio::time::sleep(PAUSE + PAUSE / 2).await;
            status.set(Figures { entries: 999, connections: 1 });
            tokio::time::sleep(PAUSE).await;
            assert!(began.elapsed() >= PAUSE * 2);
            manager.read_all()
        });

        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("READY=1\nSTATUS=Descriptors held: "), "{told:?}");
        assert_eq!(told[1], "STATUS=Descriptors held: 999; connections: 1.");
    }

    #[test]
    fn where_nobody_wants_to_be_told_nobody_is() {
        let (status, report) = Status::new(None);

        on_a_loop(report);
        on_a_loop(stopping(None));

        status.set(Figures { entries: 1, connections: 1 });
    }

    #[test]
    fn what_the_manager_keeps_is_counted_against_only_where_it_says_how_much() {
        assert_eq!(capacity_of(None), None);
        assert_eq!(capacity(), capacity_of(env::var_os("FDSTORE")));
        assert_eq!(capacity_of(Some("512".into())), Some(512));
        assert_eq!(capacity_of(Some("much".into())), None);
    }

    fn on_a_loop<T>(future: impl Future<Output = T>) -> T {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        runtime.unwrap().block_on(future)
    }

    /// The other end: all of systemd that matters here.
    struct Manager {
        socket: UnixDatagram,
        place: OsString,
        path: Option<PathBuf>,
    }

    impl Manager {
        fn at_path() -> Self {
            let path = env::temp_dir().join(Self::unique());
            let socket = UnixDatagram::bind(&path).unwrap();
            Self { socket, place: path.clone().into(), path: Some(path) }
        }

        fn at_abstract_name() -> Self {
            let name = Self::unique();
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            let socket = UnixDatagram::bind_addr(&address).unwrap();
            Self { socket, place: format!("@{name}").into(), path: None }
        }

        fn unique() -> String {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            format!("fdstash-manager-{}-{number}", std::process::id())
        }

        fn notify(&self) -> Notify {
            self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
            Notify::at(&self.place).unwrap()
        }

        /// Sends itself messages until its queue takes no more.
        fn fill(&self) -> usize {
            let socket = self.notify().connect().unwrap();
            (0..).take_while(|_| socket.send(b"full").is_ok()).count()
        }

        fn read(&self) -> (String, Option<OwnedFd>) {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [io::IoSliceMut::new(&mut bytes)];
            let message =
                recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
            let mut fd = None;
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = ancillary {
                    fd = fds.next();
                }
            }
            (String::from_utf8(bytes[..message.bytes].to_vec()).unwrap(), fd)
        }

        fn is_idle(&self) -> bool {
            self.socket.set_nonblocking(true).unwrap();
            self.socket.recv(&mut [0; 1]).is_err()
        }

        fn read_all(&self) -> Vec<String> {
            self.socket.set_nonblocking(true).unwrap();
            let mut bytes = [0; 4096];
            let next = || self.socket.recv(&mut bytes).ok().map(|len| bytes[..len].to_vec());
            std::iter::from_fn(next).map(|text| String::from_utf8(text).unwrap()).collect()
        }
    }

    impl Drop for Manager {
        fn drop(&mut self) {
            if let Some(path) = &self.path {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}
