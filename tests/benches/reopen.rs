//! What it costs to have files opened anew by the stash, beside opening them oneself.
//!
//! `cargo bench --package fdstash-tests --bench reopen`. Of every number of files the same flags are
//! asked for in turns: of the kernel by open(2) of each path, and of the stash by one call of the
//! blocking client, which is two round trips, opens each file twice and proves that it is the one
//! that is kept. Times are medians; what was opened is closed again outside of them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fdstash::{Gift, Reopening, blocking::Client};
use kit::{Daemon, file, gift, raise_open_files};
use rustix::fs::OFlags;

/// How often each is measured: twice as often as this, once with O_DIRECT and once without.
const ROUNDS: usize = 200;

/// How often before that.
const WARM_UP: usize = 10;

fn main() {
    raise_open_files();
    let target = std::env::current_exe().expect("a program knows where it is");
    let beside = target.parent().expect("a program is in a folder").to_owned();
    for folder in [beside, PathBuf::from("/dev/shm")] {
        println!("files below {}", folder.display());
        println!("{:>7}  {:>12}  {:>12}  {:>8}", "files", "open(2)", "the stash", "ratio");
        for files in [1, 2, 5, 10, 50, 253] {
            let (plain, stash) = compare(&folder, files);
            let ratio = stash.as_secs_f64() / plain.as_secs_f64();
            println!(
                "{files:>7}  {:>9.3} ms  {:>9.3} ms  {ratio:>6.1} x",
                msec(plain),
                msec(stash)
            );
        }
    }
}

/// The median of so many plain opens, and that of one reopen of as many files.
fn compare(folder: &Path, files: usize) -> (Duration, Duration) {
    let folder = tempfile::tempdir_in(folder).expect("a folder can be made");
    let paths: Vec<_> = (0..files).map(|at| folder.path().join(format!("image-{at}"))).collect();
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let give = |path: &PathBuf| {
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        Gift { fresh: true, ..gift(&name, file(path, "an image")) }
    };
    let gifts: Vec<_> = paths.iter().map(give).collect();
    client.give(&gifts).expect("there is room");
    let names: Vec<_> = gifts.into_iter().map(|gift| gift.name).collect();
    let (mut plain, mut stash) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + 2 * ROUNDS {
        let direct = round % 2 == 0;
        let reopenings = names
            .iter()
            .map(|name| Reopening { direct: Some(direct), ..Reopening::new(name.clone()) });
        let reopenings: Vec<_> = reopenings.collect();
        let by_path = open_all(&paths, direct);
        let by_stash = reopen_all(&mut client, &reopenings);
        if round >= WARM_UP {
            plain.push(by_path);
            stash.push(by_stash);
        }
    }
    (median(plain), median(stash))
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
