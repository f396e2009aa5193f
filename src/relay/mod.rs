//! Relaying: one leg and one route go in, one outcome comes out.
//!
//! `route` says where to, `mx` which hosts a domain has, `outcome` reads the remote's answers, `dial` opens a session (mail-send's only user) on a `stream`,
//! `attempt` leads one transaction on it, `pool` keeps sessions for reuse. The conductor, `outbound`, puts them
//! in sequence.

pub mod route;
pub mod mx;
pub mod lookup;
pub mod outcome;
pub mod stream;
pub mod dial;
pub mod attempt;
pub mod pool;

pub use route::{Chunking, Demand, Family, Host, Login, Route, TlsMode};
