//! Two other implementations of DKIM: dkimpy, run by Debian's Python, and opendkim, whose own test mode takes a message
//! through all that its filter does, without a mail server around it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{find, run, skip};

/// A key for tests: its private half in a file, and the record of its public one.
pub struct DkimKey {
    folder: TempDir,
    pub selector: &'static str,
    pub domain: &'static str,
    pub record: String,
}

impl DkimKey {
    /// RSA, made by `opendkim-genkey`.
    pub fn rsa(selector: &'static str, domain: &'static str) -> DkimKey {
        let folder = tempfile::tempdir().expect("a temporary directory");
        run(Command::new(find("opendkim-genkey").expect("the test looked for it"))
            .args(["-b", "2048", "-s", selector, "-d", domain, "-D"])
            .arg(folder.path()));
        let zone = std::fs::read_to_string(folder.path().join(format!("{selector}.txt"))).expect("it wrote a record");
        // The strings of the record, without what stands between them.
        let record = zone.split('"').skip(1).step_by(2).collect::<String>();
        std::fs::rename(folder.path().join(format!("{selector}.private")), folder.path().join("key")).unwrap();
        DkimKey { folder, selector, domain, record }
    }

    /// Ed25519 (RFC 8463), for dkimpy alone.
    pub fn ed25519(selector: &'static str, domain: &'static str) -> DkimKey {
        let folder = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(folder.path().join("key"), "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=").unwrap();
        let record = dkimpy(&["public", path(&folder.path().join("key"))], b"");
        DkimKey { selector, domain, record: String::from_utf8(record).unwrap(), folder }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// A line of a zone.
    pub fn zone(&self) -> String {
        zone_line(&format!("{}._domainkey.{}", self.selector, self.domain), &self.record)
    }
}

pub fn zone_line(name: &str, record: &str) -> String {
    format!("{name} TXT {record}\n")
}

/// True where Debian's Python has dkimpy; else the test is skipped, loudly.
pub fn has_dkimpy(test: &str) -> bool {
    let mut command = Command::new(PYTHON);
    let imported = command.args(["-c", "import dkim, nacl.signing"]).stderr(Stdio::null()).status();
    let there = imported.is_ok_and(|status| status.success());
    if !there {
        skip(test, "dkimpy is not installed; tests/run installs it as root");
    }
    there
}

/// `canonicalization` is that of header and body: `relaxed/simple`.
pub fn dkimpy_sign(key: &DkimKey, canonicalization: &str, algorithm: &str, message: &[u8]) -> Vec<u8> {
    dkimpy(&["sign", path(&key.path()), key.selector, key.domain, canonicalization, algorithm], message)
}

/// As [`dkimpy_sign`]; `None` where dkimpy takes it for no message.
pub fn dkimpy_may_sign(key: &DkimKey, canonicalization: &str, message: &[u8]) -> Option<Vec<u8>> {
    let file = key.path();
    asked(&["sign", path(&file), key.selector, key.domain, canonicalization, "rsa-sha256"], message).ok()
}

/// As [`dkimpy_sign`], with these fields in `h=` as often as they are named, whether they are there or not.
pub fn dkimpy_sign_fields(key: &DkimKey, fields: &[&str], message: &[u8]) -> Vec<u8> {
    let path = key.path();
    let arguments = ["sign", self::path(&path), key.selector, key.domain, "relaxed/relaxed", "rsa-sha256"];
    dkimpy(&[&arguments[..], fields].concat(), message)
}

/// Puts an ARC set before a message that has `host`'s Authentication-Results.
pub fn dkimpy_seal(key: &DkimKey, host: &str, message: &[u8]) -> Vec<u8> {
    dkimpy(&["seal", path(&key.path()), key.selector, key.domain, host], message)
}

/// Whether dkimpy takes the first signature of `message` for good, by the records of `zone`.
pub fn dkimpy_verifies(zone: &str, message: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("zone");
    std::fs::write(&file, zone).expect("the zone can be written");
    match dkimpy(&["verify", path(&file)], message).as_slice() {
        b"pass" => true,
        b"fail" => false,
        other => panic!("{}", String::from_utf8_lossy(other)),
    }
}

/// What dkimpy makes of the ARC chain of `message`, by the records of `zone`: pass, fail, none, or over where the
/// chain says itself that it has failed.
pub fn dkimpy_arc(zone: &str, message: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("zone");
    std::fs::write(&file, zone).expect("the zone can be written");
    String::from_utf8(dkimpy(&["arc", path(&file)], message)).expect("a word")
}

fn dkimpy(arguments: &[&str], message: &[u8]) -> Vec<u8> {
    asked(arguments, message).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

/// What it says, or what it complains of.
fn asked(arguments: &[&str], message: &[u8]) -> Result<Vec<u8>, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/harness/dkimpy.py");
    let mut command = Command::new(PYTHON);
    command.arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the test looked for it");
    child.stdin.take().unwrap().write_all(message).expect("it reads the message");
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

pub fn opendkim_sign(key: &DkimKey, canonicalization: &str, message: &[u8]) -> Vec<u8> {
    let said = opendkim(
        &format!(
            "Mode s\nDomain {}\nSelector {}\nKeyFile {}\nCanonicalization {canonicalization}\nInternalHosts 0.0.0.0/0\n",
            key.domain,
            key.selector,
            key.path().display()
        ),
        None,
        message,
    );
    let value = said.split("hname='DKIM-Signature' hvalue='").nth(1).and_then(|rest| rest.split('\'').next());
    let value = value.unwrap_or_else(|| panic!("opendkim did not sign:\n{said}"));
    [format!("DKIM-Signature: {}\r\n", value.replace('\n', "\r\n")).as_bytes(), message].concat()
}

/// Whether opendkim takes the signature of `message` for good, by the records of `zone`.
pub fn opendkim_verifies(zone: &str, message: &[u8]) -> bool {
    let said = opendkim("Mode v\n", Some(zone), message);
    assert!(said.contains("dkim="), "opendkim found no signature:\n{said}");
    said.contains("dkim=pass")
}

fn opendkim(config: &str, zone: Option<&str>, message: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| folder.path().join(name);
    let mut config = format!("{config}RequireSafeKeys no\n");
    if let Some(zone) = zone {
        let keys: String = zone.lines().map(|line| line.replacen(" TXT ", " ", 1) + "\n").collect();
        std::fs::write(file("keys"), keys).unwrap();
        config += &format!("TestPublicKeys {}\n", file("keys").display());
    }
    std::fs::write(file("conf"), config).unwrap();
    std::fs::write(file("message"), message).unwrap();
    run(Command::new(find("opendkim").expect("the test looked for it"))
        .arg("-x")
        .arg(file("conf"))
        .args(["-vv", "-t"])
        .arg(file("message")))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Debian's own, which has Debian's modules.
const PYTHON: &str = "/usr/bin/python3";
