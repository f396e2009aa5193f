//! What rules cost: to decide with many of them, and to hold a million addresses.
//!
//! `cargo rules-bench` builds and runs it; the exit code is 1 where a promise is not kept. The mix of the first part is 9,000
//! addresses and 1,000 patterns, of which 100 name no domain.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use pointsman::address::{Mailbox, ReversePath};
use pointsman::clock::Timestamp;
use pointsman::diagnostic::{Report, Source};
use pointsman::rules::{Facts, RuleSet, Surroundings, parse};

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rules-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<bool> {
    let mut is_kept = true;
    let set = load(&mix(), &|_, name| Err(format!("there is no {name}")))?;
    for (title, recipient, limit) in [
        ("an address that a rule names", "a4500@d.example", Duration::from_micros(50)),
        ("an address that no rule names: all patterns are tried", "nobody@d.example", Duration::from_micros(150)),
    ] {
        is_kept &= print(title, each_decision(&set, recipient)?, limit);
    }
    for (kind, rules, line) in [
        ("list", "[list]\nl = 'file:million.txt'\n", Line::Address),
        ("map", "[map]\nm = { file = 'million.csv' }\n", Line::Row),
    ] {
        is_kept &= million(kind, rules, line)?;
    }
    Ok(is_kept)
}

/// 9,000 rules that name an address, 900 patterns with a domain and 100 without.
fn mix() -> String {
    let mut text = String::new();
    for n in 0..9_000 {
        let _ = write!(text, "[[rule]]\nname = 'a{n}'\nwhen = {{ recipient = 'a{n}@d.example' }}\nto = 'crm'\n");
    }
    for n in 0..900 {
        let _ = write!(
            text,
            "[[rule]]\nname = 'p{n}'\nwhen = {{ recipient-matches = 'p{n}-\\d+@d\\.example' }}\nto = 'crm'\n"
        );
    }
    for n in 0..100 {
        let _ = write!(
            text,
            "[[rule]]\nname = 'q{n}'\nwhen = {{ recipient-matches = '(q|x){n}\\.[a-z]+@.*' }}\nto = 'crm'\n"
        );
    }
    text
}

/// The median over many rounds of what one decision takes.
fn each_decision(set: &RuleSet, recipient: &str) -> anyhow::Result<Duration> {
    let recipient = Mailbox::parse(recipient).context("it is no address")?;
    let sender = ReversePath::parse("client@example.org").context("it is no address")?;
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..DECISIONS {
                black_box(set.decide(black_box(&Facts::of(&recipient, &sender, Timestamp(0)))));
            }
            began.elapsed() / DECISIONS
        })
        .collect();
    rounds.sort();
    Ok(rounds[ROUNDS / 2])
}

#[derive(Clone, Copy)]
enum Line {
    Address,
    Row,
}

fn million(kind: &str, rules: &str, line: Line) -> anyhow::Result<bool> {
    let mut text = String::new();
    for n in 0..MILLION {
        let _ = match line {
            Line::Address => writeln!(text, "customer.{n}@example.org"),
            Line::Row => writeln!(text, "customer.{n}@d.example,crm"),
        };
    }
    let before = resident()?;
    let began = Instant::now();
    let set = load(rules, &|_, _| Ok(text.clone()))?;
    let took = began.elapsed();
    let each = resident()?.saturating_sub(before) / MILLION;
    let is_kept = print(&format!("a {kind} of {MILLION} entries is loaded"), took, Duration::from_secs(2));
    let is_small = each < EACH_MAX;
    println!(
        "  {each:>9} B    each of them in memory{}",
        if is_small { "   under 150 B" } else { "   FELL SHORT of 150 B" }
    );
    drop(set);
    Ok(is_kept && is_small)
}

fn load(rules: &str, read: &dyn Fn(&str, &str) -> Result<String, String>) -> anyhow::Result<RuleSet> {
    let routes: BTreeMap<String, bool> = [("default".to_owned(), true)].into();
    let ground = "[domain.'d.example']\nrole = 'admin@example.net'\n[target]\ncrm = 'case@crm.example'\n";
    let sources = [Source::new("ground.toml", ground), Source::new("rules.toml", rules)];
    let now = Timestamp(0);
    let around = Surroundings { routes: &routes, looks_up_mx: true, checks: [true; 4], scores: true, now, read };
    let mut report = Report::default();
    let parsed = parse(&sources, &around, &mut report);
    Ok(parsed.with_context(|| report.render(false))?.rules)
}

fn print(title: &str, took: Duration, limit: Duration) -> bool {
    let is_kept = took < limit;
    let verdict = if is_kept { "under" } else { "FELL SHORT of" };
    println!("  {took:>11.1?}    {title}   {verdict} {limit:?}");
    is_kept
}

/// Octets of this process in memory.
fn resident() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it says nothing of memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("it is no number")?;
    Ok(kib * 1024)
}

const ROUNDS: usize = 21;
const DECISIONS: u32 = 2_000;
const MILLION: u64 = 1_000_000;
const EACH_MAX: u64 = 150;
