//! Pointsman: an inbound SMTP router.
//!
//! Mail for routing-only addresses comes in over SMTP, the administrator's rules say where it goes, and it is relayed,
//! byte for byte, to a CRM's email-to-case address. The README says how to use it; this is the map of the code.
//!
//! # The life of a message
//!
//! ```text
//! socket -> smtp::session (sans-I/O)          asks: this sender? this recipient?
//!        -> inbound::connection               answers from the rules, carries the bytes
//!        -> inbound::journey, at the last dot: message -> rules -> stamp -> queue (synced) -> 250
//! queue  -> outbound (lanes, workers)         takes what is due, or what was handed over in memory
//!        -> relay: route -> dial -> smtp::client -> outcome
//!        -> queue: settled
//! ```
//!
//! # How it is laid out
//!
//! The modules below stand in reading order, and a module uses only itself and modules above it. Steps do not call
//! steps: they take values and return values, and only the two conductors, `inbound` and `outbound`, put them in
//! sequence, log and count. The conductors are given their clock, store and dialler, so that a day of mail passes in
//! seconds in a test. Most modules are pure: no sockets, files, clock, chance or logging. `tests/tidy.rs` holds all of
//! this. What touches the world stands behind the feature `daemon`; the fuzzers in `fuzz/` leave it out.
//!
//! # Invariants
//!
//! - A 250 to the final dot is built from a [`reply::DeliveryProof`], which the store alone makes, after its sync.
//! - Trouble of our own is a 4xx. A 5xx is decided by protocol, policy or rule, never stumbled into.
//! - The original bytes are never encoded, folded or ordered anew: we put fields before them and cut whole fields.
//! - Every buffer, list, loop and wait has a named limit.
//! - A live session keeps the configuration that it began with. A bad file on the disk never stops mail: what was
//!   accepted last is kept, and the next start uses it and says so.
//! - A null sender never gets a notification: whatever notifies takes an [`address::Mailbox`].
//! - What a peer said is escaped and cut before it is logged, and chooses no metric's label.

#![forbid(unsafe_code)]

// Words.
pub mod address;
pub mod network;
pub mod units;
pub mod reply;
pub mod envelope;
pub mod clock;
pub mod id;
pub mod actor;
pub mod diagnostic;
pub mod sketch;
pub mod document;
pub mod scrub;
#[cfg(feature = "daemon")]
pub mod events;
#[cfg(feature = "daemon")]
pub mod log;
#[cfg(feature = "daemon")]
pub mod contain;

// The ground: ports, each with its one real adapter.
pub mod dns;
#[cfg(feature = "daemon")]
pub mod tls;

// The steps of a message's walk.
pub mod proxy;
pub mod smtp;
pub mod message;
pub mod auth;
pub mod spam;
pub mod rules;
pub mod srs;
pub mod loops;
pub mod stamp;
#[cfg_attr(not(feature = "daemon"), expect(dead_code, reason = "without SQLite nobody stores anything"))]
pub mod queue;
pub mod relay;
pub mod bounce;

// The conductors.
#[cfg(feature = "daemon")]
pub mod inbound;
#[cfg(feature = "daemon")]
pub mod outbound;

// The building.
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod supervisor;
#[cfg(feature = "daemon")]
pub mod reload;
#[cfg(feature = "daemon")]
pub mod admin;
#[cfg(feature = "daemon")]
pub mod replay;
#[cfg(feature = "daemon")]
pub mod listen;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod import;
#[cfg(feature = "daemon")]
pub mod cli;
