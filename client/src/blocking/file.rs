//! The blocking face of [`File`](crate::file::File).

use std::path::Path;

use fdstash_proto::Name;

use super::{Client, now};
use crate::{
    Error, OpenOptions, ReopenOptions,
    file::{self, Which},
};

/// An open file of which the stash keeps an open file description too, for the blocking client.
pub type File = file::File<Client>;

impl File {
    /// Opens a file: out of the stash if it is there, and else by its path, with this process's own
    /// rights, and into the stash. What is open then shares nothing with what the stash keeps.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then the stash is as it was, except after [`Error::ConnectionLost`], which tells.
    pub fn open(
        client: &mut Client,
        path: impl AsRef<Path>,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        now(file::open(&mut client.0, Which::At(path.as_ref()), options)).map(Self::from)
    }

    /// Opens what the stash keeps under a name, and nothing by a path.
    ///
    /// # Errors
    ///
    /// As [`File::open`].
    pub fn open_kept(
        client: &mut Client,
        name: &Name,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        now(file::open(&mut client.0, Which::Kept(name), options)).map(Self::from)
    }

    /// Opens the very same file again, whatever its path is called by now. Only when that is open is it
    /// put in the place of what was; with an offset and locks of its own, so the offset is 0.
    ///
    /// # Errors
    ///
    /// Any [`Error`]; then this file is as it was, and so is the stash, except after
    /// [`Error::ConnectionLost`], which tells.
    pub fn reopen(&mut self, client: &mut Client, change: &ReopenOptions) -> Result<(), Error> {
        let opened = now(file::reopen(&mut client.0, self.set(), change))?;
        self.swap(opened);
        Ok(())
    }

    /// Opens what stands at the path now, as for a log that was renamed, with this process's own rights,
    /// and puts it in the place of what was, here and in the stash. Tells whether it was another file;
    /// if not, nothing has happened.
    ///
    /// # Errors
    ///
    /// As [`File::reopen`].
    pub fn rotate(&mut self, client: &mut Client) -> Result<bool, Error> {
        let opened = now(file::rotate(&mut client.0, self.set()))?;
        let is_another = opened.is_some();
        if let Some(opened) = opened {
            self.swap(opened);
        }
        Ok(is_another)
    }
}
