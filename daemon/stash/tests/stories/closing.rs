//! Close, and the ends that come without a call: by time, by hang-up, with a connection.

use fdstash_proto::{Call, Change, Clash, Gift, Name};
use fdstash_stash::Inspected;

use crate::stage::{
    Stage, Word, close, commit, copy, ephemeral, expiring, gift, give, polled, reopen, shared,
    take, wait,
};

#[test]
fn a_close_is_recorded_acknowledged_and_then_carried_out() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image"), gift("log", "log")]));

    let closed = stage.call(vmm, close(["log", "disk"]));

    assert_eq!(closed, ["record -log=log -disk=image", "vmm: done", "close log image"]);
}

#[test]
fn a_close_of_several_is_all_or_nothing() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image")]));

    let closed = stage.call(vmm, close(["disk", "log"]));

    assert_eq!(closed, ["vmm: NotFound log"]);
    assert_eq!(stage.list(vmm), ["disk=image"]);
}

#[test]
fn what_has_expired_is_closed() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.tick(1000);
    stage
        .call(vmm, give([expiring(100, gift("disk", "image")), expiring(200, gift("log", "log"))]));

    let shown = stage.entry(vmm, "disk").expires_at_usec;
    let early = stage.tick(99);
    let due = stage.stash.next_due();
    let late = stage.tick(1);

    assert_eq!(shown, Some(1_000_000 + 1000 + 100));
    assert_eq!(early, [] as [&str; 0]);
    assert_eq!(due, Some(1100));
    assert_eq!(late, ["record -disk=image", "close image"]);
    assert_eq!(stage.stash.next_due(), Some(1200));
    assert_eq!(stage.stash.statistics().expired, 1);
}

#[test]
fn what_expires_together_is_one_record() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(10, gift("b", "2")), expiring(20, gift("a", "1"))]));

    let late = stage.tick(100);

    assert_eq!(late, ["record -b=2 -a=1", "close 2 1"]);
}

#[test]
fn what_expires_while_it_is_held_ends_when_the_hold_does() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(100, gift("disk", "image"))]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, copy(["disk"]));

    let expired = stage.tick(100);
    let due = stage.stash.next_due();
    let rolled_back = stage.call(vmm, Call::Rollback);

    assert_eq!(expired, [] as [&str; 0]);
    assert_eq!(due, None);
    assert_eq!(rolled_back, ["vmm: done", "record -disk=image", "close image"]);
    assert_eq!(stage.stash.statistics().expired, 1);
}

#[test]
fn what_expires_on_its_way_to_a_taker_is_the_takers() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(100, gift("disk", "image"))]));
    stage.call(vmm, take(["disk"]));

    let expired = stage.tick(100);
    let sent = stage.sent(vmm);

    assert_eq!(expired, [] as [&str; 0]);
    assert_eq!(sent, ["record -disk=image", "close image"]);
    let statistics = stage.stash.statistics();
    assert_eq!((statistics.taken, statistics.expired), (1, 0));
}

#[test]
fn what_takes_the_place_of_something_expired_does_not_end_for_it() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(100, gift("disk", "old"))]));
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("disk", "new")]));
    stage.tick(100);

    let committed = stage.call(vmm, commit());

    assert_eq!(committed, ["record +disk=new -disk=old", "vmm: done", "close old"]);
}

#[test]
fn what_is_reopened_expires_when_it_would_have() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(100, gift("disk", "old"))]));

    stage.tick(50);
    stage.call(vmm, reopen(["disk"]));
    stage.opened(vmm, &[&["kept", "lent"]]);
    let expired = stage.tick(50);

    assert_eq!(expired, ["record -disk=kept", "close kept"]);
}

#[test]
fn what_expires_while_it_is_reopened_ends_behind_the_reopen() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([expiring(100, gift("disk", "old"))]));
    stage.call(vmm, reopen(["disk"]));
    stage.tick(100);

    let opened = stage.opened(vmm, &[&["kept", "lent"]]);

    assert_eq!(
        opened,
        [
            "record +disk=kept -disk=old",
            "vmm: has disk=lent",
            "close old",
            "record -disk=kept",
            "close kept",
        ]
    );
}

#[test]
fn what_hangs_up_is_polled_no_longer_and_closed() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([polled(gift("console", "pipe"))]));
    let hung_up = stage.hung_up("pipe");
    let again = stage.hung_up("pipe");

    assert_eq!(gave, ["record +console=pipe", "vmm: given", "poll pipe"]);
    assert_eq!(hung_up, ["record -console=pipe", "unpoll pipe", "close pipe"]);
    assert_eq!(again, [] as [&str; 0]);
}

#[test]
fn what_hangs_up_while_it_is_held_ends_when_the_hold_does() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([polled(gift("console", "pipe"))]));
    stage.call(vmm, take(["console"]));

    let hung_up = stage.hung_up("pipe");
    let unsent = stage.unsent(vmm);

    assert_eq!(hung_up, [] as [&str; 0]);
    assert_eq!(unsent, ["record -console=pipe", "unpoll pipe", "close pipe"]);
}

#[test]
fn what_is_only_staged_is_not_polled() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, Call::Begin);

    let gave = stage.call(vmm, give([polled(gift("console", "pipe"))]));
    let committed = stage.call(vmm, commit());

    assert_eq!(gave, ["vmm: given"]);
    assert_eq!(committed, ["record +console=pipe", "vmm: done", "poll pipe"]);
}

#[test]
fn what_is_reopened_is_polled_in_the_place_of_the_old_one() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([polled(gift("console", "old"))]));
    stage.call(vmm, reopen(["console"]));

    let opened = stage.opened(vmm, &[&["kept", "lent"]]);

    assert_eq!(
        opened,
        [
            "record +console=kept -console=old",
            "vmm: has console=lent",
            "unpoll old",
            "poll kept",
            "close old",
        ]
    );
}

#[test]
fn what_is_ephemeral_goes_with_its_giver() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([ephemeral(gift("a", "1")), gift("b", "2"), ephemeral(gift("c", "3"))]));

    let left = stage.disconnect(vmm);

    assert_eq!(left, ["record -a=1 -c=3", "close 1 3"]);
    assert_eq!(stage.list(other), ["b=2"]);
}

/// So many names, and their gifts.
fn many(
    count: usize,
    kind: impl Fn(usize, Gift<Inspected<Word>>) -> Gift<Inspected<Word>>,
) -> Call<Inspected<Word>> {
    let gifts = (0..count).map(|at| kind(at, gift(&format!("n{at:03}"), "image")));
    Call::Give { gifts: gifts.collect(), clash: Clash::Replace, ticket: None }
}

#[test]
fn much_that_expires_together_ends_in_several_steps() {
    let mut stage = Stage::with_room_for(300, 10, 400);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, many(300, |_, gift| expiring(10, gift)));

    let left = [10, 0, 0].map(|usec| {
        stage.tick(usec);
        (stage.stash.count(), stage.stash.next_due())
    });

    assert_eq!(left, [(172, Some(10)), (44, Some(10)), (0, None)]);
}

#[test]
fn much_that_is_ephemeral_ends_in_several_steps_but_for_what_others_hold() {
    let mut stage = Stage::with_room_for(300, 10, 400);
    let (vmm, root) = (stage.connect("vmm", 1), stage.connect("root", 0));
    stage.call(vmm, many(300, |_, gift| ephemeral(gift)));
    stage.call(root, Call::Begin);
    stage.call(root, close(["n000", "n001"]));

    let mut left = Vec::new();
    while stage.shed(vmm).is_some() {
        left.push(stage.stash.count());
    }
    stage.disconnect(vmm);
    assert_eq!((left, stage.stash.count()), (vec![174, 46], 2));
    stage.call(root, Call::Rollback);

    assert_eq!(stage.stash.count(), 0);
}

#[test]
fn what_is_ephemeral_and_held_by_another_goes_when_that_hold_ends() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([ephemeral(gift("disk", "old"))]));
    stage.call(other, Call::Begin);
    stage.call(other, reopen(["disk"]));
    stage.opened(other, &[&["kept", "lent"]]);

    let left = stage.disconnect(vmm);
    let committed = stage.call(other, commit());

    assert_eq!(left, [] as [&str; 0]);
    assert_eq!(
        committed,
        [
            "record +disk=kept -disk=old",
            "other: done",
            "close old",
            "record -disk=kept",
            "close kept",
        ]
    );
}

#[test]
fn what_is_ephemeral_and_taken_by_another_does_not_go_with_its_giver() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([ephemeral(gift("disk", "image"))]));
    stage.call(other, take(["disk"]));

    let left = stage.disconnect(vmm);
    let sent = stage.sent(other);

    assert_eq!(left, [] as [&str; 0]);
    assert_eq!(sent, ["record -disk=image", "close image"]);
}

#[test]
fn nobody_who_waits_gets_what_goes_with_its_giver() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([ephemeral(gift("disk", "image"))]));
    stage.call(vmm, take(["disk"]));
    stage.call(other, wait(["disk"], 100));

    let left = stage.disconnect(vmm);

    assert_eq!(left, ["record -disk=image", "close image"]);
}

#[test]
fn the_first_reason_to_end_is_the_one_that_is_told() {
    let mut stage = Stage::new();
    let watcher = stage.connect("watcher", 0);
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(watcher, Call::Watch { pattern: fdstash_proto::Pattern::all() });
    stage.call(vmm, give([ephemeral(expiring(100, gift("disk", "image")))]));
    stage.call(other, take(["disk"]));
    stage.tick(100);
    stage.disconnect(vmm);

    let unsent = stage.unsent(other);

    let told = format!("tell watcher: {} disk=image", Change::Expired.as_str());
    assert_eq!(unsent, ["record -disk=image", "close image", &told]);
}

#[test]
fn what_others_gave_does_not_go_with_a_connection() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 2));
    stage.call(vmm, give([shared([2], ephemeral(gift("disk", "image")))]));

    let left = stage.disconnect(other);

    assert_eq!(left, [] as [&str; 0]);
    assert_eq!(stage.list(vmm), ["disk=image"]);
}

#[test]
fn a_great_many_names_of_a_refused_call_are_freed_for_who_sent_them() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    let names = (0..2000).map(|at| Name::new(&format!("disk{at}")).unwrap()).collect();

    let said = stage.call(vmm, Call::Close { names, ticket: None });

    assert_eq!(said[1..], ["forget 2000 names of vmm"]);
}
