//! `data/accepted/`: the sets of files that were accepted, and which of them is in force.
//!
//! | File | What it is |
//! |---|---|
//! | `<hash>.json` | a set: the texts of all files, secrets among them, so for the daemon's user alone |
//! | `index.json` | what was accepted when and by whom, oldest first; the last is in force |
//!
//! Both are written aside, synced and renamed into place, a set before the index that names it: whenever the power
//! fails there is a whole index, and every set that it names. What no entry names any more is removed afterwards.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::config::FileSet;

/// The folder.
#[derive(Clone, Debug)]
pub struct Accepted {
    folder: PathBuf,
}

/// What was accepted, and what is to be known at the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The main file that the sets are of, absolute.
    pub config: PathBuf,
    /// Oldest first, [`ENTRIES_MAX`] at the most; the last is in force.
    pub entries: Vec<Entry>,
    /// The files on the disk were turned away by an operator, or not confirmed: no start takes them by itself.
    #[serde(default)]
    pub aside: Option<Aside>,
    #[serde(default)]
    pub pending: Option<Pending>,
}

/// One acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub hash: String,
    /// The hash of its rules.
    pub rule_set: String,
    /// Milliseconds since 1970.
    pub at: i64,
    pub by: String,
    pub pid: Option<i32>,
    /// What happened: start, reload, rollback …
    pub how: String,
}

impl Entry {
    #[must_use]
    pub fn at(&self) -> Timestamp {
        Timestamp(self.at)
    }
}

/// Files on the disk that are not to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    pub hash: String,
    pub why: String,
}

/// What is in force has to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Milliseconds since 1970.
    pub until: i64,
    /// The set that comes back if it is not.
    pub back_to: String,
}

#[derive(Serialize, Deserialize)]
struct StoredSet {
    main: String,
    files: std::collections::BTreeMap<String, String>,
}

impl Index {
    #[must_use]
    pub fn current(&self) -> Option<&Entry> {
        self.entries.last()
    }

    /// The newest entry whose configuration's hash, or whose rule set's, begins with `prefix`. The error says why there is not one.
    pub fn find(&self, prefix: &str) -> Result<&Entry, String> {
        let newest_first = || self.entries.iter().rev();
        let mut found: Option<&Entry> = None;
        for entry in newest_first().filter(|entry| entry.hash.starts_with(prefix)) {
            match found {
                Some(other) if other.hash != entry.hash => return Err(format!("several sets begin with `{prefix}`")),
                Some(_) => {}
                None => found = Some(entry),
            }
        }
        found = found.or_else(|| newest_first().find(|entry| entry.rule_set.starts_with(prefix)));
        found.filter(|_| !prefix.is_empty()).ok_or_else(|| {
            format!("no accepted set begins with `{prefix}`; `pointsman rules history` shows those that are kept")
        })
    }

    /// Whether an entry, or a pending confirmation, needs the set.
    fn names(&self, hash: &str) -> bool {
        self.entries.iter().any(|entry| entry.hash == hash)
            || self.pending.as_ref().is_some_and(|pending| pending.back_to == hash)
    }
}

impl Accepted {
    #[must_use]
    pub fn of(data: &Path) -> Accepted {
        Accepted { folder: data.join("accepted") }
    }

    /// `None`: nothing was ever accepted here.
    pub fn index(&self) -> anyhow::Result<Option<Index>> {
        let path = self.folder.join(INDEX);
        match fs::read(&path) {
            Ok(text) => {
                let index = serde_json::from_slice(&text);
                index.map(Some).with_context(|| format!("`{}` is damaged", path.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    }

    /// A set, whole: one that does not have its hash any more is an error.
    pub fn set(&self, hash: &str) -> anyhow::Result<FileSet> {
        let path = self.set_path(hash);
        let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let stored: StoredSet =
            serde_json::from_slice(&text).with_context(|| format!("`{}` is damaged", path.display()))?;
        let set = FileSet { main: stored.main, others: stored.files };
        if set.prints().whole != hash {
            bail!("`{}` is damaged: it has another hash", path.display());
        }
        Ok(set)
    }

    /// Writes the index, and before it the set that it names, where there is a new one.
    pub fn write(&self, index: &mut Index, set: Option<(&str, &FileSet)>) -> anyhow::Result<()> {
        self.make_folder()?;
        if let Some((hash, set)) = set
            && !self.set_path(hash).exists()
        {
            let stored = StoredSet { main: set.main.clone(), files: set.others.clone() };
            self.put(&format!("{hash}.json"), &serde_json::to_vec(&stored)?)?;
        }
        self.trim(index);
        self.put(INDEX, &serde_json::to_vec_pretty(index)?)?;
        self.sweep(index);
        Ok(())
    }

    fn make_folder(&self) -> anyhow::Result<()> {
        let made = DirBuilder::new().mode(0o700).create(&self.folder);
        match made {
            Ok(()) => {
                let parent = self.folder.parent().unwrap_or(Path::new("."));
                sync(parent).with_context(|| format!("cannot sync `{}`", parent.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot make `{}`", self.folder.display())),
        }
    }

    /// Aside, synced, renamed, synced.
    fn put(&self, name: &str, text: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let part = self.folder.join(format!("{name}.part"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            sync(&self.folder)
        };
        write().with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Drops the oldest entries beyond the limits. What is in force stays, and what a confirmation may bring back.
    fn trim(&self, index: &mut Index) {
        let excess = index.entries.len().saturating_sub(ENTRIES_MAX);
        index.entries.drain(..excess);
        let size = |hash: &str| fs::metadata(self.set_path(hash)).map_or(0, |data| data.len());
        let all = |index: &Index| -> u64 {
            let hashes: std::collections::BTreeSet<&str> =
                index.entries.iter().map(|entry| entry.hash.as_str()).collect();
            hashes.into_iter().map(size).sum()
        };
        while index.entries.len() > 1 && all(index) > OCTETS_MAX {
            index.entries.remove(0);
        }
    }

    fn sweep(&self, index: &Index) {
        let Ok(listing) = fs::read_dir(&self.folder) else { return };
        for entry in listing.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| *name != INDEX) else { continue };
            let needed = name.strip_suffix(".json").is_some_and(|hash| index.names(hash));
            if !needed {
                // It costs room alone, and is tried again the next time.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn set_path(&self, hash: &str) -> PathBuf {
        self.folder.join(format!("{hash}.json"))
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

const INDEX: &str = "index.json";
/// Acceptances that are remembered, with their sets: weeks of work on the rules.
pub const ENTRIES_MAX: usize = 50;
/// Of all sets together; a set of a million aliases has some 60 MB.
const OCTETS_MAX: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(n: usize) -> (String, FileSet) {
        let set = FileSet { main: format!("# {n}\n"), ..FileSet::default() };
        (set.prints().whole, set)
    }

    fn entry(hash: &str) -> Entry {
        let (by, how) = ("uid 0".to_owned(), "reload".to_owned());
        Entry { hash: hash.to_owned(), rule_set: format!("r{hash}"), at: 1, by, pid: None, how }
    }

    fn accept(accepted: &Accepted, index: &mut Index, n: usize) -> String {
        let (hash, set) = set(n);
        index.entries.push(entry(&hash));
        accepted.write(index, Some((&hash, &set))).unwrap();
        hash
    }

    #[test]
    fn what_was_accepted_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let accepted = Accepted::of(folder.path());
        assert!(accepted.index().unwrap().is_none());
        let mut index = Index { config: "/etc/p.toml".into(), ..Index::default() };
        let hash = accept(&accepted, &mut index, 1);
        assert_eq!(accepted.index().unwrap().unwrap(), index);
        assert_eq!(accepted.set(&hash).unwrap(), set(1).1);
        use std::os::unix::fs::MetadataExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&accepted.folder), mode(&accepted.set_path(&hash))), (0o700, 0o600));

        fs::write(accepted.set_path(&hash), r##"{"main":"# 2\n","files":{}}"##).unwrap();
        assert!(accepted.set(&hash).unwrap_err().to_string().contains("damaged"));
        fs::write(accepted.folder.join(INDEX), "{").unwrap();
        assert!(accepted.index().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn entries_end_at_their_limit_and_their_sets_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let accepted = Accepted::of(folder.path());
        let mut index = Index::default();
        let first = accept(&accepted, &mut index, 0);
        for n in 1..ENTRIES_MAX {
            accept(&accepted, &mut index, n);
        }
        assert_eq!(index.entries.len(), ENTRIES_MAX);
        assert!(accepted.set(&first).is_ok());
        // What a confirmation may bring back is kept beyond them.
        index.pending = Some(Pending { until: 2, back_to: first.clone() });
        let last = accept(&accepted, &mut index, ENTRIES_MAX);
        assert_eq!((index.entries.len(), index.current().unwrap().hash.as_str()), (ENTRIES_MAX, last.as_str()));
        assert!(accepted.set(&first).is_ok());
        index.pending = None;
        accepted.write(&mut index, None).unwrap();
        assert!(accepted.set(&first).is_err());
        // And what a power cut left.
        fs::write(accepted.folder.join("x.json.part"), "").unwrap();
        accepted.write(&mut index, None).unwrap();
        assert_eq!(fs::read_dir(&accepted.folder).unwrap().count(), ENTRIES_MAX + 1);
    }

    #[test]
    fn a_set_is_found_by_the_beginning_of_its_hash_or_of_its_rules() {
        let entries = ["aa1", "ab2", "aa1", "c3"].map(entry).to_vec();
        let index = Index { entries, ..Index::default() };
        assert_eq!(index.find("aa").unwrap().hash, "aa1");
        assert_eq!(index.find("raa").unwrap().hash, "aa1");
        assert_eq!(index.find("c3").unwrap().hash, "c3");
        assert!(index.find("a").unwrap_err().contains("several"));
        assert!(index.find("d").is_err() && index.find("").is_err());
    }
}
