//! What is written down so that it survives a crash, as bytes.
//!
//! Each line says which version wrote it, so that the next one reads this one's. A line is whole or
//! worth nothing: who stores it sees to that, with a checksum.
//!
//! It is one file, since what writes and what reads are right only as each other's mirror.

use std::sync::Arc;

use fdstash_proto::{
    Access, Flags, Kind, Labels, Mode, Name, Pattern, Peer, Share, Taking, Ticket,
};

use crate::{
    ConnectionId, Details, Done, EntryId, Facts, Kept, Notes, Record,
    bytes::{Reader, Unreadable, Writer},
    entry::{Ends, Expiry},
};

/// What every line begins with.
const VERSION: u8 = 1;

/// What a descriptor is called in the process's table.
pub type Number = u32;

/// One line of the journal.
#[derive(Debug)]
pub enum Line {
    /// The first: how far counting had come.
    Begin(Begin),
    /// One call, or one moment.
    Change(Record<Number>),
    /// The last of a daemon that hands over: the connections that go on.
    Handover(Vec<Carried>),
}

/// How far counting had come when a journal was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Begin {
    /// How often the daemon has come back to what it kept.
    pub restores: u64,
    /// The last entry's number.
    pub last_entry: u64,
    /// The last connection's.
    pub last_connection: u64,
    /// The revision.
    pub revision: u64,
}

/// A connection that goes on with the next daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Which one it is.
    pub id: ConnectionId,
    /// Its socket.
    pub number: Number,
    /// How the call that it is at is to be answered.
    pub mode: Mode,
    /// What it is at.
    pub doing: Doing,
    /// How many changes a watcher was not told of.
    pub lost: u64,
    /// What has come over it and is not yet understood.
    pub bytes: Vec<u8>,
    /// The descriptors that came with that.
    pub fds: Vec<Number>,
}

/// What a connection does that can go on as if nothing had happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// It is between two calls.
    Nothing,
    /// It waits with a Take.
    Waiting {
        /// For these.
        names: Vec<Name>,
        /// What shall become of them.
        taking: Taking,
        /// Until when, in microseconds on the boot clock.
        until_boot_usec: u64,
    },
    /// It watches.
    Watching(Pattern),
    /// The same, in a transaction that has nothing in it yet.
    InTransaction(Box<Doing>),
    /// The same, in a transaction that was rolled back, of which its client is yet to be told.
    Failed(Box<Doing>),
}

const BEGIN: u8 = 1;
const CHANGE: u8 = 2;
const HANDOVER: u8 = 3;

impl Begin {
    /// Appends it as a line.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        let mut to = line(bytes, BEGIN);
        for number in [self.restores, self.last_entry, self.last_connection, self.revision] {
            to.number(number);
        }
    }
}

impl<F> Record<F> {
    /// Appends it as a line, with the numbers that the descriptors have in the process's table.
    pub fn write(&self, number: impl Fn(&F) -> Number, bytes: &mut Vec<u8>) {
        let mut to = line(bytes, CHANGE);
        to.count(self.put.len());
        for kept in &self.put {
            to.number(number(&kept.fd).into());
            write_details(&kept.details, &mut to);
        }
        to.count(self.gone.len());
        for id in &self.gone {
            to.number(id.0);
        }
        to.flag(self.done.is_some());
        if let Some(done) = &self.done {
            write_done(done, &mut to);
        }
    }
}

/// Appends the connections that go on as a line.
pub fn write_handover(carried: &[Carried], bytes: &mut Vec<u8>) {
    let mut to = line(bytes, HANDOVER);
    to.count(carried.len());
    for one in carried {
        write_carried(one, &mut to);
    }
}

impl Line {
    /// What a line says.
    ///
    /// # Errors
    ///
    /// If this version cannot read it.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut from = Reader(bytes);
        let version = from.byte()?;
        if version != VERSION {
            return Err(Unreadable::Version(version.into()));
        }
        let line = match from.byte()? {
            BEGIN => Self::Begin(Begin {
                restores: from.number()?,
                last_entry: from.number()?,
                last_connection: from.number()?,
                revision: from.number()?,
            }),
            CHANGE => Self::Change(Record {
                put: from.several(read_kept)?,
                gone: from.several(|from| from.number().map(EntryId))?,
                done: from.maybe(read_done)?,
            }),
            HANDOVER => Self::Handover(from.several(read_carried)?),
            _ => return Err(Unreadable::Strange),
        };
        from.end()?;
        Ok(line)
    }
}

impl Details {
    /// Appends what is known of an entry, for whoever keeps it together with its descriptor.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(VERSION);
        write_details(self, &mut Writer(bytes));
    }

    /// What [`Details::write`] has written.
    ///
    /// # Errors
    ///
    /// If this version cannot read it.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut from = Reader(bytes);
        let version = from.byte()?;
        if version != VERSION {
            return Err(Unreadable::Version(version.into()));
        }
        let details = read_details(&mut from)?;
        from.end()?;
        Ok(details)
    }
}

fn line(bytes: &mut Vec<u8>, kind: u8) -> Writer<'_> {
    bytes.extend([VERSION, kind]);
    Writer(bytes)
}

fn write_details(details: &Details, to: &mut Writer<'_>) {
    let Details { id, name, facts, may_reopen, giver, given_at_usec, .. } = details;
    to.number(id.0);
    to.number(details.revision);
    to.text(name.as_str());
    to.0.extend([kind_code(facts.kind), access_code(facts.access), facts.flags.bits()]);
    to.number(facts.device);
    to.number(facts.inode);
    to.flag(facts.target.is_some());
    if let Some(target) = &facts.target {
        to.text(target);
    }
    to.0.push(access_code(*may_reopen));
    to.number(giver.uid.into());
    to.number(giver.gid.into());
    to.number(u32::from_ne_bytes(giver.pid.to_ne_bytes()).into());
    to.number(*given_at_usec);
    let Notes { share, labels, ends } = details.notes();
    to.flag(ends.expiry.is_some());
    if let Some(expiry) = ends.expiry {
        to.number(expiry.after_usec);
        to.number(expiry.boot_usec);
    }
    to.flag(ends.ephemeral_of.is_some());
    if let Some(connection) = ends.ephemeral_of {
        to.number(connection.0);
    }
    to.flag(ends.close_on_hangup);
    for ids in [&share.uids, &share.gids] {
        to.count(ids.len());
        ids.iter().for_each(|id| to.number((*id).into()));
    }
    to.count(labels.len());
    for (key, note) in labels {
        to.text(key);
        to.text(note);
    }
}

fn read_kept(from: &mut Reader<'_>) -> Result<Kept<Number>, Unreadable> {
    let number = from.u32()?;
    Ok(Kept { fd: Arc::new(number), details: Arc::new(read_details(from)?) })
}

// The fields are read in the order in which they stand here, and were written.
fn read_details(from: &mut Reader<'_>) -> Result<Details, Unreadable> {
    let id = EntryId(from.number()?);
    let revision = from.number()?;
    Ok(Details {
        id,
        revision,
        name: read_name(from)?,
        facts: Facts {
            kind: read_kind(from)?,
            access: read_access(from)?,
            flags: Flags::from_bits(from.byte()?).ok_or(Unreadable::Strange)?,
            device: from.number()?,
            inode: from.number()?,
            target: from.maybe(Reader::text)?.map(Into::into),
        },
        may_reopen: read_access(from)?,
        giver: read_peer(from)?,
        given_at_usec: from.number()?,
        notes: read_notes(from)?.into_box(),
    })
}

fn read_notes(from: &mut Reader<'_>) -> Result<Notes, Unreadable> {
    let expiry = |from: &mut Reader<'_>| {
        Ok(Expiry { after_usec: from.number()?, boot_usec: from.number()? })
    };
    let ends = Ends {
        expiry: from.maybe(expiry)?,
        ephemeral_of: from.maybe(|from| from.number().map(ConnectionId))?,
        close_on_hangup: from.flag()?,
    };
    let share = Share { uids: from.several(Reader::u32)?, gids: from.several(Reader::u32)? };
    Ok(Notes { share, labels: read_labels(from)?, ends })
}

fn read_labels(from: &mut Reader<'_>) -> Result<Labels, Unreadable> {
    let labels = from.several(|from| Ok((from.text()?.to_owned(), from.text()?.to_owned())))?;
    Ok(labels.into_iter().collect())
}

fn read_peer(from: &mut Reader<'_>) -> Result<Peer, Unreadable> {
    let (uid, gid) = (from.u32()?, from.u32()?);
    Ok(Peer { uid, gid, pid: i32::from_ne_bytes(from.u32()?.to_ne_bytes()) })
}

fn read_name(from: &mut Reader<'_>) -> Result<Name, Unreadable> {
    Name::new(from.text()?).map_err(|_| Unreadable::Strange)
}

fn write_done(done: &Done, to: &mut Writer<'_>) {
    to.number(done.by.0);
    to.number(done.uid.into());
    to.text(done.ticket.as_str());
    to.count(done.replaced.len());
    done.replaced.iter().for_each(|name| to.text(name.as_str()));
    to.number(done.until_boot_usec);
}

fn read_done(from: &mut Reader<'_>) -> Result<Done, Unreadable> {
    Ok(Done {
        by: ConnectionId(from.number()?),
        uid: from.u32()?,
        ticket: Ticket::new(from.text()?).map_err(|_| Unreadable::Strange)?,
        replaced: from.several(read_name)?,
        until_boot_usec: from.number()?,
    })
}

fn write_carried(carried: &Carried, to: &mut Writer<'_>) {
    to.number(carried.id.0);
    to.number(carried.number.into());
    to.0.push(mode_code(carried.mode));
    write_doing(&carried.doing, to);
    to.number(carried.lost);
    to.bytes(&carried.bytes);
    to.count(carried.fds.len());
    carried.fds.iter().for_each(|number| to.number((*number).into()));
}

fn write_doing(doing: &Doing, to: &mut Writer<'_>) {
    match doing {
        Doing::Nothing => to.0.push(0),
        Doing::Waiting { names, taking, until_boot_usec } => {
            to.0.push(1);
            to.count(names.len());
            names.iter().for_each(|name| to.text(name.as_str()));
            to.0.push(taking_code(*taking));
            to.number(*until_boot_usec);
        }
        Doing::Watching(pattern) => {
            to.0.push(2);
            to.text(pattern.as_str());
        }
        Doing::InTransaction(doing) => {
            to.0.push(3);
            write_doing(doing, to);
        }
        Doing::Failed(doing) => {
            to.0.push(4);
            write_doing(doing, to);
        }
    }
}

fn read_carried(from: &mut Reader<'_>) -> Result<Carried, Unreadable> {
    Ok(Carried {
        id: ConnectionId(from.number()?),
        number: from.u32()?,
        mode: read_code(from, &[Mode::Once, Mode::More, Mode::Oneway], mode_code)?,
        doing: match from.byte()? {
            3 => Doing::InTransaction(Box::new(read_doing(from.byte()?, from)?)),
            4 => Doing::Failed(Box::new(read_doing(from.byte()?, from)?)),
            code => read_doing(code, from)?,
        },
        lost: from.number()?,
        bytes: from.bytes()?.to_vec(),
        fds: from.several(Reader::u32)?,
    })
}

fn read_doing(code: u8, from: &mut Reader<'_>) -> Result<Doing, Unreadable> {
    Ok(match code {
        0 => Doing::Nothing,
        1 => Doing::Waiting {
            names: from.several(read_name)?,
            taking: read_code(from, &[Taking::Move, Taking::Copy, Taking::Fresh], taking_code)?,
            until_boot_usec: from.number()?,
        },
        2 => Doing::Watching(Pattern::new(from.text()?).map_err(|_| Unreadable::Strange)?),
        _ => return Err(Unreadable::Strange),
    })
}

fn read_kind(from: &mut Reader<'_>) -> Result<Kind, Unreadable> {
    use Kind::{Anonymous, Block, Character, Directory, Fifo, Regular, Socket};
    let all = [Regular, Directory, Block, Character, Fifo, Socket, Anonymous];
    read_code(from, &all, kind_code)
}

fn read_access(from: &mut Reader<'_>) -> Result<Access, Unreadable> {
    let all = [Access::Read, Access::Write, Access::ReadWrite, Access::Path];
    read_code(from, &all, access_code)
}

/// The one of `all` whose code stands there.
fn read_code<T: Copy>(
    from: &mut Reader<'_>,
    all: &[T],
    code: fn(T) -> u8,
) -> Result<T, Unreadable> {
    let byte = from.byte()?;
    all.iter().copied().find(|one| code(*one) == byte).ok_or(Unreadable::Strange)
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Regular => 1,
        Kind::Directory => 2,
        Kind::Block => 3,
        Kind::Character => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Anonymous => 7,
    }
}

fn access_code(access: Access) -> u8 {
    match access {
        Access::Read => 1,
        Access::Write => 2,
        Access::ReadWrite => 3,
        Access::Path => 4,
    }
}

fn mode_code(mode: Mode) -> u8 {
    match mode {
        Mode::Once => 1,
        Mode::More => 2,
        Mode::Oneway => 3,
    }
}

fn taking_code(taking: Taking) -> u8 {
    match taking {
        Taking::Move => 1,
        Taking::Copy => 2,
        Taking::Fresh => 3,
    }
}
