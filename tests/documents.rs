//! The tables of `docs/operating.md` and `docs/spam.md` say what the program has, no more and no less.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pointsman::queue::{Reason, State};
use pointsman::relay::profile::Profile;
use regex::Regex;

use crate::harness::Daemon;

#[test]
fn the_tables_of_states_and_reasons_have_them_all() {
    let states: Vec<String> = State::ALL.map(|state| state.as_str().to_owned()).into();
    assert_eq!(first_column("States of a leg"), sorted(&states));
    let reasons: Vec<String> = Reason::ALL.map(|reason| reason.as_str().to_owned()).into();
    assert_eq!(first_column("Reasons"), sorted(&reasons));
}

#[test]
fn the_table_of_replies_is_the_catalogue() {
    let catalogue = read("src/reply.rs");
    let constant = Regex::new(r"(?ms)^pub const [A-Z0-9_]+: Reply\s*=(.*?);$").unwrap();
    let parts = Regex::new(r#"(?s)(\d{3}), (?:Enhanced\((\d), (\d), (\d+)\)|enhanced: None).*?"([^"]*)""#).unwrap();
    let mut replies = Vec::new();
    for reply in constant.captures_iter(&catalogue) {
        let parts = parts.captures(&reply[1]).unwrap_or_else(|| panic!("it is not understood: {}", &reply[1]));
        let enhanced = parts.get(2).map_or_else(String::new, |_| format!(" {}.{}.{}", &parts[2], &parts[3], &parts[4]));
        replies.push(format!("{}{enhanced} {}", &parts[1], &parts[5]));
    }
    assert!(replies.len() > 40, "the catalogue was not found: {replies:?}");
    let told: Vec<String> = rows("Replies").iter().map(|row| format!("{} {}", row[0], row[1])).collect();
    assert_eq!(sorted(&told), sorted(&replies));
}

#[test]
fn the_table_of_metrics_has_them_all_with_their_labels() {
    let events = read("src/events.rs") + &read("src/events/rules.rs") + &read("src/events/systems.rs");
    let metric = Regex::new(r#"(?s)"pointsman_(\w+)"(.*?)\)\s*\.(?:increment|decrement|set|record)\("#).unwrap();
    let label = Regex::new(r#""(\w+)" =>"#).unwrap();
    let metrics = metric.captures_iter(&events).map(|found| {
        let labels: Vec<&str> =
            label.captures_iter(found.get(2).map_or("", |rest| rest.as_str())).map(|l| l.extract::<1>().1[0]).collect();
        if labels.is_empty() { found[1].to_owned() } else { format!("{}{{{}}}", &found[1], labels.join(",")) }
    });
    let metrics: Vec<String> = metrics.collect();
    assert!(metrics.len() > 20, "the metrics were not found: {metrics:?}");
    assert_eq!(first_column("Metrics"), sorted(&metrics));
    // Each says in /metrics itself what it is.
    let described = read("src/admin/http.rs");
    for metric in metrics {
        let name = format!("\"pointsman_{}\"", metric.split('{').next().unwrap_or(""));
        assert!(
            described.split("fn describe").nth(1).unwrap().contains(&name),
            "src/admin/http.rs describes no {name}"
        );
    }
}

#[test]
fn the_table_of_signals_has_them_all_with_their_points() {
    let kinds = ["client", "builtin", "header", "body"].map(|kind| read(&format!("src/spam/{kind}.rs")));
    let signal = Regex::new(r#"(?:\bnote\(|\btopic\(|\()\s*"([a-z0-9-]+)",\s*(-?\d+\.\d)"#).unwrap();
    let mut signals: Vec<String> = kinds
        .iter()
        .flat_map(|source| signal.captures_iter(source))
        .map(|found| format!("{} {}", &found[1], &found[2]))
        .collect();
    assert!(signals.len() > 50, "the signals were not found: {signals:?}");
    signals.push("gtube 1000.0".to_owned());
    let rows = rows_of("docs/spam.md", "The builtin score");
    let rows =
        rows.iter().filter(|row| row.get(1).is_some_and(|points| row.len() == 3 && points.parse::<f64>().is_ok()));
    let told: Vec<String> = rows
        .flat_map(|row| row[0].split("`, `").map(|name| format!("{name} {}", row[1])).collect::<Vec<_>>())
        .collect();
    assert_eq!(sorted(&told), sorted(&signals));
}

#[test]
fn the_catalogue_of_profiles_is_the_program_s() {
    let rows = rows_of("docs/profiles.md", "The catalogue");
    let told: Vec<String> = rows.iter().filter(|row| row.len() > 5).map(|row| row[0].clone()).collect();
    assert_eq!(told, Profile::ALL.map(|profile| profile.as_str().to_owned()));
}

#[test]
fn the_table_of_files_names_what_a_daemon_has() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.send("aide@solarmora.com");
    let told = first_column("Files");
    for entry in fs::read_dir(daemon.data()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(told.contains(&name), "docs/operating.md does not name `{name}`");
    }
}

#[test]
fn the_table_of_exit_codes_is_what_the_readme_says() {
    let codes: Vec<String> = rows("Exit codes").iter().map(|row| format!("{} {}", row[0], row[1])).collect();
    assert!(read("README.md").contains(&format!("Exit codes: {}.", codes.join(", "))), "{codes:?}");
}

/// Code in the first column of the table under a heading, sorted, each once.
fn first_column(heading: &str) -> BTreeSet<String> {
    let rows = rows(heading);
    assert!(!rows.is_empty(), "docs/operating.md has no table under `{heading}`");
    rows.iter().flat_map(|row| row[0].split("`, `").map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The tables under a heading of docs/operating.md, the first one's head left out; the back quotes around a cell, too.
fn rows(heading: &str) -> Vec<Vec<String>> {
    rows_of("docs/operating.md", heading)
}

fn rows_of(document: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(document);
    let under = text.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading `{heading}`"));
    let under = under.split("\n## ").next().unwrap_or("");
    let cells =
        |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    under.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

fn sorted(words: &[String]) -> BTreeSet<String> {
    words.iter().cloned().collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}
