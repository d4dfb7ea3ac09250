//! Peers that break the rules, in every way we could think of: after each, the daemon runs, answers,
//! and has as many descriptors open as before.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use fdstash::{Access, Gift, Reopening};
use fdstash_proto::{MAX_DESCRIPTORS, MAX_MESSAGE};
use kit::{
    Daemon, Lease, Raw, SOON, call, file, gift, gifts, messages, name, names, null, nulls, only,
    pattern, wait_until,
};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

const INTERFACE: &str = "org.fdstash.Stash";
const SERVICE: &str = "org.varlink.service";

#[track_caller]
fn assert_refused(reply: &Value, error: &str, parameters: &Value) {
    assert_eq!(reply["error"], error, "{reply}");
    assert_eq!(&reply["parameters"], parameters, "{reply}");
}

#[test]
fn what_is_no_call_ends_its_connection() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let nested = [vec![b'['; 200_000], vec![0]].concat();
    let table: [&[u8]; 12] = [
        b"\0",
        b"garbage\0",
        b"\xff\xfe\xfd\0",
        b"null\0",
        b"[]\0",
        b"{}\0",
        b"\"org.fdstash.Stash.List\"\0",
        br#"{"method":1}"#,
        b"{\"method\":1}\0",
        b"{\"method\":\"a\",\"method\":\"b\"}\0",
        b"{\"method\":\"org.fdstash.Stash.List\",\"more\":1}\0",
        &nested,
    ];

    for bytes in table {
        let mut raw = daemon.raw();
        raw.send(bytes, &nulls(3));
        raw.stream().shutdown(Shutdown::Write).unwrap();
        assert!(
            raw.is_hung_up_on(),
            "{:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
        );
    }

    daemon.settles_at(held);
}

#[test]
fn a_message_may_be_as_long_as_the_limit_and_no_longer() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let padded = |len: usize| {
        let mut message = call("GetStatistics", &json!({}));
        message.pop();
        message.resize(len - 1, b' ');
        message.push(0);
        message
    };

    let mut at_the_limit = daemon.raw();
    at_the_limit.say(&padded(MAX_MESSAGE));
    assert_eq!(at_the_limit.reply()["parameters"]["connections"], 1);
    at_the_limit.say(&padded(MAX_MESSAGE));
    assert!(at_the_limit.reply()["error"].is_null());
    drop(at_the_limit);
    for too_long in [padded(MAX_MESSAGE + 1), vec![b'x'; MAX_MESSAGE], vec![b'x'; 4 * MAX_MESSAGE]]
    {
        let mut raw = daemon.raw();
        raw.try_send(&too_long, &nulls(1));
        assert!(raw.is_hung_up_on());
    }

    daemon.settles_at(held);
    assert!(daemon.log().contains("a message of more than 1048576 bytes"));
}

#[test]
fn half_a_message_and_then_silence_holds_nobody_else_up() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let mut client = daemon.client();
    let half = &call("Give", &gifts(&["a"]))[..20];

    let silent: Vec<Raw> = (0..16).map(|_| daemon.raw()).collect();
    silent.iter().for_each(|raw| raw.send(half, &nulls(20)));

    wait_until(SOON, || daemon.held() > held + 300);
    for _ in 0..100 {
        client.give(&[gift("a", null())]).unwrap();
        client.take(&names(["a"])).unwrap();
    }
    drop((silent, client));
    daemon.settles_at(held);
}

#[test]
fn the_rest_of_a_message_is_not_waited_for_without_end() {
    let daemon = Daemon::builder().arg("--patience=1").spawn();
    let held = daemon.held_at_rest();
    let half = &call("Give", &gifts(&["a"]))[..20];

    let mut silent = daemon.raw();
    silent.send(half, &nulls(20));

    assert!(silent.is_hung_up_on());
    assert!(daemon.log().contains("the rest of a message did not come in time"));
    daemon.settles_at(held);
}

#[test]
fn half_a_message_and_then_the_end_does_nothing() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let whole = call("Give", &gifts(&["a"]));

    for cut in [1, whole.len() / 2, whole.len() - 1] {
        let mut raw = daemon.raw();
        raw.send(&whole[..cut], &nulls(1));
        raw.stream().shutdown(Shutdown::Write).unwrap();
        assert!(raw.is_hung_up_on());
    }

    daemon.settles_at(held);
    assert_eq!(daemon.statistics().given, 0);
}

#[test]
fn a_call_is_one_however_it_is_cut() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let whole = call("Give", &gifts(&["a", "b"]));

    raw.send(&whole[..1], &nulls(2));
    for byte in &whole[1..] {
        raw.say(&[*byte]);
    }

    assert_eq!(raw.reply(), json!({"parameters": {"replaced": []}}));
}

#[test]
fn a_giver_that_does_not_wait_for_its_reply_leaves_no_trace_but_its_gift() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let kept = file(daemon.path("a"), "");

    for round in 0..200 {
        let raw = daemon.raw();
        raw.send(&call("Give", &gifts(&[&format!("a{round}"), "b"])), &[&kept, &kept]);
        // Some of them half-way, and some with all that a transaction has.
        if round % 3 == 0 {
            raw.say(&call("Begin", &json!({})));
            raw.send(&call("Give", &gifts(&["c"])), &[&kept]);
        }
    }

    let mut client = daemon.client();
    wait_until(SOON, || client.statistics().unwrap().connections == 1);
    let left: Vec<_> = client.list(&pattern("*")).unwrap().into_iter().map(|it| it.name).collect();
    assert!(!left.contains(&name("c")));
    client.close(&left).unwrap();
    drop(client);
    daemon.settles_at(held);
}

#[test]
fn a_client_that_goes_while_its_take_waits_gets_nothing() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let waits = json!({"names": ["a"], "timeoutUSec": 600_000_000});
    for behind in [&b""[..], b"{", &call("GetStatistics", &json!({}))] {
        let raw = daemon.raw();
        raw.say(&call("Take", &waits));
        raw.say(behind);
        wait_until(SOON, || daemon.statistics().connections == 2);
        drop(raw);
    }

    wait_until(SOON, || daemon.statistics().connections == 1);
    let mut client = daemon.client();
    client.give(&[gift("a", null())]).unwrap();
    only(client.take(&names(["a"])).unwrap());

    drop(client);
    daemon.settles_at(held);
}

#[test]
fn a_watcher_that_says_more_or_no_more_and_then_goes_is_noticed() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let watch = messages(&[json!({"method": format!("{INTERFACE}.Watch"), "more": true})]);

    for round in 0..20 {
        let mut raw = daemon.raw();
        raw.say(&watch);
        raw.reply();
        match round % 2 {
            0 => raw.send(b"more", &nulls(2)),
            _ => raw.stream().shutdown(Shutdown::Write).unwrap(),
        }
        // Until the daemon has seen it.
        assert!(daemon.statistics().connections >= 2);
    }

    daemon.settles_at(held);
}

#[test]
fn a_client_that_goes_while_its_file_is_opened_leaves_all_as_it_was() {
    let daemon = Daemon::spawn();
    let path = daemon.path("a");
    file(&path, "");
    let mut client = daemon.client();
    let read_only = File::open(&path).unwrap();
    let wider = |text| Gift { may_reopen: Some(Access::ReadWrite), ..gift(text, &read_only) };
    client.give(&[wider("a"), wider("b")]).unwrap();
    let held = daemon.held_at_rest();
    let before = client.list(&pattern("*")).unwrap();
    let lease = Lease::of(&path);
    let to_write = json!({"entries": [
        {"name": "b", "access": "read"}, {"name": "a", "access": "read_write"},
    ]});

    let raw = daemon.raw();
    raw.say(&call("Reopen", &to_write));
    wait_until(SOON, || client.list(&pattern("a")).unwrap()[0].held_by.is_some());
    // It serves others meanwhile, and tells them who holds it.
    assert_eq!(
        daemon.raw().call("Close", &json!({"names": ["a"]}))["error"],
        "org.fdstash.Stash.Busy"
    );
    drop(raw);
    wait_until(SOON, || client.list(&pattern("a")).unwrap()[0].held_by.is_none());
    lease.end();

    wait_until(SOON, || daemon.held() == held);
    assert_eq!(client.list(&pattern("*")).unwrap(), before);
    let to_write = Reopening { access: Some(Access::ReadWrite), ..Reopening::new(name("a")) };
    only(client.reopen(&[to_write]).unwrap());
}

#[test]
fn descriptors_that_nobody_names_end_their_connection() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();

    let mut beside_a_call = daemon.raw();
    beside_a_call.send(&call("GetStatistics", &json!({})), &nulls(3));
    beside_a_call.reply();
    assert!(beside_a_call.is_hung_up_on());

    let mut more_than_named = daemon.raw();
    more_than_named.send(&call("Give", &gifts(&["a"])), &nulls(3));
    more_than_named.reply();
    assert!(more_than_named.is_hung_up_on());

    let mut piled_up = daemon.raw();
    for _ in 0..10 {
        piled_up.try_send(b" ", &nulls(MAX_DESCRIPTORS));
    }
    assert!(piled_up.is_hung_up_on());

    daemon.client().close(&names(["a"])).unwrap();
    daemon.settles_at(held);
}

#[test]
fn a_message_that_names_more_descriptors_than_came_is_told_so_and_ends() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();

    let mut raw = daemon.raw();
    raw.send(&call("Give", &gifts(&["a", "b", "c"])), &nulls(2));

    let error = format!("{INTERFACE}.FileDescriptorMissing");
    assert_refused(&raw.reply(), &error, &json!({"expected": 3, "received": 2}));
    assert!(raw.is_hung_up_on());
    daemon.settles_at(held);
}

#[test]
fn indices_that_are_not_each_once_end_their_connection() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();

    for indices in [[-1, 0], [0, 0], [1, 1], [0, i64::MAX], [i64::MIN, 1], [2, 1]] {
        let mut raw = daemon.raw();
        let entries = json!([
            {"name": "a", "fileDescriptor": indices[0]}, {"name": "b", "fileDescriptor": indices[1]},
        ]);
        raw.send(&call("Give", &json!({"entries": entries})), &nulls(2));

        let error = raw.reply()["error"].as_str().unwrap().to_owned();
        let known =
            [format!("{INTERFACE}.FileDescriptorMissing"), format!("{SERVICE}.InvalidParameter")];
        assert!(known.contains(&error), "{indices:?}: {error}");
        assert!(raw.is_hung_up_on());
    }

    daemon.settles_at(held);
    assert_eq!(daemon.statistics().given, 0);
}

#[test]
fn descriptors_may_be_named_in_any_order() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let (a, b) = (file(daemon.path("a"), ""), file(daemon.path("b"), ""));
    let entries = json!([
        {"name": "b", "fileDescriptor": 1}, {"name": "a", "fileDescriptor": 0},
    ]);

    raw.send(&call("Give", &json!({"entries": entries})), &[&a, &b]);

    assert!(raw.reply()["error"].is_null());
    let taken = daemon.client().take(&names(["a", "b"])).unwrap();
    assert_eq!(kit::identity(&taken[0].fd), kit::identity(&a));
    assert_eq!(kit::identity(&taken[1].fd), kit::identity(&b));
}

#[test]
fn a_message_has_as_many_descriptors_as_the_kernel_passes_and_no_more() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let many: Vec<String> = (0..=MAX_DESCRIPTORS).map(|number| format!("n{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let limit = json!({"limit": "descriptorsPerMessage", "value": MAX_DESCRIPTORS});
    let error = format!("{INTERFACE}.LimitExceeded");
    let mut raw = daemon.raw();

    raw.give(&many[..MAX_DESCRIPTORS], &nulls(MAX_DESCRIPTORS));
    assert_refused(&raw.call("Take", &json!({"names": many})), &error, &limit);
    let entries: Vec<_> = many.iter().map(|name| json!({"name": name})).collect();
    assert_refused(&raw.call("Reopen", &json!({"entries": entries})), &error, &limit);
    let taken = raw.call("Take", &json!({"names": many[..MAX_DESCRIPTORS]}));
    assert_eq!(taken["parameters"]["entries"].as_array().unwrap().len(), MAX_DESCRIPTORS);
    assert_eq!(raw.fds().len(), MAX_DESCRIPTORS);
    assert_refused(&raw.give(&many, &nulls(MAX_DESCRIPTORS)), &error, &limit);
    assert!(raw.is_hung_up_on());

    daemon.settles_at(held);
}

#[test]
fn a_bad_name_is_refused_with_its_descriptors_and_the_connection_goes_on() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let mut raw = daemon.raw();
    let too_long = "x".repeat(256);

    for bad in ["", "a:b", "a\nb", "a\0b", "ä", too_long.as_str()] {
        let reply = raw.give(&["good", bad], &nulls(2));
        assert_eq!(reply["error"], format!("{INTERFACE}.InvalidName"), "{bad:?}");
        for method in ["Take", "Close"] {
            let reply = raw.call(method, &json!({"names": [bad]}));
            assert_eq!(reply["error"], format!("{INTERFACE}.InvalidName"), "{method} {bad:?}");
        }
        let reply = raw.call("Reopen", &json!({"entries": [{"name": bad}]}));
        assert_eq!(reply["error"], format!("{INTERFACE}.InvalidName"), "Reopen {bad:?}");
    }

    drop(raw);
    daemon.settles_at(held);
}

#[test]
fn a_name_that_stands_twice_in_a_call_is_refused() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let twice = json!({"name": "a", "reason": "it is named twice in one call"});
    let error = format!("{INTERFACE}.InvalidName");

    assert_refused(&raw.give(&["a", "a"], &nulls(2)), &error, &twice);
    raw.give(&["a"], &nulls(1));
    assert_refused(&raw.call("Take", &json!({"names": ["a", "a"]})), &error, &twice);
    assert_refused(&raw.call("Close", &json!({"names": ["a", "a"]})), &error, &twice);
    let both = json!({"entries": [{"name": "a"}, {"name": "a"}]});
    assert_refused(&raw.call("Reopen", &both), &error, &twice);
    assert!(raw.call("Take", &json!({"names": ["a"]}))["error"].is_null());
}

#[test]
fn a_transaction_is_ended_once_and_begun_once() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let error = format!("{INTERFACE}.TransactionState");

    assert_eq!(raw.call("Commit", &json!({}))["error"], error);
    assert_eq!(raw.call("Rollback", &json!({}))["error"], error);
    assert!(raw.call("Begin", &json!({}))["error"].is_null());
    assert_eq!(raw.call("Begin", &json!({}))["error"], error);
    raw.give(&["a"], &nulls(1));
    assert!(raw.call("Commit", &json!({}))["error"].is_null(), "the first one stands");
    assert_eq!(raw.call("Commit", &json!({}))["error"], error);
    assert_eq!(daemon.statistics().entries, 1);
}

#[test]
fn what_the_interface_does_not_have_is_refused_by_its_name() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let stash = |method: &str, parameters: Value| json!({"method": format!("{INTERFACE}.{method}"), "parameters": parameters});
    let wrong = |parameter: &str| ("InvalidParameter", json!({"parameter": parameter}));
    let table = [
        (
            stash("Steal", json!({})),
            ("MethodNotFound", json!({"method": format!("{INTERFACE}.Steal")})),
        ),
        (json!({"method": "List"}), ("MethodNotFound", json!({"method": "List"}))),
        (
            json!({"method": "org.else.Give"}),
            ("InterfaceNotFound", json!({"interface": "org.else"})),
        ),
        (stash("List", json!({"patern": "*"})), wrong("patern")),
        (stash("List", json!({"pattern": 1})), wrong("pattern")),
        (stash("List", json!([])), wrong("parameters")),
        (stash("Take", json!({})), wrong("names")),
        (stash("Take", json!({"names": "a"})), wrong("names")),
        (stash("Take", json!({"names": ["a"], "fresh": true})), wrong("fresh")),
        (stash("Take", json!({"names": ["a"], "timeoutUSec": -1})), wrong("timeoutUSec")),
        (stash("Begin", json!({"x": 1})), wrong("x")),
        (
            stash("Reopen", json!({"entries": [{"name": "a", "access": "all"}]})),
            wrong("entries[0].access"),
        ),
        (stash("Watch", json!({})), ("ExpectedMore", json!({}))),
        (
            json!({"method": format!("{INTERFACE}.List"), "upgrade": true}),
            ("MethodNotImplemented", json!({"method": format!("{INTERFACE}.List")})),
        ),
    ];

    for (message, (error, parameters)) in table {
        raw.say(&messages(std::slice::from_ref(&message)));
        let reply = raw.reply();
        assert_eq!(reply["error"], format!("{SERVICE}.{error}"), "{message}: {reply}");
        assert_eq!(reply["parameters"], parameters, "{message}");
    }
}

#[test]
fn an_unknown_field_beside_a_descriptor_is_refused_and_the_descriptor_closed() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let mut raw = daemon.raw();
    let entry = json!({"name": "a", "fileDescriptor": 0, "flavour": "sweet"});

    raw.send(&call("Give", &json!({"entries": [entry]})), &nulls(1));

    let error = format!("{SERVICE}.InvalidParameter");
    assert_refused(&raw.reply(), &error, &json!({"parameter": "entries[0].flavour"}));
    assert!(raw.give(&["a"], &nulls(1))["error"].is_null(), "the connection goes on");
    daemon.client().close(&names(["a"])).unwrap();
    drop(raw);
    daemon.settles_at(held);
}

#[test]
fn a_call_that_wants_no_answer_gets_none_and_a_take_of_that_kind_loses_nothing() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    raw.give(&["a"], &[file(daemon.path("a"), "")]);
    raw.call("Begin", &json!({}));
    let oneway = |method: &str, parameters: Value| {
        messages(&[json!({
            "method": format!("{INTERFACE}.{method}"), "parameters": parameters, "oneway": true,
        })])
    };

    raw.say(&oneway("Rollback", json!({})));
    raw.send(&oneway("Give", gifts(&["b"])), &nulls(1));
    for taking in [json!({}), json!({"copy": true}), json!({"copy": true, "fresh": true})] {
        let mut parameters = json!({"names": ["a"]});
        parameters.as_object_mut().unwrap().extend(taking.as_object().unwrap().clone());
        raw.say(&oneway("Take", parameters));
    }
    raw.say(&oneway("Take", json!({"names": ["none"], "timeoutUSec": 1000})));
    raw.say(&oneway("Reopen", json!({"entries": [{"name": "a"}]})));
    raw.say(&oneway("Close", json!({"names": ["b"]})));
    raw.say(&oneway("Close", json!({"names": ["none"]})));
    raw.say(&oneway("List", json!({})));
    raw.say(&oneway("Watch", json!({})));
    raw.say(&oneway("GetStatistics", json!({})));
    raw.say(&oneway("Begin", json!({})));
    raw.say(&oneway("Commit", json!({})));
    raw.say(&oneway("Steal", json!({})));
    let statistics = raw.call("GetStatistics", &json!({}));

    assert_eq!(statistics["parameters"]["entries"], 1, "{statistics}");
    assert_eq!(statistics["parameters"]["taken"], 0);
    assert_eq!(statistics["parameters"]["transactions"], 0);
    assert!(raw.is_quiet());
    assert!(raw.fds().is_empty());
    only(daemon.client().take(&names(["a"])).unwrap());
}

#[test]
fn what_stands_behind_a_call_without_answer_is_answered() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    raw.give(&["a"], &[file(daemon.path("a"), "")]);
    let reopen = json!({"entries": [{"name": "a"}]});

    let began = Instant::now();
    for round in 1..=20 {
        // The file is opened elsewhere, so that it is not finished when the next is read.
        raw.say(&messages(&[
            json!({"method": format!("{INTERFACE}.Reopen"), "parameters": reopen, "oneway": true}),
            json!({"method": format!("{INTERFACE}.GetStatistics")}),
        ]));
        assert_eq!(raw.reply()["parameters"]["reopened"], round);
    }

    // It is not answered when the daemon happens to look, but at once.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn many_calls_and_their_descriptors_may_share_one_message() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let kept = [file(daemon.path("a"), ""), file(daemon.path("b"), ""), file(daemon.path("c"), "")];
    let all = [
        call("Give", &gifts(&["a"])),
        call("GetStatistics", &json!({})),
        call("Give", &gifts(&["b", "c"])),
        call("Take", &json!({"names": ["c"]})),
        call("Reopen", &json!({"entries": [{"name": "a"}]})),
        call("Close", &json!({"names": ["none"]})),
        call("Take", &json!({"names": ["b", "a"]})),
    ];

    raw.send(&all.concat(), &kept);
    let replies: Vec<Value> = all.iter().map(|_| raw.reply()).collect();

    assert_eq!(replies[0], json!({"parameters": {"replaced": []}}));
    assert_eq!(replies[1]["parameters"]["entries"], 1);
    assert_eq!(replies[2], json!({"parameters": {"replaced": []}}));
    let handed = |reply: &Value| reply["parameters"]["entries"].as_array().map(Vec::len);
    assert_eq!(handed(&replies[3]), Some(1));
    assert_eq!(handed(&replies[4]), Some(1));
    assert_eq!(replies[5]["error"], format!("{INTERFACE}.NotFound"));
    assert_eq!(handed(&replies[6]), Some(2));
    let came: Vec<_> = raw.fds().iter().map(kit::identity).collect();
    let [a, b, c] = kept.each_ref().map(kit::identity);
    assert_eq!(came, [c, a, b, a]);
}

#[test]
fn a_client_that_asks_and_does_not_read_slows_down_nobody_but_itself() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = null();
    let many: Vec<_> = (0..1000).map(|number| gift(&format!("n{number}"), &kept)).collect();
    client.give(&many).unwrap();
    let before = daemon.memory();

    let greedy: Vec<Raw> = (0..8).map(|_| daemon.raw()).collect();
    for raw in &greedy {
        raw.stream().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let asked = call("List", &json!({})).repeat(1000);
        while raw.try_send(&asked, &[] as &[OwnedFd]) {}
    }
    let began = Instant::now();
    for _ in 0..100 {
        client.copy(&names(["n1"])).unwrap();
    }

    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{} KiB more for {} clients", grown >> 10, greedy.len());
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_in_the_end() {
    let daemon = Daemon::builder().arg("--patience=1").spawn();
    let mut client = daemon.client();
    let kept = null();
    let many: Vec<_> = (0..1000).map(|number| gift(&format!("n{number}"), &kept)).collect();
    client.give(&many).unwrap();
    let greedy = daemon.raw();

    // More answers than the kernel holds for a reader.
    greedy.send(&call("List", &json!({})).repeat(8), &[] as &[OwnedFd]);

    wait_until(SOON, || daemon.log().contains("it read nothing of what was sent for too long"));
    wait_until(SOON, || client.statistics().unwrap().connections == 1);
}

#[test]
fn what_a_client_leaves_unread_is_not_lost() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", file(daemon.path("a"), ""))]).unwrap();
    let raw = daemon.raw();
    // Enough that the answer to the last call cannot leave.
    let many: Vec<_> = (0..1000).map(|number| gift(&format!("n{number}"), null())).collect();
    client.give(&many).unwrap();
    raw.say(&call("List", &json!({})).repeat(20));
    raw.say(&call("Take", &json!({"names": ["a"]})));

    drop(raw);

    wait_until(SOON, || daemon.statistics().connections == 2);
    only(client.take(&names(["a"])).unwrap());
}

#[test]
fn thousands_of_silent_connections_lock_nobody_out() {
    kit::raise_open_files();
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();

    let silent: Vec<Raw> = (0..3000).map(|_| daemon.raw()).collect();
    let mut client = daemon.client();
    wait_until(SOON, || client.statistics().unwrap().connections == 3001);
    let busy = daemon.busy();
    for _ in 0..100 {
        client.give(&[gift("a", null())]).unwrap();
        client.take(&names(["a"])).unwrap();
    }

    assert!(daemon.busy() - busy < Duration::from_secs(2));
    drop((silent, client));
    daemon.settles_at(held);
}

#[test]
fn a_descriptor_that_is_slow_to_close_holds_nobody_up() {
    let daemon = Daemon::spawn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (unread, _) = listener.accept().unwrap();
    // Its last close waits until what was sent has been read, or for a minute.
    rustix::net::sockopt::set_socket_linger(&slow, Some(Duration::from_secs(60))).unwrap();
    slow.set_nonblocking(true).unwrap();
    while slow.write(&[0; 65536]).is_ok() {}
    let raw = daemon.raw();

    // So that it is among what the daemon has not read when it hangs up.
    let (server, _) = daemon.server();
    kill_process(server, Signal::STOP).unwrap();
    raw.send(b"garbage\0", &nulls(1));
    raw.send(b"more", &[slow.as_fd()]);
    drop(slow);
    kill_process(server, Signal::CONT).unwrap();
    wait_until(SOON, || daemon.log().contains("hanging up"));
    let began = Instant::now();
    let connections = daemon.statistics().connections;

    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(connections, 1);
    drop(unread);
}

#[test]
fn random_bytes_and_descriptors_do_no_harm() {
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let deadline = Instant::now() + Duration::from_secs(3);

    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut random = Random(seed);
                while Instant::now() < deadline {
                    play(&mut random, daemon);
                }
            });
        }
    });

    let mut client = daemon.client();
    wait_until(SOON, || client.statistics().unwrap().connections == 1);
    let left: Vec<_> = client.list(&pattern("*")).unwrap().into_iter().map(|it| it.name).collect();
    client.close(&left).unwrap();
    let told = client.statistics().unwrap();
    assert_eq!(told.entries, 0);
    assert_eq!(told.given, told.taken + told.closed + told.expired);
    assert_eq!(told.transactions, 0);
    drop(client);
    daemon.settles_at(held);
}

/// Sends calls that are whole, damaged or nonsense, with descriptors or without, in pieces or at once,
/// and reads now and then.
fn play(random: &mut Random, daemon: &Daemon) {
    let mut raw = daemon.raw();
    raw.stream().set_nonblocking(true).expect("a socket can be made non-blocking");
    let kept = file(daemon.path(&format!("fuzz-{}", random.0)), "");
    for _ in 0..random.below(12) {
        let mut bytes = some_call(random);
        if random.below(6) == 0 {
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.below(256)).expect("a byte");
        }
        let fds = match random.below(3) {
            0 => random.below(4),
            _ => usize::from(bytes.windows(4).any(|word| word == b"Give")) * 2,
        };
        let fds: Vec<_> = (0..fds).map(|_| kept.as_fd()).collect();
        let cut = if random.below(4) == 0 { random.below(bytes.len()) } else { 0 };
        let (first, rest) = if cut > 0 { bytes.split_at(cut) } else { (&bytes[..], &b""[..]) };
        if !raw.try_send(first, &fds) || !(rest.is_empty() || raw.try_send(rest, &[] as &[OwnedFd]))
        {
            break;
        }
        if random.below(2) == 0 {
            let _ = raw.try_reply();
        }
    }
    if random.below(3) == 0 {
        let _ = raw.stream().shutdown(Shutdown::Write);
        let _ = raw.stream().read(&mut [0; 4096]);
    }
    let _ = std::fs::remove_file(daemon.path(&format!("fuzz-{}", random.0)));
}

fn some_call(random: &mut Random) -> Vec<u8> {
    let mut some = || format!("n{}", random.below(6));
    let (a, b) = (some(), some());
    let flag = random.below(2) == 0;
    let usec = random.below(2000);
    let entry = |name: &str, at: usize| {
        json!({
            "name": name, "fileDescriptor": at, "fresh": flag, "ephemeral": !flag,
            "closeOnHangup": flag, "expireUSec": 1_000_000 + usec,
        })
    };
    let (method, parameters) = match random.below(11) {
        0..=2 => ("Give", json!({"entries": [entry(&a, 0), entry(&b, 1)], "exclusive": flag})),
        3 => ("Take", json!({"names": [a], "timeoutUSec": usec})),
        4 => ("Take", json!({"names": [a, b], "copy": true, "fresh": flag})),
        5 => ("Reopen", json!({"entries": [{"name": a, "sync": flag}, {"name": b}]})),
        6 => ("Close", json!({"names": [a, b]})),
        7 => ("Begin", json!({})),
        8 => ("Commit", json!({})),
        9 => ("List", json!({"pattern": "n*"})),
        _ => ("Watch", json!({})),
    };
    messages(&[json!({
        "method": format!("{INTERFACE}.{method}"), "parameters": parameters,
        "more": random.below(3) == 0, "oneway": random.below(5) == 0,
    })])
}

/// Numbers that are different for each seed, and the same for the same one.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap_or_default()
    }
}
