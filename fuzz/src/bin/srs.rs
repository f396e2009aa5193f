#![no_main]

use pointsman_fuzz::{seeds, srs};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("srs"), |octets: &[u8]| srs::check(octets));
