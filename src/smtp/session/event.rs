//! What passes between a session and its conductor: how it is opened, what it asks and tells, how it ends.

use crate::address::Mailbox;
use crate::envelope::Envelope;
use crate::reply::Reply;

/// Whether the peer waited for the banner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    Polite,
    /// It had sent something before (RFC 5321 §4.3.1 forbids that).
    Early,
}

/// What the conductor has to do, or to know, next.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Write out the output, then read and feed.
    Wait,
    /// To know: the peer introduced itself. `extended`: by EHLO.
    Hello { name: &'a str, extended: bool },
    /// A question, answered by `tls_up`: write out the output, then make the handshake.
    StartTls,
    /// A question, answered by `answer_mail`: may this transaction begin? It has no recipients yet.
    Mail(&'a Envelope),
    /// A question, answered by `answer_recipient`. The envelope holds those before it.
    Recipient { recipient: &'a Mailbox, envelope: &'a Envelope },
    /// A question, answered by `answer_data`: may the message come? The envelope is complete.
    Data(&'a Envelope),
    /// To keep: the next octets of the message, never empty.
    Body(&'a [u8]),
    /// A question, answered by `finish`: the message is whole and sound. Is it on disk?
    End(&'a Envelope),
    /// To know: the transaction is over without a message. What was kept of it is dropped.
    Reset(Cause),
    /// Write out the output, then close. Nothing comes after it but itself.
    Close(&'a Ending),
}

/// Why a transaction ended without a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// RSET, EHLO or HELO.
    Asked,
    /// The session ended.
    Closed,
    /// The message itself was refused with this reply: unsound octets, too large, too large a header.
    Refused { reply: Reply, envelope: Box<Envelope> },
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Quit,
    /// The peer closed the connection without QUIT.
    Gone,
    /// We closed it, and this was our last reply.
    Cut(Reply),
}
