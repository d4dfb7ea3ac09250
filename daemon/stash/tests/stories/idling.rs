//! Transactions whose clients do nothing: how long they hold their names, and what their clients are told.

use fdstash_proto::{Call, Pattern, Refusal};
use fdstash_stash::{ConnectionId, Quota};

use crate::stage::{
    Stage, commit, copy, expiring, fresh, gift, give, shared, take, ticketed, wait,
};

fn stage() -> (Stage, ConnectionId, ConnectionId) {
    let mut stage = Stage::with_quota(Quota { idle_usec: 100, ..Quota::NONE });
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    (stage, vmm, other)
}

#[test]
fn it_is_rolled_back_and_who_waits_goes_on() {
    let (mut stage, vmm, other) = stage();
    stage.call(vmm, give([gift("a", "1")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("a", "2"), gift("b", "3")]));
    stage.call(other, wait(["a"], 1000));

    let early = stage.tick(99);
    let late = stage.tick(1);

    assert!(early.is_empty());
    assert_eq!(late, ["close 2 3", "other: has a=1, if it leaves"]);
}

#[test]
fn each_call_begins_the_time_anew_and_one_in_progress_stops_it() {
    let (mut stage, vmm, other) = stage();
    stage.call(vmm, Call::Begin);
    stage.tick(99);
    stage.call(vmm, give([fresh(gift("a", "1"))]));

    let opening = stage.tick(1000);
    stage.opened(vmm, &[&["2"]]);
    let opened = stage.tick(99);
    stage.call(vmm, take(["none"]));
    let refused = stage.tick(99);
    stage.call(vmm, wait(["none"], 500));
    let waiting = stage.tick(499);
    let waited = stage.tick(1);
    let last = [stage.tick(99), stage.tick(1)];
    stage.call(other, give([gift("a", "3")]));

    assert!([opening, opened, refused, waiting].iter().all(Vec::is_empty));
    assert_eq!(waited, ["vmm: NotFound none"]);
    assert_eq!(last, [vec![], vec!["close 2".to_owned()]]);
}

#[test]
fn a_take_that_was_served_is_no_longer_in_progress() {
    let (mut stage, vmm, other) = stage();
    stage.call(vmm, Call::Begin);
    stage.call(vmm, wait(["a"], 1000));
    stage.tick(500);

    let gave = stage.call(other, give([gift("a", "1")]));

    assert_eq!(gave.last().unwrap(), "vmm: has a=1");
    assert_eq!(stage.stash.next_due(), Some(600));
    stage.tick(100);
    assert_eq!(stage.call(other, copy(["a"])), ["other: has a=1"]);
}

#[test]
fn a_watch_is_no_call_that_keeps_it() {
    let (mut stage, vmm, other) = stage();
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("a", "1")]));
    stage.call(vmm, Call::Watch { pattern: Pattern::all() });

    let over = stage.tick(100);
    let gave = stage.call(other, give([gift("a", "2")]));

    assert_eq!(over, ["close 1"]);
    assert_eq!(gave[2], "tell vmm: given a=2");
}

#[test]
fn nothing_is_done_until_its_client_knows() {
    let (mut stage, vmm, _) = stage();
    stage.call(vmm, Call::Begin);
    stage.tick(100);

    let gave = stage.call(vmm, give([gift("a", "1")]));
    let others: Vec<_> = [
        take(["a"]),
        copy(["a"]),
        Call::Begin,
        Call::List { pattern: Pattern::all() },
        Call::Watch { pattern: Pattern::all() },
        Call::GetStatistics,
        wait(["a"], 10),
    ]
    .into_iter()
    .flat_map(|call| stage.call(vmm, call))
    .collect();
    let rolled_back = stage.call(vmm, Call::Rollback);
    let then = stage.call(vmm, give([gift("a", "2")]));
    let again = stage.call(vmm, Call::Rollback);

    assert_eq!(gave, ["vmm: TransactionState", "close 1"]);
    assert_eq!(others, ["vmm: TransactionState"; 7]);
    assert_eq!(rolled_back, ["vmm: done"]);
    assert_eq!(then, ["record +a=2", "vmm: given"]);
    assert_eq!(again, ["vmm: TransactionState"]);
}

#[test]
fn a_commit_is_refused_and_ends_it() {
    let (mut stage, vmm, _) = stage();
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("a", "1")]));
    stage.tick(100);

    let late = stage.call(vmm, ticketed("t", commit()));
    let then = stage.call(vmm, give([gift("b", "2")]));
    let begun = stage.call(vmm, Call::Begin);
    let again = stage.call(vmm, ticketed("t", commit()));

    assert_eq!(late, ["vmm: TransactionState"]);
    assert_eq!(then, ["record +b=2", "vmm: given"]);
    assert_eq!(begun, ["vmm: done"]);
    assert_eq!(again, ["record done t", "vmm: done"]);
}

#[test]
fn what_is_misunderstood_ends_nothing() {
    let (mut stage, vmm, _) = stage();
    stage.call(vmm, Call::Begin);
    stage.tick(100);

    let reason = "no name".into();
    let refusal = Refusal::InvalidName { name: "a:b".into(), reason };
    assert_eq!(stage.stash.misunderstood(vmm, refusal).len(), 1);

    assert_eq!(stage.call(vmm, take(["a"])), ["vmm: TransactionState"]);
}

#[test]
fn what_has_expired_meanwhile_ends_with_the_hold_and_nobody_gets_it() {
    let (mut stage, vmm, other) = stage();
    stage.call(vmm, give([expiring(100, gift("a", "1"))]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, take(["a"]));
    stage.call(other, wait(["a"], 1000));

    let over = stage.tick(100);

    assert_eq!(over, ["record -a=1", "close 1"]);
    assert_eq!(stage.call(vmm, Call::Rollback), ["vmm: done"]);
}

#[test]
fn an_upgrade_changes_nothing_about_it() {
    let (mut stage, vmm, other) = stage();
    for by in [vmm, other] {
        stage.call(by, Call::Begin);
        stage.tick(60);
    }
    stage.tick(40);

    stage.upgrade(|_| true);

    assert_eq!(stage.call(vmm, take(["a"])), ["vmm: TransactionState"]);
    assert_eq!(stage.call(other, Call::Rollback), ["other: done"]);
    assert_eq!(stage.call(vmm, Call::Rollback), ["vmm: done"]);
    assert_eq!(stage.call(vmm, Call::Begin), ["vmm: done"]);
}

#[test]
fn root_and_others_hold_theirs() {
    let (mut stage, _, _) = stage();
    let root = stage.connect("root", 0);
    stage.call(root, Call::Begin);
    stage.call(root, give([shared([1], gift("a", "1"))]));

    let over = stage.tick(1_000_000);

    assert!(over.is_empty());
    assert_eq!(stage.call(root, commit()), ["record +a=1", "root: done"]);
}
