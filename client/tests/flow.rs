//! What a client asks, in which order, and what it does when the daemon breaks off or lies: the same
//! stories for both ways to wait.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod peer;

mod blocking {
    use fdstash::blocking::Client;

    macro_rules! wait {
        ($call:expr) => {
            $call
        };
    }

    macro_rules! story {
        ($(fn $name:ident() $body:block)*) => { $(#[test] fn $name() $body)* };
    }

    macro_rules! next {
        ($watch:expr) => {
            $watch.next().transpose()
        };
    }

    macro_rules! act {
        (|$transaction:ident| $body:block) => {
            |$transaction| $body
        };
    }

    include!("stories/calls.rs");
    include!("stories/losses.rs");
    include!("stories/pipelines.rs");
    include!("stories/transactions.rs");
}

#[cfg(feature = "tokio")]
mod tokio {
    use fdstash::Client;

    macro_rules! wait {
        ($call:expr) => {
            $call.await
        };
    }

    macro_rules! story {
        // The pauses before a call is sent again are passed over here.
        ($(fn $name:ident() $body:block)*) => {
            $(#[tokio::test(start_paused = true)] async fn $name() $body)*
        };
    }

    macro_rules! next {
        ($watch:expr) => {
            $watch.next().await
        };
    }

    macro_rules! act {
        (|$transaction:ident| $body:block) => {
            async |$transaction: &mut fdstash::Transaction<'_>| $body
        };
    }

    include!("stories/calls.rs");
    include!("stories/losses.rs");
    include!("stories/pipelines.rs");
    include!("stories/transactions.rs");
}
