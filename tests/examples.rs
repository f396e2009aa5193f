//! What the documentation shows works as it stands: the files under `deploy/` and `rules/`, the README's
//! configurations and commands, and the paths that it names.
//!
//! Files that an example names (a certificate, a key) are created beside a copy of it, with the mode that a deployed
//! secret has.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman::config::{Config, check};
use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Certificates, Client, Crm, Setup, has, program, run, wait_for};

/// What `deploy/pointsman.toml` names and the project cannot bring along.
const SECRETS: [&str; 3] = ["fullchain.pem", "key.pem", "srs.key"];

/// The documents whose paths must exist.
const DOCUMENTS: [&str; 9] = [
    "README.md",
    "CHANGELOG.md",
    "docs/getting-started.md",
    "docs/rules.md",
    "docs/import.md",
    "docs/spam.md",
    "docs/operating.md",
    "tests/README.md",
    "tests/dialogs/README.md",
];

#[test]
fn the_deployed_configuration_with_the_example_rules_has_no_findings() {
    let folder = deployed();
    let main = folder.path().join("pointsman.toml");
    let (report, summary) = check(&main, true);
    assert!(report.is_empty(), "{}", report.render(false));
    let summary = summary.expect("what has no findings can be summed up");
    assert_eq!(summary.rule_files, rule_files().len());
    // The program says the same, and names what it accepts without doing it.
    let checked =
        Command::new(program()).args(["check", "--offline", "--json", "--config"]).arg(&main).output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let said = String::from_utf8(checked.stdout).unwrap();
    let last: Value = serde_json::from_str(said.lines().last().expect("a summary")).unwrap();
    assert_eq!((&last["errors"], &last["warnings"]), (&0.into(), &0.into()));
    assert_eq!(last["inert"], Value::from(summary.inert));
}

#[test]
fn the_deployed_configuration_has_every_key_and_says_the_truth_of_defaults() {
    let folder = deployed();
    let main = folder.path().join("pointsman.toml");
    let text = fs::read_to_string(&main).unwrap();
    let key = Regex::new(r"^(?:# )?([a-z][a-z-]*) *= ").unwrap();
    let shown: BTreeSet<String> =
        text.lines().filter_map(|line| key.captures(line)).map(|found| found[1].to_owned()).collect();
    let taken = Regex::new(r#"\b(?:take|require|is_on)\(\s*"([a-z-]+)""#).unwrap();
    let mut keys = BTreeSet::new();
    for file in sources_of_keys() {
        let source = fs::read_to_string(file).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        keys.extend(taken.captures_iter(source).map(|found| found[1].to_owned()));
    }
    assert!(keys.len() > 40, "the keys were not found: {keys:?}");
    let missing: Vec<_> = keys.difference(&shown).collect();
    assert!(missing.is_empty(), "deploy/pointsman.toml does not show: {missing:?}");

    let loaded = |text: &str| {
        fs::write(&main, text).unwrap();
        Config::load(&main).ok().map(|(config, _)| resolved(&config))
    };
    let whole = loaded(&text).expect("it loads");
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| key.is_match(line)) {
        let reason = line.split_once("  # ").map_or("", |(_, reason)| reason);
        if line.starts_with('#') {
            continue;
        }
        let without: Vec<&str> = lines.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, l)| *l).collect();
        let same = loaded(&without.join("\n")).as_ref() == Some(&whole);
        let says_default = reason.trim_start().starts_with("default:");
        assert!(same == says_default, "deploy/pointsman.toml:{}: {line}", at + 1);
        assert!(!says_default || reason.len() > "default: ".len() + 5, "{line}: why?");
    }
}

/// All that the configuration came to, but the rules' contents.
fn resolved(config: &Config) -> String {
    let c = config;
    let session = (&c.hostname, &c.data, &c.listeners, &c.upstream, &c.auth, &c.dns_servers, &c.tls, &c.limits);
    let rest = (&c.routes, &c.queue, &c.retention, &c.admin, &c.log, &c.srs, &c.spam, &c.dkim, &c.rule_files, &c.inert);
    format!("{session:?} {rest:?} {}", c.rules.hash())
}

/// Where keys of the configuration are read.
fn sources_of_keys() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("src/config")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("tests.rs")).collect()
}

#[test]
fn every_worked_example_loads_and_its_tests_pass() {
    let mut examples = 0;
    for entry in fs::read_dir(root().join("rules")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        examples += 1;
        let (report, summary) = check(&folder.join("pointsman.toml"), true);
        assert!(report.is_empty(), "{}", report.render(false));
        let text = fs::read_to_string(folder.join("rules.toml")).unwrap();
        let tests = text.matches("[[test]]").count();
        assert!(tests > 1, "{}: an example shows how it is tested, too", folder.display());
        assert_eq!(summary.expect("it loads").counts.tests, tests, "{}", folder.display());
        let named = format!("rules/{}", folder.file_name().unwrap().to_str().unwrap());
        assert!(reference().contains(&format!("(../{named})")), "the gallery does not name {named}");
    }
    assert_eq!(examples, 12);
}

#[test]
fn the_steps_show_the_records_that_dns_prints() {
    let shown = fenced(&started(), "dns");
    let examples = ["behind-the-host", "one-alias", "mail-host"];
    assert_eq!(shown.len(), examples.len());
    for (example, shown) in examples.iter().zip(shown) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pointsman.toml", "rules.toml"] {
            let text = fs::read_to_string(root().join("rules").join(example).join(name)).unwrap();
            // A key that this machine has would be printed.
            let text = text.replace("\nrules ", "\ndata = \"data\"\nrules ");
            fs::write(folder.path().join(name), text).unwrap();
        }
        // It ends with 1, because there is no key yet.
        let printed = Command::new(program())
            .args(["dns", "--config", "pointsman.toml"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        if *example == "behind-the-host" {
            // No MX is moved in this step.
            let other: Vec<&str> = shown.lines().filter(|line| !printed.lines().any(|l| l == *line)).collect();
            assert_eq!(other, Vec::<&str>::new());
            assert!(shown.contains("srs.solarmora.com.\tIN\tMX") && !shown.contains("\nsolarmora.com.\tIN\tMX"));
        } else {
            assert_eq!(shown, printed, "docs/getting-started.md shows other records for rules/{example}");
        }
    }
}

#[test]
fn every_rule_file_has_tests_and_they_are_run() {
    for file in rule_files() {
        let text = fs::read_to_string(&file).unwrap();
        let tests = text.lines().filter(|line| line.trim() == "[[test]]").count();
        assert!(tests > 0, "{}: an example shows how it is tested, too", file.display());
        let folder = deployed();
        for other in rule_files().iter().filter(|other| **other != file) {
            fs::remove_file(folder.path().join(other)).unwrap();
        }
        let (report, summary) = check(&folder.path().join("pointsman.toml"), true);
        assert!(report.is_empty(), "{}", report.render(false));
        assert_eq!(summary.expect("it loads").counts.tests, tests, "{}", file.display());
        // A test that is run can fail.
        let broken = text.replacen("legs = [", "legs = [\"nowhere@example.com\", ", 1);
        assert_ne!(broken, text);
        fs::write(folder.path().join(&file), broken).unwrap();
        let (report, _) = check(&folder.path().join("pointsman.toml"), true);
        assert!(!report.is_empty(), "{}: a test that expects another leg passes, too", file.display());
    }
}

#[test]
fn the_readme_s_configuration_has_no_findings() {
    let blocks = fenced(&readme(), "toml");
    let is_rules = |block: &&String| block.contains("[alias.") || block.contains("[[rule]]");
    let (rules, mains): (Vec<_>, Vec<_>) = blocks.iter().partition(is_rules);
    assert!(!mains.is_empty() && !rules.is_empty(), "the README shows a configuration and rules");
    for main in mains {
        for rules in &rules {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("rules")).unwrap();
            fs::write(folder.path().join("rules/readme.toml"), rules).unwrap();
            fs::write(folder.path().join("pointsman.toml"), main).unwrap();
            let (report, _) = check(&folder.path().join("pointsman.toml"), true);
            assert!(report.is_empty(), "{}", report.render(false));
        }
    }
}

#[test]
fn the_readme_s_steps_lead_to_the_first_case() {
    let text = readme();
    let steps = text.split("\n## ").find(|part| part.starts_with("From nothing")).expect("the README has its steps");
    let blocks = fenced(steps, "toml");
    let [main, rules] = &blocks[..] else { panic!("a configuration and rules: {blocks:?}") };
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    // Only what a test cannot have is replaced: fixed ports, a CRM of one's own with a certificate, a place in /var.
    let mut main = format!("{main}\n[[listener]]\naddress = \"127.0.0.1:0\"\n[queue]\nmin-free = \"1MiB\"\n");
    for (written, meant) in [
        ("/var/lib/pointsman", site.data().display().to_string()),
        ("smtp.mon-crm.com:25", crm.address().to_string()),
        ("\"require\"", "\"off\"".to_owned()),
        ("127.0.0.1:8025", "127.0.0.1:0".to_owned()),
    ] {
        assert_eq!(main.matches(written).count(), 1, "the README's configuration has no {written}");
        main = main.replace(written, &meant);
    }
    fs::write(site.config(), main).unwrap();
    site.write_rules(rules);
    let typed = Regex::new(r"`((?:pointsman|swaks) [^`]*)`").unwrap();
    let typed: Vec<&str> = typed.captures_iter(steps).map(|found| found.extract::<1>().1[0]).collect();
    let serve = typed.iter().position(|command| command.starts_with("pointsman serve")).expect("a step that serves");
    let (before, after) = typed.split_at(serve);
    let folder = site.path().to_owned();
    for command in before {
        shell(&folder, command);
    }
    let daemon = site.start();
    let mut told = String::new();
    for command in &after[1..] {
        if command.starts_with("swaks") && !has("the_readme_s_steps_lead_to_the_first_case", "swaks") {
            Client::connect(daemon.smtp).deliver("client@example.org", &["aide@solarmora.com"], b"Subject: x\r\n\r\n");
            continue;
        }
        if command.starts_with("pointsman trace") {
            wait_for("the case", || {
                daemon.rows(&["trace"]).first().filter(|leg| leg["state"] == "delivered").map(drop)
            });
        }
        told = shell(&folder, &command.replace("127.0.0.1:25", &daemon.smtp.to_string()));
    }
    assert!(told.contains("accepted from <client@example.org>") && told.contains("=> delivered"), "{told}");
    let pages = Regex::new(r"`http://127.0.0.1:8025(/\w+)`").unwrap();
    let pages: Vec<String> = pages.captures_iter(steps).map(|found| found[1].to_owned()).collect();
    assert_eq!(pages, ["/metrics", "/healthz", "/readyz"]);
    pages.iter().for_each(|page| assert_eq!(daemon.http(page).0, 200, "{page}"));
}

#[test]
fn the_deployed_configuration_says_how_to_check_it() {
    let text = fs::read_to_string(root().join("deploy/pointsman.toml")).unwrap();
    let steps: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    assert!(steps.last().is_some_and(|last| last.starts_with("pointsman check")), "{steps:?}");
    if !has("the_deployed_configuration_says_how_to_check_it", "openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["deploy", "rules"] {
        run(Command::new("cp").arg("-r").arg(root().join(name)).arg(folder.path()));
    }
    let said = shell(folder.path(), &steps.join(" && "));
    assert!(said.lines().any(|line| line == "ok"), "{said}");
}

#[test]
fn the_reference_of_the_spam_score_shows_what_loads() {
    let blocks = fenced(&fs::read_to_string(root().join("docs/spam.md")).unwrap(), "toml");
    assert!(blocks.len() > 1, "the examples were not found");
    for block in blocks {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("pointsman.toml");
        fs::write(&main, format!("hostname = 'mx.solarmora.com'\nrules = ['rules.toml']\n{block}")).unwrap();
        fs::write(folder.path().join("rules.toml"), "").unwrap();
        let (report, _) = check(&main, true);
        assert!(report.is_empty(), "{}", report.render(false));
    }
}

#[test]
fn the_reference_of_the_rules_shows_what_holds() {
    let text = reference();
    let blocks = fenced(&text, "toml");
    let (ground, examples) = blocks.split_first().expect("the lines that the examples stand on");
    assert!(examples.len() > 4, "the examples were not found");
    let files = fenced(&text, "csv");
    assert_eq!(files.len(), 2, "the files that the examples name");
    for example in examples {
        let folder = tempfile::tempdir().unwrap();
        let main =
            "hostname = 'mx.solarmora.com'\n[route]\ncrm.hosts = 'crm.example'\ngoogle.hosts = 'smtp.google.com'\n";
        fs::write(folder.path().join("pointsman.toml"), main).unwrap();
        fs::create_dir(folder.path().join("rules")).unwrap();
        fs::write(folder.path().join("rules/0.toml"), ground).unwrap();
        for (name, file) in ["customers.csv", "clients.csv"].iter().zip(&files) {
            fs::write(folder.path().join("rules").join(name), file).unwrap();
        }
        fs::write(folder.path().join("rules/1.toml"), example).unwrap();
        let (report, summary) = check(&folder.path().join("pointsman.toml"), true);
        assert!(report.is_empty(), "{}", report.render(false));
        assert!(summary.expect("it loads").counts.tests > 0, "an example that proves nothing: {example}");
    }
}

#[test]
fn the_readme_s_commands_exist() {
    let mut commands = commands(&readme());
    commands.extend(self::commands(&started()));
    assert!(commands.len() > 25, "the README's commands were not found: {commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches('\'')).collect();
        // `--help` at the end: everything before it must be known.
        let help = Command::new(program()).args(&words).arg("--help").output().unwrap();
        assert!(help.status.success(), "`pointsman {command}`: {}", String::from_utf8_lossy(&help.stderr));
    }
}

#[test]
fn the_paths_in_the_documentation_exist() {
    let path = Regex::new(r"\]\(([^)#:]+)\)|`((?:src|tests|rules|deploy|benches|\.ci)/[\w./-]*)`").unwrap();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for found in path.captures_iter(&text) {
            let named = found.get(1).or(found.get(2)).expect("one of them matched").as_str();
            let beside = root().join(document).parent().expect("it is in a folder").join(named);
            assert!(beside.exists() || root().join(named).exists(), "{document} names `{named}`");
        }
    }
    run(Command::new("test").arg("-x").arg(root().join("tests/run")));
}

/// `deploy/` and `rules/` side by side in a folder, as `/etc/pointsman` would have them.
fn deployed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root().join("deploy/pointsman.toml"), folder.path().join("pointsman.toml")).unwrap();
    fs::create_dir(folder.path().join("rules")).unwrap();
    for entry in fs::read_dir(root().join("rules")).unwrap() {
        let from = entry.unwrap().path();
        if from.is_dir() {
            continue;
        }
        let to = folder.path().join("rules").join(from.file_name().unwrap());
        fs::copy(&from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let issued = Certificates::new("mx.solarmora.com");
    for name in SECRETS {
        let path = folder.path().join(name);
        match name {
            "fullchain.pem" => drop(fs::copy(issued.certificate(), &path).unwrap()),
            "key.pem" => drop(fs::copy(issued.key(), &path).unwrap()),
            _ => fs::write(&path, "a stand-in\n").unwrap(),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

/// `rules/*.toml`, relative to the project's folder.
fn rule_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("rules"))
        .unwrap()
        .map(|entry| PathBuf::from("rules").join(entry.unwrap().file_name()));
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    assert!(!files.is_empty(), "the example rules are gone");
    files
}

/// Runs a line as a shell would in `folder`, with our program in its path; gives what it printed. It must succeed.
fn shell(folder: &Path, line: &str) -> String {
    let program = program();
    let program = program.parent().expect("the program is in a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    run(Command::new("sh").args(["-c", line]).current_dir(folder).env("PATH", path))
}

fn reference() -> String {
    fs::read_to_string(root().join("docs/rules.md")).unwrap()
}

fn started() -> String {
    fs::read_to_string(root().join("docs/getting-started.md")).unwrap()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The contents of a document's fenced blocks of one language, without the indentation of the fence.
fn fenced(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        if line.trim_start() == format!("```{language}") {
            let inside = lines.by_ref().take_while(|line| !line.trim_start().starts_with("```"));
            blocks.push(inside.map(|line| format!("{}\n", line.get(indent..).unwrap_or(""))).collect());
        }
    }
    blocks
}

/// What the README tells to type after `pointsman`: in its text, its blocks, and the table of commands.
fn commands(text: &str) -> Vec<String> {
    let typed = Regex::new(r"(?m)(?:`|^\s*)(?:cargo r --release --|pointsman) ([a-z][^`#\n]*)").unwrap();
    let mut commands: Vec<String> = typed.captures_iter(text).map(|found| found[1].trim().to_owned()).collect();
    let row = Regex::new(r"(?m)^\| `([a-z]+)(?: ([a-z\\|]+))?` \|").unwrap();
    for found in row.captures_iter(text) {
        match found.get(2) {
            Some(subs) => commands.extend(subs.as_str().split("\\|").map(|sub| format!("{} {sub}", &found[1]))),
            None => commands.push(found[1].to_owned()),
        }
    }
    commands
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn blocks_and_commands_are_found() {
    let text = "1. Do:\n\n   ```toml\n   a = 1\n   [b]\n   ```\n\n`pointsman check --config x` and\n| `queue list\\|show` | text |\n| `serve` | text |\n";
    assert_eq!(fenced(text, "toml"), ["a = 1\n[b]\n"]);
    assert_eq!(commands(text), ["check --config x", "queue list", "queue show", "serve"]);
}
