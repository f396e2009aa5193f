//! What it costs to find out who sent a message, in CPU time: an ordinary message, and the worst that we could think of.
//!
//! DNS answers from memory, at once and as large as it can: time that passes is the tests' business, this is about the
//! processor. The promise is that ten signatures, fifty ARC sets and hostile DNS stay under 100 ms; where they do not,
//! the exit code is 1. `cargo checks-bench` builds and runs it.

#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::fs;
use std::hash::Hash;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use mail_auth::arc::ArcSealer;
use mail_auth::crypto::{RsaKey, Sha256};
use mail_auth::dkim::{Canonicalization, DkimSigner, DomainKey};
use mail_auth::dns::TxtRecordParser;
use mail_auth::headers::HeaderWriter;
use mail_auth::{
    AuthenticatedMessage, AuthenticationResults, DnsCache, MessageAuthenticator, NoCache, Parameters, ResolverCache,
    TxtRecord,
};
use pointsman::address::ReversePath;
use pointsman::auth::AuthReport;
use pointsman::auth::verify::{Checker, SIGNED_NAMES_MAX, Settings, Subject};
use pointsman::clock::{Clock, SystemClock};
use pointsman::dns::{Dns, DnsError, Found, Mx, Pending, Question, Records};
use pointsman::message::Header;
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("checks-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (usual, strong) = (Key::new(RsaKeySize::_2048)?, Key::new(RsaKeySize::_4096)?);
    let plain = ordinary(&usual)?;
    let worst = hostile(&strong)?;
    println!(
        "CPU time of all checks of one message (SPF twice, DKIM, DMARC, ARC, PTR); median of {ROUNDS} times {BATCH}"
    );
    let mut is_kept = true;
    for (title, message, key, dns, wanted) in [
        ("one signature of 2048 bits, 4 KiB", &plain, &usual, Answers::Usual, None),
        (
            "10 signatures and 50 ARC sets of 4096 bits, 2,000 fields, 1 MiB, hostile DNS",
            &worst,
            &strong,
            Answers::Hostile,
            Some(CPU_MAX),
        ),
    ] {
        let dns = Arc::new(Memory { key: key.record.clone(), answers: dns });
        let checker = Checker::new(dns)?;
        let mut costs = Vec::new();
        let mut report = AuthReport::default();
        for _ in 0..ROUNDS {
            let before = cpu()?;
            for _ in 0..BATCH {
                report = runtime.block_on(check(&checker, message));
            }
            costs.push(cpu()?.saturating_sub(before) / BATCH);
        }
        costs.sort();
        let cost = costs[ROUNDS / 2];
        let verdict = match wanted {
            Some(limit) if cost < limit => format!("   under {limit:?}"),
            Some(limit) => {
                is_kept = false;
                format!("   FELL SHORT of {limit:?}")
            }
            None => String::new(),
        };
        println!("  {:>9.3} ms   {title}{verdict}", cost.as_secs_f64() * 1000.0);
        println!(
            "               dkim={} arc={} dmarc={} spf={}",
            report.dkim_word().unwrap_or_default(),
            report.arc_word().unwrap_or_default(),
            report.dmarc_word().unwrap_or_default(),
            report.spf_word().unwrap_or_default(),
        );
    }
    Ok(is_kept)
}

async fn check(checker: &Checker, message: &[u8]) -> AuthReport {
    let settings = Settings { spf: true, dkim: true, dmarc: true, arc: true, ptr: true };
    let head = message.windows(4).position(|four| four == b"\r\n\r\n").map_or(message.len(), |at| at + 2);
    let subject = Subject {
        ip: [192, 0, 2, 1].into(),
        helo: "mail.a.example",
        sender: &ReversePath::parse("bounce@a.example").expect("it is an address"),
        hostname: "mx.solarmora.com",
        head,
        header: &Header::index(&message[..head]),
        message: message.to_vec().into(),
        now: SystemClock::new().now(),
    };
    let began = Instant::now();
    let report = checker.check(&settings, &subject).await;
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    report
}

/// What all threads of this process have used until now.
fn cpu() -> anyhow::Result<Duration> {
    // A thread's account is closed when it leaves the processor, and read too low until then.
    std::thread::sleep(Duration::from_millis(1));
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task").context("cannot read /proc")? {
        let text = fs::read_to_string(task?.path().join("schedstat")).context("cannot read the cost of a thread")?;
        nanoseconds += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

struct Key {
    pair: KeyPair,
    record: String,
}

impl Key {
    fn new(size: RsaKeySize) -> anyhow::Result<Key> {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).context("cannot make a key")?;
        let public: String = pair.public_key_pem().lines().filter(|line| !line.starts_with('-')).collect();
        Ok(Key { pair, record: format!("v=DKIM1; p={public}") })
    }

    fn rsa(&self) -> anyhow::Result<RsaKey<Sha256>> {
        let der = rustls::pki_types::PrivateKeyDer::try_from(self.pair.serialize_der()).map_err(anyhow::Error::msg)?;
        RsaKey::from_key_der(der).context("cannot read the key")
    }

    fn sign(&self, selector: &str, names: &[String], how: Canonicalization, message: &[u8]) -> anyhow::Result<String> {
        let signer = DkimSigner::from_key(self.rsa()?).domain("a.example").selector(selector);
        let signer = signer.headers(names.iter().cloned()).header_canonicalization(how).body_canonicalization(how);
        Ok(signer.sign(message).context("cannot sign")?.to_header())
    }

    fn seal(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let library = MessageAuthenticator::new(Default::default(), Default::default()).context("no library")?;
        let parsed = AuthenticatedMessage::parse(message).context("cannot read the message")?;
        let key = OneKey(DomainKey::parse(self.record.as_bytes()).into());
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let output = runtime.block_on(library.verify_arc(Parameters::new(&parsed).with_cache(&key)));
        let results = AuthenticationResults::new("seal.example");
        let sealer =
            ArcSealer::from_key(self.rsa()?).domain("seal.example").selector("s1").headers(["From", "Subject"]);
        let set = sealer.seal(&parsed, &results, &output).context("cannot seal")?.to_header();
        Ok([set.as_bytes(), message].concat())
    }
}

fn ordinary(key: &Key) -> anyhow::Result<Vec<u8>> {
    let message = format!("From: u@a.example\r\nSubject: s\r\nTo: t\r\n\r\n{}", LINE.repeat(4096 / LINE.len()));
    let names = ["From", "Subject", "To"].map(str::to_owned);
    Ok(format!("{}{message}", key.sign("s0", &names, Canonicalization::Relaxed, message.as_bytes())?).into_bytes())
}

/// As much as our limits let through: the fields, the names in `h=`, the sets, the sizes.
fn hostile(key: &Key) -> anyhow::Result<Vec<u8>> {
    let filler: String = (0..FIELDS).map(|n| format!("N{n}: {}\r\n", "x".repeat(20))).collect();
    let body = LINE.repeat(1024 * 1024 / LINE.len());
    let mut message = format!("From: u@a.example\r\nSubject: s\r\n{filler}\r\n{body}").into_bytes();
    for _ in 0..SETS {
        message = key.seal(&message)?;
    }
    // The names that are found last, each after a search through all fields.
    let names: Vec<String> =
        ["From".to_owned()].into_iter().chain((0..SIGNED_NAMES_MAX - 1).map(|n| format!("N{n}"))).collect();
    let mut signatures = String::new();
    for n in 0..SIGNATURES {
        let how = if n % 2 == 0 { Canonicalization::Relaxed } else { Canonicalization::Simple };
        signatures.push_str(&key.sign(&format!("s{n}"), &names, how, &message)?);
    }
    Ok([signatures.as_bytes(), &message].concat())
}

/// For the library, while chains are built: the same key under every name.
struct OneKey(TxtRecord);

impl ResolverCache<Box<str>, TxtRecord> for OneKey {
    fn get<Q: Hash + Eq + ?Sized>(&self, _: &Q) -> Option<TxtRecord>
    where
        Box<str>: Borrow<Q>,
    {
        Some(self.0.clone())
    }

    fn remove<Q: Hash + Eq + ?Sized>(&self, _: &Q) -> Option<TxtRecord>
    where
        Box<str>: Borrow<Q>,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: TxtRecord, _: Instant) {}
}

impl DnsCache for OneKey {
    type Txt = OneKey;
    type Mx = NoCache;
    type Ipv4 = NoCache;
    type Ipv6 = NoCache;
    type Ptr = NoCache;

    fn txt(&self) -> Option<&OneKey> {
        Some(self)
    }

    fn mx(&self) -> Option<&NoCache> {
        None
    }

    fn ipv4(&self) -> Option<&NoCache> {
        None
    }

    fn ipv6(&self) -> Option<&NoCache> {
        None
    }

    fn ptr(&self) -> Option<&NoCache> {
        None
    }
}

#[derive(Clone, Copy)]
enum Answers {
    Usual,
    /// As long and as many as they can be.
    Hostile,
}

/// A name server in memory.
struct Memory {
    key: String,
    answers: Answers,
}

impl Memory {
    fn text(&self, name: &str) -> String {
        match self.answers {
            _ if name.contains("_domainkey") => self.key.clone(),
            Answers::Usual if name == "_dmarc.a.example" => "v=DMARC1; p=reject".into(),
            Answers::Usual => "v=spf1 ip4:192.0.2.1 -all".into(),
            Answers::Hostile if name.starts_with("_dmarc.") => format!("v=DMARC1; p=reject{}", "; x=y".repeat(13_000)),
            Answers::Hostile => {
                let networks: String = (0..3500).map(|n| format!(" ip4:10.{}.{}.0/24", n / 256, n % 256)).collect();
                format!("v=spf1{networks} mx mx:b.example mx:c.example -all")
            }
        }
    }
}

impl Dns for Memory {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        let records = match (question, self.answers) {
            (Question::Txt(name), _) => Records::Txt([self.text(name).into_bytes()].into()),
            (_, Answers::Usual) => return Box::pin(async { Err(DnsError::NotFound) }),
            (Question::Mx(name), Answers::Hostile) => {
                Records::Mx((0..10).map(|n| Mx { preference: n, exchange: format!("m{n}.{name}") }).collect())
            }
            (Question::A(_), Answers::Hostile) => Records::A((0..200).map(|n| [203, 0, 113, n].into()).collect()),
            (Question::Aaaa(_), Answers::Hostile) => return Box::pin(async { Err(DnsError::NoRecords) }),
            (Question::Ptr(_), Answers::Hostile) => Records::Ptr((0..200).map(|n| format!("p{n}.example")).collect()),
        };
        Box::pin(async move { Ok(Found { records, ttl: Duration::from_secs(300) }) })
    }
}

const ROUNDS: usize = 11;
const BATCH: u32 = 20;
const CPU_MAX: Duration = Duration::from_millis(100);
const SIGNATURES: usize = 10;
const SETS: usize = 50;
/// With the sets, the signatures, From and Subject: the 2,000 that are looked at.
const FIELDS: usize = 2000 - 3 * SETS - SIGNATURES - 2;
const LINE: &str = "The points are set, and every train is written in the book of its pointsman.\r\n";
