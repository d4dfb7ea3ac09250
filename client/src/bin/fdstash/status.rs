//! `fdstash status`.

use std::{
    fs,
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use fdstash::{Info, Keeper, Mirror, Statistics};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt},
    process::Pid,
};

use crate::{Door, words::plain};

/// How long to wait for who serves.
const PATIENCE: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  fdstash status
  fdstash status --json | jq .entries
  fdstash --socket /run/fdstash/org.fdstash.Stash status    # of the system's daemon

The processes are those of the daemon: the one that serves, and its parent, which starts it anew.
A SIGHUP to the parent upgrades, a SIGTERM ends both.";

/// Show how the daemon is, and what it has done
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Status {
    /// Write the figures as one JSON object, as the interface has it
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut client = door.connect()?;
        let statistics = client.statistics()?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", statistics.to_json())?;
            return Ok(ExitCode::SUCCESS);
        }
        let info = client.info()?;
        for (what, value) in lines(&info, &statistics) {
            writeln!(out, "{what:<12}  {value}")?;
        }
        // Who serves has to be asked anew, and may just be another: no reason to fail.
        if let Some(server) = server(client.socket()).ok().flatten() {
            let keeper = keeper_of(server);
            let keeper = keeper.map(|keeper| format!(", {keeper} keeps")).unwrap_or_default();
            writeln!(out, "{:<12}  {} serves{keeper}", "processes", server.as_raw_pid())?;
        }
        if let Some(mirror) = &statistics.mirror {
            writeln!(out, "{:<12}  {}", "with systemd", store(mirror))?;
        }
        writeln!(out, "{:<12}  {}", "socket", client.socket().display())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn lines(info: &Info, figures: &Statistics) -> [(&'static str, String); 7] {
    let Statistics { entries, max_entries, connections, transactions, .. } = figures;
    let Statistics { given, taken, copied, closed, reopened, expired, refused, .. } = figures;
    let survives = match figures.keeper {
        Keeper::Process => "crashes and upgrades of the daemon; they end when it is asked to end",
        Keeper::ProcessAndSystemd => "crashes, upgrades and restarts of the daemon",
        Keeper::Nobody => "nothing: they end with the daemon",
    };
    [
        ("daemon", plain(&format!("{} {}", info.product, info.version))),
        ("entries", format!("{entries} of at most {max_entries}")),
        ("they outlive", survives.to_owned()),
        ("connections", format!("{connections}, {transactions} of them in a transaction")),
        ("came back", format!("{} times, after crashes and upgrades", figures.restores)),
        (
            "since then",
            format!(
                "{given} given or come back, {taken} taken, {copied} copied, {closed} closed, {reopened} reopened, {expired} expired"
            ),
        ),
        ("refused", format!("{refused} calls")),
    ]
}

/// What systemd's store has.
fn store(mirror: &Mirror) -> String {
    let Mirror { bundles, entries, waiting, behind_usec, .. } = mirror;
    let behind = match waiting {
        0 => "all there is".to_owned(),
        _ => format!("{waiting} changes behind, by {} ms", behind_usec / 1000),
    };
    format!("{entries} entries in {bundles} bundles, {behind}")
}

/// The process that answers at a socket, as the kernel vouches for it, if it has a number here. The
/// socket's own peer is whoever has begun to listen, which may be systemd.
fn server(socket: &Path) -> io::Result<Option<Pid>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    sockopt::set_socket_passcred(&stream, true)?;
    stream.write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0")?;
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [IoSliceMut::new(&mut bytes)];
    recvmsg(&stream, &mut buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut messages = ancillary.drain();
    Ok(messages.find_map(|message| {
        if let RecvAncillaryMessage::ScmCredentials(sender) = message {
            return Some(sender.pid);
        }
        None
    }))
}

/// The parent of a server, if it is one of ours: a server whose keeper has died has another.
fn keeper_of(server: Pid) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.as_raw_pid())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    (name.trim() == "fdstashd").then_some(parent)
}
