//! An SPF record as values (RFC 7208 §4.5, §4.6, §5, §6, §12): read whole, before anything of it is evaluated.
//!
//! The grammar is the RFC's, letter by letter: a record with an error anywhere, also behind a mechanism that would
//! have matched, is an error as a whole. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::SpfResult;
use super::macros::{Macro, SyntaxError};

/// A record without syntax errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub directives: Vec<Directive>,
    pub redirect: Option<Macro>,
    pub exp: Option<Macro>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// What the qualifier makes of a match: pass, fail, softfail or neutral.
    pub result: SpfResult,
    pub mechanism: Mechanism,
}

/// RFC 7208 §5. A `domain` that is absent is the domain that the record belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    All,
    Include(Macro),
    A { domain: Option<Macro>, prefix: Prefix },
    Mx { domain: Option<Macro>, prefix: Prefix },
    Ptr { domain: Option<Macro> },
    Ip4 { network: Ipv4Addr, bits: u8 },
    Ip6 { network: Ipv6Addr, bits: u8 },
    Exists(Macro),
}

/// How many leading bits of an address count, for each family (`dual-cidr-length`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub v4: u8,
    pub v6: u8,
}

/// RFC 7208 §4.5: a record is SPF's where its version section is exactly `v=spf1`, ended by a space or the end.
#[must_use]
pub fn is_spf(record: &[u8]) -> bool {
    let version = record.get(..VERSION.len()).is_some_and(|start| start.eq_ignore_ascii_case(VERSION));
    version && matches!(record.get(VERSION.len()), None | Some(b' '))
}

impl Record {
    /// Reads a record for which [`is_spf`] holds.
    ///
    /// # Errors
    ///
    /// The whole record is a permerror (RFC 7208 §4.6).
    pub fn parse(record: &[u8]) -> Result<Record, SyntaxError> {
        // RFC 7208 §3.1: US-ASCII. The grammar below knows no control characters either.
        let text = std::str::from_utf8(record).ok().filter(|text| text.is_ascii()).ok_or(SyntaxError("not ASCII"))?;
        let mut parsed = Record { directives: Vec::new(), redirect: None, exp: None };
        let terms = text.get(VERSION.len()..).unwrap_or_default();
        for term in terms.split(' ').filter(|term| !term.is_empty()) {
            match modifier(term) {
                Some((name, value)) => parsed.modify(name, value)?,
                None => parsed.directives.push(directive(term)?),
            }
        }
        Ok(parsed)
    }

    fn modify(&mut self, name: &str, value: &str) -> Result<(), SyntaxError> {
        let place = if name.eq_ignore_ascii_case("redirect") {
            &mut self.redirect
        } else if name.eq_ignore_ascii_case("exp") {
            &mut self.exp
        } else {
            // RFC 7208 §6: unknown modifiers are ignored, yet their value is a macro-string.
            return Macro::parse_string(value).map(|_| ());
        };
        // RFC 7208 §6: these two stand at most once each.
        if place.is_some() {
            return Err(SyntaxError("a modifier that may stand once stands twice"));
        }
        *place = Some(Macro::parse_domain(value)?);
        Ok(())
    }
}

/// `name = ALPHA *( ALPHA / DIGIT / "-" / "_" / "." )`, then `=`.
fn modifier(term: &str) -> Option<(&str, &str)> {
    let (name, value) = term.split_once('=')?;
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    valid.then_some((name, value))
}

fn directive(term: &str) -> Result<Directive, SyntaxError> {
    let (result, term) = match term.as_bytes()[0] {
        b'+' => (SpfResult::Pass, &term[1..]),
        b'-' => (SpfResult::Fail, &term[1..]),
        b'~' => (SpfResult::SoftFail, &term[1..]),
        b'?' => (SpfResult::Neutral, &term[1..]),
        _ => (SpfResult::Pass, term),
    };
    let end = term.find([':', '/']).unwrap_or(term.len());
    let (name, rest) = term.split_at(end);
    let mechanism = match name.to_ascii_lowercase().as_str() {
        "all" if rest.is_empty() => Mechanism::All,
        "all" => return Err(SyntaxError("`all` takes no argument")),
        "include" => Mechanism::Include(argument(rest)?),
        "exists" => Mechanism::Exists(argument(rest)?),
        "ptr" if rest.is_empty() => Mechanism::Ptr { domain: None },
        "ptr" => Mechanism::Ptr { domain: Some(argument(rest)?) },
        "a" => {
            let (domain, prefix) = target(rest)?;
            Mechanism::A { domain, prefix }
        }
        "mx" => {
            let (domain, prefix) = target(rest)?;
            Mechanism::Mx { domain, prefix }
        }
        "ip4" => {
            let (network, bits) = network(rest, 32)?;
            Mechanism::Ip4 { network: network.parse().map_err(|_| SyntaxError("not an IPv4 network"))?, bits }
        }
        "ip6" => {
            let (network, bits) = network(rest, 128)?;
            Mechanism::Ip6 { network: network.parse().map_err(|_| SyntaxError("not an IPv6 network"))?, bits }
        }
        _ => return Err(SyntaxError("unknown mechanism")),
    };
    Ok(Directive { result, mechanism })
}

/// `":" domain-spec`, the whole rest.
fn argument(rest: &str) -> Result<Macro, SyntaxError> {
    Macro::parse_domain(rest.strip_prefix(':').ok_or(SyntaxError("a mechanism without its domain"))?)
}

/// `[ ":" domain-spec ] [ dual-cidr-length ]`. A domain may hold slashes itself, in macros even: the prefix is what
/// the end of the text looks like.
fn target(rest: &str) -> Result<(Option<Macro>, Prefix), SyntaxError> {
    let (rest, v6) = match rest.rfind("//") {
        Some(at) if is_digits(&rest[at + 2..]) => (&rest[..at], prefix_bits(&rest[at + 2..], 128)?),
        Some(at) if rest.len() == at + 2 => return Err(SyntaxError("a prefix length is missing")),
        _ => (rest, 128),
    };
    let (rest, v4) = match rest.rfind('/') {
        Some(at) if is_digits(&rest[at + 1..]) => (&rest[..at], prefix_bits(&rest[at + 1..], 32)?),
        Some(at) if rest.len() == at + 1 => return Err(SyntaxError("a prefix length is missing")),
        _ => (rest, 32),
    };
    let domain = if rest.is_empty() { None } else { Some(argument(rest)?) };
    Ok((domain, Prefix { v4, v6 }))
}

/// `":" network [ "/" bits ]`.
fn network(rest: &str, width: u8) -> Result<(&str, u8), SyntaxError> {
    let rest = rest.strip_prefix(':').ok_or(SyntaxError("a network is missing"))?;
    match rest.split_once('/') {
        Some((network, bits)) => Ok((network, prefix_bits(bits, width)?)),
        None => Ok((rest, width)),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `"0" / %x31-39 0*1DIGIT`: no leading zero.
fn prefix_bits(text: &str, width: u8) -> Result<u8, SyntaxError> {
    let plain = is_digits(text) && (text == "0" || !text.starts_with('0'));
    let bits = text.parse().ok().filter(|bits| plain && *bits <= width);
    bits.ok_or(SyntaxError("not a prefix length"))
}

const VERSION: &[u8] = b"v=spf1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_4_5_which_records_are_spf() {
        for (record, want) in [
            ("v=spf1", true),
            ("v=spf1 ", true),
            ("v=spf1 -all", true),
            ("V=SPF1 -all", true),
            ("v=spf10", false),
            ("v=spf1-all", false),
            ("v=spf1\t-all", false),
            (" v=spf1 -all", false),
            ("v=spf2.0/mfrom -all", false),
            ("", false),
        ] {
            assert_eq!(is_spf(record.as_bytes()), want, "{record:?}");
        }
    }

    #[test]
    fn what_the_grammar_of_section_12_takes() {
        for terms in [
            "",
            "+all -all ~all ?all ALL All",
            "a a/0 a/32 a//0 a//128 a/24//64 a:example.org a:example.org/24//64 A:example.org",
            "mx mx/24 mx//64 mx:example.org//64",
            "a:a/b.example.org a:a/b.example.org/24 a:%{d1r/}.example.org",
            "ptr ptr:example.org",
            "ip4:192.0.2.0/24 ip4:192.0.2.1 ip4:0.0.0.0/0 IP4:192.0.2.1/32",
            "ip6:::1 ip6:2001:db8::/32 ip6:::/0 ip6:2001:db8::192.0.2.1/128",
            "include:example.org include:%{d} include:_spf.%{d2} include:example.org.",
            "exists:%{ir}.sbl.example.org exists:%{l1r-}.%{d} exists:%{i}._spf.%{d}",
            "redirect=example.org",
            "exp=explain.%{d} -all",
            "x-unknown=anything%%%_%- op=%{S} moo.cow-far_out=man:dog/cat ra=",
            "a:xn--exmple-cua.example a:a.b-c a:foo.2com",
            "-all   ip4:192.0.2.1  ",
        ] {
            let record = format!("v=spf1 {terms}");
            Record::parse(record.as_bytes()).unwrap_or_else(|error| panic!("{terms}: {error}"));
        }
    }

    #[test]
    fn what_it_does_not_take() {
        for terms in [
            "all:example.org",
            "all/8",
            "-all.",
            "moo",
            "moo:example.org",
            "a/33",
            "a/08",
            "a/",
            "a//",
            "a//129",
            "a/24/64",
            "a/24//",
            "a/-1",
            "a:",
            "a:example",
            "a:example.",
            "a:.",
            "a:example.123",
            "a:example.-org",
            "a:example.org-",
            "a:example.o_rg",
            "a:example.org:8080",
            "a:%{x}.example.org",
            "a:%{d",
            "a:%",
            "a:%a.example.org",
            "a:%{d0}.example.org",
            "a:%{dr1}.example.org",
            "a:%{d!}.example.org",
            "a:%{c}.example.org",
            "a:%{r}.example.org",
            "a:%{t}.example.org",
            "mx:/24",
            "mx/33",
            "ptr:",
            "ptr/24",
            "ptr:example.org/24",
            "ip4",
            "ip4:",
            "ip4:192.0.2",
            "ip4:192.0.2.256",
            "ip4:192.0.2.01",
            "ip4:192.0.2.0/33",
            "ip4:192.0.2.0/024",
            "ip4:192.0.2.0//24",
            "ip4:192.0.2.0/",
            "ip4:2001:db8::1",
            "ip4:example.org",
            "ip6",
            "ip6:",
            "ip6:192.0.2.1",
            "ip6:2001:db8::/129",
            "ip6:2001:db8:://32",
            "ip6:2001:db8:::1",
            "ip6:fe80::1%eth0",
            "include",
            "include:",
            "include:example",
            "include:example.org/24",
            "exists",
            "exists:",
            "redirect=",
            "redirect=example.org redirect=example.org",
            "exp=example.org exp=example.org",
            "exp=",
            "redirect:example.org",
            "x-unknown=%x",
            "x-unknown=%{y}",
            "1x=a",
            "=a",
            "-",
            "+",
            "--all",
            "+ all",
            "a\tb",
            "-all \u{e9}",
            "a:ex\u{7f}ample.org",
        ] {
            let record = format!("v=spf1 {terms}");
            assert!(Record::parse(record.as_bytes()).is_err(), "{terms}");
        }
    }

    #[test]
    fn an_error_behind_the_match_is_still_an_error() {
        assert!(Record::parse(b"v=spf1 +all moo").is_err());
        assert!(Record::parse(b"v=spf1 -all \xff").is_err());
    }
}
