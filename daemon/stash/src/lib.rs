//! The stash: which descriptors are kept under which names, and what every call does to them.
//!
//! A synchronous value without I/O, clock, log or randomness. It takes a call, and answers with the
//! [`Effect`]s to carry out, in the order in which they must happen; a crash is a cut in that list.
//! It is generic over what it holds and asks nothing of it: it can hold, lend and give back, and by
//! construction nothing else. The daemon runs it over real descriptors, the tests over tokens that
//! count their drops.
//!
//! What always holds:
//!
//! - All that can fail comes before all that changes: a refused call leaves everything as it was.
//! - One call, one record, its ticket included: half a call cannot be replayed, and a whole one is
//!   not done again.
//! - A name is held by at most one connection; what a hold has staged, nobody else sees.
//! - What is closed has left the stash, and the record that says so stands before it.
#![forbid(unsafe_code)]

mod audit;
mod bytes;
mod effect;
mod ends;
mod entry;
mod facts;
mod figures;
mod give;
mod idle;
mod lookup;
pub mod mirror;
mod opening;
mod policy;
mod quota;
mod record;
mod reopen;
mod restore;
mod stash;
mod take;
mod target;
mod tickets;
mod transaction;
mod usage;
mod weight;

pub use audit::Deed;
pub use bytes::Unreadable;
pub use effect::{Effect, Effects, Record};
pub use entry::{Details, Ends, EntryId, Expiry, Kept, Notes};
pub use facts::{Facts, Inspected, Now};
pub use fdstash_proto::{Reason, Verb, Verdict};
pub use figures::Census;
pub use lookup::Listed;
pub use policy::{
    Allow, Because, Origin, Place, Reserve, Rules, UNMAPPED, Who, Whom, explain, judge,
};
pub use quota::{Limits, Quota, QuotaRule};
pub use record::{Begin, Carried, Doing, Line, Number, write_handover};
pub use reopen::{OpenFailure, Opening, Rights};
pub use restore::Replay;
pub use stash::{ConnectionId, Stash};
pub use target::Pointed;
pub use tickets::Done;
pub use usage::Usage;
pub use weight::Weight;
