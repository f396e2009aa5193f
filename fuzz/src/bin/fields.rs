#![no_main]

use pointsman_fuzz::{fields, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("fields"), |octets: &[u8]| fields::check(octets));
