//! TLS from both ends: hellos that no library writes, what old and resumed sessions get, a renewal under load, and hosts
//! whose certificates or versions are no good. The rest of the section is in `tls` and in `smtp::session::starttls`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use crate::harness::postfix::Postfix;
use crate::harness::{Certificates, Client, Crm, Daemon, PATIENCE, Setup, has, is_root, wait_for};

const MESSAGE: &[u8] = b"From: client@example.org\r\nSubject: panne\r\nMessage-ID: <t@example.org>\r\n\r\nx\r\n";

/// A ClientHello of this version with these suites and this server name, which need not be one.
fn client_hello(version: u16, suites: &[u16], compression: &[u8], name: &[u8]) -> Vec<u8> {
    let prefixed = |bytes: Vec<u8>| [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    let server_name = prefixed([&[0][..], &prefixed(name.to_vec())].concat());
    let groups = prefixed(vec![0, 29, 0, 23]);
    let signatures = prefixed(vec![4, 3, 8, 4, 4, 1]);
    let extension = |kind: u16, data: Vec<u8>| [&kind.to_be_bytes()[..], &prefixed(data)].concat();
    let extensions = prefixed([extension(0, server_name), extension(10, groups), extension(13, signatures)].concat());
    let suites = prefixed(suites.iter().flat_map(|suite| suite.to_be_bytes()).collect());
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(suites);
    body.push(compression.len() as u8);
    body.extend(compression);
    body.extend(extensions);
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    // A record holds 16 KiB at the most.
    let records = message.chunks(16_000).map(|part| [&[22, 3, 1][..], &prefixed(part.to_vec())].concat());
    records.collect::<Vec<_>>().concat()
}

/// Says STARTTLS, then this; what comes back until the daemon closes or waits for more.
fn answered(to: SocketAddr, hello: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = [0; 512];
    assert!(stream.read(&mut line).unwrap() > 0);
    stream.write_all(b"STARTTLS\r\n").unwrap();
    let read = stream.read(&mut line).unwrap();
    assert!(line[..read].starts_with(b"220 "));
    // It may close before it has read all of it.
    let _ = stream.write_all(hello);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

fn tls_daemon() -> (Daemon, Crm, Certificates) {
    let (crm, certificates) = (Crm::start(), Certificates::new("mx.solarmora.com"));
    (Setup::new(crm.address()).listener_tls("starttls", &certificates).start(), crm, certificates)
}

#[test]
fn a_hello_that_is_weak_or_broken_gets_no_session() {
    let (daemon, crm, _certificates) = tls_daemon();
    drop(Client::connect(daemon.smtp));
    let before = daemon.sockets();
    let sound = [0xc02b, 0xc02f];
    let long = vec![b'a'; 10 * 1024];
    let hellos = [
        // The one that is right is answered by a ServerHello, so the others are refused for what is wrong with them.
        ("sound", client_hello(0x0303, &sound, &[0], b"mx.solarmora.com"), true),
        ("an unknown name", client_hello(0x0303, &sound, &[0], b"nobody.example"), true),
        ("SSL 3.0", client_hello(0x0300, &sound, &[0], b"mx.solarmora.com"), false),
        ("TLS 1.0", client_hello(0x0301, &sound, &[0], b"mx.solarmora.com"), false),
        ("TLS 1.1", client_hello(0x0302, &sound, &[0], b"mx.solarmora.com"), false),
        ("RC4", client_hello(0x0303, &[0x0004, 0x0005], &[0], b"mx.solarmora.com"), false),
        ("3DES", client_hello(0x0303, &[0x000a, 0xc012], &[0], b"mx.solarmora.com"), false),
        ("EXPORT", client_hello(0x0303, &[0x0003, 0x0006, 0x0008], &[0], b"mx.solarmora.com"), false),
        ("NULL", client_hello(0x0303, &[0x0000, 0x0002, 0xc010], &[0], b"mx.solarmora.com"), false),
        ("anonymous", client_hello(0x0303, &[0x0018, 0xc018], &[0], b"mx.solarmora.com"), false),
        ("only deflate", client_hello(0x0303, &sound, &[1], b"mx.solarmora.com"), false),
        ("no compression method", client_hello(0x0303, &sound, &[], b"mx.solarmora.com"), false),
        ("close_notify first", vec![21, 3, 3, 0, 2, 1, 0], false),
        ("an alert that is fatal", vec![21, 3, 3, 0, 2, 2, 40], false),
        ("a record of 64 KiB", [&[22, 3, 1, 255, 255][..], &[0; 65_535]].concat(), false),
        ("empty records", [22, 3, 1, 0, 0].repeat(1000), false),
        ("application data", vec![23, 3, 3, 0, 3, 1, 2, 3], false),
        ("SSL 2.0", [&[0x80, 0x2e, 1, 0, 2, 0, 21, 0, 0, 0, 16][..], &[7; 37]].concat(), false),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), false),
        ("SMTP", b"EHLO again\r\nMAIL FROM:<a@b>\r\n".to_vec(), false),
    ];
    for (name, hello, spoken) in hellos {
        let said = answered(daemon.smtp, &hello);
        // A ServerHello is a handshake record whose message has type 2.
        let server_hello = said.first() == Some(&22) && said.get(5) == Some(&2);
        assert_eq!(server_hello, spoken, "{name}: {said:?}");
        assert!(!said.windows(4).any(|four| four == b"250 "), "{name}: it was read as SMTP");
    }
    // Names that are none: whatever is said to them, the daemon says it and lives.
    for name in [&b""[..], b"\0", b"mx\0.solarmora.com", b"..", b"-", b"\xff\xfe", &long, b"127.0.0.1", b"a b"] {
        let said = answered(daemon.smtp, &client_hello(0x0303, &sound, &[0], name));
        assert!(said.first().is_none_or(|&kind| kind == 21 || kind == 22), "{said:?}");
    }
    wait_for("all sockets to be closed", || (daemon.sockets() <= before).then_some(()));
    daemon.send("aide@solarmora.com");
    crm.wait_for_mails(1);
}

/// RUSTSEC-2024-0336: a close_notify in the handshake made a server spin.
#[test]
fn a_farewell_in_the_handshake_costs_no_time() {
    let (daemon, _crm, _certificates) = tls_daemon();
    let busy = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = busy();
    for _ in 0..50 {
        let hello = [client_hello(0x0303, &[0xc02f], &[0], b"x.example"), vec![21, 3, 3, 0, 2, 1, 0]].concat();
        answered(daemon.smtp, &hello);
    }
    // In ticks of 10 ms: fifty endless loops would have taken all there is.
    assert!(busy() - before < 500, "{} ticks", busy() - before);
}

/// Postfix 20260805: a ticket of one listener was good at another. Here there is none to carry, and no early data.
#[test]
fn no_session_is_resumed_and_early_data_is_not_asked_for() {
    if !has("no_session_is_resumed", "openssl") {
        return;
    }
    let (crm, certificates) = (Crm::start(), Certificates::new("mx.solarmora.com"));
    let second = "[[listener]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\ntls = \"implicit\"\n";
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &certificates).also(second).start();
    let text = std::fs::read_to_string(daemon.data().join("addresses.json")).unwrap();
    let addresses: serde_json::Value = serde_json::from_str(&text).unwrap();
    let implicit = addresses["listeners"][1].as_str().unwrap().to_owned();
    for version in ["-tls1_2", "-tls1_3"] {
        let session = daemon.path().join(format!("session{version}"));
        let session = session.to_str().unwrap();
        let s_client = |to: &str, more: &[&str]| {
            let mut client = Command::new("openssl");
            client.args(["s_client", "-connect", to, version, "-ign_eof"]).args(more);
            let mut process =
                client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            process.stdin.take().unwrap().write_all(b"EHLO c.example\r\nQUIT\r\n").unwrap();
            String::from_utf8_lossy(&process.wait_with_output().unwrap().stdout).into_owned()
        };
        let first = s_client(&daemon.smtp.to_string(), &["-starttls", "smtp", "-sess_out", session]);
        assert!(first.contains("New, TLSv1"), "{first}");
        assert!(
            !first.contains("Post-Handshake New Session Ticket") && !first.contains("Max Early Data: 1"),
            "{first}"
        );
        if std::fs::exists(session).unwrap() {
            for to in [(&implicit, &[][..]), (&daemon.smtp.to_string(), &["-starttls", "smtp"])] {
                let again = s_client(to.0, &[to.1, &["-sess_in", session]].concat());
                assert!(again.contains("New, TLSv1") && !again.contains("Reused, TLSv1"), "{version}: {again}");
            }
        }
    }
}

#[test]
fn a_renewal_under_a_hundred_sessions_drops_none() {
    let (daemon, crm, certificates) = tls_daemon();
    let mut clients: Vec<Client> =
        (0..100).map(|_| Client::connect_tls(daemon.smtp, "mx.solarmora.com", &certificates)).collect();
    for client in clients.iter_mut().step_by(2) {
        assert_eq!(client.say("MAIL FROM:<client@example.org>").code, 250);
    }
    certificates.issue("new.solarmora.com", 2095);
    daemon.signal("HUP");
    wait_for("the new certificate", || {
        daemon.http("/metrics").1.contains("{listener=\"mx\"} 3949776000").then_some(())
    });
    drop(Client::connect_tls(daemon.smtp, "new.solarmora.com", &certificates));
    for (n, client) in clients.iter_mut().enumerate() {
        if n % 2 == 1 {
            assert_eq!(client.say("MAIL FROM:<client@example.org>").code, 250, "session {n}");
        }
        assert_eq!(client.say("RCPT TO:<aide@solarmora.com>").code, 250, "session {n}");
        assert_eq!(client.say("DATA").code, 354, "session {n}");
        client.send(b"Subject: x\r\n\r\nx\r\n.\r\n").unwrap();
        assert_eq!(client.reply().code, 250, "session {n}");
    }
    crm.wait_for_mails(100);
}

/// RUSTSEC-2026-0141 and its like: what a route asks for is what it gets, whatever is wrong with the host.
#[test]
fn a_host_whose_certificate_is_no_good_gets_what_the_route_allows() {
    let rules = "[domain.\"mon-crm.com\"]\nrole = \"admin@example.net\"\n[target]\n\
        inbox = { address = \"inbox@example.net\", route = \"crm\" }\n[alias.\"mon-crm.com\"]\ncase = { to = \"inbox\" }\n";
    let stranger = Certificates::new("127.0.0.1");
    // What is wrong, how the certificate is made; by whom the route verifies; whether `verify` delivers.
    for (what, name, year, known, verifies) in [
        ("nothing", "127.0.0.1", 2096, true, true),
        ("expired", "127.0.0.1", 2001, true, false),
        ("another name", "other.example", 2096, true, false),
        ("an authority that nobody knows", "127.0.0.1", 2096, false, false),
    ] {
        let theirs = Certificates::new(name);
        theirs.issue(name, year);
        for mode in ["opportunistic", "require", "verify"] {
            let inbox = Crm::start();
            let crm = Setup::new(inbox.address()).rules(rules).listener_tls("starttls", &theirs).start();
            let daemon = Setup::new(crm.smtp).route_tls(mode, if known { &theirs } else { &stranger }).start();
            let id = daemon.send_bytes("aide@solarmora.com", MESSAGE);
            let leg = wait_for("an attempt", || {
                daemon.rows(&["trace", "--id", &id]).into_iter().find(|row| row["attempts"] == 1)
            });
            let delivered = mode != "verify" || verifies;
            assert_eq!(leg["state"], if delivered { "delivered" } else { "queued" }, "{what}, {mode}: {leg}");
            if delivered {
                let text = String::from_utf8(inbox.wait_for_mails(1).remove(0).bytes).unwrap();
                assert!(text.contains("with ESMTPS "), "{what}, {mode}: in clear text:\n{text}");
            } else {
                assert_eq!((&leg["reason"], inbox.mails().len()), (&"tls".into(), 0), "{what}, {mode}: {leg}");
            }
        }
    }
}

#[test]
fn a_host_that_speaks_only_old_tls_gets_what_the_route_allows() {
    let test = "a_host_that_speaks_only_old_tls";
    if !is_root(test) || !has(test, "postfix") {
        return;
    }
    let theirs = Certificates::new("127.0.0.1");
    let postfix = Postfix::as_crm_with(&format!(
        "smtpd_tls_security_level = may\nsmtpd_tls_protocols = TLSv1\nsmtpd_tls_ciphers = medium\n\
         tls_medium_cipherlist = ALL:@SECLEVEL=0\nsmtpd_tls_chain_files = {}, {}\n",
        theirs.key().display(),
        theirs.certificate().display()
    ));
    for (mode, state) in [("verify", "queued"), ("require", "queued"), ("opportunistic", "delivered")] {
        let daemon = Setup::new(postfix.address()).route_tls(mode, &theirs).start();
        let id = daemon.send_bytes("aide@solarmora.com", MESSAGE);
        let leg = wait_for("an attempt", || {
            daemon.rows(&["trace", "--id", &id]).into_iter().find(|row| row["attempts"] == 1)
        });
        assert_eq!(leg["state"], state, "{mode}: {leg}");
        if state == "delivered" {
            // In clear text, which is said.
            assert!(daemon.log().contains("tls-given-up"), "{}", daemon.log());
        } else {
            assert_eq!((&leg["reason"], postfix.mails().len()), (&"tls".into(), 0), "{mode}: {leg}");
        }
    }
}
