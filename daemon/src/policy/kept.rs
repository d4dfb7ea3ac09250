//! What was read last, in memory that belongs to no process: a server that starts again goes by it.
//!
//! Two memfds, written in turn, each with a head that says which is newer and a checksum: what a reader
//! finds is always whole, whenever its writer has died; and where one version of the program cannot
//! read what a newer one has left, it finds what was in force before.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result};
use fdstash_stash::Rules;

use super::Policy;
use crate::{
    journal::memory,
    run::{Daemon, Input},
};

/// What a file begins with that is a policy's.
const MAGIC: [u8; 8] = *b"fdpolicy";

/// The magic, the generation, and a checksum of that and of the text.
const HEAD: usize = 8 + 8 + 4;

/// The memory. Its files outlive the process.
pub(crate) struct Kept([File; 2]);

/// What stands in one of the files.
struct Found {
    generation: u64,
    text: Vec<u8>,
}

impl Kept {
    /// Memory that says nothing yet.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn create() -> io::Result<Self> {
        let file = || memory("fdstash-policy").map(File::from);
        Ok(Self([file()?, file()?]))
    }

    /// The same memory, of a process before this one.
    pub(crate) fn from_before(files: [OwnedFd; 2]) -> Self {
        Self(files.map(File::from))
    }

    /// The descriptors.
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        self.0.each_ref().map(AsFd::as_fd)
    }

    /// Keeps this from now on, in the place of what was kept before the last.
    ///
    /// # Errors
    ///
    /// The kernel's; then what was kept last still is.
    pub(crate) fn store(&self, read: &Policy) -> io::Result<()> {
        let text = toml::to_string(read).map_err(io::Error::other)?;
        let newest = self.found()?.into_iter().next();
        let (at, generation) = newest.map_or((0, 1), |(at, found)| (1 - at, found.generation + 1));
        let head = [MAGIC, generation.to_le_bytes()].concat();
        let sum = checksum(&head, text.as_bytes()).to_le_bytes();
        let all = [&head, sum.as_slice(), text.as_bytes()].concat();
        self.0[at].set_len(0)?;
        self.0[at].write_all_at(&all, 0)
    }

    /// Which of all that was ever kept it is.
    pub(crate) fn generation(&self) -> u64 {
        let found = self.found().unwrap_or_default();
        found.first().map_or(0, |(_, found)| found.generation)
    }

    /// What was kept last and says something to this version.
    ///
    /// # Errors
    ///
    /// What the last has that this version does not understand, if it understands nothing of it all.
    pub(crate) fn rules(&self) -> Result<Rules> {
        let mut first = None;
        for (_, Found { text, .. }) in self.found().context("reading the policy in force")? {
            match rules_of(&text) {
                Ok(rules) => return Ok(rules),
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or_else(|| Ok(Rules::default()), Err)
    }

    /// What stands in the files, the newest first.
    fn found(&self) -> io::Result<Vec<(usize, Found)>> {
        let mut all = Vec::new();
        for (at, file) in self.0.iter().enumerate() {
            all.extend(read(file)?.map(|found| (at, found)));
        }
        all.sort_by_key(|(_, found)| std::cmp::Reverse(found.generation));
        Ok(all)
    }
}

impl Daemon {
    /// Goes by the rules that were loaded last.
    pub(crate) fn load_rules(&mut self, kept: &Kept) {
        let generation = kept.generation();
        if generation == self.rules_of {
            return;
        }
        match kept.rules() {
            Ok(rules) => {
                let (allow, reserve) = (rules.allow.len(), rules.reserve.len());
                tracing::debug!(allow, reserve, generation, "the policy is in force");
                self.rules_of = generation;
                self.handle(Input::Rules(rules));
            }
            // Whoever could load none, has none: they give, and what they keep is not given away.
            Err(error) => tracing::error!("the policy that was loaded cannot be read: {error:#}"),
        }
    }
}

fn rules_of(text: &[u8]) -> Result<Rules> {
    let mut read: Policy = toml::from_str(std::str::from_utf8(text)?)?;
    read.rules()
}

fn read(file: &File) -> io::Result<Option<Found>> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    let Some((head, text)) = bytes.split_at_checked(HEAD) else { return Ok(None) };
    let (head, sum) = head.split_at(HEAD - 4);
    let (magic, generation) = head.split_at(MAGIC.len());
    let (Ok(generation), Ok(sum)) = (generation.try_into(), sum.try_into()) else {
        return Ok(None);
    };
    if magic != MAGIC || checksum(head, text) != u32::from_le_bytes(sum) {
        return Ok(None);
    }
    Ok(Some(Found { generation: u64::from_le_bytes(generation), text: text.to_vec() }))
}

fn checksum(head: &[u8], text: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(text);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::{super::Text, *};

    fn read_of(text: &str) -> Policy {
        let file = Text { path: "p.toml".into(), text: text.into() };
        Policy { files: vec![file], ..Policy::default() }
    }

    fn reserve(uid: u32) -> String {
        format!("# \"quoted\"\n'''\n[[reserve]]\nnames = ['a\\\\b']\nusers = [{uid}]\n")
            .replace("'''\n", "")
    }

    fn users(kept: &Kept) -> Vec<u32> {
        let rules = kept.rules().unwrap();
        rules.reserve.iter().flat_map(|rule| rule.whom.users.clone()).collect()
    }

    #[test]
    fn what_was_kept_last_is_read() {
        let kept = Kept::create().unwrap();
        assert_eq!((kept.generation(), users(&kept)), (0, vec![]));

        for uid in 1..5 {
            kept.store(&read_of(&reserve(uid))).unwrap();

            assert_eq!((kept.generation(), users(&kept)), (uid.into(), vec![uid]));
        }
    }

    #[test]
    fn what_was_cut_anywhere_while_it_was_kept_leaves_what_was_before() {
        let kept = Kept::create().unwrap();
        for uid in 1..3 {
            kept.store(&read_of(&reserve(uid))).unwrap();
        }
        let newest = kept.found().unwrap()[0].0;
        let whole = kept.0[newest].metadata().unwrap().len();

        for len in (0..whole).rev() {
            kept.0[newest].set_len(len).unwrap();

            assert_eq!(users(&kept), [1], "{len} of {whole}");
        }
    }

    #[test]
    fn what_a_later_version_has_kept_leaves_what_was_before() {
        let kept = Kept::create().unwrap();
        kept.store(&read_of(&reserve(1))).unwrap();

        kept.store(&read_of("[quotas]\nentries = 3\n")).unwrap();

        assert_eq!(users(&kept), [1]);
        kept.store(&read_of("[quotas]\nentries = 4\n")).unwrap();
        kept.store(&read_of("[quotas]\nentries = 5\n")).unwrap();
        assert!(
            kept.rules().unwrap_err().to_string().starts_with("p.toml:1: unknown field `quotas`")
        );
    }
}
