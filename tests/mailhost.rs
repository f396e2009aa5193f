//! The profile `mailhost`: mailboxes of people behind us, who get what they are sent, by a host that knows who they are.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage};

const RULES: &str = r#"
[domain."solarmora.com"]
role      = "admin@mon-crm.com"
mailboxes = "people"

[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }

[alias."solarmora.com"]
aide = { to = "salesforce" }
"#;

/// The CRM, the mail host, and a daemon before both that takes clients' addresses from a balancer.
fn start(more: &str) -> (Daemon, Crm, Crm) {
    let (crm, host) = (Crm::start(), Crm::start());
    let route = format!("[route.people]\nprofile = \"mailhost\"\nhosts = [\"{}\"]\ntls = \"off\"\n", host.address());
    let site = Setup::new(crm.address()).rules(RULES).more(&format!("{route}{more}")).site();
    let listener = "address = \"127.0.0.1:0\"\ntls     = \"off\"\n";
    site.reconfigure(listener, &format!("{listener}proxy = [\"127.0.0.0/8\"]\n"));
    (site.start(), crm, host)
}

fn client_from(daemon: &Daemon, ip: &str) -> Client {
    connect(daemon.smtp, ip)
}

fn connect(address: SocketAddr, ip: &str) -> Client {
    let mut client = Client::try_raw(address).unwrap();
    client.send(format!("PROXY TCP4 {ip} 127.0.0.1 40000 25\r\n").as_bytes()).unwrap();
    assert_eq!(client.reply().code, 220);
    assert_eq!(client.say("EHLO client.example.org").code, 250);
    client
}

const OUTSIDE: &str = "192.0.2.7";

/// The replies to these recipients, one transaction each.
fn asked(daemon: &Daemon, recipients: &[&str]) -> Vec<u16> {
    let mut client = client_from(daemon, OUTSIDE);
    let mut ask = |recipient: &&str| {
        client.say("MAIL FROM:<client@example.org>");
        let reply = client.say(&format!("RCPT TO:<{recipient}@solarmora.com>"));
        client.say("RSET");
        reply.code
    };
    recipients.iter().map(&mut ask).collect()
}

#[test]
fn the_mail_host_is_asked_at_rcpt_and_believed_for_a_while() {
    let (daemon, _crm, host) = start("");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&lines);
    host.hear(move |line| heard.lock().unwrap().push(line.to_owned()));
    host.follow(|stage, line| {
        let unknown = stage == Stage::Rcpt && line.contains("personne");
        unknown.then(|| Answer::Say("550 5.1.1 no such user".to_owned()))
    });
    assert_eq!(asked(&daemon, &["jean", "personne", "aide"]), [250, 550, 250]);
    let asked_first = lines.lock().unwrap().clone();
    assert!(asked_first.iter().any(|line| line.starts_with("MAIL FROM:<>")), "{asked_first:?}");
    assert!(!asked_first.iter().any(|line| line.starts_with("DATA")), "{asked_first:?}");
    let rcpts = |lines: &[String]| lines.iter().filter(|line| line.starts_with("RCPT")).count();
    assert_eq!(rcpts(&asked_first), 2, "of an alias it knows nothing");
    // By now it says otherwise, and nobody asks.
    host.answer(Stage::Rcpt, "451 4.3.0 later");
    assert_eq!(asked(&daemon, &["JEAN", "personne"]), [250, 550]);
    assert_eq!(rcpts(&lines.lock().unwrap()), 2);
    // In doubt the client comes back, and postmaster is taken whatever anybody says.
    assert_eq!(asked(&daemon, &["marie", "postmaster"]), [450, 250]);
    host.go_down();
    assert_eq!(asked(&daemon, &["paul", "jean"]), [450, 250]);
    host.come_up();
    host.take_all();
    assert_eq!(asked(&daemon, &["marie", "paul"]), [250, 250], "a doubt is not remembered");
    daemon.wait_for_log("\"event\":\"mailhost-unsure\"");
}

const ZONE: &str = "bad.example TXT v=spf1 -all\n_dmarc.bad.example TXT v=DMARC1; p=reject\n\
    doubtful.example TXT v=spf1 -all\n_dmarc.doubtful.example TXT v=DMARC1; p=quarantine\n";
const GTUBE: &str = concat!("XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-", "ANTI-UBE-TEST-EMAIL*C.34X");

#[test]
fn people_get_what_they_are_sent_and_checks_only_mark_it() {
    let dns = Dns::start(ZONE);
    let srs = "[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"geheim\"]\n";
    let (daemon, crm, host) =
        start(&format!("{}\n[auth]\n[spam]\nquarantine = 900.0\nreject = 950.0\n{srs}", dns.config()));
    let mut client = client_from(&daemon, OUTSIDE);
    let mut deliver = |from: &str, recipients: &[&str], body: &str| {
        let message = format!("From: {from}\r\nSubject: s\r\nMessage-ID: <1@x.example>\r\n\r\n{body}\r\n");
        let recipients: Vec<String> = recipients.iter().map(|name| format!("{name}@solarmora.com")).collect();
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        client.deliver(from, &recipients, message.as_bytes())
    };
    // The same mail twice, and it is as it was sent.
    for n in 1..=2 {
        deliver("client@x.example", &["jean"], "Bonjour.").queued_as();
        let mail = host.wait_for_mails(n).pop().unwrap();
        assert_eq!(mail.sender(), "client@x.example", "no rewritten sender");
        let text = String::from_utf8(mail.bytes).unwrap();
        assert!(!text.contains("Delivered-To:") && text.ends_with("\r\n\r\nBonjour.\r\n"), "{text}");
    }
    // What a CRM would not get: spam, and what DMARC has refused or quarantined.
    for (n, (from, body, mark)) in [
        ("client@x.example", GTUBE, "X-Pointsman-Spam: yes"),
        ("a@bad.example", "Bonjour.", "dmarc=fail"),
        ("a@doubtful.example", "Bonjour.", "dmarc=fail"),
    ]
    .into_iter()
    .enumerate()
    {
        deliver(from, &["jean"], body).queued_as();
        let text = String::from_utf8(host.wait_for_mails(3 + n).pop().unwrap().bytes).unwrap();
        assert!(text.contains(mark), "{text}");
    }
    assert_eq!(deliver("a@bad.example", &["aide"], "Bonjour.").code, 550);
    assert_eq!(deliver("client@x.example", &["aide"], GTUBE).code, 550);
    let id = deliver("a@bad.example", &["aide", "jean"], "Bonjour.").queued_as();
    assert_eq!(daemon.wait_for_leg(&format!("{id}.1"), "quarantined")["reason"], "dmarc");
    daemon.wait_for_leg(&format!("{id}.2"), "delivered");
    assert!(crm.mails().is_empty());
}

#[test]
fn what_the_mail_host_sends_never_goes_back_to_it() {
    let (daemon, crm, host) = start("");
    let message = b"From: a@b.example\r\nSubject: s\r\n\r\nx\r\n";
    let mut client = client_from(&daemon, "127.0.0.1");
    let id = client.deliver("a@b.example", &["jean@solarmora.com"], message).queued_as();
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "held");
    assert_eq!(leg["reason"], "loop");
    assert!(leg["detail"].as_str().unwrap().contains("it came from the mail host"), "{leg}");
    let id = client.deliver("a@b.example", &["aide@solarmora.com"], message).queued_as();
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!((crm.mails().len(), host.mails().len()), (1, 0));
}
