//! `import`: rules out of other programs' settings, on the standard output or in files that are not there yet.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Ended, Output};
use crate::address::{Domain, Mailbox};
use crate::import::{Imported, LeftOut, Options, gmail, postfix};

#[derive(Debug, Subcommand)]
pub(super) enum ImportCommand {
    /// Gmail's routing settings, copied into a table; docs/import.md has its columns
    Gmail {
        #[arg(value_name = "FILE.csv")]
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Postfix's virtual(5) table, and its transport(5) table for the routes
    Postfix {
        #[arg(value_name = "VIRTUAL")]
        table: PathBuf,
        transport: Option<PathBuf>,
        /// Postfix's myorigin: the domain of names that have none
        #[arg(long, value_name = "DOMAIN")]
        origin: Option<String>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
pub(super) struct How {
    /// A domain of ours that the files do not name; repeat it for several
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// Who reads postmaster@ and abuse@ where the files do not say
    #[arg(long, value_name = "ADDRESS")]
    role: Option<String>,
    /// The route to the mail host of our people, with `hosts` in pointsman.toml
    #[arg(long, value_name = "ROUTE")]
    mailboxes: Option<String>,
    /// Write files into this directory; none that is there is overwritten
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    format: Output,
}

/// Ends with findings where something was left out, or where nothing could be imported.
pub(super) fn run(command: &ImportCommand) -> anyhow::Result<Ended> {
    let (name, how) = match command {
        ImportCommand::Gmail { how, .. } => ("gmail", how),
        ImportCommand::Postfix { how, .. } => ("postfix", how),
    };
    let options = match options(command, how) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("pointsman: {error}");
            return Ok(Ended::Usage);
        }
    };
    let imported = match command {
        ImportCommand::Gmail { file, .. } => gmail::import(&read(file)?, &options),
        ImportCommand::Postfix { table, transport, .. } => {
            let transport = transport.as_deref().map(read).transpose()?;
            postfix::import(&read(table)?, transport.as_deref(), &options)
        }
    };
    let imported = match imported {
        Ok(imported) => imported,
        Err(mistakes) => {
            mistakes.iter().for_each(|mistake| eprintln!("pointsman: {mistake}"));
            return Ok(Ended::Findings);
        }
    };
    if let Some(dir) = &how.output {
        write(dir, name, &imported)?;
    }
    let whole = imported.left_out.is_empty();
    if how.format.json { print_json(&imported, how) } else { print_text(&imported, how) }?;
    Ok(if whole { Ended::Done } else { Ended::Findings })
}

fn options(command: &ImportCommand, how: &How) -> Result<Options, String> {
    let domain = |text: &String| match Domain::parse(text) {
        Ok(domain) if !domain.is_literal() => Ok(domain),
        Ok(_) | Err(_) => Err(format!("`{text}` is no domain")),
    };
    let origin = match command {
        ImportCommand::Gmail { .. } => None,
        ImportCommand::Postfix { origin, .. } => origin.as_ref().map(domain).transpose()?,
    };
    let role = |text: &String| Mailbox::parse(text).map_err(|error| format!("`{text}` is no address: {error}"));
    Ok(Options {
        domains: how.domain.iter().map(domain).collect::<Result<_, _>>()?,
        role: how.role.as_ref().map(role).transpose()?,
        mailboxes: how.mailboxes.clone(),
        origin,
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// All files or none: what is there already is looked for first.
fn write(dir: &Path, name: &str, imported: &Imported) -> anyhow::Result<()> {
    let mut files = vec![(dir.join(format!("{name}.toml")), &imported.rules)];
    if !imported.routes.is_empty() {
        // Not a `.toml`: it is no rules file, and this may be their directory.
        files.push((dir.join(format!("{name}.routes")), &imported.routes));
    }
    if let Some((there, _)) = files.iter().find(|(path, _)| path.exists()) {
        bail!("`{}` is there already", there.display());
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    for (path, text) in files {
        let file = fs::File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        file.with_context(|| format!("cannot write `{}`", path.display()))?;
        eprintln!("pointsman: wrote `{}`", path.display());
    }
    Ok(())
}

fn print_text(imported: &Imported, how: &How) -> std::io::Result<()> {
    if how.output.is_none() {
        std::io::stdout().lock().write_all(imported.rules.as_bytes())?;
    }
    for LeftOut { place, what, why } in &imported.left_out {
        eprintln!("not carried over: {place}: {what}: {why}");
    }
    let counts = imported.counts;
    eprintln!(
        "pointsman: {} domains, {} targets, {} rules, {} aliases, {} tests, {} routes; {} not carried over",
        counts.domains,
        counts.targets,
        counts.rules,
        counts.aliases,
        counts.tests,
        counts.routes,
        imported.left_out.len()
    );
    Ok(())
}

/// The texts stand in the summary unless files hold them.
fn print_json(imported: &Imported, how: &How) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for LeftOut { place, what, why } in &imported.left_out {
        writeln!(out, "{}", json!({ "place": place, "what": what, "why": why }))?;
    }
    let counts = imported.counts;
    let mut summary = json!({
        "summary": true, "left_out": imported.left_out.len(), "domains": counts.domains, "targets": counts.targets,
        "rules": counts.rules, "aliases": counts.aliases, "tests": counts.tests, "routes": counts.routes,
    });
    if how.output.is_none() {
        summary["rules_toml"] = json!(imported.rules);
        summary["routes_toml"] = json!(imported.routes);
    }
    writeln!(out, "{summary}")
}
