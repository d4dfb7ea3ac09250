//! The Debian packages, under a real systemd and by the real dpkg and apt: installed, upgraded while
//! they are used, removed and purged.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use fdstash::Gift;
use kit::{
    Packages, Raw, SOON, Systemd, call, file, gift, identity, name, names, null, pattern, shell,
    wait_until,
};
use rustix::{io::Errno, pipe::PipeFlags};
use serde_json::{Value, json};

const SERVICE: &str = "fdstashd.service";
const METRICS: &str = "fdstashd-metrics.socket";

/// What a program is that does what the daemon does, and is another.
const OTHER: &str = "printf other >>usr/bin/fdstashd";

/// What asks nobody anything.
const APT: &str = "DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends \
    -o Dpkg::Use-Pty=0";

#[test]
fn the_packages_have_what_debian_asks_of_them() {
    let Some(packages) = Packages::build() else { return };
    let contents = |package| shell(&format!("dpkg-deb -c {}", packages.file(package).display()));
    let field = |package, field| {
        shell(&format!("dpkg-deb -f {} {field}", packages.file(package).display()))
    };
    let multiarch = shell("dpkg-architecture -qDEB_HOST_MULTIARCH");
    let lib = format!("./usr/lib/{}", multiarch.trim());

    let all = contents("fdstash");
    for path in [
        "./etc/fdstash/policy.d/",
        "./etc/needrestart/restart.d/fdstashd.service",
        "./usr/bin/fdstash",
        "./usr/bin/fdstashd",
        "./usr/lib/systemd/system/fdstashd.service",
        "./usr/lib/systemd/system/fdstashd.socket",
        "./usr/lib/systemd/user/fdstashd.socket",
        "./usr/lib/sysusers.d/fdstash.conf",
        "./usr/lib/tmpfiles.d/fdstash.conf",
        "./usr/share/bash-completion/completions/fdstash",
        "./usr/share/doc/fdstash/changelog.gz",
        "./usr/share/doc/fdstash/copyright",
        "./usr/share/doc/fdstash/policy.toml",
        "./usr/share/fish/vendor_completions.d/fdstash.fish",
        "./usr/share/man/man1/fdstash.1.gz",
        "./usr/share/man/man8/fdstashd.8.gz",
        "./usr/share/zsh/vendor-completions/_fdstash",
    ] {
        assert!(all.lines().any(|line| line.ends_with(&format!(" {path}"))), "{path} in {all}");
    }
    assert!(!all.contains(&lib) && !all.contains("/include/"), "{all}");
    assert!(all.lines().all(|line| line.contains(" root/root ")), "{all}");
    assert!(contents("libfdstash0").contains(&format!("{lib}/libfdstash.so.0\n")));
    let for_c = contents("libfdstash-dev");
    for path in ["/usr/include/fdstash.h\n".to_owned(), format!("{lib}/pkgconfig/fdstash.pc\n")] {
        assert!(for_c.contains(&path), "{path} in {for_c}");
    }
    assert!(field("fdstash", "Depends").contains("libc6"));
    assert!(field("libfdstash-dev", "Depends").contains("libfdstash0 (= "));
    let version = field("fdstash", "Version");
    assert!(version.starts_with(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn a_program_is_built_with_the_packages_and_needs_the_librarys() {
    let Some(packages) = Packages::build() else { return };
    let Some(systemd) = packages.boot() else { return };
    let source = "#include <fdstash.h>\nint main(void) { return fdstash_init(\"/nowhere\") == 0; }";

    systemd.works("dpkg -i /packages/libfdstash0_*.deb /packages/libfdstash-dev_*.deb");

    fs::write(systemd.path("/root/program.c"), source).unwrap();
    systemd.works(
        "cd /root && cc program.c $(pkg-config --cflags --libs fdstash) -o program && ./program",
    );
    let needs = systemd.works(
        "cd /root && mkdir debian && printf 'Source: a\\n\\nPackage: a\\nArchitecture: any\\n' \
         >debian/control && dpkg-shlibdeps -O program",
    );
    assert!(needs.contains("libfdstash0 (>= "), "{needs}");
}

#[test]
fn an_upgrade_while_it_is_used_is_noticed_by_nobody() {
    let Some(packages) = Packages::build() else { return };
    for version in ["1-1", "2-1"] {
        packages.later(version, OTHER);
    }
    let Some(systemd) = packages.boot() else { return };
    install(&systemd);
    let process = systemd.property(SERVICE, "MainPID");
    let kept = Kept::give(&systemd);
    let (mut waiter, mut watcher) =
        (Raw::connect(&systemd.socket()), Raw::connect(&systemd.socket()));
    waiter.say(&call("Take", &json!({ "names": ["later"], "timeoutUSec": 600_000_000 })));
    let watch = json!({ "method": "org.fdstash.Stash.Watch", "more": true,
        "parameters": { "pattern": "later" } });
    watcher.say(&kit::messages(&[watch]));
    watcher.reply();

    let (calls, given) = used(&systemd, || upgrades(&systemd, &process));

    println!("{calls} calls, and none of them failed");
    assert!(calls > 200 && given.len() > 50, "{calls}, {}", given.len());
    assert_eq!(systemd.property(SERVICE, "MainPID"), process);
    assert_eq!(systemd.property(SERVICE, "NRestarts"), "0");
    let listed = systemd.client().list(&pattern("given/*")).unwrap();
    assert_eq!(listed.iter().map(|entry| entry.name.to_string()).collect::<BTreeSet<_>>(), given);
    systemd.client().give(&[gift("later", null())]).unwrap();
    assert_eq!(waiter.reply()["parameters"]["entries"][0]["name"], "later");
    assert_eq!(identity(&waiter.fds()[0]), identity(null()));
    assert_eq!(watcher.reply()["parameters"]["change"], "given");
    kept.comes_back(&systemd);
}

/// Upgrades the package, in all ways that there are, and sees that the daemon's process goes on with what is
/// new.
fn upgrades(systemd: &Systemd, process: &str) {
    for (command, version) in [
        ("dpkg -i /packages/later-1-1.deb".to_owned(), "1-1"),
        (format!("{APT} install --reinstall /packages/later-1-1.deb"), "1-1"),
        (format!("{APT} install /packages/later-2-1.deb"), "2-1"),
        // What needrestart runs where a library is a new one.
        ("/etc/needrestart/restart.d/fdstashd.service".to_owned(), "2-1"),
    ] {
        let before = restores(systemd);
        let said = systemd.works(&format!("{command} 2>&1"));
        assert!(!said.contains("goes on with the program"), "{said}");
        let description = systemd.property(SERVICE, "Description");
        assert_eq!(description, format!("Version {version}"), "{said}");
        systemd.works(&format!("cmp /proc/{process}/exe /usr/bin/fdstashd"));
        wait_until(SOON, || restores(systemd) == before + 1);
    }
}

/// How often the daemon has come back to what it keeps.
fn restores(systemd: &Systemd) -> u64 {
    systemd.client().statistics().expect("it answers").restores
}

/// Installs the package as an operator does.
fn install(systemd: &Systemd) {
    systemd.works(&format!("{APT} install /packages/fdstash_*.deb"));
    assert_eq!(systemd.property(SERVICE, "ActiveState"), "active");
    for unit in [SERVICE, "fdstashd.socket"] {
        assert_eq!(systemd.works(&format!("systemctl is-enabled {unit}")), "enabled\n");
    }
}

/// Calls the stash without pause while something is done: on one connection, and on one after the other.
/// How many calls were answered on the first, and what was given on the others.
fn used(systemd: &Systemd, act: impl FnOnce()) -> (usize, BTreeSet<String>) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let (mut raw, fd, mut calls) = (Raw::connect(&systemd.socket()), null(), 0);
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(raw.give(&["used"], &[&fd])["error"], Value::Null);
                let taken = raw.call("Take", &json!({ "names": ["used"] }));
                assert_eq!(taken["parameters"]["entries"][0]["name"], "used", "{taken}");
                assert_eq!(identity(only_one(raw.fds())), identity(&fd));
                calls += 2;
            }
            calls
        });
        let giving = scope.spawn(|| {
            let mut given = BTreeSet::new();
            // Not more than what may be on its way to systemd's store: then each in another's place.
            for number in (0..300).cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("given/{number}");
                let reply = Raw::connect(&systemd.socket()).give(&[&name], &[null()]);
                assert_eq!(reply["error"], Value::Null);
                given.insert(name);
            }
            given
        });
        // Also where this fails, since the scope waits for the threads.
        let acted = catch_unwind(AssertUnwindSafe(act));
        is_over.store(true, Ordering::Relaxed);
        let ended = (calling.join(), giving.join());
        if let Err(panic) = acted {
            resume_unwind(panic);
        }
        (ended.0.expect("no call fails"), ended.1.expect("no connection fails"))
    })
}

fn only_one<T>(all: Vec<T>) -> T {
    let count = all.len();
    all.into_iter().next().filter(|_| count == 1).expect("it is one")
}

/// What only the stash has: a file without a name, what nobody has read of a pipe, a socket that listens.
struct Kept {
    identities: Vec<(u64, u64)>,
    /// The other end of the pipe.
    writer: OwnedFd,
    /// To connect to the socket.
    address: SocketAddr,
}

const KEPT: [&str; 3] = ["kept/file", "kept/pipe", "kept/socket"];

impl Kept {
    fn give(systemd: &Systemd) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = file(folder.path().join("file"), "content");
        let (pipe, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        rustix::io::write(&writer, b"unread").expect("it has room");
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket can listen");
        let address = socket.local_addr().expect("it has an address");
        let fds = [file.into(), pipe, socket.into()];
        let identities = fds.iter().map(identity).collect();
        let gifts = KEPT.iter().zip(fds).map(|(text, fd)| Gift::new(name(text), fd));
        systemd.client().give(&gifts.collect::<Vec<_>>()).expect("it takes them");
        Self { identities, writer, address }
    }

    /// Takes it all, and looks what it is.
    #[track_caller]
    fn comes_back(self, systemd: &Systemd) {
        let connected = TcpStream::connect(self.address).expect("it listens");
        let taken = systemd.client().take(&names(KEPT)).expect("all are there");
        let identities: Vec<_> = taken.iter().map(|handed| identity(&handed.fd)).collect();
        assert_eq!(identities, self.identities);
        let [file, pipe, socket] = <[_; 3]>::try_from(taken).expect("it is three");
        let (mut file, mut pipe) = (File::from(file.fd), File::from(pipe.fd));
        let (mut content, mut unread) = (String::new(), String::new());
        file.rewind().expect("it is a file");
        file.read_to_string(&mut content).expect("it is text");
        drop(self.writer);
        pipe.read_to_string(&mut unread).expect("it is text");
        assert_eq!((content.as_str(), unread.as_str()), ("content", "unread"));
        let (_, peer) = TcpListener::from(socket.fd).accept().expect("one has connected");
        assert_eq!(peer, connected.local_addr().expect("it has an address"));
    }
}

#[test]
fn an_upgrade_to_what_does_not_start_is_told_and_ends_nothing() {
    let Some(packages) = Packages::build() else { return };
    let broken = "printf '#!/bin/sh\\nexit 1\\n' >usr/bin/fdstashd";
    packages.later("1-1", broken);
    packages.later("2-1", OTHER);
    let Some(systemd) = packages.boot() else { return };
    install(&systemd);
    let process = systemd.property(SERVICE, "MainPID");
    let kept = Kept::give(&systemd);
    let mut raw = Raw::connect(&systemd.socket());

    let output = systemd.run("dpkg -i /packages/later-1-1.deb");

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("goes on with the program"), "{said}");
    assert_eq!(raw.give(&["a"], &[null()])["error"], Value::Null);
    systemd.works("dpkg -i /packages/later-2-1.deb");
    systemd.works(&format!("cmp /proc/{process}/exe /usr/bin/fdstashd"));
    assert_eq!(
        raw.call("List", &json!({ "pattern": "a" }))["parameters"]["entries"][0]["name"],
        "a"
    );
    assert_eq!(systemd.property(SERVICE, "NRestarts"), "0");
    kept.comes_back(&systemd);
}

#[test]
fn the_daemons_of_users_go_on_with_the_new_version_too() {
    let Some(packages) = Packages::build() else { return };
    packages.later("1-1", OTHER);
    let Some(systemd) = packages.boot() else { return };
    install(&systemd);
    systemd.works("systemctl start dbus.service systemd-logind.service");
    systemd.works(
        "systemd-sysusers --inline 'u somebody 61001 - /home/somebody' && \
         install -d -o 61001 -g 61001 /home/somebody && \
         loginctl enable-linger somebody && systemctl start user@61001.service",
    );
    let users = "systemctl --user --machine=61001@";
    systemd.works(&format!("{users} enable --now --quiet fdstashd.socket"));
    let by_user = "cd / && XDG_RUNTIME_DIR=/run/user/61001 \
        setpriv --reuid=61001 --regid=61001 --clear-groups -- fdstash";
    systemd.works(&format!("{by_user} give a /etc/machine-id"));
    let process = systemd.works(&format!("{users} show --value --property=MainPID {SERVICE}"));

    systemd.works("dpkg -i /packages/later-1-1.deb");

    let goes_on = format!("cmp /proc/{}/exe /usr/bin/fdstashd", process.trim());
    // Not at once, since systemd does not wait for it before 253.
    wait_until(SOON, || systemd.run(&goes_on).status.success());
    assert_eq!(systemd.works(&format!("{by_user} take a -- wc -c")), "33\n");
    let described = format!("{users} show --value --property=Description {SERVICE}");
    assert_eq!(systemd.works(&described), "Version 1-1\n");
    systemd.works(&format!("{APT} remove fdstash"));
    systemd.works("! pgrep -x fdstashd");
}

#[test]
fn a_removal_tells_what_it_ends_and_a_purge_leaves_nothing_behind() {
    let Some(packages) = Packages::build() else { return };
    packages.later("1-1", OTHER);
    let Some(systemd) = packages.boot() else { return };
    // All but what dpkg and apt keep of every package.
    let files = "find /etc /usr /var /run/fdstash -xdev ! -path '/var/lib/dpkg/*' \
        ! -path '/var/lib/apt/*' ! -path '/var/log/*' ! -path '/var/cache/*' 2>/dev/null | sort";
    let before = systemd.works(files);
    install(&systemd);
    systemd.works("touch /etc/fdstash/policy.toml");
    systemd.works(
        "systemctl --quiet enable --now fdstashd-metrics.socket || systemctl restart fdstashd",
    );
    assert_eq!(systemd.property(METRICS, "ActiveState"), "active");
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    systemd.client().give(&[gift("pipe", reader), gift("b", null().into())]).unwrap();

    let output = systemd.run(&format!("{APT} remove fdstash"));

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("are no longer: 2"), "{said}");
    // Nobody has the other end any more, systemd neither.
    wait_until(SOON, || rustix::io::write(&writer, b"x") == Err(Errno::PIPE));
    assert!(UnixStream::connect(systemd.socket()).is_err());
    // Nor does who asks for metrics start it again.
    assert_eq!(systemd.property(METRICS, "ActiveState"), "inactive");
    systemd.works("test -e /etc/fdstash/policy.toml && ! pgrep -x fdstashd");

    // Who disables it finds it so after an upgrade.
    systemd.works("dpkg -i /packages/fdstash_*.deb");
    systemd.works("systemctl --quiet disable --now fdstashd.socket fdstashd.service");
    systemd.works("dpkg -i /packages/later-1-1.deb");
    assert_eq!(systemd.property(SERVICE, "ActiveState"), "inactive");
    assert_eq!(systemd.property("fdstashd.socket", "UnitFileState"), "disabled");

    systemd.works(&format!("{APT} purge fdstash"));
    let after = systemd.works(files);
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, after) = (lines(&before), lines(&after));
    assert!(before.contains("/usr/bin/dpkg"), "{before:?}");
    let left: Vec<_> = after.difference(&before).collect();
    let gone: Vec<_> = before.difference(&after).collect();
    assert_eq!((left, gone), (vec![], vec![]));
    assert_eq!(systemd.property(SERVICE, "LoadState"), "not-found");
}
