//! The `[[test]]`s that stand beside the rules: given these facts, that is expected.

use crate::diagnostic::{Diagnostic, Placed};

use crate::reply;
use crate::reply::Refusal;
use crate::spam::{Band, Bands};

use super::given::{ExpectedAction, TestEntry};
use super::set::RuleSet;
use super::{Action, Decision, Fact, Facts, Fate, LegPlan, Verdict};

impl RuleSet {
    /// Runs every test; what comes back is what failed, with the explanation as help. A score that a test gives falls into
    /// `bands`.
    #[must_use]
    pub fn run_tests(&self, bands: &Bands) -> Vec<Diagnostic> {
        self.tests.iter().filter_map(|test| self.run(test, bands)).collect()
    }

    fn run(&self, test: &TestEntry, bands: &Bands) -> Option<Diagnostic> {
        let facts = Facts {
            recipient: &test.recipient,
            sender: &test.sender,
            client: test.client,
            helo: test.helo.as_deref(),
            tls: test.tls,
            at: test.at,
            message: Fact::Known(&test.message),
            auth: Fact::Known(test.auth),
            score: Fact::Known(test.score),
        };
        let mut decision = self.decide(&facts);
        let band = test.score.map_or(Band::Clean, |score| bands.band(score));
        if decision.is_refused_as_spam(band) {
            decision.verdict = Verdict::Reject(Refusal::new(reply::SPAM_REFUSED));
        }
        let wrong = self.difference(test, &decision, band)?;
        let failed = Diagnostic::error(format!("the rule test `{}` failed: {wrong}", test.name.value));
        Some(failed.at(&test.name.place).label("this test").help(self.explain(&facts).render().trim_end()))
    }

    fn difference(&self, test: &TestEntry, decision: &Decision, band: Band) -> Option<String> {
        let expect = &test.expect;
        if let Some(rules) = &expect.rules {
            let expected: Vec<&str> = rules.iter().map(|rule| rule.value.as_str()).collect();
            if expected != decision.rules {
                return Some(format!("expected the rules {expected:?}, but {:?} applied", decision.rules));
            }
        }
        if let Some(wrong) = action_difference(expect.action.as_ref(), decision, expect.legs.is_some()) {
            return Some(wrong);
        }
        let legs: Vec<&LegPlan> = decision.verdict.legs().iter().collect();
        if let Some(expected) = &expect.legs
            && let Some(wrong) = self.legs_difference("the legs", expected, &legs)
        {
            return Some(wrong);
        }
        let lists = [
            ("as tagged", &expect.tagged, Fate::Mark),
            ("as quarantined", &expect.quarantined, Fate::Quarantine),
            ("as omitted", &expect.omitted, Fate::Omit),
        ];
        // Whoever says where a copy goes means that it gets there, marked perhaps, unless he says otherwise.
        let says_where = expect.legs.is_some() || lists.iter().any(|(_, expected, _)| expected.is_some());
        for (what, expected, fate) in lists {
            let none = Vec::new();
            let optional = fate == Fate::Mark || !says_where;
            let Some(expected) = expected.as_ref().or(if optional { None } else { Some(&none) }) else { continue };
            let of_fate: Vec<&LegPlan> = legs.iter().copied().filter(|leg| leg.fate(band) == fate).collect();
            if let Some(wrong) = self.legs_difference(what, expected, &of_fate) {
                return Some(wrong);
            }
        }
        None
    }

    /// In any order, each leg once.
    fn legs_difference(&self, what: &str, expected: &[Placed<String>], legs: &[&LegPlan]) -> Option<String> {
        let same = expected.len() == legs.len()
            && expected.iter().all(|name| legs.iter().any(|leg| self.is_leg(leg, name)))
            && legs.iter().all(|leg| expected.iter().any(|name| self.is_leg(leg, name)));
        if same {
            return None;
        }
        let expected: Vec<&str> = expected.iter().map(|leg| leg.value.as_str()).collect();
        let got: Vec<&str> = legs.iter().map(|leg| leg.target_name.as_deref().unwrap_or(leg.target.as_str())).collect();
        Some(format!("expected {what} {expected:?}, but got {got:?}"))
    }

    fn is_leg(&self, leg: &LegPlan, name: &Placed<String>) -> bool {
        leg.target_name.as_deref() == Some(&name.value) || self.target(&name.value).as_ref() == Some(&leg.target)
    }
}

/// With no action expected the mail must be relayed, if legs are expected at all.
fn action_difference(expected: Option<&ExpectedAction>, decision: &Decision, legs_expected: bool) -> Option<String> {
    let (key, text) = match &decision.verdict {
        Verdict::Reject(refusal) => ("reject", refusal.reply().to_string()),
        Verdict::Defer(refusal) => ("defer", refusal.reply().to_string()),
        Verdict::Undecided => ("undecided", String::new()),
        Verdict::Accept { action, .. } => match action {
            Action::Relay => ("relay", String::new()),
            Action::Quarantine { why } => ("quarantine", why.clone()),
            Action::Hold { why } => ("hold", why.clone()),
            Action::Discard { why } => ("discard", why.clone()),
        },
    };
    let got = if text.is_empty() { key.to_owned() } else { format!("{key} ({text})") };
    match expected {
        None if legs_expected && key != "relay" => Some(format!("expected it to be relayed, but got {got}")),
        None => None,
        Some(action) if action.key != key => Some(format!("expected {}, but got {got}", action.key)),
        Some(ExpectedAction { text: Some(part), .. }) if !text.contains(part.as_str()) => {
            Some(format!("expected `{part}` in the text, but got {got}"))
        }
        Some(_) => None,
    }
}
