//! Begin, Commit and Rollback.

use fdstash_proto::Call;

use crate::stage::{Stage, close, commit, copy, expiring, fresh_copy, gift, give, reopen, take};

#[test]
fn a_commit_is_one_record_of_all_that_was_staged() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "a1"), gift("b", "b1"), gift("c", "c1")]));

    let began = stage.call(vmm, Call::Begin);
    let took = stage.call(vmm, take(["a"]));
    let closed = stage.call(vmm, close(["b"]));
    let gave = stage.call(vmm, give([gift("c", "c2"), gift("d", "d1")]));
    let committed = stage.call(vmm, commit());

    assert_eq!(began, ["vmm: done"]);
    assert_eq!(took, ["vmm: has a=a1"]);
    assert_eq!(closed, ["vmm: done"]);
    assert_eq!(gave, ["vmm: given, for c"]);
    assert_eq!(committed, ["record +c=c2 +d=d1 -a=a1 -b=b1 -c=c1", "vmm: done", "close a1 b1 c1"]);
}

#[test]
fn what_is_staged_only_its_stager_sees() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("a", "a1"), gift("b", "b1")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, take(["a"]));
    stage.call(vmm, give([gift("b", "b2"), gift("c", "c1")]));

    let staged = stage.list(vmm);
    let kept = stage.list(other);

    assert_eq!(staged, ["b=b2", "c=c1"]);
    assert_eq!(kept, ["a=a1", "b=b1"]);
    assert_eq!(stage.entry(other, "a").held_by.map(|peer| peer.uid), Some(1));
}

#[test]
fn what_is_in_a_transaction_is_busy_for_others() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("copied", "1"), gift("taken", "2")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, copy(["copied"]));
    stage.call(vmm, take(["taken"]));
    stage.call(vmm, give([gift("given", "3")]));

    for called in ["copied", "taken", "given"] {
        let gave = stage.call(other, give([gift(called, "other")]));
        let took = stage.call(other, take([called]));

        let busy = format!("other: Busy {called}, held by 1");
        assert_eq!(gave, [busy.as_str(), "close other"]);
        assert_eq!(took, [busy]);
    }
}

#[test]
fn a_rollback_closes_what_was_staged_and_nothing_else() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("a", "a1"), gift("b", "b1")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, take(["a"]));
    stage.call(vmm, give([gift("b", "b2"), gift("c", "c1")]));

    let rolled_back = stage.call(vmm, Call::Rollback);

    assert_eq!(rolled_back, ["vmm: done", "close b2 c1"]);
    assert_eq!(stage.list(vmm), ["a=a1", "b=b1"]);
    assert_eq!(stage.call(other, close(["a", "b"]))[1], "other: done");
}

#[test]
fn the_end_of_a_connection_rolls_back() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("a", "a1")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("a", "a2"), gift("b", "b1")]));

    let left = stage.disconnect(vmm);

    assert_eq!(left, ["close a2 b1"]);
    assert_eq!(stage.list(other), ["a=a1"]);
    assert_eq!(stage.stash.statistics().transactions, 0);
}

#[test]
fn there_is_one_transaction_at_a_time() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let committed = stage.call(vmm, commit());
    let rolled_back = stage.call(vmm, Call::Rollback);
    stage.call(vmm, Call::Begin);
    let begin = stage.call(vmm, Call::Begin);
    let after_it = stage.call(vmm, commit());

    for refused in [committed, rolled_back, begin] {
        assert_eq!(refused, ["vmm: TransactionState"]);
    }
    assert_eq!(after_it, ["vmm: done"]);
}

#[test]
fn what_a_transaction_gives_and_takes_back_never_was() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("disk", "image")]));

    let took = stage.call(vmm, take(["disk"]));
    let committed = stage.call(vmm, commit());

    assert_eq!(took, ["vmm: has disk=image", "close image"]);
    assert_eq!(committed, ["vmm: done"]);
    let statistics = stage.stash.statistics();
    assert_eq!((statistics.given, statistics.taken), (0, 0));
}

#[test]
fn what_a_transaction_gives_twice_is_given_once() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("disk", "first")]));

    let again = stage.call(vmm, give([gift("disk", "second")]));
    let committed = stage.call(vmm, commit());

    assert_eq!(again, ["close first", "vmm: given, for disk"]);
    assert_eq!(committed, ["record +disk=second", "vmm: done"]);
    assert_eq!(stage.stash.statistics().given, 1);
}

#[test]
fn what_a_transaction_takes_and_gives_again_is_replaced() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "old")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, take(["disk"]));

    let gave = stage.call(vmm, give([gift("disk", "new")]));
    let committed = stage.call(vmm, commit());

    assert_eq!(gave, ["vmm: given"]);
    assert_eq!(committed, ["record +disk=new -disk=old", "vmm: done", "close old"]);
}

#[test]
fn what_a_transaction_gives_and_reopens_is_still_given() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("disk", "sent")]));
    stage.call(vmm, reopen(["disk"]));

    let opened = stage.opened(vmm, &[&["kept", "lent"]]);
    let committed = stage.call(vmm, commit());

    assert_eq!(opened, ["close sent", "vmm: has disk=lent"]);
    assert_eq!(committed, ["record +disk=kept", "vmm: done"]);
    let statistics = stage.stash.statistics();
    assert_eq!((statistics.given, statistics.reopened), (1, 0));
}

#[test]
fn what_a_transaction_gives_over_another_and_reopens_still_replaces_it() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(100, gift("disk", "old"))]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("disk", "sent")]));
    stage.call(vmm, reopen(["disk"]));
    stage.opened(vmm, &[&["kept", "lent"]]);
    stage.tick(100);

    let committed = stage.call(vmm, commit());

    assert_eq!(committed, ["record +disk=kept -disk=old", "vmm: done", "close old"]);
    let statistics = stage.stash.statistics();
    assert_eq!((statistics.given, statistics.closed, statistics.reopened), (2, 1, 0));
}

#[test]
fn a_reopen_in_a_transaction_is_undone_with_it() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "old")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, reopen(["disk"]));

    let opened = stage.opened(vmm, &[&["kept", "lent"]]);
    let rolled_back = stage.call(vmm, Call::Rollback);

    assert_eq!(opened, ["vmm: has disk=lent"]);
    assert_eq!(rolled_back, ["vmm: done", "close kept"]);
    assert_eq!(stage.list(vmm), ["disk=old"]);
}

#[test]
fn a_refused_call_in_a_transaction_holds_no_more_names_than_before() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("disk", "image"), gift("log", "log")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, copy(["log"]));

    for call in [fresh_copy(["log", "disk"]), reopen(["log", "disk"])] {
        stage.call(vmm, call);
        let failed = stage.not_opened(vmm, 1);

        assert_eq!(failed, ["vmm: ReopenFailed disk EIO"]);
        assert_eq!(stage.call(other, copy(["disk"])), ["other: has disk=image"]);
        assert_eq!(stage.call(other, copy(["log"])), ["other: Busy log, held by 1"]);
    }
}

#[test]
fn a_refused_call_does_not_end_a_transaction() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("disk", "image")]));

    let refused = stage.call(vmm, take(["log"]));
    let committed = stage.call(vmm, commit());

    assert_eq!(refused, ["vmm: NotFound log"]);
    assert_eq!(committed, ["record +disk=image", "vmm: done"]);
}
