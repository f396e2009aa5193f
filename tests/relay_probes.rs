//! Relay probes: every known way to have a server pass on mail that is not for it.
//!
//! The judge is the rest of the world. Every domain that is not ours has an MX here, and a server behind it that counts
//! who comes: at the end nobody has come, and all that was taken has gone to the CRM. Each probe also gets a refusal of
//! its own, at once, so that no probe hides behind another.

use std::collections::BTreeSet;

use crate::harness::daemon::RULES;
use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, wait_for};

/// The world: whoever sends there comes to the sink.
const WORLD: &str = "
ext.example MX 10 mx.ext.example
mx.ext.example A 127.0.0.1
ext.example A 127.0.0.1
sub.solarmora.com MX 10 mx.ext.example
mx.solarmora.com A 127.0.0.1
xn--solrmora-9za.com MX 10 mx.ext.example
";

const SRS: &str = "[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"tops3cret\"]\n[auth]\n";

/// Who the probe says that it is: nobody, a host without a domain, one of ours, our own address, a stranger, a
/// correspondent of ours.
const SENDERS: [&str; 6] = [
    "",
    "antispam@localhost",
    "aide@solarmora.com",
    "antispam@[127.0.0.1]",
    "antispam@mx.solarmora.com",
    "spammer@ext.example",
];

/// A name for each probe and what stands behind `RCPT TO:`. None of it is an address of ours.
const PROBES: [(&str, &str); 58] = [
    ("plain", "<relaytest@ext.example>"),
    ("percent at us", "<relaytest%ext.example@solarmora.com>"),
    ("percent at our host", "<relaytest%ext.example@mx.solarmora.com>"),
    ("percent at our address", "<relaytest%ext.example@[127.0.0.1]>"),
    ("quoted whole", "<\"relaytest@ext.example\">"),
    ("quoted percent", "<\"relaytest%ext.example\">"),
    ("two ats", "<relaytest@ext.example@solarmora.com>"),
    ("two ats turned round", "<aide@solarmora.com@ext.example>"),
    ("quoted at us", "<\"relaytest@ext.example\"@solarmora.com>"),
    ("quoted percent at us", "<\"relaytest%ext.example\"@solarmora.com>"),
    ("quoted at our host", "<\"relaytest@ext.example\"@mx.solarmora.com>"),
    ("two ats at our address", "<relaytest@ext.example@[127.0.0.1]>"),
    ("quoted at our address", "<\"relaytest@ext.example\"@[127.0.0.1]>"),
    ("source route by us", "<@solarmora.com:relaytest@ext.example>"),
    ("source route by our host", "<@mx.solarmora.com:relaytest@ext.example>"),
    ("source route by our address", "<@[127.0.0.1]:relaytest@ext.example>"),
    ("source route of two", "<@solarmora.com,@mx.solarmora.com:relaytest@ext.example>"),
    ("source route to us", "<@ext.example:aide@solarmora.com>"),
    ("bang", "<ext.example!relaytest>"),
    ("bang at us", "<ext.example!relaytest@solarmora.com>"),
    ("bang at our host", "<ext.example!relaytest@mx.solarmora.com>"),
    ("bang at our address", "<ext.example!relaytest@[127.0.0.1]>"),
    ("bang of ours", "<solarmora.com!ext.example!relaytest>"),
    ("bang and percent", "<ext.example!relaytest%solarmora.com@solarmora.com>"),
    ("percent twice", "<relaytest%ext.example%solarmora.com@solarmora.com>"),
    ("colons", "<solarmora.com:relaytest@ext.example>"),
    ("double colon", "<ext.example::relaytest@solarmora.com>"),
    ("no brackets", "relaytest@ext.example"),
    ("bare local part", "<relaytest>"),
    ("bare local part without brackets", "relaytest"),
    ("dot behind the foreign domain", "<relaytest@ext.example.>"),
    ("dot behind our domain", "<relaytest@solarmora.com.>"),
    ("our domain in capitals", "<relaytest@SOLARMORA.COM>"),
    ("below our domain", "<aide@sub.solarmora.com>"),
    ("behind our domain", "<aide@solarmora.com.ext.example>"),
    ("before our domain", "<aide@xsolarmora.com>"),
    ("looks like our domain", "<aide@sol\u{430}rmora.com>"),
    ("its other spelling", "<aide@xn--solrmora-9za.com>"),
    ("a masked label", "<aide@xn--solarmora-.com>"),
    ("NUL", "<aide@solarmora.com\0ext.example>"),
    ("comment", "<aide@solarmora.com(ext.example)>"),
    ("comment of ours", "<relaytest@ext.example(solarmora.com)>"),
    ("comment before the at", "<aide(@ext.example)@solarmora.com>"),
    ("space", "<aide@solarmora.com ext.example>"),
    ("comma", "<aide@solarmora.com,relaytest@ext.example>"),
    ("semicolon", "<aide@solarmora.com;relaytest@ext.example>"),
    ("second path", "<aide@solarmora.com><relaytest@ext.example>"),
    ("second path behind a space", "<aide@solarmora.com> <relaytest@ext.example>"),
    ("path in a path", "<<relaytest@ext.example>aide@solarmora.com>"),
    ("group", "<friends:relaytest@ext.example;>"),
    ("tab", "<relaytest@ext.example\t@solarmora.com>"),
    ("encoded word", "<=?utf-8?q?relaytest=40ext.example=3e?=@solarmora.com>"),
    ("end of line inside quotes", "<\"relaytest@ext.example>\n\"@solarmora.com>"),
    ("bracket inside quotes", "<\"relaytest@ext.example>\"@solarmora.com>"),
    ("parameter that names another", "<relaytest@ext.example> ORCPT=rfc822;aide@solarmora.com"),
    ("role of theirs", "<postmaster@ext.example>"),
    ("role of an address", "<postmaster@[127.0.0.1]>"),
    ("forged return", "<SRS0=AAAA=22=ext.example=relaytest@srs.solarmora.com>"),
];

/// A daemon that would reach the world's sink if it tried, the sink, and our CRM.
struct Stage {
    daemon: Daemon,
    world: Crm,
    crm: Crm,
    _dns: Dns,
}

impl Stage {
    fn new(rules: &str) -> Stage {
        let (world, crm, dns) = (Crm::start(), Crm::start(), Dns::start(WORLD));
        let site = Setup::new(crm.address()).rules(rules).more(&format!("{}{SRS}", dns.config())).site();
        // Whatever has no route of its own goes where DNS says, and the sink is there.
        site.reconfigure(
            &format!("[route.default]\nhosts = [\"{}\"]\n", crm.address()),
            &format!("[route.default]\nport = {}\nprivate-networks = true\n", world.address().port()),
        );
        Stage { daemon: site.start(), world, crm, _dns: dns }
    }

    /// Nothing waits, nobody outside was called, and the CRM has just these recipients' mail.
    fn assert_closed(&self, at_the_crm: &[&str]) {
        wait_for("an empty queue", || {
            self.daemon.rows(&["queue", "list", "--state", "queued"]).is_empty().then_some(())
        });
        assert_eq!(self.world.sessions(), 0, "somebody outside was called: {:?}", self.world.transactions());
        let mut got: Vec<String> = self.crm.mails().iter().map(|mail| mail.recipients().join(" ")).collect();
        got.sort();
        assert_eq!(got, at_the_crm);
    }
}

/// The stage is not deaf: a target that the administrator wants outside is reached there.
#[test]
fn the_world_hears_what_the_administrator_sends_there() {
    let outside =
        RULES.replace("[alias.\"solarmora.com\"]", "[alias.\"solarmora.com\"]\ndehors = { to = \"a@ext.example\" }");
    let stage = Stage::new(&outside);
    stage.daemon.send("dehors@solarmora.com");
    assert_eq!(stage.world.wait_for_mails(1)[0].recipients(), ["a@ext.example"]);
}

#[test]
fn no_relay_probe_is_accepted_and_nobody_outside_is_called() {
    let names: BTreeSet<&str> = PROBES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), PROBES.len(), "each probe has a name of its own");
    let stage = Stage::new(RULES);
    let mut accepted = Vec::new();
    for sender in SENDERS {
        for (name, recipient) in PROBES {
            let mut client = Client::connect(stage.daemon.smtp);
            // Whoever cannot even say who he is has been refused all the same.
            if client.say(&format!("MAIL FROM:<{sender}> SMTPUTF8")).code != 250 {
                continue;
            }
            let reply = client.say(&format!("RCPT TO:{recipient}"));
            if !(500..600).contains(&reply.code) {
                accepted.push(format!("{name} from <{sender}>: {reply:?}"));
            }
            assert_eq!(client.say("DATA").code, 503, "{name} from <{sender}>");
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
    stage.assert_closed(&[]);
    // What is ours still goes its way.
    stage.daemon.send("aide@solarmora.com");
    stage.crm.wait_for_mails(1);
    stage.assert_closed(&["case@mon-crm.com"]);
}

#[test]
fn a_good_recipient_opens_no_door_for_a_bad_one() {
    let stage = Stage::new(RULES);
    let mut client = Client::connect(stage.daemon.smtp);
    client.say("MAIL FROM:<spammer@ext.example>");
    for (recipient, code) in [
        ("relaytest@ext.example", 550),
        ("aide@solarmora.com", 250),
        ("aide%ext.example@solarmora.com", 550),
        ("relaytest@ext.example", 550),
    ] {
        assert_eq!(client.say(&format!("RCPT TO:<{recipient}>")).code, code, "{recipient}");
    }
    assert_eq!(client.say("DATA").code, 354);
    client.send(b"To: relaytest@ext.example\r\n\r\nx\r\n.\r\n").unwrap();
    assert_eq!(client.reply().code, 250);
    stage.crm.wait_for_mails(1);
    stage.assert_closed(&["case@mon-crm.com"]);
}

#[test]
fn a_thousand_foreign_recipients_end_the_session() {
    let stage = Stage::new(RULES);
    let mut client = Client::connect(stage.daemon.smtp);
    client.say("MAIL FROM:<spammer@ext.example>");
    let mut refused = 0;
    let last = (0..1000).find_map(|n| match client.try_say(&format!("RCPT TO:<u{n}@ext.example>")) {
        Ok(reply) if reply.code == 550 => {
            refused += 1;
            None
        }
        other => Some(other),
    });
    let last = last.expect("somebody must end it").expect("it is told");
    assert_eq!((refused, last.code), (100, 421), "{last:?}");
    assert!(client.is_closed());
    stage.assert_closed(&[]);
}

/// Header fields are text to us: none of them is an order.
#[test]
fn no_header_field_chooses_a_recipient_or_a_route() {
    let stage = Stage::new(RULES);
    let names = [
        "To",
        "Cc",
        "Bcc",
        "Resent-To",
        "Resent-Bcc",
        "Apparently-To",
        "X-Original-To",
        "Delivered-To",
        "X-Forwarded-To",
        "Return-Path",
        "Return-Receipt-To",
        "Disposition-Notification-To",
        "Errors-To",
        "Reply-To",
        "Sender",
        "Envelope-To",
        "X-Envelope-To",
        "X-RCPT-TO",
        "X-Pointsman-Target",
        "X-Pointsman-Route",
        "Resent-From",
        "List-Post",
    ];
    let fields: String = names.map(|name| format!("{name}: relaytest@ext.example\r\n")).concat();
    let message = format!("From: boss@solarmora.com\r\n{fields}Subject: to=relaytest@ext.example\r\n\r\nx\r\n");
    stage.daemon.send_bytes("aide@solarmora.com", message.as_bytes());
    stage.crm.wait_for_mails(1);
    stage.assert_closed(&["case@mon-crm.com"]);
}

/// A rule that sends outside holds for whom DMARC proves, not for whoever writes the name.
#[test]
fn a_forged_sender_is_not_whom_a_rule_means() {
    let rule = "[[rule]]\nname = \"the boss reads at home\"\nwhen = { sender = \"boss@ext.example\", dmarc = \"pass\" }\n\
                to = \"home@ext.example\"\n\n[[rule]]\nname  = \"aide";
    let stage = Stage::new(&RULES.replacen("[[rule]]\nname  = \"aide", rule, 1));
    let message = b"From: boss@ext.example\r\nSubject: x\r\n\r\nx\r\n";
    Client::connect(stage.daemon.smtp).deliver("boss@ext.example", &["aide@solarmora.com"], message);
    stage.crm.wait_for_mails(1);
    stage.assert_closed(&["case@mon-crm.com"]);
}
