//! Any text as a policy: it is read, or a line that there is gets the blame.
//!
//! The reader is the daemon's own file. It knows the numbers of a few names, and asks nobody for others.
#![no_main]

#[allow(dead_code)]
#[path = "../../daemon/src/policy/form.rs"]
mod form;
#[allow(dead_code)]
#[path = "../../daemon/src/policy/names.rs"]
mod names;
#[path = "../../daemon/src/policy/text.rs"]
mod text;

use std::{collections::BTreeSet, fmt::Write};

use fdstash_proto::{Name, Pattern, Peer, Verdict};
use fdstash_stash::{Allow, Quota, QuotaRule, Reserve, Rules, Verb, Who, Whom, explain};
use libfuzzer_sys::fuzz_target;
use names::Names;

const FILE: &str = "policy.toml";

fuzz_target!(|text: &str| {
    // One that is at the beginning is not there.
    let text = text.trim_start_matches('\u{feff}');
    match read(text) {
        Ok(rules) => sound(text, &rules),
        Err((line, what)) => {
            assert!((1..=lines(text)).contains(&line), "line {line} of {}: {what}", lines(text));
            assert!(!what.is_empty() && !what.contains('\n'), "{what:?}");
        }
    }
    further_down(text);
});

/// The rules; or the line of the mistake, and what it is.
fn read(text: &str) -> Result<Rules, (u32, String)> {
    let known = "users = { root = 0, alice = 1000 }\ngroups = { root = 0, kvm = 104 }";
    let mut names: Names = toml::from_str(known).expect("names");
    let mut rules = Rules::default();
    match text::read(FILE, text, &mut names, &mut rules) {
        Ok(()) => Ok(rules),
        Err(mistake) => {
            let said = mistake.to_string();
            let place = said.strip_prefix(FILE).and_then(|rest| rest.strip_prefix(':'));
            let parts = place.and_then(|rest| rest.split_once(": "));
            let (line, what) = parts.expect("file, line and what");
            Err((line.parse().expect("the number of a line"), what.to_owned()))
        }
    }
}

fn lines(text: &str) -> u32 {
    1 + text.matches('\n').count() as u32
}

/// Behind two more lines it says the same, two lines further down.
fn further_down(text: &str) {
    let lower = read(&format!("# A comment.\n\n{text}"));
    let mut upper = read(text);
    match &mut upper {
        Ok(Rules { allow, reserve, quota }) => {
            quota.iter_mut().for_each(|rule| rule.origin.line += 2);
            allow.iter_mut().for_each(|rule| rule.origin.line += 2);
            reserve.iter_mut().for_each(|rule| rule.origin.line += 2);
        }
        Err((line, _)) => *line += 2,
    }
    assert_eq!(lower, upper);
}

/// Every rule is whole and stands in a line that there is; written anew, the rules are the same.
fn sound(text: &str, rules: &Rules) {
    let is_whole = |whom: &Whom, names: &[Pattern]| {
        !(whom.users.is_empty() && whom.groups.is_empty() || names.is_empty())
    };
    let mut again = String::new();
    for Allow { whom, names, verbs, below, origin } in &rules.allow {
        assert!(is_whole(whom, names) && !verbs.is_empty(), "{rules:?}");
        assert_eq!(verbs.contains(&Verb::ReopenByPath), !below.is_empty(), "{rules:?}");
        assert!(below.iter().all(|path| path.starts_with('/')), "{below:?}");
        assert!((1..=lines(text)).contains(&origin.line), "{origin:?}");
        write_rule(&mut again, "allow", whom, names);
        let verbs: Vec<_> = verbs.iter().map(|verb| verb.as_str()).collect();
        let below: Vec<_> = below.iter().map(|path| &**path).collect();
        let _ = writeln!(again, "verbs = {}\nbelow = {}", texts(&verbs), texts(&below));
    }
    for Reserve { whom, names, origin } in &rules.reserve {
        assert!(is_whole(whom, names), "{rules:?}");
        assert!((1..=lines(text)).contains(&origin.line), "{origin:?}");
        write_rule(&mut again, "reserve", whom, names);
    }
    for QuotaRule { whom, quota, origin } in &rules.quota {
        assert!((1..=lines(text)).contains(&origin.line), "{origin:?}");
        write_quota(&mut again, whom.as_ref(), quota);
    }
    let mut anew = read(&again).expect("what was written here");
    let lines = rules.allow.iter().map(|rule| &rule.origin);
    let lines = lines.chain(rules.reserve.iter().map(|rule| &rule.origin));
    let lines = lines.chain(rules.quota.iter().map(|rule| &rule.origin));
    let origins = anew.allow.iter_mut().map(|rule| &mut rule.origin);
    let origins = origins.chain(anew.reserve.iter_mut().map(|rule| &mut rule.origin));
    let origins = origins.chain(anew.quota.iter_mut().map(|rule| &mut rule.origin));
    origins.zip(lines).for_each(|(origin, line)| *origin = line.clone());
    assert_eq!(&anew, rules);
    nobody_has_what_no_rule_gives(rules);
}

fn write_rule(to: &mut String, kind: &str, Whom { users, groups }: &Whom, names: &[Pattern]) {
    let names: Vec<_> = names.iter().map(Pattern::as_str).collect();
    let [users, groups] = [users, groups].map(|ids| ids.iter().collect::<Vec<_>>());
    let _ = writeln!(to, "[[{kind}]]\nusers = {users:?}\ngroups = {groups:?}");
    let _ = writeln!(to, "names = {}", texts(&names));
}

/// A rule on quotas names somebody or nobody, and not an empty list.
fn write_quota(to: &mut String, whom: Option<&Whom>, quota: &Quota<Option<u64>>) {
    let _ = writeln!(to, "[[quota]]");
    for (key, ids) in whom.into_iter().flat_map(|it| [("users", &it.users), ("groups", &it.groups)])
    {
        if !ids.is_empty() {
            let _ = writeln!(to, "{key} = {:?}", ids.iter().collect::<Vec<_>>());
        }
    }
    let Quota { entries, connections, label_bytes, waits, watches, transactions, .. } = *quota;
    let idle = quota.idle_usec.map(|usec| usec / 1_000_000);
    let stash = [entries, connections, label_bytes, waits, watches, transactions, quota.opens];
    let all = stash.into_iter().chain([quota.descriptors, quota.bytes, quota.names, idle]);
    for (key, most) in form::KEYS.into_iter().zip(all) {
        let _ = most.map(|most| writeln!(to, "{key} = {most}"));
    }
}

fn texts(all: &[&str]) -> String {
    toml::Value::from(all.to_vec()).to_string()
}

/// Whom no rule names has no right on what others keep.
fn nobody_has_what_no_rule_gives(rules: &Rules) {
    let named: BTreeSet<u32> =
        rules.allow.iter().flat_map(|rule| rule.whom.users.iter().copied()).collect();
    let groups: BTreeSet<u32> =
        rules.allow.iter().flat_map(|rule| rule.whom.groups.iter().copied()).collect();
    let [uid, gid] = [&named, &groups].map(|ids| (1..).find(|id| !ids.contains(id)).unwrap_or(1));
    let stranger = Who { peer: Peer { uid, gid, pid: 1 }, groups: [].into() };
    let name = Name::new("vm7/disk0").expect("a name");
    for verb in Verb::ALL.into_iter().filter(|verb| *verb != Verb::Give) {
        let (verdict, _) = explain(rules, &stranger, verb, &name, None);
        assert_eq!(verdict, Verdict::Hidden, "{verb:?} for {uid}");
    }
}
