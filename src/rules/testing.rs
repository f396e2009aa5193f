//! The `[[test]]`s that stand beside the rules: given these facts, that is expected.

use crate::diagnostic::{Diagnostic, Placed};

use super::set::RuleSet;
use super::syntax::{ExpectedAction, TestEntry};
use super::{Action, Decision, Fact, Facts, LegPlan, Verdict};

impl RuleSet {
    /// Runs every test; what comes back is what failed, with the explanation as help.
    #[must_use]
    pub fn run_tests(&self) -> Vec<Diagnostic> {
        self.tests.iter().filter_map(|test| self.run(test)).collect()
    }

    fn run(&self, test: &TestEntry) -> Option<Diagnostic> {
        let facts = Facts {
            recipient: &test.recipient,
            sender: &test.sender,
            client: test.client,
            helo: test.helo.as_deref(),
            auth: Fact::Known(test.auth),
        };
        let decision = self.decide(&facts);
        let wrong = self.difference(test, &decision)?;
        let failed = Diagnostic::error(format!("the rule test `{}` failed: {wrong}", test.name.value));
        Some(failed.at(&test.name.place).label("this test").help(self.explain(&facts).render().trim_end()))
    }

    fn difference(&self, test: &TestEntry, decision: &Decision) -> Option<String> {
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
        let legs = decision.verdict.legs();
        let expected = expect.legs.as_ref()?;
        // In any order, each leg once.
        let same = expected.len() == legs.len()
            && expected.iter().all(|name| legs.iter().any(|leg| self.is_leg(leg, name)))
            && legs.iter().all(|leg| expected.iter().any(|name| self.is_leg(leg, name)));
        if same {
            return None;
        }
        let expected: Vec<&str> = expected.iter().map(|leg| leg.value.as_str()).collect();
        let got: Vec<&str> = legs.iter().map(|leg| leg.target_name.as_deref().unwrap_or(leg.target.as_str())).collect();
        Some(format!("expected the legs {expected:?}, but got {got:?}"))
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
