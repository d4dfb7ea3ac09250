//! A disk image that outlives the program: out of the stash if it is there, and past the host's page cache
//! from then on. `disk IMAGE`; the book tells more of it (docs/rust.md).

use std::{env, error::Error, fs::File};

use fdstash::{Gift, Name, Reopening, blocking::Client};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: disk IMAGE")?;
    let file = File::options().read(true).write(true).open(path)?;

    let mut stash = Client::connect()?;
    let name = Name::new("vm7/disk0")?;
    stash.give(&[Gift { fresh: true, ..Gift::new(name.clone(), file) }])?;

    // Opens anew without the host's page cache. If that fails, everything is as it was.
    let handed = stash.reopen(&[Reopening { direct: Some(true), ..Reopening::new(name) }])?;
    for disk in handed {
        println!("{}: {} bytes", disk.name, File::from(disk.fd).metadata()?.len());
    }
    Ok(())
}
