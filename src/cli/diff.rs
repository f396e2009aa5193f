//! `diff`: what other rules would have made of the mail that came.
//!
//! It reads the ledger on the disk, beside a running daemon or without one, and changes nothing. Both rule sets are read
//! from files; that a running daemon may have others in force is said.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::ask::data_dir;
use super::bar::Bar;
use super::{Ended, Output};
use crate::admin::view::parse_time;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Config;
use crate::queue::sqlite::{OpenError, SqliteStore};
use crate::reload::start;
use crate::replay::{Change, Ground, Replay, Replayed, Secrets};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The other rules: files, or a path with `*` in its last part
    #[arg(long, value_name = "FILES", required = true, num_args = 1..)]
    rules: Vec<String>,
    /// Mail that came since then: how long ago, or an instant
    #[arg(long, value_name = "T", default_value = "7d")]
    since: String,
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// Show targets' addresses
    #[arg(long)]
    reveal: bool,
    #[command(flatten)]
    output: Output,
}

/// Ends with findings where something changes.
pub(super) fn run(config: &Path, args: &DiffArgs) -> anyhow::Result<Ended> {
    let now = SystemClock::new().now();
    let until = args.until.as_deref().map_or(Ok(now), |word| parse_time(word, now));
    let (since, until) = match (parse_time(&args.since, now), until) {
        (Ok(since), Ok(until)) => (since, until),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("pointsman: {error}");
            return Ok(Ended::Usage);
        }
    };
    // Files are named from where the administrator stands, not from where the configuration does.
    let patterns: Result<Vec<String>, std::io::Error> = args
        .rules
        .iter()
        .map(|pattern| std::path::absolute(pattern).map(|path| path.to_string_lossy().into_owned()))
        .collect();
    let loaded =
        (Config::load(config), Config::load_with_rules(config, &patterns.context("cannot tell where we are")?));
    let (old, new) = match loaded {
        (Ok((old, _)), Ok((new, _))) => (old, new),
        (Err(report), _) | (_, Err(report)) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            return Ok(Ended::Findings);
        }
    };
    if new.rule_files.is_empty() {
        bail!("no rules file matches `{}`", args.rules.join("`, `"));
    }
    if let Some(instead) = start::instead(config, Some(&old.prints.whole), 0) {
        eprintln!("pointsman: {instead}");
    }
    let done = replay(&data_dir(config)?, (&old, &new), (since, until), args)?;
    let same = done.changed == 0;
    if args.output.json {
        print_json(&done, &old, &new, (since, until))
    } else {
        print_text(&done, &old, &new, since)
    }?;
    Ok(if same { Ended::Done } else { Ended::Findings })
}

fn replay(
    data: &Path,
    (old, new): (&Config, &Config),
    (since, until): (Timestamp, Timestamp),
    args: &DiffArgs,
) -> anyhow::Result<Replayed> {
    let mut replay = Replay::new(Ground {
        old: &old.rules,
        new: &new.rules,
        bands: old.spam.as_ref().map(|spam| spam.bands),
        checks: old.auth.is_some(),
        returns: old.srs.as_ref().map(|srs| srs.domain()),
        secrets: if args.reveal { Secrets::Shown } else { Secrets::Masked },
    });
    let store = match SqliteStore::open_read_only(data) {
        Ok(store) => store,
        Err(OpenError::Missing { path }) => bail!("there is no queue in `{}` yet", path.display()),
        Err(error) => return Err(error.into()),
    };
    let mut bar = Bar::new(args.output);
    if let Some((first, last)) = store.recorded_bounds(since, until)? {
        // Ids hold their time, so that nobody has to count the messages first.
        let way = |from: i64| u64::try_from(from - first.0).unwrap_or(0) >> ID_BITS_OF_A_SECOND;
        let mut next = Some(first);
        while let Some(from) = next {
            bar.show("replaying", way(from.0), way(last.0));
            next = store.recorded((from, last), &mut |message| replay.take(&message))?;
        }
    }
    bar.end();
    Ok(replay.finish())
}

fn print_text(done: &Replayed, old: &Config, new: &Config, since: Timestamp) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut alias = "";
    for change in done.changes.iter().take(CHANGES_SHOWN) {
        let Change { recipient, was, becomes, count, examples } = change;
        if alias != recipient {
            writeln!(out, "{recipient}")?;
            alias = recipient;
        }
        writeln!(out, "  {count:>9}  {was}\n             -> {becomes}")?;
        let examples: Vec<String> = examples.iter().map(ToString::to_string).collect();
        writeln!(out, "             such as {}", examples.join(", "))?;
    }
    if done.changes.len() > CHANGES_SHOWN {
        writeln!(out, "… and more; --json has them all")?;
    }
    if done.beyond > 0 {
        writeln!(out, "{} further changes of other kinds", done.beyond)?;
    }
    for unanswered in done.unanswered.iter().take(UNANSWERED_SHOWN) {
        writeln!(out, "not decided: `{}` asks for {}, which was not recorded", unanswered.rule, unanswered.condition)?;
    }
    let (old, new) = (old.rules.short_hash(), new.rules.short_hash());
    writeln!(out, "rule set {old} -> {new}, {} messages since {since}", done.messages)?;
    let same = done.recipients - done.changed - done.undecided;
    write!(
        out,
        "{} recipients: {} change, {same} do not, {} cannot be decided",
        done.recipients, done.changed, done.undecided
    )?;
    if done.settings > 0 {
        write!(out, "; {} have other settings that made no difference", done.settings)?;
    }
    if done.unread > 0 {
        write!(out, "; {} messages have no facts that can be read", done.unread)?;
    }
    writeln!(out)
}

fn print_json(
    done: &Replayed,
    old: &Config,
    new: &Config,
    (since, until): (Timestamp, Timestamp),
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for Change { recipient, was, becomes, count, examples } in &done.changes {
        let examples: Vec<String> = examples.iter().map(ToString::to_string).collect();
        let line = json!({
            "recipient": recipient, "was": was, "becomes": becomes, "count": count, "examples": examples,
        });
        writeln!(out, "{line}")?;
    }
    let asked = done.unanswered.iter();
    let asked = asked.map(|asked| json!({ "rule": asked.rule, "condition": asked.condition, "count": asked.count }));
    let summary = json!({
        "summary": true,
        "old": old.rules.hash(), "new": new.rules.hash(),
        "since": since.to_string(), "until": until.to_string(),
        "messages": done.messages, "recipients": done.recipients,
        "changed": done.changed, "undecided": done.undecided, "settings": done.settings,
        "unread": done.unread, "beyond": done.beyond,
        "not_recorded": asked.collect::<Vec<_>>(),
    });
    writeln!(out, "{summary}")
}

/// A table of which nobody reads more.
const CHANGES_SHOWN: usize = 200;
const UNANSWERED_SHOWN: usize = 10;
/// An id counts milliseconds above its twentieth bit.
const ID_BITS_OF_A_SECOND: u32 = 30;
