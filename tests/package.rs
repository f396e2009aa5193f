//! What is installed from `deploy/`: the Debian package through its life, and the Containerfile as far as it can be
//! checked where no image can be built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use crate::harness::{has, is_root, program, run};

#[test]
fn the_package_installs_serves_is_upgraded_and_goes_without_taking_mail_away() {
    let test = "the_package_installs_serves_is_upgraded_and_goes_without_taking_mail_away";
    if !is_root(test) || !["dpkg-shlibdeps", "adduser", "swaks", "unshare"].iter().all(|tool| has(test, tool)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut build = Command::new(root().join("deploy/debian/build"));
    build.arg("--program").arg(program()).arg("--output").arg(folder.path()).arg("--fast");
    let package = run(&mut build).trim().to_owned();
    fs::create_dir(folder.path().join("copy")).unwrap();
    let told = run(Command::new(root().join("tests/package/life")).arg(folder.path().join("copy")).arg(package));
    let part = |name: &str| {
        let after = told.split(&format!("== {name}\n")).nth(1).unwrap_or_else(|| panic!("no {name} in: {told}"));
        after.to_owned()
    };
    let install = part("install");
    // What is not ready yet is said, and breaks nothing.
    assert!(install.contains("no rules file matches") && install.contains("systemctl enable --now"), "{install}");
    for line in [
        "root:pointsman 750 /etc/pointsman",
        "root:pointsman 640 /etc/pointsman/pointsman.toml",
        "pointsman:pointsman 750 /var/lib/pointsman",
    ] {
        assert!(install.contains(line), "{line}: {install}");
    }
    assert!(part("configure").contains("\nok\n"), "{told}");
    let serve = part("serve");
    // A key that root alone could read reaches the daemon, which is not root, and nobody else.
    for line in [
        "== reload: 0",
        "== renewed: 0",
        "root:pointsman 750 /etc/pointsman/tls\n",
        "root:pointsman 640 /etc/pointsman/tls/privkey.pem",
    ] {
        assert!(serve.contains(line), "{line}: {serve}");
    }
    assert!(serve.contains("== status: 0") && serve.contains("== served: 0"), "{serve}");
    // The changed configuration and the held mail are there after the upgrade, and the mail even after a purge.
    let upgrade = part("upgrade");
    let upgrade = upgrade.split("== remove").next().unwrap();
    assert!(upgrade.contains("mx.solarmora.com") && upgrade.contains("held"), "{upgrade}");
    let remove = part("remove");
    let remove = remove.split("== purge").next().unwrap();
    assert!(remove.contains("/etc/pointsman/pointsman.toml") && remove.contains("queue.db"), "{remove}");
    assert!(!remove.contains("/usr/bin/pointsman") && !remove.contains("pointsman.service"), "{remove}");
    let purge = part("purge");
    let purge = purge.split("== again").next().unwrap();
    assert!(purge.contains("/var/lib/pointsman is kept") && purge.contains("queue.db\n"), "{purge}");
    assert!(!purge.contains("/etc/pointsman/pointsman.toml") && purge.contains("== its user stays"), "{purge}");
    assert!(part("again").contains("== nothing is left"), "{told}");
}

#[test]
fn the_package_holds_what_its_unit_and_its_pages_name() {
    let build = read("deploy/debian/build");
    let unit = read("deploy/systemd/pointsman.service");
    for path in ["/usr/bin/pointsman", "/etc/pointsman/pointsman.toml"] {
        assert!(unit.contains(path) && build.contains(&path[1..]), "{path}");
    }
    let manual = read("deploy/debian/pointsman.8");
    let help = run(Command::new(program()).arg("--help"));
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let command = Regex::new(r"(?m)^  ([a-z]+) ").unwrap();
    for found in command.captures_iter(commands).filter(|found| &found[1] != "help") {
        assert!(manual.contains(&format!(".B {}\n", &found[1])), "pointsman(8) does not name {}", &found[1]);
    }
    assert!(manual.contains("0: done. 1: findings or errors. 2: wrong usage. 3: the daemon is not running."));
    // The configuration that a new installation has.
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("rules")).unwrap();
    fs::write(folder.path().join("pointsman.toml"), read("deploy/debian/pointsman.toml")).unwrap();
    let (report, _) = pointsman::config::check(&folder.path().join("pointsman.toml"), true);
    assert_eq!((report.errors(), report.warnings()), (0, 1), "{}", report.render(false));
}

#[test]
fn the_containerfile_names_files_commands_and_versions_that_are_there() {
    let text = read("deploy/Containerfile");
    let copied = Regex::new(r"(?m)^COPY (?:--from=build )?(.+) \S+$").unwrap();
    let mut sources = Vec::new();
    for found in copied.captures_iter(&text) {
        sources.extend(found[1].split(' ').map(str::to_owned));
    }
    assert!(sources.len() > 5, "the sources were not found: {sources:?}");
    for source in sources {
        match source.strip_prefix("/src/target/release/") {
            Some(binary) => assert!(read("Cargo.toml").contains(&format!("default-run = \"{binary}\""))),
            None => assert!(root().join(&source).exists(), "there is no {source}"),
        }
    }
    // Whatever the manifest names has to be copied, or cargo ends.
    let named = Regex::new(r#"(?m)^path = "([^/"]+)/"#).unwrap();
    for found in named.captures_iter(&read("Cargo.toml")) {
        assert!(text.contains(&format!("COPY {0} {0}", &found[1])), "{} is not copied", &found[1]);
    }
    let rust = Regex::new(r#"(?m)^rust-version = "(.*)"$"#).unwrap();
    let rust = rust.captures(&read("Cargo.toml")).unwrap()[1].to_owned();
    assert!(text.contains(&format!("/rust:{rust}-bookworm")));
    let words = Regex::new(r"(?m)^(?:CMD|HEALTHCHECK .* CMD) \[(.*)\]$").unwrap();
    let mut commands = 0;
    for found in words.captures_iter(&text) {
        let words: Vec<String> = found[1].split(", ").map(|word| word.trim_matches('"').to_owned()).collect();
        let words = words.iter().filter(|word| *word != "/usr/bin/pointsman");
        run(Command::new(program()).args(words).arg("--help"));
        commands += 1;
    }
    assert_eq!(commands, 2);
    assert!(text.contains("\nUSER 10025:10025\n"), "it runs unprivileged");
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
