//! The laws of the stash over histories that the bytes are the seeds of: the very laws, histories and
//! model of its property tests.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../daemon/stash/tests/laws/main.rs"]
mod laws;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|seeds: &[u8]| laws::hold(seeds));
