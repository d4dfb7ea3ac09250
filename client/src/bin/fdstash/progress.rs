//! What is being waited for, said where somebody looks on and it takes longer than a moment.

use std::{
    io::{self, IsTerminal, Write},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// So long nobody wonders what is going on.
const MOMENT: Duration = Duration::from_secs(1);

/// Says on a terminal's standard error what is going on, from the second second on until it is dropped.
pub(crate) struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Of what is done now: `waiting for "a"`.
    pub(crate) fn soon(what: impl Into<String>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let what = what.into();
        let (sender, done) = mpsc::channel::<()>();
        let began = Instant::now();
        let telling = thread::spawn(move || {
            let mut err = io::stderr();
            let mut is_shown = false;
            while done.recv_timeout(MOMENT) == Err(RecvTimeoutError::Timeout) {
                let seconds = began.elapsed().as_secs();
                // Where the terminal is gone nobody looks on.
                let _ = write!(err, "\r\x1b[Kfdstash: {what} ... {seconds} s");
                is_shown = true;
            }
            if is_shown {
                let _ = write!(err, "\r\x1b[K");
            }
        });
        Self(Some((sender, telling)))
    }
}

impl Drop for Progress {
    /// Wipes the line out before anything else is written.
    fn drop(&mut self) {
        if let Some((sender, telling)) = self.0.take() {
            drop(sender);
            let _ = telling.join();
        }
    }
}
