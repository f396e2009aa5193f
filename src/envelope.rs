//! What SMTP says about a message outside the message: who hands it over, from whom, for whom, with which parameters.

use std::fmt;
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
    /// What MAIL and RCPT said about notifications.
    pub dsn: DsnRequest,
    /// RFC 8689: only over verified TLS, all the way.
    pub require_tls: bool,
}

/// The notifications that a transaction asks for (RFC 3461).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DsnRequest {
    pub ret: Option<Ret>,
    /// The sender's own name for the transaction, without its encoding: printable ASCII.
    pub envid: Option<String>,
    /// What RCPT said.
    // Invariant: where it is not empty it is as long as the envelope's recipients, and in their order.
    pub recipients: Vec<RecipientDsn>,
}

impl DsnRequest {
    /// What was said about the recipient at this place of the envelope.
    #[must_use]
    pub fn recipient(&self, at: usize) -> RecipientDsn {
        self.recipients.get(at).cloned().unwrap_or_default()
    }
}

/// How much of the message a notification of its failure shall bring back (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    Full,
    Headers,
}

impl Ret {
    /// The word in MAIL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Ret::Full => "FULL",
            Ret::Headers => "HDRS",
        }
    }

    /// Takes the word without regard to case.
    #[must_use]
    pub fn parse(word: &str) -> Option<Ret> {
        [Ret::Full, Ret::Headers].into_iter().find(|ret| ret.as_str().eq_ignore_ascii_case(word))
    }
}

/// The notifications that one RCPT asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientDsn {
    pub notify: Option<Notify>,
    pub orcpt: Option<OriginalRecipient>,
}

/// When to notify (RFC 3461 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    Never,
    /// At least one of them.
    On {
        success: bool,
        failure: bool,
        delay: bool,
    },
}

impl Notify {
    /// Takes `NEVER`, or words out of SUCCESS, FAILURE and DELAY with commas between them, none twice.
    #[must_use]
    pub fn parse(text: &str) -> Option<Notify> {
        if text.eq_ignore_ascii_case("NEVER") {
            return Some(Notify::Never);
        }
        let (mut success, mut failure, mut delay) = (false, false, false);
        for word in text.split(',') {
            let said = match word.to_ascii_uppercase().as_str() {
                "SUCCESS" => &mut success,
                "FAILURE" => &mut failure,
                "DELAY" => &mut delay,
                _ => return None,
            };
            if std::mem::replace(said, true) {
                return None;
            }
        }
        Some(Notify::On { success, failure, delay })
    }
}

/// As RCPT writes it.
impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Notify::Never => f.write_str("NEVER"),
            Notify::On { success, failure, delay } => {
                let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
                let said: Vec<&str> = words.into_iter().filter(|(said, _)| *said).map(|(_, word)| word).collect();
                f.write_str(&said.join(","))
            }
        }
    }
}

/// The recipient as the sender first wrote it (RFC 3461 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalRecipient {
    /// An atom such as `rfc822`.
    pub address_type: String,
    /// Without its encoding: printable ASCII.
    pub address: String,
}

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyType {
    #[default]
    SevenBit,
    EightBitMime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_is_read_and_written() {
        for (text, want) in [
            ("NEVER", "NEVER"),
            ("never", "NEVER"),
            ("failure", "FAILURE"),
            ("DELAY,Success,FAILURE", "SUCCESS,FAILURE,DELAY"),
        ] {
            assert_eq!(Notify::parse(text).unwrap().to_string(), want);
        }
        for text in
            ["", "NEVER,FAILURE", "FAILURE,NEVER", "FAILURE,FAILURE", "FAILURE,", ",", "FAILURE DELAY", "ALWAYS"]
        {
            assert_eq!(Notify::parse(text), None, "{text}");
        }
    }
}
