//! Somebody who reads a page of the documents, and does what it says.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    Block, Daemon, Group, Page, SOON, Systemd, Tried, below, install_script, is_root, program,
    skipped,
};

/// How long the commands of a block may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs each block as its page's shell goes on to the next. What a block fails at, or leaves unset, ends it.
const SHELL: &str = r#"set -euo pipefail
while read -r block; do
    . "$block" </dev/null >"$block.said" 2>&1
    : >"$block.done"
done"#;

/// Builds nothing: before the tests all is built, in their own profile, to which `target/release` leads.
const CARGO: &str = r#"#!/bin/sh
case "$*" in
    "build --release --package fdstashd "* | "rustc --release --package fdstash "*) ;;
    "build --release --examples "*) ;;
    *) echo "cargo $*: this is not built" >&2; exit 1 ;;
esac
"#;

/// Who runs the commands of a page is root already, and may have no sudo.
const SUDO: &str = "#!/bin/sh\nexec \"$@\"\n";

/// A reader of one page: a shell in a folder of its own, which looks as if the source had just been cloned
/// there, with the programs in its PATH and a daemon to talk to; and a systemd, where the page wants one.
#[derive(Debug)]
pub struct Reader {
    // Ends first: what it keeps can be what somebody in the shell waits for.
    _daemon: Daemon,
    shell: Group,
    blocks: usize,
    // Where the last block writes.
    said: PathBuf,
    systemd: Option<Systemd>,
    bare_systemd: Option<Systemd>,
    folder: TempDir,
}

impl Reader {
    /// One who has all that the page needs; none, where that is not here.
    #[must_use]
    pub fn of(page: &Page) -> Option<Self> {
        if let Some(lacking) = page.needs.iter().find(|program| !is_here(program)) {
            skipped(&format!("{} takes {lacking}", page.path));
            return None;
        }
        let folder = tempfile::Builder::new().prefix("book-").tempdir();
        let folder = folder.expect("a folder can be made");
        lay_out(folder.path());
        let daemon = Daemon::spawn();
        let shell = Group::spawn(
            shell()
                .args(["bash", "-c", SHELL])
                .current_dir(folder.path().join("home"))
                .env("PATH", path(&folder.path().join("bin")))
                .env("CARGO", folder.path().join("bin/cargo"))
                .env("FDSTASH_SOCKET", daemon.socket())
                // A make that runs the tests tells its own children of itself.
                .env_remove("MAKEFLAGS")
                .env_remove("MAKELEVEL")
                .env_remove("CARGO_TARGET_DIR")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::inherit()),
        );
        let said = PathBuf::new();
        Some(Self {
            shell,
            blocks: 0,
            said,
            systemd: None,
            bare_systemd: None,
            _daemon: daemon,
            folder,
        })
    }

    /// Does what a block says.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn does(&mut self, block: &Block) {
        match &block.tried {
            Tried::Shell => self.runs(block, Waits::UntilItEnds),
            Tried::Where(program) if !is_here(program) => {
                skipped(&format!("{} takes {program}", block.place));
            }
            Tried::Where(_) => self.runs(block, Waits::UntilItEnds),
            Tried::Refused => self.runs(block, Waits::UntilItFails),
            Tried::Background => self.runs(block, Waits::Not),
            Tried::InSystemd => self.runs_in(block, Which::Installed, true),
            Tried::RefusedInSystemd => self.runs_in(block, Which::Installed, false),
            Tried::ToInstall => self.runs_in(block, Which::Bare, true),
            Tried::File(path) => self.writes(path, &block.text),
            Tried::Said => self.has_seen(block),
            Tried::RanBy(_) => {}
            Tried::Untold => panic!("{}: nothing says how it is tried", block.place),
        }
    }

    /// Has the shell run a block.
    fn runs(&mut self, block: &Block, waits: Waits) {
        self.blocks += 1;
        let file = self.folder.path().join(format!("block{}", self.blocks));
        let [text, said, done] = ["text", "said", "done"].map(|it| file.with_extension(it));
        fs::write(&text, self.here(&block.text)).expect("a file can be made");
        let line = match waits {
            Waits::UntilItEnds => format!(". {}\n", text.display()),
            Waits::UntilItFails => format!("if . {}; then exit 1; fi\n", text.display()),
            // Not the shell's own child, whose number would be in $!.
            Waits::Not => {
                let ended = self.folder.path().join("ended");
                let tell =
                    format!("trap '[ $? = 0 ] || echo {} >>{}' EXIT", block.place, ended.display());
                format!("( ( {tell}; . {} ) & )\n", text.display())
            }
        };
        fs::write(&file, line).expect("a file can be made");
        let shell = self.shell.first().stdin.as_mut().expect("it is piped");
        writeln!(shell, "{}", file.display()).expect("the shell reads");

        let begun = Instant::now();
        loop {
            if done.exists() {
                break;
            }
            let has_failed = self.shell.first().try_wait().is_ok_and(|ended| ended.is_some());
            let is_late = begun.elapsed() > PATIENCE;
            let what = if has_failed { "failed" } else { "has not ended" };
            let text = fs::read_to_string(&said).unwrap_or_default();
            assert!(!has_failed && !is_late, "{}: {what}\n{}{text}", block.place, block.text);
            thread::sleep(Duration::from_millis(2));
        }
        self.said = said;
    }

    /// Has a block run in a systemd.
    fn runs_in(&mut self, block: &Block, which: Which, works: bool) {
        let (systemd, begin) = match which {
            Which::Installed => (&mut self.systemd, "cd /root".to_owned()),
            Which::Bare => (&mut self.bare_systemd, format!("{}cd {SOURCE}", environment())),
        };
        if systemd.is_none() {
            *systemd = which.boot();
        }
        let Some(systemd) = systemd else { return };
        let line = format!("set -eu\nexec 2>&1\n{begin}\n{}", block.text);
        let output = systemd.run(&line);
        let said = String::from_utf8_lossy(&output.stdout);
        let worked = output.status.success();
        assert!(worked == works, "{}: {}\n{}{said}", block.place, output.status, block.text);
        self.said = self.folder.path().join("said");
        fs::write(&self.said, &*said).expect("a file can be made");
    }

    /// Writes a block down as a file: beside where the shell began, or in the systemd.
    fn writes(&mut self, path: &str, text: &str) {
        if !path.starts_with('/') {
            let file = self.folder.path().join("home").join(path);
            return fs::write(file, self.here(text)).expect("a file can be made");
        }
        if self.systemd.is_none() {
            self.systemd = Which::Installed.boot();
        }
        let Some(systemd) = &self.systemd else { return };
        let file = systemd.path(path);
        fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("it can be made");
        fs::write(file, text).expect("a file can be made");
    }

    /// Sees that the last block has written these lines, in this order; others may stand between them.
    fn has_seen(&self, block: &Block) {
        let mut said = String::new();
        let deadline = Instant::now() + SOON;
        // What goes on in the background may not have written it yet.
        while Instant::now() < deadline {
            said = fs::read_to_string(&self.said).unwrap_or_default();
            let mut lines = said.lines();
            if block.text.lines().all(|line| lines.any(|said| is_like(line, said))) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("{}: this is not what was written:\n{}but:\n{said}", block.place, block.text);
    }

    /// A text, with what it says of /tmp said of a folder that nobody else uses.
    fn here(&self, text: &str) -> String {
        let own = format!("{}/", self.folder.path().join("tmp").display());
        let mut parts = text.split("/tmp/");
        let mut here = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            // As in /var/tmp/.
            let is_below = here.ends_with(|letter: char| letter.is_alphanumeric());
            here += if is_below { "/tmp/" } else { &own };
            here += part;
        }
        here
    }

    /// Ends, when the page has.
    ///
    /// # Panics
    ///
    /// If a command in the background has failed meanwhile.
    pub fn ends(self) {
        let failed = fs::read_to_string(self.folder.path().join("ended")).unwrap_or_default();
        assert_eq!(failed, "", "these have failed in the background");
    }
}

/// Whether to wait for the end of a block.
enum Waits {
    UntilItEnds,
    UntilItFails,
    Not,
}

/// Which systemd.
#[derive(Clone, Copy)]
enum Which {
    Installed,
    Bare,
}

/// Where the source is in a systemd where nothing is installed.
const SOURCE: &str = "/root/fdstash";

impl Which {
    fn boot(self) -> Option<Systemd> {
        match self {
            Self::Bare => Systemd::boot_with(|tree| {
                copy_source(&tree.join(&SOURCE[1..]));
                shims(&tree.join("usr/local/bin"));
            }),
            Self::Installed => {
                let systemd = Systemd::boot()?;
                systemd.works("systemd-sysusers && ldconfig");
                systemd.works("systemctl enable --now --quiet fdstashd.socket fdstashd.service");
                Some(systemd)
            }
        }
    }
}

/// Whether a program of other people's is here, or the right to be root.
fn is_here(program: &str) -> bool {
    if program == "root" {
        return is_root();
    }
    let mut need = Command::new(below("tests/need"));
    need.args(["-n", program]).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A folder as it is when the source has been cloned and built, and one for what is in /tmp.
fn lay_out(folder: &Path) {
    let home = folder.join("home");
    for made in [&home, &folder.join("tmp"), &home.join("target")] {
        fs::create_dir(made).expect("a folder can be made");
    }
    for name in ["Makefile", "tests", "python"] {
        symlink(below(name), home.join(name)).expect("a link can be made");
    }
    let built = program("fdstashd").parent().expect("a program is in a folder").to_owned();
    symlink(&built, home.join("target/release")).expect("a link can be made");
    shims(&folder.join("bin"));
}

/// Programs that stand in the place of what a reader has.
fn shims(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder can be made");
    install_script(CARGO, &folder.join("cargo"));
    install_script(SUDO, &folder.join("sudo"));
}

/// The source, and in it what make builds.
fn copy_source(to: &Path) {
    let release = to.join("target/release");
    fs::create_dir_all(&release).expect("a folder can be made");
    let files = "cd \"$0\" && tar --exclude=./target --exclude=./fuzz --exclude=./.git -c . | tar -x -C \"$1\"";
    let copied = Command::new("sh").args(["-c", files]).args([&below(""), to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "the source can be copied");
    for built in ["fdstashd", "fdstash", "libfdstash.so"] {
        fs::copy(program(built), release.join(built)).expect("a program can be copied");
    }
}

/// What a shell of this machine has in its environment to find the compiler by.
fn environment() -> String {
    let mut environment = String::new();
    for name in ["PATH", "HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        let Ok(value) = env::var(name) else { continue };
        let before = if name == "PATH" { "/usr/local/bin:" } else { "" };
        environment += &format!("export {name}='{before}{value}'\n");
    }
    environment
}

/// A shell that takes along all that it has started, also what has parted from it, where that can be.
fn shell() -> Command {
    let mut shell = Command::new("unshare");
    shell.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    let can = Command::new(shell.get_program()).args(shell.get_args()).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        shell = Command::new("env");
    }
    shell
}

/// PATH, with the reader's own programs first, and then those that are tested.
fn path(bin: &Path) -> String {
    let built = program("fdstash");
    let built = built.parent().expect("a program is in a folder").display();
    format!("{}:{built}:{}", bin.display(), env::var("PATH").unwrap_or_default())
}

/// Whether a line is like one that was written: the same words, and a number where there is one. What
/// stands for anything is "...".
fn is_like(line: &str, said: &str) -> bool {
    let (line, said) = (words(line), words(said));
    let mut parts = line.split("...");
    let Some(mut rest) = said.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last.is_some_and(|last| last.is_empty() || said.ends_with(last))
}

/// A line with one blank between its words, and the same number everywhere.
fn words(line: &str) -> String {
    let mut words = String::new();
    for letter in line.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        let letter = if letter.is_ascii_digit() { '0' } else { letter };
        if letter != '0' || !words.ends_with('0') {
            words.push(letter);
        }
    }
    words
}
