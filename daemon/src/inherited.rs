//! Descriptors that this process was started with: numbers into owned descriptors, once each.

use std::{
    env,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixListener,
    },
};

use anyhow::{Context, Result, bail};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{
        AddressFamily, SocketType,
        sockopt::{socket_acceptconn, socket_domain, socket_type},
    },
    process::getpid,
};

/// The first number of those that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// The listening socket that systemd has passed (`LISTEN_FDS`), if it has passed one to this very
/// process. To be called once, before anything else has been opened.
///
/// # Errors
///
/// If what was passed is not one listening socket.
pub(crate) fn listening_socket() -> Result<Option<UnixListener>> {
    let Ok(count) = env::var("LISTEN_FDS") else { return Ok(None) };
    let for_us = env::var("LISTEN_PID").is_ok_and(|pid| pid == getpid().as_raw_pid().to_string());
    if !for_us {
        return Ok(None);
    }
    let count: i32 = count.parse().context("reading LISTEN_FDS")?;
    if count == 0 {
        return Ok(None);
    }
    if count != 1 {
        bail!("systemd has passed {count} sockets, and fdstashd listens at one");
    }
    let socket = claim_first();
    fcntl_setfd(&socket, FdFlags::CLOEXEC).context("the descriptor that systemd has passed")?;
    let is_ours = socket_acceptconn(&socket).unwrap_or(false)
        && socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
    if !is_ours {
        bail!("the descriptor that systemd has passed is no listening Unix stream socket");
    }
    Ok(Some(UnixListener::from(socket)))
}

#[expect(unsafe_code, clippy::disallowed_methods, reason = "systemd passes descriptors as numbers")]
fn claim_first() -> OwnedFd {
    // SAFETY: LISTEN_FDS and LISTEN_PID say that systemd has opened this number for this process,
    // and nothing has been opened or claimed before (tests/start.rs passes one).
    unsafe { OwnedFd::from_raw_fd(FIRST) }
}
