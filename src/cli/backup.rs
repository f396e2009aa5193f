//! `backup` and `restore`: the queue with its bodies, and the configuration that it is served by.
//!
//! The copy is made here, by whoever asks, because the daemon may write nowhere but into its data directory; it only keeps
//! the bodies meanwhile. A restored queue goes on where the copy was: what was delivered since is delivered again, what
//! came since is not there. Both commands say so.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::ask::{daemon, data_dir};
use super::bar::Bar;
use super::{Ended, Output};
use crate::admin::control::Request;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::queue::sqlite::backup::{self, Held, Progress};

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// Made, or empty
    dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// What `backup` made
    dir: PathBuf,
    /// Only read the backup, whole, and say what is in it
    #[arg(long)]
    verify: bool,
    /// Let the legs wait for an operator instead of delivering them
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    output: Output,
}

/// Copies, and reads the copy whole.
pub(super) fn backup(config: &Path, args: &BackupArgs) -> anyhow::Result<Ended> {
    let data = data_dir(config)?;
    if fs::read_dir(&args.dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("`{}` is not empty", args.dir.display());
    }
    // Without a daemon nobody unlinks anything.
    let _kept = daemon(config)?.map(|socket| keep_bodies(&socket)).transpose()?;
    let mut bar = Bar::new(args.output);
    let copied = backup::copy(&data, &args.dir.join(DATA), &mut |progress| show(&mut bar, progress));
    let verified = copied.and_then(|()| backup::verify(&args.dir.join(DATA), &mut |progress| show(&mut bar, progress)));
    bar.end();
    let held = verified.context("the backup failed, and is worth nothing")?;
    let files = copy_configuration(config, &data, &args.dir)?;
    let manifest = json!({
        "pointsman": env!("CARGO_PKG_VERSION"),
        "at": SystemClock::new().now().to_string(),
        "messages": held.messages, "legs": held.legs, "open": held.open, "bodies": held.bodies,
        "configuration": files.iter().map(|(to, from)| json!({ "copy": to, "of": from })).collect::<Vec<_>>(),
    });
    let path = args.dir.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    match args.output.json {
        true => println!("{manifest}"),
        false => {
            print!("{}", told(&held));
            println!("and {} files of the configuration, in `{}`", files.len(), args.dir.display());
            println!("it holds mail, keys and intake addresses: keep it as you keep those");
        }
    }
    Ok(Ended::Done)
}

/// Refuses a data directory in which anything is.
pub(super) fn restore(config: &Path, args: &RestoreArgs) -> anyhow::Result<Ended> {
    let from = args.dir.join(DATA);
    let mut bar = Bar::new(args.output);
    let held = backup::verify(&from, &mut |progress| show(&mut bar, progress));
    bar.end();
    let held = held.with_context(|| format!("`{}` cannot be restored", args.dir.display()))?;
    if args.verify {
        return Ok(say(args.output, &held, "sound"));
    }
    if daemon(config)?.is_some() {
        bail!("the daemon runs: stop it, and move its data directory away");
    }
    let data = data_dir(config)?;
    let copied = backup::copy(&from, &data, &mut |progress| show(&mut bar, progress));
    bar.end();
    copied.with_context(|| format!("cannot restore into `{}`: it must be empty or not there", data.display()))?;
    let accepted = args.dir.join(ACCEPTED);
    if accepted.exists() {
        copy_folder(&accepted, &data.join(ACCEPTED))?;
    }
    if args.hold {
        let legs = backup::hold_all(&data, SystemClock::new().now())?;
        eprintln!("pointsman: {legs} legs are held: `queue list --state held`, `queue release`");
    }
    give_to_owner(&data)?;
    let ended = say(args.output, &held, "restored");
    if !args.output.json && !args.hold && held.open > 0 {
        println!(
            "a start delivers the {} open legs: those that were delivered after the backup arrive twice; --hold lets \
             you look first",
            held.open
        );
    }
    if !args.output.json {
        println!("mail that came after the backup is not in it");
        println!("copies of the configuration are in `{}`", args.dir.join(CONFIGURATION).display());
    }
    Ok(ended)
}

fn show(bar: &mut Bar, Progress { part, done, total }: Progress) {
    bar.show(part, done, total);
}

fn say(output: Output, held: &Held, word: &str) -> Ended {
    let Held { messages, legs, open, bodies } = held;
    match output.json {
        true => println!(
            "{}",
            json!({ "result": word, "messages": messages, "legs": legs, "open": open, "bodies": bodies })
        ),
        false => print!("{word}: {}", told(held)),
    }
    Ended::Done
}

fn told(held: &Held) -> String {
    let Held { messages, legs, open, bodies } = held;
    format!("{messages} messages with {legs} legs, {open} of them open, and {bodies} body files, all read and sound\n")
}

/// The daemon unlinks no body until the stream is closed.
fn keep_bodies(socket: &Path) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).context("the daemon is gone")?;
    writeln!(stream, "{}", serde_json::to_string(&Request::KeepBodies)?).context("cannot ask the daemon")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).context("the daemon does not answer")?;
    if !line.contains("\"kept\":true") {
        bail!("the daemon cannot keep the bodies: {}", line.trim());
    }
    Ok(stream)
}

/// The files on disk that the configuration is made of, and the set that the daemon accepted last. Copies and originals.
fn copy_configuration(config: &Path, data: &Path, dir: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let accepted = data.join(ACCEPTED);
    if accepted.exists() {
        copy_folder(&accepted, &dir.join(ACCEPTED))?;
    }
    let mut files = vec![config.to_owned()];
    // A configuration with errors is copied as far as it is known, which is its main file.
    if let Ok((config, _)) = Config::load(config) {
        let named = config
            .rules
            .target_files()
            .map(|(name, place)| Path::new(&place.source.path).parent().unwrap_or(Path::new("")).join(name));
        files.extend(config.rule_files.iter().cloned().chain(named));
        files.extend(config.admin.iter().map(|admin| admin.token_file.clone()));
        files.extend(config.tls.iter().flat_map(|tls| [tls.certificate.clone(), tls.key.clone()]));
        files.extend(config.dkim.iter().map(|dkim| dkim.key.path().to_owned()));
        files.extend(config.secret_files);
    }
    files.sort();
    files.dedup();
    let mut copied = Vec::new();
    for (n, from) in (1..).zip(files.iter().filter(|file| file.is_file())) {
        let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = format!("{CONFIGURATION}/{n:03}-{name}");
        backup::copy_file(from, &dir.join(&copy))?;
        copied.push((copy, from.display().to_string()));
    }
    Ok(copied)
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &to)?,
            false => backup::copy_file(&entry.path(), &to)?,
        }
    }
    Ok(())
}

/// Whoever restores as root must not leave files that the daemon's user cannot open: they become the owner's of the
/// folder around the data directory's place, or of the directory where it was there.
fn give_to_owner(data: &Path) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(data).with_context(|| format!("cannot look at `{}`", data.display()))?;
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            std::os::unix::fs::chown(entry.path(), Some(owner.uid()), Some(owner.gid()))?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    if owner.uid() == 0 {
        eprintln!("pointsman: `{}` belongs to root: give it to the daemon's user (chown -R)", data.display());
    }
    Ok(())
}

const DATA: &str = "data";
const CONFIGURATION: &str = "configuration";
/// Sets of a configuration that were accepted, under `data`.
const ACCEPTED: &str = "accepted";
const MANIFEST: &str = "backup.json";
