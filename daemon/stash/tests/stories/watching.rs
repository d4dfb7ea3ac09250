//! Watch, List and GetStatistics.

use fdstash_proto::{Call, Pattern, Refusal};

use crate::stage::{Stage, close, commit, expiring, gift, give, polled, reopen, shared, take};

#[test]
fn a_watch_tells_first_that_it_stands() {
    let mut stage = Stage::new();
    let watcher = stage.connect("watcher", 1);

    let standing = stage.call(watcher, watch("*"));

    assert_eq!(standing, ["watcher: Notice(Standing)"]);
}

#[test]
fn every_change_is_told_when_it_is_done() {
    let mut stage = Stage::new();
    let (watcher, vmm) = (stage.connect("watcher", 1), stage.connect("vmm", 1));
    stage.call(watcher, watch("*"));
    let last = |effects: Vec<String>| effects.into_iter().last();

    let given = stage.call(vmm, give([gift("a", "1")]));
    let replaced = stage.call(vmm, give([gift("a", "2")]));
    stage.call(vmm, reopen(["a"]));
    let reopened = stage.opened(vmm, &[&["3", "lent"]]);
    stage.call(vmm, take(["a"]));
    let taken = stage.sent(vmm);
    stage.call(vmm, give([gift("b", "4"), expiring(10, gift("c", "5")), polled(gift("d", "6"))]));
    let closed = stage.call(vmm, close(["b"]));
    let expired = stage.tick(10);
    let hung_up = stage.hung_up("6");

    assert_eq!(given, ["record +a=1", "vmm: given", "tell watcher: given a=1"]);
    assert_eq!(last(replaced).as_deref(), Some("tell watcher: replaced a=2"));
    assert_eq!(last(reopened).as_deref(), Some("tell watcher: reopened a=3"));
    assert_eq!(last(taken).as_deref(), Some("tell watcher: taken a=3"));
    assert_eq!(last(closed).as_deref(), Some("tell watcher: closed b=4"));
    assert_eq!(last(expired).as_deref(), Some("tell watcher: expired c=5"));
    assert_eq!(last(hung_up).as_deref(), Some("tell watcher: hung_up d=6"));
}

#[test]
fn what_is_staged_is_told_at_commit_and_never_if_rolled_back() {
    let mut stage = Stage::new();
    let (watcher, vmm) = (stage.connect("watcher", 1), stage.connect("vmm", 1));
    stage.call(watcher, watch("*"));
    stage.call(vmm, Call::Begin);

    let gave = stage.call(vmm, give([gift("a", "1")]));
    let rolled_back = stage.call(vmm, Call::Rollback);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, give([gift("a", "2")]));
    let committed = stage.call(vmm, commit());

    assert_eq!(gave, ["vmm: given"]);
    assert_eq!(rolled_back, ["vmm: done", "close 1"]);
    assert_eq!(committed, ["record +a=2", "vmm: done", "tell watcher: given a=2"]);
}

#[test]
fn a_watcher_is_told_of_the_names_it_asked_for() {
    let mut stage = Stage::new();
    let (watcher, vmm) = (stage.connect("watcher", 1), stage.connect("vmm", 1));
    stage.call(watcher, watch("vm7/*"));

    let gave = stage.call(vmm, give([gift("vm7/disk0", "7"), gift("vm8/disk0", "8")]));

    assert_eq!(gave[2..], ["tell watcher: given vm7/disk0=7"]);
}

#[test]
fn a_watcher_is_told_of_what_it_may_know() {
    let mut stage = Stage::new();
    let (owner, friend, stranger) =
        (stage.connect("owner", 1), stage.connect("friend", 2), stage.connect("stranger", 3));
    let vmm = stage.connect("vmm", 1);
    for watcher in [owner, friend, stranger] {
        stage.call(watcher, watch("*"));
    }

    let gave = stage.call(vmm, give([shared([2], gift("a", "1")), gift("b", "2")]));

    assert_eq!(gave[2..], ["tell owner friend: given a=1", "tell owner: given b=2"]);
}

#[test]
fn who_may_not_know_of_the_new_one_is_told_that_the_old_one_is_gone() {
    let mut stage = Stage::new();
    let (owner, friend) = (stage.connect("owner", 1), stage.connect("friend", 2));
    let vmm = stage.connect("vmm", 1);
    stage.call(owner, watch("*"));
    stage.call(friend, watch("*"));
    stage.call(vmm, give([shared([2], gift("a", "1"))]));

    let replaced = stage.call(vmm, give([gift("a", "2")]));

    assert_eq!(replaced[3..], ["tell owner: replaced a=2", "tell friend: closed a=1"]);
    assert_eq!(stage.list(friend), [] as [&str; 0]);
}

#[test]
fn a_watcher_that_has_left_is_told_nothing() {
    let mut stage = Stage::new();
    let (watcher, vmm) = (stage.connect("watcher", 1), stage.connect("vmm", 1));
    stage.call(watcher, watch("*"));
    stage.disconnect(watcher);

    let gave = stage.call(vmm, give([gift("a", "1")]));

    assert_eq!(gave, ["record +a=1", "vmm: given"]);
}

#[test]
fn what_changed_together_has_one_revision_and_what_came_later_a_greater_one() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    stage.call(vmm, give([gift("c", "3")]));

    let revision = |called| stage.entry(vmm, called).revision;
    assert_eq!(revision("a"), revision("b"));
    assert!(revision("b") < revision("c"));
}

#[test]
fn a_list_is_answered_at_the_pace_of_its_reader() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let listing = stage.call(vmm, Call::List { pattern: Pattern::new("vm7/*").unwrap() });

    assert_eq!(listing, ["vmm: list of vm7/*"]);
}

#[test]
fn the_statistics_count_entries_and_refusals() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("a", "1"), gift("b", "2")]));
    stage.call(vmm, give([gift("a", "3")]));
    stage.call(vmm, take(["b"]));
    stage.sent(vmm);
    stage.call(vmm, Call::Begin);
    stage.call(vmm, close(["b"]));

    let refusal = Refusal::InvalidParameter { parameter: "names[0]".into() };
    let misunderstood = stage.stash.misunderstood(vmm, refusal);

    assert_eq!(misunderstood.len(), 1);
    let statistics = stage.stash.statistics();
    assert_eq!((statistics.entries, statistics.connections), (1, 1));
    assert_eq!((statistics.given, statistics.closed, statistics.taken), (3, 1, 1));
    assert_eq!((statistics.transactions, statistics.refused), (1, 2));
}

fn watch(pattern: &str) -> Call<fdstash_stash::Inspected<crate::stage::Word>> {
    Call::Watch { pattern: Pattern::new(pattern).expect("a pattern") }
}
