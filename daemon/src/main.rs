//! `fdstashd`: holds open file descriptors by name.
//!
//! Everything here is thin: the decisions are made in `fdstash-stash`, the wire is
//! `fdstash-proto`'s. `run.rs` has the event loop, `perform.rs` carries out what the stash asks for,
//! and the modules below those do one thing to the machine each.
#![deny(unsafe_code)]

mod args;
mod audit;
mod clock;
mod closer;
mod connection;
mod descriptor;
mod door;
mod errno;
mod handover;
mod hangups;
mod heart;
mod inherited;
mod inspect;
mod journal;
mod keeper;
mod lasting;
mod ledger;
mod line;
mod listen;
mod log;
mod mapped;
mod metrics;
mod mirror;
mod open;
mod opener;
mod own;
mod peer;
mod perform;
mod place;
mod policy;
mod polled;
mod pool;
mod process;
mod reader;
mod reminder;
mod rest;
mod restore;
mod rewrite;
mod run;
mod sandbox;
mod scrape;
mod seat;
mod server;
mod socket;
mod spare;
mod steps;
mod store;
mod systemd;
mod targets;
mod told;
mod turns;

use std::{io::Write, panic, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    args::Args,
    heart::Heart,
    inherited::{Inherited, METRICS, Passed, listening_socket, metrics_sockets},
    keeper::{Keeper, Start},
    lasting::Lasting,
    mirror::bundle,
};

fn main() -> ExitCode {
    // Before anything else: whoever execs this has these blocked, and an exec opens it to others.
    process::close_to_others();
    process::block_signals();
    process::settle_signals();
    // The program may run by another name than its own.
    let _ = rustix::thread::set_name(c"fdstashd");
    let args = Args::parse();
    // Before this process opens anything, while the numbers that were passed are surely still what they were.
    let passed = Inherited::from_systemd();
    log::start(args.log());
    abort_on_panic();
    if let Some(place) = args.policy_to_check() {
        return check_policy(&place);
    }
    match passed.and_then(|passed| keep(args, passed)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what a policy comes to, or what is wrong with it.
fn check_policy(place: &policy::Place) -> ExitCode {
    let (said, code) = match policy::check(place) {
        Ok(said) => (std::io::stdout().write_all(said.as_bytes()), ExitCode::SUCCESS),
        Err(error) => (writeln!(std::io::stderr(), "fdstashd: {error:#}"), ExitCode::FAILURE),
    };
    // Nobody reads it who has gone.
    said.map_or(ExitCode::FAILURE, |()| code)
}

/// Keeps servers, each in a process of its own, until the daemon ends.
fn keep(args: Args, (mut passed, named): Passed) -> Result<u8> {
    if lasting::rehearse(&args.policy())? {
        return Ok(lasting::COULD);
    }
    let is_bundle = |name: &str| bundle::parse(name).is_some();
    let metrics = metrics_sockets(&mut passed, &named)?;
    let is_other = |name: &str| is_bundle(name) || name == METRICS;
    let passed = listening_socket(&mut passed, &named, is_other)?;
    let bundles = named.iter().filter(|(_, name)| is_bundle(name));
    let config = args.into_config()?;
    let heart = Heart::new().context("sharing memory with the server")?;
    let before = Lasting::from_before(&config, heart)?;
    let is_going_on = before.is_some();
    let lasting = match before {
        Some(lasting) => lasting,
        None => {
            heart.set_stored(store::stored(bundles.clone().map(|(_, name)| name.as_str())));
            Lasting::new(passed, metrics, bundles.map(|(number, _)| *number).collect(), &config)?
        }
    };
    let start = if lasting.baton.is_some() { Start::TakeOver } else { Start::Serve };
    let lasting: &'static Lasting = Box::leak(Box::new(lasting));
    let serve = |start| server::run(lasting, &config, heart, start);
    let keeper =
        Keeper::new(heart, lasting, start, is_going_on, &serve).context("finding this program")?;
    let code = keeper.run();
    lasting.metrics_place.iter().for_each(scrape::Place::remove);
    Ok(code)
}

/// A panic is a fault of ours after which nothing is sure: it ends the process at once, and not one
/// task whose half-done work the others would go on with.
fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
