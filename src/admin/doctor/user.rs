//! As whom a file must be readable: a key that root can read and the daemon cannot is found at the next start only.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The daemon's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever asks.
    Me,
    /// Another one, for whom the mode bits are read. Access lists are not.
    Other { uid: u32, groups: Vec<u32> },
}

impl User {
    /// The owner of the data directory, which the daemon's user is.
    #[must_use]
    pub fn owner_of(data: &Path) -> User {
        let Ok(found) = fs::metadata(data) else { return User::Me };
        if rustix::process::geteuid().as_raw() == found.uid() {
            return User::Me;
        }
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut groups = groups_of(found.uid(), &read("/etc/passwd"), &read("/etc/group"));
        groups.push(found.gid());
        User::Other { uid: found.uid(), groups }
    }

    /// Whether the user can read the file; the error says what keeps it from that.
    pub fn can_read(&self, path: &Path) -> io::Result<()> {
        let User::Other { uid, groups } = self else { return File::open(path).map(drop) };
        let denied = |what: &Path| {
            let words = format!("`{}` is closed to the daemon's user (uid {uid})", what.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, words))
        };
        let path = fs::canonicalize(path)?;
        for folder in path.ancestors().skip(1) {
            if !allows(&fs::metadata(folder)?, *uid, groups, 0o1) {
                return denied(folder);
            }
        }
        if allows(&fs::metadata(&path)?, *uid, groups, 0o4) { Ok(()) } else { denied(&path) }
    }
}

/// `bit` is that of others: 4 to read, 1 to enter.
fn allows(found: &Metadata, uid: u32, groups: &[u32], bit: u32) -> bool {
    let shift = match () {
        () if found.uid() == uid => 6,
        () if groups.contains(&found.gid()) => 3,
        () => 0,
    };
    uid == 0 || found.mode() & (bit << shift) != 0
}

/// The groups of a user, in the form of passwd(5) and group(5).
fn groups_of(uid: u32, users: &str, groups: &str) -> Vec<u32> {
    let user = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).is_some_and(|number| number.parse() == Ok(uid)));
    let Some(user) = user else { return Vec::new() };
    let own = user.get(3).and_then(|number| number.parse().ok());
    let others = groups.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_member = fields.get(3)?.split(',').any(|member| member == user[0]);
        is_member.then(|| fields.get(2)?.parse().ok())?
    });
    own.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_mode_bits_of_file_and_folders_decide() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        fs::write(&key, "x").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let (uid, gid) = (fs::metadata(&key).unwrap().uid(), fs::metadata(&key).unwrap().gid());
        let reads = |user: &User| user.can_read(&key).map_err(|error| error.to_string());
        let owner = User::Other { uid: uid.wrapping_add(7_000), groups: vec![] };
        let member = User::Other { uid: uid.wrapping_add(7_000), groups: vec![gid] };
        mode(dir.path(), 0o755);
        for (bits, stranger, group) in [(0o644, true, true), (0o640, false, true), (0o600, false, false)] {
            mode(&key, bits);
            assert_eq!((reads(&owner).is_ok(), reads(&member).is_ok()), (stranger, group), "{bits:o}");
        }
        mode(&key, 0o644);
        mode(dir.path(), 0o700);
        let folder = dir.path().canonicalize().unwrap();
        assert!(reads(&member).unwrap_err().contains(&format!("`{}` is closed", folder.display())));
        assert!(User::Me.can_read(&key).is_ok());
    }

    #[test]
    fn groups_are_the_first_and_the_others() {
        let users = "root:x:0:0::/:/bin/sh\npointsman:x:990:991::/:/bin/false\n";
        let groups = "ssl-cert:x:110:postfix,pointsman\nother:x:111:pointsmanx\nbroken\n";
        assert_eq!(groups_of(990, users, groups), [991, 110]);
        assert_eq!(groups_of(1, users, groups), Vec::<u32>::new());
    }
}
