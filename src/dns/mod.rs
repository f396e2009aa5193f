//! DNS as the checks see it: one question, and records or one of four reasons for none.
//!
//! [`Dns`] is the port. [`resolver`] is its real adapter, [`cache`] stands before it, [`Budget`] bounds what one message
//! may ask, and the tests have a zone written in text. The difference that everything here keeps is the one between
//! "there is nothing" ([`DnsError::NotFound`], [`DnsError::NoRecords`]), which is an answer, and "nobody told us"
//! ([`DnsError::Temporary`]), which is none: no verdict may be built on the latter. DNSSEC is not validated here.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

pub mod cache;
#[cfg(feature = "daemon")]
mod places;
#[cfg(feature = "daemon")]
pub mod resolver;
#[cfg(test)]
pub(crate) mod zone;

/// A question: the name of a host or domain in ASCII and the kind of record; for PTR an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    Txt(String),
    Mx(String),
    A(String),
    Aaaa(String),
    Ptr(IpAddr),
}

/// The records of an answer, in the kind that was asked for. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Records {
    /// One for each record; the strings of a record are joined without spaces (RFC 7208 §3.3, RFC 6376 §3.6.2.2).
    Txt(Arc<[Vec<u8>]>),
    /// By preference, the best first.
    Mx(Arc<[Mx]>),
    A(Arc<[Ipv4Addr]>),
    Aaaa(Arc<[Ipv6Addr]>),
    /// Names without their final dot.
    Ptr(Arc<[String]>),
}

/// A mail exchange. The null MX (RFC 7505) has an empty `exchange`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mx {
    pub preference: u16,
    /// Without the final dot.
    pub exchange: String,
}

/// Why there are no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    #[error("the name does not exist")]
    NotFound,
    #[error("the name has no such records")]
    NoRecords,
    #[error("DNS gave no answer")]
    Temporary,
    #[error("the look-ups that one message may cause are used up")]
    OverBudget,
}

impl DnsError {
    /// The answer is known, and it is that there is nothing: a "void look-up" (RFC 7208 §4.6.4).
    #[must_use]
    pub fn is_void(self) -> bool {
        match self {
            DnsError::NotFound | DnsError::NoRecords => true,
            DnsError::Temporary | DnsError::OverBudget => false,
        }
    }
}

/// An answer with records, and how long it may be kept.
#[derive(Clone, Debug)]
pub struct Found {
    pub records: Records,
    pub ttl: Duration,
}

pub type Pending<'a> = Pin<Box<dyn Future<Output = Result<Found, DnsError>> + Send + 'a>>;

/// The port. An adapter answers in bounded time.
pub trait Dns: Send + Sync {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a>;
}

/// The port with the kind of the records in the type.
impl dyn Dns + '_ {
    pub async fn txt(&self, name: &str) -> Result<Arc<[Vec<u8>]>, DnsError> {
        match self.ask(&Question::Txt(canonical(name)?)).await?.records {
            Records::Txt(records) => Ok(records),
            Records::Mx(_) | Records::A(_) | Records::Aaaa(_) | Records::Ptr(_) => Err(DnsError::NoRecords),
        }
    }

    pub async fn mx(&self, name: &str) -> Result<Arc<[Mx]>, DnsError> {
        match self.ask(&Question::Mx(canonical(name)?)).await?.records {
            Records::Mx(records) => Ok(records),
            Records::Txt(_) | Records::A(_) | Records::Aaaa(_) | Records::Ptr(_) => Err(DnsError::NoRecords),
        }
    }

    pub async fn a(&self, name: &str) -> Result<Arc<[Ipv4Addr]>, DnsError> {
        match self.ask(&Question::A(canonical(name)?)).await?.records {
            Records::A(records) => Ok(records),
            Records::Txt(_) | Records::Mx(_) | Records::Aaaa(_) | Records::Ptr(_) => Err(DnsError::NoRecords),
        }
    }

    pub async fn aaaa(&self, name: &str) -> Result<Arc<[Ipv6Addr]>, DnsError> {
        match self.ask(&Question::Aaaa(canonical(name)?)).await?.records {
            Records::Aaaa(records) => Ok(records),
            Records::Txt(_) | Records::Mx(_) | Records::A(_) | Records::Ptr(_) => Err(DnsError::NoRecords),
        }
    }

    /// The addresses of a name in the family of `like`.
    pub async fn addresses(&self, name: &str, like: IpAddr) -> Result<Vec<IpAddr>, DnsError> {
        match like {
            IpAddr::V4(_) => Ok(self.a(name).await?.iter().copied().map(IpAddr::V4).collect()),
            IpAddr::V6(_) => Ok(self.aaaa(name).await?.iter().copied().map(IpAddr::V6).collect()),
        }
    }

    pub async fn ptr(&self, ip: IpAddr) -> Result<Arc<[String]>, DnsError> {
        match self.ask(&Question::Ptr(ip.to_canonical())).await?.records {
            Records::Ptr(records) => Ok(records),
            Records::Txt(_) | Records::Mx(_) | Records::A(_) | Records::Aaaa(_) => Err(DnsError::NoRecords),
        }
    }
}

/// What TXT holds at each of the names, asked for at the same time; in the order of the names.
pub async fn txt_each(dns: &dyn Dns, names: &[String]) -> Vec<Result<Arc<[Vec<u8>]>, DnsError>> {
    let mut asked: Vec<_> = names.iter().map(|name| Box::pin(dns.txt(name))).collect();
    let mut answers: Vec<Option<_>> = names.iter().map(|_| None).collect();
    poll_fn(move |context| {
        for (one, answer) in asked.iter_mut().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            if let Poll::Ready(ready) = one.as_mut().poll(context) {
                *answer = Some(ready);
            }
        }
        if answers.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(answers.iter_mut().filter_map(Option::take).collect())
    })
    .await
}

/// A name as it is asked for and kept: lower case, no final dot. What cannot be a name does not exist (RFC 1035 §2.3.4).
/// Spaces and signs can: RFC 7208 §7.1 makes names of what a sender wrote before the `@`.
fn canonical(name: &str) -> Result<String, DnsError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let labels = name.split('.').all(|label| !label.is_empty() && label.len() <= LABEL_OCTETS_MAX);
    let sane = name.bytes().all(|b| matches!(b, b' '..=b'~'));
    if labels && sane && name.len() <= NAME_OCTETS_MAX {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(DnsError::NotFound)
    }
}

/// A bounded number of questions. It counts what is asked, cached or not, so that a verdict does not depend on who
/// asked before. Budgets nest: a part of a message's budget stands on the whole.
pub struct Budget<'d> {
    dns: &'d dyn Dns,
    left: AtomicU32,
}

impl<'d> Budget<'d> {
    #[must_use]
    pub fn new(dns: &'d dyn Dns, questions_max: u32) -> Budget<'d> {
        Budget { dns, left: AtomicU32::new(questions_max) }
    }
}

impl Dns for Budget<'_> {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if taken.is_err() { Box::pin(async { Err(DnsError::OverBudget) }) } else { self.dns.ask(question) }
    }
}

/// Answers until a point in time, and nothing behind it: what is asked too late is [`DnsError::Temporary`].
pub struct Deadline<'d> {
    dns: &'d dyn Dns,
    at: tokio::time::Instant,
}

impl<'d> Deadline<'d> {
    #[must_use]
    pub fn after(dns: &'d dyn Dns, wait: Duration) -> Deadline<'d> {
        Deadline { dns, at: tokio::time::Instant::now() + wait }
    }
}

impl Dns for Deadline<'_> {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        Box::pin(async move {
            let answer = tokio::time::timeout_at(self.at, self.dns.ask(question)).await;
            answer.unwrap_or(Err(DnsError::Temporary))
        })
    }
}

// RFC 1035 §2.3.4; 253 is what 255 octets of wire format leave to the text.
const LABEL_OCTETS_MAX: usize = 63;
const NAME_OCTETS_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use zone::Zone;

    #[tokio::test]
    async fn names_are_asked_for_in_one_spelling() {
        let zone = Zone::parse("example.org A 192.0.2.1");
        let dns: &dyn Dns = &zone;
        for name in ["example.org", "Example.ORG.", "EXAMPLE.org"] {
            assert_eq!(dns.a(name).await.unwrap()[..], ["192.0.2.1".parse::<Ipv4Addr>().unwrap()], "{name}");
        }
        assert_eq!(dns.txt("example.org").await, Err(DnsError::NoRecords));
        assert_eq!(dns.a("example.com").await, Err(DnsError::NotFound));
    }

    #[tokio::test]
    async fn what_cannot_be_a_name_is_not_asked_for() {
        let zone = Zone::parse("");
        let dns: &dyn Dns = &zone;
        let label = "a".repeat(64);
        for name in ["", ".", "a..b", ".a", "a\tb", "a\0b", "a\x7fb", "é.example", label.as_str()] {
            assert_eq!(dns.txt(name).await, Err(DnsError::NotFound), "{name:?}");
        }
        assert_eq!(zone.asked(), 0);
        assert!(canonical(&"a".repeat(63)).is_ok());
        assert!(canonical(&format!("{}a", "a.".repeat(126))).is_ok(), "253 octets");
        assert!(canonical(&format!("{}ab", "a.".repeat(126))).is_err(), "254 octets");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_the_deadline_there_is_no_answer() {
        let zone = Zone::parse("silent.example SILENT");
        let deadline = Deadline::after(&zone, Duration::from_secs(15));
        let before = tokio::time::Instant::now();
        let dns: &dyn Dns = &deadline;
        assert_eq!(dns.a("silent.example").await, Err(DnsError::Temporary));
        assert_eq!(dns.mx("silent.example").await, Err(DnsError::Temporary));
        assert_eq!(before.elapsed(), Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_budget_ends_at_its_limit_and_counts_through_its_parts() {
        let zone = Zone::parse("a.example A 192.0.2.1");
        let whole = Budget::new(&zone, 3);
        let part = Budget::new(&whole, 2);
        let dns: &dyn Dns = &part;
        assert!(dns.a("a.example").await.is_ok());
        assert!(dns.a("a.example").await.is_ok());
        assert_eq!(dns.a("a.example").await, Err(DnsError::OverBudget));
        let dns: &dyn Dns = &whole;
        assert!(dns.a("a.example").await.is_ok());
        assert_eq!(dns.a("a.example").await, Err(DnsError::OverBudget));
        assert_eq!(zone.asked(), 3);
    }
}
