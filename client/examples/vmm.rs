//! A small VMM that never loses its disk: it keeps all files of an image in the stash, and switches
//! the host's page cache off and on for all of them together while its guest reads and writes.
//!
//! What happens here is what a real VMM would do. Management opens the files of a VMDK image (made
//! by `qemu-img`, with several extents) and gives them to the stash. The VMM takes an open file
//! description of its own for each, and its threads write and read through those and check what
//! they read. A Reopen gives a new set for all files, or, if one of them cannot be opened, nothing
//! at all: the threads then go on over the old set, and never see an error.
//!
//! `make demo` runs it; `cargo run --example vmm -- --help` tells what can be chosen.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileExt, PermissionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use fdstash::{Entry, Gift, Handed, Name, Pattern, Reopening, blocking::Client};
use rustix::{
    fs::{OFlags, fcntl_getfl},
    process::{Pid, Signal, kill_process},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Switches the host cache of a disk in use off and on, over and over.
#[derive(Parser)]
struct Args {
    /// The daemon to start.
    #[arg(long, default_value = "target/debug/fdstashd")]
    fdstashd: PathBuf,
    /// Where to make the image, in a folder that is removed at the end.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How often to switch.
    #[arg(long, default_value_t = 200)]
    switches: u32,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<()> {
    let folder = tempfile::Builder::new().prefix("fdstash-vmm-").tempdir_in(&args.dir)?;
    let runtime = tempfile::Builder::new().prefix("fdstash-vmm-").tempdir()?;
    let image = Image::create(folder.path())?;
    println!(
        "1. qemu-img made a VMDK image of {} MiB with {} flat extents:",
        DISK_BYTES >> 20,
        image.extents.len()
    );
    for extent in &image.extents {
        println!("     {}  {} MiB", extent.file_name(), (extent.blocks * BLOCK as u64) >> 20);
    }

    let (_daemon, socket) = Daemon::start(&args.fdstashd, runtime.path())?;
    let mut stash = Client::connect_to(&socket)?;
    println!("2. fdstashd serves {} as {}", socket.display(), Daemon::user());

    let names = give(&mut stash, &image)?;
    let disk = Arc::new(Disk::new(&image, take_set(&mut stash, &names)?));
    println!("3. Management gave the extents to the stash; the VMM has descriptors of its own");

    let guest = Guest::start(&disk);
    println!(
        "4. {GUEST_THREADS} guest threads write, read and check what they read, without pause"
    );

    let times = switch_many(&mut stash, &names, &disk, args.switches)?;
    report_switches(&times, &guest);

    fail_once(&mut stash, &names, &disk, &image, &guest)?;

    let ended = guest.stop()?;
    println!("9. The guest stopped: {} I/O operations, {} errors", ended.operations, ended.errors);
    if ended.errors > 0 {
        return Err("the guest saw errors".into());
    }
    println!("10. {}", compare(&image, &ended.written, folder.path())?);
    let statistics = stash.statistics()?;
    println!(
        "    The stash has handed out {} reopened descriptors and refused {} calls",
        statistics.reopened, statistics.refused
    );
    Ok(())
}

/// Management's part: the files are opened with its rights, and given away.
fn give(stash: &mut Client, image: &Image) -> Outcome<Vec<Name>> {
    let mut gifts = Vec::new();
    for extent in &image.extents {
        let file = File::options().read(true).write(true).open(&extent.path)?;
        let name = Name::new(&format!("vm/disk0/{}", extent.file_name()))?;
        // What is kept is an open file description that nobody else has.
        gifts.push(Gift { fresh: true, ..Gift::new(name, file) });
    }
    stash.give(&gifts)?;
    Ok(gifts.into_iter().map(|gift| gift.name).collect())
}

fn take_set(stash: &mut Client, names: &[Name]) -> Outcome<Vec<File>> {
    Ok(in_order(names, stash.copy_fresh(names)?))
}

/// Opens all files of the disk anew, and puts the new set in the place of the old, if there is one.
fn switch_cache(stash: &mut Client, names: &[Name], disk: &Disk, direct: bool) -> Outcome<()> {
    let wanted: Vec<_> = names
        .iter()
        .map(|name| Reopening { direct: Some(direct), ..Reopening::new(name.clone()) })
        .collect();
    let set = in_order(names, stash.reopen(&wanted)?);
    for file in &set {
        if fcntl_getfl(file.as_fd())?.contains(OFlags::DIRECT) != direct {
            return Err("a descriptor has not the cache mode that was asked for".into());
        }
    }
    disk.swap(set);
    Ok(())
}

fn in_order(names: &[Name], handed: Vec<Handed<std::os::fd::OwnedFd>>) -> Vec<File> {
    let mut by_name: BTreeMap<Name, File> =
        handed.into_iter().map(|handed| (handed.name, File::from(handed.fd))).collect();
    names.iter().filter_map(|name| by_name.remove(name)).collect()
}

fn switch_many(
    stash: &mut Client,
    names: &[Name],
    disk: &Disk,
    switches: u32,
) -> Outcome<Vec<Duration>> {
    println!(
        "5. Switching the host cache off and on, for all files together, {switches} times ..."
    );
    let mut times = Vec::new();
    for switch in 0..switches {
        let began = Instant::now();
        switch_cache(stash, names, disk, switch % 2 == 0)?;
        times.push(began.elapsed());
        // So that the guest works in each mode, and every switch meets I/O under way.
        disk.wait_for_operations(50);
    }
    Ok(times)
}

fn report_switches(times: &[Duration], guest: &Guest) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |part: usize| sorted.get(sorted.len() * part / 100).copied().unwrap_or_default();
    println!("     {} switches done, each of all files at once", times.len());
    println!("     time of one: median {:?}, 99th percentile {:?}", at(50), at(99));
    println!("     I/O operations meanwhile: {}, errors: {}", guest.operations(), guest.errors());
}

/// Makes one file of the set impossible to open, and shows that nothing happens to any of them.
fn fail_once(
    stash: &mut Client,
    names: &[Name],
    disk: &Disk,
    image: &Image,
    guest: &Guest,
) -> Outcome<()> {
    let victim = image.extents.last().ok_or("an image has extents")?;
    let before = as_kept(stash)?;
    victim.set_mode(0o000)?;
    println!("6. {} may not be opened by anybody now (chmod 000)", victim.file_name());

    let refusal = match switch_cache(stash, names, disk, true) {
        Ok(()) => return Err("a file that nobody may open was opened".into()),
        Err(error) => error,
    };
    println!("7. The switch is refused: {refusal}");
    if as_kept(stash)? != before {
        return Err("the stash is not as it was".into());
    }
    let errors = guest.errors();
    let operations = disk.wait_for_operations(2000);
    println!(
        "   The stash is as it was; over the old set {operations} more I/O operations, {} errors",
        guest.errors() - errors
    );

    victim.set_mode(0o666)?;
    switch_cache(stash, names, disk, true)?;
    disk.wait_for_operations(200);
    println!("8. After chmod 666 the same switch works");
    Ok(())
}

/// What the stash keeps; its entries' revisions tell whether one was ever touched.
fn as_kept(stash: &mut Client) -> Outcome<Vec<Entry>> {
    Ok(stash.list(&Pattern::all())?)
}

const BLOCK: usize = 4096;
const DISK_BYTES: u64 = 2560 << 20;

/// An image of several files, as `qemu-img` made it.
struct Image {
    descriptor: PathBuf,
    extents: Vec<Extent>,
}

/// One flat extent: so many blocks of the disk, one after the other.
struct Extent {
    path: PathBuf,
    blocks: u64,
}

impl Image {
    fn create(folder: &Path) -> Outcome<Self> {
        let descriptor = folder.join("disk.vmdk");
        let size = DISK_BYTES.to_string();
        let options = ["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"];
        let mut create = Command::new("qemu-img");
        create.args(options).arg(&descriptor).arg(size);
        if !create.status().map_err(|error| format!("starting qemu-img: {error}"))?.success() {
            return Err("qemu-img could not make the image".into());
        }
        // Its lines that matter here: RW 4194304 FLAT "disk-f001.vmdk" 0
        let text = fs::read_to_string(&descriptor)?;
        let mut extents = Vec::new();
        for line in text.lines().filter(|line| line.contains(" FLAT ")) {
            let mut words = line.split(' ');
            let sectors: u64 = words.nth(1).ok_or("an extent has a size")?.parse()?;
            let name = line.split('"').nth(1).ok_or("an extent has a name")?;
            let extent = Extent { path: folder.join(name), blocks: sectors * 512 / BLOCK as u64 };
            extent.set_mode(0o666)?;
            extents.push(extent);
        }
        if extents.len() < 2 {
            return Err("the image has fewer than two extents".into());
        }
        Ok(Self { descriptor, extents })
    }
}

impl Extent {
    fn file_name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }
}

/// The VMM's disk: the set of files that its I/O goes through at the moment.
struct Disk {
    blocks: Vec<u64>,
    set: RwLock<Arc<Vec<File>>>,
    operations: AtomicU64,
}

impl Disk {
    fn new(image: &Image, set: Vec<File>) -> Self {
        let blocks = image.extents.iter().map(|extent| extent.blocks).collect();
        Self { blocks, set: RwLock::new(Arc::new(set)), operations: AtomicU64::new(0) }
    }

    /// Lets the I/O that begins from here on go through another set; what is under way ends over
    /// the old one, which is closed after it.
    fn swap(&self, set: Vec<File>) {
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }

    fn write(&self, block: u64, buffer: &Aligned) -> io::Result<()> {
        self.with_file(block, |file, at| file.write_all_at(&buffer.0, at))
    }

    fn read(&self, block: u64, buffer: &mut Aligned) -> io::Result<()> {
        self.with_file(block, |file, at| file.read_exact_at(&mut buffer.0, at))
    }

    fn with_file(
        &self,
        block: u64,
        operation: impl FnOnce(&File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let set = Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner));
        let mut block = block;
        let mut file = 0;
        while block >= self.blocks[file] {
            block -= self.blocks[file];
            file += 1;
        }
        operation(&set[file], block * BLOCK as u64)?;
        self.operations.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the guest has done so many more operations; tells how many it were.
    fn wait_for_operations(&self, count: u64) -> u64 {
        let before = self.operations.load(Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let done = self.operations.load(Ordering::Relaxed) - before;
            if done >= count || Instant::now() > deadline {
                return done;
            }
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// One block, aligned as O_DIRECT wants it.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

const GUEST_THREADS: u64 = 4;

/// How many blocks of the disk each thread works on, spread over all of it.
const BLOCKS_EACH: u64 = 64;

/// The guest: threads that write and read until they are stopped.
struct Guest {
    threads: Vec<thread::JoinHandle<BTreeMap<u64, u64>>>,
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<Disk>,
    stop: AtomicBool,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
}

/// What the guest has done, and what it has written: a generation for each block.
struct Ended {
    operations: u64,
    errors: u64,
    written: BTreeMap<u64, u64>,
}

impl Guest {
    fn start(disk: &Arc<Disk>) -> Self {
        let shared = Arc::new(Shared {
            disk: Arc::clone(disk),
            stop: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            first_error: Mutex::new(None),
        });
        let threads = (0..GUEST_THREADS)
            .map(|number| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.work(number))
            })
            .collect();
        Self { threads, shared }
    }

    fn operations(&self) -> u64 {
        self.shared.disk.operations.load(Ordering::Relaxed)
    }

    fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    fn stop(self) -> Outcome<Ended> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut written = BTreeMap::new();
        for thread in self.threads {
            written.extend(thread.join().map_err(|_| "a guest thread panicked")?);
        }
        let operations = self.shared.disk.operations.load(Ordering::Relaxed);
        let errors = self.shared.errors.load(Ordering::Relaxed);
        let first = self.shared.first_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = first {
            println!("   the guest's first error: {error}");
        }
        Ok(Ended { operations, errors, written })
    }
}

impl Shared {
    fn work(&self, number: u64) -> BTreeMap<u64, u64> {
        let all: u64 = self.disk.blocks.iter().sum();
        let stride = all / (GUEST_THREADS * BLOCKS_EACH);
        let mut written: BTreeMap<u64, u64> = BTreeMap::new();
        let mut buffer = Box::new(Aligned([0; BLOCK]));
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            let block = (number + GUEST_THREADS * (turn * 7 % BLOCKS_EACH)) * stride;
            let generation = written.get(&block).copied().unwrap_or_default() + 1;
            fill(&mut buffer, block, generation);
            if let Err(error) = self.disk.write(block, &buffer) {
                self.report(&format!("writing block {block}: {error}"));
                continue;
            }
            written.insert(block, generation);
            buffer.0.fill(0);
            match self.disk.read(block, &mut buffer) {
                Ok(()) if is_filled(&buffer, block, generation) => {}
                Ok(()) => self.report(&format!("block {block} is not what was written")),
                Err(error) => self.report(&format!("reading block {block}: {error}")),
            }
        }
        written
    }

    fn report(&self, error: &str) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.to_owned());
    }
}

/// Makes a block tell which one it is and how often it was written.
fn fill(buffer: &mut Aligned, block: u64, generation: u64) {
    for (at, word) in buffer.0.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_at(at, block, generation));
    }
}

fn is_filled(buffer: &Aligned, block: u64, generation: u64) -> bool {
    buffer.0.chunks_exact(8).enumerate().all(|(at, word)| word == word_at(at, block, generation))
}

fn word_at(at: usize, block: u64, generation: u64) -> [u8; 8] {
    ((block << 32) ^ (generation << 9) ^ at as u64).to_le_bytes()
}

/// Lets `qemu-img` compare the image with what the guest says that it wrote.
fn compare(image: &Image, written: &BTreeMap<u64, u64>, folder: &Path) -> Outcome<String> {
    let expected = folder.join("expected.raw");
    let file = File::create(&expected)?;
    file.set_len(DISK_BYTES)?;
    let mut buffer = Box::new(Aligned([0; BLOCK]));
    for (block, generation) in written {
        fill(&mut buffer, *block, *generation);
        file.write_all_at(&buffer.0, block * BLOCK as u64)?;
    }
    let formats = ["compare", "-f", "raw", "-F", "vmdk"];
    let output = Command::new("qemu-img")
        .args(formats)
        .args([&expected, &image.descriptor])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("qemu-img finds that the image is not what the guest wrote".into());
    }
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(format!("qemu-img compare, with the {} blocks that were written: {said}", written.len()))
}

/// A daemon of this program's own, ended with it.
///
/// For root it runs as an ordinary user, as it well can: it opens the files that it holds, and not
/// those whose path it could reach.
struct Daemon(Child);

impl Daemon {
    const NOBODY: u32 = 65534;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn user() -> &'static str {
        if Self::is_root() { "an ordinary user (nobody)" } else { "this user" }
    }

    fn start(program: &Path, runtime: &Path) -> Outcome<(Self, PathBuf)> {
        let socket = runtime.join("stash");
        let binary = File::open(program)
            .map_err(|error| format!("opening {}: {error}", program.display()))?;
        // By its descriptor, since nobody may not be able to reach its path.
        let path = format!(
            "/proc/self/fd/{}",
            rustix::path::DecInt::from_fd(&binary).as_c_str().to_string_lossy()
        );
        let mut command = Command::new(path);
        command.arg0("fdstashd").arg("--socket").arg(&socket).args(["--log", "error"]);
        if Self::is_root() {
            std::os::unix::fs::chown(runtime, Some(Self::NOBODY), Some(Self::NOBODY))?;
            command.uid(Self::NOBODY).gid(Self::NOBODY);
        }
        let daemon = Self(command.spawn()?);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Client::connect_to(&socket).is_err() {
            if Instant::now() > deadline {
                return Err("fdstashd did not start".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok((daemon, socket))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked to, it ends with both of its processes.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}
