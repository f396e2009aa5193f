//! Golden mail folders: what goes in, what must come out, byte for byte.
//!
//! A folder of tests/mail holds README.md (why the case exists), in.eml (LF in the file, CRLF on the wire), and where
//! they differ from the usual `commands` (MAIL and RCPT lines) and rules.toml. want.<n>.eml is what the CRM got, sorted
//! by recipient: the commands, the fields that we added with ids and dates as patterns, then the original. With
//! `UPDATE_EXPECT=1` the want files are written anew, and the diff is reviewed.
//!
//! That the original follows our fields unchanged is asserted apart from the want files: no update can wave it away.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::harness::crm::Mail;
use crate::harness::daemon::RULES;
use crate::harness::{Client, Crm, Setup};

#[test]
fn golden_mails_come_out_as_wanted() {
    let mut folders: Vec<PathBuf> = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.retain(|path| path.is_dir());
    assert!(folders.len() >= 8, "the golden folders are gone: {folders:?}");
    let mut faults = Vec::new();
    for folder in folders {
        if let Err(fault) = play(&folder) {
            faults.push(format!("{}: {fault}", folder.display()));
        }
    }
    assert!(faults.is_empty(), "{}\nUPDATE_EXPECT=1 writes the want files anew; review the diff.", faults.join("\n\n"));
}

fn play(folder: &Path) -> Result<(), String> {
    assert!(folder.join("README.md").is_file(), "{}: README.md says why the case exists", folder.display());
    let original = wire(&fs::read(folder.join("in.eml")).expect("in.eml"));
    let rules = fs::read_to_string(folder.join("rules.toml")).unwrap_or_else(|_| RULES.to_owned());
    let commands = fs::read_to_string(folder.join("commands"))
        .unwrap_or_else(|_| "MAIL FROM:<client@example.org>\nRCPT TO:<aide@solarmora.com>\n".to_owned());
    let commands: Vec<String> = commands.lines().map(str::to_owned).collect();

    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let reply = Client::connect(daemon.smtp).try_transaction(&commands, &original).map_err(|e| e.to_string())?;
    let id = reply.queued_as();
    let legs = daemon.rows(&["trace", "--id", &id]).len();
    let mut mails = crm.wait_for_mails(legs);
    mails.sort_by(|a, b| a.rcpts.cmp(&b.rcpts));

    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    for (n, mail) in (1..).zip(&mails) {
        let added =
            mail.bytes.strip_suffix(original.as_slice()).ok_or("the original did not come through unchanged")?;
        let got = rendered(mail, added, &original);
        let path = folder.join(format!("want.{n}.eml"));
        if update {
            fs::write(&path, &got).unwrap();
        }
        let want = fs::read(&path).map_err(|_| format!("{} is missing", path.display()))?;
        if want != got {
            return Err(format!("leg {n} differs from want.{n}.eml; got:\n{}", String::from_utf8_lossy(&got)));
        }
    }
    let surplus = folder.join(format!("want.{}.eml", mails.len() + 1));
    if update && surplus.exists() {
        fs::remove_file(&surplus).unwrap();
    }
    if surplus.exists() { Err(format!("{} legs, but there is {}", mails.len(), surplus.display())) } else { Ok(()) }
}

/// The mail as a want file shows it, with LF: commands, an empty line, our fields, the original.
fn rendered(mail: &Mail, added: &[u8], original: &[u8]) -> Vec<u8> {
    let added = String::from_utf8(added.to_owned()).expect("we add UTF-8");
    let mut ours = format!("{}\n{}\n\n{added}", mail.mail, mail.rcpts.join("\n"));
    for (pattern, shown) in [
        // SIZE counts our Received, whose length may differ.
        (r"SIZE=\d+", "SIZE={size}"),
        (r"\b[0-9a-hjkmnp-tv-z]{13}\b", "{id}"),
        (r"X-Pointsman-Loop: \d+ [0-9a-f]{32} [0-9a-f]{32}", "X-Pointsman-Loop: {mark}"),
        (r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "{date}"),
    ] {
        ours = Regex::new(pattern).unwrap().replace_all(&ours, shown).into_owned();
    }
    unwire(&[ours.as_bytes(), original].concat())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mail")
}

/// LF of the file to CRLF of the wire. A file may lack the last LF: the wire cannot.
fn wire(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 40);
    for line in text.split_inclusive(|&b| b == b'\n') {
        out.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn unwire(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 0;
    out.retain(|&b| {
        at += 1;
        !(b == b'\r' && bytes.get(at) == Some(&b'\n'))
    });
    out
}
