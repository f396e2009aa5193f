//! SMTP as a protocol, without sockets: bytes go in, events come out, questions are answered.
//!
//! Inbound, a [`session::Session`] is fed what the peer sent. It cuts it into commands (`line`), understands them
//! (`command`), takes the dots out of a message (`dot`) and measures it (`receiving`), and asks its conductor what
//! only the conductor can know: may this sender, this recipient, this message. It never waits, never reads the time
//! and never logs, so that a test plays a session in microseconds and a fuzzer plays a million.

pub mod line;
pub mod xtext;
pub mod command;
pub mod dot;
pub mod receiving;
pub mod foreign;
pub mod settings;
pub mod session;
pub mod reply_reader;
pub mod client;
