//! `trace --evidence`: one message as text to hand over, to a sender's postmaster, an auditor or a court.
//!
//! Everything that is known and nothing that is guessed: what came and from where, what was checked, which rules were
//! considered, and for each leg every attempt with the next hop's reply in its own words. Intake addresses are masked, also
//! where a reply names them, unless they are asked for: whoever knows one can open cases past us. The body is not in it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::address::{Mailbox, ReversePath};
use crate::admin::replan::{self, RecordedEnvelope};
use crate::admin::view::{ActionView, AttemptView, LegView, MessageView};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::events::{masked, quoted};
use crate::rules::{Consideration, Fact, Facts, RuleSet};
use crate::scrub::scrub;

/// Whether intake addresses are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    Masked,
    Shown,
}

/// The text. `config` may be broken: then the rules are named and not explained.
pub(super) fn render(message: &MessageView, config: &Path, secrets: Secrets, now: Timestamp) -> String {
    let mut out = String::new();
    let config = Config::load(config).ok().map(|(config, _)| config);
    let host = config.as_ref().map_or("", |config| config.hostname.as_str());
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(out, "Evidence of message {}", message.message);
    let _ = writeln!(out, "written {now} by Pointsman {version} on {host}; all times are UTC\n");
    reception(&mut out, message);
    rules(&mut out, message, config.as_ref().map(|config| &*config.rules));
    for leg in &message.legs {
        tell_leg(&mut out, message, leg, secrets);
    }
    if secrets == Secrets::Masked {
        out.push_str("Addresses of targets are secrets and masked, here and in what hosts replied.\n");
    }
    out.push_str("The message's body is not part of this text.\n");
    out
}

fn reception(out: &mut String, message: &MessageView) {
    let MessageView { received, listener, client, helo, protocol, size, .. } = message;
    let recipients: BTreeSet<&str> = message.legs.iter().map(|leg| leg.recipient.as_str()).collect();
    let ptr = message.ptr.as_deref().unwrap_or("no confirmed name");
    let _ = writeln!(out, "What came");
    let _ = writeln!(out, "  accepted    {received}, {size} octets, answered 250 2.0.0 queued as {}", message.message);
    let _ = writeln!(
        out,
        "  from        {client} ({}), as {:?} by {protocol}, at listener {listener}",
        quoted(ptr),
        quoted(helo).to_string()
    );
    let _ = writeln!(out, "  MAIL FROM   <{}>", quoted(&message.sender));
    for recipient in recipients {
        let _ = writeln!(out, "  RCPT TO     <{}>", quoted(recipient));
    }
    let _ = writeln!(out, "  From        {}", quoted(&message.from));
    let _ = writeln!(out, "  Subject     {}", quoted(&message.subject));
    let _ = writeln!(out, "  Message-ID  {}", quoted(&message.message_id));
    if let Some(cause) = &message.cause {
        let _ = writeln!(out, "  caused by   leg {cause}: it is a notification of ours");
    }
    let _ = writeln!(out, "\nWhat was checked");
    match super::render::checks(message) {
        Some(results) => results.split(' ').for_each(|result| {
            let _ = writeln!(out, "  {}", result.replace('=', "  "));
        }),
        None => out.push_str("  nothing: no check was asked for, or the message is ours\n"),
    }
    if !message.header_added.is_empty() {
        let _ = writeln!(out, "\nHeader fields that were added to every copy");
        message.header_added.lines().for_each(|line| {
            let _ = writeln!(out, "  {}", quoted(line.trim_end()));
        });
    }
    out.push('\n');
}

fn rules(out: &mut String, message: &MessageView, rules: Option<&RuleSet>) {
    let _ = writeln!(out, "Rules, of set {:.12}", message.rules_hash);
    match rules {
        Some(rules) if rules.hash() == message.rules_hash => considered(out, message, rules),
        Some(_) | None => {
            let _ = writeln!(out, "  the set in force now is another: only the rules that applied are known");
            for leg in &message.legs {
                let _ = writeln!(out, "  {}: {}", quoted(&leg.recipient), list(&leg.rules));
            }
        }
    }
    out.push('\n');
}

/// Every rule that was looked at, evaluated again on what was recorded: the same set and the same facts.
fn considered(out: &mut String, message: &MessageView, rules: &RuleSet) {
    let facts = message.facts.as_ref().map_or("{}", |facts| facts.get());
    let recorded: Value = serde_json::from_str(facts).unwrap_or_default();
    let Ok(sender) = ReversePath::parse(&message.sender) else { return };
    let recipients: BTreeSet<&str> = message.legs.iter().map(|leg| leg.recipient.as_str()).collect();
    for recipient in recipients.into_iter().filter_map(|text| Mailbox::parse(text).ok()) {
        let at = message.received.parse::<jiff::Timestamp>().map_or(Timestamp(0), |at| Timestamp(at.as_millisecond()));
        let envelope = RecordedEnvelope { client: &message.client, helo: &message.helo, protocol: &message.protocol };
        let reading = replan::recorded_reading(&recorded, rules.wanted());
        let explanation = rules.explain(&Facts {
            message: reading.as_ref().map_or(Fact::Unknown, Fact::Known),
            ..replan::recorded_facts(&recipient, &sender, at, &envelope, &recorded)
        });
        let _ = writeln!(out, "  for {}", quoted(recipient.as_str()));
        for rule in &explanation.considered {
            let what = match &rule.result {
                Consideration::Applied { ended_the_search: true } => "applied, and ended the search".to_owned(),
                Consideration::Applied { ended_the_search: false } => "applied".to_owned(),
                Consideration::Failed { condition, saw } => format!("not: {condition}, and it was {saw}"),
                Consideration::Open { condition } => format!("not decided: {condition}"),
                Consideration::Idle { why } => format!("not in force: {why}"),
                Consideration::Shadow { action } => format!("a shadow, would have applied: {action}"),
            };
            let _ = writeln!(out, "    {}: {}", quoted(&rule.rule), quoted(&what));
        }
        if explanation.considered.is_empty() {
            out.push_str("    none\n");
        }
    }
}

fn tell_leg(out: &mut String, message: &MessageView, leg: &LegView, secrets: Secrets) {
    let hide = |text: &str| match (secrets, Mailbox::parse(&leg.target)) {
        (Secrets::Masked, Ok(target)) => scrub(text, &target, &leg.recipient),
        (Secrets::Masked, Err(_)) | (Secrets::Shown, _) => quoted(text).to_string(),
    };
    let address = |text: &str| if secrets == Secrets::Shown { text.to_owned() } else { masked(text) };
    let name = leg.target_name.as_ref().map_or_else(String::new, |name| format!("{name} "));
    let _ = writeln!(out, "Copy {}", leg.id);
    let _ = writeln!(out, "  for         {}", quoted(&leg.recipient));
    let _ = writeln!(out, "  to          {}<{}> by route {}", quoted(&name), quoted(&address(&leg.target)), leg.route);
    for earlier in &leg.earlier_targets {
        let _ = writeln!(out, "  before      <{}>", quoted(&address(earlier)));
    }
    let _ = writeln!(out, "  by rules    {}", list(&leg.rules));
    let mut happened: Vec<(&str, String)> = Vec::new();
    for AttemptView { leg: of, number, started, took_ms, host, stage, result, reply } in &message.attempts {
        if *of == leg.id {
            let host = if host.is_empty() { "no host" } else { host };
            let what =
                format!("attempt {number} at {}, {took_ms} ms, {result} at {stage}: {}", quoted(host), hide(reply));
            happened.push((started, what));
        }
    }
    for ActionView { leg: of, at, actor, operation, .. } in &message.actions {
        if *of == leg.id {
            // What it says besides names targets.
            happened.push((at, format!("{operation} by {}", quoted(actor))));
        }
    }
    // RFC 3339 in one zone sorts as text.
    happened.sort_by_key(|(at, _)| *at);
    for (at, what) in happened {
        let _ = writeln!(out, "  {at}  {what}");
    }
    let end = leg.ended.as_deref().unwrap_or("still open");
    let _ = writeln!(out, "  => {} ({}), {end}", leg.state, leg.reason);
    if !leg.detail.is_empty() {
        let _ = writeln!(out, "     {}", hide(&leg.detail));
    }
    out.push('\n');
}

fn list(rules: &[String]) -> String {
    if rules.is_empty() { "none".to_owned() } else { quoted(&rules.join(", ")).to_string() }
}
