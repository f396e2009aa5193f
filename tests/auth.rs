//! Who sent it, through the real daemon: a name server of the test's own, and mail that others signed.

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, Stage, wait_for};

const ZONE: &str = "
good.example TXT v=spf1 ip4:127.0.0.1 -all
_dmarc.good.example TXT v=DMARC1; p=reject
bad.example TXT v=spf1 -all
_dmarc.bad.example TXT v=DMARC1; p=reject
doubtful.example TXT v=spf1 -all
_dmarc.doubtful.example TXT v=DMARC1; p=quarantine
lame.example SERVFAIL
_dmarc.lame.example SERVFAIL
";

fn daemon(dns: &Dns, crm: &Crm, auth: &str) -> Daemon {
    Setup::new(crm.address()).more(&format!("{}\n[auth]\n{auth}\n", dns.config())).start()
}

fn message(domain: &str) -> Vec<u8> {
    format!("From: A <a@{domain}>\r\nSubject: s\r\nMessage-ID: <1@{domain}>\r\n\r\nHello.\r\n").into_bytes()
}

fn results(mail: &[u8]) -> String {
    let text = String::from_utf8_lossy(mail).replace("\r\n\t", " ").replace("\r\n ", " ");
    text.lines()
        .find(|line| line.starts_with("Authentication-Results: mx.solarmora.com"))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn results_stand_in_the_relayed_message_and_in_the_trace() {
    let (dns, crm) = (Dns::start(ZONE), Crm::start());
    let daemon = daemon(&dns, &crm, "");
    let id = Client::connect(daemon.smtp)
        .deliver("a@good.example", &["aide@solarmora.com"], &message("good.example"))
        .queued_as();
    let mail = crm.wait_for_mails(1).remove(0);
    let results = results(&mail.bytes);
    for word in ["spf=pass", "smtp.mailfrom=", "dkim=none", "dmarc=pass", "header.from=good.example", "iprev=pass"] {
        assert!(results.contains(word), "no {word} in: {results}");
    }
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(text.find("Authentication-Results:").unwrap() < text.find("Received: from").unwrap());
    // A resolver knows this name without asking (RFC 6761 §6.3).
    assert!(text.contains("(localhost [127.0.0.1])"), "{text}");
    daemon.cli(&["trace", "--id", &id]).succeeds().says(&["spf=pass", "dmarc=pass", "ptr=pass"]);
    let metrics = daemon.http("/metrics").1;
    assert!(metrics.contains("pointsman_auth_total{check=\"spf\",result=\"pass\"} 1"), "{metrics}");
    assert!(dns.asked() > 0);
}

#[test]
fn dmarc_refuses_quarantines_or_marks_as_the_mode_says() {
    let (dns, crm) = (Dns::start(ZONE), Crm::start());
    for (mode, bad, doubtful) in
        [("enforce", 550, "quarantined"), ("quarantine", 250, "quarantined"), ("mark", 250, "delivered")]
    {
        let daemon = daemon(&dns, &crm, &format!("dmarc = \"{mode}\""));
        let mut client = Client::connect(daemon.smtp);
        let reply = client.deliver("a@bad.example", &["aide@solarmora.com"], &message("bad.example"));
        assert_eq!(reply.code, bad, "{mode}: {reply:?}");
        if bad == 550 {
            assert!(reply.text.starts_with("5.7.1"), "{reply:?}");
            wait_for("the refusal in the trace", || {
                daemon.cli(&["trace", "--recipient", "aide@solarmora.com"]).out.contains("5.7.1").then_some(())
            });
        }
        let id =
            client.deliver("a@doubtful.example", &["aide@solarmora.com"], &message("doubtful.example")).queued_as();
        let leg = daemon.wait_for_leg(&format!("{id}.1"), doubtful);
        if doubtful == "quarantined" {
            assert_eq!(leg["reason"], "dmarc");
        }
        let id = client.deliver("a@good.example", &["aide@solarmora.com"], &message("good.example")).queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
}

#[test]
fn a_failing_dns_is_no_verdict() {
    let (dns, crm) = (Dns::start(ZONE), Crm::start());
    for (on_temperror, code) in [("accept", 250), ("defer", 451)] {
        let daemon = daemon(&dns, &crm, &format!("on-temperror = \"{on_temperror}\""));
        let mut client = Client::connect(daemon.smtp);
        let reply = client.deliver("a@lame.example", &["aide@solarmora.com"], &message("lame.example"));
        assert_eq!(reply.code, code, "{reply:?}");
        assert!(results(&crm.wait_for_mails(1)[0].bytes).contains("spf=temperror"));
    }
}

#[test]
fn signatures_of_another_implementation_pass_small_and_large() {
    let zone = include_str!("../src/auth/verify/testdata/zone.txt");
    let (dns, crm) = (Dns::start(zone), Crm::start());
    let daemon = daemon(&dns, &crm, "");
    let signed = include_bytes!("../src/auth/verify/testdata/dkimpy-relaxed.eml");
    let broken = String::from_utf8(signed.to_vec()).unwrap().replace("Hello", "Jello").into_bytes();
    // Beyond 64 KiB a body is in a file; there is none to sign with here, so it is seen to fail.
    let mut large = signed.to_vec();
    large.extend(b"more of it\r\n".repeat(20_000));
    let mut client = Client::connect(daemon.smtp);
    for (number, (message, word)) in
        [(&signed[..], "dkim=pass"), (&broken, "dkim=fail"), (&large, "dkim=fail")].into_iter().enumerate()
    {
        client.deliver("u@a.example", &["aide@solarmora.com"], message);
        let mail = crm.wait_for_mails(number + 1).pop().unwrap();
        let results = results(&mail.bytes);
        assert!(results.contains(word) && results.contains("header.d=a.example"), "{word}: {results}");
        assert!(mail.bytes.ends_with(message), "the original is untouched");
    }
}

#[test]
fn what_a_stranger_wrote_in_our_name_is_cut_and_the_rest_kept() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    let forged =
        b"Authentication-Results: mx.solarmora.com; spf=pass\r\nAuthentication-Results: mx.other.example; spf=fail\r\n\
        AUTHENTICATION-results : (c) MX.Solarmora.COM (x);\r\n\tdkim=pass\r\nX-Spam-Flag: NO\r\nX-Zammad-Ticket: 1\r\n\
        From: a@b.example\r\n\r\nX-Spam-Flag: in the body\r\n";
    Client::connect(daemon.smtp).deliver("a@b.example", &["aide@solarmora.com"], forged);
    let mail = crm.wait_for_mails(1).remove(0);
    let wanted = b"Authentication-Results: mx.other.example; spf=fail\r\n\
        From: a@b.example\r\n\r\nX-Spam-Flag: in the body\r\n";
    let text = String::from_utf8_lossy(&mail.bytes);
    assert!(mail.bytes.ends_with(wanted), "{text}");
    assert_eq!(text.matches("solarmora.com;").count(), 0, "{text}");
}

#[test]
fn a_proven_sender_hears_that_his_message_was_refused_and_a_stranger_does_not() {
    let (dns, crm) = (Dns::start(ZONE), Crm::start());
    crm.follow(|stage, line| {
        let refuses = stage == Stage::Dot && !line.contains("never");
        refuses.then(|| crate::harness::Answer::Say("550 5.6.0 no such form".into()))
    });
    let daemon = daemon(&dns, &crm, "dmarc = \"mark\"");
    let mut client = Client::connect(daemon.smtp);
    let proven = client.deliver("a@good.example", &["aide@solarmora.com"], &message("good.example")).queued_as();
    let leg = daemon.wait_for_leg(&format!("{proven}.1"), "bounced");
    assert_eq!(leg["dsn"], "sent", "{leg}");
    let stranger = client.deliver("a@bad.example", &["aide@solarmora.com"], &message("bad.example")).queued_as();
    daemon.wait_for_leg(&format!("{stranger}.1"), "quarantined");
    let notices = daemon.rows(&["trace", "--sender", "<>"]);
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(notices[0]["target"], "a@good.example");
}
