//! What is kept under a name, and the states that a name can be in.

use std::{mem, sync::Arc};

use fdstash_proto::{Access, Change, Entry, Labels, Name, Peer, Share};

use crate::{ConnectionId, Facts};

/// Names one kept descriptor for as long as it is kept; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u64);

/// All that is known of an entry but its descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// Which one it is.
    pub id: EntryId,
    /// Under what it is kept.
    pub name: Name,
    /// What the kernel said of it when it came.
    pub facts: Facts,
    /// The most access that a Reopen gives it.
    pub may_reopen: Access,
    /// Who gave it.
    pub giver: Peer,
    /// When, in microseconds since 1970.
    pub given_at_usec: u64,
    /// What its giver says of it; most say nothing.
    pub notes: Option<Box<Notes>>,
    /// The revision of the stash that it came with.
    pub revision: u64,
}

/// What the giver of an entry says of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    /// Who else may use it.
    pub share: Share,
    /// Free notes.
    pub labels: Labels,
    /// When it ends though nobody asks for that.
    pub ends: Ends,
}

/// When an entry ends though nobody asks for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ends {
    /// After how many microseconds it expires, and when that is on the boot clock.
    pub expiry: Option<Expiry>,
    /// The connection at whose end it is closed.
    pub ephemeral_of: Option<ConnectionId>,
    /// Whether it is closed when it polls as hung up.
    pub close_on_hangup: bool,
}

/// What most say.
static NO_NOTES: Notes = Notes {
    share: Share { uids: Vec::new(), gids: Vec::new() },
    labels: Labels::new(),
    ends: Ends { expiry: None, ephemeral_of: None, close_on_hangup: false },
};

impl Notes {
    /// The notes, if they say something.
    #[must_use]
    pub fn into_box(self) -> Option<Box<Self>> {
        (self != NO_NOTES).then(|| Box::new(self))
    }
}

/// When an entry expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// How long after it was given, in microseconds.
    pub after_usec: u64,
    /// When, in microseconds on the boot clock.
    pub boot_usec: u64,
}

/// A descriptor and what is known of it. Shares both with whoever else holds it.
#[derive(Debug)]
pub struct Kept<F> {
    /// The descriptor.
    pub fd: Arc<F>,
    /// What is known of it.
    pub details: Arc<Details>,
}

// Not derived: a derived one would ask the same of F.
impl<F> Clone for Kept<F> {
    fn clone(&self) -> Self {
        Self { fd: Arc::clone(&self.fd), details: Arc::clone(&self.details) }
    }
}

/// What stands under a name: something kept, or a hold, or both.
pub(crate) struct Slot<F> {
    /// What everybody sees.
    pub(crate) kept: Option<Kept<F>>,
    /// Who alone may touch the name for now.
    pub(crate) hold: Option<Box<Hold<F>>>,
    /// Why it goes as soon as nobody holds it any more.
    pub(crate) doom: Option<Change>,
}

/// A connection's hold of a name, by its transaction or by a call that is not finished.
pub(crate) struct Hold<F> {
    pub(crate) by: ConnectionId,
    /// Its user, if it is a connection.
    pub(crate) uid: Option<u32>,
    pub(crate) then: Then<F>,
}

/// What becomes of the name when the hold ends well.
pub(crate) enum Then<F> {
    /// It stays as it is.
    Same,
    /// Nothing is kept there any more.
    Gone(Change),
    /// This is kept there.
    New(Kept<F>, Change),
}

/// What has become of a name.
pub(crate) struct Became<F> {
    pub(crate) change: Change,
    /// What is kept there from now on, if that is something new.
    pub(crate) came: Option<Kept<F>>,
    /// What was, and is no longer.
    pub(crate) went: Option<Kept<F>>,
}

impl<F> Hold<F> {
    /// Stages what becomes of the name, and hands back what was staged before.
    pub(crate) fn stage(&mut self, then: Then<F>) -> Option<Kept<F>> {
        let superseded = match mem::replace(&mut self.then, Then::Same) {
            Then::New(kept, change) => Some((kept, change)),
            Then::Same | Then::Gone(_) => None,
        };
        let own = superseded.as_ref().is_some_and(|(_, change)| *change != Change::Reopened);
        self.then = match then {
            // What this transaction gave and ends again, leaves only the end of what was there.
            Then::Gone(_) if own => Then::Gone(Change::Closed),
            // What it gave and reopens, is still what it gave.
            Then::New(kept, Change::Reopened) if own => Then::New(kept, Change::Given),
            other @ (Then::Same | Then::Gone(_) | Then::New(..)) => other,
        };
        superseded.map(|(kept, _)| kept)
    }
}

impl<F> Slot<F> {
    pub(crate) fn empty() -> Self {
        Self { kept: None, hold: None, doom: None }
    }

    /// Has become of the name what shall, with this revision.
    pub(crate) fn settle(&mut self, then: Then<F>, revision: u64) -> Became<F> {
        match then {
            Then::Same => Became { change: Change::Reopened, came: None, went: None },
            Then::Gone(change) => {
                self.doom = None;
                Became { change, came: None, went: self.kept.take() }
            }
            Then::New(mut kept, staged) => {
                Arc::make_mut(&mut kept.details).revision = revision;
                let change = match (staged, &self.kept) {
                    (Change::Reopened, Some(_)) => Change::Reopened,
                    (_, Some(_)) => Change::Replaced,
                    (_, None) => Change::Given,
                };
                if change != Change::Reopened {
                    self.doom = None;
                }
                let went = self.kept.replace(kept.clone());
                Became { change, came: Some(kept), went }
            }
        }
    }

    pub(crate) fn held_by(&self) -> Option<ConnectionId> {
        self.hold.as_ref().map(|hold| hold.by)
    }

    /// Whether a connection has staged something that shall be kept here.
    pub(crate) fn has_staged(&self, by: ConnectionId) -> bool {
        let hold = self.hold.as_deref().filter(|hold| hold.by == by);
        hold.is_some_and(|hold| matches!(hold.then, Then::New(..)))
    }

    /// What a connection sees here: its own staging, and otherwise what everybody sees.
    pub(crate) fn view(&self, of: ConnectionId) -> Option<&Kept<F>> {
        match self.hold.as_deref() {
            Some(hold) if hold.by == of => match &hold.then {
                Then::Same => self.kept.as_ref(),
                Then::Gone(_) => None,
                Then::New(kept, _) => Some(kept),
            },
            Some(_) | None => self.kept.as_ref(),
        }
    }

    /// What is kept here and what is staged, for telling who may know of the name.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Kept<F>> {
        let staged = match self.hold.as_deref() {
            Some(Hold { then: Then::New(kept, _), .. }) => Some(kept),
            Some(Hold { then: Then::Same | Then::Gone(_), .. }) | None => None,
        };
        self.kept.iter().chain(staged)
    }
}

impl Details {
    /// What its giver says of it.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        self.notes.as_deref().unwrap_or(&NO_NOTES)
    }

    /// When it ends though nobody asks for that.
    #[must_use]
    pub fn ends(&self) -> Ends {
        self.notes().ends
    }

    /// The entry as List and Watch show it; which flags have drifted, only the kernel knows.
    pub(crate) fn show(&self, held_by: Option<Peer>) -> Entry {
        Entry {
            name: self.name.clone(),
            kind: self.facts.kind,
            access: self.facts.access,
            flags: self.facts.flags,
            drifted: fdstash_proto::Flags::NONE,
            may_reopen: self.may_reopen,
            target: self.facts.target.as_deref().map(str::to_owned),
            device: self.facts.device,
            inode: self.facts.inode,
            giver: self.giver,
            given_at_usec: self.given_at_usec,
            expires_at_usec: self
                .ends()
                .expiry
                .map(|expiry| self.given_at_usec.saturating_add(expiry.after_usec))
                // The interface's integers have a sign.
                .map(|usec| usec.min(i64::MAX.unsigned_abs())),
            revision: self.revision,
            held_by,
            labels: self.notes().labels.clone(),
            share: None,
            ephemeral: None,
            close_on_hangup: None,
        }
    }

    /// The same, as List shows it to its giver's user and to root.
    pub(crate) fn show_all(&self, held_by: Option<Peer>) -> Entry {
        Entry {
            share: Some(self.notes().share.clone()),
            ephemeral: Some(self.ends().ephemeral_of.is_some()),
            close_on_hangup: Some(self.ends().close_on_hangup),
            ..self.show(held_by)
        }
    }
}
