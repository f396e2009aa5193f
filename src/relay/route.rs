//! Routes: the ways out that the administrator configured.
//!
//! The hosts of a route are tried in order. Where it names none, those of the target's domain count: the conductor
//! looks them up (`lookup`) for each domain apart.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::Domain;

use super::profile::{Terms, Wishes};

use crate::relay::fallback::Fallback;

/// A configured way out (`[route.<name>]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: String,
    /// Tried in order. Empty: the MX of the recipient's domain.
    pub hosts: Vec<Host>,
    /// Of the hosts that are looked up; a host that is named has its own.
    pub port: u16,
    /// Hosts that are looked up may have private, loopback and link-local addresses, and ours.
    pub private_networks: bool,
    pub tls: TlsMode,
    /// Roots in PEM beside the system's, for [`TlsMode::Verify`].
    pub ca: Option<PathBuf>,
    /// Our name in EHLO; the daemon's hostname where the route names none.
    pub helo: Option<String>,
    /// The local address to connect from.
    pub source: Option<IpAddr>,
    pub family: Family,
    pub chunking: Chunking,
    /// Who we are to the hosts, for AUTH inside TLS.
    pub login: Option<Login>,
    /// Sessions, and so transactions, at one time.
    pub concurrency: usize,
    /// Whether the reply to the final dot waits for the target's.
    pub accept: Accept,
    pub fallback: Fallback,
    /// Mail is sealed with ARC, so that the host may believe what we found out.
    pub arc_seal: bool,
    /// Answers that one sender may have for one target before they wait; `None` switches it off.
    pub sender_rate: Option<SenderRate>,
    /// What the administrator says of the systems that it leads to.
    pub wishes: Wishes,
}

impl Route {
    /// A route that says nothing but its name: the MX of the recipient's domain.
    #[must_use]
    pub fn named(name: &str) -> Route {
        Route {
            name: name.to_owned(),
            hosts: Vec::new(),
            port: SMTP_PORT,
            private_networks: false,
            // RFC 7435: encrypt where the other side can; a CRM that can be verified is told so by its route.
            tls: TlsMode::Opportunistic,
            ca: None,
            helo: None,
            source: None,
            family: Family::Any,
            chunking: Chunking::Auto,
            login: None,
            concurrency: CONCURRENCY,
            // A client that waits holds a session and may give up; whoever wants the target's word says so.
            accept: Accept::Store,
            fallback: Fallback::default(),
            // The IETF retires it; some CRMs read it still.
            arc_seal: false,
            sender_rate: Some(SENDER_RATE),
            wishes: Wishes::default(),
        }
    }

    /// What holds for a target in `domain` that is reached by this route.
    #[must_use]
    pub fn terms(&self, domain: &Domain) -> Terms {
        self.wishes.terms(domain, self.hosts.iter().map(|host| host.name.as_str()))
    }
}

/// So many within so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderRate {
    pub count: u32,
    pub per: Duration,
}

impl SenderRate {
    /// As it is written; `None` for `off`.
    pub fn parse(text: &str) -> Result<Option<SenderRate>, String> {
        let parsed = text.split_once('/').and_then(|(number, unit)| {
            let count = number.parse::<u32>().ok().filter(|n| *n > 0)?;
            let seconds = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)].iter().find(|(word, _)| *word == unit)?.1;
            Some(SenderRate { count, per: Duration::from_secs(seconds) })
        });
        match parsed {
            Some(rate) => Ok(Some(rate)),
            None if text == "off" => Ok(None),
            None => Err("expected a rate such as `100/h` or `10/m`, or `off`".to_owned()),
        }
    }
}

/// As it is written: `100/h`.
impl fmt::Display for SenderRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            3_600 => "h",
            _ => "d",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// When a message is acknowledged to the client that brings it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// When it is stored.
    #[default]
    Store,
    /// When it is stored and the target has answered, or takes too long: what the target refuses for its content or size
    /// is refused.
    Online,
    /// [`Accept::Online`] for mail whose sender did not authenticate; he could be told nothing later.
    Auto,
}

/// When a message goes by BDAT (RFC 3030) to a host that announces CHUNKING, rather than by DATA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chunking {
    /// Where DATA would change it: it does not end in CRLF. Everybody understands DATA, and not all that announce BDAT do.
    #[default]
    Auto,
    On,
    Off,
}

/// The addresses that a route connects to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    #[default]
    Any,
    Ipv4,
    Ipv6,
}

impl Family {
    #[must_use]
    pub fn allows(self, ip: IpAddr) -> bool {
        match self {
            Family::Any => true,
            Family::Ipv4 => ip.is_ipv4(),
            Family::Ipv6 => ip.is_ipv6(),
        }
    }
}

/// A name and a password for AUTH (RFC 4954). What is printed of it is the name.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A host of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name or an address, without brackets.
    pub name: String,
    pub port: u16,
    /// Where it is dialled, in this order. Empty: wherever the system finds it by its name.
    pub addresses: Vec<IpAddr>,
}

/// The port of MX hosts (RFC 5321 §4.5.4.2).
pub const SMTP_PORT: u16 = 25;
/// A person answers a few times an hour, a CRM that answers itself some times a minute.
const SENDER_RATE: SenderRate = SenderRate { count: 100, per: Duration::from_secs(60 * 60) };
/// As Postfix's default_destination_concurrency_limit, which receivers are used to.
const CONCURRENCY: usize = 20;

/// Whether the conductor looks up the hosts of a route that names none. `check` and `explain` tell by it what waits.
pub const MX_IS_BUILT: bool = true;

/// How much TLS a route asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    Off,
    /// Where the host offers it and it comes about; else in clear text.
    Opportunistic,
    /// Always, with any certificate.
    Require,
    /// Always, with a certificate that leads to a known root and bears the host's name.
    Verify,
}

/// What a message asks of its session beyond what the route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Nothing.
    Usual,
    /// [`TlsMode::Verify`], because its sender said REQUIRETLS (RFC 8689).
    VerifiedTls,
}

impl TlsMode {
    /// The word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TlsMode::Off => "off",
            TlsMode::Opportunistic => "opportunistic",
            TlsMode::Require => "require",
            TlsMode::Verify => "verify",
        }
    }
}
