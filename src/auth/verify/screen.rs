//! What is looked at before any hashing: which signatures are worth verifying, and whom From names.
//!
//! The guards that the library leaves to its caller. A signature that our policy does not count is taken out of the
//! header that the library sees, so that it costs nothing. From is read strictly: where two readers could see two
//! senders, there is none.

use mail_auth::crypto::Algorithm;
use mail_auth::dkim::Signature;
use mail_auth::dkim::record::VerifySignature;
use mail_auth::{AuthenticatedMessage, arc};

use super::tags;
use crate::address::Domain;
use crate::auth::{ArcVerdict, DkimVerdict, Word};
use crate::clock::Timestamp;
use crate::message::Field;

/// A header section, screened.
pub(super) struct Screened {
    /// The header without the signatures that are not verified.
    pub(super) kept: Vec<u8>,
    /// The verdicts on those that were taken out.
    pub(super) refused: Vec<DkimVerdict>,
    pub(super) has_dkim: bool,
    pub(super) has_arc: bool,
    /// The names of the keys that are needed.
    pub(super) dkim_keys: Vec<String>,
    pub(super) arc_keys: Vec<String>,
    /// The chain is not worth verifying.
    pub(super) arc_refused: Option<ArcVerdict>,
    /// The domain of From, in lower-case A-labels, where From names exactly one sender.
    pub(super) from: Option<String>,
}

pub(super) fn screen(head: &[u8], fields: &[Field], now: Timestamp) -> Screened {
    let mut screened = Screened {
        kept: Vec::with_capacity(head.len()),
        refused: Vec::new(),
        has_dkim: false,
        has_arc: false,
        dkim_keys: Vec::new(),
        arc_keys: Vec::new(),
        arc_refused: None,
        from: author(fields, head),
    };
    let (mut at, mut seen) = (0, 0);
    let too_many_fields = fields.len() > FIELDS_MAX;
    let doubled = doubled(fields);
    for field in fields.iter().filter(|field| field.name == "dkim-signature") {
        seen += 1;
        // Behind the limit nothing is even read.
        let parsed = (seen <= SIGNATURES_MAX).then(|| Signature::parse(value(field, head)));
        let refusal = match &parsed {
            _ if too_many_fields => Some((Word::Policy, "too many header fields")),
            None => Some((Word::Policy, "too many signatures")),
            Some(Ok(signature)) => refusal(signature, value(field, head), &doubled, now),
            // The library would pass over most of these in silence.
            Some(Err(_)) => Some((Word::Neutral, "cannot be read")),
        };
        match (refusal, parsed) {
            (None, Some(Ok(signature))) => {
                screened.has_dkim = true;
                add_key(&mut screened.dkim_keys, &signature);
            }
            (None, Some(Err(_)) | None) => {}
            (Some((result, reason)), parsed) => {
                let (start, end) = range(field, head);
                screened.kept.extend_from_slice(head.get(at..start).unwrap_or_default());
                at = end;
                match parsed {
                    Some(Ok(signature)) => screened.refused.push(described(&signature, result, Some(reason))),
                    Some(Err(_)) => screened.refused.push(unreadable(result, Some(reason))),
                    None => {}
                }
            }
        }
    }
    screened.kept.extend_from_slice(head.get(at..).unwrap_or_default());
    screen_arc(&mut screened, fields, too_many_fields);
    screened
}

/// Why a signature does not count, whatever its mathematics say. `field` is its text, `doubled` from [`doubled`].
fn refusal(
    signature: &Signature,
    field: &[u8],
    doubled: &[(&str, usize)],
    now: Timestamp,
) -> Option<(Word, &'static str)> {
    let milliseconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
    let signs = |name: &str| signature.h.iter().filter(|signed| signed.eq_ignore_ascii_case(name)).count();
    // RFC 6376 §3.5 and §6.1.1: what is wrong with the signature itself.
    if signature.v != 1 {
        Some((Word::PermError, "no version"))
    } else if tags::has_repeated(field, SINGLE_TAGS) {
        Some((Word::PermError, "a tag stands twice"))
    } else if !is_name(&signature.d) || !signature.d.contains('.') {
        Some((Word::PermError, "d= is no domain"))
    } else if !is_name(&signature.s) {
        Some((Word::PermError, "s= is no selector"))
    // What we do not count.
    } else if signs("from") == 0 {
        // RFC 6376 §5.4.
        Some((Word::Policy, "From is not signed"))
    } else if signature.l != 0 {
        // RFC 6376 §8.2: anybody can append what he likes.
        Some((Word::Policy, "only a part of the body is signed"))
    } else if signature.h.len() > SIGNED_NAMES_MAX {
        Some((Word::Policy, "too many signed fields"))
    } else if milliseconds(signature.t) > now.after(CLOCK_SKEW_MAX).0 {
        Some((Word::Policy, "signed in the future"))
    } else if signature.x != 0 && (milliseconds(signature.x) <= now.0 || signature.x <= signature.t) {
        Some((Word::Policy, "expired"))
    } else if doubled.iter().any(|(name, present)| (1..*present).contains(&signs(name))) {
        Some((Word::Policy, "a signed field stands again unsigned"))
    } else {
        weak(signature.a, &signature.b).map(|reason| (Word::Policy, reason))
    }
}

/// The fields that may stand once (RFC 5322 §3.6) and stand more often, with how often. A signature covers the lowest
/// of them, and a reader is shown the highest.
fn doubled(fields: &[Field]) -> Vec<(&'static str, usize)> {
    let count = |name: &&'static str| (*name, fields.iter().filter(|field| field.name == **name).count());
    SINGLE_FIELDS.iter().map(count).filter(|(_, present)| *present > 1).collect()
}

/// Letters, digits, hyphens, underscores and inner dots; beyond ASCII anything (RFC 8616).
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let sane = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !label.is_empty() && label.chars().all(|c| sane(c) && !c.is_control())
    };
    text.split('.').all(label)
}

/// RFC 8301 §3. An RSA signature is as long as its key.
fn weak(algorithm: Algorithm, signature: &[u8]) -> Option<&'static str> {
    match algorithm {
        Algorithm::RsaSha1 => Some("rsa-sha1"),
        Algorithm::RsaSha256 if signature.len() < RSA_OCTETS_MIN => Some("the key is too short"),
        Algorithm::RsaSha256 if signature.len() > RSA_OCTETS_MAX => Some("the key is too long"),
        Algorithm::RsaSha256 | Algorithm::Ed25519Sha256 => None,
        Algorithm::MlDsa44 => Some("unknown algorithm"),
    }
}

fn screen_arc(screened: &mut Screened, fields: &[Field], too_many_fields: bool) {
    let count = |name: &str| fields.iter().filter(|field| field.name == name).count();
    let counts = ["arc-seal", "arc-message-signature", "arc-authentication-results"].map(count);
    screened.has_arc = counts.iter().any(|count| *count > 0);
    if !screened.has_arc {
        return;
    }
    let fail = |reason| ArcVerdict { result: Word::Fail, sealer: None, reason: Some(reason) };
    // RFC 8617 §4.2.1 and §5.2: at most 50 sets, each of the three fields.
    if too_many_fields || counts.iter().any(|count| *count > ARC_SETS_MAX) {
        screened.arc_refused = Some(fail("the chain is too long"));
    } else if counts[0] != counts[1] || counts[0] != counts[2] {
        screened.arc_refused = Some(fail("the chain is broken"));
    } else {
        // Only the header: nothing is hashed.
        let Some(message) = AuthenticatedMessage::parse(&screened.kept) else { return };
        let newest: Option<&arc::Signature> = message.arc_message_signatures().last().map(|field| &field.header);
        let seals: Vec<&arc::Seal> = message.arc_seals().iter().map(|field| &field.header).collect();
        let weak_seal = seals.iter().find_map(|seal| weak(seal.a, &seal.b));
        let weak_signature = newest.and_then(|newest| weak(newest.a, &newest.b));
        let mut keys = Vec::new();
        newest.iter().for_each(|newest| add_key(&mut keys, *newest));
        seals.iter().for_each(|seal| add_key(&mut keys, *seal));
        let refusal = if newest.is_some_and(|newest| newest.h.len() > SIGNED_NAMES_MAX) {
            Some("too many signed fields")
        } else if keys.len() > ARC_KEYS_MAX {
            Some("too many sealers")
        } else {
            weak_seal.or(weak_signature)
        };
        screened.arc_refused = refusal.map(fail);
        screened.arc_keys = keys;
    }
}

fn add_key(keys: &mut Vec<String>, signature: &impl VerifySignature) {
    let name = signature.domain_key();
    let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
    if !keys.contains(&name) {
        keys.push(name);
    }
}

/// The domain of the one sender that From names.
fn author(fields: &[Field], head: &[u8]) -> Option<String> {
    let mut from = fields.iter().filter(|field| field.name == "from");
    let (Some(only), None) = (from.next(), from.next()) else { return None };
    let (start, end) = range(only, head);
    let is_named = head.get(start..end)?.get(.."from:".len())?.eq_ignore_ascii_case(b"from:");
    let begins = start == 0 || head.get(start - 1) == Some(&b'\n');
    if !is_named || !begins || from_lines(head) != 1 {
        return None;
    }
    let text = std::str::from_utf8(value(only, head)).ok()?;
    let bare = without_quotes_and_comments(text)?;
    // With angle brackets the address stands in them, at the end, once; without them it is the whole value.
    let address = match bare.split_once('<') {
        Some((name, rest)) => {
            let address = rest.strip_suffix('>')?;
            (!name.contains(['>', ',', ';', ':'])).then_some(address)?
        }
        None => &bare,
    };
    if address.contains(['<', '>', ',', ';', ':', ' ', '\t']) || address.matches('@').count() != 1 {
        return None;
    }
    let domain = Domain::parse(address.split_once('@')?.1).ok()?;
    (!domain.is_literal()).then(|| domain.as_str().to_owned())
}

/// How many lines some reader may take for the begin of a From: with space before the name, before the colon, or with
/// the colon on the next line.
fn from_lines(head: &[u8]) -> usize {
    let is_from = |(number, line): (usize, &[u8])| {
        // A first line cannot continue one.
        let line = if number == 0 { line.trim_ascii_start() } else { line };
        let named = line.get(.."from".len()).is_some_and(|name| name.eq_ignore_ascii_case(b"from"));
        named && matches!(line["from".len()..].trim_ascii().first(), None | Some(b':'))
    };
    head.split(|octet| *octet == b'\n').enumerate().filter(|line| is_from(*line)).count()
}

/// The text in one line, quoted strings as `q`, comments gone. None where one of them does not end, or where a control
/// character stands.
fn without_quotes_and_comments(text: &str) -> Option<String> {
    let mut bare = String::new();
    let (mut depth, mut quoted) = (0usize, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted || depth > 0 => drop(chars.next()?),
            '"' if depth == 0 => {
                quoted = !quoted;
                if !quoted {
                    bare.push('q');
                }
            }
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.checked_sub(1)?,
            '\r' | '\n' => {}
            '\t' => bare.push(' '),
            c if c.is_control() => return None,
            c if !quoted && depth == 0 => bare.push(c),
            _ => {}
        }
    }
    (depth == 0 && !quoted).then(|| bare.trim().to_owned())
}

fn range(field: &Field, head: &[u8]) -> (usize, usize) {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(head.len());
    (place(field.range.start), place(field.range.end))
}

fn value<'h>(field: &Field, head: &'h [u8]) -> &'h [u8] {
    let (start, end) = range(field, head);
    let whole = head.get(start..end).unwrap_or_default();
    let colon = memchr::memchr(b':', whole).map_or(whole.len(), |at| at + 1);
    &whole[colon..]
}

pub(super) fn described(signature: &Signature, result: Word, reason: Option<&'static str>) -> DkimVerdict {
    DkimVerdict {
        result,
        domain: signature.d.clone(),
        selector: signature.s.clone(),
        identity: signature.i.clone(),
        algorithm: match signature.a {
            Algorithm::RsaSha1 => "rsa-sha1",
            Algorithm::RsaSha256 => "rsa-sha256",
            Algorithm::Ed25519Sha256 => "ed25519-sha256",
            Algorithm::MlDsa44 => "mldsa44",
        },
        signature_start: base64_start(&signature.b),
        signed_fields: signature.h.iter().map(|name| name.to_ascii_lowercase()).collect(),
        reason,
    }
}

pub(super) fn unreadable(result: Word, reason: Option<&'static str>) -> DkimVerdict {
    DkimVerdict {
        result,
        domain: String::new(),
        selector: String::new(),
        identity: String::new(),
        algorithm: "",
        signature_start: String::new(),
        signed_fields: Vec::new(),
        reason,
    }
}

/// RFC 6008 §4: the first eight characters of `b=` tell signatures apart. They are six octets.
fn base64_start(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut start = String::new();
    for three in octets.chunks_exact(3).take(2) {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        start.extend([18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift) as usize & 63])));
    }
    start
}

/// RFC 6376 §6.1 lets a verifier limit them. Forwarded mail has three or four.
pub const SIGNATURES_MAX: usize = 10;
/// Names in `h=`. Those that sign every field twice over come to some sixty.
pub const SIGNED_NAMES_MAX: usize = 200;
/// Finding the signed fields costs fields times names.
pub const FIELDS_MAX: usize = 2000;
/// RFC 8617 §4.2.1.
const ARC_SETS_MAX: usize = 50;
const ARC_KEYS_MAX: usize = 8;
/// RFC 8301 §3.2: 1024 bits.
const RSA_OCTETS_MIN: usize = 128;
/// 4096 bits are the longest that RFC 8301 §3.2 asks a verifier to take, and a longer key costs us, not its owner.
const RSA_OCTETS_MAX: usize = 512;
/// The tags that decide what a signature says and for whom.
const SINGLE_TAGS: &[&str] = &["v", "a", "b", "bh", "c", "d", "h", "i", "l", "q", "s", "t", "x"];
/// What a reader is shown, or what says how to read the body.
const SINGLE_FIELDS: &[&str] =
    &["from", "sender", "reply-to", "to", "cc", "subject", "date", "message-id", "mime-version", "content-type"];
/// Clocks differ.
const CLOCK_SKEW_MAX: std::time::Duration = std::time::Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Header;

    fn screen(head: &[u8], now: Timestamp) -> Screened {
        super::screen(head, &Header::index(head).fields, now)
    }

    fn from_of(head: &str) -> Option<String> {
        screen(head.as_bytes(), Timestamp(0)).from
    }

    #[test]
    fn from_names_one_sender() {
        for from in [
            "u@Legitimate.com",
            "<u@legitimate.com>",
            "A Name <u@legitimate.com>",
            "\"A, (Name\" <u@legitimate.com>",
            "info@legitimate.com <info@legitimate.com>",
            "u@legitimate.com (comment, with <x@evil.com>)",
            "\r\n A Name\r\n\t<u@legitimate.com>",
            "=?utf-8?q?A_N=C3=A4me?= <u@legitimate.com>",
            "\"u\"@legitimate.com",
            "\"a@evil.com\" <u@legitimate.com>",
            "u@legitimate.com\r\nSubject: a\r\n From: b\r\nFromage: c",
        ] {
            assert_eq!(from_of(&format!("From: {from}\r\n")).as_deref(), Some("legitimate.com"), "{from:?}");
        }
    }

    #[test]
    fn from_that_names_none_or_two_or_hides_one() {
        for head in [
            "Subject: no From\r\n",
            "From: u@legitimate.com\r\nFrom: u@evil.com\r\n",
            "From: u@legitimate.com\r\nFrom : u@evil.com\r\n",
            "From : u@legitimate.com\r\n",
            " From: u@legitimate.com\r\n",
            "From\r\n : u@legitimate.com\r\n",
            "From\r\n : u@evil.com\r\nFrom: u@legitimate.com\r\n",
            " From: u@evil.com\r\nFrom: u@legitimate.com\r\n",
            "From: u@legitimate.com\r\nFrom\r\n\t: u@evil.com\r\n",
            "FROM: u@legitimate.com\r\nfrom: u@legitimate.com\r\n",
            "From: u@legitimate.com, u@evil.com\r\n",
            "From: <u@legitimate.com>, <u@legitimate.com>\r\n",
            "From: <u@legitimate.com> <u@evil.com>\r\n",
            "From: <u@legitimate.com>u@evil.com\r\n",
            "From: <@legitimate.com,@evil.com:u@example.org>\r\n",
            "From: Group: u@legitimate.com;\r\n",
            "From: undisclosed:;\r\n",
            "From: =?utf-8?q?u=40legitimate.com?=\r\n",
            "From: u@evil.com(\r\n",
            "From: \"u@evil.com <u@legitimate.com>\r\n",
            "From: u@legitimate.com\0@evil.com\r\n",
            "From: u@[192.0.2.1]\r\n",
            "From: u@legitimate.com@evil.com\r\n",
            "From: u\r\n",
            "From: \r\n",
            "Resent-From: u@legitimate.com\r\nSender: u@legitimate.com\r\n",
        ] {
            assert_eq!(from_of(head), None, "{head:?}");
        }
    }

    fn signature(tags: &str) -> String {
        let long = "A".repeat(172);
        let algorithm = if tags.contains("a=") { "" } else { "a=rsa-sha256; " };
        format!("DKIM-Signature: v=1; {algorithm}c=relaxed/relaxed; d=a.example; s=s1; bh=AAAA; {tags} b={long}\r\n")
    }

    #[test]
    fn signatures_that_do_not_count_are_taken_out_unverified() {
        let now = Timestamp(1_795_292_431_000);
        let names = |n: usize| format!("h=from{};", ":x".repeat(n - 1));
        for (tags, want) in [
            ("h=from:to;".to_owned(), None),
            ("h=From;".to_owned(), None),
            ("h=to:subject;".to_owned(), Some("From is not signed")),
            ("h=from; a=rsa-sha1;".to_owned(), Some("rsa-sha1")),
            (names(SIGNED_NAMES_MAX), None),
            (names(SIGNED_NAMES_MAX + 1), Some("too many signed fields")),
            ("h=from; t=1795292432;".to_owned(), None),
            ("h=from; t=1795299999;".to_owned(), Some("signed in the future")),
        ] {
            let field = signature(&tags);
            let head = format!("From: u@a.example\r\n{field}To: x\r\n");
            let screened = screen(head.as_bytes(), now);
            let reason = screened.refused.first().and_then(|verdict| verdict.reason);
            assert_eq!(reason, want, "{tags}");
            let kept = String::from_utf8(screened.kept).unwrap();
            assert_eq!(kept.contains("DKIM-Signature"), want.is_none(), "{tags}");
            assert!(kept.starts_with("From: u@a.example\r\n") && kept.ends_with("To: x\r\n"));
        }
        let short = signature("h=from;").replace(&"A".repeat(172), &"A".repeat(88));
        assert_eq!(screen(short.as_bytes(), now).refused[0].reason, Some("the key is too short"));
    }

    #[test]
    fn ten_signatures_are_looked_at_and_no_more() {
        for (count, kept) in [(10, 10), (11, 10), (3000, 0)] {
            let head = format!("{}From: u@a.example\r\n", signature("h=from;").repeat(count));
            let screened = screen(head.as_bytes(), Timestamp(0));
            let left = String::from_utf8(screened.kept).unwrap().matches("DKIM-Signature").count();
            assert_eq!(left, kept, "{count}");
            assert!(screened.refused.len() <= SIGNATURES_MAX);
            assert!(screened.dkim_keys.len() <= 1);
        }
    }

    #[test]
    fn the_start_of_a_signature_is_base64() {
        assert_eq!(base64_start(b"abcdefgh"), "YWJjZGVm");
        assert_eq!(base64_start(b"ab"), "");
    }
}
