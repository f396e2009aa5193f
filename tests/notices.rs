//! Notifications, byte for byte: tests/notices holds what each case must look like. `UPDATE_EXPECT=1` writes them anew.

use std::fs;
use std::path::Path;

use pointsman::address::Mailbox;
use pointsman::bounce::{Cause, Notice, Original, Reported, compose};
use pointsman::clock::Timestamp;
use pointsman::envelope::OriginalRecipient;
use pointsman::id::MessageId;
use pointsman::reply::Enhanced;

const HEADER: &[u8] = b"From: Client <client@example.org>\r\nTo: aide@solarmora.com\r\nSubject: panne\r\n\
    \tde courant\r\nMessage-ID: <1@example.org>\r\n";

/// The 21st of November 2026, in the evening.
const ARRIVED: Timestamp = Timestamp(1_795_292_431_042);

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What a case may change.
struct Case {
    alias: &'static str,
    to: &'static str,
    event: Reported,
    orcpt: Option<OriginalRecipient>,
    envid: Option<String>,
    cause: Cause,
    header: Vec<u8>,
}

/// A failure told to the client, unless the case says otherwise.
fn check(name: &str, change: impl FnOnce(&mut Case)) -> String {
    let mut case = Case {
        alias: "aide@solarmora.com",
        to: "client@example.org",
        event: Reported::Failed,
        orcpt: None,
        envid: None,
        cause: Cause {
            status: Enhanced(5, 6, 0),
            remote: Some("554 5.6.0 <case.K3Y91@mon-crm.com>: bad MIME".into()),
            own: "the other system refused it.".into(),
        },
        header: HEADER.to_vec(),
    };
    change(&mut case);
    let composed = compose(&Notice {
        hostname: "mx.solarmora.com",
        id: MessageId(1 << 60),
        at: Timestamp(ARRIVED.0 + 90_000),
        from: &mailbox("postmaster@solarmora.com"),
        to: &mailbox(case.to),
        event: case.event,
        alias: &mailbox(case.alias),
        secret: &mailbox("case.k3y91@mon-crm.com"),
        orcpt: case.orcpt.as_ref(),
        envid: case.envid.as_deref(),
        cause: &case.cause,
        original: Original { header: &case.header, arrived: ARRIVED, attempted: Timestamp(ARRIVED.0 + 80_000) },
    });
    let text = String::from_utf8(composed.bytes).expect("a notification is text");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/notices").join(format!("{name}.eml"));
    let got = text.replace("\r\n", "\n");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &got).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(got, want, "{name}: UPDATE_EXPECT=1 writes it anew; review the diff");

    // Whatever the case is about: the target is nowhere.
    for secret in ["k3y91", "mon-crm", "case."] {
        assert!(!text.to_lowercase().contains(secret), "{name} names `{secret}`");
    }
    text
}

#[test]
fn a_failure_names_the_alias_and_never_the_target() {
    let text = check("failed", |_| {});
    assert!(text.contains("Final-Recipient: rfc822;aide@solarmora.com\r\n"));
    assert!(text.contains("Auto-Submitted: auto-replied\r\n"));
}

#[test]
fn what_the_transaction_said_comes_back() {
    let text = check("requested", |case| {
        let address = "Aide+x@solarmora.com".into();
        case.orcpt = Some(OriginalRecipient { address_type: "rfc822".into(), address });
        case.envid = Some("QQ+314159".into());
    });
    assert!(text.contains("Original-Recipient: rfc822;Aide+x@solarmora.com\r\n"));
    assert!(text.contains("Original-Envelope-Id: QQ+314159\r\n"));
}

#[test]
fn a_delay_says_until_when_it_is_tried() {
    let text = check("delayed", |case| {
        case.event = Reported::Delayed { until: Timestamp(ARRIVED.0 + 5 * 24 * 60 * 60 * 1000) };
        let own = "the other system could not be reached.".into();
        case.cause = Cause { status: Enhanced(4, 4, 1), remote: None, own };
    });
    assert!(text.contains("Action: delayed\r\n"));
    assert!(!text.contains("Diagnostic-Code"));
}

#[test]
fn a_message_handed_to_a_host_that_tells_nothing_is_relayed() {
    let text = check("relayed", |case| {
        case.event = Reported::Relayed;
        case.cause = Cause { status: Enhanced(2, 0, 0), remote: None, own: String::new() };
    });
    assert!(text.contains("Action: relayed\r\n"));
}

#[test]
fn octets_that_are_no_ascii_are_encoded() {
    let header = "Subject: =?utf-8?q?=C3=A9?= \u{e9}t\u{e9} \r\nX-Long: ".to_owned() + &"y".repeat(1100) + "\r\n";
    check("utf8", |case| {
        (case.alias, case.to, case.header) = ("réseau@solarmora.com", "cliente@exämple.org", header.into_bytes());
    });
}

#[test]
fn a_boundary_in_the_original_closes_nothing() {
    let id = MessageId(1 << 60);
    let header = format!("Subject: x\r\nX: --=_{id}--\r\n").into_bytes();
    check("boundary", |case| case.header = header);
}
