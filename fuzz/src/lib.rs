//! What must hold for any input, each as a function of octets that panics where it does not.
//!
//! The programs in `bin/` hand a function to libFuzzer, which looks for such octets. The integration tests include this
//! file as well: they hold each property against its seeds and against every input that once broke it.

pub mod address;
pub mod command;
pub mod dot;
pub mod dsn;
pub mod fields;
pub mod header;
pub mod mx;
pub mod origin;
pub mod proxy;
pub mod replies;
pub mod rules;
pub mod scrub;
pub mod seeds;
pub mod session;
pub mod spf;
pub mod srs;

mod input;

/// Every property, by the name of its program.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("session", session::check),
    ("command", command::check),
    ("address", address::check),
    ("header", header::check),
    ("origin", origin::check),
    ("fields", fields::check),
    ("spf", spf::check),
    ("proxy", proxy::check),
    ("rules", rules::check),
    ("replies", replies::check),
    ("srs", srs::check),
    ("dot", dot::check),
    ("scrub", scrub::check),
    ("mx", mx::check),
    ("dsn", dsn::check),
];
