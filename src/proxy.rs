//! The PROXY protocol, versions 1 and 2: what a load balancer says about the client before the client speaks.
//!
//! [`read`] is fed from the start of a connection and says how many octets certainly still belong to the header, so that its
//! caller never takes one that is the client's: behind the header stands SMTP or a TLS handshake. Whoever must send a
//! header and sends something else, or one that names no TCP client, is no balancer of ours; there is no guess.
//!
//! Left out: TLVs (they are passed over, checksums too: TCP has its own) and who may send a header at all. The
//! `proxy-header` crate reads the same, but tells a UNIX or UDP client apart from no client no more, nor how much to
//! read next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What came of the octets so far.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At least so many octets more belong to the header; never 0.
    More(usize),
    /// The header is whole.
    Whole(Source),
}

/// For whom a connection was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// For this client.
    Client(IpAddr),
    /// For the balancer itself (`LOCAL`), or for nobody whom it can name (`UNKNOWN`): its own address counts.
    Balancer,
}

/// Why a connection does not begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("no PROXY header")]
    Missing,
    #[error("a malformed PROXY header")]
    Malformed,
    #[error("a PROXY header for something else than TCP")]
    NotTcp,
    #[error("a PROXY header that is too long")]
    TooLong,
}

/// Reads `input`, all octets of the connection so far, of which none lies behind the header: the caller reads what
/// [`Progress::More`] says at the most, at first with an empty `input`.
pub fn read(input: &[u8]) -> Result<Progress, HeaderError> {
    let begins = |opening: &[u8]| input.starts_with(opening) || opening.starts_with(input);
    if begins(V1_OPENING) {
        read_v1(input)
    } else if begins(V2_OPENING) {
        read_v2(input)
    } else {
        Err(HeaderError::Missing)
    }
}

/// A line: `PROXY TCP4 <source> <destination> <source port> <destination port>`.
fn read_v1(input: &[u8]) -> Result<Progress, HeaderError> {
    let least = if input.starts_with(b"PROXY TCP4 ") {
        b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n".len()
    } else if input.starts_with(b"PROXY TCP6 ") {
        b"PROXY TCP6 :: :: 1 1\r\n".len()
    } else {
        b"PROXY UNKNOWN\r\n".len()
    };
    if let Some(line) = input.strip_suffix(b"\r\n").filter(|_| input.len() >= least) {
        return parse_line(line).map(Progress::Whole);
    }
    let text = input.strip_suffix(b"\r").unwrap_or(input);
    if text.iter().any(u8::is_ascii_control) && input.len() >= V1_OPENING.len() {
        return Err(HeaderError::Malformed);
    }
    let end = if text.len() < input.len() { 1 } else { 2 };
    let more = least.saturating_sub(input.len()).max(end);
    if input.len() + more > V1_OCTETS_MAX { Err(HeaderError::TooLong) } else { Ok(Progress::More(more)) }
}

fn parse_line(line: &[u8]) -> Result<Source, HeaderError> {
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Malformed)?;
    let words: Vec<&str> = line.split(' ').collect();
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    let client = match *words {
        // What may follow is to be ignored.
        [_, "UNKNOWN", ..] => return Ok(Source::Balancer),
        [_, family, source, destination, from, to] if is_port(from) && is_port(to) => match family {
            "TCP4" => both::<Ipv4Addr>(source, destination).map(IpAddr::V4),
            "TCP6" => both::<Ipv6Addr>(source, destination).map(IpAddr::V6),
            _ => None,
        },
        _ => None,
    };
    client.map(|ip| Source::Client(ip.to_canonical())).ok_or(HeaderError::Malformed)
}

/// The source, where both addresses are of the family.
fn both<A: std::str::FromStr>(source: &str, destination: &str) -> Option<A> {
    let _: A = destination.parse().ok()?;
    source.parse().ok()
}

/// Signature, version and command, family and protocol, length; then addresses and TLVs of that length.
fn read_v2(input: &[u8]) -> Result<Progress, HeaderError> {
    let Some((head, rest)) = input.split_at_checked(V2_HEAD_OCTETS) else {
        return Ok(Progress::More(V2_HEAD_OCTETS - input.len()));
    };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if V2_HEAD_OCTETS + length > V2_OCTETS_MAX {
        return Err(HeaderError::TooLong);
    }
    let addresses = match (head[12], head[13]) {
        (LOCAL, _) | (PROXY, UNSPECIFIED) => 0,
        (PROXY, TCP4) => 12,
        (PROXY, TCP6) => 36,
        (PROXY, UDP4 | UDP6 | UNIX_STREAM | UNIX_DATAGRAM) => return Err(HeaderError::NotTcp),
        _ => return Err(HeaderError::Malformed),
    };
    if length < addresses {
        return Err(HeaderError::Malformed);
    }
    match length.checked_sub(rest.len()) {
        None => return Err(HeaderError::Malformed),
        Some(0) => {}
        Some(more) => return Ok(Progress::More(more)),
    }
    let source = match addresses {
        12 => rest.first_chunk().map(|octets: &[u8; 4]| IpAddr::from(*octets)),
        36 => rest.first_chunk().map(|octets: &[u8; 16]| IpAddr::from(*octets)),
        _ => None,
    };
    Ok(Progress::Whole(source.map_or(Source::Balancer, |ip| Source::Client(ip.to_canonical()))))
}

const V1_OPENING: &[u8] = b"PROXY ";
const V2_OPENING: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_OCTETS: usize = 16;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const UDP4: u8 = 0x12;
const TCP6: u8 = 0x21;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

/// The longest line that the protocol has, with its CRLF.
const V1_OCTETS_MAX: usize = 107;

/// With its TLVs. A client certificate's name and a cloud's identifiers take some hundred octets.
const V2_OCTETS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds as much of `stream` as is asked for, `most` octets at a time; what came of it, and how much was taken.
    fn feed(stream: &[u8], most: usize) -> (Result<Source, HeaderError>, usize) {
        let mut taken = 0;
        loop {
            match read(&stream[..taken]) {
                Err(error) => return (Err(error), taken),
                Ok(Progress::Whole(source)) => return (Ok(source), taken),
                Ok(Progress::More(more)) => {
                    let now = more.min(most).min(stream.len() - taken);
                    assert!(more > 0 && now > 0, "{}: waits for more", stream.escape_ascii());
                    taken += now;
                }
            }
        }
    }

    fn check(header: &[u8], want: Result<Source, HeaderError>) {
        for most in [1, 2, 7, 10_000] {
            let stream = [header, b"\x16\x03\x01EHLO a\r\n"].concat();
            let (source, taken) = feed(&stream, most);
            assert_eq!(source, want, "{} by {most}", header.escape_ascii());
            assert!(source.is_err() || taken == header.len(), "{} took {taken}", header.escape_ascii());
        }
    }

    fn client(ip: &str) -> Result<Source, HeaderError> {
        Ok(Source::Client(ip.parse().unwrap()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_OPENING, &[command, family], &length, rest].concat()
    }

    #[test]
    fn lines_that_name_a_client() {
        check(b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 25\r\n", client("192.0.2.7"));
        check(b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", client("1.1.1.1"));
        check(b"PROXY TCP6 2001:db8::7 2001:db8::1 65535 0\r\n", client("2001:db8::7"));
        check(b"PROXY TCP6 ::1 :: 1 1\r\n", client("::1"));
        check(b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 25\r\n", client("192.0.2.7"));
        let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        check(longest.as_bytes(), client("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }

    #[test]
    fn lines_that_name_none() {
        check(b"PROXY UNKNOWN\r\n", Ok(Source::Balancer));
        check(b"PROXY UNKNOWN what ever 1 2 3\r\n", Ok(Source::Balancer));
        check(format!("PROXY UNKNOWN {}\r\n", "x".repeat(91)).as_bytes(), Ok(Source::Balancer));
        check(format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)).as_bytes(), Err(HeaderError::TooLong));
    }

    #[test]
    fn lines_that_are_no_headers() {
        for line in [
            &b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 25\n"[..],
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 25\r\r\n",
            b"PROXY TCP4 192.0.2.7\r\n10.0.0.1 56324 25\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n......",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 25 1\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 65536\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +5 25\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 05 25\r\n",
            b"PROXY TCP4 192.0.2.007 10.0.0.1 5 25\r\n",
            b"PROXY TCP4 192.0.2.256 10.0.0.1 5 25\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 1 25\r\n",
            b"PROXY TCP4  192.0.2.7 10.0.0.1 56324 25\r\n",
            b"PROXY TCP6 192.0.2.7 10.0.0.1 56324 25\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 56324 25\r\n",
            b"PROXY UDP4 192.0.2.7 10.0.0.1 56324 25\r\n",
            b"PROXY tcp4 192.0.2.7 10.0.0.1 56324 25\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1\t56324 25\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.\xff 56324 25\r\n",
            b"PROXY TCP5 \0",
        ] {
            check(line, Err(HeaderError::Malformed));
        }
        for other in
            [&b"EHLO client.example\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"proxy TCP4 ", b"PROXIES", b"\r\n\r\n\r\n"]
        {
            check(other, Err(HeaderError::Missing));
        }
    }

    #[test]
    fn binary_headers() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0xdb, 0xf4, 0, 25];
        let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7], &[0; 16], &[0, 1, 0, 25]].concat();
        let with_tlvs = |length: usize| [&four[..], &vec![0xee; length - 12]].concat();
        check(&v2(0x21, 0x11, &four), client("192.0.2.7"));
        check(&v2(0x21, 0x21, &six), client("2001:db8::7"));
        check(&v2(0x21, 0x11, &with_tlvs(100)), client("192.0.2.7"));
        check(&v2(0x21, 0x11, &with_tlvs(4080)), client("192.0.2.7"));
        check(&v2(0x21, 0x11, &with_tlvs(4081)), Err(HeaderError::TooLong));
        check(&v2(0x20, 0x00, b""), Ok(Source::Balancer));
        check(&v2(0x20, 0x11, &four), Ok(Source::Balancer));
        check(&v2(0x20, 0xff, b"what"), Ok(Source::Balancer));
        check(&v2(0x21, 0x00, b"what"), Ok(Source::Balancer));
        check(&v2(0x21, 0x11, &four[..11]), Err(HeaderError::Malformed));
        check(&v2(0x21, 0x21, &six[..35]), Err(HeaderError::Malformed));
        check(&v2(0x21, 0x11, b""), Err(HeaderError::Malformed));
        for (command, family) in [(0x22, 0x11), (0x11, 0x11), (0x31, 0x11), (0x00, 0x00), (0x21, 0x13), (0x21, 0x41)] {
            check(&v2(command, family, &six), Err(HeaderError::Malformed));
        }
        for family in [0x12, 0x22, 0x31, 0x32] {
            check(&v2(0x21, family, &[0; 216]), Err(HeaderError::NotTcp));
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_read_without_end(
            version in 0..3usize,
            tail in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let opening = [&b""[..], V1_OPENING, V2_OPENING][version];
            let stream = [opening, &tail, &[0; 70_000]].concat();
            let (_, taken) = feed(&stream, usize::MAX);
            prop_assert!(taken <= V2_OCTETS_MAX);
        }
    }
}
