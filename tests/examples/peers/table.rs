//! What comes of it: each scenario's figures, and the table that is in the README.

use std::{fmt::Write, fs, io, path::Path, process::Command, time::Duration};

use crate::{
    rounds::Scenario,
    stash::{Holding, LISTED, WATCHERS},
};

/// Between these lines of a file the table stands.
const MARKS: [&str; 2] =
    ["<!-- figures, made by `make peers TABLE=README.md` -->\n", "<!-- end of figures -->\n"];

/// All that was measured.
pub(crate) struct Table<'a> {
    pub(crate) scenarios: &'a [Scenario],
    /// Which version is installed.
    pub(crate) s6: Option<&'a str>,
    pub(crate) s6_bytes: Option<f64>,
    /// How many were to be held, where there is room for them.
    pub(crate) asked: usize,
    pub(crate) holding: Holding,
}

/// What a row has of each: the figure of s6, and ours.
struct Row {
    what: String,
    to_reach: &'static str,
    cells: [Option<String>; 2],
}

impl Table<'_> {
    /// A line for each scenario.
    pub(crate) fn details(&self) -> String {
        let mut text = format!(
            "{:<22} {:>9} {:>9} {:>9} {:>7} {:>9}  {}\n",
            "what", "quiet us", "p50 us", "p99 us", "spread", "per s", "per descriptor [quartiles]"
        );
        let mut scenarios: Vec<_> =
            self.scenarios.iter().filter(|it| !it.rounds.is_empty()).collect();
        scenarios.sort_by(|one, other| one.key.cmp(&other.key));
        for scenario in scenarios {
            let at = |quartile| usec(scenario.median_at(quartile));
            let spread = 100.0 * (at(1.0) - at(0.0)) / at(0.5);
            let late =
                usec(quantile(scenario.rounds.iter().map(|told| told.p99.as_secs_f64()), 0.5));
            let _ = write!(
                text,
                "{:<22} {:>9.2} {:>9.2} {late:>9.2} {spread:>5.0} % {:>9.0}",
                scenario.key,
                at(0.25),
                at(0.5),
                scenario.rate()
            );
            if let (Some(ratio), Some([low, high])) =
                (self.ratio(&scenario.key), self.quartiles(scenario))
            {
                let _ = write!(text, "  {ratio:.2} x {} [{low:.2} {high:.2}]", scenario.base);
            }
            text.push('\n');
        }
        text
    }

    /// The table, with when and where it was made.
    pub(crate) fn markdown(&self) -> io::Result<String> {
        let column =
            self.s6.map_or("s6-fdholder".to_owned(), |version| format!("s6-fdholder {version}"));
        let mut text = format!("{}\n\n", self.place()?);
        let _ = writeln!(text, "| | to reach | {column} | fdstash |\n| --- | --- | --- | --- |");
        for Row { what, to_reach, cells } in self.rows() {
            let [s6, ours] = cells.map(|cell| cell.unwrap_or_else(|| "—".to_owned()));
            let _ = writeln!(text, "| {what} | {to_reach} | {s6} | {ours} |");
        }
        Ok(text)
    }

    /// Writes it to a file: between its marks, if it has any.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let table = self.markdown()?;
        let old = fs::read_to_string(path).unwrap_or_default();
        let [begin, end] = MARKS;
        let whole = old.split_once(begin).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(end)?;
            Some(format!("{before}{begin}\n{table}\n{end}{after}"))
        });
        fs::write(path, whole.unwrap_or(table))
    }

    fn place(&self) -> io::Result<String> {
        let said = |program: &str, word: &str| {
            let output = Command::new(program).arg(word).output()?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let cpus = std::thread::available_parallelism()?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let model = model.map_or(String::new(), |(_, model)| format!(" ({model})"));
        let [date, kernel] = [said("date", "+%F")?, said("uname", "-r")?];
        let version = env!("CARGO_PKG_VERSION");
        Ok(format!("{date}, Linux {kernel}, {cpus} CPUs{model}, fdstash {version}:"))
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            self.to_base("give, one descriptor, one connection", "≤ 1.25 × raw", "give"),
            self.to_base("take", "≤ 1.25 × raw", "take"),
            self.to_base("cycle: give, then take", "", "cycle"),
            self.growth(),
            self.to_base(
                "cycle beside 200 connections that say nothing",
                "≤ 1.3 × raw",
                "idle200_cycle",
            ),
            self.to_base("16 gives sent ahead, each", "≤ 1.0 × raw", "pipe16_give"),
            self.to_base("16 takes sent ahead, each", "≤ 1.3 × raw", "pipe16_take"),
            self.to_base("a connection for each give", "≤ 1.2 × floor", "conn_give"),
            self.to_base("253 descriptors in", "≤ 1.3 × raw", "give253"),
            self.to_base("253 descriptors out", "≤ 1.2 × raw", "take253"),
            self.rates("cycles of 8 client processes, in a second", "≥ 0.9 × floor", "c8_cycle"),
            Row {
                what: "memory for each entry that is held".to_owned(),
                to_reach: "≤ 0.4 KiB",
                cells: [self.s6_bytes, self.holding.bytes]
                    .map(|bytes| Some(format!("{:.2} KiB", bytes? / 1024.0))),
            },
            self.command("give", "command_give"),
            self.command("take", "command_take"),
        ];
        rows.extend(self.beside());
        rows
    }

    /// What has no target here.
    fn beside(&self) -> Vec<Row> {
        let row = |what: String, cells| Row { what, to_reach: "", cells };
        let listed = self.holding.held.min(LISTED);
        let held = self.holding.held;
        let time = |time: Duration| Some(format!("{:.1} ms", 1000.0 * time.as_secs_f64()));
        let quiet =
            |key| self.quiet(key).and_then(|seconds| time(Duration::from_secs_f64(seconds)));
        vec![
            self.to_base("take that is final when it has arrived", "", "safe_take"),
            self.to_base("cycle with it", "", "safe_cycle"),
            self.to_base("reopen of a file", "", "reopen"),
            row(format!("a list of {listed}"), [quiet("s6.list"), quiet("fdstash.list")]),
            row(
                format!("{} watchers told of a change", self.asked.min(WATCHERS)),
                [None, quiet("fdstash.watch")],
            ),
            row(format!("back after SIGKILL, with {held}"), [None, time(self.holding.restored)]),
            row(format!("upgraded, with {held}"), [None, time(self.holding.upgraded)]),
        ]
    }

    /// How much longer it takes than its base.
    fn to_base(&self, what: &str, to_reach: &'static str, operation: &str) -> Row {
        let cell = |who| {
            let key = format!("{who}.{operation}");
            let base = self.scenario(&key)?.base;
            // Against another server, that is said.
            let base = if base.starts_with("raw.") { "raw" } else { "floor" };
            Some(format!("{:.2} × {base}", self.ratio(&key)?))
        };
        Row { what: what.to_owned(), to_reach, cells: ["s6", "fdstash"].map(cell) }
    }

    /// How much longer a cycle takes when much is held.
    fn growth(&self) -> Row {
        let cell = |[one, many]: [&str; 2]| {
            let more = self.quiet(many)? / self.quiet(one)? - 1.0;
            Some(format!("{:+.0} %", 100.0 * more))
        };
        let keys = [["s6.cycle", "s6.h19900.cycle"], ["fdstash.cycle", "fdstash.h19900_cycle"]];
        let [s6, ours] = keys.map(cell);
        let held = self.holding.held;
        // What is free to receive and to open with is not there to be held.
        let ours =
            ours.map(|ours| if held < self.asked { format!("{ours} ({held})") } else { ours });
        let what = format!("cycle with {} held, against one", self.asked);
        Row { what, to_reach: "≤ +4 %", cells: [s6, ours] }
    }

    fn rates(&self, what: &str, to_reach: &'static str, operation: &str) -> Row {
        let cell = |who| {
            let scenario = self.scenario(&format!("{who}.{operation}"))?;
            let base = self.scenario(scenario.base)?;
            Some(format!("{:.2} × floor", scenario.rate() / base.rate()))
        };
        Row { what: what.to_owned(), to_reach, cells: ["s6", "fdstash"].map(cell) }
    }

    fn command(&self, verb: &str, operation: &str) -> Row {
        let [s6, ours, nothing] =
            [format!("s6.{operation}"), format!("fdstash.{operation}"), "true".to_owned()]
                .map(|key| self.quiet(&key));
        let told = |seconds: f64| format!("{:.2} ms", 1000.0 * seconds);
        let what = format!(
            "the command `{verb}`, whole process (`true`: {})",
            nothing.map_or_else(String::new, told)
        );
        let against = |ours: f64| match s6 {
            Some(s6) => format!("{}, {:.2} × s6", told(ours), ours / s6),
            None => told(ours),
        };
        Row { what, to_reach: "≤ 1.2 × s6", cells: [s6.map(told), ours.map(against)] }
    }

    fn scenario(&self, key: &str) -> Option<&Scenario> {
        self.scenarios.iter().find(|it| it.key == key && !it.rounds.is_empty())
    }

    /// What an operation takes in quiet rounds, in seconds.
    fn quiet(&self, key: &str) -> Option<f64> {
        Some(self.scenario(key)?.median_at(0.25))
    }

    /// That, for each descriptor, against that of the base.
    fn ratio(&self, key: &str) -> Option<f64> {
        let scenario = self.scenario(key)?;
        let base = self.scenario(scenario.base)?;
        let each = |it: &Scenario| it.median_at(0.25) / f64::from(it.descriptors);
        Some(each(scenario) / each(base))
    }

    /// Of the ratios of the rounds, one by one.
    fn quartiles(&self, scenario: &Scenario) -> Option<[f64; 2]> {
        let base = self.scenario(scenario.base)?;
        let more = f64::from(base.descriptors) / f64::from(scenario.descriptors);
        let both = scenario.rounds.iter().zip(&base.rounds);
        let ratios = both.map(|(it, base)| more * it.p50.as_secs_f64() / base.p50.as_secs_f64());
        Some([0.25, 0.75].map(|quartile| quantile(ratios.clone(), quartile)))
    }
}

impl Scenario {
    /// A quantile of the rounds' medians, in seconds.
    fn median_at(&self, part: f64) -> f64 {
        quantile(self.rounds.iter().map(|told| told.p50.as_secs_f64()), part)
    }

    /// How many operations a second there were in quiet rounds.
    fn rate(&self) -> f64 {
        quantile(self.rounds.iter().map(|told| told.count as f64 / told.sum.as_secs_f64()), 0.75)
    }
}

/// Between the two nearest.
fn quantile(values: impl Iterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = part * values.len().saturating_sub(1) as f64;
    let [below, above] =
        [at.floor(), at.ceil()].map(|at| values.get(at as usize).copied().unwrap_or(0.0));
    below + at.fract() * (above - below)
}

fn usec(seconds: f64) -> f64 {
    1e6 * seconds
}
