// Stories of connections that are lost: what is asked again, and what is told.

story! {
    fn a_restart_between_two_calls_goes_unnoticed() {
        let (restarted, has_restarted) = std::sync::mpsc::channel();
        let daemon = Stage::plays(move |stage| {
            stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
            let stage = stage.restarts();
            restarted.send(()).unwrap();
            stage.accepts().answers("Give disk", given());
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        wait!(client.statistics()).unwrap();
        has_restarted.recv().unwrap();
        wait!(client.give(&[Gift::new(name("disk"), file())])).unwrap();
        daemon.ends();
    }

    fn what_only_reads_is_asked_again() {
        let daemon = Stage::plays(|stage| {
            for (words, reply) in [
                ("GetStatistics", Reply::Statistics(figures(1))),
                ("GetInfo", Reply::Info(info())),
                ("List *", Reply::Listed(vec![entry("a")])),
                ("Copy a", handed(&names(["a"]))),
                ("CopyFresh a", handed(&names(["a"]))),
            ] {
                stage.accepts().ignores(words);
                stage.accepts().answers(words, reply);
            }
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        wait!(client.statistics()).unwrap();
        wait!(client.info()).unwrap();
        assert_eq!(wait!(client.list(&Pattern::all())).unwrap(), [entry("a")]);
        assert_eq!(wait!(client.copy(&names(["a"]))).unwrap().len(), 1);
        assert_eq!(wait!(client.copy_fresh(&names(["a"]))).unwrap().len(), 1);
        daemon.ends();
    }

    fn what_ends_the_daemon_each_time_is_not_asked_for_ever() {
        let daemon = Stage::plays(|stage| {
            for _ in 0..17 {
                stage.accepts().ignores("GetStatistics");
            }
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.statistics()).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        daemon.ends();
    }

    fn what_may_have_been_done_is_sent_again_with_its_ticket() {
        let daemon = Stage::plays(|stage| {
            let gives = stage.accepts().ignores_ticket("Give disk");
            let mut line = stage.accepts();
            line.answers_ticket("Give disk", &gives, Reply::Given { replaced: names(["disk"]) });
            let closes = line.ignores_ticket("Close disk");
            assert_ne!(closes, gives);
            drop(line);
            assert_eq!(stage.accepts().ignores_ticket("Close disk"), closes);
            stage.accepts().answers_ticket("Close disk", &closes, Reply::Done);
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let replaced = wait!(client.give(&[Gift::new(name("disk"), file())])).unwrap();
        wait!(client.close(&names(["disk"]))).unwrap();

        assert_eq!(replaced, names(["disk"]));
        daemon.ends();
    }

    fn what_is_lost_each_time_is_told_that_it_may_be_done() {
        let daemon = Stage::plays(|stage| {
            for _ in 0..17 {
                stage.accepts().ignores("Give disk");
            }
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.give(&[Gift::new(name("disk"), file())])).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
        daemon.ends();
    }

    fn where_the_daemon_does_not_come_back_what_was_asked_may_be_done() {
        let daemon = Stage::plays(|stage| stage.accepts().ignores("Close disk"));
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
        daemon.ends();
    }

    fn who_is_turned_away_does_not_know_what_became_of_the_call_before() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().ignores("Close disk");
            let full = Refusal::LimitExceeded { limit: "connections".into(), value: 1 };
            stage.accepts().refuses("Close disk", full);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
        daemon.ends();
    }

    fn what_is_refused_when_it_is_sent_again_was_not_done_before() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().ignores("Close disk");
            stage.accepts().refuses("Close disk", not_found("disk"));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert_eq!(error.refusal(), Some(&not_found("disk")));
        daemon.ends();
    }

    fn an_answer_that_breaks_off_is_a_lost_connection() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Close disk");
            line.mumbles(b"{\"parameters\":{", &[]);
            drop(line);
            stage.accepts().answers("Close disk", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        wait!(client.close(&names(["disk"]))).unwrap();
        daemon.ends();
    }

    fn a_take_that_was_not_final_is_made_again() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            stage.accepts().ignores("Begin");
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.ignores("Take disk");
            drop(line);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let handed = wait!(client.take(&names(["disk"]))).unwrap();

        assert_eq!(identity(&handed[0].fd), identity(&image));
        daemon.ends();
    }

    fn a_take_whose_commit_had_happened_is_done() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            let ticket = line.ignores_ticket("Commit");
            drop(line);
            assert_eq!(stage.accepts().ignores_ticket("Commit"), ticket);
            stage.accepts().answers_ticket("Commit", &ticket, Reply::Done);
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let handed = wait!(client.take(&names(["disk"]))).unwrap();

        assert_eq!(identity(&handed[0].fd), identity(&image));
        assert!(client.unconfirmed().is_empty());
        daemon.ends();
    }

    fn a_take_or_reopen_whose_commit_never_was_is_made_again() {
        for verb in ["Take", "Reopen"] {
            let again = file();
            let kept = again.try_clone().unwrap();
            let daemon = Stage::plays(move |stage| {
                let mut line = stage.accepts();
                line.answers("Begin", Reply::Done);
                line.answers(&format!("{verb} disk"), handed(&names(["disk"])));
                let ticket = line.ignores_ticket("Commit");
                drop(line);
                let mut line = stage.accepts();
                line.refuses("Commit", outside());
                line.answers("Begin", Reply::Done);
                line.answers(&format!("{verb} disk"), handed_one(&name("disk"), &kept));
                line.answers_ticket("Commit", &ticket, Reply::Done);
            });
            let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

            let handed = if verb == "Take" {
                wait!(client.take(&names(["disk"]))).unwrap()
            } else {
                wait!(client.reopen(&[Reopening::new(name("disk"))])).unwrap()
            };

            assert_eq!(identity(&handed[0].fd), identity(&again));
            assert!(client.unconfirmed().is_empty());
            daemon.ends();
        }
    }

    fn a_give_in_several_parts_is_given_once() {
        let daemon = Stage::plays(|stage| {
            let all = many_names(254);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers(&call("Give", &all[..253]), given());
            assert_eq!(line.ticket, None);
            line.answers(&call("Give", &all[253..]), Reply::Given { replaced: names(["r"]) });
            line.ignores("Commit");
            drop(line);
            stage.accepts().answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let image = file();
        let gifts: Vec<_> = many_names(254).into_iter().map(|n| Gift::new(n, &image)).collect();

        assert_eq!(wait!(client.give(&gifts)).unwrap(), names(["r"]));
        daemon.ends();
    }

    fn what_a_daemon_without_memory_had_handed_out_is_not_dropped() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            line.ignores("Commit");
            drop(line);
            let mut line = stage.accepts();
            line.refuses("Commit", outside());
            line.answers("Begin", Reply::Done);
            line.refuses("Take disk", not_found("disk"));
            line.answers("Rollback", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.take(&names(["disk"]))).unwrap_err();
        let unconfirmed = client.unconfirmed();

        assert_eq!(error.refusal(), Some(&not_found("disk")));
        assert_eq!(unconfirmed.len(), 1);
        assert_eq!(identity(&unconfirmed[0].fd), identity(&image));
        daemon.ends();
    }

    fn a_take_that_may_be_final_is_told_and_nothing_of_it_is_dropped() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            line.ignores("Commit");
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.take(&names(["disk"]))).unwrap_err();
        let other = wait!(client.take(&names(["other"]))).unwrap_err();
        let unconfirmed = client.unconfirmed();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
        assert!(matches!(other, Error::NoDaemon { .. }), "{other:?}");
        assert_eq!(unconfirmed.len(), 1);
        assert_eq!(identity(&unconfirmed[0].fd), identity(&image));
        assert!(client.unconfirmed().is_empty());
        daemon.ends();
    }

    fn a_refused_commit_is_rolled_back_and_not_in_doubt() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed(&names(["disk"])));
            line.refuses("Commit", Refusal::NotDurable { reason: "full".into() });
            line.refuses("Rollback", outside());
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.take(&names(["disk"]))).unwrap_err();

        assert!(matches!(error, Error::Refused(Refusal::NotDurable { .. })), "{error:?}");
        assert!(client.unconfirmed().is_empty());
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn what_a_daemon_says_before_it_hangs_up_is_heard() {
        let daemon = Stage::plays(|stage| {
            let line = stage.accepts();
            // The rest of the call then finds nobody: what it says has to be read all the same.
            line.refuses_half_heard(Refusal::PermissionDenied);
            stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let mut gift = Gift::new(name("disk"), file());
        gift.labels.insert("note".into(), "x".repeat(1_000_000));

        let error = wait!(client.give(&[gift])).unwrap_err();

        assert_eq!(error.refusal(), Some(&Refusal::PermissionDenied));
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_call_cut_short_was_not_carried_out_and_is_made_again() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().hangs_up_half_heard();
            stage.accepts().answers("Give disk", given());
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let mut gift = Gift::new(name("disk"), file());
        gift.labels.insert("note".into(), "x".repeat(1_000_000));

        wait!(client.give(&[gift])).unwrap();
        daemon.ends();
    }

    fn a_watch_begins_anew_and_says_so() {
        let daemon = Stage::plays(|stage| {
            let _client = stage.accepts();
            let mut line = stage.accepts();
            line.ignores("Watch *");
            line.begins_to_say(Reply::Notice(Notice::Standing));
            line.begins_to_say(changed(Change::Given, "a"));
            drop(line);
            stage.accepts().ignores("Watch *");
            let mut line = stage.accepts();
            line.ignores("Watch *");
            line.begins_to_say(Reply::Notice(Notice::Standing));
            line.begins_to_say(changed(Change::Taken, "a"));
            drop(line);
            stage.accepts().refuses("Watch *", Refusal::PermissionDenied);
        });
        let client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let mut watch = wait!(client.watch(&Pattern::all())).unwrap();

        let entry = || Box::new(entry("a"));
        for expected in [
            Notice::Changed { change: Change::Given, entry: entry() },
            Notice::Standing,
            Notice::Changed { change: Change::Taken, entry: entry() },
        ] {
            assert_eq!(next!(watch).unwrap(), Some(expected));
        }
        let error = next!(watch).unwrap_err();
        assert_eq!(error.refusal(), Some(&Refusal::PermissionDenied));
        assert_eq!(next!(watch).unwrap(), None);
        daemon.ends();
    }

    fn a_watch_that_ends_the_daemon_each_time_is_not_begun_for_ever() {
        let daemon = Stage::plays(|stage| {
            let _client = stage.accepts();
            for _ in 0..17 {
                stage.accepts().ignores("Watch *");
            }
            stage.is_left_alone();
        });
        let client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.watch(&Pattern::all())).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        daemon.ends();
    }

    fn where_nobody_listens_the_socket_and_a_way_out_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("stash");

        let error = wait!(Client::connect_to(&socket)).unwrap_err();

        let socket = socket.display();
        assert_eq!(error.to_string(), format!("no daemon can be reached at {socket}"));
        let advice = format!("start one with `fdstashd --socket {socket}`");
        assert_eq!(error.advice(), Some(advice));
    }
}
