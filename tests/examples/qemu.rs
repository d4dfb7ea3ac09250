//! A running QEMU that always ends with a working set of files, and what is done to it here: `make
//! demo-qemu` runs it.
//!
//! QEMU has two disks, as management software gives them to it: a qcow2 image over another over a raw
//! image, and a VMDK image of two extents. It exports both over NBD, and a client writes them, reads them
//! and checks what it reads, without pause, as a guest would. Under that load `fdstash qemu reopen`
//! switches the host's cache for all files of an image together; one of them is made impossible to open;
//! the daemon is killed; and QEMU is killed and started again on what the stash has. In the end `qemu-img`
//! finds in the images what the client wrote.
//!
//! It takes how often to switch, 200 times if nothing is said. Whatever ends it, a signal too, it leaves
//! no folder and no process behind.

use std::{
    env,
    error::Error,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    panic,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use fdstash::Entry;
use kit::{Daemon, Image, Io, Qemu, Random, User, is_root, pattern};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

type Failure = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// How often QEMU is killed.
const KILLS: u32 = 5;

/// Whether a signal has asked for the end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    // What a signal interrupts fails somehow, and that is nobody's fault.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !is_interrupted() {
            report(panic);
        }
    }));
    // On a thread of its own, so that whatever ends it, all that it has is dropped.
    let outcome = watch_signals().and_then(|()| {
        let demonstration = thread::spawn(demonstrate);
        demonstration.join().unwrap_or_else(|_| Err("it panicked".into()))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if is_interrupted() => {
            eprintln!("qemu: interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("qemu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Takes note of signals that ask for the end, from here on.
fn watch_signals() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    drop(entered);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                _ = quit.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
            // Others come and go.
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

/// An error once a signal has asked for the end.
fn go_on() -> Outcome<()> {
    if is_interrupted() { Err("interrupted".into()) } else { Ok(()) }
}

fn demonstrate() -> Outcome<()> {
    let switches = env::args().nth(1).map_or(Ok(200), |count| count.parse())?;
    let folder = Image::folder();
    let disks = [
        Disk::new("disk0", Image::qcow2(folder.path())),
        Disk::new("disk1", Image::vmdk(folder.path())),
    ];
    println!("1. There are two images, of three files each:");
    println!("     disk0: qcow2 over qcow2 over raw;  disk1: VMDK with two flat extents");

    let mut machine = Machine::start(disks)?;
    let (major, minor) = machine.qemu.version();
    println!("2. fdstashd serves as {}; a QEMU {major}.{minor} runs", serving_as());
    machine.give_and_attach()?;
    println!(
        "3. Management gave the files to the stash, and `fdstash qemu attach` gave QEMU its own"
    );
    machine.begin()?;
    println!(
        "4. QEMU exports both disks over NBD; they are written, read and checked, without pause"
    );
    println!("     {}", machine.goes_on(5000));

    switch_many(&machine, switches)?;
    fail_once(&machine)?;
    kill_daemon(&machine, switches)?;
    kill_qemu(&mut machine)?;
    end(&mut machine)
}

/// A disk of QEMU's, and the I/O on it.
struct Disk {
    node: &'static str,
    image: Image,
    io: Option<Io>,
}

impl Disk {
    fn new(node: &'static str, image: Image) -> Self {
        // The daemon may be somebody who could not open the files, if their mode did not let it.
        image.set_mode(0o666);
        Self { node, image, io: None }
    }
}

/// A daemon, and a QEMU with disks.
struct Machine {
    daemon: Daemon,
    qemu: Qemu,
    disks: [Disk; 2],
}

impl Machine {
    /// For root the daemon runs as an ordinary user, as it well can.
    fn start(disks: [Disk; 2]) -> Outcome<Self> {
        let daemon = match is_root() {
            true => Daemon::builder().user(User::new(NOBODY)).spawn(),
            false => Daemon::spawn(),
        };
        Ok(Self { daemon, qemu: start_qemu()?, disks })
    }

    fn give_and_attach(&self) -> Outcome<()> {
        for disk in &self.disks {
            disk.image.give(&mut self.daemon.client());
        }
        self.attach()
    }

    fn attach(&self) -> Outcome<()> {
        for disk in &self.disks {
            self.fdstash("attach", disk.node, &disk.image.arguments())?;
        }
        Ok(())
    }

    /// Begins the I/O on both disks.
    fn begin(&mut self) -> Outcome<()> {
        for disk in &mut self.disks {
            let socket = self.qemu.export(disk.node, true)?;
            // Of what a killed QEMU was just writing either can be there.
            disk.image.written = disk.image.written.found_after_a_crash(&socket, disk.node)?;
            disk.io = Some(Io::start(&socket, disk.node, &disk.image.written));
        }
        Ok(())
    }

    fn ios(&self) -> impl Iterator<Item = &Io> {
        self.disks.iter().filter_map(|disk| disk.io.as_ref())
    }

    /// Switches the host's cache of a disk, for all its files together; tells how long QEMU took.
    fn switch(&self, disk: &Disk, direct: bool) -> Outcome<Duration> {
        let direct = if direct { "on" } else { "off" };
        let args = ["--chain", "--json", "--direct", direct].map(str::to_owned);
        let told: Value = serde_json::from_str(&self.fdstash("reopen", disk.node, &args)?)?;
        let took = told["tookUSec"].as_u64().ok_or("it does not tell how long it took")?;
        Ok(Duration::from_micros(took))
    }

    /// What `fdstash qemu` says; as an error, if it fails.
    fn fdstash(&self, verb: &str, node: &str, args: &[String]) -> Outcome<String> {
        let mut command = self.daemon.command();
        command.args(["qemu", verb, "--node", node, "--qmp"]).arg(self.qemu.qmp()).args(args);
        let output = command.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().next().unwrap_or_default();
            return Err(first.trim_start_matches("fdstash: ").into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until the I/O on both disks has done so much more, without an error.
    fn goes_on_for(&self, operations: u64) {
        self.ios().for_each(|io| io.goes_on_for(operations));
    }

    /// The same, and tells how things are with it: all
    /// operations and errors so far, and the longest pause since it was told last.
    fn goes_on(&self, operations: u64) -> String {
        self.goes_on_for(operations);
        let operations: u64 = self.ios().map(Io::operations).sum();
        let errors: u64 = self.ios().map(Io::errors).sum();
        let pause = self.ios().map(Io::take_longest_pause).max().unwrap_or_default();
        format!("{operations} I/O operations, {errors} errors, longest pause {pause:.1?}")
    }
}

const NOBODY: u32 = 65534;

fn serving_as() -> &'static str {
    if is_root() { "an ordinary user (nobody)" } else { "this user" }
}

fn start_qemu() -> Outcome<Qemu> {
    Qemu::start().ok_or_else(|| "there is no QEMU to start".into())
}

fn switch_many(machine: &Machine, switches: u32) -> Outcome<()> {
    println!(
        "5. Switching the host cache of both off and on, {switches} times, all files together ..."
    );
    let (mut all, mut of_qemu) = (Vec::new(), Vec::new());
    for switch in 0..switches {
        for disk in &machine.disks {
            go_on()?;
            let began = Instant::now();
            of_qemu.push(machine.switch(disk, switch % 2 == 0)?);
            all.push(began.elapsed());
        }
        machine.goes_on_for(20);
    }
    let (command, qemu) = (median(&mut all), median(&mut of_qemu));
    println!(
        "     {} switches done: {command:.1?} each (median), of it {qemu:.1?} in QEMU",
        all.len()
    );
    println!("     {}", machine.goes_on(100));
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Makes one file impossible to open, and shows that nothing happens to any of them.
fn fail_once(machine: &Machine) -> Outcome<()> {
    let disk = &machine.disks[1];
    let extent = disk.image.files.last().ok_or("an image has files")?;
    machine.switch(disk, false)?;
    let before = as_kept(machine)?;
    fs::set_permissions(&extent.path, Permissions::from_mode(0o000))?;
    println!("6. The second extent of {} may not be opened by anybody now (chmod 000)", disk.node);
    match machine.switch(disk, true) {
        Ok(_) => return Err("a file that nobody may open was opened".into()),
        Err(refusal) => println!("     The switch is refused: {refusal}"),
    }
    if as_kept(machine)? != before {
        return Err("the stash is not as it was".into());
    }
    println!("     The stash is as it was, and so is QEMU: {}", machine.goes_on(1000));
    disk.image.set_mode(0o666);
    machine.switch(disk, true)?;
    println!("     After chmod 666 the same switch works");
    Ok(())
}

/// What the stash keeps; its entries' revisions tell whether one was ever touched.
fn as_kept(machine: &Machine) -> Outcome<Vec<Entry>> {
    Ok(machine.daemon.client().list(&pattern("*"))?)
}

/// Switches on while the daemon's server dies, again and again.
fn kill_daemon(machine: &Machine, switches: u32) -> Outcome<()> {
    println!("7. {switches} switches again, while the server of fdstashd is killed (SIGKILL) ...");
    let is_over = AtomicBool::new(false);
    let before = machine.daemon.servers();
    let refused = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = Random::new(1);
            while !is_over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20 + random.below(40) as u64));
                machine.daemon.kill_server();
            }
        });
        let refused = (0..switches).try_fold(0, |refused, switch| {
            go_on()?;
            let disk = &machine.disks[switch as usize / 2 % 2];
            let outcome = machine.switch(disk, switch % 2 == 0);
            machine.goes_on_for(20);
            Ok::<u32, Failure>(refused + u32::from(outcome.is_err()))
        });
        is_over.store(true, Ordering::Relaxed);
        killer.join().map_err(|_| Failure::from("the daemon did not come back"))?;
        refused
    })?;
    let deaths = machine.daemon.servers() - before;
    println!("     {} done, {refused} refused, over {deaths} deaths", switches - refused);
    println!("     {}", machine.goes_on(100));
    Ok(())
}

/// Kills QEMU while it switches, and starts another on what the stash has.
fn kill_qemu(machine: &mut Machine) -> Outcome<()> {
    println!(
        "8. QEMU is killed (SIGKILL) while it writes and switches, and started again, {KILLS} times ..."
    );
    let mut random = Random::new(1);
    let mut longest = Duration::ZERO;
    for _ in 0..KILLS {
        go_on()?;
        let (pid, wait) = (machine.qemu.pid(), 50 + random.below(50) as u64);
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(wait));
            kill_process(pid, Signal::KILL)
        });
        for switch in 0.. {
            if machine.switch(&machine.disks[switch % 2], switch / 2 % 2 == 0).is_err() {
                break;
            }
        }
        killer.join().map_err(|_| "QEMU could not be killed")??;
        for disk in &mut machine.disks {
            let ended = disk.io.take().ok_or("there is I/O")?.stop();
            no_errors(ended.errors, ended.first_error.as_deref())?;
            disk.image.written = ended.written;
        }
        let began = Instant::now();
        machine.qemu = start_qemu()?;
        machine.attach()?;
        longest = longest.max(began.elapsed());
        machine.begin()?;
        machine.goes_on_for(500);
    }
    println!("     Each had its disks again, {longest:.0?} after it was started at most,");
    println!("     and everything was there that had been flushed");
    Ok(())
}

fn no_errors(errors: u64, first: Option<&str>) -> Outcome<()> {
    match first {
        None if errors == 0 => Ok(()),
        first => Err(format!("{errors} errors, the first: {}", first.unwrap_or("?")).into()),
    }
}

/// Takes the disks from QEMU, and looks at what is in them.
fn end(machine: &mut Machine) -> Outcome<()> {
    println!("9. The I/O ends: {}", machine.goes_on(1));
    for at in 0..machine.disks.len() {
        let disk = &mut machine.disks[at];
        let ended = disk.io.take().ok_or("there is I/O")?.stop();
        no_errors(ended.errors, ended.first_error.as_deref())?;
        disk.image.written = ended.written;
        let disk = &machine.disks[at];
        machine.qemu.end_export(disk.node);
        machine.fdstash("detach", disk.node, &[])?;
        // What a killed QEMU had no time to note down is no data of anybody.
        disk.image.free_leaks();
        disk.image.is_sound_and_has(&disk.image.written);
        if !disk.image.can_be_opened_by_others() {
            return Err(format!("{} is still locked", disk.node).into());
        }
        println!(
            "     {}: qemu-img check finds no error, qemu-img compare the {} blocks that were written, \
             and no lock is left",
            disk.node,
            disk.image.written.len()
        );
    }
    Ok(())
}
