//! Body and signed headers: what came in goes out byte for byte behind our fields, minus the fields that are cut, and every
//! signature that passed still passes.
//!
//! The messages are made by dice with a seed: odd folding, white space where nobody puts any, eight bits, long lines, no last
//! line end. What is cut is known by who made the message, not by asking the code that cuts.

use std::fs;
use std::path::Path;

use crate::harness::crm::EHLO;
use crate::harness::dkim::{DkimKey, dkimpy_may_sign, dkimpy_sign, dkimpy_verifies, has_dkimpy};
use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Setup, Stage, has, results};

/// Dice that fall alike in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    fn text(&mut self, pieces: &[&str], count_max: usize) -> String {
        (0..self.roll(count_max + 1)).map(|_| self.pick(pieces)).collect()
    }
}

const NAMES: &[&str] =
    &["Subject", "To", "X-Odd", "Received", "Comments", "x_under", "List-Id", "Resent-To", "CC", "Precedence"];
const CUT: &[&str] = &[
    "X-Spam-Flag",
    "x-zammad-ticket",
    "RT-Send-CC",
    "X-GM-SPAM ",
    "Received-SPF",
    "X-Pointsman-Loop",
    "Authentication-Results: mx.solarmora.com; none",
];
const PIECES: &[&str] = &[
    "a",
    " ",
    "  ",
    "\t",
    "\r\n ",
    "\r\n\t",
    "\r\n  \t ",
    "é",
    "ｗ",
    ";",
    ":",
    "=?utf-8?q?=E9?=",
    "\"",
    "(",
    "<a@b>",
    ".",
    "x",
    "0123456789012345678901234567890123456789",
];
const BODY: &[&str] = &[
    "\r\n",
    "\r\n",
    "\r\n\r\n",
    ".",
    "..",
    "\r\n.\r\n",
    "\r\n..x",
    " ",
    "\t",
    " \r\n",
    "From ",
    "é",
    "\u{1f682}",
    "=3D",
    "word ",
    "Received: x\r\n",
    "--boundary\r\n",
];

/// A message, and what of it may come out.
fn message(dice: &mut Dice, n: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut came, mut goes) = (String::new(), String::new());
    let mut add = |field: String, stays: bool| {
        came.push_str(&field);
        if stays {
            goes.push_str(&field);
        }
    };
    add(format!("From: Claire <claire@a.example>\r\nMessage-ID: <{n}@a.example>\r\n"), true);
    for _ in 0..dice.roll(8) {
        let cut = dice.roll(3) == 0;
        let name = dice.pick(if cut { CUT } else { NAMES });
        let gap = dice.pick(&["", " ", "\t", "\r\n "]);
        add(format!("{name}:{gap}{}x\r\n", dice.text(PIECES, 12)), !cut);
    }
    let mut body = format!("\r\n{}", dice.text(BODY, 30));
    if dice.roll(4) == 0 {
        body.push_str(&"long ".repeat(dice.roll(600)));
    }
    if dice.roll(12) == 0 {
        body.push_str(&"Une ligne de plus que ce qui tient en memoire.\r\n".repeat(2_000));
    }
    // DATA ends every message with a line end; by BDAT it may lack it.
    if dice.roll(2) == 0 {
        body.push_str("\r\n");
    }
    came.push_str(&body);
    goes.push_str(&body);
    (came.into_bytes(), goes.into_bytes())
}

/// The mail is fields of ours and then `original`.
#[track_caller]
fn assert_ends_in(what: &str, mail: &[u8], original: &[u8]) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(mail.ends_with(original), "{what}: want:\n{:?}\ngot:\n{:?}", text(original), text(mail));
    let ours = text(&mail[..mail.len() - original.len()]);
    assert!(ours.starts_with("Delivered-To: ") && ours.ends_with("\r\n") && !ours.contains("\r\n\r\n"), "{ours:?}");
}

#[test]
fn body_and_signed_headers_come_through_byte_for_byte_and_still_verify() {
    let test = "body_and_signed_headers_come_through_byte_for_byte_and_still_verify";
    let signs = has_dkimpy(test) && has(test, "opendkim-genkey");
    let key = signs.then(|| DkimKey::rsa("s", "a.example"));
    let zone = key.as_ref().map(DkimKey::zone).unwrap_or_default();
    let (dns, crm) = (Dns::start(&zone), Crm::start());
    let ehlo = format!("{}\r\n250 CHUNKING", EHLO.replace("250 ENH", "250-ENH"));
    crm.follow(move |stage, line| {
        (stage == Stage::Ehlo && line.starts_with("EHLO")).then(|| Answer::Say(ehlo.clone()))
    });
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let mut client = Client::connect(daemon.smtp);
    let (mut dice, mut passed) = (Dice(5), 0);
    for n in 0..120 {
        let (mut came, mut goes) = message(&mut dice, n);
        // A signature costs two runs of Python; each tenth message has one. It stands before what it signs.
        let signed = key.as_ref().filter(|_| n % 10 == 0);
        if let Some(key) = signed {
            let way = dice.pick(&["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"]);
            let whole = dkimpy_sign(key, way, "rsa-sha256", &goes);
            let field = whole.strip_suffix(&goes[..]).unwrap();
            (came, goes) = ([field, &came].concat(), [field, &goes].concat());
        }
        for command in ["MAIL FROM:<claire@a.example> BODY=8BITMIME SMTPUTF8", "RCPT TO:<aide@solarmora.com>"] {
            let reply = client.say(command);
            assert_eq!(reply.code, 250, "{command}: {reply:?}");
        }
        client.send(&[format!("BDAT {} LAST\r\n", came.len()).as_bytes(), &came].concat()).unwrap();
        let reply = client.reply();
        assert_eq!(reply.code, 250, "{n}: {reply:?} to {:?}", String::from_utf8_lossy(&came));
        let mail = crm.wait_for_mails(n + 1).pop().unwrap().bytes;
        assert_ends_in(&format!("message {n}"), &mail, &goes);
        // A field that stands twice and is signed once counts for nothing here; dkimpy takes it all the same.
        if signed.is_some() {
            passed += usize::from(results(&mail).contains("dkim=pass"));
            assert!(dkimpy_verifies(&zone, &mail), "{n}: {:?}", String::from_utf8_lossy(&mail));
        }
    }
    assert!(!signs || passed >= 3, "{passed} passed here");
}

#[test]
fn body_and_signed_headers_of_the_golden_mails_verify_behind_us() {
    let test = "body_and_signed_headers_of_the_golden_mails_verify_behind_us";
    if !has_dkimpy(test) || !has(test, "opendkim-genkey") {
        return;
    }
    let key = DkimKey::rsa("s", "a.example");
    let (dns, crm) = (Dns::start(&key.zone()), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let mut client = Client::connect(daemon.smtp);
    let mut sent = 0;
    for folder in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mail")).unwrap() {
        let Ok(text) = fs::read(folder.unwrap().path().join("in.eml")) else { continue };
        // With an author of the key's domain, and CRLF.
        let whole = [b"From: claire@a.example\n", &text[..]].concat();
        let mut wire = Vec::new();
        for line in whole
            .split_inclusive(|&b| b == b'\n')
            .filter(|line| !line.to_ascii_lowercase().starts_with(b"from: client"))
        {
            wire.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            wire.extend_from_slice(b"\r\n");
        }
        for way in ["relaxed/relaxed", "simple/simple"] {
            let Some(signed) = dkimpy_may_sign(&key, way, &wire) else { continue };
            let commands = ["MAIL FROM:<claire@a.example> BODY=8BITMIME SMTPUTF8", "RCPT TO:<aide@solarmora.com>"];
            let reply = client.try_transaction(&commands.map(str::to_owned), &signed).unwrap();
            assert_eq!(reply.code, 250, "{reply:?}");
            sent += 1;
            let mail = crm.wait_for_mails(sent).pop().unwrap().bytes;
            assert_ends_in(way, &mail, &signed);
            // What dkimpy itself takes for signed before us it must take behind us.
            let before = dkimpy_verifies(&key.zone(), &signed);
            assert_eq!(dkimpy_verifies(&key.zone(), &mail), before, "{way}: {:?}", String::from_utf8_lossy(&mail));
        }
    }
    assert!(sent >= 16, "{sent}");
}
