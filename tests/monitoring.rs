//! What `deploy/` brings for those who watch: alert rules, a dashboard, and the metrics that both stand on.
//!
//! A Prometheus from Debian scrapes a daemon through which mail flows, some of it with trouble, and every query of the
//! dashboard must give a number. Each alert is played by promtool, and none of them is evaluated with an error.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::daemon::RULES;
use crate::harness::dns::Dns;
use crate::harness::{Answer, Certificates, Client, Crm, Daemon, PATIENCE, Setup, Stage, alone, has, run, wait_for};

#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    if !has("every_alert_fires_when_it_should_and_not_before", "promtool") {
        return;
    }
    let folder = deploy().join("prometheus");
    run(Command::new("promtool").args(["check", "rules", "alerts.yml"]).current_dir(&folder));
    let mut played = String::new();
    for file in ["alerts.test.yml", "alerts.days.test.yml"] {
        run(Command::new("promtool").args(["test", "rules", file]).current_dir(&folder));
        played += &fs::read_to_string(folder.join(file)).unwrap();
    }
    for alert in alerts() {
        // Once as a sample that is there, and once as none.
        let fires = Regex::new(&format!(r#"labels: 'ALERTS\{{alertname="{alert}""#)).unwrap();
        let waits = Regex::new(&format!(r#"ALERTS\{{alertname="{alert}", .*\n.*\n +exp_samples: \[\]"#)).unwrap();
        assert!(fires.is_match(&played) && waits.is_match(&played), "{alert} is not played in alerts*.test.yml");
    }
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist_and_commands_that_are_there() {
    let table = fs::read_to_string(deploy().join("../docs/operating.md")).unwrap();
    let row = Regex::new(r"(?m)^\| `(\w+)(?:\{[\w,]+\})?` \|").unwrap();
    let known: BTreeSet<String> = row.captures_iter(&table).map(|found| format!("pointsman_{}", &found[1])).collect();
    let metric = Regex::new(r"\bpointsman_\w+").unwrap();
    let part = Regex::new("_(bucket|sum|count)$").unwrap();
    for file in [
        "prometheus/alerts.yml",
        "prometheus/alerts.test.yml",
        "prometheus/alerts.days.test.yml",
        "grafana/pointsman.json",
    ] {
        let text = fs::read_to_string(deploy().join(file)).unwrap();
        for found in metric.find_iter(&text) {
            let whole = part.replace(found.as_str(), "");
            assert!(known.contains(&*whole), "{file} names {}, which docs/operating.md does not", found.as_str());
        }
    }
    let text = fs::read_to_string(deploy().join("prometheus/alerts.yml")).unwrap();
    let command = Regex::new(r"\bpointsman ((?:(?:queue|quarantine) )?[a-z]+)((?: --[a-z-]+)?)").unwrap();
    let commands: BTreeSet<(String, String)> = command
        .captures_iter(&text)
        .map(|found| (found[1].to_owned(), found[2].trim().to_owned()))
        .filter(|(words, _)| !["or", "by"].contains(&words.as_str()))
        .collect();
    assert!(commands.len() > 8, "the commands were not found: {commands:?}");
    for (words, option) in commands {
        let help = run(Command::new(crate::harness::program()).args(words.split(' ')).arg("--help"));
        assert!(help.contains(&option), "`pointsman {words}` has no {option}");
    }
}

#[test]
fn the_metrics_are_as_prometheus_wants_them() {
    if !has("the_metrics_are_as_prometheus_wants_them", "promtool") {
        return;
    }
    let (daemon, _crm) = Daemon::with_crm();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(daemon.http("/metrics").1.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert_eq!((said.status.code(), text.as_str()), (Some(0), ""));
}

#[test]
fn a_thousand_rules_are_shown_before_they_apply_and_no_more() {
    for (rules, shown) in [(1_000, 1_000), (1_001, 1_000)] {
        let aliases: String = (0..rules).map(|n| format!("a{n} = {{ to = \"case@mon-crm.com\" }}\n")).collect();
        let rules =
            format!("[domain.\"solarmora.com\"]\nrole = \"r@mon-crm.com\"\n[alias.\"solarmora.com\"]\n{aliases}");
        let daemon = Setup::new(SocketAddr::from(([127, 0, 0, 1], 9))).rules(&rules).start();
        assert_eq!(daemon.http("/metrics").1.matches("\npointsman_rule_hits_total{").count(), shown);
    }
}

#[test]
fn every_query_of_the_dashboard_gives_a_number() {
    let test = "every_query_of_the_dashboard_gives_a_number";
    if !has(test, "prometheus") {
        return;
    }
    let _heavy = alone();
    let site = Site::start();
    let prometheus = Prometheus::start(site.daemon.admin);
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(deploy().join("grafana/pointsman.json")).unwrap()).unwrap();
    let mut open: Vec<(String, String)> = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["type"] == "row" || panel["description"].is_string(), "{title} does not say what it shows");
        for target in panel["targets"].as_array().into_iter().flatten() {
            open.push((title.to_owned(), asked(target["expr"].as_str().unwrap())));
        }
    }
    assert!(open.len() > 25, "the queries were not found");
    // A rate needs two scrapes with mail between them.
    let mut round = 0;
    wait_for("a number for each query", || {
        round += 1;
        site.send(round);
        open.retain(|(_, query)| !prometheus.has_number(query));
        println!("round {round}, still without a number: {open:?}");
        open.is_empty().then_some(())
    });
    let rules = wait_for("each alert to be evaluated", || {
        let rules = prometheus.get("/api/v1/rules");
        let groups = rules["data"]["groups"].as_array()?.clone();
        let rules: Vec<Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert_eq!(rules.len(), alerts().len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

/// A query as Grafana would send it, for all instances and routes. What stands in for no data is left out.
fn asked(expression: &str) -> String {
    let query = expression.replace(" or vector(0)", "").replace("$__rate_interval", "10s").replace("$__range", "1m");
    query.replace("$instance", ".*").replace("$route", ".*")
}

/// A daemon with trouble of each kind.
struct Site {
    daemon: Daemon,
    _crm: Crm,
    _dns: Dns,
}

impl Site {
    fn start() -> Site {
        let dns = Dns::start(
            "good.example TXT v=spf1 ip4:127.0.0.1 -all\n_dmarc.good.example TXT v=DMARC1; p=reject\n\
             lame.example SERVFAIL\n_dmarc.lame.example SERVFAIL\n",
        );
        let crm = Crm::start();
        // Every other case is put off, and one in between refused.
        crm.follow(|stage, line| {
            let said = match (stage, line.contains("ventes")) {
                (Stage::Dot, true) => "451 4.3.0 later",
                _ => return None,
            };
            Some(Answer::Say(said.to_owned()))
        });
        let rules = format!(
            "{RULES}\naway = {{ to = \"a@away.example\", route = \"away\" }}\nwait = {{ to = \"ventes\", hold = \"on hold\" }}\n\
             look = {{ to = \"ventes\", quarantine = \"look at it\" }}\n"
        );
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let certificates = Certificates::new("mx.solarmora.com");
        let (certificate, key) = (certificates.certificate(), certificates.key());
        let more = format!(
            "{}[auth]\n[spam]\n[route.away]\nhosts = [\"{closed}\"]\ntls = \"off\"\n[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
            dns.config(),
            certificate.display(),
            key.display()
        );
        let setup = Setup::new(crm.address()).rules(&rules).listener_tls("starttls", &certificates);
        let daemon = setup.more(&more).start();
        Site { daemon, _crm: crm, _dns: dns }
    }

    /// A bit of everything.
    fn send(&self, round: usize) {
        let mut client = Client::connect(self.daemon.smtp);
        for (number, alias) in ["aide", "factures", "ventes", "away", "wait", "look"].iter().enumerate() {
            let domain = if round.is_multiple_of(2) { "lame.example" } else { "good.example" };
            let message =
                format!("From: a@{domain}\r\nSubject: s\r\nMessage-ID: <{round}.{number}@{domain}>\r\n\r\nHello.\r\n");
            client
                .deliver(&format!("a@{domain}"), &[&format!("{alias}@solarmora.com")], message.as_bytes())
                .queued_as();
        }
        client.say("MAIL FROM:<a@good.example>");
        assert_eq!(client.say("RCPT TO:<nobody@solarmora.com>").code, 550);
        assert_eq!(client.say("RCPT TO:<aide@solarmora.com>").code, 250);
        assert_eq!(client.say("DATA").code, 354);
        drop(client);
        let mut client = Client::connect(self.daemon.smtp);
        assert_eq!(client.say("STARTTLS").code, 220);
        client.send(b"this is no handshake\r\n\r\n").unwrap();
    }
}

/// A server of Debian's that scrapes one daemon each second.
struct Prometheus {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Prometheus {
        let folder = tempfile::Builder::new().prefix("pointsman-prometheus-").tempdir().unwrap();
        let configuration = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [\"{}\"]\nscrape_configs:\n  - \
             job_name: pointsman\n    static_configs: [{{ targets: [\"{target}\"] }}]\n",
            deploy().join("prometheus/alerts.yml").display()
        );
        fs::write(folder.path().join("prometheus.yml"), configuration).unwrap();
        // It takes no port 0; a port that was just free is.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_for("Prometheus to listen", || TcpStream::connect(address).ok());
        Prometheus { address, process, _folder: folder }
    }

    fn has_number(&self, query: &str) -> bool {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(query)));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let samples = answer["data"]["result"].as_array().expect("a vector");
        samples.iter().any(|sample| sample["value"][1].as_str().is_some_and(|value| value != "NaN"))
    }

    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.address).expect("Prometheus listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer in UTF-8");
        let body = answer.split_once("\r\n\r\n").expect("a head and a body").1;
        // Not there yet: it answers 503 in words while it starts.
        serde_json::from_str(body).unwrap_or(Value::Null)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As in a URL (RFC 3986 §2.1).
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn alerts() -> Vec<String> {
    let text = fs::read_to_string(deploy().join("prometheus/alerts.yml")).unwrap();
    let name = Regex::new(r"(?m)^ +- alert: (\w+)$").unwrap();
    let names: Vec<String> = name.captures_iter(&text).map(|found| found[1].to_owned()).collect();
    assert!(names.len() > 15, "the alerts were not found");
    assert_eq!(text.matches("runbook: |").count(), names.len(), "each alert says what to do");
    names
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}
