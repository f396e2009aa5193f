//! Load balancers: whoever is listed must say for whom it connects, before anything else (`proxy` knows the protocol).
//!
//! Nobody else may: to a peer that is not listed nothing is done here, and a header of its own is to the session just
//! another protocol. A balancer that does not send a whole, sound header in time is closed on without a word: a
//! reply would reach a client that cannot help it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::network::Network;
use crate::proxy::{self, Progress, Source};

/// The client behind `peer`: itself where it is not in `balancers`. `None`: close.
///
/// Reads the header and not an octet more, so that what follows is still the client's.
pub(super) async fn client<S>(stream: &mut S, balancers: &[Network], peer: SocketAddr) -> Option<SocketAddr>
where
    S: AsyncRead + Unpin,
{
    if !balancers.iter().any(|network| network.contains(peer.ip())) {
        return Some(peer);
    }
    let source = tokio::time::timeout(HEADER_TIMEOUT, read_header(stream)).await.ok().flatten()?;
    Some(match source {
        // Its port is of no use to us.
        Source::Client(ip) => SocketAddr::new(ip, 0),
        Source::Balancer => peer,
    })
}

async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Source> {
    let mut header = Vec::new();
    loop {
        match proxy::read(&header).ok()? {
            Progress::Whole(source) => return Some(source),
            Progress::More(more) => {
                let have = header.len();
                header.resize(have + more, 0);
                let read = stream.read(&mut header[have..]).await.ok().filter(|&read| read > 0)?;
                header.truncate(have + read);
            }
        }
    }
}

/// The protocol asks for at least 3 seconds, one lost segment. A balancer has its header ready when it connects.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Who is taken for the client where `said` comes from `peer`, and what of it is left for the session.
    async fn met(peer: &str, said: &[u8]) -> (Option<IpAddr>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(said).await.unwrap();
        drop(theirs);
        let balancers = [Network::parse("10.0.0.0/8").unwrap()];
        let client = client(&mut ours, &balancers, SocketAddr::new(peer.parse().unwrap(), 4711)).await;
        let mut left = Vec::new();
        ours.read_to_end(&mut left).await.unwrap();
        (client.map(|client| client.ip()), left)
    }

    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 25\r\n";

    #[tokio::test]
    async fn a_listed_peer_must_send_a_header() {
        let early = [HEADER, b"EHLO a\r\n"].concat();
        assert_eq!(met("10.1.2.3", &early).await, (Some("192.0.2.7".parse().unwrap()), b"EHLO a\r\n".to_vec()));
        assert_eq!(met("::ffff:10.1.2.3", HEADER).await.0, Some("192.0.2.7".parse().unwrap()));
        assert_eq!(met("10.1.2.3", b"PROXY UNKNOWN\r\n").await.0, Some("10.1.2.3".parse().unwrap()));
        assert_eq!(met("10.1.2.3", b"EHLO a\r\n").await.0, None);
        assert_eq!(met("10.1.2.3", &HEADER[..HEADER.len() - 1]).await.0, None);
        assert_eq!(met("10.1.2.3", b"").await.0, None);
    }

    #[tokio::test]
    async fn nobody_else_is_listened_to() {
        assert_eq!(met("192.0.2.99", HEADER).await, (Some("192.0.2.99".parse().unwrap()), HEADER.to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_balancer_that_says_nothing_is_closed_on() {
        let (mut ours, _theirs) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        let balancers = [Network::parse("10.0.0.1").unwrap()];
        assert_eq!(client(&mut ours, &balancers, "10.0.0.1:1".parse().unwrap()).await, None);
        assert_eq!(begun.elapsed(), HEADER_TIMEOUT);
    }
}
