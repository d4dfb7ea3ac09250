//! What a crash leaves: the list of performed effects is cut anywhere, and what the records until
//! there say is what comes back.

use std::collections::{BTreeMap, BTreeSet};

use fdstash_proto::{Call, Name};
use fdstash_stash::{Done, EntryId, Inspected};
use proptest::prelude::*;

use crate::{
    Transactions, config,
    history::histories,
    trace::{Input, Moment, Performed, Said, Written, gifts},
    world::play,
};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_cut_anywhere_restores_what_was_before_the_step_or_after_it(history in histories()) {
        let trace = play(&history);

        let mut journal = Journal::default();
        for (at, _, moment) in trace.steps() {
            let ends = moment.predicted.records.iter().map(|record| record.lasting.clone());
            let states: Vec<_> = [journal.restored()].into_iter().chain(ends).collect();
            let mut written = 0;
            for effect in &moment.performed {
                written += usize::from(journal.write(effect));
                // Here is the cut.
                let restored = journal.restored();
                prop_assert_eq!(Some(&restored), states.get(written), "{}", trace.until(at));
            }
            prop_assert_eq!(journal.named(), moment.after.kept(), "{}", trace.until(at));
            prop_assert_eq!(journal.fds().len(), journal.named().len(), "{}", trace.until(at));
        }
    }

    #[test]
    fn at_a_cut_every_performed_answer_is_honoured(history in histories()) {
        let trace = play(&history);

        let mut journal = Journal::default();
        let mut transactions = Transactions::default();
        let mut calls = BTreeMap::new();
        for (at, _, moment) in trace.steps() {
            calls.extend(moment.call());
            let alone = moment.caller().filter(|caller| !transactions.is_open(*caller));
            transactions.note(moment);
            let (mut written, mut answered) = (0, 0);
            for effect in &moment.performed {
                written += usize::from(journal.write(effect));
                let Some((to, said)) = effect.says() else { continue };
                // Here is the cut.
                let acknowledged = moment.predicted.answers.get(answered).map(|(due, ..)| *due);
                prop_assert_eq!(Some(written), acknowledged, "{}", trace.until(at));
                answered += 1;
                let is_new = !moment.predicted.is_repeated;
                if is_new && alone == Some(to) && matches!(said, Said::Plain(Ok(_))) {
                    let honoured = is_honoured(calls[&to], moment, &journal.named());
                    prop_assert!(honoured, "{}", trace.until(at));
                }
            }
        }
    }

    #[test]
    fn at_a_cut_nothing_is_gone_that_was_to_be_taken_and_not_handed_out(history in histories()) {
        let trace = play(&history);

        let mut journal = Journal::default();
        let mut lent = BTreeSet::new();
        for (at, _, moment) in trace.steps() {
            for effect in &moment.performed {
                let before = journal.named();
                journal.write(effect);
                if matches!(moment.input, Input::Sent(_)) {
                    let after = journal.named();
                    let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
                    let mut taken = gone.map(|(_, fd)| fd);
                    prop_assert!(taken.all(|fd| lent.contains(fd)), "{}", trace.until(at));
                }
                lent.extend(effect.handed());
            }
        }
    }

    #[test]
    fn at_a_cut_nothing_is_closed_that_a_record_still_names(history in histories()) {
        let trace = play(&history);

        let mut journal = Journal::default();
        let mut closed = BTreeSet::new();
        for (at, _, moment) in trace.steps() {
            for effect in &moment.performed {
                journal.write(effect);
                if let Performed::Close(fds) = effect {
                    closed.extend(fds);
                }
                prop_assert!(journal.fds().is_disjoint(&closed), "{}", trace.until(at));
            }
        }
    }
}

/// The records that were performed.
#[derive(Default)]
pub(crate) struct Journal {
    entries: BTreeMap<EntryId, Written>,
    done: Vec<Done>,
}

impl Journal {
    /// Writes down a record; whether the effect is one.
    pub(crate) fn write(&mut self, effect: &Performed) -> bool {
        let Performed::Record { put, gone, done } = effect else { return false };
        self.entries.extend(put.iter().map(|written| (written.id, written.clone())));
        gone.iter().for_each(|id| drop(self.entries.remove(id)));
        self.done.extend(done.clone());
        true
    }

    /// The descriptors that a record still names.
    fn fds(&self) -> BTreeSet<u64> {
        self.entries.values().map(|written| written.fd).collect()
    }

    /// What a record still keeps, by name.
    fn named(&self) -> BTreeMap<Name, u64> {
        self.entries.values().map(|written| (written.name.clone(), written.fd)).collect()
    }

    /// What comes back: a crash ends all connections, and so all that is ephemeral.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = &Written> {
        self.entries.values().filter(|written| !written.ephemeral)
    }

    /// The calls that were done with tickets, in their order.
    pub(crate) fn done(&self) -> impl Iterator<Item = &Done> {
        self.done.iter()
    }

    fn restored(&self) -> BTreeMap<Name, u64> {
        self.lasting().map(|written| (written.name.clone(), written.fd)).collect()
    }
}

/// Whether what a call outside a transaction acknowledges is in the records.
fn is_honoured(call: &Call<Inspected<u64>>, moment: &Moment, named: &BTreeMap<Name, u64>) -> bool {
    let new: BTreeSet<_> = gifts(call).chain(moment.input.brings()).collect();
    let is_new = |name: &Name| named.get(name).is_some_and(|fd| new.contains(fd));
    match call {
        Call::Give { gifts, .. } => gifts.iter().all(|gift| is_new(&gift.name)),
        Call::Reopen { reopenings } => reopenings.iter().all(|wanted| is_new(&wanted.name)),
        Call::Close { names, .. } => names.iter().all(|name| !named.contains_key(name)),
        // What is handed out may still be there, and the others change nothing.
        Call::Take { .. }
        | Call::Begin
        | Call::Commit { .. }
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics => true,
    }
}
