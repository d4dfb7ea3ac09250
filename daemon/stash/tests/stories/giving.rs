//! Give.

use fdstash_proto::{Access, Call, Clash, Gift, Kind};
use fdstash_stash::Inspected;

use crate::stage::{Stage, Word, close, copy, fresh, gift, gift_of, give, name, shared};

#[test]
fn a_give_is_recorded_before_it_is_acknowledged() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([gift("disk", "image")]));

    assert_eq!(gave, ["record +disk=image", "vmm: given"]);
    assert_eq!(stage.list(vmm), ["disk=image"]);
}

#[test]
fn a_give_of_several_is_one_record() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([gift("b", "second"), gift("a", "first")]));

    assert_eq!(gave, ["record +b=second +a=first", "vmm: given"]);
    assert_eq!(stage.list(vmm), ["a=first", "b=second"]);
}

#[test]
fn what_makes_room_is_closed_when_the_record_says_that_it_is_gone() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "old")]));

    let gave = stage.call(vmm, give([gift("disk", "new"), gift("log", "log")]));

    assert_eq!(gave, ["record +disk=new +log=log -disk=old", "vmm: given, for disk", "close old"]);
}

#[test]
fn an_exclusive_give_of_a_taken_name_keeps_what_is_there() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "old")]));

    let gifts = vec![gift("log", "log"), gift("disk", "new")];
    let gave = stage.call(vmm, Call::Give { gifts, clash: Clash::Refuse, ticket: None });

    assert_eq!(gave, ["vmm: AlreadyExists disk", "close log new"]);
    assert_eq!(stage.list(vmm), ["disk=old"]);
}

#[test]
fn an_exclusive_give_tells_no_more_of_what_is_hidden_than_any_other() {
    let mut stage = Stage::new();
    let [owner, friend, stranger] = [("owner", 1), ("friend", 2), ("stranger", 3)]
        .map(|(called, uid)| stage.connect(called, uid));
    stage.call(owner, give([shared([2], gift("disk", "old"))]));

    let exclusive =
        |fd| Call::Give { gifts: vec![gift("disk", fd)], clash: Clash::Refuse, ticket: None };
    let knows = stage.call(friend, exclusive("1"));
    let hidden = stage.call(stranger, exclusive("2"));
    let plain = stage.call(stranger, give([gift("disk", "2")]));

    assert_eq!(knows, ["friend: AlreadyExists disk", "close 1"]);
    assert_eq!(hidden, ["stranger: AccessDenied give disk", "close 2"]);
    assert_eq!(hidden, plain);
}

#[test]
fn nobody_gives_over_what_he_may_not_close() {
    let mut stage = Stage::new();
    let (owner, friend, stranger) =
        (stage.connect("owner", 1), stage.connect("friend", 2), stage.connect("stranger", 3));
    stage.call(owner, give([shared([2], gift("disk", "old"))]));

    let denied = stage.call(stranger, give([gift("disk", "evil")]));
    let gave = stage.call(friend, give([gift("disk", "new")]));

    assert_eq!(denied, ["stranger: AccessDenied give disk", "close evil"]);
    assert_eq!(gave, ["record +disk=new -disk=old", "friend: given, for disk", "close old"]);
}

#[test]
fn a_fresh_gift_is_kept_as_a_description_of_the_stashs_own() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([gift("log", "log"), fresh(gift("disk", "sent"))]));
    let opened = stage.opened(vmm, &[&["own"]]);

    assert_eq!(gave, ["open for vmm: disk=sent read_write {} 1x as daemon"]);
    assert_eq!(opened, ["record +log=log +disk=own", "vmm: given", "close sent"]);
    assert_eq!(stage.entry(vmm, "disk").target.as_deref(), Some("/images/sent"));
}

#[test]
fn a_fresh_gift_that_cannot_be_opened_leaves_nothing_behind() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("log", "log"), fresh(gift("disk", "sent"))]));

    let failed = stage.not_opened(vmm, 0);

    assert_eq!(failed, ["vmm: ReopenFailed disk EIO", "close log sent"]);
    assert_eq!(stage.list(vmm), [] as [&str; 0]);
    let gave = stage.call(vmm, give([gift("disk", "other")]));
    assert_eq!(gave, ["record +disk=other", "vmm: given"]);
}

#[test]
fn what_cannot_be_opened_anew_cannot_be_given_fresh() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    for kind in [Kind::Socket, Kind::Fifo, Kind::Character, Kind::Directory, Kind::Anonymous] {
        let gift = gift_of(kind, Access::ReadWrite, "it", "it");
        let gave = stage.call(vmm, give([fresh(gift)]));

        let parameter = "vmm: InvalidParameter entries[0].fresh";
        assert_eq!(gave, [parameter, "close it"], "{kind:?}");
    }
}

#[test]
fn the_name_of_what_is_being_opened_is_busy_for_its_user_and_taken_for_others() {
    let mut stage = Stage::new();
    let (first, second, stranger) =
        (stage.connect("first", 1), stage.connect("second", 1), stage.connect("stranger", 2));
    stage.call(first, give([fresh(gift("disk", "sent"))]));

    let busy = stage.call(second, give([gift("disk", "other")]));
    let denied = stage.call(stranger, give([gift("disk", "evil")]));
    let unknown = stage.call(stranger, close(["disk"]));

    assert_eq!(busy, ["second: Busy disk, held by 1", "close other"]);
    assert_eq!(denied, ["stranger: AccessDenied give disk", "close evil"]);
    assert_eq!(unknown, ["stranger: NotFound disk"]);
}

#[test]
fn who_lets_reopen_with_more_access_must_have_it_himself() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([may_be_written(Kind::Regular)]));
    let opened = stage.opened(vmm, &[&[]]);

    assert_eq!(gave, ["open for vmm: disk=readable read_write {} 0x as uid 1"]);
    assert_eq!(opened, ["record +disk=readable", "vmm: given"]);
    let entry = stage.entry(vmm, "disk");
    assert_eq!((entry.access, entry.may_reopen), (Access::Read, Access::ReadWrite));
}

#[test]
fn who_has_not_the_access_himself_cannot_let_reopen_with_it() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([may_be_written(Kind::Regular)]));

    let failed = stage.not_opened(vmm, 0);

    assert_eq!(failed, ["vmm: ReopenFailed disk EIO", "close readable"]);
}

#[test]
fn the_other_end_of_a_pipe_is_nobodys_to_allow() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([may_be_written(Kind::Fifo)]));

    assert_eq!(gave, ["vmm: AccessDenied reopen disk", "close readable"]);
}

#[test]
fn a_failure_to_open_names_the_gift_that_it_stands_for() {
    // The files to open are, in this order: a probe, a fresh one, and both for the third gift.
    let names = ["probed", "fresh", "both", "both"];
    for (at, culprit) in names.into_iter().enumerate() {
        let mut stage = Stage::new();
        let vmm = stage.connect("vmm", 1);
        let gifts = [
            Gift { name: name("probed"), ..may_be_written(Kind::Regular) },
            fresh(gift("fresh", "f")),
            fresh(Gift { name: name("both"), ..may_be_written(Kind::Regular) }),
        ];
        stage.call(vmm, give(gifts));

        let failed = stage.not_opened(vmm, at);

        assert_eq!(failed[0], format!("vmm: ReopenFailed {culprit} EIO"));
    }
}

#[test]
fn files_that_are_open_when_the_giver_has_gone_are_closed() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([fresh(gift("disk", "sent"))]));

    let left = stage.disconnect(vmm);
    let opened = stage.opened(vmm, &[&["own"]]);

    assert_eq!(left, ["close sent"]);
    assert_eq!(opened, ["close own"]);
}

#[test]
fn a_give_of_nothing_is_no_change() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let gave = stage.call(vmm, give([]));
    let copied = stage.call(vmm, copy([]));

    assert_eq!(gave, ["vmm: given"]);
    assert_eq!(copied, ["vmm: has "]);
}

/// Something for reading, of which a Reopen may make something for reading and writing.
fn may_be_written(kind: Kind) -> Gift<Inspected<Word>> {
    let may_reopen = Some(Access::ReadWrite);
    Gift { may_reopen, ..gift_of(kind, Access::Read, "disk", "readable") }
}
