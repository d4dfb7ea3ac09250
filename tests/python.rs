//! The Python client: its own tests (`python/tests/`), against daemons that they ask for here; and its
//! installation. `PYTHON=` names another Python than the system's.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use kit::{Daemon, python, skipped};

#[test]
fn calls_do_what_the_interface_says() {
    run("test_client");
}

#[test]
fn transactions_are_committed_or_rolled_back() {
    run("test_transactions");
}

#[test]
fn a_lost_connection_is_no_error_and_nothing_happens_twice() {
    run("test_loss");
}

#[test]
fn a_cancelled_call_leaves_nothing_half_done() {
    run("test_aio");
}

#[test]
fn messages_come_in_any_pieces_and_what_is_no_message_is_refused() {
    run("test_wire");
}

#[test]
fn every_process_and_thread_has_its_own() {
    run("test_processes");
}

#[test]
fn the_programs_in_its_readme_do_what_they_say() {
    run("test_readme");
}

/// As its README says, with the build's requirement fetched before, where that can be.
#[test]
fn pip_installs_it_and_its_types_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("python");
    // With what its links lead to; and built elsewhere, so that nothing is left in the source.
    assert!(command("cp").args(["-rL"]).arg(package()).arg(&tree).status().unwrap().success());
    let venv = folder.path().join("venv");
    let made = interpreter().args(["-m", "venv"]).arg(&venv).output().unwrap();
    let python = |args: &[&str]| {
        let mut python = command(venv.join("bin/python"));
        python.args(args).current_dir(folder.path()).output().unwrap()
    };
    let fetch = ["-m", "pip", "install", "--retries=0", "setuptools>=77", "mypy==1.18.2"];
    let fetched = || python(&fetch);
    if !made.status.success() || !fetched().status.success() {
        return skipped("python3-venv, setuptools or mypy cannot be had here");
    }
    let readme = fs::read_to_string(package().join("README.md")).unwrap();
    let install =
        readme.split("```sh\npython ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    let install = install.split(' ').chain(["--no-build-isolation", "--no-index"]);

    let installed = python(&install.collect::<Vec<_>>());
    let checked = ["-m", "mypy", "--config-file=python/pyproject.toml", "python/fdstash"];
    let checked = python(&[&checked[..], &["python/tests"]].concat());
    let imported = python(&["-Ic", "import fdstash.aio"]);
    let typed = fs::read_dir(venv.join("lib"))
        .unwrap()
        .flatten()
        .any(|python| python.path().join("site-packages/fdstash/py.typed").exists());

    for done in [installed, checked, imported] {
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    }
    assert!(typed);
}

/// Runs the tests of one file, and does to daemons what they ask for. They have their answers from their
/// standard input, since what `unittest` says goes to standard error.
#[track_caller]
fn run(tests: &str) {
    let mut command = interpreter();
    command.args(["-X", "dev", "-W", "error", "-m", "unittest", "-q", tests]);
    command.current_dir(package().join("tests")).env("PYTHONPATH", package());
    command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tests = Tests(command.spawn().expect("Python can be started"));
    let mut answers = tests.0.stdin.take().expect("it is piped");
    let asked = BufReader::new(tests.0.stdout.take().expect("it is piped"));
    let mut daemons = Daemons::default();

    for line in asked.lines() {
        let answer = daemons.answer(&line.expect("it writes text"));
        writeln!(answers, "{answer}").expect("it waits for that");
    }

    let status = tests.0.wait().expect("it has ended");
    assert!(status.success(), "{status}");
}

/// The daemons that the tests have asked for and not yet ended.
#[derive(Default)]
struct Daemons {
    daemons: BTreeMap<usize, Daemon>,
    count: usize,
}

impl Daemons {
    fn answer(&mut self, line: &str) -> String {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        if verb == "spawn" {
            let builder = Daemon::builder().own_program();
            let daemon = words.fold(builder, |builder, word| builder.arg(word)).spawn();
            let socket = daemon.socket().display().to_string();
            self.count += 1;
            self.daemons.insert(self.count, daemon);
            return format!("{} {socket}", self.count);
        }
        let number = words.next().and_then(|word| word.parse().ok()).expect("a daemon's number");
        let daemon = self.daemons.get_mut(&number).expect("one of those");
        match verb {
            "kill_server" => daemon.kill_server(),
            "upgrade" => daemon.upgrade(),
            "kill" => daemon.kill(),
            "end" => drop(self.daemons.remove(&number)),
            verb => panic!("nobody can {verb:?}"),
        }
        "done".to_owned()
    }
}

/// The tests' process, which does not outlive this one's panic.
struct Tests(Child);

impl Drop for Tests {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn interpreter() -> Command {
    env::var_os("PYTHON").map_or_else(python, Command::new)
}

fn command(program: impl AsRef<Path>) -> Command {
    Command::new(program.as_ref())
}

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../python")
}
