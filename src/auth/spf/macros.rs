//! SPF's macros (RFC 7208 §7): read into parts once, then expanded for a message. Pure.
//!
//! Everything that a macro can name comes in through [`Values`]. The one value that costs look-ups, the validated name
//! of `%{p}`, is asked for by [`Macro::wants_name`] before.

use std::fmt::Write;
use std::net::IpAddr;

/// Why a record or an explanation cannot be read. Its words may stand in a log line or in Authentication-Results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SyntaxError(pub &'static str);

/// A macro-string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macro(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Expand),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Expand {
    letter: Letter,
    /// The letter is upper case: what it stands for is URL-escaped (§7.3).
    escaped: bool,
    /// How many parts at the right stay; none: all.
    keep: Option<usize>,
    reversed: bool,
    /// Never empty.
    delimiters: String,
}

/// RFC 7208 §7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letter {
    Sender,
    LocalPart,
    SenderDomain,
    Domain,
    Ip,
    Name,
    Family,
    Helo,
    ReadableIp,
    Receiver,
    Now,
}

/// What macros stand for.
pub struct Values<'a> {
    pub local_part: &'a str,
    pub sender_domain: &'a str,
    /// `%{d}`: the domain whose record is being evaluated.
    pub domain: &'a str,
    pub ip: IpAddr,
    /// The validated name of `ip`, if it was asked for.
    pub name: Option<&'a str>,
    pub helo: &'a str,
    pub receiver: &'a str,
    /// Seconds since 1970.
    pub now: i64,
}

impl Macro {
    /// Reads a domain-spec: a macro-string that ends in a top label or in a macro.
    ///
    /// # Errors
    ///
    /// It is none; `c`, `r` and `t` stand in explanations only.
    pub fn parse_domain(text: &str) -> Result<Macro, SyntaxError> {
        let parsed = parse(text, false)?;
        let ends = match parsed.0.last() {
            None => false,
            Some(Part::Value(_)) => true,
            // `%%` and its like are macro-expand in the grammar, so `a:example%%` is well formed, if useless.
            Some(Part::Text(_)) if text.ends_with("%%") || text.ends_with("%_") || text.ends_with("%-") => true,
            Some(Part::Text(_)) => ends_in_top_label(text),
        };
        if ends { Ok(parsed) } else { Err(SyntaxError("a domain without a top label")) }
    }

    /// Reads the value of an unknown modifier.
    ///
    /// # Errors
    ///
    /// It is no macro-string.
    pub fn parse_string(text: &str) -> Result<Macro, SyntaxError> {
        parse(text, false)
    }

    /// Reads an explanation (§6.2): spaces and all letters are allowed.
    ///
    /// # Errors
    ///
    /// It is no explain-string.
    pub fn parse_explanation(text: &str) -> Result<Macro, SyntaxError> {
        parse(text, true)
    }

    /// `%{p}` occurs.
    #[must_use]
    pub fn wants_name(&self) -> bool {
        self.0.iter().any(|part| match part {
            Part::Value(expand) => expand.letter == Letter::Name,
            Part::Text(_) => false,
        })
    }

    #[must_use]
    pub fn expand(&self, values: &Values<'_>) -> String {
        let mut expanded = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => expanded.push_str(text),
                Part::Value(expand) => expand.append(values, &mut expanded),
            }
        }
        expanded
    }

    /// The expansion as a name to look up. RFC 7208 §7.3: over 253 octets, labels go from the left.
    #[must_use]
    pub fn expand_domain(&self, values: &Values<'_>) -> String {
        let expanded = self.expand(values);
        let mut name = expanded.strip_suffix('.').unwrap_or(&expanded);
        while name.len() > NAME_OCTETS_MAX {
            name = name.split_once('.').map_or("", |(_, rest)| rest);
        }
        name.to_owned()
    }
}

impl Expand {
    fn append(&self, values: &Values<'_>, expanded: &mut String) {
        let value = self.letter.value(values);
        let mut parts: Vec<&str> = value.split(|c| self.delimiters.contains(c)).collect();
        if self.reversed {
            parts.reverse();
        }
        let dropped = self.keep.map_or(0, |keep| parts.len().saturating_sub(keep));
        let text = parts[dropped..].join(".");
        if !self.escaped {
            expanded.push_str(&text);
            return;
        }
        for octet in text.bytes() {
            match octet {
                // RFC 3986 §2.3, unreserved.
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => expanded.push(octet.into()),
                _ => write!(expanded, "%{octet:02X}").expect("writing to a String does not fail"),
            }
        }
    }
}

impl Letter {
    fn parse(letter: char, in_explanation: bool) -> Result<Letter, SyntaxError> {
        match letter.to_ascii_lowercase() {
            's' => Ok(Letter::Sender),
            'l' => Ok(Letter::LocalPart),
            'o' => Ok(Letter::SenderDomain),
            'd' => Ok(Letter::Domain),
            'i' => Ok(Letter::Ip),
            'p' => Ok(Letter::Name),
            'v' => Ok(Letter::Family),
            'h' => Ok(Letter::Helo),
            'c' if in_explanation => Ok(Letter::ReadableIp),
            'r' if in_explanation => Ok(Letter::Receiver),
            't' if in_explanation => Ok(Letter::Now),
            'c' | 'r' | 't' => Err(SyntaxError("a macro for explanations only")),
            _ => Err(SyntaxError("unknown macro letter")),
        }
    }

    fn value(self, values: &Values<'_>) -> String {
        match self {
            Letter::Sender => format!("{}@{}", values.local_part, values.sender_domain),
            Letter::LocalPart => values.local_part.to_owned(),
            Letter::SenderDomain => values.sender_domain.to_owned(),
            Letter::Domain => values.domain.to_owned(),
            Letter::Ip => dotted(values.ip),
            // RFC 7208 §7.3: "unknown" where no name could be validated.
            Letter::Name => values.name.unwrap_or("unknown").to_owned(),
            Letter::Family => if values.ip.is_ipv4() { "in-addr" } else { "ip6" }.to_owned(),
            Letter::Helo => values.helo.to_owned(),
            Letter::ReadableIp => values.ip.to_string(),
            Letter::Receiver => values.receiver.to_owned(),
            Letter::Now => values.now.to_string(),
        }
    }
}

/// RFC 7208 §7.3: IPv6 as nibbles with dots.
fn dotted(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 0xf]);
            nibbles.map(|nibble| format!("{nibble:x}")).collect::<Vec<_>>().join(".")
        }
    }
}

fn parse(text: &str, in_explanation: bool) -> Result<Macro, SyntaxError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '%' => match rest.chars().next() {
                Some('%') => literal.push('%'),
                Some('_') => literal.push(' '),
                Some('-') => literal.push_str("%20"),
                Some('{') => {
                    let end = rest.find('}').ok_or(SyntaxError("a macro without its end"))?;
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Value(expand(&rest[1..end], in_explanation)?));
                    rest = &rest[end..];
                }
                _ => return Err(SyntaxError("a percent sign that begins no macro")),
            },
            // RFC 7208 §12.1, macro-literal; an explanation has spaces too.
            '!'..='~' => literal.push(c),
            ' ' if in_explanation => literal.push(c),
            _ => return Err(SyntaxError("a character that does not belong there")),
        }
        if c == '%' {
            // The character behind the percent sign, or the closing brace.
            rest = &rest[1..];
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    Ok(Macro(parts))
}

/// What stands between the braces: `macro-letter transformers *delimiter`.
fn expand(text: &str, in_explanation: bool) -> Result<Expand, SyntaxError> {
    let letter = text.chars().next().ok_or(SyntaxError("an empty macro"))?;
    let rest = &text[letter.len_utf8()..];
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let keep = match &rest[..digits] {
        "" => None,
        // More digits than a usize has keep everything.
        number => Some(number.parse().unwrap_or(usize::MAX)),
    };
    // RFC 7208 §7.1: the number must not be zero.
    if keep == Some(0) {
        return Err(SyntaxError("a macro that keeps no part"));
    }
    let rest = &rest[digits..];
    let reversed = rest.starts_with(['r', 'R']);
    let delimiters = &rest[usize::from(reversed)..];
    if !delimiters.chars().all(|c| ".-+,/_=".contains(c)) {
        return Err(SyntaxError("a macro with an unknown delimiter"));
    }
    Ok(Expand {
        letter: Letter::parse(letter, in_explanation)?,
        escaped: letter.is_ascii_uppercase(),
        keep,
        reversed,
        delimiters: if delimiters.is_empty() { "." } else { delimiters }.to_owned(),
    })
}

/// `domain-end = "." toplabel [ "." ]`: letters, digits and inner hyphens, and not digits alone.
fn ends_in_top_label(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let Some((_, label)) = text.rsplit_once('.') else { return false };
    let shaped = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    shaped
        && !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && !label.bytes().all(|b| b.is_ascii_digit())
}

const NAME_OCTETS_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn values(ip: &str) -> Values<'static> {
        Values {
            local_part: "strong-bad",
            sender_domain: "email.example.com",
            domain: "email.example.com",
            ip: ip.parse().unwrap(),
            name: Some("mx.example.org"),
            helo: "mx.example.com",
            receiver: "mx.solarmora.com",
            now: 1_795_292_431,
        }
    }

    #[test]
    fn section_7_4_the_examples_of_the_rfc() {
        for (text, want) in [
            ("%{s}", "strong-bad@email.example.com"),
            ("%{o}", "email.example.com"),
            ("%{d}", "email.example.com"),
            ("%{d4}", "email.example.com"),
            ("%{d3}", "email.example.com"),
            ("%{d2}", "example.com"),
            ("%{d1}", "com"),
            ("%{dr}", "com.example.email"),
            ("%{d2r}", "example.email"),
            ("%{l}", "strong-bad"),
            ("%{l-}", "strong.bad"),
            ("%{lr}", "strong-bad"),
            ("%{lr-}", "bad.strong"),
            ("%{l1r-}", "strong"),
            ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
            ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
            ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
            ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", "3.2.0.192.in-addr.strong.lp._spf.example.com"),
            ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
        ] {
            assert_eq!(Macro::parse_domain(text).unwrap().expand_domain(&values("192.0.2.3")), want, "{text}");
        }
        assert_eq!(
            Macro::parse_domain("%{ir}.%{v}._spf.%{d2}").unwrap().expand(&values("2001:db8::cb01")),
            "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com"
        );
    }

    #[test]
    fn section_7_2_and_7_3_the_rest() {
        for (text, want) in [
            ("%{S}", "strong-bad%40email.example.com"),
            ("%{L-}", "strong.bad"),
            ("%{h}", "mx.example.com"),
            ("%{p}", "mx.example.org"),
            ("%{c} %{r} %{t}", "192.0.2.3 mx.solarmora.com 1795292431"),
            ("100%%%_of%-it", "100% of%20it"),
            ("%{d128}", "email.example.com"),
            ("%{d99999999999999999999999}", "email.example.com"),
            ("%{dR}", "com.example.email"),
            ("%{o.-}", "email.example.com"),
            ("%{s2r.-@}", ""),
        ] {
            let parsed = Macro::parse_explanation(text);
            match want {
                "" => assert!(parsed.is_err(), "{text}: @ is no delimiter"),
                want => assert_eq!(parsed.unwrap().expand(&values("192.0.2.3")), want, "{text}"),
            }
        }
        let mut unknown = values("192.0.2.3");
        unknown.name = None;
        let name = Macro::parse_domain("%{p}.example.org").unwrap();
        assert!(name.wants_name());
        assert_eq!(name.expand(&unknown), "unknown.example.org");
        assert_eq!(Macro::parse_explanation("%{c}").unwrap().expand(&values("2001:db8::1")), "2001:db8::1");
    }

    #[test]
    fn section_7_3_a_name_over_253_octets_loses_labels_from_the_left() {
        let mut long = values("192.0.2.3");
        let domain = format!("{}example.com", "label-of-sixteen.".repeat(16));
        long.domain = &domain;
        let name = Macro::parse_domain("%{d}").unwrap().expand_domain(&long);
        assert_eq!(name.len(), 14 * 17 + 11);
        assert!(domain.ends_with(&name));
        long.domain = "x";
        let unbroken = "y".repeat(300);
        long.local_part = &unbroken;
        assert_eq!(Macro::parse_domain("%{l}").unwrap().expand_domain(&long), "");
    }
}
