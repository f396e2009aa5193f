//! Who is at the other end of the control socket: what the kernel says, and the name that the system's list has for it.

use std::fmt;

use tokio::net::UnixStream;

/// The process that asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    /// From /etc/passwd; users that other services know are told by their number.
    pub user: Option<String>,
}

impl Peer {
    /// Who connected (`SO_PEERCRED`): nobody can claim to be another.
    #[must_use]
    pub fn of(stream: &UnixStream) -> Peer {
        let Ok(peer) = stream.peer_cred() else { return Peer::default() };
        // Small on a server; and read anew each time, because users come and go.
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Peer { uid: Some(peer.uid()), pid: peer.pid(), user: name_of(peer.uid(), &users) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.user, self.uid) {
            (Some(user), Some(uid)) => write!(f, "{user} (uid {uid})"),
            (None, Some(uid)) => write!(f, "uid {uid}"),
            (_, None) => f.write_str("unknown"),
        }
    }
}

/// `users` is in the form of passwd(5).
fn name_of(uid: u32, users: &str) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_name_where_the_list_has_one() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\njean:x:1000:1000::/home/jean:/bin/sh\n";
        let told = |uid| Peer { uid: Some(uid), pid: Some(7), user: name_of(uid, users) }.to_string();
        assert_eq!([told(0), told(1000), told(7)], ["root (uid 0)", "jean (uid 1000)", "uid 7"]);
        assert_eq!(Peer::default().to_string(), "unknown");
    }
}
