#![no_main]

use pointsman_fuzz::{proxy, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::lay_out("proxy"), |octets: &[u8]| proxy::check(octets));
