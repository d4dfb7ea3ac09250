//! Who may do what, verb by verb: what the interface grants, and what rules give and keep.

use std::collections::BTreeSet;

use fdstash_proto::{Access, Flags, Kind, Name, Pattern, Peer, Share};
use fdstash_stash::{
    Allow, Details, EntryId, Facts, Notes, Origin, Reason, Reserve, Rules, UNMAPPED, Verb, Verdict,
    Who, Whom, explain, judge,
};

use Verb::{Close, Copy, Give, List, Reopen, ReopenByPath, Take};
use Verdict::{Allowed, Denied, Hidden};

#[test]
fn each_verb_is_judged_for_each_sort_of_peer() {
    let entry = entry_of(1, Share { uids: vec![2], gids: vec![30, 31] });
    let rules = Rules {
        allow: vec![
            allow(&[4], &[], &["di*"], &[Copy, List]),
            allow(&[], &[40], &["other", "disk"], &[Reopen]),
            allow(&[4, 1], &[], &["?isk"], &[Close, ReopenByPath]),
            allow(&[5], &[40], &["other"], &Verb::ALL),
        ],
        ..Rules::default()
    };
    let but_by_path: &[Verb] = &[Give, Take, Copy, Close, Reopen, List];

    // Who it is, and what it may do, if it may know of the entry at all.
    for (what, who, may) in [
        ("root", who(0, 0, &[]), Some(but_by_path)),
        (
            "its giver's user in another group, whom a rule lets too",
            who(1, 99, &[]),
            Some(&Verb::ALL),
        ),
        ("a user that it is shared with", who(2, 99, &[]), Some(but_by_path)),
        ("a primary group that it is shared with", who(3, 30, &[]), Some(but_by_path)),
        ("a supplementary one", who(3, 99, &[98, 31]), Some(but_by_path)),
        ("a user whom two rules let", who(4, 99, &[]), Some(&[Copy, List, Close, ReopenByPath])),
        ("a primary group that a rule lets", who(6, 40, &[]), Some(&[Reopen])),
        ("a supplementary one", who(6, 99, &[41, 40]), Some(&[Reopen])),
        ("both", who(4, 40, &[]), Some(&[Copy, List, Close, ReopenByPath, Reopen])),
        ("a user whom a rule lets under another name", who(5, 99, &[]), None),
        ("a stranger", who(7, 99, &[98]), None),
        ("a user with the number of groups", who(40, 99, &[]), None),
        ("a group with the numbers of users", who(7, 1, &[0, 2, 4]), None),
    ] {
        for verb in Verb::ALL {
            let expected = match may {
                None => Hidden,
                Some(verbs) if verbs.contains(&verb) => Allowed,
                Some(_) => Denied,
            };
            assert_eq!(judge(&rules, &who, verb, &entry), expected, "{what}, {verb:?}");
            let (explained, _) = explain(&rules, &who, verb, &entry.name, Some(&entry));
            assert_eq!(explained, expected, "{what}, {verb:?}, explained");
        }
    }
}

#[test]
fn without_rules_whoever_may_know_of_an_entry_may_do_everything_but_open_by_path() {
    let entry = entry_of(1, Share::default());
    let none = Rules::default();

    for (uid, otherwise, by_path) in
        [(0, Allowed, Denied), (1, Allowed, Denied), (2, Hidden, Hidden)]
    {
        for verb in Verb::ALL {
            let expected = if verb == ReopenByPath { by_path } else { otherwise };
            assert_eq!(judge(&none, &who(uid, uid, &[]), verb, &entry), expected, "{uid} {verb:?}");
        }
    }
}

#[test]
fn what_is_kept_for_some_is_given_by_them_and_root_alone() {
    let rules = Rules {
        allow: vec![allow(&[3], &[], &["*"], &[Give])],
        reserve: vec![reserve(&[2], &[], &["vm*"]), reserve(&[], &[50], &["vm7-*"])],
        ..Rules::default()
    };

    // Whoever it is, the name, and in which line stands what keeps it from this one.
    for (who, name, kept_by) in [
        (who(0, 0, &[]), "vm1", None),
        (who(2, 2, &[]), "vm1", None),
        (who(3, 3, &[]), "vm1", Some(1)),
        (who(3, 3, &[50]), "vm1", Some(1)),
        (who(3, 3, &[50]), "vm7-disk", None),
        (who(2, 2, &[]), "vm7-disk", None),
        (who(4, 4, &[]), "vm7-disk", Some(1)),
        (who(4, 4, &[]), "v", None),
    ] {
        let origin = rules.keep_from(&who, &Name::new(name).unwrap());

        assert_eq!(origin.map(|origin| origin.line), kept_by, "{who:?} {name}");
    }
}

#[test]
fn an_explanation_names_what_decides() {
    let entry = entry_of(1, Share { uids: vec![2], gids: vec![30] });
    let rule = Origin { line: 7, ..origin() };
    let rules = Rules {
        allow: vec![
            allow(&[9], &[], &["*"], &[Take]),
            Allow { origin: rule.clone(), ..allow(&[4], &[], &["disk", "free"], &[Take, Give]) },
        ],
        reserve: vec![Reserve { origin: rule.clone(), ..reserve(&[5], &[], &["kept"]) }],
        ..Rules::default()
    };
    let (allow, keep) = ((Reason::Allow, Some(7)), (Reason::Reserve, Some(7)));

    for (uid, gid, verb, name, expected) in [
        (0, 0, Take, "disk", (Allowed, (Reason::Root, None))),
        (1, 1, Take, "disk", (Allowed, (Reason::Giver, None))),
        (2, 2, Take, "disk", (Allowed, (Reason::Share, None))),
        (3, 30, Give, "disk", (Allowed, (Reason::Share, None))),
        (4, 4, Take, "disk", (Allowed, allow)),
        (4, 4, Copy, "disk", (Denied, (Reason::Nothing, None))),
        (3, 3, Take, "disk", (Hidden, (Reason::Nothing, None))),
        (1, 1, ReopenByPath, "disk", (Denied, (Reason::Nothing, None))),
        // Where nothing is kept.
        (4, 4, Take, "free", (Allowed, allow)),
        (1, 1, Take, "free", (Hidden, (Reason::Nothing, None))),
        (3, 3, Give, "free", (Allowed, (Reason::Free, None))),
        (0, 0, Give, "kept", (Allowed, (Reason::Root, None))),
        (5, 5, Give, "kept", (Allowed, keep)),
        (1, 1, Give, "kept", (Denied, keep)),
    ] {
        let kept = Some(&entry).filter(|entry| entry.name.as_str() == name);

        let (verdict, because) =
            explain(&rules, &who(uid, gid, &[]), verb, &Name::new(name).unwrap(), kept);

        let because = (because.reason, because.rule.map(|rule| rule.line));
        assert_eq!((verdict, because), expected, "{uid} {gid} {verb:?} {name}");
    }
}

fn who(uid: u32, gid: u32, groups: &[u32]) -> Who {
    Who { peer: Peer { uid, gid, pid: 7 }, groups: groups.into() }
}

fn allow(users: &[u32], groups: &[u32], names: &[&str], verbs: &[Verb]) -> Allow {
    let verbs: BTreeSet<_> = verbs.iter().copied().collect();
    Allow {
        whom: whom(users, groups),
        names: patterns(names),
        verbs,
        below: vec![],
        origin: origin(),
    }
}

fn reserve(users: &[u32], groups: &[u32], names: &[&str]) -> Reserve {
    Reserve { whom: whom(users, groups), names: patterns(names), origin: origin() }
}

fn whom(users: &[u32], groups: &[u32]) -> Whom {
    Whom { users: users.iter().copied().collect(), groups: groups.iter().copied().collect() }
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).expect("a pattern")).collect()
}

fn origin() -> Origin {
    Origin { file: "policy.toml".into(), line: 1 }
}

fn entry_of(uid: u32, share: Share) -> Details {
    let facts = Facts {
        kind: Kind::Regular,
        access: Access::ReadWrite,
        flags: Flags::NONE,
        device: 1,
        inode: 1,
        target: None,
    };
    Details {
        id: EntryId(1),
        name: Name::new("disk").expect("a name"),
        facts,
        may_reopen: Access::ReadWrite,
        giver: Peer { uid, gid: 10, pid: 6 },
        given_at_usec: 0,
        notes: Notes { share, ..Notes::default() }.into_box(),
        revision: 1,
    }
}

#[test]
fn what_a_number_gives_is_for_nobody_who_has_none() {
    const NONE: u32 = UNMAPPED;
    let entry = entry_of(NONE, Share { uids: vec![NONE], gids: vec![NONE, 30] });
    let rules = Rules {
        allow: vec![
            allow(&[NONE], &[NONE], &["*"], &Verb::ALL),
            allow(&[], &[40], &["*"], &[Copy]),
        ],
        ..Rules::default()
    };

    // Who it is, what it may do, and whether it may give a name that is free.
    for (what, who, may, gives) in [
        ("a user and a group without a number", who(NONE, NONE, &[NONE]), None, false),
        ("one of a group that has one", who(NONE, 99, &[NONE, 98]), None, false),
        ("one of a group that a rule lets", who(NONE, 40, &[NONE]), Some(&[Copy][..]), false),
        (
            "one of a group that it is shared with",
            who(NONE, NONE, &[30]),
            Some(&[Give, Take, Copy, Close, Reopen, List][..]),
            false,
        ),
        ("a user whose groups have none", who(7, NONE, &[NONE]), None, true),
    ] {
        for verb in Verb::ALL {
            let expected = match may {
                None => Hidden,
                Some(verbs) if verbs.contains(&verb) => Allowed,
                Some(_) => Denied,
            };
            assert_eq!(judge(&rules, &who, verb, &entry), expected, "{what}, {verb:?}");
        }
        let (free, _) = explain(&rules, &who, Give, &entry.name, None);
        assert_eq!(free, if gives { Allowed } else { Denied }, "{what}");
        assert!(!who.is_mapped(), "{what}");
    }
}
