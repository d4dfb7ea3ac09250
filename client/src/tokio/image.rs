//! The asynchronous face of [`Image`](crate::image::Image).

use super::Client;
use crate::{
    Driver, ImageError, OpenOptions, ReopenOptions,
    image::{self},
};

/// The files of an image that is open, for the asynchronous client.
pub type Image = image::Image<Client>;

impl Image {
    /// Opens an image with a driver, which is then resumed with it. Its files come out of the stash where
    /// they are there; the others are opened by their paths and stashed, all of them or none.
    ///
    /// # Errors
    ///
    /// Any [`ImageError`]; then the stash is as it was, and the driver was not resumed.
    pub async fn open(
        client: &mut Client,
        driver: &mut impl Driver,
        options: &OpenOptions,
    ) -> Result<Self, ImageError> {
        image::open(&mut client.0, driver, options).await.map(Self::from)
    }

    /// Opens the very same files again, as the change says, and has the driver go on over them when all of
    /// them are open, the image is open over them and was read from, and the stash keeps them so.
    ///
    /// # Errors
    ///
    /// Any [`ImageError`]; then the driver goes on over the files that it had, which stay open and in the
    /// stash; so it does where the future is dropped. After [`Error::ConnectionLost`](crate::Error) that
    /// may be done, the stash has them with the old flags or the new.
    pub async fn reopen(
        &mut self,
        client: &mut Client,
        driver: &mut impl Driver,
        change: &ReopenOptions,
    ) -> Result<(), ImageError> {
        let set = image::reopen(&mut client.0, driver, self.set(), change).await?;
        self.swap(set);
        Ok(())
    }
}
