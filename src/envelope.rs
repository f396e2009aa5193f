//! What SMTP says about a message outside the message: who hands it over, from whom, for whom, with which parameters.

use std::net::IpAddr;

use crate::address::{Mailbox, ReversePath};

/// The peer of an inbound session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub ip: IpAddr,
    /// The name of its address, where a look-up confirmed it.
    pub ptr: Option<String>,
    /// The argument of EHLO or HELO, as given.
    pub helo: String,
    /// It said EHLO rather than HELO.
    pub extended: bool,
    /// The session is encrypted.
    pub tls: bool,
}

impl Client {
    /// The `with` clause of Received (RFC 3848, RFC 6531 §4.3).
    #[must_use]
    pub fn protocol(&self, smtputf8: bool) -> &'static str {
        match (self.extended, smtputf8, self.tls) {
            (false, _, false) => "SMTP",
            (true, false, false) => "ESMTP",
            // RFC 3848 knows no SMTPS: a HELO inside TLS is still written ESMTPS by everybody.
            (_, false, true) | (false, true, true) => "ESMTPS",
            (true, true, false) => "UTF8SMTP",
            (true, true, true) => "UTF8SMTPS",
        }
    }
}

/// One mail transaction: what MAIL and RCPT said (RFC 5321 §3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub sender: ReversePath,
    /// In the order of the RCPT commands; only those that were accepted.
    pub recipients: Vec<Mailbox>,
    pub body: BodyType,
    /// RFC 6531: addresses or header fields may be UTF-8.
    pub smtputf8: bool,
    /// The size in octets that the client declared (RFC 1870).
    pub declared_size: Option<u64>,
}

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyType {
    #[default]
    SevenBit,
    EightBitMime,
}
