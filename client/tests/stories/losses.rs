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
            for _ in 0..3 {
                stage.accepts().ignores("GetStatistics");
            }
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.statistics()).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        daemon.ends();
    }

    fn what_may_have_been_done_is_not_asked_again() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().ignores("Give disk");
            stage.accepts().ignores("Close disk");
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let given = wait!(client.give(&[Gift::new(name("disk"), file())])).unwrap_err();
        let closed = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert!(matches!(given, Error::ConnectionLost { may_be_done: true }), "{given:?}");
        assert!(matches!(closed, Error::ConnectionLost { may_be_done: true }), "{closed:?}");
        daemon.ends();
    }

    fn an_answer_that_breaks_off_is_a_lost_connection() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Close disk");
            line.mumbles(b"{\"parameters\":{", &[]);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.close(&names(["disk"]))).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
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

    fn a_take_that_may_be_final_is_told_and_nothing_of_it_is_dropped() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            line.ignores("Commit");
            drop(line);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take other", handed(&names(["other"])));
            line.answers("Commit", Reply::Done);
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.take(&names(["disk"]))).unwrap_err();
        let other = wait!(client.take(&names(["other"]))).unwrap();
        let unconfirmed = client.unconfirmed();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
        assert_eq!(other.len(), 1);
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
            let outside = Refusal::TransactionState { reason: "no transaction".into() };
            line.refuses("Rollback", outside);
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
            for _ in 0..3 {
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
        let advice = format!(
            "start one with `systemctl start fdstashd.socket`, or with `fdstashd --socket {socket}`"
        );
        assert_eq!(error.advice(), Some(advice));
    }
}
