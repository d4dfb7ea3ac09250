//! The VMM: a process that opens its disk through the stash, and does what it is told on its standard
//! input; and the demonstration's end of that.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fdstash::{
    Driver, Files, OpenOptions, ReopenOptions,
    blocking::{Client, Image},
    imago::{Disk, Format, FormatAccess, StorageFile},
};

use crate::{
    Outcome, daemon,
    guest::{Guest, Record},
};

/// Lives as a VMM: until its standard input ends, or it is killed.
pub(crate) fn live(socket: &Path, top: &Path, record: &Path) -> Outcome<()> {
    let mut stash = Client::connect_to(socket)?;
    let mut disk = Timed::new(Disk::at(top, Format::Qcow2));
    let options = OpenOptions::read_write().under("vm7/").only_stash();
    let mut image = Image::open(&mut stash, &mut disk, &options)?;
    let shared = disk.disk.shared().ok_or("the disk is open")?;
    let mut guest = Guest::start(shared, Record::open(record)?)?;
    say(&image.names().count());

    let mut is_direct = false;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (verb, count) = line.split_once(' ').ok_or("a verb has a number")?;
        let count: u64 = count.parse()?;
        match verb {
            "switch" => {
                let switched = (0..count).try_for_each(|_| {
                    is_direct = !is_direct;
                    let change = ReopenOptions::new().direct(is_direct);
                    disk.timed(|disk| image.reopen(&mut stash, disk, &change))?;
                    // So that the guest works in each mode, and every switch meets I/O under way.
                    wait_for_operations(&guest, 50)
                });
                match switched {
                    Ok(()) => say(&disk.times()),
                    Err(error) => {
                        is_direct = !is_direct;
                        say(&format!("refused {error}"));
                    }
                }
            }
            "operations" => {
                wait_for_operations(&guest, count)?;
                say(&Life::of(&guest));
            }
            _ => {
                guest.stop()?;
                say(&Life::of(&guest));
            }
        }
        if let Some(error) = guest.first_error() {
            eprintln!("vmm: the guest's first error: {error}");
        }
    }
    Ok(())
}

fn say(what: &dyn fmt::Display) {
    // Whoever asked is gone, if nobody reads it.
    let _ = writeln!(io::stdout(), "{what}");
}

fn wait_for_operations(guest: &Guest, count: u64) -> Outcome<()> {
    let until = guest.operations() + count;
    let deadline = Instant::now() + Duration::from_secs(30);
    while guest.operations() < until {
        if Instant::now() > deadline {
            return Err("the guest's disk hangs".into());
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A driver that measures how long its guest waits: from the quiesce until it goes on.
struct Timed {
    disk: Disk,
    rested: Option<Instant>,
    pauses: Vec<Duration>,
    switches: Vec<Duration>,
}

impl Timed {
    fn new(disk: Disk) -> Self {
        Self { disk, rested: None, pauses: Vec::new(), switches: Vec::new() }
    }

    fn timed<E>(&mut self, switch: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        let began = Instant::now();
        switch(self)?;
        self.switches.push(began.elapsed());
        Ok(())
    }

    /// Of the switches since the last time.
    fn times(&mut self) -> String {
        let (switch, pause) = (median(&mut self.switches), median(&mut self.pauses));
        format!("{switch} each (median), during which the guest waited {pause}")
    }
}

fn median(times: &mut Vec<Duration>) -> String {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    times.clear();
    format!("{:.2} ms", median.as_secs_f64() * 1e3)
}

impl Driver for Timed {
    type Disk = FormatAccess<StorageFile>;

    async fn open(&mut self, files: &mut Files<'_>) -> io::Result<FormatAccess<StorageFile>> {
        self.disk.open(files).await
    }

    async fn check(&mut self, disk: &FormatAccess<StorageFile>) -> io::Result<()> {
        self.disk.check(disk).await
    }

    async fn quiesce(&mut self) -> io::Result<()> {
        self.rested = Some(Instant::now());
        self.disk.quiesce().await
    }

    fn resume(&mut self, disk: Option<FormatAccess<StorageFile>>) {
        self.disk.resume(disk);
        self.pauses.extend(self.rested.take().map(|rested| rested.elapsed()));
    }
}

/// What a guest has done so far.
pub(crate) struct Life {
    pub(crate) operations: u64,
    pub(crate) errors: u64,
    longest_usec: u64,
}

impl Life {
    fn of(guest: &Guest) -> Self {
        Self {
            operations: guest.operations(),
            errors: guest.errors(),
            longest_usec: guest.longest_usec(),
        }
    }

    fn parse(line: &str) -> Outcome<Self> {
        let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let mut next = || Ok::<u64, crate::Failure>(numbers.next().ok_or("a figure")?.parse()?);
        Ok(Self { operations: next()?, errors: next()?, longest_usec: next()? })
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, errors, longest_usec } = self;
        write!(
            f,
            "{operations} I/O operations, {errors} errors, the slowest took {longest_usec} us"
        )
    }
}

/// A VMM that the demonstration has started.
pub(crate) struct Vmm {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    operations: u64,
}

impl Vmm {
    /// Tells also of how many files its disk is.
    pub(crate) fn start(socket: &Path, top: &Path, record: &Path) -> Outcome<(Self, u64)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--vmm").arg(socket).arg("--top").arg(top).arg("--record").arg(record);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        daemon::note(&process);
        let orders = process.stdin.take().ok_or("a pipe was asked for")?;
        let answers = BufReader::new(process.stdout.take().ok_or("a pipe was asked for")?).lines();
        let mut vmm = Self { process, orders, answers, operations: 0 };
        let files = vmm.answer()?.parse()?;
        Ok((vmm, files))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Switches the cache so often. Tells the times.
    pub(crate) fn switch(&mut self, count: u32) -> Outcome<String> {
        let answer = self.ask(&format!("switch {count}"))?;
        match answer.strip_prefix("refused ") {
            Some(reason) => Err(reason.into()),
            None => Ok(answer),
        }
    }

    /// Has it switch without an end.
    pub(crate) fn begin_switches(&mut self) -> Outcome<()> {
        writeln!(self.orders, "switch {}", u32::MAX)?;
        Ok(())
    }

    pub(crate) fn life(&mut self) -> Outcome<Life> {
        self.wait_for_operations(0)
    }

    pub(crate) fn wait_for_operations(&mut self, count: u64) -> Outcome<Life> {
        let life = Life::parse(&self.ask(&format!("operations {count}"))?)?;
        self.operations = life.operations;
        Ok(life)
    }

    /// Kills it. Tells how many operations its guest had done when it was last asked.
    pub(crate) fn kill(mut self) -> Outcome<u64> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(self.operations)
    }

    pub(crate) fn stop(mut self) -> Outcome<Life> {
        let life = Life::parse(&self.ask("stop 0")?)?;
        drop(self.orders);
        self.process.wait()?;
        Ok(life)
    }

    fn ask(&mut self, order: &str) -> Outcome<String> {
        writeln!(self.orders, "{order}")?;
        self.answer()
    }

    fn answer(&mut self) -> Outcome<String> {
        self.answers.next().ok_or("the VMM has ended")?.map_err(Into::into)
    }
}
