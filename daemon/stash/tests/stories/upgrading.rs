//! What becomes of connections, and of what was theirs, when another stash goes on.

use fdstash_proto::{Call, Pattern};

use crate::stage::{Stage, close, ephemeral, gift, give, take, wait};

#[test]
fn what_was_ephemeral_of_a_connection_that_was_lost_is_closed_and_watchers_are_told() {
    let mut stage = Stage::new();
    let (lost, watcher) = (stage.connect("lost", 1), stage.connect("watcher", 1));
    stage.call(lost, give([ephemeral(gift("disk", "image"))]));
    stage.call(watcher, Call::Watch { pattern: Pattern::all() });

    let gone = stage.upgrade(|id| id == watcher);

    assert_eq!(gone, ["record -disk=image", "close image", "tell watcher: closed disk=image"]);
}

#[test]
fn what_is_ephemeral_of_a_connection_that_goes_on_goes_when_it_does() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([ephemeral(gift("disk", "image"))]));

    let nothing = stage.upgrade(|_| true);
    let gone = stage.disconnect(vmm);

    assert!(nothing.is_empty(), "{nothing:?}");
    assert_eq!(gone, ["record -disk=image", "close image"]);
}

#[test]
fn who_waits_for_what_a_lost_connection_held_has_it() {
    let mut stage = Stage::new();
    let (lost, waiting) = (stage.connect("lost", 1), stage.connect("waiting", 1));
    stage.call(lost, give([gift("disk", "image")]));
    stage.call(lost, Call::Begin);
    stage.call(lost, take(["disk"]));
    assert!(stage.call(waiting, wait(["disk"], 100)).is_empty());

    let served = stage.upgrade(|id| id == waiting);

    assert_eq!(served, ["waiting: has disk=image, if it leaves"]);
}

#[test]
fn a_revision_is_never_used_twice_also_if_its_entry_has_gone() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image"), gift("log", "log")]));
    stage.call(vmm, close(["disk"]));
    let before = stage.stash.begin_journal();

    stage.upgrade(|_| true);

    assert_eq!(stage.stash.begin_journal().revision, before.revision);
}
