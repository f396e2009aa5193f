//! Mail that goes round in circles: refused where we know it, held where it looks like it.
//!
//! Our own mark, seen again under the same rule, is certain: that recipient is refused, as is a message with too many
//! Received fields. What a CRM's own mail looks like is held, because a person of another firm may write by the same CRM; and
//! where answers come faster than people write, whatever they look like, a breaker holds them until its hour is over. All of
//! it is for mail that a rule forwards: mailboxes of people behind us, roles and returns are left alone.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::checks::Checked;
use super::journey::{Arrived, facts};
use super::planned::Planned;
use super::{Inbound, Ruling};
use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::events;
use crate::loops::{self, Mark};
use crate::message::content::Content;
use crate::message::reading::Reading;
use crate::message::{Field, Header};
use crate::queue::{Reason, State};
use crate::relay::route::SenderRate;
use crate::reply::{self, Refusal};
use crate::rules::{Action, Decision, Fact, Facts, LegKind, LegPlan, Verdict};

impl Ruling {
    /// Whether what goes out may come back from a CRM. Mailboxes of people are no CRM: what their owners forward is theirs
    /// to stop.
    fn has_loop_rules(&self, leg: &LegPlan) -> bool {
        match leg.kind {
            LegKind::To | LegKind::Also => !self.is_to_mailhost(leg),
            LegKind::Mailbox | LegKind::Role => false,
        }
    }

    /// The field that marks a copy, or nothing: no mark is needed, or there is no key.
    #[must_use]
    pub fn loop_mark(&self, alias: &Mailbox, plan: &LegPlan, rules: &[String], now: Timestamp) -> String {
        let is_return = self.return_path(alias, now).is_some();
        match &self.marks {
            Some(marks) if !is_return && alias != &plan.target && self.has_loop_rules(plan) => {
                marks.field(&marked(rules, alias), now)
            }
            Some(_) | None => String::new(),
        }
    }

    /// The mark that a field bears, if it is ours.
    pub(super) fn read_mark(&self, field: &Field, head: &[u8], now: Timestamp) -> Option<Mark> {
        let is_named = field.name.eq_ignore_ascii_case(loops::FIELD);
        self.marks.as_ref().filter(|_| is_named)?.read(loops::value(field, head), now)
    }

    /// Refuses the recipients whose rule the message has been through.
    pub(super) fn turn_back(&self, decided: &mut [(Mailbox, Decision)], checked: &Checked) {
        let Some(marks) = self.marks.as_ref().filter(|_| !checked.marks.is_empty()) else { return };
        for (alias, Decision { verdict, rules, .. }) in decided {
            let Verdict::Accept { action: Action::Relay, legs } = verdict else { continue };
            let rule = marked(rules, alias);
            let goes_on = legs.iter().any(|leg| self.has_loop_rules(leg));
            if goes_on && checked.marks.iter().any(|mark| marks.is_of(mark, &rule)) {
                events::loop_seen("mark");
                *verdict = Verdict::Reject(Refusal::new(reply::LOOP));
            }
        }
    }
}

/// The mailboxes of From.
fn authors(head: &[u8]) -> Vec<Mailbox> {
    Content::read(head).from.iter().filter_map(|author| Mailbox::parse(&author.address).ok()).collect()
}

/// The domain of the last address in a From field, as people write it.
fn domain_of(from: &str) -> Option<Domain> {
    let (_, domain) = from.rsplit_once('@')?;
    Domain::parse(domain.split(['>', ' ', '(', ',', ';']).next()?).ok()
}

/// What a mark names: the rule that ended the search, or the alias where none did.
fn marked(rules: &[String], alias: &Mailbox) -> String {
    rules.last().cloned().unwrap_or_else(|| alias.key())
}

impl Inbound {
    /// Holds what looks like a CRM's own mail on its way back, and what comes too fast.
    pub(super) fn hold_loops(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        header: &Header,
        checked: &Checked,
        planned: &mut [Planned],
    ) {
        let head = message.head.as_bytes();
        let fingerprint = loops::fingerprint(header, head);
        let automatic = loops::is_automatic(header, head) || message.envelope.sender == ReversePath::Null;
        // Every message is looked at; its From is taken apart only where that may matter.
        let authors = if automatic { authors(head) } else { Vec::new() };
        let writer = domain_of(&header.from);
        let may_answer = automatic || fingerprint.is_some() || loops::is_answer(header);
        let now = self.clock.monotonic();
        for plan in planned.iter_mut().filter(|plan| plan.state == State::Queued) {
            let guarded = plan.leg.kind == LegKind::To && ruling.has_loop_rules(&plan.leg);
            // While an address is set up, its vendor's own mail must arrive.
            if !guarded
                || ruling.onboards(&plan.leg, checked, message.at)
                || ruling.return_path(&plan.alias, message.at).is_some()
            {
                continue;
            }
            let own = |author: &&Mailbox| automatic && ruling.is_routed_to(author, plan, message, checked);
            if let Some(field) = fingerprint {
                events::loop_seen("fingerprint");
                plan.hold(Reason::Loop, format!("it bears {field}, which a CRM writes"), None);
            } else if let Some(author) = authors.iter().find(own) {
                events::loop_seen("automatic");
                plan.hold(Reason::Loop, format!("automatic mail from {author}, whose mail goes to the same CRM"), None);
            } else if let Some(rate) = ruling.routes.get(&plan.leg.route).and_then(|route| route.sender_rate)
                && (may_answer || writer.as_ref().is_some_and(|domain| ruling.is_of_us(domain, &plan.leg)))
                && let Some(wait) = self.sender_counts.over(&message.envelope.sender, &plan.leg.target, rate, now)
            {
                events::loop_seen("rate");
                let why = format!("more than {rate} answers from this sender: a loop, or a very busy one");
                plan.hold(Reason::Rate, why, Some(message.at.after(wait)));
            }
        }
    }
}

impl Ruling {
    /// Mail to `author` goes where this leg goes.
    fn is_routed_to(&self, author: &Mailbox, plan: &Planned, message: &Arrived<'_>, checked: &Checked) -> bool {
        if !self.rules.is_ours(author.domain()) {
            return false;
        }
        let reading = Reading::default();
        let facts = Facts {
            auth: Fact::Known(checked.facts()),
            score: Fact::Known(None),
            message: Fact::Known(&reading),
            ..facts(message.client, &message.envelope, author, message.at)
        };
        let decision = self.rules.decide(&facts);
        let Verdict::Accept { legs, .. } = decision.verdict else { return false };
        let same = |leg: &LegPlan| leg.target == plan.leg.target || leg.target.domain() == plan.leg.target.domain();
        legs.iter().any(|leg| leg.kind == LegKind::To && same(leg))
    }

    /// Who writes from here is us, or the CRM that the leg goes to.
    fn is_of_us(&self, domain: &Domain, leg: &LegPlan) -> bool {
        self.rules.is_ours(domain) || domain == leg.target.domain()
    }
}

/// How many answers each sender had for each target of late. A restart forgets it.
#[derive(Debug, Default)]
pub(super) struct SenderCounts {
    /// When the pair's window began, and how many it has had.
    pairs: Mutex<HashMap<(String, String), (Duration, u32)>>,
}

impl SenderCounts {
    /// Counts one more. Where it is above the rate: how long the window still lasts.
    fn over(&self, sender: &ReversePath, target: &Mailbox, rate: SenderRate, now: Duration) -> Option<Duration> {
        let sender = sender.mailbox().map_or_else(String::new, Mailbox::key);
        let key = (sender, target.key());
        let mut pairs = self.pairs.lock().expect("no code panics while it holds this lock");
        if !pairs.contains_key(&key) && pairs.len() >= PAIRS_MAX {
            pairs.retain(|_, (began, _)| now.saturating_sub(*began) < PAIR_KEPT);
            // Whoever fills the table makes new pairs uncounted, not their mail held: a loop is in it since it was slow.
            if pairs.len() >= PAIRS_MAX {
                return None;
            }
        }
        let (began, count) = pairs.entry(key).or_insert((now, 0));
        if now.saturating_sub(*began) >= rate.per {
            (*began, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        (*count > rate.count).then(|| rate.per.saturating_sub(now.saturating_sub(*began)))
    }
}

/// At some 200 octets each, two megabytes.
const PAIRS_MAX: usize = 10_000;
/// A day is the longest window.
const PAIR_KEPT: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(count: u32) -> SenderRate {
        SenderRate { count, per: Duration::from_secs(3600) }
    }

    fn sender(n: usize) -> ReversePath {
        ReversePath::parse(&format!("crm{n}@crm.example")).unwrap()
    }

    #[test]
    fn the_domain_of_a_writer_is_read_as_people_write_it() {
        for (from, want) in [
            ("a@b.example", Some("b.example")),
            ("\"a@c.example\" <a@B.example>", Some("b.example")),
            ("a@b.example (c)", Some("b.example")),
            ("nobody", None),
            ("a@", None),
        ] {
            assert_eq!(domain_of(from).as_ref().map(Domain::as_str), want, "{from}");
        }
    }

    #[test]
    fn a_pair_has_so_many_and_waits_for_the_end_of_its_hour() {
        let (counts, target) = (SenderCounts::default(), Mailbox::parse("case@crm.example").unwrap());
        let at = |seconds| Duration::from_secs(seconds);
        for n in 0..3 {
            assert_eq!(counts.over(&sender(1), &target, rate(3), at(n)), None);
        }
        assert_eq!(counts.over(&sender(1), &target, rate(3), at(600)), Some(at(3000)));
        // Other pairs are others.
        let other = Mailbox::parse("other@crm.example").unwrap();
        assert_eq!(counts.over(&sender(1), &other, rate(3), at(600)), None);
        assert_eq!(counts.over(&ReversePath::Null, &target, rate(3), at(600)), None);
        assert_eq!(counts.over(&sender(1), &target, rate(3), at(3600)), None);
    }

    #[test]
    fn a_full_table_goes_on_counting_those_that_it_has() {
        let (counts, target) = (SenderCounts::default(), Mailbox::parse("case@crm.example").unwrap());
        for n in 0..PAIRS_MAX {
            assert_eq!(counts.over(&sender(n), &target, rate(1), Duration::ZERO), None);
        }
        for _ in 0..3 {
            assert_eq!(counts.over(&sender(PAIRS_MAX), &target, rate(1), Duration::from_secs(1)), None);
        }
        assert!(counts.over(&sender(0), &target, rate(1), Duration::from_secs(1)).is_some());
        assert_eq!(counts.over(&sender(PAIRS_MAX), &target, rate(1), PAIR_KEPT), None);
        assert_eq!(counts.pairs.lock().unwrap().len(), 1);
    }
}
