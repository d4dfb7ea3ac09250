//! The C library: programs in C (`c/`), built with it as it is installed, against the real daemon, and
//! under valgrind.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use kit::{Daemon, SOON, install, pattern, uninstall, wait_until};
use tempfile::TempDir;

/// How long a story may take: valgrind makes it some fifty times slower.
const STORY: Duration = Duration::from_secs(300);

#[test]
fn descriptors_are_given_and_taken() {
    let library = Library::install();
    for checked in [Checked::Plainly, Checked::ByValgrind] {
        let daemon = Daemon::spawn();

        Story::begin(&library, "give", daemon.socket(), checked).ends_well();

        assert_eq!(daemon.client().list(&pattern("*")).unwrap(), []);
    }
}

#[test]
fn files_are_opened_out_of_the_stash() {
    let library = Library::install();
    for checked in [Checked::Plainly, Checked::ByValgrind] {
        let daemon = Daemon::spawn();

        Story::begin(&library, "open", daemon.socket(), checked).ends_well();

        assert_eq!(daemon.client().list(&pattern("*")).unwrap(), []);
    }
}

#[test]
fn one_file_is_opened_by_several_processes_at_once() {
    let daemon = Daemon::spawn();

    Story::begin(&Library::install(), "crowd", daemon.socket(), Checked::Plainly).ends_well();

    assert_eq!(daemon.client().list(&pattern("*")).unwrap(), []);
}

#[test]
fn a_file_is_opened_again_or_is_as_it_was() {
    let library = Library::install();
    for checked in [Checked::Plainly, Checked::ByValgrind] {
        let mut daemon = Daemon::spawn();
        let mut story = Story::begin(&library, "reopen", daemon.socket(), checked);

        for _ in 0..10 {
            story.comes_to("twenty rounds");
            daemon.kill_server();
        }
        story.comes_to("kill all of it");
        daemon.kill();
        story.goes_on();

        story.ends_well();
    }
}

#[test]
fn a_daemon_that_is_killed_is_no_error_and_one_that_is_gone_is_told() {
    let library = Library::install();
    for checked in [Checked::Plainly, Checked::ByValgrind] {
        let mut daemon = Daemon::spawn();
        let mut story = Story::begin(&library, "death", daemon.socket(), checked);

        story.comes_to("kill the server");
        daemon.kill_server();
        story.goes_on();
        for _ in 0..15 {
            story.comes_to("twenty rounds");
            daemon.kill_server();
        }
        story.comes_to("kill all of it");
        daemon.kill();
        story.goes_on();

        story.ends_well();
    }
}

#[test]
fn a_broken_pipe_is_no_signal() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("stash");
    let listener = UnixListener::bind(&socket).unwrap();
    let library = Library::install();
    let mut story = Story::begin(&library, "pipe", &socket, Checked::Plainly);

    let (stream, _) = listener.accept().unwrap();
    drop(listener);
    story.comes_to("read no more");
    stream.shutdown(Shutdown::Read).unwrap();
    story.goes_on();
    story.comes_to("sending");
    // It could not send, and waits for the daemon's reason.
    story.waits_or_ends();
    drop(stream);

    story.ends_well();
}

#[test]
fn children_of_a_fork_use_it_while_their_parent_does() {
    let library = Library::install();
    for checked in [Checked::Plainly, Checked::ByValgrind] {
        let daemon = Daemon::spawn();

        Story::begin(&library, "fork", daemon.socket(), checked).ends_well();

        assert_eq!(daemon.client().list(&pattern("*")).unwrap(), []);
        wait_until(SOON, || daemon.statistics().connections == 1);
    }
}

#[test]
fn a_child_of_many_threads_can_use_it() {
    let library = Library::install();
    for checked in [Checked::Plainly, Checked::ByValgrind] {
        let daemon = Daemon::spawn();

        Story::begin(&library, "threads", daemon.socket(), checked).ends_well();

        assert_eq!(daemon.client().list(&pattern("*")).unwrap(), []);
    }
}

#[test]
fn a_process_without_room_loses_nothing() {
    let daemon = Daemon::spawn();

    // Valgrind takes descriptors above the limit for itself, so the kernel finds room with it.
    Story::begin(&Library::install(), "room", daemon.socket(), Checked::Plainly).ends_well();

    assert_eq!(daemon.client().list(&pattern("*")).unwrap(), []);
}

#[test]
fn the_header_is_cpp_as_well() {
    let Ok(version) = Command::new("g++").arg("--version").output() else {
        return println!("skipped: g++ cannot be run here");
    };
    assert!(version.status.success());
    let daemon = Daemon::spawn();
    let library = Library::install();

    for story in ["give", "open"] {
        let program = library.compile("g++", &["-x", "c++", "-std=c++11"], story);

        Story::run(&library, &program, daemon.socket(), Checked::Plainly).ends_well();
    }
}

#[test]
fn the_program_in_the_readme_does_what_it_says() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let program = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let daemon = Daemon::spawn();
    let library = Library::install();
    let source = daemon.path("disk.c");
    fs::write(&source, program).unwrap();
    let program = library.compile_file("cc", &["-std=c99"], &source);
    let run = |socket: &Path| {
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", library.tree.path().join("usr/local/lib"));
        command.env("FDSTASH_SOCKET", socket).arg(daemon.path("disk")).output().unwrap()
    };

    let done = run(daemon.socket());
    let again = run(daemon.socket());
    let nobody = run(&daemon.path("none"));

    for done in [done, again] {
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.ends_with(" is past the page cache\n"), "{done:?}");
    }
    assert!(!nobody.status.success() && nobody.stdout.is_empty());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no daemon can be reached"));
    let entries = daemon.client().list(&pattern("*")).unwrap();
    assert_eq!(entries.len(), 1);
    assert!(entries[0].flags.contains(fdstash::Flags::DIRECT));
}

#[test]
fn what_is_installed_for_c_is_found_and_removed() {
    let library = Library::install();
    let files = || {
        let below = |path: &str| library.tree.path().join("usr/local").join(path);
        [
            "lib/libfdstash.so",
            "lib/libfdstash.so.0",
            "lib/pkgconfig/fdstash.pc",
            "include/fdstash.h",
        ]
        .map(|path| fs::symlink_metadata(below(path)).is_ok())
    };
    assert_eq!(files(), [true; 4]);

    let version = library.pkg_config("--modversion");
    uninstall(library.tree.path());

    assert_eq!(version, [env!("CARGO_PKG_VERSION")]);
    assert_eq!(files(), [false; 4]);
}

/// The library, installed below a folder of its own.
struct Library {
    tree: TempDir,
}

impl Library {
    fn install() -> Self {
        let tree = tempfile::tempdir().expect("a folder can be made");
        install(tree.path(), &[]);
        Self { tree }
    }

    /// Builds a story, and tells where the program is.
    fn compile(&self, compiler: &str, flags: &[&str], story: &str) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(story);
        self.compile_file(compiler, flags, &source.with_extension("c"))
    }

    fn compile_file(&self, compiler: &str, flags: &[&str], source: &Path) -> PathBuf {
        let program = self.tree.path().join("program");
        let mut compile = Command::new(compiler);
        compile.args(flags).args(["-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"]);
        compile.arg(source).args(self.pkg_config("--cflags")).args(self.pkg_config("--libs"));
        let output = compile.arg("-o").arg(&program).output().expect("a compiler can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program
    }

    fn pkg_config(&self, question: &str) -> Vec<String> {
        let tree = self.tree.path();
        let output = Command::new("pkg-config")
            .args([question, "fdstash"])
            .env("PKG_CONFIG_LIBDIR", tree.join("usr/local/lib/pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", tree)
            .output()
            .expect("pkg-config can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer = String::from_utf8(output.stdout).expect("it writes text");
        answer.split_whitespace().map(str::to_owned).collect()
    }
}

/// Who looks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checked {
    Plainly,
    ByValgrind,
}

/// A program that runs, in a folder of its own.
struct Story {
    child: Child,
    said: BufReader<ChildStdout>,
    checked: Checked,
    folder: TempDir,
}

impl Story {
    fn begin(library: &Library, story: &str, socket: &Path, checked: Checked) -> Self {
        let program = library.compile("cc", &["-std=c99"], story);
        Self::run(library, &program, socket, checked)
    }

    fn run(library: &Library, program: &Path, socket: &Path, checked: Checked) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut command = match checked {
            Checked::Plainly => Command::new(program),
            Checked::ByValgrind => {
                let mut valgrind = Command::new("valgrind");
                valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
                valgrind.args(["--track-fds=yes", "--log-file=valgrind.%p"]).arg(program);
                valgrind
            }
        };
        command.env("LD_LIBRARY_PATH", library.tree.path().join("usr/local/lib"));
        command.env("FDSTASH_SOCKET", socket).current_dir(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, said, checked, folder }
    }

    /// Waits until it says so.
    #[track_caller]
    fn comes_to(&mut self, place: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it writes text");
        assert_eq!(line.trim_end(), place);
    }

    fn goes_on(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(b"\n").expect("it waits for that");
    }

    /// Waits until it waits for something itself.
    fn waits_or_ends(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        wait_until(SOON, || {
            let stat = fs::read_to_string(&stat).expect("it is our child");
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['S', 'Z']))
        });
    }

    /// Waits for its end, which must be a good one; and so in valgrind's eyes.
    #[track_caller]
    fn ends_well(mut self) {
        wait_until(STORY, || self.child.try_wait().is_ok_and(|ended| ended.is_some()));
        let status = self.child.wait().expect("it has ended");
        let seen = self.seen();
        assert!(status.success(), "{status}\n{seen}");
        if self.checked == Checked::ByValgrind {
            assert!(seen.contains("FILE DESCRIPTORS"), "{seen}");
            let mut lines = seen.lines().zip(seen.lines().skip(1));
            let is_own = |(line, next): (&str, &str)| {
                line.contains("== Open ") && !next.contains("<inherited from parent>")
            };
            assert!(!lines.any(is_own), "{seen}");
        }
    }

    /// What valgrind has said of it.
    fn seen(&self) -> String {
        let log = self.folder.path().join(format!("valgrind.{}", self.child.id()));
        fs::read_to_string(log).unwrap_or_default()
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
