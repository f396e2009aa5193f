//! Domains and mailboxes as SMTP writes them (RFC 5321 §4.1.2, RFC 6531 §3.3), parsed once.
//!
//! A [`Mailbox`] keeps the very text that the peer sent, because that is what is relayed and shown, and beside
//! it the normalised domain (lower-case A-labels) that alone is compared and routed on. The domain is what
//! stands after the last unquoted `@`. Nothing that passes here holds a control character, a space outside
//! quotes or an angle bracket outside quotes, so that it can stand in a command.
//!
//! Left out on purpose: comments, folding white space and source routes, which RFC 5321 does not let us make.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A domain name in lower-case A-labels, or an address literal in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Box<str>);

/// `local-part@domain`.
#[derive(Clone, Debug)]
pub struct Mailbox {
    text: Box<str>,
    // Invariant: text[at] is the '@' that splits local part and domain.
    at: usize,
    domain: Domain,
}

/// The argument of MAIL: a mailbox, or the null sender of a notification (RFC 5321 §4.5.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReversePath {
    Null,
    Mailbox(Mailbox),
}

/// Why a text is no domain or mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("an address has the form local-part@domain")]
    NoAt,
    #[error("the local part is empty, over 64 octets or has characters that need quotes")]
    LocalPart,
    #[error("the domain is not a valid name")]
    Domain,
    #[error("the address literal is not an IPv4 address or `IPv6:` and an IPv6 address")]
    Literal,
    #[error("the address is over 254 octets")]
    TooLong,
}

impl Domain {
    /// Takes a name in A- or U-labels, or an address literal in brackets.
    pub fn parse(text: &str) -> Result<Domain, AddressError> {
        if text.starts_with('[') {
            return parse_literal(text);
        }
        if text.is_empty() || text.len() > DOMAIN_OCTETS_MAX || text.starts_with('.') || text.ends_with('.') {
            return Err(AddressError::Domain);
        }
        // Plain ASCII without an A-label needs no IDNA; it is nearly all that we see.
        let ascii = if text.is_ascii() && !text.to_ascii_lowercase().contains("xn--") {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| AddressError::Domain)?
        };
        let valid = ascii.len() <= DOMAIN_OCTETS_MAX && ascii.split('.').all(is_label);
        if valid { Ok(Domain(ascii.into())) } else { Err(AddressError::Domain) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.0.starts_with('[')
    }
}

fn parse_literal(text: &str) -> Result<Domain, AddressError> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or(AddressError::Literal)?;
    // RFC 5321 §4.1.3: the tag is compared without case.
    let valid = match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse::<Ipv6Addr>().is_ok(),
        _ => inner.parse::<Ipv4Addr>().is_ok(),
    };
    if valid { Ok(Domain(text.to_ascii_lowercase().into())) } else { Err(AddressError::Literal) }
}

fn is_label(label: &str) -> bool {
    // The underscore is not a host name's, but real senders have it and it is unambiguous.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !label.is_empty()
        && label.len() <= LABEL_OCTETS_MAX
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Mailbox {
    /// Takes an address without angle brackets and keeps it letter by letter.
    pub fn parse(text: &str) -> Result<Mailbox, AddressError> {
        if text.len() > MAILBOX_OCTETS_MAX {
            return Err(AddressError::TooLong);
        }
        let at = if text.starts_with('"') { end_of_quoted(text)? } else { text.find('@').ok_or(AddressError::NoAt)? };
        let (local, rest) = text.split_at(at);
        let domain = rest.strip_prefix('@').ok_or(AddressError::NoAt)?;
        if local.is_empty() || local.len() > LOCAL_OCTETS_MAX || !(local.starts_with('"') || is_dot_string(local)) {
            return Err(AddressError::LocalPart);
        }
        Ok(Mailbox { text: text.into(), at, domain: Domain::parse(domain)? })
    }

    /// Makes an address of a local part without quotes and a domain. Quotes are put where they are needed.
    pub fn from_parts(local: &str, domain: &Domain) -> Result<Mailbox, AddressError> {
        Mailbox::parse(&format!("{}@{domain}", quote(local)))
    }

    /// The address as the peer wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the local part means: without quotes and escapes (RFC 5321 §4.1.2: they are no part of it).
    #[must_use]
    pub fn plain_local(&self) -> String {
        unescape(self.local()).unwrap_or_else(|| self.local().to_owned())
    }

    /// The local part as the peer wrote it, with its quotes.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.text[..self.at]
    }

    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// What addresses are compared by: the local part without needless quotes and backslashes, the normalised domain,
    /// lower case. RFC 5321 §2.4 leaves the case of a local part to its host: for our aliases that is us, and we ignore it.
    #[must_use]
    pub fn key(&self) -> String {
        let mut key = spelled_once(self.local()).to_lowercase();
        key.push('@');
        key.push_str(self.domain.as_str());
        key
    }

    /// No SMTPUTF8 is needed to name it.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

impl PartialEq for Mailbox {
    fn eq(&self, other: &Mailbox) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Mailbox {}

impl std::hash::Hash for Mailbox {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The position of the `@` behind a quoted local part (RFC 5321 §4.1.2, Quoted-string).
fn end_of_quoted(text: &str) -> Result<usize, AddressError> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if at == 1 => return Err(AddressError::LocalPart),
            '"' => return Ok(at + 1),
            '\\' => match chars.next() {
                Some((_, ' '..='~')) => {}
                _ => return Err(AddressError::LocalPart),
            },
            c if c.is_control() || is_separator(c) => return Err(AddressError::LocalPart),
            _ => {}
        }
    }
    Err(AddressError::LocalPart)
}

fn is_dot_string(local: &str) -> bool {
    local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom_char))
}

/// RFC 5322 §3.2.3 atext, with RFC 6531's UTF8-non-ascii less what is invisible or breaks lines.
fn is_atom_char(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' => true,
        '!' | '#' | '$' | '%' | '&' | '\'' | '*' | '+' | '-' | '/' | '=' | '?' | '^' | '_' | '`' | '{' | '|' | '}'
        | '~' => true,
        c => !c.is_ascii() && !c.is_control() && !is_separator(c),
    }
}

fn is_separator(c: char) -> bool {
    !c.is_ascii() && (c.is_whitespace() || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// The local part in its one spelling: quotes and backslashes only where they are needed (RFC 5321 §4.1.2).
fn spelled_once(local: &str) -> String {
    unescape(local).map_or_else(|| local.to_owned(), |plain| quote(&plain))
}

fn quote(plain: &str) -> String {
    if is_dot_string(plain) {
        return plain.to_owned();
    }
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The content of a quoted local part, without the backslashes; `None` for one without quotes.
fn unescape(local: &str) -> Option<String> {
    let inner = local.strip_prefix('"').and_then(|t| t.strip_suffix('"'))?;
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(plain)
}

impl ReversePath {
    /// Takes what stood between the angle brackets; empty is the null sender.
    pub fn parse(text: &str) -> Result<ReversePath, AddressError> {
        if text.is_empty() { Ok(ReversePath::Null) } else { Mailbox::parse(text).map(ReversePath::Mailbox) }
    }

    #[must_use]
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// The text between the angle brackets of a MAIL command; empty for the null sender.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.mailbox().map_or("", Mailbox::as_str)
    }
}

/// `<>` for the null sender, else the address without brackets, as rules and logs write it.
impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mailbox().map_or("<>", Mailbox::as_str))
    }
}

// RFC 5321 §4.5.3.1.1 to .3; a path of 256 octets includes its brackets.
const LOCAL_OCTETS_MAX: usize = 64;
const DOMAIN_OCTETS_MAX: usize = 255;
const MAILBOX_OCTETS_MAX: usize = 254;
// RFC 1035 §2.3.4.
const LABEL_OCTETS_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_addresses() {
        for text in [
            "aide@solarmora.com",
            "a.b+tag@sub.example",
            "\"a@b\"@example.org",
            "\"a b\"@example.org",
            "\"a\\\"b\"@example.org",
            "u@[1.2.3.4]",
            "u@[IPv6:2001:db8::1]",
            "u%x@d.example",
            "x!u@d",
            "-oQ/tmp/x@d",
            "|id@d",
            "${run{/bin/id}}@d",
            "réseau@exämple.fr",
            "u@under_score.example",
        ] {
            let mailbox = Mailbox::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(mailbox.as_str(), text);
        }
    }

    #[test]
    fn addresses_that_are_not() {
        for text in [
            "",
            "@",
            "a",
            "a@",
            "@b",
            ".u@d",
            "u.@d",
            "u..v@d",
            "u@d.",
            "u@.d",
            "u@d..e",
            "u@-d",
            "u@[1.2.3]",
            "u@[::1]",
            "u@[IPv6:1]",
            "u@[::1",
            "u@[tag:x]",
            "\"\"@d",
            "\"a@d",
            "a b@d",
            "a\t@d",
            "a\r\nb@d",
            "a\0@d",
            "a@b@c",
            "u@d(x)e",
            "u@d>",
            "<u@d>",
            "u@d ",
            " u@d",
            ";id;@d",
            "\"a\nb\"@d",
            "\"a\\\u{7}\"@d",
            "u@xn--example-.org",
            "u\u{2028}@d",
            "\"x\"y@d",
            "u@d\u{7f}",
        ] {
            assert!(Mailbox::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_address_is_taken_apart_and_put_together_again() {
        for (text, plain) in [
            ("aide@solarmora.com", "aide"),
            ("\"a b\"@example.org", "a b"),
            ("\"a\\\"\\\\b\"@example.org", "a\"\\b"),
            ("\"a..b\"@example.org", "a..b"),
        ] {
            let mailbox = Mailbox::parse(text).unwrap();
            assert_eq!(mailbox.plain_local(), plain);
            assert_eq!(Mailbox::from_parts(plain, mailbox.domain()).unwrap().as_str(), text);
        }
        let domain = Domain::parse("example.org").unwrap();
        for wrong in ["", "a\r\nb", "a\0", &"x".repeat(65), &" ".repeat(63)] {
            assert!(Mailbox::from_parts(wrong, &domain).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lengths_at_the_limit_and_one_past_it() {
        let label = "d".repeat(63);
        let parse = |local: usize, domain: &str| Mailbox::parse(&format!("{}@{domain}", "l".repeat(local)));
        assert!(parse(64, "d").is_ok());
        assert!(parse(65, "d").is_err());
        let long = format!("{label}.{label}.{label}.{}", "d".repeat(53));
        assert!(parse(8, &long).is_ok(), "254 octets");
        assert_eq!(parse(9, &long), Err(AddressError::TooLong));
        assert!(Domain::parse(&"d".repeat(64)).is_err());
    }

    #[test]
    fn the_domain_is_what_follows_the_last_unquoted_at() {
        let mailbox = Mailbox::parse("\"a@evil.example\"@Good.Example").unwrap();
        assert_eq!(mailbox.domain().as_str(), "good.example");
        assert_eq!(mailbox.local(), "\"a@evil.example\"");
    }

    #[test]
    fn equality_ignores_case_needless_quotes_and_the_spelling_of_the_domain() {
        let same = |a: &str, b: &str| Mailbox::parse(a).unwrap() == Mailbox::parse(b).unwrap();
        assert!(same("Aide@Solarmora.COM", "aide@solarmora.com"));
        assert!(same("\"aide\"@solarmora.com", "aide@solarmora.com"));
        assert!(same("\"a\\ \\b\"@d", "\"a b\"@d"));
        assert!(same("u@exämple.fr", "u@xn--exmple-cua.fr"));
        assert!(!same("\"a b\"@d", "ab@d"));
    }

    #[test]
    fn the_null_sender_is_its_own_variant() {
        assert_eq!(ReversePath::parse("").unwrap(), ReversePath::Null);
        assert_eq!(ReversePath::Null.to_string(), "<>");
        assert_eq!(ReversePath::Null.as_str(), "");
    }
}
