//! At the limit and one past it: the daemon says so, keeps what it has, does not spin, and goes on when
//! there is room again.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use fdstash::{Refusal, Reopening};
use kit::{
    Daemon, Raw, SOON, call, exceeded, file, gift, gifts, name, names, null, nulls, only, pattern,
    refusal, wait_until,
};
use serde_json::json;

/// Lets some time go by in which nothing should happen.
fn watch_for(span: Duration) {
    let began = Instant::now();
    wait_until(span + SOON, || began.elapsed() > span);
}

/// Whether a connection was turned away, with a message that says why.
fn is_turned_away(raw: &mut Raw) -> bool {
    let reply = raw.reply();
    assert_eq!(reply["error"], "org.fdstash.Stash.LimitExceeded", "{reply}");
    raw.is_hung_up_on()
}

#[test]
fn as_many_entries_are_kept_as_may_be_and_no_more() {
    let daemon = Daemon::builder().arg("--max-entries=3").spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", null()), gift("b", null())]).unwrap();

    assert_eq!(
        refusal(client.give(&[gift("c", null()), gift("d", null())])),
        exceeded("entries", 3)
    );
    client.give(&[gift("c", null())]).unwrap();
    assert_eq!(refusal(client.give(&[gift("d", null())])), exceeded("entries", 3));
    // What makes room for itself, finds room.
    client.give(&[gift("a", null()), gift("b", null())]).unwrap();
    client.close(&names(["a"])).unwrap();
    client.give(&[gift("d", null())]).unwrap();

    let told = daemon.statistics();
    assert_eq!((told.entries, told.max_entries, told.refused), (3, 3, 2));
    wait_until(SOON, || daemon.log().contains("refusing for lack of room"));
}

#[test]
fn what_a_transaction_stages_counts_too() {
    let daemon = Daemon::builder().arg("--max-entries=3").spawn();
    let (mut one, mut other) = (daemon.client(), daemon.client());
    let mut transaction = one.transaction().unwrap();
    transaction.give(&[gift("a", null()), gift("b", null())]).unwrap();

    assert_eq!(
        refusal(other.give(&[gift("c", null()), gift("d", null())])),
        exceeded("entries", 3)
    );
    transaction.rollback();

    other.give(&[gift("c", null()), gift("d", null())]).unwrap();
}

#[test]
fn as_many_connections_are_served_as_may_be_and_no_more() {
    let daemon = Daemon::builder().arg("--max-connections=3").spawn();
    wait_until(SOON, || daemon.statistics().connections == 1);
    let mut raws: Vec<Raw> = Vec::new();
    for _ in 0..3 {
        // One after the other, since one that has gone may not be noticed yet.
        wait_until(SOON, || {
            let mut raw = daemon.raw();
            let admitted = raw.call("GetStatistics", &json!({}))["error"].is_null();
            if admitted {
                raws.push(raw);
            }
            admitted
        });
    }

    let mut past = daemon.raw();
    let reply = past.reply();
    assert_eq!(reply["error"], "org.fdstash.Stash.LimitExceeded");
    assert_eq!(reply["parameters"], json!({"limit": "connections", "value": 3}));
    assert!(past.is_hung_up_on());
    assert!(daemon.log().contains("turning connections away"));
    assert!(raws[0].call("GetStatistics", &json!({}))["error"].is_null(), "who is in, stays in");

    raws.pop();
    wait_until(SOON, || daemon.raw().call("GetStatistics", &json!({}))["error"].is_null());
}

#[test]
fn descriptors_are_kept_as_long_as_the_table_has_room() {
    let daemon = Daemon::builder().open_files(96).arg("--max-entries=1000").spawn();
    let mut client = daemon.client();
    wait_until(SOON, || client.statistics().unwrap().connections == 1);
    let room = usize::try_from(client.statistics().unwrap().max_entries).unwrap();

    let mut kept = 0;
    let refused = loop {
        match client.give(&[gift(&format!("n{kept}"), null())]) {
            Ok(_) => kept += 1,
            refused @ Err(_) => break refusal(refused),
        }
    };

    // This client's connection takes one place too.
    assert_eq!((kept, refused), (room - 1, exceeded("descriptors", i64::try_from(room).unwrap())));
    for _ in 0..5 {
        client.take(&names(["n1"])).unwrap();
        client.give(&[gift("n1", null())]).unwrap();
    }
}

#[test]
fn with_a_full_table_connections_are_turned_away_with_a_reason() {
    let daemon = Daemon::builder().open_files(96).arg("--max-entries=1000").spawn();
    let mut client = daemon.client();
    wait_until(SOON, || client.statistics().unwrap().connections == 1);
    let room = client.statistics().unwrap().max_entries;
    let many: Vec<_> = (0..room - 4).map(|number| gift(&format!("n{number}"), null())).collect();
    client.give(&many).unwrap();

    let mut raws: Vec<Raw> = (0..3).map(|_| daemon.raw()).collect();
    raws.iter_mut().for_each(|raw| drop(raw.call("GetStatistics", &json!({}))));
    let mut past: Vec<Raw> = (0..30).map(|_| daemon.raw()).collect();

    assert!(past.iter_mut().all(is_turned_away));
    assert!(client.give(&[gift("n1", null())]).is_ok(), "who is in, is served");
    drop(raws);
    wait_until(SOON, || daemon.raw().call("GetStatistics", &json!({}))["error"].is_null());
}

#[test]
fn a_flood_of_descriptors_is_refused_and_costs_nothing_that_is_kept() {
    let daemon = Daemon::builder().open_files(128).spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    client.give(&[gift("kept", &kept)]).unwrap();
    let held = daemon.held_at_rest();
    let many: Vec<String> = (0..253).map(|number| format!("n{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let nulls = nulls(253);

    for _ in 0..50 {
        let mut raw = daemon.raw();
        raw.try_send(&call("Give", &gifts(&many)), &nulls);
        assert!(is_turned_away(&mut raw));
    }

    assert_eq!(kit::identity(only(client.copy(&names(["kept"])).unwrap())), kit::identity(&kept));
    drop(client);
    daemon.settles_at(held);
    assert!(daemon.log().contains("descriptors that found no room here"));
    // A call with more than there is room for goes through the library as a refusal.
    let gifts: Vec<_> = many.iter().map(|text| gift(text, &kept)).collect();
    assert!(matches!(refusal(daemon.client().give(&gifts)), Refusal::LimitExceeded { .. }));
}

#[test]
fn a_table_that_is_full_to_the_last_neither_ends_the_daemon_nor_makes_it_spin() {
    let limit = 128;
    let daemon = Daemon::builder().open_files(limit).spawn();
    let mut client = daemon.client();
    client.give(&[gift("kept", file(daemon.path("kept"), ""))]).unwrap();
    let held = daemon.held_at_rest();
    let half = &call("Give", &gifts(&["a"]))[..20];

    // Connections take all places that there are, and what some of them send all that is left beside.
    let nulls = [null(), null(), null(), null(), null(), null(), null()];
    let mut hoarders: Vec<Raw> = (0..100).map(|_| daemon.raw()).collect();
    wait_until(SOON, || daemon.log().contains("turning connections away"));
    hoarders.iter().for_each(|raw| _ = raw.try_send(half, &nulls));
    wait_until(SOON, || daemon.open_descriptors() as u64 > held as u64 + 70 + 5);
    let busy = daemon.busy();
    watch_for(Duration::from_secs(1));
    let busy = daemon.busy() - busy;

    assert!(busy < Duration::from_millis(200), "{busy:?} of a second");
    assert!((daemon.open_descriptors() as u64) < limit, "{}", daemon.open_descriptors());
    assert!(hoarders.iter_mut().rev().take(20).all(is_turned_away));
    // Who is in is served, as far as it takes no descriptor.
    assert_eq!(client.list(&pattern("*")).unwrap().len(), 1);
    drop((hoarders, client));
    wait_until(SOON, || daemon.client().statistics().is_ok());
    daemon.settles_at(held);
    daemon.client().give(&[gift("a", null())]).unwrap();
    daemon.client().close(&names(["a"])).unwrap();
}

#[test]
fn a_reopen_that_finds_no_room_leaves_all_as_it_was() {
    let daemon = Daemon::builder().open_files(96).arg("--max-entries=64").spawn();
    let mut client = daemon.client();
    wait_until(SOON, || client.statistics().unwrap().connections == 1);
    let room = client.statistics().unwrap().max_entries;
    let kept = file(daemon.path("kept"), "");
    let many: Vec<_> = (0..room - 4).map(|number| gift(&format!("n{number}"), &kept)).collect();
    client.give(&many).unwrap();
    let before = client.list(&pattern("*")).unwrap();
    let held = daemon.held_at_rest();

    let all: Vec<_> = many.iter().map(|gift| Reopening::new(gift.name.clone())).collect();
    let refused = refusal(client.reopen(&all));

    // The library reopens in a transaction, which needs room for the old and the new.
    assert!(matches!(refused, Refusal::LimitExceeded { .. }), "{refused:?}");
    assert_eq!(client.list(&pattern("*")).unwrap(), before);
    wait_until(SOON, || daemon.held() == held);
    // The descriptors that a daemon has for itself are enough for one.
    only(client.reopen(&[Reopening::new(name("n1"))]).unwrap());
}

#[test]
fn a_full_stash_still_reopens() {
    let daemon = Daemon::builder().arg("--max-entries=2").spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    client.give(&[gift("a", &kept), gift("b", &kept)]).unwrap();

    let both = names(["a", "b"]).map(Reopening::new);
    client.reopen(&both).unwrap();
    daemon.raw().call("Reopen", &json!({"entries": [{"name": "a"}, {"name": "b"}]}));

    assert_eq!(daemon.statistics().reopened, 4);
}

#[test]
fn what_a_small_table_holds_at_most_leaves_room_to_reopen_it() {
    let daemon = Daemon::builder().open_files(96).spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    let most = client.statistics().unwrap().max_entries;
    let many: Vec<_> = (0..most).map(|number| gift(&format!("n{number}"), &kept)).collect();
    client.give(&many).unwrap();

    let one_more = refusal(client.give(&[gift("more", &kept)]));
    let reopened = client.reopen(&names(["n0", "n1"]).map(Reopening::new)).unwrap();

    assert_eq!(one_more, exceeded("entries", i64::try_from(most).unwrap()));
    assert_eq!(reopened.len(), 2);
}

#[test]
fn descriptors_that_nobody_fetches_do_not_fill_the_table() {
    let daemon = Daemon::builder().open_files(1024).spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    let many: Vec<String> = (0..100).map(|number| format!("n{number}")).collect();
    let gifts: Vec<_> = many.iter().map(|text| gift(text, &kept)).collect();
    client.give(&gifts).unwrap();

    // Each answer has a hundred new descriptors, and nobody reads any of them.
    let raw = daemon.raw();
    raw.stream().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let copies = call("Take", &json!({"names": many, "copy": true, "fresh": true}));
    raw.try_send(&copies.repeat(400), &[] as &[OwnedFd]);
    let began = Instant::now();
    wait_until(SOON, || {
        let mut other = daemon.raw();
        assert!(other.call("GetStatistics", &json!({}))["error"].is_null());
        began.elapsed() > Duration::from_secs(1)
    });

    assert!(daemon.open_descriptors() < 500, "{}", daemon.open_descriptors());
}

#[test]
fn a_limit_that_leaves_room_for_nothing_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", "ulimit -n 20; exec \"$0\" --socket \"$1/stash\""])
        .arg(kit::program("fdstashd"))
        .arg(folder.path())
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the limit on open files (ulimit -n) is 20: too few"), "{said}");
}
