//! The files of a configuration: read, and handed to [`resolve`](super::resolve).
//!
//! `rules` may hold `*` in a file name. Files that it finds are read in the order of their names. Where they are read,
//! on the disk or in a set that was kept, is `files`' to know.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::Domain;
use crate::auth::key_file;
use crate::clock::{Clock, SystemClock};
use crate::diagnostic::{Diagnostic, Place, Placed, Report, Severity, Source};
use crate::dns::resolver::Resolver;
use crate::relay::lookup::{self, Unresolved};
use crate::relay::mx::{Destination, NoHost, Reach, Us};
use crate::relay::{Family, TlsMode};
use crate::rules::set::Counts;
use crate::spam::Bands;
use crate::tls;

use super::files::{FileSet, Origin, Reader, read_bounded};
use super::raw::{self, Raw};
use super::systems::{self, System};
use super::{Config, KeyPlace, RuleSource, resolve};

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// Warnings.
    pub report: Report,
    /// What it was made of.
    pub files: FileSet,
}

pub(super) fn load(path: &Path, origin: Origin<'_>) -> Result<Loaded, Report> {
    load_by(path, origin, None)
}

/// With the files that `rules` find in place of those that the configuration names.
pub(super) fn load_with_rules(path: &Path, rules: &[String]) -> Result<Loaded, Report> {
    load_by(path, Origin::Disk, Some(rules))
}

fn load_by(path: &Path, origin: Origin<'_>, rules: Option<&[String]>) -> Result<Loaded, Report> {
    let mut report = Report::default();
    let reader = Reader::new(path, origin);
    let config = read_all(path, &reader, rules, &mut report);
    match config {
        Some(mut config) => {
            let files = reader.into_set();
            config.prints = files.prints();
            Ok(Loaded { config, report, files })
        }
        None => Err(report),
    }
}

fn read_all(path: &Path, reader: &Reader<'_>, rules: Option<&[String]>, report: &mut Report) -> Option<Config> {
    let text = match reader.read_main() {
        Ok(text) => text,
        Err(error) => {
            let unread = Diagnostic::error(format!("cannot read `{}`: {error}", path.display()));
            report.add(unread.help("the configuration is named by `--config`"));
            return None;
        }
    };
    let source = Source::new(path.display().to_string(), text);
    let raw = raw::read(&source, report)?;
    let sources = rule_sources(reader, &raw, rules, report);
    let read = |rules_file: &str, name: &str| {
        let path = Path::new(rules_file).parent().unwrap_or(Path::new("")).join(name);
        reader.read(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let before = report.errors();
    let placed = CertificatePlaces::of(&raw);
    let dkim_key = raw.dkim.as_ref().and_then(|dkim| dkim.key.as_ref()).map(|key| key.place.clone());
    let config = resolve(path, raw, sources, &read, report);
    // A certificate is no part of what was accepted once: its loss costs TLS, not mail.
    let severity = if reader.is_kept() { Severity::Warning } else { Severity::Error };
    let config = config.filter(|config| placed.check(config, severity, report));
    // Errors in the main file do not keep the rules from being checked, but they keep the whole from being used.
    let config = if before > 0 { None } else { config };
    config.inspect(|config| {
        secrets_readable_by_all(config, report);
        look_at_dkim_key(config, dkim_key.as_ref(), report);
        systems::lint(config, report);
    })
}

/// Loads, lints and runs the rules' tests: what may serve is what comes out without an error.
pub(super) fn vet(path: &Path, origin: Origin<'_>) -> Result<Loaded, Report> {
    let mut loaded = load(path, origin)?;
    run_tests(&loaded.config, &mut loaded.report);
    if loaded.report.errors() > 0 { Err(loaded.report) } else { Ok(loaded) }
}

fn run_tests(config: &Config, report: &mut Report) {
    let bands = config.spam.as_ref().map_or_else(Bands::default, |spam| spam.bands);
    config.rules.run_tests(&bands).into_iter().for_each(|failure| report.add(failure));
}

/// Where the data directory of the configuration at `path` is, whatever else is wrong with it: who looks into the queue
/// at night must not be kept out by a typing error in a rule.
pub(super) fn data_dir(path: &Path) -> Result<PathBuf, Report> {
    let mut report = Report::default();
    let text = read_bounded(path).map_err(|error| {
        let mut unread = Report::default();
        unread.add(Diagnostic::error(format!("cannot read `{}`: {error}", path.display())));
        unread
    })?;
    let source = Source::new(path.display().to_string(), text);
    match raw::read(&source, &mut report) {
        Some(raw) => Ok(super::data_dir(path, raw.data.as_deref())),
        // Not even TOML; but the line may be whole.
        None => raw::data_in_ruins(&source.text).map(|data| super::data_dir(path, Some(&data))).ok_or(report),
    }
}

/// Where the data directory may be of a configuration that does not say so any more, most likely first.
pub(super) fn data_dirs_guessed() -> Vec<PathBuf> {
    // systemd tells a service with `StateDirectory=` where that is; several are separated by colons.
    let told = std::env::var_os("STATE_DIRECTORY");
    let told = told.iter().flat_map(std::env::split_paths);
    told.chain([PathBuf::from(super::DATA)]).collect()
}

/// Where the configuration names files of certificates.
struct CertificatePlaces {
    certificate: Option<Place>,
    key: Option<Place>,
    /// By route.
    ca: BTreeMap<String, Place>,
}

impl CertificatePlaces {
    fn of(raw: &Raw) -> CertificatePlaces {
        let place = |written: &Option<Placed<String>>| written.as_ref().map(|written| written.place.clone());
        CertificatePlaces {
            certificate: raw.tls.as_ref().and_then(|tls| place(&tls.certificate)),
            key: raw.tls.as_ref().and_then(|tls| place(&tls.key)),
            ca: raw.routes.iter().filter_map(|r| Some((r.name.value.clone(), place(&r.ca)?))).collect(),
        }
    }

    /// Whether all certificates can be used, where one that cannot is an error.
    fn check(&self, config: &Config, severity: Severity, report: &mut Report) -> bool {
        let before = report.errors();
        if let Some(files) = &config.tls {
            match tls::Server::open(files.clone()) {
                Ok(server) => {
                    if let Some(expired) = server.expires().filter(|expires| *expires <= SystemClock::new().now()) {
                        // Most senders encrypt without looking, so it is better than none.
                        let what = format!("the certificate in `{}` expired at {expired}", files.certificate.display());
                        report.add(placed(Diagnostic::warning(what), self.certificate.as_ref()));
                    }
                }
                Err(error) => {
                    let place = if error.path() == files.key { &self.key } else { &self.certificate };
                    report.add(placed(Diagnostic::new(severity, error.to_string()), place.as_ref()));
                }
            }
        }
        for route in config.routes.values().filter(|route| route.tls == TlsMode::Verify && route.ca.is_some()) {
            if let Err(error) = tls::Connector::verifying(route.ca.as_deref()) {
                report.add(placed(Diagnostic::new(severity, error.to_string()), self.ca.get(&route.name)));
            }
        }
        report.errors() == before
    }
}

fn placed(finding: Diagnostic, place: Option<&Place>) -> Diagnostic {
    match place {
        Some(place) => finding.at(place),
        None => finding,
    }
}

fn rule_sources(reader: &Reader<'_>, raw: &Raw, instead: Option<&[String]>, report: &mut Report) -> Vec<RuleSource> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let patterns = match (instead, &raw.rules) {
        (Some(instead), _) => instead.iter().map(|pattern| (pattern.as_str(), None)).collect(),
        (None, Some(written)) => written.iter().map(|pattern| (pattern.value.as_str(), Some(&pattern.place))).collect(),
        (None, None) => vec![(RULES, None)],
    };
    for (pattern, place) in patterns {
        let finding = match reader.find(pattern) {
            Ok(found) if found.is_empty() => Diagnostic::warning(format!("no rules file matches `{pattern}`"))
                .help("without rules every recipient is refused"),
            Ok(found) => {
                paths.extend(found);
                continue;
            }
            Err(error) => Diagnostic::error(format!("cannot look for `{pattern}`: {error}")),
        };
        report.add(match place {
            Some(place) => finding.at(place),
            None => finding,
        });
    }
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()).then_with(|| a.cmp(b)));
    paths.dedup();
    let mut sources = Vec::new();
    for path in paths {
        match reader.read(&path) {
            Ok(text) => sources.push(RuleSource { source: Source::new(path.display().to_string(), text), path }),
            Err(error) => report.add(Diagnostic::error(format!("cannot read `{}`: {error}", path.display()))),
        }
    }
    sources
}

/// An address that was put into a file is a secret: whoever knows a CRM's address can open cases past us.
fn secrets_readable_by_all(config: &Config, report: &mut Report) {
    for (name, place) in config.rules.target_files() {
        let folder = Path::new(&place.source.path).parent().unwrap_or(Path::new(""));
        let path = folder.join(name);
        if is_readable_by_all(&path) {
            let open = Diagnostic::warning(format!("`{}` can be read by everybody", path.display())).at(place);
            report.add(open.help(format!("chmod o-r {}", path.display())));
        }
    }
}

/// Without its key the daemon serves all the same, and what it writes goes out unsigned.
fn look_at_dkim_key(config: &Config, place: Option<&Place>, report: &mut Report) {
    let Some(dkim) = &config.dkim else { return };
    let path = dkim.key.path();
    let finding = match key_file::open(path) {
        Ok(_) if is_readable_by_all(path) => {
            Diagnostic::warning(format!("`{}` can be read by everybody", path.display()))
                .help(format!("chmod go= {}", path.display()))
        }
        Ok(_) => return,
        // The first start makes it.
        Err(error) if error.is_missing() && matches!(dkim.key, KeyPlace::Own(_)) => return,
        Err(error) => Diagnostic::warning(format!("no DKIM key: {error}"))
            .help("until it can be used notifications go out unsigned; `openssl genrsa 2048` makes one"),
    };
    report.add(placed(finding, place));
}

fn is_readable_by_all(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o004 != 0)
}

/// What `check` says besides findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub hostname: String,
    /// Of all files, as `rules history` shows it.
    pub hash: String,
    pub rule_set: String,
    pub rule_files: usize,
    pub routes: usize,
    pub counts: Counts,
    /// What holds for the targets.
    pub systems: Vec<System>,
    /// Accepted, and without function yet.
    pub inert: Vec<String>,
    /// What could not be looked at.
    pub notes: Vec<String>,
}

/// Loads, lints and runs the rule tests. No summary where the files cannot be used.
///
/// `offline` leaves out what asks the network: whether the MX of a target's domain is ourselves.
#[must_use]
pub fn check(path: &Path, offline: bool) -> (Report, Option<Summary>) {
    let Loaded { config, mut report, .. } = match load(path, Origin::Disk) {
        Ok(loaded) => loaded,
        Err(report) => return (report, None),
    };
    run_tests(&config, &mut report);
    let notes = if offline { Vec::new() } else { look_for_loops(&config, &mut report) };
    let summary = Summary {
        hostname: config.hostname.clone(),
        hash: config.prints.whole.clone(),
        rule_set: config.rules.short_hash().to_owned(),
        rule_files: config.rule_files.len(),
        routes: config.routes.len(),
        counts: config.rules.counts(),
        systems: systems::all(&config),
        inert: config.inert.clone(),
        notes,
    };
    (report, Some(summary))
}

/// Asks DNS whether mail for targets in domains of ours would come back to us. What DNS does not say in time is no finding:
/// those are the notes.
fn look_for_loops(config: &Config, report: &mut Report) -> Vec<String> {
    let mut names = vec![config.hostname.clone()];
    names.extend(config.routes.values().filter_map(|route| route.helo.clone()));
    let bound = config.listeners.iter().map(|listener| listener.address.ip());
    let addresses: Vec<IpAddr> = bound.filter(|ip| !ip.is_unspecified()).collect();
    let us = Us { names: &names, addresses: &addresses };
    let mut notes = Vec::new();
    for (domain, route) in config.rules.domains_of_own_targets() {
        let route = config.routes.get(route).filter(|route| route.hosts.is_empty());
        let (Some(route), Ok(name)) = (route, Domain::parse(domain)) else { continue };
        let reach = if route.private_networks { Reach::Private } else { Reach::Public };
        match ask(config, &name, us, reach, route.family) {
            Ok(_) => {}
            Err(Unresolved::None(NoHost::Loop)) => report.add(
                Diagnostic::error(format!(
                    "mail for a target in `{domain}` would come back: the domain's MX is ourselves"
                ))
                .help(format!("route `{}` has no `hosts`; give the target one that has", route.name)),
            ),
            Err(why) => notes.push(format!("mail for targets in `{domain}` was not looked at: {why}")),
        }
    }
    notes
}

fn ask(
    config: &Config,
    domain: &Domain,
    us: Us<'_>,
    reach: Reach,
    family: Family,
) -> Result<Vec<Destination>, Unresolved> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|_| Unresolved::Later)?;
    runtime.block_on(async {
        let resolver = Resolver::new(&config.dns_servers).map_err(|_| Unresolved::Later)?;
        let asked = lookup::destinations(domain, us, reach, family, 0, &resolver);
        tokio::time::timeout(LOOK_UP_MAX, asked).await.unwrap_or(Err(Unresolved::Later))
    })
}

/// Somebody waits for `check` at his keyboard.
const LOOK_UP_MAX: Duration = Duration::from_secs(5);

/// Where rules stand unless the configuration says otherwise.
const RULES: &str = "rules/*.toml";
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_name_order_and_none_found_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("pointsman.toml", "hostname = 'mx.d.example'\nrules = ['rules/*.toml']\n");
        let (config, report) = Config::load(&folder.path().join("pointsman.toml")).unwrap();
        assert_eq!((report.errors(), report.warnings()), (0, 1));
        assert_eq!(config.rules.postmaster(), None);

        std::fs::create_dir(folder.path().join("rules")).unwrap();
        write("rules/b.toml", "[domain.'b.example']\nrole = 'r@x.example'\n");
        write("rules/a.toml", "[domain.'a.example']\nrole = 'r@x.example'\n");
        write("rules/.hidden.toml", "nonsense");
        let (config, report) = Config::load(&folder.path().join("pointsman.toml")).unwrap();
        assert!(report.is_empty());
        assert_eq!(config.rules.postmaster().unwrap().as_str(), "postmaster@a.example");
        assert_eq!(config.rule_files.len(), 2);
    }

    #[test]
    fn a_secret_target_that_everybody_can_read_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("p.toml"), "hostname = 'mx.d.example'\nrules = ['r.toml']\n").unwrap();
        std::fs::write(file("r.toml"), "[target]\ncrm = 'file:crm.address'\n").unwrap();
        std::fs::write(file("crm.address"), "case@crm.example\n").unwrap();
        for (mode, warnings) in [(0o644, 1), (0o640, 0)] {
            std::fs::set_permissions(file("crm.address"), std::fs::Permissions::from_mode(mode)).unwrap();
            let (report, summary) = check(&file("p.toml"), true);
            assert_eq!((report.errors(), report.warnings()), (0, warnings), "{mode:o}");
            assert_eq!(summary.unwrap().counts.targets, 1);
        }
    }
}
