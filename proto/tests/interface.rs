//! The interface files and the Rust types say the same. Both files are read here, and every call,
//! reply and error of theirs is written and read field by field, so a change of either alone fails.
//!
//! Half of the file is fixtures: one of every call, reply and refusal, which the tests share.

mod idl;

use std::collections::{BTreeMap, BTreeSet};

use fdstash_proto::{
    Access, Call, Change, Clash, Entry, Explanation, Flags, Frame, Gift, Handed, Hangup, INTERFACE,
    INTERFACE_NAME, Inbox, Incoming, Info, Keeper, Kind, Labels, MAX_DESCRIPTORS, Mirror, Mode,
    Name, Notice, Pattern, Peer, Reason, Refusal, Reopening, Reply, Request, SERVICE, SERVICE_NAME,
    Share, Statistics, Taking, Ticket, Verb, Verdict, call,
    reply::{self, Answer, Expect, Listing, Refused},
};
use idl::{Field, Interface, Type};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[test]
fn both_files_are_of_the_interfaces_that_they_are_served_as() {
    let names = interfaces().map(|interface| interface.name);

    assert_eq!(names, [INTERFACE_NAME, SERVICE_NAME]);
}

#[test]
fn a_call_with_every_field_is_understood() {
    for (method, fields) in inputs() {
        let incoming = ask(&method, &full(&fields));

        let request = incoming.request.unwrap_or_else(|refusal| panic!("{method}: {refusal}"));
        assert_eq!(method_of(&request), method);
    }
}

#[test]
fn a_call_without_the_optional_fields_is_understood() {
    for (method, fields) in inputs() {
        let left_out = ask(&method, &bare(&fields, None));
        let null = ask(&method, &bare(&fields, Some(Value::Null)));

        let request = left_out.request.clone().unwrap_or_else(|why| panic!("{method}: {why}"));
        assert_eq!(method_of(&request), method);
        assert_eq!(null, left_out, "{method}");
    }
}

#[test]
fn a_call_without_any_one_of_the_optional_fields_is_understood() {
    for (method, fields) in inputs() {
        for object in objects(&fields) {
            for field in object.fields.iter().filter(|field| field.is_optional()) {
                let mut left_out = full(&fields);
                // Without copy it has no meaning.
                left_out.as_object_mut().unwrap().remove("fresh");
                let mut null = left_out.clone();
                object.of(&mut left_out).remove(&field.name);
                object.of(&mut null).insert(field.name.clone(), Value::Null);

                let path = object.path_to(&field.name);
                let left_out = ask(&method, &left_out);
                assert!(left_out.request.is_ok(), "{method} {path}: {left_out:?}");
                assert_eq!(ask(&method, &null), left_out, "{method} {path}");
            }
        }
    }
}

#[test]
fn a_call_without_parameters_is_one_with_none_in_it() {
    for (method, fields) in inputs() {
        let mut call = envelope(&method, &json!({}));
        let empty = read(&call, 0);

        call["parameters"] = Value::Null;
        let null = read(&call, 0);
        call.as_object_mut().unwrap().remove("parameters");
        let absent = read(&call, 0);

        let required = fields.iter().find(|field| !field.is_optional());
        let refusal = required.map(|field| invalid(&field.name));
        assert_eq!(empty.request.clone().err(), refusal, "{method}");
        assert_eq!(null, empty, "{method}");
        assert_eq!(absent, empty, "{method}");
    }
}

#[test]
fn a_call_without_a_required_field_is_refused_by_its_name() {
    for (method, fields) in inputs() {
        for object in objects(&fields) {
            for field in object.fields.iter().filter(|field| !field.is_optional()) {
                let mut parameters = full(&fields);
                object.of(&mut parameters).remove(&field.name);

                assert_refused(&method, &parameters, &object.path_to(&field.name));
            }
        }
    }
}

#[test]
fn a_call_with_a_field_of_another_type_is_refused_by_its_name() {
    for (method, fields) in inputs() {
        for object in objects(&fields) {
            for field in object.fields {
                for (value, path) in misfits(&field.kind) {
                    let mut parameters = full(&fields);
                    object.of(&mut parameters).insert(field.name.clone(), value);

                    let path = object.path_to(&field.name) + &path;
                    assert_refused(&method, &parameters, &path);
                }
            }
        }
    }
}

#[test]
fn a_call_with_a_field_that_the_interface_does_not_have_is_refused_by_its_name() {
    for (method, fields) in inputs() {
        for object in objects(&fields) {
            let mut parameters = full(&fields);
            object.of(&mut parameters).insert("bogus".into(), Value::Null);

            assert_refused(&method, &parameters, &object.path_to("bogus"));
        }
    }
}

#[test]
fn a_written_call_has_the_fields_of_the_interface_and_comes_out_again() {
    let [stash, _] = interfaces();
    let mut written: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();

    for call in every_call() {
        let frame = call::write(call.clone(), Mode::More);
        let message = json_of(&frame.bytes);
        let (_, method) = message["method"].as_str().unwrap().rsplit_once('.').unwrap();
        let paths = written.entry(method.to_owned()).or_default();
        check_object(&stash.methods[method].input, &message["parameters"], method, paths);

        let incoming = read(&message, frame.fds.len() as u32);
        assert_eq!(incoming.request, Ok(Request::Stash(call)), "{method}");
    }

    let due = stash.methods.iter().map(|(name, method)| (name.clone(), paths(name, &method.input)));
    assert_eq!(written, due.collect());
}

#[test]
fn a_written_reply_has_the_fields_of_the_interface_and_comes_out_again() {
    for interface in interfaces() {
        for (name, method) in &interface.methods {
            let (due, replies) = replies_to(name);
            let mut written = BTreeSet::new();

            for reply in replies {
                let frame = reply::write(Ok(reply.clone()), false);
                let message = json_of(&frame.bytes);
                assert_eq!(message.as_object().unwrap().len(), 1, "{message}");
                check_object(&method.output, &message["parameters"], name, &mut written);

                let answer = hear(&message, due, frame.fds.len() as u32).unwrap();
                assert_eq!(answer, Answer { outcome: Ok(reply), continues: false }, "{name}");
            }

            assert_eq!(written, paths(name, &method.output), "{name}");
        }
    }
}

#[test]
fn a_written_reply_says_that_more_follow_and_an_error_does_not() {
    let more = reply::write::<u32>(Ok(Reply::Done), true);
    let error = reply::write::<u32>(Err(Refusal::PermissionDenied), true);

    assert_eq!(json_of(&more.bytes), json!({ "parameters": {}, "continues": true }));
    let expected = json!({ "error": "org.varlink.service.PermissionDenied", "parameters": {} });
    assert_eq!(json_of(&error.bytes), expected);
}

#[test]
fn a_reply_is_read_with_the_required_fields_and_not_without() {
    for interface in interfaces() {
        for (name, method) in &interface.methods {
            let (due, _) = replies_to(name);
            let hear = |parameters| hear(&json!({ "parameters": parameters }), due, 1);

            assert!(hear(bare(&method.output, None)).is_ok(), "{name}");
            assert_eq!(
                hear(bare(&method.output, Some(Value::Null))),
                hear(bare(&method.output, None)),
                "{name}"
            );
            for object in objects(&method.output) {
                for field in object.fields.iter().filter(|field| !field.is_optional()) {
                    let mut parameters = full(&method.output);
                    // Both together are no notice.
                    parameters.as_object_mut().unwrap().remove("lost");
                    object.of(&mut parameters).remove(&field.name);

                    let path = object.path_to(&field.name);
                    assert_eq!(hear(parameters), Err(Hangup::NotAReply), "{name} {path}");
                }
            }
        }
    }
}

#[test]
fn every_error_of_the_interface_is_a_refusal_and_every_refusal_one_of_its_errors() {
    let mut in_files = BTreeSet::new();
    for interface in interfaces() {
        for (name, fields) in &interface.errors {
            let error = format!("{}.{name}", interface.name);
            let message = json!({ "error": error, "parameters": full(fields) });

            let answer = hear(&message, Expect::Done, 0).unwrap();

            let Err(Refused::Known(refusal)) = answer.outcome else { panic!("{answer:?}") };
            assert!(format!("{refusal:?}").starts_with(name), "{refusal:?} for {error}");
            assert_eq!(json_of(&reply::write::<u32>(Err(refusal), false).bytes), message);
            in_files.insert(error);
        }
    }

    let refusals = every_refusal().into_iter().map(|(refusal, _)| {
        let message = json_of(&reply::write::<u32>(Err(refusal), false).bytes);
        message["error"].as_str().unwrap().to_owned()
    });
    assert_eq!(refusals.collect::<BTreeSet<_>>(), in_files);
}

#[test]
fn an_error_without_one_of_its_parameters_is_not_taken_for_it() {
    for interface in interfaces() {
        for (name, fields) in &interface.errors {
            for field in fields {
                let mut parameters = full(fields);
                parameters.as_object_mut().unwrap().remove(&field.name);
                let error = format!("{}.{name}", interface.name);

                let message = json!({ "error": error, "parameters": parameters });
                let answer = hear(&message, Expect::Done, 0).unwrap();

                let parameters = parameters.to_string();
                assert_eq!(answer.outcome, Err(Refused::Unknown { error, parameters }));
            }
        }
    }
}

#[test]
fn a_refusal_says_what_and_which() {
    for (refusal, message) in every_refusal() {
        assert_eq!(refusal.to_string(), message);
    }
}

#[test]
fn the_words_are_those_of_the_interface() {
    let [stash, _] = interfaces();
    let words = |name: &str| {
        let Type::Enum(words) = &stash.types[name] else { panic!("{name} has no words") };
        words.clone()
    };

    assert_words(&words("Access"), &every_access(), Access::as_str);
    assert_words(&words("Kind"), &every_kind(), Kind::as_str);
    assert_words(&words("Change"), &every_change(), Change::as_str);
}

#[test]
fn the_words_are_those_of_the_comments() {
    let [stash, _] = interfaces();
    let quoted = |field: &Field| field.quoted().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let Type::Struct(entry) = &stash.types["Entry"] else { panic!("Entry has no fields") };

    let keepers = quoted(field(&stash.methods["GetStatistics"].output, "keeper"));
    assert_words(&keepers, &every_keeper(), Keeper::as_str);
    let flags = quoted(field(entry, "flags"));
    assert_eq!(all_flags().words().collect::<Vec<_>>(), flags);
    assert_eq!(serde_json::to_value(all_flags()).unwrap(), json!(flags));
}

#[test]
fn the_limits_are_those_of_the_comments() {
    let name = field_of_gift("name");

    assert!(INTERFACE.contains(&format!("at most {MAX_DESCRIPTORS} descriptors")));
    assert!(name.doc.contains(&format!("1 to {} printable ASCII", Name::MAX_LEN)), "{}", name.doc);
    let ticket = format!("bears a ticket: 1 to {} printable ASCII", Ticket::MAX_LEN);
    assert!(INTERFACE.contains(&ticket));
}

fn interfaces() -> [Interface; 2] {
    [INTERFACE, SERVICE].map(Interface::read)
}

/// Every method, by its full name, and its parameters.
fn inputs() -> Vec<(String, Vec<Field>)> {
    let methods = interfaces().into_iter().flat_map(|interface| {
        let full_name = move |name| format!("{}.{name}", interface.name);
        interface.methods.into_iter().map(move |(name, method)| (full_name(name), method.input))
    });
    methods.collect()
}

fn field<'a>(fields: &'a [Field], name: &str) -> &'a Field {
    fields.iter().find(|field| field.name == name).expect("a field of this name")
}

fn field_of_gift(name: &str) -> Field {
    let [stash, _] = interfaces();
    let Type::Struct(fields) = &stash.types["Gift"] else { panic!("Gift has no fields") };
    field(fields, name).clone()
}

/// An object with every field.
fn full(fields: &[Field]) -> Value {
    fields.iter().map(|field| (field.name.clone(), sample(&field.name, &field.kind))).collect()
}

/// An object with the required fields, and something in place of the optional ones.
fn bare(fields: &[Field], instead: Option<Value>) -> Value {
    let bare = fields.iter().filter_map(|field| {
        let value = match (&field.kind, field.kind.fields()) {
            (Type::Optional(_), _) => instead.clone()?,
            (Type::Array(_), Some(fields)) => json!([bare(fields, instead.clone())]),
            (_, Some(fields)) => bare(fields, instead.clone()),
            (kind, None) => sample(&field.name, kind),
        };
        Some((field.name.clone(), value))
    });
    bare.collect()
}

fn sample(name: &str, kind: &Type) -> Value {
    match (name, kind) {
        (_, Type::Bool) => json!(true),
        ("fileDescriptor", Type::Int) => json!(0),
        (_, Type::Int) => json!(1),
        ("interface", Type::Text) => json!(SERVICE_NAME),
        ("keeper", Type::Text) => json!("none"),
        ("flags" | "drifted", Type::Text) => json!("direct"),
        (_, Type::Text) => json!("a"),
        (_, Type::Enum(words)) => json!(words[0]),
        (_, Type::Struct(fields)) => full(fields),
        (_, Type::Optional(of)) => sample(name, of),
        (_, Type::Array(of)) => json!([sample(name, of)]),
        (_, Type::Map(of)) => json!({ "k": sample(name, of) }),
    }
}

/// Values that do not fit a type, and where in them the misfit stands.
fn misfits(kind: &Type) -> Vec<(Value, String)> {
    let here = |values: Value| {
        let values = values.as_array().cloned().unwrap_or_default();
        values.into_iter().map(|value| (value, String::new())).collect()
    };
    let within = |of: &Type, around: fn(Value) -> Value, path: &str| -> Vec<_> {
        misfits(of)
            .into_iter()
            .map(|(value, rest)| (around(value), format!("{path}{rest}")))
            .collect()
    };
    let mut misfits: Vec<_> = match kind {
        Type::Bool => here(json!([1, "true", {}])),
        Type::Int => here(json!(["1", 1.5, true, []])),
        Type::Text => here(json!([1, ["a"], false])),
        Type::Enum(words) => here(json!(["bogus", "", 0, { &words[0]: null }, [words[0]]])),
        Type::Struct(_) => here(json!([[], "a", 1])),
        Type::Array(of) => {
            [here(json!([{}, "a", { "0": "a" }])), within(of, |value| json!([value]), "[0]")]
                .concat()
        }
        Type::Map(of) => {
            [here(json!([[], "a"])), within(of, |value| json!({ "k": value }), ".k")].concat()
        }
        Type::Optional(of) => {
            let mut misfits = misfits(of);
            misfits.retain(|(value, _)| !value.is_null());
            return misfits;
        }
    };
    misfits.push((Value::Null, String::new()));
    misfits
}

/// An object within parameters: where it stands, and the fields that it may have.
struct Object<'a> {
    pointer: String,
    path: String,
    fields: &'a [Field],
}

/// The parameters and every object in them.
fn objects(fields: &[Field]) -> Vec<Object<'_>> {
    let mut objects = vec![Object { pointer: String::new(), path: String::new(), fields }];
    let mut at = 0;
    while let Some(object) = objects.get(at) {
        let within = object.fields.iter().filter_map(|field| object.within(field));
        let within: Vec<_> = within.collect();
        objects.extend(within);
        at += 1;
    }
    objects
}

impl<'a> Object<'a> {
    /// The object that a field has, or the first of several.
    fn within(&self, field: &'a Field) -> Option<Self> {
        let (first, index) =
            if matches!(field.kind, Type::Array(_)) { ("/0", "[0]") } else { ("", "") };
        Some(Self {
            pointer: format!("{}/{}{first}", self.pointer, field.name),
            path: self.path_to(&field.name) + index,
            fields: field.kind.fields()?,
        })
    }

    fn of<'b>(&self, parameters: &'b mut Value) -> &'b mut serde_json::Map<String, Value> {
        let object = parameters.pointer_mut(&self.pointer).and_then(Value::as_object_mut);
        object.unwrap_or_else(|| panic!("no object at {}", self.pointer))
    }

    fn path_to(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }
}

/// The way to every field of an object, the optional ones too.
fn paths(at: &str, fields: &[Field]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    check_object(fields, &full(fields), at, &mut paths);
    paths
}

/// Holds an object to its type, and notes the way to each field that is there.
fn check_object(fields: &[Field], object: &Value, at: &str, paths: &mut BTreeSet<String>) {
    let object = object.as_object().unwrap_or_else(|| panic!("{at} is no object: {object}"));
    for key in object.keys() {
        assert!(fields.iter().any(|field| field.name == *key), "{at} has no {key}");
    }
    for field in fields {
        let path = format!("{at}.{}", field.name);
        match object.get(&field.name) {
            Some(value) => {
                check(&field.kind, value, &path, paths);
                paths.insert(path);
            }
            None => assert!(field.is_optional(), "{path} is missing"),
        }
    }
}

fn check(kind: &Type, value: &Value, at: &str, paths: &mut BTreeSet<String>) {
    match kind {
        Type::Bool => assert!(value.is_boolean(), "{at}: {value}"),
        Type::Int => assert!(value.is_i64(), "{at}: {value}"),
        Type::Text => assert!(value.is_string(), "{at}: {value}"),
        Type::Enum(words) => assert!(words.iter().any(|word| value == word), "{at}: {value}"),
        Type::Struct(fields) => check_object(fields, value, at, paths),
        Type::Optional(of) => check(of, value, at, paths),
        Type::Array(of) => {
            let values = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            values.iter().for_each(|value| check(of, value, at, paths));
        }
        Type::Map(of) => {
            let values = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            values.values().for_each(|value| check(of, value, at, paths));
        }
    }
}

fn assert_refused(method: &str, parameters: &Value, parameter: &str) {
    let incoming = ask(method, parameters);

    assert_eq!(incoming.request, Err(invalid(parameter)), "{method} {parameters}");
}

fn invalid(parameter: &str) -> Refusal {
    Refusal::InvalidParameter { parameter: parameter.into() }
}

/// Holds values to words, one by one, both ways.
fn assert_words<T>(words: &[String], values: &[T], as_str: impl Fn(T) -> &'static str)
where
    T: Copy + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned,
{
    assert_eq!(values.iter().map(|&value| as_str(value)).collect::<Vec<_>>(), words);
    for (word, value) in words.iter().zip(values) {
        assert_eq!(serde_json::to_value(value).expect("a word"), json!(word));
        assert_eq!(serde_json::from_value::<T>(json!(word)).expect("a word"), *value);
    }
}

fn ask(method: &str, parameters: &Value) -> Incoming<u32> {
    let fds = u32::from(parameters.pointer("/entries/0/fileDescriptor").is_some());
    read(&envelope(method, parameters), fds)
}

fn envelope(method: &str, parameters: &Value) -> Value {
    json!({ "method": method, "parameters": parameters, "more": true })
}

fn read(call: &Value, fds: u32) -> Incoming<u32> {
    let mut inbox = Inbox::for_calls();
    inbox.feed(format!("{call}\0").as_bytes(), 0..fds).expect("the first read");
    inbox.next_call().expect("a call").expect("a whole message")
}

fn hear(reply: &Value, due: Expect, fds: u32) -> Result<Answer<u32>, Hangup> {
    let mut inbox = Inbox::for_replies();
    inbox.feed(format!("{reply}\0").as_bytes(), 0..fds)?;
    Ok(inbox.next_reply(due)?.expect("a whole message"))
}

fn json_of(bytes: &[u8]) -> Value {
    let (nul, json) = bytes.split_last().expect("a message");
    assert_eq!(*nul, 0);
    serde_json::from_slice(json).expect("JSON")
}

/// The method that a request is a call of. A new one belongs in [`every_call`] and [`replies_to`].
fn method_of(request: &Request<u32>) -> String {
    let (interface, method) = match request {
        Request::Stash(call) => (
            INTERFACE_NAME,
            match call {
                Call::Give { .. } => "Give",
                Call::Take { .. } => "Take",
                Call::Close { .. } => "Close",
                Call::Reopen { .. } => "Reopen",
                Call::Begin => "Begin",
                Call::Commit { .. } => "Commit",
                Call::Rollback => "Rollback",
                Call::List { .. } => "List",
                Call::Watch { .. } => "Watch",
                Call::GetStatistics => "GetStatistics",
                Call::ExplainPolicy { .. } => "ExplainPolicy",
            },
        ),
        Request::GetInfo => (SERVICE_NAME, "GetInfo"),
        Request::GetInterfaceDescription(_) => (SERVICE_NAME, "GetInterfaceDescription"),
    };
    format!("{interface}.{method}")
}

/// Every call, with as little and with as much in it as there can be.
fn every_call() -> Vec<Call<u32>> {
    let gift = Gift {
        fresh: true,
        may_reopen: Some(Access::ReadWrite),
        expire_usec: Some(1),
        ephemeral: true,
        close_on_hangup: true,
        share: Share { uids: vec![1], gids: vec![2] },
        labels: labels(),
        ..Gift::new(name("b"), 1)
    };
    let reopening = Reopening {
        access: Some(Access::Write),
        hand_out: Some(Access::Path),
        direct: Some(true),
        sync: Some(false),
        dsync: Some(true),
        append: Some(false),
        nonblock: Some(true),
        noatime: Some(false),
        path: Some("/some/where".into()),
        ..Reopening::new(name("b"))
    };
    let names = || vec![name("a"), name("b")];
    let ticket = || Some(Ticket::new("7f3a.1").expect("a ticket"));
    let pattern = || Pattern::new("a*").expect("a pattern");
    vec![
        Call::Give { gifts: vec![], clash: Clash::Replace, ticket: None },
        Call::Give {
            gifts: vec![Gift::new(name("a"), 0), gift],
            clash: Clash::Refuse,
            ticket: ticket(),
        },
        Call::Take { names: vec![], taking: Taking::Move, timeout_usec: 0 },
        Call::Take { names: names(), taking: Taking::Copy, timeout_usec: 0 },
        Call::Take { names: names(), taking: Taking::Fresh, timeout_usec: 1 },
        Call::Close { names: vec![], ticket: None },
        Call::Close { names: names(), ticket: ticket() },
        Call::Reopen { reopenings: vec![] },
        Call::Reopen { reopenings: vec![Reopening::new(name("a")), reopening] },
        Call::Begin,
        Call::Commit { ticket: None },
        Call::Commit { ticket: ticket() },
        Call::Rollback,
        Call::List { pattern: Pattern::all() },
        Call::List { pattern: pattern() },
        Call::Watch { pattern: Pattern::all() },
        Call::Watch { pattern: pattern() },
        Call::GetStatistics,
        Call::ExplainPolicy { uid: 0, gids: vec![], verb: Verb::Give, name: name("a") },
        Call::ExplainPolicy { uid: 1, gids: vec![2, 3], verb: Verb::ReopenByPath, name: name("a") },
    ]
}

#[test]
fn a_list_that_is_written_entry_by_entry_is_the_same_message() {
    for count in 0..=2 {
        for continues in [false, true] {
            let entries: Vec<_> = entries().into_iter().take(count).collect();
            let whole: Frame<u32> = reply::write(Ok(Reply::Listed(entries.clone())), continues);

            let mut listing = Listing::new();
            entries.into_iter().for_each(|entry| listing.push(entry));

            assert_eq!(listing.entries(), count);
            assert_eq!(listing.finish(continues), whole);
        }
    }
}

/// What a method answers, with as little and with as much in it as there can be.
fn replies_to(method: &str) -> (Expect, Vec<Reply<u32>>) {
    let [bare, full] = entries();
    match method {
        "Give" => (
            Expect::Given,
            vec![
                Reply::Given { replaced: vec![] },
                Reply::Given { replaced: vec![name("a"), name("b")] },
            ],
        ),
        "Take" | "Reopen" => {
            let handed = [("a", 0), ("b", 1)].map(|(text, fd)| Handed { name: name(text), fd });
            (Expect::Handed, vec![Reply::Handed(vec![]), Reply::Handed(handed.into())])
        }
        "Close" | "Begin" | "Commit" | "Rollback" => (Expect::Done, vec![Reply::Done]),
        "List" => (Expect::Listed, vec![Reply::Listed(vec![]), Reply::Listed(vec![bare, full])]),
        "Watch" => {
            let changed = every_change()
                .into_iter()
                .map(|change| Notice::Changed { change, entry: Box::new(full.clone()) });
            let notices = [Notice::Standing, Notice::Lost(3)].into_iter().chain(changed);
            (Expect::Notice, notices.map(Reply::Notice).collect())
        }
        "GetStatistics" => {
            let statistics = every_keeper().into_iter().map(statistics);
            (Expect::Statistics, statistics.map(Reply::Statistics).collect())
        }
        "ExplainPolicy" => {
            let bare = Explanation {
                verdict: Verdict::Hidden,
                reason: Reason::Nothing,
                file: None,
                line: None,
            };
            let (verdict, reason) = (Verdict::Denied, Reason::Reserve);
            let (file, line) = (Some("policy.toml".into()), Some(7));
            let full = Explanation { verdict, reason, file, line };
            (Expect::Explained, [bare, full].map(Reply::Explained).into())
        }
        "GetInfo" => (Expect::Info, vec![Reply::Info(Info::of_fdstash("1.2.3"))]),
        "GetInterfaceDescription" => {
            (Expect::Description, vec![Reply::Description(INTERFACE.into())])
        }
        _ => panic!("no reply to {method}"),
    }
}

/// An entry with as little and one with as much in it as there can be.
fn entries() -> [Entry; 2] {
    let peer = |uid| Peer { uid, gid: uid + 1, pid: 12 };
    let bare = Entry {
        name: name("a"),
        kind: Kind::Anonymous,
        access: Access::ReadWrite,
        flags: Flags::NONE,
        drifted: Flags::NONE,
        may_reopen: Access::Path,
        target: None,
        device: 1,
        inode: 2,
        giver: peer(3),
        given_at_usec: 4,
        expires_at_usec: None,
        revision: 5,
        held_by: None,
        labels: Labels::new(),
        share: None,
        ephemeral: None,
        close_on_hangup: None,
    };
    let full = Entry {
        name: name("b"),
        kind: Kind::Regular,
        flags: Flags::DIRECT.with(Flags::APPEND, true),
        drifted: Flags::NONBLOCK,
        target: Some("/some/where".into()),
        expires_at_usec: Some(6),
        held_by: Some(peer(7)),
        labels: labels(),
        share: Some(Share { uids: vec![8], gids: vec![9, 10] }),
        ephemeral: Some(false),
        close_on_hangup: Some(true),
        ..bare.clone()
    };
    [bare, full]
}

fn statistics(keeper: Keeper) -> Statistics {
    Statistics {
        entries: 1,
        max_entries: 2,
        connections: 3,
        transactions: 4,
        keeper,
        restores: 5,
        given: 6,
        taken: 7,
        copied: 8,
        closed: 9,
        reopened: 10,
        expired: 11,
        refused: 12,
        mirror: (keeper == Keeper::ProcessAndSystemd).then_some(Mirror {
            bundles: 13,
            puts: 14,
            entries: 15,
            waiting: 16,
            behind_usec: 17,
        }),
    }
}

/// Every refusal, and what it says.
fn every_refusal() -> Vec<(Refusal, &'static str)> {
    let name = || "a".to_owned();
    let text = str::to_owned;
    let held_by = Peer { uid: 1, gid: 2, pid: 3 };
    let all = vec![
        (Refusal::NotFound { name: name() }, r#"there is no entry "a""#),
        (Refusal::AlreadyExists { name: name() }, r#"there is an entry "a" already"#),
        (
            Refusal::Busy { name: name(), held_by },
            r#"entry "a" is held by a transaction of uid 1 (pid 3)"#,
        ),
        (
            Refusal::TransactionState { reason: text("no transaction is open") },
            "no transaction is open",
        ),
        (
            Refusal::InvalidName { name: text("a\n"), reason: text("it is bad") },
            r#""a\n" cannot be used as a name here: it is bad"#,
        ),
        (
            Refusal::AccessDenied { name: name(), verb: text("take") },
            r#"not allowed to take entry "a""#,
        ),
        (
            Refusal::ReopenFailed {
                name: name(),
                errno: 22,
                errno_name: text("EINVAL"),
                message: text("it takes no O_DIRECT"),
            },
            r#"entry "a" could not be opened anew: it takes no O_DIRECT (EINVAL)"#,
        ),
        (
            Refusal::LimitExceeded { limit: text("entries"), value: 10 },
            "limit exceeded: entries is 10",
        ),
        (
            Refusal::FileDescriptorMissing { expected: 2, received: 1 },
            "the message named 2 descriptors, but 1 came with it",
        ),
        (
            Refusal::NotDurable { reason: text("the disk is full") },
            "nothing was stored, since it could not be made durable: the disk is full",
        ),
        (Refusal::InterfaceNotFound { interface: text("b.c") }, r#"there is no interface "b.c""#),
        (Refusal::MethodNotFound { method: text("b.c.D") }, r#"there is no method "b.c.D""#),
        (
            Refusal::MethodNotImplemented { method: text("b.c.D") },
            r#"method "b.c.D" cannot be called so"#,
        ),
        (invalid("names[0]"), r#"invalid parameter "names[0]""#),
        (Refusal::PermissionDenied, "permission denied"),
        (Refusal::ExpectedMore, "the method must be called with more"),
    ];
    for (refusal, _) in &all {
        // A new one breaks the build here, and belongs in the list above.
        match refusal {
            Refusal::NotFound { .. }
            | Refusal::AlreadyExists { .. }
            | Refusal::Busy { .. }
            | Refusal::TransactionState { .. }
            | Refusal::InvalidName { .. }
            | Refusal::AccessDenied { .. }
            | Refusal::ReopenFailed { .. }
            | Refusal::LimitExceeded { .. }
            | Refusal::FileDescriptorMissing { .. }
            | Refusal::NotDurable { .. }
            | Refusal::InterfaceNotFound { .. }
            | Refusal::MethodNotFound { .. }
            | Refusal::MethodNotImplemented { .. }
            | Refusal::InvalidParameter { .. }
            | Refusal::PermissionDenied
            | Refusal::ExpectedMore => {}
        }
    }
    all
}

fn every_access() -> Vec<Access> {
    use Access::{Path, Read, ReadWrite, Write};
    let all = vec![Read, Write, ReadWrite, Path];
    all.iter().for_each(|access| match access {
        // A new one belongs in the list above; so with those below.
        Read | Write | ReadWrite | Path => {}
    });
    all
}

fn every_kind() -> Vec<Kind> {
    use Kind::{Anonymous, Block, Character, Directory, Fifo, Regular, Socket};
    let all = vec![Regular, Directory, Block, Character, Fifo, Socket, Anonymous];
    all.iter().for_each(|kind| match kind {
        Regular | Directory | Block | Character | Fifo | Socket | Anonymous => {}
    });
    all
}

fn every_change() -> Vec<Change> {
    use Change::{Closed, Expired, Given, HungUp, Reopened, Replaced, Taken};
    let all = vec![Given, Replaced, Taken, Closed, Reopened, Expired, HungUp];
    all.iter().for_each(|change| match change {
        Given | Replaced | Taken | Closed | Reopened | Expired | HungUp => {}
    });
    all
}

fn every_keeper() -> Vec<Keeper> {
    use Keeper::{Nobody, Process, ProcessAndSystemd};
    let all = vec![Process, ProcessAndSystemd, Nobody];
    all.iter().for_each(|keeper| match keeper {
        Process | ProcessAndSystemd | Nobody => {}
    });
    all
}

fn all_flags() -> Flags {
    [Flags::DIRECT, Flags::SYNC, Flags::DSYNC, Flags::APPEND, Flags::NONBLOCK, Flags::NOATIME]
        .into_iter()
        .fold(Flags::NONE, |flags, flag| flags.with(flag, true))
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn labels() -> Labels {
    [("image".to_owned(), "vm7".to_owned())].into()
}
