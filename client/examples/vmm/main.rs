//! A VMM that never loses its disk, and what is done to it here: `make demo` runs it.
//!
//! The disk is a chain of images as management software makes them: a qcow2 image over another over a
//! VMDK of several extents. Management opens their files and gives them to the stash. The VMM, a process
//! of its own, may open nothing itself: the crate imago opens the images over what the stash has, and a
//! guest's threads write, read and check what they read, without pause. Then, under that load, the host's
//! cache is switched for all files together, one of them is made impossible to open, the daemon is killed,
//! and the VMM is killed and started again. In the end `qemu-img` finds in the images what the guest wrote.
//!
//! `cargo run --example vmm --features imago -- --help` tells what can be chosen.

mod daemon;
mod guest;
mod images;
mod vmm;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use fdstash::{Entry, Gift, Pattern, blocking::Client};

use crate::{
    daemon::Daemon,
    images::Chain,
    vmm::{Life, Vmm},
};

type Failure = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// Switches the host cache of a disk in use off and on, and kills whoever could lose it
#[derive(Parser)]
struct Args {
    /// The daemon to start.
    #[arg(long, default_value = "target/debug/fdstashd")]
    fdstashd: PathBuf,
    /// Where to make the images, in a folder that is removed at the end.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How often to switch, and how often again while the daemon dies.
    #[arg(long, default_value_t = 200)]
    switches: u32,
    /// How often to kill the VMM.
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Be the VMM, over the stash at this socket. The demonstration starts itself so.
    #[arg(long, requires_all = ["top", "record"])]
    vmm: Option<PathBuf>,
    /// The image that the VMM opens.
    #[arg(long, requires = "vmm")]
    top: Option<PathBuf>,
    /// Where the VMM notes what its guest can rely on.
    #[arg(long, requires = "vmm")]
    record: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match (&args.vmm, &args.top, &args.record) {
        (Some(socket), Some(top), Some(record)) => vmm::live(socket, top, record),
        _ => demonstrate(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(args: &Args) -> Outcome<()> {
    // As the kernel will tell the paths of its files.
    let dir = args.dir.canonicalize()?;
    let folder = tempfile::Builder::new().prefix("fdstash-vmm-").tempdir_in(dir)?;
    let runtime = tempfile::Builder::new().prefix("fdstash-vmm-").tempdir()?;
    daemon::clean_up_when_interrupted(&[folder.path(), runtime.path()])?;
    let mut show = Show::begin(args, folder.path(), runtime.path())?;

    let mut vmm = show.start()?;
    show.switch(&mut vmm, args.switches)?;
    show.fail(&mut vmm)?;
    show.kill_daemon(&mut vmm, args.switches)?;
    let vmm = show.kill_vmm(vmm, args.kills)?;
    show.end(vmm)
}

/// What is shown, and to whom.
struct Show {
    chain: Chain,
    daemon: Daemon,
    stash: Client,
    record: PathBuf,
    /// What the VMMs that were killed have done.
    operations: u64,
}

impl Show {
    fn begin(args: &Args, folder: &Path, runtime: &Path) -> Outcome<Self> {
        let chain = Chain::create(&folder.join("images"))?;
        println!(
            "1. qemu-img made a disk of {} MiB, of {} files:",
            images::BYTES >> 20,
            chain.files.len()
        );
        for (path, role) in &chain.files {
            println!("     {:<16} {role}", images::file_name(path));
        }
        let daemon = Daemon::start(&args.fdstashd, runtime)?;
        println!("2. fdstashd serves {} as {}", daemon.socket.display(), Daemon::user());
        let mut stash = Client::connect_to(&daemon.socket)?;
        give(&mut stash, &chain)?;
        println!(
            "3. Management opened the files and gave them to the stash: fdstash list shows vm7/..."
        );
        let record = folder.join("record");
        Ok(Self { chain, daemon, stash, record, operations: 0 })
    }

    fn start(&self) -> Outcome<Vmm> {
        let (vmm, files) = Vmm::start(&self.daemon.socket, &self.chain.top(), &self.record)?;
        println!(
            "4. A VMM (pid {}) opened the disk over the {files} files of the stash, and none itself;\n   \
             {} guest threads write, read and check what they read, without pause",
            vmm.pid(),
            guest::THREADS
        );
        Ok(vmm)
    }

    fn switch(&mut self, vmm: &mut Vmm, switches: u32) -> Outcome<()> {
        println!(
            "5. Switching the host cache off and on, for all files together, {switches} times ..."
        );
        let times = vmm.switch(switches)?;
        println!("     {switches} switches done, each of all files at once: {times}");
        println!("     {}", vmm.life()?);
        Ok(())
    }

    /// Makes one file of the set impossible to open, and shows that nothing happens to any of them.
    fn fail(&mut self, vmm: &mut Vmm) -> Outcome<()> {
        let victim = self.chain.victim();
        let before = as_kept(&mut self.stash)?;
        images::set_mode(victim, 0o000)?;
        println!("6. {} may not be opened by anybody now (chmod 000)", images::file_name(victim));
        let Err(refusal) = vmm.switch(1) else {
            return Err("a file that nobody may open was opened".into());
        };
        println!("     The switch is refused: {refusal}");
        if as_kept(&mut self.stash)? != before {
            return Err("the stash is not as it was".into());
        }
        let life = vmm.wait_for_operations(2000)?;
        println!("     The stash is as it was, and the guest goes on over the old set: {life}");
        images::set_mode(victim, 0o666)?;
        vmm.switch(1)?;
        println!("     After chmod 666 the same switch works");
        Ok(())
    }

    fn kill_daemon(&mut self, vmm: &mut Vmm, switches: u32) -> Outcome<()> {
        println!("7. {switches} switches again, while the daemon's server is killed (SIGKILL) ...");
        let killing = self.daemon.kill_again_and_again();
        let times = vmm.switch(switches);
        let deaths = killing.stop();
        println!("     {switches} switches done, over {deaths} deaths of the server: {}", times?);
        println!("     {}", vmm.life()?);
        if deaths == 0 {
            return Err("the server was never killed".into());
        }
        Ok(())
    }

    /// Kills the VMM in the middle of its I/O and of its switches, and starts another, which has no path
    /// to any file; again and again.
    fn kill_vmm(&mut self, mut vmm: Vmm, kills: u32) -> Outcome<Vmm> {
        println!(
            "8. The images' folder is moved away. The VMM is killed (SIGKILL) while it writes and switches,\n   \
             and started again, {kills} times ..."
        );
        let away = self.chain.folder.with_extension("away");
        fs::rename(&self.chain.folder, &away)?;
        let mut slowest = Duration::ZERO;
        for kill in 0..kills {
            vmm.begin_switches()?;
            // At another moment of a switch each time.
            thread::sleep(Duration::from_micros(20_000 + 700 * u64::from(kill)));
            self.operations += vmm.kill()?;
            let began = Instant::now();
            (vmm, _) = Vmm::start(&self.daemon.socket, &self.chain.top(), &self.record)?;
            slowest = slowest.max(began.elapsed());
        }
        println!(
            "     Each had its disk again, out of the stash and without a path, after {} ms at most;\n     \
             every block was as it was when the guest was last told that it is written",
            slowest.as_millis()
        );
        let times = vmm.switch(20)?;
        println!("     20 switches more, without a path: {times}");
        fs::rename(&away, &self.chain.folder)?;
        Ok(vmm)
    }

    fn end(mut self, vmm: Vmm) -> Outcome<()> {
        let Life { operations, errors, .. } = vmm.stop()?;
        let operations = self.operations + operations;
        println!("9. The guest stopped: {operations} I/O operations, {errors} errors");
        if errors > 0 {
            return Err("the guest saw errors".into());
        }
        println!("     {}", self.chain.check()?);
        println!("     {}", self.chain.compare(&guest::Record::open(&self.record)?)?);
        let statistics = self.stash.statistics()?;
        println!(
            "     The stash has {} files, as at the beginning; it came back {} times",
            statistics.entries, statistics.restores
        );
        Ok(())
    }
}

/// Management's part: the files are opened with its rights, and given away. What is kept is an open file
/// description that nobody else has.
fn give(stash: &mut Client, chain: &Chain) -> Outcome<()> {
    let mut gifts = Vec::new();
    for (path, _) in &chain.files {
        let file = fs::File::options().read(true).write(true).open(path)?;
        let name = format!("vm7/{}", images::file_name(path)).parse()?;
        gifts.push(Gift { fresh: true, ..Gift::new(name, file) });
    }
    Ok(stash.give_new(&gifts)?)
}

/// What the stash keeps; its entries' revisions tell whether one was ever touched.
fn as_kept(stash: &mut Client) -> Outcome<Vec<Entry>> {
    Ok(stash.list(&Pattern::all())?)
}
