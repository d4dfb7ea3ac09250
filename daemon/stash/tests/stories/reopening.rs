//! Reopen. Which flags and whose rights, says the table in `reopen.rs`.

use fdstash_proto::{Access, Call, Flags, Gift, Kind, Labels, Reopening};

use crate::stage::{Stage, close, copy, expiring, gift, gift_of, give, name, reopen, shared};

#[test]
fn two_files_are_reopened_together() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("base", "base"), gift("top", "top")]));

    let asked = stage.call(vmm, reopen(["top", "base"]));
    let meanwhile = stage.list(vmm);
    let opened = stage.opened(vmm, &[&["top2", "top3"], &["base2", "base3"]]);

    let [top, base] = ["top", "base"]
        .map(|file| format!("{file}={file} read_write {{}} 1x+read_write as daemon"));
    assert_eq!(asked, [format!("open for vmm: {top}, {base}")]);
    assert_eq!(meanwhile, ["base=base", "top=top"]);
    assert_eq!(
        opened,
        [
            "record +top=top2 +base=base2 -top=top -base=base",
            "vmm: has top=top3 base=base3",
            "close top base",
        ]
    );
}

#[test]
fn where_the_second_file_fails_to_open_the_stash_is_as_it_was() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("base", "base"), gift("top", "top")]));

    stage.call(vmm, reopen(["top", "base"]));
    let failed = stage.not_opened(vmm, 1);

    assert_eq!(failed, ["vmm: ReopenFailed base EIO"]);
    assert_eq!(stage.list(vmm), ["base=base", "top=top"]);
    assert_eq!(stage.call(other, copy(["base", "top"])), ["other: has base=base top=top"]);
}

#[test]
fn what_is_being_reopened_nobody_else_can_touch() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("disk", "image")]));
    stage.call(vmm, reopen(["disk"]));

    let busy = stage.call(other, close(["disk"]));
    let opened = stage.opened(vmm, &[&["kept", "lent"]]);

    assert_eq!(busy, ["other: Busy disk, held by 1"]);
    assert_eq!(opened, ["record +disk=kept -disk=image", "vmm: has disk=lent", "close image"]);
}

#[test]
fn who_leaves_while_his_files_are_opened_leaves_the_stash_as_it_was() {
    let mut stage = Stage::new();
    let (vmm, other) = (stage.connect("vmm", 1), stage.connect("other", 1));
    stage.call(vmm, give([gift("disk", "image")]));
    stage.call(vmm, reopen(["disk"]));

    let left = stage.disconnect(vmm);
    let opened = stage.opened(vmm, &[&["kept", "lent"]]);

    assert_eq!(left, [] as [&str; 0]);
    assert_eq!(opened, ["close kept lent"]);
    assert_eq!(stage.call(other, copy(["disk"])), ["other: has disk=image"]);
}

#[test]
fn what_is_reopened_is_the_same_entry_but_for_what_was_asked() {
    let mut stage = Stage::new();
    let (owner, friend) = (stage.connect("owner", 1), stage.connect("friend", 2));
    let labels: Labels = [("vm".to_owned(), "7".to_owned())].into();
    let gift = Gift { labels, ..expiring(100, shared([2], gift("disk", "image"))) };
    stage.call(owner, give([gift]));
    let before = stage.entry(owner, "disk");

    stage.tick(10);
    let wanted = Reopening {
        access: Some(Access::Read),
        direct: Some(true),
        ..Reopening::new(name("disk"))
    };
    stage.call(friend, Call::Reopen { reopenings: vec![wanted] });
    stage.opened(friend, &[&["kept", "lent"]]);

    let after = stage.entry(owner, "disk");
    assert_eq!((after.access, after.flags), (Access::Read, Flags::DIRECT));
    assert_eq!(after.may_reopen, Access::ReadWrite);
    assert!(after.revision > before.revision);
    let (access, flags, revision) = (before.access, before.flags, before.revision);
    assert_eq!(fdstash_proto::Entry { access, flags, revision, ..after }, before);
}

#[test]
fn who_hands_out_less_narrows_nothing_that_is_kept() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);
    stage.call(vmm, give([gift("disk", "image")]));
    let hand_out = |access| {
        let hand_out = Some(access);
        Call::Reopen { reopenings: vec![Reopening { hand_out, ..Reopening::new(name("disk")) }] }
    };

    let less = stage.call(vmm, hand_out(Access::Read));
    let opened = stage.opened(vmm, &[&["kept", "lent"]]);
    let kept = stage.entry(vmm, "disk").access;
    let again = stage.call(vmm, reopen(["disk"]));

    assert_eq!(less, ["open for vmm: disk=image read_write {} 1x+read as daemon"]);
    assert_eq!(opened, ["record +disk=kept -disk=image", "vmm: has disk=lent", "close image"]);
    assert_eq!(kept, Access::ReadWrite);
    assert_eq!(again, ["open for vmm: disk=kept read_write {} 1x+read_write as daemon"]);
}

#[test]
fn nobody_is_handed_more_than_what_is_kept() {
    let mut stage = Stage::new();
    let (vmm, root) = (stage.connect("vmm", 1), stage.connect("root", 0));
    stage.call(vmm, give([gift("disk", "image")]));
    let before = stage.entry(root, "disk");

    for by in [vmm, root] {
        let wanted = Reopening {
            access: Some(Access::Read),
            hand_out: Some(Access::ReadWrite),
            ..Reopening::new(name("disk"))
        };
        let wider = stage.call(by, Call::Reopen { reopenings: vec![wanted] });

        assert!(wider[0].ends_with(": AccessDenied reopen disk"), "{wider:?}");
    }
    assert_eq!(stage.entry(root, "disk"), before);
}

#[test]
fn nobody_reopens_with_more_access_than_the_giver_allowed() {
    let mut stage = Stage::new();
    let (vmm, root) = (stage.connect("vmm", 1), stage.connect("root", 0));
    let readable = gift_of(Kind::Regular, Access::Read, "disk", "readable");
    let no_more = Gift { may_reopen: Some(Access::Read), ..gift("log", "log") };
    stage.call(vmm, give([readable, no_more]));

    for by in [vmm, root] {
        let wider = stage.call(by, reopen_for(Access::ReadWrite, "disk"));
        // What it may be reopened with, may be less than it has.
        let as_it_is = stage.call(by, reopen(["log"]));

        assert!(wider[0].ends_with(": AccessDenied reopen disk"), "{wider:?}");
        assert!(as_it_is[0].ends_with(": AccessDenied reopen log"), "{as_it_is:?}");
    }
}

#[test]
fn a_reopen_by_path_is_nobodys() {
    let mut stage = Stage::new();
    let (root, stranger) = (stage.connect("root", 0), stage.connect("stranger", 2));
    stage.call(root, give([gift("disk", "image")]));
    let by_path = || {
        let path = Some("/etc/shadow".to_owned());
        Call::Reopen { reopenings: vec![Reopening { path, ..Reopening::new(name("disk")) }] }
    };

    let denied = stage.call(root, by_path());
    let unknown = stage.call(stranger, by_path());

    assert_eq!(denied, ["root: AccessDenied reopen by path disk"]);
    assert_eq!(unknown, ["stranger: NotFound disk"]);
}

#[test]
fn a_reopen_of_nothing_is_no_change() {
    let mut stage = Stage::new();
    let vmm = stage.connect("vmm", 1);

    let reopened = stage.call(vmm, reopen([]));

    assert_eq!(reopened, ["vmm: has "]);
}

fn reopen_for(access: Access, called: &str) -> Call<fdstash_stash::Inspected<crate::stage::Word>> {
    let wanted = Reopening { access: Some(access), ..Reopening::new(name(called)) };
    Call::Reopen { reopenings: vec![wanted] }
}
