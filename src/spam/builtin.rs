//! The score of our own: the signals of each kind, each kind capped, added up. Pure.
//!
//! The caps are what keeps it from condemning by mistake: a kind of evidence errs as a whole (a forwarder breaks SPF, a customer
//! writes in capitals, a block list goes mad), so no kind quarantines alone, and it takes three to refuse.

use super::evidence::{Evidence, Found};
use super::{Signal, SpamReport, client, header};

/// Scores a message. The time is linear in the octets that were read.
#[must_use]
pub fn score(evidence: &Evidence<'_>) -> SpamReport {
    // The string that everybody agreed on for trying out spam filters: it is no evidence of any kind, and counts alone.
    if evidence.reading.content.text.contains(GTUBE) {
        return SpamReport::new(GTUBE_POINTS, vec![Signal { name: "gtube".into(), points: GTUBE_POINTS }]);
    }
    let mut lists = Found::default();
    // One list may err, and some list whole providers; two seldom err together.
    lists.note("listed", 4.0, evidence.listed > 0);
    lists.note("listed-more", 2.5, evidence.listed > 1);
    let kinds = [
        (client::look(evidence), CLIENT_MAX),
        (lists, LISTS_MAX),
        (header::look(evidence), HEADER_MAX),
        (evidence.reading.body.clone(), BODY_MAX),
    ];
    let mut signals = Vec::new();
    let mut score = 0.0;
    for (found, at_most) in kinds {
        let sum: f64 = found.0.iter().map(|signal| signal.points).sum();
        score += sum.min(at_most);
        signals.extend(found.0);
        if sum > at_most {
            // So that the signals still add up to the score.
            signals.push(Signal { name: "capped".into(), points: at_most - sum });
        }
    }
    SpamReport::new(score, signals)
}

/// The client, its name, what SPF, DKIM and DMARC say.
const CLIENT_MAX: f64 = 7.0;
/// DNS block lists.
const LISTS_MAX: f64 = 7.0;
/// The form of the header.
const HEADER_MAX: f64 = 5.0;
/// What the message says and carries.
const BODY_MAX: f64 = 5.0;
/// Spelled in two parts, so that mail with this source is not taken for it.
const GTUBE: &str = concat!("XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-", "ANTI-UBE-TEST-EMAIL*C.34X");
/// As in SpamAssassin: beyond any band.
const GTUBE_POINTS: f64 = 1000.0;

#[cfg(test)]
mod tests;
