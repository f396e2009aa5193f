//! Relaying: one leg and one route go in, one outcome comes out.
//!
//! `profile` says what the system behind a target takes, `route` where to, `mx` which hosts a domain has, `outcome` reads
//! the remote's answers, `breaker` says when a destination is left alone, `fallback` what is done then, `dial` opens a session (mail-send's only user) on a `stream`,
//! `attempt` leads one transaction on it, `pool` keeps sessions for reuse. The conductor, `outbound`, puts them
//! in sequence.

pub mod profile;
pub mod mx;
#[cfg(feature = "daemon")]
pub mod lookup;
pub mod breaker;
pub mod outcome;
pub mod fallback;
#[cfg(feature = "daemon")]
pub mod route;
#[cfg(feature = "daemon")]
pub mod stream;
#[cfg(feature = "daemon")]
pub mod dial;
#[cfg(feature = "daemon")]
pub mod attempt;
#[cfg(feature = "daemon")]
pub mod pool;

#[cfg(feature = "daemon")]
pub use route::{Accept, Chunking, Demand, Family, Host, Login, Route, TlsMode};
