//! What rules did, and would have done.

use metrics::{counter, gauge};

use crate::clock::Timestamp;

/// A rule applied to a recipient of an accepted message.
pub fn rule_hit(rule: &str, now: Timestamp) {
    counter!("pointsman_rule_hits_total", "rule" => rule.to_owned()).increment(1);
    gauge!("pointsman_rule_last_hit_timestamp_seconds", "rule" => rule.to_owned()).set(now.0 as f64 / 1000.0);
}

/// A rule is there, whether it ever applies or not: one that never does is shown as 0.
pub fn rule_known(rule: &str) {
    counter!("pointsman_rule_hits_total", "rule" => rule.to_owned()).increment(0);
}

/// A shadow rule would have applied, and done this.
pub fn shadow_hit(rule: &str, action: &'static str) {
    counter!("pointsman_rule_shadow_hits_total", "rule" => rule.to_owned(), "action" => action).increment(1);
}
