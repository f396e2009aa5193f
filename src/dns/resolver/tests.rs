//! The adapter against name servers that are written here: broken, hostile, slow or dead.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;

#[tokio::test]
async fn a_server_that_answers_nothing_is_temporary_and_not_an_absence() {
    // A socket that is bound and never read: no answer, and no refusal either.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = Resolver::new(&[silent.local_addr().unwrap()]).unwrap();
    tokio::time::pause();
    assert_eq!(resolver.ask(&Question::Txt("a.example".into())).await.unwrap_err(), DnsError::Temporary);
}

#[test]
fn a_system_without_a_name_server_has_its_own() {
    for (kind, local) in [(ErrorKind::NotFound, true), (ErrorKind::Other, true), (ErrorKind::PermissionDenied, false)] {
        let config = or_local(Err(std::io::Error::from(kind).into()));
        let ip = config.ok().map(|config| config.name_servers[0].ip.to_string());
        assert_eq!(ip, local.then(|| "127.0.0.1".to_owned()), "{kind:?}");
    }
}

#[test]
fn names_are_written_without_their_final_dot() {
    assert_eq!(text(&Name::from_ascii("Mx.Example.").unwrap()), "mx.example");
    assert_eq!(text(&Name::root()), "");
    assert!(fully_qualified("_dmarc.example").unwrap().is_fqdn());
}

#[test]
fn what_a_macro_brings_into_a_name_is_asked_for_as_it_is() {
    for label in ["bob+tag", "a=b", "% %20", "o'brien", "back\\046slash", "*", "-a"] {
        let name = fully_qualified(&format!("{label}.spf.example")).unwrap();
        assert_eq!(name.iter().next(), Some(label.as_bytes()), "{label}");
        assert_eq!(name.num_labels() + u8::from(label == "*"), 3, "{label}");
    }
    assert_eq!(fully_qualified("a..example"), Err(DnsError::NotFound));
}

/// A name server on a port of its own: what it says to a question over UDP and over TCP, each a number of packets.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

type Script = fn(&[u8]) -> Vec<Vec<u8>>;

impl Server {
    fn start(over_udp: Script, over_tcp: Option<Script>) -> Server {
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                // The same port must be free for TCP too.
                let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
                Some((udp, tcp))
            })
            .unwrap();
        let (address, asked) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&asked);
        // The threads end with the test's process: nothing tells a socket that nobody will ask any more.
        thread::spawn(move || {
            let mut packet = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut packet) {
                counted.fetch_add(1, Ordering::Relaxed);
                for answer in over_udp(&packet[..length]) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let (Ok(mut stream), Some(script)) = (stream, over_tcp) else { continue };
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                let _ = stream.read_exact(&mut question);
                for answer in script(&question) {
                    let _ = stream.write_all(&(answer.len() as u16).to_be_bytes());
                    let _ = stream.write_all(&answer);
                }
            }
        });
        Server { address, asked }
    }

    async fn ask(&self, question: Question) -> Result<Found, DnsError> {
        Resolver::new(&[self.address]).unwrap().ask(&question).await
    }
}

const TXT: u16 = 16;
const CNAME: u16 = 5;

/// Where the question of a packet ends.
fn question_end(question: &[u8]) -> usize {
    let mut at = 12;
    while question[at] != 0 {
        at += 1 + usize::from(question[at]);
    }
    at + 5
}

/// An answer to the question with this code, these flags and these records: (owner's name in wire format or empty for
/// the name that was asked for, type, TTL, data).
fn answer(question: &[u8], flags: u8, code: u8, records: &[(Vec<u8>, u16, u32, Vec<u8>)]) -> Vec<u8> {
    let end = question_end(question);
    let mut out = question[..2].to_vec();
    out.extend([0x81 | flags, 0x80 | code, 0, 1]);
    out.extend((records.len() as u16).to_be_bytes());
    out.extend([0, 0, 0, 0]);
    out.extend(&question[12..end]);
    for (owner, kind, ttl, data) in records {
        if owner.is_empty() {
            out.extend([0xc0, 12])
        } else {
            out.extend(owner)
        }
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    out
}

fn wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

fn texts(strings: &[&[u8]]) -> Vec<u8> {
    strings.iter().flat_map(|text| [&[text.len() as u8], *text].concat()).collect()
}

fn good(question: &[u8]) -> Vec<Vec<u8>> {
    vec![answer(question, 0, 0, &[(Vec::new(), TXT, 300, texts(&[b"good"]))])]
}

fn txt() -> Question {
    Question::Txt("a.example".into())
}

fn only_text(found: Result<Found, DnsError>) -> Result<Vec<u8>, DnsError> {
    match found?.records {
        Records::Txt(all) if all.len() == 1 => Ok(all[0].clone()),
        other => panic!("{other:?}"),
    }
}

/// hostile.md, DNS: a code says that there is nothing, or it says nothing.
#[tokio::test]
async fn dns_codes_are_an_answer_or_none() {
    for (script, want) in [
        (good as Script, Ok(b"good".to_vec())),
        (|q| vec![answer(q, 0, 3, &[])], Err(DnsError::NotFound)),
        (|q| vec![answer(q, 0, 0, &[])], Err(DnsError::NoRecords)),
        (|q| vec![answer(q, 0, 1, &[])], Err(DnsError::Temporary)),
        (|q| vec![answer(q, 0, 2, &[])], Err(DnsError::Temporary)),
        (|q| vec![answer(q, 0, 4, &[])], Err(DnsError::Temporary)),
        (|q| vec![answer(q, 0, 5, &[])], Err(DnsError::Temporary)),
        (|q| vec![answer(q, 0, 9, &[])], Err(DnsError::Temporary)),
    ] {
        let server = Server::start(script, Some(script));
        let before = std::time::Instant::now();
        let got = only_text(server.ask(txt()).await);
        assert_eq!(got, want, "after {:?}, {} questions", before.elapsed(), server.asked.load(Ordering::Relaxed));
    }
}

/// hostile.md, DNS: what is no answer to our question is waited out, and a true one behind it counts.
#[tokio::test]
async fn dns_answers_that_are_none_are_passed_over() {
    fn wrong_id(question: &[u8]) -> Vec<Vec<u8>> {
        let mut forged = answer(question, 0, 0, &[(Vec::new(), TXT, 300, texts(&[b"forged"]))]);
        forged[0] ^= 0xff;
        vec![forged, good(question).remove(0)]
    }
    fn wrong_question(question: &[u8]) -> Vec<Vec<u8>> {
        let mut forged = answer(question, 0, 0, &[(Vec::new(), TXT, 300, texts(&[b"forged"]))]);
        forged[13] ^= 1;
        vec![forged, good(question).remove(0)]
    }
    fn query_back(question: &[u8]) -> Vec<Vec<u8>> {
        vec![question.to_vec(), good(question).remove(0)]
    }
    for script in [wrong_id as Script, wrong_question, query_back] {
        let got = only_text(Server::start(script, Some(script)).ask(txt()).await);
        assert!(got == Ok(b"good".to_vec()) || got == Err(DnsError::Temporary), "{got:?}");
    }
}

#[tokio::test]
async fn dns_garbage_is_temporary() {
    fn loops(question: &[u8]) -> Vec<Vec<u8>> {
        let end = question_end(question) as u8;
        // The owner's name points at itself.
        vec![answer(question, 0, 0, &[(vec![0xc0, end], TXT, 300, texts(&[b"x"]))])]
    }
    fn lies_about_its_length(question: &[u8]) -> Vec<Vec<u8>> {
        let mut cut = good(question).remove(0);
        cut.truncate(cut.len() - 3);
        vec![cut]
    }
    fn lies_about_its_count(question: &[u8]) -> Vec<Vec<u8>> {
        let mut lie = good(question).remove(0);
        (lie[6], lie[7]) = (0xff, 0xff);
        vec![lie]
    }
    for script in [
        loops as Script,
        lies_about_its_length,
        lies_about_its_count,
        |q| vec![q[..2].to_vec()],
        |q| vec![[&q[..2], &[0xff; 510]].concat()],
        |_| vec![Vec::new()],
    ] {
        assert_eq!(only_text(Server::start(script, None).ask(txt()).await), Err(DnsError::Temporary));
    }
}

/// hostile.md, DNS: truncated over UDP, whole over TCP: 64 KiB, a thousand strings, any octet.
#[tokio::test]
async fn dns_truncated_answers_come_over_tcp() {
    fn cut(question: &[u8]) -> Vec<Vec<u8>> {
        vec![answer(question, 0x02, 0, &[])]
    }
    fn huge(question: &[u8]) -> Vec<Vec<u8>> {
        let strings: Vec<&[u8]> = (0..250).map(|_| &[b'x'; 255][..]).collect();
        vec![answer(question, 0, 0, &[(Vec::new(), TXT, 300, texts(&strings))])]
    }
    fn many(question: &[u8]) -> Vec<Vec<u8>> {
        let strings: Vec<&[u8]> = (0..1000).map(|_| &b"\0\xff;\n"[..]).collect();
        vec![answer(question, 0, 0, &[(Vec::new(), TXT, 300, texts(&strings))])]
    }
    assert_eq!(only_text(Server::start(cut, Some(huge)).ask(txt()).await).map(|text| text.len()), Ok(250 * 255));
    let octets = only_text(Server::start(cut, Some(many)).ask(txt()).await).unwrap();
    assert_eq!((octets.len(), &octets[..4]), (4000, &b"\0\xff;\n"[..]));
    // TCP that closes, answers garbage or refuses the truncation once more is no answer.
    for script in [(|_| Vec::new()) as Script, |_| vec![b"SSH-2.0".to_vec()], cut] {
        let got = Server::start(cut, Some(script)).ask(txt()).await;
        assert!(got.is_err(), "{got:?}");
    }
}

#[tokio::test]
async fn dns_tcp_that_hangs_ends_in_time() {
    fn cut(question: &[u8]) -> Vec<Vec<u8>> {
        vec![answer(question, 0x02, 0, &[])]
    }
    fn hangs(_: &[u8]) -> Vec<Vec<u8>> {
        thread::sleep(ANSWER_WAIT_MAX * 4);
        Vec::new()
    }
    let before = std::time::Instant::now();
    assert_eq!(only_text(Server::start(cut, Some(hangs)).ask(txt()).await), Err(DnsError::Temporary));
    assert!(before.elapsed() < ANSWER_WAIT_MAX * 2, "{:?}", before.elapsed());
}

/// hostile.md, DNS: aliases of aliases end somewhere, and a loop of them is no record.
#[tokio::test]
async fn dns_chains_of_aliases_end() {
    fn length(question: &[u8]) -> usize {
        // The first label says it: c8 is a chain of eight.
        let label = &question[14..13 + usize::from(question[12])];
        std::str::from_utf8(label).unwrap().parse().unwrap()
    }
    /// All of it in one answer, as a resolver gives it.
    fn whole(question: &[u8]) -> Vec<Vec<u8>> {
        let all = length(question);
        let name = |n: usize| if n == all { Vec::new() } else { wire(&format!("c{n}.example")) };
        let mut records: Vec<_> =
            (1..=all).rev().map(|n| (name(n), CNAME, 300, wire(&format!("c{}.example", n - 1)))).collect();
        records.push((name(0), TXT, 300, texts(&[b"end"])));
        vec![answer(question, 0, 0, &records)]
    }
    /// One alias an answer, so that we have to ask on.
    fn one_by_one(question: &[u8]) -> Vec<Vec<u8>> {
        match length(question) {
            0 => vec![answer(question, 0, 0, &[(Vec::new(), TXT, 300, texts(&[b"end"]))])],
            n => vec![answer(question, 0, 0, &[(Vec::new(), CNAME, 300, wire(&format!("c{}.example", n - 1)))])],
        }
    }
    fn itself(question: &[u8]) -> Vec<Vec<u8>> {
        let name = question[12..question_end(question) - 4].to_vec();
        vec![answer(question, 0, 0, &[(Vec::new(), CNAME, 300, name)])]
    }
    for (script, n, want) in [
        (whole as Script, 1, true),
        (whole, 8, true),
        (one_by_one, 1, true),
        (one_by_one, 100, false),
        (itself, 5, false),
    ] {
        let server = Server::start(script, Some(script));
        let got = only_text(server.ask(Question::Txt(format!("c{n}.example"))).await);
        assert_eq!(got.is_ok(), want, "{n}: {got:?}");
        let asked = server.asked.load(Ordering::Relaxed);
        assert!(asked <= 40, "{n}: {asked} questions");
    }
    for n in [20, 100] {
        // Longer ones may be followed or not, as long as that ends.
        let got = Server::start(whole, Some(whole)).ask(Question::Txt(format!("c{n}.example"))).await;
        assert!(got.as_ref().err() != Some(&DnsError::OverBudget), "{n}: {got:?}");
    }
}

#[tokio::test]
async fn dns_a_thousand_names_are_cut_at_the_limit() {
    const PTR: u16 = 12;
    fn cut(question: &[u8]) -> Vec<Vec<u8>> {
        vec![answer(question, 0x02, 0, &[])]
    }
    fn many(question: &[u8]) -> Vec<Vec<u8>> {
        let records: Vec<_> = (0..1000).map(|n| (Vec::new(), PTR, 300, wire(&format!("n{n}.example")))).collect();
        vec![answer(question, 0, 0, &records)]
    }
    let found = Server::start(cut, Some(many)).ask(Question::Ptr("192.0.2.1".parse().unwrap())).await.unwrap();
    let Records::Ptr(names) = found.records else { panic!("names") };
    assert_eq!((names.len(), names[0].as_str()), (RECORDS_MAX, "n0.example"));
}

#[tokio::test]
async fn dns_of_two_servers_one_may_be_dead() {
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(good, None);
    for servers in [[dead, server.address], [server.address, dead]] {
        let got = Resolver::new(&servers).unwrap().ask(&txt()).await;
        assert_eq!(only_text(got), Ok(b"good".to_vec()));
    }
    assert_eq!(only_text(Resolver::new(&[dead, dead]).unwrap().ask(&txt()).await), Err(DnsError::Temporary));
}

/// Many questions that nobody answers all end in time, those that waited for a place too.
#[tokio::test(start_paused = true)]
async fn dns_a_dead_resolver_piles_nothing_up() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = Arc::new(Resolver::new(&[silent.local_addr().unwrap()]).unwrap());
    let before = tokio::time::Instant::now();
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..400 {
        let resolver = Arc::clone(&resolver);
        asked.spawn(async move { resolver.ask(&Question::Txt(format!("n{n}.stuck.example"))).await.map(drop) });
    }
    while let Some(answer) = asked.join_next().await {
        assert_eq!(answer.unwrap(), Err(DnsError::Temporary));
    }
    assert!(before.elapsed() <= ANSWER_WAIT_MAX, "{:?}", before.elapsed());
}
