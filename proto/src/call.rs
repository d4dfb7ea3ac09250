//! What a client asks: [`Call`]s, and the step from a message to one and back.
//!
//! The serde types are private; every rule that a type of ours carries is checked in the step from
//! them, so nothing behind this module checks a name, an index or a limit of the wire again.
//!
//! Both directions stand in this one file, since each wire type serves both.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    fmt,
    marker::PhantomData,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, value::RawValue};

use crate::{
    Access, INTERFACE_NAME, Labels, MAX_DESCRIPTORS, Name, Pattern, Refusal, SERVICE_NAME, Share,
    Ticket, Verb,
    codec::{Frame, Hangup, Supply},
    plain,
};

/// One call of the interface; `F` is a descriptor that came beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call<F> {
    /// Keep these descriptors.
    Give {
        /// What to keep, under which names.
        gifts: Vec<Gift<F>>,
        /// What to do about a name that is taken.
        clash: Clash,
        /// By what it is known if it is sent again.
        ticket: Option<Ticket>,
    },
    /// Hand these out.
    Take {
        /// Which ones.
        names: Vec<Name>,
        /// In which way.
        taking: Taking,
        /// How long to wait for names that are not there or held by another, in microseconds.
        timeout_usec: u64,
    },
    /// Close these and forget them.
    Close {
        /// Which ones.
        names: Vec<Name>,
        /// By what it is known if it is sent again.
        ticket: Option<Ticket>,
    },
    /// Open these files anew.
    Reopen {
        /// Which ones, and what shall be otherwise.
        reopenings: Vec<Reopening>,
    },
    /// Open a transaction on this connection.
    Begin,
    /// Make all of it final.
    Commit {
        /// By what it is known if it is sent again.
        ticket: Option<Ticket>,
    },
    /// Undo all of it.
    Rollback,
    /// Show the entries.
    List {
        /// Those whose names match.
        pattern: Pattern,
    },
    /// Tell every change from now on.
    Watch {
        /// To entries whose names match.
        pattern: Pattern,
    },
    /// Show the figures.
    GetStatistics,
    /// Tell what the policy says to somebody.
    ExplainPolicy {
        /// To whom.
        uid: u32,
        /// Who is in these groups.
        gids: Vec<u32>,
        /// What it wants.
        verb: Verb,
        /// Of which entry.
        name: Name,
    },
}

impl<F> Call<F> {
    /// By what it is known if it is sent again.
    #[must_use]
    pub fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Give { ticket, .. } | Self::Close { ticket, .. } | Self::Commit { ticket } => {
                ticket.as_ref()
            }
            Self::Take { .. }
            | Self::Reopen { .. }
            | Self::Begin
            | Self::Rollback
            | Self::List { .. }
            | Self::Watch { .. }
            | Self::GetStatistics
            | Self::ExplainPolicy { .. } => None,
        }
    }

    /// The same call with another kind of descriptor, if the step works for each.
    ///
    /// # Errors
    ///
    /// The first failure of the step, and the name it was for; everything else is dropped.
    pub fn try_map<G, E>(
        self,
        mut step: impl FnMut(F) -> Result<G, E>,
    ) -> Result<Call<G>, (Name, E)> {
        Ok(match self {
            Self::Give { gifts, clash, ticket } => {
                let step = |gift: Gift<F>| {
                    let name = gift.name.clone();
                    gift.try_map(&mut step).map_err(|error| (name, error))
                };
                let gifts = gifts.into_iter().map(step).collect::<Result<_, _>>()?;
                Call::Give { gifts, clash, ticket }
            }
            Self::Take { names, taking, timeout_usec } => {
                Call::Take { names, taking, timeout_usec }
            }
            Self::Close { names, ticket } => Call::Close { names, ticket },
            Self::Reopen { reopenings } => Call::Reopen { reopenings },
            Self::Begin => Call::Begin,
            Self::Commit { ticket } => Call::Commit { ticket },
            Self::Rollback => Call::Rollback,
            Self::List { pattern } => Call::List { pattern },
            Self::Watch { pattern } => Call::Watch { pattern },
            Self::GetStatistics => Call::GetStatistics,
            Self::ExplainPolicy { uid, gids, verb, name } => {
                Call::ExplainPolicy { uid, gids, verb, name }
            }
        })
    }
}

/// What a Give does about a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clash {
    /// The old descriptor makes room for the new one.
    Replace,
    /// The call is refused with AlreadyExists.
    Refuse,
}

/// In which way a Take hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// Hand out what is kept, and forget it.
    Move,
    /// Hand out what is kept, and keep it.
    Copy,
    /// Hand out an open file description of its own, and keep what is kept.
    Fresh,
}

/// One descriptor to keep. Owns `fd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gift<F> {
    /// Under which name.
    pub name: Name,
    /// The descriptor.
    pub fd: F,
    /// Keep an open file description of the stash's own instead of the one that was sent.
    pub fresh: bool,
    /// The most access a Reopen may give it; none: the access it has.
    pub may_reopen: Option<Access>,
    /// Close it after so many microseconds.
    pub expire_usec: Option<u64>,
    /// Close it when the connection that gave it closes.
    pub ephemeral: bool,
    /// Close it when it polls as hung up or failed.
    pub close_on_hangup: bool,
    /// Who else may use it.
    pub share: Share,
    /// Free notes.
    pub labels: Labels,
}

impl<F> Gift<F> {
    /// A gift with nothing but a name.
    #[must_use]
    pub fn new(name: Name, fd: F) -> Self {
        Self {
            name,
            fd,
            fresh: false,
            may_reopen: None,
            expire_usec: None,
            ephemeral: false,
            close_on_hangup: false,
            share: Share::default(),
            labels: Labels::new(),
        }
    }

    /// The same gift with another kind of descriptor.
    pub fn map<G>(self, step: impl FnOnce(F) -> G) -> Gift<G> {
        match self.try_map(|fd| Ok::<G, Infallible>(step(fd))) {
            Ok(gift) => gift,
        }
    }

    /// The same gift with another kind of descriptor, if the step works.
    ///
    /// # Errors
    ///
    /// What the step fails with; the rest of the gift is dropped.
    pub fn try_map<G, E>(self, step: impl FnOnce(F) -> Result<G, E>) -> Result<Gift<G>, E> {
        Ok(Gift {
            name: self.name,
            fd: step(self.fd)?,
            fresh: self.fresh,
            may_reopen: self.may_reopen,
            expire_usec: self.expire_usec,
            ephemeral: self.ephemeral,
            close_on_hangup: self.close_on_hangup,
            share: self.share,
            labels: self.labels,
        })
    }
}

/// One entry to reopen. What is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reopening {
    /// Which one.
    pub name: Name,
    /// For reading, writing or both.
    pub access: Option<Access>,
    /// Hand out a descriptor with no more than this access, where what is kept has more.
    pub hand_out: Option<Access>,
    /// `O_DIRECT`: past the host's page cache.
    pub direct: Option<bool>,
    /// `O_SYNC`.
    pub sync: Option<bool>,
    /// `O_DSYNC`.
    pub dsync: Option<bool>,
    /// `O_APPEND`.
    pub append: Option<bool>,
    /// `O_NONBLOCK`.
    pub nonblock: Option<bool>,
    /// `O_NOATIME`.
    pub noatime: Option<bool>,
    /// Open what stands at this path now, not the very file that the entry holds.
    pub path: Option<String>,
}

impl Reopening {
    /// A reopening that leaves all as it is: a new open file description, and no more.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self {
            name,
            access: None,
            hand_out: None,
            direct: None,
            sync: None,
            dsync: None,
            append: None,
            nonblock: None,
            noatime: None,
            path: None,
        }
    }
}

/// How many replies a call wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One.
    Once,
    /// As many as it takes (`more`).
    More,
    /// None (`oneway`).
    Oneway,
}

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<F> {
    /// A call of the stash.
    Stash(Call<F>),
    /// `org.varlink.service.GetInfo`.
    GetInfo,
    /// `org.varlink.service.GetInterfaceDescription`, of an interface that there is.
    GetInterfaceDescription(&'static str),
}

/// One message of a client, understood or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming<F> {
    /// What it asks, or why it gets a refusal.
    pub request: Result<Request<F>, Refusal>,
    /// How it wants its answer.
    pub mode: Mode,
    /// Descriptors that came beside a refused message, for its receiver to close.
    pub unused: Vec<F>,
    /// Whether the order of descriptors is lost, so that the connection closes after the answer.
    pub last: bool,
}

/// Reads one message, and takes the descriptors that it names from those that have come.
pub(crate) fn read<F>(bytes: &[u8], supply: &mut Supply<F>) -> Result<Incoming<F>, Hangup> {
    if let Some(call) = plain::read_call(bytes, supply) {
        let request = Ok(Request::Stash(call));
        return Ok(Incoming { request, mode: Mode::Once, unused: Vec::new(), last: false });
    }
    let Object(envelope): Object<Envelope<'_>> =
        serde_json::from_slice(bytes).map_err(|_| Hangup::NotACall)?;
    let mode = match (envelope.oneway, envelope.more) {
        (Some(true), _) => Mode::Oneway,
        (_, Some(true)) => Mode::More,
        (_, _) => Mode::Once,
    };
    let parameters = envelope.parameters.map_or("{}", RawValue::get);
    let parameters = if parameters == "null" { "{}" } else { parameters };
    Ok(match understand(&envelope, parameters, mode, supply) {
        Ok(request) => Incoming { request: Ok(request), mode, unused: Vec::new(), last: false },
        Err(Misfit { refusal, unused, last }) => {
            Incoming { request: Err(refusal), mode, unused, last }
        }
    })
}

/// Why a message is refused, and what becomes of the descriptors beside it.
struct Misfit<F> {
    refusal: Refusal,
    unused: Vec<F>,
    last: bool,
}

fn understand<F>(
    envelope: &Envelope<'_>,
    parameters: &str,
    mode: Mode,
    supply: &mut Supply<F>,
) -> Result<Request<F>, Misfit<F>> {
    let full = envelope.method.as_ref();
    let Some((interface, method)) = full.rsplit_once('.') else {
        return Err(refuse_whole(method_not_found(full), parameters, supply));
    };
    if envelope.upgrade == Some(true) {
        let refusal = Refusal::MethodNotImplemented { method: full.to_owned() };
        return Err(refuse_whole(refusal, parameters, supply));
    }
    if mode != Mode::More && interface == INTERFACE_NAME && method == "Watch" {
        return Err(refuse_whole(Refusal::ExpectedMore, parameters, supply));
    }
    if interface == INTERFACE_NAME && method == "Give" {
        let wire: GiveWire<'_> = parse_borrowed(parameters)
            .map_err(|refusal| refuse_whole(refusal, parameters, supply))?;
        return give(wire, supply).map(Request::Stash);
    }
    understand_plain(interface, method, full, parameters)
        .map_err(|refusal| refuse_whole(refusal, parameters, supply))
}

/// The methods beside which no descriptor comes.
fn understand_plain<F>(
    interface: &str,
    method: &str,
    full: &str,
    parameters: &str,
) -> Result<Request<F>, Refusal> {
    if interface == SERVICE_NAME {
        return match method {
            "GetInfo" => parse::<NoneWire>(parameters).map(|NoneWire {}| Request::GetInfo),
            "GetInterfaceDescription" => {
                let DescribeWire { interface } = parse(parameters)?;
                match interface.as_str() {
                    INTERFACE_NAME => Ok(Request::GetInterfaceDescription(crate::INTERFACE)),
                    SERVICE_NAME => Ok(Request::GetInterfaceDescription(crate::SERVICE)),
                    _ => Err(Refusal::InterfaceNotFound { interface }),
                }
            }
            _ => Err(method_not_found(full)),
        };
    }
    if interface != INTERFACE_NAME {
        return Err(Refusal::InterfaceNotFound { interface: interface.to_owned() });
    }
    let call = match method {
        "Take" => take(parse_borrowed(parameters)?)?,
        "Close" => {
            let CloseWire { names, ticket: text } = parse_borrowed(parameters)?;
            let ticket = ticket(text)?;
            Call::Close { names: distinct(names.iter().map(AsRef::as_ref))?, ticket }
        }
        "Reopen" => reopen(parameters)?,
        "Begin" => parse::<NoneWire>(parameters).map(|NoneWire {}| Call::Begin)?,
        "Commit" => {
            Call::Commit { ticket: ticket(parse_borrowed::<CommitWire<'_>>(parameters)?.ticket)? }
        }
        "Rollback" => parse::<NoneWire>(parameters).map(|NoneWire {}| Call::Rollback)?,
        "List" => Call::List { pattern: pattern(parameters)? },
        "Watch" => Call::Watch { pattern: pattern(parameters)? },
        "GetStatistics" => parse::<NoneWire>(parameters).map(|NoneWire {}| Call::GetStatistics)?,
        "ExplainPolicy" => {
            let ExplainWire { uid, gids, verb, name: text } = parse_borrowed(parameters)?;
            Call::ExplainPolicy { uid, gids, verb, name: name(&text)? }
        }
        _ => return Err(method_not_found(full)),
    };
    Ok(Request::Stash(call))
}

fn give<F>(wire: GiveWire<'_>, supply: &mut Supply<F>) -> Result<Call<F>, Misfit<F>> {
    let lost = |refusal| Misfit { refusal, unused: Vec::new(), last: true };
    let fds = descriptors(&wire.entries, supply).map_err(lost)?;
    let ticket = ticket(wire.ticket);
    match gift_names(&wire.entries).and_then(|names| Ok((names, ticket?))) {
        Ok((names, ticket)) => {
            let gifts = names.into_iter().zip(wire.entries).zip(fds);
            let gifts = gifts.map(|((name, Object(entry)), fd)| entry.into_gift(name, fd));
            Ok(Call::Give { gifts: gifts.collect(), clash: clash(wire.exclusive), ticket })
        }
        Err(refusal) => Err(Misfit { refusal, unused: fds, last: false }),
    }
}

fn clash(exclusive: Option<bool>) -> Clash {
    if exclusive == Some(true) { Clash::Refuse } else { Clash::Replace }
}

/// The descriptor of each gift: all of them are there, each is named once, and none is left out.
/// Whatever else a message says of its descriptors leaves it open which of them are its own, so the
/// connection ends.
fn descriptors<F>(
    entries: &[Object<GiftWire<'_>>],
    supply: &mut Supply<F>,
) -> Result<Vec<F>, Refusal> {
    if entries.len() > MAX_DESCRIPTORS {
        return Err(too_many_descriptors());
    }
    let highest = entries.iter().map(|Object(entry)| entry.file_descriptor).max().unwrap_or(-1);
    let received = i64::try_from(supply.len()).unwrap_or(i64::MAX);
    if highest >= received {
        return Err(Refusal::FileDescriptorMissing {
            expected: highest.saturating_add(1),
            received,
        });
    }
    let mut seen = BTreeSet::new();
    let mut order = Vec::with_capacity(entries.len());
    for (at, Object(entry)) in entries.iter().enumerate() {
        let index = usize::try_from(entry.file_descriptor).ok();
        let index = index.filter(|&index| index < entries.len() && seen.insert(index));
        order.push(index.ok_or_else(|| invalid(format!("entries[{at}].fileDescriptor")))?);
    }
    supply.take_ordered(&order).ok_or_else(|| invalid("entries"))
}

/// The names of gifts of which nothing else is wrong either.
fn gift_names(entries: &[Object<GiftWire<'_>>]) -> Result<Vec<Name>, Refusal> {
    let names = distinct(entries.iter().map(|Object(entry)| entry.name.as_ref()))?;
    for (at, Object(entry)) in entries.iter().enumerate() {
        if entry.expire_usec.is_some_and(|usec| usec < 0) {
            return Err(invalid(format!("entries[{at}].expireUSec")));
        }
    }
    Ok(names)
}

fn take<F>(wire: TakeWire<'_>) -> Result<Call<F>, Refusal> {
    if wire.names.len() > MAX_DESCRIPTORS {
        return Err(too_many_descriptors());
    }
    let taking = match (wire.copy.unwrap_or_default(), wire.fresh.unwrap_or_default()) {
        (false, false) => Taking::Move,
        (true, false) => Taking::Copy,
        (true, true) => Taking::Fresh,
        // What is moved out is what was kept: a fresh one of it could only be a copy.
        (false, true) => return Err(invalid("fresh")),
    };
    let timeout_usec = match wire.timeout_usec {
        None => 0,
        Some(usec) => u64::try_from(usec).map_err(|_| invalid("timeoutUSec"))?,
    };
    let names = distinct(wire.names.iter().map(AsRef::as_ref))?;
    Ok(Call::Take { names, taking, timeout_usec })
}

fn reopen<F>(parameters: &str) -> Result<Call<F>, Refusal> {
    let wire: ReopenWire = parse(parameters)?;
    if wire.entries.len() > MAX_DESCRIPTORS {
        return Err(too_many_descriptors());
    }
    let mut reopenings = Vec::with_capacity(wire.entries.len());
    let mut seen = BTreeSet::new();
    for Object(entry) in wire.entries {
        let reopening = entry.checked()?;
        if !seen.insert(reopening.name.clone()) {
            return Err(named_twice(reopening.name.as_str()));
        }
        reopenings.push(reopening);
    }
    Ok(Call::Reopen { reopenings })
}

fn pattern(parameters: &str) -> Result<Pattern, Refusal> {
    let PatternWire { pattern } = parse(parameters)?;
    match pattern {
        None => Ok(Pattern::all()),
        Some(text) => Pattern::new(&text).map_err(|_| invalid("pattern")),
    }
}

fn ticket(text: Option<Cow<'_, str>>) -> Result<Option<Ticket>, Refusal> {
    text.map(|text| Ticket::new(&text).map_err(|_| invalid("ticket"))).transpose()
}

fn name(text: &str) -> Result<Name, Refusal> {
    Name::new(text).map_err(|why| Refusal::InvalidName {
        // An over-long one is told by its beginning, so that a reply is never longer than a call.
        name: text.chars().take(Name::MAX_LEN).collect(),
        reason: why.to_string(),
    })
}

fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Name>, Refusal> {
    let names: Vec<Name> = texts.map(name).collect::<Result<_, _>>()?;
    match twice(&names) {
        Some(name) => Err(named_twice(name.as_str())),
        None => Ok(names),
    }
}

/// The first name that stands there for the second time.
pub(crate) fn twice(names: &[Name]) -> Option<&Name> {
    // Numbered ones come in an order, and to see that is cheaper than to look each up.
    let rank = |at: usize| (names[at].as_str().len(), names[at].as_str());
    if (1..names.len()).all(|at| rank(at - 1) < rank(at)) {
        return None;
    }
    let mut seen = HashSet::with_capacity(names.len());
    names.iter().find(|name| !seen.insert(name.as_str()))
}

fn named_twice(name: &str) -> Refusal {
    Refusal::InvalidName { name: name.to_owned(), reason: "it is named twice in one call".into() }
}

fn too_many_descriptors() -> Refusal {
    Refusal::LimitExceeded { limit: "descriptorsPerMessage".into(), value: MAX_DESCRIPTORS as i64 }
}

fn method_not_found(method: &str) -> Refusal {
    Refusal::MethodNotFound { method: method.to_owned() }
}

fn invalid(parameter: impl Into<String>) -> Refusal {
    Refusal::InvalidParameter { parameter: parameter.into() }
}

/// Refuses a message that was not understood, and sets aside the descriptors that it names, so that
/// those of the messages behind it stay theirs. Where it leaves open which these are, the order is
/// lost.
fn refuse_whole<F>(refusal: Refusal, parameters: &str, supply: &mut Supply<F>) -> Misfit<F> {
    let (count, last) = match count_named(parameters) {
        Some(count) if count <= supply.len().min(MAX_DESCRIPTORS) => (count, false),
        Some(_) => (0, true),
        None => (0, supply.len() > 0),
    };
    Misfit { refusal, unused: supply.drain(count).collect(), last }
}

/// How many descriptors a message of whatever method names; none if its indices are not 0, 1, 2 and
/// so on, each once, or if serde cannot tell, as of a text too deeply nested.
fn count_named(parameters: &str) -> Option<usize> {
    let mut indices = Vec::new();
    collect_indices(&serde_json::from_str(parameters).ok()?, &mut indices);
    indices.sort_unstable();
    let counted = indices.iter().enumerate().all(|(at, index)| *index == Some(at as u64));
    counted.then_some(indices.len())
}

fn collect_indices(value: &Value, indices: &mut Vec<Option<u64>>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match key.as_str() {
                    "fileDescriptor" => indices.push(value.as_u64()),
                    // Their keys are free text.
                    "labels" => {}
                    _ => collect_indices(value, indices),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_indices(value, indices)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn parse<T: DeserializeOwned>(parameters: &str) -> Result<T, Refusal> {
    parse_borrowed(parameters)
}

/// Parses, and only if that fails parses again to find out which parameter is to blame.
fn parse_borrowed<'a, T: Deserialize<'a>>(parameters: &'a str) -> Result<T, Refusal> {
    serde_json::from_str(parameters).map(|Object(wire)| wire).map_err(|_| {
        let mut deserializer = serde_json::Deserializer::from_str(parameters);
        match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer) {
            Ok(_) => invalid("parameters"),
            Err(error) => invalid(culprit(&error)),
        }
    })
}

/// The parameter that an error is about. Serde stands at the field itself, but for one that is
/// missing or there twice: then at the object around it, with the field's name in backticks
/// (`a_misfit_is_told_by_its_name` holds serde to this).
fn culprit(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let message = error.inner().to_string();
    let field = ["missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.split('`').next());
    match (path.as_str(), field) {
        (".", None) => "parameters".to_owned(),
        (".", Some(field)) => field.to_owned(),
        (_, None) => path,
        (_, Some(field)) => format!("{path}.{field}"),
    }
}

/// Puts a call into a message for the daemon; its descriptors go beside it, in the gifts' order.
#[must_use]
pub fn write<F>(call: Call<F>, mode: Mode) -> Frame<F> {
    let mut bytes = Vec::new();
    append(&mut bytes, &call, mode);
    let Call::Give { gifts, .. } = call else { return Frame { bytes, fds: Vec::new() } };
    Frame { bytes, fds: gifts.into_iter().map(|gift| gift.fd).collect() }
}

/// Appends a call's message to others. Its descriptors go beside it, in the gifts' order.
pub fn append<F>(bytes: &mut Vec<u8>, call: &Call<F>, mode: Mode) {
    bytes.reserve(expected_len(call));
    let method = match call {
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
    };
    write_method(bytes, INTERFACE_NAME, method);
    write_parameters(bytes, call);
    let end: &[u8] = match mode {
        Mode::Once => b"}\0",
        Mode::More => b",\"more\":true}\0",
        Mode::Oneway => b",\"oneway\":true}\0",
    };
    bytes.extend_from_slice(end);
}

/// Puts a `GetInfo` of the service's own interface into a message.
#[must_use]
pub fn write_get_info<F>() -> Frame<F> {
    let mut bytes = Vec::new();
    write_method(&mut bytes, SERVICE_NAME, "GetInfo");
    bytes.extend_from_slice(b"{}}\0");
    Frame { bytes, fds: Vec::new() }
}

/// How many bytes it will be, or a few less.
fn expected_len<F>(call: &Call<F>) -> usize {
    let names: usize = match call {
        Call::Give { gifts, .. } => gifts.iter().map(|gift| 33 + gift.name.as_str().len()).sum(),
        Call::Take { names, .. } | Call::Close { names, .. } => {
            names.iter().map(|name| 3 + name.as_str().len()).sum()
        }
        Call::Reopen { reopenings } => reopenings.len() * 64,
        Call::Begin
        | Call::Commit { .. }
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => 0,
    };
    names + 160
}

fn write_method(bytes: &mut Vec<u8>, interface: &str, method: &str) {
    bytes.extend_from_slice(br#"{"method":""#);
    bytes.extend_from_slice(interface.as_bytes());
    bytes.push(b'.');
    bytes.extend_from_slice(method.as_bytes());
    bytes.extend_from_slice(br#"","parameters":"#);
}

fn write_parameters<F>(bytes: &mut Vec<u8>, call: &Call<F>) {
    match call {
        Call::Give { gifts, clash, ticket } => {
            bytes.extend_from_slice(br#"{"entries":"#);
            plain::write_list(bytes, gifts.iter().enumerate(), write_gift);
            write_if(bytes, *clash == Clash::Refuse, br#","exclusive":true"#);
            write_ticket(bytes, br#","ticket":"#, ticket.as_ref());
            bytes.push(b'}');
        }
        Call::Take { names, taking, timeout_usec } => {
            write_names(bytes, names);
            write_if(bytes, *taking != Taking::Move, br#","copy":true"#);
            write_if(bytes, *taking == Taking::Fresh, br#","fresh":true"#);
            if *timeout_usec > 0 {
                bytes.extend_from_slice(br#","timeoutUSec":"#);
                plain::write_number(bytes, to_int(*timeout_usec).unsigned_abs());
            }
            bytes.push(b'}');
        }
        Call::Close { names, ticket } => {
            write_names(bytes, names);
            write_ticket(bytes, br#","ticket":"#, ticket.as_ref());
            bytes.push(b'}');
        }
        Call::Commit { ticket } => {
            bytes.push(b'{');
            write_ticket(bytes, br#""ticket":"#, ticket.as_ref());
            bytes.push(b'}');
        }
        Call::Begin | Call::Rollback | Call::GetStatistics => bytes.extend_from_slice(b"{}"),
        Call::Reopen { reopenings } => {
            let entries = reopenings.iter().cloned().map(ReopeningWire::of).map(Object).collect();
            write_wire(bytes, &ReopenWire { entries });
        }
        Call::List { pattern } | Call::Watch { pattern } => {
            let pattern = Some(pattern.as_str().to_owned()).filter(|text| text != "*");
            write_wire(bytes, &PatternWire { pattern });
        }
        Call::ExplainPolicy { uid, gids, verb, name } => {
            let (uid, gids, verb) = (*uid, gids.clone(), *verb);
            write_wire(bytes, &ExplainWire { uid, gids, verb, name: name.as_str().into() });
        }
    }
}

fn write_gift<F>(bytes: &mut Vec<u8>, (index, gift): (usize, &Gift<F>)) {
    let Gift { name, fd: _, fresh, may_reopen, expire_usec, ephemeral, close_on_hangup, .. } = gift;
    let on = |on: &bool| Some(*on).filter(|on| *on);
    let share = (!gift.share.is_none()).then(|| Object(gift.share.clone()));
    let labels = (!gift.labels.is_empty()).then(|| gift.labels.clone());
    let is_bare =
        !(*fresh || *ephemeral || *close_on_hangup || share.is_some() || labels.is_some());
    if is_bare && may_reopen.is_none() && expire_usec.is_none() {
        return plain::write_entry(bytes, name, index);
    }
    let wire = GiftWire {
        name: name.as_str().into(),
        file_descriptor: to_int(index as u64),
        fresh: on(fresh),
        may_reopen: *may_reopen,
        expire_usec: expire_usec.map(to_int),
        ephemeral: on(ephemeral),
        close_on_hangup: on(close_on_hangup),
        share,
        labels,
    };
    write_wire(bytes, &wire);
}

fn write_names(bytes: &mut Vec<u8>, names: &[Name]) {
    bytes.extend_from_slice(br#"{"names":"#);
    plain::write_names(bytes, names.iter());
}

fn write_if(bytes: &mut Vec<u8>, on: bool, field: &[u8]) {
    if on {
        bytes.extend_from_slice(field);
    }
}

fn write_ticket(bytes: &mut Vec<u8>, before: &[u8], ticket: Option<&Ticket>) {
    if let Some(ticket) = ticket {
        bytes.extend_from_slice(before);
        plain::write_text(bytes, ticket.as_str());
    }
}

fn to_int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn write_wire(bytes: &mut Vec<u8>, wire: &impl Serialize) {
    // No type of ours has a map with other keys than text, the one thing that could fail here.
    let _ = serde_json::to_writer(bytes, wire);
}

/// What is written as an object. Of a struct alone serde would also take an array of its fields.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// Reads an enum that is written as a word. Serde alone would also take an object for it.
fn word<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let word = Option::<Cow<'_, str>>::deserialize(deserializer)?;
    word.map(|word| T::deserialize(word.into_deserializer())).transpose()
}

/// The same where there must be one.
fn one_word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    T::deserialize(Cow::<'_, str>::deserialize(deserializer)?.into_deserializer())
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    oneway: Option<bool>,
    #[serde(default)]
    more: Option<bool>,
    #[serde(default)]
    upgrade: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GiveWire<'a> {
    #[serde(borrow)]
    entries: Vec<Object<GiftWire<'a>>>,
    exclusive: Option<bool>,
    #[serde(borrow)]
    ticket: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GiftWire<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "fileDescriptor")]
    file_descriptor: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fresh: Option<bool>,
    #[serde(rename = "mayReopen", default, deserialize_with = "word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    may_reopen: Option<Access>,
    #[serde(rename = "expireUSec", skip_serializing_if = "Option::is_none")]
    expire_usec: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral: Option<bool>,
    #[serde(rename = "closeOnHangup", skip_serializing_if = "Option::is_none")]
    close_on_hangup: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<Object<Share>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Labels>,
}

impl GiftWire<'_> {
    /// The gift, of which all has been checked.
    fn into_gift<F>(self, name: Name, fd: F) -> Gift<F> {
        Gift {
            name,
            fd,
            fresh: self.fresh.unwrap_or_default(),
            may_reopen: self.may_reopen,
            expire_usec: self.expire_usec.map(i64::unsigned_abs),
            ephemeral: self.ephemeral.unwrap_or_default(),
            close_on_hangup: self.close_on_hangup.unwrap_or_default(),
            share: self.share.map(|Object(share)| share).unwrap_or_default(),
            labels: self.labels.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeWire<'a> {
    #[serde(borrow)]
    names: Vec<Cow<'a, str>>,
    copy: Option<bool>,
    fresh: Option<bool>,
    #[serde(rename = "timeoutUSec")]
    timeout_usec: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseWire<'a> {
    #[serde(borrow)]
    names: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    ticket: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitWire<'a> {
    #[serde(borrow)]
    ticket: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReopenWire {
    entries: Vec<Object<ReopeningWire>>,
}

/// A [`Reopening`] whose name nobody has checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReopeningWire {
    name: String,
    #[serde(default, deserialize_with = "word", skip_serializing_if = "Option::is_none")]
    access: Option<Access>,
    #[serde(rename = "handOut", default, deserialize_with = "word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    hand_out: Option<Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dsync: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    append: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonblock: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noatime: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

impl ReopeningWire {
    fn checked(self) -> Result<Reopening, Refusal> {
        Ok(Reopening {
            name: name(&self.name)?,
            access: self.access,
            hand_out: self.hand_out,
            direct: self.direct,
            sync: self.sync,
            dsync: self.dsync,
            append: self.append,
            nonblock: self.nonblock,
            noatime: self.noatime,
            path: self.path,
        })
    }

    fn of(reopening: Reopening) -> Self {
        Self {
            name: reopening.name.as_str().to_owned(),
            access: reopening.access,
            hand_out: reopening.hand_out,
            direct: reopening.direct,
            sync: reopening.sync,
            dsync: reopening.dsync,
            append: reopening.append,
            nonblock: reopening.nonblock,
            noatime: reopening.noatime,
            path: reopening.path,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainWire<'a> {
    uid: u32,
    gids: Vec<u32>,
    #[serde(deserialize_with = "one_word")]
    verb: Verb,
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoneWire {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribeWire {
    interface: String,
}
