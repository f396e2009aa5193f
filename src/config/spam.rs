//! `[spam]`: as typed ([`RawSpam`]), and resolved into what scores mail.

use std::time::Duration;

use crate::address::Domain;
use crate::diagnostic::{Diagnostic, Place, Placed, Report};
use crate::document::{Section, Value};
use crate::spam::blocklist::LISTS_MAX;
use crate::spam::{Bands, Engine, OnError, Settings, rspamd};

use crate::units;

/// The section.
#[derive(Debug)]
pub struct RawSpam {
    pub engine: RawEngine,
    pub bands: Bands,
    /// Where rspamd is: name and port.
    pub rspamd: Option<Placed<(String, u16)>>,
    pub password_file: Option<Placed<String>>,
    pub timeout: Option<Placed<Duration>>,
    pub on_error: Option<Placed<OnError>>,
    pub blocklists: Vec<Placed<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawEngine {
    Builtin,
    Rspamd,
    Off,
}

/// Reads the section. A score is made where it stands, unless `engine` says otherwise.
pub(super) fn read(mut section: Section<'_>) -> RawSpam {
    let engines = [("builtin", RawEngine::Builtin), ("rspamd", RawEngine::Rspamd), ("off", RawEngine::Off)];
    let engine = section.take("engine").and_then(|v| v.choice(&engines)).map_or(RawEngine::Builtin, |e| e.value);
    let mut bound = |key| section.take(key).and_then(|v| v.number());
    let bands = bands(bound("tag"), bound("quarantine"), bound("reject"), &section);
    let rspamd = section.take("rspamd").and_then(|v| v.parsed(rspamd::endpoint));
    let password_file = section.take("password-file").and_then(|v| v.string());
    let timeout = section.take("timeout").and_then(|v| v.parsed(timeout));
    let words = [("accept", OnError::Accept), ("defer", OnError::Defer), ("builtin", OnError::Builtin)];
    let on_error = section.take("on-error").and_then(|v| v.choice(&words));
    let blocklists = section.take("blocklists").map(|v| blocklists(&v)).unwrap_or_default();
    section.finish();
    RawSpam { engine, bands, rspamd, password_file, timeout, on_error, blocklists }
}

type Bound = Option<Placed<f64>>;

fn bands(tag: Bound, quarantine: Bound, reject: Bound, section: &Section<'_>) -> Bands {
    let usual = Bands::default();
    let value = |bound: &Bound, usual: f64| bound.as_ref().map_or(usual, |bound| bound.value);
    let bands = Bands {
        tag: value(&tag, usual.tag),
        quarantine: value(&quarantine, usual.quarantine),
        reject: value(&reject, usual.reject),
    };
    let pairs = [
        (("tag", &tag, bands.tag), ("quarantine", &quarantine, bands.quarantine)),
        (("quarantine", &quarantine, bands.quarantine), ("reject", &reject, bands.reject)),
    ];
    for ((low, low_bound, lower), (high, high_bound, higher)) in pairs {
        // At least one of them stands there: the usual ones ascend.
        let Some(place) = high_bound.as_ref().or(low_bound.as_ref()).map(|bound| &bound.place) else { continue };
        if higher < lower {
            let message = format!("`spam.{high}` is below `spam.{low}`");
            let wrong = Diagnostic::error(message).at(place).label(format!("{low} is {lower:?}, {high} is {higher:?}"));
            section.document().report(wrong.help("a worse band starts at a higher score; tag, quarantine and reject are 5, 8 and 15 where they are not named"));
        }
    }
    bands
}

fn timeout(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        wait if wait < TIMEOUT_MIN || TIMEOUT_MAX < wait => Err("expected `100ms` to `2m`".to_owned()),
        wait => Ok(wait),
    }
}

fn blocklists(value: &Value<'_>) -> Vec<Placed<String>> {
    let zone = |text: &str| match Domain::parse(text) {
        Ok(zone) if zone.is_literal() => {
            Err("expected the name of a DNS block list, such as `bl.example.org`".to_owned())
        }
        Ok(zone) => Ok(zone.as_str().to_owned()),
        Err(error) => Err(format!("expected the name of a DNS block list: {error}")),
    };
    let lists: Vec<Placed<String>> = value.one_or_many().iter().filter_map(|v| v.parsed(zone)).collect();
    if lists.len() > LISTS_MAX {
        value.wrong(format!("expected at most {LISTS_MAX} lists: each is asked about every message"));
    }
    lists
}

/// The settings of the scorer; `None` where no score is to be made, or where `report` gained an error. `read` gives the text of a
/// file that the configuration names.
pub(super) fn resolve(
    raw: &RawSpam,
    read: &dyn Fn(&str) -> Result<String, String>,
    report: &mut Report,
) -> Option<Settings> {
    let on_error = raw.on_error.as_ref().map_or(OnError::Accept, |on_error| on_error.value);
    let builtin = raw.engine == RawEngine::Builtin || (raw.engine == RawEngine::Rspamd && on_error == OnError::Builtin);
    let asks_rspamd = raw.engine == RawEngine::Rspamd;
    let idle = [
        ("rspamd", raw.rspamd.as_ref().map(|v| &v.place), asks_rspamd),
        ("password-file", raw.password_file.as_ref().map(|v| &v.place), asks_rspamd),
        ("timeout", raw.timeout.as_ref().map(|v| &v.place), asks_rspamd),
        ("on-error", raw.on_error.as_ref().map(|v| &v.place), asks_rspamd),
        ("blocklists", raw.blocklists.first().map(|v| &v.place), builtin),
    ];
    for (key, place, is_used) in idle {
        if let (Some(place), false, true) = (place, is_used, raw.engine != RawEngine::Off) {
            report.add(unused(key, place));
        }
    }
    let engine = match raw.engine {
        RawEngine::Off => return None,
        RawEngine::Builtin => Engine::Builtin,
        RawEngine::Rspamd => {
            let usual = || (RSPAMD.0.to_owned(), RSPAMD.1);
            let (host, port) = raw.rspamd.as_ref().map_or_else(usual, |endpoint| endpoint.value.clone());
            let password = match &raw.password_file {
                None => None,
                Some(name) => Some(password(name, read, report)?),
            };
            let timeout = raw.timeout.as_ref().map_or(TIMEOUT, |timeout| timeout.value);
            Engine::Rspamd(rspamd::Settings { host, port, password, timeout })
        }
    };
    let blocklists = raw.blocklists.iter().map(|list| list.value.clone()).collect();
    Some(Settings { engine, bands: raw.bands, on_error, blocklists })
}

fn unused(key: &str, place: &Place) -> Diagnostic {
    let who = if key == "blocklists" {
        "the score of our own, which is not asked here"
    } else {
        "`engine = \"rspamd\"` only"
    };
    Diagnostic::warning(format!("`spam.{key}` is not looked at")).at(place).help(format!("it is for {who}"))
}

fn password(
    name: &Placed<String>,
    read: &dyn Fn(&str) -> Result<String, String>,
    report: &mut Report,
) -> Option<String> {
    let password = read(&name.value).map(|text| text.trim().to_owned());
    let wrong = match password {
        Ok(password) if password.is_empty() => format!("`{}` is empty", name.value),
        // The content is a secret: it is not shown.
        Ok(password) if !password.bytes().all(|b| (b' '..=b'~').contains(&b)) => {
            format!("`{}` holds more than one line of ASCII", name.value)
        }
        Ok(password) => return Some(password),
        Err(error) => format!("cannot read `{}`: {error}", name.value),
    };
    report.add(Diagnostic::error(wrong).at(&name.place));
    None
}

/// Where rspamd's normal worker listens unless it is told otherwise.
const RSPAMD: (&str, u16) = ("127.0.0.1", 11_333);
/// A little more than rspamd gives itself (`task_timeout`, 8 s), so that its own answer comes first.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Below it no filter answers.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// The sender waits for our reply meanwhile, ten minutes at the most (RFC 5321 §4.5.3.2.6).
const TIMEOUT_MAX: Duration = Duration::from_secs(120);
