//! Recorded mail through two rule sets: whose outcome another set would change. Pure.
//!
//! What the rules saw is recorded with each message, and both sets decide on that. An outcome is where the copies go, by
//! which route and in which state, under today's spam bands; who hears of a failure, or what a score would have done that
//! the message did not have, is no part of it. What was not recorded is not known, and where a rule asks for it nothing is
//! said about the message: a check that ran on nobody's mail then, and runs now, is such a thing.
//!
//! Memory is bounded: like changes are counted together, and beyond [`CHANGES_MAX`] kinds of them only as a number.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::address::{Domain, Mailbox, ReversePath};
use crate::admin::replan;
use crate::events::masked;
use crate::id::MessageId;
use crate::message::reading::Reading;
use crate::queue::sqlite::Recorded;
use crate::reply;
use crate::reply::Refusal;
use crate::rules::{
    Action, AuthFacts, Bounces, Consideration, Decision, Fact, Facts, Fate, LegKind, LegPlan, OnSpam, RuleSet, Verdict,
};
use crate::spam::{Band, Bands, SpamReport};

/// Whether targets' addresses are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    Masked,
    Shown,
}

/// What does not depend on the message.
pub struct Ground<'a> {
    pub old: &'a RuleSet,
    pub new: &'a RuleSet,
    /// `None`: no score is made today.
    pub bands: Option<Bands>,
    /// Senders are checked today.
    pub checks: bool,
    /// Recipients in it are return paths, about which no rule is asked.
    pub returns: Option<&'a Domain>,
    pub secrets: Secrets,
}

/// The messages of one alias that would have gone another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub recipient: String,
    pub was: String,
    pub becomes: String,
    pub count: u64,
    /// The first few.
    pub examples: Vec<MessageId>,
}

/// A condition that could not be answered, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    pub rule: String,
    pub condition: String,
    pub count: u64,
}

/// What came of it. A recipient is one of a message: two messages to one alias are two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub messages: u64,
    pub recipients: u64,
    /// Recipients for which nothing changes but settings that made no difference: `on-spam`, `bounces`.
    pub settings: u64,
    pub changed: u64,
    /// Recipients that cannot be decided: something was not recorded.
    pub undecided: u64,
    /// Messages without facts that can be read.
    pub unread: u64,
    /// The most frequent first.
    pub changes: Vec<Change>,
    /// Changes of further kinds.
    pub beyond: u64,
    /// What was asked and not recorded: the most frequent first.
    pub unanswered: Vec<Unanswered>,
}

/// Takes message after message.
pub struct Replay<'a> {
    ground: Ground<'a>,
    done: Replayed,
    /// By recipient, old and new outcome.
    changes: HashMap<(String, String, String), (u64, Vec<MessageId>)>,
    unanswered: HashMap<(String, String), u64>,
    explained: u32,
}

impl<'a> Replay<'a> {
    #[must_use]
    pub fn new(ground: Ground<'a>) -> Replay<'a> {
        Replay { ground, done: Replayed::default(), changes: HashMap::new(), unanswered: HashMap::new(), explained: 0 }
    }

    pub fn take(&mut self, message: &Recorded<'_>) {
        self.done.messages += 1;
        let read = serde_json::from_str::<RecordedFacts<'_>>(message.facts).ok();
        let Some((recorded, sender)) = read.and_then(|recorded| {
            let sender = ReversePath::parse(recorded.sender.trim_matches(['<', '>'])).ok()?;
            (!recorded.recipients.is_empty()).then_some((recorded, sender))
        }) else {
            self.done.unread += 1;
            return;
        };
        let band = match (self.ground.bands, &recorded.spam) {
            (Some(bands), Some(spam)) => {
                bands.of(&SpamReport { score: spam.score, forced: spam.forced, ..SpamReport::default() })
            }
            (None, _) | (_, None) => Band::Clean,
        };
        let wanted = self.ground.old.wanted().with(self.ground.new.wanted());
        let reading = recorded.message.filter(|_| !wanted.is_nothing());
        let reading = reading.and_then(|reading| Reading::recorded(&serde_json::from_str(reading.get()).ok()?));
        for recipient in recorded.recipients.iter().filter_map(|text| Mailbox::parse(&text.0).ok()) {
            self.done.recipients += 1;
            let is_return = self.ground.returns.is_some_and(|domain| domain == recipient.domain())
                && !self.ground.old.is_ours(recipient.domain());
            if !is_return {
                let facts = self.facts(message, &recorded, &recipient, &sender);
                self.compare(message.id, &facts, reading.as_ref(), band);
            }
        }
    }

    /// All but the message itself.
    fn facts<'f>(
        &self,
        message: &Recorded<'_>,
        recorded: &'f RecordedFacts<'f>,
        recipient: &'f Mailbox,
        sender: &'f ReversePath,
    ) -> Facts<'f> {
        let word = |word: &'f Option<Text<'f>>| word.as_ref().map(|text| &*text.0);
        // Each check that ran has a word; where none ran all are null.
        let ran = |auth: &&RecordedAuth<'_>| {
            [&auth.spf, &auth.dkim, &auth.dmarc, &auth.arc].iter().any(|word| word.is_some())
        };
        let auth = match recorded.auth.as_ref().filter(ran) {
            Some(auth) => {
                let words = [&auth.spf, &auth.dkim, &auth.dmarc, &auth.arc].map(word);
                Fact::Known(AuthFacts::recorded(words[0], words[1], words[2], words[3]))
            }
            None if self.ground.checks => Fact::Unknown,
            // Nobody checks today either.
            None => Fact::Known(AuthFacts::default()),
        };
        let score = match &recorded.spam {
            Some(spam) => Fact::Known(Some(spam.score)),
            None if self.ground.bands.is_some() => Fact::Unknown,
            None => Fact::Known(None),
        };
        Facts {
            client: recorded.client.parse().ok(),
            helo: Some(&recorded.helo),
            tls: replan::was_encrypted(message.protocol),
            auth,
            score,
            ..Facts::of(recipient, sender, message.received)
        }
    }

    fn compare(&mut self, id: MessageId, facts: &Facts<'_>, reading: Option<&Reading>, band: Band) {
        let unread = Reading::default();
        let asked = |set: &'a RuleSet| {
            let message = match (set.wanted(), reading) {
                (wanted, _) if wanted.is_nothing() => Fact::Known(&unread),
                (wanted, Some(reading)) if wanted.is_recorded() => Fact::Known(reading),
                (_, Some(_) | None) => Fact::Unknown,
            };
            let facts = Facts { message, ..facts.clone() };
            (set.decide(&facts), facts)
        };
        let ((old, seen_by_old), (new, seen_by_new)) = (asked(self.ground.old), asked(self.ground.new));
        for (set, decision, facts) in [(self.ground.new, &new, seen_by_new), (self.ground.old, &old, seen_by_old)] {
            if decision.verdict == Verdict::Undecided {
                self.done.undecided += 1;
                self.explain(set, &facts);
                return;
            }
        }
        // Nearly all mail goes where it went.
        if old.verdict == new.verdict {
            return;
        }
        let (old, new) = (Outcome::of(old, band), Outcome::of(new, band));
        if nameless(&old) == nameless(&new) {
            self.done.settings += 1;
            return;
        }
        self.done.changed += 1;
        let (was, becomes) = told(&old, &new, facts.recipient, self.ground.secrets);
        let key = (facts.recipient.key(), was, becomes);
        if self.changes.len() >= CHANGES_MAX && !self.changes.contains_key(&key) {
            self.done.beyond += 1;
            return;
        }
        let (count, examples) = self.changes.entry(key).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(id);
        }
    }

    /// What was asked in vain. This walks all rules, so it is not done for each of a million messages.
    fn explain(&mut self, set: &RuleSet, facts: &Facts<'_>) {
        if self.explained >= EXPLAINED_MAX {
            return;
        }
        self.explained += 1;
        for considered in set.explain(facts).considered {
            if let Consideration::Open { condition } = considered.result {
                *self.unanswered.entry((considered.rule, condition)).or_default() += 1;
                return;
            }
        }
    }

    #[must_use]
    pub fn finish(self) -> Replayed {
        let mut changes: Vec<Change> = self
            .changes
            .into_iter()
            .map(|((recipient, was, becomes), (count, examples))| Change { recipient, was, becomes, count, examples })
            .collect();
        let total_of = |changes: &[Change]| {
            let mut totals: HashMap<String, u64> = HashMap::new();
            changes.iter().for_each(|change| *totals.entry(change.recipient.clone()).or_default() += change.count);
            totals
        };
        // One alias stands together, the busiest first.
        let totals = total_of(&changes);
        changes.sort_by(|a, b| {
            let by_alias = totals[&b.recipient].cmp(&totals[&a.recipient]).then_with(|| a.recipient.cmp(&b.recipient));
            by_alias.then_with(|| b.count.cmp(&a.count)).then_with(|| (&a.was, &a.becomes).cmp(&(&b.was, &b.becomes)))
        });
        let unanswered = self.unanswered.into_iter();
        let mut unanswered: Vec<Unanswered> =
            unanswered.map(|((rule, condition), count)| Unanswered { rule, condition, count }).collect();
        unanswered.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.rule.cmp(&b.rule)));
        Replayed { changes, unanswered, ..self.done }
    }
}

/// The facts as they were written; borrowed wherever JSON escapes nothing.
#[derive(Deserialize)]
struct RecordedFacts<'a> {
    #[serde(borrow, default)]
    client: Cow<'a, str>,
    #[serde(borrow, default)]
    helo: Cow<'a, str>,
    #[serde(borrow)]
    sender: Cow<'a, str>,
    #[serde(borrow)]
    recipients: Vec<Text<'a>>,
    #[serde(borrow)]
    auth: Option<RecordedAuth<'a>>,
    spam: Option<RecordedSpam>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RecordedAuth<'a> {
    #[serde(borrow)]
    spf: Option<Text<'a>>,
    #[serde(borrow)]
    dkim: Option<Text<'a>>,
    #[serde(borrow)]
    dmarc: Option<Text<'a>>,
    #[serde(borrow)]
    arc: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct RecordedSpam {
    score: f64,
    #[serde(default)]
    forced: bool,
}

/// serde borrows a `Cow` that is a field, and copies one inside of another type.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What becomes of one recipient.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused(Refusal),
    Deferred(Refusal),
    /// The copies in the order of their targets.
    Taken(Action, Vec<(LegPlan, Fate)>),
}

impl Outcome {
    fn of(decision: Decision, band: Band) -> Outcome {
        if decision.is_refused_as_spam(band) {
            return Outcome::Refused(Refusal::new(reply::SPAM_REFUSED));
        }
        match decision.verdict {
            Verdict::Reject(refusal) => Outcome::Refused(refusal),
            Verdict::Defer(refusal) => Outcome::Deferred(refusal),
            // The caller has looked: nothing would be known of it.
            Verdict::Undecided => Outcome::Deferred(Refusal::new(reply::LOCAL_ERROR)),
            Verdict::Accept { action, legs } => {
                let mut legs: Vec<(LegPlan, Fate)> = legs.into_iter().map(|leg| judged(leg, &action, band)).collect();
                legs.sort_by(|(a, _), (b, _)| (a.target.as_str(), &a.route).cmp(&(b.target.as_str(), &b.route)));
                Outcome::Taken(action, legs)
            }
        }
    }
}

/// The copy with what the score makes of it, and without the settings that say so.
fn judged(leg: LegPlan, action: &Action, band: Band) -> (LegPlan, Fate) {
    let fate = match (action, leg.fate(band)) {
        (Action::Discard { .. }, _) | (Action::Quarantine { .. }, Fate::Quarantine) => Fate::Keep,
        (Action::Relay | Action::Hold { .. } | Action::Quarantine { .. }, fate) => fate,
    };
    (LegPlan { kind: LegKind::To, on_spam: OnSpam::Quarantine, bounces: Bounces::Sender, ..leg }, fate)
}

/// Names are compared as the addresses behind them.
fn nameless(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(refusal) => Outcome::Refused(refusal.clone()),
        Outcome::Deferred(refusal) => Outcome::Deferred(refusal.clone()),
        Outcome::Taken(action, legs) => {
            let without = |(leg, fate): &(LegPlan, Fate)| (LegPlan { target_name: None, ..leg.clone() }, *fate);
            Outcome::Taken(action.clone(), legs.iter().map(without).collect())
        }
    }
}

/// Both in words that tell them apart: a target's name where that is enough, else its address as well.
fn told(old: &Outcome, new: &Outcome, recipient: &Mailbox, secrets: Secrets) -> (String, String) {
    let (was, becomes) = (in_words(old, recipient, None, secrets), in_words(new, recipient, None, secrets));
    if was != becomes {
        return (was, becomes);
    }
    let (was, becomes) =
        (in_words(old, recipient, Some(secrets), secrets), in_words(new, recipient, Some(secrets), secrets));
    if was != becomes {
        return (was, becomes);
    }
    let becomes = format!("{becomes}, otherwise");
    (was, becomes)
}

fn in_words(outcome: &Outcome, recipient: &Mailbox, beside: Option<Secrets>, secrets: Secrets) -> String {
    let (action, legs) = match outcome {
        Outcome::Refused(refusal) => return format!("refused: {}", refusal.reply()),
        Outcome::Deferred(refusal) => return format!("deferred: {}", refusal.reply()),
        Outcome::Taken(action, legs) => (action, legs),
    };
    let address = |leg: &LegPlan, secrets| match secrets {
        Secrets::Masked => masked(leg.target.as_str()),
        Secrets::Shown => leg.target.as_str().to_owned(),
    };
    let leg = |(leg, fate): &(LegPlan, Fate)| {
        let target = match (&leg.target_name, beside) {
            _ if leg.target == *recipient => "unchanged".to_owned(),
            (Some(name), None) if secrets == Secrets::Masked => name.clone(),
            (Some(name), _) => format!("{name} <{}>", address(leg, secrets)),
            (None, _) => format!("<{}>", address(leg, secrets)),
        };
        let fate = match fate {
            Fate::Keep => String::new(),
            fate @ (Fate::Mark | Fate::Quarantine | Fate::Omit) => format!(" ({} as spam)", fate.as_str()),
        };
        format!("{target} by {}{fate}", leg.route)
    };
    let legs: Vec<String> = legs.iter().map(leg).collect();
    let legs = legs.join(" + ");
    match action {
        Action::Relay => legs,
        Action::Quarantine { why } => format!("quarantined ({why}): {legs}"),
        Action::Hold { why } => format!("held ({why}): {legs}"),
        Action::Discard { why } => format!("discarded ({why}): {legs}"),
    }
}

/// Kinds of changes that are told apart. A catch-all has as many recipients as spammers have ideas.
const CHANGES_MAX: usize = 10_000;
const EXAMPLES: usize = 3;
/// Enough to see which rules ask in vain.
const EXPLAINED_MAX: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::diagnostic::{Report, Source};
    use crate::rules::{Surroundings, parse};

    const NOW: Timestamp = Timestamp(1_795_292_431_000);

    fn set(more: &str) -> RuleSet {
        let text = format!(
            "[domain.'d.example']\nrole = 'r@x.example'\n[target]\na = 'secret@key.vendor.example'\nb = 'b@x.example'\n{more}"
        );
        let routes = [("default".to_owned(), true), ("crm".to_owned(), true)].into();
        let read = |_: &str, _: &str| Err("no such file".to_owned());
        let around =
            Surroundings { routes: &routes, looks_up_mx: true, checks: [true; 4], scores: true, now: NOW, read: &read };
        let mut report = Report::default();
        let parsed = parse(&[Source::new("r.toml", text)], &around, &mut report);
        parsed.unwrap_or_else(|| panic!("{}", report.render(false))).rules
    }

    fn aide(alias: &str) -> RuleSet {
        set(&format!("[alias.'d.example']\naide = {alias}\n"))
    }

    fn ground<'a>(old: &'a RuleSet, new: &'a RuleSet) -> Ground<'a> {
        let (bands, secrets) = (Some(Bands::default()), Secrets::Masked);
        Ground { old, new, bands, checks: true, returns: None, secrets }
    }

    const FACTS: &str = r#"{"client":"192.0.2.1","helo":"h\"h","sender":"<s@x.example>","recipients":["Aide@d.example"],
        "auth":{"spf":"pass","dkim":"none","dmarc":"pass","arc":"none","ptr":null},"spam":{"score":9.0,"signals":[]}}"#;

    fn recorded(n: i64, facts: &str) -> Recorded<'_> {
        Recorded { id: MessageId(n), received: NOW, protocol: "ESMTPS", facts }
    }

    fn replayed(ground: Ground<'_>, facts: &[&str]) -> Replayed {
        let mut replay = Replay::new(ground);
        (1..).zip(facts).for_each(|(n, facts)| replay.take(&recorded(n, facts)));
        replay.finish()
    }

    /// One message of score 9.0, quarantined unless `on-spam` says otherwise.
    #[test]
    fn outcomes_are_compared_and_settings_that_do_nothing_are_not() {
        for (old, new, told) in [
            ("{ to = 'a' }", "{ to = 'a' }", None),
            ("{ to = 'a' }", "{ to = 'a', bounces = 'suppress' }", None),
            ("{ to = 'a' }", "{ to = 'secret@key.vendor.example' }", None),
            (
                "{ to = 'a' }",
                "{ to = 'b' }",
                Some("a by default (quarantined as spam) -> b by default (quarantined as spam)"),
            ),
            (
                "{ to = 'a', on-spam = 'deliver' }",
                "{ to = 'a' }",
                Some("a by default -> a by default (quarantined as spam)"),
            ),
            (
                "{ to = 'a', on-spam = 'deliver' }",
                "{ to = 'a', on-spam = 'deliver', also = 'b' }",
                Some("a by default -> b by default (omitted as spam) + a by default"),
            ),
            (
                "{ to = 'a', on-spam = 'deliver' }",
                "{ to = 'a', on-spam = 'deliver', route = 'crm' }",
                Some("a by default -> a by crm"),
            ),
            (
                "{ to = 'x@key.vendor.example', on-spam = 'deliver' }",
                "{ reject = 'no' }",
                Some("<x***@***.vendor.example> by default -> refused: 550 5.7.1 no"),
            ),
            (
                "{ defer = 'no' }",
                "{ discard = 'no', to = 'b' }",
                Some("deferred: 451 4.7.1 no -> discarded (no): b by default"),
            ),
        ] {
            let (old_set, new_set) = (aide(old), aide(new));
            let done = replayed(ground(&old_set, &new_set), &[FACTS]);
            let found = done.changes.first().map(|change| format!("{} -> {}", change.was, change.becomes));
            assert_eq!(found.as_deref(), told, "{old} {new}");
            assert_eq!((done.messages, done.recipients, done.changed), (1, 1, u64::from(told.is_some())));
            assert_eq!(done.settings, u64::from(told.is_none() && old != new), "{old} {new}");
        }
    }

    #[test]
    fn a_target_that_keeps_its_name_is_told_by_its_address() {
        let new = set("[alias.'d.example']\naide = { to = 'b', on-spam = 'deliver' }\n");
        let text = "[domain.'d.example']\nrole = 'r@x.example'\n[target]\nb = 'other@y.example'\n\
            [alias.'d.example']\naide = { to = 'b', on-spam = 'deliver' }\n";
        let routes = [("default".to_owned(), true)].into();
        let read = |_: &str, _: &str| Err(String::new());
        let around =
            Surroundings { routes: &routes, looks_up_mx: true, checks: [true; 4], scores: true, now: NOW, read: &read };
        let old = parse(&[Source::new("r.toml", text)], &around, &mut Report::default()).unwrap().rules;
        let done = replayed(ground(&old, &new), &[FACTS]);
        let Change { was, becomes, .. } = &done.changes[0];
        assert_eq!(
            (was.as_str(), becomes.as_str()),
            ("b <o***@y.example> by default", "b <b***@x.example> by default")
        );
        let shown = replayed(Ground { secrets: Secrets::Shown, ..ground(&old, &new) }, &[FACTS]);
        assert_eq!(shown.changes[0].was, "b <other@y.example> by default");
    }

    #[test]
    fn what_was_not_recorded_is_not_decided() {
        let old = aide("{ to = 'a' }");
        let rule = "[[rule]]\nname = 'asks'\nwhen = { recipient = 'aide@d.example', dmarc = 'pass' }\nto = 'b'\n";
        let new = set(&format!("{rule}[alias.'d.example']\naide = {{ to = 'a' }}\n"));
        let unchecked = FACTS.replace("\"pass\"", "null").replace("\"none\"", "null");
        let done = replayed(ground(&old, &new), &[&unchecked, FACTS, "{}", "no JSON"]);
        assert_eq!((done.messages, done.unread, done.undecided, done.changed), (4, 2, 1, 1));
        let asked = [Unanswered { rule: "asks".into(), condition: "dmarc = \"pass\"".into(), count: 1 }];
        assert_eq!(done.unanswered, asked);
        // Where nobody checks today, no rule would see more than then.
        let done = replayed(Ground { checks: false, ..ground(&old, &new) }, &[&unchecked]);
        assert_eq!((done.undecided, done.changed), (0, 0));
    }

    /// What is recorded of a message is its outline; its text and its fields are not.
    #[test]
    fn rules_that_look_into_the_message_see_what_was_recorded_of_it() {
        let old = aide("{ to = 'a' }");
        let outline = r#""message":{"from":["boss@x.example"],"subject":"panne","size":1,"automatic":false,"list":false},"sender""#;
        let with = FACTS.replace("\"sender\"", outline);
        let asking = |when: &str| {
            let rule = format!("[[rule]]\nwhen = {{ recipient = 'aide@d.example', {when} }}\nto = 'b'\n");
            set(&format!("{rule}[alias.'d.example']\naide = {{ to = 'a' }}\n"))
        };
        for (when, facts, changed, undecided) in [
            ("subject-matches = 'panne'", &*with, 1, 0),
            ("subject-matches = 'panne'", FACTS, 0, 1),
            ("body-matches = 'panne'", &*with, 0, 1),
            ("tls = true", FACTS, 1, 0),
        ] {
            let new = asking(when);
            let done = replayed(ground(&old, &new), &[facts]);
            assert_eq!((done.changed, done.undecided), (changed, undecided), "{when} {facts}");
        }
    }

    #[test]
    fn return_paths_are_no_business_of_the_rules() {
        let (old, new) = (aide("{ to = 'a' }"), aide("{ to = 'b' }"));
        let srs = Domain::parse("srs.example").unwrap();
        let back = FACTS.replace("Aide@d.example", "SRS0=x=y@srs.example");
        let done = replayed(Ground { returns: Some(&srs), ..ground(&old, &new) }, &[&back]);
        assert_eq!((done.recipients, done.changed), (1, 0));
    }

    #[test]
    fn kinds_of_changes_at_their_limit_and_one_past_it() {
        let old = set("[[rule]]\nwhen = { recipient-domain = 'd.example' }\nto = 'a'\non-spam = 'deliver'\n");
        let new = set("");
        let ground = Ground { old: &old, new: &new, ..ground(&old, &new) };
        let mut replay = Replay::new(ground);
        for n in 0..=CHANGES_MAX + 1 {
            replay.take(&recorded(n as i64, &FACTS.replace("Aide", &format!("n{}", n.min(CHANGES_MAX)))));
        }
        let done = replay.finish();
        assert_eq!((done.changes.len(), done.changed, done.beyond), (CHANGES_MAX, CHANGES_MAX as u64 + 2, 2));
    }
}
