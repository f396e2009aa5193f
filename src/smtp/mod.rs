//! SMTP without sockets: bytes go in, events and bytes come out.

pub mod dot;
pub mod reply_reader;
pub mod client;
