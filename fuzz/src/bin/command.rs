#![no_main]

use pointsman_fuzz::{command, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("command"), |octets: &[u8]| command::check(octets));
