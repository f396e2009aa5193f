//! What a configuration becomes in the running daemon: built whole first, then put in force in one go that cannot fail.
//!
//! What was bound at the start ([`Fixed`]) stays; a configuration that wants it otherwise waits for a restart with that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::address::Mailbox;
use crate::auth::key_file::{self, Found};
use crate::auth::sign::Signer;
use crate::auth::verify::Checker;
use crate::clock::Timestamp;
use crate::config::{Config, KeyPlace, Listener, ListenerTls};
use crate::dns::Dns;
use crate::dns::cache::Cache;
use crate::dns::resolver::Resolver;
use crate::events;
use crate::id;
use crate::inbound::mailhost::Mailhosts;
use crate::inbound::{Inbound, Manner, Ruling, Scorer, memory};
use crate::log;
use crate::loops::Marks;
use crate::outbound::{self, Outbound, Ways};
use crate::queue::sqlite::{Retention, SqliteStore};
use crate::relay::dial::{TcpDial, Timeouts};
use crate::smtp::settings::Settings;
use crate::spam;
use crate::tls;

/// What the start bound: no reload changes it.
#[derive(Clone, Debug)]
pub struct Fixed {
    pub data: PathBuf,
    /// As the configuration had them, in its order.
    pub listeners: Vec<(String, SocketAddr)>,
    /// Where those are in truth: port 0 is none.
    pub bound: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

impl Fixed {
    /// The keys of `config` that wait for a restart, since it wants them otherwise.
    #[must_use]
    pub fn waits(&self, config: &Config) -> Vec<&'static str> {
        let listeners: Vec<(String, SocketAddr)> =
            config.listeners.iter().map(|listener| (listener.name.clone(), listener.address)).collect();
        let mut waits = Vec::new();
        let mut key = |name, differs| {
            if differs {
                waits.push(name);
            }
        };
        key("data", self.data != config.data);
        key("listener", self.listeners != listeners);
        key("admin.address", self.admin != config.admin.as_ref().map(|admin| admin.address));
        waits
    }

    /// How each running listener receives by `config`: the one of its name, else of its address, says so. One that the
    /// configuration has no more goes on as it did `before` until the restart.
    fn manners(&self, config: &Config, before: Option<&Ruling>) -> BTreeMap<String, Manner> {
        let of = |(name, address): &(String, SocketAddr)| {
            let by_name = config.listeners.iter().find(|listener| listener.name == *name);
            let wanted = by_name.or_else(|| config.listeners.iter().find(|listener| listener.address == *address));
            let before = || before.and_then(|ruling| ruling.listeners.get(name).cloned());
            (name.clone(), wanted.map(manner).or_else(before).unwrap_or(Manner::PLAIN))
        };
        self.listeners.iter().map(of).collect()
    }
}

fn manner(listener: &Listener) -> Manner {
    Manner { tls: listener.tls, proxy: listener.proxy.clone() }
}

/// Who answers questions to DNS; kept as long as the same servers are asked, for what its cache knows.
#[derive(Clone)]
pub struct Lookup {
    servers: Vec<SocketAddr>,
    dns: Arc<dyn Dns>,
    checker: Option<Arc<Checker>>,
}

impl Lookup {
    fn of(config: &Config, before: Option<&Lookup>) -> anyhow::Result<Lookup> {
        let mut lookup = match before.filter(|before| before.servers == config.dns_servers) {
            Some(before) => before.clone(),
            None => {
                let resolver = Resolver::new(&config.dns_servers).context("cannot set up the DNS resolver")?;
                let dns = Arc::new(Cache::new(resolver));
                Lookup { servers: config.dns_servers.clone(), dns, checker: None }
            }
        };
        if config.auth.is_some() && lookup.checker.is_none() {
            lookup.checker = Some(Arc::new(Checker::new(Arc::clone(&lookup.dns))?));
        }
        Ok(lookup)
    }
}

/// A configuration, ready to be put in force.
pub struct Built {
    pub ruling: Ruling,
    pub ways: Ways,
    pub lookup: Lookup,
    retention: Retention,
    min_free: u64,
    log: log::Format,
}

/// Builds what `config` wants of a daemon with these `fixed` parts. `before` is what is in force.
pub fn build(
    config: &Config,
    fixed: &Fixed,
    before: Option<(&Ruling, &Lookup)>,
    now: Timestamp,
) -> anyhow::Result<Built> {
    let lookup = Lookup::of(config, before.map(|(_, lookup)| lookup))?;
    let signer = signer(config);
    let dial = Arc::new(TcpDial::new(TIMEOUTS, config.routes.values().map(|route| &**route)));
    let mut ruling = ruling(config, fixed, before.map(|(ruling, _)| ruling), &lookup, now)?;
    ruling.signer = signer.clone();
    let asked = before.and_then(|(ruling, _)| ruling.mailhosts.as_deref());
    ruling.mailhosts = Some(Arc::new(Mailhosts::new(dial.clone(), asked)));
    let settings = outbound::Settings {
        hostname: config.hostname.clone(),
        retry: config.queue.retry.clone(),
        expire: config.queue.expire,
        timeouts: TIMEOUTS,
        addresses: fixed.bound.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect(),
        signer,
    };
    let rules = Arc::clone(&config.rules);
    let ways = Ways {
        settings,
        routes: config.routes.clone(),
        dial,
        dns: Arc::clone(&lookup.dns),
        srs: config.srs.clone(),
        is_ours: Arc::new(move |domain| rules.is_ours(domain)),
    };
    let (retention, min_free) = (retention(config), config.queue.min_free);
    Ok(Built { ruling, ways, lookup, retention, min_free, log: config.log })
}

impl Built {
    /// Puts it in force. The way out first: whatever a session decides by the new rules has its route.
    pub fn swap_in(self, inbound: &Inbound, outbound: &Outbound, store: &SqliteStore) -> Lookup {
        outbound.reload(self.ways);
        inbound.rule(self.ruling);
        store.keep(self.retention, self.min_free);
        log::set_format(self.log);
        self.lookup
    }
}

/// How long the store keeps what is over.
#[must_use]
pub fn retention(config: &Config) -> Retention {
    Retention {
        ledger: config.retention.ledger,
        bodies: config.retention.bodies,
        quarantine: config.retention.quarantine,
    }
}

fn ruling(
    config: &Config,
    fixed: &Fixed,
    before: Option<&Ruling>,
    lookup: &Lookup,
    now: Timestamp,
) -> anyhow::Result<Ruling> {
    let postmaster = match config.rules.postmaster() {
        Some(mailbox) => mailbox,
        // Without a domain of ours nobody takes it; the rules will say so.
        None => Mailbox::parse(&format!("postmaster@{}", config.hostname)).context("the hostname is no domain")?,
    };
    let limits = config.limits;
    let session = Settings::new(config.hostname.clone(), postmaster, limits.message_size, limits.recipients);
    Ok(Ruling {
        session: Arc::new(session),
        rules: Arc::clone(&config.rules),
        routes: config.routes.clone(),
        legs_max: limits.legs,
        sessions_max: limits.sessions,
        client_sessions_max: limits.sessions_per_client,
        memory_max: limits.memory.or_else(memory::allowance).unwrap_or(u64::MAX),
        listeners: fixed.manners(config, before),
        tls: certificate(config, before, now),
        srs: config.srs.clone(),
        marks: marks(config),
        signer: None,
        auth: config.auth.clone(),
        dns: Arc::clone(&lookup.dns),
        checker: lookup.checker.clone(),
        spam: config.spam.as_ref().map(|settings| scorer(settings, before)),
        mailhosts: None,
        upstream: config.upstream.clone(),
    })
}

/// What scores mail. It is kept while it has the same settings, for what it knows of the block lists.
fn scorer(settings: &spam::Settings, before: Option<&Ruling>) -> Arc<Scorer> {
    let before = before.and_then(|ruling| ruling.spam.as_ref());
    match before.filter(|scorer| scorer.settings == *settings) {
        Some(before) => Arc::clone(before),
        None => Arc::new(Scorer::new(settings.clone())),
    }
}

/// What notifications are signed with, and seals made. Without a key notifications go out unsigned: better than not at all.
fn signer(config: &Config) -> Option<Arc<Signer>> {
    let dkim = config.dkim.as_ref()?;
    let opened = match &dkim.key {
        KeyPlace::Own(path) => key_file::open_or_make(path),
        KeyPlace::Given(path) => key_file::open(path).map(|key| (key, Found::There)),
    };
    match opened {
        Ok((key, found)) => {
            if found == Found::Made {
                events::dkim_key_made(&dkim.key.path().display().to_string(), dkim.selector.as_str());
            }
            Some(Arc::new(Signer::new(key, dkim.selector.clone())))
        }
        Err(error) => {
            events::dkim_key_unusable(&error);
            None
        }
    }
}

/// What our copies are known by when they come back. Without a key they are not, and hops are counted all the same.
fn marks(config: &Config) -> Option<Arc<Marks>> {
    match key_file::open_or_make_secret(&config.data.join(LOOP_KEY), id::secret_word) {
        Ok(secret) => Marks::new(&secret).map(Arc::new),
        Err(error) => {
            events::loop_key_unusable(&error);
            None
        }
    }
}

/// The certificate of the same files goes on, and is renewed by itself; of others it is opened. Loading has looked at it:
/// where it cannot be used now, a kept configuration starts without, and TLS is not offered until it can.
fn certificate(config: &Config, before: Option<&Ruling>, now: Timestamp) -> Option<Arc<tls::Server>> {
    let files = config.tls.as_ref()?;
    if let Some(server) = before.and_then(|ruling| ruling.tls.as_ref()).filter(|server| server.files() == files) {
        return Some(Arc::clone(server));
    }
    let (server, opened) = tls::Server::open_anyway(files.clone());
    match (opened, server.expires()) {
        (Err(error), _) => events::certificate_missing(&error),
        (Ok(()), Some(expires)) if expires <= now => events::certificate_expired(expires),
        (Ok(()), _) => {}
    }
    Some(Arc::new(server))
}

/// The listeners that show a certificate.
pub fn with_certificate(ruling: &Ruling) -> impl Iterator<Item = &str> {
    ruling.listeners.iter().filter(|(_, manner)| manner.tls != ListenerTls::Off).map(|(name, _)| name.as_str())
}

/// In the data directory.
const LOOP_KEY: &str = "loop.key";
const TIMEOUTS: Timeouts = Timeouts::rfc5321();
