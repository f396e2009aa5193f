//! How far a long command is: a bar on a terminal, elsewhere nothing.

use std::io::{IsTerminal, Write};

use super::Output;

pub(super) struct Bar {
    shown: bool,
    last: (&'static str, u64),
}

impl Bar {
    pub(super) fn new(output: Output) -> Bar {
        Bar { shown: !output.json && std::io::stderr().is_terminal(), last: ("", u64::MAX) }
    }

    /// `part` says what is being done.
    pub(super) fn show(&mut self, part: &'static str, done: u64, total: u64) {
        let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
        if !self.shown || self.last == (part, percent) {
            return;
        }
        self.last = (part, percent);
        let full = usize::try_from(percent * BAR / 100).unwrap_or(0);
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR as usize - full));
        // Nothing depends on it.
        let _ = write!(std::io::stderr(), "\r\u{1b}[K{part:9} [{bar}] {percent:3} %");
    }

    pub(super) fn end(&mut self) {
        if self.shown && !self.last.0.is_empty() {
            eprintln!();
        }
        self.last = ("", u64::MAX);
    }
}

const BAR: u64 = 40;
