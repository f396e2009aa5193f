//! The configuration, resolved and checked: defaults filled in, names looked up, paths absolute to where the file stands.
//!
//! `raw` is the file as typed. [`resolve`] makes a [`Config`] of it and of the rules; it reads nothing, so that it is
//! tested on strings. `load` is the shell around it that reads files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Domain;
use crate::auth;
use crate::clock::{Clock, SystemClock};
use crate::diagnostic::{Diagnostic, Placed, Report, Source};
use crate::log::Format as LogFormat;
use crate::network::Network;
use crate::relay::profile::Profile;
use crate::relay::route::{MX_IS_BUILT, SMTP_PORT};
use crate::relay::{Accept, Host, Login, Route, TlsMode};
use crate::rules::{self, RuleSet, Surroundings};
use crate::spam::Settings as SpamSettings;
use crate::srs::Srs;
use crate::tls;

pub use crate::units;
pub mod spam;
mod terms;
pub mod raw;
mod fallback;
pub mod files;
pub mod systems;
pub mod load;
pub mod records;

pub use crate::tls::ListenerTls;
pub use files::{FileSet, Origin, Prints};
pub use load::{Loaded, Summary, check};

use raw::{Raw, RawAdmin, RawDkim, RawHost, RawRoute, RawSrs};

/// Everything that the daemon is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it came from.
    pub path: PathBuf,
    /// In banner, EHLO and Received.
    pub hostname: String,
    pub data: PathBuf,
    /// Never empty.
    pub listeners: Vec<Listener>,
    /// Hosts that hand us mail from outside: the client before them is checked.
    pub upstream: Vec<Network>,
    /// Absent: nobody is checked.
    pub auth: Option<auth::disposition::Settings>,
    /// Absent: no score is made.
    pub spam: Option<SpamSettings>,
    /// Whom to ask; empty: the system's resolvers.
    pub dns_servers: Vec<SocketAddr>,
    /// There where a listener wants TLS.
    pub tls: Option<tls::Files>,
    pub limits: Limits,
    /// Always has `default`.
    pub routes: BTreeMap<String, Arc<Route>>,
    pub queue: Queue,
    pub retention: Retention,
    /// `None`: no HTTP.
    pub admin: Option<Admin>,
    pub log: LogFormat,
    /// `None`: no sender is rewritten.
    pub srs: Option<Arc<Srs>>,
    /// `None`: notifications go out unsigned.
    pub dkim: Option<Dkim>,
    pub rules: Arc<RuleSet>,
    /// In the order in which they were read.
    pub rule_files: Vec<PathBuf>,
    /// Of the files that it was made of; empty where it was made of none.
    pub prints: Prints,
    /// The files that hold the secrets of `[srs]`.
    pub secret_files: Vec<PathBuf>,
    /// What the files ask for that is not built yet.
    pub inert: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The metric label.
    pub name: String,
    pub address: SocketAddr,
    pub tls: ListenerTls,
    /// Peers that must send a PROXY header.
    pub proxy: Vec<Network>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In octets, as received.
    pub message_size: u64,
    /// Of one transaction.
    pub recipients: usize,
    /// Of one message.
    pub legs: usize,
    /// Of one client, at one time.
    pub sessions_per_client: usize,
    /// At one time, over all listeners.
    pub sessions: usize,
    /// In octets: with more than these no further session begins. `None`: what [`crate::inbound`] finds right.
    pub memory: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Waits before the second attempt, the third …; the last repeats. Never empty.
    pub retry: Vec<Duration>,
    pub expire: Duration,
    /// Octets that must be free on `data`'s file system for new mail.
    pub min_free: u64,
}

/// How long things are kept when they are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub ledger: Duration,
    pub bodies: Duration,
    pub quarantine: Duration,
}

/// What notifications are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dkim {
    pub selector: Domain,
    pub key: KeyPlace,
}

/// Where the DKIM key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// In `data`, where the daemon makes it when it is missing.
    Own(PathBuf),
    /// Where the configuration says: it must be there.
    Given(PathBuf),
}

impl KeyPlace {
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            KeyPlace::Own(path) | KeyPlace::Given(path) => path,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    pub token_file: PathBuf,
}

/// A rules file that was found: its path, and what stands in it.
pub struct RuleSource {
    pub path: PathBuf,
    pub source: Arc<Source>,
}

impl Config {
    /// Reads the file at `path` and all that it names. The report of a success holds warnings at the most.
    pub fn load(path: &Path) -> Result<(Config, Report), Report> {
        load::load(path, Origin::Disk).map(|loaded| (loaded.config, loaded.report))
    }

    /// As [`Config::load`], with the rules that `patterns` find in place of those that the file names. A pattern is relative
    /// to the folder of the file at `path`.
    pub fn load_with_rules(path: &Path, patterns: &[String]) -> Result<(Config, Report), Report> {
        load::load_with_rules(path, patterns).map(|loaded| (loaded.config, loaded.report))
    }

    /// As [`Config::load`], the rules' tests run with it; a test that fails is an error. The files are read at `path`, or
    /// from a kept set, as if it stood there.
    pub fn vet(path: &Path, origin: Origin<'_>) -> Result<Loaded, Report> {
        load::vet(path, origin)
    }

    /// The data directory that the file at `path` names, whatever else is wrong with the configuration. An error only
    /// where the file cannot be read, or is so wrong that nothing in it says so.
    pub fn data_dir(path: &Path) -> Result<PathBuf, Report> {
        load::data_dir(path)
    }

    /// Where the data directory may be if the file does not say so any more, most likely first. Whoever looks there must
    /// make sure that what he finds belongs to his file.
    #[must_use]
    pub fn data_dirs_guessed() -> Vec<PathBuf> {
        load::data_dirs_guessed()
    }
}

/// The configuration that `raw` and the rules files make, or `None` where `report` gained an error.
///
/// `read` gives the text of a file that a rules file names: from the rules file's path and the name as written.
pub fn resolve(
    path: &Path,
    raw: Raw,
    rule_sources: Vec<RuleSource>,
    read: &dyn Fn(&str, &str) -> Result<String, String>,
    report: &mut Report,
) -> Option<Config> {
    let before = report.errors();
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let listeners = listeners(&raw, report);
    let mut routes = routes(&raw, path, read, report);
    let tls = files(&raw, &folder);
    let has_hosts = routes.iter().map(|(name, route)| (name.clone(), !route.hosts.is_empty())).collect();
    let sources: Vec<Arc<Source>> = rule_sources.iter().map(|file| file.source.clone()).collect();
    let checks = checks(&raw);
    let named = |name: &str| read(&path.display().to_string(), name);
    let spam = raw.spam.as_ref().and_then(|raw| spam::resolve(raw, &named, report));
    let (now, scores) = (SystemClock::new().now(), spam.is_some());
    let surroundings = Surroundings { routes: &has_hosts, looks_up_mx: MX_IS_BUILT, checks, scores, now, read };
    let parsed = rules::parse(&sources, &surroundings, report);
    look_at_seals(&raw, checks[3], report);
    let (Some(parsed), Some(hostname)) = (parsed, raw.hostname.as_ref()) else { return None };
    fallback::resolve(&raw, &mut routes, &parsed.rules, report);
    if report.errors() > before {
        return None;
    }
    let srs = raw.srs.as_ref().and_then(|raw| srs(path, raw, read, report));
    let data = data_dir(path, raw.data.as_deref());
    let dkim = dkim(raw.dkim.as_ref(), &folder, &data);
    let (queue, retention) = keeping(&raw);
    let admin = raw.admin.map(|raw| admin(raw, &folder, &data));
    let mut inert = raw.inert;
    inert.extend(parsed.inert);
    inert.sort_unstable();
    inert.dedup();
    let count = |number: Option<u64>, default| number.and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
    Some(Config {
        path: path.to_owned(),
        hostname: hostname.value.to_string(),
        listeners,
        upstream: raw.upstream,
        auth: raw.auth,
        spam,
        dns_servers: raw.dns_servers,
        tls,
        limits: Limits {
            message_size: raw.message_size.unwrap_or(MESSAGE_SIZE),
            recipients: count(raw.recipients, RECIPIENTS),
            legs: count(raw.legs, LEGS),
            sessions_per_client: count(raw.sessions_per_client, CLIENT_SESSIONS),
            sessions: count(raw.sessions, SESSIONS),
            memory: raw.memory,
        },
        routes,
        queue,
        retention,
        admin,
        log: raw.log_format.unwrap_or(LogFormat::Json),
        srs,
        dkim,
        rules: Arc::new(parsed.rules),
        rule_files: rule_sources.into_iter().map(|file| file.path).collect(),
        prints: Prints::default(),
        data,
        secret_files: secret_files(raw.srs.as_ref(), &folder),
        inert,
    })
}

/// How mail is kept, before it has ended and after.
fn keeping(raw: &Raw) -> (Queue, Retention) {
    let queue = Queue {
        retry: raw.retry.clone().unwrap_or_else(|| RETRY_MINUTES.map(|m| Duration::from_secs(m * 60)).to_vec()),
        expire: raw.expire.unwrap_or(EXPIRE),
        min_free: raw.min_free.unwrap_or(MIN_FREE),
    };
    let retention = Retention {
        ledger: raw.retention_ledger.unwrap_or(30 * DAY),
        bodies: raw.retention_bodies.unwrap_or(Duration::ZERO),
        quarantine: raw.retention_quarantine.unwrap_or(30 * DAY),
    };
    (queue, retention)
}

/// `None` where a secret is missing: then nothing is rewritten, and a warning says so. Half the secrets would refuse
/// returns that the others signed.
fn srs(
    path: &Path,
    raw: &RawSrs,
    read: &dyn Fn(&str, &str) -> Result<String, String>,
    report: &mut Report,
) -> Option<Arc<Srs>> {
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    for secret in &raw.secrets {
        let Some(name) = secret.value.strip_prefix("file:") else {
            secrets.push(secret.value.clone().into_bytes());
            continue;
        };
        match read(&path.display().to_string(), name) {
            // A line each, as in postsrsd's file of secrets.
            Ok(text) => {
                secrets.extend(text.lines().filter(|line| !line.is_empty()).map(|line| line.as_bytes().to_vec()))
            }
            Err(error) => {
                let missing = Diagnostic::warning(format!("cannot read `{name}`: {error}")).at(&secret.place);
                report
                    .add(missing.help("until it can be read no sender is rewritten; any line of random text will do"));
                return None;
            }
        }
    }
    let srs = Srs::new(raw.domain.clone(), &secrets);
    if srs.is_none() {
        let empty = Diagnostic::warning("`srs.secrets` holds no secret, or an empty one").at(&raw.place);
        report.add(empty.help("until it does no sender is rewritten"));
    }
    srs.map(Arc::new)
}

/// Signing is on unless it is switched off: a record that is not published yet makes a signature count for nothing, and
/// harms nothing (RFC 6376 §6.1).
fn dkim(raw: Option<&RawDkim>, folder: &Path, data: &Path) -> Option<Dkim> {
    if raw.and_then(|raw| raw.sign) == Some(false) {
        return None;
    }
    let selector = raw.and_then(|raw| raw.selector.clone());
    let key = match raw.and_then(|raw| raw.key.as_ref()) {
        Some(written) => KeyPlace::Given(folder.join(&written.value)),
        None => KeyPlace::Own(data.join(DKIM_KEY)),
    };
    Some(Dkim { selector: selector.unwrap_or_else(|| Domain::parse(SELECTOR).expect("it is one label")), key })
}

fn admin(raw: RawAdmin, folder: &Path, data: &Path) -> Admin {
    Admin {
        address: raw.address.unwrap_or(SocketAddr::from(ADMIN)),
        token_file: raw.token_file.map_or_else(|| data.join("admin.token"), |file| folder.join(file)),
    }
}

fn secret_files(srs: Option<&RawSrs>, folder: &Path) -> Vec<PathBuf> {
    let secrets = srs.iter().flat_map(|srs| &srs.secrets);
    secrets.filter_map(|secret| secret.value.strip_prefix("file:")).map(|name| folder.join(name)).collect()
}

fn data_dir(path: &Path, written: Option<&str>) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(written.unwrap_or(DATA))
}

fn listeners(raw: &Raw, report: &mut Report) -> Vec<Listener> {
    let tls_default = if raw.tls.is_some() { ListenerTls::StartTls } else { ListenerTls::Off };
    if raw.listeners.is_empty() {
        let address = SocketAddr::from(LISTENER);
        return vec![Listener { name: "0".to_owned(), address, tls: tls_default, proxy: Vec::new() }];
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (position, entry) in raw.listeners.iter().enumerate() {
        let name = entry.name.as_ref().map_or_else(|| position.to_string(), |name| name.value.clone());
        if listeners.iter().any(|other| other.name == name) {
            let place = entry.name.as_ref().map_or(&entry.place, |name| &name.place);
            report.add(Diagnostic::error(format!("two listeners are called `{name}`")).at(place));
        }
        // Whoever wants encryption and gets none must not learn it from a packet dump.
        if let Some(Placed { value: ListenerTls::StartTls | ListenerTls::Implicit, place }) = &entry.tls
            && raw.tls.is_none()
        {
            let bare = Diagnostic::error("the listener wants TLS, and there is no `[tls]`").at(place);
            report.add(bare.help("add `[tls]` with `certificate` and `key`, or write `tls = \"off\"`"));
        }
        let Some(address) = &entry.address else { continue };
        let tls = entry.tls.as_ref().map_or(tls_default, |tls| tls.value);
        listeners.push(Listener { name, address: address.value, tls, proxy: entry.proxy.clone() });
    }
    listeners
}

/// Where the certificate stands. `None` also where a key is missing, which is an error of its own.
fn files(raw: &Raw, folder: &Path) -> Option<tls::Files> {
    let tls = raw.tls.as_ref()?;
    let path = |written: &Option<Placed<String>>| written.as_ref().map(|written| folder.join(&written.value));
    Some(tls::Files { certificate: path(&tls.certificate)?, key: path(&tls.key)? })
}

type Read<'a> = &'a dyn Fn(&str, &str) -> Result<String, String>;

/// Which checks run, in the order of the rules' own list.
fn checks(raw: &Raw) -> [bool; 4] {
    let checks = raw.auth.as_ref().map(|auth| &auth.checks);
    checks.map_or([false; 4], |checks| [checks.spf, checks.dkim, checks.dmarc, checks.arc])
}

fn routes(raw: &Raw, path: &Path, read: Read<'_>, report: &mut Report) -> BTreeMap<String, Arc<Route>> {
    let mut routes: BTreeMap<String, Arc<Route>> =
        raw.routes.iter().map(|r| (r.name.value.clone(), route(r, path, read, report))).collect();
    routes.entry("default".to_owned()).or_insert_with(|| Arc::new(Route::named("default")));
    routes
}

fn route(raw: &RawRoute, path: &Path, read: Read<'_>, report: &mut Report) -> Arc<Route> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let default = Route::named(&raw.name.value);
    let tls = raw.tls.unwrap_or(default.tls);
    if let Some(ca) = raw.ca.as_ref().filter(|_| tls != TlsMode::Verify) {
        let idle = Diagnostic::warning(format!("`route.{}.ca` is not looked at", raw.name.value)).at(&ca.place);
        report.add(idle.help("certificates are verified with `tls = \"verify\"` only"));
    }
    if let (Some(source), Some(family)) = (&raw.source, &raw.family)
        && !family.value.allows(source.value)
    {
        let apart = Diagnostic::error("`family` and `source` leave no address to connect to").at(&family.place);
        report.add(apart.help(format!("`source` is {}", source.value)));
    }
    let port = raw.port.unwrap_or(SMTP_PORT);
    let host = |h: &RawHost| Host { name: h.name.clone(), port: h.port.unwrap_or(port), addresses: Vec::new() };
    Arc::new(Route {
        hosts: raw.hosts.iter().map(host).collect(),
        port,
        private_networks: raw.private_networks.unwrap_or(default.private_networks),
        tls,
        ca: raw.ca.as_ref().map(|ca| folder.join(&ca.value)),
        helo: raw.helo.clone(),
        source: raw.source.as_ref().map(|source| source.value),
        family: raw.family.as_ref().map_or(default.family, |family| family.value),
        chunking: raw.chunking.unwrap_or(default.chunking),
        login: login(raw, tls, path, read, report),
        concurrency: raw.concurrency.and_then(|c| usize::try_from(c).ok()).unwrap_or(default.concurrency),
        fallback: default.fallback,
        arc_seal: raw.arc_seal.as_ref().is_some_and(|seal| seal.value),
        sender_rate: raw.sender_rate.unwrap_or(default.sender_rate),
        // A mail host knows by itself what it wants, and its word reaches whoever sends.
        accept: raw.accept.unwrap_or(match raw.wishes.profile {
            Some(Profile::Mailhost) => Accept::Online,
            Some(_) | None => default.accept,
        }),
        wishes: raw.wishes.clone(),
        name: default.name,
    })
}

/// A route that wants seals nobody can make.
fn look_at_seals(raw: &Raw, verifies_arc: bool, report: &mut Report) {
    let signs = raw.dkim.as_ref().and_then(|dkim| dkim.sign) != Some(false);
    for seal in raw.routes.iter().filter_map(|route| route.arc_seal.as_ref()).filter(|seal| seal.value) {
        let missing = match (verifies_arc, signs) {
            (false, _) => "it needs `[auth]` with `arc`: who did not look at a chain cannot go on with it",
            (true, false) => "it needs the key of `[dkim]`, which is switched off",
            (true, true) => continue,
        };
        report.add(Diagnostic::warning("`arc-seal` seals nothing").at(&seal.place).help(missing));
    }
}

/// Name and password, where the route has both and they go inside TLS only.
fn login(raw: &RawRoute, tls: TlsMode, path: &Path, read: Read<'_>, report: &mut Report) -> Option<Login> {
    let (user, file) = match (&raw.user, &raw.password_file) {
        (None, None) => return None,
        (Some(user), Some(file)) => (user, file),
        (Some(alone), None) | (None, Some(alone)) => {
            let half = Diagnostic::error("`user` and `password-file` belong together").at(&alone.place);
            report.add(half);
            return None;
        }
    };
    if !matches!(tls, TlsMode::Require | TlsMode::Verify) {
        let open = Diagnostic::error("a password goes inside TLS only, and this route may do without").at(&user.place);
        report.add(open.help("write `tls = \"verify\"` or `tls = \"require\"`"));
        return None;
    }
    let wrong = |what: String| Diagnostic::error(what).at(&file.place);
    match read(&path.display().to_string(), &file.value) {
        Ok(text) => match text.trim_end_matches(['\r', '\n']) {
            password if password.is_empty() || password.contains(char::is_control) => {
                report.add(wrong(format!("`{}` does not hold a password in one line", file.value)));
                None
            }
            password => Some(Login { user: user.value.clone(), password: password.to_owned() }),
        },
        Err(error) => {
            report.add(wrong(format!("cannot read `{}`: {error}", file.value)));
            None
        }
    }
}

const DKIM_KEY: &str = "dkim.key";
/// Nobody else's, so that the record can stand beside those of the domain's other senders.
const SELECTOR: &str = "pointsman";
/// Where packages put a daemon's state.
const DATA: &str = "/var/lib/pointsman";
/// All addresses, the port of MX hosts (RFC 5321 §4.5.4.2).
const LISTENER: ([u8; 4], u16) = ([0, 0, 0, 0], SMTP_PORT);
/// Loopback only: what is shown there is not for the world.
const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 8025);
/// Gmail sends up to 25 MB of content, some 35 MB when encoded, and takes 50 MB in.
const MESSAGE_SIZE: u64 = 50 * units::MIB;
/// RFC 5321 §4.5.3.1.8: at least 100.
const RECIPIENTS: usize = 100;
/// Twice the recipients: one copy beside each.
const LEGS: usize = 200;
/// As Postfix's smtpd_client_connection_count_limit. Large senders open a handful from each of their addresses.
const CLIENT_SESSIONS: usize = 50;
/// At some 15 KiB each they fit 300 MiB, and the descriptors the usual hard limit of 20,000 and more.
const SESSIONS: usize = 15_000;
/// Soon at first, since most trouble (greylisting, a restart) is short; then once an hour.
const RETRY_MINUTES: [u64; 5] = [1, 5, 15, 30, 60];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// RFC 5321 §4.5.4.1: at least four to five days.
const EXPIRE: Duration = Duration::from_secs(5 * 24 * 60 * 60);
/// A long weekend of ordinary mail while somebody makes room.
const MIN_FREE: u64 = units::GIB;

#[cfg(test)]
mod tests;
