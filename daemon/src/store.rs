//! The service manager's descriptor store, as the mirror's [`Store`]; and what was in it at the start.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use fdstash_proto::Keeper;
use fdstash_stash::{Details, Kept, mirror::Room};
use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use crate::{
    descriptor::Descriptor,
    heart::{Heart, Stored},
    lasting::Lasting,
    mirror::{
        Mirror, Old, Store,
        bundle::{self, parse},
    },
    run::Daemon,
    systemd::{Notify, capacity},
};

/// The store of whoever has started this daemon.
struct Manager {
    notify: Notify,
    heart: Heart,
    life: u64,
    /// How many bundles this life has had at a time.
    most: u64,
}

impl Store for Manager {
    fn store(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // Before it is there: what is taken note of and is not there, is removed in vain.
        let mut stored = self.heart.stored();
        stored.next_life = stored.next_life.max(self.life + 1);
        let number = parse(name).map_or(0, |(_, number)| number);
        self.most = self.most.max(number + 1);
        stored.most_bundles = stored.most_bundles.max(self.most);
        self.heart.set_stored(stored);
        self.notify.store(name, fd)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.notify.remove(name)
    }

    fn barrier(&mut self, limit: Duration) -> io::Result<()> {
        self.notify.barrier(limit)
    }

    fn retired(&mut self) {
        let next_life = self.heart.stored().next_life.max(self.life);
        self.heart.set_stored(Stored { first_life: self.life, next_life, most_bundles: self.most });
    }
}

/// What the names of what was stored tell of it.
pub(crate) fn stored<'a>(names: impl Iterator<Item = &'a str>) -> Stored {
    let all: Vec<_> = names.filter_map(parse).collect();
    let next_life = all.iter().map(|(life, _)| life + 1).max().unwrap_or_default();
    Stored {
        first_life: all.iter().map(|(life, _)| *life).min().unwrap_or(next_life),
        next_life,
        most_bundles: all.iter().map(|(_, number)| number + 1).max().unwrap_or_default(),
    }
}

/// Has all that is kept mirrored from here on, if there is a store; and what earlier lives have left
/// in it removed, as soon as that is there. Owns the ends of those.
///
/// # Errors
///
/// If there can be no thread for it.
pub(crate) fn mirror(
    daemon: &mut Daemon,
    lasting: &Lasting,
    heart: Heart,
    ends: Vec<OwnedFd>,
) -> Result<()> {
    let (Some(notify), Some(most)) = (lasting.manager.clone(), capacity()) else { return Ok(()) };
    let Stored { first_life, next_life, most_bundles } = heart.stored();
    let of_life = |life| (0..most_bundles).map(move |number| bundle::name_of(life, number));
    let names: Vec<_> = (first_life..next_life).flat_map(of_life).collect();
    let room = Room { bundles: most.saturating_sub(names.len()).max(1), in_flight: in_flight() };
    let store = Manager { notify, heart, life: next_life, most: 0 };
    let mirror = Mirror::start(store, encode, next_life, room).context("mirroring")?;
    daemon.mirror_to(mirror, Old { names, ends, room: most });
    Ok(())
}

/// What is written down beside a descriptor.
fn encode(details: &Details) -> Vec<u8> {
    let mut record = Vec::with_capacity(details.weight());
    details.write(&mut record);
    record
}

/// How many descriptors may be in bundles: who may not exceed it is bound by what it may have open.
fn in_flight() -> usize {
    let exempt = CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
    if capabilities(None).is_ok_and(|own| own.effective.intersects(exempt)) {
        return usize::MAX;
    }
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// The mirror of what the daemon holds.
pub(crate) type DaemonsMirror = Mirror<Descriptor>;

impl Daemon {
    /// Has all that is kept mirrored from here on, and then `old` removed.
    pub(crate) fn mirror_to(&mut self, mirror: DaemonsMirror, old: Old) {
        self.stash.kept().for_each(|kept| mirror_one(&mirror, kept));
        mirror.retire(old);
        self.stash.set_keeper(Keeper::ProcessAndSystemd);
        self.mirror = Some(mirror);
    }
}

/// Has an entry mirrored, unless it ends with its connection, which no restart outlives.
pub(crate) fn mirror_one(mirror: &DaemonsMirror, kept: &Kept<Descriptor>) {
    let Kept { fd, details } = kept;
    if details.ends().ephemeral_of.is_none() {
        mirror.put(details.id, Arc::downgrade(fd), Arc::clone(details));
    }
}
