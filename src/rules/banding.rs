//! What a spam band makes of a decision: of each copy by its `on-spam`, and of the recipient as a whole. Pure.
//!
//! | band | `deliver` | `tag` | `quarantine` | `omit` |
//! |---|---|---|---|---|
//! | tag | as it is | marked | marked | marked |
//! | quarantine | as it is | marked | quarantined | omitted |
//! | reject, where it was taken all the same | as it is | quarantined | quarantined | omitted |
//!
//! In the reject band a recipient is refused unless one of its copies says `deliver`. What its rule discards is not looked at: it
//! goes nowhere. What the target is changes the table ([`Handling`]).

use crate::spam::Band;

use super::{Action, Decision, LegPlan, OnSpam, Verdict};

/// What becomes of a copy for its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The score changes nothing.
    Keep,
    /// It carries a header field that says so.
    Mark,
    /// It waits for an operator.
    Quarantine,
    /// It is not made.
    Omit,
}

/// How the target's system is spared from spam, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handling {
    /// As the table says.
    #[default]
    Usual,
    /// Spam does harm there: the tag band is as bad as the quarantine band.
    Strict,
    /// Mailboxes of people, who have a filter of their own: copies are marked, in every band.
    MarkOnly,
}

impl LegPlan {
    /// What `band` makes of this copy to a system of this kind.
    #[must_use]
    pub fn fate_with(&self, band: Band, handling: Handling) -> Fate {
        match (handling, band) {
            (Handling::Strict, Band::Tag) => self.fate(Band::Quarantine),
            (Handling::Usual | Handling::Strict, band) => self.fate(band),
            (Handling::MarkOnly, Band::Clean) => Fate::Keep,
            (Handling::MarkOnly, Band::Tag | Band::Quarantine | Band::Reject) => match self.on_spam {
                OnSpam::Deliver => Fate::Keep,
                OnSpam::Tag | OnSpam::Quarantine | OnSpam::Omit => Fate::Mark,
            },
        }
    }

    /// What `band` makes of this copy.
    #[must_use]
    pub fn fate(&self, band: Band) -> Fate {
        match (band, self.on_spam) {
            (Band::Clean, _) | (_, OnSpam::Deliver) => Fate::Keep,
            (Band::Tag, OnSpam::Tag | OnSpam::Quarantine | OnSpam::Omit) | (Band::Quarantine, OnSpam::Tag) => {
                Fate::Mark
            }
            (Band::Quarantine, OnSpam::Quarantine) | (Band::Reject, OnSpam::Tag | OnSpam::Quarantine) => {
                Fate::Quarantine
            }
            (Band::Quarantine | Band::Reject, OnSpam::Omit) => Fate::Omit,
        }
    }
}

impl Decision {
    /// The recipient is refused for the score, whatever the rules say of it.
    #[must_use]
    pub fn is_refused_as_spam(&self, band: Band) -> bool {
        match &self.verdict {
            Verdict::Accept { action, legs } => {
                let goes = match action {
                    Action::Relay | Action::Quarantine { .. } | Action::Hold { .. } => true,
                    Action::Discard { .. } => false,
                };
                band == Band::Reject && goes && legs.iter().all(|leg| leg.on_spam != OnSpam::Deliver)
            }
            Verdict::Reject(_) | Verdict::Defer(_) | Verdict::Undecided => false,
        }
    }
}

impl Fate {
    /// The word in `explain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Fate::Keep => "as it is",
            Fate::Mark => "marked",
            Fate::Quarantine => "quarantined",
            Fate::Omit => "omitted",
        }
    }
}
