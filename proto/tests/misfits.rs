//! Messages that are refused: with which words, what becomes of their descriptors, and whether the
//! connection goes on.
//!
//! A table for each kind of misfit; the tables are most of the file.

use std::str::from_utf8;

use fdstash_proto::{
    BadName, Call, INTERFACE, INTERFACE_NAME, Inbox, Incoming, MAX_DESCRIPTORS, Mode, Name,
    Pattern, Refusal, Request, SERVICE, SERVICE_NAME, Ticket, call,
};
use serde_json::{Value, json};

#[test]
fn a_misfit_is_told_by_its_name() {
    let entry = |more: &str| format!(r#"{{"entries":[{{"name":"a","fileDescriptor":0{more}}}]}}"#);
    let table = [
        // What is no object at all.
        ("Begin", "1".into(), "parameters"),
        ("Begin", r#""names""#.into(), "parameters"),
        ("Begin", "[]".into(), "parameters"),
        ("Close", r#"[["a"]]"#.into(), "parameters"),
        // At the top.
        ("Begin", r#"{"bogus":1}"#.into(), "bogus"),
        ("List", r#"{"":1}"#.into(), ""),
        ("List", r#"{"a.b":1}"#.into(), "a.b"),
        ("List", r#"{"a`b":1}"#.into(), "a`b"),
        ("List", r#"{"pattern":1}"#.into(), "pattern"),
        ("List", r#"{"pattern":"a","pattern":"b"}"#.into(), "pattern"),
        ("Close", "{}".into(), "names"),
        ("Close", r#"{"names":null}"#.into(), "names"),
        ("Close", r#"{"names":"a"}"#.into(), "names"),
        ("Close", r#"{"names":{"names":1}}"#.into(), "names"),
        ("Close", r#"{"names":["a",1]}"#.into(), "names[1]"),
        ("Close", r#"{"names":["\ud800"]}"#.into(), "names[0]"),
        ("Take", r#"{"names":[],"copy":1}"#.into(), "copy"),
        ("Take", r#"{"names":[],"timeoutUSec":1.5}"#.into(), "timeoutUSec"),
        ("Take", r#"{"names":[],"timeoutUSec":9223372036854775808}"#.into(), "timeoutUSec"),
        ("Give", r#"{"entries":[],"exclusive":"true"}"#.into(), "exclusive"),
        // One down.
        ("Give", r#"{"entries":[1]}"#.into(), "entries[0]"),
        ("Give", r#"{"entries":[["a",0]]}"#.into(), "entries[0]"),
        ("Give", r#"{"entries":[{"fileDescriptor":0}]}"#.into(), "entries[0].name"),
        ("Give", r#"{"entries":[{"name":"a"}]}"#.into(), "entries[0].fileDescriptor"),
        ("Give", entry(r#","bogus":1"#), "entries[0].bogus"),
        ("Give", entry(r#","entries":1"#), "entries[0].entries"),
        ("Give", entry(r#","name":"b""#), "entries[0].name"),
        ("Give", entry(r#","fresh":1"#), "entries[0].fresh"),
        ("Give", entry(r#","mayReopen":"bogus""#), "entries[0].mayReopen"),
        ("Give", entry(r#","mayReopen":1"#), "entries[0].mayReopen"),
        ("Give", entry(r#","mayReopen":{"read":null}"#), "entries[0].mayReopen"),
        ("Give", entry(r#","expireUSec":1e999"#), "entries[0].expireUSec"),
        ("Reopen", r#"{"entries":[{"name":"a"},{}]}"#.into(), "entries[1].name"),
        (
            "Reopen",
            r#"{"entries":[{"name":"a","access":{"read":null}}]}"#.into(),
            "entries[0].access",
        ),
        ("Reopen", r#"{"entries":[{"name":"a","handOut":"all"}]}"#.into(), "entries[0].handOut"),
        // Two and three down.
        ("Give", entry(r#","labels":[]"#), "entries[0].labels"),
        ("Give", entry(r#","labels":{"k":1}"#), "entries[0].labels.k"),
        ("Give", entry(r#","share":[[],[]]"#), "entries[0].share"),
        ("Give", entry(r#","share":{"uids":[]}"#), "entries[0].share.gids"),
        ("Give", entry(r#","share":{"uids":[],"uids":[]}"#), "entries[0].share.uids"),
        ("Give", entry(r#","share":{"uids":[],"gids":[],"share":1}"#), "entries[0].share.share"),
        ("Give", entry(r#","share":{"uids":[],"gids":[1,-1]}"#), "entries[0].share.gids[1]"),
        ("Give", entry(r#","share":{"uids":[4294967296],"gids":[]}"#), "entries[0].share.uids[0]"),
        // The first of several.
        ("Give", r#"{"entries":[{"bogus":1}],"bogus":1}"#.into(), "entries[0].bogus"),
    ];

    for (method, parameters, parameter) in table {
        let incoming = read(&stash_call(method, &parameters), []);

        assert_eq!(incoming.request, Err(invalid(parameter)), "{method} {parameters}");
    }
}

#[test]
fn a_give_that_misnames_its_descriptors_ends_the_connection() {
    const LARGEST: i64 = i64::MAX;
    let missing = |expected, received| Refusal::FileDescriptorMissing { expected, received };
    let misfit = |at| invalid(&format!("entries[{at}].fileDescriptor"));
    let table: [(&[i64], u32, Refusal); 13] = [
        // Fewer came than are named.
        (&[0], 0, missing(1, 0)),
        (&[0, 1, 2], 1, missing(3, 1)),
        (&[2, 1, 0], 2, missing(3, 2)),
        (&[5], 1, missing(6, 1)),
        (&[LARGEST], 1, missing(LARGEST, 1)),
        // One is named twice.
        (&[0, 0], 1, misfit(1)),
        (&[1, 0, 1], 3, misfit(2)),
        // One is left out.
        (&[1], 2, misfit(0)),
        (&[0, 2], 3, misfit(1)),
        // A number is none.
        (&[-1], 0, misfit(0)),
        (&[-1], 1, misfit(0)),
        (&[0, -1], 2, misfit(1)),
        (&[i64::MIN], 1, misfit(0)),
    ];

    for (indices, count, refusal) in table {
        let mut inbox = Inbox::for_calls();
        inbox.feed(&give_of(indices), 0..count).unwrap();

        let incoming = inbox.next_call().unwrap().unwrap();

        assert_eq!(incoming, refused(refusal, vec![], true), "{indices:?} of {count}");
        assert_eq!(inbox.take_unnamed(), Vec::from_iter(0..count), "{indices:?} of {count}");
    }
}

#[test]
fn a_give_names_its_descriptors_in_any_order() {
    let message = give_of(&[2, 0, 1]);

    let incoming = read(&message, [10, 11, 12]);

    let Ok(Request::Stash(Call::Give { gifts, .. })) = incoming.request else {
        panic!("{incoming:?}");
    };
    let gifts: Vec<_> = gifts.iter().map(|gift| (gift.name.as_str(), gift.fd)).collect();
    assert_eq!(gifts, [("0", 12), ("1", 10), ("2", 11)]);
}

#[test]
fn a_give_of_as_many_as_the_kernel_passes_is_taken_and_of_one_more_ends_the_connection() {
    const MOST: i64 = MAX_DESCRIPTORS as i64;
    let of = |count: i64| give_of(&(0..count).collect::<Vec<_>>());
    let mut inbox = Inbox::for_calls();

    inbox.feed(&of(MOST), 0..253).unwrap();
    let most = inbox.next_call().unwrap().unwrap();
    inbox.feed(&of(MOST + 1), 0..253).unwrap();
    let one_more = inbox.next_call().unwrap().unwrap();

    assert!(
        matches!(most.request, Ok(Request::Stash(Call::Give { gifts, .. })) if gifts.len() == 253)
    );
    assert_eq!(one_more, refused(too_many(), vec![], true));
}

#[test]
fn take_and_reopen_name_as_many_as_one_reply_carries_and_no_more() {
    for (method, key, entry) in [("Take", "names", false), ("Reopen", "entries", true)] {
        let of = |count: usize| {
            let names = (0..count).map(|at| at.to_string());
            let entries =
                names.map(|name| if entry { json!({ "name": name }) } else { json!(name) });
            stash_call(method, &json!({ key: entries.collect::<Vec<_>>() }).to_string())
        };

        let most = read(&of(MAX_DESCRIPTORS), []);
        let one_more = read(&of(MAX_DESCRIPTORS + 1), []);

        assert!(most.request.is_ok(), "{method}");
        assert_eq!(one_more, refused(too_many(), vec![], false), "{method}");
    }
}

#[test]
fn close_names_as_many_as_a_message_has_room_for() {
    let names: Vec<_> = (0..2 * MAX_DESCRIPTORS).map(|at| at.to_string()).collect();

    let incoming = read(&stash_call("Close", &json!({ "names": names }).to_string()), []);

    let names = names.iter().map(|name| Name::new(name).unwrap()).collect();
    assert_eq!(incoming.request, Ok(Request::Stash(Call::Close { names, ticket: None })));
}

#[test]
fn what_cannot_be_a_name_is_refused_with_the_reason() {
    let too_long = "x".repeat(256);
    let table = [
        ("", BadName::Empty),
        (too_long.as_str(), BadName::TooLong),
        ("a\nb", BadName::Unprintable),
        ("\0", BadName::Unprintable),
        ("\u{7f}", BadName::Unprintable),
        ("käse", BadName::Unprintable),
        ("a:b", BadName::Colon),
    ];

    for (text, why) in table {
        for message in naming(&["good", text]) {
            let incoming = read(&message, [7, 8]);

            // An over-long one is told by its beginning.
            let name = text.chars().take(255).collect();
            let refusal = Refusal::InvalidName { name, reason: why.to_string() };
            assert_eq!(incoming.request, Err(refusal), "{}", shown(&message));
            assert!(!incoming.last, "{}", shown(&message));
        }
    }
}

#[test]
fn a_name_twice_in_one_call_is_refused() {
    for message in naming(&["a", "b", "a"]) {
        let incoming = read(&message, [7, 8, 9]);

        let reason = "it is named twice in one call".to_owned();
        let refusal = Refusal::InvalidName { name: "a".into(), reason };
        assert_eq!(incoming.request, Err(refusal), "{}", shown(&message));
        assert!(!incoming.last, "{}", shown(&message));
    }
}

#[test]
fn a_ticket_is_taken_up_to_its_limit_and_refused_past_it() {
    let longest = "x".repeat(Ticket::MAX_LEN);
    let table = [("7f3a.1", true), (&longest, true), (&format!("{longest}x"), false), ("", false)];
    let table = table.into_iter().chain([("a b", false), ("käse", false)]);

    for (text, fits) in table {
        let gift = json!({ "name": "a", "fileDescriptor": 0 });
        for (method, parameters, fds) in [
            ("Give", json!({ "entries": [gift], "ticket": text }), vec![7]),
            ("Close", json!({ "names": ["a"], "ticket": text }), vec![]),
            ("Commit", json!({ "ticket": text }), vec![]),
        ] {
            let incoming = read(&stash_call(method, &parameters.to_string()), fds.clone());

            if fits {
                let Ok(Request::Stash(call)) = incoming.request else { panic!("{incoming:?}") };
                assert_eq!(call.ticket().map(Ticket::as_str), Some(text), "{method}");
            } else {
                assert_eq!(incoming, refused(invalid("ticket"), fds, false), "{method} {text}");
            }
        }
    }
}

#[test]
fn a_value_that_makes_no_sense_is_refused_by_its_name() {
    let long = "?".repeat(Pattern::MAX_LEN + 1);
    let table = [
        ("Take", json!({ "names": ["a"], "fresh": true }), "fresh"),
        ("Take", json!({ "names": ["a"], "fresh": true, "copy": false }), "fresh"),
        ("Take", json!({ "names": ["a"], "timeoutUSec": -1 }), "timeoutUSec"),
        (
            "Give",
            json!({ "entries": [{ "name": "a", "fileDescriptor": 0, "expireUSec": -1 }] }),
            "entries[0].expireUSec",
        ),
        ("List", json!({ "pattern": long }), "pattern"),
    ];

    for (method, parameters, parameter) in table {
        let incoming = read(&stash_call(method, &parameters.to_string()), [7]);

        assert_eq!(incoming.request, Err(invalid(parameter)), "{method} {parameters}");
    }
}

#[test]
fn what_is_not_there_is_told_by_its_name() {
    let table = [
        (
            "org.fdstash.Stash.Bogus",
            Refusal::MethodNotFound { method: "org.fdstash.Stash.Bogus".into() },
        ),
        ("org.fdstash.Stash.", Refusal::MethodNotFound { method: "org.fdstash.Stash.".into() }),
        (
            "org.fdstash.Stash.give",
            Refusal::MethodNotFound { method: "org.fdstash.Stash.give".into() },
        ),
        (
            "org.varlink.service.Bogus",
            Refusal::MethodNotFound { method: "org.varlink.service.Bogus".into() },
        ),
        ("Begin", Refusal::MethodNotFound { method: "Begin".into() }),
        ("", Refusal::MethodNotFound { method: "".into() }),
        ("org.fdstash.Begin", Refusal::InterfaceNotFound { interface: "org.fdstash".into() }),
        (".Begin", Refusal::InterfaceNotFound { interface: "".into() }),
        (
            "org.fdstash.Stash.Begin.Begin",
            Refusal::InterfaceNotFound { interface: "org.fdstash.Stash.Begin".into() },
        ),
    ];

    for (method, refusal) in table {
        let incoming = read(&message(&json!({ "method": method })), []);

        assert_eq!(incoming, refused(refusal, vec![], false), "{method}");
    }
}

#[test]
fn an_upgrade_is_not_done() {
    let method = "org.fdstash.Stash.Begin";

    let asked = read(&message(&json!({ "method": method, "upgrade": true })), []);
    let not_asked = read(&message(&json!({ "method": method, "upgrade": false })), []);

    let refusal = Refusal::MethodNotImplemented { method: method.into() };
    assert_eq!(asked, refused(refusal, vec![], false));
    assert_eq!(not_asked.request, Ok(Request::Stash(Call::Begin)));
}

#[test]
fn a_watch_is_called_with_more() {
    let watch = json!({ "method": "org.fdstash.Stash.Watch" });
    let with = |key: &str| {
        let mut watch = watch.clone();
        watch[key] = true.into();
        watch
    };

    let once = read(&message(&watch), []);
    let oneway = read(&message(&with("oneway")), []);
    let more = read(&message(&with("more")), []);

    assert_eq!(once.request, Err(Refusal::ExpectedMore));
    assert_eq!(oneway.request, Err(Refusal::ExpectedMore));
    let watch = Call::Watch { pattern: Pattern::all() };
    assert_eq!((more.request, more.mode), (Ok(Request::Stash(watch)), Mode::More));
}

#[test]
fn a_call_wants_as_many_replies_as_its_flags_say() {
    let table = [
        (json!({}), Mode::Once),
        (json!({ "more": null, "oneway": null, "upgrade": null }), Mode::Once),
        (json!({ "more": false, "oneway": false, "upgrade": false }), Mode::Once),
        (json!({ "more": true }), Mode::More),
        (json!({ "oneway": true }), Mode::Oneway),
        (json!({ "more": true, "oneway": true }), Mode::Oneway),
        (json!({ "bogus": true }), Mode::Once),
    ];

    for (mut call, mode) in table {
        call["method"] = "org.fdstash.Stash.List".into();

        let incoming = read(&message(&call), []);

        assert_eq!(incoming.mode, mode, "{call}");
        assert!(incoming.request.is_ok(), "{call}");
    }
}

#[test]
fn the_descriptors_of_a_refused_message_leave_the_next_ones_its_own() {
    let give = |first: Value, second: Value| {
        json!({
            "method": "org.fdstash.Stash.Give",
            "parameters": { "entries": [
                merged(json!({ "name": "a", "fileDescriptor": 1 }), first),
                merged(json!({ "name": "b", "fileDescriptor": 0 }), second),
            ] },
        })
    };
    let plain = || give(json!({}), json!({}));
    let table = [
        give(json!({ "name": "a:b" }), json!({})),
        give(json!({}), json!({ "name": "a" })),
        give(json!({}), json!({ "name": 1 })),
        give(json!({}), json!({ "bogus": 1 })),
        give(json!({}), json!({ "expireUSec": -1 })),
        give(json!({ "labels": { "fileDescriptor": "2" } }), json!({ "bogus": 1 })),
        give(json!({ "labels": { "fileDescriptor": 2 } }), json!({})),
        merged(plain(), json!({ "method": "org.fdstash.Stash.Later" })),
        merged(plain(), json!({ "method": "org.fdstash.Stash.Begin" })),
        merged(plain(), json!({ "method": "org.fdstash.Later.Give" })),
        merged(plain(), json!({ "method": "Give" })),
        merged(plain(), json!({ "upgrade": true })),
        json!({
            "method": "org.fdstash.Stash.Later",
            "parameters": { "a": { "fileDescriptor": 0 }, "b": [[{ "fileDescriptor": 1 }]] },
        }),
    ];

    for refused in table {
        let mut inbox = Inbox::for_calls();
        inbox.feed(&[message(&refused), give_of(&[0])].concat(), [10, 11, 12]).unwrap();

        let first = inbox.next_call().unwrap().unwrap();
        let second = inbox.next_call().unwrap().unwrap();

        assert!(first.request.is_err() && !first.last, "{refused}: {first:?}");
        assert_eq!(sorted(first.unused), [10, 11], "{refused}");
        let Ok(Request::Stash(Call::Give { gifts, .. })) = second.request else {
            panic!("{refused}: {second:?}");
        };
        assert_eq!(gifts.iter().map(|gift| gift.fd).collect::<Vec<_>>(), [12], "{refused}");
    }
}

#[test]
fn where_nobody_can_tell_which_descriptors_a_refused_message_has_the_connection_ends() {
    let entry = |more: &str| format!(r#"{{"entries":[{{"name":"a",{more}}}]}}"#);
    let deep = format!(r#""fileDescriptor":0,"bogus":{}{}"#, "[".repeat(200), "]".repeat(200));
    let table = [
        ("Give", entry(r#""fileDescriptor":"0""#)),
        ("Give", entry(r#""fileDescriptor":null"#)),
        ("Give", entry(r#""fileDescriptor":0.5"#)),
        ("Give", entry(r#""fileDescriptor":1e999"#)),
        ("Give", entry(r#""fileDescriptor":0,"expireUSec":1e999"#)),
        ("Give", entry(r#""fileDescriptor":0,"labels":{"k":"\ud800"}"#)),
        ("Give", entry(&deep)),
        ("Later", entry(r#""fileDescriptor":1"#)),
        ("Later", entry(r#""fileDescriptor":-1"#)),
        ("Later", r#"[{"fileDescriptor":0},{"fileDescriptor":0}]"#.into()),
    ];

    for (method, parameters) in table {
        let incoming = read(&stash_call(method, &parameters), [7, 8]);

        assert!(incoming.request.is_err(), "{method} {parameters}");
        assert_eq!((incoming.unused, incoming.last), (vec![], true), "{method} {parameters}");
    }
}

#[test]
fn a_refused_message_that_names_more_than_came_ends_the_connection() {
    let parameters = r#"{"a":{"fileDescriptor":0},"b":{"fileDescriptor":1}}"#;

    let incoming = read(&stash_call("Later", parameters), [7]);

    assert!(incoming.request.is_err());
    assert_eq!((incoming.unused, incoming.last), (vec![], true));
}

#[test]
fn a_refused_message_that_names_more_than_a_send_carries_ends_the_connection() {
    let named = |count: u32| {
        let named: Vec<_> = (0..count).map(|at| json!({ "fileDescriptor": at })).collect();
        stash_call("Later", &json!({ "named": named }).to_string())
    };

    let most = read(&named(253), 0..300);
    let one_more = read(&named(254), 0..300);

    assert_eq!((most.unused, most.last), (Vec::from_iter(0..253), false));
    assert_eq!((one_more.unused, one_more.last), (vec![], true));
}

#[test]
fn a_refused_message_that_nobody_can_count_goes_on_where_no_descriptor_waits() {
    let deep = format!(r#"{{"bogus":{}{}}}"#, "[".repeat(200), "]".repeat(200));

    let incoming = read(&stash_call("List", &deep), []);

    assert_eq!(incoming, refused(invalid("bogus"), vec![], false));
}

#[test]
fn the_service_describes_itself_and_both_interfaces() {
    let describe = |interface: &str| {
        let method = "org.varlink.service.GetInterfaceDescription";
        message(&json!({ "method": method, "parameters": { "interface": interface } }))
    };

    let info = read(&call::write_get_info::<u32>().bytes, []);
    let stash = read(&describe(INTERFACE_NAME), []);
    let service = read(&describe(SERVICE_NAME), []);
    let bogus = read(&describe("org.fdstash.Bogus"), []);

    assert_eq!(info.request, Ok(Request::GetInfo));
    assert_eq!(stash.request, Ok(Request::GetInterfaceDescription(INTERFACE)));
    assert_eq!(service.request, Ok(Request::GetInterfaceDescription(SERVICE)));
    let refusal = Refusal::InterfaceNotFound { interface: "org.fdstash.Bogus".into() };
    assert_eq!(bogus, refused(refusal, vec![], false));
}

fn read(message: &[u8], fds: impl IntoIterator<Item = u32>) -> Incoming<u32> {
    let mut inbox = Inbox::for_calls();
    inbox.feed(message, fds).expect("the first read of a connection");
    inbox.next_call().expect("a call").expect("a whole message")
}

fn refused(refusal: Refusal, unused: Vec<u32>, last: bool) -> Incoming<u32> {
    Incoming { request: Err(refusal), mode: Mode::Once, unused, last }
}

fn invalid(parameter: &str) -> Refusal {
    Refusal::InvalidParameter { parameter: parameter.into() }
}

fn too_many() -> Refusal {
    Refusal::LimitExceeded { limit: "descriptorsPerMessage".into(), value: 253 }
}

/// A call of the stash with parameters that may be anything.
fn stash_call(method: &str, parameters: &str) -> Vec<u8> {
    format!("{{\"method\":\"{INTERFACE_NAME}.{method}\",\"parameters\":{parameters}}}\0").into()
}

fn message(call: &Value) -> Vec<u8> {
    format!("{call}\0").into()
}

fn shown(message: &[u8]) -> &str {
    from_utf8(message).expect("text")
}

/// A Give with these indices, under the names "0", "1" and so on.
fn give_of(indices: &[i64]) -> Vec<u8> {
    let entry =
        |(at, index): (usize, &i64)| json!({ "name": at.to_string(), "fileDescriptor": index });
    let entries: Vec<_> = indices.iter().enumerate().map(entry).collect();
    stash_call("Give", &json!({ "entries": entries }).to_string())
}

/// Every call that has names in it, of these.
fn naming(names: &[&str]) -> [Vec<u8>; 4] {
    let entries = names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
    let gifts = entries.iter().cloned().enumerate();
    let gifts = gifts.map(|(at, entry)| merged(entry, json!({ "fileDescriptor": at })));
    [
        stash_call("Give", &json!({ "entries": gifts.collect::<Vec<_>>() }).to_string()),
        stash_call("Take", &json!({ "names": names }).to_string()),
        stash_call("Close", &json!({ "names": names }).to_string()),
        stash_call("Reopen", &json!({ "entries": entries }).to_string()),
    ]
}

/// An object with the fields of both; the second's win.
fn merged(mut object: Value, other: Value) -> Value {
    for (key, value) in other.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

fn sorted(mut fds: Vec<u32>) -> Vec<u32> {
    fds.sort_unstable();
    fds
}
