//! The keys of a route that say what the systems behind it take: the profile, and each value that goes over it.

use std::time::Duration;

use crate::document::Section;
use crate::relay::profile::{AtRisk, Automatic, Pace, Per, Profile, Rate, Wishes};

use crate::units;

/// Takes the keys from a route's section.
pub(super) fn read(section: &mut Section<'_>) -> Wishes {
    let mut profiles = vec![("auto", None)];
    profiles.extend(Profile::ALL.map(|profile| (profile.as_str(), Some(profile))));
    let automatic = Automatic::ALL.map(|automatic| (automatic.as_str(), automatic));
    let at_risk = AtRisk::ALL.map(|at_risk| (at_risk.as_str(), at_risk));
    Wishes {
        profile: section.take("profile").and_then(|v| v.choice(&profiles)).and_then(|profile| profile.value),
        message_size: section.take("message-size").and_then(|v| v.parsed(octets)).map(|size| size.value),
        header_size: section.take("header-size").and_then(|v| v.parsed(octets)).map(|size| size.value),
        pace: section.take("pace").and_then(|v| v.parsed(pace_or_off)).map(|pace| pace.value),
        pace_alert: section.take("pace-alert").and_then(|v| v.parsed(pace_or_off)).map(|pace| pace.value),
        ceiling: section.take("ceiling").and_then(|v| v.parsed(rate)).map(|rate| rate.value),
        automatic: section.take("automatic").and_then(|v| v.choice(&automatic)).map(|automatic| automatic.value),
        at_risk: section.take("dmarc-at-risk").and_then(|v| v.choice(&at_risk)).map(|at_risk| at_risk.value),
        dedupe: section.take("dedupe").and_then(|v| v.parsed(duration_or_off)).map(|dedupe| dedupe.value),
    }
}

fn octets(text: &str) -> Result<u64, String> {
    match units::size(text)? {
        octets if octets < units::KIB => Err("expected at least `1KiB`".to_owned()),
        octets => Ok(octets),
    }
}

fn duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" { Ok(None) } else { units::duration(text).map(Some).map_err(|error| format!("{error}, or `off`")) }
}

fn pace_or_off(text: &str) -> Result<Option<Pace>, String> {
    if text == "off" {
        return Ok(None);
    }
    let expected = || "expected a pace such as `40/30m per sender`, per `message`, `sender` or `target`, or `off`";
    let (written, per) = text.split_once(" per ").ok_or_else(expected)?;
    let per = Per::ALL.into_iter().find(|word| word.as_str() == per.trim()).ok_or_else(expected)?;
    Ok(Some(Pace { rate: rate(written.trim())?, per }))
}

/// `600/h`, `40/30m`: so many in a second, minute, hour or day, or in a number of them.
fn rate(text: &str) -> Result<Rate, String> {
    let expected = || "expected a rate such as `600/h`, `10/s` or `40/30m`".to_owned();
    let (count, window) = text.split_once('/').ok_or_else(expected)?;
    let count = count.parse::<u32>().ok().filter(|count| (1..=COUNT_MAX).contains(count)).ok_or_else(expected)?;
    let bare = ["s", "m", "h", "d"].contains(&window);
    let window = units::duration(&if bare { format!("1{window}") } else { window.to_owned() });
    let window = window.ok().filter(|window| (WINDOW_MIN..=WINDOW_MAX).contains(window)).ok_or_else(expected)?;
    Ok(Rate { count, window })
}

/// More in any time is no limit.
const COUNT_MAX: u32 = 1_000_000_000;
/// What is counted is kept in sixty parts of the window.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// A restart forgets what was counted; longer than a day nothing would be true for long.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (text, count, seconds) in
            [("600/h", 600, 3600), ("10/60s", 10, 60), ("40/30m", 40, 1800), ("1/d", 1, 86_400)]
        {
            assert_eq!(rate(text), Ok(Rate { count, window: Duration::from_secs(seconds) }), "{text}");
        }
        for text in ["", "600", "0/h", "600/w", "/h", "-1/h", "1/0s", "1/2d", "1/500ms", "1000000001/h"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paces_name_what_is_counted() {
        let pace = pace_or_off("40/30m per sender").unwrap().unwrap();
        assert_eq!((pace.rate.count, pace.rate.window.as_secs(), pace.per), (40, 1800, Per::Sender));
        assert_eq!(pace_or_off("off"), Ok(None));
        for text in ["40/30m", "40/30m per alias", "per sender", "x per sender", "40/30m  per"] {
            assert!(pace_or_off(text).is_err(), "{text}");
        }
    }
}
