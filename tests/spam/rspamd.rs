//! rspamd as it is, and what answers in its place when it is not well.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use super::{RULES, gtube, legs, marks, message};
use crate::harness::rspamd::Rspamd;
use crate::harness::{Client, Crm, Daemon, Setup, has, wait_for};

fn asking(address: SocketAddr, crm: &Crm, spam: &str) -> Daemon {
    let more = format!("[spam]\nengine = \"rspamd\"\nrspamd = \"http://{address}\"\n{spam}\n");
    Setup::new(crm.address()).rules(RULES).more(&more).start()
}

fn about(subject: &str) -> Vec<u8> {
    format!("From: a@b.example\r\nSubject: {subject}\r\nDate: Fri, 27 Nov 2026 10:00:00 +0000\r\n\r\nHello.\r\n")
        .into_bytes()
}

#[test]
fn the_real_rspamd_judges_and_is_told_who_sent_what_to_whom() {
    if !has("the_real_rspamd_judges_and_is_told_who_sent_what_to_whom", "rspamd") {
        return;
    }
    let (rspamd, crm) = (Rspamd::start(), Crm::start());
    let daemon = asking(rspamd.address, &crm, "");
    let mut client = Client::connect(daemon.smtp);
    let mut deliver = |sender: &str, recipient: &str, message: &[u8]| client.deliver(sender, &[recipient], message);

    let refused = deliver("client@example.org", "aide@solarmora.com", &gtube());
    assert!(refused.code == 550 && refused.text.starts_with("5.7.1"), "{refused:?}");
    let later = deliver("client@example.org", "aide@solarmora.com", &about("later"));
    assert!(later.code == 451 && later.text.starts_with("4.7.1"), "{later:?}");

    let plain = deliver("client@example.org", "aide@solarmora.com", &about("plain")).queued_as();
    let told = daemon.cli(&["trace", "--id", &plain]).out;
    assert!(told.contains("score 1.5 (clean): FROM_CLIENT 1.5"), "{told}");
    legs(&daemon, &plain);
    assert!(marks(&crm.wait_for_mails(1)[0].bytes).is_empty());

    let spam = deliver("client@example.org", "aide@solarmora.com", &about("ten points")).queued_as();
    let leg = legs(&daemon, &spam).remove(0);
    assert_eq!((leg.1.as_str(), leg.2.as_str()), ("quarantined", "spam"));

    // Envelope and client reach it: each of them is worth some points there.
    let known = deliver("known@example.org", "marque@solarmora.com", &about("ten points")).queued_as();
    let mail = crm.wait_for_mails(2).pop().unwrap();
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(
        text.contains(
            "X-Pointsman-Spam: yes; score=14.0;\r\n\tSUBJECT_TEN=10.0,\r\n\tFROM_SENDER=2.5,\r\n\tFROM_CLIENT=1.5\r\n"
        ),
        "{text}"
    );
    legs(&daemon, &known);

    // What is in a file streams there whole.
    let mut large = about("ten points");
    large.extend(b"more and more of it, and no end\r\n".repeat(40_000));
    let large = deliver("client@example.org", "aide@solarmora.com", &large).queued_as();
    assert_eq!(legs(&daemon, &large)[0].1, "quarantined");
}

#[test]
fn what_a_dead_rspamd_does_is_the_configurations_word() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let crm = Crm::start();
    for (on_error, code, scored) in [("accept", 250, false), ("defer", 451, false), ("builtin", 250, true)] {
        let daemon = asking(dead, &crm, &format!("on-error = \"{on_error}\""));
        let reply =
            Client::connect(daemon.smtp).deliver("client@example.org", &["aide@solarmora.com"], &message("Hello."));
        assert_eq!(reply.code, code, "{on_error}: {reply:?}");
        if code == 250 {
            let id = reply.queued_as();
            legs(&daemon, &id);
            assert_eq!(daemon.cli(&["trace", "--id", &id]).out.contains("no-date"), scored, "{on_error}");
        }
        let metrics = daemon.http("/metrics").1;
        assert!(metrics.contains("pointsman_spam_errors_total{result=\"connect\"} 1\n"), "{metrics}");
        wait_for("the log to say so", || daemon.log().contains("score-failed").then_some(()));
    }
}

#[test]
fn an_answer_that_is_none_is_an_error_within_bounds() {
    let crm = Crm::start();
    for (what, answer, result) in [
        ("nothing", "", "broken"),
        ("no HTTP", "220 mail.example ESMTP\r\n", "broken"),
        ("an error", "HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n", "unreadable"),
        ("no JSON", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "unreadable"),
        ("no score", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "unreadable"),
        (
            "no number",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"score\":\"15\",\"action\":\"reject\"}",
            "unreadable",
        ),
        ("a short one", "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"score\":1", "broken"),
        ("a bomb", "bomb", "unreadable"),
        ("a header bomb", "header bomb", "broken"),
        ("silence", "silence", "timeout"),
        ("a drip", "drip", "timeout"),
    ] {
        let server = answering(answer);
        let daemon = asking(server, &crm, "timeout = \"500ms\"\non-error = \"defer\"");
        let reply = Client::connect(daemon.smtp).deliver("client@example.org", &["aide@solarmora.com"], &gtube());
        assert_eq!(reply.code, 451, "{what}: {reply:?}");
        let metrics = daemon.http("/metrics").1;
        let line = format!("pointsman_spam_errors_total{{result=\"{result}\"}} 1\n");
        assert!(metrics.contains(&line), "{what}: no {line} in {metrics}");
    }
}

#[test]
fn a_refusal_that_its_score_does_not_explain_counts_all_the_same() {
    let crm = Crm::start();
    let virus =
        r#"{"score":2.5,"required_score":15.0,"action":"reject","symbols":{"CLAM_VIRUS\r\nX: y":{"score":2.5}}}"#;
    let server = answering(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{virus}", virus.len()));
    let daemon = asking(server, &crm, "");
    let mut client = Client::connect(daemon.smtp);
    let reply = client.deliver("client@example.org", &["aide@solarmora.com"], &message("Hello."));
    assert_eq!(reply.code, 550, "{reply:?}");
    let id =
        client.deliver("client@example.org", &["tout@solarmora.com", "aide@solarmora.com"], &message("x")).queued_as();
    let told = daemon.cli(&["trace", "--id", &id]).out;
    assert!(told.contains("refused by rspamd") && told.contains("CLAM_VIRUS__X__y"), "{told}");
}

/// A server that reads a request's beginning and answers as it is told.
fn answering(answer: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = answer.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || answer_one(stream, &answer));
        }
    });
    address
}

/// The head, and as many octets behind it as it says.
fn read_request(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    let (mut request, mut piece) = (Vec::new(), [0; 65_536]);
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if body.len() >= length.expect("the request says how long it is") {
                return Ok(());
            }
        }
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&piece[..count]),
        }
    }
}

/// Ends where the client hangs up, as it must.
fn answer_one(mut stream: std::net::TcpStream, answer: &str) -> std::io::Result<()> {
    let mut request = [0; 65_536];
    if answer == "silence" {
        while stream.read(&mut request)? > 0 {}
        return Ok(());
    }
    read_request(&mut stream)?;
    match answer {
        "drip" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(b" ")?;
                thread::sleep(Duration::from_millis(20));
            }
        }
        "bomb" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 65_536])?;
            }
        }
        "header bomb" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                stream.write_all(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")?;
            }
        }
        answer => {
            stream.write_all(answer.as_bytes())?;
            // A close with octets unread would be a reset, which overtakes what we said.
            stream.shutdown(std::net::Shutdown::Write)?;
            while stream.read(&mut request)? > 0 {}
            Ok(())
        }
    }
}
