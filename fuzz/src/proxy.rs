//! PROXY headers: whatever is asked for belongs to the header, however it arrives, and a header ends in bounded time.

use pointsman::proxy::{HeaderError, Progress, Source, read};

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let most = 1 + usize::from(input.octet());
    let stream = input.rest();

    let (whole, taken) = fed(stream, usize::MAX);
    let (in_pieces, taken_in_pieces) = fed(stream, most);
    // Only a fault may be seen at another place, and called otherwise there.
    let faults = matches!((whole, in_pieces), (Some(Err(_)), Some(Err(_))));
    assert!(faults || (in_pieces, taken_in_pieces) == (whole, taken), "{in_pieces:?} for {whole:?}");
    assert!(taken.max(taken_in_pieces) <= 4096, "{taken} octets were read");
    if let Some(Ok(source)) = whole {
        assert_eq!(taken, length(stream), "what follows is the client's");
        assert_source(&stream[..taken], source);
    }
}

/// Feeds what is asked for, `most` octets at a time; what came of it, where anything did, and how much was read.
fn fed(stream: &[u8], most: usize) -> (Option<Result<Source, HeaderError>>, usize) {
    let mut taken = 0;
    loop {
        match read(&stream[..taken]) {
            Err(error) => return (Some(Err(error)), taken),
            Ok(Progress::Whole(source)) => return (Some(Ok(source)), taken),
            Ok(Progress::More(more)) => {
                assert!(more > 0, "it waits for nothing");
                let now = more.min(most).min(stream.len() - taken);
                if now == 0 {
                    return (None, taken);
                }
                taken += now;
            }
        }
    }
}

/// The length of the header at the front, which is one.
fn length(stream: &[u8]) -> usize {
    if stream.starts_with(b"PROXY ") {
        stream.windows(2).position(|two| two == b"\r\n").expect("a header of version 1 is a line") + 2
    } else {
        16 + usize::from(u16::from_be_bytes([stream[14], stream[15]]))
    }
}

fn assert_source(header: &[u8], source: Source) {
    let Source::Client(ip) = source else { return };
    match header.strip_prefix(b"PROXY TCP") {
        Some(rest) => {
            let text = std::str::from_utf8(rest).expect("a header that names a client is ASCII");
            let said: std::net::IpAddr =
                text.split(' ').nth(1).and_then(|ip| ip.parse().ok()).expect("it names a client");
            assert_eq!(said.to_canonical(), ip);
        }
        None => {
            let octets = if header[13] == 0x11 { 4 } else { 16 };
            let said = &header[16..16 + octets];
            let mapped = ip.is_ipv4() && octets == 16;
            let got = match ip {
                std::net::IpAddr::V4(v4) if mapped => v4.to_ipv6_mapped().octets().to_vec(),
                std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
                std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            assert_eq!(got, said);
        }
    }
}
