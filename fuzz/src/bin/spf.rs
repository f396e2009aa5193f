#![no_main]

use pointsman_fuzz::{seeds, spf};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("spf"), |octets: &[u8]| spf::check(octets));
