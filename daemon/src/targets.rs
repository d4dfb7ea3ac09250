//! [`Targets`]: where sockets and the like point, asked of the kernel a moment after they were given, when
//! nobody waits for it.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use fdstash_stash::{Details, Kept, Pointed};
use tokio::{sync::Notify, task::spawn_local, time::sleep};

use crate::{descriptor::Descriptor, inspect::target, run::Daemon};

/// How long to wait for what is taken again at once.
const MOMENT: Duration = Duration::from_millis(10);

/// Of how many to ask in one go, for which all wait; and how many to look at, of which some have gone since.
const MANY: usize = 16;
const LOOK: usize = 1000;

/// How long to rest after that. However many are given at once, it takes but a small part of the time.
const REST: Duration = Duration::from_millis(1);

/// The entries of which it is not known yet.
#[derive(Default)]
pub(crate) struct Targets {
    waiting: VecDeque<(Weak<Descriptor>, Arc<Details>)>,
    come: Rc<Notify>,
}

impl Targets {
    /// Has it asked of an entry, if it is not known.
    pub(crate) fn add(&mut self, kept: &Kept<Descriptor>) {
        if kept.details.facts.target.is_some() {
            return;
        }
        self.waiting.push_back((Arc::downgrade(&kept.fd), Arc::clone(&kept.details)));
        self.come.notify_one();
    }

    /// Asks of the next ones. Each is asked of once: what the kernel does not say, it never will.
    fn ask(&mut self) -> Vec<Pointed> {
        let mut pointed = Vec::with_capacity(MANY);
        for _ in 0..LOOK {
            let Some((fd, details)) = self.waiting.pop_front() else { break };
            let Some(fd) = fd.upgrade() else { continue };
            let name = details.name.clone();
            pointed.extend(target(&*fd).map(|target| Pointed { id: details.id, name, target }));
            if pointed.len() == MANY {
                break;
            }
        }
        pointed
    }
}

impl Daemon {
    /// Has it ask where descriptors point, whenever there are some of which it does not know.
    pub(crate) fn ask_for_targets(daemon: &Rc<RefCell<Self>>) {
        let (daemon, come) = (Rc::clone(daemon), Rc::clone(&daemon.borrow().targets.come));
        spawn_local(async move {
            loop {
                come.notified().await;
                sleep(MOMENT).await;
                while daemon.borrow_mut().point() {
                    sleep(REST).await;
                }
            }
        });
    }

    /// Has it ask of all that came back of which it does not know.
    pub(crate) fn ask_anew(&mut self) {
        let Self { stash, targets, .. } = self;
        stash.kept().for_each(|kept| targets.add(kept));
    }

    /// Asks where some descriptors point, and writes it down, if there is room for that. Whether there are
    /// more.
    fn point(&mut self) -> bool {
        if self.pause.is_still {
            // Whoever goes on asks again.
            return false;
        }
        let pointed = self.targets.ask();
        let needed = self.stash.weight().promised + self.stash.weight_of_targets(&pointed);
        if !pointed.is_empty() && self.journal.make_room(needed).is_ok() {
            // The mirror has these entries, and is told of each but once: what it does not have of them
            // is asked of the kernel again.
            if let Some(record) = self.stash.pointed(pointed) {
                self.write_down(&record);
            }
        }
        !self.targets.waiting.is_empty()
    }
}
