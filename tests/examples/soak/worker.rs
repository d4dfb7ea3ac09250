//! A client that makes calls of all kinds, without end.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
};

use fdstash_proto::socket::{self, Received};
use kit::{SOON, User, null};
use rustix::{
    net::{RecvFlags, recv},
    pipe::{PipeFlags, pipe_with},
};

use crate::script::{DONE, Script};

/// After so many rounds it comes anew.
const STAY: u64 = 32;

/// The user number of the first of them; those who come once have higher ones.
const FIRST_UID: u32 = 61_001;
const FIRST_ONCE: u32 = 1_000_000;

/// How many names a round has at most.
const NAMES: u64 = 20;

/// One of them, with what it gives.
pub(crate) struct Worker {
    number: u64,
    is_root: bool,
    null: File,
    /// Which can be reopened.
    regular: File,
    rounds: u64,
    /// How many calls it has made.
    pub(crate) calls: u64,
}

impl Worker {
    /// A user of its own, if there is root.
    pub(crate) fn new(number: u64, is_root: bool) -> Self {
        let regular = tempfile::tempfile().expect("a file can be made");
        Self { number, is_root, null: null(), regular, rounds: 0, calls: 0 }
    }

    /// Makes so many calls and a few more.
    ///
    /// # Errors
    ///
    /// The first reply that was not the one that was due.
    pub(crate) fn run(&mut self, socket: &Path, calls: u64) -> Result<(), String> {
        let enough = self.calls + calls;
        while self.calls < enough {
            self.stay(socket).map_err(|error| format!("in round {}: {error}", self.rounds))?;
        }
        Ok(())
    }

    /// Everything that a connection does from its begin to its end.
    fn stay(&mut self, socket: &Path) -> io::Result<()> {
        let mut peer = self.connect(socket)?;
        let watcher = self.connect(socket)?;
        let pattern = format!("soak/{}/*", self.number);
        watcher.say(&format!(
            r#"{{"method":"org.fdstash.Stash.Watch","more":true,"parameters":{{"pattern":"{pattern}"}}}}"#
        ))?;
        let ephemeral = [format!("soak/{}/ephemeral", self.number)];
        let mut script = Script::default();
        script.give(&ephemeral, self.null.as_fd(), (r#","ephemeral":true"#, ""), DONE);
        self.calls += peer.play(&script)?;
        // Of every second one nobody reads what it is told.
        let reads = self.rounds / STAY % 2 == 0;
        for _ in 0..STAY {
            self.round(&mut peer, socket)?;
            if reads {
                watcher.discard();
            }
        }
        self.visit(socket)?;
        self.leave(&peer)
    }

    /// Calls of all kinds, under names that never come again.
    fn round(&mut self, peer: &mut Peer, socket: &Path) -> io::Result<()> {
        let first = self.rounds * NAMES;
        let names: Vec<_> =
            (first..first + NAMES).map(|at| format!("soak/{}/{at}", self.number)).collect();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut script = Script::default();
        self.shorter_calls(&mut script, &names);
        self.refused_calls(&mut script, &names);
        self.transaction(&mut script, &names);
        script.give(&names[14..15], self.null.as_fd(), (r#","expireUSec":5000"#, ""), DONE);
        script.give(&names[15..16], reader.as_fd(), (r#","closeOnHangup":true"#, ""), DONE);
        match self.rounds % 16 {
            3 | 11 => self.reopenings(&mut script, &names),
            7 => self.looks(&mut script),
            _ => {}
        }
        let waiter = if self.rounds % 16 == 5 { Some(self.connect(socket)?) } else { None };
        if let Some(waiter) = &waiter {
            waiter.say(&format!(
                r#"{{"method":"org.fdstash.Stash.Take","parameters":{{"names":["{}"],"timeoutUSec":60000000}}}}"#,
                names[16]
            ))?;
            script.give(&names[16..17], self.null.as_fd(), ("", ""), DONE);
        }
        self.calls += peer.play(&script)?;
        if let Some(mut waiter) = waiter {
            waiter.expect(&[DONE])?;
            self.calls += 1;
        }
        drop(writer);
        self.rounds += 1;
        Ok(())
    }

    fn shorter_calls<'a>(&'a self, script: &mut Script<'a>, names: &[String]) {
        let null = self.null.as_fd();
        let label = format!(r#","labels":{{"round":"{}"}}"#, self.rounds);
        let ticket = format!(r#","ticket":"{}-{}""#, self.number, self.rounds);
        for name in names[..6].chunks(1) {
            script.give(name, null, (&label, ""), DONE);
        }
        script.give(&names[6..12], null, ("", &ticket), DONE);
        // Sent again: nothing happens.
        script.give(&names[6..12], null, ("", &ticket), DONE);
        script.give(&names[..1], null, (&label, ""), DONE);
        script.of("Take", &names[..2], r#","copy":true"#, DONE);
        script.of("Take", &names[2..3], r#","copy":true"#, DONE);
        script.of("Take", &names[..4], "", DONE);
        script.of("Take", &names[4..5], "", DONE);
        script.of("Close", &names[5..7], &ticket.replace('-', "/"), DONE);
        for name in names[7..11].chunks(1) {
            script.of("Close", name, "", DONE);
        }
    }

    /// With the twelfth name being there, and none before it.
    fn refused_calls<'a>(&'a self, script: &mut Script<'a>, names: &[String]) {
        let null = self.null.as_fd();
        script.give(&names[11..12], null, ("", r#","exclusive":true"#), "AlreadyExists");
        script.give(&["a:b".to_owned()], null, ("", ""), "InvalidName");
        script.of("Take", &names[..2], "", "NotFound");
        script.of("Close", &names[10..12], "", "NotFound");
        script.of("Close", &names[11..12], "", DONE);
        script.of("Take", &names[11..12], r#","copy":true"#, "NotFound");
        script.call("Commit", "{}", "TransactionState");
        script.call("Nonsense", "{}", "MethodNotFound");
        script.call("Take", r#"{"names":7}"#, "InvalidParameter");
        if self.rounds % 16 == 9 {
            script.of("Take", &names[..1], r#","timeoutUSec":300"#, "NotFound");
        }
    }

    fn transaction<'a>(&'a self, script: &mut Script<'a>, names: &[String]) {
        let null = self.null.as_fd();
        let becomes_final = self.rounds % 2 == 0;
        script.call("Begin", "{}", DONE);
        script.give(&names[12..14], null, ("", ""), DONE);
        script.of("Close", &names[12..13], "", DONE);
        script.of("Take", &names[13..14], r#","copy":true"#, DONE);
        if becomes_final {
            let ticket = format!(r#"{{"ticket":"{}.{}"}}"#, self.number, self.rounds);
            script.call("Commit", &ticket, DONE);
        } else {
            script.call("Rollback", "{}", DONE);
        }
        let due = if becomes_final { DONE } else { "NotFound" };
        script.of("Take", &names[13..14], "", due);
    }

    fn reopenings<'a>(&'a self, script: &mut Script<'a>, names: &[String]) {
        let name = &names[17..18];
        script.give(name, self.regular.as_fd(), ("", ""), DONE);
        let wanted = format!(r#"{{"entries":[{{"name":"{}","nonblock":true}}]}}"#, name[0]);
        script.call("Reopen", &wanted, DONE);
        script.of("Take", name, r#","copy":true,"fresh":true"#, DONE);
        script.of("Close", name, "", DONE);
        let (gone, due) = (wanted.replace(&name[0], &names[18]), "NotFound");
        script.call("Reopen", &gone, due);
    }

    fn looks(&self, script: &mut Script) {
        script.call("List", &format!(r#"{{"pattern":"soak/{}/*"}}"#, self.number), DONE);
        script.call("GetStatistics", "{}", DONE);
    }

    /// Somebody comes who was never there, and leaves again.
    fn visit(&mut self, socket: &Path) -> io::Result<()> {
        let once = u32::try_from(self.rounds / STAY).unwrap_or_default() * 16 + self.number as u32;
        let user = User::new(FIRST_ONCE + once);
        let mut visitor = connect(socket, self.is_root.then_some(&user))?;
        let name = [format!("soak/{}/visitor", self.number)];
        let mut script = Script::default();
        script.give(&name, self.null.as_fd(), (r#","ephemeral":true"#, ""), DONE);
        // Before it is done it may be here again, in another's name, who cannot have this one.
        script.call("GetStatistics", "{}", DONE);
        script.due[0] = "?";
        self.calls += visitor.play(&script)?;
        Ok(())
    }

    /// Leaves in one of the ways in which clients leave.
    fn leave(&mut self, peer: &Peer) -> io::Result<()> {
        let name = [format!("soak/{}/left-{}", self.number, self.rounds)];
        let mut script = Script::default();
        match self.rounds / STAY % 4 {
            // In the middle of a message.
            0 => return peer.send(br#"{"method":"org.fdstash.Sta"#, &[] as &[File]),
            // In a transaction, and without reading the replies.
            1 => script
                .call("Begin", "{}", DONE)
                .give(&name, self.null.as_fd(), ("", ""), DONE)
                .call("List", "{}", DONE),
            // With descriptors on their way to it.
            2 => script
                .give(&name, self.null.as_fd(), (r#","expireUSec":1000"#, ""), DONE)
                .of("Take", &name, "", DONE),
            _ => return Ok(()),
        };
        self.calls += script.due.len() as u64;
        peer.send(&script.bytes, &script.fds)
    }

    fn connect(&self, socket: &Path) -> io::Result<Peer> {
        let user = User::new(FIRST_UID + self.number as u32);
        connect(socket, self.is_root.then_some(&user))
    }
}

fn connect(socket: &Path, user: Option<&User>) -> io::Result<Peer> {
    let connect = || UnixStream::connect(socket);
    let stream = user.map_or_else(connect, |user| user.run(connect))?;
    stream.set_read_timeout(Some(6 * SOON))?;
    Ok(Peer { stream, received: Vec::new() })
}

/// A connection.
struct Peer {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Peer {
    fn send(&self, bytes: &[u8], fds: &[impl AsFd]) -> io::Result<()> {
        let mut sent = socket::send(&self.stream, bytes, fds)?;
        while sent < bytes.len() {
            sent += socket::send(&self.stream, &bytes[sent..], &[] as &[File])?;
        }
        Ok(())
    }

    /// Sends one message.
    fn say(&self, message: &str) -> io::Result<()> {
        self.send(format!("{message}\0").as_bytes(), &[] as &[File])
    }

    /// Makes the calls of a script, and waits for the replies; how many.
    fn play(&mut self, script: &Script) -> io::Result<u64> {
        self.send(&script.bytes, &script.fds)?;
        self.expect(&script.due)?;
        Ok(script.due.len() as u64)
    }

    /// Waits for replies, and lets go of the descriptors that come with them.
    fn expect(&mut self, due: &[&str]) -> io::Result<()> {
        let mut buffer = [0; 1 << 16];
        let mut left = due.iter().enumerate();
        while left.len() > 0 {
            let mut fds = Vec::new();
            match socket::receive(&self.stream, &mut buffer, &mut fds)? {
                Received::Bytes(count) => self.received.extend(&buffer[..count]),
                Received::End => return Err(io::Error::other("the daemon has hung up")),
                Received::Truncated(_) => return Err(io::Error::other("there was no room here")),
            }
            let mut start = 0;
            while let Some(length) = self.received[start..].iter().position(|byte| *byte == 0) {
                let reply = String::from_utf8_lossy(&self.received[start..start + length]);
                start += length + 1;
                let Some((at, due)) = left.next() else { break };
                if *due != "?" && error_of(&reply) != *due {
                    let due = if due.is_empty() { "no error" } else { due };
                    return Err(io::Error::other(format!("to call {at}, {due} was due: {reply}")));
                }
            }
            self.received.drain(..start);
        }
        Ok(())
    }

    /// Reads all that has come, without waiting, and forgets it.
    fn discard(&self) {
        let mut buffer = [0; 1 << 16];
        while recv(&self.stream, &mut buffer, RecvFlags::DONTWAIT).is_ok_and(|(_, count)| count > 0)
        {
        }
    }
}

/// The last word of the error that a reply is, or nothing.
fn error_of(reply: &str) -> &str {
    let Some((_, error)) = reply.split_once(r#""error":""#) else { return DONE };
    error.split('"').next().unwrap_or_default().rsplit('.').next().unwrap_or_default()
}
