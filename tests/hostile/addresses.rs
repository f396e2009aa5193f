//! Addresses: whatever spelling comes in at RCPT, rules, relay and ledger mean the same one by it.

use crate::harness::{Client, Crm, Setup};

const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[domain."exämple.fr"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }
quoted     = { address = '"a@evil x"@mon-crm.com', route = "crm" }

[alias."solarmora.com"]
aide      = { to = "salesforce" }
'"a b"'   = { to = "quoted" }
"réseau"  = { to = "salesforce" }
tag       = { to = "salesforce", plus = "strip" }

[alias."exämple.fr"]
aide = { to = "salesforce" }
"#;

#[test]
fn one_address_is_the_same_in_rcpt_rules_relay_and_ledger() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(RULES).start();
    let composed = "r\u{e9}seau@solarmora.com";
    let decomposed = "re\u{301}seau@solarmora.com";
    // As it is said at RCPT; whom the CRM gets it for, or the refusal.
    for (recipient, wanted) in [
        ("aide@solarmora.com", Ok("case@mon-crm.com")),
        ("AIDE@SolarMora.COM", Ok("case@mon-crm.com")),
        ("\"aide\"@solarmora.com", Ok("case@mon-crm.com")),
        ("\"\\a\\i\\d\\e\"@solarmora.com", Ok("case@mon-crm.com")),
        ("\"a b\"@solarmora.com", Ok("\"a@evil x\"@mon-crm.com")),
        ("aide@ex\u{e4}mple.fr", Ok("case@mon-crm.com")),
        ("aide@xn--exmple-cua.fr", Ok("case@mon-crm.com")),
        ("aide@EX\u{c4}MPLE.fr", Ok("case@mon-crm.com")),
        (composed, Ok("case@mon-crm.com")),
        ("tag+2026@solarmora.com", Ok("case@mon-crm.com")),
        ("aide+2026@solarmora.com", Err(550)),
        // Another sequence of letters is another address, however alike they look.
        (decomposed, Err(550)),
        ("\u{430}ide@solarmora.com", Err(550)),
        ("aide@solarm\u{43e}ra.com", Err(550)),
        ("\"aide@solarmora.com\"@elsewhere.example", Err(550)),
        ("\"aide@elsewhere.example\"@solarmora.com", Err(550)),
        ("aide@solarmora.com(x)elsewhere.example", Err(501)),
    ] {
        let mut client = Client::connect(daemon.smtp);
        let before = crm.mails().len();
        let commands = ["MAIL FROM:<client@example.org> SMTPUTF8".to_owned(), format!("RCPT TO:<{recipient}>")];
        assert_eq!(client.say(&commands[0]).code, 250);
        let reply = client.say(&commands[1]);
        assert_eq!(reply.code, wanted.err().unwrap_or(250), "{recipient}: {reply:?}");
        let Ok(target) = wanted else { continue };
        assert_eq!(client.say("DATA").code, 354);
        client.send(b"Subject: x\r\n\r\nx\r\n.\r\n").unwrap();
        let id = client.reply().queued_as();
        let row = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        let mail = crm.wait_for_mails(before + 1).pop().unwrap();
        assert_eq!(mail.recipients(), [target], "{recipient}");
        assert_eq!(row["recipient"], recipient, "the ledger has it as it was said");
        let header = String::from_utf8(mail.bytes).unwrap();
        assert!(header.contains(&format!("Delivered-To: {recipient}\r\n")), "{recipient}:\n{header}");
    }
}
