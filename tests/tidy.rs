//! The house rules that a machine can hold, read off the sources.
//!
//! Reading order is import order; pure files stay pure; one adapter file a heavy crate; one maker of the delivery
//! proof; files and functions of a readable length. Each finding names file and line and says what to do. The reading
//! is lexical (comments and strings are blanked, braces are counted), not a parse: a rule that needs types is not here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use regex::Regex;

/// Files without async, sockets, files, clock, dice and logging: the P of the architecture. A name that ends in `/`
/// is a folder.
const PURE: &[&str] = &[
    "src/address.rs",
    "src/reply.rs",
    "src/envelope.rs",
    "src/tls/validity.rs",
    "src/diagnostic.rs",
    "src/scrub.rs",
    "src/proxy.rs",
    "src/smtp/",
    "src/policy/",
    "src/message/",
    "src/auth/mod.rs",
    "src/auth/coverage.rs",
    "src/auth/cuts.rs",
    "src/auth/results.rs",
    "src/auth/seal.rs",
    "src/auth/spf/macros.rs",
    "src/auth/spf/record.rs",
    "src/auth/verify/screen.rs",
    "src/spam/mod.rs",
    "src/spam/evidence.rs",
    "src/spam/builtin.rs",
    "src/spam/client.rs",
    "src/spam/header.rs",
    "src/spam/body.rs",
    "src/rules/",
    "src/srs.rs",
    "src/loops.rs",
    "src/stamp.rs",
    "src/queue/schedule.rs",
    "src/network.rs",
    "src/relay/mx.rs",
    "src/relay/breaker.rs",
    "src/relay/profile.rs",
    "src/relay/outcome.rs",
    "src/relay/fallback.rs",
    "src/config/raw.rs",
    "src/config/records.rs",
    "src/units.rs",
    "src/bounce/",
    "src/admin/pages.rs",
    "src/admin/replan.rs",
    "src/replay.rs",
    "src/import/",
];

/// What pure code does not say.
const IMPURE: &[&str] = &[
    r"\btokio\b",
    r"\.await\b",
    r"\basync\b",
    r"\bstd::(fs|env|process|thread)\b",
    r"\bstd::net::(Tcp|Udp|ToSocketAddrs)",
    r"\b(TcpStream|TcpListener|UdpSocket)\b",
    r"\bstd::io::(stdin|stdout|stderr)\b",
    r"\b(println|eprintln|print|eprint|dbg)!",
    r"\b(SystemTime|Instant)\b",
    r"\b(tracing|metrics)::",
    r"\bChance\b",
];

/// Words that one place alone may say, and that place: (pattern, files, what to do instead).
const ONE_PLACE: &[(&str, &[&str], &str)] = &[
    (r"\bSystemTime\b", &["src/clock.rs"], "take a `Timestamp` or a `Clock` as an argument"),
    // tokio's own instant is not meant: in a test it follows the virtual clock. It is written with its whole path.
    (
        r"(?:^|[^:\w])Instant::now\b|\bstd::time::Instant::now\b",
        &["src/clock.rs"],
        "take a `Clock` as an argument and ask `monotonic()`",
    ),
    (r"\b(Zoned|jiff::Timestamp)::now\b", &["src/clock.rs"], "take a `Timestamp` as an argument"),
    (r"\b(aws_lc_rs::rand|rand::|getrandom|RandomState::new)", &["src/id.rs"], "take a `Chance` as an argument"),
    (r"\bmail_send\b", &["src/relay/dial.rs"], "let `dial.rs` translate to our types"),
    (r"\brusqlite\b", &["src/queue/sqlite"], "go through the `Store` port"),
    (r"\b(tokio_)?rustls(_native_certs)?::", &["src/tls.rs", "src/tls/"], "let `tls` translate to our types"),
    (r"\bhickory_resolver\b", &["src/dns/resolver.rs", "src/auth/verify/"], "go through the `Dns` port"),
    (r"\bmail_auth\b", &["src/auth/verify/", "src/auth/sign.rs"], "let `auth` translate to our types"),
    (r"\bmail_parser\b", &["src/message/"], "let `message` translate to our types"),
    (r"\blistenfd\b", &["src/listen.rs"], "let `listen` hand out listeners"),
    (r"\bsd_notify\b", &["src/supervisor.rs"], "let `supervisor` tell"),
    (r"\bsmtp_codec\b", &["src/reply.rs"], "let `reply.rs` write replies"),
    (r"\bcsv::", &["src/rules/lists.rs", "src/import/sheet.rs"], "let `lists` or `sheet` read tables"),
    (r"\bregex_syntax\b", &["src/import/re2.rs"], "let `re2` look into patterns"),
    (r"\baxum\b", &["src/admin/"], "keep HTTP in `admin`"),
    (r"\bhyper(_util)?::", &["src/spam/rspamd.rs"], "let `rspamd.rs` speak HTTP to others"),
    (r"\bannotate_snippets\b", &["src/diagnostic.rs"], "make a `Diagnostic`"),
    (
        r"\bmetrics_exporter_prometheus\b",
        &["src/events.rs", "src/admin/", "src/daemon.rs"],
        "install the recorder once",
    ),
];

/// Steps take values and return values; only the conductors call them. A step may name another's types.
const STEPS: &[&str] = &["policy", "message", "auth", "spam", "rules", "srs", "stamp", "queue", "relay", "bounce"];

/// Lines of a function, its signature included: what fits a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Lines of a file without its tests: above it, a second noun has moved in.
const FILE_LINES_MAX: usize = 600;

/// Flat catalogues may be longer: (file, why).
const CATALOGUES: &[(&str, &str)] = &[];

#[test]
fn a_module_uses_only_itself_and_modules_above_it() {
    let order = reading_order();
    let place = |name: &str| order.iter().position(|module| module == name);
    let mut findings = Findings::default();
    for source in sources("src") {
        let Some(module) = source.module() else { continue };
        let own =
            place(&module).unwrap_or_else(|| panic!("{}: `{module}` is not in the list of src/lib.rs", source.path));
        for (line, segments) in source.crate_paths() {
            match place(&segments[0]) {
                Some(at) if at > own => findings.add(
                    &source,
                    line,
                    &format!("`{module}` uses `{}`, which src/lib.rs lists below it: move the code up, or the value into an argument", segments[0]),
                ),
                Some(_) => {}
                None => findings.add(&source, line, &format!("`crate::{}` is no module of src/lib.rs: name the module", segments[0])),
            }
        }
    }
    findings.report();
}

#[test]
fn steps_do_not_call_steps() {
    let mut findings = Findings::default();
    for source in sources("src") {
        let Some(module) = source.module().filter(|module| STEPS.contains(&module.as_str())) else { continue };
        for (line, segments) in source.crate_paths() {
            let other_step = STEPS.contains(&segments[0].as_str()) && segments[0] != module;
            let last = segments.last().expect("a path has a segment");
            let function = last.starts_with(|c: char| c.is_ascii_lowercase());
            if other_step && function && source.text_calls(last) {
                let what = format!(
                    "step `{module}` calls `{}`: let a conductor (inbound, outbound) pass the value in",
                    segments.join("::")
                );
                findings.add(&source, line, &what);
            }
        }
    }
    findings.report();
}

#[test]
fn pure_files_touch_nothing_of_the_world() {
    let mut findings = Findings::default();
    for source in sources("src") {
        if !stands_in(&source.path, PURE) {
            continue;
        }
        for pattern in IMPURE {
            for (line, found) in source.find(pattern) {
                findings.add(
                    &source,
                    line,
                    &format!("`{found}` in a pure file: take the value as an argument, or move the code to a shell"),
                );
            }
        }
    }
    findings.report();
}

#[test]
fn time_chance_and_heavy_crates_have_one_place_each() {
    let mut findings = Findings::default();
    for source in sources("src") {
        for (pattern, places, instead) in ONE_PLACE {
            if stands_in(&source.path, places) {
                continue;
            }
            for (line, found) in source.find(pattern) {
                findings.add(&source, line, &format!("`{found}` belongs to {} alone: {instead}", places.join(", ")));
            }
        }
    }
    findings.report();
}

#[test]
fn only_the_queue_proves_a_delivery() {
    let mut makers = Vec::new();
    for source in sources("src") {
        makers.extend(
            source.find(r"\bDeliveryProof\s+for\b").into_iter().map(|(line, _)| format!("{}:{line}", source.path)),
        );
    }
    assert_eq!(
        makers.len(),
        1,
        "`DeliveryProof` is implemented once, by the value that follows the sync; here: {makers:?}"
    );
    assert!(makers[0].starts_with("src/queue/"), "{}: `DeliveryProof` is implemented in the queue alone", makers[0]);
}

#[test]
fn files_and_functions_have_a_readable_length() {
    let mut findings = Findings::default();
    let (mut comments, mut lines) = (0, 0);
    // The programs of the fuzzers are three lines around a property.
    let properties = sources("fuzz/src").into_iter().filter(|source| !source.path.starts_with("fuzz/src/bin/"));
    for source in sources("src").into_iter().chain(sources("tests")).chain(properties) {
        if !source.text.starts_with("//!") {
            findings.add(
                &source,
                1,
                "the file does not open with `//!`: say what it is, how it thinks, what it leaves out",
            );
        }
        let catalogue = CATALOGUES.iter().any(|(path, _)| *path == source.path);
        let length = source.lines().filter(|(_, is_test, _)| !is_test).count();
        if length > FILE_LINES_MAX && !catalogue {
            findings.add(
                &source,
                length,
                &format!("{length} lines without tests (at most {FILE_LINES_MAX}): which second noun moved in?"),
            );
        }
        for (line, name, length) in source.functions() {
            if length > FUNCTION_LINES_MAX {
                findings.add(
                    &source,
                    line,
                    &format!(
                        "`{name}` has {length} lines (at most {FUNCTION_LINES_MAX}): split it where a name appears"
                    ),
                );
            }
        }
        if source.path.starts_with("src") {
            lines += source.text.lines().filter(|line| !line.trim().is_empty()).count();
            comments += source.text.lines().filter(|line| line.trim_start().starts_with("//")).count();
        }
    }
    println!("comments: {comments} of {lines} lines, {} %", comments * 100 / lines.max(1));
    findings.report();
}

#[test]
fn nothing_gives_up_where_mail_is_at_stake() {
    let mut findings = Findings::default();
    for source in sources("src") {
        for (pattern, instead) in [
            (r"\.unwrap\(\)", "answer the error, or say why it cannot be with `expect(\"…\")`"),
            (r"\b(todo|unimplemented)!", "an unbuilt place is an honest error, not a panic"),
        ] {
            for (line, found) in source.find(pattern) {
                findings.add(&source, line, &format!("`{found}`: {instead}"));
            }
        }
    }
    for source in sources("src").into_iter().chain(sources("tests")) {
        for (at, text) in source.blanked.lines().enumerate() {
            if text.contains("#[ignore") {
                findings.add(&source, at + 1, "an ignored test: assert today's wrong answer and say why, or delete it");
            }
        }
    }
    findings.report();
}

#[test]
fn every_reply_of_the_catalogue_is_said_somewhere() {
    let all = sources("src");
    let catalogue = all.iter().find(|source| source.path == "src/reply.rs").expect("src/reply.rs is the catalogue");
    let declaration = Regex::new(r"^pub const ([A-Z0-9_]+): Reply\b").unwrap();
    let mut findings = Findings::default();
    for (at, text) in catalogue.blanked.lines().enumerate() {
        let Some(name) = declaration.captures(text).map(|found| found[1].to_owned()) else { continue };
        let word = format!(r"\b{name}\b");
        let here = usize::from(catalogue.find(&word).len() > 1);
        let uses = here
            + all
                .iter()
                .filter(|source| source.path != catalogue.path)
                .map(|source| source.find(&word).len())
                .sum::<usize>();
        if uses == 0 {
            findings.add(catalogue, at + 1, &format!("nobody says `{name}`: delete it, or build what says it"));
        }
    }
    findings.report();
}

/// The modules of src/lib.rs, top to bottom.
fn reading_order() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let line = Regex::new(r"(?m)^(?:pub )?mod (\w+);").unwrap();
    line.captures_iter(&lib).map(|found| found[1].to_owned()).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn stands_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| if place.ends_with(".rs") { path == *place } else { path.starts_with(place) })
}

#[derive(Default)]
struct Findings(BTreeSet<String>);

impl Findings {
    fn add(&mut self, source: &Source, line: usize, what: &str) {
        self.0.insert(format!("{}:{line}: {what}", source.path));
    }

    fn report(self) {
        let text: Vec<String> = self.0.into_iter().collect();
        assert!(text.is_empty(), "{} findings:\n{}", text.len(), text.join("\n"));
    }
}

/// A source file, read lexically.
struct Source {
    /// Relative to the package, with `/`.
    path: String,
    text: String,
    /// The text with comments and the insides of literals turned into spaces; lines and columns stay.
    blanked: String,
    /// For each line: it belongs to an item under `#[cfg(test)]`.
    in_test: Vec<bool>,
}

/// All Rust files under a folder of the package.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source::new(name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

impl Source {
    fn new(path: String, text: String) -> Source {
        let blanked = blank(&text);
        // `foo/tests.rs` is the test module of `foo`, in a file of its own; what is long has a folder beside it.
        let all = path.starts_with("src/") && (path.ends_with("/tests.rs") || path.contains("/tests/"));
        let mut in_test = vec![all; text.lines().count() + 1];
        let marker = compiled(r"#\[cfg\((?:all\()?test\b[^\]]*\]");
        for found in marker.find_iter(&blanked) {
            let end = item_end(&blanked, found.end());
            in_test[line_of(&blanked, found.start()) - 1..line_of(&blanked, end)].fill(true);
        }
        Source { path, text, blanked, in_test }
    }

    /// The crate's module that the file belongs to; none for the roots.
    fn module(&self) -> Option<String> {
        let inner = self.path.strip_prefix("src/")?;
        let first = inner.split('/').next()?.trim_end_matches(".rs");
        (!matches!(first, "lib" | "main")).then(|| first.to_owned())
    }

    /// Lines with their number from 1 and whether they are a test's, blanked.
    fn lines(&self) -> impl Iterator<Item = (usize, bool, &str)> {
        self.blanked.lines().enumerate().map(|(at, line)| (at + 1, self.in_test[at], line))
    }

    /// Where the code outside tests matches.
    fn find(&self, pattern: &str) -> Vec<(usize, String)> {
        let pattern = compiled(pattern);
        let code = self.lines().filter(|(_, is_test, _)| !is_test);
        code.filter_map(|(line, _, text)| pattern.find(text).map(|found| (line, found.as_str().to_owned()))).collect()
    }

    fn text_calls(&self, function: &str) -> bool {
        !self.find(&format!(r"\b{function}(::<[^>]*>)?(\(|::[a-z_]+\()")).is_empty()
    }

    /// Every path that starts at the crate, outside tests, groups unfolded: (line, the segments behind `crate`).
    /// In a file at the root, or in a folder's mod.rs, `super` is the crate as well.
    fn crate_paths(&self) -> Vec<(usize, Vec<String>)> {
        let depth = self.path.matches('/').count();
        let top = depth == 1 || (depth == 2 && self.path.ends_with("/mod.rs"));
        let start = compiled(if top { r"\b(?:crate|super)::" } else { r"\bcrate::" });
        let mut paths = Vec::new();
        for found in start.find_iter(&self.blanked) {
            let line = line_of(&self.blanked, found.start());
            if !self.in_test[line - 1] {
                unfold(&self.blanked[found.end()..], &[], &mut |path| paths.push((line, path)));
            }
        }
        paths
    }

    /// Functions outside tests of src, all functions of tests/: (line, name, lines).
    fn functions(&self) -> Vec<(usize, String, usize)> {
        let start = compiled(r"\bfn\s+(\w+)");
        let mut functions = Vec::new();
        for found in start.captures_iter(&self.blanked) {
            let whole = found.get(0).expect("group 0 is the match");
            let line = line_of(&self.blanked, whole.start());
            if !self.in_test[line - 1] {
                let end = line_of(&self.blanked, item_end(&self.blanked, whole.end()));
                functions.push((line, found[1].to_owned(), end - line + 1));
            }
        }
        functions
    }
}

/// Unfolds `a::{b, c::d}` at the start of `text`; returns how much of it was the path.
fn unfold(text: &str, before: &[String], found: &mut impl FnMut(Vec<String>)) -> usize {
    let mut path = before.to_vec();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if text[at..].starts_with('{') {
            at += 1;
            while !text[at..].starts_with('}') && at < text.len() {
                at += unfold(&text[at..], &path, found);
                at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
                at += usize::from(text[at..].starts_with(','));
                at += text[at..].len() - text[at..].trim_start().len();
            }
            return (at + 1).min(text.len());
        }
        let word: String = text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect();
        at += word.len();
        if !word.is_empty() && word != "self" {
            path.push(word);
        }
        match text[at..].strip_prefix("::") {
            Some(rest) if rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '{' | '*')) => at += 2,
            _ => break,
        }
    }
    if !path.is_empty() {
        found(path);
    }
    at
}

/// The end of the item that begins at `from`: its closing brace, or a semicolon outside all brackets.
fn item_end(blanked: &str, from: usize) -> usize {
    let mut depth = 0usize;
    for (at, c) in blanked[from..].char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && c == '}' {
                    return from + at;
                }
            }
            ';' if depth == 0 => return from + at,
            _ => {}
        }
    }
    blanked.len()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Turns comments and the insides of string and character literals into spaces.
fn blank(text: &str) -> String {
    let token = compiled(concat!(
        r#"(?s)//[^\n]*"#,
        r#"|/\*.*?\*/"#,
        r##"|\bb?r#+".*?"#+"##,
        r#"|\bb?r"[^"]*""#,
        r#"|b?"(?:\\.|[^"\\])*""#,
        r#"|b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F]+\}|.)|[^\\'\n])'"#
    ));
    let blanked = token.replace_all(text, |found: &regex::Captures<'_>| {
        found[0].chars().map(|c| if c == '\n' { "\n".to_owned() } else { " ".repeat(c.len_utf8()) }).collect::<String>()
    });
    blanked.into_owned()
}

/// A pattern, compiled once: hundreds of files are read with each, and an unoptimised build compiles slowly.
fn compiled(pattern: &str) -> Regex {
    static KNOWN: Mutex<BTreeMap<String, Regex>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).unwrap()).clone()
}

#[test]
fn tidy_reads_sources_as_it_says() {
    let text = "use crate::{a::{self, B}, c::*};\nfn f() { let s = \"crate::no {\"; } // crate::no\n\
                #[cfg(test)]\nmod tests {\n    use crate::t;\n    fn g() {\n    }\n}\nfn h<'a>(\n    x: &'a str,\n) -> crate::d::E {\n}\n";
    let source = Source::new("src/queue/x.rs".into(), text.into());
    let paths: Vec<String> =
        source.crate_paths().into_iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    assert_eq!(paths, ["1 a", "1 a::B", "1 c::*", "11 d::E"]);
    assert_eq!(source.functions(), [(2, "f".into(), 1), (9, "h".into(), 4)]);
    assert_eq!(source.module().as_deref(), Some("queue"));
}
