//! The evaluation of a record (RFC 7208 §4.6 to §6): its mechanisms in order, its limits, its explanation.
//!
//! One [`Check`] lives through an identity's whole evaluation, includes and redirects too, because the limits of §4.6.4
//! hold for all of it. What ends it early is a [`Stop`]; which of them an include or a redirect turns into another is
//! said where they are called.

use std::net::IpAddr;
use std::time::Duration;

use super::macros::{Macro, SyntaxError, Values};
use super::record::{self, Mechanism, Prefix, Record};
use super::{Request, SpfResult, SpfVerdict};
use crate::dns::{Dns, DnsError};

/// Evaluates `request`; see [`super::check_host`].
pub(super) async fn run(dns: &dyn Dns, request: &Request<'_>) -> SpfVerdict {
    let mut check = Check { dns, request, terms: 0, voids: 0, names: None };
    // RFC 7208 §4.6.4: an evaluation that takes longer than 20 seconds is a temperror.
    let outcome = tokio::time::timeout(EVALUATION_MAX, check.identity()).await.unwrap_or(Err(Stop::Temporary("time")));
    let domain = request.domain.to_owned();
    match outcome {
        Ok((result, explanation)) => SpfVerdict { result, domain, reason: None, explanation },
        Err(stop) => {
            let (result, reason) = match stop {
                Stop::Nothing(reason) => (SpfResult::None, reason),
                Stop::Temporary(reason) => (SpfResult::TempError, reason),
                Stop::Permanent(reason) => (SpfResult::PermError, reason),
            };
            SpfVerdict { result, domain, reason: Some(reason), explanation: None }
        }
    }
}

struct Check<'a> {
    dns: &'a dyn Dns,
    request: &'a Request<'a>,
    /// Terms that cause look-ups, so far.
    terms: u32,
    /// Look-ups that found nothing, so far.
    voids: u32,
    /// The validated names of the client, once they were asked for.
    names: Option<Vec<String>>,
}

/// Why an evaluation ends without a result of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// There is no policy to evaluate: none.
    Nothing(&'static str),
    Temporary(&'static str),
    Permanent(&'static str),
}

impl From<SyntaxError> for Stop {
    fn from(error: SyntaxError) -> Stop {
        Stop::Permanent(error.0)
    }
}

/// The end of a record's evaluation.
struct Evaluated {
    result: SpfResult,
    /// The domain whose record decided, and its `exp=`.
    domain: String,
    exp: Option<Macro>,
}

impl Check<'_> {
    async fn identity(&mut self) -> Result<(SpfResult, Option<String>), Stop> {
        let evaluated = self.evaluate(self.request.domain).await?;
        let explanation = match (evaluated.result, &evaluated.exp) {
            (SpfResult::Fail, Some(exp)) => self.explanation(exp, &evaluated.domain).await,
            _ => None,
        };
        Ok((evaluated.result, explanation))
    }

    /// `check_host()` for a domain, with its redirects.
    async fn evaluate(&mut self, domain: &str) -> Result<Evaluated, Stop> {
        let mut domain = domain.to_owned();
        let mut record = self.record(&domain).await?;
        loop {
            for directive in &record.directives {
                if self.matches(&directive.mechanism, &domain).await? {
                    return Ok(Evaluated { result: directive.result, domain, exp: record.exp });
                }
            }
            let Some(redirect) = &record.redirect else {
                // RFC 7208 §4.7: nothing matched.
                return Ok(Evaluated { result: SpfResult::Neutral, domain, exp: None });
            };
            self.count_term()?;
            domain = self.expand(redirect, &domain).await?;
            // RFC 7208 §6.1: a redirect to a domain without a record is an error, and so is one to no domain.
            record = self.record(&domain).await.map_err(|stop| match stop {
                Stop::Nothing(_) => Stop::Permanent("redirect to a domain without a record"),
                Stop::Temporary(_) | Stop::Permanent(_) => stop,
            })?;
        }
    }

    /// RFC 7208 §4.3 to §4.5: the one record of a domain.
    async fn record(&self, domain: &str) -> Result<Record, Stop> {
        if !is_checkable(domain) {
            return Err(Stop::Nothing("not a domain name"));
        }
        let texts = match self.dns.txt(domain).await {
            Ok(texts) => texts,
            Err(DnsError::NotFound | DnsError::NoRecords) => return Err(Stop::Nothing("no record")),
            Err(error) => return Err(failed(error)),
        };
        let mut records = texts.iter().filter(|text| record::is_spf(text));
        match (records.next(), records.next()) {
            (None, _) => Err(Stop::Nothing("no record")),
            (Some(_), Some(_)) => Err(Stop::Permanent("more than one record")),
            (Some(text), None) => Ok(Record::parse(text)?),
        }
    }

    async fn matches(&mut self, mechanism: &Mechanism, domain: &str) -> Result<bool, Stop> {
        match mechanism {
            Mechanism::All => Ok(true),
            Mechanism::Ip4 { network, bits } => Ok(same_network(self.request.ip, IpAddr::V4(*network), *bits)),
            Mechanism::Ip6 { network, bits } => Ok(same_network(self.request.ip, IpAddr::V6(*network), *bits)),
            Mechanism::Include(target) => {
                self.count_term()?;
                let target = self.expand(target, domain).await?;
                self.include(&target).await
            }
            Mechanism::A { domain: target, prefix } => {
                self.count_term()?;
                let target = self.target(target.as_ref(), domain).await?;
                let addresses = self.dns.addresses(&target, self.request.ip).await;
                let addresses = self.found(addresses)?;
                Ok(addresses.is_some_and(|addresses| self.is_among(&addresses, *prefix)))
            }
            Mechanism::Mx { domain: target, prefix } => {
                self.count_term()?;
                let target = self.target(target.as_ref(), domain).await?;
                self.mx(&target, *prefix).await
            }
            Mechanism::Ptr { domain: target } => {
                self.count_term()?;
                let target = self.target(target.as_ref(), domain).await?;
                Ok(self.names().await?.iter().any(|name| is_at_or_below(name, &target)))
            }
            Mechanism::Exists(target) => {
                self.count_term()?;
                let target = self.expand(target, domain).await?;
                // RFC 7208 §5.7: the A record, also for an IPv6 client.
                let found = self.dns.a(&target).await;
                Ok(self.found(found)?.is_some())
            }
        }
    }

    /// RFC 7208 §5.2: what an included result means.
    async fn include(&mut self, target: &str) -> Result<bool, Stop> {
        // The limit on terms bounds the depth.
        match Box::pin(self.evaluate(target)).await {
            Ok(evaluated) => Ok(match evaluated.result {
                SpfResult::Pass => true,
                SpfResult::Fail | SpfResult::SoftFail | SpfResult::Neutral => false,
                SpfResult::None | SpfResult::TempError | SpfResult::PermError => false,
            }),
            Err(Stop::Nothing(_)) => Err(Stop::Permanent("include of a domain without a record")),
            Err(stop @ (Stop::Temporary(_) | Stop::Permanent(_))) => Err(stop),
        }
    }

    /// RFC 7208 §5.4. Without MX there is no match: the implicit MX of SMTP does not count here.
    async fn mx(&mut self, target: &str, prefix: Prefix) -> Result<bool, Stop> {
        let exchanges = self.dns.mx(target).await;
        let Some(exchanges) = self.found(exchanges)? else { return Ok(false) };
        // RFC 7208 §4.6.4: more than ten names are an error.
        if exchanges.len() > NAMES_MAX {
            return Err(Stop::Permanent("over 10 mail exchanges"));
        }
        for mx in exchanges.iter() {
            // A host without an address in the client's family is common and no void look-up: that limit is on terms.
            match self.dns.addresses(&mx.exchange, self.request.ip).await {
                Ok(addresses) if self.is_among(&addresses, prefix) => return Ok(true),
                Ok(_) | Err(DnsError::NotFound | DnsError::NoRecords) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(false)
    }

    /// RFC 7208 §5.5: the names of the client's address that lead back to it, of the first ten. DNS trouble means that there are none.
    async fn names(&mut self) -> Result<&[String], Stop> {
        if self.names.is_none() {
            let mut validated = Vec::new();
            let names = match self.dns.ptr(self.request.ip).await {
                Ok(names) => names.to_vec(),
                Err(DnsError::OverBudget) => return Err(failed(DnsError::OverBudget)),
                Err(DnsError::NotFound | DnsError::NoRecords | DnsError::Temporary) => Vec::new(),
            };
            for name in names.into_iter().take(NAMES_MAX) {
                match self.dns.addresses(&name, self.request.ip).await {
                    Ok(addresses) if addresses.contains(&self.request.ip) => validated.push(name),
                    Err(DnsError::OverBudget) => return Err(failed(DnsError::OverBudget)),
                    Ok(_) | Err(DnsError::NotFound | DnsError::NoRecords | DnsError::Temporary) => {}
                }
            }
            self.names = Some(validated);
        }
        Ok(self.names.as_deref().unwrap_or_default())
    }

    /// RFC 7208 §6.2. Whatever goes wrong, there is no explanation, and the result stays.
    async fn explanation(&mut self, exp: &Macro, domain: &str) -> Option<String> {
        let place = self.expand(exp, domain).await.ok()?;
        let texts = self.dns.txt(&place).await.ok()?;
        let [text] = texts.as_ref() else { return None };
        let text = std::str::from_utf8(text).ok()?;
        let explanation = Macro::parse_explanation(text).ok()?;
        if explanation.wants_name() {
            self.names().await.ok()?;
        }
        let expanded = explanation.expand(&self.values(domain));
        // Macros stand for what the client said: it may hold anything.
        let sane = expanded.chars().filter(|c| (' '..='~').contains(c)).take(EXPLANATION_OCTETS_MAX);
        Some(sane.collect()).filter(|text: &String| !text.is_empty())
    }

    async fn target(&mut self, target: Option<&Macro>, domain: &str) -> Result<String, Stop> {
        match target {
            Some(target) => self.expand(target, domain).await,
            None => Ok(domain.to_owned()),
        }
    }

    async fn expand(&mut self, text: &Macro, domain: &str) -> Result<String, Stop> {
        if text.wants_name() {
            self.names().await?;
        }
        Ok(text.expand_domain(&self.values(domain)))
    }

    fn values<'v>(&'v self, domain: &'v str) -> Values<'v> {
        let names = self.names.as_deref().unwrap_or_default();
        // RFC 7208 §7.3: the domain itself, else a name below it, else any.
        let exact = names.iter().find(|name| name.eq_ignore_ascii_case(domain));
        let name = exact.or_else(|| names.iter().find(|name| is_at_or_below(name, domain))).or(names.first());
        Values {
            local_part: self.request.local_part,
            sender_domain: self.request.domain,
            domain,
            ip: self.request.ip,
            name: name.map(String::as_str),
            helo: self.request.helo,
            receiver: self.request.receiver,
            now: self.request.now.0 / 1000,
        }
    }

    /// RFC 7208 §4.6.4: ten terms with look-ups, over includes and redirects.
    fn count_term(&mut self) -> Result<(), Stop> {
        self.terms += 1;
        if self.terms > TERMS_MAX { Err(Stop::Permanent("over 10 terms with look-ups")) } else { Ok(()) }
    }

    /// The records of a term's look-up; none where there are none, which may happen twice (RFC 7208 §4.6.4).
    fn found<T>(&mut self, answer: Result<T, DnsError>) -> Result<Option<T>, Stop> {
        match answer {
            Ok(records) => Ok(Some(records)),
            Err(error) if error.is_void() => {
                self.voids += 1;
                if self.voids > VOIDS_MAX { Err(Stop::Permanent("over 2 void look-ups")) } else { Ok(None) }
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn is_among(&self, addresses: &[IpAddr], prefix: Prefix) -> bool {
        let bits = if self.request.ip.is_ipv4() { prefix.v4 } else { prefix.v6 };
        addresses.iter().any(|address| same_network(self.request.ip, *address, bits))
    }
}

fn failed(error: DnsError) -> Stop {
    match error {
        DnsError::Temporary => Stop::Temporary("DNS gave no answer"),
        DnsError::OverBudget => Stop::Permanent("too many look-ups"),
        DnsError::NotFound | DnsError::NoRecords => Stop::Nothing("no record"),
    }
}

/// RFC 7208 §4.3: a well-formed name of several labels.
fn is_checkable(domain: &str) -> bool {
    let name = domain.strip_suffix('.').unwrap_or(domain);
    let labels = name.split('.').all(|label| !label.is_empty() && label.len() <= 63);
    labels && name.len() <= 253 && name.contains('.') && name.bytes().all(|b| b.is_ascii_graphic() && b != b'[')
}

fn is_at_or_below(name: &str, domain: &str) -> bool {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let Some(at) = name.len().checked_sub(domain.len()) else { return false };
    let ends = name.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(domain));
    ends && (at == 0 || name.as_bytes()[at - 1] == b'.')
}

fn same_network(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

// RFC 7208 §4.6.4.
const TERMS_MAX: u32 = 10;
const VOIDS_MAX: u32 = 2;
const NAMES_MAX: usize = 10;
const EVALUATION_MAX: Duration = Duration::from_secs(20);
/// A reply line holds 512 octets, and the sentence must leave room for ours.
const EXPLANATION_OCTETS_MAX: usize = 300;
