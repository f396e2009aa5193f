//! Where mail goes that a target is not for, and until when a new one is spared: what a target or a rule says for systems
//! that are particular.

use crate::clock::Timestamp;
use crate::diagnostic::Placed;
use crate::document::Section;

/// Where mail goes that a leg's own target is not for: targets' names or addresses, which [`super::RuleSet::leg_to`] reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detours {
    /// Mail of machines, where the target's system does not take it.
    pub auto: Option<String>,
    /// Mail that would be refused there for DMARC.
    pub fallback: Option<String>,
}

impl Detours {
    /// These, and for what they do not say those.
    #[must_use]
    pub fn or(&self, others: &Detours) -> Detours {
        Detours {
            auto: self.auto.clone().or_else(|| others.auto.clone()),
            fallback: self.fallback.clone().or_else(|| others.fallback.clone()),
        }
    }
}

/// `auto-target` and `fallback-target`: targets' names or addresses.
#[derive(Debug, Default)]
pub struct DetourEntries {
    pub auto: Option<Placed<String>>,
    pub fallback: Option<Placed<String>>,
}

impl DetourEntries {
    pub(super) fn written(&self) -> Detours {
        let text = |entry: &Option<Placed<String>>| entry.as_ref().map(|text| text.value.clone());
        Detours { auto: text(&self.auto), fallback: text(&self.fallback) }
    }
}

/// Takes the keys from a target's, a rule's or an alias's section.
pub(super) fn read(section: &mut Section<'_>) -> DetourEntries {
    DetourEntries {
        auto: section.take("auto-target").and_then(|v| v.string()),
        fallback: section.take("fallback-target").and_then(|v| v.string()),
    }
}

/// The day is over everywhere only a while later; UTC is what logs have.
pub(super) fn end_of_day(text: &str) -> Result<Timestamp, &'static str> {
    let day = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == "2026-12-31".len());
    let next = day.and_then(|day| day.tomorrow().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let end = next.map(|next| Timestamp(next.timestamp().as_millisecond()));
    end.ok_or("expected a day such as `2026-12-31`, the last one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_when_the_next_begins() {
        assert_eq!(end_of_day("2026-11-21"), Ok(Timestamp(1_795_305_600_000)));
        for text in ["", "2026-02-30", "2026-11", "21.11.2026", "2026-11-21T12:00", "20261121", "tomorrow"] {
            assert!(end_of_day(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_target_says_goes_before_what_its_rule_says() {
        let of = |auto: Option<&str>, fallback: Option<&str>| Detours {
            auto: auto.map(str::to_owned),
            fallback: fallback.map(str::to_owned),
        };
        assert_eq!(of(Some("a"), None).or(&of(Some("b"), Some("c"))), of(Some("a"), Some("c")));
    }
}
