//! The encodings of RFC 3461 and RFC 6533, in which text of any kind stands in a parameter of MAIL or RCPT.

use std::fmt::Write as _;

/// What an xtext (RFC 3461 §4) stands for. `None` where it is none, where it is empty, or where it hides a control
/// character: what is decoded here is written into header fields one day.
#[must_use]
pub fn decode(text: &[u8]) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&octet) = rest.next() {
        let octet = match octet {
            b'+' => hex(*rest.next()?)? << 4 | hex(*rest.next()?)?,
            b'!'..=b'~' if octet != b'=' => octet,
            _ => return None,
        };
        if !matches!(octet, b' '..=b'~') {
            return None;
        }
        plain.push(char::from(octet));
    }
    (!plain.is_empty()).then_some(plain)
}

/// RFC 3461 §4, hexchar: capital letters only.
fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Printable ASCII as xtext.
#[must_use]
pub fn encode(plain: &str) -> String {
    let mut text = String::with_capacity(plain.len());
    for octet in plain.bytes() {
        match octet {
            b'!'..=b'~' if octet != b'+' && octet != b'=' => text.push(char::from(octet)),
            _ => write!(text, "+{octet:02X}").expect("writing to memory does not fail"),
        }
    }
    text
}

/// An address as a notification names it behind `utf-8;` where only ASCII can stand (RFC 6533 §3, utf-8-addr-xtext).
#[must_use]
pub fn utf8_address(address: &str) -> String {
    let mut text = String::with_capacity(address.len());
    for c in address.chars() {
        match c {
            '!'..='~' if !matches!(c, '+' | '=' | '\\') => text.push(c),
            _ => write!(text, "\\x{{{:X}}}", u32::from(c)).expect("writing to memory does not fail"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn xtext_that_is_one() {
        for (text, plain) in [("abc", "abc"), ("a+2Bb+3Dc", "a+b=c"), ("+20", " "), ("~!", "~!"), ("a;b@c", "a;b@c")] {
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(plain));
        }
    }

    #[test]
    fn xtext_that_is_none_or_hides_something() {
        for text in ["", "a=b", "+", "+2", "+2b", "+GG", "a b", "a+0Ab", "+0D+0A", "+00", "+7F", "+C3+A9", "é", "\t"] {
            assert_eq!(decode(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_utf8_address_in_ascii() {
        assert_eq!(utf8_address("réseau+x@b.fr"), "r\\x{E9}seau\\x{2B}x@b.fr");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(plain in "[ -~]{1,100}") {
            prop_assert_eq!(decode(encode(&plain).as_bytes()), Some(plain));
        }
    }
}
