//! How much a message looks like spam: signals, each with a name and points, and their sum.
//!
//! [`evidence`] is what is known about a message, `client`, `header` and `body` look at one kind of it each, and [`builtin`] adds
//! up. [`blocklist`] asks DNS, [`rspamd`] asks another program; all else is pure. A customer's mail that is lost costs more than
//! spam that is read, so no kind of evidence reaches the quarantine band alone, no two kinds reach the reject band (with the
//! bands as they come), and what could not be found out counts for nothing. What a band does with a copy is the rules' business.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Value, json};

pub mod evidence;
mod client;
mod header;
mod body;
pub mod builtin;
pub mod blocklist;
pub mod rspamd;

/// One thing that speaks for spam, or with negative points against it.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Letters, digits, `-`, `_` and `.` alone.
    pub name: Cow<'static, str>,
    pub points: f64,
}

/// What was found out about one message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpamReport {
    /// Rounded to a tenth, as it is shown: what is told is what decides.
    pub score: f64,
    /// The heaviest first.
    pub signals: Vec<Signal>,
    /// rspamd refuses it whatever its score: a virus, say.
    pub forced: bool,
}

impl SpamReport {
    /// Puts the heaviest signals first, keeps [`SIGNALS_MAX`] of them, and rounds.
    #[must_use]
    pub fn new(score: f64, mut signals: Vec<Signal>) -> SpamReport {
        signals.retain(|signal| signal.points.is_finite() && signal.points != 0.0);
        signals.sort_by(|a, b| b.points.abs().total_cmp(&a.points.abs()).then_with(|| a.name.cmp(&b.name)));
        signals.truncate(SIGNALS_MAX);
        // Adding zero turns a negative zero into a plain one.
        SpamReport { score: (score * 10.0).round() / 10.0 + 0.0, signals, forced: false }
    }

    /// The signals as people read them: `spf-fail 2.0, no-ptr 1.0`.
    #[must_use]
    pub fn explanation(&self) -> String {
        explanation(self.signals.iter().map(|signal| (signal.name.as_ref(), signal.points)))
    }

    /// Score and heaviest signals, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let forced = if self.forced { ", refused by rspamd" } else { "" };
        let signals = self.signals.iter().take(FIELD_SIGNALS_MAX);
        format!("score {:.1}{forced}: {}", self.score, explanation(signals.map(|s| (s.name.as_ref(), s.points))))
    }

    /// As it is recorded beside the message; [`SpamReport::recorded`] reads it back.
    #[must_use]
    pub fn record(&self) -> Value {
        let signals: Vec<Value> = self.signals.iter().map(|signal| json!([signal.name, signal.points])).collect();
        json!({ "score": self.score, "signals": signals, "forced": self.forced })
    }

    /// What was recorded when the message came in; none where no score was made.
    #[must_use]
    pub fn recorded(value: &Value) -> Option<SpamReport> {
        let signal = |value: &Value| {
            Some(Signal { name: value.get(0)?.as_str()?.to_owned().into(), points: value.get(1)?.as_f64()? })
        };
        let signals = value["signals"].as_array().map(|all| all.iter().filter_map(signal).collect());
        Some(SpamReport {
            score: value["score"].as_f64()?,
            signals: signals.unwrap_or_default(),
            forced: value["forced"].as_bool().unwrap_or_default(),
        })
    }

    /// The field that a copy is marked with. Our own words only, short: some CRMs bounce at 32,000 characters of header.
    #[must_use]
    pub fn field(&self) -> String {
        let mut lines = format!("{FIELD}: yes; score={:.1}", self.score);
        for (at, signal) in self.signals.iter().take(FIELD_SIGNALS_MAX).enumerate() {
            let before = if at == 0 { ";\r\n\t" } else { ",\r\n\t" };
            // Writing to a string does not fail.
            let _ = write!(lines, "{before}{}={:.1}", signal.name, signal.points);
        }
        lines.push_str("\r\n");
        lines
    }
}

/// Names and points as people read them.
pub fn explanation<'a>(signals: impl Iterator<Item = (&'a str, f64)>) -> String {
    let told: Vec<String> = signals.map(|(name, points)| format!("{name} {points:.1}")).collect();
    if told.is_empty() { "no signal".to_owned() } else { told.join(", ") }
}

/// Where the bands begin (`[spam]`). Invariant: none begins below the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bands {
    pub tag: f64,
    pub quarantine: f64,
    pub reject: f64,
}

impl Default for Bands {
    /// The scale of SpamAssassin and rspamd, which administrators know by heart.
    fn default() -> Bands {
        Bands { tag: 5.0, quarantine: 8.0, reject: 15.0 }
    }
}

/// How bad a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    Clean,
    /// A header field says so.
    Tag,
    /// Each copy's `on-spam` decides.
    Quarantine,
    /// Refused.
    Reject,
}

impl Bands {
    #[must_use]
    pub fn band(&self, score: f64) -> Band {
        // A band begins at its bound: a score of 5.0 is tagged.
        if score >= self.reject {
            Band::Reject
        } else if score >= self.quarantine {
            Band::Quarantine
        } else if score >= self.tag {
            Band::Tag
        } else {
            Band::Clean
        }
    }

    #[must_use]
    pub fn of(&self, report: &SpamReport) -> Band {
        if report.forced { Band::Reject } else { self.band(report.score) }
    }
}

impl Band {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Band::Clean => "clean",
            Band::Tag => "tag",
            Band::Quarantine => "quarantine",
            Band::Reject => "reject",
        }
    }
}

/// Who makes the score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    Builtin,
    Rspamd(rspamd::Settings),
}

/// What becomes of a message whose score cannot be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is taken without a score.
    Accept,
    /// 451: the client shall try again.
    Defer,
    /// Our own score stands in.
    Builtin,
}

impl OnError {
    /// The word in configuration and log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OnError::Accept => "accept",
            OnError::Defer => "defer",
            OnError::Builtin => "builtin",
        }
    }
}

/// `[spam]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub engine: Engine,
    pub bands: Bands,
    pub on_error: OnError,
    /// The zones of DNS block lists, for the score of our own; at most [`blocklist::LISTS_MAX`].
    pub blocklists: Vec<String>,
}

/// The name of the field that marks a copy.
pub const FIELD: &str = "X-Pointsman-Spam";
/// What decided fits here; rspamd names a hundred and more.
pub const SIGNALS_MAX: usize = 20;
const FIELD_SIGNALS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(name: &'static str, points: f64) -> Signal {
        Signal { name: name.into(), points }
    }

    #[test]
    fn a_band_begins_at_its_bound() {
        let bands = Bands::default();
        for (score, band) in [
            (-3.0, Band::Clean),
            (4.9, Band::Clean),
            (5.0, Band::Tag),
            (7.9, Band::Tag),
            (8.0, Band::Quarantine),
            (14.9, Band::Quarantine),
            (15.0, Band::Reject),
            (f64::INFINITY, Band::Reject),
            (f64::NAN, Band::Clean),
        ] {
            assert_eq!(bands.band(score), band, "{score}");
        }
        let virus = SpamReport { forced: true, ..SpamReport::default() };
        assert_eq!(bands.of(&virus), Band::Reject);
    }

    #[test]
    fn what_is_shown_is_what_decides() {
        assert_eq!(Bands::default().of(&SpamReport::new(7.96, vec![])), Band::Quarantine);
        assert_eq!(SpamReport::new(-0.04, vec![]).score.to_string(), "0");
    }

    #[test]
    fn the_heaviest_signals_are_kept_up_to_the_limit() {
        let many = |count: usize| (0..count).map(|n| signal("s", n as f64 + 1.0)).collect();
        assert_eq!(SpamReport::new(1.0, many(SIGNALS_MAX)).signals.len(), SIGNALS_MAX);
        let report = SpamReport::new(1.0, many(SIGNALS_MAX + 1));
        assert_eq!(report.signals.len(), SIGNALS_MAX);
        assert!((report.signals[0].points - 21.0).abs() < f64::EPSILON);
        assert!(SpamReport::new(1.0, vec![signal("x", 0.0), signal("y", f64::NAN)]).signals.is_empty());
    }

    #[test]
    fn a_field_is_short_whatever_was_found() {
        let report = SpamReport::new(6.5, vec![signal("no-ptr", 1.0), signal("spf-fail", 2.0)]);
        assert_eq!(report.field(), "X-Pointsman-Spam: yes; score=6.5;\r\n\tspf-fail=2.0,\r\n\tno-ptr=1.0\r\n");
        assert_eq!(SpamReport::new(5.0, vec![]).field(), "X-Pointsman-Spam: yes; score=5.0\r\n");
        let many = (0..100).map(|_| signal("a-name-as-long-as-they-come", 1.0)).collect();
        assert!(SpamReport::new(100.0, many).field().len() < 400);
    }

    #[test]
    fn a_record_is_read_back() {
        let report = SpamReport { forced: true, ..SpamReport::new(9.3, vec![signal("gtube", 9.25)]) };
        assert_eq!(SpamReport::recorded(&report.record()), Some(report));
        assert_eq!(SpamReport::recorded(&Value::Null), None);
    }
}
