//! All checks of one message, side by side, in bounded time and with a bounded number of look-ups.
//!
//! Only this folder names mail-auth, which does the cryptography of DKIM and ARC and the tree walk of DMARC
//! (RFC 9989). It is never let near DNS: what it will need is known before, asked for through our own port, and laid
//! out for it as a filled cache ([`answers`]). So one budget, one deadline and one cache hold for everything, and DNS that
//! fails is seen as that. The guards that the library leaves to its caller are in [`screen`].

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimOutput, DkimResult, MessageAuthenticator, Parameters};

use super::spf::{self, Request};
use super::{ArcVerdict, AuthReport, DkimVerdict, PtrVerdict, Word};
use crate::address::{Domain, ReversePath};
use crate::clock::Timestamp;
use crate::dns::{self, Budget, Deadline, Dns, DnsError};
use crate::message::Header;

mod answers;
mod dmarc;
mod policy;
mod screen;
mod tags;
#[cfg(test)]
mod tests;

pub use screen::{FIELDS_MAX, SIGNATURES_MAX, SIGNED_NAMES_MAX};

use answers::Answers;
use screen::Screened;

/// Which checks are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub spf: bool,
    pub dkim: bool,
    pub dmarc: bool,
    pub arc: bool,
    pub ptr: bool,
}

/// A message to check.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The client outside our own relays.
    pub ip: IpAddr,
    pub helo: &'a str,
    pub sender: &'a ReversePath,
    /// Our name.
    pub hostname: &'a str,
    /// How many octets of `message` are its header section, without the empty line.
    pub head: usize,
    /// The index of that header section.
    pub header: &'a Header,
    pub message: Bytes,
    pub now: Timestamp,
}

/// What makes the checks. One for the daemon.
pub struct Checker {
    dns: Arc<dyn Dns>,
    library: MessageAuthenticator,
}

/// The library could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the verification of signatures: {0}")]
pub struct CheckerError(String);

impl Checker {
    /// Takes the resolver that all look-ups go through, best with a cache before it.
    ///
    /// # Errors
    ///
    /// The library cannot be set up.
    pub fn new(dns: Arc<dyn Dns>) -> Result<Checker, CheckerError> {
        // It never asks: a resolver without servers is all it gets.
        let library = MessageAuthenticator::new(ResolverConfig::default(), ResolverOpts::default())
            .map_err(|error| CheckerError(error.to_string()))?;
        Ok(Checker { dns, library })
    }

    /// Makes the checks of `settings`. Ends in [`CHECK_MAX`] and some time of computing; asks at most
    /// [`QUESTIONS_MAX`] questions. Holds a second, filtered copy of the header section, but not of the body.
    pub async fn check(&self, settings: &Settings, subject: &Subject<'_>) -> AuthReport {
        let deadline = Deadline::after(self.dns.as_ref(), CHECK_MAX);
        let whole = Budget::new(&deadline, QUESTIONS_MAX);
        let head = subject.message.get(..subject.head).unwrap_or_default();
        let screened = screen::screen(head, &subject.header.fields, subject.now);
        let from = screened.from.as_deref();
        let helo = Request::helo(subject.ip, subject.helo, subject.hostname, subject.now);
        let mail_from = Request::mail_from(subject.ip, subject.helo, subject.sender, subject.hostname, subject.now);
        let dmarc_budget = Budget::new(&whole, DMARC_QUESTIONS_MAX);
        let key_names = |wanted: bool, names: &[String]| if wanted { names.to_vec() } else { Vec::new() };

        let (spf_helo, spf_mailfrom, ptr, dkim_keys, arc_keys, walk) = tokio::join!(
            spf_check(settings.spf, &whole, HELO_QUESTIONS_MAX, &helo),
            spf_check(settings.spf, &whole, MAIL_FROM_QUESTIONS_MAX, &mail_from),
            ptr_check(settings.ptr, &whole, subject.ip),
            keys(&whole, DKIM_QUESTIONS_MAX, key_names(settings.dkim, &screened.dkim_keys)),
            keys(&whole, ARC_QUESTIONS_MAX, key_names(settings.arc, &screened.arc_keys)),
            dmarc::author_walk(&dmarc_budget, from.filter(|_| settings.dmarc)),
        );

        let mut answers = Answers::default();
        answers.add_keys(dkim_keys);
        answers.add_keys(arc_keys);
        let signed = self.signed(settings, subject, &screened, answers).await;
        let dmarc = match settings.dmarc {
            true => Some(
                dmarc::evaluate(&self.library, &dmarc_budget, from, walk, spf_mailfrom.as_ref(), &signed.dkim).await,
            ),
            false => None,
        };
        AuthReport {
            spf_helo,
            spf_mailfrom,
            dkim: settings.dkim.then_some(signed.dkim),
            dmarc,
            arc: signed.arc.filter(|_| settings.arc),
            ptr,
        }
    }

    /// The results of the signatures, computed beside the runtime where the message is large.
    async fn signed(
        &self,
        settings: &Settings,
        subject: &Subject<'_>,
        screened: &Screened,
        answers: Answers,
    ) -> Signed {
        let mut signed = Signed { dkim: screened.refused.clone(), arc: screened.arc_refused.clone() };
        // Where no empty line follows, the header was cut at its limit, and nothing can be said.
        let whole =
            subject.message.get(subject.head..).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"\r\n"));
        let wants_arc = settings.arc && screened.has_arc && signed.arc.is_none();
        let wants_dkim = settings.dkim && screened.has_dkim;
        if !whole || !(wants_arc || wants_dkim) {
            signed.arc = signed.arc.or(Some(NO_CHAIN));
            return signed;
        }
        let (library, kept, body) =
            (self.library.clone(), screened.kept.clone(), subject.message.slice(subject.head..));
        let small = body.len() <= INLINE_OCTETS_MAX;
        let verify = move || verify(&library, &kept, &body, &answers, wants_arc);
        let (dkim, arc) = match small {
            true => verify(),
            // It fails where the library panics or the runtime ends; then nothing was verified.
            false => tokio::task::spawn_blocking(verify).await.unwrap_or_default(),
        };
        signed.dkim.extend(dkim);
        signed.dkim.truncate(SIGNATURES_MAX);
        signed.arc = signed.arc.or(arc).or(Some(NO_CHAIN));
        signed
    }
}

/// What the signatures say.
struct Signed {
    dkim: Vec<DkimVerdict>,
    arc: Option<ArcVerdict>,
}

const NO_CHAIN: ArcVerdict = ArcVerdict { result: Word::None, sealer: None, reason: None };

/// Hashes and verifies. `kept` is the screened header, `body` the message from the empty line on.
fn verify(
    library: &MessageAuthenticator,
    kept: &[u8],
    body: &[u8],
    answers: &Answers,
    wants_arc: bool,
) -> (Vec<DkimVerdict>, Option<ArcVerdict>) {
    let Some(message) = AuthenticatedMessage::parse_with_opts(body, Some(kept), true) else {
        return (Vec::new(), None);
    };
    let dkim = at_once(library.verify_dkim(Parameters::new(&message).with_cache(answers))).unwrap_or_default();
    let dkim = dkim.iter().map(dkim_verdict).collect();
    let arc = wants_arc.then(|| at_once(library.verify_arc(Parameters::new(&message).with_cache(answers)))).flatten();
    let arc = arc.map(|output| {
        let (result, reason) = word(output.result());
        // RFC 8617 §5.2 knows no neutral: a chain that cannot be read has failed.
        let result = match result {
            Word::Neutral | Word::PermError | Word::Policy => Word::Fail,
            Word::None | Word::Pass | Word::Fail | Word::TempError => result,
        };
        let sealer = output.chain().last().map(|set| set.seal.header.d.clone());
        ArcVerdict { result, sealer, reason }
    });
    (dkim, arc)
}

fn dkim_verdict(output: &DkimOutput<'_>) -> DkimVerdict {
    // The authorization of third parties (RFC 6541) is no business of ours, and it is reached only by a signature
    // that verified.
    let (result, reason) = if output.is_atps() { (Word::Pass, None) } else { word(output.result()) };
    match output.signature() {
        Some(signature) => screen::described(signature, result, reason),
        None => screen::unreadable(result, reason),
    }
}

/// RFC 8601 §2.7.1, and our own words for why.
fn word(result: &DkimResult) -> (Word, Option<&'static str>) {
    use mail_auth::Error;
    use mail_auth::arc::ArcError;
    use mail_auth::dkim::DkimError;
    match result {
        DkimResult::Pass => (Word::Pass, None),
        DkimResult::None => (Word::None, None),
        DkimResult::TempError(_) => (Word::TempError, Some("DNS gave no answer")),
        DkimResult::Neutral(Error::Dkim(DkimError::BodyHashMismatch) | Error::Arc(ArcError::BodyHashMismatch)) => {
            (Word::Fail, Some("the body was changed"))
        }
        DkimResult::Neutral(Error::Dkim(DkimError::SignatureExpired) | Error::Arc(ArcError::SignatureExpired)) => {
            (Word::Policy, Some("expired"))
        }
        DkimResult::Neutral(Error::Dkim(DkimError::BodyLengthTag) | Error::Arc(ArcError::BodyLengthTag)) => {
            (Word::Policy, Some("only a part of the body is signed"))
        }
        DkimResult::Neutral(_) => (Word::Neutral, Some("cannot be read")),
        DkimResult::Fail(Error::Dkim(DkimError::AuidMismatch)) => (Word::PermError, Some("i= is not of d=")),
        DkimResult::Fail(Error::Crypto(_)) => (Word::Fail, Some("the signature does not verify")),
        DkimResult::Fail(_) => (Word::Fail, None),
        DkimResult::PermError(Error::Dkim(DkimError::PublicKeyRevoked)) => {
            (Word::PermError, Some("the key is revoked"))
        }
        DkimResult::PermError(Error::Dns(_)) => (Word::PermError, Some("no key")),
        DkimResult::PermError(_) => (Word::PermError, Some("the key cannot be used")),
    }
}

/// The value of a future that waits for nothing, because every answer that it asks for is at hand.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

async fn spf_check(wanted: bool, dns: &dyn Dns, questions_max: u32, request: &Request<'_>) -> Option<spf::SpfVerdict> {
    if !wanted {
        return None;
    }
    Some(spf::check_host(&Budget::new(dns, questions_max), request).await)
}

/// Keys by the names under which the library will look for them.
async fn keys(dns: &dyn Dns, questions_max: u32, names: Vec<String>) -> Vec<(String, answers::Texts)> {
    // RFC 8616 §5: a domain in U-labels is asked for in A-labels. What cannot be turned into them is no name.
    let in_ascii = |name: &String| match name.is_ascii() {
        true => name.clone(),
        false => idna::domain_to_ascii(name).unwrap_or_default(),
    };
    let questions: Vec<String> = names.iter().map(in_ascii).collect();
    let answers = dns::txt_each(&Budget::new(dns, questions_max), &questions).await;
    names.into_iter().zip(answers).collect()
}

/// RFC 8601 §2.7.3: the first of the client's names that leads back to it.
async fn ptr_check(wanted: bool, dns: &dyn Dns, ip: IpAddr) -> Option<PtrVerdict> {
    if !wanted {
        return None;
    }
    let ip = ip.to_canonical();
    let budget = Budget::new(dns, PTR_QUESTIONS_MAX);
    let dns: &dyn Dns = &budget;
    let names = match dns.ptr(ip).await {
        Ok(names) => names,
        Err(error) => return Some(PtrVerdict { result: failure(error), name: None }),
    };
    let mut result = Word::Fail;
    // What is no host name, brackets and quotes among it, would be read as something else where we write it.
    let is_host = |name: &&String| Domain::parse(name).is_ok_and(|domain| !domain.is_literal());
    for name in names.iter().filter(is_host).take(PTR_NAMES_MAX) {
        match dns.addresses(name, ip).await {
            Ok(addresses) if addresses.contains(&ip) => {
                return Some(PtrVerdict { result: Word::Pass, name: Some(name.clone()) });
            }
            Err(DnsError::Temporary) => result = Word::TempError,
            Ok(_) | Err(DnsError::NotFound | DnsError::NoRecords | DnsError::OverBudget) => {}
        }
    }
    Some(PtrVerdict { result, name: None })
}

fn failure(error: DnsError) -> Word {
    match error {
        DnsError::NotFound | DnsError::NoRecords | DnsError::OverBudget => Word::PermError,
        DnsError::Temporary => Word::TempError,
    }
}

/// The sender waits for our 250 meanwhile, and gives it ten minutes (RFC 5321 §4.5.3.2.6); a session costs memory.
pub const CHECK_MAX: Duration = Duration::from_secs(15);
/// Look-ups of one message, all checks together.
pub const QUESTIONS_MAX: u32 = 60;
// How they are shared out: 60 together.
const HELO_QUESTIONS_MAX: u32 = 6;
const MAIL_FROM_QUESTIONS_MAX: u32 = 22;
const DKIM_QUESTIONS_MAX: u32 = 10;
const DMARC_QUESTIONS_MAX: u32 = 10;
const ARC_QUESTIONS_MAX: u32 = 8;
const PTR_QUESTIONS_MAX: u32 = 4;
const PTR_NAMES_MAX: usize = 3;
/// Hashing a megabyte takes a millisecond; more would keep other sessions waiting.
const INLINE_OCTETS_MAX: usize = 1024 * 1024;
