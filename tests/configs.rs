//! Configurations that must fail, each with the message beside it: `tests/configs/<case>.toml` is a main file, a folder
//! `tests/configs/<case>/` has one and rules. `<case>.expect` holds what `check` draws.
//!
//! `UPDATE_EXPECT=1` rewrites the `.expect` files; review the difference.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman::config::check;

use crate::harness::Certificates;

#[test]
fn wrong_configurations_fail_with_the_expected_message() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = Vec::new();
    let cases = cases();
    assert!(!cases.is_empty());
    for (main, expect) in cases {
        let (report, _) = check(&main, true);
        assert!(!report.is_empty(), "{} has no findings", main.display());
        let drawn = report.render(false);
        if update {
            fs::write(&expect, &drawn).unwrap();
        } else if fs::read_to_string(&expect).unwrap_or_default() != drawn {
            wrong.push(format!("{}:\n{drawn}", main.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_design_s_examples_pass_the_check() {
    let folder = tempfile::tempdir().unwrap();
    copy(Path::new("tests/configs/design"), folder.path());
    // What stands in the repository is readable by all; a deployed secret is not.
    let secret = folder.path().join("rules/salesforce.address");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let certificates = Certificates::new("mx.solarmora.com");
    fs::copy(certificates.certificate(), folder.path().join("fullchain.pem")).unwrap();
    fs::copy(certificates.key(), folder.path().join("key.pem")).unwrap();
    let (report, summary) = check(&folder.path().join("pointsman.toml"), true);
    assert!(report.is_empty(), "{}", report.render(false));
    let summary = summary.unwrap();
    assert_eq!((summary.rule_files, summary.counts.rules, summary.counts.aliases), (1, 2, 2));
    assert_eq!(summary.inert, [""; 0]);
    let systems: Vec<String> = summary.systems.iter().map(ToString::to_string).collect();
    assert!(systems.iter().any(|line| line.contains("by route google: mailhost, by the route; ")), "{systems:#?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Main file and expectation of each case, by name.
fn cases() -> Vec<(PathBuf, PathBuf)> {
    let mut cases = Vec::new();
    for entry in fs::read_dir("tests/configs").unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name == "design") {
            continue;
        }
        if path.is_dir() {
            cases.push((path.join("pointsman.toml"), path.with_extension("expect")));
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            cases.push((path.clone(), path.with_extension("expect")));
        }
    }
    cases.sort();
    cases
}
