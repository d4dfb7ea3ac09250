//! Files and images that a program opens through the library: out of the stash before the file system,
//! and again with other flags without ever being left with nothing.

use std::{
    cell::RefCell,
    fs::{self, File as StdFile},
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Barrier,
    thread,
};

use fdstash::{
    Access, Driver, Error, Files, Flags, Gift, ImageError, OpenOptions, Refusal, ReopenOptions,
    Share, Step,
    blocking::{Client, File, Image},
};
use kit::{Daemon, User, gift, identity, is_root, name, pattern, skipped};
use rustix::fs::{OFlags, fcntl_getfl};

#[test]
fn a_file_comes_from_the_stash_once_it_was_opened_whatever_becomes_of_its_path() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"first");

    let opened = File::open(&mut daemon.client(), &path, &OpenOptions::read_write()).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"another").unwrap();
    let again = File::open(&mut daemon.client(), &path, &OpenOptions::read_write()).unwrap();

    assert_eq!(identity(&again), identity(&opened));
    assert_eq!(again.name().as_str(), path.to_str().unwrap());
    assert_eq!(read_all(&again), b"first");
    // Each has an offset of its own.
    assert_eq!((&*opened).stream_position().unwrap(), 0);
}

#[test]
fn a_file_that_is_nowhere_is_an_error_and_nothing_is_stashed() {
    let daemon = Daemon::spawn();
    let path = daemon.path("nothing");

    let outcome = File::open(&mut daemon.client(), &path, &OpenOptions::read_write());

    let Err(Error::File { path: told, source }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((told, source.kind()), (path, io::ErrorKind::NotFound));
    assert!(daemon.client().list(&pattern("*")).unwrap().is_empty());
}

#[test]
fn a_program_that_may_open_nothing_itself_opens_nothing() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"");

    let outcome = File::open(&mut daemon.client(), &path, &OpenOptions::read().only_stash());

    assert!(matches!(outcome, Err(Error::Refused(Refusal::NotFound { .. }))), "{outcome:?}");
}

#[test]
fn a_reopening_swaps_the_description_and_the_stash_has_the_same_flags() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"12345678");
    let mut client = daemon.client();
    let mut file = File::open(&mut client, &path, &OpenOptions::read_write()).unwrap();
    let inode = identity(&file);
    (&*file).seek_relative(4).unwrap();

    file.reopen(&mut client, &ReopenOptions::new().dsync(true)).unwrap();

    assert_eq!(identity(&file), inode);
    assert!(is_dsync(&file));
    assert_eq!((&*file).stream_position().unwrap(), 0);
    assert_eq!(kept_flags(&mut client, &path), Flags::DSYNC);

    file.reopen(&mut client, &ReopenOptions::new().dsync(false)).unwrap();

    assert!(!is_dsync(&file));
    assert_eq!(kept_flags(&mut client, &path), Flags::NONE);
}

#[test]
fn a_reopening_that_is_refused_leaves_the_file_as_it_was() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"12345678");
    let mut client = daemon.client();
    let mut file = File::open(&mut client, &path, &OpenOptions::read_write()).unwrap();
    (&*file).seek_relative(4).unwrap();
    let (mut other, held) = (daemon.client(), file.name().clone());
    let mut transaction = other.transaction().unwrap();
    transaction.close(&[held]).unwrap();

    let outcome = file.reopen(&mut client, &ReopenOptions::new().dsync(true));

    assert!(matches!(outcome, Err(Error::Refused(Refusal::Busy { .. }))), "{outcome:?}");
    assert!(!is_dsync(&file));
    assert_eq!(rest(&file), b"5678");
    transaction.rollback();
    file.reopen(&mut client, &ReopenOptions::new().dsync(true)).unwrap();
}

#[test]
fn a_file_is_made_read_only_and_writable_again() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"");
    let mut client = daemon.client();
    let mut file = File::open(&mut client, &path, &OpenOptions::read_write()).unwrap();

    file.reopen(&mut client, &ReopenOptions::new().access(Access::Read)).unwrap();

    assert!(file.write_at(b"x", 0).is_err());
    assert_eq!(client.list(&pattern("*")).unwrap()[0].access, Access::ReadWrite);
    file.reopen(&mut client, &ReopenOptions::new().access(Access::ReadWrite)).unwrap();
    assert_eq!(file.write_at(b"x", 0).unwrap(), 1);
}

#[test]
fn a_file_for_reading_is_opened_for_writing_with_the_rights_of_who_asks() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"");
    let mut client = daemon.client();
    let options = OpenOptions::read().may_reopen(Access::ReadWrite);
    let mut file = File::open(&mut client, &path, &options).unwrap();

    file.reopen(&mut client, &ReopenOptions::new().access(Access::ReadWrite)).unwrap();

    assert_eq!(file.write_at(b"x", 0).unwrap(), 1);
}

#[test]
fn a_file_that_was_opened_for_reading_first_is_opened_for_writing_later() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"");
    let mut reading = File::open(&mut daemon.client(), &path, &OpenOptions::read()).unwrap();

    let writing = File::open(&mut daemon.client(), &path, &OpenOptions::read_write()).unwrap();
    let widely = ReopenOptions::new().access(Access::ReadWrite);
    reading.reopen(&mut daemon.client(), &widely).unwrap();

    assert_eq!(writing.write_at(b"x", 0).unwrap(), 1);
    assert_eq!(reading.write_at(b"y", 1).unwrap(), 1);
}

#[test]
fn what_others_may_use_too_is_kept_for_no_more_than_it_was_opened_for() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"");
    let mut client = daemon.client();
    let options = OpenOptions::read().share(Share { uids: vec![12345], gids: Vec::new() });

    File::open(&mut client, &path, &options).unwrap();

    let entry = client.list(&pattern("*")).unwrap().remove(0);
    assert_eq!(entry.may_reopen, Access::Read);
}

#[test]
fn many_open_and_reopen_one_file_at_once_and_all_have_it() {
    const MANY: usize = 8;
    let daemon = Daemon::spawn();
    for round in 0..10 {
        let path = made(&daemon, &format!("disk{round}"), b"content");
        let start = Barrier::new(MANY);
        let all_do = || {
            let mut client = daemon.client();
            start.wait();
            let mut file = File::open(&mut client, &path, &OpenOptions::read_write())?;
            file.reopen(&mut client, &ReopenOptions::new().dsync(true))?;
            Ok::<_, Error>(identity(&file))
        };

        let opened: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..MANY).map(|_| scope.spawn(all_do)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });

        let expected = identity(StdFile::open(&path).unwrap());
        for one in opened {
            assert_eq!(one.unwrap(), expected);
        }
        assert_eq!(daemon.client().list(&pattern(path.to_str().unwrap())).unwrap().len(), 1);
    }
}

#[test]
fn a_reopening_does_not_go_on_in_another_file_that_has_the_name_by_now() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"the real one");
    let forged = made(&daemon, "forged", b"forged");
    let mut client = daemon.client();
    let mut file = File::open(&mut client, &path, &OpenOptions::read_write()).unwrap();
    let held = file.name().clone();
    client.close(std::slice::from_ref(&held)).unwrap();
    client.give(&[gift(held.as_str(), writable(&forged))]).unwrap();
    let before = client.list(&pattern("*")).unwrap();

    let outcome = file.reopen(&mut client, &ReopenOptions::new().dsync(true));

    let Err(Error::Replaced { name }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(name, held);
    assert_eq!(read_all(&file), b"the real one");
    assert!(!is_dsync(&file));
    assert_eq!(client.list(&pattern("*")).unwrap(), before);
}

#[test]
fn a_log_that_was_renamed_is_opened_anew_by_its_path() {
    let daemon = Daemon::spawn();
    let (path, old) = (daemon.path("vm.log"), daemon.path("vm.log.1"));
    let mut client = daemon.client();
    let options = OpenOptions::append().create(0o640);
    let mut log = File::open(&mut client, &path, &options).unwrap();
    (&*log).write_all(b"one\n").unwrap();

    assert!(!log.rotate(&mut client).unwrap());
    (&*log).write_all(b"two\n").unwrap();
    fs::rename(&path, &old).unwrap();
    (&*log).write_all(b"three\n").unwrap();
    assert!(log.rotate(&mut client).unwrap());
    (&*log).write_all(b"four\n").unwrap();

    assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\nthree\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
    let [entry] = &client.list(&pattern("*")).unwrap()[..] else { panic!() };
    assert_eq!((entry.device, entry.inode), identity(&log));
    assert_eq!(entry.flags, Flags::APPEND);
}

#[test]
fn a_log_that_cannot_be_opened_anew_goes_on_in_the_old_file() {
    let daemon = Daemon::spawn();
    let (path, old) = (daemon.path("vm.log"), daemon.path("vm.log.1"));
    let mut client = daemon.client();
    let mut log = File::open(&mut client, &path, &OpenOptions::append().create(0o640)).unwrap();
    fs::rename(&path, &old).unwrap();
    fs::create_dir(&path).unwrap();

    let outcome = log.rotate(&mut client);

    assert!(matches!(outcome, Err(Error::File { .. })), "{outcome:?}");
    (&*log).write_all(b"still\n").unwrap();
    assert_eq!(fs::read_to_string(&old).unwrap(), "still\n");
}

#[test]
fn what_management_gave_under_a_name_of_its_own_is_found_by_its_path() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"given");
    let mut client = daemon.client();
    client.give(&[gift("vm7-root", writable(&path)), gift("vm8-root", writable(&path))]).unwrap();

    let options = OpenOptions::read().only_stash();
    let either = File::open(&mut client, &path, &options);
    let one = File::open(&mut client, &path, &options.clone().under("vm8")).unwrap();
    let other = options.named(&path, name("vm7-root"));
    let other = File::open(&mut client, &path, &other).unwrap();
    let kept = File::open_kept(&mut client, &name("vm7-root"), &OpenOptions::read()).unwrap();

    assert!(matches!(either, Err(Error::Ambiguous { .. })), "{either:?}");
    assert_eq!(one.name().as_str(), "vm8-root");
    assert_eq!(other.name().as_str(), "vm7-root");
    assert_eq!(kept.path(), path);
    // What is only read is handed out for reading, and kept as it was given.
    assert!(one.write_at(b"x", 0).is_err());
    assert!(
        client.list(&pattern("*")).unwrap().iter().all(|entry| entry.access == Access::ReadWrite)
    );
}

#[test]
fn what_was_given_is_found_by_a_path_over_a_symbolic_link() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"given");
    let mut client = daemon.client();
    client.give(&[gift("vm7-root", writable(&path))]).unwrap();
    let link = daemon.path("link");
    std::os::unix::fs::symlink(path.parent().unwrap(), &link).unwrap();

    let options = OpenOptions::read().only_stash();
    let file = File::open(&mut client, link.join("disk"), &options).unwrap();

    assert_eq!(file.name().as_str(), "vm7-root");
}

#[test]
fn a_file_that_comes_only_out_of_the_stash_is_not_opened_anew_by_its_path() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"given");
    let mut client = daemon.client();
    client.give(&[gift("vm7-root", writable(&path))]).unwrap();
    let options = OpenOptions::read().only_stash();
    let mut file = File::open(&mut client, &path, &options).unwrap();
    fs::rename(&path, daemon.path("away")).unwrap();
    fs::write(&path, b"another").unwrap();

    let outcome = file.rotate(&mut client);

    assert!(matches!(outcome, Err(Error::File { .. })), "{outcome:?}");
    assert_eq!(read_all(&file), b"given");
}

#[test]
fn what_a_stranger_gave_under_the_name_is_not_taken_for_the_file() {
    if !is_root() {
        return skipped("only root can be another user too");
    }
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"the real one");
    let forged = made(&daemon, "forged", b"forged");
    let stranger = User::new(12345);
    let share = Share { uids: vec![0], gids: Vec::new() };
    let gift = Gift { share, ..gift(path.to_str().unwrap(), writable(&forged)) };
    daemon.client_as(&stranger).give(&[gift]).unwrap();
    let mut client = daemon.client();

    let outcome = File::open(&mut client, &path, &OpenOptions::read());

    let Err(Error::Stranger { giver, .. }) = outcome else { panic!("{outcome:?}") };
    let trusting = OpenOptions::read().trust(giver.uid);
    assert_eq!(read_all(&File::open(&mut client, &path, &trusting).unwrap()), b"forged");
}

#[test]
fn files_are_opened_and_reopened_over_the_deaths_of_the_daemon() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"content");
    let mut client = daemon.client();
    let mut file = File::open(&mut client, &path, &OpenOptions::read_write()).unwrap();

    for turn in 0..20 {
        daemon.kill_server();
        file.reopen(&mut client, &ReopenOptions::new().dsync(turn % 2 == 0)).unwrap();
        daemon.kill_server();
        let again = File::open(&mut client, &path, &OpenOptions::read()).unwrap();
        assert_eq!(read_all(&again), b"content");
    }

    assert_eq!(read_all(&file), b"content");
}

#[tokio::test(flavor = "current_thread")]
async fn the_asynchronous_client_opens_files_too_on_any_thread() {
    let daemon = Daemon::spawn();
    let path = made(&daemon, "disk", b"content");
    let socket = daemon.socket().to_owned();

    let task = tokio::spawn(async move {
        let mut client = fdstash::Client::connect_to(socket).await?;
        let mut file = fdstash::File::open(&mut client, &path, &OpenOptions::read_write()).await?;
        file.reopen(&mut client, &ReopenOptions::new().dsync(true)).await?;
        file.rotate(&mut client).await?;
        Ok::<_, Error>(file)
    });

    let file = task.await.unwrap().unwrap();
    assert!(is_dsync(&file));
    assert_eq!(read_all(&file), b"content");
}

#[test]
fn all_files_of_an_image_are_reopened_and_the_driver_goes_on_over_them() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write()).unwrap();

    image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true)).unwrap();

    assert_eq!(driver.told(), "open check resume:new quiesce open check resume:new");
    assert!(driver.disk().iter().all(is_dsync));
    assert_eq!(image.names().count(), 3);
    assert!(client.list(&pattern("*")).unwrap().iter().all(|entry| entry.flags == Flags::DSYNC));
}

#[test]
fn an_image_is_as_it_was_when_any_step_of_its_reopening_fails() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write()).unwrap();
    let before = client.list(&pattern("*")).unwrap();

    for (fault, reason, told) in [
        (Fault::Quiesce, Some(Step::Quiesce), "quiesce resume:old"),
        (Fault::Open, Some(Step::Open), "quiesce open resume:old"),
        (Fault::Check, Some(Step::Check), "quiesce open check resume:old"),
        // It refers to a file that it did not refer to before.
        (Fault::Another, None, "quiesce open resume:old"),
    ] {
        driver.begin(fault);

        let outcome = image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true));

        match (outcome, reason) {
            (Err(ImageError::Driver { step, .. }), Some(reason)) => assert_eq!(step, reason),
            (Err(ImageError::Stash(Error::AnotherFile { .. })), None) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(driver.told(), told);
        assert!(!driver.disk().iter().any(is_dsync));
        assert_eq!(client.list(&pattern("*")).unwrap(), before);
    }

    driver.begin(Fault::None);
    image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true)).unwrap();
    assert!(driver.disk().iter().all(is_dsync));
}

#[test]
fn an_image_one_file_of_which_cannot_be_reopened_was_not_even_stopped() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write()).unwrap();
    let names: Vec<_> = image.names().cloned().collect();
    let before = client.list(&pattern("*")).unwrap();

    for held in &names {
        let mut other = daemon.client();
        let mut transaction = other.transaction().unwrap();
        transaction.close(std::slice::from_ref(held)).unwrap();
        driver.begin(Fault::None);

        let outcome = image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true));

        let Err(ImageError::Stash(Error::Refused(Refusal::Busy { name, .. }))) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(name, held.as_str());
        assert_eq!(driver.told(), "");
        assert!(!driver.disk().iter().any(is_dsync));
        transaction.rollback();
        assert_eq!(client.list(&pattern("*")).unwrap(), before);
    }
}

#[test]
fn an_image_does_not_go_on_in_another_file_that_has_a_name_of_its_own() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write()).unwrap();
    let forged = made(&daemon, "forged", b"forged");
    let last = image.names().last().cloned().unwrap();
    client.give(&[gift(last.as_str(), writable(&forged))]).unwrap();
    driver.begin(Fault::None);

    let outcome = image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true));

    let Err(ImageError::Stash(Error::Replaced { name })) = outcome else { panic!("{outcome:?}") };
    assert_eq!(name, last);
    assert_eq!(driver.told(), "", "the guest did not even wait");
    assert!(!driver.disk().iter().any(is_dsync));
}

#[test]
fn a_file_that_an_image_spells_in_two_ways_is_one_file() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    let here = std::env::current_dir().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    driver.paths[1] = up.join(driver.paths[1].strip_prefix("/").unwrap());
    driver.paths[2] = here.join(&driver.paths[1]);

    let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write()).unwrap();
    image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true)).unwrap();

    assert_eq!(image.names().count(), 2);
    assert!(driver.disk().iter().all(is_dsync));
}

#[test]
fn many_open_and_reopen_one_image_at_once_and_all_have_it() {
    const MANY: usize = 4;
    let daemon = Daemon::spawn();
    let paths = Extents::new(&daemon).paths;
    let start = Barrier::new(MANY);
    let all_do = |turned: bool| {
        let mut driver = Extents { paths: paths.clone(), ..Extents::new(&daemon) };
        if turned {
            driver.paths.reverse();
        }
        let mut client = daemon.client();
        start.wait();
        let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write())?;
        for turn in 0..5 {
            let change = ReopenOptions::new().dsync(turn % 2 == 0);
            image.reopen(&mut client, &mut driver, &change)?;
        }
        Ok::<_, ImageError>(driver.disk().iter().all(is_dsync))
    };

    let done: Vec<_> = thread::scope(|scope| {
        let all_do = &all_do;
        let threads: Vec<_> =
            (0..MANY).map(|at| scope.spawn(move || all_do(at % 2 == 1))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    for one in done {
        assert!(one.unwrap());
    }
    assert_eq!(daemon.client().list(&pattern("*")).unwrap().len(), 3);
}

#[test]
fn an_image_that_cannot_be_opened_leaves_nothing_in_the_stash() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    fs::remove_file(&driver.paths[2]).unwrap();

    let outcome = Image::open(&mut client, &mut driver, &OpenOptions::read_write());

    let Err(ImageError::Stash(Error::File { path, .. })) = outcome else { panic!("{outcome:?}") };
    assert_eq!(path, driver.paths[2]);
    assert!(client.list(&pattern("*")).unwrap().is_empty());
    assert_eq!(driver.told(), "open");
}

#[test]
fn a_vmm_that_is_started_again_finds_the_set_that_its_image_had() {
    let daemon = Daemon::spawn();
    let mut driver = Extents::new(&daemon);
    let mut client = daemon.client();
    let mut image = Image::open(&mut client, &mut driver, &OpenOptions::read_write()).unwrap();
    image.reopen(&mut client, &mut driver, &ReopenOptions::new().dsync(true)).unwrap();
    let files: Vec<_> = driver.disk().iter().map(identity).collect();
    drop((image, client));
    for path in &driver.paths {
        fs::remove_file(path).unwrap();
    }
    daemon.kill_server();

    let mut driver = Extents { paths: driver.paths.clone(), ..Extents::new(&daemon) };
    let options = OpenOptions::read_write().only_stash();
    Image::open(&mut daemon.client(), &mut driver, &options).unwrap();

    assert_eq!(driver.disk().iter().map(identity).collect::<Vec<_>>(), files);
}

#[test]
fn an_image_that_is_only_read_can_be_written_later() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut driver = Extents::new(&daemon);
    let options = OpenOptions::read().may_reopen(Access::ReadWrite);
    let mut image = Image::open(&mut client, &mut driver, &options).unwrap();
    assert!(driver.disk()[0].write_at(b"x", 0).is_err());

    for access in [Access::ReadWrite, Access::Read, Access::ReadWrite] {
        image.reopen(&mut client, &mut driver, &ReopenOptions::new().access(access)).unwrap();

        let is_written = driver.disk().iter().all(|file| file.write_at(b"x", 0).is_ok());
        assert_eq!(is_written, access == Access::ReadWrite);
    }
}

/// A driver for a disk of three plain files, which tells what was asked of it.
struct Extents {
    paths: Vec<PathBuf>,
    fault: Fault,
    told: Rc<RefCell<Vec<&'static str>>>,
    disk: Option<Vec<StdFile>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Quiesce,
    Open,
    Check,
    Another,
}

impl Extents {
    fn new(daemon: &Daemon) -> Self {
        let paths = ["a", "b", "c"].map(|extent| made(daemon, extent, extent.as_bytes()));
        let told = Rc::default();
        Self { paths: paths.into(), fault: Fault::None, told, disk: None }
    }

    fn begin(&mut self, fault: Fault) {
        self.fault = fault;
        self.told.borrow_mut().clear();
    }

    fn told(&self) -> String {
        self.told.borrow().join(" ")
    }

    fn disk(&self) -> &[StdFile] {
        self.disk.as_deref().expect("it is open")
    }

    fn tell(&self, step: &'static str, fault: Fault) -> io::Result<()> {
        self.told.borrow_mut().push(step);
        if self.fault == fault { Err(io::Error::other("a fault of the test")) } else { Ok(()) }
    }
}

impl Driver for Extents {
    type Disk = Vec<StdFile>;

    async fn open(&mut self, files: &mut Files<'_>) -> io::Result<Vec<StdFile>> {
        self.tell("open", Fault::Open)?;
        let access = files.options().access();
        let mut disk = Vec::new();
        for path in &self.paths {
            disk.push(files.open(path, access).await?);
        }
        if self.fault == Fault::Another {
            // Whatever it makes of the answer.
            let _ = files.open(Path::new("/dev/null"), Access::Read).await;
        }
        Ok(disk)
    }

    async fn check(&mut self, disk: &Vec<StdFile>) -> io::Result<()> {
        self.tell("check", Fault::Check)?;
        disk.iter().try_for_each(|file| file.read_exact_at(&mut [0], 0))
    }

    async fn quiesce(&mut self) -> io::Result<()> {
        self.tell("quiesce", Fault::Quiesce)
    }

    fn resume(&mut self, disk: Option<Vec<StdFile>>) {
        let step = if disk.is_some() { "resume:new" } else { "resume:old" };
        self.told.borrow_mut().push(step);
        if disk.is_some() {
            self.disk = disk;
        }
    }
}

fn made(daemon: &Daemon, name: &str, content: &[u8]) -> PathBuf {
    let path = daemon.path(name);
    fs::write(&path, content).expect("the folder is there");
    path
}

fn writable(path: &Path) -> StdFile {
    StdFile::options().read(true).write(true).open(path).expect("it can be opened")
}

fn is_dsync(file: &StdFile) -> bool {
    // Not rustix's, which is O_SYNC.
    fcntl_getfl(file).expect("it has flags").intersects(OFlags::from_bits_retain(0o10000))
}

fn kept_flags(client: &mut Client, path: &Path) -> Flags {
    let entries = client.list(&pattern("*")).expect("the daemon answers");
    entries.iter().find(|entry| Path::new(entry.name.as_str()) == path).expect("it is kept").flags
}

fn read_all(file: &StdFile) -> Vec<u8> {
    let length = file.metadata().expect("it is open").len();
    let mut content = vec![0; usize::try_from(length).expect("it is small")];
    file.read_exact_at(&mut content, 0).expect("it can be read");
    content
}

fn rest(mut file: &StdFile) -> Vec<u8> {
    let mut content = Vec::new();
    file.read_to_end(&mut content).expect("it can be read");
    content
}
