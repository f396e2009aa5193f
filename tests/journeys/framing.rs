//! Mail that comes in another frame, through the real daemon: in chunks, and behind a load balancer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;

use super::MESSAGE;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, crm};

const BALANCED: &str = r#"
[[listener]]
name    = "balanced"
address = "127.0.0.1:0"
proxy   = ["127.0.0.0/8"]
"#;

/// The address of the listener at `position`.
fn listener(daemon: &Daemon, position: usize) -> SocketAddr {
    let text = std::fs::read_to_string(daemon.data().join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_str(&text).unwrap();
    addresses["listeners"][position].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_message_in_chunks_reaches_the_crm_byte_for_byte() {
    let (daemon, crm) = Daemon::with_crm();
    let large = [MESSAGE, b".\r\n..\r\n.leading dots\r\n", &[b'x'; 700].repeat(400), b"\r\nno line end"].concat();
    for (message, size) in [(&MESSAGE.to_vec(), 1), (&large, 70_000), (&large, large.len())] {
        let mut client = Client::connect(daemon.smtp);
        for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>"] {
            assert_eq!(client.say(command).code, 250);
        }
        let mut chunks = message.chunks(size).peekable();
        while let Some(chunk) = chunks.next() {
            let last = if chunks.peek().is_none() { " LAST" } else { "" };
            client.send(&[format!("BDAT {}{last}\r\n", chunk.len()).as_bytes(), chunk].concat()).unwrap();
        }
        for _ in 1..message.chunks(size).len() {
            assert_eq!(client.reply().text, "2.0.0 chunk received");
        }
        let id = client.reply().queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        // The CRM has it by DATA, which cannot leave out the last line's end.
        let mail = crm.mails().pop().unwrap();
        let sent = mail.bytes.strip_suffix(b"\r\n").filter(|_| !message.ends_with(b"\r\n")).unwrap_or(&mail.bytes);
        assert!(sent.ends_with(message), "chunks of {size}");
    }
}

#[test]
fn a_message_without_a_last_line_end_leaves_as_it_came_where_the_crm_takes_chunks() {
    let small = b"Subject: x\r\n\r\n.dot\r\nno line end".to_vec();
    let large = [&small[..], b"\r\n", &b"0123456789abcde\r\n".repeat(20_000), b"no line end"].concat();
    let ended = [&small[..], b"\r\n"].concat();
    // What the CRM announces, what the route says, the message; whether it arrives as it was, and by BDAT.
    for (announced, chunking, message, exact, bdat) in [
        (true, "auto", &small, true, true),
        (true, "auto", &large, true, true),
        (true, "auto", &ended, true, false),
        (true, "on", &ended, true, true),
        (true, "off", &small, false, false),
        (false, "auto", &small, false, false),
    ] {
        let crm = Crm::start();
        let chunks = Arc::new(AtomicBool::new(false));
        if announced {
            let ehlo = format!("{}\r\n250 CHUNKING", crm::EHLO.replace("250 ENH", "250-ENH"));
            crm.follow(move |stage, _| (stage == Stage::Ehlo).then(|| Answer::Say(ehlo.clone())));
        }
        let seen = Arc::clone(&chunks);
        crm.hear(move |line| seen.store(seen.load(Relaxed) || line.starts_with("BDAT "), Relaxed));
        let site = Setup::new(crm.address()).site();
        site.reconfigure("concurrency = 5", &format!("concurrency = 5\nchunking = \"{chunking}\""));
        let daemon = site.start();
        let mut client = Client::connect(daemon.smtp);
        for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>"] {
            assert_eq!(client.say(command).code, 250);
        }
        client.send(&[format!("BDAT {} LAST\r\n", message.len()).as_bytes(), message].concat()).unwrap();
        let id = client.reply().queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        let case = format!("{announced} {chunking} {} octets", message.len());
        assert_eq!(crm.mails()[0].bytes.ends_with(message), exact, "{case}");
        assert_eq!(chunks.load(Relaxed), bdat, "{case}");
    }
}

#[test]
fn a_listed_balancer_names_the_client_and_others_name_nobody() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more(BALANCED).site().start();
    let balanced = listener(&daemon, 1);

    let mut client = Client::try_raw(balanced).unwrap();
    client.send(b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 25\r\n").unwrap();
    assert_eq!(client.reply().code, 220);
    assert_eq!(client.say("EHLO client.example.org").code, 250);
    client.deliver("client@example.org", &["aide@solarmora.com"], MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    assert!(String::from_utf8(mail.bytes).unwrap().contains("[203.0.113.9]"), "Received names the client");

    let mut health_check = Client::try_raw(balanced).unwrap();
    health_check.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").unwrap();
    assert_eq!(health_check.reply().code, 220);

    let mut silent_about_it = Client::try_raw(balanced).unwrap();
    silent_about_it.send(b"EHLO client.example.org\r\n").unwrap();
    assert!(silent_about_it.is_closed());

    let mut not_listed = Client::try_raw(daemon.smtp).unwrap();
    assert_eq!(not_listed.reply().code, 220);
    not_listed.send(b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 25\r\n").unwrap();
    assert_eq!(not_listed.reply().code, 554);
    assert!(not_listed.is_closed());
}
