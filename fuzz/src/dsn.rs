//! Notifications: whatever a sender and a remote said, short lines of ASCII, the parts that we made, and no word of where the
//! mail went.

use pointsman::address::Mailbox;
use pointsman::bounce::{Cause, Notice, Original, Reported, compose};
use pointsman::clock::Timestamp;
use pointsman::id::MessageId;
use pointsman::reply::Enhanced;
use pointsman::smtp::command::{Command, parse};

use super::input::{Input, sound};
use super::scrub::assert_secret;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let event = input.one_of(&[Reported::Failed, Reported::Delayed { until: Timestamp(7) }, Reported::Relayed]);
    // What a session has taken, and nothing else.
    let (mail, rcpt) = (parse(input.line()), parse(input.line()));
    let (Ok(Command::Mail { sender, parameters }), Ok(Command::Rcpt { recipient, dsn })) = (mail, rcpt) else { return };
    let pointsman::smtp::command::Recipient::Mailbox(alias) = recipient else { return };
    let Some(to) = sender.mailbox() else { return };
    let Ok(secret) = Mailbox::parse(input.text()) else { return };
    let remote = (!matches!(event, Reported::Relayed)).then(|| String::from_utf8_lossy(input.line()).into_owned());
    let header = sound(input.rest());
    let from = Mailbox::parse("postmaster@solarmora.com").expect("it is an address");
    let composed = compose(&Notice {
        hostname: "mx.solarmora.com",
        id: MessageId(1),
        at: Timestamp(0),
        from: &from,
        to,
        event,
        alias: &alias,
        secret: &secret,
        orcpt: dsn.orcpt.as_ref(),
        envid: parameters.envid.as_deref(),
        cause: &Cause { status: Enhanced(5, 0, 0), remote: remote.clone(), own: "it was refused.".to_owned() },
        original: Original { header: &header, arrived: Timestamp(0), attempted: Timestamp(0) },
    });
    let text = std::str::from_utf8(&composed.bytes).expect("it is UTF-8 at the most");
    assert!(text.replacen(to.as_str(), "", 1).is_ascii());
    assert!(
        text.ends_with("\r\n")
            && text.split("\r\n").all(|line| line.len() <= 998 && !line.contains(['\r', '\n', '\0']))
    );

    let (head, body) = text.split_once("\r\n\r\n").expect("it has a header");
    let names: Vec<&str> = head.split("\r\n").filter_map(|line| line.split_once(": ")).map(|(name, _)| name).collect();
    let ours = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"];
    assert_eq!(names, ours);
    let boundary = head.split_once("boundary=\"").and_then(|(_, rest)| rest.strip_suffix('"')).expect("it has parts");
    assert_eq!(body.matches(boundary).count(), 4, "three parts and the end");
    let parts: Vec<&str> = body.split(&format!("--{boundary}\r\n")).collect();
    let [_, words, status, _] = parts[..] else { panic!("{} parts", parts.len()) };
    assert_status(status);
    if remote.is_some() {
        let of_remote = |text: &str, start: &str| text.split_once(start).map(|(_, rest)| rest.to_owned());
        let told = of_remote(status, "Diagnostic-Code: smtp; ").expect("the remote's words are told");
        assert_secret(&secret, &alias, told.split("\r\n").next().unwrap_or_default());
    }
    assert!(words.contains("Content-Type: text/plain"));
}

/// RFC 3464 §2: fields about the message, an empty line, fields about the recipient, and no line that is none.
fn assert_status(part: &str) {
    let (kind, fields) = part.split_once("\r\n\r\n").expect("a part has a header");
    assert_eq!(kind, "Content-Type: message/delivery-status");
    let groups: Vec<&str> = fields.trim_end_matches("\r\n").split("\r\n\r\n").collect();
    let [of_message, of_recipient] = groups[..] else { panic!("{} groups", groups.len()) };
    let names = |group: &str| -> Vec<String> {
        group.split("\r\n").map(|line| line.split_once(": ").expect("each line is a field").0.to_owned()).collect()
    };
    let once = |names: &[String], name: &str| names.iter().filter(|other| *other == name).count() == 1;
    assert!(once(&names(of_message), "Reporting-MTA"));
    for name in ["Original-Recipient", "Final-Recipient", "Action", "Status"] {
        assert!(once(&names(of_recipient), name), "{name} in {of_recipient}");
    }
}
