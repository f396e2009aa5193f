//! What the systems behind targets take, applied to a message that came in: what does not suit one goes elsewhere,
//! waits, or is refused while its sender can still be told.
//!
//! The values are the profiles' (`relay::profile`). Pace and ceilings are kept on the way out (`outbound::pace`). Nothing
//! here is done to mail for the mailboxes of people behind us.

use super::Ruling;
use super::checks::Checked;
use super::journey::Arrived;
use super::planned::Planned;
use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::events;
use crate::message::Header;
use crate::message::fields::{self, Machine};
use crate::queue::{NewLeg, Reason};
use crate::relay::profile::{AtRisk, Automatic, Profile, Terms};
use crate::reply::{Enhanced, Refusal, Reply};
use crate::rules::{Action, Decision, Handling, LegPlan, OnSpam, Verdict};

impl Ruling {
    /// What holds for a leg's target; `None` where its route is there no more.
    pub(super) fn terms(&self, leg: &LegPlan) -> Option<Terms> {
        self.routes.get(&leg.route).map(|route| route.terms(leg.target.domain()))
    }

    /// The leg goes to mailboxes of people behind us.
    pub(super) fn is_to_mailhost(&self, leg: &LegPlan) -> bool {
        self.terms(leg).is_some_and(|terms| terms.profile.is_mailhost())
    }

    /// Some route leads to mailboxes of people behind us.
    pub(super) fn has_mailhost(&self) -> bool {
        self.routes.values().any(|route| route.wishes.profile.is_some_and(Profile::is_mailhost))
    }

    /// How the leg's target is spared from spam.
    pub(super) fn handling(&self, leg: &LegPlan) -> Handling {
        match self.terms(leg).map(|terms| terms.profile) {
            Some(profile) if profile.is_mailhost() => Handling::MarkOnly,
            Some(profile) if profile.is_strict_on_spam() => Handling::Strict,
            Some(_) | None => Handling::Usual,
        }
    }

    /// A recipient's refusal where none of its legs' targets takes a message of `size` octets.
    pub(super) fn refuses_size<'l>(&self, size: u64, legs: impl Iterator<Item = &'l LegPlan>) -> Option<Refusal> {
        let mut most: Option<u64> = None;
        for leg in legs {
            let limit = self.terms(leg)?.message_size.value.filter(|limit| size > *limit)?;
            most = most.max(Some(limit));
        }
        most.map(|limit| {
            let text = format!("message too large, at most {limit} octets go to this address");
            Refusal::new(Reply::with_text(552, Enhanced(5, 3, 4), &text))
        })
    }

    /// Whether the leg's rule lets mail of the target's vendor pass for now, and this is such: a signature that passes
    /// and is aligned is the vendor's. Then nothing that is there against loops and spam stops it.
    pub(super) fn onboards(&self, leg: &LegPlan, checked: &Checked, now: Timestamp) -> bool {
        let vendors = || self.terms(leg).map_or(&[][..], |terms| terms.profile.vendors());
        leg.onboarding_until.is_some_and(|until| now < until) && checked.report().is_signed_by(vendors())
    }

    /// Has mail by which a vendor verifies an address pass, and shows it to the domain's administrator as well.
    pub(super) fn onboard(&self, decided: &mut [(Mailbox, Decision)], checked: &Checked, now: Timestamp) {
        for (alias, decision) in decided {
            let Verdict::Accept { action: Action::Relay, legs } = &mut decision.verdict else { continue };
            if !legs.iter().any(|leg| self.onboards(leg, checked, now)) {
                continue;
            }
            legs.extend(self.rules.role(alias.domain()));
            legs.iter_mut().for_each(|leg| leg.on_spam = OnSpam::Deliver);
            events::onboarding_mail(alias.as_str());
        }
    }

    /// Brings what was planned to what each target's system takes. What is worth knowing of it, for the ledger.
    pub(super) fn suit(
        &self,
        message: &Arrived<'_>,
        header: &Header,
        checked: &Checked,
        planned: &mut [Planned],
    ) -> Vec<String> {
        let nature = Nature::of(message, header, checked);
        let mut notes = Vec::new();
        for plan in planned.iter_mut().filter(|plan| plan.goes_out()) {
            let Some(terms) = self.terms(&plan.leg).filter(|terms| !terms.profile.is_mailhost()) else { continue };
            if self.onboards(&plan.leg, checked, message.at) {
                notes.push(format!("the vendor of {} wrote it, and `onboarding-until` lets it pass", terms.profile));
                continue;
            }
            self.suit_one(plan, &terms, &nature, &mut notes);
        }
        notes.sort_unstable();
        notes.dedup();
        notes
    }

    fn suit_one(&self, plan: &mut Planned, terms: &Terms, nature: &Nature<'_>, notes: &mut Vec<String>) {
        let profile = terms.profile;
        if let Some(field) = profile.own_answers().iter().find(|name| nature.has(name)) {
            return plan.discard(Reason::Automatic, &format!("{field}: {profile} wrote it itself"));
        }
        if profile.holds_mail_from_the_alias() && nature.is_from(&plan.alias) {
            return plan.hold(Reason::Loop, "From is the alias itself".to_owned(), None);
        }
        if let (Some(machine), Automatic::Suspended | Automatic::Dropped) = (nature.machine, terms.automatic.value) {
            let what =
                format!("{} says that a machine wrote it: {} there", machine.as_str(), terms.automatic.value.as_str());
            match plan.leg.detours.auto.clone().and_then(|auto| self.rules.leg_to(&auto).ok()) {
                Some(detour) => {
                    notes.push(format!("{what}, so it went to the `auto-target` instead of {profile}"));
                    plan.redirect(detour);
                }
                None => notes.push(format!("{what}, and there is no `auto-target`")),
            }
        }
        // The detour's own system may be another.
        let Some(terms) = self.terms(&plan.leg) else { return };
        if nature.is_at_risk {
            self.meet_risk(plan, &terms, notes);
        }
        self.measure(plan, &terms, nature, notes);
    }

    /// DMARC will fail at the target for certain.
    fn meet_risk(&self, plan: &mut Planned, terms: &Terms, notes: &mut Vec<String>) {
        plan.at_risk = Some(plan.leg.route.clone());
        let what = format!("DMARC will fail at {}: no aligned signature passes", terms.profile);
        match terms.at_risk.value {
            AtRisk::Relay => notes.push(what),
            AtRisk::Hold => plan.hold(Reason::Dmarc, what, None),
            AtRisk::Quarantine => plan.quarantine(Reason::Dmarc, &what),
            AtRisk::Fallback => {
                match plan.leg.detours.fallback.clone().and_then(|fallback| self.rules.leg_to(&fallback).ok()) {
                    Some(detour) => {
                        notes.push(format!("{what}, so it went to the `fallback-target`"));
                        plan.redirect(detour);
                    }
                    None => plan.quarantine(Reason::Dmarc, &format!("{what}, and there is no `fallback-target`")),
                }
            }
        }
    }

    fn measure(&self, plan: &mut Planned, terms: &Terms, nature: &Nature<'_>, notes: &mut Vec<String>) {
        let profile = terms.profile;
        if let Some(most) = profile.field_chars_max() {
            for name in ["To", "Cc", "Subject"] {
                let chars = nature.chars(name);
                if chars > most {
                    let what = format!("{name} has {chars} characters, and {profile} takes {most}");
                    return plan.quarantine(Reason::HeaderSize, &what);
                }
            }
        }
        if let Some(most) = profile.cc_max() {
            let count = nature.cc_count();
            if count > most {
                events::too_many_cc(&plan.leg.route, count, most);
                notes.push(format!("Cc names {count} addresses, and {profile} takes {most}"));
            }
        }
    }

    /// Why the copy must not go out as it would be sent: its header section is over what the target's system takes.
    /// `common` are the octets of the fields that all copies have, `head` those of the original.
    pub(super) fn header_too_large(&self, plan: &LegPlan, leg: &NewLeg, common: usize, head: usize) -> Option<String> {
        let terms = self.terms(plan)?;
        let limit = terms.header_size.value?;
        let cut: u64 = leg.cuts.iter().map(|range| range.end - range.start).sum();
        let octets = ((leg.prefix.len() + common + head) as u64).saturating_sub(cut);
        (octets > limit).then(|| {
            let own = leg.prefix.len() + common;
            format!("the header has {octets} octets, {own} of them ours, and {} takes {limit}", terms.profile)
        })
    }
}

/// What of a message the terms go by.
struct Nature<'a> {
    head: &'a [u8],
    header: &'a Header,
    machine: Option<Machine>,
    is_at_risk: bool,
}

impl<'a> Nature<'a> {
    fn of(message: &Arrived<'a>, header: &'a Header, checked: &Checked) -> Nature<'a> {
        let head = message.head.as_bytes();
        let machine = Machine::sign(head, header, message.envelope.sender == ReversePath::Null);
        Nature { head, header, machine, is_at_risk: checked.dmarc_at_risk() }
    }

    fn has(&self, name: &str) -> bool {
        self.header.fields.iter().any(|field| field.name == name)
    }

    fn is_from(&self, alias: &Mailbox) -> bool {
        fields::sender(self.head).and_then(|from| Mailbox::parse(&from).ok()).is_some_and(|from| from == *alias)
    }

    fn chars(&self, name: &str) -> usize {
        fields::chars(self.head, self.header, &name.to_ascii_lowercase())
    }

    fn cc_count(&self) -> usize {
        fields::cc_count(self.head)
    }
}
