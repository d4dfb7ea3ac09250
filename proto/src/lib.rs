//! The wire of fdstash: [Varlink](https://varlink.org) messages over a Unix stream socket, and the
//! descriptors that travel beside them as `SCM_RIGHTS`.
//!
//! This crate turns bytes and descriptors into [`Call`]s and [`Reply`]s and back. It owns no socket,
//! waits for nothing and has no clock; what it says about descriptors it says for any `F`, so that
//! the daemon, the client library and tests without a kernel share it. Only [`socket`] touches a
//! socket, and that one is borrowed.
//!
//! - [`Inbox`] and [`Outbox`]: the messages and the descriptors beside them, bounded.
//! - [`call`]: what a client asks; [`reply`]: what it gets, a [`Refusal`] included.
//! - [`Name`], [`Pattern`], [`Ticket`] and the other terms of the interface: checked once, here, and nowhere else.
//!
//! The contract is the interface file, [`INTERFACE`]; a test parses it and holds the types to it.
#![forbid(unsafe_code)]

pub mod call;
mod codec;
mod name;
mod pattern;
mod plain;
mod policy;
#[cfg(feature = "proptest")]
pub mod proptest;
pub mod reply;
pub mod socket;
mod terms;
mod ticket;

pub use call::{Call, Clash, Gift, Incoming, Mode, Reopening, Request, Taking};
pub use codec::{Frame, Hangup, Inbox, MAX_MESSAGE, Outbox};
pub use name::{BadName, Name};
pub use pattern::{BadPattern, Pattern};
pub use policy::{Explanation, Reason, Verb, Verdict};
pub use reply::{Handed, Info, Mirror, Notice, Refusal, Reply, Statistics};
pub use terms::{Access, Change, Entry, Flags, Keeper, Kind, Labels, Peer, Share};
pub use ticket::{BadTicket, Ticket};

/// The interface's name, the first part of every method's.
pub const INTERFACE_NAME: &str = "org.fdstash.Stash";

/// The interface as the daemon serves it with `GetInterfaceDescription`.
pub const INTERFACE: &str = include_str!("../org.fdstash.Stash.varlink");

/// The interface that every Varlink service has.
pub const SERVICE_NAME: &str = "org.varlink.service";

/// The description of [`SERVICE_NAME`], as varlink.org has it.
pub const SERVICE: &str = include_str!("../org.varlink.service.varlink");

/// The most descriptors one message carries: the kernel's `SCM_MAX_FD` (254 are `EINVAL`).
pub const MAX_DESCRIPTORS: usize = 253;
