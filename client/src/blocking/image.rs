//! The blocking face of [`Image`](crate::image::Image).

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake},
    thread::{self, Thread},
};

use super::Client;
use crate::{
    Driver, ImageError, OpenOptions, ReopenOptions,
    image::{self},
};

/// The files of an image that is open, for the blocking client.
pub type Image = image::Image<Client>;

impl Image {
    /// Opens an image with a driver, which is then resumed with it. Its files come out of the stash where
    /// they are there; the others are opened by their paths and stashed, all of them or none.
    ///
    /// # Errors
    ///
    /// Any [`ImageError`]; then the stash is as it was, and the driver was not resumed.
    pub fn open(
        client: &mut Client,
        driver: &mut impl Driver,
        options: &OpenOptions,
    ) -> Result<Self, ImageError> {
        wait(image::open(&mut client.0, driver, options)).map(Self::from)
    }

    /// Opens the very same files again, as the change says, and has the driver go on over them when all of
    /// them are open, the image is open over them and was read from, and the stash keeps them so.
    ///
    /// # Errors
    ///
    /// Any [`ImageError`]; then the driver goes on over the files that it had, which stay open and in the
    /// stash. After [`Error::ConnectionLost`](crate::Error) that
    /// may be done, the stash has them with the old flags or the new.
    pub fn reopen(
        &mut self,
        client: &mut Client,
        driver: &mut impl Driver,
        change: &ReopenOptions,
    ) -> Result<(), ImageError> {
        let set = wait(image::reopen(&mut client.0, driver, self.set(), change))?;
        self.swap(set);
        Ok(())
    }
}

/// Runs a flow in which a driver may wait for something, on this thread.
fn wait<F: Future>(flow: F) -> F::Output {
    let waker = Arc::new(Sleeper(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut flow = pin!(flow);
    loop {
        match flow.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// A thread that sleeps until what it waits for is there.
struct Sleeper(Thread);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
