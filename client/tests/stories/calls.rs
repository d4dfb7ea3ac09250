// Stories of single calls. `story!`, `wait!`, `next!` and `Client` are whoever includes this.

use std::time::Duration;

use fdstash::{Change, Error, Gift, Notice, Pattern, Refusal, Reopening};
use fdstash_proto::Reply;

use super::peer::*;

story! {
    fn a_take_is_final_only_when_all_has_arrived() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let handed = wait!(client.take(&names(["disk"]))).unwrap();

        assert_eq!(handed[0].name, name("disk"));
        assert_eq!(identity(&handed[0].fd), identity(&image));
        let flags = rustix::io::fcntl_getfd(&handed[0].fd).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
        daemon.ends();
    }

    fn a_take_is_asked_for_before_its_transaction_is_said_to_have_begun() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.ignores("Begin");
            line.ignores("Take disk");
            line.says(Reply::Done);
            line.says(handed_one(&name("disk"), &kept));
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let handed = wait!(client.take(&names(["disk"]))).unwrap();

        assert_eq!(identity(&handed[0].fd), identity(&image));
        daemon.ends();
    }

    fn where_a_transaction_cannot_begin_what_was_asked_for_in_it_ends_with_the_connection() {
        let reason = || Refusal::TransactionState { reason: "there is one".into() };
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.refuses("Begin", reason());
            // The client may be gone before it could be answered.
            line.ignores("Take disk");
            line.ignores("End");
            let mut line = stage.accepts();
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let refused = wait!(client.take(&names(["disk"]))).unwrap_err();

        assert_eq!(refused.refusal(), Some(&reason()));
        assert!(client.unconfirmed().is_empty());
        assert_eq!(wait!(client.statistics()).unwrap().given, 1);
        daemon.ends();
    }

    fn a_refused_take_is_rolled_back_and_the_connection_used_on() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.refuses("Take disk", not_found("disk"));
            line.answers("Rollback", Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let refused = wait!(client.take(&names(["disk"]))).unwrap_err();

        assert_eq!(refused.refusal(), Some(&not_found("disk")));
        assert_eq!(wait!(client.statistics()).unwrap().given, 1);
        daemon.ends();
    }

    fn what_was_not_asked_for_is_not_taken() {
        for wrong in [vec![], names(["other"]), names(["disk", "other"]), names(["disk", "disk"])] {
            let daemon = Stage::plays(move |stage| {
                let mut line = stage.accepts();
                line.answers("Begin", Reply::Done);
                line.answers("Take disk", handed(&wrong));
                line.ignores("End");
            });
            let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

            let error = wait!(client.take(&names(["disk"]))).unwrap_err();

            assert!(matches!(error, Error::Protocol(_)), "{error:?}");
            daemon.ends();
        }
    }

    fn descriptors_come_in_the_order_in_which_they_were_asked_for() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Copy b c a", handed(&names(["a", "b", "c"])));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let handed = wait!(client.copy(&names(["b", "c", "a"]))).unwrap();

        assert!(handed.iter().map(|handed| &handed.name).eq(&names(["b", "c", "a"])));
        daemon.ends();
    }

    fn a_reopen_is_undone_where_it_does_not_arrive() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Reopen a b", handed(&names(["a"])));
            line.ignores("End");
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Reopen a b", handed(&names(["a", "b"])));
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let reopenings = ["a", "b"].map(|text| Reopening::new(name(text)));

        let error = wait!(client.reopen(&reopenings)).unwrap_err();
        let handed = wait!(client.reopen(&reopenings)).unwrap();

        assert!(matches!(error, Error::Protocol(_)), "{error:?}");
        assert_eq!(handed.len(), 2);
        daemon.ends();
    }

    fn a_give_only_borrows() {
        let image = file();
        let same = identity(&image);
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Give disk", Reply::Given { replaced: names(["disk"]) });
            assert_eq!(identity(&line.given[0].fd), same);
            let there = Refusal::AlreadyExists { name: "disk".into() };
            line.refuses("GiveNew disk", there);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let gift = Gift::new(name("disk"), &image);

        let replaced = wait!(client.give(std::slice::from_ref(&gift))).unwrap();
        let refused = wait!(client.give_new(&[gift])).unwrap_err();

        assert_eq!(replaced, names(["disk"]));
        assert!(matches!(refused, Error::Refused(Refusal::AlreadyExists { .. })), "{refused:?}");
        assert_eq!(identity(&image), same);
        daemon.ends();
    }

    fn as_many_descriptors_as_a_message_carries_are_one_call() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers(&call("Give", &many_names(253)), given());
            line.answers(&call("Copy", &many_names(253)), handed(&many_names(253)));
            line.answers(&call("Close", &many_names(1000)), Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let image = file();
        let gifts: Vec<_> = many_names(253).into_iter().map(|n| Gift::new(n, &image)).collect();

        wait!(client.give(&gifts)).unwrap();
        let copies = wait!(client.copy(&many_names(253))).unwrap();
        wait!(client.close(&many_names(1000))).unwrap();

        assert_eq!(copies.len(), 253);
        daemon.ends();
    }

    fn more_descriptors_are_several_calls_and_final_together() {
        let daemon = Stage::plays(|stage| {
            let all = many_names(507);
            let parts = [&all[..253], &all[253..506], &all[506..]];
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            for (at, part) in parts.into_iter().enumerate() {
                let replaced = vec![name(&format!("r{at}"))];
                line.answers(&call("Give", part), Reply::Given { replaced });
            }
            line.answers("Commit", Reply::Done);
            for verb in ["Copy", "Take", "Reopen"] {
                line.answers("Begin", Reply::Done);
                for part in parts {
                    line.answers(&call(verb, part), handed(part));
                }
                line.answers("Commit", Reply::Done);
            }
            let many = many_names(1001);
            line.answers("Begin", Reply::Done);
            line.answers(&call("Close", &many[..1000]), Reply::Done);
            line.answers(&call("Close", &many[1000..]), Reply::Done);
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let image = file();
        let all = many_names(507);
        let gifts: Vec<_> = all.iter().map(|n| Gift::new(n.clone(), &image)).collect();
        let reopenings: Vec<_> = all.iter().cloned().map(Reopening::new).collect();

        assert_eq!(wait!(client.give(&gifts)).unwrap(), names(["r0", "r1", "r2"]));
        for handed in [
            wait!(client.copy(&all)).unwrap(),
            wait!(client.take(&all)).unwrap(),
            wait!(client.reopen(&reopenings)).unwrap(),
        ] {
            assert!(handed.iter().map(|handed| &handed.name).eq(&all));
        }
        wait!(client.close(&many_names(1001))).unwrap();
        daemon.ends();
    }

    fn where_a_part_is_refused_all_parts_are_undone() {
        let daemon = Stage::plays(|stage| {
            let all = many_names(254);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers(&call("GiveNew", &all[..253]), given());
            line.refuses(&call("GiveNew", &all[253..]), not_found("n0253"));
            line.answers("Rollback", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let image = file();
        let gifts: Vec<_> = many_names(254).into_iter().map(|n| Gift::new(n, &image)).collect();

        let refused = wait!(client.give_new(&gifts)).unwrap_err();

        assert_eq!(refused.refusal(), Some(&not_found("n0253")));
        daemon.ends();
    }

    fn a_name_in_two_parts_of_a_call_is_refused_unasked() {
        let daemon = Stage::plays(|stage| stage.accepts().ignores("End"));
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let mut twice = many_names(254);
        twice[253] = twice[0].clone();

        let refused = wait!(client.take(&twice)).unwrap_err();

        let message = refused.to_string();
        assert_eq!(message, r#""n0000" cannot be used as a name here: it is named twice in one call"#);
        drop(client);
        daemon.ends();
    }

    fn nothing_is_asked_about_nothing() {
        let daemon = Stage::plays(|stage| stage.accepts().ignores("End"));
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        assert_eq!(wait!(client.give::<std::fs::File>(&[])).unwrap(), []);
        assert!(wait!(client.copy(&[])).unwrap().is_empty());
        wait!(client.close(&[])).unwrap();
        drop(client);
        daemon.ends();
    }

    fn a_call_that_fits_no_message_is_not_sent() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let mut gift = Gift::new(name("disk"), file());
        gift.labels.insert("note".into(), "x".repeat(1 << 20));

        let error = wait!(client.give(&[gift])).unwrap_err();

        assert!(matches!(error, Error::CallTooLong { limit: 1_048_576 }), "{error:?}");
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_wait_is_the_daemons() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk patiently", handed(&names(["disk"])));
            line.answers("Commit", Reply::Done);
            line.answers("Copy disk patiently", handed(&names(["disk"])));
            line.answers("CopyFresh disk patiently", handed(&names(["disk"])));
            line.answers("CopyFresh disk", handed(&names(["disk"])));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let disk = names(["disk"]);

        wait!(client.take_within(&disk, Duration::MAX)).unwrap();
        wait!(client.copy_within(&disk, Duration::from_secs(60))).unwrap();
        wait!(client.copy_fresh_within(&disk, Duration::from_secs(60))).unwrap();
        wait!(client.copy_fresh(&disk)).unwrap();
        daemon.ends();
    }

    fn a_list_is_gathered_from_its_parts() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("List vm*");
            line.begins_to_say(Reply::Listed(vec![entry("vm1"), entry("vm2")]));
            line.begins_to_say(Reply::Listed(vec![]));
            line.says(Reply::Listed(vec![entry("vm3")]));
            line.answers("GetInfo", Reply::Info(info()));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let entries = wait!(client.list(&Pattern::new("vm*").unwrap())).unwrap();

        assert_eq!(entries, ["vm1", "vm2", "vm3"].map(entry));
        assert_eq!(wait!(client.info()).unwrap().version, "1.2.3");
        daemon.ends();
    }

    fn an_answer_in_parts_that_was_not_asked_for_breaks_the_protocol() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Close disk");
            line.begins_to_say(Reply::Done);
            line.ignores("End");
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert!(matches!(error, Error::Protocol(_)), "{error:?}");
        daemon.ends();
    }

    fn descriptors_that_no_answer_names_break_the_connection() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Close disk");
            line.mumbles(b"{\"parameters\":{}}\0", &[file()]);
            line.ignores("End");
            stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        wait!(client.close(&names(["disk"]))).unwrap();
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_later_daemons_refusal_is_told_as_it_came() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Close disk");
            let refusal = br#"{"error":"org.fdstash.Stash.Frozen","parameters":{"until":5}}"#;
            line.mumbles(&[refusal, b"\0".as_slice()].concat(), &[]);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the daemon refused with an error that this version does not know: \
             org.fdstash.Stash.Frozen {\"until\":5}"
        );
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_watch_stands_before_it_is_there_and_tells_every_change() {
        let daemon = Stage::plays(|stage| {
            let _client = stage.accepts();
            let mut line = stage.accepts();
            line.ignores("Watch vm*");
            line.begins_to_say(Reply::Notice(Notice::Standing));
            line.begins_to_say(changed(Change::Given, "vm1"));
            line.begins_to_say(Reply::Notice(Notice::Lost(3)));
            line.says(changed(Change::Closed, "vm1"));
        });
        let client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut watch = wait!(client.watch(&Pattern::new("vm*").unwrap())).unwrap();

        let entry = || Box::new(entry("vm1"));
        for expected in [
            Some(Notice::Changed { change: Change::Given, entry: entry() }),
            Some(Notice::Lost(3)),
            Some(Notice::Changed { change: Change::Closed, entry: entry() }),
            None,
            None,
        ] {
            assert_eq!(next!(watch).unwrap(), expected);
        }
        daemon.ends();
    }
}
