//! SPF: any records and any answers of the DNS come to a result, within the limits of RFC 7208, and what a stranger has us
//! say is one line of printable ASCII.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use pointsman::address::ReversePath;
use pointsman::auth::spf::macros::{Macro, Values};
use pointsman::auth::spf::record::{Record, is_spf};
use pointsman::auth::spf::{Request, SpfResult, check_host};
use pointsman::clock::Timestamp;
use pointsman::dns::{Dns, DnsError, Found, Mx, Pending, Question, Records};
use tokio::runtime::{Builder, Runtime};

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let ip: IpAddr = match input.octet() % 3 {
        0 => Ipv4Addr::new(192, 0, 2, 3).into(),
        1 => Ipv4Addr::from(u32::try_from(input.number() >> 32).unwrap_or(0)).into(),
        _ => u128::from(input.number()).to_be_bytes().into(),
    };
    let (helo, sender) = (input.text(), ReversePath::parse(input.text()).unwrap_or(ReversePath::Null));
    let world = World::read(input);

    for text in &world.texts {
        assert_record(text, ip, helo);
    }
    let request = Request::mail_from(ip, helo, &sender, "mx.solarmora.com", Timestamp(1_795_292_431_042));
    let verdict = RUNTIME.with_borrow(|runtime| runtime.block_on(check_host(&world, &request)));
    let asked = world.asked.into_inner().expect("no code panics while it holds this lock");
    assert!(asked.len() <= QUESTIONS_MAX, "{} questions", asked.len());
    assert!(asked.iter().filter(|kind| **kind == "TXT").count() <= TEXTS_MAX, "{asked:?}");
    assert_eq!(verdict.domain, request.domain);
    let failed = matches!(verdict.result, SpfResult::None | SpfResult::TempError | SpfResult::PermError);
    assert_eq!(verdict.reason.is_some(), failed, "{verdict:?}");
    if let Some(explanation) = &verdict.explanation {
        assert_eq!(verdict.result, SpfResult::Fail);
        assert!((1..=300).contains(&explanation.len()), "{explanation:?}");
        assert!(explanation.bytes().all(|b| matches!(b, b' '..=b'~')), "{explanation:?}");
    }
}

/// A record is read whole or not at all, and what it expands to is bounded.
fn assert_record(text: &[u8], ip: IpAddr, helo: &str) {
    if is_spf(text)
        && let Ok(record) = Record::parse(text)
    {
        assert!(text.iter().all(|octet| matches!(octet, b' '..=b'~')), "{}", text.escape_ascii());
        // Spaces around terms mean nothing.
        let spaced = [text, &b"  "[..]].concat();
        assert_eq!(Record::parse(&spaced), Ok(record));
    }
    let Ok(text) = std::str::from_utf8(text) else { return };
    let name = "mail.example.org";
    let values = Values {
        local_part: "strong-bad",
        sender_domain: "email.example.com",
        domain: "email.example.com",
        ip,
        name: Some(name),
        helo: &helo.chars().filter(char::is_ascii_graphic).take(255).collect::<String>(),
        receiver: "mx.solarmora.com",
        now: 1_795_292_431,
    };
    if let Ok(parsed) = Macro::parse_explanation(text) {
        let expanded = parsed.expand(&values);
        assert!(expanded.bytes().all(|b| matches!(b, b' '..=b'~')), "{expanded:?}");
        assert!(expanded.len() <= text.len() * EXPANSION_MAX);
    }
    if let Ok(parsed) = Macro::parse_domain(text) {
        let name = parsed.expand_domain(&values);
        assert!(name.len() <= 253, "{name}");
        assert!(parsed.expand(&values).trim_end_matches('.').ends_with(name.trim_end_matches('.')));
    }
}

/// Answers to any question, in the order in which they are written.
struct World {
    /// All TXT records.
    texts: Vec<Vec<u8>>,
    lines: Vec<Vec<u8>>,
    /// The kinds of the questions so far.
    asked: Mutex<Vec<&'static str>>,
}

impl World {
    fn read(mut input: Input<'_>) -> World {
        let mut lines = Vec::new();
        while !input.is_empty() && lines.len() < LINES_MAX {
            lines.push(input.line().to_vec());
        }
        let texts = lines.iter().filter_map(|line| line.strip_prefix(b"T")).map(<[u8]>::to_vec).collect();
        World { texts, lines, asked: Mutex::default() }
    }

    /// The question with this number gets the next line of its kind, round and round; without one there is no such name.
    fn answer(&self, question: &Question) -> Result<Records, DnsError> {
        let (kind, letter) = match question {
            Question::Txt(_) => ("TXT", b'T'),
            Question::Mx(_) => ("MX", b'M'),
            Question::A(_) => ("A", b'A'),
            Question::Aaaa(_) => ("AAAA", b'A'),
            Question::Ptr(_) => ("PTR", b'P'),
        };
        let mut asked = self.asked.lock().expect("no code panics while it holds this lock");
        let before = asked.iter().filter(|other| **other == kind).count();
        asked.push(kind);
        let of_kind: Vec<&[u8]> = self
            .lines
            .iter()
            .filter_map(|line| {
                let (first, rest) = line.split_first()?;
                (*first == letter || *first == b'!').then_some(if *first == letter { rest } else { line })
            })
            .collect();
        let Some(line) = of_kind.get(before % of_kind.len().max(1)) else { return Err(DnsError::NotFound) };
        let texts: Vec<String> =
            line.split(|octet| *octet == b' ').map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        Ok(match (question, *line) {
            (_, b"!") => return Err(DnsError::Temporary),
            (_, b"!!") => return Err(DnsError::NoRecords),
            (Question::Txt(_), line) => Records::Txt(line.split(|octet| *octet == b'\t').map(<[u8]>::to_vec).collect()),
            (Question::Mx(_), _) => {
                Records::Mx(texts.into_iter().map(|exchange| Mx { preference: 1, exchange }).collect())
            }
            (Question::A(_), _) => Records::A(some(texts.iter().filter_map(|text| text.parse().ok()))?),
            (Question::Aaaa(_), _) => Records::Aaaa(some(texts.iter().filter_map(|text| text.parse().ok()))?),
            (Question::Ptr(_), _) => Records::Ptr(texts.into()),
        })
    }
}

/// Records are never empty.
fn some<T>(records: impl Iterator<Item = T>) -> Result<Arc<[T]>, DnsError> {
    let records: Arc<[T]> = records.collect();
    if records.is_empty() { Err(DnsError::NoRecords) } else { Ok(records) }
}

impl Dns for World {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        let found = self.answer(question).map(|records| Found { records, ttl: Duration::from_secs(1) });
        Box::pin(std::future::ready(found))
    }
}

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread().enable_time().build().expect("a runtime without a reactor wants nothing")
    );
}

/// RFC 7208 §4.6.4: ten terms, of which each MX asks for ten hosts, the names of the client with ten addresses, the record
/// itself and the explanation.
const QUESTIONS_MAX: usize = 1 + 10 * 11 + 11 + 1;
/// The record, ten includes or redirects, and the explanation.
const TEXTS_MAX: usize = 1 + 10 + 1;
/// A macro of four octets names at most an address, three octets for each of its own.
const EXPANSION_MAX: usize = 3 * 320 / 4;
const LINES_MAX: usize = 60;
