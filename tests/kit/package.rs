//! Debian packages of what is built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{Systemd, is_root, program, skipped};

/// The packages of what is built, of the version that the sources have and of later ones.
#[derive(Debug)]
pub struct Packages(TempDir);

impl Packages {
    /// Makes those of what is built; none, where they could not be installed.
    ///
    /// # Panics
    ///
    /// If they should be made and are not.
    #[must_use]
    pub fn build() -> Option<Self> {
        if !is_root() || !Path::new("/var/lib/dpkg/status").exists() {
            skipped("to install a package takes root, and a Debian");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut build = Command::new(below("debian/build"));
        build.arg(folder.path()).env("COMPRESSION", "-Znone");
        build.env("BUILT", program("fdstashd").parent().expect("it is in a folder"));
        build.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        let output = build.output().expect("the script can be started");
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complained}");
        Some(Self(folder))
    }

    /// The file of a package.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn file(&self, package: &str) -> PathBuf {
        let files = fs::read_dir(self.0.path()).expect("it is ours").flatten();
        let mut files = files
            .filter(|file| file.file_name().to_string_lossy().starts_with(&format!("{package}_")));
        files.next().unwrap_or_else(|| panic!("there is no {package}")).path()
    }

    /// Makes the package fdstash once more, of a later version, with units that tell it, and with what a
    /// line of shell changes in its files: `later-VERSION.deb`.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn later(&self, version: &str, change: &str) {
        let file = self.0.path().join(format!("later-{version}.deb"));
        let tree = self.0.path().join(version);
        shell(&format!(
            "dpkg-deb -R {from} {tree} && cd {tree} && \
             sed -i 's/^Version: .*/Version: {version}/' DEBIAN/control && \
             sed -i 's/^Description=.*/Description=Version {version}/' usr/lib/systemd/*/fdstashd.service && \
             {change} && dpkg-deb --root-owner-group -Znone --build {tree} {to}",
            from = self.file("fdstash").display(),
            tree = tree.display(),
            to = file.display(),
        ));
    }

    /// A systemd in which nothing is installed, with the packages in its folder `/packages`.
    #[must_use]
    pub fn boot(&self) -> Option<Systemd> {
        let systemd = Systemd::boot_with(|tree| {
            let to = tree.join("packages");
            shell(&format!(
                "mkdir -p {to} && cp {from}/*.deb {to}",
                from = self.0.path().display(),
                to = to.display()
            ));
            shell(&format!("chmod 755 {}", tree.display()));
        })?;
        // Images of containers have apt start nothing; the machine's own dpkg may be at work just now; and
        // to read all manual pages of the machine takes long.
        systemd.works(
            "rm -f /usr/sbin/policy-rc.d /var/lib/dpkg/updates/* /var/lib/man-db/auto-update",
        );
        Some(systemd)
    }
}

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What a line of shell writes that works.
///
/// # Panics
///
/// If it does not.
#[track_caller]
pub fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("there is a shell");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complained}");
    String::from_utf8(output.stdout).expect("it writes text")
}
