//! Where figures go: tables for people, or one JSON object a line for scripts.

use std::cell::Cell;

use serde_json::Value;

/// The output, and whether all that was asked for could be measured.
pub(crate) struct Report {
    json: bool,
    complete: Cell<bool>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Report {
        Report { json, complete: Cell::new(true) }
    }

    /// A line of a table, for people only.
    pub(crate) fn line(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// A figure, for scripts only.
    pub(crate) fn record(&self, object: &Value) {
        if self.json {
            println!("{object}");
        }
    }

    /// Something to know about the run; never mixed into the JSON.
    pub(crate) fn note(&self, text: &str) {
        if self.json { eprintln!("{text}") } else { println!("{text}") }
    }

    /// What a human sees while a round runs.
    pub(crate) fn progress(&self, text: &str) {
        eprintln!("  {text}");
    }

    /// Says that a part could not be measured. An interrupted run is passed on as an error: no further part follows.
    pub(crate) fn missing(&self, part: &str, error: &anyhow::Error) -> anyhow::Result<()> {
        self.complete.set(false);
        eprintln!("NOT MEASURED: {part}: {error:#}");
        crate::machine::check_interrupt()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete.get()
    }
}

/// The middle value; of an even number the lower of the two in the middle. `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The nearest-rank quantile, `0 < share && share <= 1`. `None` of nothing.
pub(crate) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}
