#![no_main]

use pointsman_fuzz::{origin, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("origin"), |octets: &[u8]| origin::check(octets));
