//! `fdstash completions`, and `fdstash complete`, which the shells' functions call: what a word may
//! become. Every argument of the type [`Name`], [`Pattern`] or [`Choice`] is completed with what the daemon
//! keeps, and so is what stands behind the last `=` where a value's name ends in `=NAME`; a new command
//! needs to do nothing for that.

use std::{
    any::TypeId,
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::{Arg, Args, Command, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    engine::{ArgValueCompleter, complete},
};
use fdstash::{Entry, Name, Pattern};

use crate::{Door, chosen::Choice, help, run::Wanted, words::plain};

/// Nobody who has pressed a key waits longer for the daemon than this.
const PATIENCE: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  # bash, for this user (`make install` and the package do it for all):
  mkdir -p ~/.local/share/bash-completion/completions
  fdstash completions bash > ~/.local/share/bash-completion/completions/fdstash
  # bash, for this shell alone:
  . <(fdstash completions bash)
  # zsh, into a folder of $fpath:
  fdstash completions zsh > ~/.zfunc/_fdstash
  fdstash completions fish > ~/.config/fish/completions/fdstash.fish

Names of entries are asked of the daemon that --socket on the line says, or FDSTASH_SOCKET. Where
it does not answer at once, there are none.";

/// Write the script with which a shell completes commands, options and names of entries
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// For which shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let script = match self.shell {
            Shell::Bash => include_str!("completions/fdstash.bash"),
            Shell::Zsh => include_str!("completions/_fdstash"),
            Shell::Fish => include_str!("completions/fdstash.fish"),
        };
        io::stdout().write_all(script.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Write what the last of these words may become
///
/// One a line, and behind a tab what it is. A line that begins with a tab says in place of all others
/// behind how many words a command line of its own begins.
#[derive(Args)]
pub(crate) struct Complete {
    /// How the words are quoted, and are to be
    shell: Shell,

    /// The line up to the cursor
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

impl Complete {
    /// Complains of nothing: it would be in the midst of what somebody writes.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let quoting = Quoting::of(self.shell, self.words.last());
        let words = match self.shell {
            // As bash hands them out: as they were written.
            Shell::Bash => self.words.iter().map(|word| unquoted(word)).collect(),
            Shell::Zsh | Shell::Fish => self.words,
        };
        let mut out = io::stdout().lock();
        if let Some(before) = words_before_command(&words) {
            writeln!(out, "\t{before}")?;
            return Ok(ExitCode::SUCCESS);
        }
        for (value, help) in candidates(words) {
            out.write_all(&quoting.quoted(&value))?;
            match help {
                Some(help) => writeln!(out, "\t{help}")?,
                None => writeln!(out)?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What the last word may become, and what each is.
fn candidates(mut words: Vec<OsString>) -> Vec<(Vec<u8>, Option<String>)> {
    let Some(last) = words.last_mut() else { return Vec::new() };
    let (typed, home) = (last.clone(), at_home(last));
    let known = Known { socket: socket(&words), said: words.iter().cloned().collect() };
    let mut command = completing(help::command().disable_help_subcommand(true), &known);
    let place = words.len() - 1;
    let here = env::current_dir().ok();
    let found = complete(&mut command, words, place, here.as_deref()).unwrap_or_default();
    let mut shown: Vec<_> =
        found.into_iter().filter(|candidate| !candidate.is_hide_set()).collect();
    // An option is no answer to a word that has not begun as one, where there is another.
    let is_option =
        |candidate: &CompletionCandidate| candidate.get_value().as_bytes().starts_with(b"-");
    if !typed.as_bytes().starts_with(b"-") && shown.iter().any(|candidate| !is_option(candidate)) {
        shown.retain(|candidate| !is_option(candidate));
    }
    let value = |candidate: &CompletionCandidate| {
        let value = candidate.get_value().as_bytes();
        match home.as_ref().and_then(|home| value.strip_prefix(home.as_slice())) {
            Some(below) => [b"~", below].concat(),
            None => value.to_vec(),
        }
    };
    let help = |candidate: &CompletionCandidate| {
        let help = candidate.get_help().map(ToString::to_string)?;
        help.lines().next().map(plain)
    };
    shown.iter().map(|candidate| (value(candidate), help(candidate))).collect()
}

/// Puts the user's folder in the place of a `~` before a path, and tells which it is.
fn at_home(word: &mut OsString) -> Option<Vec<u8>> {
    let home = env::home_dir()?.into_os_string().into_vec();
    let below = word.as_bytes().strip_prefix(b"~").filter(|below| below.starts_with(b"/"))?;
    *word = OsString::from_vec([home.as_slice(), below].concat());
    Some(home)
}

/// What the line says already.
#[derive(Clone)]
struct Known {
    socket: Option<PathBuf>,
    said: BTreeSet<OsString>,
}

/// The command, with names asked of the daemon wherever there is one to be said.
fn completing(command: Command, known: &Known) -> Command {
    let completing_arg = |arg: Arg| {
        let known = known.clone();
        match says_names(&arg) {
            Some(Names::Alone) => {
                arg.add(ArgValueCompleter::new(move |current: &OsStr| names(current, &known)))
            }
            Some(Names::Last) => arg.add(ArgValueCompleter::new(move |current: &OsStr| {
                let bytes = current.as_bytes();
                let begin = bytes.iter().rposition(|byte| *byte == b'=').map_or(0, |at| at + 1);
                let (before, name) = bytes.split_at(begin);
                let found = names(OsStr::from_bytes(name), &known).into_iter();
                found.map(|name| name.add_prefix(OsStr::from_bytes(before))).collect()
            })),
            None => arg,
        }
    };
    command.mut_args(completing_arg).mut_subcommands(|verb| completing(verb, known))
}

/// Where in an argument the name of an entry stands.
enum Names {
    Alone,
    /// Behind the last `=`.
    Last,
}

fn says_names(arg: &Arg) -> Option<Names> {
    let of = arg.get_value_parser().type_id();
    let types = [
        TypeId::of::<Name>(),
        TypeId::of::<Pattern>(),
        TypeId::of::<Choice>(),
        TypeId::of::<Wanted>(),
    ];
    if types.iter().any(|of_names| of == *of_names) {
        return Some(Names::Alone);
    }
    let name = arg.get_value_names()?.last()?;
    (name.ends_with("=NAME") || name.ends_with("=]NAME")).then_some(Names::Last)
}

/// The entries whose names begin so, but those that the line names already.
fn names(current: &OsStr, known: &Known) -> Vec<CompletionCandidate> {
    let entries = entries(known.socket.clone());
    let fits = |entry: &&Entry| {
        let name = OsStr::new(entry.name.as_str());
        name.as_bytes().starts_with(current.as_bytes())
            && (name == current || !known.said.contains(name))
    };
    let candidate = |entry: &Entry| {
        let target = entry.target.as_deref().map(plain).unwrap_or_default();
        let what = format!("{} {target}", entry.kind.as_str());
        CompletionCandidate::new(entry.name.as_str()).help(Some(what.trim_end().to_owned().into()))
    };
    entries.iter().filter(fits).map(candidate).collect()
}

/// What the daemon keeps, if it says so in time: a daemon that is stopped or starting answers later, and
/// this process ends without it.
fn entries(socket: Option<PathBuf>) -> Vec<Entry> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let all = Pattern::new("*").ok();
        let mut client = Door(socket).connect().ok();
        let entries = client.as_mut().zip(all).and_then(|(client, all)| client.list(&all).ok());
        let _ = sender.send(entries.unwrap_or_default());
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_default()
}

/// What `--socket` says on the line, before its `--`.
fn socket(words: &[OsString]) -> Option<PathBuf> {
    let mut words = words.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        let said = match word.as_bytes().strip_prefix(b"--socket") {
            Some(b"") => words.next().cloned(),
            Some([b'=', path @ ..]) => Some(OsString::from_vec(path.to_vec())),
            Some(_) | None => None,
        };
        if let Some(mut said) = said {
            at_home(&mut said);
            return Some(said.into());
        }
    }
    None
}

/// How many words stand before a COMMAND of its own, if the last word is part of one.
fn words_before_command(words: &[OsString]) -> Option<usize> {
    let before = words.iter().position(|word| word == "--")? + 1;
    let mut command = help::command();
    for word in words.iter().take(before).skip(1) {
        if let Some(verb) = command.find_subcommand(word) {
            command = verb.clone();
        }
    }
    let runs_a_command = command.get_positionals().any(Arg::is_last_set);
    (runs_a_command && before < words.len()).then_some(before)
}

/// How a word is to be written.
enum Quoting {
    /// Anything that a shell would take for its own, behind a backslash.
    Backslashes,
    /// As it is: the shell quotes it, or it stands in quotes.
    AsItIs,
}

impl Quoting {
    fn of(shell: Shell, word: Option<&OsString>) -> Self {
        let quotes = word.is_some_and(|word| {
            word.as_bytes().starts_with(b"'") || word.as_bytes().starts_with(b"\"")
        });
        match shell {
            Shell::Bash if !quotes => Self::Backslashes,
            Shell::Bash | Shell::Zsh | Shell::Fish => Self::AsItIs,
        }
    }

    fn quoted(&self, value: &[u8]) -> Vec<u8> {
        let is_safe = |byte: &u8| {
            byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"_-./=+,%@:~".contains(byte)
        };
        match self {
            Self::AsItIs => value.to_vec(),
            Self::Backslashes => {
                let quoted = value.iter().flat_map(|byte| match is_safe(byte) {
                    true => vec![*byte],
                    false => vec![b'\\', *byte],
                });
                quoted.collect()
            }
        }
    }
}

/// A word of bash's, as the command would get it. What bash would put in place of `$` is not known here.
fn unquoted(word: &OsStr) -> OsString {
    let (mut out, mut quote) = (Vec::new(), None);
    let mut bytes = word.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (None, b'\\') => out.extend(bytes.next()),
            (None, b'\'' | b'"') => quote = Some(byte),
            (Some(open), _) if open == byte => quote = None,
            (Some(b'"'), b'\\') => {
                let next = bytes.next();
                let is_special = next.is_some_and(|next| b"\"\\$`".contains(&next));
                out.extend((!is_special).then_some(b'\\').into_iter().chain(next));
            }
            (_, byte) => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_on_the_line_is_found() {
        for (line, expected) in [
            (vec!["fdstash", "close", "--socket", "/a", ""], Some("/a")),
            (vec!["fdstash", "--socket=/a", "close", ""], Some("/a")),
            (vec!["fdstash", "close", ""], None),
            (vec!["fdstash", "take", "a", "--", "x", "--socket", "/a"], None),
        ] {
            assert_eq!(socket(&words(&line)), expected.map(PathBuf::from), "{line:?}");
        }
    }

    #[test]
    fn a_command_of_its_own_begins_behind_two_dashes_where_one_is_run() {
        for (line, expected) in [
            (vec!["fdstash", "take", "a", "--", "ca"], Some(4)),
            (vec!["fdstash", "take", "a", "--", "cat", "x"], Some(4)),
            (vec!["fdstash", "--socket", "/a", "reopen", "a", "--", ""], Some(6)),
            (vec!["fdstash", "take", "a", "--"], None),
            (vec!["fdstash", "give", "a", "--", "/et"], None),
        ] {
            assert_eq!(words_before_command(&words(&line)), expected, "{line:?}");
        }
    }

    #[test]
    fn words_are_unquoted_and_quoted_as_bash_does() {
        for (written, meant) in
            [(r"a\ b", "a b"), ("'a b", "a b"), (r#""a\"b\c""#, r#"a"b\c"#), (r"a'\'b", r"a\b")]
        {
            assert_eq!(unquoted(OsStr::new(written)), meant, "{written}");
        }
        assert_eq!(Quoting::Backslashes.quoted(b"a b$*'"), br"a\ b\$\*\'");
    }

    #[test]
    fn commands_options_and_their_values_are_completed() {
        let completed = |line: &[&str]| {
            let found = candidates(words(line));
            found
                .into_iter()
                .map(|(value, _)| String::from_utf8(value).unwrap())
                .collect::<Vec<_>>()
        };

        assert_eq!(completed(&["fdstash", "ta"]), ["take"]);
        assert_eq!(completed(&["fdstash", "reopen", "--dir"]), ["--direct"]);
        assert_eq!(completed(&["fdstash", "reopen", "--direct", ""]), ["on", "off"]);
        assert_eq!(completed(&["fdstash", "complet"]), ["completions"]);
    }

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }
}
