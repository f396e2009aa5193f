//! `reload` and `rules`: another configuration for the running daemon, and what was accepted before.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Ended, Output, ask};
use crate::admin::configuration::{AcceptedView, ChangesView, NamesView, ReloadView, history, shown};
use crate::admin::control::{Line, Request};
use crate::reload::{CONFIRM_MAX, CONFIRM_MIN, start};
use crate::units;

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Go back by itself after so long (15m), unless `rules confirm` is said
    #[arg(long, value_name = "TIME", value_parser = confirm)]
    confirm: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
pub(super) enum RulesCommand {
    /// What was accepted, when and by whom; the newest first
    History(Output),
    /// Put an accepted set in force again
    Rollback {
        /// The beginning of its hash, or of its rule set's
        hash: String,
        #[command(flatten)]
        output: Output,
    },
    /// Keep what `reload --confirm` put in force
    Confirm(Output),
}

fn confirm(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        wait if wait < CONFIRM_MIN || wait > CONFIRM_MAX => Err("expected `1s` to `24h`".to_owned()),
        wait => Ok(wait),
    }
}

pub(super) fn run(config: &Path, args: &ReloadArgs) -> anyhow::Result<Ended> {
    let confirm_seconds = args.confirm.map(|wait| wait.as_secs());
    change(config, &Request::Reload { confirm_seconds, coloured: coloured(args.output) }, args.output)
}

pub(super) fn rules(config: &Path, command: &RulesCommand) -> anyhow::Result<Ended> {
    match command {
        RulesCommand::History(output) => tell_history(config, *output),
        RulesCommand::Rollback { hash, output } => {
            change(config, &Request::RollBack { hash: hash.clone(), coloured: coloured(*output) }, *output)
        }
        RulesCommand::Confirm(output) => change(config, &Request::Confirm, *output),
    }
}

fn coloured(output: Output) -> bool {
    !output.json && std::io::stdout().is_terminal()
}

/// Has the daemon change its configuration, and says what came of it.
fn change(config: &Path, request: &Request, output: Output) -> anyhow::Result<Ended> {
    let Some(socket) = ask::daemon(config)? else { return Ok(ask::not_running()) };
    let mut view: Option<ReloadView> = None;
    ask::ask_daemon(&socket, request, &mut |line| {
        if let Line::Reload(answer) = line {
            view = Some(*answer);
        }
    })?;
    let Some(view) = view else { anyhow::bail!("the daemon stops, and changes nothing any more") };
    if output.json {
        println!("{}", serde_json::to_string(&view)?);
    } else {
        print!("{}", text(&view));
    }
    Ok(if view.result == "refused" { Ended::Findings } else { Ended::Done })
}

fn tell_history(config: &Path, output: Output) -> anyhow::Result<Ended> {
    let mut entries = Vec::new();
    match ask::daemon(config)? {
        Some(socket) => ask::ask_daemon(&socket, &Request::History, &mut |line| {
            if let Line::Accepted(entry) = line {
                entries.push(entry);
            }
        })?,
        None => entries.extend(start::find(config).map(|(_, index)| history(&index.entries)).unwrap_or_default()),
    }
    if output.json {
        for entry in &entries {
            println!("{}", serde_json::to_string(entry)?);
        }
    } else if entries.is_empty() {
        println!("nothing was accepted yet");
    } else {
        print!("{}", table(&entries));
    }
    Ok(Ended::Done)
}

fn table(entries: &[AcceptedView]) -> String {
    let mut out = format!("  {:<12}  {:<12}  {:<24}  {:<20}  HOW\n", "HASH", "RULE SET", "ACCEPTED", "BY");
    for entry in entries {
        let AcceptedView { hash, rule_set, at, by, pid, how, current } = entry;
        let by = pid.map_or_else(|| by.clone(), |pid| format!("{by} (pid {pid})"));
        let mark = if *current { '*' } else { ' ' };
        let _ = writeln!(out, "{mark} {:<12}  {:<12}  {at:<24}  {by:<20}  {how}", shown(hash), shown(rule_set));
    }
    out
}

fn text(view: &ReloadView) -> String {
    let mut out = view.drawn.clone();
    let (hash, rule_set) = (shown(&view.hash), shown(&view.rule_set));
    match view.result.as_str() {
        "taken" => {
            let _ = writeln!(
                out,
                "configuration {} -> {hash}, rule set {} -> {rule_set}",
                shown(&view.hash_before),
                shown(&view.rule_set_before)
            );
            out.push_str(&changed(&view.changes));
        }
        "unchanged" => {
            let _ = writeln!(out, "configuration {hash}, rule set {rule_set}: in force, as it was");
        }
        _ => {
            let _ = writeln!(out, "nothing was changed: configuration {hash}, rule set {rule_set} stays in force");
        }
    }
    for note in &view.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

fn changed(changes: &ChangesView) -> String {
    let mut out = String::new();
    if !changes.sections.is_empty() {
        let _ = writeln!(out, "  changed  {}", changes.sections.join(", "));
    }
    for (kind, names) in [
        ("route", &changes.routes),
        ("domain", &changes.domains),
        ("target", &changes.targets),
        ("rule", &changes.rules),
        ("alias", &changes.aliases),
    ] {
        let NamesView { added, removed, changed } = names;
        for (word, names) in [("added", added), ("removed", removed), ("changed", changed)] {
            lines(&mut out, word, names.len(), names.iter().map(|name| format!("{kind} {name}")));
        }
    }
    let goes = |to: &[String]| if to.is_empty() { "nowhere".to_owned() } else { to.join(", ") };
    let retargeted = changes.retargeted.iter();
    let retargeted = retargeted.map(|moved| format!("{}: {} -> {}", moved.name, goes(&moved.from), goes(&moved.to)));
    lines(&mut out, "retargeted", changes.retargeted.len(), retargeted);
    if out.is_empty() {
        let NamesView { added, removed, changed } = &changes.files;
        let files: Vec<&str> = added.iter().chain(removed).chain(changed).map(String::as_str).collect();
        let _ = writeln!(out, "  nothing means anything else: comments, secrets or names in {}", files.join(", "));
    }
    out
}

fn lines(out: &mut String, word: &str, count: usize, names: impl Iterator<Item = String>) {
    for name in names.take(NAMES_SHOWN) {
        let _ = writeln!(out, "  {word}  {name}");
    }
    if count > NAMES_SHOWN {
        let _ = writeln!(out, "  {word}  … and {} more; --json has them all", count - NAMES_SHOWN);
    }
}

/// A screen of each kind.
const NAMES_SHOWN: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_is_waited_for_within_bounds() {
        for (text, ok) in [("1s", true), ("999ms", false), ("24h", true), ("86401s", false), ("soon", false)] {
            assert_eq!(confirm(text).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn names_end_at_their_limit() {
        let shown = |count: usize| {
            let mut out = String::new();
            lines(&mut out, "added", count, (0..count).map(|n| n.to_string()));
            out.lines().last().unwrap().to_owned()
        };
        assert_eq!(shown(NAMES_SHOWN), "  added  19");
        assert_eq!(shown(NAMES_SHOWN + 1), "  added  … and 1 more; --json has them all");
    }
}
