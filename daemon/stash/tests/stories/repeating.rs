//! Calls that are sent again with their tickets, since the reply was lost.

use fdstash_proto::Call;
use fdstash_stash::{ConnectionId, Done};

use crate::stage::{Stage, close, commit, fresh, gift, give, take, ticketed};

const SECOND_USEC: u64 = 1_000_000;

#[test]
fn a_call_and_its_ticket_are_one_record() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, ticketed("t1", give([gift("disk", "image")])));
    let closed = stage.call(vmm, ticketed("t2", close(["disk"])));

    assert_eq!(gave, ["record +disk=image done t1", "vmm: given"]);
    assert_eq!(closed, ["record -disk=image done t2", "vmm: done", "close image"]);
}

#[test]
fn a_give_that_is_sent_again_is_answered_as_it_was() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "old")]));
    stage.call(vmm, ticketed("t1", give([gift("disk", "new")])));
    stage.disconnect(vmm);
    let vmm = stage.connect("vmm", 1);

    let again = stage.call(vmm, ticketed("t1", give([gift("disk", "newer")])));
    let once_more = stage.call(vmm, ticketed("t1", give([gift("disk", "newest")])));

    assert_eq!(again, ["vmm: given, for disk", "close newer"]);
    assert_eq!(once_more, ["vmm: given, for disk", "close newest"]);
    assert_eq!(stage.list(vmm), ["disk=new"]);
    assert_eq!(stage.stash.statistics().given, 2);
}

#[test]
fn a_close_that_is_sent_again_closes_nothing_that_was_given_since() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("disk", "old")]));
    stage.call(vmm, ticketed("t1", close(["disk"])));
    stage.disconnect(vmm);
    stage.call(other, give([gift("disk", "new")]));
    let vmm = stage.connect("vmm", 1);

    let again = stage.call(vmm, ticketed("t1", close(["disk"])));

    assert_eq!(again, ["vmm: done"]);
    assert_eq!(stage.list(vmm), ["disk=new"]);
}

#[test]
fn what_changes_nothing_is_written_down_for_its_ticket() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);

    let committed = stage.call(vmm, ticketed("t1", commit()));
    let closed = stage.call(vmm, ticketed("t2", close([])));

    assert_eq!(committed, ["record done t1", "vmm: done"]);
    assert_eq!(closed, ["record done t2", "vmm: done"]);
}

#[test]
fn a_commit_that_is_sent_again_tells_what_became_of_it() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image")]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, take(["disk"]));
    let committed = stage.call(vmm, ticketed("t1", commit()));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("log", "log")]));
    stage.disconnect(vmm);
    let vmm = stage.connect("vmm", 1);

    let happened = stage.call(vmm, ticketed("t1", commit()));
    let never_came = stage.call(vmm, ticketed("t2", commit()));

    assert_eq!(committed, ["record -disk=image done t1", "vmm: done", "close image"]);
    assert_eq!(happened, ["vmm: done"]);
    assert_eq!(never_came, ["vmm: TransactionState"]);
}

#[test]
fn in_a_transaction_only_the_ticket_of_its_commit_counts() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, ticketed("t1", close([])));
    stage.call(vmm, Call::Begin);

    let gave = stage.call(vmm, ticketed("t1", give([gift("a", "a1")])));
    stage.call(vmm, ticketed("t2", give([gift("b", "b1")])));
    let committed = stage.call(vmm, ticketed("t2", commit()));

    assert_eq!(gave, ["vmm: given"]);
    assert_eq!(committed, ["record +a=a1 +b=b1 done t2", "vmm: done"]);
}

#[test]
fn a_transaction_is_not_committed_with_the_ticket_of_another_call() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, ticketed("t1", give([gift("a", "a1")])));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("b", "b1")]));

    let refused = stage.call(vmm, ticketed("t1", commit()));
    let committed = stage.call(vmm, ticketed("t2", commit()));

    assert_eq!(refused, ["vmm: TransactionState"]);
    assert_eq!(committed, ["record +b=b1 done t2", "vmm: done"]);
}

#[test]
fn a_refused_call_is_judged_anew_when_it_is_sent_again() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let refused = stage.call(vmm, ticketed("t1", close(["disk"])));
    stage.call(vmm, give([gift("disk", "image")]));
    let again = stage.call(vmm, ticketed("t1", close(["disk"])));

    assert_eq!(refused, ["vmm: NotFound disk"]);
    assert_eq!(again, ["record -disk=image done t1", "vmm: done", "close image"]);
}

#[test]
fn a_give_whose_files_are_being_opened_is_not_done_yet() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, ticketed("t1", give([fresh(gift("disk", "sent"))])));
    stage.disconnect(vmm);
    let vmm = stage.connect("vmm", 1);

    let again = stage.call(vmm, ticketed("t1", give([fresh(gift("disk", "again"))])));
    let opened = stage.opened(vmm, &[&["opened"]]);

    assert_eq!(again, [r#"open for vmm: disk=again read_write {} 1x as daemon"#]);
    assert_eq!(opened, ["record +disk=opened done t1", "vmm: given", "close again"]);
}

#[test]
fn a_ticket_is_its_users_alone() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 2));
    stage.call(vmm, ticketed("t1", give([gift("a", "a1")])));

    let gave = stage.call(other, ticketed("t1", give([gift("b", "b1")])));

    assert_eq!(gave, ["record +b=b1 done t1", "other: given"]);
}

#[test]
fn of_a_connection_that_stands_the_last_ticket_is_remembered_and_no_other() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, ticketed("t1", close([])));
    stage.call(vmm, ticketed("t2", close([])));
    stage.tick(1000 * SECOND_USEC);

    let first = stage.call(other, ticketed("t1", commit()));
    let last = stage.call(other, ticketed("t2", commit()));

    assert_eq!(first, ["other: TransactionState"]);
    assert_eq!(last, ["other: done"]);
}

#[test]
fn a_ticket_outlives_its_connection_for_a_minute() {
    for (usec, answer) in
        [(60 * SECOND_USEC - 1, "vmm: done"), (60 * SECOND_USEC, "vmm: TransactionState")]
    {
        let mut stage = Stage::new();
        let vmm = stage.connect("vmm", 1);
        stage.call(vmm, ticketed("t1", close([])));
        stage.tick(100 * SECOND_USEC);
        stage.disconnect(vmm);
        stage.tick(usec);
        let vmm = stage.connect("vmm", 1);

        let again = stage.call(vmm, ticketed("t1", commit()));

        assert_eq!(again, [answer]);
    }
}

#[test]
fn what_is_forgotten_is_dropped_when_the_next_connection_ends() {
    let mut stage = Stage::new();
    end_with(&mut stage, 1, 0..3);
    stage.tick(60 * SECOND_USEC);

    end_with(&mut stage, 2, 0..1);

    assert_eq!(stage.stash.tickets().map(|done| done.uid).collect::<Vec<_>>(), [2]);
}

#[test]
fn of_each_user_256_connections_that_have_ended_are_remembered() {
    let mut stage = Stage::new();
    end_with(&mut stage, 2, 0..1);
    end_with(&mut stage, 1, 0..256);
    let vmm = stage.connect("vmm", 1);

    let at_the_limit = stage.call(vmm, ticketed("t0", commit()));
    end_with(&mut stage, 1, 256..257);
    let past_it = stage.call(vmm, ticketed("t0", commit()));
    let next = stage.call(vmm, ticketed("t1", commit()));
    let other = stage.connect("other", 2);
    let of_another = stage.call(other, ticketed("t0", commit()));

    assert_eq!(at_the_limit, ["vmm: done"]);
    assert_eq!(past_it, ["vmm: TransactionState"]);
    assert_eq!(next, ["vmm: done"]);
    assert_eq!(of_another, ["other: done"]);
}

#[test]
fn a_stash_that_is_restored_remembers_what_the_old_one_did() {
    let mut old = Stage::new();
    let (standing, ended) = (old.connect("standing", 1), old.connect("ended", 1));
    old.call(standing, ticketed("t1", close([])));
    old.call(standing, give([gift("disk", "old")]));
    old.call(standing, ticketed("t2", give([gift("disk", "new")])));
    old.call(ended, ticketed("t3", close([])));
    old.disconnect(ended);
    let recorded: Vec<Done> = old.stash.tickets().cloned().collect();

    let mut stage = Stage::new();
    recorded.into_iter().for_each(|done| stage.stash.remember(done));
    let vmm = stage.connect("vmm", 1);
    let first = stage.call(vmm, ticketed("t1", commit()));
    let second = stage.call(vmm, ticketed("t2", give([gift("disk", "again")])));
    let third = stage.call(vmm, ticketed("t3", commit()));

    assert_eq!(first, ["vmm: TransactionState"]);
    assert_eq!(second, ["vmm: given, for disk", "close again"]);
    assert_eq!(third, ["vmm: done"]);
    assert!(vmm > ended.max(standing), "or its tickets would be taken for theirs");
}

#[test]
fn of_all_records_of_a_connection_a_restored_stash_remembers_the_last() {
    let done = |by, text, until_boot_usec| {
        let ticket = fdstash_proto::Ticket::new(text).expect("a ticket");
        Done { by: ConnectionId(by), uid: 1, ticket, replaced: Vec::new(), until_boot_usec }
    };
    let mut stage = Stage::new();

    stage.stash.remember(done(7, "t1", 60));
    stage.stash.remember(done(8, "t2", 61));
    stage.stash.remember(done(7, "t3", 62));
    stage.tick(61);

    let vmm = stage.connect("vmm", 1);
    for (ticket, answer) in [("t1", "TransactionState"), ("t2", "TransactionState"), ("t3", "done")]
    {
        assert_eq!(stage.call(vmm, ticketed(ticket, commit())), [format!("vmm: {answer}")]);
    }
}

#[test]
fn a_connection_that_goes_on_has_its_ticket_for_as_long_as_it_stands() {
    let mut stage = Stage::new();
    let (first, second) = (stage.connect("first", 1), stage.connect("second", 1));
    stage.call(first, ticketed("t1", close([])));
    stage.call(second, ticketed("t2", close([])));

    stage.upgrade(|id| id == first);
    stage.tick(61 * SECOND_USEC);
    let of_first = stage.call(first, ticketed("t1", commit()));
    let of_second = stage.call(first, ticketed("t2", commit()));

    assert_eq!(of_first, ["first: done"]);
    assert_eq!(of_second, ["first: TransactionState"]);
}

#[test]
fn a_connection_that_goes_on_and_ends_has_its_ticket_for_a_minute_more() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, ticketed("t1", close([])));

    stage.upgrade(|_| true);
    stage.tick(SECOND_USEC);
    stage.disconnect(vmm);
    let again = stage.connect("again", 1);
    stage.tick(59 * SECOND_USEC + 999_999);
    let at_the_end = stage.call(again, ticketed("t1", commit()));
    stage.tick(1);
    stage.disconnect(again);
    let other = stage.connect("other", 1);
    let after_it = stage.call(other, ticketed("t1", commit()));

    assert_eq!(at_the_end, ["again: done"]);
    assert_eq!(after_it, ["other: TransactionState"]);
}

/// Connections of a user, each of which has one call done, with a ticket of this number, and ends.
fn end_with(stage: &mut Stage, uid: u32, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let id = stage.connect("passing", uid);
        stage.call(id, ticketed(&format!("t{number}"), close([])));
        stage.disconnect(id);
    }
}
