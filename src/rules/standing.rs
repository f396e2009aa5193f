//! Whether a rule is in force: switched on, off, or a shadow; from when, until when; and whose it is.

use crate::clock::Timestamp;
use crate::diagnostic::{Diagnostic, Placed};
use crate::document::Section;

/// `enabled`, `not-before`, `not-after`, `owner`, `note`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub enabled: Enabled,
    pub not_before: Option<Timestamp>,
    /// The last moment at which it applies.
    pub not_after: Option<Timestamp>,
    /// Who answers for it, and why it is there: for people.
    pub owner: String,
    pub note: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enabled {
    #[default]
    On,
    Off,
    /// It is asked and counted, and changes nothing.
    Shadow,
}

/// What a rule is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    Applies,
    Shadow,
    /// With the reason.
    Idle(&'static str),
}

impl Standing {
    pub(super) fn read(section: &mut Section<'_>) -> Standing {
        let enabled = section.take("enabled").and_then(|value| match value.is_bool() {
            true => value.boolean().map(|on| if on.value { Enabled::On } else { Enabled::Off }),
            false => value.choice(&[("shadow", Enabled::Shadow)]).map(|word| word.value),
        });
        let not_before = section.take("not-before").and_then(|v| v.parsed(from));
        let not_after = section.take("not-after").and_then(|v| v.parsed(until));
        if let (Some(before), Some(after)) = (&not_before, &not_after)
            && before.value > after.value
        {
            let never = Diagnostic::error("a rule that ends before it begins").at(&after.place);
            section.document().report(never.context(&before.place, "it begins here"));
        }
        let mut text = |key| section.take(key).and_then(|v| v.string()).map(|text| text.value).unwrap_or_default();
        Standing {
            enabled: enabled.unwrap_or_default(),
            not_before: not_before.map(value),
            not_after: not_after.map(value),
            owner: text("owner"),
            note: text("note"),
        }
    }

    #[must_use]
    pub fn at(&self, now: Timestamp) -> Force {
        if self.not_before.is_some_and(|from| now < from) {
            return Force::Idle("its time has not come (not-before)");
        }
        if self.not_after.is_some_and(|until| now > until) {
            return Force::Idle("its time is over (not-after)");
        }
        match self.enabled {
            Enabled::On => Force::Applies,
            Enabled::Off => Force::Idle("it is switched off (enabled = false)"),
            Enabled::Shadow => Force::Shadow,
        }
    }

    /// It applies from now until for ever.
    pub(super) fn is_plain(&self) -> bool {
        self.enabled == Enabled::On && self.not_before.is_none() && self.not_after.is_none()
    }
}

fn value(placed: Placed<Timestamp>) -> Timestamp {
    placed.value
}

fn from(text: &str) -> Result<Timestamp, &'static str> {
    moment(text, 0)
}

/// A day counts to its end.
fn until(text: &str) -> Result<Timestamp, &'static str> {
    moment(text, DAY_MS - 1)
}

/// A moment, or a day of UTC and how far into it.
fn moment(text: &str, into_the_day: i64) -> Result<Timestamp, &'static str> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp(instant.as_millisecond()));
    }
    let day = text.parse::<jiff::civil::Date>().ok().and_then(|day| day.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let day = day.filter(|_| text.len() == "2026-12-24".len());
    day.map(|day| Timestamp(day.timestamp().as_millisecond() + into_the_day)).ok_or(EXPECTED)
}

const EXPECTED: &str = "expected a day such as `2026-12-24`, in UTC, or a moment such as `2026-12-24T18:00:00+01:00`";
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_its_beginning_and_lasts_to_its_end() {
        let at = |text: &str| Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond());
        let day = Standing {
            not_before: from("2026-12-24").ok(),
            not_after: until("2026-12-24").ok(),
            ..Standing::default()
        };
        for (moment, applies) in [
            ("2026-12-23T23:59:59.999Z", false),
            ("2026-12-24T00:00:00Z", true),
            ("2026-12-24T23:59:59.999Z", true),
            ("2026-12-25T00:00:00Z", false),
        ] {
            assert_eq!(day.at(at(moment)) == Force::Applies, applies, "{moment}");
        }
        assert_eq!(until("2026-12-24T18:00:00+01:00"), Ok(at("2026-12-24T17:00:00Z")));
        for text in ["24.12.2026", "2026-13-01", "tomorrow", "2026-12-24T18:00"] {
            assert!(from(text).is_err(), "{text}");
        }
    }
}
