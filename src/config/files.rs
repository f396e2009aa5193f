//! The files of a configuration: read from the disk, or from a [`FileSet`] that was kept. What was read is noted, so that
//! a configuration is known by exactly the texts that it was made of.
//!
//! Names are relative to the folder of the main file where they stand below it, so that a kept set fits wherever that
//! file stands. Certificates are no part of a set: they are renewed by others, and stay where they are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

/// The texts of all files of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSet {
    /// Of the main file.
    pub main: String,
    /// The others by their names: relative to the main file's folder, or absolute.
    pub others: BTreeMap<String, String>,
}

impl FileSet {
    /// What tells this set from every other.
    #[must_use]
    pub fn prints(&self) -> Prints {
        let print = |text: &str| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        let each: BTreeMap<String, String> =
            self.others.iter().map(|(name, text)| (name.clone(), print(text))).collect();
        let mut whole = digest::Context::new(&digest::SHA256);
        whole.update(print(&self.main).as_bytes());
        for (name, print) in &each {
            whole.update(&(name.len() as u64).to_be_bytes());
            whole.update(name.as_bytes());
            whole.update(print.as_bytes());
        }
        Prints { whole: hex(whole.finish().as_ref()), main: print(&self.main), each }
    }
}

/// Fingerprints: SHA-256 in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prints {
    /// Of names and texts of all files: the configuration's hash.
    pub whole: String,
    pub main: String,
    /// Of the other files, by name.
    pub each: BTreeMap<String, String>,
}

impl Prints {
    /// The first twelve digits of the whole, as people see it.
    #[must_use]
    pub fn short(&self) -> &str {
        short(&self.whole)
    }
}

/// The first twelve digits of a hash, as people see it.
#[must_use]
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the files of a configuration are read.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    Disk,
    Kept(&'a FileSet),
}

/// Reads files, and notes what it read.
pub(super) struct Reader<'a> {
    path: &'a Path,
    folder: &'a Path,
    origin: Origin<'a>,
    taken: RefCell<FileSet>,
}

impl<'a> Reader<'a> {
    /// For the configuration whose main file is at `path`.
    pub(super) fn new(path: &'a Path, origin: Origin<'a>) -> Reader<'a> {
        let folder = path.parent().unwrap_or(Path::new(""));
        Reader { path, folder, origin, taken: RefCell::default() }
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(self.origin, Origin::Kept(_))
    }

    pub(super) fn read_main(&self) -> Result<String, String> {
        let text = match self.origin {
            Origin::Disk => read_bounded(self.path)?,
            Origin::Kept(set) => set.main.clone(),
        };
        self.taken.borrow_mut().main.clone_from(&text);
        Ok(text)
    }

    /// The text of another file; the error says why not.
    pub(super) fn read(&self, path: &Path) -> Result<String, String> {
        let name = self.name(path);
        let text = match self.origin {
            Origin::Disk => read_bounded(path)?,
            Origin::Kept(set) => set.others.get(&name).cloned().ok_or("it is not in the accepted set")?,
        };
        self.taken.borrow_mut().others.insert(name, text.clone());
        Ok(text)
    }

    /// The files that a path with `*` in its last part matches; a path without one must exist.
    pub(super) fn find(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let whole = self.folder.join(pattern);
        let name = whole.file_name().and_then(|name| name.to_str()).ok_or("expected a path to files")?;
        let parent = whole.parent().unwrap_or(Path::new(""));
        if parent.to_str().is_some_and(|parent| parent.contains('*')) {
            return Err("`*` may stand in the last part of the path only".to_owned());
        }
        match self.origin {
            Origin::Disk => find_on_disk(&whole, parent, name),
            Origin::Kept(set) => {
                let paths = set.others.keys().map(|name| self.folder.join(name));
                let found: Vec<PathBuf> =
                    paths.filter(|path| path.parent() == Some(parent) && is_match(name, path)).collect();
                if found.is_empty() && !name.contains('*') {
                    Err("it is not in the accepted set".to_owned())
                } else {
                    Ok(found)
                }
            }
        }
    }

    /// All that was read.
    pub(super) fn into_set(self) -> FileSet {
        self.taken.into_inner()
    }

    fn name(&self, path: &Path) -> String {
        path.strip_prefix(self.folder).unwrap_or(path).display().to_string()
    }
}

fn find_on_disk(whole: &Path, parent: &Path, name: &str) -> Result<Vec<PathBuf>, String> {
    if !name.contains('*') {
        return if whole.is_file() { Ok(vec![whole.to_owned()]) } else { Err("no such file".to_owned()) };
    }
    let listing = match std::fs::read_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut found = Vec::new();
    for entry in listing {
        let path = parent.join(entry.map_err(|error| error.to_string())?.file_name());
        // What cannot even be looked at, such as a link that leads nowhere, is an error when it is read: to leave it out
        // would refuse the mail of whoever stands in it.
        if is_match(name, &path) && std::fs::metadata(&path).map_or(true, |data| data.is_file()) {
            found.push(path);
        }
        if found.len() > RULE_FILES_MAX {
            return Err(format!("more than {RULE_FILES_MAX} files"));
        }
    }
    Ok(found)
}

/// An editor's swap file begins with a dot and is no rules file.
fn is_match(pattern: &str, path: &Path) -> bool {
    let file = path.file_name().and_then(|file| file.to_str());
    file.is_some_and(|file| file == pattern || (!file.starts_with('.') && glob(pattern, file)))
}

/// `*` stands for any characters, also none. Each star takes as little as the next literal lets it: no backtracking.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let Some(last) = pattern.rsplit_once('*').map(|(_, last)| last) else { return rest.is_empty() };
    let middle: Vec<&str> = parts.collect();
    for part in &middle[..middle.len().saturating_sub(1)] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

pub(super) fn read_bounded(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("the file is over {FILE_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// A million aliases are some 60 MB.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// One file a domain; beyond it the pattern probably hit the wrong folder.
const RULE_FILES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, matches) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml~", false),
            ("*", "", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }

    fn set(others: &[(&str, &str)]) -> FileSet {
        let others = others.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        FileSet { main: "main".to_owned(), others }
    }

    #[test]
    fn a_set_is_known_by_names_and_texts() {
        let whole = |others: &[(&str, &str)]| set(others).prints().whole;
        let base = whole(&[("a", "1"), ("b", "2")]);
        assert_eq!(base, whole(&[("b", "2"), ("a", "1")]));
        for other in
            [&[("a", "2"), ("b", "1")][..], &[("a", "1")], &[("a", "12"), ("b", "")], &[("ab", "1"), ("", "2")]]
        {
            assert_ne!(base, whole(other), "{other:?}");
        }
        assert_eq!(base.len(), 64);
    }

    #[test]
    fn a_kept_set_is_read_as_the_disk_was_wherever_the_main_file_stands() {
        let kept = set(&[("rules/b.toml", "b"), ("rules/a.toml", "a"), ("rules/x.address", "x"), ("/abs/c.toml", "c")]);
        for path in ["/etc/pointsman/p.toml", "p.toml"] {
            let path = Path::new(path);
            let reader = Reader::new(path, Origin::Kept(&kept));
            let folder = path.parent().unwrap();
            assert_eq!(reader.read_main().unwrap(), "main");
            let found = reader.find("rules/*.toml").unwrap();
            assert_eq!(found, [folder.join("rules/a.toml"), folder.join("rules/b.toml")]);
            assert_eq!(reader.find("/abs/c.toml").unwrap(), [PathBuf::from("/abs/c.toml")]);
            assert!(reader.find("rules/missing.toml").is_err() && reader.find("other/*.toml").unwrap().is_empty());
            assert_eq!(reader.read(&folder.join("rules/x.address")).unwrap(), "x");
            assert!(reader.read(&folder.join("rules/y.address")).is_err());
            // Only what was read is noted.
            assert_eq!(reader.into_set(), set(&[("rules/x.address", "x")]));
        }
    }

    #[test]
    fn a_file_at_the_limit_is_read_and_one_past_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(FILE_BYTES_MAX).unwrap();
        assert_eq!(read_bounded(&path).unwrap().len() as u64, FILE_BYTES_MAX);
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(read_bounded(&path).is_err());
    }
}
