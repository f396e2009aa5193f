//! An ARC set (RFC 8617): what we found out about a message, signed for those behind us. Pure, but for the key, which the
//! caller holds.
//!
//! The set stands above our Authentication-Results and says the same. It signs the message as it goes out: what is cut is
//! not in it. A chain whose newest seal says `fail` is over, one that cannot be counted is no chain, and of one that could
//! not be checked nothing can be said: none of them is sealed (§5.1.1).

use std::fmt::Write as _;
use std::ops::Range;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Word;
use crate::address::Domain;
use crate::clock::Timestamp;
use crate::message::Field;

/// What is sealed.
pub struct Sealing<'a> {
    /// The header section as it came, its fields, and what is cut of it.
    pub head: &'a [u8],
    pub fields: &'a [Field],
    pub cuts: &'a [Range<u64>],
    /// The Message-ID field that is added, or nothing.
    pub message_id: &'a str,
    /// What [`BodyHash`] made of the body.
    pub body_hash: [u8; 32],
    /// Our Authentication-Results field.
    pub results: &'a str,
    /// What the chain was found to be.
    pub chain: Word,
    pub domain: &'a Domain,
    pub selector: &'a Domain,
    pub now: Timestamp,
}

/// The fields of the set, newest seal first, or `None` where the message must not be sealed. `sign` makes a signature by
/// rsa-sha256.
pub fn set<E>(sealing: &Sealing<'_>, sign: impl Fn(&[u8]) -> Result<Vec<u8>, E>) -> Result<Option<String>, E> {
    let Some(sets) = sets(sealing) else { return Ok(None) };
    let validation = match (sealing.chain, sets.last()) {
        (Word::None, None) => "none",
        (Word::Pass, Some(_)) => "pass",
        (Word::Fail, Some(newest)) if tag(newest[SEAL].1, "cv").as_deref() != Some("fail") => "fail",
        _ => return Ok(None),
    };
    let instance = sets.len() + 1;
    if instance > INSTANCES_MAX {
        return Ok(None);
    }
    let Sealing { domain, selector, results, .. } = sealing;
    let seconds = sealing.now.0.div_euclid(1000);
    let found = results.strip_prefix("Authentication-Results: ").unwrap_or(results);
    let found = format!("ARC-Authentication-Results: i={instance}; {found}");

    let (names, signed) = signed_fields(sealing);
    let mut message = format!(
        "ARC-Message-Signature: i={instance}; a=rsa-sha256; c=relaxed/relaxed; d={domain};\r\n\ts={selector}; t={seconds};\r\n\t\
         h={names};\r\n\tbh={};\r\n\tb=",
        STANDARD.encode(sealing.body_hash)
    );
    let mut input = signed;
    push_relaxed(&mut input, message.as_bytes());
    message.push_str(&folded(&sign(&input)?));

    let mut seal = format!(
        "ARC-Seal: i={instance}; a=rsa-sha256; cv={validation}; d={domain};\r\n\ts={selector}; t={seconds};\r\n\tb="
    );
    let mut input = Vec::new();
    // §5.1.2: a chain that has failed is not vouched for, only what we found.
    let earlier = if validation == "fail" { &[][..] } else { &sets[..] };
    for (field, _) in earlier.iter().flatten() {
        push_relaxed(&mut input, field);
        input.extend_from_slice(b"\r\n");
    }
    for field in [&found, &message] {
        push_relaxed(&mut input, field.as_bytes());
        input.extend_from_slice(b"\r\n");
    }
    push_relaxed(&mut input, seal.as_bytes());
    seal.push_str(&folded(&sign(&input)?));
    Ok(Some(format!("{seal}{message}{found}")))
}

/// A set as it came: each field whole, and its value; results, signature, seal.
type Set<'a> = [Whole<'a>; 3];

/// A field, and its value.
type Whole<'a> = (&'a [u8], &'a [u8]);

const SEAL: usize = 2;

/// The sets by their instance; none where one is missing, stands twice, or cannot be counted.
fn sets<'a>(sealing: &Sealing<'a>) -> Option<Vec<Set<'a>>> {
    let mut sets: Vec<[Option<Whole<'a>>; 3]> = Vec::new();
    for field in sealing.fields {
        let Some(kind) = SET.iter().position(|name| *name == field.name) else { continue };
        let (whole, value) = parts(field, sealing.head);
        let instance: usize = tag(value, "i")?.parse().ok()?;
        if !(1..=INSTANCES_MAX).contains(&instance) {
            return None;
        }
        if sets.len() < instance {
            sets.resize(instance, [None; 3]);
        }
        if sets[instance - 1][kind].replace((whole, value)).is_some() {
            return None;
        }
    }
    sets.into_iter().map(|set| Some([set[0]?, set[1]?, set[2]?])).collect()
}

/// The names for `h=`, and the fields that they mean as they are hashed: of a name that stands twice, the lowest first
/// (RFC 6376 §5.4.2).
fn signed_fields(sealing: &Sealing<'_>) -> (String, Vec<u8>) {
    let is_cut = |field: &&Field| !sealing.cuts.contains(&field.range);
    let kept: Vec<&Field> = sealing.fields.iter().filter(is_cut).collect();
    let (mut names, mut signed, mut count) = (String::new(), Vec::new(), 0usize);
    let mut add = |name: &str, whole: &[u8]| {
        let gap = match count {
            0 => "",
            n if n % NAMES_IN_LINE == 0 => ":\r\n\t ",
            _ => ":",
        };
        // Writing to a text does not fail.
        let _ = write!(names, "{gap}{name}");
        count += 1;
        if !whole.is_empty() {
            push_relaxed(&mut signed, whole);
            signed.extend_from_slice(b"\r\n");
        }
    };
    for name in SIGNED {
        let there = kept.iter().rev().filter(|field| field.name == *name).take(SAME_NAME_MAX);
        let mut any = false;
        for field in there {
            add(name, parts(field, sealing.head).0);
            any = true;
        }
        if *name == "message-id" && !sealing.message_id.is_empty() {
            add(name, sealing.message_id.as_bytes());
        } else if *name == "from" && !any {
            // It must be named (RFC 6376 §5.4), also where it is not there.
            add(name, b"");
        }
    }
    (names, signed)
}

/// A field whole, and its value.
fn parts<'h>(field: &Field, head: &'h [u8]) -> (&'h [u8], &'h [u8]) {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let whole = head.get(place(field.range.start)..place(field.range.end)).unwrap_or_default();
    let colon = memchr::memchr(b':', whole).map_or(whole.len(), |at| at + 1);
    (whole, &whole[colon..])
}

/// The value of a tag (RFC 6376 §3.2), in lower case.
fn tag(list: &[u8], name: &str) -> Option<String> {
    list.split(|octet| *octet == b';').find_map(|part| {
        let at = memchr::memchr(b'=', part)?;
        let is_named = part[..at].trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        is_named.then(|| String::from_utf8_lossy(part[at + 1..].trim_ascii()).to_ascii_lowercase())
    })
}

/// A field in relaxed form (RFC 6376 §3.4.2), without its CRLF.
fn push_relaxed(out: &mut Vec<u8>, whole: &[u8]) {
    let colon = memchr::memchr(b':', whole).unwrap_or(whole.len());
    out.extend(whole[..colon].trim_ascii().to_ascii_lowercase());
    out.push(b':');
    let value = whole.get(colon + 1..).unwrap_or_default();
    let mut first = true;
    for word in value.split(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).filter(|word| !word.is_empty()) {
        if !first {
            out.push(b' ');
        }
        out.extend_from_slice(word);
        first = false;
    }
}

/// A signature in lines, and the end of its field.
fn folded(signature: &[u8]) -> String {
    let text = STANDARD.encode(signature);
    let mut lines = String::new();
    for (n, line) in text.as_bytes().chunks(LINE).enumerate() {
        lines.push_str(if n == 0 { "" } else { "\r\n\t " });
        lines.push_str(str::from_utf8(line).expect("base64 is ASCII"));
    }
    lines + "\r\n"
}

/// SHA-256 of a body in relaxed form (RFC 6376 §3.4.4), which comes in pieces. Lines end in CRLF: nothing else is taken.
pub struct BodyHash {
    context: digest::Context,
    /// White space that counts if something follows it in its line.
    gap: bool,
    /// Line ends that count if something follows them.
    ends: u64,
    any: bool,
}

impl Default for BodyHash {
    fn default() -> BodyHash {
        BodyHash { context: digest::Context::new(&digest::SHA256), gap: false, ends: 0, any: false }
    }
}

impl BodyHash {
    pub fn push(&mut self, piece: &[u8]) {
        let mut out = Vec::with_capacity(piece.len() + 16);
        for octet in piece {
            match octet {
                b'\r' => {}
                b'\n' => {
                    self.gap = false;
                    self.ends += 1;
                }
                b' ' | b'\t' => self.gap = true,
                other => {
                    for _ in 0..std::mem::take(&mut self.ends) {
                        out.extend_from_slice(b"\r\n");
                        self.flush(&mut out);
                    }
                    if std::mem::take(&mut self.gap) {
                        out.push(b' ');
                    }
                    out.push(*other);
                    self.any = true;
                }
            }
        }
        self.context.update(&out);
    }

    /// A body may have a thousand pages of empty lines before its last word.
    fn flush(&mut self, out: &mut Vec<u8>) {
        if out.len() > FLUSH_OCTETS {
            self.context.update(out);
            out.clear();
        }
    }

    #[must_use]
    pub fn finish(mut self) -> [u8; 32] {
        if self.any {
            self.context.update(b"\r\n");
        }
        self.context.finish().as_ref().try_into().expect("SHA-256 has 32 octets")
    }
}

/// The names of the fields of a set.
pub const FIELDS: [&str; 3] = ["ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"];
/// In the order of [`Set`].
const SET: [&str; 3] = ["arc-authentication-results", "arc-message-signature", "arc-seal"];
/// What makes a message what it is (RFC 6376 §5.4.1); neither Received nor what hosts add on the way.
const SIGNED: &[&str] = &[
    "from",
    "reply-to",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "in-reply-to",
    "references",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "list-id",
    "dkim-signature",
];
/// RFC 8617 §4.2.1.
const INSTANCES_MAX: usize = 50;
/// Of one name; more of one are an attack on the length of `h=`.
const SAME_NAME_MAX: usize = 10;
const NAMES_IN_LINE: usize = 5;
/// RFC 5322 §2.1.1: 78 at best.
const LINE: usize = 70;
const FLUSH_OCTETS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Header;

    fn hash(pieces: &[&str]) -> [u8; 32] {
        let mut hash = BodyHash::default();
        pieces.iter().for_each(|piece| hash.push(piece.as_bytes()));
        hash.finish()
    }

    fn sha(text: &str) -> [u8; 32] {
        digest::digest(&digest::SHA256, text.as_bytes()).as_ref().try_into().unwrap()
    }

    #[test]
    fn a_body_is_hashed_in_relaxed_form_however_it_arrives() {
        for (body, relaxed) in [
            ("", ""),
            ("\r\n", ""),
            ("\r\n \r\n\r\n", ""),
            ("a", "a\r\n"),
            ("a\r\n\r\n\r\n", "a\r\n"),
            (" a  b\t\r\n\t\r\n c ", " a b\r\n\r\n c\r\n"),
            ("\r\n\r\na\r\n", "\r\n\r\na\r\n"),
        ] {
            assert_eq!(hash(&[body]), sha(relaxed), "{body:?}");
            let letters: Vec<String> = body.chars().map(String::from).collect();
            assert_eq!(hash(&letters.iter().map(String::as_str).collect::<Vec<_>>()), sha(relaxed), "{body:?}");
        }
    }

    #[test]
    fn a_field_in_relaxed_form_is_one_line() {
        let mut out = Vec::new();
        push_relaxed(&mut out, b"SubJect :  a\r\n\t b  \r\n");
        assert_eq!(out, b"subject:a b");
    }

    fn sealed(head: &str, chain: Word) -> Option<String> {
        let domain = Domain::parse("d.example").unwrap();
        let header = Header::index(head.as_bytes());
        let sealing = Sealing {
            head: head.as_bytes(),
            fields: &header.fields,
            cuts: &[],
            message_id: "",
            body_hash: [0; 32],
            results: "Authentication-Results: mx.d.example;\r\n\tdkim=pass\r\n",
            chain,
            domain: &domain,
            selector: &domain,
            now: Timestamp(1_795_292_431_000),
        };
        set(&sealing, |_| Ok::<_, ()>(vec![0; 256])).unwrap()
    }

    fn chain(sets: std::ops::RangeInclusive<usize>, cv: &str) -> String {
        let one = |i| {
            format!(
                "ARC-Seal: i={i}; cv={cv}; b=x\r\nARC-Message-Signature: i={i}; b=x\r\n\
                 ARC-Authentication-Results: i={i}; x; none\r\n"
            )
        };
        sets.rev().map(one).collect()
    }

    #[test]
    fn a_set_has_the_next_instance_and_says_what_the_chain_is() {
        for (head, found, want) in [
            ("From: a@b\r\n".to_owned(), Word::None, Some("i=1; a=rsa-sha256; cv=none;")),
            (chain(1..=1, "none"), Word::Pass, Some("i=2; a=rsa-sha256; cv=pass;")),
            (chain(1..=2, "pass"), Word::Fail, Some("i=3; a=rsa-sha256; cv=fail;")),
            // A chain that is over.
            (chain(1..=2, "fail"), Word::Fail, None),
            // One that could not be checked, that was not, and ones that are none.
            (chain(1..=1, "none"), Word::TempError, None),
            (chain(1..=1, "none"), Word::None, None),
            (chain(2..=2, "none"), Word::Fail, None),
            (chain(1..=1, "none").replacen("ARC-Seal", "X-Seal", 1), Word::Fail, None),
            (chain(1..=1, "none") + &chain(1..=1, "none"), Word::Fail, None),
            (chain(1..=1, "none").replacen("i=1", "i=x", 1), Word::Fail, None),
            (chain(1..=49, "pass"), Word::Pass, Some("i=50;")),
            (chain(1..=50, "pass"), Word::Pass, None),
        ] {
            let got = sealed(&head, found);
            let begins = got.as_ref().and_then(|set| set.strip_prefix("ARC-Seal: "));
            assert_eq!(begins.is_some(), want.is_some(), "{head} {found:?}: {got:?}");
            assert!(begins.zip(want).is_none_or(|(set, want)| set.starts_with(want)), "{got:?}");
        }
    }

    #[test]
    fn a_set_has_three_fields_in_short_lines() {
        let head = format!("{}From: a@b\r\nDKIM-Signature: x\r\nSubject: y\r\n", chain(1..=1, "none"));
        let set = sealed(&head, Word::Pass).unwrap();
        let names: Vec<&str> =
            set.lines().filter(|l| !l.starts_with('\t')).map(|l| l.split(':').next().unwrap()).collect();
        assert_eq!(names, ["ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"]);
        assert!(set.lines().all(|line| line.len() < 100), "{set}");
        assert!(set.contains("\th=from:subject:dkim-signature;\r\n"), "{set}");
        assert!(set.ends_with("ARC-Authentication-Results: i=2; mx.d.example;\r\n\tdkim=pass\r\n"), "{set}");
    }
}
