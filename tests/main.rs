//! The one integration binary: what can be seen from outside, and the rules that the tree itself must keep.
//!
//! One binary rather than one a file: it links once. `tidy` reads the sources; everything else starts the real
//! daemon on free loopback ports with a directory of its own, so all tests may run at the same time.

#![expect(unreachable_pub, reason = "a test binary exports nothing; `pub` marks the harness's surface")]

mod harness;
mod tidy;
mod dialog;
mod configs;
mod examples;
mod documents;
mod journeys;
mod operating;
mod notices;
mod owed;
mod peers;
mod profiles;
mod mailhost;
mod service;
mod signing;
mod package;
mod crash;
mod day;
mod memory;
mod tls;
mod requiretls;
mod relay_probes;
mod hostile;
mod auth;
mod spam;
mod faults;
mod fuzz;
mod mx;
mod online;
mod fallback;
mod answers;
mod reload;
mod rules;
mod schema;
mod diff;
mod imports;
mod telling;
mod monitoring;
