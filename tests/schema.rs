//! JSON Schema of configuration and rules: as the readers draw it, as it is checked in, and as another implementation
//! understands it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::skip;

#[test]
fn the_schemas_that_are_checked_in_are_what_the_readers_ask_for() {
    for (file, drawn) in [
        ("docs/schema/pointsman.schema.json", pointsman::config::raw::schema()),
        ("docs/schema/rules.schema.json", pointsman::rules::syntax::schema()),
    ] {
        let text = serde_json::to_string_pretty(&drawn).unwrap() + "\n";
        let path = root().join(file);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{file} is not what the readers ask for; mended by UPDATE_EXPECT=1 cargo t schema");
    }
}

#[test]
fn another_implementation_accepts_what_we_accept_and_finds_what_is_wrong() {
    let test = "another_implementation_accepts_what_we_accept_and_finds_what_is_wrong";
    let there = Command::new("/usr/bin/python3").args(["-c", "import jsonschema, tomllib"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        return skip(test, "python3-jsonschema is not installed");
    }
    let mut accepted = 0;
    for (schema, files) in [("pointsman", configurations()), ("rules", rules())] {
        for text in files {
            assert_eq!(validate(schema, &text), "", "{text}");
            accepted += 1;
        }
    }
    assert!(accepted > 25, "the examples were not found: {accepted}");
    for (schema, text, wanted) in [
        ("pointsman", "hostname = 'a'\n[limits]\nmesage-size = '5MiB'\n", "mesage-size"),
        ("pointsman", "hostname = 'a'\n[route.x]\ntls = 'sometimes'\n", "sometimes"),
        ("pointsman", "[limits]\n", "hostname"),
        ("pointsman", "hostname = 'a'\n[limits]\nrecipients = 0\n", "0 is less than"),
        ("rules", "[[rule]]\nwhen = { recipent = 'a@d' }\n", "recipent"),
        ("rules", "[[rule]]\nwhen = { any = [{ not = { recipent = 'a@d' } }] }\n", "is not valid under any"),
        ("rules", "[alias.'d']\na = { to = 7 }\n", "7 is not"),
        ("rules", "[[test]]\nname = 'x'\n", "given"),
    ] {
        let told = validate(schema, text);
        assert!(told.contains(wanted), "{text}: {told}");
    }
}

#[test]
fn every_example_names_its_schema() {
    for folder in
        fs::read_dir(root().join("rules")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        for (file, schema) in [("pointsman.toml", "pointsman"), ("rules.toml", "rules")] {
            let text = fs::read_to_string(folder.join(file)).unwrap();
            let named =
                text.lines().next().unwrap().strip_prefix("#:schema ").unwrap_or_else(|| panic!("{folder:?}/{file}"));
            let path = folder.join(named).canonicalize().unwrap();
            assert_eq!(path, root().join(format!("docs/schema/{schema}.schema.json")).canonicalize().unwrap());
        }
    }
}

/// What is wrong with a TOML text by the schema, in the words of Python's `jsonschema`; nothing where nothing is.
fn validate(schema: &str, text: &str) -> String {
    const PROGRAM: &str = "
import json, sys, tomllib, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft7Validator.check_schema(schema)
for error in jsonschema.Draft7Validator(schema).iter_errors(tomllib.loads(sys.stdin.read())):
    print('/'.join(map(str, error.absolute_path)), error.message)
";
    let path = root().join(format!("docs/schema/{schema}.schema.json"));
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", PROGRAM]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn configurations() -> Vec<String> {
    let mut files = files("pointsman.toml");
    files.push(fs::read_to_string(root().join("deploy/pointsman.toml")).unwrap());
    files.push(fs::read_to_string(root().join("deploy/debian/pointsman.toml")).unwrap());
    files
}

fn rules() -> Vec<String> {
    let mut files = files("rules.toml");
    let reference = fs::read_to_string(root().join("docs/rules.md")).unwrap();
    files.extend(reference.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()));
    files
}

fn files(name: &str) -> Vec<String> {
    let folders = fs::read_dir(root().join("rules")).unwrap().map(|entry| entry.unwrap().path());
    folders.filter_map(|folder| fs::read_to_string(folder.join(name)).ok()).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A schema says of each key what may stand there.
#[test]
fn the_schemas_know_words_ranges_and_names() {
    let config = pointsman::config::raw::schema();
    let route = &config["properties"]["route"]["additionalProperties"]["properties"];
    assert_eq!(route["port"]["maximum"], 65535);
    let words: Vec<&str> = route["tls"]["enum"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words, ["off", "opportunistic", "require", "verify"]);
    let rules = pointsman::rules::syntax::schema();
    assert_eq!(rules["definitions"]["when"]["properties"]["tls"]["type"], "boolean");
    assert_eq!(rules["properties"]["rule"]["type"], "array");
    assert!(
        rules["properties"]["alias"]["additionalProperties"]["additionalProperties"]["properties"]["to"].is_object()
    );
}
