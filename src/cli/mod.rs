//! The command line: what an administrator types, and the exit code that comes back.
//!
//! `check`, `explain`, `diff` and `dns` read the configuration themselves, and `diff` the ledger. The others ask the
//! running daemon over its control socket; without a daemon, `queue list`, `queue show`, `quarantine list` and `trace`
//! read the queue from disk, and `rules history` what was accepted.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod bar;
mod ask;
mod check;
mod backup;
mod demo;
mod diff;
mod dns;
mod doctor;
mod erase;
mod evidence;
mod explain;
mod redeliver;
mod import;
mod reload;
mod render;
mod serve;
mod standin;
mod steer;

/// An inbound SMTP router for routing-only addresses.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, about, max_term_width = 100)]
struct Cli {
    /// The configuration file
    #[arg(long, global = true, value_name = "F", default_value = "/etc/pointsman/pointsman.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Serve,
    /// See it work: daemon, stand-in CRM and one message, all in this process
    Demo,
    /// Check configuration and rules, and run the rules' tests
    Check(check::CheckArgs),
    /// Show how the rules decide about a message, and why
    Explain(explain::ExplainArgs),
    /// Write rules out of other programs' settings
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// What other rules would have made of the mail that came
    Diff(diff::DiffArgs),
    /// Print the DNS records to publish
    Dns(Output),
    /// Look at legs and act on them
    #[command(subcommand)]
    Queue(ask::QueueCommand),
    /// Look at quarantined legs and decide about them
    #[command(subcommand)]
    Quarantine(ask::QuarantineCommand),
    /// What became of a message
    Trace(ask::TraceArgs),
    /// Take the files on the disk: checked, tested and put in force whole, or not at all
    Reload(reload::ReloadArgs),
    /// The configurations that were accepted
    #[command(subcommand)]
    Rules(reload::RulesCommand),
    /// How the daemon is doing
    Status(Output),
    /// Let the legs of a route wait; mail is accepted all the same
    Pause(steer::PauseArgs),
    /// Let the legs of a paused route go on
    Resume(steer::ResumeArgs),
    /// Send one real message through a listener, and follow it: to the CRM's answer to RCPT, or with --to-crm all the way
    Probe(steer::ProbeArgs),
    /// What is wrong, and what to do: ledger, disk, clock, certificate, DNS, and each route up to RCPT
    Doctor(Output),
    /// Copy the queue, its bodies and the configuration while the daemon runs
    Backup(backup::BackupArgs),
    /// Put a backup in the place of an empty data directory; the daemon must not run
    Restore(backup::RestoreArgs),
    /// Remove what is kept of a person or a message
    Erase(erase::EraseArgs),
    /// Send once more what a route delivered, from kept bodies: for a CRM that has lost it
    Redeliver(redeliver::RedeliverArgs),
    /// Take no more mail, deliver what there is, and end when nothing is left
    Drain(Output),
    /// Commands that acted: who gave them, when, and what came of it
    Audit(steer::AuditArgs),
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    /// Findings or errors.
    Findings,
    Usage,
    /// There is no daemon to ask.
    NotRunning,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> ExitCode {
        ExitCode::from(match ended {
            Ended::Done => 0,
            Ended::Findings => 1,
            Ended::Usage => 2,
            Ended::NotRunning => 3,
        })
    }
}

/// Reads the arguments, does what they say and returns the exit code. Prints every error itself.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let ended = match &cli.command {
        Command::Serve => serve::run(&cli.config),
        Command::Demo => demo::run(),
        Command::Check(args) => Ok(check::run(&cli.config, args)),
        Command::Explain(args) => explain::run(&cli.config, args),
        Command::Import(command) => import::run(command),
        Command::Diff(args) => diff::run(&cli.config, args),
        Command::Dns(output) => Ok(dns::run(&cli.config, *output)),
        Command::Queue(command) => ask::queue(&cli.config, command),
        Command::Quarantine(command) => ask::quarantine(&cli.config, command),
        Command::Trace(args) => ask::trace(&cli.config, args),
        Command::Reload(args) => reload::run(&cli.config, args),
        Command::Rules(command) => reload::rules(&cli.config, command),
        Command::Status(output) => ask::status(&cli.config, output.json),
        Command::Pause(args) => steer::pause(&cli.config, args),
        Command::Resume(args) => steer::resume(&cli.config, args),
        Command::Probe(args) => steer::probe(&cli.config, args),
        Command::Doctor(output) => doctor::run(&cli.config, *output),
        Command::Backup(args) => backup::backup(&cli.config, args),
        Command::Restore(args) => backup::restore(&cli.config, args),
        Command::Erase(args) => erase::run(&cli.config, args),
        Command::Redeliver(args) => redeliver::run(&cli.config, args),
        Command::Drain(output) => steer::drain(&cli.config, *output),
        Command::Audit(args) => steer::audit(&cli.config, args),
    };
    match ended {
        Ok(ended) => ended.into(),
        Err(error) => {
            // The one place that prints an error with its whole chain.
            eprintln!("pointsman: {error:#}");
            Ended::Findings.into()
        }
    }
}
