#![no_main]

use pointsman_fuzz::{header, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("header"), |octets: &[u8]| header::check(octets));
