#![no_main]

use pointsman_fuzz::{address, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("address"), |octets: &[u8]| address::check(octets));
