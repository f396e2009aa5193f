//! Answers as people and scripts read them.

use std::fmt::Write;

use crate::admin::configuration::{ConfigurationView, shown};
use crate::admin::control::Line;
use crate::admin::view::{ActionView, AttemptView, LegView, MessageView, RefusedView, StatusView};
use crate::events::{is_hidden, quoted};
use crate::spam::{Band, SpamReport};

/// A line of the answer as one JSON object. What a terminal would not show as it is stands there as `\u….`, which means
/// the same to whoever parses it.
pub(super) fn json(line: &Line) -> String {
    let object = match line {
        Line::Leg(leg) => serde_json::to_string(leg),
        Line::Message(message) => serde_json::to_string(message),
        Line::Refused(refused) => serde_json::to_string(refused),
        Line::Operated { leg, result, note } => serde_json::to_value(leg).and_then(|mut object| {
            object["result"] = serde_json::Value::String(result.clone());
            object["note"] = serde_json::Value::String(note.clone());
            serde_json::to_string(&object)
        }),
        Line::Status(status) => serde_json::to_string(status),
        Line::Told { object, .. } => serde_json::to_string(object),
        Line::Reload(reload) => serde_json::to_string(reload),
        Line::Accepted(entry) => serde_json::to_string(entry),
        Line::End(_) | Line::Error(_) => Ok(String::new()),
    };
    let object = object.expect("a view is JSON");
    let mut out = String::with_capacity(object.len());
    // Outside of strings JSON has no such character.
    for c in object.chars() {
        if is_hidden(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}");
            });
        } else {
            out.push(c);
        }
    }
    out
}

/// All lines as text: legs in a table, the rest one after the other.
pub(super) fn text(lines: &[Line]) -> String {
    let mut out = String::new();
    let table: Vec<[String; 7]> = lines.iter().filter_map(table_row).collect();
    if !table.is_empty() {
        out.push_str(&aligned(&table));
    }
    for line in lines {
        match line {
            Line::Leg(_) | Line::Operated { .. } | Line::End(_) | Line::Error(_) => {}
            // Their commands show them.
            Line::Reload(_) | Line::Accepted(_) => {}
            Line::Message(message) => {
                let _ = writeln!(out, "{}", journey(message));
            }
            Line::Refused(refused) => out.push_str(&refusal(refused)),
            Line::Status(status) => out.push_str(&state_of_daemon(status)),
            Line::Told { text, .. } => out.push_str(text),
        }
    }
    out
}

const UNMARKED: &str = ", and no header field says so: a signature that passes would break";

const HEADINGS: [&str; 7] = ["LEG", "STATE", "REASON", "RECIPIENT", "TARGET", "ROUTE", "NOTE"];

fn table_row(line: &Line) -> Option<[String; 7]> {
    let (leg, note) = match line {
        Line::Leg(leg) => (leg, note(leg)),
        Line::Operated { leg, result, note } if note.is_empty() => (leg, result.clone()),
        Line::Operated { leg, result, note } => (leg, format!("{result}: {note}")),
        Line::Message(_)
        | Line::Refused(_)
        | Line::Status(_)
        | Line::Told { .. }
        | Line::Reload(_)
        | Line::Accepted(_)
        | Line::End(_)
        | Line::Error(_) => return None,
    };
    let target = leg.target_name.clone().unwrap_or_else(|| leg.target.clone());
    Some([
        leg.id.clone(),
        leg.state.clone(),
        leg.reason.clone(),
        quoted(&leg.recipient).to_string(),
        quoted(&target).to_string(),
        leg.route.clone(),
        note,
    ])
}

/// What somebody who looks at the queue asks next: since when, how often, until when, why.
fn note(leg: &LegView) -> String {
    let mut parts = vec![format!("from <{}> {}", quoted(&leg.sender), leg.received)];
    if leg.attempts > 0 {
        parts.push(format!("{} attempts", leg.attempts));
    }
    if let Some(due) = &leg.due {
        parts.push(format!("due {due}"));
    }
    if let Some(paused) = &leg.paused {
        parts.push(format!("route paused {paused}"));
    }
    match (&leg.reply, leg.detail.is_empty()) {
        (Some(reply), _) if leg.state != "delivered" => parts.push(quoted(reply).to_string()),
        (_, false) => parts.push(quoted(&leg.detail).to_string()),
        (Some(_) | None, true) => {}
    }
    parts.join("; ")
}

fn aligned(rows: &[[String; 7]]) -> String {
    let mut widths = HEADINGS.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut write_row = |cells: [&str; 7]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    write_row(HEADINGS);
    for row in rows {
        write_row(row.each_ref().map(String::as_str));
    }
    out
}

/// A message's story, for somebody who asks «where is my mail?».
pub(super) fn journey(message: &MessageView) -> String {
    let mut out = String::new();
    let sender = if message.sender.is_empty() {
        "<> (the null sender)".to_owned()
    } else {
        format!("<{}>", quoted(&message.sender))
    };
    let peer = message
        .ptr
        .as_ref()
        .map_or_else(|| message.client.clone(), |ptr| format!("{} [{}]", quoted(ptr), message.client));
    let _ = writeln!(out, "message {}  {} octets  {}", message.message, message.size, quoted(&message.message_id));
    let _ = writeln!(out, "  subject   {}", quoted(&message.subject));
    let _ = writeln!(out, "  from      {}", quoted(&message.from));
    let _ = writeln!(out, "  {}  accepted from {sender} by {peer}", message.received);
    let _ =
        writeln!(out, "{:28}{} as \"{}\", listener {}", "", message.protocol, quoted(&message.helo), message.listener);
    if message.require_tls {
        let _ = writeln!(out, "{:28}sent with REQUIRETLS: it goes on over verified TLS only", "");
    }
    let _ = writeln!(out, "{:28}decided by rule set {:.12}", "", message.rules_hash);
    if let Some(checks) = checks(message) {
        let _ = writeln!(out, "{:28}checked: {checks}", "");
    }
    if let Some(spam) = spam(message) {
        let _ = writeln!(out, "{:28}spam {spam}", "");
    }
    if let Some(withheld) = withheld(message) {
        let _ = writeln!(out, "{:28}not added, since a signature says that they are absent: {withheld}", "");
    }
    for note in notes(message) {
        let _ = writeln!(out, "{:28}noted: {}", "", quoted(&note));
    }
    if let Some(cause) = &message.cause {
        let _ = writeln!(out, "{:28}caused by leg {cause}", "");
    }
    for leg in &message.legs {
        tell_leg(&mut out, message, leg);
    }
    out
}

/// What was found out about the sender, from the recorded facts; none where nothing was checked.
pub(super) fn checks(message: &MessageView) -> Option<String> {
    let facts: serde_json::Value = serde_json::from_str(message.facts.as_ref()?.get()).ok()?;
    let results = facts.get("auth")?.as_object()?;
    let told: Vec<String> = ["spf", "dkim", "dmarc", "arc", "ptr"]
        .iter()
        .filter_map(|check| Some(format!("{check}={}", results.get(*check)?.as_str()?)))
        .collect();
    (!told.is_empty()).then(|| told.join(" "))
}

/// What the targets' systems made of it.
pub(super) fn notes(message: &MessageView) -> Vec<String> {
    let facts = message.facts.as_ref().and_then(|facts| serde_json::from_str::<serde_json::Value>(facts.get()).ok());
    let notes = facts.as_ref().and_then(|facts| facts.get("notes")?.as_array());
    notes.into_iter().flatten().filter_map(|note| note.as_str().map(str::to_owned)).collect()
}

/// The score that it got, its band and what made it; none where no score was made.
fn spam(message: &MessageView) -> Option<String> {
    let facts: serde_json::Value = serde_json::from_str(message.facts.as_ref()?.get()).ok()?;
    let spam = facts.get("spam")?;
    let report = SpamReport::recorded(spam)?;
    let summary = quoted(&report.explanation()).to_string();
    let band = spam["band"].as_str().unwrap_or("?");
    let unmarked = if band != Band::Clean.as_str() && spam["may_mark"] == false { UNMARKED } else { "" };
    Some(format!("score {:.1} ({band}{unmarked}): {summary}", report.score))
}

/// The fields that we would have added, had a signature not covered their absence.
pub(super) fn withheld(message: &MessageView) -> Option<String> {
    let facts: serde_json::Value = serde_json::from_str(message.facts.as_ref()?.get()).ok()?;
    let names: Vec<&str> = facts.get("withheld")?.as_array()?.iter().filter_map(|name| name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn tell_leg(out: &mut String, message: &MessageView, leg: &LegView) {
    let name = leg.target_name.as_ref().map_or_else(String::new, |name| format!("{name} "));
    let rules = if leg.rules.is_empty() { "no rule".to_owned() } else { leg.rules.join(", ") };
    let (alias, target) = (quoted(&leg.recipient), quoted(&leg.target));
    let _ = writeln!(out, "  leg {}  {alias} -> {name}<{target}> by route {}", leg.id, leg.route);
    let _ = writeln!(out, "    rules   {rules}");
    for earlier in &leg.earlier_targets {
        let _ = writeln!(out, "    before  <{}>", quoted(earlier));
    }
    let mut happened: Vec<(&str, String)> = Vec::new();
    let attempts = message.attempts.iter().filter(|attempt| attempt.leg == leg.id);
    happened.extend(attempts.map(|attempt| (attempt.started.as_str(), tell_attempt(attempt))));
    let actions = message.actions.iter().filter(|action| action.leg == leg.id);
    happened.extend(actions.map(|action| (action.at.as_str(), tell_action(action))));
    // RFC 3339 in one zone sorts as text.
    happened.sort_by_key(|(at, _)| *at);
    for (at, what) in happened {
        let _ = writeln!(out, "    {at}  {what}");
    }
    let when = leg.ended.as_deref().map_or_else(String::new, |at| format!(" at {at}"));
    let _ = writeln!(out, "    => {} ({}){when}{}", leg.state, leg.reason, what_next(leg));
    if !leg.detail.is_empty() {
        let _ = writeln!(out, "       {}", quoted(&leg.detail));
    }
}

fn tell_attempt(attempt: &AttemptView) -> String {
    let AttemptView { number, host, stage, result, reply, took_ms, .. } = attempt;
    let host = if host.is_empty() { "no host" } else { host };
    format!("attempt {number}: {}, {result} at {stage} after {took_ms} ms: {}", quoted(host), quoted(reply))
}

fn tell_action(action: &ActionView) -> String {
    format!("{} by {}: {}", action.operation, action.actor, quoted(&action.detail))
}

fn what_next(leg: &LegView) -> String {
    match (leg.state.as_str(), &leg.due, leg.in_flight) {
        (_, _, true) if leg.ended.is_none() => "; an attempt is under way".to_owned(),
        (_, Some(_), _) if leg.paused.is_some() => {
            format!("; its route is paused {}", leg.paused.as_deref().unwrap_or_default())
        }
        (_, Some(due), _) if leg.ended.is_none() => format!("; next attempt {due}"),
        ("held" | "quarantined", None, _) => "; waits for an operator".to_owned(),
        (_, _, _) => match leg.dsn.as_deref() {
            Some("sent") => "; its sender was told".to_owned(),
            Some("admin") => "; the administrator was told".to_owned(),
            Some(_) => "; nobody was told".to_owned(),
            None => String::new(),
        },
    }
}

fn refusal(refused: &RefusedView) -> String {
    let RefusedView { at, client, helo, sender, recipient, reply, .. } = refused;
    let (helo, sender, recipient, reply) = (quoted(helo), quoted(sender), quoted(recipient), quoted(reply));
    format!("refused {at}  {client} ({helo}) from {sender} to <{recipient}>: {reply}\n")
}

fn configuration(view: &ConfigurationView) -> String {
    let mut out = format!("configuration {}, accepted {}\n", shown(&view.hash), view.since);
    if let Some(why) = &view.stale {
        let _ = writeln!(out, "NOT WHAT {} SAYS: {}", view.path, quoted(why));
    }
    if let Some(until) = &view.confirm_by {
        let _ = writeln!(out, "goes back at {until}, unless you say `pointsman rules confirm`");
    }
    if !view.waits_for_restart.is_empty() {
        let _ = writeln!(out, "wait for a restart: {}", view.waits_for_restart.join(", "));
    }
    out
}

fn state_of_daemon(status: &StatusView) -> String {
    let mut out = String::new();
    let ready = match &status.not_ready {
        _ if status.draining => "drains: takes no mail, and ends when nothing is left to deliver".to_owned(),
        None => "takes mail".to_owned(),
        Some(why) => format!("takes no mail: {why}"),
    };
    let _ = writeln!(out, "{} {}, up {} s, {ready}", status.hostname, status.version, status.uptime_seconds);
    let _ =
        writeln!(out, "listeners {}; admin {}", status.listeners.join(", "), status.admin.as_deref().unwrap_or("off"));
    let _ = writeln!(out, "rule set {}; {} sessions", status.rule_set, status.sessions);
    out.push_str(&configuration(&status.configuration));
    let _ = writeln!(
        out,
        "data in {}, {} MiB free, new mail down to {} MiB; process {}",
        status.data,
        status.data_free_bytes >> 20,
        status.min_free_bytes >> 20,
        status.pid
    );
    if let Some(expires) = &status.certificate_expires {
        let _ = writeln!(out, "certificate expires {expires}");
    }
    if status.open.is_empty() {
        out.push_str("no open legs\n");
    }
    for open in &status.open {
        let _ = writeln!(
            out,
            "route {}: {} {}, the oldest for {} s",
            open.route, open.legs, open.state, open.oldest_seconds
        );
    }
    for pause in &status.paused {
        let word = |key: &str| pause[key].as_str().unwrap_or("somebody resumes it").to_owned();
        let (route, since, until, by) = (word("route"), word("since"), word("until"), word("by"));
        let _ = writeln!(out, "route {route}: paused since {since} by {by}, until {until}");
    }
    for lane in &status.backing_off {
        let until = lane.until.as_deref().unwrap_or("a leg is due");
        let domain = lane.domain.as_ref().map_or(String::new(), |domain| format!(", domain {}", quoted(domain)));
        let _ = writeln!(out, "route {}{domain}: backs off until {until}, because {}", lane.route, quoted(&lane.why));
    }
    out
}
