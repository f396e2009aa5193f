//! What the daemon tells of itself: metrics, whose names are an interface, and the log, one event a line.
//!
//! Both must bear peers that want to spoil them: nothing that a peer says makes a series, and nothing breaks out of
//! its line.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::Value;

use crate::harness::daemon::RULES;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Site, Stage, wait_for};

/// Every metric that exists: name without the prefix, type, labels. The names are an interface: a line may be added, and
/// none be changed.
const METRICS: &[(&str, &str, &[&str])] = &[
    ("connections_total", "counter", &["listener", "result"]),
    ("sessions", "gauge", &["listener"]),
    ("messages_total", "counter", &["result"]),
    ("recipients_total", "counter", &["result"]),
    ("rule_hits_total", "counter", &["rule"]),
    ("rule_shadow_hits_total", "counter", &["action", "rule"]),
    ("rule_last_hit_timestamp_seconds", "gauge", &["rule"]),
    ("legs_total", "counter", &["reason", "route", "state"]),
    ("open_legs", "gauge", &["route", "state"]),
    ("open_legs_oldest_seconds", "gauge", &["route", "state"]),
    ("attempts_total", "counter", &["result", "route"]),
    ("route_paused", "gauge", &["route"]),
    ("route_breaker_open", "gauge", &["route"]),
    ("paced_total", "counter", &["action", "route"]),
    ("config_stale", "gauge", &[]),
    ("ready", "gauge", &[]),
    ("store_failures_total", "counter", &[]),
    ("accept_seconds", "histogram", &[]),
    ("delivery_seconds", "histogram", &["route"]),
    ("commit_seconds", "histogram", &[]),
    ("commit_batch_messages", "histogram", &[]),
    ("data_free_bytes", "gauge", &[]),
    ("build_info", "gauge", &["version"]),
];

/// Promised by the design, and of functions that are not built yet: these move up when they are.
const NOT_BUILT_YET: &[&str] = &[
    "auth_total",
    "spam_score",
    "dns_total",
    "dmarc_at_risk_total",
    "reloads_total",
    "tls_certificate_expiry_timestamp_seconds",
];

#[test]
fn every_metric_is_there_with_its_type_and_labels() {
    let crm = Crm::start();
    let shadow = "[[rule]]\nname = \"watched\"\nhold = \"x\"\nenabled = \"shadow\"\n\n[[rule]]";
    let daemon = Setup::new(crm.address()).rules(&RULES.replacen("[[rule]]", shadow, 1)).start();
    all_kinds_of_mail(&daemon, &crm);
    let metrics = Metrics::of(&daemon);
    for (name, kind, labels) in METRICS {
        let name = format!("pointsman_{name}");
        assert_eq!(metrics.types.get(&name).map(String::as_str), Some(*kind), "{name}");
        let samples: Vec<&Sample> =
            metrics.samples.iter().filter(|sample| sample.family(&metrics.types) == name).collect();
        assert!(!samples.is_empty(), "{name} has a type and no value");
        for sample in samples {
            let named: Vec<&str> = sample.labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
            assert_eq!(named, *labels, "{name}");
        }
    }
    for name in metrics.types.keys() {
        let name = name.strip_prefix("pointsman_").unwrap_or_else(|| panic!("{name} has not our prefix"));
        assert!(METRICS.iter().any(|(known, _, _)| *known == name), "{name} is new: add it to METRICS and the README");
    }
    for name in NOT_BUILT_YET {
        assert!(!metrics.types.contains_key(&format!("pointsman_{name}")), "{name} is built: move it to METRICS");
    }
    for (labels, values) in [
        ("messages_total{result=", &["accepted", "rejected", "aborted"][..]),
        ("recipients_total{result=", &["accepted", "rejected"]),
        ("attempts_total{route=\"crm\",result=", &["ok", "tempfail", "permfail", "connect"]),
    ] {
        for value in values {
            let series = format!("pointsman_{labels}\"{value}\"}} ");
            assert!(metrics.text.contains(&series), "no `{series}` in:\n{}", metrics.text);
        }
    }
}

#[test]
fn a_route_that_backs_off_says_so_until_it_is_reached() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).retry("1s").start();
    let paused = |daemon: &Daemon| Metrics::of(daemon).value("pointsman_route_paused", "route", "crm");
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!(paused(&daemon), Some(0.0));
    crm.go_down();
    let id = daemon.send("aide@solarmora.com");
    wait_for("the route to back off", || (paused(&daemon) == Some(1.0)).then_some(()));
    crm.come_up();
    wait_for("the leg to be delivered", || {
        daemon.cli(&["queue", "retry", "--id", &id]);
        let delivered = daemon.rows(&["trace", "--id", &id, "--state", "delivered"]).len();
        (delivered == 1).then_some(())
    });
    assert_eq!(paused(&daemon), Some(0.0));
}

#[test]
fn a_route_whose_target_fails_is_left_alone_and_says_so() {
    let crm = Crm::start();
    crm.answer(Stage::Dot, "451 4.3.0 cases@mon-crm.com: our index is down");
    let daemon = Setup::new(crm.address()).start();
    let ids: Vec<String> = (0..30).map(|_| daemon.send("aide@solarmora.com")).collect();
    wait_for("the breaker to open", || {
        daemon.cli(&["status"]).out.contains("because most attempts fail: 451 4.3.0").then_some(())
    });
    let open = || Metrics::of(&daemon).value("pointsman_route_breaker_open", "route", "crm");
    assert_eq!(open(), Some(1.0));
    let log = daemon.log();
    assert!(log.contains(r#""event":"route-backs-off","route":"crm","cause":"failing""#), "{log}");
    let untried = daemon.rows(&["queue", "list"]).iter().filter(|row| row["attempts"] == 0).count();
    assert!(untried > 0, "what is parked burns no attempt");
    crm.take_all();
    wait_for("all legs to be delivered", || {
        daemon.cli(&["queue", "retry", "--route", "crm"]);
        daemon.rows(&["queue", "list"]).is_empty().then_some(())
    });
    assert_eq!((crm.mails().len(), open()), (ids.len(), Some(0.0)));
    daemon.wait_for_log("route-reached-again");
}

#[test]
fn status_says_which_route_backs_off_and_why() {
    let (daemon, crm) = Daemon::with_crm();
    assert!(!daemon.cli(&["status"]).succeeds().out.contains("backs off"));
    crm.go_down();
    daemon.send("aide@solarmora.com");
    wait_for("the route to back off", || {
        daemon.cli(&["status"]).out.contains("route crm: backs off until").then_some(())
    });
    let status = daemon.cli(&["status"]).succeeds().out;
    assert!(status.contains(", because ") && status.contains("refused"), "{status}");
    let row = daemon.rows(&["status"]).remove(0);
    assert_eq!((&row["backing_off"][0]["route"], &row["not_ready"]), (&"crm".into(), &Value::Null));
    crm.come_up();
    daemon.cli(&["queue", "retry", "--route", "crm"]).succeeds();
    wait_for("the route to be reached", || (!daemon.cli(&["status"]).out.contains("backs off")).then_some(()));
}

/// The disk below its floor is the commonest reason to take no mail.
#[test]
fn status_and_readyz_give_the_same_reason() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).min_free("1000TiB").start();
    let reason = "too little free space for new mail";
    assert_eq!(daemon.http("/readyz"), (503, format!("not ready: {reason}\n")));
    daemon.cli(&["status"]).succeeds().says(&[&format!("takes no mail: {reason}")]);
    assert_eq!(daemon.rows(&["status"])[0]["not_ready"], reason);
}

#[test]
fn the_crms_secret_address_stays_out_of_the_log() {
    let crm = Crm::start();
    let rules = RULES.replace("case@mon-crm.com", "case-7f3a@k9x8.eu.mon-crm.com");
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    for (answer, reason) in [
        ("550 5.1.1 <case-7f3a@k9x8.eu.mon-crm.com>: no such user", "unknown-target"),
        ("450 4.2.1 <CASE-7F3A@k9x8.eu.mon-crm.com>: later", "tempfail"),
        ("550 5.7.1 case-7f3a takes no such mail", "remote-content"),
    ] {
        crm.answer(Stage::Rcpt, answer);
        let id = daemon.send("aide@solarmora.com");
        wait_for(reason, || daemon.rows(&["trace", "--id", &id]).pop().filter(|row| row["reason"] == reason));
        // The ledger has it word for word, for who asks to see it.
        daemon.cli(&["trace", "--id", &id, "--reveal"]).succeeds().says(&[answer]);
    }
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    let log = site.log().to_lowercase();
    assert!(log.contains("\"leg-held\"") && log.contains("no such user"), "{log}");
    for secret in ["7f3a", "k9x8"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

/// `factures` has two legs by one rule, and `aide` a rule of its own.
#[test]
fn a_rule_counts_once_for_each_recipient_and_is_named_once() {
    let (daemon, _crm) = Daemon::with_crm();
    let recipients = ["factures@solarmora.com", "aide@solarmora.com"];
    let id = Client::connect(daemon.smtp).deliver("client@example.org", &recipients, b"x\r\n").queued_as();
    daemon.wait_for_leg(&format!("{id}.3"), "delivered");
    let metrics = Metrics::of(&daemon);
    for rule in ["factures@solarmora.com", "aide to the CRM"] {
        assert_eq!(metrics.value("pointsman_rule_hits_total", "rule", rule), Some(1.0), "{rule}");
    }
    let line = wait_for("the message's line", || {
        daemon.log().lines().find(|line| line.contains(r#""event":"message""#)).map(str::to_owned)
    });
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["rules"], "factures@solarmora.com, aide to the CRM");
}

#[test]
fn the_command_line_shows_hostile_text_harmlessly() {
    let (daemon, crm) = Daemon::with_crm();
    hostile_mail(&daemon, &crm);
    for command in
        [&["trace", "--since", "1h"][..], &["trace", "--since", "1h", "--json"], &["queue", "list"], &["queue", "show"]]
    {
        let out = daemon.cli(command).succeeds().out;
        let hostile =
            |c: &char| (c.is_control() && *c != '\n') || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
        assert_eq!(out.chars().find(hostile), None, "{command:?}: {out:?}");
    }
    // For a script nothing has changed.
    let rows = daemon.rows(&["trace", "--since", "1h"]);
    assert!(rows.iter().any(|row| row["subject"].as_str().is_some_and(|text| text.contains('\u{202e}'))), "{rows:?}");
}

#[test]
fn the_metrics_counts_agree_with_the_queue() {
    let (daemon, crm) = Daemon::with_crm();
    crm.follow(|stage, line| {
        (stage == Stage::Rcpt && line.contains("ventes@")).then(|| Answer::Say("450 4.2.1 full".into()))
    });
    for _ in 0..3 {
        let id = daemon.send("factures@solarmora.com");
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    wait_for("three deferred legs", || (daemon.rows(&["queue", "list"]).len() == 3).then_some(()));
    let metrics = Metrics::of(&daemon);
    for (name, label, value, count) in [
        ("pointsman_messages_total", "result", "accepted", 3.0),
        ("pointsman_recipients_total", "result", "accepted", 3.0),
        ("pointsman_open_legs", "state", "queued", 3.0),
        ("pointsman_rule_hits_total", "rule", "factures@solarmora.com", 3.0),
        ("pointsman_delivery_seconds_count", "route", "crm", 3.0),
    ] {
        assert_eq!(metrics.value(name, label, value), Some(count), "{name}{{{label}={value}}}");
    }
    let last = metrics.value("pointsman_rule_last_hit_timestamp_seconds", "rule", "factures@solarmora.com").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(now - 600.0 < last && last <= now + 1.0, "{last} is no time of today, {now}");
}

#[test]
fn no_series_is_named_by_a_peer() {
    let (daemon, crm) = Daemon::with_crm();
    all_kinds_of_mail(&daemon, &crm);
    crm.come_up();
    crm.take_all();
    let id = daemon.send("aide@solarmora.com");
    daemon.cli(&["queue", "retry", "--route", "crm"]);
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    daemon.send("factures@solarmora.com");
    wait_for("all to be settled", || {
        let open = daemon.rows(&["queue", "list", "--state", "queued"]).len();
        daemon.cli(&["queue", "retry", "--route", "crm"]);
        (open == 0).then_some(())
    });
    let before = Metrics::of(&daemon);
    // A thousand senders, recipients, greetings and message ids; few sessions, because each may fail only so often.
    for session in 0..100 {
        let mut client = Client::connect(daemon.smtp);
        for n in 0..10 {
            let number = session * 10 + n;
            client.say(&format!("EHLO h{number}.example.net"));
            client.say(&format!("MAIL FROM:<s{number}@d{number}.example.net>"));
            client.say(&format!("RCPT TO:<nobody{number}@solarmora.com>"));
            if n == 0 {
                client.say("RCPT TO:<aide@solarmora.com>");
                client.say("DATA");
                client
                    .send(format!("Message-ID: <{number}@example.net>\r\nSubject: {number}\r\n\r\n.\r\n").as_bytes())
                    .unwrap();
                assert_eq!(client.reply().code, 250);
            }
        }
    }
    wait_for("all to be settled", || daemon.rows(&["queue", "list", "--state", "queued"]).is_empty().then_some(()));
    let (before, after) = (before.series(), Metrics::of(&daemon).series());
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.is_empty(), "a thousand peers made {} new series: {new:#?}", new.len());
}

#[test]
fn hostile_text_stays_on_its_line_and_within_its_field() {
    for format in ["json", "text"] {
        let crm = Crm::start();
        let daemon = Setup::new(crm.address()).log(format).start();
        let (taken, refused) = hostile_mail(&daemon, &crm);
        assert!(taken > 3 && refused > 3, "{taken} taken, {refused} refused: the peers were not hostile enough");
        daemon.signal("TERM");
        let (site, status) = daemon.wait();
        assert_eq!(status.code(), Some(0));
        for line in site.log().lines() {
            let bad =
                line.chars().find(|c| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'));
            assert_eq!(bad, None, "{line}");
            assert!(line.len() < 4000, "{} octets: {line}", line.len());
        }
        match format {
            "json" => json_log(&site, taken),
            _ => text_log(&site, taken),
        }
    }
}

/// Every line an object with time, level and event; one for each message and each attempt.
fn json_log(site: &Site, messages: usize) {
    let mut events: BTreeMap<String, usize> = BTreeMap::new();
    for line in site.log().lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for key in ["timestamp", "level", "event"] {
            assert!(event[key].is_string(), "no `{key}` in {line}");
        }
        // Nothing that a peer said has become a key of its own.
        assert!(event.get("forged").is_none(), "{line}");
        let kind = format!("{} {}", event["event"].as_str().unwrap(), event["result"].as_str().unwrap_or_default());
        *events.entry(kind).or_default() += 1;
    }
    assert_eq!(events.get("message accepted"), Some(&messages), "{events:?}");
    let attempts: usize = events.iter().filter(|(kind, _)| kind.starts_with("attempt ")).map(|(_, count)| count).sum();
    assert_eq!(attempts, messages, "{events:?}");
    assert!(events.contains_key("attempt tempfail"), "{events:?}");
}

/// Every line begins with its time and level.
fn text_log(site: &Site, messages: usize) {
    let start = Regex::new(r"^\d{4}-\d\d-\d\dT[\d:.]+Z +(INFO|WARN|ERROR) ").unwrap();
    let log = site.log();
    for line in log.lines() {
        assert!(start.is_match(line), "{line}");
    }
    assert_eq!(
        log.lines().filter(|line| line.contains("event=\"message\"") && line.contains("accepted")).count(),
        messages
    );
}

/// Mail whose every word is chosen to spoil a log. Gives how many messages were taken, and recipients refused.
fn hostile_mail(daemon: &Daemon, crm: &Crm) -> (usize, usize) {
    let spoilers = [
        "\u{1b}[2J",
        "a\",\"forged\":\"b",
        "\\\",\"forged\":1,\"x\":\"\\",
        "\u{202e}gnirts",
        "\u{2028}{\"event\":\"forged\"}",
        "\u{85}next line",
        "\u{7f}\u{9b}31m",
        "%n%s${jndi:ldap://x}",
        "x forged=1",
    ];
    let (mut taken, mut refused) = (0, 0);
    crm.follow(|stage, line| {
        let hostile = stage == Stage::Rcpt && line.contains("ventes@");
        let text = format!("450 4.2.1 \u{1b}[2J \u{202e} \u{2028} \",\"forged\":\"{}", "y".repeat(300));
        hostile.then_some(Answer::Say(text))
    });
    for spoiler in spoilers {
        let escaped = spoiler.replace('\\', "\\\\").replace('"', "\\\"");
        let long = "z".repeat(60);
        // Each in a session of its own: what is refused ends here, and what is taken goes on.
        let mut client = Client::connect(daemon.smtp);
        client.say(&format!("EHLO [{spoiler}]"));
        client.say("EHLO client.example");
        for sender in [format!("<\"{escaped}{long}\"@example.org>"), format!("<{spoiler}@example.org>")] {
            let mail = client.say(&format!("MAIL FROM:{sender} SMTPUTF8 BODY=8BITMIME"));
            if mail.code == 250 {
                break;
            }
        }
        client.say("MAIL FROM:<plain@example.org>");
        for local in [format!("\"{escaped}\""), spoiler.to_owned()] {
            refused += usize::from(client.say(&format!("RCPT TO:<{local}@solarmora.com>")).code >= 500);
        }
        let alias = if taken % 3 == 2 { "ventes" } else { "aide" };
        assert_eq!(client.say(&format!("RCPT TO:<{alias}@solarmora.com>")).code, 250);
        client.say("DATA");
        let header =
            format!("Message-ID: <{spoiler}@example.org>\r\nSubject: {spoiler}\r\nFrom: {spoiler} <x@example.org>\r\n");
        client.send(format!("{header}\r\n.\r\n").as_bytes()).unwrap();
        let reply = client.reply();
        taken += usize::from(reply.code == 250);
        assert!(reply.code == 250, "{spoiler:?}: {reply:?}");
    }
    wait_for("an attempt for each", || {
        let rows = daemon.rows(&["trace", "--since", "1h"]);
        (rows.iter().filter(|row| row["attempts"].as_u64() > Some(0)).count() == taken).then_some(())
    });
    (taken, refused)
}

/// At least one of everything that is counted: taken, refused, broken off, delivered, deferred, held, route away.
fn all_kinds_of_mail(daemon: &Daemon, crm: &Crm) {
    let id = daemon.send("factures@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    daemon.wait_for_leg(&format!("{id}.2"), "delivered");
    let mut client = Client::connect(daemon.smtp);
    client.say("MAIL FROM:<client@example.org>");
    assert_eq!(client.say("RCPT TO:<personne@solarmora.com>").code, 550);
    client.say("RCPT TO:<aide@solarmora.com>");
    client.say("DATA");
    client.send(b"bare \n line feed\r\n.\r\n").unwrap();
    assert_eq!(client.reply().code, 554);
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        client.say(command);
    }
    client.send(b"half").unwrap();
    drop(client);
    for (answer, reason) in [("450 4.2.1 later", "tempfail"), ("550 5.1.1 no such user", "unknown-target")] {
        crm.answer(Stage::Rcpt, answer);
        let id = daemon.send("aide@solarmora.com");
        wait_for(reason, || daemon.rows(&["queue", "list", "--id", &id]).pop().filter(|row| row["reason"] == reason));
    }
    crm.go_down();
    let id = daemon.send("aide@solarmora.com");
    wait_for("the route to be away", || {
        daemon.rows(&["queue", "list", "--id", &id]).pop().filter(|row| row["reason"] == "connect")
    });
    // Looked at every few seconds, and in sight from the first look that finds a leg.
    wait_for("the age of the oldest leg", || {
        let metrics = Metrics::of(daemon);
        let ages = ["queued", "held"].map(|state| metrics.value("pointsman_open_legs_oldest_seconds", "state", state));
        ages.iter().all(Option::is_some).then_some(())
    });
}

/// A line of the text format: name, labels, value.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    /// The name that its TYPE line has: a histogram's samples add a suffix.
    fn family(&self, types: &BTreeMap<String, String>) -> String {
        let suffixes = ["_bucket", "_sum", "_count"];
        let stem = suffixes.iter().find_map(|suffix| self.name.strip_suffix(suffix));
        let stem = stem.filter(|stem| types.get(*stem).is_some_and(|kind| kind == "histogram"));
        stem.unwrap_or(&self.name).to_owned()
    }

    fn series(&self) -> String {
        format!("{}{:?}", self.name, self.labels)
    }
}

/// The whole of `/metrics`, read strictly.
struct Metrics {
    text: String,
    types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

impl Metrics {
    fn of(daemon: &Daemon) -> Metrics {
        let (code, text) = daemon.http("/metrics");
        assert_eq!(code, 200);
        Metrics::read(text)
    }

    /// Reads the text format of Prometheus 0.0.4. Fails the test where a scraper would stumble: a sample without a type, a
    /// family in two places, a series that is there twice, a histogram that does not add up.
    fn read(text: String) -> Metrics {
        let sample = Regex::new(r#"^([a-z_]+)(?:\{(.*)\})? (\S+)$"#).unwrap();
        let label = Regex::new(r#"([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)"#).unwrap();
        let (mut types, mut samples, mut seen) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut current = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a type");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two places");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
                current = name.to_owned();
                continue;
            }
            if line.starts_with('#') {
                assert!(line.starts_with("# HELP "), "{line}");
                continue;
            }
            let found = sample.captures(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            let labels = found.get(2).map_or("", |labels| labels.as_str());
            let pairs: BTreeMap<String, String> =
                label.captures_iter(labels).map(|pair| (pair[1].to_owned(), pair[2].to_owned())).collect();
            let read: usize = label.find_iter(labels).map(|pair| pair.len()).sum();
            assert_eq!(read, labels.len(), "labels that cannot be read: {line}");
            let value = found[3].parse().unwrap_or_else(|_| panic!("not a value: {line}"));
            let sample = Sample { name: found[1].to_owned(), labels: pairs, value };
            assert_eq!(sample.family(&types), current, "outside its family: {line}");
            assert!(seen.insert(sample.series()), "twice: {line}");
            samples.push(sample);
        }
        let metrics = Metrics { text, types, samples };
        metrics.histograms_add_up();
        metrics
    }

    fn histograms_add_up(&self) {
        for count in self.samples.iter().filter(|sample| sample.name.ends_with("_count")) {
            let name = count.name.replace("_count", "_bucket");
            let of_same = |sample: &&Sample| {
                let mut labels = sample.labels.clone();
                labels.remove("le");
                sample.name == name && labels == count.labels
            };
            let buckets: Vec<&Sample> = self.samples.iter().filter(of_same).collect();
            assert!(buckets.is_sorted_by(|a, b| a.value <= b.value), "{buckets:?}");
            let last = buckets.last().unwrap_or_else(|| panic!("{} has no buckets", count.name));
            assert_eq!((last.labels["le"].as_str(), last.value), ("+Inf", count.value), "{}", count.name);
        }
    }

    /// The value of the one series of this name with this label.
    fn value(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let mut found = self
            .samples
            .iter()
            .filter(|sample| sample.name == name && sample.labels.get(label).is_some_and(|labelled| labelled == value));
        found.next().map(|sample| sample.value)
    }

    fn series(&self) -> BTreeSet<String> {
        self.samples.iter().map(Sample::series).collect()
    }
}

#[test]
fn a_rule_s_name_may_be_anything_in_a_label() {
    let crm = Crm::start();
    let rules = RULES.replace("aide to the CRM", r#"\"aide\", {to} \\ the CRM\n"#);
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    Metrics::of(&daemon);
}
