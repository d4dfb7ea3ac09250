//! Real images, made by `qemu-img` and opened by the crate imago through the stash.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use fdstash::{
    Access, Error, Gift, ImageError, OpenOptions, Refusal, ReopenOptions,
    blocking::Image,
    imago::{Disk, Format, Shared},
};
use kit::{Daemon, gift, name, pattern, skipped};

const SIZE: u64 = 4 << 20;

#[test]
fn a_chain_of_three_formats_is_read_and_written_through_the_stash() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    let mut disk = Disk::at(chain.top(), Format::Qcow2);

    let image =
        Image::open(&mut client, &mut disk, &OpenOptions::read_write().under("vm7")).unwrap();

    // The top, the middle, and the VMDK with its three extents.
    assert_eq!(image.names().count(), 6);
    let shared = disk.shared().unwrap();
    assert_eq!(read(&shared, 0), b'x');
    assert_eq!(read(&shared, 2 << 20), b'y');
    write(&shared, 1 << 20, b'z');
    drop((shared, disk, image));
    assert_eq!(chain.content_at(1 << 20), b'z');
    chain.check();
    // Only the top is kept for writing.
    let entries = client.list(&pattern("vm7*")).unwrap();
    let writable = entries.iter().filter(|entry| entry.access == Access::ReadWrite);
    let [top] = &writable.collect::<Vec<_>>()[..] else { panic!("{entries:?}") };
    assert!(top.name.as_str().ends_with("top.qcow2"));
}

#[test]
fn the_cache_is_switched_for_all_files_and_what_was_written_stays() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    let mut disk = Disk::at(chain.top(), Format::Qcow2);
    let mut image = Image::open(&mut client, &mut disk, &OpenOptions::read_write()).unwrap();
    let shared = disk.shared().unwrap();

    for turn in 0..30_u8 {
        let change = ReopenOptions::new().direct(turn % 2 == 0);
        write(&shared, 65_536 * u64::from(turn), turn);
        match image.reopen(&mut client, &mut disk, &change) {
            Ok(()) => {}
            Err(ImageError::Stash(Error::Refused(Refusal::ReopenFailed { errno: 22, .. }))) => {
                return skipped("the file system of the temporary folder has no O_DIRECT");
            }
            Err(error) => panic!("{error}"),
        }
        for earlier in 0..=turn {
            assert_eq!(read(&shared, 65_536 * u64::from(earlier)), earlier);
        }
        let entries = client.list(&pattern("*")).unwrap();
        let are_direct = entries.iter().all(|e| e.flags.contains(fdstash::Flags::DIRECT));
        assert_eq!(are_direct, turn % 2 == 0);
    }

    drop((shared, disk, image));
    for turn in 0..30_u8 {
        assert_eq!(chain.content_at(65_536 * u64::from(turn)), turn);
    }
    chain.check();
}

#[test]
fn a_vmm_that_may_open_nothing_finds_what_management_gave_by_the_paths_in_the_headers() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    let given: Vec<_> = chain
        .files()
        .iter()
        .enumerate()
        .map(|(at, path)| Gift { fresh: true, ..gift(&format!("vm7-disk{at}"), writable(path)) })
        .collect();
    client.give(&given).unwrap();
    let hidden = chain.folder().with_extension("hidden");
    fs::rename(chain.folder(), &hidden).unwrap();

    let options = OpenOptions::read_write().only_stash().under("vm7");
    let mut by_path = Disk::at(chain.top(), Format::Qcow2);
    Image::open(&mut client, &mut by_path, &options).unwrap();
    let mut by_name = Disk::kept(name("vm7-disk0"), Format::Qcow2);
    Image::open(&mut client, &mut by_name, &options).unwrap();

    assert_eq!(read(&by_path.shared().unwrap(), 2 << 20), b'y');
    assert_eq!(read(&by_name.shared().unwrap(), 2 << 20), b'y');
    fs::rename(&hidden, chain.folder()).unwrap();
}

#[test]
fn an_image_is_refused_whose_backing_file_nobody_gave() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    client.give(&[gift("vm7-disk0", writable(&chain.top()))]).unwrap();
    let before = client.list(&pattern("*")).unwrap();

    let mut disk = Disk::kept(name("vm7-disk0"), Format::Qcow2);
    let options = OpenOptions::read_write().only_stash();
    let outcome = Image::open(&mut client, &mut disk, &options);

    let Err(ImageError::Stash(Error::Refused(Refusal::NotFound { name }))) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(name.ends_with("middle.qcow2"), "{name}");
    assert!(disk.shared().is_none());
    assert_eq!(client.list(&pattern("*")).unwrap(), before);
}

#[test]
fn whichever_file_cannot_be_reopened_the_image_goes_on_as_it_was() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    let mut disk = Disk::at(chain.top(), Format::Qcow2);
    let mut image = Image::open(&mut client, &mut disk, &OpenOptions::read_write()).unwrap();
    let shared = disk.shared().unwrap();
    let names: Vec<_> = image.names().cloned().collect();
    let before = client.list(&pattern("*")).unwrap();

    for (turn, held) in (1_u8..).zip(&names) {
        let mut other = chain.daemon.client();
        let mut transaction = other.transaction().unwrap();
        transaction.close(std::slice::from_ref(held)).unwrap();

        let outcome = image.reopen(&mut client, &mut disk, &ReopenOptions::new().dsync(true));

        assert!(outcome.is_err());
        write(&shared, 3 << 20, turn);
        assert_eq!(read(&shared, 3 << 20), turn);
        transaction.rollback();
        assert_eq!(client.list(&pattern("*")).unwrap(), before);
    }
}

#[test]
fn an_external_data_file_is_a_file_of_the_image() {
    let Some(chain) = Chain::made() else { return };
    let (top, data) = (chain.folder().join("d.qcow2"), chain.folder().join("d.data"));
    let options = format!("data_file={},data_file_raw=off", data.display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, path(&top), "1M"]);
    let mut client = chain.daemon.client();
    let mut disk = Disk::at(&top, Format::Qcow2);

    let mut image = Image::open(&mut client, &mut disk, &OpenOptions::read_write()).unwrap();
    let shared = disk.shared().unwrap();
    write(&shared, 4096, b'd');
    image.reopen(&mut client, &mut disk, &ReopenOptions::new().dsync(true)).unwrap();

    assert_eq!(read(&shared, 4096), b'd');
    let kept: Vec<_> = image.names().map(|name| name.as_str().to_owned()).collect();
    assert_eq!(kept, [path(&top), path(&data)]);
    let entries = client.list(&pattern("*")).unwrap();
    assert!(entries.iter().all(|entry| entry.access == Access::ReadWrite));
}

#[test]
fn an_image_is_read_only_and_writable_again() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    let mut disk = Disk::at(chain.top(), Format::Qcow2);
    let mut image = Image::open(&mut client, &mut disk, &OpenOptions::read_write()).unwrap();
    let shared = disk.shared().unwrap();

    image.reopen(&mut client, &mut disk, &ReopenOptions::new().access(Access::Read)).unwrap();
    assert!(try_write(&shared, 0, b'n').is_err());
    image.reopen(&mut client, &mut disk, &ReopenOptions::new().access(Access::ReadWrite)).unwrap();

    write(&shared, 0, b'w');
    assert_eq!(read(&shared, 0), b'w');
}

#[test]
fn an_image_is_switched_while_the_daemon_dies_and_comes_back() {
    let Some(chain) = Chain::made() else { return };
    let mut client = chain.daemon.client();
    let mut disk = Disk::at(chain.top(), Format::Qcow2);
    let mut image = Image::open(&mut client, &mut disk, &OpenOptions::read_write()).unwrap();
    let shared = disk.shared().unwrap();

    for turn in 0..20_u8 {
        chain.daemon.kill_server();
        image.reopen(&mut client, &mut disk, &ReopenOptions::new().dsync(turn % 2 == 0)).unwrap();
        write(&shared, 4096 * u64::from(turn), turn);
    }

    for turn in 0..20_u8 {
        assert_eq!(read(&shared, 4096 * u64::from(turn)), turn);
    }
}

/// A qcow2 image over another over a VMDK of three extents, whose names in the headers are relative.
struct Chain {
    daemon: Daemon,
    folder: PathBuf,
}

impl Chain {
    /// None where there is no `qemu-img`.
    fn made() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            skipped("there is no qemu-img to make images with");
            return None;
        }
        let daemon = Daemon::spawn();
        let folder = daemon.path("images");
        fs::create_dir(&folder).expect("the folder is new");
        let chain = Self { daemon, folder };
        chain.make_base();
        let middle = chain.folder().join("middle.qcow2");
        let create = ["create", "-q", "-f", "qcow2", "-b"];
        qemu_img(&[&create[..], &["base.vmdk", "-F", "vmdk", path(&middle)]].concat());
        qemu_img(&[&create[..], &["middle.qcow2", "-F", "qcow2", path(&chain.top())]].concat());
        Some(chain)
    }

    /// An `x` at its begin and a `y` in its middle.
    fn make_base(&self) {
        let third = SIZE / 4 / 512;
        let mut extents = Vec::new();
        for (name, sectors) in
            [("base-f001.vmdk", third), ("base-f002.vmdk", 2 * third), ("base-f003.vmdk", third)]
        {
            let file = File::create(self.folder.join(name)).expect("the folder is there");
            file.set_len(sectors * 512).expect("it can be long");
            extents.push(format!("RW {sectors} FLAT \"{name}\" 0"));
        }
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
             createType=\"twoGbMaxExtentFlat\"\n\n{}\n\n\
             ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"1\"\n\
             ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n",
            extents.join("\n")
        );
        fs::write(self.folder.join("base.vmdk"), text).expect("the folder is there");
        let at = |name: &str| writable(&self.folder.join(name));
        at("base-f001.vmdk").write_all(&[b'x'; 4096]).expect("it can be written");
        // The second extent begins at the first mebibyte.
        std::os::unix::fs::FileExt::write_all_at(&at("base-f002.vmdk"), &[b'y'; 4096], 1 << 20)
            .expect("it can be written");
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn top(&self) -> PathBuf {
        self.folder.join("top.qcow2")
    }

    /// All of them, the top first.
    fn files(&self) -> Vec<PathBuf> {
        [
            "top.qcow2",
            "middle.qcow2",
            "base.vmdk",
            "base-f001.vmdk",
            "base-f002.vmdk",
            "base-f003.vmdk",
        ]
        .map(|name| self.folder.join(name))
        .into()
    }

    /// What QEMU reads there.
    fn content_at(&self, offset: u64) -> u8 {
        let raw = self.folder.join("content.raw");
        qemu_img(&["convert", "-O", "raw", path(&self.top()), path(&raw)]);
        fs::read(raw).expect("it was made")[usize::try_from(offset).expect("it is small")]
    }

    fn check(&self) {
        qemu_img(&["check", "-q", path(&self.top())]);
    }
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().expect("it is there");
    assert!(output.status.success(), "{args:?}: {output:?}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("it is in ASCII")
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("it can be opened")
}

/// The byte of which a block is full.
fn read(shared: &Shared, offset: u64) -> u8 {
    let mut block = vec![0; 4096];
    wait(async { shared.read().await.read(&mut block[..], offset).await })
        .expect("the disk can be read");
    assert!(block.iter().all(|byte| *byte == block[0]), "a block is torn");
    block[0]
}

fn write(shared: &Shared, offset: u64, byte: u8) {
    try_write(shared, offset, byte).expect("the disk can be written");
}

fn try_write(shared: &Shared, offset: u64, byte: u8) -> std::io::Result<()> {
    wait(async {
        let disk = shared.read().await;
        disk.write(&vec![byte; 4096][..], offset).await?;
        disk.flush().await
    })
}

fn wait<F: Future>(flow: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without a reactor can be made").block_on(flow)
}
