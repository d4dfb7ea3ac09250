//! [`Ear`]: hears what the service says, and has done what it wishes, in the order in which it was said.
//!
//! What is for the store is done on a thread of its own, which may have to wait for the daemon: what is for
//! the manager above, a watchdog's sign of life among it, does not wait with it.

use std::{
    fs, io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use fdstash::{Name, Refusal};
use rustix::process::{Pid, geteuid, getpid};

use crate::spawn::Process;

use super::{
    manager::Manager,
    message::{Message, Wish},
    socket::{Datagram, Socket},
    store::Store,
};

/// How many wishes wait; then the service does. Each can have 253 descriptors.
const WAITING: usize = 2;

/// How long it takes until a daemon that cannot be reached is looked for again.
const PAUSE: Duration = Duration::from_millis(200);

/// The process that is the service.
pub(super) struct Main {
    pub(super) pid: Pid,
    pub(super) process: Process,
}

impl Main {
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, process: Process::numbered(pid) }
    }
}

/// Hears what arrives.
pub(super) struct Ear {
    socket: Arc<Socket>,
    manager: Manager,
    main: Arc<Mutex<Main>>,
    jobs: SyncSender<Job>,
    has_complained: bool,
}

/// What is done for the service, one after another.
enum Job {
    Keep {
        called: Name,
        close_on_hangup: bool,
        fds: Vec<OwnedFd>,
    },
    Remove {
        called: Name,
    },
    Barrier(OwnedFd),
    /// Tell that all before it is done.
    Tell(Sender<()>),
}

impl Ear {
    pub(super) fn new(
        socket: Arc<Socket>,
        manager: Manager,
        main: Arc<Mutex<Main>>,
        store: Store,
    ) -> Self {
        let (jobs, waiting) = sync_channel(WAITING);
        let above = manager.clone();
        thread::spawn(move || work(store, &above, &waiting));
        Self { socket, manager, main, jobs, has_complained: false }
    }

    /// Hears all that has arrived.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        while let Some(datagram) = self.socket.receive()? {
            self.hear(datagram);
        }
        Ok(())
    }

    /// Has it told when all that was heard is done.
    pub(super) fn tell_when_done(&self, tell: Sender<()>) {
        self.ask(Job::Tell(tell));
    }

    fn hear(&mut self, datagram: Datagram) {
        let Datagram { text, mut fds, sender, is_cut } = datagram;
        let sender = sender.map(|sender| (sender.pid.as_raw_pid(), sender.uid));
        // A process that has ended has no parents any more, so the service's own user is enough.
        let is_ours =
            sender.is_some_and(|(pid, uid)| uid.is_root() || uid == geteuid() || is_below_us(pid));
        if !is_ours {
            self.complain_once(&format!("a message of a stranger is not heard: {sender:?}"));
            return;
        }
        if is_cut {
            crate::complain(format_args!(
                "a message of the service is lost, which was too long, or had more descriptors than there \
                 is room for here (ulimit -n)"
            ));
            return;
        }
        let Message { wish, main, rest } = Message::parse(&text);
        if let Some(pid) = main {
            self.change_main(pid);
        }
        if !rest.is_empty() {
            self.manager.tell(&rest, None);
        }
        match wish {
            Wish::Keep { called, close_on_hangup } if !fds.is_empty() => {
                self.ask(Job::Keep { called, close_on_hangup, fds });
            }
            Wish::Remove { called } => self.ask(Job::Remove { called }),
            Wish::Barrier if fds.len() == 1 => {
                fds.drain(..).for_each(|fd| self.ask(Job::Barrier(fd)))
            }
            Wish::Barrier => crate::complain(format_args!("BARRIER=1 came without one descriptor")),
            Wish::Bad(why) => crate::complain(format_args!("a message is not heeded: {why}")),
            Wish::Nothing | Wish::Keep { .. } => {}
        }
    }

    fn change_main(&self, pid: i32) {
        match Pid::from_raw(pid).filter(|_| is_below_us(pid)) {
            Some(pid) => {
                *self.main.lock().unwrap_or_else(PoisonError::into_inner) = Main::new(pid);
            }
            None => crate::complain(format_args!("MAINPID={pid} is no process of the service")),
        }
    }

    fn ask(&self, job: Job) {
        // Its thread ends with this process.
        let _ = self.jobs.send(job);
    }

    fn complain_once(&mut self, what: &str) {
        if !self.has_complained {
            crate::complain(format_args!("{what}"));
        }
        self.has_complained = true;
    }
}

/// Whether a process has come of this one. None escapes: orphans become our children.
fn is_below_us(pid: i32) -> bool {
    let us = getpid().as_raw_pid();
    let parents = std::iter::successors(Some(pid), |pid| parent(*pid).filter(|parent| *parent > 0));
    parents.skip(1).any(|parent| parent == us)
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in parentheses, may have anything in it.
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn work(mut store: Store, manager: &Manager, waiting: &Receiver<Job>) {
    for job in waiting {
        match job {
            Job::Keep { called, close_on_hangup, fds } => {
                let kept = until_reached(|| store.keep(&called, close_on_hangup, &fds));
                if let Err(error) = kept {
                    crate::complain(format_args!("\"{called}\" could not be stored: {error:#}"));
                }
            }
            Job::Remove { called } => {
                if let Err(error) = until_reached(|| store.remove(&called)) {
                    crate::complain(format_args!("\"{called}\" could not be removed: {error:#}"));
                }
            }
            // Closing ours answers it, where the manager above has none to close after it.
            Job::Barrier(fd) => manager.tell(b"BARRIER=1", Some(&fd)),
            // Who asks may have waited for long enough.
            Job::Tell(tell) => drop(tell.send(())),
        }
    }
}

/// Does it again for as long as there is no daemon to do it, or a transaction has what it is about.
fn until_reached(mut act: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut has_complained = false;
    loop {
        let error = match act() {
            Err(error) if is_away(&error) => error,
            outcome => return outcome,
        };
        if !has_complained {
            crate::complain(format_args!("waiting for the daemon: {error:#}"));
        }
        has_complained = true;
        thread::sleep(PAUSE);
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<fdstash::Error>();
    error.is_some_and(|error| {
        matches!(
            error,
            fdstash::Error::NoDaemon { .. }
                | fdstash::Error::ConnectionLost { .. }
                | fdstash::Error::Refused(Refusal::Busy { .. })
        )
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_has_come_of_this_process_is_below_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();

        assert!(is_below_us(child.id().try_into().unwrap()));
        assert!(!is_below_us(1));
        assert!(!is_below_us(getpid().as_raw_pid()));
        assert!(!is_below_us(0));

        child.kill().unwrap();
        child.wait().unwrap();
    }
}
