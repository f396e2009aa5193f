//! `check`: configuration and rules, drawn mistakes, lints and rule tests.

use std::io::IsTerminal;
use std::path::Path;

use clap::Args;
use serde_json::json;

use super::Ended;
use crate::config::files::short;
use crate::config::systems::System;
use crate::config::{self, Summary};
use crate::diagnostic::Report;
use crate::reload::start;
use crate::rules::set::Counts;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Leave out what asks the network
    #[arg(long)]
    offline: bool,
    /// One JSON object a finding, and a last one that sums up
    #[arg(long)]
    json: bool,
    /// Let advice count, too: the warnings about what is often meant
    #[arg(long)]
    strict: bool,
}

/// Findings, warnings too, end with 1; advice does with `--strict` alone, and what is merely not built yet never.
pub(super) fn run(config: &Path, args: &CheckArgs) -> Ended {
    let (report, summary) = config::check(config, args.offline);
    let findings = if args.strict { report.errors() + report.warnings() } else { report.findings() };
    if args.json {
        print!("{}", report.json_lines());
        println!("{}", sum_up(summary.as_ref(), &report, findings));
    } else {
        print!("{}", report.render(std::io::stdout().is_terminal()));
        if let Some(summary) = &summary {
            print_summary(summary);
        }
        if let Some(instead) =
            start::instead(config, summary.as_ref().map(|summary| summary.hash.as_str()), report.errors())
        {
            println!("{instead}");
        }
        println!("{}", verdict(report.errors(), report.warnings(), findings));
    }
    if findings == 0 { Ended::Done } else { Ended::Findings }
}

fn print_summary(summary: &Summary) {
    let Summary { hostname, hash, rule_set, rule_files, routes, counts, systems, inert, notes } = summary;
    println!(
        "{hostname}: configuration {}, rule set {rule_set} from {}: {}, {}, {}, {}{}, {}; {}",
        short(hash),
        plural(*rule_files, "file"),
        plural(counts.domains, "domain"),
        plural(counts.targets, "target"),
        plural(counts.rules, "rule"),
        plural(counts.aliases, "alias"),
        lists(*counts),
        plural(counts.tests, "test"),
        plural(*routes, "route"),
    );
    for system in systems {
        println!("{system}");
    }
    for note in notes {
        println!("note: {note}");
    }
    if !inert.is_empty() {
        println!("accepted, but without function yet: {}", inert.join(", "));
    }
}

/// With how many entries: what came out of files is not seen otherwise.
fn lists(counts: Counts) -> String {
    let kinds =
        [(counts.lists, "list", counts.list_members, "member"), (counts.maps, "map", counts.map_entries, "row")];
    let there = kinds.into_iter().filter(|(count, ..)| *count > 0);
    there.map(|(count, kind, entries, what)| format!(", {} ({})", plural(count, kind), plural(entries, what))).collect()
}

fn verdict(errors: usize, warnings: usize, findings: usize) -> String {
    match (errors, warnings) {
        (0, 0) => "ok".to_owned(),
        (0, advice) if findings == 0 => format!("ok, with {} that only `--strict` counts", plural(advice, "warning")),
        (errors, warnings) => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    }
}

fn plural(count: usize, noun: &str) -> String {
    let ending = if noun.ends_with('s') { "es" } else { "s" };
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}{ending}") }
}

fn sum_up(summary: Option<&Summary>, report: &Report, findings: usize) -> serde_json::Value {
    json!({
        "summary": true,
        "errors": report.errors(),
        "warnings": report.warnings(),
        "findings": findings,
        "hostname": summary.map(|summary| &summary.hostname),
        "hash": summary.map(|summary| &summary.hash),
        "rule_set": summary.map(|summary| &summary.rule_set),
        "systems": summary.map(|summary| summary.systems.iter().map(System::json).collect::<Vec<_>>()),
        "inert": summary.map(|summary| &summary.inert),
        "notes": summary.map(|summary| &summary.notes),
    })
}
