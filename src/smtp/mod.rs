//! SMTP without sockets: bytes go in, events and bytes come out.

pub mod client;
pub mod dot;
