//! Calendars: hours of the week in a time zone, without holidays.
//!
//! The zone's rules are the program's own (IANA's, with jiff), so that a rule set means the same on every machine.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;

use crate::clock::Timestamp;

/// A `[calendar]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    pub name: String,
    pub zone: TimeZone,
    pub days: Vec<Weekday>,
    /// From the first, which is in it, to the second, which is not. The second may be the smaller: over midnight.
    pub hours: Vec<(Time, Time)>,
    pub holidays: Vec<Date>,
}

impl Calendar {
    /// Whether `at` is within it. Hours that go over midnight belong to the day on which they begin.
    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        let Ok(instant) = jiff::Timestamp::from_millisecond(at.0) else { return false };
        let local = instant.to_zoned(self.zone.clone()).datetime();
        let works = |date: Date| self.days.contains(&date.weekday()) && !self.holidays.contains(&date);
        let (date, time) = (local.date(), local.time());
        self.hours.iter().any(|&(from, to)| match from < to {
            true => works(date) && from <= time && time < to,
            false => {
                let began_yesterday = time < to && date.yesterday().is_ok_and(works);
                (works(date) && from <= time) || began_yesterday
            }
        })
    }

    /// `at` as a clock on that wall shows it, for `explain`.
    #[must_use]
    pub fn local(&self, at: Timestamp) -> String {
        match jiff::Timestamp::from_millisecond(at.0) {
            Ok(instant) => instant.to_zoned(self.zone.clone()).strftime("%a %Y-%m-%d %H:%M %Z").to_string(),
            Err(_) => at.to_string(),
        }
    }
}

/// `Europe/Paris`, `UTC`.
pub fn zone(text: &str) -> Result<TimeZone, String> {
    jiff::tz::TimeZone::get(text).map_err(|_| "expected the name of a time zone, such as `Europe/Paris`".to_owned())
}

/// `08:00-18:00`; `24:00` is midnight at the end of the day.
pub fn hours(text: &str) -> Result<(Time, Time), String> {
    let expected = || "expected hours such as `08:00-18:00`".to_owned();
    let time = |text: &str| -> Option<Time> {
        let (hour, minute) = text.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2)?;
        let hour = if text == "24:00" { 0 } else { hour.parse().ok()? };
        Time::new(hour, minute.parse().ok()?, 0, 0).ok()
    };
    let (from, to) = text.split_once('-').ok_or_else(expected)?;
    match (time(from.trim()), time(to.trim())) {
        (Some(from), Some(to)) => Ok((from, to)),
        (None, _) | (_, None) => Err(expected()),
    }
}

/// `2026-12-25`
pub fn date(text: &str) -> Result<Date, String> {
    text.parse().map_err(|_| "expected a day such as `2026-12-25`".to_owned())
}

/// From midnight to midnight.
pub const WHOLE_DAY: (Time, Time) = (Time::MIN, Time::MIN);

/// The words of `days`.
pub const DAYS: &[(&str, Weekday)] = &[
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn office(hours_text: &str) -> Calendar {
        Calendar {
            name: "office".to_owned(),
            zone: zone("Europe/Paris").unwrap(),
            days: DAYS[..5].iter().map(|(_, day)| *day).collect(),
            hours: vec![hours(hours_text).unwrap()],
            holidays: vec![date("2026-12-25").unwrap()],
        }
    }

    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn hours_are_local_end_before_their_last_minute_and_know_summer_and_holidays() {
        for (instant, inside) in [
            // Winter: an hour ahead of UTC. 2026-11-27 is a Friday.
            ("2026-11-27T07:00:00Z", true),
            ("2026-11-27T06:59:59.999Z", false),
            ("2026-11-27T16:59:59.999Z", true),
            ("2026-11-27T17:00:00Z", false),
            // Summer: two hours.
            ("2026-07-03T06:00:00Z", true),
            ("2026-07-03T16:00:00Z", false),
            ("2026-11-28T10:00:00Z", false),
            ("2026-12-25T10:00:00Z", false),
        ] {
            assert_eq!(office("08:00-18:00").contains(at(instant)), inside, "{instant}");
        }
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_on_which_they_begin() {
        for (instant, inside) in [
            ("2026-11-27T22:00:00Z", true),
            // Saturday, two in the morning: Friday's night.
            ("2026-11-28T01:00:00Z", true),
            ("2026-11-28T22:00:00Z", false),
            // Monday, two in the morning: Sunday's.
            ("2026-11-30T01:00:00Z", false),
            ("2026-11-27T12:00:00Z", false),
        ] {
            assert_eq!(office("22:00-06:00").contains(at(instant)), inside, "{instant}");
        }
        assert!(
            office("00:00-24:00").contains(at("2026-11-27T12:00:00Z")),
            "from midnight to midnight is the whole day"
        );
    }

    #[test]
    fn what_is_no_time() {
        for text in ["8-18", "08:00", "08:00-25:00", "08:60-09:00", "a-b", "8:00-18:00"] {
            assert!(hours(text).is_err(), "{text}");
        }
        assert!(zone("Mars/Olympus").is_err() && date("25.12.2026").is_err());
    }
}
