//! Every sentence about the rules in the design, as a test with its name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::diagnostic::{Report, Source};
use crate::message::reading::Reading;
use crate::spam::{Band, Bands};

use super::set::Check;
use super::{AuthFacts, Consideration, Decision, Fact, Facts, LegKind, OnSpam, RuleSet, Surroundings, Verdict, parse};

/// Our domains in most tests: `d` has nothing but a role, `m` has people behind it.
const DOMAINS: &str = "[domain.'d.example']\nrole = 'admin@x.example'\n\
    [domain.'m.example']\nmailboxes = 'google'\n\
    [target]\ncrm = { address = 'case@crm.example', route = 'crm' }\nplain = 'plain@x.example'\n\
    person = { address = 'person@m.example', on-spam = 'tag' }\n";

fn try_files(texts: &[&str]) -> (Option<RuleSet>, Report) {
    let routes = BTreeMap::from([("default", false), ("crm", true), ("google", true)].map(|(n, h)| (n.to_owned(), h)));
    let read = |_: &str, name: &str| match name {
        "salesforce.address" => Ok("case@salesforce.example\n".to_owned()),
        "empty" => Ok(String::new()),
        "literal" => Ok("case@[192.0.2.1]\n".to_owned()),
        "list.txt" => Ok("\u{feff}a@x.example  # who\n\n*@Y.example trailing words\r\n<>\n".to_owned()),
        "semicolons.csv" => Ok("E-Mail;Name\n\"b@x.example\";\"B; x\"\n".to_owned()),
        "wrong.txt" => Ok("a@x.example\nnobody\nfile:other\n".to_owned()),
        "map.csv" => Ok("alias,to\nA@d.example,crm\nb,\"plain crm\"\nc@d.example,new@x.example,plain\n".to_owned()),
        "wrong.csv" => {
            Ok("a@d.example,nobody\nb@d.example\na@e.example,crm\nq@d.example,crm\nQ@d.example,crm\n".to_owned())
        }
        _ => Err("no such file".to_owned()),
    };
    let sources: Vec<Arc<Source>> =
        texts.iter().enumerate().map(|(n, text)| Source::new(format!("rules/{n}.toml"), *text)).collect();
    let mut report = Report::default();
    let parsed = parse(
        &sources,
        &Surroundings {
            routes: &routes,
            looks_up_mx: true,
            checks: [true; 4],
            scores: true,
            now: Timestamp(0),
            read: &read,
        },
        &mut report,
    );
    (parsed.map(|parsed| parsed.rules), report)
}

fn rules(text: &str) -> RuleSet {
    let text = format!("{DOMAINS}{text}");
    let (rules, report) = try_files(&[&text]);
    rules.unwrap_or_else(|| panic!("{}", report.render(false)))
}

fn findings(text: &str) -> Vec<String> {
    let text = format!("{DOMAINS}{text}");
    try_files(&[&text]).1.diagnostics().iter().map(|d| format!("{}: {}", d.severity.as_str(), d.message)).collect()
}

/// Facts as a line of `key=value`; authentication is known, and not checked where nothing is said of it.
fn decide(rules: &RuleSet, recipient: &str, facts: &str) -> Decision {
    with_facts(recipient, facts, |facts| rules.decide(facts))
}

fn with_facts<T>(recipient: &str, line: &str, then: impl Fn(&Facts<'_>) -> T) -> T {
    let value = |key: &str| line.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let words = ["pass", "fail", "none", "softfail"];
    let result = |key| value(key).map(|v| *words.iter().find(|word| **word == v).unwrap());
    let recipient = Mailbox::parse(recipient).unwrap();
    let sender = match value("sender") {
        Some("<>") => ReversePath::Null,
        other => ReversePath::parse(other.unwrap_or("someone@else.example")).unwrap(),
    };
    let known = AuthFacts { spf: result("spf"), dkim: result("dkim"), dmarc: result("dmarc"), arc: result("arc") };
    let reading = Reading::default();
    then(&Facts {
        message: if line.contains("unknown") { Fact::Unknown } else { Fact::Known(&reading) },
        client: value("client").map(|ip| ip.parse().unwrap()),
        helo: value("helo"),
        auth: if line.contains("unknown") { Fact::Unknown } else { Fact::Known(known) },
        score: if line.contains("unknown") {
            Fact::Unknown
        } else {
            Fact::Known(value("score").map(|score| score.parse().unwrap()))
        },
        ..Facts::of(&recipient, &sender, Timestamp(0))
    })
}

/// The decision in a line: rules, verdict, legs.
fn told(decision: &Decision) -> String {
    let verdict = match &decision.verdict {
        Verdict::Reject(refusal) => refusal.reply().to_string(),
        Verdict::Defer(refusal) => refusal.reply().to_string(),
        Verdict::Undecided => "undecided".to_owned(),
        Verdict::Accept { action, .. } => format!("{action:?}").to_lowercase(),
    };
    let legs: Vec<String> = decision
        .verdict
        .legs()
        .iter()
        .map(|leg| format!("{} {} {} {}", leg.kind.as_str(), leg.target, leg.route, leg.on_spam.as_str()))
        .collect();
    format!("{} | {verdict} | {}", decision.rules.join(", "), legs.join(", "))
}

#[track_caller]
fn expect(rules: &RuleSet, recipient: &str, facts: &str, expected: &str) {
    assert_eq!(told(&decide(rules, recipient, facts)), expected, "{recipient} {facts}");
}

#[test]
fn the_examples_of_the_design_load_and_their_tests_pass() {
    let text = include_str!("../../tests/configs/design/rules/solarmora.toml");
    let (rules, report) = try_files(&[text]);
    let rules = rules.unwrap_or_else(|| panic!("{}", report.render(false)));
    assert_eq!(rules.run_tests(&Bands::default()), []);
    assert_eq!(rules.counts().tests, 1);
    let legs = "to case@salesforce.example crm quarantine, also ventes@solarmora.com google omit";
    expect(&rules, "factures@solarmora.com", "", &format!("factures@solarmora.com | relay | {legs}"));
    let rule = "known customers pass the spam bands, aide to the CRM";
    let legs = legs.replacen("quarantine", "deliver", 1);
    expect(&rules, "aide@solarmora.com", "sender=x@example.com dmarc=pass", &format!("{rule} | relay | {legs}"));
    expect(&rules, "anybody@solarmora.com", "", " | relay | mailbox anybody@solarmora.com google quarantine");
}

#[test]
fn rules_come_before_aliases_and_aliases_before_the_domain() {
    let set = rules(
        "[[rule]]\nname = 'r'\nwhen = { sender = 'vip@x.example' }\nto = 'plain'\n\
         [alias.'m.example']\na = { to = 'crm' }\n",
    );
    expect(&set, "a@m.example", "sender=vip@x.example", "r | relay | to plain@x.example default quarantine");
    expect(&set, "a@m.example", "", "a@m.example | relay | to case@crm.example crm quarantine");
    expect(&set, "b@m.example", "", " | relay | mailbox b@m.example google quarantine");
}

#[test]
fn the_files_are_one_set_in_their_order() {
    let one = format!("{DOMAINS}[[rule]]\nname = 'one'\ncontinue = true\non-spam = 'tag'\n");
    let two = "[[rule]]\nname = 'two'\nto = 'crm'\n[domain.'z.example']\nrole = 'plain'\n";
    let (set, report) = try_files(&[&one, two]);
    let set = set.unwrap_or_else(|| panic!("{}", report.render(false)));
    expect(&set, "a@z.example", "", "one, two | relay | to case@crm.example crm tag");
}

#[test]
fn all_keys_must_hold_and_an_array_is_any_of() {
    let set = rules(
        "[[rule]]\nname = 'r'\nwhen = { recipient = ['a@d.example', 'b@d.example'], sender-domain = ['s.example', \
         't.example'], client = ['192.0.2.0/24', '::1'] }\nto = 'crm'\n",
    );
    for (recipient, facts, applies) in [
        ("a@d.example", "sender=u@s.example client=192.0.2.9", true),
        ("B@D.example", "sender=u@t.example client=::1", true),
        ("c@d.example", "sender=u@s.example client=192.0.2.9", false),
        ("a@d.example", "sender=u@u.example client=192.0.2.9", false),
        ("a@d.example", "sender=u@s.example client=192.0.3.9", false),
        ("a@d.example", "sender=u@s.example", false),
    ] {
        assert_eq!(decide(&set, recipient, facts).rules.len(), usize::from(applies), "{recipient} {facts}");
    }
}

#[test]
fn each_condition_holds_and_fails() {
    for (when, facts, holds) in [
        ("recipient-matches = '[ab]@.*'", "", true),
        ("recipient-matches = 'b@.*'", "", false),
        ("recipient-in = 'l'", "", true),
        ("sender-in = 'l'", "sender=x@list.example", true),
        ("sender-in = 'l'", "sender=<>", true),
        ("sender-in = 'l'", "sender=x@sub.list.example", false),
        ("recipient-domain = 'd.example'", "", true),
        ("recipient-domain = 'm.example'", "", false),
        ("sender = 'X@y.example'", "sender=x@Y.example", true),
        ("sender = '<>'", "sender=<>", true),
        ("sender = '<>'", "", false),
        ("sender-matches = '<>'", "sender=<>", true),
        ("sender-matches = '.*@y'", "sender=x@y.example", false),
        ("sender-domain = 'y.example'", "sender=<>", false),
        ("helo = 'MX.y.example'", "helo=mx.Y.example", true),
        ("helo = 'mx.y.example'", "", false),
        ("spf = 'pass'", "spf=pass", true),
        ("spf = 'pass'", "", false),
        ("dkim = ['none', 'fail']", "dkim=fail", true),
        ("dmarc = 'pass'", "dmarc=fail", false),
        ("arc = 'pass'", "arc=pass", true),
        ("client = '10.0.0.0/8'", "client=10.1.1.1", true),
    ] {
        let set = rules(&format!(
            "[list]\nl = ['a@d.example', '*@list.example', '<>']\n[[rule]]\nwhen = {{ {when} }}\nto = 'crm'\n"
        ));
        assert_eq!(decide(&set, "a@d.example", facts).rules.len(), usize::from(holds), "{when} {facts}");
    }
}

#[test]
fn rules_see_the_recipient_as_given() {
    let set = rules("[[rule]]\nname = 'r'\nwhen = { recipient-matches = '(?-i)Aide@.*' }\nto = 'crm'\n");
    assert_eq!(decide(&set, "Aide@d.example", "").rules, ["r"]);
    assert!(decide(&set, "aide@d.example", "").rules.is_empty());
}

#[test]
fn needless_quotes_do_not_slip_past_a_pattern() {
    let set = rules("[[rule]]\nname = 'r'\nwhen = { recipient-matches = 'aide@d\\.example' }\nreject = 'no'\n");
    expect(&set, "\"aide\"@d.example", "", "r | 550 5.7.1 no | ");
}

#[test]
fn the_first_that_applies_without_continue_ends_the_search() {
    let set = rules(
        "[[rule]]\nname = 'one'\nwhen = { dmarc = 'pass' }\ncontinue = true\n\
         [[rule]]\nname = 'two'\nwhen = { recipient-domain = 'd.example' }\nto = 'crm'\n\
         [[rule]]\nname = 'three'\nwhen = { dmarc = 'pass' }\nto = 'plain'\n",
    );
    assert_eq!(decide(&set, "a@d.example", "dmarc=pass").rules, ["one", "two"]);
    assert_eq!(decide(&set, "a@m.example", "dmarc=pass").rules, ["one", "three"]);
}

#[test]
fn the_first_to_set_a_value_wins_and_lists_add_up() {
    let set = rules(
        "[[rule]]\nname = '1'\ncontinue = true\non-spam = 'deliver'\nalso = 'plain'\n\
         [[rule]]\nname = '2'\ncontinue = true\non-spam = 'tag'\nto = 'x@y.example'\nroute = 'google'\n\
         [[rule]]\nname = '3'\nto = 'crm'\nroute = 'crm'\nalso = ['person', 'plain']\n",
    );
    let legs = "to x@y.example google deliver, also plain@x.example default omit, also person@m.example google tag";
    expect(&set, "a@d.example", "", &format!("1, 2, 3 | relay | {legs}"));
}

#[test]
fn reject_wins_over_all_then_quarantine_hold_defer_discard() {
    let actions = ["reject = 'r'", "quarantine = 'q'", "hold = 'h'", "defer = 'd'", "discard = 'x'"];
    let verdicts = ["550 5.7.1 r", "quarantine { why: \"q\" }", "hold { why: \"h\" }", "451 4.7.1 d", "discard"];
    for first in 0..actions.len() {
        // The weaker action stands in an earlier rule.
        let mut text = String::new();
        for action in actions[first..].iter().rev() {
            text.push_str(&format!("[[rule]]\ncontinue = true\n{action}\n"));
        }
        let set = rules(&format!("{text}[alias.'d.example']\na = {{ to = 'crm' }}\n"));
        let told = told(&decide(&set, "a@d.example", ""));
        assert!(told.contains(verdicts[first]), "{told}");
    }
}

#[test]
fn a_quarantined_held_or_discarded_message_has_its_legs() {
    let set = rules(
        "[[rule]]\nname = 'q'\nwhen = { spf = 'fail' }\nquarantine = 'spf'\ncontinue = true\n\
         [[rule]]\nname = 'x'\nwhen = { sender = '<>' }\ndiscard = 'null'\n\
         [alias.'d.example']\na = { to = 'crm' }\n",
    );
    let leg = "to case@crm.example crm quarantine";
    expect(&set, "a@d.example", "spf=fail", &format!("q, a@d.example | quarantine {{ why: \"spf\" }} | {leg}"));
    // The search ended before the alias; its target alone is kept, so that a release has somewhere to go.
    expect(&set, "a@d.example", "sender=<>", &format!("x | discard {{ why: \"null\" }} | {leg}"));
    // What is not about recipients makes none.
    expect(&set, "b@d.example", "sender=<>", "x | 550 5.1.1 no such address here | ");
    let set =
        rules("[[rule]]\nname = 'x'\nwhen = { sender = '<>', recipient-domain = 'd.example' }\ndiscard = 'null'\n");
    let leg = "mailbox b@d.example default quarantine";
    expect(&set, "b@d.example", "sender=<>", &format!("x | discard {{ why: \"null\" }} | {leg}"));
}

#[test]
fn a_legs_route_is_the_targets_then_the_rules_then_the_mailboxes_then_the_default() {
    let set = rules(
        "[alias.'d.example']\n\
         own = { to = 'crm', route = 'google' }\nrule = { to = 'plain', route = 'crm' }\n\
         ours = { to = 'person' }\nelse = { to = 'plain' }\n",
    );
    for (local, route) in [("own", "crm"), ("rule", "crm"), ("ours", "google"), ("else", "default")] {
        let decision = decide(&set, &format!("{local}@d.example"), "");
        assert_eq!(decision.verdict.legs()[0].route, route, "{local}");
    }
}

#[test]
fn a_copy_inherits_nothing_from_the_rule() {
    let set = rules(
        "[alias.'d.example']\na = { to = 'plain', also = ['x@y.example'], route = 'crm', on-spam = 'deliver' }\n",
    );
    let legs = "to plain@x.example crm deliver, also x@y.example default omit";
    expect(&set, "a@d.example", "", &format!("a@d.example | relay | {legs}"));
}

#[test]
fn a_rule_may_change_the_route_or_add_a_copy_and_leave_the_recipient() {
    let set = rules(
        "[[rule]]\nname = 'route'\nwhen = { recipient = 'a@d.example' }\nroute = 'crm'\n\
         [[rule]]\nname = 'copy'\nwhen = { recipient = ['b@d.example', 'b@m.example'] }\nalso = 'crm'\n",
    );
    expect(&set, "a@d.example", "", "route | relay | mailbox a@d.example crm quarantine");
    expect(&set, "b@d.example", "", "copy | relay | also case@crm.example crm omit");
    let legs = "mailbox b@m.example google quarantine, also case@crm.example crm omit";
    expect(&set, "b@m.example", "", &format!("copy | relay | {legs}"));
}

#[test]
fn one_target_gets_one_leg() {
    let set = rules("[alias.'d.example']\na = { to = 'crm', also = ['crm', 'plain', 'plain'] }\n");
    let decision = decide(&set, "a@d.example", "");
    let kinds: Vec<LegKind> = decision.verdict.legs().iter().map(|leg| leg.kind).collect();
    assert_eq!(kinds, [LegKind::To, LegKind::Also]);
}

#[test]
fn a_target_that_is_an_alias_of_ours_is_an_error() {
    for text in [
        "[alias.'d.example']\na = { to = 'B@d.example' }\nb = { to = 'crm' }\n",
        "[target.x]\naddress = 'b@d.example'\nroute = 'crm'\n[alias.'d.example']\nb = { to = 'crm' }\n",
        "[[rule]]\nwhen = { recipient = 'b@d.example' }\nto = 'crm'\n[alias.'d.example']\na = { also = ['b@d.example'], to = 'crm' }\n",
        "[alias.'d.example']\na = { to = 'b+x@d.example' }\nb = { to = 'crm', plus = 'strip' }\n",
    ] {
        let found = findings(text);
        assert!(
            found.iter().any(|f| f.starts_with("error: the target `") && f.ends_with("is an alias of ours")),
            "{found:?}"
        );
    }
    // A mailbox of ours that a rule only copies is a fine target.
    let copied = "[[rule]]\nwhen = { recipient = 'person@m.example' }\nalso = 'crm'\n[alias.'d.example']\na = { to = 'person' }\n";
    assert_eq!(findings(copied), Vec::<String>::new());
}

#[test]
fn an_operators_target_gets_the_route_that_the_rules_would_give_it() {
    let set =
        rules("[[rule]]\nwhen = { recipient = 'r@d.example' }\nto = 'crm'\n[alias.'d.example']\nb = { to = 'crm' }\n");
    for (given, address, name, route) in [
        ("crm", "case@crm.example", Some("crm"), "crm"),
        ("plain", "plain@x.example", Some("plain"), "default"),
        ("person", "person@m.example", Some("person"), "google"),
        ("new@m.example", "new@m.example", None, "google"),
        ("new@x.example", "new@x.example", None, "default"),
    ] {
        let leg = set.leg_to(given).unwrap();
        assert_eq!((leg.target.as_str(), leg.target_name.as_deref(), &*leg.route), (address, name, route));
    }
    for (given, why) in
        [("B@d.example", "is an alias of ours"), ("r@d.example", "is an alias of ours"), ("salesfroce", "is no target")]
    {
        assert!(set.leg_to(given).unwrap_err().contains(why), "{given}");
    }
}

#[test]
fn a_leg_that_would_come_back_to_us_is_known() {
    let set = rules("[alias.'d.example']\nb = { to = 'crm' }\n");
    let mailbox = |text| Mailbox::parse(text).unwrap();
    for (recipient, target, route, comes_back) in [
        ("b@d.example", "case@crm.example", "crm", false),
        ("b@d.example", "b@d.example", "default", true),
        ("none@d.example", "none@d.example", "default", true),
        ("none@d.example", "none@d.example", "google", false),
        ("none@d.example", "b@d.example", "google", true),
        ("person@m.example", "person@m.example", "google", false),
    ] {
        let found = set.comes_back(&mailbox(recipient), &mailbox(target), route);
        assert_eq!(found, comes_back, "{recipient} to {target} by {route}");
    }
}

#[test]
fn rules_and_aliases_of_undeclared_domains_are_errors() {
    for text in [
        "[alias.'foreign.example']\na = { to = 'crm' }\n",
        "[[rule]]\nwhen = { recipient = 'a@foreign.example' }\nto = 'crm'\n",
        "[[rule]]\nwhen = { recipient-domain = 'foreign.example' }\nto = 'crm'\n",
    ] {
        assert_eq!(findings(text), ["error: `foreign.example` is not a domain of ours"], "{text}");
    }
}

#[test]
fn a_recipient_that_nothing_names_is_refused() {
    let set = rules("[alias.'d.example']\na = { to = 'crm' }\n");
    expect(&set, "b@d.example", "", " | 550 5.1.1 no such address here | ");
    expect(&set, "a@elsewhere.example", "", " | 550 5.7.1 relaying denied | ");
}

#[test]
fn a_rule_that_goes_on_names_nobody() {
    let set = rules(
        "[[rule]]\nname = 'archive'\nalso = 'plain'\nhold = 'h'\nroute = 'crm'\ncontinue = true\n\
         [alias.'d.example']\na = { to = 'crm' }\n",
    );
    expect(&set, "b@d.example", "", "archive | 550 5.1.1 no such address here | ");
    assert_eq!(decide(&set, "a@d.example", "").verdict.legs().len(), 2);
}

#[test]
fn no_rule_opens_the_door_to_foreign_domains() {
    let set = rules("[[rule]]\nwhen = { client = '192.0.2.1' }\nto = 'crm'\n");
    expect(&set, "a@elsewhere.example", "client=192.0.2.1", " | 550 5.7.1 relaying denied | ");
}

#[test]
fn the_role_addresses_are_always_taken() {
    let set = rules("[[rule]]\nname = 'no'\nwhen = { sender = '<>' }\nreject = 'no'\n");
    for local in ["postmaster", "Abuse", "\"postmaster\""] {
        let recipient = format!("{local}@d.example");
        expect(&set, &recipient, "", " | relay | role admin@x.example default deliver");
        expect(&set, &recipient, "sender=<>", "no | relay | role admin@x.example default deliver");
    }
    assert_eq!(set.postmaster().unwrap().as_str(), "postmaster@d.example", "the first domain");
    // An alias may still say where they go.
    let set = rules("[alias.'d.example']\npostmaster = { to = 'crm' }\n");
    expect(&set, "postmaster@d.example", "", "postmaster@d.example | relay | to case@crm.example crm deliver");
}

#[test]
fn the_catch_all_takes_what_nothing_names() {
    let set = rules("[domain.'c.example']\nrole = 'plain'\ncatch-all = 'crm'\n");
    expect(&set, "x@c.example", "", "catch-all of c.example | relay | to case@crm.example crm quarantine");
}

#[test]
fn plus_tags_match_literally_unless_the_domain_or_the_alias_strips_them() {
    let set = rules(
        "[domain.'p.example']\nrole = 'plain'\nplus = 'strip'\n\
         [[rule]]\nname = 'r'\nwhen = { recipient = 'r@p.example' }\nto = 'crm'\n\
         [alias.'p.example']\na = { to = 'crm' }\n'a+b' = { to = 'plain' }\n\
         [alias.'d.example']\nlit = { to = 'crm' }\nstr = { to = 'crm', plus = 'strip' }\n",
    );
    for (recipient, rule) in [
        ("a+x@p.example", Some("a@p.example")),
        ("a+b@p.example", Some("a+b@p.example")),
        ("r+1+2@p.example", Some("r")),
        ("lit+x@d.example", None),
        ("str+x@d.example", Some("str@d.example")),
        ("+x@p.example", None),
        ("\"a+x y\"@p.example", None),
    ] {
        assert_eq!(decide(&set, recipient, "").rules.first().map(String::as_str), rule, "{recipient}");
    }
}

#[test]
fn names_are_unique() {
    for text in [
        "[[rule]]\nname = 'n'\nwhen = { spf = 'pass' }\nto = 'crm'\n[[rule]]\nname = 'n'\nto = 'plain'\n",
        "[[rule]]\nname = 'a@d.example'\nwhen = { spf = 'pass' }\nto = 'crm'\n[alias.'d.example']\na = { to = 'crm' }\n",
        "[alias.'d.example']\na = { to = 'crm' }\nA = { to = 'plain' }\n",
        "[domain.'D.example']\nrole = 'plain'\n",
    ] {
        let found = findings(text);
        assert!(found.len() == 1 && found[0].ends_with("is declared twice"), "{found:?}");
    }
}

#[test]
fn at_rcpt_a_recipient_is_refused_only_if_no_completion_accepts_it() {
    for (text, expected) in [
        // Nothing depends on the message.
        ("[alias.'d.example']\na = { to = 'crm' }\n", "a@d.example | relay | to case@crm.example crm quarantine"),
        ("", " | 550 5.1.1 no such address here | "),
        // One completion accepts.
        ("[[rule]]\nwhen = { dmarc = 'pass' }\nto = 'crm'\n", " | undecided | "),
        (
            "[[rule]]\nwhen = { dmarc = 'fail' }\nreject = 'no'\n[alias.'d.example']\na = { to = 'crm' }\n",
            " | undecided | ",
        ),
        // All refuse, with different words.
        ("[[rule]]\nname = 'r'\nwhen = { dmarc = 'fail' }\nreject = 'no'\n", "r | 550 5.7.1 no | "),
        // All agree.
        (
            "[[rule]]\nname = 'p'\nwhen = { dmarc = 'pass' }\ncontinue = true\n[[rule]]\nname = 'all'\nto = 'crm'\n",
            "p, all | relay | to case@crm.example crm quarantine",
        ),
        // One defers.
        (
            "[[rule]]\nwhen = { spf = 'temperror', recipient = 'a@d.example' }\ndefer = 'later'\n[[rule]]\nname = 'r'\nreject = 'no'\n",
            " | undecided | ",
        ),
        // Rules that cannot both apply: every completion is a consistent one.
        (
            "[[rule]]\nname = '1'\nwhen = { dmarc = 'pass' }\nreject = 'one'\n[[rule]]\nname = '2'\nwhen = { dmarc = 'pass' }\nto = 'crm'\n",
            "1 | 550 5.7.1 one | ",
        ),
        // A known condition that fails decides, whatever the message.
        ("[[rule]]\nwhen = { dmarc = 'pass', sender = '<>' }\nto = 'crm'\n", " | 550 5.1.1 no such address here | "),
    ] {
        let set = rules(text);
        assert_eq!(told(&decide(&set, "a@d.example", "unknown")), expected, "{text}");
    }
}

#[test]
fn at_rcpt_what_stands_in_the_message_refuses_nobody_whom_it_could_help() {
    for (text, expected) in [
        ("[[rule]]\nwhen = { subject-matches = 'x' }\nto = 'crm'\n", " | undecided | "),
        // A rule that goes on and names a target makes an address.
        ("[[rule]]\nwhen = { subject-matches = 'x' }\nto = 'crm'\ncontinue = true\n", " | undecided | "),
        (
            "[[rule]]\nwhen = { subject-matches = 'x' }\nalso = 'crm'\ncontinue = true\n",
            " | 550 5.1.1 no such address here | ",
        ),
        ("[[rule]]\nwhen = { body-matches = 'x' }\nreject = 'no'\n", " | 550 5.1.1 no such address here | "),
        (
            "[[rule]]\nwhen = { body-matches = 'x' }\nreject = 'no'\n[alias.'d.example']\na = { to = 'crm' }\n",
            " | undecided | ",
        ),
        // Who is refused for certain is refused, whatever else could apply.
        (
            "[[rule]]\nname = 'r'\nreject = 'no'\ncontinue = true\n[[rule]]\nwhen = { size = '1MiB' }\nto = 'crm'\n",
            "r | 550 5.7.1 no | ",
        ),
        ("[[rule]]\nwhen = { list-mail = true, sender = '<>' }\nto = 'crm'\n", " | 550 5.1.1 no such address here | "),
        ("[[rule]]\nwhen = { any = [{ automatic = true }, { sender = '<>' }] }\nto = 'crm'\n", " | undecided | "),
        (
            "[[rule]]\nname = 'n'\nwhen = { not = [{ automatic = true }, { sender = 'someone@else.example' }] }\nto = 'crm'\n",
            " | 550 5.1.1 no such address here | ",
        ),
        (
            "[[rule]]\nname = 'y'\nwhen = { any = [{ automatic = true }, { sender = 'someone@else.example' }] }\nto = 'crm'\n",
            "y | relay | to case@crm.example crm quarantine",
        ),
    ] {
        let set = rules(text);
        assert_eq!(told(&decide(&set, "a@d.example", "unknown")), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_with_conditions_calendars_and_names_is_told() {
    for (text, wanted) in [
        ("[[rule]]\nto = 'crm'\nwhen = { is = 'vip' }\n", "there is no condition `vip`"),
        ("[[rule]]\nto = 'crm'\nwhen = { during = 'x' }\n", "there is no calendar `x`"),
        ("[condition]\na = { is = 'b' }\nb = { not = { is = 'a' } }\n", "asks for itself"),
        ("[calendar]\nx = { zone = 'Mars/X' }\n", "`calendar.x.zone` cannot be `Mars/X`"),
        ("[calendar]\nx = { hours = '8-9' }\n", "has no `zone`"),
        ("[[rule]]\nto = 'crm'\nwhen = { any = [] }\n", "an empty array never holds"),
        ("[[rule]]\nto = 'crm'\nwhen = { not = {} }\n", "a table of conditions is empty"),
        ("[[rule]]\nto = 'crm'\nwhen = { size = '5MB' }\n", "`rule.when.size` cannot be `5MB`"),
        ("[[rule]]\nto = 'crm'\nwhen = { header = 'a b' }\n", "`rule.when.header` cannot be `a b`"),
        ("[[rule]]\nto = 'crm'\nwhen = { attachment = { type = 'pdf' } }\n", "cannot be `pdf`"),
        ("[[rule]]\nto = 'crm'\nwhen = { subject-matches = '(' }\n", "cannot be `(`"),
    ] {
        let told = findings(text).join("\n");
        assert!(told.contains(wanted), "{text}: {told}");
    }
}

#[test]
fn lists_come_from_rules_texts_and_csv_and_hold_each_other() {
    let set = rules(
        "[list]\nall = ['list:text', 'list:table', 'z@x.example']\ntext = ['file:list.txt']\ntable = 'file:semicolons.csv'\n\
         [[rule]]\nname = 'in'\nwhen = { recipient = 'a@d.example', sender-in = 'all' }\nto = 'crm'\n",
    );
    for (sender, is_in) in [
        ("A@x.example", true),
        ("whoever@y.example", true),
        ("<>", true),
        ("b@x.example", true),
        ("z@x.example", true),
        ("c@x.example", false),
    ] {
        let decision = decide(&set, "a@d.example", &format!("sender={sender}"));
        assert_eq!(decision.rules == ["in"], is_in, "{sender}");
    }
    assert_eq!(
        (set.counts().lists, set.counts().list_members),
        (3, 3 + 1 + 5),
        "those within count where they are named"
    );
    for (text, wanted) in [
        ("[list]\na = ['list:b']\nb = ['list:a']\n", "holds itself"),
        ("[list]\na = ['list:c']\n", "there is no list `c`"),
        ("[list]\na = ['file:none.txt']\n", "cannot read `none.txt`"),
        ("[list]\na = ['file:wrong.txt']\n", "named in the rules only"),
        ("[list]\na = ['*@x.example']\n[[rule]]\nto = 'crm'\nalso = 'list:a'\n", "mail cannot go to the list `a`"),
        ("[[rule]]\nto = 'crm'\nalso = 'list:a'\n", "there is no list `a`"),
    ] {
        let told = findings(text).join("\n");
        assert!(told.contains(wanted), "{text}: {told}");
    }
    let drawn = try_files(&[DOMAINS, "[list]\na = ['file:wrong.txt']\n"]).1.render(false);
    assert!(drawn.contains("wrong.txt:2:1") && drawn.contains("named here"), "{drawn}");
}

#[test]
fn a_copy_goes_to_each_address_of_a_list_and_to_a_hundred_at_most() {
    let list = |n: usize| {
        let members: Vec<String> = (0..n).map(|n| format!("'u{n:03}@x.example'")).collect();
        format!(
            "[list]\nl = [{}]\n[alias.'d.example']\na = {{ to = 'crm', also = ['list:l', 'plain'] }}\n",
            members.join(", ")
        )
    };
    let set = rules(&list(100));
    let legs = decide(&set, "a@d.example", "").verdict.legs().len();
    assert_eq!(legs, 1 + 100 + 1);
    assert!(findings(&list(101)).join("\n").contains("mail cannot go to the list `l`"));
}

#[test]
fn a_target_is_made_of_the_recipient_and_what_a_pattern_captured() {
    let set = rules(
        "[[rule]]\nname = 'c'\nwhen = { recipient-matches = '(.*)\\.(?P<team>[a-z]+)@d\\.example' }\nto = '$team+${1}@crm.example'\n\
         [[rule]]\nname = 'l'\nwhen = { recipient = 'old@d.example' }\nto-local = 'new'\nroute = 'crm'\n\
         [[rule]]\nname = 'own'\nwhen = { recipient = 'loop@d.example' }\nto-local = 'a'\n\
         [[rule]]\nname = 'x'\nwhen = { recipient-matches = 'x(\\.*)@d.example' }\nto = '$1@crm.example'\n\
         [alias.'d.example']\na = { to = 'crm' }\n",
    );
    for (recipient, wanted) in [
        ("Jo.Sales@d.example", "c | relay | to Sales+Jo@crm.example default quarantine"),
        ("old@D.example", "l | relay | to new@d.example crm quarantine"),
        (
            "loop@d.example",
            "own | hold { why: \"what the rule made of the recipient is an alias of ours: targets are final\" } | to a@d.example default quarantine",
        ),
        // Nothing was captured: an address without a local part is none.
        ("x@d.example", "x | 550 5.1.1 no such address here | "),
    ] {
        expect(&set, recipient, "", wanted);
    }
    for (text, wanted) in [
        ("when = { recipient-matches = 'a(b)@d' }\nto = 'x@$1.example'\n", "is not an address with captures"),
        ("when = { recipient-matches = 'a(b)@d' }\nto = '$2@x.example'\n", "there is no group `2`"),
        ("when = { recipient-matches = 'a(b)@d' }\nto = '$1x@x.example'\n", "there is no group `1x`"),
        ("when = { sender = '<>' }\nto-local = '$1'\n", "there is no group `1`"),
        ("to = 'crm'\nto-domain = 'x.example'\n", "not both"),
        ("to-domain = 'x y'\n", "`rule.to-domain` cannot be `x y`"),
        ("to = 'crm'\nalso = { to = 'plain', route = 'nowhere' }\n", "there is no route `nowhere`"),
        ("to = 'crm'\nalso = { route = 'crm' }\n", "has no `to`"),
    ] {
        let told = findings(&format!("[[rule]]\n{text}")).join("\n");
        assert!(told.contains(wanted), "{text}: {told}");
    }
}

#[test]
fn a_copy_has_options_of_its_own() {
    let set = rules(
        "[alias.'d.example']\na = { to = 'crm', also = [{ to = 'person', route = 'crm', on-spam = 'quarantine', bounces = 'sender' }, 'plain'] }\n",
    );
    let decision = decide(&set, "a@d.example", "");
    assert_eq!(
        told(&decision),
        "a@d.example | relay | to case@crm.example crm quarantine, also person@m.example crm quarantine, also plain@x.example default omit"
    );
    let bounces: Vec<&str> = decision.verdict.legs().iter().map(|leg| leg.bounces.as_str()).collect();
    assert_eq!(bounces, ["sender", "sender", "admin"]);
}

#[test]
fn a_map_is_a_file_of_aliases() {
    let set =
        rules("[map]\nm = { file = 'map.csv', domain = 'd.example' }\n[alias.'d.example']\nc = { to = 'person' }\n");
    for (recipient, wanted) in [
        ("a@D.example", "map m | relay | to case@crm.example crm quarantine"),
        ("b@d.example", "map m | relay | to plain@x.example default quarantine, also case@crm.example crm omit"),
        ("c@d.example", "c@d.example | relay | to person@m.example google tag"),
        ("e@d.example", " | 550 5.1.1 no such address here | "),
    ] {
        expect(&set, recipient, "", wanted);
    }
    assert_eq!((set.counts().maps, set.counts().map_entries), (1, 3));
    assert!(set.rule_names().any(|name| name == "map m"));
    let (_, report) = try_files(&[DOMAINS, "[map]\nm = { file = 'wrong.csv' }\n"]);
    let drawn = report.render(false);
    for wanted in [
        "there is no target `nobody`",
        "without a target",
        "`e.example` is not a domain of ours",
        "stands in the file twice",
        "wrong.csv:5:1",
    ] {
        assert!(drawn.contains(wanted), "{wanted}: {drawn}");
    }
    // A target of a map that is an alias of ours would come back.
    let told = findings(
        "[map]\nm = { file = 'map.csv', domain = 'd.example' }\n[[rule]]\nwhen = { sender = '<>' }\nto = 'a@d.example'\n",
    );
    assert!(told.join("\n").contains("is an alias of ours"), "{told:?}");
}

#[test]
fn a_shadow_is_counted_and_an_idle_rule_is_not_asked() {
    let set = rules(
        "[[rule]]\nname = 'strict'\nwhen = { dmarc = 'fail' }\nreject = 'no'\nenabled = 'shadow'\n\
         [[rule]]\nname = 'over'\nquarantine = 'x'\nnot-after = '1969-12-31'\n\
         [[rule]]\nname = 'off'\nreject = 'no'\nenabled = false\n\
         [alias.'d.example']\na = { to = 'crm' }\nb = { to = 'crm', enabled = 'shadow' }\n",
    );
    let decision = decide(&set, "a@d.example", "dmarc=fail");
    assert_eq!(told(&decision), "a@d.example | relay | to case@crm.example crm quarantine");
    assert_eq!(decision.shadows, [super::Shadow { rule: "strict".to_owned(), action: "reject" }]);
    assert!(decide(&set, "a@d.example", "dmarc=pass").shadows.is_empty());
    assert_eq!(decide(&set, "b@d.example", "").shadows[0].rule, "b@d.example");
    assert!(matches!(decide(&set, "b@d.example", "").verdict, Verdict::Reject(_)), "a shadow makes no address");
    let shown = with_facts("a@d.example", "dmarc=fail", |facts| set.explain(facts).render());
    for line in
        ["~ strict  (rules/0.toml", "a shadow: it would apply (reject)", "its time is over", "it is switched off"]
    {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    let told = findings("[[rule]]\nname = 'x'\nto = 'crm'\nnot-after = '1969-01-01'\n").join("\n");
    assert!(told.contains("the time of `x` is over"), "{told}");
    let told = findings("[[rule]]\nto = 'crm'\nnot-before = '2026-02-01'\nnot-after = '2026-01-01'\n").join("\n");
    assert!(told.contains("ends before it begins"), "{told}");
}

#[test]
fn an_explanation_looks_into_conditions_that_have_others_within() {
    let set = rules(
        "[condition]\nvip = { sender-domain = 'x.example', tls = true }\n\
         [[rule]]\nname = 'one'\nwhen = { is = 'vip' }\nto = 'crm'\n\
         [[rule]]\nname = 'two'\nwhen = { any = [{ helo = 'h' }, { client = '192.0.2.1' }] }\nto = 'crm'\n\
         [[rule]]\nname = 'three'\nwhen = { not = { sender = 'u@x.example' } }\nto = 'crm'\n",
    );
    let told = with_facts("a@d.example", "sender=u@x.example client=192.0.2.2", |facts| set.explain(facts).render());
    for line in [
        "is = \"vip\": tls = true, but saw false",
        "any = [{ helo = \"h\" }, { client = \"192.0.2.1/32\" }], but saw no HELO (helo = \"h\"); 192.0.2.2 (client = \"192.0.2.1/32\")",
        "not = { sender = \"u@x.example\" }, but saw u@x.example",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
}

#[test]
fn an_explanation_names_the_first_condition_that_failed_and_what_it_saw() {
    let set = rules(
        "[[rule]]\nname = 'one'\nwhen = { sender-domain = 'x.example', recipient = 'a@d.example' }\nto = 'crm'\n\
         [[rule]]\nname = 'two'\nwhen = { dmarc = 'pass' }\ncontinue = true\n[[rule]]\nname = 'three'\nto = 'crm'\n",
    );
    let explained = with_facts("b@d.example", "unknown", |facts| set.explain(facts));
    let results: Vec<&Consideration> = explained.considered.iter().map(|c| &c.result).collect();
    let failed = |condition: &str, saw: &str| Consideration::Failed { condition: condition.into(), saw: saw.into() };
    assert_eq!(results[0], &failed("recipient = \"a@d.example\"", "b@d.example"));
    assert_eq!(results[1], &Consideration::Open { condition: "dmarc = \"pass\"".to_owned() });
    assert_eq!(results[2], &Consideration::Applied { ended_the_search: true });
    assert!(explained.considered[0].place.starts_with("rules/0.toml:"));
    assert_eq!(explained.json()["considered"][0]["saw"], "b@d.example");
    let text = explained.render();
    assert!(text.contains("=> relayed\n     to case@crm.example (crm) by route crm, on-spam quarantine\n"), "{text}");
}

#[test]
fn explain_and_decide_cannot_disagree() {
    let set = rules(
        "[list]\nl = ['*@x.example']\n\
         [[rule]]\nname = '1'\nwhen = { recipient-domain = 'm.example', sender-in = 'l' }\ncontinue = true\nalso = 'plain'\n\
         [[rule]]\nname = '2'\nwhen = { recipient = ['a@d.example', 'b@m.example'], dmarc = 'pass' }\nto = 'crm'\n\
         [[rule]]\nname = '3'\nwhen = { recipient-matches = '[ab]@.*', spf = 'fail' }\nreject = 'no'\n\
         [[rule]]\nname = '4'\nwhen = { sender = '<>' }\nhold = 'null'\ncontinue = true\n\
         [alias.'d.example']\na = { to = 'crm' }\n",
    );
    for recipient in ["a@d.example", "b@d.example", "b@m.example", "c@m.example", "postmaster@d.example", "a@z.example"]
    {
        for sender in ["sender=<>", "sender=u@x.example", "sender=u@y.example"] {
            for auth in ["unknown", "dmarc=pass", "spf=fail", "dmarc=pass spf=fail", ""] {
                with_facts(recipient, &format!("{sender} {auth}"), |facts| {
                    let explained = set.explain(facts);
                    assert_eq!(explained.decision, set.decide(facts));
                    let applied: Vec<&str> = explained
                        .considered
                        .iter()
                        .filter(|c| matches!(c.result, Consideration::Applied { .. }))
                        .map(|c| c.rule.as_str())
                        .collect();
                    if auth != "unknown" && !recipient.ends_with("z.example") {
                        assert_eq!(applied, explained.decision.rules, "{recipient} {sender} {auth}");
                    }
                });
            }
        }
    }
}

#[test]
fn what_the_rules_would_decide_again_is_an_alias() {
    let set = rules(
        "[domain.'s.example']\nrole = 'plain'\nplus = 'strip'\n\
         [[rule]]\nwhen = { recipient = ['r@d.example', 'r@s.example'], spf = 'pass' }\nto = 'crm'\n\
         [[rule]]\nwhen = { recipient = 'held@d.example' }\nhold = 'x'\n\
         [alias.'d.example']\na = { to = 'crm' }\np = { to = 'crm', plus = 'strip' }\n\
         [alias.'s.example']\na = { hold = 'x' }\n",
    );
    for (address, alias) in [
        ("A@d.example", true),
        ("a+tag@d.example", false),
        ("p+tag@d.example", true),
        ("a+tag@s.example", true),
        ("r@d.example", true),
        ("r+tag@d.example", false),
        ("r+tag@s.example", true),
        ("held@d.example", false),
        ("case@crm.example", false),
        ("postmaster@d.example", false),
    ] {
        assert_eq!(set.is_alias(&Mailbox::parse(address).unwrap()), alias, "{address}");
    }
}

#[test]
fn what_waits_for_the_look_up_of_an_mx_is_named() {
    let inert = |text: &str, looks_up_mx| {
        let routes = BTreeMap::from([("default", false), ("crm", true), ("mx", false)].map(|(n, h)| (n.to_owned(), h)));
        let read = |_: &str, _: &str| Ok("secret@crm.example".to_owned());
        let surroundings = Surroundings {
            routes: &routes,
            looks_up_mx,
            checks: [true; 4],
            scores: true,
            now: Timestamp(0),
            read: &read,
        };
        let mut report = Report::default();
        let text = format!("[domain.'d.example']\nrole = 'admin@x.example'\n{text}");
        let parsed = parse(&[Source::new("r.toml", text)], &surroundings, &mut report);
        parsed.unwrap_or_else(|| panic!("{}", report.render(false))).inert
    };
    let text = "[target]\nhidden = { address = 'file:f', route = 'mx' }\ncrm = { address = 'c@x.example', route = 'crm' }\n\
        [[rule]]\nname = 'on'\nwhen = { sender = '<>' }\nroute = 'mx'\n\
        [alias.'d.example']\na = { to = 'crm', also = 'hidden' }\nb = { to = 'b@y.example', route = 'crm' }\n\
        c = { to = 'c@y.example' }\n";
    assert_eq!(
        inert(text, false),
        [
            "MX look-up: mail by route `default`, which has no `hosts`, is held (admin@x.example, c@y.example)",
            "MX look-up: mail by route `mx`, which has no `hosts`, is held (hidden, on)",
        ]
    );
    assert_eq!(inert(text, true), [""; 0]);
    let aliases = |n: usize| (1..n).map(|n| format!("a{n} = {{ to = 'a{n}@y.example' }}\n")).collect::<String>();
    let held = |n| inert(&format!("[alias.'d.example']\n{}", aliases(n)), false).pop().unwrap();
    assert!(held(5).ends_with("a4@y.example, admin@x.example)"), "{}", held(5));
    assert!(held(6).ends_with("a5@y.example, 1 more)"), "{}", held(6));
}

#[test]
fn what_is_missing_is_an_error_with_its_place() {
    for (text, expected) in [
        ("[alias.'d.example']\na = { to = 'crn' }\n", "error: there is no target `crn`"),
        ("[alias.'d.example']\na = { to = 'crm', route = 'x' }\n", "error: there is no route `x`"),
        ("[[rule]]\nwhen = { sender-in = 'x' }\nto = 'crm'\n", "error: there is no list `x`"),
        ("[[rule]]\nname = 'n'\non-spam = 'tag'\n", "error: `n` ends the search and does not say where the mail goes"),
        ("[target.x]\naddress = 'file:none'\n", "error: cannot read `none`: no such file"),
        ("[target.x]\naddress = 'file:empty'\n", "error: `empty` does not hold one address"),
        ("[target.x]\naddress = 'file:literal'\n", "error: `literal` does not hold one address"),
        ("[target.'a@b']\naddress = 'a@c.example'\n", "error: a target cannot be called `a@b`"),
        ("[target.x]\naddress = 'a@[192.0.2.1]'\n", "error: `a@[192.0.2.1]` is not an address"),
        ("[domain.'z.example']\nmailboxes = 'default'\n", "error: the route `default` of the mailboxes has no `hosts`"),
        (
            "[domain.'z.example']\nmailboxes = 'google'\ncatch-all = 'crm'\n",
            "error: a domain has `mailboxes` or `catch-all`, not both",
        ),
    ] {
        assert_eq!(findings(text), [expected], "{text}");
    }
}

#[test]
fn a_syntax_error_hides_what_is_wrong_in_its_own_file_only() {
    let broken = "[target]\nelsewhere = 'x@x.example'\n[list]\nl = 7\n[alias.'d.example']\nz = { to = 'nowhere' }\n";
    let other = "[domain.'d.example']\nrole = 'admin@x.example'\n[alias.'d.example']\na = { to = 'elsewhere' }\n\
                 a2 = { to = 'a@d.example' }\nb = { to = 'b@x.example', route = 'nowhere' }\n\
                 [[rule]]\nname = 'n'\nwhen = { sender-in = 'l', recipient-domain = 'z.example' }\non-spam = 'tag'\n";
    let (set, report) = try_files(&[broken, other]);
    assert!(set.is_none());
    let messages: Vec<&str> = report.diagnostics().iter().map(|d| d.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "`list.l` must be a string, not an integer",
            "`n` ends the search and does not say where the mail goes",
            "there is no route `nowhere`",
            "the target `a@d.example` is an alias of ours",
        ]
    );
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    for (text, expected) in [
        (
            "[alias.'d.example']\na = { to = 'crm' }\nb = { to = 'crm' }\nc = { to = 'crm' }\n",
            "several aliases go to `crm`",
        ),
        (
            "[alias.'d.example']\na = { to = 'crm', also = 'case@crm.example' }\n",
            "`case@crm.example` stands in `to` and in `also`",
        ),
        (
            "[[rule]]\nwhen = { recipient-matches = 'a@mail.example' }\nto = 'crm'\n",
            "a dot in `a@mail.example` stands for any character",
        ),
        ("[[rule]]\nwhen = { sender-matches = '^a@b$' }\nto = 'crm'\n", "`^` and `$` are needless here"),
        ("[[rule]]\nto = 'crm'\n[[rule]]\nname = 'n'\nto = 'plain'\n", "`n` can never apply"),
        ("[[rule]]\nto = 'crm'\n[alias.'d.example']\na = { to = 'plain' }\n", "`a@d.example` can never apply"),
        (
            "[[rule]]\nwhen = { recipient = 'a@d.example' }\nto = 'crm'\n[alias.'d.example']\na = { hold = 'x' }\n",
            "`a@d.example` can never apply",
        ),
        (
            "[target.x]\naddress = 'a@y.example'\non-spam = 'deliver'\n[domain.'z.example']\nrole = 'crm'\ncatch-all = 'x'\n",
            "the catch-all's target `x` takes all spam",
        ),
        ("[domain.'z.example']\n", "nobody reads postmaster@z.example"),
        ("[target.x]\naddress = 'a@d.example'\n", "mail for the target `x` may come back to us"),
    ] {
        assert_eq!(findings(text), [format!("warning: {expected}")], "{text}");
    }
}

#[test]
fn rule_tests_fail_with_what_happened() {
    let failures = |expect: &str| -> Vec<String> {
        let set = rules(&format!(
            "[[rule]]\nname = 'no'\nwhen = {{ sender = '<>' }}\nreject = 'no bounces'\n[alias.'d.example']\na = {{ to = 'crm' }}\n\
             [[test]]\nname = 't'\n{expect}\n"
        ));
        set.run_tests(&Bands::default()).iter().map(|d| d.message.clone()).collect()
    };
    for (test, failure) in [
        ("given = { recipient = 'a@d.example' }\nexpect = { legs = ['case@crm.example'] }", None),
        (
            "given = { recipient = 'a@d.example', sender = '<>' }\nexpect = { reject = true, rules = ['no'], legs = [] }",
            None,
        ),
        ("given = { recipient = 'b@d.example' }\nexpect = { reject = '5.1.1' }", None),
        (
            "given = { recipient = 'b@d.example' }\nexpect = { reject = '5.7.1' }",
            Some("expected `5.7.1` in the text, but got reject (550 5.1.1 no such address here)"),
        ),
        ("given = { recipient = 'a@d.example' }\nexpect = { hold = true }", Some("expected hold, but got relay")),
        (
            "given = { recipient = 'a@d.example' }\nexpect = { legs = ['plain'] }",
            Some("expected the legs [\"plain\"], but got [\"crm\"]"),
        ),
        (
            "given = { recipient = 'a@d.example' }\nexpect = { rules = [] }",
            Some("expected the rules [], but [\"a@d.example\"] applied"),
        ),
    ] {
        let expected: Vec<String> = failure.iter().map(|f| format!("the rule test `t` failed: {f}")).collect();
        assert_eq!(failures(test), expected, "{test}");
    }
}

#[test]
fn all_errors_of_all_files_are_in_one_report() {
    let (set, report) =
        try_files(&["[domain.'d']\nrol = 'x'\n", "a = \n", "[[rule]]\nto = 7\nwhen = { senders = 'x' }\n"]);
    assert!(set.is_none());
    let files: Vec<&str> =
        report.diagnostics().iter().filter_map(|d| d.place.as_ref()).map(|p| p.source.path.as_str()).collect();
    assert_eq!(files, ["rules/0.toml", "rules/1.toml", "rules/2.toml", "rules/2.toml"]);
}

#[test]
fn the_hash_changes_with_the_rules_and_with_nothing_else() {
    let hash = |text: &str| rules(text).hash().to_owned();
    assert_eq!(hash("").len(), 64);
    assert_eq!(hash(""), hash(""));
    assert_ne!(hash(""), hash("\n"));
    assert_eq!(rules("").short_hash().len(), 12);
}

#[test]
fn ten_thousand_aliases_cost_no_scan() {
    let mut text = String::new();
    for n in 0..1_000 {
        text.push_str(&format!(
            "[[rule]]\nname = 'r{n}'\nwhen = {{ recipient = 'r{n}@d.example' }}\nto = 'c{n}@x.example'\n"
        ));
    }
    text.push_str("[alias.'d.example']\n");
    for n in 0..10_000 {
        text.push_str(&format!("a{n} = {{ to = 't{n}@x.example' }}\n"));
    }
    let set = rules(&text);
    let recipient = Mailbox::parse("a9999@d.example").unwrap();
    assert!(set.index.candidates(&recipient.key(), None, recipient.domain()).is_empty());
    expect(&set, "a9999@d.example", "", "a9999@d.example | relay | to t9999@x.example default quarantine");
    expect(&set, "r999@d.example", "", "r999 | relay | to c999@x.example default quarantine");
}

#[test]
fn checks_stand_where_their_results_do() {
    for (at, check) in Check::ALL.into_iter().enumerate() {
        assert_eq!(check as usize, at);
    }
    assert_eq!(OnSpam::Omit.as_str(), "omit");
}

#[test]
fn without_a_score_what_asks_for_one_is_named() {
    let inert = |text: &str, scores| {
        let text = format!("{DOMAINS}{text}").replace(", on-spam = 'tag'", "");
        let routes =
            BTreeMap::from([("default", false), ("crm", true), ("google", true)].map(|(n, h)| (n.to_owned(), h)));
        let read = |_: &str, _: &str| Err("no such file".to_owned());
        let around = Surroundings {
            routes: &routes,
            looks_up_mx: true,
            checks: [true; 4],
            scores,
            now: Timestamp(0),
            read: &read,
        };
        parse(&[Source::new("r.toml", text)], &around, &mut Report::default()).unwrap().inert
    };
    for text in
        ["[alias.'d.example']\na = { to = 'crm', on-spam = 'omit' }\n", "[[rule]]\nwhen = { score = 5 }\nto = 'crm'\n"]
    {
        assert_eq!((inert(text, true).len(), inert(text, false).len()), (0, 1), "{text}");
    }
}

#[test]
fn a_score_is_compared_and_unknown_until_the_message_is_there() {
    let rules = rules(
        "[[rule]]\nname = 'bad'\nwhen = { recipient = 'a@d.example', score = 8.0 }\nreject = 'no'\n\
         [[rule]]\nname = 'good'\nwhen = { recipient = 'a@d.example', score = '<5.0' }\nto = 'crm'\n\
         [[rule]]\nname = 'either'\nwhen = { recipient = 'b@d.example', score = ['<1', '>=1'] }\nreject = 'no'\n",
    );
    for (recipient, facts, expected) in [
        ("a@d.example", "score=8.0", "bad | 550 5.7.1 no | "),
        ("a@d.example", "score=7.9", " | 550 5.1.1 no such address here | "),
        ("a@d.example", "score=4.9", "good | relay | to case@crm.example crm quarantine"),
        ("a@d.example", "", " | 550 5.1.1 no such address here | "),
        ("a@d.example", "unknown", " | undecided | "),
        // Whatever it will be, it is refused.
        ("b@d.example", "score=0", "either | 550 5.7.1 no | "),
        ("b@d.example", "", " | 550 5.1.1 no such address here | "),
    ] {
        expect(&rules, recipient, facts, expected);
    }
    assert!(matches!(decide(&rules, "b@d.example", "unknown").verdict, Verdict::Reject(_)));
}

#[test]
fn a_test_of_rules_gives_a_score_and_says_what_becomes_of_each_copy() {
    let text = "[alias.'d.example']\na = { to = 'crm', also = ['plain', 'person'] }\n[[test]]\ngiven = { recipient = 'a@d.example', ";
    let legs = "legs = ['crm', 'plain', 'person']";
    for (test, failed) in [
        (format!("score = 4.9 }}\nexpect = {{ {legs} }}\n"), 0),
        (format!("score = 5.0 }}\nexpect = {{ {legs} }}\n"), 0),
        (format!("score = 5.0 }}\nexpect = {{ {legs}, tagged = ['crm', 'plain', 'person'] }}\n"), 0),
        (format!("score = 4.9 }}\nexpect = {{ {legs}, tagged = ['crm'] }}\n"), 1),
        (format!("score = 8.0 }}\nexpect = {{ {legs} }}\n"), 1),
        (format!("score = 8.0 }}\nexpect = {{ {legs}, quarantined = ['crm'], omitted = ['plain'] }}\n"), 0),
        ("score = 8.0 }\nexpect = { tagged = ['person'], quarantined = ['crm'], omitted = ['plain'] }\n".to_owned(), 0),
        ("score = 8.0 }\nexpect = { tagged = ['person'], quarantined = ['crm'] }\n".to_owned(), 1),
        ("score = 15 }\nexpect = { reject = '5.7.1' }\n".to_owned(), 0),
        ("score = 14.9 }\nexpect = { reject = true }\n".to_owned(), 1),
    ] {
        assert_eq!(rules(&format!("{text}{test}")).run_tests(&Bands::default()).len(), failed, "{test}");
    }
}

#[test]
fn each_band_has_a_fate_for_each_on_spam() {
    let fates = |on_spam: &str| {
        let rules = rules(&format!("[alias.'d.example']\na = {{ to = 'crm', on-spam = '{on_spam}' }}\n"));
        let decision = decide(&rules, "a@d.example", "");
        let bands = [Band::Clean, Band::Tag, Band::Quarantine, Band::Reject];
        let words = bands.map(|band| decision.verdict.legs()[0].fate(band).as_str());
        assert!(!decision.is_refused_as_spam(Band::Quarantine));
        format!("{}, refused {}", words.join(", "), decision.is_refused_as_spam(Band::Reject))
    };
    assert_eq!(fates("deliver"), "as it is, as it is, as it is, as it is, refused false");
    assert_eq!(fates("tag"), "as it is, marked, marked, quarantined, refused true");
    assert_eq!(fates("quarantine"), "as it is, marked, quarantined, quarantined, refused true");
    assert_eq!(fates("omit"), "as it is, marked, omitted, omitted, refused true");
    // What goes nowhere is not refused, and a role address never.
    let rules = rules("[alias.'d.example']\na = { discard = 'nobody reads it' }\n");
    for recipient in ["a@d.example", "postmaster@d.example"] {
        assert!(!decide(&rules, recipient, "").is_refused_as_spam(Band::Reject), "{recipient}");
    }
}
