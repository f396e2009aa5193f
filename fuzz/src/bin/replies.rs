#![no_main]

use pointsman_fuzz::{replies, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("replies"), |octets: &[u8]| replies::check(octets));
