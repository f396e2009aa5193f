//! What is known about a message for one of its recipients.

use std::net::IpAddr;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::message::reading::Reading;

/// What conditions are asked about. [`Fact::Unknown`] where it is not there yet.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// As given at RCPT.
    pub recipient: &'a Mailbox,
    pub sender: &'a ReversePath,
    pub client: Option<IpAddr>,
    pub helo: Option<&'a str>,
    /// The message came, or will come, over TLS.
    pub tls: bool,
    /// When it came: what calendars are asked about.
    pub at: Timestamp,
    pub auth: Fact<AuthFacts>,
    /// The spam score; `None` where none was made.
    pub score: Fact<Option<f64>>,
    pub message: Fact<&'a Reading>,
}

impl<'a> Facts<'a> {
    /// An envelope of which nothing else is known.
    #[must_use]
    pub fn of(recipient: &'a Mailbox, sender: &'a ReversePath, at: Timestamp) -> Facts<'a> {
        Facts {
            recipient,
            sender,
            client: None,
            helo: None,
            tls: false,
            at,
            auth: Fact::Unknown,
            score: Fact::Unknown,
            message: Fact::Unknown,
        }
    }
}

/// A value that may not be known yet. Unknown is not "absent": absent values are known to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    Known(T),
    Unknown,
}

/// The authentication results that conditions compare with, by their RFC 8601 words. `None` where the check did not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuthFacts {
    pub spf: Option<&'static str>,
    pub dkim: Option<&'static str>,
    pub dmarc: Option<&'static str>,
    pub arc: Option<&'static str>,
}
