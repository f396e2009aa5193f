//! SPF: may this client send for this domain? `check_host()` of RFC 7208, whole.
//!
//! [`record`] reads a record and [`macros`] its macros, both pure; `check` evaluates and asks DNS. Ours, because SPF is at the
//! heart of forwarding and the library at hand departs from the RFC where attackers look. HELO and MAIL FROM are
//! identities of their own (§2.3, §2.4) and are checked apart. The vectors of the tests stand in `vectors.txt`.

use std::net::IpAddr;

use crate::address::ReversePath;
use crate::clock::Timestamp;
use crate::dns::Dns;

mod check;
pub mod macros;
pub mod record;
#[cfg(test)]
mod tests;

/// RFC 7208 §2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpfResult {
    None,
    Neutral,
    Pass,
    Fail,
    SoftFail,
    TempError,
    PermError,
}

impl SpfResult {
    /// RFC 8601 §2.7.2.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            SpfResult::None => "none",
            SpfResult::Neutral => "neutral",
            SpfResult::Pass => "pass",
            SpfResult::Fail => "fail",
            SpfResult::SoftFail => "softfail",
            SpfResult::TempError => "temperror",
            SpfResult::PermError => "permerror",
        }
    }
}

/// What a check of one identity found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpfVerdict {
    pub result: SpfResult,
    /// The domain that was checked, as it was given.
    pub domain: String,
    /// Why there is no result, in our words.
    pub reason: Option<&'static str>,
    /// What the domain's owner says to those who fail (§6.2): printable ASCII in one line, cut. It is text of a stranger.
    pub explanation: Option<String>,
}

/// An identity and the client that claims it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub ip: IpAddr,
    pub helo: &'a str,
    pub local_part: &'a str,
    pub domain: &'a str,
    /// Our own name, for `%{r}`.
    pub receiver: &'a str,
    pub now: Timestamp,
}

impl<'a> Request<'a> {
    /// The HELO identity (RFC 7208 §2.3).
    #[must_use]
    pub fn helo(ip: IpAddr, helo: &'a str, receiver: &'a str, now: Timestamp) -> Request<'a> {
        // RFC 7208 §4.3: without a local part it is "postmaster".
        Request { ip: ip.to_canonical(), helo, local_part: "postmaster", domain: helo, receiver, now }
    }

    /// The MAIL FROM identity; for the null sender postmaster at the HELO name (RFC 7208 §2.4).
    #[must_use]
    pub fn mail_from(
        ip: IpAddr,
        helo: &'a str,
        sender: &'a ReversePath,
        receiver: &'a str,
        now: Timestamp,
    ) -> Request<'a> {
        match sender {
            ReversePath::Null => Request::helo(ip, helo, receiver, now),
            ReversePath::Mailbox(sender) => Request {
                local_part: sender.local(),
                domain: sender.domain().as_str(),
                ..Request::helo(ip, helo, receiver, now)
            },
        }
    }
}

/// Evaluates an identity (RFC 7208 §4). Ends within 20 seconds of tokio's time, whatever DNS does (§4.6.4).
pub async fn check_host(dns: &dyn Dns, request: &Request<'_>) -> SpfVerdict {
    check::run(dns, request).await
}
