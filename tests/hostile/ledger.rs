//! `hostile.md` names for every row of the catalogue the tests and dialogs that hold it; here is what holds `hostile.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The sections, and how many rows each has at the least.
const SECTIONS: [(&str, usize); 9] =
    [("SMG", 35), ("SMO", 1), ("BDT", 16), ("STM", 11), ("ADR", 12), ("INJ", 9), ("REL", 8), ("TLS", 16), ("DWN", 15)];

#[test]
fn every_row_is_held_by_tests_that_are_there() {
    let text = fs::read_to_string(root().join("tests/hostile.md")).unwrap();
    let tests = tests_and_dialogs();
    let quoted = Regex::new("`([^`]+)`").unwrap();
    let id = Regex::new(r"^([A-Z]{3})-(\d\d)(?:\.\.(\d\d))?$").unwrap();
    let mut rows: Vec<(String, usize)> = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Row")) {
        let cells: Vec<&str> = line.trim_matches('|').rsplitn(2, " | ").collect();
        let [holders, head] = cells[..] else { panic!("no row: {line}") };
        let found = id.captures(head.split(" | ").next().unwrap().trim());
        let found = found.unwrap_or_else(|| panic!("no number: {line}"));
        let first: usize = found[2].parse().unwrap();
        let last = found.get(3).map_or(first, |last| last.as_str().parse().unwrap());
        rows.extend((first..=last).map(|n| (found[1].to_owned(), n)));
        let names: Vec<&str> = quoted.captures_iter(holders).map(|name| name.get(1).unwrap().as_str()).collect();
        assert!(!names.is_empty(), "nothing holds it: {line}");
        for name in names {
            assert!(tests.contains(name), "there is no test and no dialog `{name}`: {line}");
        }
    }
    for (section, least) in SECTIONS {
        let numbers: Vec<usize> = rows.iter().filter(|(name, _)| name == section).map(|(_, n)| *n).collect();
        assert_eq!(numbers, Vec::from_iter(1..=numbers.len()), "the rows of {section} are numbered through");
        assert!(numbers.len() >= least, "{section} has {} rows, {least} are wanted", numbers.len());
    }
}

/// Functions under `#[test]` or its like, and the names of the dialogs.
fn tests_and_dialogs() -> BTreeSet<String> {
    let test = Regex::new(r"#\[(?:tokio::)?test[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn (\w+)").unwrap();
    // Those of proptest stand in its macro.
    let property = Regex::new(r"\n        (?:#\[test\]\s*)?fn (\w+)\(\s*\w+ in ").unwrap();
    let mut names = BTreeSet::new();
    for file in files(&root().join("src")).into_iter().chain(files(&root().join("tests"))) {
        let extension = file.extension().and_then(|extension| extension.to_str());
        match extension {
            Some("dialog") => names.extend(file.file_stem().map(|stem| stem.to_string_lossy().into_owned())),
            Some("rs") => {
                let text = fs::read_to_string(&file).unwrap();
                names.extend(test.captures_iter(&text).chain(property.captures_iter(&text)).map(|f| f[1].to_owned()));
            }
            _ => {}
        }
    }
    names
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
