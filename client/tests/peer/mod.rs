//! A daemon that plays a script, for what the real one does not do: break off, lie, forget.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    fs::File,
    io::{ErrorKind, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use fdstash::{Access, Change, Entry, Flags, Gift, Handed, Keeper, Kind, Labels, Name, Peer};
use fdstash::{Info, Refusal, Statistics};
use fdstash_proto::{
    Call, Clash, Inbox, Outbox, Reply, Request, Taking, Ticket, reply,
    socket::{self, Received},
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tempfile::TempDir;

/// Longer than any answer takes: where a script waits for what never comes, it fails.
const LIMIT: Duration = Duration::from_secs(20);

/// A script that is being played.
pub(crate) struct Played {
    pub(crate) socket: PathBuf,
    thread: JoinHandle<()>,
}

impl Played {
    /// Waits until the script is through, and fails if it failed.
    pub(crate) fn ends(self) {
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The stage: a listening socket.
pub(crate) struct Stage {
    listener: UnixListener,
    directory: TempDir,
}

impl Stage {
    /// Plays a script beside the test.
    pub(crate) fn plays(script: impl FnOnce(Self) + Send + 'static) -> Played {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("stash");
        let listener = listening(&socket);
        let thread = thread::spawn(move || script(Self { listener, directory }));
        Played { socket, thread }
    }

    /// The next connection.
    pub(crate) fn accepts(&self) -> Line {
        let (stream, _) = self.listener.accept().expect("a client should connect");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let inbox = Inbox::for_calls();
        Line { stream, inbox, ticket: None, given: Vec::new(), handed: Vec::new() }
    }

    /// Fails if a client has connected that was not accepted.
    pub(crate) fn is_left_alone(&self) {
        self.listener.set_nonblocking(true).unwrap();
        assert!(self.listener.accept().is_err(), "a client connected once more");
    }

    /// Goes away as a daemon does that ends, and comes back as one that begins.
    pub(crate) fn restarts(self) -> Self {
        let socket = self.directory.path().join("stash");
        drop(self.listener);
        std::fs::remove_file(&socket).unwrap();
        Self { listener: listening(&socket), directory: self.directory }
    }
}

fn listening(socket: &Path) -> UnixListener {
    let listener = UnixListener::bind(socket).unwrap();
    set_socket_timeout(&listener, Timeout::Recv, Some(LIMIT)).unwrap();
    listener
}

/// One connection of a client. Dropped, it is lost to the client.
pub(crate) struct Line {
    stream: UnixStream,
    inbox: Inbox<OwnedFd>,
    /// The ticket of the last call.
    pub(crate) ticket: Option<Ticket>,
    /// What was given in the last call.
    pub(crate) given: Vec<Gift<OwnedFd>>,
    /// What was handed out, kept as the stash keeps what is not final.
    handed: Vec<OwnedFd>,
}

impl Line {
    /// The next request.
    pub(crate) fn request(&mut self) -> Option<Request<OwnedFd>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(incoming) = self.inbox.next_call().unwrap() {
                return Some(incoming.request.expect("the client's calls should be valid"));
            }
            let mut fds = Vec::new();
            match socket::receive(&self.stream, &mut buffer, &mut fds) {
                Ok(Received::Bytes(count)) => self.inbox.feed(&buffer[..count], fds).unwrap(),
                Ok(Received::Truncated(_)) => panic!("the script has no room for descriptors"),
                Ok(Received::End) => return None,
                // It is gone, and has not read all that was said.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("a call should come: {error}"),
            }
        }
    }

    /// The next request, in words.
    pub(crate) fn hears(&mut self) -> String {
        match self.request() {
            Some(Request::Stash(call)) => self.words(call),
            Some(Request::GetInfo) => "GetInfo".into(),
            Some(Request::GetInterfaceDescription(_)) => "GetInterfaceDescription".into(),
            None => "End".into(),
        }
    }

    /// Hears exactly this, and says that.
    pub(crate) fn answers(&mut self, words: &str, reply: Reply<OwnedFd>) {
        assert_eq!(self.hears(), words);
        self.says(reply);
    }

    /// Hears exactly this, and refuses.
    pub(crate) fn refuses(&mut self, words: &str, refusal: Refusal) {
        assert_eq!(self.hears(), words);
        self.sends(reply::write(Err(refusal), false));
    }

    /// Hears exactly this, and says nothing.
    pub(crate) fn ignores(&mut self, words: &str) {
        assert_eq!(self.hears(), words);
    }

    /// Hears exactly this with a ticket, and says nothing.
    pub(crate) fn ignores_ticket(&mut self, words: &str) -> Ticket {
        self.ignores(words);
        self.ticket.take().expect("it should have a ticket")
    }

    /// Hears exactly this with this ticket, and says that.
    pub(crate) fn answers_ticket(&mut self, words: &str, ticket: &Ticket, reply: Reply<OwnedFd>) {
        assert_eq!(&self.ignores_ticket(words), ticket);
        self.says(reply);
    }

    /// Whether nothing has come with what was heard that was not heard yet.
    pub(crate) fn has_heard_all(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Refuses what was heard.
    pub(crate) fn says_no(&mut self, refusal: Refusal) {
        self.sends(reply::write(Err(refusal), false));
    }

    pub(crate) fn says(&mut self, reply: Reply<OwnedFd>) {
        self.sends(reply::write(Ok(reply), false));
    }

    /// Says a part, which more of the same answer follow.
    pub(crate) fn begins_to_say(&mut self, reply: Reply<OwnedFd>) {
        self.sends(reply::write(Ok(reply), true));
    }

    /// Says what is no message of the interface, or a part of one.
    pub(crate) fn mumbles(&mut self, bytes: &[u8], fds: &[OwnedFd]) {
        assert_eq!(socket::send(&self.stream, bytes, fds).unwrap(), bytes.len());
    }

    /// Reads a part of a call that is longer than a socket holds, refuses it and hangs up.
    pub(crate) fn refuses_half_heard(mut self, refusal: Refusal) {
        self.hears_half();
        self.sends(reply::write(Err(refusal), false));
    }

    /// Reads a part of a call that is longer than a socket holds, and hangs up.
    pub(crate) fn hangs_up_half_heard(mut self) {
        self.hears_half();
    }

    fn hears_half(&mut self) {
        let received = socket::receive(&self.stream, &mut [0; 100], &mut Vec::new()).unwrap();
        assert_eq!(received, Received::Bytes(100));
    }

    fn sends(&mut self, frame: fdstash_proto::Frame<OwnedFd>) {
        let mut outbox: Outbox<OwnedFd> = Outbox::new();
        outbox.push(frame, ());
        let mut bytes = Vec::new();
        while !outbox.is_empty() {
            let fds = outbox.next_send(&mut bytes, usize::MAX);
            let sent = socket::send(&self.stream, &bytes, fds).unwrap();
            outbox.advance(sent, |frame, ()| self.handed.extend(frame.fds));
        }
        self.stream.flush().unwrap();
    }

    fn words(&mut self, call: Call<OwnedFd>) -> String {
        self.ticket = call.ticket().cloned();
        let list = |names: &[Name]| {
            names.iter().map(|name| format!(" {name}")).collect::<Vec<_>>().concat()
        };
        match call {
            Call::Give { gifts, clash, .. } => {
                let names: Vec<_> = gifts.iter().map(|gift| gift.name.clone()).collect();
                self.given = gifts;
                let verb = if clash == Clash::Refuse { "GiveNew" } else { "Give" };
                format!("{verb}{}", list(&names))
            }
            Call::Take { names, taking, timeout_usec } => {
                let verb = match taking {
                    Taking::Move => "Take",
                    Taking::Copy => "Copy",
                    Taking::Fresh => "CopyFresh",
                };
                let patience = if timeout_usec > 0 { " patiently" } else { "" };
                format!("{verb}{}{patience}", list(&names))
            }
            Call::Close { names, .. } => format!("Close{}", list(&names)),
            Call::Reopen { reopenings } => {
                let names: Vec<_> = reopenings.iter().map(|one| one.name.clone()).collect();
                format!("Reopen{}", list(&names))
            }
            Call::Begin => "Begin".into(),
            Call::Commit { .. } => "Commit".into(),
            Call::Rollback => "Rollback".into(),
            Call::List { pattern } => format!("List {}", pattern.as_str()),
            Call::Watch { pattern } => format!("Watch {}", pattern.as_str()),
            Call::GetStatistics => "GetStatistics".into(),
            Call::ExplainPolicy { name, .. } => format!("ExplainPolicy {name}"),
        }
    }
}

pub(crate) fn names<const N: usize>(names: [&str; N]) -> Vec<Name> {
    names.map(name).to_vec()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// So many names, each its own.
pub(crate) fn many_names(count: usize) -> Vec<Name> {
    (0..count).map(|number| name(&format!("n{number:04}"))).collect()
}

/// A call of these names, in words.
pub(crate) fn call(verb: &str, names: &[Name]) -> String {
    names.iter().fold(verb.to_owned(), |words, name| format!("{words} {name}"))
}

/// A file of its own.
pub(crate) fn file() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

/// What two descriptors of the same file have in common.
pub(crate) fn identity(fd: impl AsFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_dev, stat.st_ino)
}

/// A reply that hands out a file of its own under each name.
pub(crate) fn handed(names: &[Name]) -> Reply<OwnedFd> {
    let handed = names.iter().map(|name| Handed { name: name.clone(), fd: file() });
    Reply::Handed(handed.collect())
}

/// A reply that hands out a duplicate of this file.
pub(crate) fn handed_one(name: &Name, file: &OwnedFd) -> Reply<OwnedFd> {
    Reply::Handed(vec![Handed { name: name.clone(), fd: file.try_clone().unwrap() }])
}

pub(crate) fn given() -> Reply<OwnedFd> {
    Reply::Given { replaced: Vec::new() }
}

/// What a daemon says of a Commit outside a transaction.
pub(crate) fn outside() -> Refusal {
    Refusal::TransactionState { reason: "no transaction is open on this connection".into() }
}

pub(crate) fn not_found(name: &str) -> Refusal {
    Refusal::NotFound { name: name.into() }
}

/// Figures that can be told from others by one of them.
pub(crate) fn figures(given: u64) -> Statistics {
    Statistics {
        entries: 0,
        max_entries: 10,
        connections: 1,
        transactions: 0,
        keeper: Keeper::Process,
        restores: 0,
        given,
        taken: 0,
        copied: 0,
        closed: 0,
        reopened: 0,
        expired: 0,
        refused: 0,
        mirror: None,
    }
}

pub(crate) fn info() -> Info {
    Info::of_fdstash("1.2.3")
}

pub(crate) fn entry(text: &str) -> Entry {
    Entry {
        name: name(text),
        kind: Kind::Regular,
        access: Access::ReadWrite,
        flags: Flags::NONE,
        drifted: Flags::NONE,
        may_reopen: Access::ReadWrite,
        target: Some(format!("/images/{text}")),
        device: 1,
        inode: 2,
        giver: Peer { uid: 3, gid: 4, pid: 5 },
        given_at_usec: 6,
        expires_at_usec: None,
        revision: 7,
        held_by: None,
        labels: Labels::new(),
        share: None,
        ephemeral: None,
        close_on_hangup: None,
    }
}

pub(crate) fn changed(change: Change, name: &str) -> Reply<OwnedFd> {
    Reply::Notice(fdstash::Notice::Changed { change, entry: Box::new(entry(name)) })
}

/// What a descriptor's file has in it, from its beginning.
pub(crate) fn content(fd: impl AsFd) -> String {
    use std::io::{Read, Seek};
    let mut file = File::from(fd.as_fd().try_clone_to_owned().unwrap());
    let mut content = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut content).unwrap();
    content
}
