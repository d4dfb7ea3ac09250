//! The limits, and the quotas of users: at each of them, and one past it. It is one file, since it is a
//! table with a test in each line.

use fdstash_proto::{Call, Pattern, Peer, Refusal};
use fdstash_stash::{Limits, Origin, Quota, QuotaRule, Rules, Who, Whom};

use crate::stage::{
    Stage, close, commit, fresh, fresh_copy, gift, give, labelled, reopen, shared, take, wait,
};

#[test]
fn so_many_entries_and_no_more() {
    let mut stage = Stage::with_room_for(2, 10, 20);
    let vmm = stage.connect("vmm", 1);

    let two = stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    let third = stage.call(vmm, give([gift("c", "3")]));

    assert_eq!(two[1], "vmm: given");
    assert_eq!(third, ["vmm: LimitExceeded entries 2", "close 3"]);
}

#[test]
fn what_takes_the_place_of_another_needs_no_room() {
    let mut stage = Stage::with_room_for(2, 10, 20);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));

    let replaced = stage.call(vmm, give([gift("a", "3"), gift("b", "4")]));
    stage.call(vmm, reopen(["a"]));
    let reopened = stage.opened(vmm, &[&["5", "lent"]]);

    assert_eq!(replaced[1], "vmm: given, for a b");
    assert_eq!(reopened[1], "vmm: has a=lent");
}

#[test]
fn in_a_transaction_the_old_one_keeps_its_place_until_commit() {
    let mut stage = Stage::with_room_for(10, 10, 3);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1")]));
    stage.call(vmm, Call::Begin);

    let staged = stage.call(vmm, give([gift("a", "2")]));
    let staged_again = stage.call(vmm, give([gift("a", "3")]));
    let another = stage.call(vmm, give([gift("b", "4")]));
    stage.call(vmm, commit());
    let after_it = stage.call(vmm, give([gift("b", "5")]));

    assert_eq!(staged, ["vmm: given, for a"]);
    assert_eq!(staged_again, ["close 2", "vmm: given, for a"]);
    assert_eq!(another, ["vmm: LimitExceeded descriptors 3", "close 4"]);
    assert_eq!(after_it[1], "vmm: given");
}

#[test]
fn in_a_transaction_what_is_reopened_needs_a_place_of_its_own() {
    let mut stage = Stage::with_room_for(10, 10, 4);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    stage.call(vmm, Call::Begin);

    let both = stage.call(vmm, reopen(["a", "b"]));
    stage.call(vmm, reopen(["a"]));
    let first = stage.opened(vmm, &[&["3", "lent"]]);
    stage.call(vmm, reopen(["a"]));
    let first_again = stage.opened(vmm, &[&["4", "lent"]]);

    assert_eq!(both, ["vmm: LimitExceeded descriptors 4"]);
    assert_eq!(first, ["vmm: has a=lent"]);
    assert_eq!(first_again, ["close 3", "vmm: has a=lent"]);
}

#[test]
fn what_is_being_opened_has_its_place() {
    let mut stage = Stage::with_room_for(10, 10, 3);
    let (first, second) = (stage.connect("first", 1), stage.connect("second", 1));
    stage.call(first, give([fresh(gift("a", "sent"))]));

    let refused = stage.call(second, give([gift("b", "2")]));
    let opened = stage.opened(first, &[&["own"]]);

    assert_eq!(refused, ["second: LimitExceeded descriptors 3", "close 2"]);
    assert_eq!(opened, ["record +a=own", "first: given", "close sent"]);
}

#[test]
fn what_was_not_opened_gives_its_place_back() {
    let mut stage = Stage::with_room_for(10, 10, 3);
    let (first, second) = (stage.connect("first", 1), stage.connect("second", 1));
    stage.call(first, give([fresh(gift("a", "1"))]));
    stage.not_opened(first, 0);
    stage.call(first, give([fresh(gift("a", "2"))]));
    stage.disconnect(first);

    let gave = stage.call(second, give([gift("b", "3")]));

    assert_eq!(gave, ["record +b=3", "second: given"]);
}

#[test]
fn a_transaction_holds_no_more_names_than_there_may_be() {
    let mut stage = Stage::with_room_for(2, 10, 20);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);
    for called in ["a", "b"] {
        stage.call(vmm, give([gift(called, called)]));
        stage.call(vmm, close([called]));
    }

    let third = stage.call(vmm, give([gift("c", "c")]));
    let again = stage.call(vmm, give([gift("b", "b")]));

    assert_eq!(third, ["vmm: LimitExceeded entries 2", "close c"]);
    assert_eq!(again, ["vmm: given"]);
}

#[test]
fn so_many_connections_and_no_more() {
    let mut stage = Stage::with_room_for(10, 1, 20);
    let vmm = stage.connect("vmm", 1);

    let second = stage.stash.connect(somebody());
    stage.disconnect(vmm);
    let after_it = stage.stash.connect(somebody());

    let refusal = Refusal::LimitExceeded { limit: "connections".into(), value: 1 };
    assert_eq!(second, Err(refusal));
    assert!(after_it.is_ok());
}

#[test]
fn descriptors_and_connections_share_the_places() {
    let mut stage = Stage::with_room_for(10, 10, 3);
    let vmm = stage.connect("vmm", 1);

    let two = stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    let third = stage.call(vmm, give([gift("c", "3")]));
    let connected = stage.stash.connect(somebody());
    stage.call(vmm, take(["a"]));
    let on_its_way = stage.stash.connect(somebody());
    stage.sent(vmm);
    let sent = stage.stash.connect(somebody());

    let refusal = Refusal::LimitExceeded { limit: "descriptors".into(), value: 3 };
    assert_eq!(two[1], "vmm: given");
    assert_eq!(third, ["vmm: LimitExceeded descriptors 3", "close 3"]);
    assert_eq!(connected, Err(refusal.clone()));
    assert_eq!(on_its_way, Err(refusal));
    assert!(sent.is_ok());
}

#[test]
fn what_a_user_keeps_and_holds_counts_to_it() {
    let mut stage = Stage::with_quota(Quota { entries: 2, ..Quota::NONE });
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 2));
    let another = stage.connect("another", 1);
    stage.call(vmm, give([gift("a", "1")]));
    stage.call(another, Call::Begin);
    stage.call(another, give([gift("b", "2")]));

    let third = stage.call(vmm, give([gift("c", "3")]));
    let of_other = stage.call(other, give([gift("c", "4")]));
    let replaced = stage.call(vmm, give([gift("a", "5")]));
    stage.call(another, Call::Rollback);
    let after_it = stage.call(vmm, give([gift("d", "6")]));

    assert_eq!(third, ["vmm: LimitExceeded entriesPerUser 2", "close 3"]);
    assert_eq!(of_other[1], "other: given");
    assert_eq!(replaced[1], "vmm: given, for a");
    assert_eq!(after_it[1], "vmm: given");
}

#[test]
fn what_takes_the_place_of_anothers_counts_to_its_new_giver() {
    let mut stage = Stage::with_quota(Quota { entries: 1, ..Quota::NONE });
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 2));
    stage.call(vmm, give([shared([2], gift("a", "1"))]));
    stage.call(other, give([gift("b", "2")]));

    let alone = stage.call(other, give([gift("a", "3")]));
    stage.call(other, Call::Begin);
    let staged = stage.call(other, give([gift("a", "4")]));
    stage.call(other, Call::Rollback);
    stage.call(other, close(["b"]));
    let with_room = stage.call(other, give([gift("a", "5")]));
    let room_again = stage.call(vmm, give([gift("c", "6")]));

    assert_eq!(alone, ["other: LimitExceeded entriesPerUser 1", "close 3"]);
    assert_eq!(staged, ["other: LimitExceeded entriesPerUser 1", "close 4"]);
    assert_eq!(with_room[1], "other: given, for a");
    assert_eq!(room_again[1], "vmm: given");
}

#[test]
fn who_has_all_it_may_still_reopens_all_of_it_in_a_transaction_and_no_more() {
    let mut stage = Stage::with_quota(Quota { entries: 1, label_bytes: 4, ..Quota::NONE });
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 2));
    stage.call(vmm, give([labelled("ab", gift("a", "1"))]));
    stage.call(other, give([shared([1], gift("b", "2"))]));
    stage.call(vmm, Call::Begin);

    stage.call(vmm, reopen(["a"]));
    let own = stage.opened(vmm, &[&["3", "lent"]]);
    stage.call(vmm, reopen(["a"]));
    let again = stage.opened(vmm, &[&["4", "lent"]]);
    let anothers = stage.call(vmm, reopen(["b"]));

    assert_eq!(own, ["vmm: has a=lent"]);
    assert_eq!(again, ["close 3", "vmm: has a=lent"]);
    assert_eq!(anothers, ["vmm: LimitExceeded entriesPerUser 1"]);
}

#[test]
fn labels_and_shares_count_by_their_bytes() {
    let mut stage = Stage::with_quota(Quota { label_bytes: 6, ..Quota::NONE });
    let vmm = stage.connect("vmm", 1);

    let full = stage.call(vmm, give([labelled("1", shared([7], gift("a", "1")))]));
    let share = stage.call(vmm, give([shared([7], gift("b", "2"))]));
    let plain = stage.call(vmm, give([gift("b", "3")]));
    let longer = stage.call(vmm, give([labelled("12", shared([7], gift("a", "4")))]));
    let shorter =
        stage.call(vmm, give([labelled("12", gift("a", "5")), labelled("1", gift("b", "6"))]));

    assert_eq!(full[1], "vmm: given");
    assert_eq!(share, ["vmm: LimitExceeded labelBytesPerUser 6", "close 2"]);
    assert_eq!(plain[1], "vmm: given");
    assert_eq!(longer, ["vmm: LimitExceeded labelBytesPerUser 6", "close 4"]);
    assert_eq!(shorter[1], "vmm: given, for a b");
}

#[test]
fn so_many_connections_of_a_user() {
    let mut stage = Stage::with_quota(Quota { connections: 1, ..Quota::NONE });
    let vmm = stage.connect("vmm", 1);

    let second = stage.stash.connect(somebody());
    stage.connect("other", 2);
    stage.connect("root", 0);
    stage.connect("another root", 0);
    stage.disconnect(vmm);
    let after_it = stage.stash.connect(somebody());

    let limit = "connectionsPerUser".into();
    assert_eq!(second, Err(Refusal::LimitExceeded { limit, value: 1 }));
    assert!(after_it.is_ok());
}

#[test]
fn a_take_that_waits_counts_by_its_names() {
    let mut stage = Stage::with_quota(Quota { waits: 3, ..Quota::NONE });
    let (vmm, second) = (stage.connect("vmm", 1), stage.connect("second", 1));
    let root = stage.connect("root", 0);
    stage.call(vmm, wait(["a", "b"], 100));

    let two = stage.call(second, wait(["c", "d"], 100));
    let one = stage.call(second, wait(["c"], 100));
    let of_root = stage.call(root, wait(["a", "b", "c", "d"], 100));
    let late = stage.tick(100);
    let after_it = stage.call(second, wait(["a", "b", "c"], 100));

    assert_eq!(two, ["second: LimitExceeded waitsPerUser 3"]);
    assert!(one.is_empty() && of_root.is_empty());
    assert_eq!(late.len(), 3);
    assert!(after_it.is_empty());
}

#[test]
fn so_many_watches_of_a_user() {
    let mut stage = Stage::with_quota(Quota { watches: 1, ..Quota::NONE });
    let (vmm, second) = (stage.connect("vmm", 1), stage.connect("second", 1));
    let watch = || Call::Watch { pattern: Pattern::all() };
    stage.call(vmm, watch());

    let refused = stage.call(second, watch());
    stage.disconnect(vmm);
    let after_it = stage.call(second, watch());

    assert_eq!(refused, ["second: LimitExceeded watchesPerUser 1"]);
    assert!(after_it[0].contains("Standing"), "{after_it:?}");
}

#[test]
fn so_many_transactions_of_a_user() {
    let mut stage = Stage::with_quota(Quota { transactions: 1, ..Quota::NONE });
    let (vmm, second) = (stage.connect("vmm", 1), stage.connect("second", 1));
    stage.call(vmm, Call::Begin);

    let refused = stage.call(second, Call::Begin);
    stage.call(vmm, commit());
    let after_it = stage.call(second, Call::Begin);

    assert_eq!(refused, ["second: LimitExceeded transactionsPerUser 1"]);
    assert_eq!(after_it, ["second: done"]);
}

#[test]
fn opens_count_until_they_have_ended_whoever_is_still_there() {
    let mut stage = Stage::with_quota(Quota { opens: 1, ..Quota::NONE });
    let (vmm, second) = (stage.connect("vmm", 1), stage.connect("second", 1));
    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    stage.call(vmm, fresh_copy(["a", "b"]));

    let copy = stage.call(second, fresh_copy(["a"]));
    let gave = stage.call(second, give([fresh(gift("c", "3"))]));
    stage.disconnect(vmm);
    let reopened = stage.call(second, reopen(["a"]));
    let ended = stage.opened(vmm, &[&["4"], &["5"]]);
    let after_it = stage.call(second, reopen(["a"]));

    assert_eq!(copy, ["second: LimitExceeded opensPerUser 1"]);
    assert_eq!(gave, ["second: LimitExceeded opensPerUser 1", "close 3"]);
    assert_eq!(reopened, ["second: LimitExceeded opensPerUser 1"]);
    assert_eq!(ended, ["close 4 5"]);
    assert_eq!(after_it.len(), 1);
    assert!(after_it[0].starts_with("open for second"), "{after_it:?}");
}

#[test]
fn the_last_part_of_all_that_there_is_is_for_root() {
    let mut stage = Stage::with_limits(Limits { root_share: 50, ..Limits::new(4, 8, 10) });
    let vmm = stage.connect("vmm", 1);
    stage.connect("second", 2);
    let root = stage.connect("root", 0);
    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));

    let third = stage.call(vmm, give([gift("c", "3")]));
    let connected = stage.stash.connect(somebody());
    let of_root = stage.call(root, give([gift("c", "4"), gift("d", "5")]));
    let past_all = stage.call(root, give([gift("e", "6")]));

    assert_eq!(third, ["vmm: LimitExceeded entries 2", "close 3"]);
    let limit = "descriptors".into();
    assert_eq!(connected, Err(Refusal::LimitExceeded { limit, value: 5 }));
    assert_eq!(of_root[1], "root: given");
    assert_eq!(past_all, ["root: LimitExceeded entries 4", "close 6"]);
}

#[test]
fn threads_for_opening_are_left_for_root() {
    let mut stage =
        Stage::with_limits(Limits { opens: 2, root_share: 50, ..Limits::new(9, 9, 99) });
    let (vmm, second) = (stage.connect("vmm", 1), stage.connect("second", 2));
    let [root, another] = ["root", "another"].map(|called| stage.connect(called, 0));
    let third = stage.connect("third", 0);
    stage.call(vmm, give([gift("a", "1")]));
    stage.call(vmm, fresh_copy(["a"]));

    let refused = stage.call(second, give([fresh(gift("x", "7"))]));
    let of_root = stage.call(root, fresh_copy(["a"]));
    let past_all = stage.call(another, fresh_copy(["a"]));
    stage.opened(vmm, &[&["2"]]);
    let after_it = stage.call(third, fresh_copy(["a"]));

    assert_eq!(refused, ["second: LimitExceeded opens 1", "close 7"]);
    assert!(of_root[0].starts_with("open for root"), "{of_root:?}");
    assert_eq!(past_all, ["another: LimitExceeded opens 2"]);
    assert!(after_it[0].starts_with("open for third"), "{after_it:?}");
}

#[test]
fn the_first_rule_that_concerns_a_user_and_bounds_a_thing_decides() {
    let mut stage = Stage::with_quota(Quota { entries: 9, transactions: 0, ..Quota::NONE });
    let (vmm, other, root) =
        (stage.connect("vmm", 1), stage.connect("other", 2), stage.connect("root", 0));
    let rule = |users: &[u32], groups: &[u32], quota| QuotaRule {
        whom: (users.len() + groups.len() > 0).then(|| Whom {
            users: users.iter().copied().collect(),
            groups: groups.iter().copied().collect(),
        }),
        quota,
        origin: Origin { file: "policy.toml".into(), line: 1 },
    };
    let nothing = Quota::all(None);
    let quota = vec![
        rule(&[1], &[], Quota { waits: Some(5), ..nothing }),
        rule(&[], &[1, 7], Quota { entries: Some(1), ..nothing }),
        rule(&[], &[], Quota { entries: Some(2), transactions: Some(1), ..nothing }),
        rule(&[0, 1, 2], &[], Quota { entries: Some(3), ..nothing }),
    ];

    stage.set_rules(Rules { quota, ..Rules::default() });

    let most = |by: u32, groups: &[u32]| {
        let who = Who { peer: Peer { uid: by, gid: by, pid: 1 }, groups: groups.into() };
        let Quota { entries, transactions, waits, .. } = stage.stash.quota_of(&who);
        (entries, transactions, waits)
    };
    assert_eq!(most(1, &[]), (1, 1, 5));
    assert_eq!(most(2, &[]), (2, 1, u64::MAX));
    assert_eq!(most(2, &[7]), (1, 1, u64::MAX));
    assert_eq!(most(3, &[]), (2, 1, u64::MAX));
    assert_eq!(most(0, &[]), (3, u64::MAX, u64::MAX));
    for by in [vmm, other] {
        assert_eq!(stage.call(by, Call::Begin).len(), 1);
    }
    assert_eq!(stage.call(root, Call::Begin), ["root: done"]);
}

#[test]
fn what_is_beyond_a_quota_stays_and_nothing_comes_to_it() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    let quota = Quota { entries: Some(1), ..Quota::all(None) };
    let origin = Origin { file: "policy.toml".into(), line: 1 };

    stage.set_rules(Rules {
        quota: vec![QuotaRule { whom: None, quota, origin }],
        ..Rules::default()
    });
    stage.upgrade(|_| true);

    assert_eq!(stage.list(vmm), ["a=1", "b=2"]);
    assert_eq!(stage.call(vmm, give([gift("a", "3")]))[1], "vmm: given, for a");
    assert_eq!(
        stage.call(vmm, give([gift("c", "4")])),
        ["vmm: LimitExceeded entriesPerUser 1", "close 4"]
    );
}

fn somebody() -> Who {
    Who { peer: Peer { uid: 1, gid: 1, pid: 1 }, groups: [].into() }
}
