//! The stories of the stash, as transcripts: this goes in, and exactly these effects come out, in
//! this order. Descriptors are words here, and so are effects; `stage.rs` says how they read.

mod auditing;
mod closing;
mod giving;
mod idling;
mod limits;
mod reopening;
mod repeating;
mod stage;
mod taking;
mod transactions;
mod upgrading;
mod watching;
