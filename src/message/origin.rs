//! Where a message entered our networks, where hosts of ours (`[upstream]`) took it from outside and handed it on to us.
//!
//! Each host writes a Received field on top of those it found (RFC 5321 §4.4), so the topmost is by the host
//! that we speak with, and as long as the client it names is one of ours the next one can be believed as well. The
//! first client outside is the one to check. What stands below was brought by it and is never looked at, so it may be
//! forged as it likes. One thing in a field that we believe is still the client's word, its HELO name, and it may look like
//! an address: only the address that the host saw, in the comment behind the name, counts, and where there are two readings
//! there is none.
//!
//! Understood: the fields of Postfix, Exim, Sendmail, qmail and Exchange. A host that writes no Received field, or none with the
//! client's address, must not be listed in `[upstream]`.

use std::net::IpAddr;

use crate::network::Network;

use super::Header;

/// Who brought a message to our networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This client: its address, and the name that it gave where that can be told.
    Outside { ip: IpAddr, helo: Option<String> },
    /// Nobody from outside: it began on a host of ours.
    Inside,
    /// A host of ours wrote something that cannot be read. Nothing is known about the client.
    Unreadable,
}

impl Origin {
    /// Walks down the Received fields of `header`, which is the index of `head`. Clients on loopback are `inside` as well:
    /// so a filter gives a message back to its host.
    #[must_use]
    pub fn trace(head: &[u8], header: &Header, inside: &[Network]) -> Origin {
        let received = header.fields.iter().filter(|field| field.name == "received");
        for field in received.take(FIELDS_MAX) {
            let place = usize::try_from(field.range.start).ok().zip(usize::try_from(field.range.end).ok());
            let Some(bytes) = place.and_then(|(start, end)| head.get(start..end)) else { return Origin::Unreadable };
            match Hop::read(bytes) {
                // Submitted on the host itself, or handed on within it.
                Some(Hop::Local) => {}
                Some(Hop::From { ip, .. }) if ip.is_loopback() || inside.iter().any(|net| net.contains(ip)) => {}
                Some(Hop::From { ip, helo }) => return Origin::Outside { ip, helo },
                None => return Origin::Unreadable,
            }
        }
        Origin::Inside
    }
}

/// What one Received field says about the client.
#[derive(Debug, PartialEq, Eq)]
enum Hop {
    /// It has no `from`.
    Local,
    From {
        ip: IpAddr,
        helo: Option<String>,
    },
}

impl Hop {
    /// `None` where `field`, name and line ends included, has no reading or two.
    fn read(field: &[u8]) -> Option<Hop> {
        // Half a field may read otherwise than all of it.
        if field.len() > FIELD_OCTETS_MAX {
            return None;
        }
        // An address, a name and punctuation are ASCII; what is not is no concern of ours.
        let text = String::from_utf8_lossy(field);
        let (_, value) = text.split_once(':')?;
        let value = value.trim_start();
        let Some(rest) = strip_word(value, "from") else { return Some(Hop::Local) };
        let Clause { name, comments } = Clause::read(rest)?;
        let mut addresses: Vec<IpAddr> = comments.iter().filter_map(|comment| address_in(comment)).collect();
        let said = comments.iter().find_map(|comment| helo_in(comment));
        // Exim writes the address alone where it has no name for it: `from [192.0.2.7] (helo=client.example)`. What
        // looks like another one in the comment is part of the client's word.
        if said.is_some() {
            addresses.extend(bracketed(name));
        }
        addresses.dedup();
        let [ip] = addresses[..] else { return None };
        let helo = said.unwrap_or(name);
        let plain = (1..=HELO_OCTETS_MAX).contains(&helo.len()) && helo.bytes().all(|b| b.is_ascii_graphic());
        Some(Hop::From { ip: ip.to_canonical(), helo: plain.then(|| helo.to_owned()) })
    }
}

/// What stands between `from` and `by`: one word, and comments.
struct Clause<'a> {
    name: &'a str,
    /// Without their parentheses; what is nested is left out.
    comments: Vec<String>,
}

impl<'a> Clause<'a> {
    fn read(text: &'a str) -> Option<Clause<'a>> {
        let mut rest = text.trim_start();
        let end = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, '(' | ';'))?;
        let name = &rest[..end];
        rest = rest[end..].trim_start();
        let mut comments = Vec::new();
        while rest.starts_with('(') {
            let (comment, length) = comment(rest)?;
            comments.push(comment);
            rest = rest[length..].trim_start();
        }
        // A further word, or a further `by`, belongs to a name with spaces in it: whose words are the comments then?
        let one_reading = strip_word(rest, "by").is_some() && count_by(text) == 1;
        (!name.is_empty() && one_reading).then_some(Clause { name, comments })
    }
}

/// The comment at the start of `text`, and its length with parentheses.
fn comment(text: &str) -> Option<(String, usize)> {
    let (mut content, mut depth) = (String::new(), 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Some((content, at + 1)),
            ')' => depth -= 1,
            _ if depth == 1 => content.push(c),
            _ => {}
        }
    }
    None
}

/// How often `by` stands there, in comments as well: a client that opens one in its name, and closes it in a line of its own
/// behind our field, would hide the host's own `by` in it.
fn count_by(text: &str) -> usize {
    let words = text.split(|c: char| c.is_ascii_whitespace() || matches!(c, ';' | '(' | ')'));
    words.filter(|word| word.eq_ignore_ascii_case("by")).count()
}

fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    (head.eq_ignore_ascii_case(word) && rest.starts_with(|c: char| c.is_ascii_whitespace())).then_some(rest)
}

/// The address in a comment: `name [192.0.2.7]`, `[192.0.2.7]:4711`, or nothing but an address.
fn address_in(comment: &str) -> Option<IpAddr> {
    let mut words = comment.split_ascii_whitespace().filter(|word| named(word).is_none());
    match (words.next(), words.next()) {
        (Some(only), None) => bracketed(only).or_else(|| only.parse().ok()),
        // `HELO` and a name: qmail's way to say what the client said.
        (Some(verb), Some(_)) if is_hello(verb) => None,
        (Some(name), Some(second)) => bracketed(name).or_else(|| bracketed(second)),
        (None, _) => None,
    }
}

/// What the client said in HELO, where the comment says that it is that: `helo=name`, `HELO name`.
fn helo_in(comment: &str) -> Option<&str> {
    let mut words = comment.split_ascii_whitespace();
    if let Some(name) = words.clone().find_map(named) {
        return Some(name);
    }
    words.next().filter(|verb| is_hello(verb)).and(words.next())
}

fn named(word: &str) -> Option<&str> {
    word.split_once('=').filter(|(key, _)| key.eq_ignore_ascii_case("helo")).map(|(_, name)| name)
}

fn is_hello(word: &str) -> bool {
    word.eq_ignore_ascii_case("helo") || word.eq_ignore_ascii_case("ehlo")
}

/// `[192.0.2.7]`, `[IPv6:2001:db8::7]`, with or without a port behind it.
fn bracketed(word: &str) -> Option<IpAddr> {
    let (address, port) = word.strip_prefix('[')?.split_once(']')?;
    if !port.is_empty() && port.strip_prefix(':')?.parse::<u16>().is_err() {
        return None;
    }
    let prefix = address.get(..5).filter(|prefix| prefix.eq_ignore_ascii_case("ipv6:"));
    address[prefix.map_or(0, str::len)..].parse().ok()
}

/// As many Received fields as a message may have at all.
const FIELDS_MAX: usize = 50;

/// A `from` clause has a name of 255 octets twice, and some words.
const FIELD_OCTETS_MAX: usize = 2048;

/// As in a session.
const HELO_OCTETS_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(head: &str) -> String {
        let head = head.replace('\n', "\r\n");
        let inside = ["192.0.2.0/28", "2001:db8:1::/48"].map(|network| Network::parse(network).unwrap());
        match Origin::trace(head.as_bytes(), &Header::index(head.as_bytes()), &inside) {
            Origin::Outside { ip, helo } => format!("{ip} {}", helo.as_deref().unwrap_or("?")),
            Origin::Inside => "inside".to_owned(),
            Origin::Unreadable => "unreadable".to_owned(),
        }
    }

    fn check(from: &str, want: &str) {
        assert_eq!(trace(&format!("Received: {from} by mx.ours.example with ESMTP id 1;\n\tdate\n")), want, "{from}");
    }

    #[test]
    fn a_client_cannot_hide_the_host_s_words_in_a_comment_of_its_own() {
        let head = "Received: from x ([203.0.113.1]) by y ( (name [198.51.100.7])\n\tby mx.ours.example;\n\tdate\n )\n";
        assert_eq!(trace(head), "unreadable");
        let head = "Received: from b( (198.51.100.7)\n\tby mx.ours.example;\n\tdate\n ) ([203.0.113.1]) by z;\n";
        assert_eq!(trace(head), "unreadable");
    }

    #[test]
    fn what_each_server_writes_is_understood() {
        // Postfix, Sendmail.
        check("from client.example (client.example [198.51.100.7])", "198.51.100.7 client.example");
        check(
            "from client.example (unknown [198.51.100.7])\n\t(using TLSv1.3 with cipher X (256/256 bits))\n\t(No client certificate requested)",
            "198.51.100.7 client.example",
        );
        check("from client.example (mail [IPv6:2001:db8::7])", "2001:db8::7 client.example");
        check("from client.example ([198.51.100.7])", "198.51.100.7 client.example");
        check(
            "from client.example (root@client.example [198.51.100.7] (may be forged))",
            "198.51.100.7 client.example",
        );
        // Exim.
        check("from mail.example ([198.51.100.7] helo=client.example)\n\t", "198.51.100.7 client.example");
        check("from mail.example ([198.51.100.7]:4711 helo=client.example)", "198.51.100.7 client.example");
        check("from mail.example ([198.51.100.7])", "198.51.100.7 mail.example");
        check("from [198.51.100.7] (helo=client.example)", "198.51.100.7 client.example");
        check("from [198.51.100.7] (port=4711 helo=client.example)", "198.51.100.7 client.example");
        // qmail, Exchange.
        check("from unknown (HELO client.example) (198.51.100.7)", "198.51.100.7 client.example");
        check("from mail.example (198.51.100.7)", "198.51.100.7 mail.example");
        check("from mail.example (2001:db8::7)", "2001:db8::7 mail.example");
        check("FROM client.example (x [::ffff:198.51.100.7])", "198.51.100.7 client.example");
    }

    #[test]
    fn the_clients_own_word_is_not_its_address() {
        check("from [203.0.113.1] (unknown [198.51.100.7])", "198.51.100.7 [203.0.113.1]");
        check("from 203.0.113.1 (unknown [198.51.100.7])", "198.51.100.7 203.0.113.1");
        check("from [198.51.100.7] (helo=[203.0.113.1])", "198.51.100.7 [203.0.113.1]");
        check("from mail.example ([198.51.100.7] helo=[203.0.113.1])", "198.51.100.7 [203.0.113.1]");
        check("from unknown (HELO 203.0.113.1) (198.51.100.7)", "198.51.100.7 203.0.113.1");
        check("from unknown (HELO [203.0.113.1]) (198.51.100.7)", "198.51.100.7 [203.0.113.1]");
    }

    #[test]
    fn where_there_are_two_readings_there_is_none() {
        for from in [
            // Only what the client said.
            "from [203.0.113.1]",
            "from client.example",
            "from client.example (with a comment)",
            // A name with a comment, or another clause, in it.
            "from x ([203.0.113.1]) (unknown [198.51.100.7])",
            "from x (y [203.0.113.1]) by z (unknown [198.51.100.7])",
            "from x (y [203.0.113.1]) BY z with SMTP id 1; date (unknown [198.51.100.7])",
            "from x (y [203.0.113.1]) by z ((unknown [198.51.100.7])",
            "from x y (unknown [198.51.100.7])",
            "from (unknown [198.51.100.7])",
            "from x (unknown [198.51.100.7]",
            "from x (unknown [198.51.100.700])",
            "from x (unknown [198.51.100.7]x)",
            "from [198.51.100.7] (helo=x y [203.0.113.1] z)",
            &format!("from x (y [203.0.113.1]) by z {} (unknown [198.51.100.7])", "x".repeat(FIELD_OCTETS_MAX)),
        ] {
            check(from, "unreadable");
        }
        check(
            &format!("from {} (unknown [198.51.100.7])", "x".repeat(255)),
            &format!("198.51.100.7 {}", "x".repeat(255)),
        );
        check(&format!("from {} (unknown [198.51.100.7])", "x".repeat(256)), "198.51.100.7 ?");
        check(&format!("from {} (unknown [198.51.100.7])", "x".repeat(3000)), "unreadable");
        check("from r\u{e9}seau (unknown [198.51.100.7])", "198.51.100.7 ?");
    }

    #[test]
    fn the_first_client_outside_is_found_through_hosts_of_ours() {
        let by = "by a.ours.example; date\n";
        let ours = |ip: &str| format!("Received: from a.ours.example (a [{ip}]) {by}");
        let outside = format!("Received: from client.example (x [198.51.100.7]) {by}");
        let forged = "Received: from innocent.example (innocent.example [203.0.113.9]) by a.ours.example; date\n";
        let local = "Received: by a.ours.example (Postfix, from userid 112)\n\tid 7; date\n";
        for (head, want) in [
            (format!("{outside}{forged}"), "198.51.100.7 client.example"),
            (format!("{}{outside}{forged}", ours("192.0.2.14")), "198.51.100.7 client.example"),
            (
                format!("X: y\n{}{local}{}{outside}{forged}", ours("IPv6:2001:db8:1::1"), ours("127.0.0.1")),
                "198.51.100.7 client.example",
            ),
            (format!("{}{local}Subject: x\n", ours("::1")), "inside"),
            ("Subject: x\n".to_owned(), "inside"),
            (ours("192.0.2.1").repeat(60), "inside"),
            // Just outside the network.
            (ours("192.0.2.16"), "192.0.2.16 a.ours.example"),
            // Nothing below an unreadable field is believed.
            (format!("Received: from client.example by a; date\n{forged}"), "unreadable"),
        ] {
            assert_eq!(trace(&head), want, "{head}");
        }
    }
}
