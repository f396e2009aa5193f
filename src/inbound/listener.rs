//! Accepting connections: a place for each session, as many as fit and no client more than its share; everybody else is
//! told so.
//!
//! Short of descriptors a connection cannot even be refused, so one is kept in reserve: it is given up for the moment
//! that a 421 takes, and the client comes back later instead of waiting in the backlog.

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::{Inbound, connection};
use crate::contain::{contain, trip};
use crate::events;
use crate::reply;

impl Inbound {
    /// Accepts connections until [`Inbound::drain`]; one task each.
    pub async fn listen(self: Arc<Self>, listener: Arc<TcpListener>, name: Arc<str>) {
        let mut closing = self.closing.subscribe();
        let mut reserve = Reserve::take();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = closing.wait_for(|&on| on) => return,
                accepted = listener.accept() => accepted,
            };
            trip("listener");
            match accepted {
                Ok((stream, peer)) => {
                    Arc::clone(&self).admit(stream, peer, Arc::clone(&name));
                    reserve.refill();
                }
                Err(error) => {
                    events::accept_failed(&name, &error);
                    if is_shortage(&error) && reserve.give_up() {
                        turn_one_away(&listener, &name).await;
                        reserve.refill();
                    }
                    // Where it goes on the connection stays in the backlog, so to try at once would spin.
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn admit(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, listener: Arc<str>) {
        // Replies are small and awaited: Nagle's algorithm would only delay them. Where it fails nothing is lost.
        let _ = stream.set_nodelay(true);
        // While we drain, who comes is told to come back: a closed port may be held open by whoever starts us.
        let (place, reply) = if self.is_draining() {
            (None, reply::SHUTTING_DOWN)
        } else if self.resident.is_above(self.ruling().memory_max, self.clock.monotonic()) {
            (None, reply::OUT_OF_MEMORY)
        } else {
            (Place::take(Arc::clone(&self)), reply::TOO_MANY_CONNECTIONS)
        };
        let Some(place) = place else {
            events::connection_refused(&listener, peer.ip(), &reply);
            tokio::spawn(connection::turn_away(stream, reply));
            return;
        };
        tokio::spawn(async move {
            let _place = place;
            // What panics inside a session is contained there; here it is only what surrounds one.
            let _ = contain("session", self.serve(stream, peer, &listener)).await;
        });
    }
}

/// Out of descriptors or memory: nothing that the peer could mend.
fn is_shortage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// Takes the connection that waits longest, with the descriptor that was just given up, and says 421.
async fn turn_one_away(listener: &TcpListener, name: &str) {
    // Somebody else may have taken the descriptor, or the client be gone: then there is nobody to tell.
    if let Ok(Ok((stream, peer))) = tokio::time::timeout(ACCEPT_RETRY, listener.accept()).await {
        events::connection_refused(name, peer.ip(), &reply::TOO_MANY_CONNECTIONS);
        connection::turn_away(stream, reply::TOO_MANY_CONNECTIONS).await;
    }
}

/// A descriptor that is open for nothing but to be given up.
struct Reserve(Option<File>);

impl Reserve {
    fn take() -> Reserve {
        // Without one, connections wait in the backlog: no harm but a wait.
        Reserve(File::open("/dev/null").ok())
    }

    fn give_up(&mut self) -> bool {
        self.0.take().is_some()
    }

    fn refill(&mut self) {
        if self.0.is_none() {
            *self = Reserve::take();
        }
    }
}

/// A session's place among those that there may be.
struct Place(Arc<Inbound>);

impl Place {
    fn take(inbound: Arc<Inbound>) -> Option<Place> {
        let taken = inbound.sessions.fetch_add(1, Ordering::Relaxed);
        let most = inbound.ruling().sessions_max;
        let place = Place(inbound);
        (taken < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many sessions each client has.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<IpAddr, usize>>);

/// A client's place within its share.
#[must_use]
pub(super) struct Share<'a> {
    shares: &'a Shares,
    client: IpAddr,
}

impl Shares {
    /// A place for one more session of the client, where it has fewer than `most`.
    pub(super) fn take(&self, client: IpAddr, most: usize) -> Option<Share<'_>> {
        let client = one_client(client);
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // As many entries as there are sessions, at the most.
        let sessions = shares.entry(client).or_insert(0);
        if *sessions >= most {
            return None;
        }
        *sessions += 1;
        Some(Share { shares: self, client })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut shares = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        match shares.get_mut(&self.client) {
            Some(sessions) if *sessions > 1 => *sessions -= 1,
            Some(_) | None => drop(shares.remove(&self.client)),
        }
    }
}

/// What counts as one client: an IPv4 address, or the IPv6 network of a subscriber (RFC 6177), who has all its addresses.
fn one_client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(four) => IpAddr::V4(four),
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !(u128::MAX >> 64))),
    }
}

/// Long enough not to spin, short against a client's patience.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_share_and_a_network_of_ipv6_is_one_client() {
        let shares = Shares::default();
        let take = |client: &str| shares.take(client.parse().unwrap(), 2);
        let (first, second) = (take("2001:db8::1"), take("2001:db8::2:3"));
        assert!(first.is_some() && second.is_some());
        assert!(take("2001:db8:0:0:ffff::").is_none(), "one past it");
        let others = [take("2001:db8:0:1::1"), take("192.0.2.1"), take("::ffff:192.0.2.1"), take("192.0.2.2")];
        assert!(others.iter().all(Option::is_some));
        assert!(take("192.0.2.1").is_none(), "the mapped form is the same client");
        drop(first);
        assert!(take("2001:db8::3").is_some());
        drop((second, others));
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is kept of who is gone");
    }
}
