//! [`Own`]: what this daemon has open for itself. Nobody may give it that to keep: an entry that is the
//! other end of a connection would keep that from ever being seen to end, and whoever takes the journal,
//! a timer or an epoll could do with it what the daemon does.
//!
//! It is found by what it is: by device and inode, where a file has an inode of its own; by `kcmp`, where
//! all have the same (epolls, timers); and both ends of a connection by the address of the listening
//! socket, which the kernel copies to every one. Which socket is at the other end only netlink would tell
//! (`UNIX_DIAG_PEER`), of one network namespace, to who may have sockets of that family. So a connection
//! to another daemon is refused, too, if that listens at the same path of another file system.
//!
//! What lies unread in a socket that is given, is not looked at.

use std::os::fd::AsFd;

use anyhow::Result;
use fdstash_proto::{Call, Gift, Kind, Refusal};
use fdstash_stash::{Facts, Inspected, Number};
use rustix::{
    net::{SocketAddrAny, getpeername, getsockname},
    process::getpid,
};

use crate::{
    descriptor::Descriptor,
    inherited::{Inherited, number},
    inspect::{identity, kind, look},
    lasting::Lasting,
    run::Daemon,
    systemd::Notify,
};

/// What the daemon has for itself from its start to its end.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// The device and inode number of each socket, of the journal and of the policy.
    files: Vec<(u64, u64)>,
    /// Those that have no inode of their own.
    anonymous: Vec<Number>,
    /// Where it listens.
    address: Option<SocketAddrAny>,
    /// Where it tells the service manager how it is.
    manager: Option<SocketAddrAny>,
}

impl Own {
    /// What is open now and not foreign, but for standard input, output and error, which others have,
    /// too. To be called when everything is open that the daemon needs for itself.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell what is open.
    pub(crate) fn find(lasting: &Lasting, foreign: &Inherited) -> Result<Self> {
        let address = Some(getsockname(&lasting.listener)?);
        let manager = lasting.manager.as_ref().and_then(Notify::address);
        let mut own = Self { address, manager, ..Self::default() };
        for fd in lasting.fds() {
            own.files.push(identity(&look(fd)?));
        }
        foreign.look_at_others(|fd| {
            let Ok(file) = look(fd) else { return };
            match kind(&file) {
                Kind::Socket if number(fd) > 2 => own.files.push(identity(&file)),
                Kind::Anonymous if number(fd) > 2 => own.anonymous.push(number(fd)),
                // Those of the journal and the policy are among them already; the others, a /dev/null,
                // say, are everybody's.
                Kind::Regular
                | Kind::Directory
                | Kind::Block
                | Kind::Character
                | Kind::Fifo
                | Kind::Socket
                | Kind::Anonymous => {}
            }
        })?;
        Ok(own)
    }

    /// Whether a descriptor of which these facts are known is the daemon's own.
    pub(crate) fn has(&self, fd: impl AsFd, facts: &Facts) -> bool {
        let is_here = || self.files.contains(&(facts.device, facts.inode));
        match facts.kind {
            Kind::Regular => is_here(),
            Kind::Socket => is_here() || self.is_of_connection(fd),
            Kind::Anonymous => {
                let theirs = number(fd);
                self.anonymous.iter().any(|own| is_same(*own, theirs))
            }
            Kind::Directory | Kind::Block | Kind::Character | Kind::Fifo => false,
        }
    }

    /// Whether it is an end of a connection to this daemon, or what that listens at; or is connected
    /// to the service manager.
    fn is_of_connection(&self, fd: impl AsFd) -> bool {
        let peer = getpeername(&fd).ok().flatten();
        let is_ours = || self.address.is_some() && getsockname(&fd).ok() == self.address;
        is_ours() || peer.is_some() && (peer == self.address || peer == self.manager)
    }
}

impl Daemon {
    /// Why a call is refused that gives what is this daemon's own, if it does.
    pub(crate) fn own_among(&self, call: &Call<Inspected<Descriptor>>) -> Option<Refusal> {
        let Call::Give { gifts, .. } = call else { return None };
        let is_own = |gift: &Gift<Inspected<Descriptor>>| {
            let Inspected { fd, facts } = &gift.fd;
            self.own.has(fd, facts)
                || self
                    .mirror
                    .as_ref()
                    .is_some_and(|mirror| mirror.has((facts.device, facts.inode)))
        };
        let at = gifts.iter().position(is_own)?;
        Some(Refusal::InvalidParameter { parameter: format!("entries[{at}].fileDescriptor") })
    }
}

/// Whether two numbers are of one open file description. Where the kernel cannot tell, they are not.
#[expect(unsafe_code, reason = "no safe function compares descriptors")]
fn is_same(one: Number, other: Number) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let own = getpid().as_raw_pid();
    // SAFETY: it takes nothing but numbers, and changes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, one, other) == 0 }
}
