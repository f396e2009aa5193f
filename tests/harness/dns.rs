//! A name server for the daemon: answers over UDP on a loopback port from a zone in text.
//!
//! A line is `name TYPE value`: A, AAAA, MX (`10 host`), PTR, TXT, or a fault: `name SERVFAIL`, `name SILENT`. A name
//! that nothing stands under does not exist. `*.name` stands for whatever is below a name and has no line of its own.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub struct Dns {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    pub fn start(zone: &str) -> Dns {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        // Only so that the thread sees the end of the test.
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket takes a timeout");
        let address = socket.local_addr().expect("a bound socket has an address");
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let zone: Vec<(String, String, String)> = zone.lines().filter_map(record).collect();
        let thread = thread::spawn({
            let (asked, stop) = (asked.clone(), stop.clone());
            move || {
                let mut packet = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Some(answer) = answer(&zone, &packet[..length]) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        });
        Dns { address, asked, stop, thread: Some(thread) }
    }

    /// How many questions came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// What the configuration says to ask here.
    pub fn config(&self) -> String {
        format!("[dns]\nservers = [\"{}\"]\n", self.address)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn record(line: &str) -> Option<(String, String, String)> {
    let mut words = line.trim().splitn(3, ' ');
    let name = words.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
    Some((name, words.next()?.to_owned(), words.next().unwrap_or_default().to_owned()))
}

/// RFC 1035 §4: the question comes back, and the records that answer it.
fn answer(zone: &[(String, String, String)], question: &[u8]) -> Option<Vec<u8>> {
    let (name, end) = read_name(question, 12)?;
    let kind = u16::from_be_bytes([*question.get(end)?, *question.get(end + 1)?]);
    let below = format!(".{name}");
    let mut of_name: Vec<_> = zone.iter().filter(|(owner, ..)| *owner == name).collect();
    if of_name.is_empty() {
        let covers = |owner: &str| owner.strip_prefix('*').is_some_and(|parent| name.ends_with(parent));
        of_name = zone.iter().filter(|(owner, ..)| covers(owner)).collect();
    }
    if of_name.iter().any(|(_, fault, _)| fault == "SILENT") {
        return None;
    }
    let exists = !of_name.is_empty() || zone.iter().any(|(owner, ..)| owner.ends_with(&below));
    let records: Vec<Vec<u8>> = of_name.iter().filter_map(|(_, word, value)| data(kind, word, value)).collect();
    let code = match () {
        () if of_name.iter().any(|(_, fault, _)| fault == "SERVFAIL") => 2,
        () if !exists => 3,
        () => 0,
    };
    let mut out = question[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1]);
    out.extend((records.len() as u16).to_be_bytes());
    out.extend([0, 0, 0, 0]);
    out.extend(&question[12..end + 4]);
    for record in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 1, 44]);
        out.extend((record.len() as u16).to_be_bytes());
        out.extend(record);
    }
    Some(out)
}

fn read_name(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}

fn write_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

/// The data of one record, where it is of the kind that is asked for.
fn data(kind: u16, word: &str, value: &str) -> Option<Vec<u8>> {
    match (kind, word) {
        (1, "A") | (28, "AAAA") => Some(match value.parse().expect("an address stands in the zone") {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }),
        (15, "MX") => {
            let (preference, host) = value.split_once(' ').expect("a preference and a host");
            let preference: u16 = preference.parse().expect("a number");
            Some([&preference.to_be_bytes()[..], &write_name(host)].concat())
        }
        (12, "PTR") => Some(write_name(value)),
        (16, "TXT") => {
            Some(value.as_bytes().chunks(255).flat_map(|part| [&[part.len() as u8], part].concat()).collect())
        }
        _ => None,
    }
}
