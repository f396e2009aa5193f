//! The commands that steer the daemon, and the book of those that did: pause, resume, drain, audit.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::ask::{List, ask_daemon, daemon, not_running};
use super::{Ended, Output};
use crate::admin::audit::AuditSelect;
use crate::admin::control::{Line, Request};

#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    #[arg(long)]
    route: String,
    /// It goes on by itself after so long: 30m, 2h
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    #[arg(long)]
    route: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// The address to write to
    alias: String,
    /// Deliver it: a case is opened
    #[arg(long)]
    to_crm: bool,
    /// The envelope's sender; postmaster of the alias's domain otherwise
    #[arg(long, value_name = "S")]
    sender: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Which commands. All that is given must hold.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// A user's name or number
    #[arg(long)]
    user: Option<String>,
    /// A command, or its first words: "queue", "queue drop"
    #[arg(long)]
    action: Option<String>,
    /// An instant, or how long ago: 2026-11-21T20:00:00Z, 2h
    #[arg(long, value_name = "T")]
    since: Option<String>,
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// At the most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn pause(config: &Path, args: &PauseArgs) -> anyhow::Result<Ended> {
    let request = Request::Pause { route: args.route.clone(), duration: args.duration.clone() };
    tell(config, &request, args.output, "")
}

pub(super) fn resume(config: &Path, args: &ResumeArgs) -> anyhow::Result<Ended> {
    tell(config, &Request::Resume { route: args.route.clone() }, args.output, "")
}

pub(super) fn audit(config: &Path, args: &AuditArgs) -> anyhow::Result<Ended> {
    let AuditArgs { user, action, since, until, limit, output } = args;
    let select = AuditSelect {
        user: user.clone(),
        action: action.clone(),
        since: since.clone(),
        until: until.clone(),
        limit: *limit,
    };
    tell(config, &Request::Audit { select }, *output, "nothing found")
}

/// Asks, and prints the answer; `nothing` where there is none.
pub(super) fn tell(config: &Path, request: &Request, output: Output, nothing: &str) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    let mut list = List::new(output.json, usize::MAX);
    ask_daemon(&socket, request, &mut |line| list.take(line))?;
    list.end(nothing);
    Ok(Ended::Done)
}

/// Prints what happens as it happens. Findings where the probe did not come through.
pub(super) fn probe(config: &Path, args: &ProbeArgs) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    let ProbeArgs { alias, to_crm, sender, output } = args;
    let request = Request::Probe { alias: alias.clone(), sender: sender.clone(), to_crm: *to_crm };
    follow(&socket, &request, *output)
}

/// Prints each line as it comes; the last one's `ok` says how it ended.
pub(super) fn follow(socket: &Path, request: &Request, output: Output) -> anyhow::Result<Ended> {
    let mut ok = false;
    let mut list = List::new(output.json, 0);
    ask_daemon(socket, request, &mut |line| {
        if let Line::Told { object, text } = &line {
            ok = object["ok"] == true;
            if !output.json {
                print!("{text}");
                // Who reads no more of it does not need it.
                let _ = std::io::stdout().flush();
            }
        }
        if output.json {
            list.take(line);
        }
    })?;
    Ok(if ok { Ended::Done } else { Ended::Findings })
}

/// Follows the drain until the daemon has ended. Who stops following does not stop the drain.
pub(super) fn drain(config: &Path, output: Output) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    let mut list = List::new(output.json, 0);
    let in_place = std::io::stdout().is_terminal();
    let mut done = false;
    let followed = ask_daemon(&socket, &Request::Drain, &mut |line| {
        if let Line::Told { object, text } = &line {
            done = object["done"] == true;
            if !output.json {
                match in_place {
                    true => print!("\r\u{1b}[K{}", text.trim_end()),
                    false => print!("{text}"),
                }
                // Who reads no more of it does not need it.
                let _ = std::io::stdout().flush();
            }
        }
        if output.json {
            list.take(line);
        }
    });
    if in_place && !output.json {
        println!();
    }
    // With its last leg gone the daemon may be gone before it has said so.
    if !done {
        followed?;
    }
    for _ in 0..GONE_LOOKS {
        if daemon(config)?.is_none() {
            if !output.json {
                println!("the daemon has ended");
            }
            return Ok(Ended::Done);
        }
        std::thread::sleep(GONE_LOOK);
    }
    anyhow::bail!("all is delivered, and the daemon has not ended: see its log")
}

const GONE_LOOK: Duration = Duration::from_millis(100);
/// Longer than the daemon gives itself, three seconds.
const GONE_LOOKS: usize = 100;
