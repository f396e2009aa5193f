//! What goes back: notifications, and whom they are for.

use super::MESSAGE;
use crate::harness::{Answer, Crm, Setup, Stage, wait_for};

const BOUNCES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case-k3y91@mon-crm.com", route = "crm" }

[alias."solarmora.com"]
aide = { to = "salesforce", bounces = "admin" }
muet = { to = "salesforce", bounces = "suppress" }
bugs = { to = "salesforce" }
"#;

#[test]
fn a_refused_message_is_told_to_the_administrator_or_nobody_and_never_to_a_stranger() {
    let crm = Crm::start();
    crm.follow(|stage, line| {
        let refused = stage == Stage::Rcpt && line.contains("case-k3y91@");
        refused.then(|| Answer::Say("554 5.3.0 <case-k3y91@mon-crm.com> cannot".into()))
    });
    let daemon = Setup::new(crm.address()).rules(BOUNCES).start();
    let leg = |alias: &str, state: &str| {
        let id = daemon.send_bytes(&format!("{alias}@solarmora.com"), MESSAGE);
        daemon.wait_for_leg(&format!("{id}.1"), state)
    };
    assert_eq!(leg("aide", "bounced")["dsn"], "admin");
    assert_eq!(leg("muet", "bounced")["dsn"], "suppressed");
    assert_eq!(leg("bugs", "quarantined")["dsn"], serde_json::Value::Null);

    let notice = crm.wait_for_mails(1).remove(0);
    assert_eq!((notice.sender(), notice.recipients()), ("", vec!["admin@mon-crm.com"]));
    let text = String::from_utf8(notice.bytes).unwrap();
    assert!(text.contains("Final-Recipient: rfc822;aide@solarmora.com\r\n"), "{text}");
    assert!(text.contains("Subject: panne\r\n") && !text.contains("k3y91"), "{text}");
    assert!(!text.contains("Au secours."), "it brings back more than the header:\n{text}");
    wait_for("an empty queue", || daemon.rows(&["queue", "list", "--state", "queued"]).is_empty().then_some(()));
    assert_eq!(crm.mails().len(), 1);
}
