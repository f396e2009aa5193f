//! `dns`: the records to publish, as a zone file or as JSON. Asks nobody.

use std::io::IsTerminal;
use std::path::Path;

use serde_json::{Value, json};

use super::{Ended, Output};
use crate::auth::key_file;
use crate::config::Config;
use crate::config::records::{Data, Need, Record, records, strings};

/// Prints the records; 1 where one of them lacks the DKIM key, or where the configuration does not load.
pub(super) fn run(config: &Path, output: Output) -> Ended {
    let config = match Config::load(config) {
        Ok((config, _)) => config,
        Err(report) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            return Ended::Findings;
        }
    };
    let key = config.dkim.as_ref().map(|dkim| key_file::open(dkim.key.path()));
    let text = key.as_ref().and_then(|key| key.as_ref().ok()).map(|key| key.record());
    let records = records(&config, text.as_deref());
    if output.json {
        records.iter().for_each(|record| println!("{}", object(record)));
    } else {
        println!("; What the DNS must say for {}, each in the zone that it belongs to. Where a", config.hostname);
        println!("; name has an SPF or a DMARC record already, change that one: two are an error.");
        records.iter().for_each(|record| print!("{}", zone_lines(record)));
    }
    match key {
        Some(Err(error)) => {
            eprintln!("pointsman: no DKIM key yet: {error}");
            Ended::Findings
        }
        Some(Ok(_)) | None => Ended::Done,
    }
}

/// RFC 1035 §5.1: the reason as a comment, then the record; what is not known, or is only advice, is a comment as well.
fn zone_lines(record: &Record) -> String {
    let Record { name, kind, data, why, need } = record;
    let data = match data {
        Data::Plain(data) => Some(data.clone()),
        Data::Text(text) => Some(quoted(text)),
        Data::Unknown => None,
    };
    // A name with a space in it is none: it says what belongs there.
    let complete = data.is_some() && *need == Need::Required && !name.contains(' ');
    let dot = if name.contains(' ') { "" } else { "." };
    let line = format!("{name}{dot}\tIN\t{kind}\t{}", data.unwrap_or_else(|| "…".to_owned()));
    let line = if complete { line } else { format!("; {}", line.replace('\n', "\n; ")) };
    format!("\n; {why}\n{line}\n")
}

/// The strings of a TXT record, in brackets over several lines where there are several.
fn quoted(text: &str) -> String {
    let strings = strings(text);
    let quote = |string: &&str| format!("\"{}\"", string.replace('\\', "\\\\").replace('"', "\\\""));
    let quoted: Vec<String> = strings.iter().map(quote).collect();
    match quoted.as_slice() {
        [one] => one.clone(),
        several => format!("(\n\t\t{} )", several.join("\n\t\t")),
    }
}

fn object(record: &Record) -> Value {
    let Record { name, kind, data, why, need } = record;
    let (value, parts) = match data {
        Data::Plain(data) => (json!(data), Value::Null),
        Data::Text(text) => (json!(text), json!(strings(text))),
        Data::Unknown => (Value::Null, Value::Null),
    };
    let required = *need == Need::Required;
    json!({ "name": name, "type": kind, "value": value, "strings": parts, "why": why, "required": required })
}
