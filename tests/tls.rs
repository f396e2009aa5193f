//! TLS through the real daemon, both ways: with openssl, swaks and Postfix as the other side, and a second daemon of
//! ours as the CRM.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::harness::daemon::CRM_RULES;
use crate::harness::postfix::Postfix;
use crate::harness::{Certificates, Client, Crm, Daemon, Setup, has, is_root, run, wait_for};

const MESSAGE: &[u8] =
    b"From: client@example.org\r\nSubject: panne\r\nMessage-ID: <tls@example.org>\r\n\r\nAu secours.\r\n";

#[test]
fn mail_comes_in_by_starttls_and_by_implicit_tls() {
    if !has("mail_comes_in_by_tls", "swaks") {
        return;
    }
    let certificates = Certificates::new("mx.solarmora.com");
    for (listener, option) in [("starttls", "--tls"), ("implicit", "--tls-on-connect")] {
        let crm = Crm::start();
        let daemon = Setup::new(crm.address()).listener_tls(listener, &certificates).start();
        let mut swaks = Command::new("swaks");
        swaks.args(["--server", "127.0.0.1", "--port", &daemon.smtp.port().to_string(), option, "--helo", "c.example"]);
        let said = run(swaks.args(["--from", "client@example.org", "--to", "aide@solarmora.com"]));
        assert!(said.contains("2.0.0 queued as "), "{said}");
        let text = String::from_utf8(crm.wait_for_mails(1).remove(0).bytes).unwrap();
        assert!(text.contains("with ESMTPS "), "{text}");
    }
}

#[test]
fn only_versions_that_are_sound_are_spoken() {
    if !has("only_versions_that_are_sound_are_spoken", "openssl") {
        return;
    }
    let certificates = Certificates::new("mx.solarmora.com");
    let daemon = Setup::new(Crm::start().address()).listener_tls("starttls", &certificates).start();
    // Level 0 lets openssl itself try what it no longer likes.
    let weak = ["-cipher", "DEFAULT@SECLEVEL=0"];
    for (options, spoken) in [
        (&["-tls1_3"][..], Some("TLSv1.3")),
        (&["-tls1_2"], Some("TLSv1.2")),
        (&["-tls1_1", weak[0], weak[1]], None),
        (&["-tls1", weak[0], weak[1]], None),
        (&["-tls1_2", "-cipher", "AES128-SHA:DES-CBC3-SHA:@SECLEVEL=0"], None),
        (&["-servername", "nobody.example"], Some("TLSv1.3")),
    ] {
        let mut client = s_client(&daemon, &certificates, "mx.solarmora.com", options);
        match spoken {
            Some(version) => {
                assert!(client.opened().contains(version), "{options:?}");
                assert!(client.say("EHLO c.example").contains("250"));
            }
            None => assert!(!client.ended().contains("250 2.0.0"), "{options:?}"),
        }
    }
    assert!(Client::connect(daemon.smtp).deliver("client@example.org", &["aide@solarmora.com"], MESSAGE).code == 250);
}

#[test]
fn words_behind_starttls_are_never_executed() {
    let certificates = Certificates::new("mx.solarmora.com");
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &certificates).start();
    let mut client = Client::connect(daemon.smtp);
    client
        .send(b"STARTTLS\r\nEHLO x\r\nMAIL FROM:<smuggled@example.org>\r\nRCPT TO:<aide@solarmora.com>\r\nDATA\r\n")
        .unwrap();
    assert_eq!(client.reply().code, 554);
    assert!(client.is_closed());
    // In a segment of their own they are no handshake either.
    let mut client = Client::connect(daemon.smtp);
    assert_eq!(client.say("STARTTLS").code, 220);
    client.send(b"MAIL FROM:<smuggled@example.org>\r\n").unwrap();
    assert!(client.try_reply().is_err());
    daemon.send("aide@solarmora.com");
    assert_eq!(crm.wait_for_mails(1)[0].sender(), "client@example.org");
}

/// CVE-2026-45185: TLS ends inside a chunk, and what follows is in clear text.
#[test]
fn a_message_that_leaves_tls_in_its_middle_is_none() {
    let certificates = Certificates::new("mx.solarmora.com");
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &certificates).start();
    for beginning in ["BDAT 40 LAST\r\nSubject: chunk\r\n\r\n", "DATA\r\n"] {
        for clear in [&b"x"[..], b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n.\r\nQUIT\r\n", b""] {
            let mut client = Client::connect_tls(daemon.smtp, "mx.solarmora.com", &certificates);
            assert_eq!(client.say("MAIL FROM:<smuggled@example.org>").code, 250);
            assert_eq!(client.say("RCPT TO:<aide@solarmora.com>").code, 250);
            client.send(beginning.as_bytes()).unwrap();
            if beginning.starts_with("DATA") {
                assert_eq!(client.reply().code, 354);
                client.send(b"Subject: data\r\n\r\n").unwrap();
            }
            client.leave_tls();
            // The daemon may have closed already.
            let _ = client.send_below(clear);
            client.hang_up();
            assert!(client.try_reply().is_err(), "the session is over: {beginning:?}");
        }
    }
    daemon.send("aide@solarmora.com");
    assert_eq!(crm.wait_for_mails(1)[0].sender(), "client@example.org");
    wait_for("the queue to be empty", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    assert_eq!(crm.mails().len(), 1);
}

#[test]
fn a_handshake_that_is_given_up_leaves_nothing_open() {
    let certificates = Certificates::new("mx.solarmora.com");
    let daemon = Setup::new(Crm::start().address()).listener_tls("starttls", &certificates).start();
    drop(Client::connect(daemon.smtp));
    let before = daemon.sockets();
    for n in 0..1000 {
        let mut client = Client::connect(daemon.smtp);
        assert_eq!(client.say("STARTTLS").code, 220);
        // Nothing, a beginning, garbage.
        client.send([&b""[..], &[22, 3, 1, 1, 0, 1], b"EHLO again\r\n"][n % 3]).unwrap();
    }
    wait_for("all sockets to be closed", || (daemon.sockets() <= before).then_some(()));
}

#[test]
fn a_new_certificate_is_taken_up_and_no_session_drops() {
    if !has("a_new_certificate_is_taken_up", "openssl") {
        return;
    }
    let certificates = Certificates::new("mx.solarmora.com");
    let daemon = Setup::new(Crm::start().address()).listener_tls("starttls", &certificates).start();
    let expires = |year: &str| {
        let line = format!("pointsman_tls_certificate_expiry_timestamp_seconds{{listener=\"mx\"}} {year}");
        wait_for(&line, || daemon.http("/metrics").1.contains(&line).then_some(()));
    };
    // 2096-03-01 and 2095-03-01.
    expires("3981398400");
    let mut clear = Client::connect(daemon.smtp);
    let mut under_way = s_client(&daemon, &certificates, "mx.solarmora.com", &[]);
    under_way.opened();
    assert!(under_way.say("EHLO c.example").contains("250"));

    certificates.issue("new.solarmora.com", 2095);
    daemon.signal("HUP");
    expires("3949776000");
    assert_eq!(clear.say("NOOP").code, 250);
    assert!(under_way.say("NOOP").contains("250 2.0.0"));
    s_client(&daemon, &certificates, "new.solarmora.com", &[]).opened();

    // A key that belongs to another certificate, and a certificate that has expired, change nothing.
    let key = std::fs::read(certificates.key()).unwrap();
    certificates.issue("third.solarmora.com", 2095);
    std::fs::write(certificates.key(), key).unwrap();
    daemon.signal("HUP");
    wait_for("the daemon to say so", || daemon.log().contains("is not that of the first certificate").then_some(()));
    certificates.issue("third.solarmora.com", 2001);
    daemon.signal("HUP");
    wait_for("the daemon to say so", || daemon.log().contains("expired at 2001-03-01").then_some(()));
    s_client(&daemon, &certificates, "new.solarmora.com", &[]).opened();
    assert!(under_way.say("NOOP").contains("250 2.0.0"));
    expires("3949776000");
}

#[test]
fn mail_goes_out_as_the_route_asks() {
    let named = Certificates::new("127.0.0.1");
    let misnamed = Certificates::new("other.example");
    // certificate of the CRM, what it offers, route; what becomes of the leg, and how the CRM received it
    for (certificates, offers, route, state, with) in [
        (&named, "starttls", "off", "delivered", "with ESMTP "),
        (&named, "starttls", "opportunistic", "delivered", "with ESMTPS "),
        (&misnamed, "starttls", "opportunistic", "delivered", "with ESMTPS "),
        (&misnamed, "starttls", "require", "delivered", "with ESMTPS "),
        (&named, "starttls", "verify", "delivered", "with ESMTPS "),
        (&misnamed, "starttls", "verify", "queued", ""),
        (&named, "off", "opportunistic", "delivered", "with ESMTP "),
        (&named, "off", "require", "queued", ""),
        (&named, "off", "verify", "queued", ""),
    ] {
        let case = format!("{offers} {route} {state}");
        let inbox = Crm::start();
        let crm = Setup::new(inbox.address()).rules(CRM_RULES).listener_tls(offers, certificates).start();
        let daemon = Setup::new(crm.smtp).route_tls(route, certificates).start();
        let id = daemon.send_bytes("aide@solarmora.com", MESSAGE);
        if state == "delivered" {
            daemon.wait_for_leg(&format!("{id}.1"), state);
            let mail = inbox.wait_for_mails(1).remove(0);
            let text = String::from_utf8(mail.bytes.clone()).unwrap();
            // The CRM's own Received is the first.
            let received = &text[text.find("Received: ").unwrap()..];
            assert!(received[..received.find(';').unwrap()].contains(with), "{case}: {text}");
            assert!(mail.bytes.ends_with(MESSAGE), "{case}");
        } else {
            let row = wait_for("the attempt", || {
                let rows = daemon.rows(&["trace", "--id", &id]);
                rows.into_iter().find(|row| row["attempts"] == 1)
            });
            assert_eq!((&row["state"], &row["reason"]), (&"queued".into(), &"tls".into()), "{case}: {row}");
            assert!(
                daemon.http("/metrics").1.contains("pointsman_attempts_total{route=\"crm\",result=\"tls\"} 1"),
                "{case}"
            );
            assert!(inbox.mails().is_empty(), "{case}");
        }
    }
}

#[test]
fn postfix_speaks_tls_with_us_both_ways() {
    if !is_root("postfix_speaks_tls_with_us") || !has("postfix_speaks_tls_with_us", "postfix") {
        return;
    }
    let (ours, theirs) = (Certificates::new("127.0.0.1"), Certificates::new("127.0.0.1"));
    let crm = Postfix::as_crm_with(&format!(
        "smtpd_tls_security_level = encrypt\nsmtpd_tls_chain_files = {}, {}\nsmtpd_tls_received_header = yes\n",
        theirs.key().display(),
        theirs.certificate().display()
    ));
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &ours).route_tls("verify", &theirs).start();
    let upstream = Postfix::as_upstream_with(daemon.smtp, "smtp_tls_security_level = encrypt\nsmtp_tls_loglevel = 1\n");
    Client::connect(upstream.address()).deliver("client@example.org", &["aide@solarmora.com"], MESSAGE);
    let mail = String::from_utf8(crm.wait_for_mails(1).remove(0)).unwrap();
    assert!(mail.contains("using TLSv1.3"), "{mail}");
    assert!(mail.contains("with ESMTPS "), "{mail}");
}

/// openssl in a session that STARTTLS opened, verifying us by the authority and this name.
struct SClient {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

fn s_client(daemon: &Daemon, certificates: &Certificates, name: &str, options: &[&str]) -> SClient {
    let mut process = Command::new("openssl")
        .args(["s_client", "-starttls", "smtp", "-connect", &daemon.smtp.to_string(), "-crlf", "-brief"])
        .args(["-verify_return_error", "-verify_hostname", name, "-CAfile"])
        .arg(certificates.ca())
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl can be started");
    let input = process.stdin.take().unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    SClient { process, input, output }
}

impl SClient {
    /// What it says about the session that came about.
    fn opened(&mut self) -> String {
        let mut said = String::new();
        let mut reader = BufReader::new(self.process.stderr.take().unwrap());
        while !said.contains("Verification: OK") {
            let read = reader.read_line(&mut said).unwrap();
            assert!(read > 0, "no session: {said}");
        }
        // Kept open: openssl would stumble over a closed pipe.
        self.process.stderr = Some(reader.into_inner());
        said
    }

    /// Sends a line; the last line of the reply.
    fn say(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        loop {
            let mut reply = String::new();
            assert!(self.output.read_line(&mut reply).unwrap() > 0, "the session is closed");
            if reply.as_bytes().get(3) == Some(&b' ') {
                return reply;
            }
        }
    }

    /// What it says where no session comes about.
    fn ended(mut self) -> String {
        // It may be gone already.
        let _ = writeln!(self.input, "NOOP");
        let mut said = String::new();
        while self.output.read_line(&mut said).unwrap() > 0 {}
        said
    }
}

impl Drop for SClient {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
