//! Scores folders of mail by what they say alone, without a client and without DNS: `cargo spam-bench HAM SPAM`.
//!
//! Prints how many of each fall into which band, which signals found how many, and the worst ten, or with `--all` every message.
//! Nothing leaves the machine.

use std::collections::BTreeMap;
use std::path::Path;

use pointsman::address::ReversePath;
use pointsman::auth::AuthReport;
use pointsman::clock::Timestamp;
use pointsman::message::content::Date;
use pointsman::message::{Head, Header};
use pointsman::spam::evidence::{Evidence, Reading};
use pointsman::spam::{Bands, SpamReport, builtin};

fn main() {
    let folders: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let shown = if std::env::args().any(|argument| argument == "--all") { usize::MAX } else { 10 };
    if folders.is_empty() {
        println!("usage: cargo spam-bench FOLDER …, each with one message a file");
        return;
    }
    for folder in folders {
        tell(&folder, shown);
    }
}

fn tell(folder: &str, shown: usize) {
    let mut bands: BTreeMap<&str, usize> = BTreeMap::new();
    let mut signals: BTreeMap<String, usize> = BTreeMap::new();
    let mut scores: Vec<(f64, String, SpamReport)> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}")) {
        let path = entry.expect("the folder can be read").path();
        let report = score(&path);
        *bands.entry(Bands::default().of(&report).as_str()).or_default() += 1;
        for signal in &report.signals {
            *signals.entry(signal.name.to_string()).or_default() += 1;
        }
        scores.push((report.score, path.display().to_string(), report));
    }
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{folder}: {} messages, {bands:?}", scores.len());
    println!("  {signals:?}");
    for (_, path, report) in scores.iter().take(shown) {
        println!("  {:.1} {path}: {}", report.score, report.explanation());
    }
}

fn score(path: &Path) -> SpamReport {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut head = Head::default();
    head.push(&bytes);
    let reading = Reading::of(&bytes);
    // Old mail is judged as if it had come when it was written.
    let received = match reading.content().date {
        Date::At(at) => Timestamp(at * 1000),
        Date::Absent | Date::Unreadable => Timestamp(0),
    };
    builtin::score(&Evidence {
        client: None,
        sender: &ReversePath::Null,
        auth: &AuthReport::default(),
        header: &Header::index(head.as_bytes()),
        reading: &reading,
        listed: 0,
        hostname: "mx.example",
        is_ours: &|_| false,
        received,
    })
}
