#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::proto;

#[path = "../bodies/ring.rs"]
mod body;

fuzz_target!(|data: &[u8]| body::run(data));
