//! What the score of our own looks at: everything that is known about one message, handed in. Pure.

use std::net::IpAddr;

use super::{Signal, body};
use crate::address::ReversePath;
use crate::auth::AuthReport;
use crate::clock::Timestamp;
use crate::message::Header;
use crate::message::content::Content;

/// One message, with its client.
pub struct Evidence<'a> {
    /// The client outside our own relays. None: it began on a host of ours, or nobody knows; then nothing is held against it.
    pub client: Option<Peer<'a>>,
    pub sender: &'a ReversePath,
    /// Empty where nothing was checked.
    pub auth: &'a AuthReport,
    pub header: &'a Header,
    pub reading: &'a Reading,
    /// How many of the configured block lists name the client.
    pub listed: usize,
    /// Our own name, as we greet.
    pub hostname: &'a str,
    /// Whether a domain is one of ours.
    pub is_ours: &'a dyn Fn(&str) -> bool,
    pub received: Timestamp,
}

/// A message as it is read, with what was found in its words: the expensive part, which needs the message alone.
#[derive(Debug, Default)]
pub struct Reading {
    pub(super) content: Content,
    pub(super) body: Found,
}

impl Reading {
    /// Reads a message or its beginning; what stands behind
    /// [`CONTENT_OCTETS_MAX`](crate::message::content::CONTENT_OCTETS_MAX) is ignored. Linear in time.
    #[must_use]
    pub fn of(message: &[u8]) -> Reading {
        let content = Content::read(message);
        Reading { body: body::look(&content), content }
    }

    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }
}

/// Who handed the message in.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub ip: IpAddr,
    /// As said at EHLO; empty where that is not known.
    pub helo: &'a str,
}

/// Signals of one kind of evidence.
#[derive(Clone, Debug, Default)]
pub(super) struct Found(pub(super) Vec<Signal>);

impl Found {
    /// Notes a signal where it is there.
    pub(super) fn note(&mut self, name: &'static str, points: f64, is_there: bool) {
        if is_there {
            self.0.push(Signal { name: name.into(), points });
        }
    }
}
