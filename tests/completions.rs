//! Completion in real shells, on a terminal: names of entries, from the daemon, and commands.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use kit::{Daemon, file, gift, pattern, program, wait_until};
use rustix::{
    io::dup,
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
};

/// How long a shell may take to start, and to complete a word.
const LONG: Duration = Duration::from_secs(60);

/// When to begin a line again.
const AGAIN: Duration = Duration::from_secs(4);

#[test]
fn bash_completes_names_and_quotes_them() {
    completes(&Shell {
        program: &["bash", "--noprofile", "--norc"],
        load: ". <(fdstash completions bash)",
        prompt: "PS1='REA''DY> '",
    });
}

#[test]
fn zsh_completes_names_and_quotes_them() {
    completes(&Shell {
        program: &["zsh", "-f", "-i"],
        load: "autoload -Uz compinit && compinit -D -u && source <(fdstash completions zsh)",
        prompt: "PS1='REA''DY> '",
    });
}

#[test]
fn fish_completes_names_and_quotes_them() {
    completes(&Shell {
        program: &["fish", "--no-config", "--interactive"],
        load: "fdstash completions fish | source",
        prompt: "function fish_prompt; echo 'REA''DY> '; end",
    });
}

#[test]
fn where_no_daemon_is_or_answers_a_shell_is_told_nothing_and_soon() {
    let daemon = Daemon::spawn();
    daemon.client().give(&[gift("name", &File::open("/dev/null").unwrap())]).unwrap();
    let complete_words = |socket: &Path, words: &[&str]| {
        let mut command = Command::new(program("fdstash"));
        command.args(["complete", "fish", "--", "fdstash", "--socket"]);
        let output = command.arg(socket).args(words).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    let complete = |socket: &Path| complete_words(socket, &["close", ""]);
    // On a busy machine the daemon may not answer in time.
    let comes_to = |words: &[&str], expected: &str| {
        wait_until(LONG, || complete_words(daemon.socket(), words) == expected);
    };

    comes_to(&["close", ""], "name\tcharacter /dev/null\n");
    comes_to(&["list", "x", "na"], "name\tcharacter /dev/null\n");
    comes_to(&["qemu", "attach", "--image", "qcow2=n"], "qcow2=name\tcharacter /dev/null\n");
    assert!(!complete_words(daemon.socket(), &["close", "name", ""]).contains("name\t"));
    assert!(!complete(&daemon.path("none")).contains("name"));
    // One that accepts and says nothing.
    let silent = daemon.path("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    assert!(!complete(&silent).contains("name\t"));
}

#[test]
fn bash_carries_nothing_out_that_stands_in_a_name() {
    let daemon = Daemon::spawn();
    let null = File::open("/dev/null").unwrap();
    let names = ["single';touch ran;'", "double$(touch ran)`touch ran`"];
    daemon.client().give(&names.map(|name| gift(name, &null))).unwrap();
    let count = || daemon.client().list(&pattern("*")).unwrap().len();
    let mut terminal = Terminal::start(
        &Shell {
            program: &["bash", "--noprofile", "--norc"],
            load: ". <(fdstash completions bash)",
            prompt: "PS1='REA''DY> '",
        },
        &daemon,
    );

    for (quote, begin, left) in [("'", "si", 1), ("\"", "do", 0)] {
        terminal.types(&format!("fdstash close {quote}{begin}\t"), "touch ran");
        terminal.enters();
        wait_until(LONG, || count() == left);
    }

    assert!(!daemon.path("ran").exists());
}

/// A shell, what loads the completion in it, and what gives it a prompt that a test can wait for.
struct Shell<'a> {
    program: &'a [&'a str],
    load: &'a str,
    prompt: &'a str,
}

/// Completes the only name that begins so and has the command that was written carried out: what it did
/// tells whether the name was written as it is.
fn completes(shell: &Shell<'_>) {
    let daemon = Daemon::spawn();
    let null = File::open("/dev/null").expect("the test can have it");
    let gifts = ["vm7 disk's $1", "log/a", "other"].map(|name| gift(name, &null));
    daemon.client().give(&gifts).expect("the test can have it");
    let has = |name: &str| {
        let entries = daemon.client().list(&pattern("*")).expect("the test can have it");
        entries.iter().any(|entry| entry.name.as_str() == name)
    };
    let tool = daemon.path("bin/unlikely-tool");
    std::fs::create_dir(daemon.path("bin")).expect("the test can have it");
    kit::install_script("#!/bin/sh\necho ran > \"$1\"\n", &tool);
    // What it was made of, whose name begins so too.
    std::fs::remove_file(tool.with_extension("text")).expect("the test can have it");
    file(daemon.path("unlikely-file"), "");
    let mut terminal = Terminal::start(shell, &daemon);

    terminal.types("fdstash close vm\t", "$1");
    terminal.enters();
    wait_until(LONG, || !has("vm7 disk's $1"));
    terminal.types("fdstash close lo\t", "log/a");
    terminal.enters();
    wait_until(LONG, || !has("log/a"));

    terminal.types("fdstash take other -- unlikely-t\t", "unlikely-tool");
    terminal.types("fdstash take other -- unlikely-tool unlikely-f\t", "unlikely-file");
    terminal.enters();
    wait_until(LONG, || !has("other"));
    let ran = || std::fs::read_to_string(daemon.path("unlikely-file")).unwrap_or_default();
    wait_until(LONG, || ran() == "ran\n");
}

/// A terminal with a shell on it.
struct Terminal {
    shell: Child,
    keys: File,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(shell: &Shell<'_>, daemon: &Daemon) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the test can have it");
        grantpt(&master).expect("the test can have it");
        unlockpt(&master).expect("the test can have it");
        let other = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)
            .expect("the test can have it");
        let programs = program("fdstash").parent().expect("the test can have it").to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        let own = daemon.path("bin");
        // A session of its own on this terminal.
        let mut command = Command::new("setsid");
        command.arg("--ctty").args(shell.program);
        command.env("PATH", format!("{}:{}:{path}", own.display(), programs.display()));
        command
            .env("FDSTASH_SOCKET", daemon.socket())
            .env("TERM", "dumb")
            .env("HOME", daemon.path(""));
        command.env("XDG_CONFIG_HOME", daemon.path("")).env("XDG_DATA_HOME", daemon.path(""));
        command.current_dir(daemon.path(""));
        command
            .stdin(dup(&other).expect("the test can have it"))
            .stdout(dup(&other).expect("the test can have it"))
            .stderr(other);
        let child = command.spawn().expect("the test can have it");
        let (keys, mut screen) =
            (File::from(dup(&master).expect("the test can have it")), File::from(master));
        let shown = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&shown);
        thread::spawn(move || {
            let mut part = [0; 4096];
            // It fails when the shell is gone.
            while let Ok(count @ 1..) = screen.read(&mut part) {
                let text = String::from_utf8_lossy(part.get(..count).unwrap_or_default());
                seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_str(&text);
            }
        });
        let mut terminal = Self { shell: child, keys, shown };
        terminal.writes(&format!("{}\n{}\n", shell.load, shell.prompt));
        // Not the line that sets it, but what it sets.
        terminal.waits_for("READY> ");
        terminal
    }

    /// Types a line, of which the last key completes, and waits until this was shown since. On a busy
    /// machine the daemon may not answer in time, or the shell throw away what comes before it listens:
    /// whoever sits there would begin the line again, and so it is done here.
    fn types(&mut self, keys: &str, shown: &str) {
        const WIPE: &str = "\x15";
        let line = format!("{WIPE}{keys}");
        self.clear();
        self.writes(&line);
        let mut began = Instant::now();
        let mut again = self.keys.try_clone().expect("the test can have it");
        wait_until(LONG, || {
            if began.elapsed() > AGAIN && !self.has_shown(shown) {
                began = Instant::now();
                again.write_all(line.as_bytes()).expect("the test can have it");
            }
            self.has_shown(shown)
        });
    }

    /// Has the line carried out, and waits until the shell asks for the next one: not for the prompt of
    /// this one, which may just be shown again.
    fn enters(&mut self) {
        self.clear();
        self.writes("; printf %s EN DED\n");
        wait_until(LONG, || {
            let shown = self.shown.lock().expect("the test can have it");
            shown.split_once("ENDED").is_some_and(|(_, next)| next.contains("READY> "))
        });
    }

    fn writes(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the test can have it");
    }

    fn clear(&self) {
        self.shown.lock().expect("the test can have it").clear();
    }

    fn waits_for(&self, text: &str) {
        wait_until(LONG, || self.has_shown(text));
    }

    /// Without the line ends and the bell of a terminal, and the shell's quotes.
    fn has_shown(&self, text: &str) -> bool {
        let shown = self.shown.lock().expect("the test can have it");
        shown.replace(['\r', '\x07', '\\', '\''], "").contains(text)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
