//! What a session holds to: its name, its limits, its patience, and what it announces of them.
//!
//! An operator sets how large a message and how many recipients may be. The other limits are documented constants:
//! nobody has a reason to choose them differently, and a test shall be able to.

use std::time::Duration;

use crate::address::Mailbox;

/// What a session must know and hold to. Shared by all sessions of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Our name in the banner and in the answers to EHLO and HELO.
    pub hostname: String,
    /// What `<postmaster>` without a domain stands for (RFC 5321 §4.5.1).
    pub postmaster: Mailbox,
    /// Octets of a message as it is stored, without added dots (RFC 1870 §5). Announced as SIZE.
    pub message_size_max: u64,
    /// Accepted recipients of one transaction. RFC 5321 §4.5.3.1.8 wants at least 100. Announced as RCPTMAX.
    pub recipients_max: usize,
    /// Octets of a message before its first empty line.
    pub header_octets_max: u64,
    /// Commands that are wrong in themselves, since the last accepted message.
    pub errors_max: usize,
    /// Senders and recipients that the conductor refused, since the last accepted message.
    pub refusals_max: usize,
    /// Commands that bring no message forward (NOOP, RSET, VRFY, a MAIL …), since the last accepted message.
    pub commands_max: usize,
    pub timeouts: Timeouts,
}

/// How long the peer may stay silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// RFC 5321 §4.5.3.2.7: at least 5 minutes while the next command is awaited.
    pub command: Duration,
    /// The same for the text of a message. RFC 5321 §4.5.3.2.5 gives the client 3 minutes for each block.
    pub data_block: Duration,
}

impl Settings {
    /// The limits that an operator sets, and for the others the documented defaults.
    #[must_use]
    pub fn new(hostname: String, postmaster: Mailbox, message_size_max: u64, recipients_max: usize) -> Settings {
        Settings {
            hostname,
            postmaster,
            message_size_max,
            recipients_max,
            header_octets_max: HEADER_OCTETS_MAX,
            errors_max: ERRORS_MAX,
            refusals_max: REFUSALS_MAX,
            commands_max: COMMANDS_MAX,
            timeouts: Timeouts { command: COMMAND_TIMEOUT, data_block: DATA_BLOCK_TIMEOUT },
        }
    }

    /// The lines of the EHLO answer, in one place so that nothing is announced that is not built. STARTTLS comes from the
    /// session, which knows whether it may. BINARYMIME (RFC 3030 §3) has no place: such a message cannot be relayed by DATA.
    #[must_use]
    pub fn capabilities(&self) -> Vec<String> {
        vec![
            "PIPELINING".to_owned(),
            format!("SIZE {}", self.message_size_max),
            "8BITMIME".to_owned(),
            "SMTPUTF8".to_owned(),
            "ENHANCEDSTATUSCODES".to_owned(),
            "CHUNKING".to_owned(),
            // RFC 3461. Where we cannot tell a sender anything without harm to others, its quarantine is our answer.
            "DSN".to_owned(),
            // RFC 9422. No MAILMAX: a session may bring as many messages as it likes.
            format!("LIMITS RCPTMAX={}", self.recipients_max),
        ]
    }
}

/// Real headers stay under 64 KiB, and parsers take more time for a header than for a body.
pub const HEADER_OCTETS_MAX: u64 = 256 * 1024;

/// A client that gets twenty commands wrong without one message between them will not get the next one right.
pub const ERRORS_MAX: usize = 20;

/// A mailing list with a hundred dead addresses in a row is a harvest.
pub const REFUSALS_MAX: usize = 100;

/// Room for keep-alive NOOPs and for a client that resets between transactions, not for a load.
pub const COMMANDS_MAX: usize = 100;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const DATA_BLOCK_TIMEOUT: Duration = Duration::from_secs(3 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_is_what_is_held_to() {
        let postmaster = Mailbox::parse("postmaster@solarmora.com").unwrap();
        let settings = Settings::new("mx.solarmora.com".to_owned(), postmaster, 1000, 100);
        let announced = settings.capabilities();
        assert!(announced.contains(&"SIZE 1000".to_owned()));
        assert!(announced.contains(&"LIMITS RCPTMAX=100".to_owned()));
        assert!(!announced.iter().any(|line| line.starts_with("STARTTLS") || line.starts_with("BINARYMIME")));
    }
}
