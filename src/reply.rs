//! SMTP replies, and every reply that we ever send.
//!
//! The catalogue stands here so that a postmaster can look up what a client was told. `smtp-codec` writes
//! the bytes. A 250 to the final dot is not in the catalogue: only a [`DeliveryProof`] can say it, and only
//! the queue makes those, after its sync.

use std::borrow::Cow;
use std::fmt;

use smtp_codec::types::{Capability, Response};

/// A reply: code, enhanced status code (RFC 3463) and one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub enhanced: Option<Enhanced>,
    pub text: Cow<'static, str>,
}

/// An enhanced status code `class.subject.detail` (RFC 3463 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// As it stands on the wire, without the line end.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.enhanced {
            Some(enhanced) => write!(f, "{} {enhanced} {}", self.code, self.text),
            None => write!(f, "{} {}", self.code, self.text),
        }
    }
}

impl Reply {
    #[must_use]
    pub const fn new(code: u16, enhanced: Enhanced, text: &'static str) -> Reply {
        Reply { code, enhanced: Some(enhanced), text: Cow::Borrowed(text) }
    }

    /// A reply whose text is made at run time. Control characters and line ends in `text` become spaces.
    #[must_use]
    pub fn with_text(code: u16, enhanced: Enhanced, text: &str) -> Reply {
        let clean: String =
            text.chars().map(|c| if c.is_control() || is_line_separator(c) { ' ' } else { c }).collect();
        Reply { code, enhanced: Some(enhanced), text: Cow::Owned(clean) }
    }

    #[must_use]
    pub fn is_positive(&self) -> bool {
        self.code < 400
    }

    #[must_use]
    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.code >= 500
    }

    /// Appends the reply's bytes, CRLF included, to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let text = match self.enhanced {
            Some(enhanced) => format!("{enhanced} {}", self.text),
            None => self.text.to_string(),
        };
        write_response(&Response::other(self.code, text), out);
    }
}

fn is_line_separator(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}')
}

/// A refusal: a 4xx or a 5xx, never anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(Reply);

impl Refusal {
    /// Takes a 4xx or 5xx reply. A reply of another class becomes 451: we never stumble into a yes.
    #[must_use]
    pub fn new(reply: Reply) -> Refusal {
        if (400..600).contains(&reply.code) { Refusal(reply) } else { Refusal(LOCAL_ERROR) }
    }

    #[must_use]
    pub fn reply(&self) -> &Reply {
        &self.0
    }
}

/// Proof that a message is on disk. `queue` alone implements it, and alone makes its values (a tidy test holds that).
pub trait DeliveryProof {
    /// The 250 that answers the final dot.
    fn reply(&self) -> Reply;
}

/// The banner (RFC 5321 §4.2).
pub fn write_greeting(hostname: &str, out: &mut Vec<u8>) {
    write_response(&Response::greeting(hostname, "ESMTP Pointsman"), out);
}

/// The answer to EHLO: each capability as its keyword and parameters, e.g. `SIZE 1000`.
pub fn write_ehlo(hostname: &str, capabilities: &[String], out: &mut Vec<u8>) {
    let capabilities = capabilities
        .iter()
        .map(|line| {
            let (keyword, params) = line.split_once(' ').unwrap_or((line, ""));
            let params = params.split_whitespace().map(str::to_owned).collect();
            Capability::Other { keyword: keyword.to_owned(), params }
        })
        .collect();
    write_response(&Response::ehlo(hostname, None::<String>, capabilities), out);
}

/// The answer to HELO.
pub fn write_helo(hostname: &str, out: &mut Vec<u8>) {
    write_response(&Response::other(250, hostname), out);
}

fn write_response(response: &Response, out: &mut Vec<u8>) {
    response.serialize(out).expect("writing to memory does not fail");
}

// The catalogue, in the order of a session.

pub const TOO_MANY_CONNECTIONS: Reply = Reply::new(421, Enhanced(4, 7, 0), "too many connections, try again later");
pub const OUT_OF_MEMORY: Reply = Reply::new(421, Enhanced(4, 3, 2), "not enough memory, try again later");
pub const EARLY_TALKER: Reply = Reply::new(554, Enhanced(5, 5, 1), "you spoke before the banner");
/// A panic of ours ended the session.
pub const FAULT: Reply = Reply::new(421, Enhanced(4, 3, 0), "local error, closing, try again later");
pub const SHUTTING_DOWN: Reply = Reply::new(421, Enhanced(4, 3, 2), "shutting down, try again later");
pub const TIMEOUT: Reply = Reply::new(421, Enhanced(4, 4, 2), "timeout, closing");
pub const TOO_MANY_ERRORS: Reply = Reply::new(421, Enhanced(4, 7, 0), "too many errors, closing");
pub const TOO_MANY_COMMANDS: Reply = Reply::new(421, Enhanced(4, 7, 0), "too many commands without mail, closing");
pub const WRONG_PROTOCOL: Reply = Reply::new(554, Enhanced(5, 5, 1), "this is an SMTP port, closing");
pub const LINE_TOO_LONG: Reply = Reply::new(500, Enhanced(5, 5, 2), "line too long");
pub const BARE_CONTROL: Reply =
    Reply::new(500, Enhanced(5, 5, 2), "commands end in CRLF and contain no other control character");
pub const UNKNOWN_COMMAND: Reply = Reply::new(500, Enhanced(5, 5, 1), "unknown command");
pub const NOT_IMPLEMENTED: Reply = Reply::new(502, Enhanced(5, 5, 1), "command not implemented");
pub const BAD_SYNTAX: Reply = Reply::new(501, Enhanced(5, 5, 4), "syntax error in parameters");
pub const BAD_HELO: Reply = Reply::new(501, Enhanced(5, 5, 4), "expected a domain name or an address literal");
pub const BAD_SENDER: Reply = Reply::new(501, Enhanced(5, 1, 7), "bad sender address syntax");
pub const BAD_RECIPIENT: Reply = Reply::new(501, Enhanced(5, 1, 3), "bad recipient address syntax");
pub const UNKNOWN_PARAMETER: Reply = Reply::new(555, Enhanced(5, 5, 4), "parameter not recognised or given twice");
pub const ENCRYPTION_NEEDED: Reply =
    Reply::new(530, Enhanced(5, 7, 10), "REQUIRETLS is for sessions inside TLS, send STARTTLS first");
pub const UTF8_NOT_ANNOUNCED: Reply =
    Reply::new(553, Enhanced(5, 6, 7), "the address is not ASCII and SMTPUTF8 was not given at MAIL");
pub const SEND_HELLO_FIRST: Reply = Reply::new(503, Enhanced(5, 5, 1), "send EHLO or HELO first");
pub const SEND_MAIL_FIRST: Reply = Reply::new(503, Enhanced(5, 5, 1), "send MAIL first");
pub const SEND_RCPT_FIRST: Reply = Reply::new(503, Enhanced(5, 5, 1), "no valid recipients");
pub const NESTED_MAIL: Reply = Reply::new(503, Enhanced(5, 5, 1), "a transaction is open, send RSET first");
pub const READY_FOR_TLS: Reply = Reply::new(220, Enhanced(2, 0, 0), "ready to start TLS");
pub const TLS_IS_UP: Reply = Reply::new(503, Enhanced(5, 5, 1), "TLS is up already");
pub const STARTTLS_PIPELINED: Reply =
    Reply::new(554, Enhanced(5, 5, 1), "you sent more behind STARTTLS before the 220, closing");
pub const SENDER_OK: Reply = Reply::new(250, Enhanced(2, 1, 0), "sender ok");
pub const RECIPIENT_OK: Reply = Reply::new(250, Enhanced(2, 1, 5), "recipient ok");
pub const TOO_MANY_RECIPIENTS: Reply =
    Reply::new(452, Enhanced(4, 5, 3), "too many recipients, send the others in a further transaction");
pub const OK: Reply = Reply::new(250, Enhanced(2, 0, 0), "ok");
pub const CANNOT_VERIFY: Reply = Reply::new(252, Enhanced(2, 5, 0), "cannot verify, but will take mail and try");
pub const HELP: Reply = Reply::new(214, Enhanced(2, 0, 0), "this server takes mail as RFC 5321 says");
pub const BYE: Reply = Reply::new(221, Enhanced(2, 0, 0), "bye");
pub const START_DATA: Reply =
    Reply { code: 354, enhanced: None, text: Cow::Borrowed("go ahead, end with <CRLF>.<CRLF>") };
pub const DATA_BEFORE_354: Reply = Reply::new(554, Enhanced(5, 5, 1), "you sent the message before the 354, closing");
pub const CHUNK_OK: Reply = Reply::new(250, Enhanced(2, 0, 0), "chunk received");
pub const BAD_CHUNK: Reply =
    Reply::new(501, Enhanced(5, 5, 4), "expected BDAT, a size in octets and perhaps LAST, closing");
pub const CHUNKS_BEGUN: Reply = Reply::new(503, Enhanced(5, 5, 1), "the message has begun with BDAT");
pub const MESSAGE_TOO_LARGE: Reply = Reply::new(552, Enhanced(5, 3, 4), "message too large");
pub const BAD_MESSAGE_BYTES: Reply =
    Reply::new(554, Enhanced(5, 6, 0), "the message contains a bare CR, a bare LF or a NUL");
pub const HEADER_TOO_LARGE: Reply = Reply::new(554, Enhanced(5, 6, 0), "the message's header is too large");
pub const TOO_MANY_HOPS: Reply = Reply::new(554, Enhanced(5, 4, 6), "too many Received fields: a mail loop");
pub const LOOP: Reply = Reply::new(554, Enhanced(5, 4, 6), "this message has been this way before: a mail loop");
pub const TOO_MANY_LEGS: Reply = Reply::new(554, Enhanced(5, 5, 3), "the rules make too many copies of this message");
pub const NO_SUCH_RECIPIENT: Reply = Reply::new(550, Enhanced(5, 1, 1), "no such address here");
pub const MAILHOST_UNSURE: Reply =
    Reply::new(450, Enhanced(4, 4, 1), "the mail host does not say whether there is such an address, try again later");
pub const NOT_OURS: Reply = Reply::new(550, Enhanced(5, 7, 1), "relaying denied");
pub const DMARC_FAILED: Reply = Reply::new(550, Enhanced(5, 7, 1), "the From domain's DMARC policy has this refused");
pub const AUTH_UNKNOWN: Reply = Reply::new(451, Enhanced(4, 4, 3), "cannot look up who may send this, try again later");
pub const CHECKS_BUSY: Reply = Reply::new(451, Enhanced(4, 3, 2), "too many large messages at once, try again later");
pub const TARGET_REFUSES: Reply =
    Reply::new(550, Enhanced(5, 7, 1), "where this goes on to it is not accepted, for what it contains");
pub const TARGET_SIZE: Reply = Reply::new(552, Enhanced(5, 3, 4), "message too large for where it goes on to");
pub const SPAM_REFUSED: Reply =
    Reply::new(550, Enhanced(5, 7, 1), "this looks like spam; if it is none, write to postmaster here");
pub const SPAM_UNKNOWN: Reply = Reply::new(451, Enhanced(4, 3, 2), "cannot check for spam now, try again later");
pub const SPAM_LATER: Reply = Reply::new(451, Enhanced(4, 7, 1), "try again later");
pub const LOCAL_ERROR: Reply = Reply::new(451, Enhanced(4, 3, 0), "local error, try again later");
pub const DISK_FULL: Reply = Reply::new(452, Enhanced(4, 3, 1), "insufficient storage, try again later");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_text_cannot_add_a_line() {
        let mut out = Vec::new();
        Reply::with_text(550, Enhanced(5, 7, 1), "no\r\n250 yes\u{2028}").write(&mut out);
        assert_eq!(out, b"550 5.7.1 no  250 yes \r\n");
    }

    #[test]
    fn a_refusal_is_never_a_yes() {
        assert_eq!(Refusal::new(OK).reply().code, 451);
        assert_eq!(Refusal::new(NOT_OURS).reply().code, 550);
    }

    #[test]
    fn ehlo_lists_capabilities_on_lines() {
        let mut out = Vec::new();
        write_ehlo("mx.example", &["PIPELINING".into(), "SIZE 1000".into()], &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "250-mx.example\r\n250-PIPELINING\r\n250 SIZE 1000\r\n");
    }
}
