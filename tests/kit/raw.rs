//! A peer that speaks byte by byte.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use fdstash_proto::socket::{self, Received};
use serde_json::{Value, json};

use crate::SOON;

/// The message of a call of the stash's interface, NUL included.
#[must_use]
pub fn call(method: &str, parameters: &Value) -> Vec<u8> {
    messages(&[json!({
        "method": format!("org.fdstash.Stash.{method}"),
        "parameters": parameters,
    })])
}

/// Several messages in a row, each with its NUL.
#[must_use]
pub fn messages(values: &[Value]) -> Vec<u8> {
    let parts = values.iter().map(|value| value.to_string() + "\0");
    parts.collect::<String>().into_bytes()
}

/// A plain connection.
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
    received: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Raw {
    /// Connects to a daemon.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon can be reached");
        stream.set_read_timeout(Some(SOON)).expect("a time-out can be set");
        stream.set_write_timeout(Some(SOON)).expect("a time-out can be set");
        Self { stream, received: Vec::new(), fds: VecDeque::new() }
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes, all descriptors with the first of them, in one `sendmsg` as far as the kernel
    /// takes them. Tells whether all could be sent.
    pub fn try_send(&self, bytes: &[u8], fds: &[impl AsFd]) -> bool {
        let Ok(sent) = socket::send(&self.stream, bytes, fds) else { return false };
        (&self.stream).write_all(&bytes[sent..]).is_ok()
    }

    /// Sends bytes, and descriptors with the first of them.
    ///
    /// # Panics
    ///
    /// If that cannot be.
    #[track_caller]
    pub fn send(&self, bytes: &[u8], fds: &[impl AsFd]) {
        assert!(self.try_send(bytes, fds), "the daemon takes what is sent");
    }

    /// Sends bytes alone.
    #[track_caller]
    pub fn say(&self, bytes: &[u8]) {
        self.send(bytes, &[] as &[OwnedFd]);
    }

    /// Makes a call, and waits for its reply.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.say(&call(method, parameters));
        self.reply()
    }

    /// Gives descriptors, the first under the first name and so on.
    #[track_caller]
    pub fn give(&mut self, names: &[&str], fds: &[impl AsFd]) -> Value {
        self.send(&call("Give", &gifts(names)), fds);
        self.reply()
    }

    /// The next reply.
    ///
    /// # Panics
    ///
    /// If none comes.
    #[track_caller]
    pub fn reply(&mut self) -> Value {
        match self.try_reply() {
            Ok(Some(reply)) => reply,
            Ok(None) => panic!("the daemon has hung up"),
            Err(error) => panic!("no reply: {error}"),
        }
    }

    /// The next reply, or none if the daemon hangs up.
    ///
    /// # Errors
    ///
    /// If nothing comes for too long.
    pub fn try_reply(&mut self) -> std::io::Result<Option<Value>> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == 0) {
                let message: Vec<u8> = self.received.drain(..=end).collect();
                let value = serde_json::from_slice(&message[..end]);
                return Ok(Some(value.expect("the daemon writes JSON")));
            }
            let mut buffer = [0; 65536];
            let mut fds = Vec::new();
            let received = socket::receive(&self.stream, &mut buffer, &mut fds);
            self.fds.extend(fds);
            match received {
                Ok(Received::Bytes(count)) => self.received.extend(&buffer[..count]),
                Ok(Received::Truncated(_)) => panic!("the test has no room for descriptors"),
                Ok(Received::End) => return Ok(None),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The descriptors that have come and not yet been fetched, in order.
    pub fn fds(&mut self) -> Vec<OwnedFd> {
        self.fds.drain(..).collect()
    }

    /// Whether the daemon hangs up without another word.
    #[must_use]
    pub fn is_hung_up_on(&mut self) -> bool {
        matches!(self.try_reply(), Ok(None))
    }

    /// Whether nothing more has come so far.
    #[must_use]
    pub fn is_quiet(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket can be made non-blocking");
        let read = self.stream.read(&mut [0; 1]);
        self.stream.set_nonblocking(false).expect("a socket can be made blocking");
        self.received.is_empty()
            && read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// The parameters of a Give.
#[must_use]
pub fn gifts(names: &[&str]) -> Value {
    let gifts =
        names.iter().enumerate().map(|(at, name)| json!({"name": name, "fileDescriptor": at}));
    json!({ "entries": gifts.collect::<Vec<_>>() })
}
