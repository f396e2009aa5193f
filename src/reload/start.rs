//! Which configuration a start uses: the files on the disk, or what was accepted last where those are not to be taken.

use std::path::{Path, PathBuf};

use crate::actor::Actor;
use crate::clock::Timestamp;
use crate::config::{Config, Loaded, Origin};
use crate::diagnostic::{Report, Severity};

use super::accepted::{Accepted, Aside, Entry, Index};

/// What a start serves by.
pub struct Chosen {
    pub loaded: Loaded,
    /// What is wrong with the files on the disk, where they were refused.
    pub refused: Option<Report>,
    /// Why the files on the disk do not serve.
    pub stale: Option<String>,
    /// What of the accepted sets could not be used.
    pub troubles: Vec<String>,
    pub(super) accepted: Accepted,
    pub(super) index: Index,
    /// The index says something new.
    pub(super) is_news: bool,
}

/// Reads the files of the configuration at `path`, checks them and runs their tests; where they are not to be taken, reads
/// what was accepted before. The report is about the files on the disk, and nothing was ever accepted.
pub fn choose(path: &Path, now: Timestamp) -> Result<Chosen, Report> {
    let mut troubles = Vec::new();
    match Config::vet(path, Origin::Disk) {
        Ok(loaded) => {
            let chosen = by_disk(path, loaded, now, &mut troubles);
            Ok(Chosen { troubles, ..chosen })
        }
        Err(report) => match by_accepted(path, &report, now, &mut troubles) {
            Some(chosen) => Ok(Chosen { refused: Some(report), troubles, ..chosen }),
            None => Err(report),
        },
    }
}

fn by_disk(path: &Path, loaded: Loaded, now: Timestamp, troubles: &mut Vec<String>) -> Chosen {
    let accepted = Accepted::of(&loaded.config.data);
    let known = accepted.index().unwrap_or_else(|error| {
        troubles.push(format!("{error:#}"));
        None
    });
    let mut index = known.unwrap_or_default();
    index.config = absolute(path);
    let hash = loaded.config.prints.whole.clone();
    let current = index.current().map(|entry| entry.hash.clone());
    let unconfirmed = index.pending.clone().filter(|_| current.as_ref() == Some(&hash));
    let turned_away = match (&unconfirmed, &index.aside) {
        (Some(pending), _) => {
            let why = "they were not confirmed before the daemon was restarted".to_owned();
            Some((pending.back_to.clone(), why))
        }
        (None, Some(aside)) if aside.hash == hash => current.clone().map(|current| (current, aside.why.clone())),
        (None, _) => None,
    };
    if let Some((instead, why)) = turned_away {
        match kept(path, &accepted, &instead) {
            Ok(kept) => {
                let is_news = unconfirmed.is_some();
                if is_news {
                    index.entries.push(entry(&kept, &Actor::Start, now, "not confirmed"));
                    index.pending = None;
                    index.aside = Some(Aside { hash, why: why.clone() });
                }
                let stale = Some(format!("the files on the disk are set aside: {why}"));
                return Chosen { loaded: kept, refused: None, stale, troubles: Vec::new(), accepted, index, is_news };
            }
            // The files themselves are sound.
            Err(error) => troubles.push(format!("{error:#}")),
        }
    }
    let is_news = current.as_ref() != Some(&hash) || index.aside.is_some() || index.pending.is_some();
    if current.as_ref() != Some(&hash) {
        index.entries.push(entry(&loaded, &Actor::Start, now, "start"));
    }
    (index.aside, index.pending) = (None, None);
    Chosen { loaded, refused: None, stale: None, troubles: Vec::new(), accepted, index, is_news }
}

/// The newest accepted set that can still be used.
fn by_accepted(path: &Path, refused: &Report, now: Timestamp, troubles: &mut Vec<String>) -> Option<Chosen> {
    let (accepted, mut index) = find(path)?;
    let why = first_error(refused);
    let unconfirmed = index.pending.take();
    let mut hashes: Vec<String> = index.entries.iter().rev().map(|entry| entry.hash.clone()).collect();
    let first =
        unconfirmed.as_ref().map_or_else(|| hashes.first().cloned(), |pending| Some(pending.back_to.clone()))?;
    hashes.insert(0, first.clone());
    hashes.dedup();
    for hash in hashes {
        match kept(path, &accepted, &hash) {
            Ok(loaded) => {
                let is_news = index.current().is_none_or(|entry| entry.hash != hash);
                if is_news {
                    let how = if unconfirmed.is_some() && hash == first { "not confirmed" } else { "files refused" };
                    index.entries.push(entry(&loaded, &Actor::Start, now, how));
                }
                let stale = Some(format!("the files on the disk were refused at the start: {why}"));
                let is_news = is_news || unconfirmed.is_some();
                let troubles = Vec::new();
                return Some(Chosen { loaded, refused: None, stale, troubles, accepted, index, is_news });
            }
            Err(error) => troubles.push(format!("{error:#}")),
        }
    }
    None
}

/// Whether a start would use something else than the files on the disk, and why, in a sentence. `hash` is theirs, where
/// they could be read; `errors`, failed tests among them, is what was found in them.
#[must_use]
pub fn instead(path: &Path, hash: Option<&str>, errors: usize) -> Option<String> {
    let (_, index) = find(path)?;
    let used = |hash: &str, at: Timestamp| format!("a start would use the configuration {} of {at}", short(hash));
    let current = index.current()?;
    let confirmed = index.pending.as_ref().map_or(current.hash.as_str(), |pending| pending.back_to.as_str());
    match (hash.filter(|_| errors == 0), &index.aside) {
        (None, _) => Some(format!("{} instead", used(confirmed, current.at()))),
        (Some(hash), Some(aside)) if aside.hash == hash => Some(format!(
            "these files are set aside ({}): {} until they change; `pointsman reload` takes them",
            aside.why,
            used(&current.hash, current.at())
        )),
        (Some(_), _) => None,
    }
}

/// The accepted sets of the configuration at `path`: where its file says that the data is, or else where it usually is and
/// the index names this file.
#[must_use]
pub fn find(path: &Path) -> Option<(Accepted, Index)> {
    let accepted = Accepted::of(&data_dir(path)?);
    let index = accepted.index().ok()??;
    Some((accepted, index))
}

/// Where the data of the configuration at `path` is, even if the file is in ruins.
#[must_use]
pub fn data_dir(path: &Path) -> Option<PathBuf> {
    if let Ok(data) = Config::data_dir(path) {
        return Some(data);
    }
    let ours = absolute(path);
    let index = |data: &PathBuf| Accepted::of(data).index().ok()?;
    let is_ours = |data: &PathBuf| index(data).is_some_and(|index| index.config == ours);
    Config::data_dirs_guessed().into_iter().find(is_ours)
}

fn kept(path: &Path, accepted: &Accepted, hash: &str) -> anyhow::Result<Loaded> {
    let set = accepted.set(hash)?;
    Config::vet(path, Origin::Kept(&set)).map_err(|report| {
        anyhow::anyhow!("the accepted set {} cannot be used any more: {}", short(hash), first_error(&report))
    })
}

fn entry(loaded: &Loaded, by: &Actor, now: Timestamp, how: &str) -> Entry {
    entry_of(&loaded.config, by, now, how)
}

pub(super) fn entry_of(config: &Config, by: &Actor, now: Timestamp, how: &str) -> Entry {
    Entry {
        hash: config.prints.whole.clone(),
        rule_set: config.rules.hash().to_owned(),
        at: now.0,
        by: by.name(),
        pid: by.pid(),
        how: how.to_owned(),
    }
}

/// The first error of a report, in one line.
#[must_use]
pub fn first_error(report: &Report) -> String {
    let first = report.diagnostics().iter().find(|finding| finding.severity == Severity::Error);
    first.map_or_else(String::new, |finding| match &finding.place {
        Some(place) => format!("{place}: {}", finding.message),
        None => finding.message.clone(),
    })
}

pub(super) use crate::config::files::short;

fn absolute(path: &Path) -> PathBuf {
    // Without a working directory there is no better name for it.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
