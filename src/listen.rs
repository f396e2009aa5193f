//! The ports that the daemon listens on: sockets that a service manager holds for us, and those that we bind ourselves.
//!
//! A socket that systemd holds (`LISTEN_FDS`, sd_listen_fds(3)) outlives the daemon: while one is replaced by the next,
//! clients wait in its backlog and none is refused, and nobody needs the right to bind port 25. Each must belong to a
//! `[[listener]]`, by the name that its unit gives it (`FileDescriptorName=`) or by its address: one that belonged to
//! nobody would let clients connect and never answer them. A listener without such a socket is bound here.
//!
//! The only place that names listenfd.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context, bail};
use listenfd::ListenFd;
use rustix::net::sockopt;
use tokio::net::TcpListener;

use crate::config::Config;

/// Sockets that are open already when the program starts.
pub struct Inherited(Vec<(Offered, std::net::TcpListener)>);

/// What is known of such a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offered {
    /// `FileDescriptorName=`; by default the unit's name.
    name: String,
    address: SocketAddr,
    /// An IPv6 socket that takes no IPv4 clients.
    only_v6: bool,
}

/// What the configuration wants to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    address: SocketAddr,
}

/// Every port, open.
pub struct Open {
    /// In the order of the configuration, with the listener's name.
    pub listeners: Vec<(String, TcpListener)>,
    /// The HTTP side, where there is one.
    pub admin: Option<TcpListener>,
}

impl Inherited {
    /// Nobody holds a socket for us.
    #[must_use]
    pub fn none() -> Inherited {
        Inherited(Vec::new())
    }

    /// Takes what the service manager passed, and forgets the variables that said so. Call it before there are threads. An
    /// error where something else than a listening TCP socket was passed.
    pub fn from_environment() -> anyhow::Result<Inherited> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for at in 0..passed.len() {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned());
            let no_use = || format!("the service manager passed socket `{name}`, which is of no use here");
            let Some(socket) = passed.take_tcp_listener(at).with_context(no_use)? else { continue };
            if !sockopt::socket_acceptconn(&socket).with_context(no_use)? {
                bail!("{}: it does not listen; its unit must say `Accept=no`", no_use());
            }
            let address = socket.local_addr().with_context(no_use)?;
            let only_v6 = address.is_ipv6() && sockopt::ipv6_v6only(socket.as_fd()).with_context(no_use)?;
            sockets.push((Offered { name, address, only_v6 }, socket));
        }
        Ok(Inherited(sockets))
    }
}

/// Opens every port that the configuration wants. An error where one cannot be bound, or where a socket that was passed
/// belongs to none.
pub async fn open(inherited: Inherited, config: &Config) -> anyhow::Result<Open> {
    let listeners = config.listeners.iter().map(|l| Wanted { name: l.name.clone(), address: l.address });
    let admin = config.admin.as_ref().map(|admin| Wanted { name: ADMIN.to_owned(), address: admin.address });
    let wanted: Vec<Wanted> = listeners.chain(admin).collect();
    let (offered, mut sockets): (Vec<Offered>, Vec<_>) =
        inherited.0.into_iter().map(|(offered, socket)| (offered, Some(socket))).unzip();
    let mut open = Vec::new();
    for (wanted, place) in wanted.iter().zip(assign(&wanted, &offered)?) {
        open.push(match place.and_then(|place| sockets[place].take()) {
            Some(socket) => adopt(socket).with_context(|| format!("cannot use socket `{}`", wanted.name))?,
            None => bind(wanted, &offered).await?,
        });
    }
    let admin = config.admin.as_ref().and_then(|_| open.pop());
    let names = config.listeners.iter().map(|listener| listener.name.clone());
    Ok(Open { listeners: names.zip(open).collect(), admin })
}

/// For each port that is wanted, which of the offered sockets it gets: one of its name, else one of its address. The error
/// says which two do not go together.
fn assign(wanted: &[Wanted], offered: &[Offered]) -> anyhow::Result<Vec<Option<usize>>> {
    let mut taken = vec![false; offered.len()];
    let mut places = vec![None; wanted.len()];
    // Names first, so that no address takes away a socket that is meant for another.
    for by_name in [true, false] {
        for (port, place) in wanted.iter().zip(&mut places).filter(|(_, place)| place.is_none()) {
            // Port 0 asks for any port: it is no address that two could have in common.
            let fits = |at: &usize| if by_name { offered[*at].name == port.name } else { port.address.port() != 0 };
            let free = |at: &usize| !taken[*at] && fits(at);
            let Some(first) = (0..offered.len()).find(free) else { continue };
            // Two sockets of one name may listen on different addresses.
            *place = (0..offered.len()).filter(free).find(|&at| offered[at].serves(port.address));
            if by_name && place.is_none() {
                let (socket, address) = (&offered[first], port.address);
                bail!(
                    "socket `{}` of the service manager listens on {}{}, and listener `{}` of the configuration on \
                     {address}: let them say the same",
                    socket.name,
                    socket.address,
                    if socket.only_v6 { " (IPv6 only)" } else { "" },
                    port.name
                );
            }
            if let Some(at) = *place {
                taken[at] = true;
            }
        }
    }
    if let Some(idle) = (0..offered.len()).find(|at| !taken[*at]) {
        let list: Vec<String> = wanted.iter().map(|port| format!("`{}` on {}", port.name, port.address)).collect();
        bail!(
            "the service manager holds socket `{}` on {}, and no listener has that name (FileDescriptorName=) or \
             address; there are: {}",
            offered[idle].name,
            offered[idle].address,
            list.join(", ")
        );
    }
    Ok(places)
}

impl Offered {
    /// Whether all clients of `address` come to this socket.
    fn serves(&self, address: SocketAddr) -> bool {
        let (socket, wanted) = (self.address.ip(), address.ip());
        // systemd's `ListenStream=25` is one socket for both families.
        let both = socket.is_ipv6() && socket.is_unspecified() && wanted.is_unspecified() && !self.only_v6;
        (address.port() == 0 || address.port() == self.address.port()) && (socket == wanted || both)
    }
}

fn adopt(socket: std::net::TcpListener) -> std::io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

async fn bind(wanted: &Wanted, offered: &[Offered]) -> anyhow::Result<TcpListener> {
    let failed = |error: &std::io::Error| {
        let held = offered.iter().map(|socket| format!("`{}` on {}", socket.name, socket.address));
        let held: Vec<String> = held.collect();
        let mut text = format!("cannot listen on {}", wanted.address);
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            text += " (ports below 1024 need CAP_NET_BIND_SERVICE, or a socket that systemd holds)";
        }
        if !held.is_empty() {
            text += &format!(" for `{}`; the service manager holds only {}", wanted.name, held.join(", "));
        }
        text
    };
    match TcpListener::bind(wanted.address).await {
        Ok(listener) => Ok(listener),
        Err(error) => {
            let text = failed(&error);
            Err(anyhow::Error::new(error).context(text))
        }
    }
}

/// What a unit calls the socket of `[admin]`.
const ADMIN: &str = "admin";

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Vec<Wanted> {
        pairs(text).map(|(name, address)| Wanted { name: name.into(), address: address.parse().unwrap() }).collect()
    }

    fn offered(text: &str) -> Vec<Offered> {
        let offer = |(name, address): (&str, &str)| {
            let only_v6 = address.ends_with('!');
            Offered { name: name.into(), address: address.trim_end_matches('!').parse().unwrap(), only_v6 }
        };
        pairs(text).map(offer).collect()
    }

    fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
        text.split_whitespace().map(|pair| pair.split_once('=').unwrap())
    }

    #[test]
    fn a_socket_goes_to_the_listener_of_its_name_or_address() {
        for (ports, sockets, want) in [
            ("mx=0.0.0.0:25", "", vec![None]),
            ("mx=0.0.0.0:25", "mx=0.0.0.0:25", vec![Some(0)]),
            ("0=0.0.0.0:25", "pointsman.socket=0.0.0.0:25", vec![Some(0)]),
            // One socket for both families.
            ("mx=0.0.0.0:25", "mx=[::]:25", vec![Some(0)]),
            ("mx=[::]:25", "mx=[::]:25!", vec![Some(0)]),
            ("mx=127.0.0.1:0", "mx=127.0.0.1:2525", vec![Some(0)]),
            ("a=127.0.0.1:1 b=127.0.0.1:2", "x=127.0.0.1:2 y=127.0.0.1:1", vec![Some(1), Some(0)]),
            // Two sockets of one name and port, a listener each.
            ("four=0.0.0.0:25 six=[::]:25", "mx=[::]:25! mx=0.0.0.0:25", vec![Some(1), Some(0)]),
            // What has a name is not taken away by an address.
            ("a=127.0.0.1:0 b=127.0.0.1:2", "b=127.0.0.1:2", vec![None, Some(0)]),
            ("mx=0.0.0.0:25 admin=127.0.0.1:8025", "mx=0.0.0.0:25", vec![Some(0), None]),
        ] {
            assert_eq!(assign(&wanted(ports), &offered(sockets)).unwrap(), want, "{ports} from {sockets}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_an_error_that_names_both() {
        for (ports, sockets, says) in [
            ("mx=0.0.0.0:25", "mx=0.0.0.0:2525", "listens on 0.0.0.0:2525, and listener `mx` of the configuration on"),
            ("mx=0.0.0.0:25", "mx=[::]:25!", "[::]:25 (IPv6 only)"),
            ("mx=[::]:25", "mx=0.0.0.0:25", "on [::]:25: let them"),
            ("mx=127.0.0.1:0", "smtps=127.0.0.1:465", "holds socket `smtps`"),
            ("mx=0.0.0.0:25", "smtps=0.0.0.0:465", "holds socket `smtps` on 0.0.0.0:465, and no listener"),
            ("mx=0.0.0.0:25", "mx=0.0.0.0:25 mx=0.0.0.0:25", "there are: `mx` on 0.0.0.0:25"),
        ] {
            let error = assign(&wanted(ports), &offered(sockets)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
