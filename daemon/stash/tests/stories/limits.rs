//! The limits: at each of them, and one past it.

use fdstash_proto::{Call, Peer, Refusal};
use fdstash_stash::Who;

use crate::stage::{Stage, close, commit, fresh, gift, give, reopen, take};

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

fn somebody() -> Who {
    Who { peer: Peer { uid: 1, gid: 1, pid: 1 }, groups: [].into() }
}
