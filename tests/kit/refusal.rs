//! What the daemon refused a call with, and what a test says that it should be.

use std::fmt::Debug;

use fdstash::{Error, Refusal};

/// The refusal that a call has met with.
///
/// # Panics
///
/// If it was done, or has failed in another way.
#[track_caller]
pub fn refusal<T: Debug>(outcome: Result<T, Error>) -> Refusal {
    match outcome {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("no refusal: {other:?}"),
    }
}

/// The name of the errno that a reopen has failed with.
///
/// # Panics
///
/// If it was done, or was refused for another reason.
#[track_caller]
pub fn errno_name<T: Debug>(outcome: Result<T, Error>) -> String {
    let refused = refusal(outcome);
    let Refusal::ReopenFailed { errno_name, .. } = refused else { panic!("{refused:?}") };
    errno_name
}

/// That a verb may not be used on a name by who has tried.
#[must_use]
pub fn denied(text: &str, verb: &str) -> Refusal {
    Refusal::AccessDenied { name: text.into(), verb: verb.into() }
}

/// That there is nothing of a name, as far as who asks may know.
#[must_use]
pub fn not_found(text: &str) -> Refusal {
    Refusal::NotFound { name: text.into() }
}

/// That a limit is reached, which is that high.
#[must_use]
pub fn exceeded(limit: &str, value: i64) -> Refusal {
    Refusal::LimitExceeded { limit: limit.into(), value }
}
