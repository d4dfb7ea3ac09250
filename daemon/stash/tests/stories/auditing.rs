//! What is told of to whoever has to account for it.

use fdstash_proto::Call;

use crate::stage::{Stage, close, commit, copy, gift, give, take};

#[test]
fn nothing_is_told_that_nobody_wants_to_know() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    assert_eq!(
        stage.call(vmm, give([gift("disk", "image")])),
        ["record +disk=image", "vmm: given"]
    );
}

#[test]
fn what_is_taken_is_told_of_when_it_has_left() {
    let mut stage = Stage::new();
    stage.stash.set_audited(true);
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    let copied = stage.call(vmm, copy(["b"]));
    let took = stage.call(vmm, take(["a"]));
    let unsent = stage.unsent(vmm);
    let again = stage.call(vmm, take(["a"]));
    let sent = stage.sent(vmm);
    let closed = stage.call(vmm, close(["b"]));

    assert_eq!(gave[2], "audit vmm: given a, given b");
    assert_eq!(copied, ["vmm: has b=2", "audit vmm: copied b"]);
    assert_eq!((took.len(), unsent.len(), again.len()), (1, 0, 1));
    assert_eq!(sent, ["record -a=1", "close 1", "audit vmm: taken a"]);
    assert_eq!(closed[3], "audit vmm: closed b");
}

#[test]
fn what_a_transaction_was_handed_is_told_of_whatever_that_comes_to() {
    let mut stage = Stage::new();
    stage.stash.set_audited(true);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1")]));

    stage.call(vmm, Call::Begin);
    let took = stage.call(vmm, take(["a"]));
    let back = stage.call(vmm, Call::Rollback);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, take(["a"]));
    let ended = stage.call(vmm, commit());

    assert_eq!(took, ["vmm: has a=1", "audit vmm: lent a"]);
    assert_eq!(back, ["vmm: done"]);
    assert_eq!(ended, ["record -a=1", "vmm: done", "close 1", "audit vmm: taken a"]);
}

#[test]
fn what_makes_room_and_what_goes_with_its_connection_is_told_of_as_well() {
    let mut stage = Stage::new();
    stage.stash.set_audited(true);
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1")]));

    let replaced = stage.call(vmm, give([gift("a", "2")]));

    let told = replaced.iter().find(|effect| effect.starts_with("audit"));
    assert_eq!(told.map(String::as_str), Some("audit vmm: replaced a, closed a"));
}
