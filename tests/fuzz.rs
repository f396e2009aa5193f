//! The properties that the fuzzers in `fuzz/` look to break, held against their seeds and against whatever broke one.
//!
//! An input that broke a property lies in `fuzz/regressions/<target>/`, under the name of what was wrong, and has a test of
//! that name here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
#[expect(dead_code, reason = "only the programs lay seeds out")]
mod properties;

use properties::{TARGETS, seeds};

#[test]
fn every_property_holds_for_its_seeds() {
    for (target, check) in TARGETS {
        let seeds = seeds::of(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for seed in seeds {
            check(&seed);
        }
    }
}

/// A test for each input that broke a property, which bears its name.
macro_rules! regressions {
    ($($target:ident / $name:ident,)*) => {
        const REGRESSIONS: &[(&str, &str)] = &[$((stringify!($target), stringify!($name)),)*];
        $(
            #[test]
            fn $name() {
                let file = concat!("fuzz/regressions/", stringify!($target), "/", stringify!($name));
                properties::$target::check(&fs::read(root().join(file)).unwrap());
            }
        )*
    };
}

regressions! {
    address / a_needless_backslash_makes_another_address,
    fields / a_name_of_the_client_leaves_its_comment,
    header / a_first_line_of_white_space_begins_no_field,
    header / a_form_feed_hides_our_name,
    header / a_line_of_white_space_hides_the_fields_below_it,
    origin / a_comment_of_the_client_hides_the_hosts_words,
    origin / a_comment_that_the_client_opens_takes_the_hosts_address,
    origin / a_hello_of_several_words_names_another_client,
}

#[test]
fn every_input_that_broke_a_property_has_its_test() {
    let mut kept = Vec::new();
    for folder in fs::read_dir(root().join("fuzz/regressions")).unwrap() {
        let folder = folder.unwrap().path();
        let target = folder.file_name().unwrap().to_string_lossy().into_owned();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
        kept.extend(fs::read_dir(&folder).unwrap().map(|entry| (target.clone(), name(entry))));
    }
    kept.sort();
    let tested: Vec<(String, String)> = REGRESSIONS.iter().map(|(t, n)| ((*t).to_owned(), (*n).to_owned())).collect();
    assert_eq!(tested, kept, "in this order, too");
}

/// Else something else is fuzzed than what runs.
#[test]
fn the_fuzzers_are_built_of_what_the_daemon_is_built_of() {
    let package = regex::Regex::new(r#"name = "([^"]+)"\nversion = "([^"]+)""#).unwrap();
    let packages = |lock: &str| -> BTreeSet<(String, String)> {
        let text = fs::read_to_string(root().join(lock)).unwrap();
        package.captures_iter(&text).map(|found| (found[1].to_owned(), found[2].to_owned())).collect()
    };
    let mut others = packages("fuzz/Cargo.lock");
    others.retain(|(name, _)| !["pointsman-fuzz", "libfuzzer-sys", "arbitrary"].contains(&name.as_str()));
    let ours = packages("Cargo.lock");
    let strange: Vec<_> = others.difference(&ours).collect();
    let mended = "cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null";
    assert!(strange.is_empty(), "in fuzz/Cargo.lock alone: {strange:?}; mended by `{mended}`");
}

#[test]
fn every_property_has_its_program() {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz/src/bin"), targets);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
