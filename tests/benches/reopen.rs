//! What it costs to have files opened anew by the stash, beside opening them oneself.
//!
//! `cargo bench --package fdstash-tests --bench reopen`. Of every number of files the same flags are
//! asked for in turns: of the kernel by open(2) of each path, and of the stash by one call of the
//! blocking client, which is two round trips, opens each file twice and proves that it is the one
//! that is kept. And of an image of as many files it is measured how long its guest waits: from the
//! quiesce until it goes on, over files that were read from and that the stash keeps. Times are medians;
//! what was opened is closed again outside of them.

use std::{
    fs::{File, OpenOptions},
    io, mem,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fdstash::{
    Access, Driver, Files, Gift, ReopenOptions, Reopening,
    blocking::{Client, Image},
};
use kit::{Daemon, file, gift, raise_open_files};
use rustix::fs::OFlags;

/// How often each is measured: twice as often as this, once with O_DIRECT and once without.
const ROUNDS: usize = 200;

/// How much of each file a driver reads to see that it works.
const BLOCK: usize = 4096;

/// How often before that.
const WARM_UP: usize = 10;

fn main() {
    raise_open_files();
    let target = std::env::current_exe().expect("a program knows where it is");
    let beside = target.parent().expect("a program is in a folder").to_owned();
    for folder in [beside, PathBuf::from("/dev/shm")] {
        println!("files below {}", folder.display());
        println!(
            "{:>7}  {:>12}  {:>12}  {:>8}  {:>12}",
            "files", "open(2)", "the stash", "ratio", "guest waits"
        );
        for files in [1, 2, 5, 10, 50, 253] {
            let (plain, stash, pause) = compare(&folder, files);
            let ratio = stash.as_secs_f64() / plain.as_secs_f64();
            println!(
                "{files:>7}  {:>9.3} ms  {:>9.3} ms  {ratio:>6.1} x  {:>9.3} ms",
                msec(plain),
                msec(stash),
                msec(pause)
            );
        }
    }
}

/// The median of so many plain opens, that of one reopen of as many files, and that of the time which the
/// guest of an image of them waits.
fn compare(folder: &Path, files: usize) -> (Duration, Duration, Duration) {
    let folder = tempfile::tempdir_in(folder).expect("a folder can be made");
    let paths: Vec<_> = (0..files).map(|at| folder.path().join(format!("image-{at}"))).collect();
    let daemon = Daemon::builder().quiet().spawn();
    let mut client = daemon.client();
    let give = |path: &PathBuf| {
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        Gift { fresh: true, ..gift(&name, file(path, "an image")) }
    };
    let gifts: Vec<_> = paths.iter().map(give).collect();
    client.give(&gifts).expect("there is room");
    let names: Vec<_> = gifts.into_iter().map(|gift| gift.name).collect();
    let mut guest =
        Guest { paths: paths.clone(), disk: Vec::new(), rests: None, pauses: Vec::new() };
    let options = fdstash::OpenOptions::read_write().under("guest");
    let mut image = Image::open(&mut client, &mut guest, &options).expect("it can be opened");
    let (mut plain, mut stash) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + 2 * ROUNDS {
        let direct = round % 2 == 0;
        let reopenings = names
            .iter()
            .map(|name| Reopening { direct: Some(direct), ..Reopening::new(name.clone()) });
        let reopenings: Vec<_> = reopenings.collect();
        let by_path = open_all(&paths, direct);
        let by_stash = reopen_all(&mut client, &reopenings);
        let change = ReopenOptions::new().direct(direct);
        image.reopen(&mut client, &mut guest, &change).expect("it can be opened anew");
        if round >= WARM_UP {
            plain.push(by_path);
            stash.push(by_stash);
        }
    }
    (median(plain), median(stash), median(guest.pauses.split_off(WARM_UP)))
}

/// What runs over plain files, and measures how long it rests.
struct Guest {
    paths: Vec<PathBuf>,
    disk: Vec<File>,
    rests: Option<Instant>,
    pauses: Vec<Duration>,
}

impl Driver for Guest {
    type Disk = Vec<File>;

    async fn open(&mut self, files: &mut Files<'_>) -> io::Result<Vec<File>> {
        let mut disk = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            disk.push(files.open(path, Access::ReadWrite).await?);
        }
        Ok(disk)
    }

    async fn check(&mut self, disk: &Vec<File>) -> io::Result<()> {
        // Aligned, as O_DIRECT asks for.
        let mut block = vec![0; 2 * BLOCK];
        let at = block.as_ptr().align_offset(BLOCK);
        disk.iter().try_for_each(|file| file.read_at(&mut block[at..at + BLOCK], 0).map(drop))
    }

    async fn quiesce(&mut self) -> io::Result<()> {
        self.rests = Some(Instant::now());
        Ok(())
    }

    fn resume(&mut self, disk: Option<Vec<File>>) {
        let old = disk.map(|disk| mem::replace(&mut self.disk, disk));
        self.pauses.extend(self.rests.take().map(|rests| rests.elapsed()));
        drop(old);
    }
}

fn open_all(paths: &[PathBuf], direct: bool) -> Duration {
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags.bits() as i32);
    let mut opened: Vec<File> = Vec::with_capacity(paths.len());
    let began = Instant::now();
    for path in paths {
        opened.push(options.open(path).expect("it can be opened"));
    }
    began.elapsed()
}

fn reopen_all(client: &mut Client, reopenings: &[Reopening]) -> Duration {
    let began = Instant::now();
    let handed = client.reopen(reopenings).expect("they can be opened anew");
    let time = began.elapsed();
    assert_eq!(handed.len(), reopenings.len());
    time
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn msec(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
