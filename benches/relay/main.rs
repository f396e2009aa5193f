//! The relay benchmark: what a message costs on its way through us, beside Postfix and beside no relay at all.
//!
//! Every figure comes from one run on one machine, and the contenders take turns round by round, so that a noisy
//! minute falls on all of them; what counts is the ratio within a round. A message counts when the sink has it, not
//! when it was accepted. Both relays sync it to disk before their 250. `quick` is for a look, not for the README.
//!
//! The `checked` load has us verify SPF, DKIM and DMARC of every message; Postfix checks nothing there either. Left
//! out: content checks and TLS on either side. The relays rewrite one alias to one address and pass it on to one host.

#![forbid(unsafe_code)]

mod machine;
mod report;
mod tools;
mod sender;
mod pointsman;
mod postfix;
mod contender;
mod throughput;
mod latency;
mod memory;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};

use crate::contender::{Contender, System};
use crate::report::Report;
use crate::sender::Sender;

/// Messages through Pointsman, through Postfix and straight to the sink, side by side.
#[derive(Parser)]
#[command(name = "relay-bench")]
struct Arguments {
    /// What to measure, everything unless told; `quick` makes all of it small
    words: Vec<Word>,
    /// Rounds that count, after one that warms up: 3, or 1 when quick
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=ROUNDS_MAX))]
    rounds: Option<u32>,
    /// A contender to leave out; may be given twice
    #[arg(long)]
    without: Vec<System>,
    /// One object a line on standard output
    #[arg(long)]
    json: bool,
    /// Cargo adds this one
    #[arg(long, hide = true)]
    bench: bool,
}

/// Beyond this a run takes the whole day and the median has long stopped moving.
const ROUNDS_MAX: i64 = 100;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Word {
    /// A tenth of the messages, one round
    Quick,
    /// 4 KiB, one message a connection, 50 sessions
    Connection,
    /// 4 KiB over 50 persistent connections
    Persistent,
    /// As `connection`, each message signed, and by us verified: SPF, DKIM, DMARC
    Checked,
    /// 1 MiB over 20 persistent connections
    Large,
    /// From the final dot to the 250 at 100 messages a second
    Latency,
    /// Idle, 10,000 idle connections, 50 messages of 25 MiB at once
    Memory,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = Report::new(arguments.json);
    match measure(&arguments, &report) {
        Ok(()) if report.is_complete() => ExitCode::SUCCESS,
        // What is missing was said where it was missed.
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("relay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments, report: &Report) -> anyhow::Result<()> {
    machine::allow_files(memory::FILES_WANTED)?;
    machine::watch_for_interrupt()?;
    tools::check()?;
    let place = machine::scratch("bench")?;
    report.note(&machine::describe(place.path()));

    let quick = arguments.words.contains(&Word::Quick);
    let everything = arguments.words.iter().all(|word| *word == Word::Quick);
    let wants = |word| everything || arguments.words.contains(&word);
    let rounds = arguments.rounds.unwrap_or(if quick { 1 } else { 3 });
    let with = |system: &System| !arguments.without.contains(system);

    let loads: Vec<_> = [
        (Word::Connection, &throughput::CONNECTION),
        (Word::Checked, &throughput::CHECKED),
        (Word::Persistent, &throughput::PERSISTENT),
        (Word::Large, &throughput::LARGE),
    ]
    .into_iter()
    .filter(|(word, _)| wants(*word))
    .map(|(_, load)| if quick { load.tenth() } else { *load })
    .collect();

    // Each part starts them anew, so that one that failed in a part has its chance in the next.
    for load in &loads {
        let sender = load.sender()?;
        throughput::measure(load, rounds, gather(with, sender.as_ref(), report)?, sender.as_ref(), report)?;
    }
    if wants(Word::Latency) {
        latency::measure(quick, &gather(with, None, report)?, report)?;
    }
    if wants(Word::Memory) && with(&System::Pointsman) {
        memory::measure(report).or_else(|error| report.missing("memory", &error))?;
    }
    Ok(())
}

/// Starts what is to be compared. One that does not start is reported and left out: the others are still worth it.
/// A `sender` is one whose mail we check.
fn gather(with: impl Fn(&System) -> bool, sender: Option<&Sender>, report: &Report) -> anyhow::Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    for system in [System::Direct, System::Pointsman, System::Postfix].into_iter().filter(|system| with(system)) {
        match Contender::start(system, sender).with_context(|| format!("cannot start {}", system.name())) {
            Ok(contender) => contenders.push(contender),
            Err(error) => report.missing(system.name(), &error)?,
        }
    }
    Ok(contenders)
}
