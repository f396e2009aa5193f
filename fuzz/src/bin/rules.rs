#![no_main]

use pointsman_fuzz::{rules, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("rules"), |octets: &[u8]| rules::check(octets));
