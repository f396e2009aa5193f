#![no_main]

use pointsman_fuzz::{mx, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("mx"), |octets: &[u8]| mx::check(octets));
