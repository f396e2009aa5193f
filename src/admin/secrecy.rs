//! Keeps the addresses of targets out of what operators are shown, unless they ask for them.
//!
//! An intake address is a write token: whoever knows it opens cases past us. So a list, a journey and a probe name a target
//! as the rules do, with enough of its address to recognise it, and what its host said is scrubbed. Only what a rule sends
//! somewhere has such an address: a return goes back to who wrote, a notification to who must know, and an unchanged
//! recipient is no secret. `check` and `explain`, which read the rules, show them.

use super::control::Line;
use super::view::{LegView, MessageView};
use crate::address::Mailbox;
use crate::events::masked;
use crate::scrub::scrub;

impl Line {
    /// The same without the addresses of targets.
    #[must_use]
    pub fn masked(self) -> Line {
        match self {
            Line::Leg(leg) => Line::Leg(Box::new(leg.masked())),
            Line::Message(message) => Line::Message(Box::new(message.masked())),
            Line::Operated { leg, result, note } => {
                let note = Secrets::of(&leg).hide(&note);
                Line::Operated { leg: Box::new(leg.masked()), result, note }
            }
            // They name no leg's target, or mask it themselves.
            Line::Refused(_)
            | Line::Status(_)
            | Line::Told { .. }
            | Line::Reload(_)
            | Line::Accepted(_)
            | Line::End(_)
            | Line::Error(_) => self,
        }
    }
}

impl LegView {
    #[must_use]
    pub fn masked(mut self) -> LegView {
        let secrets = Secrets::of(&self);
        self.detail = secrets.hide(&self.detail);
        self.reply = self.reply.map(|reply| secrets.hide(&reply));
        self.host = self.host.map(|host| secrets.host(&host));
        if !secrets.targets.is_empty() {
            self.target = masked(&self.target);
            self.earlier_targets = self.earlier_targets.iter().map(|target| masked(target)).collect();
        }
        self
    }
}

impl MessageView {
    #[must_use]
    pub fn masked(mut self) -> MessageView {
        for leg in &self.legs {
            let secrets = Secrets::of(leg);
            for attempt in self.attempts.iter_mut().filter(|attempt| attempt.leg == leg.id) {
                attempt.reply = secrets.hide(&attempt.reply);
                attempt.host = secrets.host(&attempt.host);
            }
            for action in self.actions.iter_mut().filter(|action| action.leg == leg.id) {
                action.detail = secrets.hide(&action.detail);
            }
        }
        self.legs = self.legs.into_iter().map(LegView::masked).collect();
        self
    }
}

/// What must not be told of a leg.
pub(super) struct Secrets {
    /// Its target and those before it; empty where they are no secret.
    targets: Vec<Mailbox>,
    recipient: String,
}

impl Secrets {
    fn of(leg: &LegView) -> Secrets {
        let by_rule = leg.target_name.is_some() || !leg.rules.is_empty();
        let is_secret = by_rule && !leg.target.eq_ignore_ascii_case(&leg.recipient);
        let all = std::iter::once(&leg.target).chain(&leg.earlier_targets).filter(|_| is_secret);
        let targets = all.filter_map(|target| Mailbox::parse(target).ok()).collect();
        Secrets { targets, recipient: leg.recipient.clone() }
    }

    fn hide(&self, text: &str) -> String {
        self.targets.iter().fold(text.to_owned(), |text, target| scrub(&text, target, &self.recipient))
    }

    /// A host that has the name of the target's domain, which holds the key with some CRMs.
    fn host(&self, host: &str) -> String {
        let name = host.split(' ').next().unwrap_or_default();
        let is_key = |target: &Mailbox| name.eq_ignore_ascii_case(target.domain().as_str());
        match name.rmatch_indices('.').nth(1) {
            Some((at, _)) if self.targets.iter().any(is_key) => format!("***{}", &host[at..]),
            Some(_) | None => host.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(target: &str) -> Secrets {
        Secrets { targets: vec![Mailbox::parse(target).unwrap()], recipient: "aide@solarmora.com".to_owned() }
    }

    #[test]
    fn a_host_that_is_the_target_s_domain_is_masked() {
        let secrets = secrets("cases@k9x8.org.case.vendor.example");
        assert_eq!(secrets.host("K9X8.org.case.vendor.example [192.0.2.1]"), "***.vendor.example [192.0.2.1]");
        assert_eq!(secrets.host("mx.vendor.example [192.0.2.1]"), "mx.vendor.example [192.0.2.1]");
        assert_eq!(secrets.host(""), "");
    }

    #[test]
    fn what_is_said_of_a_target_names_it_no_more() {
        let secrets = secrets("cases.k9x8@crm.example");
        assert_eq!(secrets.hide("550 5.1.1 <cases.k9x8@crm.example> unknown"), "550 5.1.1 <[...]> unknown");
        assert_eq!(secrets.hide("550 5.1.1 no such user"), "550 5.1.1 no such user");
    }
}
