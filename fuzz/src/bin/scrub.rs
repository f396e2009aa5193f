#![no_main]

use pointsman_fuzz::{scrub, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("scrub"), |octets: &[u8]| scrub::check(octets));
