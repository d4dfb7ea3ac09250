// Stories of calls that are sent before the first of them is answered, and of takes in one round trip.

use fdstash::{Outcome, Pipeline};

/// The outcomes in words.
fn told(outcomes: Vec<Result<Outcome, Error>>) -> Vec<String> {
    let word = |outcome| match outcome {
        Ok(Outcome::Given { replaced }) => call("given", &replaced),
        Ok(Outcome::Handed(handed)) => {
            let names: Vec<_> = handed.into_iter().map(|handed| handed.name).collect();
            call("handed", &names)
        }
        Ok(Outcome::Closed) => "closed".into(),
        Err(Error::Refused(Refusal::NotFound { name })) => format!("no {name}"),
        Err(Error::Refused(Refusal::LimitExceeded { limit, .. })) => limit,
        Err(Error::ConnectionLost { may_be_done: true }) => "maybe".into(),
        Err(Error::ConnectionLost { may_be_done: false }) => "lost".into(),
        Err(Error::NoDaemon { .. }) => "no daemon".into(),
        Err(error) => panic!("{error:?}"),
    };
    outcomes.into_iter().map(word).collect()
}

story! {
    fn calls_of_a_pipeline_are_sent_before_the_first_is_answered_and_each_has_its_outcome() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            let gives = line.ignores_ticket("Give a b");
            assert_eq!(line.given.iter().map(|gift| identity(&gift.fd)).next(), Some(identity(&kept)));
            assert_ne!(line.ignores_ticket("GiveNew c"), gives);
            line.ignores("Take d e");
            line.ignores("Copy f");
            line.ignores("CopyFresh g");
            assert_ne!(line.ignores_ticket("Close h"), gives);
            line.says(Reply::Given { replaced: names(["b"]) });
            line.says(given());
            // In another order than they were asked for.
            line.says(handed(&names(["e", "d"])));
            line.says_no(not_found("f"));
            line.says(handed(&names(["g"])));
            line.says(Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let gifts = ["a", "b"].map(|text| Gift::new(name(text), &image));
        let new = [Gift::new(name("c"), &image)];
        let mut pipeline = Pipeline::new();
        pipeline.give(&gifts).give_new(&new).take_at_once(&names(["d", "e"]));
        pipeline.copy(&names(["f"])).copy_fresh(&names(["g"])).close(&names(["h"]));

        let outcomes = wait!(client.run(pipeline));

        let expected = ["given b", "given", "handed d e", "no f", "handed g", "closed"];
        assert_eq!(told(outcomes), expected);
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn no_more_descriptors_are_on_their_way_than_one_message_has() {
        let daemon = Stage::plays(|stage| {
            let all = many_names(253);
            let mut line = stage.accepts();
            line.answers(&call("Give", &all[..200]), given());
            line.answers(&call("Give", &all[..53]), given());
            // What more was sent would have come with the last of these.
            assert!(line.has_heard_all());
            line.answers(&call("Give", &all), given());
            line.answers(&call("Take", &all[..200]), handed(&all[..200]));
            assert!(line.has_heard_all());
            line.answers(&call("Take", &all[..54]), handed(&all[..54]));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let image = file();
        let all = many_names(254);
        let gifts: Vec<_> = all.iter().map(|name| Gift::new(name.clone(), &image)).collect();
        let mut pipeline = Pipeline::new();
        pipeline.give(&gifts[..200]).give(&gifts[..53]).give(&gifts[..253]).give(&gifts);
        pipeline.take_at_once(&all[..200]).take_at_once(&all[..54]).copy(&all);

        let outcomes = told(wait!(client.run(pipeline)));

        assert_eq!(outcomes[..4], ["given", "given", "given", "descriptorsPerMessage"]);
        assert_eq!(outcomes[4], call("handed", &all[..200]));
        assert_eq!(outcomes[5], call("handed", &all[..54]));
        assert_eq!(outcomes[6..], ["descriptorsPerMessage"]);
        daemon.ends();
    }

    fn what_was_not_answered_is_asked_again_from_where_the_daemon_had_come() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Give a");
            let second = line.ignores_ticket("Give b");
            line.ignores("Take c");
            let third = line.ignores_ticket("Give d");
            line.says(given());
            drop(line);
            let mut line = stage.accepts();
            assert_eq!(line.ignores_ticket("Commit"), third);
            line.says_no(outside());
            assert_eq!(line.ignores_ticket("Commit"), second);
            line.says(Reply::Done);
            assert_eq!(line.ignores_ticket("Give b"), second);
            line.ignores("Take c");
            assert_eq!(line.ignores_ticket("Give d"), third);
            line.says(Reply::Given { replaced: names(["b"]) });
            line.says(handed(&names(["c"])));
            line.says(given());
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let image = file();
        let [a, b, d] = ["a", "b", "d"].map(|text| [Gift::new(name(text), &image)]);
        let mut pipeline = Pipeline::new();
        pipeline.give(&a).give(&b).take_at_once(&names(["c"])).give(&d);

        let outcomes = wait!(client.run(pipeline));

        assert_eq!(told(outcomes), ["given", "given b", "handed c", "given"]);
        daemon.ends();
    }

    fn what_came_before_a_call_that_was_done_is_not_done_twice_and_told_to_be_in_doubt() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.ignores("Give a");
            line.ignores("Copy b");
            let last = line.ignores_ticket("Close c");
            drop(line);
            let mut line = stage.accepts();
            assert_eq!(line.ignores_ticket("Commit"), last);
            line.says(Reply::Done);
            line.answers_ticket("Close c", &last, Reply::Done);
            line.answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let gifts = [Gift::new(name("a"), file())];
        let mut pipeline = Pipeline::new();
        pipeline.give(&gifts).copy(&names(["b"])).close(&names(["c"]));

        let outcomes = wait!(client.run(pipeline));

        assert_eq!(told(outcomes), ["maybe", "lost", "closed"]);
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_pipeline_whose_daemon_does_not_come_back_tells_what_may_be_done() {
        let daemon = Stage::plays(|stage| {
            let mut line = stage.accepts();
            line.answers("Give a", given());
            line.ignores("Take b");
            line.ignores("Close c");
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let gifts = [Gift::new(name("a"), file())];
        let mut pipeline = Pipeline::new();
        pipeline.give(&gifts).take_at_once(&names(["b"])).close(&names(["c"]));

        let outcomes = wait!(client.run(pipeline));

        assert_eq!(told(outcomes), ["given", "lost", "maybe"]);
        daemon.ends();
    }

    fn a_pipeline_that_a_restart_came_before_is_nobodys_doubt() {
        let (restarted, has_restarted) = std::sync::mpsc::channel();
        let daemon = Stage::plays(move |stage| {
            stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
            let stage = stage.restarts();
            restarted.send(()).unwrap();
            let mut line = stage.accepts();
            line.answers("Give a", given());
            line.answers("Close b", Reply::Done);
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let gifts = [Gift::new(name("a"), file())];
        let mut pipeline = Pipeline::new();
        pipeline.give(&gifts).close(&names(["b"]));

        wait!(client.statistics()).unwrap();
        has_restarted.recv().unwrap();
        let outcomes = wait!(client.run(pipeline));

        assert_eq!(told(outcomes), ["given", "closed"]);
        daemon.ends();
    }

    fn an_empty_pipeline_asks_nothing() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        assert!(wait!(client.run(Pipeline::new())).is_empty());
        wait!(client.statistics()).unwrap();
        daemon.ends();
    }

    fn a_take_at_once_is_one_call() {
        let image = file();
        let kept = image.try_clone().unwrap();
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Take disk", handed_one(&name("disk"), &kept));
            line.refuses("Take disk", not_found("disk"));
            line.answers("Take disk patiently", handed(&names(["disk"])));
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();
        let disk = names(["disk"]);
        let soon = Duration::from_millis(1);

        let handed = wait!(client.take_at_once(&disk)).unwrap();
        let error = wait!(client.take_at_once(&disk)).unwrap_err();
        let later = wait!(client.take_at_once_within(&disk, soon)).unwrap();

        assert_eq!(identity(&handed[0].fd), identity(&image));
        assert_eq!(error.refusal(), Some(&not_found("disk")));
        assert_eq!(later.len(), 1);
        daemon.ends();
    }

    fn a_take_at_once_that_was_not_answered_was_not_done_and_is_made_again() {
        let daemon = Stage::plays(|stage| {
            stage.accepts().ignores("Take disk");
            stage.accepts().answers("Take disk", handed(&names(["disk"])));
            for _ in 0..16 {
                stage.accepts().ignores("Take disk");
            }
            stage.is_left_alone();
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        let handed = wait!(client.take_at_once(&names(["disk"]))).unwrap();
        let error = wait!(client.take_at_once(&names(["disk"]))).unwrap_err();

        assert_eq!(handed.len(), 1);
        assert!(matches!(error, Error::ConnectionLost { may_be_done: false }), "{error:?}");
        daemon.ends();
    }

    fn a_take_at_once_of_more_than_a_message_carries_is_final_when_all_has_arrived() {
        let daemon = Stage::plays(|stage| {
            let all = many_names(254);
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers(&call("Take", &all[..253]), handed(&all[..253]));
            line.answers(&call("Take", &all[253..]), handed(&all[253..]));
            line.answers("Commit", Reply::Done);
        });
        let mut client = wait!(Client::connect_to(&daemon.socket)).unwrap();

        assert_eq!(wait!(client.take_at_once(&many_names(254))).unwrap().len(), 254);
        daemon.ends();
    }
}
