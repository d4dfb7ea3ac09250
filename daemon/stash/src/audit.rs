//! [`Deed`]: what was done with an entry, for whoever has to account for it.

use std::sync::Arc;

use fdstash_proto::{Change, Name};

use crate::{ConnectionId, Details, Effect, Effects, Stash};

/// What was done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// What watchers are told of; what was taken has left.
    Changed(Change),
    /// A copy is on its way to who asked for it.
    Copied,
    /// It is on its way to who takes or reopens it in a transaction, whatever that comes to.
    Lent,
}

impl Deed {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed(change) => change.as_str(),
            Self::Copied => "copied",
            Self::Lent => "lent",
        }
    }
}

impl<F> Stash<F> {
    /// Has what is done with entries be told by [`Effect::Audit`], or not.
    pub fn set_audited(&mut self, is_audited: bool) {
        self.is_audited = is_audited;
    }

    /// Tells what was done with entries.
    pub(crate) fn audit(
        &self,
        by: ConnectionId,
        deed: Deed,
        of: Vec<Arc<Details>>,
        effects: &mut Effects<F>,
    ) {
        if self.is_audited {
            let done = of.into_iter().map(|details| (deed, details)).collect();
            effects.push(Effect::Audit { by: Some(by), done });
        }
    }

    /// What a connection sees under these names, if that is to be accounted for.
    pub(crate) fn seen(&self, by: ConnectionId, names: &[Name]) -> Vec<Arc<Details>> {
        let names = if self.is_audited { names } else { &[] };
        let seen = names.iter().filter_map(|name| self.view(by, name));
        seen.map(|kept| Arc::clone(&kept.details)).collect()
    }
}
