//! BDAT where it costs: a million chunks of one octet. The rest of the section stands in `dialogs/bdat-*`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use crate::harness::{Client, Crm, Setup, alone};

/// Postfix 20260805: what is kept for each chunk adds up.
#[test]
fn a_million_chunks_of_one_octet_leave_the_memory_flat() {
    let _alone = alone();
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it says what is resident");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    };
    daemon.send("aide@solarmora.com");
    crm.wait_for_mails(1);
    let before = resident();
    let stream = TcpStream::connect(daemon.smtp).unwrap();
    let mut replies = stream.try_clone().unwrap();
    // Who speaks before the banner is turned away.
    let mut banner = [0; 1];
    while banner != *b"\n" {
        replies.read_exact(&mut banner).unwrap();
    }
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut chunks = 0;
        while let Ok(read @ 1..) = replies.read(&mut buffer) {
            said.extend_from_slice(&buffer[..read]);
            let whole = said.iter().rposition(|&octet| octet == b'\n').map_or(0, |end| end + 1);
            chunks += said[..whole]
                .split(|&octet| octet == b'\n')
                .filter(|line| line.starts_with(b"250 2.0.0 chunk"))
                .count();
            let last = said.drain(..whole).collect::<Vec<u8>>();
            if last.windows(9).any(|words| words == b"queued as") {
                return chunks;
            }
        }
        panic!("the session ended after {chunks} chunks");
    });
    let mut client = stream;
    let envelope = "EHLO a.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<aide@solarmora.com>\r\n";
    client.write_all(envelope.as_bytes()).unwrap();
    client.write_all(b"BDAT 14\r\nSubject: x\r\n\r\n").unwrap();
    let many = b"BDAT 1\r\nx".repeat(10_000);
    let mut most = 0;
    for _ in 0..100 {
        client.write_all(&many).unwrap();
        most = most.max(resident());
    }
    client.write_all(b"BDAT 2 LAST\r\n\r\n").unwrap();
    assert_eq!(reader.join().unwrap(), 1_000_001);
    assert!(most < before + 8, "{before} MiB before, {most} MiB with a million chunks");
    let mail = crm.wait_for_mails(2).pop().unwrap();
    assert!(mail.bytes.ends_with(&[&b"x".repeat(1_000_000)[..], b"\r\n"].concat()));
    // Others were served meanwhile, and are now.
    assert_eq!(Client::connect(daemon.smtp).say("NOOP").code, 250);
}
