//! [`Metrics`]: what the loop measures where somebody watches (`--metrics`); and [`Figures`], all that there
//! is to see of a daemon at one moment, in the words of OpenMetrics.
//!
//! The counters are those of one server, and begin anew with the next, which is what Prometheus expects of a
//! process. They add up: what was given and what came back is what is there, was taken, closed, or expired.

use std::{collections::BTreeMap, fmt, time::Duration};

use fdstash_proto::{Mirror, Refusal, Statistics};
use fdstash_stash::{Census, ConnectionId, Limits};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
};

use crate::{clock, log, run::Daemon};

/// Of how many users each is told how many entries it has.
const MOST_USERS: usize = 50;

/// The bounds of what is counted by how long it took, in microseconds: from what a call takes to what
/// an open from a slow file server does.
const BOUNDS: [u64; 12] =
    [10, 25, 50, 100, 250, 1000, 5000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// What the loop measures.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Whose files are being opened, since when on the boot clock.
    opening: BTreeMap<ConnectionId, u64>,
    measured: Measured,
    limits: Limits,
}

#[derive(Debug, Clone)]
struct Measured {
    /// Since 1970.
    started_usec: u64,
    calls: Durations,
    opens: Durations,
    refused: BTreeMap<String, u64>,
    turned_away: u64,
}

/// How many took how long.
#[derive(Debug, Clone, Default)]
struct Durations {
    /// Up to each of the bounds, and longer.
    buckets: [u64; BOUNDS.len() + 1],
    usec: u64,
}

/// All that there is to see.
#[derive(Debug)]
pub(crate) struct Figures {
    statistics: Statistics,
    census: Census,
    limits: Limits,
    measured: Measured,
    descriptors: usize,
    in_flight: usize,
    journal_bytes: u64,
    audit_left_out: u64,
    log_lost: u64,
}

impl Metrics {
    pub(crate) fn new(limits: Limits) -> Self {
        let measured = Measured {
            started_usec: clock::now().wall_usec,
            calls: Durations::default(),
            opens: Durations::default(),
            refused: BTreeMap::new(),
            turned_away: 0,
        };
        Self { opening: BTreeMap::new(), measured, limits }
    }

    /// Takes note of a call on which the loop has worked since then, on the boot clock.
    pub(crate) fn called(&mut self, since_usec: u64) {
        self.measured.calls.note(clock::now().boot_usec.saturating_sub(since_usec));
    }

    /// Takes note of opens that begin.
    pub(crate) fn open(&mut self, by: ConnectionId) {
        self.opening.insert(by, clock::now().boot_usec);
    }

    /// Takes note of opens that have ended, in whatever way.
    pub(crate) fn opened(&mut self, by: ConnectionId) {
        if let Some(since) = self.opening.remove(&by) {
            self.measured.opens.note(clock::now().boot_usec.saturating_sub(since));
        }
    }

    /// Takes note of what somebody was refused.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        let mut reason = refusal.error();
        if let Refusal::LimitExceeded { limit, .. } = refusal {
            reason = limit;
        }
        match self.measured.refused.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.measured.refused.insert(reason.to_owned(), 1)),
        }
    }

    /// Takes note of a connection that found no room.
    pub(crate) fn turned_away(&mut self) {
        self.measured.turned_away += 1;
    }
}

impl Durations {
    fn note(&mut self, usec: u64) {
        let at = BOUNDS.iter().position(|bound| usec <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at] += 1;
        self.usec = self.usec.saturating_add(usec);
    }
}

impl Daemon {
    /// All that there is to see just now, where somebody watches.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let Metrics { measured, limits, .. } = self.metrics.as_ref()?;
        let (descriptors, in_flight) = self.ledger.taken();
        Some(Figures {
            statistics: Statistics { mirror: self.mirrored(), ..self.stash.statistics() },
            census: self.stash.census(MOST_USERS),
            limits: *limits,
            measured: measured.clone(),
            descriptors,
            in_flight,
            journal_bytes: self.journal.len(),
            audit_left_out: self.audit.left_out(),
            log_lost: log::lost(),
        })
    }
}

/// One label, and its value.
type Label = [(&'static str, String); 1];

/// Writes metrics, one after the other.
struct Sheet<'a>(DescriptorEncoder<'a>);

impl Sheet<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl TryInto<i64>) -> fmt::Result {
        let value = value.try_into().unwrap_or(i64::MAX);
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// A time, in seconds.
    fn time(&mut self, name: &str, help: &str, usec: u64) -> fmt::Result {
        let value = seconds(usec);
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let none: Option<&Exemplar<NoLabelSet, f64>> = None;
        let kind = MetricType::Counter;
        self.0.encode_descriptor(name, help, None, kind)?.encode_counter(&value, none)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Label, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (label, value) in values {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            metric.encode_family(&label)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Label, u64)>,
    ) -> fmt::Result {
        let none: Option<&Exemplar<NoLabelSet, f64>> = None;
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (label, value) in values {
            metric.encode_family(&label)?.encode_counter(&value, none)?;
        }
        Ok(())
    }

    fn durations(&mut self, name: &str, help: &str, durations: &Durations) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(durations.buckets).collect();
        let count = durations.buckets.iter().sum();
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(seconds(durations.usec), count, &buckets, None)
    }

    fn info(&mut self, name: &str, help: &str, labels: &impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }
}

fn seconds(usec: u64) -> f64 {
    Duration::from_micros(usec).as_secs_f64()
}

fn label(key: &'static str, value: impl Into<String>) -> Label {
    [(key, value.into())]
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = Sheet(encoder);
        self.of_daemon(&mut sheet)?;
        self.of_entries(&mut sheet)?;
        self.of_users(&mut sheet)?;
        self.of_room(&mut sheet)?;
        self.statistics.mirror.map_or(Ok(()), |mirror| of_mirror(&mirror, &mut sheet))
    }
}

impl Figures {
    fn of_daemon(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let Measured { started_usec, calls, opens, refused, turned_away } = &self.measured;
        let version = label("version", env!("CARGO_PKG_VERSION"));
        sheet.info("build", "The daemon that serves", &version)?;
        sheet.time("start_time_seconds", "When this server began, since 1970", *started_usec)?;
        let restores = self.statistics.restores;
        sheet.counter("restores", "Servers that came back to what was kept", restores)?;
        sheet.durations("call_seconds", "Time that the loop worked on a call", calls)?;
        sheet.durations(
            "open_seconds",
            "Time until the files of a call were open, or not",
            opens,
        )?;
        let refused = refused.iter().map(|(reason, count)| (label("reason", reason), *count));
        sheet.counters("refused", "Calls refused, by the error or the limit", refused)?;
        sheet.counter("turned_away", "Connections for which there was no room", *turned_away)?;
        sheet.counter("log_lost", "Messages for which the log had no room", self.log_lost)?;
        let left_out = self.audit_left_out;
        sheet.counter("audit_left_out", "Deeds and refusals that the audit only counted", left_out)
    }

    fn of_entries(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let Statistics { given, taken, copied, closed, reopened, expired, .. } = self.statistics;
        let restored = self.census.restored;
        let kinds = self.census.kinds.iter();
        let kinds = kinds.map(|(kind, count)| (label("kind", kind.as_str()), *count));
        sheet.gauges("entries", "Entries kept, by kind of file", kinds)?;
        sheet.counter(
            "given",
            "Descriptors given to this server",
            given.saturating_sub(restored),
        )?;
        sheet.counter("restored", "Descriptors that came back from an earlier server", restored)?;
        sheet.counter("taken", "Descriptors taken", taken)?;
        sheet.counter("copied", "Copies handed out", copied)?;
        sheet.counter("closed", "Descriptors closed, by a call or without one", closed)?;
        sheet.counter("reopened", "Entries opened anew", reopened)?;
        sheet.counter("expired", "Descriptors closed since their time was over", expired)
    }

    fn of_users(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let Census { all, users, .. } = &self.census;
        let Statistics { connections, transactions, .. } = self.statistics;
        sheet.gauge("connections", "Connections open", connections)?;
        sheet.gauge("transactions", "Transactions open", transactions)?;
        sheet.gauge("waits", "Names that Takes wait for", all.waits)?;
        sheet.gauge("watches", "Watches", all.watches)?;
        sheet.gauge("opens", "Calls whose files are being opened", all.opens)?;
        let users = users.iter().map(|(uid, count)| (label("uid", uid.to_string()), *count));
        sheet.gauges("user_entries", "Names of the users who have most of them", users)
    }

    fn of_room(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let Limits { entries, connections, places, opens, quota, .. } = &self.limits;
        sheet.gauge("entries_limit", "Entries that there can be", *entries)?;
        sheet.gauge("connections_limit", "Connections that there can be", *connections)?;
        sheet.gauge("opens_limit", "Calls whose files can be being opened", *opens)?;
        sheet.gauge("user_entries_limit", "Names that a user may have", quota.entries)?;
        sheet.gauge(
            "user_connections_limit",
            "Connections that a user may have",
            quota.connections,
        )?;
        sheet.gauge(
            "descriptors",
            "Descriptors open, and those kept room for",
            self.descriptors,
        )?;
        sheet.gauge("descriptors_in_flight", "Of these, those coming or going", self.in_flight)?;
        sheet.gauge(
            "descriptors_limit",
            "Entries and connections that there is room for",
            *places,
        )?;
        sheet.gauge("journal_bytes", "Bytes of the journal in memory", self.journal_bytes)
    }
}

fn of_mirror(mirror: &Mirror, sheet: &mut Sheet<'_>) -> fmt::Result {
    let Mirror { bundles, puts, entries, waiting, behind_usec } = *mirror;
    sheet.gauge("mirror_bundles", "Bundles in the service manager's store", bundles)?;
    sheet.counter("mirror_puts", "Bundles given to the service manager", puts)?;
    sheet.gauge("mirror_entries", "Entries in the service manager's store", entries)?;
    sheet.gauge("mirror_waiting", "Changes that the store does not have yet", waiting)?;
    sheet.time("mirror_behind_seconds", "How old the oldest of these is", behind_usec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_time_is_counted_up_to_the_first_bound_that_it_does_not_exceed() {
        let mut durations = Durations::default();

        [0, 10, 11, 10_000_000, 10_000_001].into_iter().for_each(|usec| durations.note(usec));

        assert_eq!(durations.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(durations.usec, 20_000_022);
    }
}
