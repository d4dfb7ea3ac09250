//! A Varlink client that is not ours, the crate zlink: it gives, takes and watches as it would with any
//! other service that passes descriptors.

use std::{
    collections::HashMap,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
};

use kit::{Daemon, file, identity, listed};
use serde::{Deserialize, Serialize};
use zlink::{Call, unix::Connection};

/// The interface, as far as it is needed here, as a program would write it down.
#[zlink::proxy("org.fdstash.Stash")]
trait Stash {
    async fn give(
        &mut self,
        entries: &[Gift],
        exclusive: Option<bool>,
        #[zlink(fds)] fds: Vec<OwnedFd>,
    ) -> zlink::Result<Result<Given, StashError>>;

    #[zlink(return_fds)]
    async fn take(
        &mut self,
        names: &[&str],
        copy: Option<bool>,
    ) -> zlink::Result<(Result<Handed, StashError>, Vec<OwnedFd>)>;

    #[zlink(return_fds)]
    async fn reopen(
        &mut self,
        entries: &[Reopening],
    ) -> zlink::Result<(Result<Handed, StashError>, Vec<OwnedFd>)>;

    async fn begin(&mut self) -> zlink::Result<Result<Nothing, StashError>>;

    async fn rollback(&mut self) -> zlink::Result<Result<Nothing, StashError>>;
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gift {
    name: String,
    file_descriptor: usize,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    labels: HashMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Reopening {
    name: String,
    sync: bool,
}

/// What `{}` is: a `()` would be no parameters at all.
#[derive(Debug, Deserialize)]
struct Nothing {}

#[derive(Debug, Deserialize)]
struct Given {
    replaced: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Handed {
    entries: Vec<HandedOne>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HandedOne {
    name: String,
    file_descriptor: usize,
}

#[derive(Debug, PartialEq, zlink::ReplyError)]
#[zlink(interface = "org.fdstash.Stash")]
enum StashError {
    NotFound { name: String },
    AlreadyExists { name: String },
}

fn gift(name: &str, at: usize) -> Gift {
    let labels = HashMap::from([("by".to_owned(), "zlink".to_owned())]);
    Gift { name: name.to_owned(), file_descriptor: at, labels }
}

fn copy(file: &File) -> OwnedFd {
    file.try_clone().expect("there is room for another").into()
}

async fn connect(daemon: &Daemon) -> Connection {
    zlink::unix::connect(daemon.socket()).await.expect("zlink connects")
}

#[tokio::test]
async fn zlink_gives_and_takes() {
    let daemon = Daemon::spawn();
    let [one, other] = ["one", "other"].map(|name| file(daemon.path(name), name));
    let mut stash = connect(&daemon).await;
    let copies = || vec![copy(&other), copy(&one)];
    let gifts = [gift("one", 1), gift("other", 0)];

    let given = stash.give(&gifts, None, copies()).await.unwrap().unwrap();
    let again = stash.give(&gifts, Some(true), copies()).await.unwrap().unwrap_err();
    let (handed, fds) = stash.take(&["other", "one"], None).await.unwrap();
    let (gone, none) = stash.take(&["one"], None).await.unwrap();

    assert_eq!(given.replaced, [""; 0]);
    assert_eq!(again, StashError::AlreadyExists { name: "one".into() });
    let handed = handed.unwrap().entries;
    let names: Vec<_> = handed.iter().map(|handed| handed.name.as_str()).collect();
    assert_eq!(names, ["other", "one"]);
    let came: Vec<_> = handed.iter().map(|handed| identity(&fds[handed.file_descriptor])).collect();
    assert_eq!(came, [identity(&other), identity(&one)]);
    assert_eq!(gone.unwrap_err(), StashError::NotFound { name: "one".into() });
    assert_eq!(none.len(), 0);
    assert_eq!(listed(&mut daemon.client()), [""; 0]);
}

#[tokio::test]
async fn zlink_reopens_and_its_transaction_is_undone() {
    let daemon = Daemon::spawn();
    let image = file(daemon.path("image"), "content");
    let mut stash = connect(&daemon).await;
    stash.give(&[gift("disk", 0)], None, vec![copy(&image)]).await.unwrap().unwrap();

    let wanted = [Reopening { name: "disk".into(), sync: true }];
    let (handed, mut fds) = stash.reopen(&wanted).await.unwrap();
    stash.begin().await.unwrap().unwrap();
    let (taken, copies) = stash.take(&["disk"], None).await.unwrap();
    stash.rollback().await.unwrap().unwrap();

    assert_eq!(handed.unwrap().entries.len(), 1);
    let reopened = File::from(fds.remove(0));
    assert_eq!(reopened.metadata().unwrap().ino(), image.metadata().unwrap().ino());
    let mut content = [0; 7];
    reopened.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"content");
    assert_eq!((taken.unwrap().entries.len(), copies.len()), (1, 1));
    assert_eq!(listed(&mut daemon.client()), ["disk"]);
}

#[derive(Debug, Serialize)]
#[serde(tag = "method", content = "parameters")]
enum Watching {
    #[serde(rename = "org.fdstash.Stash.Watch")]
    Watch { pattern: String },
}

#[derive(Debug, Deserialize)]
struct Notice {
    change: Option<String>,
}

#[tokio::test]
async fn zlink_watches() {
    let daemon = Daemon::spawn();
    let mut stash = connect(&daemon).await;
    let watch = Call::new(Watching::Watch { pattern: "w*".into() }).set_more(true);
    stash.send_call(&watch, vec![]).await.unwrap();
    assert_eq!(next(&mut stash).await, None, "it stands");

    daemon.client().give(&[kit::gift("w", kit::null())]).unwrap();
    daemon.client().close(&kit::names(["w"])).unwrap();

    assert_eq!(next(&mut stash).await.as_deref(), Some("given"));
    assert_eq!(next(&mut stash).await.as_deref(), Some("closed"));
}

/// Which change the next reply tells of.
async fn next(stash: &mut Connection) -> Option<String> {
    let (reply, _) = stash.receive_reply::<Notice, StashError>().await.expect("a reply");
    let reply = reply.expect("no refusal");
    assert_eq!(reply.continues(), Some(true));
    reply.into_parameters().expect("a notice").change
}
