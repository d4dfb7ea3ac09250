//! What a crash leaves: the list of performed effects is cut anywhere, and what the records until
//! there say, as bytes, is what comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use fdstash_proto::{Call, Name};
use fdstash_stash::{Begin, ConnectionId, Done, Effects, EntryId, Inspected, Stash};
use proptest::prelude::*;

use super::{
    Transactions, config,
    history::histories,
    journal::{self, kept, line, restored},
    trace::{Input, Moment, Performed, Said, Trace, Written, gifts},
    world::play,
};

laws! {
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
    fn a_cut_anywhere_restores_all_that_was_known_of_it_and_goes_on_counting(
        history in histories(),
    ) {
        let trace = play(&history);

        let mut journal = Journal::default();
        for (at, _, moment) in trace.steps() {
            for effect in &moment.performed {
                if journal.write(effect) {
                    // Here is the cut.
                    let faults = journal.faults();
                    prop_assert!(faults.is_none(), "{:?} {}", faults, trace.until(at));
                }
            }
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
    lines: Vec<Vec<u8>>,
    /// The last entry, and the revision.
    last_entry: u64,
    revision: u64,
}

impl Journal {
    /// Writes down a record; whether the effect is one.
    pub(crate) fn write(&mut self, effect: &Performed) -> bool {
        let Performed::Record { put, gone, done, line } = effect else { return false };
        self.lines.push(line.clone());
        self.last_entry =
            put.iter().map(|put| put.id.0).chain([self.last_entry]).max().unwrap_or(0);
        // What is only said of an entry that is there already changes nothing.
        let is_known = !put.is_empty() && put.iter().all(|it| self.entries.contains_key(&it.id));
        let is_nothing = put.is_empty() && gone.is_empty();
        self.revision += u64::from(!(is_known || is_nothing));
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

    /// Those that are remembered: of each connection the last, and of each ticket.
    fn remembered(&self) -> Vec<Done> {
        let mut remembered: BTreeMap<ConnectionId, Done> = BTreeMap::new();
        for done in &self.done {
            let same = |it: &Done| (it.uid, &it.ticket) == (done.uid, &done.ticket);
            remembered.retain(|_, it| !same(it));
            remembered.insert(done.by, done.clone());
        }
        remembered.into_values().collect()
    }

    /// The stash that a crash here leaves, and what is to be done for it.
    pub(crate) fn stash(&self) -> (Stash<u64>, Effects<u64>) {
        let begin = line(|bytes| Begin::default().write(bytes));
        restored(iter::once(&begin).chain(&self.lines))
    }

    /// What is wrong with what a crash here leaves.
    fn faults(&self) -> Option<String> {
        let (stash, effects) = self.stash();
        let there = self.lasting().map(|it| (it.fd, it.details.clone())).collect::<Vec<_>>();
        let details = || there.iter().map(|(_, details)| details);
        let mut polled: Vec<_> = there
            .iter()
            .filter_map(|(fd, details)| details.ends().close_on_hangup.then_some(*fd))
            .collect();
        polled.sort_unstable();
        let due = details().filter_map(|it| Some(it.ends().expiry?.boot_usec)).min();
        let Begin { restores, last_entry, last_connection, revision } = stash.begin_journal();
        let remembered: Vec<_> = stash.tickets().cloned().collect();
        let last_done = self.done.iter().map(|done| done.by.0).max().unwrap_or_default();
        // And what is written anew says the same.
        let mut lines = vec![line(|bytes| stash.begin_journal().write(bytes))];
        let number = |fd: &u64| u32::try_from(*fd).expect("a small number");
        lines.extend(stash.records().map(|it| line(|bytes| it.write(number, bytes))));
        let (anew, effects_anew) = restored(&lines);
        let again = Begin { restores: restores + 1, ..stash.begin_journal() };
        let holds = [
            ("entries", kept(&stash) == there && kept(&anew) == there),
            ("what is polled", journal::polled(&effects) == polled),
            ("what is polled, anew", journal::polled(&effects_anew) == polled),
            ("what is due", stash.next_due() == due && anew.next_due() == due),
            ("tickets", remembered == self.remembered()),
            ("tickets, anew", anew.tickets().eq(stash.tickets())),
            ("weight, anew", anew.weight() == stash.weight()),
            ("restores", restores == 1),
            ("entry", last_entry == self.last_entry && last_connection >= last_done),
            ("revision", revision == self.revision),
            ("counting, anew", anew.begin_journal() == again),
        ];
        holds.iter().find(|(_, holds)| !holds).map(|(what, _)| format!("{what}: {there:?}"))
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
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => true,
    }
}
