#![no_main]

use pointsman_fuzz::{dot, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("dot"), |octets: &[u8]| dot::check(octets));
