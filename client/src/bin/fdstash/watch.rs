//! `fdstash watch`.

use std::{
    io::{self, StdoutLock, Write},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Args;
use fdstash::{Change, Entry, Error, Notice, Pattern, blocking};
use jiff::{Zoned, civil::Date};

use crate::{
    Door, complain,
    words::{flags, plain, quoted},
};

/// How often a daemon that is gone is looked for.
const PAUSE: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  fdstash watch
  fdstash watch 'vm7-*'
  fdstash watch --json | jq -r 'select(.change == \"hung_up\").entry.name'

The first line says that the watch stands: the heading, or {} with --json. Each event is a line, with
the local time at which it was told. Where the daemon is gone, the watch waits for it until it is
stopped (Ctrl-C), and says so; what changed meanwhile is not told, and with --json {} comes again.

CHANGE: given; replaced, by what was given under its name; taken; closed; reopened; expired; hung_up,
since its other end was gone.";

/// Show every change as it happens
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Watch {
    /// Only names that match: '*' stands for any characters, '?' for one
    #[arg(value_parser = Pattern::new, default_value = "*", hide_default_value = true)]
    pattern: Pattern,

    /// Write one JSON object a line, as the interface has it
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut notices = door.connect()?.watch(&self.pattern)?;
        let mut lines = Lines { out: io::stdout().lock(), json: self.json, date: None };
        lines.begin()?;
        loop {
            match notices.next() {
                Some(Ok(notice)) => lines.tell(&notice)?,
                Some(Err(error)) if is_gone(&error) => {
                    lines.say("the daemon is gone: waiting for it")?;
                    notices = self.begin_anew(door)?;
                    lines.tell(&Notice::Standing)?;
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    /// Waits for as long as it takes.
    fn begin_anew(&self, door: &Door) -> Result<blocking::Watch, Error> {
        loop {
            thread::sleep(PAUSE);
            match door.connect().and_then(|client| client.watch(&self.pattern)) {
                Err(error) if is_gone(&error) => {}
                outcome => return outcome,
            }
        }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::NoDaemon { .. } | Error::ConnectionLost { .. })
}

/// What is written, a line for each event.
struct Lines {
    out: StdoutLock<'static>,
    json: bool,
    /// The day of the last line.
    date: Option<Date>,
}

impl Lines {
    /// Says that the watch stands.
    fn begin(&mut self) -> io::Result<()> {
        if self.json {
            return self.tell(&Notice::Standing);
        }
        self.date = Some(Zoned::now().date());
        self.write(&row("TIME", ["CHANGE", "NAME", "KIND", "ACCESS", "FLAGS", "TARGET"]))
    }

    fn tell(&mut self, notice: &Notice) -> io::Result<()> {
        if self.json {
            return self.write(&notice.to_json());
        }
        match notice {
            Notice::Standing => {
                self.say("the watch stands again: what changed meanwhile was not told")
            }
            Notice::Lost(count) => {
                self.say(&format!("{count} changes came too fast to be told: list anew"))
            }
            Notice::Changed { change, entry } => {
                let time = self.time()?;
                self.write(&changed(&time, *change, entry))
            }
        }
    }

    /// Says something that is no change: among the lines of people, and beside those of programs.
    fn say(&mut self, what: &str) -> io::Result<()> {
        if self.json {
            complain(format_args!("{what}"));
            return Ok(());
        }
        let time = self.time()?;
        self.write(&format!("{time}  -- {what}"))
    }

    /// The time of a line, behind a line for the day where another one has begun.
    fn time(&mut self) -> io::Result<String> {
        let now = Zoned::now();
        if self.date != Some(now.date()) {
            self.date = Some(now.date());
            self.write(&format!(
                "{}  {}",
                now.strftime("%H:%M:%S"),
                now.strftime("-- %A, %Y-%m-%d")
            ))?;
        }
        Ok(now.strftime("%H:%M:%S").to_string())
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }
}

fn changed(time: &str, change: Change, entry: &Entry) -> String {
    let (name, kind, access) =
        (quoted(entry.name.as_str()), entry.kind.as_str(), entry.access.as_str());
    let target = entry.target.as_deref().map(plain).unwrap_or_default();
    row(time, [change.as_str(), &name, kind, access, &flags(entry.flags), &target])
}

/// Nobody knows how wide the cells to come will be, so these are as wide as most are.
fn row(time: &str, cells: [&str; 6]) -> String {
    let [change, name, kind, access, flags, target] =
        cells.map(|cell| if cell.is_empty() { "-" } else { cell });
    format!("{time:<8}  {change:<8}  {name:<24}  {kind:<9}  {access:<10}  {flags:<12}  {target}")
}
