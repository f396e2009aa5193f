//! `import`, through the program, and what it makes of tables against what Postfix itself makes of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman::address::{Mailbox, ReversePath};
use pointsman::clock::Timestamp;
use pointsman::config::{Config, check};
use pointsman::message::reading::Reading;
use pointsman::rules::{Fact, Facts, Verdict};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{find, has, program};

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn import(arguments: &[&str]) -> Ran {
    let output = Command::new(program()).arg("import").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A configuration around imported rules; its path.
fn site(folder: &TempDir, rules: &str, routes: &str) -> PathBuf {
    let main = folder.path().join("pointsman.toml");
    let text = format!(
        "hostname = 'mx.pointsman.example'\nrules = ['rules.toml']\n[route.people]\nhosts = ['people.example']\n{routes}"
    );
    fs::write(&main, text).unwrap();
    fs::write(folder.path().join("rules.toml"), rules).unwrap();
    let (report, _) = check(&main, true);
    assert_eq!(report.errors(), 0, "{}\n{rules}", report.render(false));
    main
}

/// The final recipients of mail to `recipient`; none where it is refused.
fn recipients(config: &Config, recipient: &str) -> BTreeSet<String> {
    let recipient = Mailbox::parse(recipient).unwrap();
    let sender = ReversePath::parse("client@example.org").unwrap();
    let reading = Reading::default();
    let facts = Facts {
        auth: Fact::Known(Default::default()),
        score: Fact::Known(None),
        message: Fact::Known(&reading),
        ..Facts::of(&recipient, &sender, Timestamp(0))
    };
    match config.rules.decide(&facts).verdict {
        Verdict::Accept { legs, .. } => legs.iter().map(|leg| leg.target.key()).collect(),
        Verdict::Reject(_) | Verdict::Defer(_) | Verdict::Undecided => BTreeSet::new(),
    }
}

/// `postmap -q` of a table.
struct Postmap {
    folder: TempDir,
}

impl Postmap {
    fn new(table: &Path) -> Postmap {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("main.cf"), "compatibility_level = 3.6\n").unwrap();
        fs::write(folder.path().join("master.cf"), "").unwrap();
        fs::copy(table, folder.path().join("table")).unwrap();
        Postmap { folder }
    }

    fn ask(&self, key: &str) -> Option<String> {
        let path = self.folder.path();
        let mut postmap = Command::new(find("postmap").unwrap())
            .arg("-c")
            .arg(path)
            .args(["-q", "-", &format!("texthash:{}/table", path.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        writeln!(postmap.stdin.take().unwrap(), "{key}").unwrap();
        let output = postmap.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_once('\t').map(|(_, value)| value.trim_end().to_owned())
    }

    /// As cleanup(8) does it: looked up again until nothing is found, and what goes to itself stays. `None` where Postfix
    /// would defer the mail, because the aliases go round in a circle.
    fn expand(&self, address: &str) -> Option<BTreeSet<String>> {
        let (mut finals, mut own) = (BTreeSet::new(), BTreeSet::new());
        let mut open = vec![(address.to_lowercase(), 0)];
        while let Some((address, depth)) = open.pop() {
            let (local, domain) = address.rsplit_once('@').unwrap();
            let found = if own.contains(&address) {
                None
            } else {
                self.ask(&address).or_else(|| self.ask(&format!("@{domain}")))
            };
            let Some(found) = found else {
                finals.insert(address);
                continue;
            };
            if depth > 20 {
                return None;
            }
            for (at, word) in found.split([',', ' ']).filter(|word| !word.is_empty()).enumerate() {
                let next = match word.strip_prefix('@') {
                    Some(domain) if at == 0 => format!("{local}@{domain}"),
                    _ => word.to_lowercase(),
                };
                if next == address {
                    own.insert(next.clone());
                    finals.insert(next);
                } else {
                    open.push((next, depth + 1));
                }
            }
        }
        Some(finals)
    }
}

/// Each table of the corpus: all its addresses, and one of each domain that it does not name.
#[test]
fn postfix_tables_lead_to_the_recipients_that_postfix_finds() {
    if !has("postfix_tables_lead_to_the_recipients_that_postfix_finds", "postmap") {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/imports");
    let mut tables = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let table = entry.unwrap().path();
        if table.extension().is_none_or(|extension| extension != "virtual") {
            continue;
        }
        tables += 1;
        let name = table.file_name().unwrap().to_string_lossy().into_owned();
        let table_text = table.display().to_string();
        let ran = import(&["postfix", &table_text, "--role", "admin@example.net", "--mailboxes", "people", "--json"]);
        let summary: Value = serde_json::from_str(ran.out.lines().last().expect(&ran.err)).unwrap();
        let site_folder = tempfile::tempdir().unwrap();
        let main =
            site(&site_folder, summary["rules_toml"].as_str().unwrap(), summary["routes_toml"].as_str().unwrap());
        let config = Config::load(&main).unwrap_or_else(|report| panic!("{}", report.render(false))).0;
        let postmap = Postmap::new(&table);
        let text = fs::read_to_string(&table).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with([' ', '\t', '#']) && !line.trim().is_empty());
        let keys: BTreeSet<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
        let named = keys.iter().filter(|key| !key.starts_with('@') && key.contains('@')).map(|key| (*key).to_owned());
        let caught = keys.iter().filter(|key| key.starts_with('@')).map(|domain| format!("nobody-else{domain}"));
        let mut compared = 0;
        for address in named.chain(caught) {
            let Some(expected) = postmap.expand(&address) else {
                assert!(recipients(&config, &address).is_empty(), "{name}: {address} goes round in a circle");
                assert!(ran.out.contains("a circle"), "{}", ran.out);
                continue;
            };
            assert_eq!(
                recipients(&config, &address),
                expected,
                "{name}: {address}\n{}",
                summary["rules_toml"].as_str().unwrap()
            );
            compared += 1;
        }
        assert!(compared > 0, "{name}");
    }
    assert!(tables >= 5);
}

#[test]
fn import_writes_files_and_never_over_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("virtual"), "aide@d.example case@crm.example\npostmaster@d.example me@x.example\n").unwrap();
    fs::write(path("transport"), "crm.example smtp:[in.crm.example]:2525\n").unwrap();
    let arguments = ["postfix", &path("virtual"), &path("transport"), "--output", &path("out")];
    let ran = import(&arguments);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
    let rules = fs::read_to_string(path("out/postfix.toml")).unwrap();
    let routes = fs::read_to_string(path("out/postfix.routes")).unwrap();
    assert!(routes.contains("hosts = [\"in.crm.example:2525\"]"), "{routes}");
    let site_folder = tempfile::tempdir().unwrap();
    let main = site(&site_folder, &rules, &routes);
    let checked = Command::new(program()).args(["check", "--offline", "--config"]).arg(&main).output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    // Where one file is there already nothing is written.
    fs::remove_file(path("out/postfix.toml")).unwrap();
    let again = import(&arguments);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("is there already") && !Path::new(&path("out/postfix.toml")).exists(), "{}", again.err);
}

#[test]
fn import_tells_what_it_left_out_and_refuses_what_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(
        path("g.csv"),
        "match;value;change-recipient;subject-prefix;address-list\nsingle;aide@d.example;case@crm.example;;vips\n",
    )
    .unwrap();
    let ran = import(&["gmail", &path("g.csv"), "--role", "admin@example.net"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("not carried over: line 2, setting of line 2: the address list `vips`"), "{}", ran.err);
    assert!(ran.out.contains("to = \"case@crm.example\"") && ran.out.contains("# Not carried over:\n"), "{}", ran.out);
    let site_folder = tempfile::tempdir().unwrap();
    site(&site_folder, &ran.out, "");
    fs::write(path("regexp"), "/^(.*)@d$/ $1@e\n").unwrap();
    let ran = import(&["postfix", &path("regexp")]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("virtual: line 1 belongs to a regexp or pcre table"), "{}", ran.err);
    assert_eq!(import(&["postfix", &path("g.csv"), "--domain", "no domain"]).code, Some(2));
    assert_eq!(import(&["gmail", &path("missing.csv")]).code, Some(1));
}
