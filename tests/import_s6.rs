//! The command `fdstash import-s6`, with a real s6-fdholder-daemon.

use std::{
    fs,
    io::Read,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use kit::{Daemon, file, identity, listed, names, only, pattern, skipped};

const MADE: &str = "a folder of its own can be written to";
const STARTED: &str = "a program that is installed can be started";

/// An s6-fdholder-daemon that lets this user do these things.
struct S6 {
    child: Child,
    socket: PathBuf,
}

impl S6 {
    fn start(folder: &Path, rights: &[&str]) -> Option<Self> {
        if Command::new("s6-fdholder-daemon").stderr(Stdio::null()).status().is_err() {
            skipped("there is no s6-fdholder-daemon (tests/need s6-fdholder-daemon)");
            return None;
        }
        let rules = folder.join("rules");
        let user = rules.join(format!("uid/{}", rustix::process::geteuid().as_raw()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(user.join("env")).expect(MADE);
        fs::write(user.join("allow"), "").expect(MADE);
        for right in rights {
            let value = if right.ends_with("REGEX") { ".\n" } else { "1\n" };
            fs::write(user.join(format!("env/S6_FDHOLDER_{right}")), value).expect(MADE);
        }
        let socket = folder.join("s6");
        // It ends with whoever has started it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "s6-fdholder-daemon", "-1", "-n", "400", "-i"]);
        command.arg(&rules).arg(&socket).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect(STARTED);
        // It writes a line when it is ready.
        let ready = child.stdout.as_mut().map(|out| out.read(&mut [0]));
        assert!(matches!(ready, Some(Ok(1))), "s6-fdholder-daemon starts");
        Some(Self { child, socket })
    }

    fn store(&self, id: &str, path: &Path, options: &[&str]) {
        let mut command = Command::new("s6-fdholder-store");
        command.args(options).arg(&self.socket).arg(id);
        let status = command.stdin(fs::File::open(path).expect("it is there")).status();
        assert!(status.expect(STARTED).success(), "s6 stores {id}");
    }

    /// The identifiers of what it holds.
    fn list(&self) -> Vec<String> {
        let output = Command::new("s6-fdholder-list").arg(&self.socket).output();
        let mut ids: Vec<_> = String::from_utf8_lossy(&output.expect(STARTED).stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        ids.sort();
        ids
    }
}

impl Drop for S6 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ALL: [&str; 4] = ["STORE_REGEX", "RETRIEVE_REGEX", "LIST", "GETDUMP"];

fn import(daemon: &Daemon, s6: &S6, args: &[&str]) -> [String; 3] {
    let mut command = daemon.command();
    command.arg("import-s6").arg(&s6.socket).args(args);
    let Output { status, stdout, stderr } = command.output().expect(STARTED);
    let [stdout, stderr] =
        [stdout, stderr].map(|text| String::from_utf8(text).expect("it writes text"));
    [status.code().unwrap_or(-1).to_string(), stdout, stderr]
}

#[test]
fn what_s6_holds_is_brought_with_its_end_and_stays_there() {
    let daemon = Daemon::spawn();
    let Some(s6) = S6::start(&daemon.path(""), &ALL) else { return };
    let [web, unix] = ["web", "unix"].map(|name| file(daemon.path(name), ""));
    s6.store("web-1", &daemon.path("web"), &["-T", "3600000"]);
    s6.store("unix:/run/x", &daemon.path("unix"), &[]);

    let [code, brought, noted] = import(&daemon, &s6, &["--prefix", "s6/"]);

    assert_eq!((code.as_str(), brought.as_str()), ("0", "brought 2\n"), "{noted}");
    assert!(noted.contains(r#""unix:/run/x" becomes "s6/unix%3A/run/x""#), "{noted}");
    let mut client = daemon.client();
    assert_eq!(listed(&mut client), ["s6/unix%3A/run/x", "s6/web-1"]);
    let entries = client.list(&pattern("*")).unwrap();
    assert_eq!(entries[0].expires_at_usec, None);
    let left = entries[1].expires_at_usec.unwrap() - entries[1].given_at_usec;
    assert!((3_500_000_000..=3_600_000_000).contains(&left), "{left} µs");
    assert_eq!(identity(only(client.copy(&names(["s6/web-1"])).unwrap())), identity(&web));
    assert_eq!(identity(only(client.copy(&names(["s6/unix%3A/run/x"])).unwrap())), identity(unix));
    assert_eq!(s6.list(), ["unix:/run/x", "web-1"]);
}

#[test]
fn what_is_there_already_is_no_obstacle_and_what_is_another_is() {
    let daemon = Daemon::spawn();
    let Some(s6) = S6::start(&daemon.path(""), &ALL) else { return };
    let _files = ["a", "b", "c"].map(|name| file(daemon.path(name), ""));
    s6.store("a", &daemon.path("a"), &[]);
    import(&daemon, &s6, &[]);
    s6.store("b", &daemon.path("b"), &[]);

    let [_, brought, _] = import(&daemon, &s6, &[]);
    assert_eq!(brought, "brought 2, 1 of which were there already\n");
    daemon.client().close(&names(["b"])).unwrap();
    s6.store("c", &daemon.path("c"), &[]);
    daemon.client().give(&[kit::gift("c", kit::null())]).unwrap();
    let [code, _, complained] = import(&daemon, &s6, &[]);

    assert_eq!(code, "1");
    assert!(complained.contains("something else stands there already"), "{complained}");
    assert_eq!(listed(&mut daemon.client()), ["a", "c"]);
    let [code, brought, _] = import(&daemon, &s6, &["b*"]);
    assert_eq!((code.as_str(), brought.as_str()), ("0", "brought 1\n"));
}

#[test]
fn more_than_s6_can_dump_is_brought_one_by_one() {
    let daemon = Daemon::spawn();
    let Some(s6) = S6::start(&daemon.path(""), &ALL) else { return };
    file(daemon.path("a"), "");
    for at in 0..260 {
        s6.store(&format!("n{at:03}"), &daemon.path("a"), &["-T", "3600000"]);
    }

    let [code, brought, noted] = import(&daemon, &s6, &[]);

    assert_eq!((code.as_str(), brought.as_str()), ("0", "brought 260\n"), "{noted}");
    assert!(noted.contains("if and when these expire was not told"), "{noted}");
    assert_eq!(listed(&mut daemon.client()).len(), 260);
}

#[test]
fn who_may_not_have_a_dump_has_what_it_may_retrieve_or_is_told_why_not() {
    let daemon = Daemon::spawn();
    let Some(s6) = S6::start(&daemon.path(""), &ALL[..3]) else { return };
    file(daemon.path("a"), "");
    s6.store("a", &daemon.path("a"), &[]);

    let [code, brought, _] = import(&daemon, &s6, &[]);
    assert_eq!((code.as_str(), brought.as_str()), ("0", "brought 1\n"));
    drop(s6);

    let other = Daemon::spawn();
    let Some(s6) = S6::start(&other.path(""), &ALL[..1]) else { return };
    let [code, _, complained] = import(&other, &s6, &[]);
    assert_eq!(code, "1");
    assert!(complained.contains("S6_FDHOLDER_LIST"), "{complained}");
}

#[test]
fn nobody_at_the_socket_and_nothing_held_are_told() {
    let daemon = Daemon::spawn();
    let Some(s6) = S6::start(&daemon.path(""), &ALL) else { return };

    let [_, _, nothing] = import(&daemon, &s6, &[]);
    let mut command = daemon.command();
    let nobody = command.args(["import-s6", "/no/s6"]).output().unwrap().stderr;
    let mut command = daemon.command();
    let stranger = command.arg("import-s6").arg(daemon.socket()).output().unwrap().stderr;

    assert!(nothing.contains("nothing to bring"), "{nothing}");
    let [nobody, stranger] = [nobody, stranger].map(|text| String::from_utf8(text).unwrap());
    assert!(nobody.contains("no s6-fdholder-daemon can be reached at /no/s6"), "{nobody}");
    assert!(stranger.contains("s6-fdholder-daemon"), "{stranger}");
}
