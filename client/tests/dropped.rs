//! Futures of the asynchronous client that are dropped half-way, and what holds then.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod peer;

use fdstash::{Change, Client, Error, Gift, Notice, Pattern, Reopening};
use fdstash_proto::{Reply, reply};
use peer::*;
use tokio::sync::oneshot;

#[tokio::test]
async fn a_dropped_give_closes_its_connection_and_the_next_call_opens_another() {
    let (heard, was_heard) = oneshot::channel();
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.ignores("Give disk");
        heard.send(()).unwrap();
        line.ignores("End");
        stage.accepts().answers("GetStatistics", Reply::Statistics(figures(1)));
    });
    let mut client = Client::connect_to(&daemon.socket).await.unwrap();

    let gifts = [Gift::new(name("disk"), file())];
    tokio::select! {
        outcome = client.give(&gifts) => panic!("{outcome:?}"),
        outcome = was_heard => outcome.unwrap(),
    }

    client.statistics().await.unwrap();
    daemon.ends();
}

#[tokio::test]
async fn a_take_dropped_before_its_commit_leaves_nothing_here() {
    let (heard, was_heard) = oneshot::channel();
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.ignores("Take disk");
        heard.send(()).unwrap();
        line.ignores("End");
    });
    let mut client = Client::connect_to(&daemon.socket).await.unwrap();

    let disk = names(["disk"]);
    tokio::select! {
        outcome = client.take(&disk) => panic!("{outcome:?}"),
        outcome = was_heard => outcome.unwrap(),
    }

    assert!(client.unconfirmed().is_empty());
    daemon.ends();
}

#[tokio::test]
async fn a_take_dropped_at_its_commit_leaves_its_descriptors_with_the_client() {
    let image = file();
    let kept = image.try_clone().unwrap();
    let (heard, was_heard) = oneshot::channel();
    let daemon = Stage::plays(move |stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.answers("Take disk", handed_one(&name("disk"), &kept));
        line.ignores("Commit");
        heard.send(()).unwrap();
        line.ignores("End");
        stage.accepts().answers("Copy disk", handed(&names(["disk"])));
    });
    let mut client = Client::connect_to(&daemon.socket).await.unwrap();

    let disk = names(["disk"]);
    tokio::select! {
        outcome = client.take(&disk) => panic!("{outcome:?}"),
        outcome = was_heard => outcome.unwrap(),
    }
    let copies = client.copy(&names(["disk"])).await.unwrap();
    let unconfirmed = client.unconfirmed();

    assert_eq!(copies.len(), 1);
    assert_eq!(unconfirmed.len(), 1);
    assert_eq!(identity(&unconfirmed[0].fd), identity(&image));
    daemon.ends();
}

#[tokio::test]
async fn a_take_dropped_while_it_asks_for_its_commit_leaves_its_descriptors_with_the_client() {
    let (heard, was_heard) = oneshot::channel();
    let daemon = Stage::plays(move |stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.answers("Take disk", handed(&names(["disk"])));
        line.ignores("Commit");
        drop(line);
        let mut line = stage.accepts();
        line.ignores("Commit");
        heard.send(()).unwrap();
        line.ignores("End");
    });
    let mut client = Client::connect_to(&daemon.socket).await.unwrap();

    let disk = names(["disk"]);
    tokio::select! {
        outcome = client.take(&disk) => panic!("{outcome:?}"),
        outcome = was_heard => outcome.unwrap(),
    }

    assert_eq!(client.unconfirmed().len(), 1);
    daemon.ends();
}

#[tokio::test]
async fn a_call_dropped_in_a_transaction_rolls_it_back() {
    let (heard, was_heard) = oneshot::channel();
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.answers("Give a", given());
        line.ignores("Give b");
        heard.send(()).unwrap();
        line.ignores("End");
    });
    let mut client = Client::connect_to(&daemon.socket).await.unwrap();

    let mut transaction = client.transaction().await.unwrap();
    transaction.give(&[Gift::new(name("a"), file())]).await.unwrap();
    let gifts = [Gift::new(name("b"), file())];
    tokio::select! {
        outcome = transaction.give(&gifts) => panic!("{outcome:?}"),
        outcome = was_heard => outcome.unwrap(),
    }
    let commit = transaction.commit().await;

    assert!(matches!(commit, Err(Error::RolledBack)), "{commit:?}");
    daemon.ends();
}

#[tokio::test]
async fn a_dropped_wait_for_a_change_loses_none() {
    let (half_told, was_half_told) = oneshot::channel();
    let (dropped, was_dropped) = std::sync::mpsc::channel();
    let daemon = Stage::plays(move |stage| {
        let _client = stage.accepts();
        let mut line = stage.accepts();
        line.ignores("Watch *");
        line.begins_to_say(Reply::Notice(Notice::Standing));
        let frame = reply::write(Ok(changed(Change::Given, "a")), true);
        let (first, second) = frame.bytes.split_at(20);
        line.mumbles(first, &[]);
        half_told.send(()).unwrap();
        was_dropped.recv().unwrap();
        line.mumbles(second, &[]);
    });
    let client = Client::connect_to(&daemon.socket).await.unwrap();
    let mut watch = client.watch(&Pattern::all()).await.unwrap();

    tokio::select! {
        notice = watch.next() => panic!("{notice:?}"),
        outcome = was_half_told => outcome.unwrap(),
    }
    // Asked once more, so that the first half is surely read before the wait is dropped.
    tokio::select! {
        biased;
        notice = watch.next() => panic!("{notice:?}"),
        () = tokio::task::yield_now() => dropped.send(()).unwrap(),
    }

    let expected = Notice::Changed { change: Change::Given, entry: Box::new(entry("a")) };
    assert_eq!(watch.next().await.unwrap(), Some(expected));
    daemon.ends();
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_does_not_come_back_is_waited_for_no_longer_than_two_seconds() {
    let daemon = Stage::plays(|stage| drop(stage.accepts()));
    let socket = daemon.socket.clone();
    let mut client = Client::connect_to(&socket).await.unwrap();
    daemon.ends();
    let begin = tokio::time::Instant::now();

    let first = client.statistics().await.unwrap_err();
    let waited = begin.elapsed().as_millis();
    let second = client.statistics().await.unwrap_err();

    assert!(matches!(first, Error::NoDaemon { .. }), "{first:?}");
    assert!((1900..=2100).contains(&waited), "{waited} ms");
    assert!(matches!(second, Error::NoDaemon { .. }), "{second:?}");
    assert!(begin.elapsed().as_millis() <= 2100, "who is known to be away is not waited for again");
}

#[test]
fn every_future_can_be_sent_to_another_thread() {
    fn checked<T: Send>(value: T) -> T {
        value
    }

    async fn all(client: &mut Client, image: &std::fs::File) -> Result<(), Error> {
        let disk = names(["disk"]);
        let gifts = [Gift::new(name("disk"), image)];
        checked(client.give(&gifts)).await?;
        checked(client.take(&disk)).await?;
        checked(client.copy(&disk)).await?;
        checked(client.reopen(&[Reopening::new(name("disk"))])).await?;
        checked(client.list(&Pattern::all())).await?;
        let mut transaction = checked(client.transaction()).await?;
        checked(transaction.give(&gifts)).await?;
        checked(transaction.commit()).await?;
        checked(checked(client.watch(&Pattern::all())).await?.next()).await?;
        Ok(())
    }

    fn sent(client: &mut Client, image: &std::fs::File) {
        drop(checked(all(client, image)));
    }
    let _: fn(&mut Client, &std::fs::File) = sent;
    let _: fn(Client) -> Client = checked;
}
