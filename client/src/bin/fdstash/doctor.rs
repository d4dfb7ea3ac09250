//! `fdstash doctor`: looks at an installation from outside to inside, the way that a call takes, and says
//! what is wrong and what to do. Each look is one that works without the one before it having been well.

mod daemon;
mod entries;
mod policy;
mod socket;
mod units;

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use crate::{Door, words::plain};

const EXAMPLES: &str = "\
Examples:
  fdstash doctor
  sudo fdstash doctor                   # sees more: the daemon's program, everybody's entries
  fdstash doctor --socket /tmp/stash    # of a daemon that somebody started there
  fdstash doctor --json | jq -r .do

It needs neither a daemon nor systemd, and changes nothing. Exit codes: 0 nothing is wrong, be there
notes or not; 1 something is.";

/// Say what is wrong with this installation, and what to do about it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Doctor {
    /// Write one JSON object a finding: `severity`, `what`, `why` and `do`
    #[arg(long)]
    json: bool,
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    severity: Severity,
    what: String,
    why: String,
    advice: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// Something does not work, or what is kept is in danger.
    Wrong,
    /// It may be as somebody wants it.
    Note,
}

impl Finding {
    /// What is wrong, what that means, and what to type.
    fn wrong(what: impl Into<String>, why: &str, advice: impl Into<String>) -> Self {
        let (what, advice) = (what.into(), advice.into());
        Self { severity: Severity::Wrong, what, why: why.to_owned(), advice }
    }

    /// The same of what may be meant so.
    fn note(what: impl Into<String>, why: &str, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::wrong(what, why, advice) }
    }
}

impl Doctor {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let socket = door.path();
        let mut findings: Vec<_> = variable(&socket, door.is_named()).into_iter().collect();
        let manager = units::Manager::of(&socket);
        let answer = socket::look(&socket, manager.as_ref());
        let mut healthy = None;
        match answer {
            Ok(reached) => {
                findings.extend(manager.iter().flat_map(|manager| manager.look(true)));
                match daemon::look(&socket, &reached, manager.as_ref()) {
                    Ok((more, summary)) => {
                        findings.extend(more);
                        healthy = Some(summary);
                    }
                    Err(error) => findings.push(not_ours(&socket, &error)),
                }
            }
            Err(finding) => {
                findings.push(finding);
                findings.extend(manager.iter().flat_map(|manager| manager.look(false)));
            }
        }
        findings.extend(policy::look());
        self.tell(&findings, healthy.as_deref())
    }

    fn tell(&self, findings: &[Finding], healthy: Option<&str>) -> anyhow::Result<ExitCode> {
        let mut out = io::stdout().lock();
        if self.json {
            for finding in findings {
                writeln!(out, "{}", finding.to_json())?;
            }
        } else {
            let colours = Colours::of_terminal();
            for finding in findings {
                finding.write(&mut out, &colours)?;
            }
            write!(out, "{}", healthy.map(|words| format!("{words}\n")).unwrap_or_default())?;
        }
        let wrong = findings.iter().filter(|finding| finding.severity == Severity::Wrong).count();
        if wrong == 0 && healthy.is_some() {
            if !self.json {
                writeln!(out, "nothing is wrong")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        if !self.json {
            let things = if wrong == 1 { "thing is" } else { "things are" };
            writeln!(out, "{wrong} {things} wrong")?;
        }
        Ok(ExitCode::from(crate::REFUSED))
    }
}

impl Finding {
    fn write(&self, out: &mut impl Write, colours: &Colours) -> io::Result<()> {
        let Colours { wrong, note, end } = colours;
        let (colour, mark) = match self.severity {
            Severity::Wrong => (wrong, "wrong"),
            Severity::Note => (note, "note"),
        };
        writeln!(out, "{colour}{mark:<5}{end}  {}", plain(&self.what))?;
        writeln!(out, "       {}", plain(&self.why))?;
        writeln!(out, "  do   {}\n", plain(&self.advice))
    }

    fn to_json(&self) -> String {
        let severity = match self.severity {
            Severity::Wrong => "wrong",
            Severity::Note => "note",
        };
        let Self { what, why, advice, .. } = self;
        json!({ "severity": severity, "what": what, "why": why, "do": advice }).to_string()
    }
}

/// What a terminal is told to write in colours, and nobody else.
struct Colours {
    wrong: &'static str,
    note: &'static str,
    end: &'static str,
}

impl Colours {
    fn of_terminal() -> Self {
        let is_unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !is_unwanted {
            return Self { wrong: "\u{1b}[31m", note: "\u{1b}[33m", end: "\u{1b}[0m" };
        }
        Self { wrong: "", note: "", end: "" }
    }
}

/// What is odd about where the environment says the socket is.
fn variable(socket: &Path, is_named: bool) -> Option<Finding> {
    let set = env::var_os("FDSTASH_SOCKET").filter(|value| !value.is_empty() && !is_named)?;
    if Path::new(&set).is_relative() {
        return Some(Finding::wrong(
            format!("FDSTASH_SOCKET is {}, which is no absolute path", socket.display()),
            "which daemon is meant depends on the directory in which a program runs",
            "export FDSTASH_SOCKET with the whole path, or unset it",
        ));
    }
    // Otherwise what is said below of that socket puzzles who has forgotten the variable.
    (!socket.exists()).then(|| {
        Finding::note(
            format!("FDSTASH_SOCKET is {}, and nothing is there", socket.display()),
            "it is used in place of the user's own and of the system's stash",
            "unset FDSTASH_SOCKET",
        )
    })
}

fn not_ours(socket: &Path, error: &fdstash::Error) -> Finding {
    let error = anyhow::Error::msg(error.to_string());
    Finding::wrong(
        format!("what listens at {} does not answer as fdstashd does: {error:#}", socket.display()),
        "it may be another program, or another version that has nothing in common with this one",
        "compare `fdstash --version` and `fdstashd --version`, and see what listens: ss -xlp",
    )
}
