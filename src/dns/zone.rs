//! A zone written as text, which answers in the tests' place of the world's DNS.
//!
//! A line is `name TYPE value`; in names and TXT values `\xNN` is an octet, MX is `preference exchange`, PTR has the
//! address for a name. `name SERVFAIL` fails every question, `name SILENT` never answers, and either takes a type behind it:
//! `name SERVFAIL TXT`. `name SLOW 4900` has every answer wait for so many milliseconds. A name that some line has, or
//! that is above such a name, exists.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Dns, DnsError, Found, Mx, Pending, Question, Records};

pub(crate) struct Zone {
    lines: Vec<(String, String, String)>,
    asked: AtomicUsize,
}

impl Zone {
    pub(crate) fn parse(text: &str) -> Zone {
        let line = |line: &str| {
            let mut words = line.trim().splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            let owner = String::from_utf8(unescaped(&word())).expect("a name is UTF-8");
            (owner.to_ascii_lowercase(), word(), word())
        };
        let lines = text.lines().filter(|text| !text.trim().is_empty()).map(line).collect();
        Zone { lines, asked: AtomicUsize::new(0) }
    }

    /// How many questions came.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn delay(&self, name: &str) -> Duration {
        let slow = self.lines.iter().find(|(owner, kind, _)| owner == name && kind == "SLOW");
        slow.map_or(Duration::ZERO, |(.., wait)| {
            Duration::from_millis(wait.parse().expect("milliseconds are a number"))
        })
    }

    fn answer(&self, name: &str, kind: &str) -> Option<Result<Records, DnsError>> {
        let of_name = || self.lines.iter().filter(|(owner, ..)| owner == name);
        for (_, fault, of) in of_name() {
            match fault.as_str() {
                "SILENT" if of.is_empty() || of == kind => return None,
                "SERVFAIL" if of.is_empty() || of == kind => return Some(Err(DnsError::Temporary)),
                _ => {}
            }
        }
        let below = format!(".{name}");
        if !self.lines.iter().any(|(owner, ..)| owner == name || owner.ends_with(&below)) {
            return Some(Err(DnsError::NotFound));
        }
        let values: Vec<&str> = of_name().filter(|(_, k, _)| k == kind).map(|(.., value)| value.as_str()).collect();
        if values.is_empty() {
            return Some(Err(DnsError::NoRecords));
        }
        Some(Ok(match kind {
            "TXT" => Records::Txt(values.iter().map(|v| unescaped(v)).collect()),
            "MX" => {
                let mut all: Vec<Mx> = values.iter().map(|v| exchange(v)).collect();
                all.sort();
                Records::Mx(all.into())
            }
            "A" => Records::A(values.iter().map(|v| v.parse().expect("an address stands in the zone")).collect()),
            "AAAA" => Records::Aaaa(values.iter().map(|v| v.parse().expect("an address stands in the zone")).collect()),
            "PTR" => Records::Ptr(values.iter().map(|v| (*v).to_owned()).collect()),
            other => panic!("{other}"),
        }))
    }
}

/// `\xNN` stands for an octet.
fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut octets = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        octets.push(u8::from_str_radix(&part[..2], 16).expect("two hexadecimal digits follow"));
        octets.extend_from_slice(&part.as_bytes()[2..]);
    }
    octets
}

fn exchange(value: &str) -> Mx {
    let (preference, exchange) = value.split_once(' ').expect("an MX has a preference and an exchange");
    Mx {
        preference: preference.parse().expect("a preference is a number"),
        exchange: exchange.trim_end_matches('.').to_owned(),
    }
}

impl Dns for Zone {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (name, kind) = match question {
            Question::Txt(name) => (name.clone(), "TXT"),
            Question::Mx(name) => (name.clone(), "MX"),
            Question::A(name) => (name.clone(), "A"),
            Question::Aaaa(name) => (name.clone(), "AAAA"),
            Question::Ptr(ip) => (IpAddr::to_string(ip), "PTR"),
        };
        let (answer, delay) = (self.answer(&name, kind), self.delay(&name));
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            match answer {
                Some(answer) => answer.map(|records| Found { records, ttl: Duration::from_secs(300) }),
                None => std::future::pending().await,
            }
        })
    }
}

/// So that a test may keep a hand on the zone that it gives away.
impl Dns for Arc<Zone> {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        self.as_ref().ask(question)
    }
}
