//! Facts in, decision out.
//!
//! [`RuleSet::decide`] and `explain` share `walk`: it takes the rules in order, then the alias, then the domain, and
//! `conclude` makes the verdict out of those that applied. Evaluation is three-valued: what is not known yet makes a
//! walk stop and say what it needs. For check results and scores, of which there are few that rules tell apart, `decide`
//! tries them all and commits itself only to what they agree on, or where they all refuse. For what stands in the
//! message it asks whether anything in it could make the recipient accepted, and else refuses.

use std::net::IpAddr;

use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::message::reading::Reading;
use crate::reply;
use crate::reply::Refusal;

use super::condition::{Missing, Truth, truth};
use super::facts::{AuthFacts, Fact, Facts};
use super::set::{OurDomain, Rule, RuleSet, Target, Then, sender_key};
use super::standing::Force;
use super::{Action, Bounces, Decision, LegKind, LegPlan, OnSpam, Shadow, Verdict};

/// One recipient's facts in the forms that conditions compare.
pub(super) struct Subject<'f> {
    pub(super) recipient: &'f Mailbox,
    pub(super) key: String,
    /// The key without its plus tag, where it has one.
    untagged: Option<String>,
    /// What patterns are held against.
    pub(super) recipient_texts: Vec<String>,
    pub(super) sender: &'f ReversePath,
    pub(super) sender_texts: Vec<String>,
    pub(super) sender_key: String,
    pub(super) client: Option<IpAddr>,
    pub(super) helo: Option<String>,
    pub(super) tls: bool,
    pub(super) at: Timestamp,
}

impl<'f> Subject<'f> {
    pub(super) fn new(facts: &Facts<'f>) -> Subject<'f> {
        let key = facts.recipient.key();
        let sender_key = sender_key(facts.sender);
        Subject {
            recipient: facts.recipient,
            recipient_texts: pattern_texts(facts.recipient.as_str(), &key),
            sender_texts: pattern_texts(&facts.sender.to_string(), &sender_key),
            untagged: untagged(&key),
            key,
            sender: facts.sender,
            sender_key,
            client: facts.client,
            helo: facts.helo.map(str::to_lowercase),
            tls: facts.tls,
            at: facts.at,
        }
    }

    /// The keys under which an exact condition may find the recipient.
    pub(super) fn keys(&self, plus_strip: bool) -> impl Iterator<Item = &str> {
        let untagged = self.untagged.as_deref().filter(|_| plus_strip);
        std::iter::once(self.key.as_str()).chain(untagged)
    }

    /// What stands behind the plus, in lower case.
    pub(super) fn tag(&self) -> Option<&str> {
        self.untagged.as_ref()?;
        let (local, _) = self.key.rsplit_once('@')?;
        local.split_once('+').map(|(_, tag)| tag)
    }
}

/// The text as given, for `(?-i)`; and the key where it is spelled otherwise than by case, so that needless quotes or
/// U-labels do not slip past a pattern.
fn pattern_texts(given: &str, key: &str) -> Vec<String> {
    let mut texts = vec![given.to_owned()];
    if given.to_lowercase() != key {
        texts.push(key.to_owned());
    }
    texts
}

/// `user+tag@domain` without the tag. The key has a quoted local part only where quotes are needed; that is left alone.
pub(super) fn untagged(key: &str) -> Option<String> {
    let (local, domain) = key.rsplit_once('@')?;
    let (user, _) = local.split_once('+')?;
    if user.is_empty() || local.starts_with('"') { None } else { Some(format!("{user}@{domain}")) }
}

/// What is found out after the final dot, each known or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'f> {
    pub(super) checks: [Fact<Option<&'static str>>; 4],
    pub(super) score: Fact<Option<f64>>,
    pub(super) message: Fact<&'f Reading>,
}

impl<'f> Found<'f> {
    pub(super) fn new(facts: &Facts<'f>) -> Found<'f> {
        let checks = match facts.auth {
            Fact::Unknown => [Fact::Unknown; 4],
            Fact::Known(AuthFacts { spf, dkim, dmarc, arc }) => [spf, dkim, dmarc, arc].map(Fact::Known),
        };
        Found { checks, score: facts.score, message: facts.message }
    }
}

/// Which rules a walk looks at. Both give the same verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that the index finds.
    Candidates,
    /// Every one, so that each can be explained.
    Everything,
}

/// What a walk does at a rule that depends on what is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnUnknown {
    Stop,
    /// Go on as if it did not apply.
    PassOver,
}

impl RuleSet {
    /// What becomes of the message for this recipient. A recipient outside our domains is refused before any rule.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        self.complete(&Subject::new(facts), Found::new(facts))
    }

    fn complete(&self, subject: &Subject<'_>, found: Found<'_>) -> Decision {
        let missing = match self.walk(subject, &found, Scope::Candidates, OnUnknown::Stop, &mut |_, _, _| {}) {
            Ok(decision) => return decision,
            Err(Missing::Message) => {
                let undecided = Decision::of(Verdict::Undecided);
                return self.refused_whatever_comes(subject, &found).unwrap_or(undecided);
            }
            Err(missing) => missing,
        };
        let mut first: Option<Decision> = None;
        for completed in self.completions(missing, found) {
            let decision = self.complete(subject, completed);
            let Some(first) = &first else {
                first = Some(decision);
                continue;
            };
            let both_refuse = matches!((&first.verdict, &decision.verdict), (Verdict::Reject(_), Verdict::Reject(_)));
            if !both_refuse && first.verdict != decision.verdict {
                return Decision::of(Verdict::Undecided);
            }
        }
        first.expect("what is missing has at least the completion `None`")
    }

    /// All that can come of what is missing: each word of a check that some rule asks for, and any other; a score in each
    /// interval that rules tell apart, and none.
    fn completions<'f>(&self, missing: Missing, found: Found<'f>) -> Vec<Found<'f>> {
        match missing {
            Missing::Check(check) => {
                let words = self.auth_words[check as usize].iter().map(|word| Some(*word)).chain([None]);
                let complete = |word| {
                    let mut completed = found;
                    completed.checks[check as usize] = Fact::Known(word);
                    completed
                };
                words.map(complete).collect()
            }
            Missing::Score => {
                let bounds = self.score_bounds.iter().copied().chain([f64::NEG_INFINITY]).map(Some).chain([None]);
                bounds.map(|score| Found { score: Fact::Known(score), ..found }).collect()
            }
            // Nobody enumerates messages.
            Missing::Message => Vec::new(),
        }
    }

    /// One pass. `observe` hears of each rule that was looked at. `Err` only with [`OnUnknown::Stop`].
    pub(super) fn walk(
        &self,
        subject: &Subject<'_>,
        found: &Found<'_>,
        scope: Scope,
        on_unknown: OnUnknown,
        observe: &mut dyn FnMut(&Rule, Force, Truth),
    ) -> Result<Decision, Missing> {
        let mut shadows = Vec::new();
        let mut see = |rule: &Rule, force: Force, truth: Truth| {
            if (force, truth) == (Force::Shadow, Truth::Holds) {
                shadows.push(Shadow { rule: rule.name.clone(), action: rule.then.word() });
            }
            observe(rule, force, truth);
        };
        let decision = self.decide_in_order(subject, found, (scope, on_unknown), &mut see)?;
        Ok(Decision { shadows, ..decision })
    }

    fn decide_in_order(
        &self,
        subject: &Subject<'_>,
        found: &Found<'_>,
        (scope, on_unknown): (Scope, OnUnknown),
        observe: &mut dyn FnMut(&Rule, Force, Truth),
    ) -> Result<Decision, Missing> {
        let Some(domain) = self.domain(subject.recipient.domain()) else {
            return Ok(refuse(reply::NOT_OURS, Vec::new()));
        };
        let plus = domain.plus_strip;
        let order = match scope {
            Scope::Candidates => {
                let untagged = subject.untagged.as_deref().filter(|_| plus);
                self.index.candidates(&subject.key, untagged, subject.recipient.domain())
            }
            Scope::Everything => (0..self.rules.len()).collect(),
        };
        let mut applied: Vec<&Rule> = Vec::new();
        for rule in order.into_iter().map(|at| &self.rules[at]) {
            let (force, truth) = (rule.standing.at(subject.at), truth(&rule.when, subject, found, plus));
            observe(rule, force, truth);
            if force != Force::Applies {
                continue;
            }
            match truth {
                Truth::Fails(_) => {}
                Truth::Unknown(_, missing) => match on_unknown {
                    OnUnknown::Stop => return Err(missing),
                    OnUnknown::PassOver => {}
                },
                Truth::Holds => {
                    applied.push(rule);
                    if !rule.continues {
                        return Ok(self.conclude(subject, domain, &applied, None));
                    }
                }
            }
        }
        if let Some(rule) = self.alias_as_it_stands(subject, plus).filter(|rule| !rule.standing.is_plain()) {
            observe(rule, rule.standing.at(subject.at), Truth::Holds);
        }
        if let Some(rule) = self.alias(subject, plus) {
            if rule.standing.is_plain() {
                observe(rule, Force::Applies, Truth::Holds);
            }
            applied.push(rule);
            if !rule.continues {
                return Ok(self.conclude(subject, domain, &applied, None));
            }
        }
        let fallback = self.fallback(subject, domain);
        if let Some(Fallback::CatchAll(rule)) = fallback {
            observe(rule, Force::Applies, Truth::Holds);
            applied.push(rule);
        }
        Ok(self.conclude(subject, domain, &applied, fallback.or(Some(Fallback::Nothing))))
    }

    /// The refusal, where no message could make the recipient accepted. Rules that a message decides are taken as who wants
    /// to be accepted would have them: they apply where that helps, and do not where they refuse.
    fn refused_whatever_comes(&self, subject: &Subject<'_>, found: &Found<'_>) -> Option<Decision> {
        let domain = self.domain(subject.recipient.domain())?;
        let plus = domain.plus_strip;
        let untagged = subject.untagged.as_deref().filter(|_| plus);
        let order = self.index.candidates(&subject.key, untagged, subject.recipient.domain());
        let mut applied: Vec<&Rule> = Vec::new();
        let refusal = |decision: Decision| matches!(decision.verdict, Verdict::Reject(_)).then_some(decision);
        let mut namer = None;
        let in_force = |rule: &&Rule| rule.standing.at(subject.at) == Force::Applies;
        for rule in order.into_iter().map(|at| &self.rules[at]).filter(in_force) {
            match truth(&rule.when, subject, found, plus) {
                Truth::Fails(_) => {}
                Truth::Holds => {
                    applied.push(rule);
                    if !rule.continues {
                        return refusal(self.conclude(subject, domain, &applied, None));
                    }
                }
                Truth::Unknown(..) if rule.then.reject.is_some() => {}
                Truth::Unknown(..) if rule.continues => namer = namer.or(rule.then.goes_elsewhere().then_some(rule)),
                Truth::Unknown(..) => {
                    let with = [&applied[..], &[rule]].concat();
                    refusal(self.conclude(subject, domain, &with, None))?;
                }
            }
        }
        let alias = self.alias(subject, plus);
        applied.extend(alias);
        if alias.is_some_and(|rule| !rule.continues) {
            return refusal(self.conclude(subject, domain, &applied, None));
        }
        let fallback = self.fallback(subject, domain);
        if let Some(Fallback::CatchAll(rule)) = fallback {
            applied.push(rule);
        }
        // One that says where the mail goes makes an address of the recipient.
        applied.extend(namer);
        refusal(self.conclude(subject, domain, &applied, fallback.or(Some(Fallback::Nothing))))
    }

    /// The alias of the recipient, where it is in force.
    fn alias(&self, subject: &Subject<'_>, plus: bool) -> Option<&Rule> {
        self.alias_as_it_stands(subject, plus).filter(|rule| rule.standing.at(subject.at) == Force::Applies)
    }

    /// As given, else without its tag where the domain or the alias says so; else what a map says.
    fn alias_as_it_stands(&self, subject: &Subject<'_>, plus: bool) -> Option<&Rule> {
        if let Some(alias) = self.aliases.get(&subject.key) {
            return Some(&alias.rule);
        }
        let untagged = subject.untagged.as_ref();
        let alias = untagged.and_then(|key| self.aliases.get(key)).filter(|alias| plus || alias.plus_strip);
        let mapped = || self.mapped(&subject.key).or(untagged.filter(|_| plus).and_then(|key| self.mapped(key)));
        alias.map(|alias| &alias.rule).or_else(mapped)
    }

    fn fallback<'r>(&'r self, subject: &Subject<'_>, domain: &'r OurDomain) -> Option<Fallback<'r>> {
        if domain.role.is_some() && is_role(subject, domain) {
            return Some(Fallback::Role);
        }
        let mailboxes = domain.mailboxes.as_ref().map(|_| Fallback::Mailboxes);
        mailboxes.or(domain.catch_all.as_ref().map(Fallback::CatchAll))
    }

    /// The verdict of those that applied, in their order. `fallback` is `None` where a rule or alias ended the search.
    fn conclude(
        &self,
        subject: &Subject<'_>,
        domain: &OurDomain,
        applied: &[&Rule],
        fallback: Option<Fallback<'_>>,
    ) -> Decision {
        let rules: Vec<String> = applied.iter().map(|rule| rule.name.clone()).collect();
        let thens = || applied.iter().map(|rule| &rule.then);
        // RFC 5321 §4.5.1, RFC 2142: somebody must be reachable whatever the rules say of everybody.
        let always_taken = is_role(subject, domain) && (domain.role.is_some() || domain.mailboxes.is_some());
        if let Some(refusal) = thens().find_map(|then| then.reject.as_ref()).filter(|_| !always_taken) {
            return Decision { rules, ..Decision::of(Verdict::Reject(refusal.clone())) };
        }
        let (to, is_circular) = match self.destination(subject, applied) {
            Ok(found) => found,
            Err(NoAddress) => return refuse(reply::NO_SUCH_RECIPIENT, rules),
        };
        // A copy, a band or a hold of a rule that goes on does not make an address out of a name nobody gave; nor does one
        // that keeps mail here, whoever it is for: what it says of spam is no reason to take mail for strangers' guesses.
        let goes = to.is_some() || thens().any(|then| !then.also.is_empty() || then.route.is_some());
        let is_named = goes || applied.iter().any(|rule| rule.names_recipients);
        let exists = || self.alias(subject, domain.plus_strip).is_some() || self.fallback(subject, domain).is_some();
        if to.is_none() && (matches!(fallback, Some(Fallback::Nothing)) || !(is_named || exists())) {
            return refuse(reply::NO_SUCH_RECIPIENT, rules);
        }
        let why = |pick: fn(&Then) -> Option<&String>| thens().find_map(pick).cloned();
        let action = if let Some(why) = why(|then| then.quarantine.as_ref()) {
            Action::Quarantine { why }
        } else if let Some(why) = why(|then| then.hold.as_ref()) {
            Action::Hold { why }
        } else if let Some(refusal) = thens().find_map(|then| then.defer.as_ref()).filter(|_| !always_taken) {
            return Decision { rules, ..Decision::of(Verdict::Defer(refusal.clone())) };
        } else if let Some(why) = why(|then| then.discard.as_ref()) {
            Action::Discard { why }
        } else if is_circular {
            Action::Hold {
                why: "what the rule made of the recipient is an alias of ours: targets are final".to_owned(),
            }
        } else {
            Action::Relay
        };
        let mut legs = self.legs(subject, domain, applied, to);
        if always_taken {
            legs.iter_mut().for_each(|leg| leg.on_spam = OnSpam::Deliver);
        }
        Decision { rules, ..Decision::of(Verdict::Accept { action, legs }) }
    }

    /// What replaces the recipient, by the first rule that does, and whether it is an alias of ours, which nobody could know
    /// before the recipient was there.
    fn destination(&self, subject: &Subject<'_>, applied: &[&Rule]) -> Result<(Option<Target>, bool), NoAddress> {
        let Some(then) = applied.iter().map(|rule| &rule.then).find(|then| then.goes_elsewhere()) else {
            return Ok((None, false));
        };
        match &then.rewrite {
            None => Ok((then.to.clone(), false)),
            Some(rewrite) => {
                let address = rewrite.apply(subject).ok_or(NoAddress)?;
                let is_circular = address != *subject.recipient && self.is_alias(&address);
                Ok((Some(Target::of(address)), is_circular))
            }
        }
    }

    /// At least one leg: what nobody sends elsewhere goes to the recipient itself, so that even a discarded message
    /// has a row that says so.
    fn legs(&self, subject: &Subject<'_>, domain: &OurDomain, applied: &[&Rule], to: Option<Target>) -> Vec<LegPlan> {
        let thens = || applied.iter().map(|rule| &rule.then);
        let route = thens().find_map(|then| then.route.as_deref());
        let on_spam = thens().find_map(|then| then.on_spam);
        let bounces = thens().find_map(|then| then.bounces);
        let copies: Vec<LegPlan> = thens()
            .flat_map(|then| &then.also)
            .map(|target| {
                let on_spam = target.on_spam.unwrap_or(OnSpam::Omit);
                // The sender wrote to one address: that a copy of ours failed is no news for him.
                let bounces = Some(Bounces::Admin);
                self.leg(target, LegKind::Also, target.route.as_deref(), on_spam, bounces)
            })
            .collect();
        let main = if let Some(target) = to {
            let on_spam = target.on_spam.or(on_spam).unwrap_or(OnSpam::Quarantine);
            let mut leg = self.leg(&target, LegKind::To, target.route.as_deref().or(route), on_spam, bounces);
            thens().for_each(|then| leg.detours = leg.detours.or(&then.detours));
            leg.onboarding_until = thens().find_map(|then| then.onboarding_until);
            Some(leg)
        } else if let Some(target) = domain.role.as_ref().filter(|_| is_role(subject, domain)) {
            // Also where a rule ended the search without a word about where to: a role address is never left out.
            Some(self.leg(target, LegKind::Role, target.route.as_deref(), OnSpam::Deliver, None))
        } else if let Some(target) = self.parked(subject, domain).filter(|_| route.is_none() && copies.is_empty()) {
            let on_spam = target.on_spam.or(on_spam).unwrap_or(OnSpam::Quarantine);
            Some(self.leg(target, LegKind::To, target.route.as_deref(), on_spam, bounces))
        } else {
            // Nothing replaced the recipient: it goes on as it is where it has a place to go.
            let route = route.or(domain.mailboxes.as_deref());
            let itself = Target::of(subject.recipient.clone());
            let on_spam = on_spam.unwrap_or(OnSpam::Quarantine);
            (route.is_some() || copies.is_empty()).then(|| self.leg(&itself, LegKind::Mailbox, route, on_spam, bounces))
        };
        let mut legs: Vec<LegPlan> = Vec::with_capacity(copies.len() + 1);
        for leg in main.into_iter().chain(copies) {
            // Two rules that send to the same target mean one mail there, and `to` stands first.
            if !legs.iter().any(|other| other.target == leg.target && other.route == leg.route) {
                legs.push(leg);
            }
        }
        legs
    }

    /// Where a message goes if it is released that a rule quarantined, held or discarded without saying where to: its
    /// alias's or catch-all's target, as if that rule had not been. Nothing else of them applies.
    fn parked<'r>(&'r self, subject: &Subject<'_>, domain: &'r OurDomain) -> Option<&'r Target> {
        self.alias(subject, domain.plus_strip).or(domain.catch_all.as_ref())?.then.to.as_ref()
    }

    /// The leg to the role address of a domain of ours, for what the administrator is told.
    #[must_use]
    pub fn role(&self, domain: &Domain) -> Option<LegPlan> {
        let target = self.domain(domain)?.role.as_ref()?;
        Some(self.leg(target, LegKind::Role, target.route.as_deref(), OnSpam::Deliver, None))
    }

    /// The leg to a `[target]`'s name or to an address that an operator gives, by the route that it has without a rule.
    /// The error says what is wrong with it.
    pub fn leg_to(&self, name_or_address: &str) -> Result<LegPlan, String> {
        let target = match self.targets.get(name_or_address) {
            Some(target) => target.clone(),
            None => {
                let address = Mailbox::parse(name_or_address);
                Target::of(address.map_err(|error| format!("`{name_or_address}` is no target: {error}"))?)
            }
        };
        if self.is_alias(&target.address) {
            let address = &target.address;
            return Err(format!("`{address}` is an alias of ours; targets are final: name the alias's own target"));
        }
        Ok(self.leg(&target, LegKind::To, target.route.as_deref(), OnSpam::Quarantine, None))
    }

    /// `route` and `bounces` are what the target, or for `to` the rule, says; the target's own `bounces` wins.
    fn leg(
        &self,
        target: &Target,
        kind: LegKind,
        route: Option<&str>,
        on_spam: OnSpam,
        bounces: Option<Bounces>,
    ) -> LegPlan {
        LegPlan {
            target: target.address.clone(),
            target_name: target.name.clone(),
            route: self.route_of(target, route).to_owned(),
            kind,
            on_spam,
            bounces: target.bounces.or(bounces).unwrap_or(Bounces::Sender),
            detours: target.detours.clone(),
            onboarding_until: None,
        }
    }
}

/// What the `[domain]` makes of a recipient that no rule and no alias ended the search for.
#[derive(Clone, Copy)]
enum Fallback<'r> {
    Role,
    /// The recipient unchanged, by the domain's route.
    Mailboxes,
    CatchAll(&'r Rule),
    Nothing,
}

/// A rule makes no address of this recipient.
struct NoAddress;

fn refuse(reply: reply::Reply, rules: Vec<String>) -> Decision {
    Decision { rules, ..Decision::of(Verdict::Reject(Refusal::new(reply))) }
}

fn is_role(subject: &Subject<'_>, domain: &OurDomain) -> bool {
    subject.keys(domain.plus_strip).any(|key| {
        let local = key.rsplit_once('@').map_or("", |(local, _)| local);
        // RFC 5321 §4.5.1 and RFC 2142 §4.
        local == "postmaster" || local == "abuse"
    })
}
