//! `fdstashd`: holds open file descriptors by name.
//!
//! Everything here is thin: the decisions are made in `fdstash-stash`, the wire is
//! `fdstash-proto`'s. `run.rs` has the event loop, `perform.rs` carries out what the stash asks for,
//! and the modules below those do one thing to the machine each.
#![deny(unsafe_code)]

mod args;
mod clock;
mod closer;
mod connection;
mod descriptor;
mod door;
mod hangups;
mod inherited;
mod inspect;
mod listen;
#[cfg_attr(not(test), expect(dead_code, reason = "the loop does not tell it of entries yet"))]
mod mirror;
mod open;
mod peer;
mod perform;
mod polled;
mod reminder;
mod run;
mod seat;

use std::{io::IsTerminal, panic, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::{
    runtime::{Builder, LocalOptions},
    signal::unix::{SignalKind, signal},
};

use crate::args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(args.log())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would tell of a log that nobody reads any more on that very log, and panic.
        .log_internal_errors(false)
        .init();
    abort_on_panic();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: Args) -> Result<()> {
    // First of all, while the number that was passed is surely still what it was.
    let passed = inherited::listening_socket()?;
    let config = args.into_config()?;
    let (listener, place) = match passed {
        Some(listener) => {
            tracing::info!("serving the socket that was passed");
            (listener, None)
        }
        None => {
            let path = config.socket.map_or_else(args::default_socket, Ok)?;
            let (listener, place) = listen::listen(&path)?;
            tracing::info!(socket = %path.display(), "serving");
            (listener, Some(place))
        }
    };
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("starting the event loop")?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("ending on SIGTERM"),
                _ = interrupt.recv() => tracing::info!("ending on SIGINT"),
            }
        };
        run::run(listener, config.limits, config.patience, shutdown).await
    });
    drop(place);
    // A close or an open that hangs shall not keep the process.
    runtime.shutdown_background();
    outcome
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
