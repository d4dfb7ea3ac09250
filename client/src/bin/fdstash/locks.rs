//! `fdstash locks`.
//!
//! Locks of `F_OFD_SETLK` and of `flock()` belong to the open file description: they stand until the
//! last duplicate of it is closed, and what the stash keeps is one. So they outlive a program that was
//! killed, and whoever opens the file on its own is refused, though nobody uses it. Whoever holds a
//! duplicate sees them in its own `/proc/self/fdinfo`, and can free them. (`/proc/locks` tells
//! of an OFD lock neither the process nor the description.)

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use fdstash::{Handed, Name, blocking::Client};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::{
    fs::{FlockOperation, flock},
    path::DecInt,
    process::geteuid,
};

use crate::{
    Door,
    chosen::{self, Choice, choice},
    show::entry_of,
    table::{Table, terminal_width},
    words::quoted,
};

const EXAMPLES: &str = "\
Examples:
  fdstash locks vm7-disk0
  fdstash locks 'vm7-*' --json | jq .meaning
  fdstash locks vm7-disk0 --clear    # when the VMM is dead

Shown are the locks of the open file description that is kept: those of F_OFD_SETLK (ofd), which
QEMU takes, and those of flock. They stand as long as anybody has a duplicate of it, and the stash
has one: so they stay when the program that took them is killed, and nobody else can lock the file.
A program that got a description of its own (--fresh, or by a reopen) leaves none behind.

--clear frees all of them, also those that a living program relies on: see to it first that whoever
has had a duplicate is dead. That is for the user who gave the entry, and for root.

A NAME with '*' (any characters) or '?' (one character) in it is a pattern, and stands for all entries
that match: put it in quotes, so that the shell leaves it alone. One that no entry matches is an error.";

/// Show which locks stand on what is kept, and free those that a dead program has left
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Locks {
    /// Of which ones
    #[arg(required = true, value_name = "NAME", value_parser = choice)]
    names: Vec<Choice>,

    /// Write one JSON object a lock
    #[arg(long, conflicts_with = "clear")]
    json: bool,

    /// Free them all
    #[arg(long)]
    clear: bool,
}

impl Locks {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut client = door.connect()?;
        // Duplicates, which share the description, and so its locks, with what is kept.
        let names = chosen::names(&mut client, &self.names)?;
        let copies = client.copy(&names)?;
        if self.clear {
            for name in &names {
                check_giver(&mut client, name)?;
            }
            return clear(&copies);
        }
        let mut rows = Vec::new();
        for Handed { name, fd } in &copies {
            rows.push((name, locks_of(name, fd)?));
        }
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            for (name, locks) in &rows {
                for lock in locks {
                    writeln!(out, "{}", lock.to_json(name))?;
                }
            }
        } else {
            table(&rows).write(&mut out, terminal_width())?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(rows: &[(&Name, Vec<Lock>)]) -> Table {
    let mut table = Table::new(&["NAME", "KIND", "MODE", "START", "END", "MEANING"]);
    for (name, locks) in rows {
        if locks.is_empty() {
            table.push([quoted(name.as_str()), "no locks".to_owned()]);
        }
        for lock in locks {
            table.push([
                quoted(name.as_str()),
                lock.kind.as_str().to_owned(),
                lock.mode.as_str().to_owned(),
                lock.start.to_string(),
                lock.end.map_or_else(|| "EOF".to_owned(), |end| end.to_string()),
                lock.meaning().unwrap_or_default(),
            ]);
        }
    }
    table
}

/// Whether who calls may free the locks of an entry. A guard against mistakes and no wall: whoever may
/// copy an entry has the power to do so.
fn check_giver(client: &mut Client, name: &Name) -> anyhow::Result<()> {
    let giver = entry_of(client, name)?.giver;
    let own = geteuid();
    anyhow::ensure!(
        own.is_root() || own.as_raw() == giver.uid,
        "entry \"{name}\" was given by uid {}: only that user and root may free its locks",
        giver.uid
    );
    Ok(())
}

fn clear(copies: &[Handed<OwnedFd>]) -> anyhow::Result<ExitCode> {
    for Handed { name, fd } in copies {
        let before = locks_of(name, fd)?;
        free(fd, &before)
            .with_context(|| format!("the locks of entry \"{name}\" could not be freed"))?;
        let after = locks_of(name, fd)?.len();
        anyhow::ensure!(
            after == 0,
            "entry \"{name}\" has {after} new locks: the program that takes them is alive"
        );
        let mut out = io::stdout().lock();
        match before.len() {
            0 => writeln!(out, "{name}: no locks")?,
            1 => writeln!(out, "{name}: 1 lock freed")?,
            count => writeln!(out, "{name}: {count} locks freed")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn free(fd: &OwnedFd, locks: &[Lock]) -> io::Result<()> {
    if locks.iter().any(|lock| lock.kind == Kind::Ofd) {
        // A length of 0 is up to the end, however far the file grows.
        let everything = libc::flock {
            l_type: libc::F_UNLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(fd, FcntlArg::F_OFD_SETLK(&everything))?;
    }
    if locks.iter().any(|lock| lock.kind == Kind::Flock) {
        flock(fd, FlockOperation::Unlock)?;
    }
    Ok(())
}

/// The locks of the open file description, as the kernel tells whoever holds a duplicate of it.
pub(crate) fn locks_of(name: &Name, fd: impl AsFd) -> anyhow::Result<Vec<Lock>> {
    let path = format!("/proc/self/fdinfo/{}", DecInt::from_fd(fd).as_str());
    let locks = fs::read_to_string(path).map_err(anyhow::Error::from);
    let locks = locks.and_then(|fdinfo| read_locks(&fdinfo));
    locks.with_context(|| format!("the locks of entry \"{name}\" cannot be read"))
}

fn read_locks(fdinfo: &str) -> anyhow::Result<Vec<Lock>> {
    let lines = fdinfo.lines().filter_map(|line| line.strip_prefix("lock:"));
    lines.filter_map(|line| read_lock(line).transpose()).collect()
}

/// None for what belongs to a process (POSIX), and for leases.
fn read_lock(line: &str) -> anyhow::Result<Option<Lock>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let kind = match words.get(1) {
        Some(&"OFDLCK") => Kind::Ofd,
        Some(&"FLOCK") => Kind::Flock,
        Some(_) | None => return Ok(None),
    };
    // Its number, its kind, ADVISORY, its mode, the process that took it, the file, and the range.
    let strange = || format!("this kernel describes a lock otherwise: {line:?}");
    let [_, _, _, mode, _, _, start, end] = words.as_slice() else {
        anyhow::bail!(strange());
    };
    let mode = match *mode {
        "READ" => Mode::Read,
        "WRITE" => Mode::Write,
        _ => anyhow::bail!(strange()),
    };
    let start = start.parse().with_context(strange)?;
    let end = match *end {
        "EOF" => None,
        end => Some(end.parse().with_context(strange)?),
    };
    Ok(Some(Lock { kind, mode, start, end }))
}

/// A lock of an open file description.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    kind: Kind,
    mode: Mode,
    /// Its first byte.
    start: u64,
    /// Its last one, if it has any.
    end: Option<u64>,
}

/// By which system call it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ofd,
    Flock,
}

/// What others may still lock: for reading, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Write,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ofd => "ofd",
            Self::Flock => "flock",
        }
    }
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl Lock {
    /// For people, in a line.
    pub(crate) fn tell(&self) -> String {
        let end = self.end.map_or_else(|| "EOF".to_owned(), |end| end.to_string());
        let meaning = self.meaning().map(|meaning| format!(" ({meaning})")).unwrap_or_default();
        format!("{} {} {}-{end}{meaning}", self.kind.as_str(), self.mode.as_str(), self.start)
    }

    /// What it says to QEMU, which has a byte for each thing that it does to an image, and one for each
    /// that it lets nobody else do, and locks them for reading. Bytes beside each other are one lock to
    /// the kernel. The last of each was that of QEMU 6.1 and before.
    fn meaning(&self) -> Option<String> {
        const DOES: [&str; 5] =
            ["reads", "writes", "writes what is there already", "resizes", "changes the graph"];
        const LETS_NOBODY: [&str; 5] =
            ["read", "write", "write what is there already", "resize", "change the graph"];
        if (self.kind, self.mode) != (Kind::Ofd, Mode::Read) {
            return None;
        }
        let words = |base: u64, words: &'static [&'static str]| {
            let from = usize::try_from(self.start.checked_sub(base)?).ok()?;
            let to = usize::try_from(self.end?.checked_sub(base)?).ok()?;
            Some(words.get(from..=to)?.join(", "))
        };
        let does = words(100, &DOES).map(|does| format!("QEMU: {does}"));
        let lets = || words(200, &LETS_NOBODY).map(|what| format!("QEMU: lets nobody else {what}"));
        does.or_else(lets)
    }

    /// One line of JSON.
    pub(crate) fn to_json(&self, name: &Name) -> String {
        // A name is printable ASCII, which Rust and JSON quote alike; the rest are words of ours.
        let (name, kind, mode) = (name.as_str(), self.kind.as_str(), self.mode.as_str());
        let end = self.end.map(|end| format!(r#","end":{end}"#)).unwrap_or_default();
        let meaning = self.meaning().map(|words| format!(r#","meaning":"{words}""#));
        let meaning = meaning.unwrap_or_default();
        let start = self.start;
        format!(
            r#"{{"name":{name:?},"kind":"{kind}","mode":"{mode}","start":{start}{end}{meaning}}}"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locks_of_a_description_are_read_and_no_others() {
        let fdinfo = "pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t10248467\n\
            lock:\t1: FLOCK  ADVISORY  WRITE 5016 fe:00:10248467 0 EOF\n\
            lock:\t2: POSIX  ADVISORY  WRITE 5016 fe:00:10248467 10 19\n\
            lock:\t3: LEASE  ACTIVE    READ 5016 fe:00:10248467 0 EOF\n\
            lock:\t4: OFDLCK ADVISORY  READ -1 fe:00:10248467 100 101\n";

        let locks = read_locks(fdinfo).unwrap();

        let flock = Lock { kind: Kind::Flock, mode: Mode::Write, start: 0, end: None };
        assert_eq!(locks, [flock, ofd(100, 101)]);
    }

    #[test]
    fn what_is_no_file_has_no_locks() {
        for fdinfo in ["", "pos:\t0\nflags:\t02\n", "eventfd-count:\t0\nlocked:\t1\n"] {
            assert_eq!(read_locks(fdinfo).unwrap(), [], "{fdinfo:?}");
        }
    }

    #[test]
    fn a_lock_that_is_not_understood_is_not_passed_over() {
        for line in [
            "1: OFDLCK ADVISORY  READ -1 fe:00:1 100",
            "1: OFDLCK ADVISORY  BOTH -1 fe:00:1 100 101",
            "1: OFDLCK ADVISORY  READ -1 fe:00:1 -1 101",
            "1: FLOCK",
        ] {
            let error = read_locks(&format!("lock:\t{line}\n")).unwrap_err();
            assert!(format!("{error:#}").contains(line), "{error:#}");
        }
    }

    #[test]
    fn a_line_of_json_quotes_what_there_is_to_quote() {
        let name = Name::new(r#"a "b" \ 'c'?"#).unwrap();

        let of_qemu = ofd(100, 101).to_json(&name);
        let open_end = Lock { end: None, ..ofd(5, 5) }.to_json(&Name::new("a").unwrap());

        assert_eq!(
            of_qemu,
            r#"{"name":"a \"b\" \\ 'c'?","kind":"ofd","mode":"read","start":100,"end":101,"meaning":"QEMU: reads, writes"}"#
        );
        assert_eq!(open_end, r#"{"name":"a","kind":"ofd","mode":"read","start":5}"#);
    }

    #[test]
    fn qemus_bytes_are_told_in_words_and_no_others() {
        for (start, end, meaning) in [
            (100, 100, Some("QEMU: reads")),
            (101, 101, Some("QEMU: writes")),
            (100, 101, Some("QEMU: reads, writes")),
            (103, 103, Some("QEMU: resizes")),
            (201, 201, Some("QEMU: lets nobody else write")),
            (200, 201, Some("QEMU: lets nobody else read, write")),
            (203, 204, Some("QEMU: lets nobody else resize, change the graph")),
            (99, 100, None),
            (104, 105, None),
            (103, 201, None),
            (205, 205, None),
            (0, 0, None),
        ] {
            assert_eq!(ofd(start, end).meaning().as_deref(), meaning, "{start} to {end}");
        }
        assert_eq!(Lock { end: None, ..ofd(100, 100) }.meaning(), None);
        assert_eq!(Lock { mode: Mode::Write, ..ofd(100, 100) }.meaning(), None);
        assert_eq!(Lock { kind: Kind::Flock, ..ofd(100, 100) }.meaning(), None);
    }

    fn ofd(start: u64, end: u64) -> Lock {
        Lock { kind: Kind::Ofd, mode: Mode::Read, start, end: Some(end) }
    }
}
