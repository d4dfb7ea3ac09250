//! [`Files`]: what a driver opens the files of its image through: the stash, or the file system and then
//! the stash; and at a reopening the new set, and nothing else.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf, absolute},
    slice,
};

use fdstash_proto::{Access, Clash, Entry, Gift, Kind, Name, Pattern, Refusal, Reopening, Share};

use crate::{
    Error, OpenOptions,
    core::{entries, handed},
    job::Job,
    stage::Stage,
};

/// The files of an image while it is being opened, in a transaction: whatever fails, the stash is as it
/// was.
///
/// At first a file comes from the stash, by its name or by the path at which it was when it was given;
/// and else, unless [`OpenOptions::only_stash`] forbids it, from the file system, with this process's own
/// rights, and into the stash. At a reopening it is one of the new set: a file that was not among them at
/// first is refused.
///
/// What is handed out shares nothing with what the stash keeps.
pub struct Files<'a> {
    stage: Stage<'a>,
    options: OpenOptions,
    opened: Vec<Opened>,
    /// Whether they are all there are.
    is_whole: bool,
    /// Why one was refused, whatever the driver made of it.
    failure: Option<Error>,
}

/// One of them.
struct Opened {
    member: Member,
    file: File,
}

/// A file of a set, as it is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Name,
    /// How it was asked for.
    pub(crate) path: PathBuf,
    /// The most that was asked for.
    pub(crate) access: Access,
    /// What the stash keeps of it.
    kept: Access,
    /// Which file it is: device and inode.
    identity: (u64, u64),
}

impl Member {
    /// How it is opened anew so, and no less of it kept than is now.
    fn reopening(&self, options: &OpenOptions, access: Access) -> Reopening {
        options.reopening(&self.name, self.kept, access)
    }
}

impl<'a> Files<'a> {
    /// Those that are looked for.
    pub(crate) fn new(stage: Stage<'a>, options: &OpenOptions) -> Self {
        let options = options.clone();
        Self { stage, options, opened: Vec::new(), is_whole: false, failure: None }
    }

    /// A set, all of it opened anew.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then all is as it was. [`Error::Replaced`] where a name has another file by now.
    pub(crate) async fn reopened(
        mut stage: Stage<'a>,
        members: &[Member],
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let reopenings: Vec<_> = members
            .iter()
            .map(|member| member.reopening(options, options.at_most(member.access)))
            .collect();
        let fds = handed(stage.run(Job::reopen(&reopenings)?).await?);
        let mut opened = Vec::with_capacity(members.len());
        for ((member, handed), reopening) in members.iter().zip(fds).zip(&reopenings) {
            let file = handed.fd.into();
            // The daemon reopens what has the name now. When the entry was closed, anybody could put
            // another file there, and a guest must not go on in that.
            if identity(&file).map_err(|source| of_file(&member.path, source))? != member.identity {
                return Err(Error::Replaced { name: member.name.clone() });
            }
            let kept = reopening.access.unwrap_or(member.kept);
            opened.push(Opened { member: Member { kept, ..member.clone() }, file });
        }
        Ok(Self { stage, options: options.clone(), opened, is_whole: true, failure: None })
    }

    /// How they are opened.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// Opens the file that the image calls so, for so much. What comes is the caller's, and
    /// close-on-exec; asked for again, it is another descriptor of the same open file description.
    ///
    /// # Errors
    ///
    /// What the stash or the kernel says; then the image is not opened, whatever the driver makes of it.
    pub async fn open(&mut self, path: &Path, access: Access) -> io::Result<File> {
        let outcome = self.find(path, access).await;
        self.note(outcome)
    }

    /// Opens what the stash keeps under this name, as [`Files::open`] does, and tells which path it had
    /// when it was given.
    ///
    /// # Errors
    ///
    /// As [`Files::open`].
    pub async fn open_kept(&mut self, name: &Name, access: Access) -> io::Result<(File, PathBuf)> {
        let outcome = self.find_kept(name, access).await;
        self.note(outcome)
    }

    /// Makes it final. Tells which files there are, and how they are opened.
    pub(crate) async fn commit(self) -> Result<Set, Error> {
        let Self { stage, options, opened, .. } = self;
        stage.commit().await?;
        let members = opened.into_iter().map(|opened| opened.member).collect();
        Ok(Set { members, options })
    }

    /// Whether every file was opened that was asked for.
    ///
    /// # Errors
    ///
    /// Why one was not, also where the driver has gone on without it.
    pub(crate) fn no_failure(&mut self) -> Result<(), Error> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Undoes it. Tells why a file was refused, if one was.
    pub(crate) async fn rollback(self) -> Option<Error> {
        let Self { stage, failure, .. } = self;
        stage.rollback().await;
        failure
    }

    /// Keeps the reason, since a driver may tell only a part of it.
    fn note<R>(&mut self, outcome: Result<R, Error>) -> io::Result<R> {
        outcome.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            self.failure.get_or_insert(error);
            told
        })
    }

    pub(crate) async fn find(&mut self, path: &Path, access: Access) -> Result<File, Error> {
        let known = self.opened.iter().position(|opened| opened.member.path == path);
        if let Some(at) = known {
            return self.again(at, access).await;
        }
        let name = self.options.name(path)?;
        // By another spelling of its path it is the same file, and one entry.
        if let Some(at) = self.opened.iter().position(|opened| opened.member.name == name) {
            return self.again(at, access).await;
        }
        if self.is_whole {
            return Err(Error::AnotherFile { path: path.to_owned() });
        }
        self.allow(path, access)?;
        let is_chosen = self.options.is_named(path);
        let mut entry = self.entry(&name).await?;
        if entry.is_none() && !is_chosen {
            entry = self.entry_of(path).await?;
        }
        match entry {
            Some(entry) => self.take_in(entry, path, access).await,
            None if self.options.only_stash => Err(absent(&name)),
            None => self.open_new(name, path, access).await,
        }
    }

    pub(crate) async fn find_kept(
        &mut self,
        name: &Name,
        access: Access,
    ) -> Result<(File, PathBuf), Error> {
        let known = self.opened.iter().position(|opened| opened.member.name == *name);
        if let Some(at) = known {
            let path = self.opened[at].member.path.clone();
            return Ok((self.again(at, access).await?, path));
        }
        if self.is_whole {
            return Err(Error::AnotherFile { path: name.as_str().into() });
        }
        let entry = self.entry(name).await?;
        let entry = entry.ok_or_else(|| absent(name))?;
        let path = PathBuf::from(entry.target.as_deref().unwrap_or_default());
        self.allow(&path, access)?;
        Ok((self.take_in(entry, &path, access).await?, path))
    }

    /// One that is there already, with more access if need be.
    async fn again(&mut self, at: usize, access: Access) -> Result<File, Error> {
        let Opened { member, file } = &mut self.opened[at];
        let now = self.options.at_most(member.access);
        if !now.covers(access) {
            if !self.options.at_most(access).covers(access) {
                return Err(Error::ReadOnly { path: member.path.clone() });
            }
            let reopening = member.reopening(&self.options, access);
            *file = reopen(&mut self.stage, &reopening).await?;
            member.kept = reopening.access.unwrap_or(member.kept);
            member.access = access;
        }
        duplicate(file)
    }

    fn allow(&self, path: &Path, access: Access) -> Result<(), Error> {
        let is_allowed = self.options.at_most(access).covers(access);
        if is_allowed { Ok(()) } else { Err(Error::ReadOnly { path: path.to_owned() }) }
    }

    /// What is kept under a name, as far as this user may see it.
    async fn entry(&mut self, name: &Name) -> Result<Option<Entry>, Error> {
        // A name can have a '*' in it, and so match more than itself.
        let Ok(pattern) = Pattern::new(name.as_str()) else { return Ok(None) };
        let entries = entries(self.stage.run(Job::list(&pattern)).await?);
        Ok(entries.into_iter().find(|entry| entry.name == *name))
    }

    /// What was at a path when it was given, by somebody who is trusted.
    async fn entry_of(&mut self, path: &Path) -> Result<Option<Entry>, Error> {
        let entries = entries(self.stage.run(Job::list(&self.options.pattern())).await?);
        let said = absolute(path).unwrap_or_else(|_| path.to_owned());
        // The kernel tells a target without symbolic links, as far as they lead anywhere now.
        let path_now = said.clone();
        let real = self.stage.wait_for(move || path_now.canonicalize()).await.ok();
        let is_at = |target: &str| {
            let target = Path::new(target);
            target == said || real.as_deref() == Some(target)
        };
        let mut found = entries.into_iter().filter(|entry| {
            entry.target.as_deref().is_some_and(is_at)
                && matches!(entry.kind, Kind::Regular | Kind::Block)
                && self.options.has_name(&entry.name)
                && self.options.trusts(entry.giver.uid)
        });
        let (one, other) = (found.next(), found.next());
        if let (Some(one), Some(other)) = (&one, other) {
            let (one, other) = (one.name.clone(), other.name);
            return Err(Error::Ambiguous { path: path.to_owned(), one, other });
        }
        Ok(one)
    }

    /// One from the stash.
    async fn take_in(&mut self, entry: Entry, path: &Path, access: Access) -> Result<File, Error> {
        // To open what a stranger gave can take for ever.
        self.check_giver(&entry)?;
        let name = entry.name;
        let reopening = self.options.reopening(&name, entry.access, access);
        let file = reopen(&mut self.stage, &reopening).await?;
        // Only now nobody else can put another in its place.
        let entry = self.entry(&name).await?;
        let entry = entry.ok_or_else(|| absent(&name))?;
        self.check_giver(&entry)?;
        self.add(name, path, (access, entry.access), file)
    }

    fn check_giver(&self, entry: &Entry) -> Result<(), Error> {
        if self.options.trusts(entry.giver.uid) {
            return Ok(());
        }
        Err(Error::Stranger { name: entry.name.clone(), giver: entry.giver })
    }

    /// One from the file system, into the stash.
    async fn open_new(&mut self, name: Name, path: &Path, access: Access) -> Result<File, Error> {
        let (file, fresh) = self.open_path(path, access).await?;
        self.give(&name, access, (&file, fresh), Clash::Refuse).await?;
        self.add(name, path, (access, access), file)
    }

    /// What stands at a member's path now, if it is not the file that is open already; and into the
    /// stash in its place.
    pub(crate) async fn open_anew(&mut self, member: &Member) -> Result<Option<File>, Error> {
        let (file, fresh) = self.open_path(&member.path, member.access).await?;
        if identity(&file).map_err(|source| of_file(&member.path, source))? == member.identity {
            return Ok(None);
        }
        self.give(&member.name, member.access, (&file, fresh), Clash::Replace).await?;
        let access = (member.access, member.access);
        self.add(member.name.clone(), &member.path, access, file).map(Some)
    }

    /// Tells also whether the stash can have an open file description of its own.
    async fn open_path(&mut self, path: &Path, access: Access) -> Result<(File, bool), Error> {
        if self.options.only_stash {
            let why = "it may be opened only out of the stash";
            return Err(of_file(path, io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        let (options, at) = (self.options.clone(), path.to_owned());
        let opened = self.stage.wait_for(move || {
            let file = options.open_path(&at, access)?;
            let kind = file.metadata()?.file_type();
            Ok((file, kind.is_file() || kind.is_block_device()))
        });
        opened.await.map_err(|source| of_file(path, source))
    }

    async fn give(
        &mut self,
        name: &Name,
        access: Access,
        (file, fresh): (&File, bool),
        clash: Clash,
    ) -> Result<(), Error> {
        let mut gift = Gift {
            fresh,
            may_reopen: self.options.may_reopen,
            share: self.options.share.clone(),
            labels: self.options.labels.clone(),
            ..Gift::new(name.clone(), file)
        };
        let is_own = self.options.share == Share::default();
        if fresh && is_own && gift.may_reopen.is_none() && access != Access::ReadWrite {
            gift.may_reopen = Some(Access::ReadWrite);
            match self.stage.run(Job::give(slice::from_ref(&gift), clash)?).await {
                // This user has no right to that, so nobody is the worse for it later.
                Err(Error::Refused(
                    Refusal::ReopenFailed { .. } | Refusal::AccessDenied { .. },
                )) => gift.may_reopen = None,
                outcome => return outcome.map(drop),
            }
        }
        self.stage.run(Job::give(&[gift], clash)?).await.map(drop)
    }

    /// The one file of a set that was opened anew.
    pub(crate) fn first(&self) -> Result<File, Error> {
        duplicate(&self.opened[0].file)
    }

    /// With the access that was asked for, and that of what is kept.
    fn add(
        &mut self,
        name: Name,
        path: &Path,
        (access, kept): (Access, Access),
        file: File,
    ) -> Result<File, Error> {
        let lent = duplicate(&file)?;
        let identity = identity(&file).map_err(|source| of_file(path, source))?;
        let member = Member { name, path: path.to_owned(), access, kept, identity };
        self.opened.push(Opened { member, file });
        Ok(lent)
    }
}

/// The files of an image, or the one file, and how they are opened.
#[derive(Debug, Clone)]
pub(crate) struct Set {
    pub(crate) members: Vec<Member>,
    pub(crate) options: OpenOptions,
}

async fn reopen(stage: &mut Stage<'_>, reopening: &Reopening) -> Result<File, Error> {
    let mut fds = handed(stage.run(Job::reopen(slice::from_ref(reopening))?).await?);
    // What a question's answer is, the codec has seen to.
    fds.pop().map(|handed| handed.fd.into()).ok_or(Error::RolledBack)
}

fn duplicate(file: &File) -> Result<File, Error> {
    file.try_clone().map_err(|_| Error::NoRoom)
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn of_file(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.to_owned(), source }
}

fn absent(name: &Name) -> Error {
    Refusal::NotFound { name: name.to_string() }.into()
}
