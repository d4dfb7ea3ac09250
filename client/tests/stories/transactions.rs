// Stories of the caller's own transactions.

story! {
    fn what_is_done_in_a_transaction_is_plain_and_final_at_its_commit() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take a", handed(&names(["a"])));
            line.answers("Give b", given());
            line.answers("Close c", Reply::Done);
            line.answers("Reopen d", handed(&names(["d"])));
            line.answers("Copy d", handed(&names(["d"])));
            line.answers("Commit", Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut transaction = wait!(client.transaction()).unwrap();
        wait!(transaction.take(&names(["a"]))).unwrap();
        wait!(transaction.give(&[Gift::new(name("b"), file())])).unwrap();
        wait!(transaction.close(&names(["c"]))).unwrap();
        wait!(transaction.reopen(&[Reopening::new(name("d"))])).unwrap();
        wait!(transaction.copy(&names(["d"]))).unwrap();
        wait!(transaction.commit()).unwrap();

        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_dropped_transaction_is_rolled_back_before_anything_else() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Give a", given());
            line.answers("Rollback", Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut transaction = wait!(client.transaction()).unwrap();
        wait!(transaction.give(&[Gift::new(name("a"), file())])).unwrap();
        drop(transaction);

        assert_eq!(wait!(client.statistics()).unwrap().given, 1);
        daemon.ends();
    }

    fn a_leaked_transaction_is_not_mixed_with_what_comes_after_it() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.ignores("End");
            stage.accepts().answers("Give a", given());
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        std::mem::forget(wait!(client.transaction()).unwrap());
        wait!(client.give(&[Gift::new(name("a"), file())])).unwrap();
        daemon.ends();
    }

    fn a_transaction_can_go_on_after_a_refusal() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.refuses("Take a", not_found("a"));
            line.answers("Take b", handed(&names(["b"])));
            line.answers("Rollback", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut transaction = wait!(client.transaction()).unwrap();
        let refused = wait!(transaction.take(&names(["a"]))).unwrap_err();
        wait!(transaction.take(&names(["b"]))).unwrap();
        wait!(transaction.rollback());

        assert_eq!(refused.refusal(), Some(&not_found("a")));
        daemon.ends();
    }

    fn nothing_in_a_transaction_is_asked_again() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.ignores("Copy a");
            drop(line);
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut transaction = wait!(client.transaction()).unwrap();
        let lost = wait!(transaction.copy(&names(["a"]))).unwrap_err();
        let after = wait!(transaction.give(&[Gift::new(name("b"), file())])).unwrap_err();
        let commit = wait!(transaction.commit()).unwrap_err();

        assert!(matches!(lost, Error::ConnectionLost { may_be_done: false }), "{lost:?}");
        assert!(matches!(after, Error::RolledBack), "{after:?}");
        assert!(matches!(commit, Error::RolledBack), "{commit:?}");
        daemon.ends();
    }

    fn a_lost_commit_is_asked_for_by_its_ticket() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            let ticket = line.ignores_ticket("Commit");
            drop(line);
            let mut line = stage.accepts();
            line.answers_ticket("Commit", &ticket, Reply::Done);
            line.answers("Begin", Reply::Done);
            assert_ne!(line.ignores_ticket("Commit"), ticket);
            drop(line);
            stage.accepts().refuses("Commit", outside());
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let happened = wait!(client.transaction()).unwrap();
        wait!(happened.commit()).unwrap();
        let never_was = wait!(client.transaction()).unwrap();
        let error = wait!(never_was.commit()).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: false }), "{error:?}");
        daemon.ends();
    }

    fn a_lost_commit_may_be_done_where_the_daemon_does_not_come_back() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.ignores("Commit");
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let transaction = wait!(client.transaction()).unwrap();
        let error = wait!(transaction.commit()).unwrap_err();

        assert!(matches!(error, Error::ConnectionLost { may_be_done: true }), "{error:?}");
        daemon.ends();
    }

    fn a_refused_commit_is_not_asked_for_again() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.refuses("Commit", Refusal::NotDurable { reason: "full".into() });
            line.refuses("Rollback", outside());
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let transaction = wait!(client.transaction()).unwrap();
        let error = wait!(transaction.commit()).unwrap_err();

        assert!(matches!(error, Error::Refused(Refusal::NotDurable { .. })), "{error:?}");
        daemon.ends();
    }

    fn a_transaction_is_begun_on_a_new_connection_where_the_old_one_has_ended() {
        let daemon = Stage::plays(|stage| {
            drop(stage.accepts());
            stage.accepts().ignores("Begin");
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let transaction = wait!(client.transaction()).unwrap();
        wait!(transaction.commit()).unwrap();
        daemon.ends();
    }

    fn a_call_in_a_transaction_that_fails_in_a_later_part_ends_it() {
        let daemon = Stage::plays(|stage| {
            let all = many_names(254);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers(&call("Take", &all[..253]), handed(&all[..253]));
            line.refuses(&call("Take", &all[253..]), not_found("n0253"));
            line.answers("Rollback", Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut transaction = wait!(client.transaction()).unwrap();
        let refused = wait!(transaction.take(&many_names(254))).unwrap_err();
        let commit = wait!(transaction.commit()).unwrap_err();

        assert_eq!(refused.refusal(), Some(&not_found("n0253")));
        assert!(matches!(commit, Error::RolledBack), "{commit:?}");
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_transaction_that_is_lost_in_its_middle_is_done_anew() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take a", handed(&names(["a"])));
            line.ignores("Give b");
            drop(line);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take a", handed(&names(["a"])));
            line.answers("Give b", given());
            let ticket = line.ignores_ticket("Commit");
            drop(line);
            let mut line = stage.accepts();
            line.answers_ticket("Commit", &ticket, Reply::Done);
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let mut times = 0;
        let taken = wait!(client.transact(act!(|transaction| {
            times += 1;
            let taken = wait!(transaction.take(&names(["a"])))?;
            wait!(transaction.give(&[Gift::new(name("b"), file())]))?;
            Ok(taken)
        })));

        assert_eq!((taken.unwrap().len(), times), (1, 2));
        daemon.ends();
    }

    fn a_transaction_that_fails_is_rolled_back_and_not_done_anew() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.refuses("Take a", Refusal::NotFound { name: "a".into() });
            line.answers("Rollback", Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let error = wait!(client.transact(act!(|transaction| {
            wait!(transaction.take(&names(["a"])))
        })));

        assert!(matches!(error, Err(Error::Refused(Refusal::NotFound { .. }))), "{error:?}");
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }
}
