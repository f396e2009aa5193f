//! `pointsman.toml` as typed: every section, every key, each value in its own type. What is absent is `None`.
//!
//! Keys whose function is not built yet are read as strictly as the others and then only named (`inert`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::address::Domain;
use crate::diagnostic::{Diagnostic, Place, Placed, Report, Source};
use crate::document::{Document, Section, Value};
use crate::network::Network;
use crate::relay::profile::Wishes;
use crate::relay::route::SenderRate;
use crate::relay::{Accept, Chunking, Family, TlsMode};
use crate::sketch::Node;

use super::ListenerTls;
use super::spam::{self, RawSpam};
use super::terms;
use crate::auth::disposition::{DmarcMode, OnTemperror, Settings};
use crate::auth::verify;
use crate::log::Format as LogFormat;
use crate::srs::DOMAIN_OCTETS_MAX;
use crate::units;

/// The file.
#[derive(Debug, Default)]
pub struct Raw {
    pub hostname: Option<Placed<Domain>>,
    pub data: Option<String>,
    pub rules: Option<Vec<Placed<String>>>,
    pub listeners: Vec<RawListener>,
    pub tls: Option<RawTls>,
    pub message_size: Option<u64>,
    pub recipients: Option<u64>,
    pub legs: Option<u64>,
    pub sessions_per_client: Option<u64>,
    pub sessions: Option<u64>,
    pub memory: Option<u64>,
    pub routes: Vec<RawRoute>,
    pub retry: Option<Vec<Duration>>,
    pub expire: Option<Duration>,
    pub min_free: Option<u64>,
    pub retention_ledger: Option<Duration>,
    pub retention_bodies: Option<Duration>,
    pub retention_quarantine: Option<Duration>,
    pub admin: Option<RawAdmin>,
    pub log_format: Option<LogFormat>,
    pub upstream: Vec<Network>,
    pub auth: Option<Settings>,
    pub spam: Option<RawSpam>,
    pub dns_servers: Vec<SocketAddr>,
    pub srs: Option<RawSrs>,
    pub dkim: Option<RawDkim>,
    pub inert: Vec<String>,
}

#[derive(Debug)]
pub struct RawListener {
    pub name: Option<Placed<String>>,
    pub address: Option<Placed<SocketAddr>>,
    pub tls: Option<Placed<ListenerTls>>,
    pub proxy: Vec<Network>,
    pub place: Place,
}

#[derive(Debug)]
pub struct RawTls {
    pub certificate: Option<Placed<String>>,
    pub key: Option<Placed<String>>,
}

#[derive(Debug)]
pub struct RawRoute {
    pub name: Placed<String>,
    pub hosts: Vec<RawHost>,
    pub port: Option<u16>,
    pub private_networks: Option<bool>,
    pub tls: Option<TlsMode>,
    pub ca: Option<Placed<String>>,
    pub helo: Option<String>,
    pub source: Option<Placed<IpAddr>>,
    pub family: Option<Placed<Family>>,
    pub user: Option<Placed<String>>,
    pub password_file: Option<Placed<String>>,
    pub chunking: Option<Chunking>,
    pub concurrency: Option<u64>,
    pub accept: Option<Accept>,
    pub arc_seal: Option<Placed<bool>>,
    /// `Some(None)`: switched off.
    pub sender_rate: Option<Option<SenderRate>>,
    pub wishes: Wishes,
    pub fallback: Option<RawFallback>,
}

/// `fallback = "route"`, or a table.
#[derive(Debug)]
pub struct RawFallback {
    pub route: Option<Placed<String>>,
    /// The name of a target, or an address.
    pub to: Option<Placed<String>>,
    pub after: Option<Placed<Duration>>,
    pub on_auth: Option<Placed<bool>>,
    pub place: Place,
}

#[derive(Debug, PartialEq, Eq)]
pub struct RawHost {
    /// A name or an address, without brackets.
    pub name: String,
    pub port: Option<u16>,
}

#[derive(Debug)]
pub struct RawSrs {
    pub domain: Domain,
    /// `file:` and a name, or the secret itself.
    pub secrets: Vec<Placed<String>>,
    pub place: Place,
}

#[derive(Debug)]
pub struct RawDkim {
    pub sign: Option<bool>,
    pub selector: Option<Domain>,
    pub key: Option<Placed<String>>,
}

#[derive(Debug)]
pub struct RawAdmin {
    pub address: Option<SocketAddr>,
    pub token_file: Option<String>,
}

/// Reads the file. What is wrong goes into `report`, the rest into the result.
pub fn read(source: &Arc<Source>, report: &mut Report) -> Option<Raw> {
    let document = match Document::parse(source) {
        Ok(document) => document,
        Err(syntax) => {
            report.append(syntax);
            return None;
        }
    };
    let mut raw = Raw::default();
    read_all(document.root(), &mut raw);
    report.append(document.into_report());
    Some(raw)
}

/// What the configuration may hold, as JSON Schema.
#[must_use]
pub fn schema() -> Json {
    let root = Node::default();
    let nothing = Source::new("", "");
    for yes in [false, true] {
        read_all(Document::sketch(&nothing, &root, yes).root(), &mut Raw::default());
    }
    let mut schema = root.borrow().json();
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Configuration of Pointsman");
    schema
}

fn read_all(mut root: Section<'_>, raw: &mut Raw) {
    raw.hostname = root.require("hostname").and_then(|v| v.parsed(hostname));
    raw.data = root.take("data").and_then(|v| v.string()).map(|path| path.value);
    raw.rules = root.take("rules").map(|v| v.one_or_many().iter().filter_map(Value::string).collect());
    raw.listeners = root.sections("listener").into_iter().map(listener).collect();
    raw.tls = root.section("tls").map(tls);
    for (name, value) in root.section("route").iter().flat_map(Section::entries) {
        raw.routes.extend(route(name, &value));
    }
    limits(root.section("limits"), raw);
    queue(root.section("queue"), raw);
    retention(root.section("retention"), raw);
    raw.admin = root.section("admin").map(admin);
    if let Some(mut log) = root.section("log") {
        let words = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        raw.log_format = log.take("format").and_then(|v| v.choice(&words)).map(|f| f.value);
        log.finish();
    }
    raw.srs = root.section("srs").and_then(srs);
    raw.dkim = root.section("dkim").map(dkim);
    if let Some(section) = root.section("upstream") {
        raw.upstream = upstream(section);
    }
    raw.auth = root.section("auth").map(auth);
    raw.dns_servers = root.section("dns").map(|section| dns(section, &mut raw.inert)).unwrap_or_default();
    raw.spam = root.section("spam").map(spam::read);
    root.finish();
}

/// The data directory that a file names which is no TOML as a whole: by the line that says so, before any section.
#[must_use]
pub fn data_in_ruins(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    lines.filter(|line| line.starts_with("data")).find_map(|line| {
        let source = Source::new("", line);
        let document = Document::parse(&source).ok()?;
        document.root().take("data")?.string().map(|data| data.value)
    })
}

fn hostname(text: &str) -> Result<Domain, String> {
    match Domain::parse(text) {
        Ok(domain) if domain.is_literal() => Err("expected a name, not an address literal".to_owned()),
        Ok(domain) => Ok(domain),
        Err(error) => Err(error.to_string()),
    }
}

fn listener(mut section: Section<'_>) -> RawListener {
    let place = section.place();
    let words = [("off", ListenerTls::Off), ("starttls", ListenerTls::StartTls), ("implicit", ListenerTls::Implicit)];
    let name = section.take("name").and_then(|v| v.string());
    let address = section.require("address").and_then(|v| v.parsed(socket_address));
    let tls = section.take("tls").and_then(|v| v.choice(&words));
    let proxy: Vec<Network> = section.take("proxy").map(|v| networks(&v)).unwrap_or_default();
    section.finish();
    RawListener { name, address, tls, proxy, place }
}

fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "expected an IP address and a port, such as `0.0.0.0:25` or `[::]:25`")
}

fn networks(value: &Value<'_>) -> Vec<Network> {
    value.one_or_many().iter().filter_map(|v| v.parsed(Network::parse)).map(|n| n.value).collect()
}

fn route(name: Placed<String>, value: &Value<'_>) -> Option<RawRoute> {
    let mut section = value.section()?;
    let tls = [
        ("off", TlsMode::Off),
        ("opportunistic", TlsMode::Opportunistic),
        ("require", TlsMode::Require),
        ("verify", TlsMode::Verify),
    ];
    let families = [("any", Family::Any), ("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)];
    let chunking = [("auto", Chunking::Auto), ("on", Chunking::On), ("off", Chunking::Off)];
    let accepts = [("store", Accept::Store), ("online", Accept::Online), ("auto", Accept::Auto)];
    let hosts = section.take("hosts").map(|v| v.one_or_many()).unwrap_or_default();
    let route = RawRoute {
        hosts: hosts.iter().filter_map(|v| v.parsed(host)).map(|host| host.value).collect(),
        port: section.take("port").and_then(|v| v.integer(1..=65_535)).and_then(|p| u16::try_from(p.value).ok()),
        private_networks: section.take("private-networks").and_then(|v| v.boolean()).map(|private| private.value),
        tls: section.take("tls").and_then(|v| v.choice(&tls)).map(|tls| tls.value),
        ca: section.take("ca").and_then(|v| v.string()),
        helo: section.take("helo").and_then(|v| v.parsed(hostname)).map(|helo| helo.value.to_string()),
        source: section.take("source").and_then(|v| v.parsed(ip)),
        family: section.take("family").and_then(|v| v.choice(&families)),
        user: section.take("user").and_then(|v| v.parsed(user)),
        password_file: section.take("password-file").and_then(|v| v.string()),
        chunking: section.take("chunking").and_then(|v| v.choice(&chunking)).map(|chunking| chunking.value),
        concurrency: section.take("concurrency").and_then(|v| v.integer(1..=CONCURRENCY_MAX)).map(|c| c.value),
        accept: section.take("accept").and_then(|v| v.choice(&accepts)).map(|accept| accept.value),
        arc_seal: section.take("arc-seal").and_then(|v| v.boolean()),
        sender_rate: section.take("sender-rate").and_then(|v| v.parsed(SenderRate::parse)).map(|rate| rate.value),
        wishes: terms::read(&mut section),
        fallback: section.take("fallback").and_then(fallback),
        name,
    };
    section.finish();
    Some(route)
}

fn fallback(value: Value<'_>) -> Option<RawFallback> {
    let place = value.place();
    if !value.is_table() {
        return Some(RawFallback { route: Some(value.string()?), to: None, after: None, on_auth: None, place });
    }
    let mut section = value.section()?;
    let fallback = RawFallback {
        route: section.take("route").and_then(|v| v.string()),
        to: section.take("to").and_then(|v| v.string()),
        after: section.take("after").and_then(|v| v.parsed(units::duration)),
        on_auth: section.take("on-auth").and_then(|v| v.boolean()),
        place,
    };
    section.finish();
    Some(fallback)
}

/// RFC 4616 §2: NUL parts the names in AUTH PLAIN.
fn user(text: &str) -> Result<String, &'static str> {
    let sound = !text.is_empty() && !text.contains(char::is_control);
    sound.then(|| text.to_owned()).ok_or("expected a name without control characters")
}

fn ip(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "expected an IP address")
}

/// `name`, `name:port`, `1.2.3.4:port`, `[v6]` or `[v6]:port`.
fn host(text: &str) -> Result<RawHost, String> {
    let expected = || "expected `name`, `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`".to_owned();
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, behind) = rest.split_once(']').ok_or_else(expected)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| expected())?;
        let port = match behind.strip_prefix(':') {
            Some(port) => Some(port),
            None if behind.is_empty() => None,
            None => return Err(expected()),
        };
        (address.to_owned(), port)
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address is written in brackets".to_owned()),
            Some((name, port)) => (name.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        }
    };
    // A trailing dot is how DNS people write that a name is whole.
    let bare = name.strip_suffix('.').unwrap_or(&name);
    if name.parse::<IpAddr>().is_err() && Domain::parse(bare).map_or(true, |domain| domain.is_literal()) {
        return Err(expected());
    }
    let port = match port {
        None => None,
        Some(digits) if digits.starts_with('+') => return Err(expected()),
        Some(digits) => Some(digits.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected)?),
    };
    Ok(RawHost { name: bare.to_owned(), port })
}

fn limits(section: Option<Section<'_>>, raw: &mut Raw) {
    let Some(mut section) = section else { return };
    let message_size = section.take("message-size").and_then(|v| v.parsed(message_size));
    if let Some(size) = message_size.as_ref().filter(|size| size.value < 64 * units::KIB) {
        let small = Diagnostic::warning("RFC 5321 §4.5.3.1.7 wants messages of 64 KiB to be taken").at(&size.place);
        section.document().report(small);
    }
    raw.message_size = message_size.map(|size| size.value);
    raw.recipients = section.take("recipients").and_then(|v| v.integer(1..=RECIPIENTS_MAX)).map(|n| n.value);
    raw.sessions = section.take("sessions").and_then(|v| v.integer(1..=SESSIONS_MAX)).map(|n| n.value);
    raw.legs = section.take("legs").and_then(|v| v.integer(1..=LEGS_MAX)).map(|n| n.value);
    let sessions = section.take("sessions-per-client");
    raw.sessions_per_client = sessions.and_then(|v| v.integer(1..=CLIENT_SESSIONS_MAX)).map(|n| n.value);
    raw.memory = section.take("memory").and_then(|v| v.parsed(units::size)).map(|size| size.value);
    section.finish();
}

fn message_size(text: &str) -> Result<u64, String> {
    match units::size(text)? {
        octets if octets < units::KIB => Err("expected at least `1KiB`".to_owned()),
        octets if octets > units::GIB => Err("expected at most `1GiB`".to_owned()),
        octets => Ok(octets),
    }
}

fn queue(section: Option<Section<'_>>, raw: &mut Raw) {
    let Some(mut section) = section else { return };
    if let Some(url) = section.take("url") {
        let _ = url.choice(&[("sqlite", ())]);
    }
    if let Some(value) = section.take("retry") {
        let waits = value.one_or_many();
        if waits.is_empty() || waits.len() > RETRY_STEPS_MAX {
            value.wrong(format!("expected 1 to {RETRY_STEPS_MAX} durations"));
        }
        raw.retry = Some(waits.iter().filter_map(|v| v.parsed(retry_wait)).map(|wait| wait.value).collect());
    }
    raw.expire = section.take("expire").and_then(|v| v.parsed(units::duration)).map(|d| d.value);
    raw.min_free = section.take("min-free").and_then(|v| v.parsed(units::size)).map(|s| s.value);
    section.finish();
}

fn retry_wait(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        // Without a pause a dead target would be dialled without end.
        wait if wait < RETRY_WAIT_MIN => Err("expected at least `100ms`".to_owned()),
        wait => Ok(wait),
    }
}

fn retention(section: Option<Section<'_>>, raw: &mut Raw) {
    let Some(mut section) = section else { return };
    let mut take = |key| section.take(key).and_then(|v| v.parsed(units::duration)).map(|d| d.value);
    raw.retention_ledger = take("ledger");
    raw.retention_bodies = take("bodies");
    raw.retention_quarantine = take("quarantine");
    section.finish();
}

fn admin(mut section: Section<'_>) -> RawAdmin {
    let admin = RawAdmin {
        address: section.take("address").and_then(|v| v.parsed(socket_address)).map(|a| a.value),
        token_file: section.take("token-file").and_then(|v| v.string()).map(|path| path.value),
    };
    section.finish();
    admin
}

fn tls(mut section: Section<'_>) -> RawTls {
    let tls = RawTls {
        certificate: section.require("certificate").and_then(|v| v.string()),
        key: section.require("key").and_then(|v| v.string()),
    };
    section.finish();
    tls
}

// The sections that are not built yet: only their form is looked at.

fn dns(mut section: Section<'_>, inert: &mut Vec<String>) -> Vec<SocketAddr> {
    let servers = section.take("servers").map(|servers| {
        servers.one_or_many().iter().filter_map(|v| v.parsed(socket_address)).map(|server| server.value).collect()
    });
    if section.take("validating").and_then(|v| v.boolean()).is_some_and(|validating| validating.value) {
        inert.push("dns.validating".to_owned());
    }
    section.finish();
    servers.unwrap_or_default()
}

fn upstream(mut section: Section<'_>) -> Vec<Network> {
    let upstream = section.take("networks").map(|v| networks(&v)).unwrap_or_default();
    section.finish();
    upstream
}

/// Checks are made where the section stands: on, unless a key says otherwise.
fn auth(mut section: Section<'_>) -> Settings {
    let mut is_on = |key| {
        let choice = section.take(key).and_then(|v| v.choice(&[("on", true), ("off", false)]));
        choice.is_none_or(|on| on.value)
    };
    let (spf, dkim, arc, ptr) = (is_on("spf"), is_on("dkim"), is_on("arc"), is_on("ptr"));
    let modes = [
        ("enforce", Some(DmarcMode::Enforce)),
        ("quarantine", Some(DmarcMode::Quarantine)),
        ("mark", Some(DmarcMode::Mark)),
        ("off", None),
    ];
    let mode = section.take("dmarc").and_then(|v| v.choice(&modes)).map_or(Some(DmarcMode::Enforce), |mode| mode.value);
    let tempfail = [("accept", OnTemperror::Accept), ("defer", OnTemperror::Defer)];
    let on_temperror = section.take("on-temperror").and_then(|v| v.choice(&tempfail));
    let sealers = section
        .take("arc-sealers")
        .map(|v| v.one_or_many().iter().filter_map(|v| v.parsed(Domain::parse)).map(|sealer| sealer.value).collect());
    section.finish();
    Settings {
        checks: verify::Settings { spf, dkim, dmarc: mode.is_some(), arc, ptr },
        dmarc: mode.unwrap_or(DmarcMode::Mark),
        on_temperror: on_temperror.map_or(OnTemperror::Accept, |choice| choice.value),
        sealers: sealers.unwrap_or_default(),
    }
}

fn srs(mut section: Section<'_>) -> Option<RawSrs> {
    let place = section.place();
    let domain = section.require("domain").and_then(|v| v.parsed(srs_domain));
    let secrets = section.require("secrets");
    let secrets = secrets.map(|v| v.one_or_many().iter().filter_map(Value::string).collect());
    section.finish();
    Some(RawSrs { domain: domain?.value, secrets: secrets?, place })
}

fn srs_domain(text: &str) -> Result<Domain, String> {
    match hostname(text)? {
        domain if domain.as_str().len() > DOMAIN_OCTETS_MAX => {
            Err(format!("expected at most {DOMAIN_OCTETS_MAX} octets: the rewritten sender stands before it"))
        }
        domain => Ok(domain),
    }
}

fn dkim(mut section: Section<'_>) -> RawDkim {
    let sign = section.take("sign").and_then(|v| v.choice(&[("on", true), ("off", false)]));
    let dkim = RawDkim {
        sign: sign.map(|sign| sign.value),
        selector: section.take("selector").and_then(|v| v.parsed(selector)).map(|selector| selector.value),
        key: section.take("key").and_then(|v| v.string()),
    };
    section.finish();
    dkim
}

/// RFC 6376 §3.1: labels of a domain name, of which each must fit `<selector>._domainkey.<domain>`.
fn selector(text: &str) -> Result<Domain, &'static str> {
    let parsed = Domain::parse(text).ok().filter(|domain| !domain.is_literal() && text.len() <= SELECTOR_OCTETS_MAX);
    parsed.ok_or("expected letters, digits and hyphens, such as `pointsman` or `mail.2026`, at most 63")
}

/// One label's length; the domains behind it have 255 octets for both.
const SELECTOR_OCTETS_MAX: usize = 63;
/// One destination with more sessions than this is a mistake; Google closes at 20 to 100.
const CONCURRENCY_MAX: u64 = 1_000;
/// RFC 5321 §4.5.3.1.8 asks for 100; each costs memory in every session.
const RECIPIENTS_MAX: u64 = 10_000;
/// As many as there are for everybody: no limit.
const CLIENT_SESSIONS_MAX: u64 = 15_000;
/// A leg's number is 16 bits.
const LEGS_MAX: u64 = 10_000;
/// A process has not more descriptors.
const SESSIONS_MAX: u64 = 1_000_000;
/// Shorter than this is a loop, not a retry.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// A day of minutes would be 1,440; nobody writes more than a handful.
const RETRY_STEPS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, name, port) in [
            ("smtp.crm.example:25", "smtp.crm.example", Some(25)),
            ("smtp.crm.example", "smtp.crm.example", None),
            ("smtp.crm.example.:2525", "smtp.crm.example", Some(2525)),
            ("localhost:1", "localhost", Some(1)),
            ("127.0.0.1:2525", "127.0.0.1", Some(2525)),
            ("[::1]:65535", "::1", Some(65_535)),
            ("[2001:db8::1]", "2001:db8::1", None),
        ] {
            assert_eq!(host(text), Ok(RawHost { name: name.to_owned(), port }), "{text}");
        }
        for text in [
            "",
            ":25",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "::1",
            "[::1",
            "[::1]x",
            "[1.2.3.4]:1",
            "a b:25",
            "a/b",
            "-a:25",
        ] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn message_sizes_at_their_limits_and_one_past_them() {
        for (text, ok) in [("1KiB", true), ("1023B", false), ("1GiB", true), ("1073741825B", false)] {
            assert_eq!(message_size(text).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn the_data_directory_is_found_in_ruins() {
        for (text, data) in [
            ("hostname = \n data = '/d' # here\n[tls", Some("/d")),
            ("\0\n\tdata=\"/d e\"\n", Some("/d e")),
            ("data = ['/d']\n", None),
            ("database = '/d'\n", None),
            ("[queue]\ndata = '/d'\n", None),
            ("data = '/d\n", None),
            ("", None),
        ] {
            assert_eq!(data_in_ruins(text).as_deref(), data, "{text:?}");
        }
    }
}
