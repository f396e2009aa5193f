//! The real DNS, asked through hickory. Only this file and `auth/verify.rs` know it.
//!
//! Hickory's own cache is off: it keeps no failures, and ours bounds its size in octets. DNSSEC is not validated
//! (a validator in the process is a way in for endless work), and the hosts file does not count for mail.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{TokioResolver, system_conf};

use super::places::Places;
use super::{Dns, DnsError, Found, Mx, Pending, Question, Records};
use crate::events;

/// The resolver of the system, or of the configuration.
pub struct Resolver {
    hickory: TokioResolver,
    places: Places,
}

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up DNS look-ups")]
pub struct ResolverError(#[from] NetError);

impl Resolver {
    /// Asks the given name servers, or those of `/etc/resolv.conf` where the list is empty. Takes a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's configuration cannot be read.
    pub fn new(servers: &[SocketAddr]) -> Result<Resolver, ResolverError> {
        let config = if servers.is_empty() {
            or_local(system_conf::read_system_conf().map(|(config, _)| config))?
        } else {
            ResolverConfig::from_name_servers(servers.iter().map(|server| name_server(*server)).collect())
        };
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let hickory = builder.with_options(options()).build()?;
        Ok(Resolver { hickory, places: Places::new() })
    }

    async fn look_up(&self, question: &Question) -> Result<Found, DnsError> {
        let (name, kind) = match question {
            Question::Txt(name) => (fully_qualified(name)?, RecordType::TXT),
            Question::Mx(name) => (fully_qualified(name)?, RecordType::MX),
            Question::A(name) => (fully_qualified(name)?, RecordType::A),
            Question::Aaaa(name) => (fully_qualified(name)?, RecordType::AAAA),
            Question::Ptr(ip) => (Name::from(*ip), RecordType::PTR),
        };
        // The wait for a place is part of the wait for the answer.
        let _place = self.places.take(question).await;
        let lookup = self.hickory.lookup(name, kind).await.map_err(|error| reason(&error))?;
        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
        let records = records(question, &lookup).ok_or(DnsError::NoRecords)?;
        Ok(Found { records, ttl: Duration::from_secs(u64::from(ttl)) })
    }
}

impl Dns for Resolver {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        Box::pin(async move {
            // Hickory bounds each try; a slow drip over several servers is bounded here.
            let answer = tokio::time::timeout(ANSWER_WAIT_MAX, self.look_up(question)).await;
            let answer = answer.unwrap_or(Err(DnsError::Temporary));
            events::dns_answered(match &answer {
                Ok(_) => "found",
                Err(DnsError::NotFound | DnsError::NoRecords) => "nothing",
                Err(DnsError::Temporary | DnsError::OverBudget) => "failed",
            });
            answer
        })
    }
}

/// A system that names no name server means its own (resolv.conf(5)); that is no reason not to start.
fn or_local(system: Result<ResolverConfig, NetError>) -> Result<ResolverConfig, NetError> {
    match system {
        // Hickory says `Other` of a file in which none is named.
        Err(NetError::Io(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Other) => {
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT));
            Ok(ResolverConfig::from_name_servers(vec![name_server(local)]))
        }
        other => other,
    }
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    // A negative answer of the server that the administrator named is believed.
    NameServerConfig::new(server.ip(), true, connections.into())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = TRY_WAIT_MAX;
    options.attempts = TRIES_MAX;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = ACTIVE_REQUESTS_MAX;
    options
}

/// The name octet by octet: hickory's reading of text refuses the signs that SPF's macros bring along (`+`, `=`, a
/// space), and takes a backslash for the begin of something else. Made of labels, it needs no search list of the system.
fn fully_qualified(name: &str) -> Result<Name, DnsError> {
    Name::from_labels(name.split('.').map(str::as_bytes)).map_err(|_| DnsError::NotFound)
}

fn reason(error: &NetError) -> DnsError {
    if error.is_nx_domain() {
        DnsError::NotFound
    } else if error.is_no_records_found() {
        DnsError::NoRecords
    } else {
        DnsError::Temporary
    }
}

/// The records of the kind that was asked for, cut at [`RECORDS_MAX`]; a CNAME on the way is passed over.
fn records(question: &Question, lookup: &Lookup) -> Option<Records> {
    let data = || lookup.answers().iter().map(|record| &record.data).take(RECORDS_MAX);
    let records = match question {
        Question::Txt(_) => Records::Txt(
            data()
                .filter_map(|data| match data {
                    RData::TXT(txt) => Some(txt.txt_data.concat()),
                    _ => None,
                })
                .collect(),
        ),
        Question::Mx(_) => {
            let mut all: Vec<Mx> = data()
                .filter_map(|data| match data {
                    RData::MX(mx) => Some(Mx { preference: mx.preference, exchange: text(&mx.exchange) }),
                    _ => None,
                })
                .collect();
            all.sort();
            Records::Mx(all.into())
        }
        Question::A(_) => Records::A(
            data()
                .filter_map(|data| match data {
                    RData::A(a) => Some(a.0),
                    _ => None,
                })
                .collect(),
        ),
        Question::Aaaa(_) => Records::Aaaa(
            data()
                .filter_map(|data| match data {
                    RData::AAAA(aaaa) => Some(aaaa.0),
                    _ => None,
                })
                .collect(),
        ),
        Question::Ptr(_) => Records::Ptr(
            data()
                .filter_map(|data| match data {
                    RData::PTR(ptr) => Some(text(ptr)),
                    _ => None,
                })
                .collect(),
        ),
    };
    (!is_empty(&records)).then_some(records)
}

fn is_empty(records: &Records) -> bool {
    match records {
        Records::Txt(all) => all.is_empty(),
        Records::Mx(all) => all.is_empty(),
        Records::A(all) => all.is_empty(),
        Records::Aaaa(all) => all.is_empty(),
        Records::Ptr(all) => all.is_empty(),
    }
}

fn text(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
}

const DNS_PORT: u16 = 53;
/// One try. Resolvers near by answer what they know in milliseconds and give up on the rest after some seconds.
const TRY_WAIT_MAX: Duration = Duration::from_secs(3);
const TRIES_MAX: usize = 2;
/// All tries of one question.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(6);
/// Hickory's 32 starve a hundred sessions that each ask five things at once.
const ACTIVE_REQUESTS_MAX: usize = 1024;
/// Nobody needs more, and SPF looks at ten.
const RECORDS_MAX: usize = 200;

#[cfg(test)]
mod tests;
