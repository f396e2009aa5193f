//! `redeliver`: what a route delivered goes out once more.

use std::io::{IsTerminal, Write};
use std::path::Path;

use clap::Args;

use super::ask::{List, ask_daemon, daemon, not_running};
use super::{Ended, Output};
use crate::admin::control::{Line, Request};
use crate::admin::redeliver::RedeliverSelect;

#[derive(Debug, Args)]
pub(super) struct RedeliverArgs {
    #[arg(long)]
    route: String,
    /// What was delivered from then on: an instant, or how long ago: 2026-11-21T20:00:00Z, 2h
    #[arg(long, value_name = "T")]
    since: String,
    /// And before then; now otherwise
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// Also what was redelivered before
    #[arg(long)]
    again: bool,
    /// Show what would be redelivered, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Ends with findings where a body is not there any more.
pub(super) fn run(config: &Path, args: &RedeliverArgs) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    let RedeliverArgs { route, since, until, again, dry_run, output } = args;
    let select = RedeliverSelect { route: route.clone(), since: since.clone(), until: until.clone(), again: *again };
    let request = Request::Redeliver { select, dry_run: *dry_run };
    let mut bar = Bar::new();
    let mut ok = false;
    let mut list = List::new(output.json, 0);
    let asked = ask_daemon(&socket, &request, &mut |line| {
        if let Line::Told { object, text } = &line {
            ok = object["ok"] == true;
            let is_leg = object["id"].is_string();
            match object["total"].as_u64() {
                Some(total) => bar.total = total,
                None if is_leg => bar.step(),
                None => bar.end(),
            }
            // Thousands of legs are for scripts, or for who wants to see them before.
            if !output.json && (!is_leg || *dry_run) {
                print!("{text}");
                // Who reads no more of it does not need it.
                let _ = std::io::stdout().flush();
            }
        }
        if output.json {
            list.take(line);
        }
    });
    bar.end();
    asked?;
    Ok(if ok { Ended::Done } else { Ended::Findings })
}

/// How far it is, in one line of a terminal; nothing where standard error is none.
struct Bar {
    total: u64,
    done: u64,
    shown: bool,
    terminal: bool,
}

impl Bar {
    fn new() -> Bar {
        Bar { total: 0, done: 0, shown: false, terminal: std::io::stderr().is_terminal() }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.terminal && self.total >= LEGS_MIN && (self.done.is_multiple_of(STEP) || self.done == self.total) {
            eprint!("\r{}", drawn(self.done, self.total));
            self.shown = true;
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\u{1b}[K");
        }
    }
}

fn drawn(done: u64, total: u64) -> String {
    let full = (done * WIDTH).checked_div(total).unwrap_or(WIDTH).min(WIDTH);
    let (full, empty) = ("#".repeat(full as usize), ".".repeat((WIDTH - full) as usize));
    format!("[{full}{empty}] {done} of {total} legs")
}

/// Fewer are over before anybody looks.
const LEGS_MIN: u64 = 200;
const STEP: u64 = 100;
const WIDTH: u64 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_empty_then_full_and_never_longer() {
        for (done, total, full) in [(0, 10, 0), (5, 10, 20), (10, 10, 40), (11, 10, 40), (0, 0, 40)] {
            let text = drawn(done, total);
            assert_eq!((text.matches('#').count(), text.find(']')), (full, Some(41)), "{text}");
        }
    }
}
