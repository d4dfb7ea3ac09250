//! Take, and what waits for it.

use crate::stage::{Stage, close, copy, fresh, fresh_copy, gift, give, shared, take, wait};
use fdstash_proto::{Call, Taking};

#[test]
fn what_is_taken_stays_until_its_answer_has_left() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    let other = stage.connect("other", 1);
    stage.call(vmm, give([gift("disk", "image")]));

    let took = stage.call(vmm, take(["disk"]));
    let meanwhile = stage.list(other);
    let sent = stage.sent(vmm);

    assert_eq!(took, ["vmm: has disk=image, if it leaves"]);
    assert_eq!(meanwhile, ["disk=image"]);
    assert_eq!(sent, ["record -disk=image", "close image"]);
    assert_eq!(stage.list(other), [] as [&str; 0]);
}

#[test]
fn what_was_not_sent_stays() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image")]));
    stage.call(vmm, take(["disk"]));

    let unsent = stage.unsent(vmm);

    assert_eq!(unsent, [] as [&str; 0]);
    assert_eq!(stage.list(vmm), ["disk=image"]);
}

#[test]
fn what_was_on_its_way_to_a_connection_that_ends_stays() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("disk", "image")]));
    stage.call(vmm, take(["disk"]));

    let left = stage.disconnect(vmm);
    let sent = stage.sent(vmm);

    assert_eq!((left, sent), (vec![], vec![]));
    assert_eq!(stage.call(other, take(["disk"])), ["other: has disk=image, if it leaves"]);
}

#[test]
fn what_is_on_its_way_to_one_is_busy_for_others() {
    let mut stage = Stage::new();
    let (first, second) = (stage.connect("first", 1), stage.connect("second", 1));
    stage.call(first, give([gift("disk", "image")]));
    stage.call(first, take(["disk"]));

    for call in [take(["disk"]), copy(["disk"]), close(["disk"])] {
        let refused = stage.call(second, call);

        assert_eq!(refused, ["second: Busy disk, held by 1"]);
    }
}

#[test]
fn a_copy_leaves_everything_where_it_is() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image")]));

    let copied = stage.call(vmm, copy(["disk"]));
    let again = stage.call(vmm, copy(["disk"]));

    assert_eq!(copied, ["vmm: has disk=image"]);
    assert_eq!(again, copied);
    assert_eq!(stage.stash.statistics().copied, 2);
}

#[test]
fn a_fresh_copy_is_opened_once_and_shares_nothing_with_what_is_kept() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image"), gift("log", "log")]));

    let asked = stage.call(vmm, fresh_copy(["disk", "log"]));
    let opened = stage.opened(vmm, &[&["image2"], &["log2"]]);

    let files = "disk=image read_write {} 1x as daemon, log=log read_write {} 1x as daemon";
    assert_eq!(asked, [format!("open for vmm: {files}")]);
    assert_eq!(opened, ["vmm: has disk=image2 log=log2"]);
    assert_eq!(stage.list(vmm), ["disk=image", "log=log"]);
}

#[test]
fn a_take_of_several_is_all_or_nothing() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image")]));

    let took = stage.call(vmm, take(["disk", "log"]));

    assert_eq!(took, ["vmm: NotFound log"]);
    assert_eq!(
        stage.call(vmm, close(["disk"])),
        ["record -disk=image", "vmm: done", "close image"]
    );
}

#[test]
fn what_somebody_may_not_know_of_he_does_not_find() {
    let mut stage = Stage::new();
    let (owner, stranger) = (stage.connect("owner", 1), stage.connect("stranger", 2));
    stage.call(owner, give([gift("disk", "image")]));

    for call in [take(["disk"]), copy(["disk"]), fresh_copy(["disk"]), close(["disk"])] {
        let refused = stage.call(stranger, call);

        assert_eq!(refused, ["stranger: NotFound disk"]);
    }
}

#[test]
fn who_waits_is_served_by_a_give() {
    let mut stage = Stage::new();
    let (vmm, libvirt) = (stage.connect("vmm", 1), stage.connect("libvirt", 1));

    let waits = stage.call(vmm, wait(["disk"], 100));
    let gave = stage.call(libvirt, give([gift("disk", "image")]));
    let late = stage.tick(100);

    assert_eq!(waits, [] as [&str; 0]);
    assert_eq!(gave, ["record +disk=image", "libvirt: given", "vmm: has disk=image, if it leaves"]);
    assert_eq!(late, [] as [&str; 0]);
}

#[test]
fn who_waits_is_served_by_the_end_of_a_hold() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(other, give([gift("disk", "image")]));

    stage.call(other, Call::Begin);
    stage.call(other, copy(["disk"]));
    stage.call(vmm, wait(["disk"], 100));
    let rolled_back = stage.call(other, Call::Rollback);
    let unsent = stage.unsent(vmm);

    assert_eq!(rolled_back, ["other: done", "vmm: has disk=image, if it leaves"]);
    assert_eq!(unsent, [] as [&str; 0]);

    stage.call(other, take(["disk"]));
    stage.call(vmm, wait(["disk"], 100));
    let unsent = stage.unsent(other);

    assert_eq!(unsent, ["vmm: has disk=image, if it leaves"]);
}

#[test]
fn who_waits_for_several_is_served_when_all_are_there() {
    let mut stage = Stage::new();
    let (vmm, libvirt) = (stage.connect("vmm", 1), stage.connect("libvirt", 1));

    stage.call(vmm, wait(["disk", "log"], 100));
    let first = stage.call(libvirt, give([gift("log", "log")]));
    let second = stage.call(libvirt, give([gift("disk", "image")]));

    assert_eq!(first, ["record +log=log", "libvirt: given"]);
    assert_eq!(
        second,
        ["record +disk=image", "libvirt: given", "vmm: has disk=image log=log, if it leaves"]
    );
}

#[test]
fn who_has_waited_long_enough_is_told_what_stands_against_it_now() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(other, give([gift("disk", "image")]));
    stage.call(other, take(["disk"]));

    stage.call(vmm, wait(["disk"], 100));
    stage.sent(other);
    let early = stage.tick(99);
    let due = stage.stash.next_due();
    let late = stage.tick(1);

    assert_eq!(early, [] as [&str; 0]);
    assert_eq!(due, Some(100));
    assert_eq!(late, ["vmm: NotFound disk"]);
    assert_eq!(stage.stash.next_due(), None);
}

#[test]
fn who_waits_first_is_served_first_whatever_the_order_of_the_names() {
    let mut stage = Stage::new();
    let first = stage.connect("first", 1);
    let second = stage.connect("second", 1);
    let giver = stage.connect("giver", 1);
    stage.call(first, wait(["b"], 100));
    stage.call(second, wait(["a", "b"], 100));

    let gave = stage.call(giver, give([gift("a", "1"), gift("b", "2")]));
    let sent = stage.sent(first);
    let gave_again = stage.call(giver, give([gift("b", "3")]));

    assert_eq!(gave, ["record +a=1 +b=2", "giver: given", "first: has b=2, if it leaves"]);
    assert_eq!(sent, ["record -b=2", "close 2"]);
    assert_eq!(gave_again, ["record +b=3", "giver: given", "second: has a=1 b=3, if it leaves"]);
}

#[test]
fn who_has_waited_in_vain_goes_to_the_end_of_the_line() {
    let mut stage = Stage::new();
    let (first, second) = (stage.connect("first", 1), stage.connect("second", 1));
    let giver = stage.connect("giver", 1);
    stage.call(first, wait(["disk"], 10));
    stage.call(second, wait(["disk"], 100));
    stage.tick(10);
    stage.call(first, wait(["disk"], 100));

    let gave = stage.call(giver, give([gift("disk", "image")]));

    assert_eq!(gave[2..], ["second: has disk=image, if it leaves"]);
}

#[test]
fn who_waits_for_a_copy_does_not_keep_others_waiting() {
    let mut stage = Stage::new();
    let (first, second, third) =
        (stage.connect("first", 1), stage.connect("second", 1), stage.connect("third", 1));
    let giver = stage.connect("giver", 1);
    let waiting = |taking| Call::Take { names: vec![disk()], taking, timeout_usec: 100 };
    stage.call(first, waiting(Taking::Copy));
    stage.call(second, waiting(Taking::Fresh));
    stage.call(third, waiting(Taking::Move));

    let gave = stage.call(giver, give([gift("disk", "image")]));
    let opened = stage.opened(second, &[&["own"]]);

    assert_eq!(
        gave,
        [
            "record +disk=image",
            "giver: given",
            "first: has disk=image",
            "open for second: disk=image read_write {} 1x as daemon",
            "third: has disk=image, if it leaves",
        ]
    );
    assert_eq!(opened, ["second: has disk=own"]);
}

#[test]
fn who_has_left_waits_no_longer() {
    let mut stage = Stage::new();
    let (vmm, libvirt) = (stage.connect("vmm", 1), stage.connect("libvirt", 1));
    stage.call(vmm, wait(["disk"], 100));

    let left = stage.disconnect(vmm);
    let gave = stage.call(libvirt, give([gift("disk", "image")]));

    assert_eq!(left, [] as [&str; 0]);
    assert_eq!(gave, ["record +disk=image", "libvirt: given"]);
    assert_eq!(stage.stash.next_due(), None);
}

#[test]
fn who_waits_for_what_is_hidden_goes_on_waiting() {
    let mut stage = Stage::new();
    let (vmm, owner) = (stage.connect("vmm", 1), stage.connect("owner", 2));
    stage.call(owner, give([gift("disk", "theirs")]));

    let waits = stage.call(vmm, wait(["disk"], 100));
    let shared = stage.call(owner, give([shared([1], gift("disk", "ours"))]));

    assert_eq!(waits, [] as [&str; 0]);
    assert_eq!(
        shared,
        [
            "record +disk=ours -disk=theirs",
            "owner: given, for disk",
            "close theirs",
            "vmm: has disk=ours, if it leaves",
        ]
    );
}

#[test]
fn what_is_being_opened_for_its_keeping_can_be_waited_for() {
    let mut stage = Stage::new();
    let (vmm, libvirt) = (stage.connect("vmm", 1), stage.connect("libvirt", 1));
    stage.call(libvirt, give([fresh(gift("disk", "sent"))]));

    let waits = stage.call(vmm, wait(["disk"], 100));
    let opened = stage.opened(libvirt, &[&["own"]]);

    assert_eq!(waits, [] as [&str; 0]);
    assert_eq!(
        opened,
        ["record +disk=own", "libvirt: given", "vmm: has disk=own, if it leaves", "close sent",]
    );
}

fn disk() -> fdstash_proto::Name {
    crate::stage::name("disk")
}
