#![no_main]

use pointsman_fuzz::{seeds, session};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("session"), |octets: &[u8]| session::check(octets));
