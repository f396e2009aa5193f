//! The files of a configuration: read, and handed to [`resolve`](super::resolve).
//!
//! `rules` may hold `*` in a file name. Files that it finds are read in the order of their names.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::auth::key_file;
use crate::clock::{Clock, SystemClock};
use crate::diagnostic::{Diagnostic, Place, Placed, Report, Source};
use crate::relay::TlsMode;
use crate::rules::set::Counts;
use crate::spam::Bands;
use crate::tls;

use super::raw::{self, Raw};
use super::{Config, KeyPlace, RuleSource, resolve};

pub(super) fn load(path: &Path) -> Result<(Config, Report), Report> {
    let mut report = Report::default();
    let config = read_all(path, &mut report);
    match config {
        Some(config) => Ok((config, report)),
        None => Err(report),
    }
}

fn read_all(path: &Path, report: &mut Report) -> Option<Config> {
    let text = match read_bounded(path) {
        Ok(text) => text,
        Err(error) => {
            let unread = Diagnostic::error(format!("cannot read `{}`: {error}", path.display()));
            report.add(unread.help("the configuration is named by `--config`"));
            return None;
        }
    };
    let source = Source::new(path.display().to_string(), text);
    let raw = raw::read(&source, report)?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let sources = rule_sources(&folder, &raw, report);
    let read = |rules_file: &str, name: &str| {
        let folder = Path::new(rules_file).parent().unwrap_or(Path::new("")).to_owned();
        let path = folder.join(name);
        read_bounded(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let before = report.errors();
    let placed = CertificatePlaces::of(&raw);
    let dkim_key = raw.dkim.as_ref().and_then(|dkim| dkim.key.as_ref()).map(|key| key.place.clone());
    let config = resolve(path, raw, sources, &read, report);
    let config = config.filter(|config| placed.check(config, report));
    // Errors in the main file do not keep the rules from being checked, but they keep the whole from being used.
    let config = if before > 0 { None } else { config };
    config.inspect(|config| {
        secrets_readable_by_all(config, report);
        look_at_dkim_key(config, dkim_key.as_ref(), report);
    })
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
        Some(raw) => Ok(super::data_dir(path, &raw)),
        None => Err(report),
    }
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

    /// Whether all certificates can be used.
    fn check(&self, config: &Config, report: &mut Report) -> bool {
        let before = report.errors();
        if let Some(files) = &config.tls {
            match tls::Server::open(files.clone()) {
                Ok(server) if server.expires() <= SystemClock::new().now() => {
                    // Most senders encrypt without looking, so it is better than none.
                    let what =
                        format!("the certificate in `{}` expired at {}", files.certificate.display(), server.expires());
                    report.add(placed(Diagnostic::warning(what), self.certificate.as_ref()));
                }
                Ok(_) => {}
                Err(error) => {
                    let place = if error.path() == files.key { &self.key } else { &self.certificate };
                    report.add(placed(Diagnostic::error(error.to_string()), place.as_ref()));
                }
            }
        }
        for route in config.routes.values().filter(|route| route.tls == TlsMode::Verify && route.ca.is_some()) {
            if let Err(error) = tls::Connector::verifying(route.ca.as_deref()) {
                report.add(placed(Diagnostic::error(error.to_string()), self.ca.get(&route.name)));
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

fn rule_sources(folder: &Path, raw: &Raw, report: &mut Report) -> Vec<RuleSource> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let patterns = match &raw.rules {
        Some(written) => written.iter().map(|pattern| (pattern.value.as_str(), Some(&pattern.place))).collect(),
        None => vec![(RULES, None)],
    };
    for (pattern, place) in patterns {
        let finding = match find(folder, pattern) {
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
        match read_bounded(&path) {
            Ok(text) => sources.push(RuleSource { source: Source::new(path.display().to_string(), text), path }),
            Err(error) => report.add(Diagnostic::error(format!("cannot read `{}`: {error}", path.display()))),
        }
    }
    sources
}

/// The files that a path with `*` in its last part matches; a path without one must exist.
fn find(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let whole = folder.join(pattern);
    let name = whole.file_name().and_then(|name| name.to_str()).ok_or("expected a path to files")?;
    let parent = whole.parent().unwrap_or(Path::new(""));
    if parent.to_str().is_some_and(|parent| parent.contains('*')) {
        return Err("`*` may stand in the last part of the path only".to_owned());
    }
    if !name.contains('*') {
        return if whole.is_file() { Ok(vec![whole]) } else { Err("no such file".to_owned()) };
    }
    let listing = match std::fs::read_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|error| error.to_string())?;
        let file = entry.file_name();
        // An editor's swap file begins with a dot and is no rules file.
        let matches = file.to_str().is_some_and(|file| !file.starts_with('.') && glob(name, file));
        if matches && parent.join(&file).is_file() {
            found.push(parent.join(&file));
        }
        if found.len() > RULE_FILES_MAX {
            return Err(format!("more than {RULE_FILES_MAX} files"));
        }
    }
    Ok(found)
}

/// `*` stands for any characters, also none. Each star takes as little as the next literal lets it: no backtracking.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let Some(last) = pattern.rsplit_once('*').map(|(_, last)| last) else { return rest.is_empty() };
    let middle: Vec<&str> = parts.collect();
    for part in &middle[..middle.len().saturating_sub(1)] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("the file is over {FILE_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
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
    pub rule_set: String,
    pub rule_files: usize,
    pub routes: usize,
    pub counts: Counts,
    /// Accepted, and without function yet.
    pub inert: Vec<String>,
}

/// Loads, lints and runs the rule tests. No summary where the files cannot be used.
///
/// `offline` leaves out what asks the network; nothing does yet.
#[must_use]
pub fn check(path: &Path, offline: bool) -> (Report, Option<Summary>) {
    let _ = offline;
    let (config, mut report) = match load(path) {
        Ok(loaded) => loaded,
        Err(report) => return (report, None),
    };
    let bands = config.spam.as_ref().map_or_else(Bands::default, |spam| spam.bands);
    config.rules.run_tests(&bands).into_iter().for_each(|failure| report.add(failure));
    let summary = Summary {
        hostname: config.hostname.clone(),
        rule_set: config.rules.short_hash().to_owned(),
        rule_files: config.rule_files.len(),
        routes: config.routes.len(),
        counts: config.rules.counts(),
        inert: config.inert.clone(),
    };
    (report, Some(summary))
}

/// Where rules stand unless the configuration says otherwise.
const RULES: &str = "rules/*.toml";
/// A million aliases are some 60 MB.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// One file a domain; beyond it the pattern probably hit the wrong folder.
const RULE_FILES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, matches) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml~", false),
            ("*", "", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }

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
