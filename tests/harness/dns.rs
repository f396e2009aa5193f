//! A name server on loopback that answers from a table, so that no test asks the world's.
//!
//! Just enough of RFC 1035: one question over UDP, answered without compression beyond the question's name. What the
//! table does not have does not exist; a name that it has in another kind has no such records.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;

/// A running name server; it ends with the value.
pub struct NameServer {
    address: SocketAddr,
}

impl NameServer {
    /// Answers from lines of `name TYPE value`: A, AAAA, or MX with preference and exchange (`.` for none). `name
    /// SERVFAIL` fails every question.
    pub fn start(table: &str) -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let records: Vec<Record> =
            table.lines().map(str::trim).filter(|line| !line.is_empty()).map(Record::parse).collect();
        thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut packet) {
                if len == 0 {
                    return;
                }
                if let Some(answer) = answer(&packet[..len], &records) {
                    // A client that is gone asks again or does not.
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        NameServer { address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // An empty datagram is its word to end.
        let _ = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(&[], self.address));
    }
}

struct Record {
    name: String,
    kind: u16,
    data: Vec<u8>,
}

impl Record {
    fn parse(line: &str) -> Record {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (kind, data) = match &words[1..] {
            ["A", ip] => (A, ip.parse::<Ipv4Addr>().unwrap().octets().to_vec()),
            ["AAAA", ip] => (AAAA, ip.parse::<Ipv6Addr>().unwrap().octets().to_vec()),
            ["MX", preference, exchange] => {
                let preference = preference.parse::<u16>().unwrap().to_be_bytes();
                (MX, [&preference[..], &name(exchange)].concat())
            }
            ["SERVFAIL"] => (FAILS, Vec::new()),
            _ => panic!("no record: {line}"),
        };
        Record { name: words[0].to_ascii_lowercase(), kind, data }
    }
}

/// A name in wire format.
fn name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// The answer to a query; `None` where it is none.
fn answer(query: &[u8], records: &[Record]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = HEADER_OCTETS;
    loop {
        let len = usize::from(*query.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + len)?).to_ascii_lowercase());
        at += len;
    }
    let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    let question = query.get(HEADER_OCTETS..at + 4)?;
    let asked = labels.join(".");
    let of_name: Vec<&Record> = records.iter().filter(|record| record.name == asked).collect();
    let found: Vec<&&Record> = of_name.iter().filter(|record| record.kind == kind).collect();
    let code = match of_name.iter().any(|record| record.kind == FAILS) {
        true => SERVFAIL,
        false if of_name.is_empty() => NXDOMAIN,
        false => 0,
    };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1]);
    answer.extend(u16::try_from(found.len()).unwrap().to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(question);
    for record in found {
        // The name of the question, which stands behind the header.
        answer.extend([0xc0, 12]);
        answer.extend(record.kind.to_be_bytes());
        answer.extend([0, 1]);
        answer.extend(300u32.to_be_bytes());
        answer.extend(u16::try_from(record.data.len()).unwrap().to_be_bytes());
        answer.extend(&record.data);
    }
    Some(answer)
}

const HEADER_OCTETS: usize = 12;
const A: u16 = 1;
const MX: u16 = 15;
const AAAA: u16 = 28;
/// Reserved (RFC 6895 §3.1): nobody asks for it.
const FAILS: u16 = 0;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
