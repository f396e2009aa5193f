//! What the data base stands on: the data directory, its lock, its file system, its free space, its body files.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::queue::body::SHARDS;
use crate::queue::sqlite::OpenError;

/// The names under the data directory.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) dir: PathBuf,
}

impl Ground {
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("queue.db")
    }

    pub(super) fn refused(&self) -> PathBuf {
        self.dir.join("refused.db")
    }

    pub(super) fn bodies(&self) -> PathBuf {
        self.dir.join("bodies")
    }

    /// Makes what is missing, mode 0750, and syncs it, so that a body's directory survives what the body does.
    pub(super) fn prepare(&self) -> Result<(), OpenError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { path, source }
        };
        let bodies = self.bodies();
        make(&self.dir).map_err(fault(&self.dir))?;
        make(&bodies).map_err(fault(&bodies))?;
        for shard in 0..SHARDS {
            let path = bodies.join(format!("{shard:02x}"));
            make(&path).map_err(fault(&path))?;
        }
        for path in [&bodies, &self.dir] {
            File::open(path).and_then(|dir| dir.sync_all()).map_err(fault(path))?;
        }
        self.refuse_network()
    }

    /// Locks the directory for this process; the lock ends with the returned file.
    pub(super) fn lock(&self) -> Result<File, OpenError> {
        let path = self.dir.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|source| OpenError::Directory { path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: self.dir.clone() }),
            Err(TryLockError::Error(source)) => Err(OpenError::Directory { path, source }),
        }
    }

    /// SQLite's write-ahead log needs shared memory and locks that work, which no network file system gives.
    fn refuse_network(&self) -> Result<(), OpenError> {
        let stat = rustix::fs::statfs(&self.dir)
            .map_err(|errno| OpenError::Directory { path: self.dir.clone(), source: errno.into() })?;
        // The type's width differs between machines; the magic numbers are 32 bits everywhere.
        let magic = stat.f_type as u32;
        match NETWORK_FILE_SYSTEMS.iter().find(|(number, _)| *number == magic) {
            Some((_, kind)) => Err(OpenError::Network { path: self.dir.clone(), kind }),
            None => Ok(()),
        }
    }

    /// Bytes that this process may still write.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Unlinks body files that no row names: their message was never acknowledged. Gives back how many.
    pub(super) fn sweep_bodies(&self, named: &HashSet<String>) -> io::Result<usize> {
        let mut swept = 0;
        for shard in fs::read_dir(self.bodies())? {
            let shard = shard?;
            if !shard.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(shard.path())? {
                let file = file?;
                let name = format!("{}/{}", shard.file_name().display(), file.file_name().display());
                if !named.contains(&name) {
                    fs::remove_file(file.path())?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }

    /// Unlinks files whose rows are gone.
    pub(super) fn unlink(&self, names: &[String]) {
        for name in names {
            // What cannot be unlinked now has no row: the next start sweeps it.
            let _ = fs::remove_file(self.bodies().join(name));
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path)
}

// statfs(2). FUSE is not listed: it may be local or not, and does not say.
const NETWORK_FILE_SYSTEMS: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "AFS"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_made_and_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let ground = Ground { dir: dir.path().join("a/b") };
        ground.prepare().unwrap();
        ground.prepare().unwrap();
        assert_eq!(fs::read_dir(ground.bodies()).unwrap().count() as u64, SHARDS);
        let lock = ground.lock().unwrap();
        let second = ground.lock().unwrap_err();
        assert!(second.to_string().contains("another pointsman"), "{second}");
        drop(lock);
        assert!(ground.lock().is_ok());
        assert!(ground.free_bytes().unwrap() > 0);
    }

    #[test]
    fn only_files_without_a_row_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let ground = Ground { dir: dir.path().to_owned() };
        ground.prepare().unwrap();
        for name in ["00/1-0", "01/1-1"] {
            fs::write(ground.bodies().join(name), "x").unwrap();
        }
        assert_eq!(ground.sweep_bodies(&HashSet::from(["01/1-1".to_owned()])).unwrap(), 1);
        assert!(!ground.bodies().join("00/1-0").exists());
        assert!(ground.bodies().join("01/1-1").exists());
    }
}
