//! Planning a waiting leg anew: where an operator says it shall go, or what today's rules make of it. Pure.
//!
//! Whatever gives a leg another target goes through `place`: with the target change its route, the reverse-path that the
//! next hop is told, and the header fields of this copy. For `redecide` the legs of one alias are taken as a set, because
//! the rules decide about the alias: a leg keeps its target where the rules still want it, what is left of the rules'
//! legs goes to what is left of ours, and no two legs ever get one target. The score that a message got is judged by today's
//! bands; what an operator sends on himself carries no mark.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::address::{Mailbox, ReversePath};
use crate::bounce::Authentication;
use crate::clock::Timestamp;
use crate::id::LegId;
use crate::inbound::Ruling;
use crate::message::reading::{Reading, Wanted};
use crate::queue::sqlite::{LegRow, MessageRow, Repeat, Replacement};
use crate::queue::{Reason, State};
use crate::rules::{Action, AuthFacts, Decision, Fact, Facts, Fate, LegKind, LegPlan, Verdict};
use crate::spam::{Band, SpamReport};
use crate::srs::{Original, ReturnPath};
use crate::stamp;

/// `row` sent on to where `plan` says, at once.
pub fn retarget(ruling: &Ruling, row: &LegRow, plan: &LegPlan, now: Timestamp) -> Result<Replacement, String> {
    let start =
        Start { state: State::Queued, reason: Reason::Operator, detail: row.detail.clone(), mark: String::new() };
    // A copy stays a copy, wherever it goes instead.
    let is_copy = !row.names_target && row.target != row.recipient;
    let kind = if is_copy { LegKind::Also } else { plan.kind };
    place(ruling, row, &LegPlan { kind, ..plan.clone() }, start, row.rules.clone(), now)
}

/// `row` sent once more to where it went: what the next hop is told of its sender now.
pub fn repeat(ruling: &Ruling, row: &LegRow, now: Timestamp) -> Result<Repeat, String> {
    let plan = as_it_is(row)?;
    let Replacement { sender, authorship, .. } = retarget(ruling, row, &plan, now)?;
    Ok(Repeat { leg: row.id, sender, authorship })
}

/// What becomes of a leg that is decided anew, and what else there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redecided {
    pub leg: LegId,
    pub to: Replacement,
    pub note: String,
}

/// What the ledger knows of return paths, by the recipient that is one.
pub type Originals = HashMap<String, Option<Original>>;

/// The recipients of `message` that are return paths of ours: the ledger must be asked about them before `redecide`.
#[must_use]
pub fn return_paths(ruling: &Ruling, message: &MessageRow) -> Vec<(String, ReturnPath)> {
    let mut paths: Vec<(String, ReturnPath)> = Vec::new();
    for alias in message.legs.iter().map(|leg| &leg.recipient) {
        let Ok(recipient) = Mailbox::parse(alias) else { continue };
        // It was in time when it came, however long it has waited since.
        if let Some(Ok(path)) = ruling.return_path(&recipient, message.received)
            && paths.iter().all(|(known, _)| known != alias)
        {
            paths.push((alias.clone(), path));
        }
    }
    paths
}

/// What today's rules make of the legs of `message` that are `chosen`. Those that cannot be moved, because they are
/// final or in flight, are left out, and what they go to is taken.
pub fn redecide(
    ruling: &Ruling,
    message: &MessageRow,
    originals: &Originals,
    chosen: &HashSet<LegId>,
    now: Timestamp,
) -> Result<Vec<Redecided>, String> {
    let mut done = Vec::new();
    let facts: Value = serde_json::from_str(&message.facts).unwrap_or_default();
    let judged = Judged::recorded(ruling, &facts["spam"]);
    let mut seen: HashSet<&str> = HashSet::new();
    for alias in message.legs.iter().map(|leg| leg.recipient.as_str()).filter(|alias| seen.insert(alias)) {
        let legs = message.legs.iter().filter(|leg| leg.recipient == alias);
        let (moving, staying): (Vec<&LegRow>, Vec<&LegRow>) =
            legs.partition(|leg| chosen.contains(&leg.id) && leg.state.is_open() && !leg.in_flight);
        if let Some(first) = moving.first() {
            let decision = decide(ruling, message, &facts, originals, first)?;
            done.extend(redecide_alias(ruling, (decision, &judged), &moving, &staying, now)?);
        }
    }
    Ok(done)
}

fn decide(
    ruling: &Ruling,
    message: &MessageRow,
    recorded: &Value,
    originals: &Originals,
    leg: &LegRow,
) -> Result<Decision, String> {
    let recipient = Mailbox::parse(&leg.recipient).map_err(|error| format!("{}: {error}", leg.id))?;
    let sender = ReversePath::parse(&message.sender).map_err(|error| format!("{}: {error}", leg.id))?;
    let envelope = RecordedEnvelope { client: &message.client, helo: &message.helo, protocol: &message.protocol };
    let reading = recorded_reading(recorded, ruling.rules.wanted());
    let facts = Facts {
        message: reading.as_ref().map_or(Fact::Unknown, Fact::Known),
        ..recorded_facts(&recipient, &sender, message.received, &envelope, recorded)
    };
    let original = originals.get(&leg.recipient).and_then(Option::as_ref);
    let decision = ruling.decide(&facts, Fact::Known(original), message.received);
    if decision.verdict == Verdict::Undecided {
        return Err(format!("{}: today's rules ask for what was not recorded of the message", leg.id));
    }
    Ok(decision)
}

/// What the ledger keeps of the session.
pub struct RecordedEnvelope<'m> {
    pub client: &'m str,
    pub helo: &'m str,
    /// As in Received.
    pub protocol: &'m str,
}

/// What was known of a message when it came in, but for the message itself ([`recorded_reading`]).
#[must_use]
pub fn recorded_facts<'a>(
    recipient: &'a Mailbox,
    sender: &'a ReversePath,
    at: Timestamp,
    envelope: &RecordedEnvelope<'a>,
    recorded: &Value,
) -> Facts<'a> {
    Facts {
        client: envelope.client.parse::<IpAddr>().ok(),
        helo: Some(envelope.helo),
        tls: was_encrypted(envelope.protocol),
        auth: Fact::Known(recorded_auth(recorded)),
        score: Fact::Known(SpamReport::recorded(&recorded["spam"]).map(|report| report.score)),
        ..Facts::of(recipient, sender, at)
    }
}

/// Whether the session was, whose protocol stands in Received (RFC 3848: ESMTPS, UTF8SMTPS …).
#[must_use]
pub fn was_encrypted(protocol: &str) -> bool {
    protocol.contains("SMTPS")
}

/// What is recorded of the message itself; `None` where rules want more than that.
#[must_use]
pub fn recorded_reading(recorded: &Value, wanted: Wanted) -> Option<Reading> {
    if wanted.is_nothing() {
        return Some(Reading::default());
    }
    Reading::recorded(&recorded["message"]).filter(|_| wanted.is_recorded())
}

/// What the checks found when the message came in, out of its recorded `facts`: today they would find something else, or
/// nothing.
fn recorded_auth(facts: &Value) -> AuthFacts {
    let word = |check: &str| facts["auth"][check].as_str();
    AuthFacts::recorded(word("spf"), word("dkim"), word("dmarc"), word("arc"))
}

/// What today's bands make of the score that was made when the message came in.
struct Judged {
    band: Band,
    why: String,
    /// The field that marks a copy; empty where none may be added.
    mark: String,
}

impl Judged {
    fn recorded(ruling: &Ruling, spam: &Value) -> Judged {
        match (&ruling.spam, SpamReport::recorded(spam)) {
            (Some(scorer), Some(report)) => {
                let mark = if spam["may_mark"] == true { report.field() } else { String::new() };
                Judged { band: scorer.band(&report), why: report.summary(), mark }
            }
            (None, _) | (_, None) => Judged { band: Band::Clean, why: String::new(), mark: String::new() },
        }
    }

    /// As for a new message, only that nothing can be refused any more.
    fn start(&self, mut start: Start, plan: &LegPlan) -> Start {
        let spam = |state| Start { state, reason: Reason::Spam, detail: self.why.clone(), mark: String::new() };
        match (plan.fate(self.band), start.state) {
            (Fate::Keep, _) => start,
            (Fate::Mark, _) => {
                start.mark.clone_from(&self.mark);
                start
            }
            (Fate::Quarantine, State::Queued | State::Held) => spam(State::Quarantined),
            (Fate::Omit, State::Queued | State::Held | State::Quarantined) => spam(State::Omitted),
            (Fate::Quarantine | Fate::Omit, _) => start,
        }
    }
}

/// All legs of one alias that are to be moved.
fn redecide_alias(
    ruling: &Ruling,
    (decision, judged): (Decision, &Judged),
    moving: &[&LegRow],
    staying: &[&LegRow],
    now: Timestamp,
) -> Result<Vec<Redecided>, String> {
    let Decision { verdict, rules, shadows: _ } = decision;
    let (start, plans, none_left) = match verdict {
        Verdict::Accept { action, legs } => {
            let none_left = (Reason::Rule, "today's rules make no such copy".to_owned());
            (start(action), legs, none_left)
        }
        Verdict::Reject(refusal) | Verdict::Defer(refusal) => {
            let why = format!("today's rules refuse it: {}", refusal.reply());
            (start(Action::Relay), Vec::new(), (Reason::MixedRefusal, why))
        }
        Verdict::Undecided => {
            let why = "today's rules cannot decide it".to_owned();
            (start(Action::Relay), Vec::new(), (Reason::MixedRefusal, why))
        }
    };
    let (matched, left_over) = matched(plans, moving, staying);
    let mut note = String::new();
    if !left_over.is_empty() {
        let name = |plan: &LegPlan| plan.target_name.clone().unwrap_or_else(|| plan.target.to_string());
        let names: Vec<String> = left_over.iter().map(name).collect();
        note = format!("no leg is left for {}, where today's rules send a copy, too", names.join(", "));
    }
    let mut done = Vec::new();
    for (leg, plan) in moving.iter().zip(matched) {
        let to = match plan {
            Some(plan) => {
                let start = judged.start(start.clone(), &plan);
                place(ruling, leg, &plan, start, rules.clone(), now)?
            }
            None => {
                // Its sender was told 250: it waits for an operator, who may still release it to where it was to go.
                let (reason, detail) = none_left.clone();
                let start = Start { state: State::Quarantined, reason, detail, mark: String::new() };
                place(ruling, leg, &as_it_is(leg)?, start, rules.clone(), now)?
            }
        };
        done.push(Redecided { leg: leg.id, to, note: std::mem::take(&mut note) });
    }
    Ok(done)
}

/// For each moving leg its plan: the one to its own target, else the next that nobody has. And the plans without a leg.
fn matched(mut plans: Vec<LegPlan>, moving: &[&LegRow], staying: &[&LegRow]) -> (Vec<Option<LegPlan>>, Vec<LegPlan>) {
    let goes_to = |leg: &LegRow, plan: &LegPlan| Mailbox::parse(&leg.target).is_ok_and(|target| target == plan.target);
    plans.retain(|plan| !staying.iter().any(|leg| goes_to(leg, plan)));
    let mut matched: Vec<Option<LegPlan>> = Vec::with_capacity(moving.len());
    for leg in moving {
        let own = plans.iter().position(|plan| goes_to(leg, plan));
        matched.push(own.map(|at| plans.remove(at)));
    }
    let mut rest = plans.into_iter();
    for plan in matched.iter_mut().filter(|plan| plan.is_none()) {
        *plan = rest.next();
    }
    (matched, rest.collect())
}

/// Where a leg is put.
#[derive(Clone, Debug)]
struct Start {
    state: State,
    reason: Reason,
    detail: String,
    /// The header field that marks it as spam, or nothing.
    mark: String,
}

fn start(action: Action) -> Start {
    let (state, detail) = match action {
        Action::Relay => (State::Queued, "decided anew".to_owned()),
        Action::Quarantine { why } => (State::Quarantined, why),
        Action::Hold { why } => (State::Held, why),
        Action::Discard { why } => (State::Discarded, why),
    };
    Start { state, reason: Reason::Rule, detail, mark: String::new() }
}

/// The leg as it would be if it had been made with this plan now.
fn place(
    ruling: &Ruling,
    row: &LegRow,
    plan: &LegPlan,
    start: Start,
    rules: Vec<String>,
    now: Timestamp,
) -> Result<Replacement, String> {
    let wrong = |error: crate::address::AddressError| format!("{}: {error}", row.id);
    let alias = Mailbox::parse(&row.recipient).map_err(wrong)?;
    let original = ReversePath::parse(&row.message_sender).map_err(wrong)?;
    let Start { state, reason, detail, mark } = start;
    let authentication = if row.authenticated { Authentication::Proven } else { Authentication::Absent };
    let (sender, authorship) = ruling.reverse_path(&original, &plan.target, now, authentication, state);
    let withheld: Vec<&str> = row.withheld.iter().map(String::as_str).collect();
    let copy = stamp::Copy {
        alias: &alias,
        target: &plan.target,
        forwarding: ruling.forwarding(&alias, plan.kind, now),
        spam: &mark,
        mark: &ruling.loop_mark(&alias, plan, &rules, now),
        // A set seals what was found when it came; what an operator sends on goes without.
        seal: "",
        withheld: &withheld,
    };
    Ok(Replacement {
        target: plan.target.clone(),
        target_name: plan.target_name.clone(),
        route: plan.route.clone(),
        sender,
        authorship,
        state,
        reason,
        detail,
        due: (state == State::Queued).then_some(now),
        rules,
        prefix: copy.prefix(),
    })
}

/// The plan that keeps a leg where it is.
fn as_it_is(row: &LegRow) -> Result<LegPlan, String> {
    let target = Mailbox::parse(&row.target).map_err(|error| format!("{}: {error}", row.id))?;
    let kind = if row.names_target { LegKind::To } else { LegKind::Also };
    Ok(LegPlan { target_name: row.target_name.clone(), route: row.route.clone(), kind, ..LegPlan::unrouted(target) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::address::Domain;
    use crate::diagnostic::{Report, Source};
    use crate::dns::zone::Zone;
    use crate::id::MessageId;
    use crate::rules::{RuleSet, Surroundings, parse};
    use crate::smtp::settings::Settings;
    use crate::srs::Srs;

    const NOW: Timestamp = Timestamp(1_795_292_431_000);

    /// `more` stands behind the targets.
    fn rules(more: &str) -> Arc<RuleSet> {
        let text = format!(
            "[domain.'d.example']\nrole = 'admin@x.example'\n[target]\na = {{ address = 'a@crm.example', route = 'crm' }}\n\
             b = {{ address = 'b@crm.example', route = 'crm' }}\nc = {{ address = 'c@crm.example', route = 'crm' }}\n{more}"
        );
        let routes = BTreeMap::from([("default", true), ("crm", true)].map(|(name, hosts)| (name.to_owned(), hosts)));
        let read = |_: &str, _: &str| Err("no such file".to_owned());
        let mut report = Report::default();
        let sources = [Source::new("rules.toml".to_owned(), text)];
        let around = Surroundings {
            routes: &routes,
            looks_up_mx: true,
            checks: [true; 4],
            scores: true,
            now: Timestamp(0),
            read: &read,
        };
        let parsed = parse(&sources, &around, &mut report);
        Arc::new(parsed.unwrap_or_else(|| panic!("{}", report.render(false))).rules)
    }

    fn ruling(alias: &str) -> Ruling {
        let postmaster = Mailbox::parse("postmaster@d.example").unwrap();
        Ruling {
            session: Arc::new(Settings::new("mx.d.example".to_owned(), postmaster, 1, 1)),
            rules: rules(&format!("[alias.'d.example']\naide = {alias}\n")),
            routes: BTreeMap::new(),
            legs_max: 10,
            listeners: BTreeMap::new(),
            sessions_max: 100,
            client_sessions_max: 50,
            memory_max: u64::MAX,
            tls: None,
            auth: None,
            dns: Arc::new(Zone::parse("")),
            checker: None,
            spam: None,
            mailhosts: None,
            upstream: Vec::new(),
            marks: None,
            signer: None,
            srs: Srs::new(Domain::parse("srs.d.example").unwrap(), &[b"secret".to_vec()]).map(Arc::new),
        }
    }

    fn row(n: u16, target: &str, state: State) -> LegRow {
        LegRow {
            id: LegId { message: MessageId(1), n },
            recipient: "aide@d.example".into(),
            target: target.into(),
            target_name: None,
            earlier_targets: Vec::new(),
            route: "old".into(),
            sender: "old@x.example".into(),
            state,
            reason: Reason::Accepted,
            detail: "as it was".into(),
            since: NOW,
            due: Some(NOW),
            ended: None,
            in_flight: false,
            attempts: 0,
            dsn: None,
            actor: None,
            paused: None,
            rules: vec!["old rule".into()],
            last: None,
            received: NOW,
            listener: "mx".into(),
            client: "192.0.2.1".into(),
            helo: "client.example".into(),
            message_sender: "client@example.org".into(),
            from: String::new(),
            subject: String::new(),
            message_id: String::new(),
            size: 1,
            authenticated: false,
            withheld: Vec::new(),
            names_target: true,
        }
    }

    fn message(legs: Vec<LegRow>) -> MessageRow {
        MessageRow {
            id: MessageId(1),
            received: NOW,
            listener: "mx".into(),
            client: "192.0.2.1".into(),
            ptr: None,
            helo: "client.example".into(),
            protocol: "ESMTP".into(),
            sender: "client@example.org".into(),
            body_type: "7bit".into(),
            smtputf8: false,
            require_tls: false,
            size: 1,
            from: String::new(),
            subject: String::new(),
            message_id: String::new(),
            prefix: Vec::new(),
            facts: "{}".into(),
            rules_hash: String::new(),
            cause: None,
            legs,
            attempts: Vec::new(),
            actions: Vec::new(),
        }
    }

    #[test]
    fn a_leg_with_another_target_gets_all_that_depends_on_it() {
        let ruling = ruling("{ to = 'a' }");
        let plan = ruling.rules.leg_to("b").unwrap();
        let to = retarget(&ruling, &row(1, "aide@d.example", State::Quarantined), &plan, NOW).unwrap();
        assert_eq!((to.target.as_str(), &*to.route, to.state), ("b@crm.example", "crm", State::Queued));
        assert_eq!((to.due, to.rules, to.detail.as_str()), (Some(NOW), vec!["old rule".to_owned()], "as it was"));
        assert!(to.sender.as_str().starts_with("SRS0=") && to.sender.as_str().ends_with("@srs.d.example"));
        let names = "Delivered-To: aide@d.example\r\nX-Original-To: aide@d.example\r\n";
        let way = "X-Forwarded-To: b@crm.example\r\nX-Forwarded-For: aide@d.example b@crm.example\r\n";
        assert_eq!(String::from_utf8(to.prefix).unwrap(), format!("{names}{way}"));
        // What a signature forbids it forbids still, and what was a copy beside another stays one.
        let copy = LegRow { names_target: false, ..row(1, "c@crm.example", State::Quarantined) };
        assert_eq!(retarget(&ruling, &copy, &plan, NOW).unwrap().prefix, names.as_bytes());
        let signed = LegRow { withheld: vec!["X-Original-To".into()], ..copy };
        assert_eq!(retarget(&ruling, &signed, &plan, NOW).unwrap().prefix, b"Delivered-To: aide@d.example\r\n");
    }

    #[test]
    fn the_legs_of_an_alias_are_decided_as_a_set() {
        use State::{Delivered, Held, Quarantined, Queued};
        // Rules; legs as target, state, whether chosen; where the moved ones go; plans without a leg.
        type Leg = (&'static str, State, bool);
        type Case = (&'static str, Vec<Leg>, &'static [(u16, &'static str, State)], &'static str);
        let cases: Vec<Case> = vec![
            ("{ to = 'a' }", vec![("old@x.example", Queued, true)], &[(1, "a@crm.example", Queued)], ""),
            // A leg keeps its target, whatever its place.
            (
                "{ to = 'b', also = ['a'] }",
                vec![("a@crm.example", Queued, true), ("old@x.example", Held, true)],
                &[(1, "a@crm.example", Queued), (2, "b@crm.example", Queued)],
                "",
            ),
            // Fewer than before: what is left over waits for an operator, with its target.
            (
                "{ to = 'b' }",
                vec![("a@crm.example", Queued, true), ("b@crm.example", Queued, true)],
                &[(1, "a@crm.example", Quarantined), (2, "b@crm.example", Queued)],
                "",
            ),
            // More than before is said.
            (
                "{ to = 'a', also = ['b', 'c'] }",
                vec![("b@crm.example", Queued, true)],
                &[(1, "b@crm.example", Queued)],
                "no leg is left for a, c, where today's rules send a copy, too",
            ),
            // What is delivered, or was not chosen, has its target.
            (
                "{ to = 'a', also = ['b'] }",
                vec![
                    ("a@crm.example", Delivered, true),
                    ("b@crm.example", Queued, false),
                    ("c@crm.example", Queued, true),
                ],
                &[(3, "c@crm.example", Quarantined)],
                "",
            ),
            ("{ reject = 'no' }", vec![("a@crm.example", Queued, true)], &[(1, "a@crm.example", Quarantined)], ""),
        ];
        for (alias, legs, expected, note) in cases {
            let rows = (1u16..).zip(&legs).map(|(n, (target, state, _))| row(n, target, *state)).collect();
            let message = message(rows);
            let chosen = message.legs.iter().zip(&legs).filter(|(_, (.., chosen))| *chosen).map(|(leg, _)| leg.id);
            let done = redecide(&ruling(alias), &message, &Originals::new(), &chosen.collect(), NOW).unwrap();
            let found: Vec<(u16, &str, State)> =
                done.iter().map(|one| (one.leg.n, one.to.target.as_str(), one.to.state)).collect();
            assert_eq!(found, expected, "{alias}");
            assert_eq!(done.iter().map(|one| one.note.as_str()).collect::<String>(), note, "{alias}");
        }
    }

    #[test]
    fn conditions_on_checks_see_what_was_found_at_the_time() {
        let mut ruling = ruling("{ to = 'a' }");
        let rule = "[[rule]]\nwhen = { recipient = 'aide@d.example', dmarc = 'pass', spf = 'softfail' }\nto = 'b'\n";
        ruling.rules = rules(&format!("{rule}[alias.'d.example']\naide = {{ to = 'a' }}\n"));
        for (facts, target) in [
            (r#"{"auth":{"dmarc":"pass","spf":"softfail","dkim":null}}"#, "b@crm.example"),
            (r#"{"auth":{"dmarc":"fail","spf":"softfail"}}"#, "a@crm.example"),
            ("{}", "a@crm.example"),
            ("not JSON", "a@crm.example"),
        ] {
            let row = row(1, "old@x.example", State::Queued);
            let message = MessageRow { facts: facts.into(), ..message(vec![row.clone()]) };
            let done = redecide(&ruling, &message, &Originals::new(), &HashSet::from([row.id]), NOW).unwrap();
            assert_eq!(done[0].to.target.as_str(), target, "{facts}");
        }
    }

    #[test]
    fn a_leg_in_flight_is_not_decided_anew_and_keeps_its_target() {
        let flying = LegRow { in_flight: true, ..row(1, "a@crm.example", State::Queued) };
        let message = message(vec![flying, row(2, "old@x.example", State::Queued)]);
        let chosen = message.legs.iter().map(|leg| leg.id).collect();
        let done = redecide(&ruling("{ to = 'a' }"), &message, &Originals::new(), &chosen, NOW).unwrap();
        assert_eq!(done.iter().map(|one| (one.leg.n, one.to.state)).collect::<Vec<_>>(), [(2, State::Quarantined)]);
    }
}
