//! Each verb, for each sort of peer, as one table; alone and in a transaction; and that a refusal tells
//! nothing to whom it may tell nothing.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
};

use fdstash::{Access, Change, Gift, Notice, Share, blocking::Client};
use kit::{Daemon, Raw, User, call, can_be_others, file, gift, null, pattern};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

const ALICE: u32 = 61001;
const BOB: u32 = 61002;
const CAROL: u32 = 61003;
const RULED: u32 = 61004;
const STRANGER: u32 = 61005;
const TEAM: u32 = 61100;
const CREW: u32 = 61200;

/// What comes of each verb on what Alice has given: done (`yes`), AccessDenied (`no`), NotFound (`none`),
/// or ReopenFailed with an errno. She shares it with Bob and with the group TEAM. The policy lets RULED
/// and the group CREW list, copy, and reopen by path. The file is Alice's alone.
#[rustfmt::skip]
const TABLE: [(&str, [&str; 10]); 12] = [
    //                  giver   shared with              the policy's                 nobody's business    root
    //                          uid       group  primary uid     group   primary      other   crosswise
    ("give over",      ["yes",  "yes",    "yes",    "yes",    "no",   "no",   "no",   "no",   "no",   "yes"]),
    ("take",           ["yes",  "yes",    "yes",    "yes",    "no",   "no",   "no",   "none", "none", "yes"]),
    ("wait to take",   ["yes",  "yes",    "yes",    "yes",    "no",   "no",   "no",   "none", "none", "yes"]),
    ("copy",           ["yes",  "yes",    "yes",    "yes",    "yes",  "yes",  "yes",  "none", "none", "yes"]),
    ("copy fresh",     ["yes",  "yes",    "yes",    "yes",    "yes",  "yes",  "yes",  "none", "none", "yes"]),
    ("close",          ["yes",  "yes",    "yes",    "yes",    "no",   "no",   "no",   "none", "none", "yes"]),
    ("reopen",         ["yes",  "yes",    "yes",    "yes",    "no",   "no",   "no",   "none", "none", "yes"]),
    ("reopen wider",   ["yes",  "EACCES", "EACCES", "EACCES", "no",   "no",   "no",   "none", "none", "yes"]),
    ("not append",     ["yes",  "EACCES", "EACCES", "EACCES", "no",   "no",   "no",   "none", "none", "yes"]),
    ("reopen by path", ["no",   "no",     "no",     "no",     "yes",  "yes",  "yes",  "none", "none", "no"]),
    ("list",           ["yes",  "yes",    "yes",    "yes",    "yes",  "yes",  "yes",  "none", "none", "yes"]),
    ("watch",          ["yes",  "yes",    "yes",    "yes",    "yes",  "yes",  "yes",  "none", "none", "yes"]),
];

/// Those of the columns.
fn people() -> [User; 10] {
    [
        User::new(ALICE),
        User::new(BOB),
        User::new(CAROL).in_groups(&[7, TEAM]),
        User { gid: TEAM, ..User::new(CAROL) },
        User::new(RULED),
        User::new(CAROL).in_groups(&[CREW, 8]),
        User { gid: CREW, ..User::new(CAROL) },
        User::new(STRANGER).in_groups(&[7, 8]),
        // Users' numbers are no groups', and the other way round.
        User { uid: TEAM, gid: BOB, groups: vec![ALICE, RULED] },
        User::new(0),
    ]
}

/// A daemon with that policy, and Alice's file.
struct Stage {
    folder: TempDir,
    daemon: Daemon,
    of_alice: Client,
    append: File,
    read_only: File,
}

impl Stage {
    /// None, where the test cannot be other users.
    fn new() -> Option<Self> {
        if !can_be_others() {
            return None;
        }
        let folder = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().permissions(folder).tempdir().expect("a folder");
        let public = folder.path().join("public");
        file(&public, "public");
        fs::set_permissions(&public, Permissions::from_mode(0o666)).expect("a mode can be set");
        let rule = format!(
            "[[allow]]\nusers = [{RULED}]\ngroups = [{CREW}]\nnames = ['*']\n\
             verbs = ['list', 'copy', 'reopen by path']\nbelow = ['{}']\n",
            folder.path().display()
        );
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, rule).expect("a policy can be written");
        let daemon = Daemon::builder().arg("--policy").arg(&policy).spawn();
        let alone = daemon.path("of-alice");
        file(&alone, "of alice");
        chown(&alone, Some(ALICE), Some(ALICE)).expect("root can give a file away");
        fs::set_permissions(&alone, Permissions::from_mode(0o600)).expect("a mode can be set");
        let append = OFlags::APPEND.bits().try_into().expect("a flag");
        let append = File::options().read(true).write(true).custom_flags(append).open(&alone);
        let read_only = File::open(&alone).expect("it can be opened");
        let of_alice = daemon.client_as(&User::new(ALICE));
        let append = append.expect("it can be opened");
        Some(Self { folder, daemon, of_alice, append, read_only })
    }

    /// Has Alice give what the verbs are tried on, whatever has become of it.
    fn set(&mut self) {
        let all = [kit::name("e"), kit::name("ro")];
        for name in all {
            // Whoever has given over it, may have it now.
            let _ = self.daemon.client().close(&[name]);
        }
        let share = Share { uids: vec![BOB], gids: vec![TEAM] };
        let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("ro", &self.read_only) };
        for gift in [gift("e", &self.append), wider] {
            self.of_alice.give(&[Gift { share: share.clone(), ..gift }]).expect("Alice may give");
        }
    }

    fn call_of(&self, verb: &str, name: &str) -> (&'static str, Value) {
        let ro = if name == "e" { "ro" } else { name };
        let reopen = |name: &str, what: &str, value: Value| {
            ("Reopen", json!({ "entries": [{ "name": name, what: value }] }))
        };
        match verb {
            "give over" => ("Give", kit::gifts(&[name])),
            "take" => ("Take", json!({ "names": [name] })),
            "wait to take" => ("Take", json!({ "names": [name], "timeoutUSec": 1000 })),
            "copy" => ("Take", json!({ "names": [name], "copy": true })),
            "copy fresh" => ("Take", json!({ "names": [name], "copy": true, "fresh": true })),
            "close" => ("Close", json!({ "names": [name] })),
            "reopen" => reopen(name, "sync", json!(true)),
            "reopen wider" => reopen(ro, "access", json!("read_write")),
            "not append" => reopen(name, "append", json!(false)),
            "reopen by path" => reopen(name, "path", json!(self.folder.path().join("public"))),
            "list" => ("List", json!({ "pattern": name })),
            other => panic!("no verb: {other}"),
        }
    }

    fn attempt(&self, raw: &mut Raw, verb: &str, name: &str) -> Value {
        let (method, parameters) = self.call_of(verb, name);
        let null = [null()];
        let gifts = if verb == "give over" { &null[..] } else { &[] };
        raw.send(&call(method, &parameters), gifts);
        let reply = raw.reply();
        raw.fds();
        reply
    }

    /// Whether somebody who watches is told when Alice changes something.
    fn is_told(&mut self, user: &User) -> &'static str {
        let client = self.daemon.client_as(user);
        let mut watch = user.run(|| client.watch(&pattern("*")).expect("anybody may watch"));
        self.of_alice.close(&[kit::name("e")]).expect("Alice may close what she gave");
        // What is told in any case.
        let share = Share { uids: vec![user.uid], gids: vec![] };
        let marker = Gift { share, ..gift("marker", null()) };
        self.of_alice.give(&[marker]).expect("Alice may give");
        match watch.next().expect("something is told").expect("and can be read") {
            Notice::Changed { change: Change::Closed, entry } if entry.name.as_str() == "e" => {
                "yes"
            }
            Notice::Changed { entry, .. } if entry.name.as_str() == "marker" => "none",
            other @ (Notice::Standing | Notice::Changed { .. } | Notice::Lost(_)) => {
                panic!("told was {other:?}")
            }
        }
    }

    /// All that is there, as root sees it.
    fn all(&self) -> Vec<fdstash::Entry> {
        self.daemon.client().list(&pattern("*")).expect("root may list")
    }
}

/// A reply as the table has it.
fn word(verb: &str, reply: &Value) -> String {
    let error = reply["error"].as_str().map(|error| error.rsplit('.').next().unwrap_or_default());
    match error {
        None if verb == "list" && reply["parameters"]["entries"] == json!([]) => "none".into(),
        None => "yes".into(),
        Some("AccessDenied") => "no".into(),
        Some("NotFound") => "none".into(),
        Some("ReopenFailed") => reply["parameters"]["errnoName"].as_str().unwrap_or("?").into(),
        Some(other) => other.into(),
    }
}

/// The same reply, with another name in it.
fn about(reply: &Value, from: &str, to: &str) -> Value {
    let text = reply.to_string().replace(&format!("\"{from}\""), &format!("\"{to}\""));
    serde_json::from_str(&text).expect("it is JSON still")
}

#[test]
fn each_verb_is_for_each_sort_of_peer_what_the_table_says() {
    let Some(mut stage) = Stage::new() else { return };

    for (at, user) in people().iter().enumerate() {
        for (verb, row) in TABLE {
            stage.set();
            let came = if verb == "watch" {
                stage.is_told(user).into()
            } else {
                let mut raw = user.run(|| stage.daemon.raw());
                let before = stage.all();
                let reply = stage.attempt(&mut raw, verb, "e");
                let came = word(verb, &reply);
                if came != "yes" {
                    assert_eq!(stage.all(), before, "{user:?}: {verb} was refused");
                }
                if came == "none" {
                    let other = stage.attempt(&mut raw, verb, "nothing");
                    let name = if verb == "reopen wider" { "ro" } else { "e" };
                    assert_eq!(about(&other, "nothing", name), reply, "{user:?}: {verb}");
                }
                came
            };

            assert_eq!(came, row[at], "{user:?}: {verb}");
        }
    }
}

#[test]
fn in_a_transaction_each_verb_is_for_each_what_it_is_outside() {
    let Some(mut stage) = Stage::new() else { return };

    for (at, user) in people().iter().enumerate() {
        for (verb, row) in TABLE.into_iter().filter(|(verb, _)| *verb != "watch") {
            for end in ["Commit", "Rollback"] {
                stage.set();
                let mut raw = user.run(|| stage.daemon.raw());
                raw.call("Begin", &json!({}));
                let before = stage.all();
                let reply = stage.attempt(&mut raw, verb, "e");
                assert_eq!(word(verb, &reply), row[at], "{user:?}: {verb}");
                // A refusal holds nothing, and what is staged nobody sees.
                let held = stage.all().iter().any(|entry| entry.held_by.is_some());
                assert!(!held || row[at] == "yes", "{user:?}: {verb} holds what it may not have");

                assert_eq!(raw.call(end, &json!({}))["error"], json!(null));

                let keeps = ["copy", "copy fresh", "list"].contains(&verb) || row[at] != "yes";
                let is_same = stage.all() == before;
                assert_eq!(is_same, keeps || end == "Rollback", "{user:?}: {verb}, {end}");
            }
        }
    }
}

#[test]
fn who_holds_a_name_is_told_to_nobody_who_may_not_know_of_it() {
    let Some(mut stage) = Stage::new() else { return };
    stage.set();
    let mut holder = User::new(ALICE).run(|| stage.daemon.raw());
    holder.call("Begin", &json!({}));
    // One name is there for everybody; one is not there yet; of one nothing is left.
    holder.give(&["e"], &[&stage.read_only]);
    holder.give(&["new"], &[&stage.read_only]);
    holder.give(&["gone"], &[&stage.read_only]);
    holder.call("Close", &json!({ "names": ["gone"] }));
    let nobody = [User::new(STRANGER).in_groups(&[7, 8]), User { gid: BOB, ..User::new(TEAM) }];

    for user in nobody {
        for (verb, _) in TABLE.into_iter().filter(|(verb, _)| *verb != "watch") {
            let mut raw = user.run(|| stage.daemon.raw());
            for name in ["e", "new", "gone"] {
                let reply = stage.attempt(&mut raw, verb, name);
                let name = if name == "e" && verb == "reopen wider" { "ro" } else { name };

                let expected = if verb == "give over" {
                    json!({
                        "error": "org.fdstash.Stash.AccessDenied",
                        "parameters": { "name": name, "verb": "give" },
                    })
                } else {
                    about(&stage.attempt(&mut raw, verb, "nothing"), "nothing", name)
                };
                assert_eq!(reply, expected, "{user:?}: {verb} {name}");
            }
        }
    }
    // Who may know of it is told who has it.
    let mut of_bob = User::new(BOB).run(|| stage.daemon.raw());
    let reply = stage.attempt(&mut of_bob, "take", "e");
    assert_eq!(reply["error"], "org.fdstash.Stash.Busy");
    assert_eq!(reply["parameters"]["heldBy"]["uid"], ALICE);
}
