//! Who sent it, through the real daemon: a name server of the test's own, and mail that others signed.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, Stage, alone, has, results, skip, wait_for};

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

/// Who stands in our `[upstream]` hands on what others sent: they are checked, at the first relay that is not ours.
#[test]
fn behind_our_own_relays_the_client_outside_is_checked() {
    let zone = "out.example TXT v=spf1 ip4:203.0.113.9 -all\n_dmarc.out.example TXT v=DMARC1; p=reject\n\
        mail.out.example A 203.0.113.9\n";
    let (dns, crm) = (Dns::start(zone), Crm::start());
    let outside = "Received: from mail.out.example (mail.out.example [203.0.113.9])\r\n\tby relay.solarmora.com (Postfix)\r\n\
        \twith ESMTP id 4F2; Sat, 21 Nov 2026 09:00:00 +0100\r\n";
    let inner = "Received: from relay.solarmora.com (relay.solarmora.com [127.0.0.2])\r\n\tby inner.solarmora.com (Postfix)\r\n\
        \twith ESMTP id 4F3; Sat, 21 Nov 2026 09:00:01 +0100\r\n";
    let message = String::from_utf8(message("out.example")).unwrap();
    for (upstream, received, spf) in [
        (true, outside.to_owned(), "spf=pass"),
        (true, format!("{inner}{outside}"), "spf=pass"),
        // A field that the client wrote below the one of ours does not count, nor any where the peer is not ours.
        (true, format!("{}{outside}", outside.replace("203.0.113.9", "198.51.100.1")), "spf=fail"),
        (false, outside.to_owned(), "spf=fail"),
    ] {
        let networks = if upstream { "[upstream]\nnetworks = [\"127.0.0.0/8\"]\n" } else { "" };
        let daemon = daemon(&dns, &crm, &format!("dmarc = \"mark\"\n{networks}"));
        let before = crm.mails().len();
        let mail = format!("{received}{message}");
        Client::connect(daemon.smtp).deliver("a@out.example", &["aide@solarmora.com"], mail.as_bytes());
        let results = results(&crm.wait_for_mails(before + 1).pop().unwrap().bytes);
        assert!(results.contains(spf), "upstream {upstream}, {received}: {results}");
    }
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

/// hostile.md, AUT, forged Authentication-Results: all of ours go, the others stay, in their order.
#[test]
fn aut_forged_results_in_our_name_are_cut_fifteen_ways_and_a_thousand_times() {
    let (dns, crm) = (Dns::start(ZONE), Crm::start());
    let daemon = daemon(&dns, &crm, "");
    let ours = [
        "Authentication-Results: mx.solarmora.com; spf=pass",
        "authentication-results: MX.SOLARMORA.COM; dmarc=pass",
        "Authentication-Results:\r\n mx.solarmora.com;\r\n\tdkim=pass",
        "Authentication-Results: \"mx.solarmora.com\"; none",
        "Authentication-Results: \"mx.\\solarmora.com\"; none",
        "Authentication-Results: (us) mx.solarmora.com; none",
        "Authentication-Results: mx.solarmora.com (us); none",
        "Authentication-Results: mx(.other.example).solarmora.com; none",
        "Authentication-Results: mx.solarmora.com.; none",
        "Authentication-Results:\tmx.solarmora.com\t;\tnone",
        "Authentication-Results : mx.solarmora.com; none",
        "Authentication-Results:mx.solarmora.com;none",
        "Authentication-Results: mx.solarmora.com 1; none",
        "Authentication-Results: \u{ff4d}\u{ff58}.solarmora.com; none",
        "Authentication-Results: (never ends; mx.solarmora.com; none",
    ];
    let mut forged = String::new();
    let mut wanted = String::new();
    for n in 0..1000 {
        let foreign = format!("Authentication-Results: mx{n}.other.example; spf=pass\r\n");
        forged.push_str(&format!("{}\r\n{foreign}", ours[n % ours.len()]));
        wanted.push_str(&foreign);
    }
    let rest = "From: a@good.example\r\n\r\nAuthentication-Results: mx.solarmora.com; in the body\r\n";
    forged.push_str(rest);
    wanted.push_str(rest);
    Client::connect(daemon.smtp).deliver("a@good.example", &["aide@solarmora.com"], forged.as_bytes()).queued_as();
    let mail = crm.wait_for_mails(1).remove(0);
    let text = String::from_utf8_lossy(&mail.bytes);
    assert!(mail.bytes.ends_with(wanted.as_bytes()), "{text}");
    let head = &text[..text.len() - wanted.len()];
    assert_eq!(head.matches("Authentication-Results:").count(), 1, "{head}");
}

/// hostile.md, AUT: what only a receiver may say of a message goes.
#[test]
fn aut_forged_control_fields_are_cut() {
    let (dns, crm) = (Dns::start(ZONE), Crm::start());
    let daemon = daemon(&dns, &crm, "");
    let cut = [
        "Received-SPF: pass",
        "received-spf : pass (forged)",
        "X-Spam-Status: No",
        "X-Spam-Flag: NO",
        "x-spam-level:",
        "X-Pointsman-Spam: 0",
        "X-Pointsman-Loop: x",
        "X-Gm-Original-To: x@solarmora.com",
        "X-Zammad-Ticket-Owner: root",
        "RT-Send-CC: all@evil.example",
    ];
    let message = format!("{}\r\nFrom: a@good.example\r\nX-Other: stays\r\n\r\nbody\r\n", cut.join("\r\n"));
    Client::connect(daemon.smtp).deliver("a@good.example", &["aide@solarmora.com"], message.as_bytes()).queued_as();
    let text = String::from_utf8(crm.wait_for_mails(1).remove(0).bytes).unwrap();
    for line in cut {
        assert!(!text.contains(line), "{line}: {text}");
    }
    assert!(text.ends_with("From: a@good.example\r\nX-Other: stays\r\n\r\nbody\r\n"), "{text}");
}

/// True where Debian's python3-authres is there; else the test is skipped, loudly.
fn has_authres(test: &str) -> bool {
    if !has(test, "python3") {
        return false;
    }
    let found = Command::new("python3").args(["-c", "import authres"]).output().is_ok_and(|run| run.status.success());
    if !found {
        skip(test, "python3-authres is not installed; tests/run installs it as root");
    }
    found
}

/// The field as another implementation reads it: `[authserv-id, [[method, result, {property: value}]]]`.
fn read_by_authres(field: &str) -> Value {
    const SCRIPT: &str = "import sys, json, authres
field = authres.AuthenticationResultsHeader.parse(sys.stdin.buffer.read().decode('ascii'))
print(json.dumps([field.authserv_id, [[r.method, r.result, {p.type + '.' + p.name: p.value for p in r.properties}]
                                      for r in field.results]]))";
    let mut python = Command::new("python3");
    let mut python = python.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(field.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "authres cannot read: {field}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn another_implementation_reads_our_results_whatever_a_peer_said() {
    if !has_authres("another_implementation_reads_our_results_whatever_a_peer_said") {
        return;
    }
    let zone = format!("{}\n{ZONE}", include_str!("../src/auth/verify/testdata/zone.txt"));
    let (dns, crm) = (Dns::start(&zone), Crm::start());
    let daemon = daemon(&dns, &crm, "dmarc = \"mark\"");
    let field = |number: usize| {
        let text = String::from_utf8(crm.wait_for_mails(number).pop().unwrap().bytes).unwrap();
        let from = text.find("Authentication-Results: mx.solarmora.com;").unwrap();
        let end = text[from..].match_indices("\r\n").find(|(at, _)| !text[from + at + 2..].starts_with(['\t', ' ']));
        text[from..from + end.unwrap().0].to_owned()
    };
    let signed = include_bytes!("../src/auth/verify/testdata/dkimpy-relaxed.eml");
    Client::connect(daemon.smtp).deliver("u+tag@good.example", &["aide@solarmora.com"], signed).queued_as();
    let read = read_by_authres(&field(1));
    assert_eq!(read[0], "mx.solarmora.com");
    let of = |method: &str| read[1].as_array().unwrap().iter().find(|one| one[0] == method).unwrap().clone();
    assert_eq!(of("spf"), json!(["spf", "pass", { "smtp.mailfrom": "u+tag@good.example" }]));
    let dkim = of("dkim");
    assert_eq!(dkim[1], "pass");
    for (property, value) in [("header.d", "a.example"), ("header.s", "s1"), ("header.a", "rsa-sha256")] {
        assert_eq!(dkim[2][property], value, "{dkim}");
    }
    assert_eq!(dkim[2]["header.b"].as_str().unwrap().len(), 8, "{dkim}");
    assert_eq!(of("dmarc"), json!(["dmarc", "none", { "header.from": "a.example" }]));
    assert_eq!(of("arc"), json!(["arc", "none", {}]));
    assert_eq!(of("iprev")[2]["policy.iprev"], "127.0.0.1");

    // What a stranger chose stays in its place.
    let evil = b"DKIM-Signature: v=1; a=rsa-sha256; d=evil.example; s=x\"; dmarc=pass (; h=from;\r\n \
        i=\"@evil.example; bh=AAAA; b=AAAA\r\nDKIM-Signature: v=1; d=a'b.example;\r\n\
        From: \"x; dmarc=pass\" <a@bad.example>\r\n\r\nbody\r\n";
    let mut client = Client::connect(daemon.smtp);
    client.say("EHLO (evil;dmarc=pass");
    client.deliver("\"a; dmarc=pass header.from=bank.example\"@bad.example", &["aide@solarmora.com"], evil).queued_as();
    let read = read_by_authres(&field(2));
    let passing: Vec<_> =
        read[1].as_array().unwrap().iter().filter(|one| one[1] == "pass").map(|one| &one[0]).collect();
    assert!(passing.iter().all(|method| *method == "iprev"), "{read}");
    let dmarc = read[1].as_array().unwrap().iter().find(|one| one[0] == "dmarc").unwrap();
    assert_eq!(dmarc[1], "fail", "{read}");
    assert_eq!(dmarc[2]["header.from"], "bad.example", "{read}");
}

/// hostile.md, DNS: a message asks at most sixty questions, as the name server counts them.
#[test]
fn dns_a_hostile_message_asks_at_most_sixty_questions() {
    let mut zone = String::new();
    for domain in ["a.b.c.d.e.f.g.hostile.example", "helo.hostile.example"] {
        let terms: String = (0..10).map(|n| format!(" mx:m{n}.hostile.example")).collect();
        zone.push_str(&format!("{domain} TXT v=spf1{terms} -all\n"));
    }
    for n in 0..100 {
        zone.push_str(&format!(
            "m{}.hostile.example MX 1 x{n}.hostile.example\nx{n}.hostile.example A 192.0.2.9\n",
            n % 10
        ));
        zone.push_str(&format!("1.0.0.127.in-addr.arpa PTR x{n}.hostile.example\n"));
    }
    zone.push_str("_dmarc.hostile.example TXT v=DMARC1; p=none; np=reject\n");
    let (dns, crm) = (Dns::start(&zone), Crm::start());
    let daemon = daemon(&dns, &crm, "");
    let mut message = String::new();
    let long = "A".repeat(172);
    for n in 0..100 {
        message.push_str(&format!(
            "DKIM-Signature: v=1; a=rsa-sha256; d=d{n}.hostile.example; s=s{n}; h=from; bh=AAAA; b={long}\r\n"
        ));
    }
    for n in 1..=50 {
        message.push_str(&format!(
            "ARC-Seal: i={n}; a=rsa-sha256; cv=pass; d=a{n}.hostile.example; s=s; b={long}\r\nARC-Message-Signature: i={n}; \
             a=rsa-sha256; d=a{n}.hostile.example; s=s; h=from; bh=AAAA; b={long}\r\nARC-Authentication-Results: i={n}; x\r\n"
        ));
    }
    message.push_str("From: u@a.b.c.d.e.f.g.hostile.example\r\n\r\nbody\r\n");
    let mut client = Client::connect(daemon.smtp);
    client.say("EHLO helo.hostile.example");
    let sender = "u@a.b.c.d.e.f.g.hostile.example";
    client.deliver(sender, &["aide@solarmora.com"], message.as_bytes()).queued_as();
    let results = results(&crm.wait_for_mails(1)[0].bytes);
    // A loopback address is answered without a question.
    assert!((20..=60).contains(&dns.asked()), "{} questions: {results}", dns.asked());
    assert!(results.contains("spf=permerror") && results.contains("arc=fail"), "{results}");
}

/// hostile.md, DNS: a thousand sessions wait for name servers that are dead, and nobody else notices.
#[test]
fn dns_a_thousand_stuck_sessions_pile_nothing_up() {
    const SESSIONS: usize = 1000;
    let _heavy = alone();
    let (dns, crm) = (Dns::start(&format!("{ZONE}*.stuck.example SILENT")), Crm::start());
    crm.keep_no_bodies();
    let daemon = daemon(&dns, &crm, "");
    daemon.send("aide@solarmora.com");
    let count = |folder: &str| fs::read_dir(format!("/proc/{}/{folder}", daemon.pid())).unwrap().count();
    let (files, threads) = (count("fd"), count("task"));
    let mut stuck: Vec<Client> = (0..SESSIONS)
        .map(|n| {
            let mut client = Client::connect(daemon.smtp);
            let domain = format!("d{n}.stuck.example");
            for command in [format!("MAIL FROM:<u@{domain}>"), "RCPT TO:<aide@solarmora.com>".into(), "DATA".into()] {
                assert!(client.say(&command).code < 400, "{command}");
            }
            client.send(&[&message(&domain)[..], b".\r\n"].concat()).unwrap();
            client
        })
        .collect();
    let (files_then, threads_then) = (count("fd"), count("task"));
    // 64 questions at once about one domain, and each may be repeated from a second socket.
    assert!(files_then <= files + SESSIONS + 2 * 64 + 100, "{files_then} descriptors, {files} before");
    assert!(threads_then <= threads + 20, "{threads_then} threads, {threads} before");
    // Somebody whose DNS works does not stand in their queue.
    let began = Instant::now();
    let mut client = Client::connect(daemon.smtp);
    let reply = client.deliver("a@good.example", &["aide@solarmora.com"], &message("good.example"));
    let took = began.elapsed();
    let id = reply.queued_as();
    assert!(took < Duration::from_secs(3), "a legitimate message took {took:?} beside {SESSIONS} stuck ones");
    daemon.cli(&["trace", "--id", &id]).succeeds().says(&["spf=pass", "dmarc=pass"]);
    for client in &mut stuck {
        assert_eq!(client.reply().code, 250);
    }
    drop(stuck);
    wait_for("the descriptors to be given back", || (count("fd") <= files + 100).then_some(()));
    wait_for("all to be relayed", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
}

/// A chain of seals that holds turns a DMARC fail into a mark, where its last sealer is listed.
#[test]
fn a_listed_sealer_is_believed_and_another_is_not() {
    let zone = format!(
        "{}\n_dmarc.a.example TXT v=DMARC1; p=reject\na.example TXT v=spf1 -all\n",
        include_str!("../src/auth/verify/testdata/zone.txt")
    );
    let (dns, crm) = (Dns::start(&zone), Crm::start());
    let sealed = String::from_utf8(include_bytes!("../src/auth/verify/testdata/arc-two.eml").to_vec()).unwrap();
    // Without the author's signature the message fails DMARC; the chain does not cover that field.
    let from = sealed.find("DKIM-Signature:").unwrap();
    let end = sealed[from..].match_indices("\r\n").find(|(at, _)| !sealed[from + at + 2..].starts_with(['\t', ' ']));
    let unsigned = format!("{}{}", &sealed[..from], &sealed[from + end.unwrap().0 + 2..]);
    for (sealers, code) in [("[]", 550), ("[\"seal.example\"]", 550), ("[\"Two.example\"]", 250)] {
        let daemon = daemon(&dns, &crm, &format!("arc-sealers = {sealers}"));
        let reply = Client::connect(daemon.smtp).deliver("u@a.example", &["aide@solarmora.com"], unsigned.as_bytes());
        assert_eq!(reply.code, code, "{sealers}: {reply:?}");
        if code == 250 {
            let results = results(&crm.wait_for_mails(1)[0].bytes);
            let wanted = ["dmarc=fail", "polrec.p=reject", "arc=pass smtp.remote-ip=127.0.0.1"];
            assert!(wanted.iter().all(|word| results.contains(word)), "{results}");
        }
    }
}

/// RFC 7208 §6.2: what the domain's owner says to those whom SPF refuses, as his words and in one line.
#[test]
fn a_refusal_passes_on_what_the_domain_explains() {
    let zone = "strict.example TXT v=spf1 exp=why.strict.example -all\n\
        why.strict.example TXT %{i} may not send for %{o}\n_dmarc.strict.example TXT v=DMARC1; p=reject\n";
    let (dns, crm) = (Dns::start(zone), Crm::start());
    let daemon = daemon(&dns, &crm, "");
    let reply =
        Client::connect(daemon.smtp).deliver("a@strict.example", &["aide@solarmora.com"], &message("strict.example"));
    assert_eq!(reply.code, 550);
    assert!(reply.text.ends_with("; strict.example explains: 127.0.0.1 may not send for strict.example"), "{reply:?}");
}
