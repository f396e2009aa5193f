#![no_main]

use pointsman_fuzz::{dsn, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("dsn"), |octets: &[u8]| dsn::check(octets));
