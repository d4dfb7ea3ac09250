//! libvirt, with domains that have nothing to run.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt, chown},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Daemon, Group, is_root, program, skipped, wait_until};

/// libvirtd asks QEMU for what it can do, before the first domain.
const START: Duration = Duration::from_secs(60);

/// A domain with a disk: the firmware finds no system on it, and waits.
#[must_use]
pub fn domain(name: &str, disk: &str) -> String {
    format!(
        "<domain type='qemu'>
           <name>{name}</name>
           <memory unit='MiB'>32</memory>
           <os><type arch='x86_64' machine='pc'>hvm</type></os>
           <devices>
             {disk}
             <video><model type='none'/></video>
             <memballoon model='none'/>
             <controller type='usb' model='none'/>
           </devices>
         </domain>"
    )
}

/// A daemon, and a libvirtd that has none of its rights: that of a user's session, and of another user
/// where the test is root's.
#[derive(Debug)]
pub struct Host {
    /// The daemon.
    pub daemon: Daemon,
    libvirtd: Group,
    folder: TempDir,
}

impl Host {
    /// Whose libvirtd and QEMU are, where the test is root's: `nobody`. libvirtd wants a user that the
    /// machine has a record of.
    pub const USER: u32 = 65534;

    /// Starts both; none where there is no libvirt.
    ///
    /// # Panics
    ///
    /// If they do not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        const PROGRAMS: [&str; 5] =
            ["libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "qemu-io"];
        let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if let Some(missing) = PROGRAMS.into_iter().find(|program| !has(program)) {
            skipped(&format!("there is no {missing}"));
            return None;
        }
        let folder = tempfile::Builder::new().prefix("fdstash-libvirt-").tempdir();
        let folder = folder.expect("a folder can be made");
        let libvirtd = Group::spawn(&mut libvirtd(folder.path()));
        let host = Self { daemon: Daemon::spawn(), libvirtd, folder };
        let socket = host.path("run/libvirt/libvirt-sock");
        wait_until(START, || UnixStream::connect(&socket).is_ok());
        Some(host)
    }

    /// A file below the folder in which all of it is, and in which commands are run.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where libvirt is.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+unix:///session?socket={}", self.path("run/libvirt/libvirt-sock").display())
    }

    /// Makes a domain known to libvirt.
    ///
    /// # Panics
    ///
    /// If it cannot be.
    pub fn define(&self, name: &str, disk: &str) {
        fs::write(self.path("domain.xml"), domain(name, disk)).expect("a file can be made");
        self.virsh("define domain.xml");
    }

    /// Starts a domain on files of the stash: each an entry and its group.
    ///
    /// # Panics
    ///
    /// If it cannot be.
    pub fn start_domain<const N: usize>(&self, domain: &str, groups: [(&str, &str); N]) {
        let mut commands = String::new();
        for (fd, (_, group)) in (3..).zip(groups) {
            commands += &format!("dom-fd-associate {domain} {group} {fd}; ");
        }
        let mut take = self.fdstash("take");
        take.args(groups.map(|(entry, _)| entry)).args(["--fresh", "--fd", "3", "--", "virsh"]);
        self.works(take.arg(format!("{commands} start {domain}")));
    }

    /// What virsh says to a line.
    pub fn virsh(&self, line: &str) -> String {
        self.works(Command::new("virsh").arg(line))
    }

    /// What QEMU's monitor says to a command.
    ///
    /// # Panics
    ///
    /// If QEMU refuses it.
    pub fn monitor(&self, domain: &str, command: &Value) -> Value {
        let mut virsh = Command::new("virsh");
        let said = self.json(virsh.args(["qemu-monitor-command", domain, &command.to_string()]));
        assert!(said["error"].is_null(), "{command}: {said}");
        said
    }

    /// Lets the test see a domain's first disk as its guest does.
    pub fn export(&self, domain: &str) {
        let socket = self.path("run/disk");
        let _ = fs::remove_file(&socket);
        let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
        let disk =
            json!({ "type": "nbd", "id": "seen", "node-name": "libvirt-1-format", "name": "disk" });
        self.monitor(domain, &json!({ "execute": "nbd-server-start", "arguments": address }));
        self.monitor(domain, &json!({ "execute": "block-export-add", "arguments": disk }));
    }

    /// Sees that the exported disk has these bytes.
    ///
    /// # Panics
    ///
    /// If it has others.
    #[track_caller]
    pub fn reads(&self, at: usize, count: usize, byte: u8) {
        let disk = format!("nbd+unix:///disk?socket={}", self.path("run/disk").display());
        let read = format!("read -P {byte} {at} {count}");
        let said =
            self.works(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", &read, &disk]));
        assert!(!said.contains("failed"), "at {at}, {byte}: {said}");
    }

    /// Has the device of a domain's first disk write 64 KiB.
    pub fn writes(&self, domain: &str, at: usize, byte: u8) {
        let device = "/machine/peripheral/virtio-disk0/virtio-backend";
        let line = format!("qemu-io -d {device} \"write -P {byte} {at} 64k\"");
        let arguments = json!({ "command-line": line });
        self.monitor(
            domain,
            &json!({ "execute": "human-monitor-command", "arguments": arguments }),
        );
    }

    /// The QEMU of a domain.
    ///
    /// # Panics
    ///
    /// If libvirt tells of none.
    #[must_use]
    pub fn process(&self, domain: &str) -> Pid {
        let file = self.path(&format!("run/libvirt/qemu/run/{domain}.pid"));
        number_in(&file).expect("libvirt writes down QEMU's number")
    }

    /// Which files below a folder, there or removed, a domain's QEMU has open.
    ///
    /// # Panics
    ///
    /// If nobody may look.
    #[must_use]
    pub fn files_below(&self, folder: &str, domain: &str) -> Vec<(u64, u64)> {
        let fds = format!("/proc/{}/fd", self.process(domain).as_raw_pid());
        let fds = fs::read_dir(fds).expect("one can look into it").flatten().map(|fd| fd.path());
        let below = self.path(folder);
        let is_below =
            |fd: &PathBuf| fs::read_link(fd).is_ok_and(|target| target.starts_with(&below));
        let files = fds.filter(is_below).filter_map(|fd| fs::metadata(fd).ok());
        let mut files: Vec<_> = files.map(|file| (file.dev(), file.ino())).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// The command `fdstash`.
    #[must_use]
    pub fn fdstash(&self, verb: &str) -> Command {
        let mut command = Command::new(program("fdstash"));
        command.arg(verb);
        command
    }

    /// `fdstash qemu`, for a domain's first disk.
    #[must_use]
    pub fn qemu(&self, verb: &str, domain: &str) -> Command {
        let mut command = self.fdstash("qemu");
        command.args([verb, "--libvirt", &self.uri(), "--domain", domain, "--disk", "vda"]);
        command
    }

    /// What a command says, which must work.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn works(&self, command: &mut Command) -> String {
        let Output { status, stdout, stderr } = self.run(command);
        let stderr = String::from_utf8_lossy(&stderr);
        let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.success(), "{command:?}: {stderr}\nlibvirt's log:\n{}", log());
        String::from_utf8(stdout).expect("it says words")
    }

    /// The same, of a command that says JSON.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn json(&self, command: &mut Command) -> Value {
        serde_json::from_str(&self.works(command)).expect("it says JSON")
    }

    /// What a command complains of, which must fail.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn fails(&self, command: &mut Command) -> String {
        let Output { status, stdout, stderr } = self.run(command);
        assert!(!status.success(), "{command:?}: {}", String::from_utf8_lossy(&stdout));
        String::from_utf8(stderr).expect("it says words")
    }

    fn run(&self, command: &mut Command) -> Output {
        let built = program("fdstash");
        let mut path = vec![built.parent().expect("it is in a folder").to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        command.env("PATH", std::env::join_paths(path).expect("they can be joined again"));
        command.env("FDSTASH_SOCKET", self.daemon.socket());
        command.env("VIRSH_DEFAULT_CONNECT_URI", self.uri());
        if command.get_current_dir().is_none() {
            command.current_dir(self.folder.path());
        }
        command.stdin(Stdio::null()).output().expect("it can be run")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // libvirt lets domains run on when it ends, and they are in no group of ours.
        self.libvirtd.kill();
        let numbers =
            fs::read_dir(self.path("run/libvirt/qemu/run")).into_iter().flatten().flatten();
        for file in numbers.map(|file| file.path()) {
            let is_domains = file.extension().is_some_and(|extension| extension == "pid")
                && file.file_stem().is_some_and(|stem| stem != "driver");
            if let Some(process) = number_in(&file).filter(|_| is_domains) {
                let _ = kill_process(process, Signal::KILL);
            }
        }
    }
}

/// A libvirtd with all that is its own below a folder.
fn libvirtd(folder: &Path) -> Command {
    // There may be no daemon for logs, and nothing to confine a domain by.
    const OF_QEMU: &str = "security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n\
                           stdio_handler = \"file\"\n";
    let mut command = Command::new("libvirtd");
    let variables = [
        ("HOME", "home"),
        ("XDG_RUNTIME_DIR", "run"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
    ];
    for (variable, inner) in variables {
        fs::create_dir(folder.join(inner)).expect("a folder can be made");
        command.env(variable, folder.join(inner));
    }
    let config = folder.join("config/libvirt");
    fs::create_dir(&config).expect("a folder can be made");
    fs::write(config.join("qemu.conf"), OF_QEMU).expect("a file can be made");
    fs::write(config.join("libvirtd.conf"), "auth_unix_rw = \"none\"\n")
        .expect("a file can be made");
    if is_root() {
        for inner in ["", "home", "run", "config", "config/libvirt", "cache"] {
            chown(folder.join(inner), Some(Host::USER), Some(Host::USER)).expect("root can");
        }
        command.uid(Host::USER).gid(Host::USER);
    }
    let log = File::create(folder.join("log")).expect("a log can be made");
    // Should the test not live to end it, it ends by itself.
    command.args(["--timeout", "60"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

fn number_in(file: &Path) -> Option<Pid> {
    let number = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    Pid::from_raw(number)
}
