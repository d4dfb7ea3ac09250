//! What every help text has in common: how a command ends, and what of the environment it reads. It is
//! added here, so that no command says it on its own, nor can forget it.

use clap::{Arg, Command, CommandFactory, FromArgMatches};

use crate::Cli;

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 refused or failed, 2 called wrongly, 3 no daemon there.";

/// For those that run a COMMAND.
const EXIT_CODES_OF_COMMAND: &str = "\
Exit codes: as COMMAND ends, or 128 and the number of the signal that ended it; 126 if it could not
be run, 127 if it was not found. Where it was not to be run: 0 done, 1 refused or failed, 2 called
wrongly, 3 no daemon there.";

const ENVIRONMENT: &str = "\
Environment:
  FDSTASH_SOCKET   the daemon's socket, where --socket does not say it
  XDG_RUNTIME_DIR  where a user's own daemon is looked for
  NO_COLOR         no colours in help and error messages, be it a terminal or not";

/// The command line as it was written, or no return.
pub(crate) fn parse() -> Cli {
    // To make the help texts takes longer than most commands do, so they are made where somebody reads them.
    let matches = Cli::command().try_get_matches().unwrap_or_else(|_| command().get_matches());
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command with all that its help says.
pub(crate) fn command() -> Command {
    let mut command = Cli::command();
    // Else each of its subcommands is made when it is called for.
    command.build();
    finished(command)
}

fn finished(command: Command) -> Command {
    if is_claps_own(&command) {
        return command;
    }
    let own = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut parts = vec![own.as_str()];
    // One that ends in another way than the rest says so itself.
    if !own.contains("Exit codes:") {
        let runs_a_command = command.get_positionals().any(Arg::is_last_set);
        parts.push(if runs_a_command { EXIT_CODES_OF_COMMAND } else { EXIT_CODES });
    }
    if !own.contains("Environment:") {
        parts.push(ENVIRONMENT);
    }
    parts.retain(|part| !part.is_empty());
    let parts = parts.iter().flat_map(|part| part.split("\n\n"));
    let text = parts.map(flowing).collect::<Vec<_>>().join("\n\n");
    command.after_help(text).mut_subcommands(finished)
}

fn is_claps_own(command: &Command) -> bool {
    command.get_name() == "help"
}

/// A paragraph whose lines end where the terminal's do, not where the source's did. What is indented stays
/// as it is.
fn flowing(paragraph: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in paragraph.lines() {
        let goes_on = |last: &&mut String| {
            let is_text = |line: &str| !line.starts_with(' ') && !line.is_empty();
            is_text(last) && is_text(line)
        };
        match lines.last_mut().filter(goes_on) {
            Some(last) => {
                last.push(' ');
                last.push_str(line);
            }
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_teaches_with_examples_and_says_how_it_ends() {
        let mut all = vec![command()];
        while let Some(command) = all.pop() {
            if is_claps_own(&command) {
                continue;
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = command.get_name();
            assert!(help.contains("Examples:\n  ") || command.is_hide_set(), "{name}: {help}");
            assert!(help.contains("Exit codes: "), "{name}");
            assert!(help.contains("FDSTASH_SOCKET"), "{name}");
            assert!(command.get_about().is_some(), "{name}");
            all.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn a_paragraph_flows_and_what_is_indented_does_not() {
        assert_eq!(flowing("a\nb\n  c\n  d\ne\nf"), "a b\n  c\n  d\ne f");
    }

    #[test]
    fn the_manual_pages_and_the_reference_are_what_the_help_says() {
        let pages = fdstash_reference::command(
            command(),
            1,
            &["fdstash(1)", "fdstash-policy(5)", "org.fdstash.Stash(7)", "fdstashd(8)"],
        );

        fdstash_reference::keep("fdstash", &pages, |name| name.ends_with(".1"));
    }
}
