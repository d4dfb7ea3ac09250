//! What a client gets: [`Reply`] or [`Refusal`], and the step from one to a message and back.
//!
//! Both directions stand in this one file, since each wire type serves both.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    Access, Change, Entry, Explanation, Flags, INTERFACE_NAME, Keeper, Kind, Labels, Name, Peer,
    SERVICE_NAME, Share,
    call::{Object, write_wire},
    codec::{Frame, Hangup, Supply},
    plain,
};

/// What a call that was carried out answers; `F` is a descriptor that goes beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<F> {
    /// To Close, Begin, Commit and Rollback.
    Done,
    /// To Give.
    Given {
        /// The names whose old descriptors made room.
        replaced: Vec<Name>,
    },
    /// To Take and Reopen.
    Handed(Vec<Handed<F>>),
    /// To List.
    Listed(Vec<Entry>),
    /// To Watch, once for every change.
    Notice(Notice),
    /// To GetStatistics.
    Statistics(Statistics),
    /// To ExplainPolicy.
    Explained(Explanation),
    /// To GetInfo.
    Info(Info),
    /// To GetInterfaceDescription.
    Description(String),
}

/// One descriptor handed out. Owns `fd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed<F> {
    /// Under which name it is, or was, kept.
    pub name: Name,
    /// The descriptor.
    pub fd: F,
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The watch stands: every change from here on is told.
    Standing,
    /// An entry changed.
    Changed {
        /// In which way.
        change: Change,
        /// What it is now, or was before it went.
        entry: Box<Entry>,
    },
    /// The watcher was too slow for so many changes, and lists anew. Some may be of other names: how many
    /// it would have been told of, nobody has looked.
    Lost(u64),
}

/// The figures of GetStatistics. The counts are of entries, since the stash began, and add up:
/// `entries` is `given` less `taken`, `closed` and `expired`. After a crash or an upgrade they begin anew,
/// and what has come back counts as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// How many are kept.
    pub entries: u64,
    /// How many may be.
    pub max_entries: u64,
    /// How many connections are open.
    pub connections: u64,
    /// How many transactions are open.
    pub transactions: u64,
    /// What keeps the descriptors across a crash.
    pub keeper: Keeper,
    /// How often the daemon has come back to what it kept.
    pub restores: u64,
    /// How many were given.
    pub given: u64,
    /// How many were taken.
    pub taken: u64,
    /// How many copies were handed out.
    pub copied: u64,
    /// How many were closed: by a call, by a replacement, with their connection, or hung up.
    pub closed: u64,
    /// How many were opened anew.
    pub reopened: u64,
    /// How many expired.
    pub expired: u64,
    /// How many calls were refused.
    pub refused: u64,
    /// What the service manager's descriptor store has of the entries, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
}

/// What the service manager's descriptor store has of the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Bundles of entries that it has been given to store.
    pub bundles: u64,
    /// How often it was given one.
    pub puts: u64,
    /// Entries that are in the bundles.
    pub entries: u64,
    /// Changes that are not in the bundles yet.
    pub waiting: u64,
    /// For how many microseconds the oldest of them has not been.
    #[serde(rename = "behindUSec")]
    pub behind_usec: u64,
}

impl Statistics {
    /// The figures as the interface writes them, as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_line(self)
    }
}

/// Who made the service, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Who made it.
    pub vendor: String,
    /// What it is.
    pub product: String,
    /// Which version of that.
    pub version: String,
    /// Where to read more.
    pub url: String,
    /// The interfaces it has.
    pub interfaces: Vec<String>,
}

impl Info {
    /// What the daemon of a version says of itself.
    #[must_use]
    pub fn of_fdstash(version: &str) -> Self {
        Self {
            vendor: "fdstash".into(),
            product: "fdstashd".into(),
            version: version.into(),
            url: "https://crates.io/crates/fdstash".into(),
            interfaces: vec![SERVICE_NAME.into(), INTERFACE_NAME.into()],
        }
    }
}

/// Why a call was not carried out. The stash is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such entry, or none that the peer may know of.
    #[error("there is no entry {name:?}")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// An exclusive Give of a name that is taken.
    #[error("there is an entry {name:?} already")]
    AlreadyExists {
        /// The name.
        name: String,
    },
    /// Another connection's transaction, or unfinished call, holds it.
    #[error("entry {name:?} is held by a transaction of {held_by}")]
    Busy {
        /// The name.
        name: String,
        /// Who holds it.
        held_by: Peer,
    },
    /// Begin within a transaction; Commit or Rollback outside one.
    #[error("{reason}")]
    TransactionState {
        /// Which of them.
        reason: String,
    },
    /// A text that cannot be a name, or a name twice in one call.
    #[error("{name:?} cannot be used as a name here: {reason}")]
    InvalidName {
        /// The text.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The peer may not do this to the entry.
    #[error("not allowed to {verb} entry {name:?}")]
    AccessDenied {
        /// The name.
        name: String,
        /// What it may not do.
        verb: String,
    },
    /// The kernel would not open the file so.
    #[error("entry {name:?} could not be opened anew: {message} ({errno_name})")]
    ReopenFailed {
        /// The name.
        name: String,
        /// The errno's number.
        errno: i32,
        /// The errno's name.
        errno_name: String,
        /// What it means here.
        message: String,
    },
    /// More than the daemon has room for, or than a message carries.
    #[error("limit exceeded: {limit} is {value}")]
    LimitExceeded {
        /// Which limit.
        limit: String,
        /// What it stands at.
        value: i64,
    },
    /// The message named more descriptors than came with it; the connection closes.
    #[error("the message named {expected} descriptors, but {received} came with it")]
    FileDescriptorMissing {
        /// How many it named.
        expected: i64,
        /// How many there were.
        received: i64,
    },
    /// The journal could not be written; nothing was stored.
    #[error("nothing was stored, since it could not be made durable: {reason}")]
    NotDurable {
        /// Why not.
        reason: String,
    },
    /// The service has no such interface.
    #[error("there is no interface {interface:?}")]
    InterfaceNotFound {
        /// The interface asked for.
        interface: String,
    },
    /// The interface has no such method.
    #[error("there is no method {method:?}")]
    MethodNotFound {
        /// The method called, with its interface.
        method: String,
    },
    /// The method is there, but not in the way it was called.
    #[error("method {method:?} cannot be called so")]
    MethodNotImplemented {
        /// The method called, with its interface.
        method: String,
    },
    /// A parameter is missing, unknown or not what it must be.
    #[error("invalid parameter {parameter:?}")]
    InvalidParameter {
        /// Which one, with the way to it.
        parameter: String,
    },
    /// The client may not use the service.
    #[error("permission denied")]
    PermissionDenied,
    /// The method must be called with `more`.
    #[error("the method must be called with more")]
    ExpectedMore,
}

/// What the reader of a reply waits for: the call decides what the reply has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// [`Reply::Done`].
    Done,
    /// [`Reply::Given`].
    Given,
    /// [`Reply::Handed`].
    Handed,
    /// [`Reply::Listed`].
    Listed,
    /// [`Reply::Notice`].
    Notice,
    /// [`Reply::Statistics`].
    Statistics,
    /// [`Reply::Explained`].
    Explained,
    /// [`Reply::Info`].
    Info,
    /// [`Reply::Description`].
    Description,
}

/// One message of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<F> {
    /// What it says.
    pub outcome: Result<Reply<F>, Refused>,
    /// Whether more replies to the same call follow.
    pub continues: bool,
}

/// An error reply: one of the interface's, or one that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// One of the interface's.
    Known(Refusal),
    /// A later version's.
    Unknown {
        /// Its full name.
        error: String,
        /// What came with it, as JSON.
        parameters: String,
    },
}

/// How many bytes the shortest answers have at most, and many others.
const SHORT: usize = 128;

/// Puts an answer into a message; its descriptors go beside it, in the order of its entries.
pub fn write<F>(outcome: Result<Reply<F>, Refusal>, continues: bool) -> Frame<F> {
    let mut bytes = Vec::with_capacity(SHORT);
    let mut fds = Vec::new();
    match outcome {
        Ok(reply) => {
            bytes.extend_from_slice(br#"{"parameters":"#);
            write_parameters(&mut bytes, reply, &mut fds);
            bytes.extend_from_slice(if continues { b",\"continues\":true}\0" } else { b"}\0" });
        }
        Err(refusal) => {
            write_refusal(&mut bytes, &refusal);
            bytes.push(0);
        }
    }
    Frame { bytes, fds }
}

/// A [`Reply::Listed`] that is written entry by entry, so that nobody else waits for all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    bytes: Vec<u8>,
    entries: usize,
}

impl Listing {
    /// One without entries.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: br#"{"parameters":{"entries":["#.to_vec(), entries: 0 }
    }

    /// Adds an entry behind the others.
    pub fn push(&mut self, entry: Entry) {
        if self.entries > 0 {
            self.bytes.push(b',');
        }
        self.entries += 1;
        write_wire(&mut self.bytes, &EntryWire::from(entry));
    }

    /// How many entries it has.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// How many bytes it has so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The message; `continues` says that another one follows.
    #[must_use]
    pub fn finish<F>(mut self, continues: bool) -> Frame<F> {
        let end: &[u8] = if continues { b"]},\"continues\":true}\0" } else { b"]}}\0" };
        self.bytes.extend_from_slice(end);
        Frame { bytes: self.bytes, fds: Vec::new() }
    }
}

impl Default for Listing {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads one message as the reply that is `due`, and takes the descriptors that it names.
pub(crate) fn read<F>(
    bytes: &[u8],
    due: Expect,
    asked: &[Name],
    supply: &mut Supply<F>,
) -> Result<Answer<F>, Hangup> {
    if let Some(reply) = plain::read_reply(bytes, due, asked, supply) {
        return Ok(Answer { outcome: Ok(reply), continues: false });
    }
    let Object(envelope): Object<Envelope<'_>> =
        serde_json::from_slice(bytes).map_err(|_| Hangup::NotAReply)?;
    let parameters = envelope.parameters.map_or("{}", RawValue::get);
    let parameters = if parameters == "null" { "{}" } else { parameters };
    let outcome = match envelope.error {
        Some(error) => Err(refusal_from_wire(&error, parameters)),
        None => Ok(reply_from_wire(parameters, due, supply).ok_or(Hangup::NotAReply)?),
    };
    Ok(Answer { outcome, continues: envelope.continues.unwrap_or_default() })
}

/// In the order of the interface, which a `Value` would not keep.
fn to_line(wire: &impl Serialize) -> String {
    serde_json::to_string(wire).unwrap_or_default()
}

fn write_parameters<F>(bytes: &mut Vec<u8>, reply: Reply<F>, fds: &mut Vec<F>) {
    match reply {
        Reply::Done => bytes.extend_from_slice(b"{}"),
        Reply::Given { replaced } => {
            bytes.extend_from_slice(br#"{"replaced":"#);
            plain::write_names(bytes, replaced.iter());
            bytes.push(b'}');
        }
        Reply::Handed(handed) => {
            let len: usize = handed.iter().map(|handed| 33 + handed.name.as_str().len()).sum();
            bytes.reserve(len + 32);
            bytes.extend_from_slice(br#"{"entries":"#);
            plain::write_entries(bytes, handed.iter().map(|handed| &handed.name));
            bytes.push(b'}');
            fds.extend(handed.into_iter().map(|handed| handed.fd));
        }
        Reply::Listed(entries) => {
            let entries = entries.into_iter().map(EntryWire::from).collect();
            write_wire(bytes, &ListedWire { entries });
        }
        Reply::Notice(notice) => write_wire(bytes, &NoticeWire::from(notice)),
        Reply::Statistics(statistics) => write_wire(bytes, &statistics),
        Reply::Explained(explanation) => write_wire(bytes, &explanation),
        Reply::Info(info) => write_wire(bytes, &info),
        Reply::Description(description) => write_wire(bytes, &DescriptionWire { description }),
    }
}

fn reply_from_wire<F>(parameters: &str, due: Expect, supply: &mut Supply<F>) -> Option<Reply<F>> {
    Some(match due {
        Expect::Done => parse::<NothingWire>(parameters).map(|NothingWire {}| Reply::Done)?,
        Expect::Given => {
            let GivenWire { replaced } = parse(parameters)?;
            let replaced = replaced.iter().map(|name| Name::new(name).ok()).collect::<Option<_>>();
            Reply::Given { replaced: replaced? }
        }
        Expect::Handed => Reply::Handed(handed_from_wire(parse(parameters)?, supply)?),
        Expect::Listed => {
            let ListedWire { entries } = parse(parameters)?;
            Reply::Listed(entries.into_iter().map(Entry::from_wire).collect::<Option<_>>()?)
        }
        Expect::Notice => Reply::Notice(match parse(parameters)? {
            NoticeWire { change: None, entry: None, lost: Some(count) } => Notice::Lost(count),
            NoticeWire { change: Some(change), entry: Some(entry), lost: None } => {
                Notice::Changed { change, entry: Box::new(Entry::from_wire(entry)?) }
            }
            NoticeWire { change: None, entry: None, lost: None } => Notice::Standing,
            NoticeWire { .. } => return None,
        }),
        Expect::Statistics => Reply::Statistics(parse(parameters)?),
        Expect::Explained => Reply::Explained(parse(parameters)?),
        Expect::Info => Reply::Info(parse(parameters)?),
        Expect::Description => {
            let DescriptionWire { description } = parse(parameters)?;
            Reply::Description(description)
        }
    })
}

/// Each index must be there and named once: one descriptor has one owner.
fn handed_from_wire<F>(wire: HandedListWire, supply: &mut Supply<F>) -> Option<Vec<Handed<F>>> {
    let entries = wire.entries.iter();
    let names = entries.clone().map(|entry| Name::new(&entry.name).ok());
    let names = names.collect::<Option<Vec<_>>>()?;
    let order = entries.map(|entry| usize::try_from(entry.file_descriptor).ok());
    let fds = supply.take_ordered(&order.collect::<Option<Vec<_>>>()?)?;
    Some(names.into_iter().zip(fds).map(|(name, fd)| Handed { name, fd }).collect())
}

fn parse<T: DeserializeOwned>(parameters: &str) -> Option<T> {
    serde_json::from_str(parameters).map(|Object(wire)| wire).ok()
}

fn write_error(bytes: &mut Vec<u8>, [interface, short]: [&str; 2], parameters: &impl Serialize) {
    bytes.extend_from_slice(br#"{"error":""#);
    bytes.extend_from_slice(interface.as_bytes());
    bytes.push(b'.');
    bytes.extend_from_slice(short.as_bytes());
    bytes.extend_from_slice(br#"","parameters":"#);
    write_wire(bytes, parameters);
    bytes.push(b'}');
}

/// The errors of the interface, with their parameters' names and types, in both directions.
macro_rules! refusals {
    ($($interface:ident $error:ident {
        $($field:ident $(as $wire:literal)?: $type:ty),*
    })*) => {
        fn write_refusal(bytes: &mut Vec<u8>, refusal: &Refusal) {
            $(
                #[derive(Serialize)]
                struct $error<'a> {
                    $($(#[serde(rename = $wire)])? $field: &'a $type,)*
                    #[serde(skip)]
                    _lifetime: std::marker::PhantomData<&'a ()>,
                }
            )*
            match refusal {
                $(Refusal::$error { $($field),* } => {
                    let parameters = $error { $($field,)* _lifetime: std::marker::PhantomData };
                    write_error(bytes, [$interface, stringify!($error)], &parameters);
                })*
            }
        }

        impl Refusal {
            /// What the interface calls it, without the interface's name.
            #[must_use]
            pub fn error(&self) -> &'static str {
                match self {
                    $(Refusal::$error { .. } => stringify!($error),)*
                }
            }
        }

        fn refusal_from_wire(error: &str, parameters: &str) -> Refused {
            $(
                #[derive(Deserialize)]
                struct $error { $($(#[serde(rename = $wire)])? $field: $type,)* }
            )*
            let unknown = || Refused::Unknown {
                error: error.to_owned(),
                parameters: parameters.to_owned(),
            };
            let Some((interface, short)) = error.rsplit_once('.') else { return unknown() };
            match (interface, short) {
                $(($interface, stringify!($error)) => match parse::<$error>(parameters) {
                    Some($error { $($field),* }) => Refused::Known(Refusal::$error { $($field),* }),
                    None => unknown(),
                },)*
                (_, _) => unknown(),
            }
        }
    };
}

refusals! {
    INTERFACE_NAME NotFound { name: String }
    INTERFACE_NAME AlreadyExists { name: String }
    INTERFACE_NAME Busy { name: String, held_by as "heldBy": Peer }
    INTERFACE_NAME TransactionState { reason: String }
    INTERFACE_NAME InvalidName { name: String, reason: String }
    INTERFACE_NAME AccessDenied { name: String, verb: String }
    INTERFACE_NAME ReopenFailed {
        name: String, errno: i32, errno_name as "errnoName": String, message: String
    }
    INTERFACE_NAME LimitExceeded { limit: String, value: i64 }
    INTERFACE_NAME FileDescriptorMissing { expected: i64, received: i64 }
    INTERFACE_NAME NotDurable { reason: String }
    SERVICE_NAME InterfaceNotFound { interface: String }
    SERVICE_NAME MethodNotFound { method: String }
    SERVICE_NAME MethodNotImplemented { method: String }
    SERVICE_NAME InvalidParameter { parameter: String }
    SERVICE_NAME PermissionDenied {}
    SERVICE_NAME ExpectedMore {}
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    continues: Option<bool>,
    #[serde(borrow, default)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct NothingWire {}

#[derive(Deserialize)]
struct GivenWire {
    replaced: Vec<String>,
}

#[derive(Deserialize)]
struct HandedListWire {
    entries: Vec<HandedWire>,
}

#[derive(Deserialize)]
struct HandedWire {
    name: String,
    #[serde(rename = "fileDescriptor")]
    file_descriptor: i64,
}

#[derive(Serialize, Deserialize)]
struct ListedWire {
    entries: Vec<EntryWire>,
}

#[derive(Serialize, Deserialize)]
struct DescriptionWire {
    description: String,
}

#[derive(Serialize, Deserialize)]
struct NoticeWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<EntryWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
}

impl From<Notice> for NoticeWire {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Standing => Self { change: None, entry: None, lost: None },
            Notice::Changed { change, entry } => {
                Self { change: Some(change), entry: Some((*entry).into()), lost: None }
            }
            Notice::Lost(count) => Self { change: None, entry: None, lost: Some(count) },
        }
    }
}

impl Notice {
    /// The notice as the interface writes it, as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_line(&NoticeWire::from(self.clone()))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryWire {
    name: String,
    kind: Kind,
    access: Access,
    flags: Flags,
    drifted: Flags,
    may_reopen: Access,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    device: u64,
    inode: u64,
    giver: Peer,
    #[serde(rename = "givenAtUSec")]
    given_at_usec: u64,
    #[serde(rename = "expiresAtUSec", skip_serializing_if = "Option::is_none")]
    expires_at_usec: Option<u64>,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<Peer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Labels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<ShareWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_on_hangup: Option<bool>,
}

/// Unlike in a call, a later version may say more.
#[derive(Serialize, Deserialize)]
struct ShareWire {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl From<Entry> for EntryWire {
    fn from(entry: Entry) -> Self {
        Self {
            name: entry.name.as_str().to_owned(),
            kind: entry.kind,
            access: entry.access,
            flags: entry.flags,
            drifted: entry.drifted,
            may_reopen: entry.may_reopen,
            target: entry.target,
            device: entry.device,
            inode: entry.inode,
            giver: entry.giver,
            given_at_usec: entry.given_at_usec,
            expires_at_usec: entry.expires_at_usec,
            revision: entry.revision,
            held_by: entry.held_by,
            labels: Some(entry.labels).filter(|labels| !labels.is_empty()),
            share: entry.share.map(|Share { uids, gids }| ShareWire { uids, gids }),
            ephemeral: entry.ephemeral,
            close_on_hangup: entry.close_on_hangup,
        }
    }
}

impl Entry {
    /// The entry as the interface writes it, as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_line(&EntryWire::from(self.clone()))
    }

    fn from_wire(wire: EntryWire) -> Option<Self> {
        Some(Self {
            name: Name::new(&wire.name).ok()?,
            kind: wire.kind,
            access: wire.access,
            flags: wire.flags,
            drifted: wire.drifted,
            may_reopen: wire.may_reopen,
            target: wire.target,
            device: wire.device,
            inode: wire.inode,
            giver: wire.giver,
            given_at_usec: wire.given_at_usec,
            expires_at_usec: wire.expires_at_usec,
            revision: wire.revision,
            held_by: wire.held_by,
            labels: wire.labels.unwrap_or_default(),
            share: wire.share.map(|ShareWire { uids, gids }| Share { uids, gids }),
            ephemeral: wire.ephemeral,
            close_on_hangup: wire.close_on_hangup,
        })
    }
}
