//! What operators see of a daemon: its log, in the journal of a real systemd and elsewhere, with an audit;
//! and its metrics, with a dashboard and alerts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fdstash::{Gift, Reopening};
use kit::{
    Cgroup, Daemon, SOON, Systemd, call, file, gift, name, names, null, only, skipped, wait_until,
};
use rustix::{
    fs::OFlags,
    process::Pid,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::{Value, json};

const START: &str =
    "systemd-sysusers && systemctl enable --now --quiet fdstashd.socket fdstashd.service";

/// A systemd with the stash running, which says much.
fn running() -> Option<Systemd> {
    let systemd = Systemd::boot()?;
    let place = systemd.path("/run/systemd/system/fdstashd.service.d");
    fs::create_dir_all(&place).expect("a folder can be made");
    let says_much = "[Service]\nExecStart=\nExecStart=/usr/local/bin/fdstashd --log debug\n";
    fs::write(place.join("log.conf"), says_much).expect("a drop-in can be written");
    systemd.works(START);
    Some(systemd)
}

/// What the journal has that matches.
fn journal(systemd: &Systemd, matches: &str) -> Vec<Value> {
    let said = systemd.works(&format!("journalctl --sync; journalctl --quiet -o json {matches}"));
    said.lines().map(|line| serde_json::from_str(line).expect("events are JSON")).collect()
}

#[test]
fn the_journal_has_events_with_their_fields() {
    let Some(systemd) = running() else { return };
    let pid = systemd.property("fdstashd.service", "MainPID");

    let ready = journal(&systemd, &format!("_SYSTEMD_UNIT=fdstashd.service FDSTASH_KEEPER={pid}"));

    let [ready] = &ready[..] else { panic!("{ready:?}") };
    assert_eq!(ready["PRIORITY"], "7");
    assert_eq!(ready["SYSLOG_IDENTIFIER"], "fdstashd");
    assert_eq!(ready["_TRANSPORT"], "journal");
    let server = ready["FDSTASH_PID"].as_str().unwrap();
    assert_eq!(ready["MESSAGE"], format!("server ready pid={server} keeper={pid}"));

    // Nor does the next server take the way to the journal for something that was left over.
    systemd.works(&format!("kill -9 {server}"));
    let killed = format!("_SYSTEMD_UNIT=fdstashd.service FDSTASH_SIGNAL=9 FDSTASH_PID={server}");
    wait_until(SOON, || !journal(&systemd, &killed).is_empty());
    let again = format!("_SYSTEMD_UNIT=fdstashd.service FDSTASH_KEEPER={pid}");
    wait_until(SOON, || journal(&systemd, &again).len() == 2);
    let again = journal(&systemd, &again);
    assert!(again.iter().all(|event| event["_TRANSPORT"] == "journal"), "{again:?}");
}

#[test]
fn a_journal_that_reads_nothing_stops_nobody_and_what_it_missed_is_counted() {
    let Some(systemd) = running() else { return };
    let journald = systemd.property("systemd-journald.service", "MainPID");

    systemd.works(&format!("kill -STOP {journald}"));
    // More than its socket has room for, twice for each.
    for _ in 0..2000 {
        systemd.client().statistics().unwrap();
    }
    systemd.works(&format!("kill -CONT {journald}"));

    wait_until(SOON, || {
        systemd.client().statistics().unwrap();
        let said = journal(&systemd, "_SYSTEMD_UNIT=fdstashd.service PRIORITY=4");
        said.iter().any(|event| event["MESSAGE"].as_str().unwrap().contains("found no room"))
    });

    // One that begins anew is found again.
    systemd.works("systemctl restart systemd-journald");
    systemd.client().statistics().unwrap();
    let cursor = "_SYSTEMD_UNIT=fdstashd.service --since=now";
    wait_until(SOON, || {
        systemd.client().statistics().unwrap();
        !journal(&systemd, &cursor.replace("now", "-1s")).is_empty()
    });
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_what_it_missed_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("log");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let daemon = logs_to(&pipe);

    for _ in 0..2000 {
        daemon.client().statistics().unwrap();
    }
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let log = File::options().read(true).custom_flags(flags).open(&pipe).unwrap();
    let mut log = BufReader::new(log);
    let mut line = String::new();
    while log.read_line(&mut line).is_ok_and(|read| read > 0) {}
    assert!(line.contains("connection admitted"), "{line}");

    daemon.client().statistics().unwrap();
    wait_until(SOON, || {
        let _ = log.read_line(&mut line);
        line.contains(" messages of this log found no room and are lost\n")
    });
}

/// A daemon that says much, to a file.
fn logs_to(file: &Path) -> Daemon {
    Daemon::builder()
        .quiet()
        .arg("--log=debug")
        .env("LOG", file)
        .under(&["sh", "-c", "exec 2<>\"$LOG\"; exec \"$0\" \"$@\""])
        .spawn()
}

#[test]
fn a_terminal_that_nobody_reads_stops_nobody() {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).and_then(|()| unlockpt(&master)).unwrap();
    let terminal = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let daemon = logs_to(Path::new(&terminal));
    let server = daemon.serving();

    for _ in 0..2000 {
        daemon.client().statistics().unwrap();
    }

    assert_eq!((daemon.serving(), daemon.statistics().restores), (server, 0));
    drop(master);
    daemon.client().statistics().unwrap();
}

#[test]
fn an_event_is_one_line_whatever_a_peer_says() {
    let daemon = Daemon::spawn();
    let name = "a\nb\r\u{1b}[31m";

    let refused = daemon.raw().call("Close", &json!({"names": [name]}));

    assert_eq!(refused["error"], "org.fdstash.Stash.InvalidName");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("call refused")).unwrap();
    assert!(line.contains(r"a\nb\r\u{1b}[31m"), "{line}");
    assert!(log.lines().all(|line| line.starts_with("20")), "{log}");
}

/// The lines of a daemon's log that are of its audit.
fn audit(daemon: &Daemon) -> Vec<String> {
    daemon.log().lines().filter(|line| line.contains(" audit=")).map(str::to_owned).collect()
}

/// A daemon that tells who does what.
fn audited() -> Daemon {
    Daemon::builder().arg("--audit").spawn()
}

#[test]
fn the_audit_tells_who_did_what_to_which_descriptor() {
    let daemon = audited();
    let mut client = daemon.client();
    let (me, pid) = (rustix::process::geteuid().as_raw(), std::process::id());

    let disk = file(daemon.path("disk"), "");
    client.give(&[gift("disk", &disk)]).unwrap();
    client.copy(&names(["disk"])).unwrap();
    client.reopen(&[Reopening::new(name("disk"))]).unwrap();
    client.close(&names(["disk"])).unwrap();
    client.close(&names(["disk"])).unwrap_err();

    let told = audit(&daemon);
    let words = ["given", "copied", "lent", "reopened", "closed", "refused"];
    let words = words
        .map(|word| told.iter().filter(|line| line.contains(&format!("audit=\"{word}\""))).count());
    assert_eq!(words[0], 1, "{told:?}");
    assert!(words[1] + words[2] > 1 && words[3] == 1 && words[4] == 1 && words[5] == 1, "{told:?}");
    for line in &told {
        assert!(line.contains(&format!(" uid={me} pid={pid}")), "{line}");
        let is_refused = line.contains("error=\"NotFound\"");
        assert!(
            is_refused || line.contains(r#" name="disk" "#) && line.contains(r#" kind="regular""#)
        );
    }
    assert!(me != 0 || told[0].contains(r#" user="root""#), "{}", told[0]);
}

#[test]
fn no_name_of_a_file_is_too_long_for_the_audit_to_tell_who_it_was() {
    let daemon = audited();
    let me = rustix::process::geteuid().as_raw();
    let deep = vec!["\u{1}".repeat(250); 15].join("/");
    fs::create_dir_all(daemon.path(&deep)).unwrap();

    let disk = file(daemon.path(&format!("{deep}/disk")), "");
    daemon.client().give(&[gift("disk", &disk)]).unwrap();

    let told = audit(&daemon);
    assert!(told[0].contains(&format!(" uid={me} ")) && told[0].contains(" file="), "{told:?}");
}

#[test]
fn only_what_has_left_is_said_to_be_taken() {
    let daemon = audited();
    daemon.client().give(&[gift("disk", &null())]).unwrap();

    // A Take that wants no answer gets none, and so nothing leaves.
    let mut unheard = call("Take", &json!({"names": ["disk"]}));
    let end = unheard.len() - 2;
    unheard.splice(end..end, br#","oneway":true"#.iter().copied());
    let mut raw = daemon.raw();
    raw.say(&unheard);
    raw.call("GetStatistics", &json!({}));
    assert!(!audit(&daemon).iter().any(|line| line.contains("taken")));

    only(daemon.client().take(&names(["disk"])).unwrap());
    wait_until(SOON, || audit(&daemon).iter().filter(|line| line.contains("taken")).count() == 1);
}

#[test]
fn what_ends_with_a_server_that_is_killed_is_told() {
    let daemon = audited();
    let mut client = daemon.client();
    client.give(&[gift("disk", &null())]).unwrap();
    client.give(&[Gift { ephemeral: true, ..gift("lease", &null()) }]).unwrap();

    daemon.kill_server();

    wait_until(SOON, || daemon.log().contains("came back to what was kept"));
    daemon.client().statistics().unwrap();
    let told = audit(&daemon);
    let closed: Vec<_> = told.iter().filter(|line| line.contains("audit=\"closed\"")).collect();
    assert!(closed.len() == 1 && closed[0].contains(r#" name="lease" "#), "{told:?}");
}

#[test]
fn nothing_is_told_of_who_does_what_unless_that_is_asked_for() {
    let daemon = Daemon::spawn();

    daemon.client().give(&[gift("disk", &null())]).unwrap();

    assert_eq!(audit(&daemon), [] as [String; 0]);
}

#[test]
fn nobody_fills_the_log_with_what_is_refused_and_what_is_left_out_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("metrics");
    let place = format!("unix:{}", at.display());
    let daemon = Daemon::builder().args(&["--audit", "--metrics", &place]).spawn();
    let mut client = daemon.client();

    for _ in 0..300 {
        client.close(&names(["none"])).unwrap_err();
    }

    let refused = audit(&daemon).iter().filter(|line| line.contains("refused")).count();
    assert!((20..120).contains(&refused), "{refused}");
    let figures = metrics(&at);
    assert_eq!(figures["fdstash_refused_total{reason=\"NotFound\"}"], 300.0);
    assert!(figures["fdstash_audit_left_out_total"] >= 180.0, "{figures:?}");
    wait_until(2 * SOON, || {
        audit(&daemon)
            .iter()
            .any(|line| line.contains("left_out") && line.contains("what=\"refused\""))
    });
}

#[test]
fn the_audit_of_the_systems_stash_is_in_the_journal() {
    let Some(systemd) = running() else { return };
    systemd.client().give(&[gift("vm7/disk0", &null())]).unwrap();
    only(systemd.client().take(&names(["vm7/disk0"])).unwrap());

    let taken = "_SYSTEMD_UNIT=fdstashd.service FDSTASH_AUDIT=taken FDSTASH_NAME=vm7/disk0";
    wait_until(SOON, || !journal(&systemd, taken).is_empty());

    let events = journal(&systemd, "_SYSTEMD_UNIT=fdstashd.service FDSTASH_NAME=vm7/disk0");
    let words: Vec<_> = events.iter().filter_map(|event| event["FDSTASH_AUDIT"].as_str()).collect();
    assert_eq!((words.first(), words.last()), (Some(&"given"), Some(&"taken")), "{events:?}");
    for event in &events {
        assert_eq!(event["FDSTASH_USER"], "root");
        assert_eq!(event["FDSTASH_KIND"], "character");
    }
}

/// A connection to a path, on which nothing is waited for for ever.
fn connect(at: &Path) -> UnixStream {
    let stream = UnixStream::connect(at).expect("metrics are told there");
    stream.set_read_timeout(Some(SOON)).expect("a socket has a time limit");
    stream
}

/// What is answered to a request.
fn ask(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("a question is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer ends");
    answer
}

/// The text of the metrics at a path.
fn metrics_text(at: &Path) -> String {
    let answer = ask(connect(at), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", text.len())), "{head}");
    text.to_owned()
}

/// The metrics at a path, by their names and labels.
fn metrics(at: &Path) -> BTreeMap<String, f64> {
    let text = metrics_text(at);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let split = |line: &str| {
        let (key, value) = line.rsplit_once(' ').expect("a metric has a value");
        (key.to_owned(), value.parse().expect("a value is a number"))
    };
    lines.map(split).collect()
}

/// A daemon that tells metrics, and where.
fn watched() -> (tempfile::TempDir, PathBuf, Daemon) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let at = folder.path().join("metrics");
    let place = format!("unix:{}", at.display());
    let daemon = Daemon::builder().args(&["--metrics", &place]).own_program().spawn();
    (folder, at, daemon)
}

/// Whether everything that came is somewhere.
#[track_caller]
fn add_up(figures: &BTreeMap<String, f64>) {
    let kinds = figures.iter().filter(|(key, _)| key.starts_with("fdstash_entries{"));
    let kept: f64 = kinds.map(|(_, value)| value).sum();
    let [given, restored, taken, closed, expired] =
        ["given", "restored", "taken", "closed", "expired"]
            .map(|word| figures[&format!("fdstash_{word}_total")]);
    assert_eq!(kept, given + restored - taken - closed - expired, "{figures:?}");
}

/// Waits until the figures are some that were not told before.
fn fresh(at: &Path, is: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
    let mut figures = metrics(at);
    wait_until(SOON, || {
        figures = metrics(at);
        is(&figures)
    });
    figures
}

#[test]
fn the_figures_add_up_over_the_death_of_a_server_and_an_upgrade() {
    let (_folder, at, daemon) = watched();
    let mut client = daemon.client();
    let all: Vec<String> = (0..10).map(|at| format!("disk{at}")).collect();
    for name in &all {
        client.give(&[gift(name, &file(daemon.path(name), ""))]).unwrap();
    }
    client.give(&[gift("pipe", &rustix::pipe::pipe().unwrap().0)]).unwrap();
    client.take(&names(["disk0"])).unwrap();
    client.close(&names(["disk1"])).unwrap();
    client.reopen(&[Reopening::new(name("disk2"))]).unwrap();
    client.close(&names(["none"])).unwrap_err();

    let before = fresh(&at, |figures| figures["fdstash_taken_total"] == 1.0);
    daemon.kill_server();
    let killed = fresh(&at, |figures| figures["fdstash_restores_total"] == 1.0);
    daemon.client().close(&names(["disk3"])).unwrap();
    daemon.upgrade();
    let upgraded = fresh(&at, |figures| figures["fdstash_restores_total"] == 2.0);

    [&before, &killed, &upgraded].iter().for_each(|figures| add_up(figures));
    let figure = |key: &str| [&before, &killed, &upgraded].map(|figures| figures[key]);
    assert_eq!(figure("fdstash_entries{kind=\"regular\"}"), [8.0, 8.0, 7.0]);
    assert_eq!(figure("fdstash_entries{kind=\"fifo\"}"), [1.0, 1.0, 1.0]);
    assert_eq!(figure("fdstash_given_total"), [11.0, 0.0, 0.0]);
    assert_eq!(figure("fdstash_restored_total"), [0.0, 9.0, 8.0]);
    assert_eq!(before["fdstash_refused_total{reason=\"NotFound\"}"], 1.0);
    assert_eq!(before["fdstash_open_seconds_count"], 1.0);
    assert!(before["fdstash_call_seconds_count"] >= 15.0, "{before:?}");
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(upgraded[&format!("fdstash_user_entries{{uid=\"{uid}\"}}")], 8.0);
}

#[test]
fn nobody_who_asks_for_metrics_holds_up_the_daemon_or_for_long_another_who_asks() {
    let (_folder, at, daemon) = watched();

    let silent: Vec<_> = (0..300).map(|_| UnixStream::connect(&at).unwrap()).collect();
    let mut chatty = UnixStream::connect(&at).unwrap();
    let _ = chatty.write_all(&[b'x'; 64 << 10]);
    daemon.client().statistics().unwrap();

    assert!(!metrics(&at).is_empty());
    drop(silent);
    let ask = |request: &str| ask(connect(&at), request);
    assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(UnixStream::connect(&at).is_ok() && !metrics(&at).is_empty());
}

#[test]
fn metrics_take_the_place_of_no_file_that_is_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "precious").unwrap();
    let start = |at: &Path| {
        let program = Command::new(kit::program("fdstashd"))
            .args(["--socket".as_ref(), path("stash").as_os_str(), "--metrics".as_ref()])
            .arg(format!("unix:{}", at.display()))
            .output();
        let said = program.unwrap();
        (said.status.code(), String::from_utf8(said.stderr).unwrap())
    };

    let (code, said) = start(&path("file"));

    assert_eq!((code, fs::read_to_string(path("file")).unwrap().as_str()), (Some(1), "precious"));
    assert!(said.contains("/file is there already and no socket"), "{said}");
    let (_other, at, daemon) = watched();
    let (code, said) = start(&at);
    assert!(code == Some(1) && said.contains("somebody serves"), "{said}");
    assert!(!metrics(&at).is_empty());
    drop(daemon);
}

#[test]
fn a_full_process_table_costs_the_metrics_and_nothing_else() {
    let Some(group) = Cgroup::new("pids") else { return skipped("there are no cgroups here") };
    let (_folder, at, daemon) = watched();
    daemon.client().give(&[gift("disk", &null())]).unwrap();
    assert!(!metrics(&at).is_empty());
    let (server, keeper) = daemon.server();
    group.add(keeper);
    group.add(server);
    let threads = |pid: Pid| fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).unwrap();
    // Two threads fewer than a server has that tells metrics.
    let all = threads(keeper).count() + threads(server).count();
    group.set("pids.max", &(all - 2).to_string());

    daemon.kill_server();

    wait_until(SOON, || daemon.log().contains("there is no thread to tell metrics"));
    only(daemon.client().copy(&names(["disk"])).unwrap());
    assert_eq!(daemon.statistics().restores, 1);
    group.set("pids.max", "max");
    assert!(!metrics(&at).is_empty());
}

#[test]
fn metrics_are_told_at_a_port_of_this_machine_and_at_no_other() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Daemon::builder().args(&["--metrics", &free.to_string()]).spawn();
    let get = || ask(TcpStream::connect(free).unwrap(), "GET /metrics HTTP/1.0\r\n\r\n");

    assert!(get().contains("\nfdstash_entries_limit "));
    daemon.kill_server();
    assert!(get().ends_with("# EOF\n"));

    let program = kit::program("fdstashd");
    let said = Command::new(program).args(["--metrics", "0.0.0.0:9123"]).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("can be reached from elsewhere"));
}

#[test]
fn prometheus_own_parser_reads_the_metrics() {
    let (_folder, at, daemon) = watched();
    daemon.client().give(&[gift("disk", &null())]).unwrap();
    daemon.client().close(&names(["none"])).unwrap_err();

    let text = metrics_text(&at);

    const PARSE: &str = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as p
print(*[f.name for f in p(sys.stdin.read())])";
    let said = python(PARSE, &text);
    let described = text.lines().filter(|line| line.starts_with("# TYPE")).count();
    assert_eq!(said.split_whitespace().count(), described, "{text}");
}

/// What Debian's Python makes of a text.
fn python(program: &str, text: &str) -> String {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("`make test` installs it");
    python.stdin.take().expect("its input is a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout).expect("it writes text")
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_of_name(letter));
    words.filter(|word| word.starts_with("fdstash_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are_and_all_are_shown() {
    let (_folder, at, daemon) = watched();
    daemon.client().close(&names(["none"])).unwrap_err();
    let there = named(&metrics_text(&at));
    // Those under a service manager alone.
    let mirror = ["bundles", "entries", "waiting", "behind_seconds", "puts_total"];
    let mirror = mirror.map(|word| format!("fdstash_mirror_{word}"));
    let there: BTreeSet<_> = there.into_iter().chain(mirror).collect();
    let operators = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operators");
    let read = |name: &str| fs::read_to_string(operators.join(name)).unwrap();
    let (dashboard, rules) = (read("grafana-dashboard.json"), read("prometheus-rules.yaml"));

    serde_json::from_str::<Value>(&dashboard).unwrap();
    const RULES: &str = "import sys, yaml
for group in yaml.safe_load(sys.stdin)['groups']:
    for rule in group['rules']: print(rule['expr'], rule['annotations']['summary'] and '')";
    let expressions = python(RULES, &rules);

    let (shown, alerted) = (named(&dashboard), named(&expressions));
    assert!(alerted.len() > 8, "{alerted:?}");
    let unknown: Vec<_> = shown.union(&alerted).filter(|name| !there.contains(*name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // What a counter or a histogram is called has several ends, of which one is enough.
    let is_shown = |name: &String| {
        let ends = ["", "_info", "_total", "_bucket", "_sum", "_count"];
        let base =
            ends.iter().filter_map(|end| name.strip_suffix(end)).min_by_key(|base| base.len());
        ends.iter().any(|end| shown.contains(&format!("{}{end}", base.unwrap())))
    };
    let hidden: Vec<_> = there.iter().filter(|name| !is_shown(name)).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn the_metrics_of_the_systems_stash_are_told_at_a_socket_of_systemds() {
    let Some(systemd) = running() else { return };
    systemd.client().give(&[gift("disk", &null())]).unwrap();
    let port = systemd.path("/run/systemd/system/fdstashd-metrics.socket.d");
    fs::create_dir_all(&port).unwrap();
    fs::write(port.join("port.conf"), "[Socket]\nListenStream=127.0.0.1:9123\n").unwrap();

    systemd.works("systemctl enable --quiet fdstashd-metrics.socket");
    systemd.works("systemctl restart fdstashd.service");

    let at = systemd.path("/run/fdstash/metrics");
    let figures = fresh(&at, |figures| figures["fdstash_mirror_entries"] == 1.0);
    add_up(&figures);
    assert_eq!(figures["fdstash_restored_total"], 1.0);
    // The service has a network of its own, and the port is the machine's.
    let get = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9123/metrics', timeout=9).read().decode())";
    let text = systemd.works(&format!("/usr/bin/python3 -c \"{get}\""));
    assert!(text.contains("fdstash_mirror_entries 1"), "{text}");
    let server = systemd.property("fdstashd.service", "MainPID");
    systemd.works(&format!("kill -9 $(cat /proc/{server}/task/{server}/children)"));
    fresh(&at, |figures| figures["fdstash_restores_total"] >= 1.0);
}
