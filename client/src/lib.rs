//! The client of fdstash: a daemon that holds open file descriptors by name, hands them out again,
//! and reopens their files with other flags without ever letting go of the old ones first.
//!
//! One API, two ways to wait: `Client` on Tokio, and [`blocking::Client`], which needs no runtime
//! (build with `default-features = false` if that is all you want).
//!
//! ```no_run
//! # #[cfg(feature = "tokio")] {
//! use fdstash::{Client, Gift, Name, Reopening};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::connect().await?;
//! let disk: Name = "vm7-disk0".parse()?;
//!
//! // Give: the stash has a duplicate; `Statistics::keeper` tells what it outlives.
//! let image = std::fs::File::options().read(true).write(true).open("/var/lib/images/vm7.img")?;
//! client.give(&[Gift::new(disk.clone(), &image)]).await?;
//!
//! // Reopen: the very same file, past the page cache. If that cannot be, the old one is still kept.
//! let direct = Reopening { direct: Some(true), ..Reopening::new(disk.clone()) };
//! let handed = client.reopen(&[direct]).await?;
//!
//! // Take: the stash lets go of it only when it has arrived.
//! let handed = client.take(&[disk]).await?;
//! let image = std::fs::File::from(handed.into_iter().next().ok_or("nothing")?.fd);
//! # Ok(())
//! # }
//! # }
//! ```
//!
//! # Files and images
//!
//! For a program that opens files, [`File`](blocking::File) looks in the stash before the file system,
//! stashes what it opens, and opens it again with other flags, or what stands at its path now. For a VMM,
//! [`Image`](blocking::Image) does the same to all files of an image together, on top of the VMM's own
//! [`Driver`]; with the feature `imago` there is one for raw, qcow2 and VMDK images.
//!
//! # What it sees to
//!
//! - A **take** or a **reopen** is final only when every descriptor has arrived. Where this process
//!   has no room for one, or the connection is lost, the stash keeps what it had.
//! - [`take_at_once`](blocking::Client::take_at_once) does without that, in one round trip instead of two,
//!   for those who accept that what is on its way to them is lost with them.
//! - Many calls in one round trip are a [`Pipeline`].
//! - A call of **more than 253 descriptors**, the kernel's limit for a message, is several messages
//!   and still all or nothing.
//! - When the **daemon restarts**, after a crash or for an upgrade, the client connects anew and sends
//!   again what was lost. What changes something bears a ticket, by which the daemon knows whether it
//!   has done it already, so it is done once. [`Error::ConnectionLost`] is for a daemon that does not
//!   come back, and for the caller's own transactions, which are undone with their connection; those of
//!   [`Client::transact`](blocking::Client::transact) are done anew.
//! - That the daemon has gone is seen by the send that fails. Where descriptors are sent, that raises
//!   **`SIGPIPE`**, which Rust programs ignore from their start: who turns it on again must not let it end
//!   the process.
//! - Descriptors that are given are only **borrowed**, whatever becomes of the call. Those that come
//!   are [`OwnedFd`](std::os::fd::OwnedFd)s and **close-on-exec** from the first instant.
#![forbid(unsafe_code)]

mod address;
mod advice;
pub mod blocking;
mod connection;
mod core;
mod error;
mod file;
mod files;
mod image;
#[cfg(feature = "imago")]
pub mod imago;
mod job;
mod options;
mod pipeline;
mod repetition;
mod stage;
#[cfg(feature = "tokio")]
mod tokio;
mod transport;

pub use fdstash_proto::{
    Access, BadName, BadPattern, Change, Entry, Explanation, Flags, Gift, Handed, Hangup, Info,
    Keeper, Kind, Labels, Mirror, Name, Notice, Pattern, Peer, Reason, Refusal, Reopening, Share,
    Statistics, Verb, Verdict,
};

#[cfg(feature = "tokio")]
pub use crate::tokio::{Client, File, Image, Transaction, Watch};
pub use crate::{
    address::default_socket,
    error::Error,
    files::Files,
    image::{Driver, ImageError, Step},
    options::{OpenOptions, ReopenOptions},
    pipeline::{Outcome, Pipeline},
};
