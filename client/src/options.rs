//! [`OpenOptions`] and [`ReopenOptions`]: how files are opened, and how they are opened again.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf, absolute},
};

use fdstash_proto::{Access, Flags, Labels, Name, Pattern, Reopening, Share};
use rustix::process::geteuid;

use crate::Error;

/// How a file, or every file of an image, is opened: out of the stash, and if it is not there, by its
/// path.
///
/// The stash keeps a file that is opened so under its absolute path, where bytes that no name may have,
/// and `%`, stand as `%` and two hexadecimal digits; [`OpenOptions::under`] puts a prefix before it,
/// [`OpenOptions::named`] chooses another name. Where nothing is kept under that name, an entry is taken
/// whose file had that path when it was given.
///
/// ```
/// use fdstash::OpenOptions;
///
/// let disk = OpenOptions::read_write().direct(true).under("vm7");
/// let log = OpenOptions::append().create(0o640);
/// # let _ = (disk, log);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct OpenOptions {
    access: Access,
    flags: Flags,
    /// With this mode, if it is not there.
    create: Option<u32>,
    pub(crate) only_stash: bool,
    prefix: String,
    names: BTreeMap<PathBuf, Name>,
    trusted: Vec<u32>,
    pub(crate) may_reopen: Option<Access>,
    pub(crate) share: Share,
    pub(crate) labels: Labels,
}

impl OpenOptions {
    /// For reading.
    pub fn read() -> Self {
        Self::with(Access::Read)
    }

    /// For reading and writing.
    pub fn read_write() -> Self {
        Self::with(Access::ReadWrite)
    }

    /// For writing.
    pub fn write() -> Self {
        Self::with(Access::Write)
    }

    /// For writing at the end (`O_APPEND`), as a log is.
    pub fn append() -> Self {
        Self::write().at_end(true)
    }

    fn with(access: Access) -> Self {
        Self {
            access,
            flags: Flags::NONE,
            create: None,
            only_stash: false,
            prefix: String::new(),
            names: BTreeMap::new(),
            trusted: vec![0, geteuid().as_raw()],
            may_reopen: None,
            share: Share::default(),
            labels: Labels::new(),
        }
    }

    /// For what it is opened: of an image, what is written at most.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// With which flags.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// `O_APPEND`: whatever is written goes to the end.
    pub fn at_end(self, on: bool) -> Self {
        self.flag(Flags::APPEND, on)
    }

    /// `O_DIRECT`: past the host's page cache.
    pub fn direct(self, on: bool) -> Self {
        self.flag(Flags::DIRECT, on)
    }

    /// `O_SYNC`.
    pub fn sync(self, on: bool) -> Self {
        self.flag(Flags::SYNC, on)
    }

    /// `O_DSYNC`.
    pub fn dsync(self, on: bool) -> Self {
        self.flag(Flags::DSYNC, on)
    }

    /// `O_NOATIME`.
    pub fn noatime(self, on: bool) -> Self {
        self.flag(Flags::NOATIME, on)
    }

    /// Makes the file, with this mode less the umask, where neither the stash nor the path has it.
    pub fn create(mut self, mode: u32) -> Self {
        self.create = Some(mode);
        self
    }

    /// Opens nothing by a path: what is not in the stash is an error. For a program that may open
    /// nothing itself, or must not, whatever an image's header says.
    pub fn only_stash(mut self) -> Self {
        self.only_stash = true;
        self
    }

    /// Puts this before the names, so that two users of the same files keep them apart.
    pub fn under(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// The file at this path is kept under this name.
    pub fn named(mut self, path: impl Into<PathBuf>, name: Name) -> Self {
        self.names.insert(path.into(), name);
        self
    }

    /// Takes also what this user has given. Without, only what root or this process's own user has:
    /// names are one space for all users, and whoever gives first has the name.
    pub fn trust(mut self, uid: u32) -> Self {
        self.trusted.push(uid);
        self
    }

    /// The most access a Reopen may give to what is newly stashed. Without: reading and writing, where
    /// that is this process's own right and the entry is not shared; else the access it is opened with.
    pub fn may_reopen(mut self, access: Access) -> Self {
        self.may_reopen = Some(access);
        self
    }

    /// Who else may use what is newly stashed.
    pub fn share(mut self, share: Share) -> Self {
        self.share = share;
        self
    }

    /// A note beside what is newly stashed.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, flag: Flags, on: bool) -> Self {
        self.flags = self.flags.with(flag, on);
        self
    }

    /// The same as they are after a reopening.
    pub(crate) fn changed(mut self, change: &ReopenOptions) -> Self {
        self.access = change.access.unwrap_or(self.access);
        self.flags = change.flags.iter().fold(self.flags, |all, &(flag, on)| all.with(flag, on));
        self
    }

    /// Under which name the file at a path is kept.
    ///
    /// # Errors
    ///
    /// [`Error::NoName`] if the path is too long for one.
    pub(crate) fn name(&self, path: &Path) -> Result<Name, Error> {
        if let Some(name) = self.names.get(path) {
            return Ok(name.clone());
        }
        let path = absolute(path).unwrap_or_else(|_| path.to_owned());
        if let Some(name) = self.names.get(&path) {
            return Ok(name.clone());
        }
        let prefix = self.prefix.strip_suffix('/').unwrap_or(&self.prefix);
        let name = format!("{prefix}{}", spelled(&path));
        Name::new(&name).map_err(|reason| Error::NoName { path, reason })
    }

    /// Whether what this user has given is taken for what its name says.
    pub(crate) fn trusts(&self, uid: u32) -> bool {
        self.trusted.contains(&uid)
    }

    /// Whether the name of the file at a path was chosen, and is not made of the path.
    pub(crate) fn is_named(&self, path: &Path) -> bool {
        self.names.contains_key(path)
    }

    /// Which names are of these files, as far as a pattern can tell.
    pub(crate) fn pattern(&self) -> Pattern {
        Pattern::new(&format!("{}*", self.prefix)).unwrap_or_else(|_| Pattern::all())
    }

    pub(crate) fn has_name(&self, name: &Name) -> bool {
        name.as_str().starts_with(&self.prefix)
    }

    /// So much access, or what is left of it where all files are only read.
    pub(crate) fn at_most(&self, access: Access) -> Access {
        let is_less = self.access == Access::Read && access.covers(Access::Write);
        if is_less { Access::Read } else { access }
    }

    /// How an entry, of which so much is kept, is opened for so much, and no less of it kept.
    pub(crate) fn reopening(&self, name: &Name, kept: Access, access: Access) -> Reopening {
        Reopening {
            access: (!kept.covers(access)).then(|| both(kept, access)),
            hand_out: Some(access),
            direct: Some(self.flags.contains(Flags::DIRECT)),
            sync: Some(self.flags.contains(Flags::SYNC)),
            dsync: Some(self.flags.contains(Flags::DSYNC)),
            append: Some(self.flags.contains(Flags::APPEND)),
            noatime: Some(self.flags.contains(Flags::NOATIME)),
            ..Reopening::new(name.clone())
        }
    }

    /// Opens what stands at a path, with this process's own rights.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn open_path(&self, path: &Path, access: Access) -> io::Result<File> {
        let of = [
            (Flags::DIRECT, libc::O_DIRECT),
            (Flags::SYNC, libc::O_SYNC),
            (Flags::DSYNC, libc::O_DSYNC),
            (Flags::APPEND, libc::O_APPEND),
            (Flags::NOATIME, libc::O_NOATIME),
        ];
        let flags = of.into_iter().filter(|(flag, _)| self.flags.contains(*flag));
        let flags = flags.fold(libc::O_NOCTTY, |all, (_, flag)| all | flag);
        let mut options = File::options();
        options.read(access.covers(Access::Read)).write(access.covers(Access::Write));
        if let Some(mode) = self.create {
            // std would have it only where the file is written.
            options.create(access.covers(Access::Write)).mode(mode);
        }
        options.custom_flags(flags).open(path)
    }
}

/// How files that are open already are opened again. What is left out stays as it is.
///
/// ```
/// use fdstash::ReopenOptions;
///
/// let past_the_cache = ReopenOptions::new().direct(true);
/// # let _ = past_the_cache;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct ReopenOptions {
    access: Option<Access>,
    flags: Vec<(Flags, bool)>,
}

impl ReopenOptions {
    /// As it is: a new open file description, and no more.
    pub fn new() -> Self {
        Self::default()
    }

    /// With another access. What the stash keeps is not narrowed by it, so that one can go back; it is
    /// widened where need be, which takes this process's own rights on the file.
    ///
    /// Of an image, [`Access::Read`] opens all files for reading, and [`Access::ReadWrite`] those which
    /// the driver asks to write.
    pub fn access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// `O_DIRECT`: past the host's page cache.
    pub fn direct(self, on: bool) -> Self {
        self.flag(Flags::DIRECT, on)
    }

    /// `O_SYNC`.
    pub fn sync(self, on: bool) -> Self {
        self.flag(Flags::SYNC, on)
    }

    /// `O_DSYNC`.
    pub fn dsync(self, on: bool) -> Self {
        self.flag(Flags::DSYNC, on)
    }

    /// `O_NOATIME`.
    pub fn noatime(self, on: bool) -> Self {
        self.flag(Flags::NOATIME, on)
    }

    fn flag(mut self, flag: Flags, on: bool) -> Self {
        self.flags.push((flag, on));
        self
    }
}

/// What has the access of both.
fn both(one: Access, other: Access) -> Access {
    if one.covers(other) {
        one
    } else if other.covers(one) {
        other
    } else {
        Access::ReadWrite
    }
}

/// A path in the characters that a name may have.
fn spelled(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b' '..=b'~') && !matches!(byte, b':' | b'%') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_path_is_spelled_so_that_no_two_have_one_name() {
        for (path, name) in [
            (&b"/var/lib/images/vm7.img"[..], "/var/lib/images/vm7.img"),
            (b"/a b*?", "/a b*?"),
            (b"/a:b", "/a%3ab"),
            (b"/a%3ab", "/a%253ab"),
            (b"/k\xc3\xa4se\n", "/k%c3%a4se%0a"),
        ] {
            let spelled = OpenOptions::read().name(Path::new(OsStr::from_bytes(path))).unwrap();
            assert_eq!(spelled.as_str(), name);
        }
    }

    #[test]
    fn a_name_is_the_path_below_the_prefix_unless_another_was_chosen() {
        let base: Name = "gold-image".parse().unwrap();

        let options = OpenOptions::read().under("vm7").named("/images/base", base.clone());

        assert_eq!(options.name(Path::new("/images/base")).unwrap(), base);
        assert_eq!(options.name(Path::new("/images/top")).unwrap().as_str(), "vm7/images/top");
        let long = format!("/{}", "x".repeat(300));
        assert!(matches!(options.name(Path::new(&long)), Err(Error::NoName { .. })));
    }

    #[test]
    fn what_is_left_out_of_a_reopening_stays_as_it_is() {
        let options = OpenOptions::read_write().direct(true).dsync(true);

        let same = options.clone().changed(&ReopenOptions::new());
        let cached = options.clone().changed(&ReopenOptions::new().direct(false));

        assert_eq!(same, options);
        assert_eq!(cached, OpenOptions::read_write().dsync(true));
    }
}
