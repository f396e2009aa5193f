//! Whatever is imported, `check` takes it with its tests green.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Imported, Options, gmail, postfix};
use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::diagnostic::{Report, Source};
use crate::message::reading::Reading;
use crate::rules::{Fact, Facts, RuleSet, Surroundings, Verdict, parse};
use crate::spam::Bands;

/// The rules as `check` takes them, beside the routes that came with them and those that the administrator has.
fn checked(imported: &Imported) -> Result<RuleSet, String> {
    let named = imported.routes.lines().filter_map(|line| line.strip_prefix("[route.")?.strip_suffix(']'));
    let mut routes: BTreeMap<String, bool> = named.map(|name| (name.to_owned(), true)).collect();
    routes.extend([("default".to_owned(), false), ("people".to_owned(), true)]);
    let read = |_: &str, _: &str| Err("no such file".to_owned());
    let around = Surroundings {
        routes: &routes,
        looks_up_mx: true,
        checks: [true; 4],
        scores: true,
        now: Timestamp(0),
        read: &read,
    };
    let mut report = Report::default();
    let sources = [Source::new("imported.toml", imported.rules.clone())];
    let Some(parsed) = parse(&sources, &around, &mut report) else { return Err(report.render(false)) };
    assert!(parsed.inert.is_empty(), "{:?}", parsed.inert);
    let failed = parsed.rules.run_tests(&Bands::default());
    match failed.is_empty() {
        true => Ok(parsed.rules),
        false => {
            failed.into_iter().for_each(|failure| report.add(failure));
            Err(report.render(false))
        }
    }
}

fn whole(imported: Result<Imported, Vec<String>>) -> (Imported, RuleSet) {
    let imported = imported.unwrap_or_else(|mistakes| panic!("{}", mistakes.join("\n")));
    let rules = checked(&imported).unwrap_or_else(|error| panic!("{error}\n{}", imported.rules));
    (imported, rules)
}

/// Where mail goes, in order; or how it is refused.
fn goes(rules: &RuleSet, recipient: &str) -> String {
    let recipient = Mailbox::parse(recipient).unwrap();
    let sender = ReversePath::parse("client@example.org").unwrap();
    let reading = Reading::default();
    let facts = Facts {
        auth: Fact::Known(Default::default()),
        score: Fact::Known(None),
        message: Fact::Known(&reading),
        ..Facts::of(&recipient, &sender, Timestamp(0))
    };
    match rules.decide(&facts).verdict {
        Verdict::Reject(refusal) | Verdict::Defer(refusal) => refusal.reply().to_string(),
        Verdict::Undecided => "undecided".to_owned(),
        Verdict::Accept { legs, .. } => {
            let legs: Vec<String> = legs.iter().map(|leg| format!("{} by {}", leg.target, leg.route)).collect();
            legs.join(", ")
        }
    }
}

fn options() -> Options {
    Options { role: Some(Mailbox::parse("admin@example.net").unwrap()), ..Options::default() }
}

#[test]
fn a_virtual_table_is_carried_over_with_its_chains_and_catch_alls() {
    let table = "d.example    anything\n\
        aide@d.example   case@crm.example, archive@x.example\n\
        help@d.example   aide@d.example\n\
        me@d.example     me@d.example copy@x.example\n\
        round@d.example  about@d.example\nabout@d.example round@d.example\n\
        @e.example       one@x.example two@x.example\n\
        named@e.example  three@x.example\n\
        old@d.example    gone@gone.example\n";
    let transport =
        "d.example smtp:[box.example]:2525\ncrm.example relay:[in.crm.example]\ngone.example error:5.1.6 moved\n";
    let (imported, rules) = whole(postfix::import(table, Some(transport), &options()));
    for (recipient, expected) in [
        ("aide@d.example", "case@crm.example by in-crm-example, archive@x.example by default"),
        ("help@d.example", "case@crm.example by in-crm-example, archive@x.example by default"),
        ("me@d.example", "me@d.example by box-example-2525, copy@x.example by default"),
        ("any@e.example", "one@x.example by default, two@x.example by default"),
        ("named@e.example", "three@x.example by default"),
        ("old@d.example", "550 5.1.6 moved"),
        ("postmaster@d.example", "admin@example.net by default"),
    ] {
        assert_eq!(goes(&rules, recipient), expected, "{recipient}\n{}", imported.rules);
    }
    assert!(goes(&rules, "nobody@d.example").starts_with("550 5.1.1"));
    let told: Vec<&str> = imported.left_out.iter().map(|left| left.place.as_str()).collect();
    assert_eq!(told, ["virtual:5", "virtual:6"], "{:?}", imported.left_out);
    assert!(imported.left_out[0].why.starts_with("a circle: round@d.example -> about@d.example -> round@d.example"));
    assert!(imported.routes.contains("[route.in-crm-example]\nhosts = [\"in.crm.example\"]\n"), "{}", imported.routes);
}

#[test]
fn a_mailbox_of_ours_without_a_route_is_told_and_not_guessed() {
    let table = "box@d.example box@d.example\nboth@d.example box@d.example, x@y.example\n";
    let (imported, rules) = whole(postfix::import(table, None, &options()));
    assert_eq!(goes(&rules, "both@d.example"), "x@y.example by default");
    assert_eq!(imported.left_out.len(), 2, "{:?}", imported.left_out);
    let people = Options { mailboxes: Some("people".into()), ..options() };
    let (imported, rules) = whole(postfix::import(table, None, &people));
    assert_eq!(goes(&rules, "both@d.example"), "box@d.example by people, x@y.example by default");
    assert_eq!(goes(&rules, "anna@d.example"), "anna@d.example by people");
    assert!(imported.left_out.is_empty(), "{:?}", imported.left_out);
}

#[test]
fn gmails_settings_all_apply_and_rejections_win() {
    let table = "match,value,action,change-recipient,also-deliver-to,reject-text,description,sender-match,sender-value\n\
        single,aide@d.example,modify,case@crm.example,,,cases,,\n\
        pattern,^(aide|sales)@,modify,,archive@x.example,,archive,,\n\
        all,,reject,,,go away,bad people,pattern,@bad\\.example$\n\
        single,sales@d.example,modify,aide@d.example,,,sales,,\n";
    let (imported, rules) = whole(gmail::import(table, &options()));
    let both = "case@crm.example by default, archive@x.example by default";
    assert_eq!(goes(&rules, "aide@d.example"), both);
    assert_eq!(goes(&rules, "sales@d.example"), both);
    assert!(
        goes(&rules, "AIDE@d.example").starts_with("case@crm.example by default"),
        "a single recipient has no case"
    );
    assert!(goes(&rules, "other@d.example").starts_with("550 5.1.1"));
    assert!(imported.rules.contains("reject = \"go away\""));
    // Gmail's copies get no spam and tell nobody.
    assert!(imported.rules.contains("on-spam = \"omit\", bounces = \"suppress\""), "{}", imported.rules);
    let told: Vec<&str> = imported.left_out.iter().map(|left| left.what.as_str()).collect();
    assert_eq!(told, ["delivery to the recipient's own mailbox"], "{:?}", imported.left_out);
}

#[test]
fn what_gmail_has_and_the_language_has_not_is_told() {
    let table = "match,value,change-route,also-deliver-to,remove-attachments,require-tls,unrecognized-only,enabled,address-list\n\
        group,staff@d.example,old host,,,,,,\n\
        single,a@d.example,other=mx.other.example:25,x@y.example,,yes,yes,,vips\n\
        single,b@d.example,,b@y.example,,,,no,\n\
        single,c@d.example,,d@d.example,,,,,\n";
    let (imported, rules) = whole(gmail::import(table, &options()));
    assert_eq!(goes(&rules, "a@d.example"), "a@d.example by other, x@y.example by default");
    let what: Vec<&str> = imported.left_out.iter().map(|left| left.what.as_str()).collect();
    for told in [
        "the members of the group `staff@d.example`",
        "the hosts of route `old-host`",
        "the address list `vips`",
        "the recipient d@d.example",
    ] {
        assert!(what.contains(&told), "{what:?}");
    }
    assert!(imported.rules.contains("# Not carried over:\n# line 2"), "{}", imported.rules);
    assert!(imported.rules.contains("enabled = false") && goes(&rules, "b@d.example").starts_with("550 5.1.1"));
    assert!(imported.routes.contains("hosts = [\"mx.other.example:25\"]"));
}

#[test]
fn wrong_cells_are_all_told_and_nothing_is_imported() {
    let table = "match,value,action,enabled,also-deliver-to,order\n\
        singel,a@d.example,modify,yes,,\nsingle,no address,modify,yes,,\npattern,(,drop,perhaps,x y@z,first\n,a@d,,,,\n";
    let mistakes = gmail::import(table, &options()).unwrap_err();
    for (line, column) in [
        (2, "match"),
        (3, "value"),
        (4, "value"),
        (4, "action"),
        (4, "enabled"),
        (4, "also-deliver-to"),
        (4, "order"),
        (5, "match"),
    ] {
        let told = mistakes.iter().any(|mistake| mistake.starts_with(&format!("line {line}, {column}: ")));
        assert!(told || (line == 4 && column != "order" && column != "action"), "line {line}, {column}: {mistakes:?}");
    }
    assert!(gmail::import("match,value\nall,\n", &options()).unwrap_err()[0].contains("--domain"));
    assert!(gmail::import("match,valeu\n", &options()).unwrap_err()[0].contains("no column `valeu`"));
}

fn address() -> impl Strategy<Value = String> {
    let local = prop::sample::select(vec!["a", "b", "c", "postmaster", "abuse", "\"q r\"", "a+b", "é"]);
    let domain = prop::sample::select(vec!["d.example", "e.example", "sub.d.example", "x.example", "y.example"]);
    (local, domain).prop_map(|(local, domain)| format!("{local}@{domain}"))
}

fn virtual_line() -> impl Strategy<Value = String> {
    let domains = prop::sample::select(vec!["@d.example", "@e.example", "d.example", "e.example", "plain"]);
    let key = prop_oneof![4 => address(), 1 => domains.prop_map(str::to_owned)];
    let at = prop::sample::select(vec!["@e.example", "root", "|/bin/x", "a@[192.0.2.1]"]);
    let value = prop_oneof![8 => address(), 1 => at.prop_map(str::to_owned)];
    (key, prop::collection::vec(value, 1..4)).prop_map(|(key, values)| format!("{key}  {}\n", values.join(", ")))
}

fn transport_line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        2 => address(),
        2 => prop::sample::select(vec!["d.example", "e.example", ".d.example", "x.example", "*"]).prop_map(str::to_owned),
    ];
    let ways = vec![
        "smtp:[h.example]",
        "relay:h.example:26",
        ":",
        "error:5.1.1 no",
        "error:no",
        "retry:4.2.0 later",
        "discard:",
        "local:",
        "smtp:",
        "lmtp:unix:x",
        "smtp:[bad host]",
    ];
    (key, prop::sample::select(ways)).prop_map(|(key, way)| format!("{key} {way}\n"))
}

fn mailboxes() -> impl Strategy<Value = Option<String>> {
    prop::option::of(Just("people".to_owned()))
}

fn gmail_line() -> impl Strategy<Value = String> {
    let pattern = prop::sample::select(vec![
        "^a",
        "@d\\.example$",
        "a|b",
        "^c@e.example$",
        "(?i)A",
        "nobody",
        "",
        "\\d",
        "[^a]@",
    ]);
    let recipient = prop_oneof![
        4 => address().prop_map(|address| format!("single,{}", csv_cell(&address))),
        2 => pattern.prop_map(|pattern| format!("pattern,{}", csv_cell(if pattern.is_empty() { ".*" } else { pattern }))),
        1 => Just("all,".to_owned()),
        1 => Just("group,staff".to_owned()),
    ];
    let sender =
        prop::sample::select(vec![",", "single,<>", "single,s@x.example", "pattern,@x\\.example$", "group,friends"]);
    let way = prop::sample::select(vec!["", "other", "third=h.example:25", "people"]);
    let flags = prop::collection::vec(prop::sample::select(vec!["", "yes", "no"]), 8);
    let texts = prop::sample::select(vec!["", "no \"quotes\" here", "é"]);
    let reject = prop::sample::select(vec!["modify", "modify", "modify", "reject"]);
    let to = prop::option::of(address());
    (recipient, sender, reject, to, prop::collection::vec(address(), 0..3), (way, flags, texts)).prop_map(
        |(recipient, sender, action, to, also, (way, flags, text))| {
            let to = csv_cell(&to.unwrap_or_default());
            let (also, text) = (
                csv_cell(&also.into_iter().filter(|a| !a.contains(' ')).collect::<Vec<_>>().join(" ")),
                csv_cell(text),
            );
            format!("{recipient},{sender},{action},{to},{also},{way},{text},{text},{text},{}\n", flags.join(","))
        },
    )
}

fn csv_cell(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

const GMAIL_HEAD: &str = "match,value,sender-match,sender-value,action,change-recipient,also-deliver-to,change-route,reject-text,\
    subject-prefix,description,enabled,reroute-spam,remove-attachments,bypass-spam,spam-also,suppress-bounces,require-tls,\
    unrecognized-only\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_postfix_has_check_takes_with_its_tests_green(
        table in prop::collection::vec(virtual_line(), 0..12),
        transport in prop::option::of(prop::collection::vec(transport_line(), 0..5)),
        mailboxes in mailboxes(),
    ) {
        let options = Options { mailboxes, ..options() };
        let transport = transport.map(|lines| lines.concat());
        let imported = postfix::import(&table.concat(), transport.as_deref(), &options).unwrap();
        let rules = checked(&imported);
        prop_assert!(rules.is_ok(), "{}\n{}", rules.unwrap_err(), imported.rules);
    }

    #[test]
    fn whatever_gmail_has_check_takes_with_its_tests_green(
        lines in prop::collection::vec(gmail_line(), 1..8),
        mailboxes in mailboxes(),
    ) {
        let options = Options { mailboxes, domains: vec![Domain::parse("d.example").unwrap()], ..options() };
        let table = format!("{GMAIL_HEAD}{}", lines.concat());
        // A wrong cell is told, and nothing is written.
        if let Ok(imported) = gmail::import(&table, &options) {
            let rules = checked(&imported);
            prop_assert!(rules.is_ok(), "{}\n{}\n{table}", rules.unwrap_err(), imported.rules);
        }
    }
}
