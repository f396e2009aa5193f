//! The files of keys, that of DKIM and that of the loop marks: read, or made where there are none.
//!
//! A new key is written beside its place with mode 0600, synced, and linked to its name, so that there is a whole key
//! or none, and never another one over one that is there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::sign::{Key, NoKey};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read `{}`: {why}", path.display())]
    Unread { path: PathBuf, why: io::Error },
    #[error("`{}` cannot be used: {why}", path.display())]
    Unusable { path: PathBuf, why: NoKey },
    #[error("cannot make the key `{}`: {why}", path.display())]
    Unmade { path: PathBuf, why: io::Error },
    #[error("`{}` cannot be used: it holds no line of 20 letters or more", path.display())]
    NoSecret { path: PathBuf },
}

impl KeyFileError {
    /// There is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, KeyFileError::Unread { why, .. } if why.kind() == ErrorKind::NotFound)
    }
}

/// Whether the key was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    There,
    Made,
}

/// Reads the key.
pub fn open(path: &Path) -> Result<Key, KeyFileError> {
    let text = read_bounded(path).map_err(|why| KeyFileError::Unread { path: path.to_owned(), why })?;
    Key::from_pem(&text).map_err(|why| KeyFileError::Unusable { path: path.to_owned(), why })
}

/// Reads the key, or makes one. A file that is there and cannot be used stays as it is.
pub fn open_or_make(path: &Path) -> Result<(Key, Found), KeyFileError> {
    match open(path) {
        Err(error) if error.is_missing() => {}
        read => return read.map(|key| (key, Found::There)),
    }
    let unmade = |why| KeyFileError::Unmade { path: path.to_owned(), why };
    let key = Key::generate().ok_or_else(|| unmade(io::Error::other("no key could be generated")))?;
    write_new(path, &key.to_pem()).map_err(unmade)?;
    Ok((key, Found::Made))
}

/// Reads a secret of one line, or writes the one that `fresh` gives. A file that is there and holds none stays as it is.
pub fn open_or_make_secret(path: &Path, fresh: impl FnOnce() -> String) -> Result<String, KeyFileError> {
    match read_bounded(path) {
        Ok(text) => {
            let secret = String::from_utf8(text).unwrap_or_default().trim().to_owned();
            match secret.len() >= SECRET_OCTETS_MIN {
                true => Ok(secret),
                false => Err(KeyFileError::NoSecret { path: path.to_owned() }),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let secret = fresh();
            let unmade = |why| KeyFileError::Unmade { path: path.to_owned(), why };
            write_new(path, &format!("{secret}\n")).map_err(unmade)?;
            Ok(secret)
        }
        Err(why) => Err(KeyFileError::Unread { path: path.to_owned(), why }),
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let part = path.with_extension("key.part");
    // What an earlier start left half-made.
    match fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    // Unlike a rename, it fails where a file is there by now.
    fs::hard_link(&part, path)?;
    fs::remove_file(&part)?;
    File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > FILE_OCTETS_MAX {
        return Err(io::Error::other(format!("the file is over {FILE_OCTETS_MAX} octets")));
    }
    fs::read(path)
}

/// What is shorter can be guessed.
const SECRET_OCTETS_MIN: usize = 20;
/// A key of 8192 bits has some 6,400; a bundle with its certificate fits as well.
const FILE_OCTETS_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dkim.key");
        assert!(open(&path).unwrap_err().is_missing());
        // A start that was killed in the middle.
        fs::write(folder.path().join("dkim.key.part"), "half").unwrap();
        let (made, found) = open_or_make(&path).unwrap();
        assert_eq!(found, Found::Made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (again, found) = open_or_make(&path).unwrap();
        assert_eq!((again.record(), found), (made.record(), Found::There));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_is_made_once_and_one_that_is_none_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loop.key");
        let made = open_or_make_secret(&path, || "abcdefghijklmnopqrstuvwxyz".to_owned()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open_or_make_secret(&path, || unreachable!()).unwrap(), made);
        for (octets, works) in [(SECRET_OCTETS_MIN - 1, false), (SECRET_OCTETS_MIN, true)] {
            fs::write(&path, "x".repeat(octets)).unwrap();
            assert_eq!(open_or_make_secret(&path, || unreachable!()).is_ok(), works);
        }
    }

    #[test]
    fn what_is_there_and_no_key_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dkim.key");
        fs::write(&path, "not yet").unwrap();
        let error = open_or_make(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` cannot be used: it holds no private key in PEM", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"not yet");
        for (octets, why) in [(FILE_OCTETS_MAX, "cannot be used"), (FILE_OCTETS_MAX + 1, "is over 65536 octets")] {
            fs::write(&path, vec![b'x'; octets as usize]).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let nowhere = folder.path().join("no/such/folder/dkim.key");
        assert!(matches!(open_or_make(&nowhere), Err(KeyFileError::Unmade { .. })));
    }
}
