//! What survives: the server's death at every step, the keeper's, upgrades, and both at once.
//!
//! Clients that know what they were told go through histories that follow from a seed, while the
//! daemon dies under them again and again. After each death a client looks at what is there: it must
//! be what was acknowledged, or, where a call was in flight, what was before it or after it, and
//! nothing in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    slice,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use fdstash::{Error, Gift, Handed, Reopening, blocking};
use kit::{
    Daemon, Random, Raw, SOON, User, call, file, gift, identity, install_program, install_script,
    is_root, name, names, only, pattern, program, seed, wait_until,
};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};

/// One file that a client has made, and what it knows of the entry that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    text: String,
    identity: (u64, u64),
    access: &'static str,
    flags: BTreeSet<&'static str>,
    is_ephemeral: bool,
}

/// What is kept under a client's own names.
type Mine = BTreeMap<String, Known>;

/// A file with contents that no other has.
fn make(text: &str) -> (File, Known) {
    let mut file = File::from(memfd_create("fdstash-test", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(text.as_bytes()).expect("it can be written");
    file.rewind().expect("it can be read from the beginning");
    let known = Known {
        text: text.to_owned(),
        identity: identity(&file),
        access: "read_write",
        flags: BTreeSet::new(),
        is_ephemeral: false,
    };
    (file, known)
}

/// What a file says that was handed out.
fn read(fd: impl AsFd) -> String {
    let file = File::from(fd.as_fd().try_clone_to_owned().expect("room for one more"));
    let mut buffer = [0; 64];
    let count = file.read_at(&mut buffer, 0).expect("what was handed out can be read");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[track_caller]
fn assert_is(fd: impl AsFd, known: &Known) {
    assert_eq!(identity(&fd), known.identity, "{known:?}");
    assert_eq!(read(&fd), known.text);
}

/// What became of the descriptors under the names that all clients share.
#[derive(Debug, Default)]
struct Ledger(Mutex<BTreeMap<String, Fate>>);

#[derive(Debug, Default)]
struct Fate {
    name: String,
    is_given: bool,
    /// How often somebody was told to have taken it, and how often perhaps.
    taken: usize,
    perhaps_taken: usize,
}

impl Ledger {
    fn note(&self, text: &str, note: impl FnOnce(&mut Fate)) {
        let mut fates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        note(fates.entry(text.to_owned()).or_default());
    }

    /// Compares with what is left at the end, by name.
    fn check(self, left: &BTreeMap<String, String>) {
        let fates = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (text, fate) in &fates {
            let is_there = left.get(&fate.name) == Some(text);
            let Fate { is_given, taken, perhaps_taken, .. } = fate;
            let told = format!("{text}: {fate:?}, there: {is_there}");
            assert!(taken + usize::from(is_there) <= 1, "twice: {told}");
            assert!(!is_given || is_there || taken + perhaps_taken > 0, "lost: {told}");
        }
        for text in left.values() {
            assert!(fates.contains_key(text), "nobody has given {text}");
        }
    }
}

/// What all clients of a daemon count together.
#[derive(Debug, Default)]
struct Tally {
    calls: AtomicU64,
    lost: AtomicU64,
    gifts: AtomicU64,
    looks: AtomicU64,
}

/// A client without the library: what it calls is done once or not, and it knows when it cannot know.
struct Peer<'a> {
    id: String,
    random: Random,
    daemon: &'a Daemon,
    raw: Option<Raw>,
    own: Vec<String>,
    /// What may be there, the likeliest last.
    possible: Vec<Mine>,
    ledger: &'a Ledger,
    tally: &'a Tally,
    given: usize,
}

/// What a call came to that was not lost.
struct Answer {
    parameters: Value,
    error: Option<String>,
    fds: Vec<OwnedFd>,
}

const SHARED: [&str; 3] = ["shared-0", "shared-1", "shared-2"];

impl<'a> Peer<'a> {
    fn new(id: &str, seed: u64, daemon: &'a Daemon, ledger: &'a Ledger, tally: &'a Tally) -> Self {
        Self {
            id: id.to_owned(),
            random: Random::new(seed),
            daemon,
            raw: None,
            own: (0..6).map(|at| format!("{id}-{at}")).collect(),
            possible: vec![Mine::new()],
            ledger,
            tally,
            given: 0,
        }
    }

    /// Makes a call. None, if its connection was lost.
    fn ask(&mut self, method: &str, parameters: &Value, fds: &[File]) -> Option<Answer> {
        let raw = self.raw.get_or_insert_with(|| self.daemon.raw());
        self.tally.calls.fetch_add(1, SeqCst);
        let answer = if raw.try_send(&call(method, parameters), fds) {
            raw.try_reply().unwrap_or_else(|error| panic!("no answer to {method}: {error}"))
        } else {
            None
        };
        let Some(answer) = answer else {
            self.tally.lost.fetch_add(1, SeqCst);
            self.raw = None;
            return None;
        };
        let fds = raw.fds();
        let error = answer["error"].as_str().map(str::to_owned);
        Some(Answer { parameters: answer["parameters"].clone(), error, fds })
    }

    fn now(&self) -> &Mine {
        self.possible.last().expect("something is possible")
    }

    /// Makes a call after which the own names have come to this; whether it was done, and what it
    /// handed out. Where the connection was lost, it looks what is there.
    fn change(
        &mut self,
        method: &str,
        parameters: &Value,
        fds: &[File],
        then: Mine,
    ) -> Option<Answer> {
        match self.ask(method, parameters, fds) {
            Some(answer) => {
                assert_eq!(answer.error, None, "{method} {parameters}: {}", answer.parameters);
                self.possible = vec![then];
                Some(answer)
            }
            None => {
                self.possible.push(then);
                self.look();
                None
            }
        }
    }

    /// Makes a call that changes nothing.
    fn peek(&mut self, method: &str, parameters: &Value) -> Option<Answer> {
        let now = self.now().clone();
        self.change(method, parameters, &[], now)
    }

    /// Sees which of what is possible is there.
    fn look(&mut self) {
        let is_ephemeral = |mine: &Mine| mine.values().any(|known| known.is_ephemeral);
        let some_go = self.possible.iter().any(is_ephemeral);
        for possible in &mut self.possible {
            possible.retain(|_, known| !known.is_ephemeral);
        }
        let began = Instant::now();
        loop {
            self.tally.looks.fetch_add(1, SeqCst);
            // What goes with the connection before this one goes when its end is served.
            let may_go = some_go && began.elapsed() < SOON;
            let Some(there) = self.try_look(may_go) else { continue };
            if may_go && !self.possible.contains(&there) {
                continue;
            }
            let id = &self.id;
            let possible = &self.possible;
            assert!(possible.contains(&there), "{id} finds {there:?}, and not one of {possible:?}");
            self.possible = vec![there];
            return;
        }
    }

    fn try_look(&mut self, may_go: bool) -> Option<Mine> {
        let listed = self.ask("List", &json!({"pattern": format!("{}-*", self.id)}), &[])?;
        let entries = listed.parameters["entries"].as_array().expect("a list").clone();
        let names: Vec<_> = entries.iter().map(|entry| entry["name"].clone()).collect();
        let copied = self.ask("Take", &json!({"names": names, "copy": true}), &[])?;
        if may_go && copied.error.is_some() {
            return None;
        }
        assert_eq!(copied.error, None, "{names:?}");
        let there = entries.iter().zip(copied.fds).map(|(entry, fd)| {
            let words = entry["flags"].as_array().into_iter().flatten();
            let flags = words.map(|word| word_of(word.as_str().unwrap_or_default())).collect();
            let identity = identity(&fd);
            let listed = (entry["device"].as_u64(), entry["inode"].as_u64());
            assert_eq!(listed, (Some(identity.0), Some(identity.1)), "{entry}");
            assert_eq!(entry["mayReopen"], "read_write");
            let known = Known {
                text: read(&fd),
                identity,
                access: word_of(entry["access"].as_str().unwrap_or_default()),
                flags,
                is_ephemeral: false,
            };
            (entry["name"].as_str().unwrap_or_default().to_owned(), known)
        });
        Some(there.collect())
    }

    fn gift(&mut self) -> (File, Known) {
        self.given += 1;
        self.tally.gifts.fetch_add(1, SeqCst);
        make(&format!("{} {}", self.id, self.given))
    }

    /// Some of its names that are there, or that are not.
    fn some(&mut self, there: bool, most: usize) -> Vec<String> {
        let now = self.now();
        let fitting: Vec<_> =
            self.own.iter().filter(|name| now.contains_key(*name) == there).cloned().collect();
        if fitting.is_empty() { Vec::new() } else { self.random.some_of(&fitting, most) }
    }

    /// The parameters of a Give, and what is there after it.
    fn giving(&mut self, names: &[String], exclusive: bool) -> (Value, Vec<File>, Mine) {
        let (mut files, mut then, mut entries) = (Vec::new(), self.now().clone(), Vec::new());
        for (at, name) in names.iter().enumerate() {
            let (file, mut known) = self.gift();
            known.is_ephemeral = self.random.percent(15);
            let mut entry = json!({
                "name": name,
                "fileDescriptor": at,
                "fresh": self.random.percent(20),
                "ephemeral": known.is_ephemeral,
            });
            if self.random.percent(20) {
                entry["expireUSec"] = 3_600_000_000_u64.into();
            }
            if self.random.percent(10) {
                // Two of these, and the journal is heavy.
                entry["labels"] = json!({ "note": "x".repeat(40_000) });
            }
            entries.push(entry);
            files.push(file);
            then.insert(name.clone(), known);
        }
        (json!({ "entries": entries, "exclusive": exclusive }), files, then)
    }

    /// The parameters of a Reopen, and what is there after it.
    fn reopening(&mut self, names: &[String]) -> (Value, Mine) {
        let (mut then, mut entries) = (self.now().clone(), Vec::new());
        for name in names {
            let Some(known) = then.get_mut(name) else { continue };
            let mut entry = json!({ "name": name });
            for flag in ["append", "nonblock"] {
                let is_on = self.random.percent(50);
                entry[flag] = is_on.into();
                if is_on {
                    known.flags.insert(flag);
                } else {
                    known.flags.remove(flag);
                }
            }
            // Without O_APPEND, or to write again, takes the rights of this very user.
            known.access = if self.random.percent(30) { "read" } else { "read_write" };
            entry["access"] = known.access.into();
            entries.push(entry);
        }
        (json!({ "entries": entries }), then)
    }

    fn without(&self, names: &[String]) -> Mine {
        let mut then = self.now().clone();
        then.retain(|name, _| !names.contains(name));
        then
    }

    fn assert_handed(&self, before: &Mine, names: &[String], answer: &Answer) {
        assert_eq!(answer.fds.len(), names.len());
        for (name, fd) in names.iter().zip(&answer.fds) {
            assert_is(fd, &before[name]);
        }
    }

    /// One call, or one transaction.
    fn act(&mut self) {
        match self.random.below(100) {
            0..22 => {
                let names = self.random.some_of(&self.own.clone(), 3);
                let before = self.now().clone();
                let (parameters, files, then) = self.giving(&names, false);
                if let Some(answer) = self.change("Give", &parameters, &files, then) {
                    let replaced: Vec<_> =
                        names.iter().filter(|name| before.contains_key(*name)).collect();
                    assert_eq!(answer.parameters["replaced"], json!(replaced));
                }
            }
            22..30 => {
                let names = self.some(false, 2);
                if !names.is_empty() {
                    let (parameters, files, then) = self.giving(&names, true);
                    self.change("Give", &parameters, &files, then);
                }
            }
            30..38 => {
                let names = self.some(true, 2);
                let (before, then) = (self.now().clone(), self.without(&names));
                let taken = self.change("Take", &json!({ "names": names }), &[], then);
                if let Some(answer) = taken {
                    self.assert_handed(&before, &names, &answer);
                    // It is gone only when the server has seen that it has left.
                    self.possible.insert(0, before);
                }
            }
            38..48 => {
                let names = self.some(true, 3);
                let (before, then) = (self.now().clone(), self.without(&names));
                self.in_transaction(then, |peer| {
                    let answer = peer.stage("Take", &json!({ "names": names }), &[])?;
                    peer.assert_handed(&before, &names, &answer);
                    Some(true)
                });
            }
            48..56 => {
                let names = self.some(true, 3);
                let before = self.now().clone();
                let fresh = self.random.percent(50);
                let parameters = json!({ "names": names, "copy": true, "fresh": fresh });
                if let Some(answer) = self.peek("Take", &parameters) {
                    self.assert_handed(&before, &names, &answer);
                }
            }
            56..64 => {
                let names = self.some(true, 2);
                let then = self.without(&names);
                self.change("Close", &json!({ "names": names }), &[], then);
            }
            64..76 => {
                let names = self.some(true, 2);
                let before = self.now().clone();
                let (parameters, then) = self.reopening(&names);
                if let Some(answer) = self.change("Reopen", &parameters, &[], then) {
                    self.assert_handed(&before, &names, &answer);
                }
            }
            76..86 => self.many(),
            86..93 => self.give_to_all(),
            93..98 => self.take_from_all(),
            _ => drop(self.peek("List", &json!({}))),
        }
    }

    /// A call in a transaction.
    fn stage(&mut self, method: &str, parameters: &Value, fds: &[File]) -> Option<Answer> {
        let answer = self.ask(method, parameters, fds)?;
        assert_eq!(answer.error, None, "{method} {parameters}: {}", answer.parameters);
        Some(answer)
    }

    /// Does something in a transaction after which the own names have come to this, if it tells to
    /// commit.
    fn in_transaction(&mut self, then: Mine, act: impl FnOnce(&mut Self) -> Option<bool>) {
        let Some(_) = self.stage("Begin", &json!({}), &[]) else { return self.look() };
        // What was before it on this connection, is settled.
        self.possible = vec![self.now().clone()];
        let Some(commits) = act(self) else { return self.look() };
        if commits {
            self.change("Commit", &json!({}), &[], then);
        } else {
            self.peek("Rollback", &json!({}));
        }
    }

    /// Several calls as one.
    fn many(&mut self) {
        let (old, closed) = (self.some(true, 2), self.some(true, 2));
        let new: Vec<_> = {
            let free: Vec<_> =
                self.own.iter().filter(|name| !closed.contains(*name)).cloned().collect();
            if free.is_empty() {
                return;
            }
            self.random.some_of(&free, 3)
        };
        let reopened: Vec<_> =
            old.into_iter().filter(|name| !closed.contains(name) && !new.contains(name)).collect();
        let before = self.now().clone();
        let (giving, files, given) = self.giving(&new, false);
        let (reopening, as_reopened) = self.reopening(&reopened);
        let mut then = given;
        for name in &reopened {
            then.insert(name.clone(), as_reopened[name].clone());
        }
        then.retain(|name, _| !closed.contains(name));
        let commits = self.random.percent(80);
        self.in_transaction(then, |peer| {
            peer.stage("Give", &giving, &files)?;
            let handed = peer.stage("Reopen", &reopening, &[])?;
            peer.assert_handed(&before, &reopened, &handed);
            peer.stage("Close", &json!({ "names": closed }), &[])?;
            Some(commits)
        });
    }

    fn give_to_all(&mut self) {
        let (file, known) = self.gift();
        let name = SHARED[self.random.below(SHARED.len())];
        self.ledger.note(&known.text, |fate| fate.name = name.to_owned());
        let parameters =
            json!({ "entries": [{ "name": name, "fileDescriptor": 0 }], "exclusive": true });
        match self.ask("Give", &parameters, &[file]) {
            Some(Answer { error: None, .. }) => {
                self.ledger.note(&known.text, |fate| fate.is_given = true);
                self.possible = vec![self.now().clone()];
            }
            Some(refused) => self.assert_passing(&refused),
            None => self.look(),
        }
    }

    fn take_from_all(&mut self) {
        let name = SHARED[self.random.below(SHARED.len())];
        let Some(_) = self.stage("Begin", &json!({}), &[]) else { return self.look() };
        self.possible = vec![self.now().clone()];
        let take = self.ask("Take", &json!({ "names": [name], "timeoutUSec": 2000 }), &[]);
        let Some(taken) = take else { return self.look() };
        if taken.error.is_some() {
            self.assert_passing(&taken);
            self.peek("Rollback", &json!({}));
            return;
        }
        let text = read(&taken.fds[0]);
        match self.ask("Commit", &json!({}), &[]) {
            Some(_) => self.ledger.note(&text, |fate| fate.taken += 1),
            None => {
                self.ledger.note(&text, |fate| fate.perhaps_taken += 1);
                self.look();
            }
        }
    }

    /// What may be said of names that others have, too.
    fn assert_passing(&self, refused: &Answer) {
        let error = refused.error.as_deref().unwrap_or_default();
        let passing = ["NotFound", "AlreadyExists", "Busy"].iter().any(|one| error.ends_with(one));
        assert!(passing, "{error} {}", refused.parameters);
    }
}

fn word_of(word: &str) -> &'static str {
    let known = ["append", "nonblock", "read", "read_write"];
    known.into_iter().find(|known| *known == word).unwrap_or("something else")
}

/// A client with the library, which sends again by itself what was lost. Where the daemon dies faster
/// than it is ready to try, it says whether the call may have been carried out.
fn use_library(id: &str, seed: u64, is_over: &AtomicBool, daemon: &Daemon, tally: &Tally) -> Mine {
    let (mut random, mut client) = (Random::new(seed), daemon.client());
    let own: Vec<_> = (0..4).map(|at| format!("{id}-{at}")).collect();
    let mut mine = Mine::new();
    for act in 0.. {
        if is_over.load(SeqCst) {
            break;
        }
        let text = random.some_of(&own, 1).remove(0);
        let (name, before) = (name(&text), mine.get(&text).cloned());
        let (file, new) = make(&format!("{id} {act}"));
        let which = if before.is_none() { 0 } else { random.below(6) };
        let after = match which {
            0..3 => Some(&new),
            3 => None,
            _ => before.as_ref(),
        };
        let is_handed = |outcome: Result<Vec<Handed<OwnedFd>>, Error>| {
            let before = before.as_ref().expect("it was there");
            outcome.map(|handed| assert_is(only(handed), before))
        };
        loop {
            tally.calls.fetch_add(1, SeqCst);
            let outcome = match which {
                0..3 => client.give(&[Gift::new(name.clone(), &file)]).map(|told| {
                    let replaced: Vec<_> = before.iter().map(|_| name.clone()).collect();
                    assert_eq!(told, replaced);
                }),
                3 => is_handed(client.take(slice::from_ref(&name))),
                4 => is_handed(client.reopen(&[Reopening::new(name.clone())])),
                _ => is_handed(client.copy(slice::from_ref(&name))),
            };
            let may_be_done = match outcome {
                Ok(()) => break,
                Err(Error::ConnectionLost { may_be_done }) => may_be_done,
                Err(error) => panic!("{id}, call {act}: {error}"),
            };
            tally.lost.fetch_add(1, SeqCst);
            let entries = loop {
                match client.list(&pattern(&text)) {
                    Ok(entries) => break entries,
                    Err(Error::ConnectionLost { .. }) => {}
                    Err(error) => panic!("{id}, call {act}: {error}"),
                }
            };
            let there = entries.first().map(|entry| (entry.device, entry.inode));
            let kept = client.unconfirmed();
            if there == after.map(|known| known.identity) && which < 4 {
                assert!(may_be_done, "{id}, call {act}: it was done, and said that it was not");
                assert!(which < 3 || is_handed(Ok(kept)).is_ok(), "what was taken is here");
                break;
            }
            assert_eq!(there, before.as_ref().map(|known| known.identity), "{id}, call {act}");
        }
        match after.cloned() {
            Some(known) => drop(mine.insert(text, known)),
            None => drop(mine.remove(&text)),
        }
    }
    mine
}

/// What stands in a log of deaths: how often at which step.
fn deaths(log: &str) -> BTreeMap<String, usize> {
    let mut deaths = BTreeMap::new();
    for step in log.lines().filter_map(|line| line.strip_prefix("dying ")) {
        *deaths.entry(step.to_owned()).or_default() += 1;
    }
    deaths
}

/// Every step that the daemon's code names.
fn steps() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src");
    let files = fs::read_dir(folder).expect("the daemon's source is here");
    let files = files.map(|file| file.expect("a file").path()).filter(|path| path.is_file());
    let texts = files.map(|file| fs::read_to_string(file).expect("text"));
    let named = |text: String| {
        let parts = text.split("step(\"").skip(1).map(str::to_owned).collect::<Vec<_>>();
        parts.into_iter().filter_map(|part| part.split('"').next().map(str::to_owned))
    };
    texts.flat_map(named).collect()
}

fn inode_of_program(pid: Pid) -> u64 {
    fs::metadata(format!("/proc/{}/exe", pid.as_raw_pid())).map_or(0, |file| file.ino())
}

/// Puts the daemon that does not die in the place of the one that does.
fn end_the_dying(daemon: &Daemon) {
    install_program(&program("fdstashd"), &daemon.program());
    let wanted = fs::metadata(daemon.program()).expect("it is there").ino();
    let mut tries = 0;
    wait_until(Duration::from_secs(30), || {
        if tries % 100 == 0 {
            daemon.signal(Signal::HUP);
        }
        tries += 1;
        inode_of_program(daemon.pid()) == wanted
    });
    wait_until(SOON, || daemon.servers() > 0 && daemon.client().statistics().is_ok());
}

/// How many bytes both files of the journal have.
fn journal_bytes(pid: Pid) -> u64 {
    let folder = PathBuf::from(format!("/proc/{}/fd", pid.as_raw_pid()));
    let fds = fs::read_dir(folder).expect("a process has descriptors").flatten();
    let journals = fds.filter(|fd| {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        target.to_string_lossy().contains("fdstash-journal")
    });
    journals.map(|fd| fs::metadata(fd.path()).map_or(0, |file| file.len())).sum()
}

/// What a daemon with these arguments has open that keeps nothing, and has been upgraded once.
fn open_when_empty(args: &[&str]) -> usize {
    let daemon = Daemon::builder().args(args).own_program().spawn();
    daemon.upgrade();
    daemon.held_at_rest()
}

/// What is to be survived.
struct Trial {
    seed: u64,
    /// After how many steps a server dies, and which of them count.
    plan: String,
    /// How many clients there are beside those with the library.
    peers: usize,
    /// How many deaths it takes.
    deaths: usize,
    /// Whether the daemon is upgraded all the time.
    is_upgraded: bool,
}

/// Has clients go through their histories with a daemon that dies as planned, and proves that nothing
/// is lost. Tells how often it has died at which step.
fn survive(trial: Trial) -> BTreeMap<String, usize> {
    let Trial { seed, plan, peers, deaths: enough, is_upgraded } = trial;
    let began = Instant::now();
    // Half of them with all that a daemon may have to tell besides, and the descriptors that it takes.
    let telling: &[&str] = if seed % 2 == 0 { &["--audit", "--metrics=127.0.0.1:0"] } else { &[] };
    let daemon = Daemon::builder().args(telling).crashing(format!("{seed},{plan}")).spawn();
    let (ledger, tally, is_over) = (Ledger::default(), Tally::default(), AtomicBool::new(false));
    let mut random = Random::new(seed);
    let mut peers: Vec<_> = (0..peers)
        .map(|at| Peer::new(&format!("peer{at}"), random.number(), &daemon, &ledger, &tally))
        .collect();
    let of_libraries: Vec<Mine> = thread::scope(|scope| {
        let is_over = &is_over;
        let go = |peer: &mut Peer| {
            while !is_over.load(SeqCst) {
                peer.act();
            }
        };
        let threads: Vec<_> = peers.iter_mut().map(|peer| scope.spawn(move || go(peer))).collect();
        let libraries = [0, 1].map(|at| {
            let (seed, daemon, tally) = (random.number(), &daemon, &tally);
            scope.spawn(move || use_library(&format!("lib{at}"), seed, is_over, daemon, tally))
        });
        let is_failing = || threads.iter().any(|thread| thread.is_finished());
        let mut looks = 0;
        wait_until(LONGEST_TRIAL, || {
            looks += 1;
            if is_upgraded && looks % 20 == 0 {
                daemon.signal(Signal::HUP);
            }
            let count = || daemon.log().matches("\ndying ").count();
            looks % 50 == 0 && (is_failing() || count() >= enough)
        });
        is_over.store(true, SeqCst);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let mines = libraries
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        mines.into()
    });
    let took = began.elapsed();
    let deaths = deaths(&daemon.log());
    end_the_dying(&daemon);

    let mut expected: BTreeMap<String, Known> = BTreeMap::new();
    for peer in &mut peers {
        peer.raw = None;
        peer.look();
        expected.extend(peer.now().clone());
    }
    drop(peers);
    of_libraries.into_iter().for_each(|mine| expected.extend(mine));
    let mut client = daemon.client();
    let entries = client.list(&pattern("*")).expect("a list");
    let mut shared = BTreeMap::new();
    for entry in &entries {
        let copy = only(client.copy(slice::from_ref(&entry.name)).expect("a copy"));
        match expected.remove(entry.name.as_str()) {
            Some(known) => assert_is(&copy, &known),
            None => drop(shared.insert(entry.name.to_string(), read(&copy))),
        }
    }
    assert_eq!(expected, BTreeMap::new(), "all that was acknowledged is there");
    ledger.check(&shared);
    drop(client);
    daemon.settles_at(open_when_empty(telling) + entries.len());
    let bytes = journal_bytes(daemon.pid());
    assert!(bytes < 200_000 + 100_000 * entries.len() as u64, "{bytes} bytes of journal");
    let count = |number: &AtomicU64| number.load(SeqCst);
    eprintln!(
        "seed {seed}, plan {plan}: {} deaths in {took:?}; {} calls, {} of them cut, {} looks, \
         {} descriptors given, {} entries at the end, {bytes} bytes of journal, {} restores",
        deaths.values().sum::<usize>(),
        count(&tally.calls),
        count(&tally.lost),
        count(&tally.looks),
        count(&tally.gifts),
        entries.len(),
        daemon.statistics().restores,
    );
    deaths
}

#[test]
fn at_whichever_step_the_server_dies_nothing_that_was_acknowledged_is_lost() {
    const HANDING_OVER: &str = "drain|handover|keeper|baton|door|nobody|journal|restore";
    let seed = seed();

    let mut deaths = thread::scope(|scope| {
        let upgraded = scope.spawn(move || {
            let plan = format!("20,{HANDING_OVER}");
            survive(Trial { seed: seed + 1, plan, peers: 3, deaths: 400, is_upgraded: true })
        });
        let plan = "120".to_owned();
        let trial = Trial { seed, plan, peers: 5, deaths: 2000, is_upgraded: false };
        let mut deaths = survive(trial);
        let upgraded = upgraded.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        for (step, count) in upgraded {
            *deaths.entry(step).or_default() += count;
        }
        deaths
    });

    for (step, count) in &deaths {
        eprintln!("{count:6} {step}");
    }
    let missed: Vec<_> = steps().into_iter().filter(|step| deaths.remove(step).is_none()).collect();
    assert_eq!(missed, [""; 0], "at these nobody has died");
    assert_eq!(deaths, BTreeMap::new(), "these nobody knows");
}

/// For a machine that is busy with something else.
const LONGEST_TRIAL: Duration = Duration::from_secs(300);

/// Ends a server, and waits until the next one answers.
fn kill_the_server_of(daemon: &Daemon) {
    daemon.kill_server();
    wait_until(SOON, || daemon.client().statistics().is_ok());
}

#[test]
fn upgrades_and_deaths_are_no_error_for_those_who_use_the_library() {
    const TIMES: usize = 100;
    let daemon = Daemon::builder().own_program().spawn();
    let (is_over, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let longest = Mutex::new(Duration::ZERO);

    thread::scope(|scope| {
        let threads = [0, 1, 2].map(|at| {
            let (daemon, is_over, calls, longest) = (&daemon, &is_over, &calls, &longest);
            scope.spawn(move || {
                let mut client = daemon.client();
                let path = daemon.path(&format!("file{at}"));
                let kept = file(&path, "kept");
                let name = name(&format!("file{at}"));
                let mut pause = Duration::ZERO;
                let mut timed = |act: &mut dyn FnMut()| {
                    let began = Instant::now();
                    act();
                    pause = pause.max(began.elapsed());
                    calls.fetch_add(1, SeqCst);
                };
                while !is_over.load(SeqCst) {
                    let names = [name.clone()];
                    timed(&mut || drop(client.give(&[Gift::new(name.clone(), &kept)]).unwrap()));
                    timed(&mut || {
                        let reopened = client.reopen(&[Reopening::new(name.clone())]).unwrap();
                        assert_eq!(identity(only(reopened)), identity(&kept));
                    });
                    timed(&mut || {
                        assert_eq!(identity(only(client.take(&names).unwrap())), identity(&kept));
                    });
                }
                let mut longest = longest.lock().unwrap_or_else(PoisonError::into_inner);
                *longest = pause.max(*longest);
            })
        });
        for _ in 0..TIMES {
            if threads.iter().any(|thread| thread.is_finished()) {
                break;
            }
            daemon.upgrade();
            daemon.kill_server();
        }
        is_over.store(true, SeqCst);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });

    assert_eq!(daemon.statistics().restores, 2 * TIMES as u64);
    assert_eq!(daemon.statistics().entries, 0);
    eprintln!(
        "{} calls, none of them failed, over {TIMES} upgrades and {TIMES} deaths; the longest took {:?}",
        calls.load(SeqCst),
        longest.lock().unwrap_or_else(PoisonError::into_inner),
    );
}

/// The message of a call that is answered more than once.
fn watching() -> Vec<u8> {
    kit::messages(&[json!({"method": "org.fdstash.Stash.Watch", "more": true})])
}

#[test]
fn what_rests_goes_on_with_the_next_version() {
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("a"), "kept");
    let (mut idle, mut watcher, mut waiter) = (daemon.raw(), daemon.raw(), daemon.raw());
    let (mut half, mut many, mut giver) = (daemon.raw(), daemon.raw(), daemon.raw());
    idle.call("GetStatistics", &json!({}));
    watcher.say(&watching());
    watcher.reply();
    waiter.say(&call("Take", &json!({ "names": ["later"], "timeoutUSec": 60_000_000 })));
    let message = call("Give", &kit::gifts(&["half"]));
    half.send(&message[..20], &[&kept]);
    let ephemeral = json!({ "name": "while", "fileDescriptor": 0, "ephemeral": true });
    giver.send(&call("Give", &json!({ "entries": [ephemeral] })), &[&kept]);
    giver.reply();
    watcher.reply();
    // A pipelining client: what it has sent is answered in order, before and after.
    let names: Vec<_> = (0..200).map(|at| format!("many{at:03}")).collect();
    let begun: Vec<u8> = names.iter().flat_map(|name| call("Give", &kit::gifts(&[name]))).collect();

    let sent = thread::scope(|scope| {
        let many = &many;
        let fds: Vec<_> = names.iter().map(|_| &kept).collect();
        let sending = scope.spawn(move || many.try_send(&begun, &fds));
        daemon.upgrade();
        sending.join().expect("a thread ends")
    });

    assert!(sent);
    for _ in &names {
        assert_eq!(many.reply()["parameters"]["replaced"], json!([]));
        let told = watcher.reply();
        assert_eq!(told["parameters"]["change"], "given", "{told}");
    }
    assert_eq!(idle.call("GetStatistics", &json!({}))["parameters"]["keeper"], "process");
    half.say(&message[20..]);
    assert_eq!(half.reply()["parameters"]["replaced"], json!([]));
    assert_eq!(watcher.reply()["parameters"]["entry"]["name"], "half");
    idle.give(&["later"], &[&kept]);
    assert_eq!(waiter.reply()["parameters"]["entries"][0]["name"], "later");
    assert_eq!(identity(&waiter.fds()[0]), identity(&kept));
    let ephemeral = |raw: &mut Raw| {
        raw.call("List", &json!({ "pattern": "while" }))["parameters"]["entries"]
            .as_array()
            .map_or(0, Vec::len)
    };
    assert_eq!(ephemeral(&mut idle), 1, "its connection lives");
    drop(giver);
    wait_until(SOON, || ephemeral(&mut idle) == 0);
    assert_eq!(daemon.processes(), 2);
}

#[test]
fn a_transaction_is_served_to_its_commit_before_the_next_version_takes_over() {
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("a"), "kept");
    let mut raw = daemon.raw();
    raw.call("Begin", &json!({}));
    raw.give(&["a"], &[&kept]);

    daemon.signal(Signal::HUP);
    wait_until(SOON, || daemon.log().contains("making way"));
    // Who comes meanwhile is let wait, and not refused.
    let mut late = daemon.raw();
    late.say(&call("List", &json!({})));
    raw.give(&["b"], &[&kept]);
    let committed = raw.call("Commit", &json!({}));

    assert_eq!(committed["error"], Value::Null);
    wait_until(SOON, || daemon.servers() == 2);
    assert_eq!(late.reply()["parameters"]["entries"].as_array().map_or(0, Vec::len), 2);
    assert_eq!(raw.call("GetStatistics", &json!({}))["parameters"]["entries"], 2);
}

#[test]
fn a_command_that_waits_goes_on_over_upgrades_and_deaths() {
    let daemon = Daemon::spawn();
    let mut waiting = daemon.command();
    waiting.args(["take", "later", "--wait", "60", "--", "cat"]).stdout(Stdio::piped());
    let waiting = waiting.spawn().unwrap();
    let stands = || daemon.statistics().transactions == 1;
    wait_until(SOON, stands);
    let began = Instant::now();

    daemon.upgrade();
    assert!(began.elapsed() < Duration::from_secs(2), "nobody waits for who only waits");
    assert!(stands(), "it goes on by itself");
    kill_the_server_of(&daemon);
    wait_until(SOON, stands);
    fs::write(daemon.path("later"), "at last").unwrap();
    daemon.client().give(&[gift("later", File::open(daemon.path("later")).unwrap())]).unwrap();

    let output = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "at last", "{output:?}");
}

#[test]
fn who_is_at_the_other_end_stays_known_over_an_upgrade() {
    if !is_root() {
        return kit::skipped("to be another user takes root");
    }
    let daemon = Daemon::spawn();
    let (one, other) = (User::new(61001), User::new(61002));
    let kept = file(daemon.path("a"), "kept");
    let (mut of_one, mut of_other) = (one.run(|| daemon.raw()), other.run(|| daemon.raw()));
    of_one.give(&["a"], &[&kept]);
    of_other.call("List", &json!({}));

    daemon.upgrade();

    let listed = of_one.call("List", &json!({}));
    assert_eq!(listed["parameters"]["entries"][0]["giver"]["uid"], 61001);
    assert_eq!(of_other.call("List", &json!({}))["parameters"]["entries"], json!([]));
    let refused = of_other.call("Take", &json!({ "names": ["a"] }));
    assert_eq!(refused["error"], "org.fdstash.Stash.NotFound");
    assert_eq!(of_one.call("Take", &json!({ "names": ["a"] }))["error"], Value::Null);
}

#[test]
fn a_program_that_does_not_start_leaves_the_one_that_runs() {
    let programs: [(&str, Option<&str>, &str); 5] = [
        ("fails", Some("#!/bin/sh\nexit 1\n"), "ended with status 1"),
        ("is another", Some("#!/bin/sh\nexit 0\n"), "is another program"),
        ("is empty", Some(""), "the upgrade failed"),
        ("is not there", None, "No such file"),
        ("hangs", Some("#!/bin/sh\nexec sleep 1000\n"), "did not say in time"),
    ];

    thread::scope(|scope| {
        for (which, script, why) in programs {
            scope.spawn(move || {
                let daemon = Daemon::builder().own_program().spawn();
                let mut raw = daemon.raw();
                raw.give(&["a"], &[&file(daemon.path("a"), "kept")]);
                fs::remove_file(daemon.program()).expect("it is there");
                if let Some(script) = script {
                    install_script(script, &daemon.program());
                }

                daemon.signal(Signal::HUP);
                wait_until(Duration::from_secs(40), || daemon.log().contains("the upgrade failed"));

                assert!(daemon.log().contains(why), "{which}: {}", daemon.log());
                assert_eq!(raw.call("GetStatistics", &json!({}))["parameters"]["restores"], 0);
                assert_eq!(raw.call("Take", &json!({ "names": ["a"] }))["error"], Value::Null);
                assert_eq!(read(&raw.fds()[0]), "kept");
                wait_until(SOON, || daemon.processes() == 2);
                // And a good one is taken later.
                install_program(&program("fdstashd"), &daemon.program());
                daemon.upgrade();
                assert_eq!(raw.call("GetStatistics", &json!({}))["parameters"]["restores"], 1);
                let there = fs::metadata(daemon.program()).expect("it is there").ino();
                assert_eq!(inode_of_program(daemon.pid()), there);
            });
        }
    });
}

#[test]
fn whichever_of_keeper_and_server_dies_the_other_makes_it_anew() {
    let mut daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("a"), "kept");
    client.give(&[gift("a", &kept)]).unwrap();
    let mut raw = daemon.raw();
    daemon.kill_keeper();

    for round in 1..=6 {
        let before = daemon.server().1;
        if round > 1 {
            kill_process(before, Signal::KILL).unwrap();
        }
        // It serves on, over the same connection, and makes itself another.
        wait_until(SOON, || daemon.log().matches("made another").count() == round);
        assert_eq!(raw.call("GetStatistics", &json!({}))["error"], Value::Null);

        kill_the_server_of(&daemon);

        assert_ne!(daemon.server().1, before);
        assert!(raw.is_hung_up_on());
        raw = daemon.raw();
        assert_eq!(identity(only(client.copy(&names(["a"])).unwrap())), identity(&kept));
        assert_eq!(daemon.statistics().restores, round as u64);
    }

    kill_process(daemon.server().1, Signal::TERM).unwrap();
    wait_until(SOON, || daemon.processes() == 0);
    assert!(!daemon.socket().exists() && !daemon.socket().with_extension("lock").exists());
}

#[test]
fn a_keeper_that_dies_while_its_server_starts_is_made_anew_as_well() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut survived = 0;
    for _ in 0..8 {
        let mut daemon = Daemon::spawn();
        let kept = file(daemon.path("a"), "kept");
        daemon.client().give(&[gift("a", &kept)]).unwrap();
        let (server, keeper) = daemon.server();

        kill_process(server, Signal::KILL).unwrap();
        // Somewhere between its taking note and the next server's being ready.
        let (died, pause) = (Instant::now(), Duration::from_micros(random.number() % 5000));
        while died.elapsed() < pause {
            std::hint::spin_loop();
        }
        kill_process(keeper, Signal::KILL).unwrap();
        daemon.kill_keeper();

        wait_until(SOON, || daemon.processes() == 0 || daemon.log().contains("made another"));
        if daemon.processes() == 0 {
            // Both were dead at once: then everything is lost, and the kernel has closed it.
            continue;
        }
        survived += 1;
        kill_the_server_of(&daemon);
        let copy = only(daemon.client().copy(&names(["a"])).unwrap());
        assert_eq!(identity(copy), identity(&kept));
    }
    eprintln!("{survived} of 8 have survived that keeper and server died one after the other");
}

#[test]
fn a_server_that_hangs_is_replaced() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("a"), "kept");
    client.give(&[gift("a", &kept)]).unwrap();
    let began = Instant::now();

    kill_process(daemon.server().0, Signal::STOP).unwrap();
    wait_until(Duration::from_secs(30), || daemon.servers() == 2);

    eprintln!("a server that hangs was replaced after {:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_secs(8));
    assert_eq!(identity(only(client.take(&names(["a"])).unwrap())), identity(&kept));
}

#[test]
fn a_keeper_that_hangs_is_replaced_too() {
    let mut daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("a"), "kept");
    client.give(&[gift("a", &kept)]).unwrap();

    kill_process(daemon.pid(), Signal::STOP).unwrap();
    wait_until(Duration::from_secs(30), || daemon.log().contains("made another"));

    daemon.kill_keeper();
    kill_the_server_of(&daemon);
    assert_eq!(identity(only(client.take(&names(["a"])).unwrap())), identity(&kept));
}

#[test]
fn servers_that_are_of_no_use_are_started_ever_more_seldom() {
    // Each dies at the first step that it comes to.
    let mut daemon = Daemon::builder().crashing("1,1".into()).spawn();
    let began = Instant::now();

    wait_until(Duration::from_secs(30), || daemon.log().matches("dying ").count() > 11);

    // 5 ms, doubled each time, from the fourth on: 10, 20, 40 ...
    assert!(began.elapsed() > Duration::from_millis(1000), "{:?}", began.elapsed());
    daemon.signal(Signal::TERM);
    daemon.terminate();
    assert_eq!(daemon.processes(), 0);
}

#[test]
fn time_goes_on_while_servers_die() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (kept, began) = (file(daemon.path("a"), "kept"), Instant::now());
    let expires = |text, msec: u64| Gift { expire_usec: Some(msec * 1000), ..gift(text, &kept) };
    client.give(&[expires("soon", 1500), expires("later", 3_600_000)]).unwrap();
    let at = |client: &mut blocking::Client| {
        client.list(&pattern("later")).unwrap()[0].expires_at_usec.unwrap()
    };
    let before = at(&mut client);

    kill_the_server_of(&daemon);
    daemon.upgrade();

    assert!(at(&mut client).abs_diff(before) < 500_000, "not anew from each life on");
    wait_until(SOON, || client.list(&pattern("*")).unwrap().len() == 1);
    assert!(began.elapsed() >= Duration::from_millis(1500));
    assert_eq!(client.statistics().unwrap().expired, 1);
}

#[test]
fn a_death_ends_what_was_not_final() {
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("a"), "kept");
    let (pipe_reader, pipe_writer) = rustix::pipe::pipe().unwrap();
    let mut raw = daemon.raw();
    let ephemeral = json!({ "name": "while", "fileDescriptor": 0, "ephemeral": true });
    let hanging = json!({ "name": "pipe", "fileDescriptor": 1, "closeOnHangup": true });
    let plain = json!({ "name": "plain", "fileDescriptor": 2 });
    let gifts = json!({ "entries": [ephemeral, hanging, plain] });
    raw.send(&call("Give", &gifts), &[kept.as_fd(), pipe_reader.as_fd(), kept.as_fd()]);
    raw.reply();
    raw.call("Begin", &json!({}));
    raw.call("Take", &json!({ "names": ["plain"] }));
    raw.give(&["new"], &[&kept]);
    let mut other = daemon.raw();
    let busy = other.call("Take", &json!({ "names": ["plain"] }));
    assert_eq!(busy["error"], "org.fdstash.Stash.Busy");

    kill_the_server_of(&daemon);

    assert!(raw.is_hung_up_on());
    let mut client = daemon.client();
    let listed = |client: &mut blocking::Client| -> Vec<String> {
        client.list(&pattern("*")).unwrap().iter().map(|entry| entry.name.to_string()).collect()
    };
    assert_eq!(listed(&mut client), ["pipe", "plain"]);
    only(client.take(&names(["plain"])).unwrap());
    drop((pipe_writer, pipe_reader));
    wait_until(SOON, || listed(&mut client).is_empty());
    let told = client.statistics().unwrap();
    assert_eq!((told.keeper, told.restores), (fdstash::Keeper::Process, 1));
}

#[test]
fn a_receiver_without_room_or_that_is_killed_leaves_what_it_did_not_get() {
    let seed = seed();
    let (mut random, daemon) = (Random::new(seed), Daemon::spawn());
    let mut client = daemon.client();
    let receiver = |most: usize| {
        let mut shell = Command::new("/bin/sh");
        let limited = format!("ulimit -n {most}; exec \"$0\" take one two three -- cat");
        shell.arg("-c").arg(limited).arg(program("fdstash"));
        shell.env("FDSTASH_SOCKET", daemon.socket()).stdin(Stdio::null());
        shell.stdout(Stdio::piped()).stderr(Stdio::null());
        shell
    };
    let (mut came, mut stayed) = (0, 0);
    let fill = |client: &mut blocking::Client| {
        let kept = ["one", "two", "three"].map(make);
        let gifts = kept.iter().map(|(file, known)| gift(&known.text, file)).collect::<Vec<_>>();
        client.give(&gifts).unwrap();
    };
    let there = |client: &mut blocking::Client| client.list(&pattern("*")).unwrap().len();

    for most in 3..40 {
        fill(&mut client);

        let output = receiver(most).output().expect("a shell can be started");

        let has_come = there(&mut client) == 0;
        assert!(has_come || there(&mut client) == 3, "with {most} descriptors");
        let is_told = output.stdout == b"one";
        assert_eq!(is_told, output.status.success(), "with {most} descriptors: {output:?}");
        // Where the command was executed with them and had no room itself, its loader says 127.
        let is_executed = is_told || output.status.code() == Some(127);
        assert!(has_come || !is_told, "with {most} descriptors");
        assert!(is_executed || !has_come, "with {most} descriptors: {output:?}");
        came += usize::from(has_come);
        stayed += usize::from(!has_come);
    }
    assert!(came > 0 && stayed > 0, "{came} came, {stayed} stayed");

    let mut killed = [0; 2];
    for _ in 0..60 {
        fill(&mut client);
        let mut receiver = receiver(100).spawn().expect("a shell can be started");
        let (began, pause) = (Instant::now(), Duration::from_micros(random.number() % 12_000));
        while began.elapsed() < pause {
            std::hint::spin_loop();
        }
        receiver.kill().expect("it is ours");
        receiver.wait().expect("it has ended");

        wait_until(SOON, || daemon.statistics().connections == 2);
        // All or none, and nobody holds them any more.
        match there(&mut client) {
            3 => {
                for handed in client.take(&names(["one", "two", "three"])).unwrap() {
                    assert_eq!(read(&handed.fd), handed.name.as_str());
                }
                killed[0] += 1;
            }
            0 => killed[1] += 1,
            other => panic!("{other} of 3 are there"),
        }
    }
    eprintln!(
        "with too little room {stayed} stayed, else {came} came; of 60 that were killed {} had not \
         taken them, and {} had",
        killed[0], killed[1]
    );
}

#[test]
fn a_full_stash_comes_back() {
    kit::raise_open_files();
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let most = usize::try_from(client.statistics().unwrap().max_entries).unwrap().min(50_000);
    let kept = file(daemon.path("a"), "kept");
    let all: Vec<_> = (0..most).map(|at| gift(&format!("n{at:05}"), &kept)).collect();
    for gifts in all.chunks(10_000) {
        client.give(gifts).unwrap();
    }
    let connections: Vec<_> = (0..20).map(|_| daemon.raw()).collect();

    for _ in 0..3 {
        kill_process(daemon.server().0, Signal::KILL).unwrap();
        let began = Instant::now();
        client.statistics().unwrap();
        let answered = began.elapsed();
        let entries = client.list(&pattern("*")).unwrap();
        let listed = began.elapsed();

        assert_eq!(entries.len(), most);
        assert!(entries.iter().all(|entry| (entry.device, entry.inode) == identity(&kept)));
        eprintln!(
            "{most} entries: the first answer after {answered:?}, all listed after {listed:?}"
        );
        wait_until(SOON, || daemon.servers() > 0);
    }
    drop(connections);
    let copy = client.copy(&names(["n00000"])).unwrap();
    assert_eq!(identity(only(copy)), identity(&kept));
}

#[test]
fn asked_to_end_in_the_middle_of_an_upgrade_it_ends() {
    let mut daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    raw.call("Begin", &json!({}));
    raw.give(&["staged"], &[&file(daemon.path("staged"), "")]);
    daemon.signal(Signal::HUP);
    wait_until(SOON, || daemon.log().contains("making way"));

    daemon.signal(Signal::TERM);
    raw.call("Commit", &json!({}));
    let status = daemon.terminate();

    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    wait_until(SOON, || daemon.processes() == 0);
    // Of the next version, where that was about to take over before it could hear of it.
    assert!(daemon.servers() <= 2, "{}", daemon.log());
    assert!(!daemon.socket().exists() && !daemon.socket().with_extension("lock").exists());
}
