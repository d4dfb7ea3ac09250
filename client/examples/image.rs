//! A log and an image with all its files, opened through the stash and reopened. `image LOG QCOW2`; the book
//! tells more of it (docs/rust.md).

use std::{env, error::Error, io::Write};

use fdstash::{
    OpenOptions, ReopenOptions,
    blocking::{Client, File, Image},
    imago::{Disk, Format},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(log), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: image LOG QCOW2".into());
    };
    let mut stash = Client::connect()?;

    // Out of the stash if it is there, else opened and stashed. What it derefs to is a std::fs::File.
    let mut log = File::open(&mut stash, log, &OpenOptions::append().create(0o640))?;
    writeln!(&*log, "begun")?;
    log.rotate(&mut stash)?; // logrotate has renamed it

    // The driver is imago's here; `fdstash::Driver` is for a VMM that has its own.
    let mut disk = Disk::at(path, Format::Qcow2);
    let mut image = Image::open(&mut stash, &mut disk, &OpenOptions::read_write().under("vm7"))?;
    let shared = disk.shared().ok_or("it is open")?; // for the guest: shared.read().await.write(..)
    image.reopen(&mut stash, &mut disk, &ReopenOptions::new().direct(true))?; // or all is as it was
    drop(shared);

    println!("{} files in the stash, past the page cache:", image.names().count());
    for name in image.names() {
        println!("  {name}");
    }
    Ok(())
}
