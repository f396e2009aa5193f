//! What a fuzzer begins with: the fixtures of the tests, in the form in which a property reads its octets.
//!
//! Nothing is copied into the tree for it. A fuzzer lays its seeds out in the folder that [`FOLDER`] names, and the
//! integration tests hold each property against them.

use std::fs;
use std::path::{Path, PathBuf};

/// The variable of the environment that says where a fuzzer puts its seeds; without it there are none.
pub const FOLDER: &str = "POINTSMAN_FUZZ_SEEDS";

/// Writes the seeds of `target` into the folder.
pub fn lay_out(target: &str) {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for (number, seed) in of(target).iter().enumerate() {
        let path = folder.join(format!("seed-{number}"));
        fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The seeds of a target; none where there is no such target.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "session" => prefixed(&[0; 14], dialogs()),
        "command" => dialogs().iter().flat_map(|stream| stream.split(|&b| b == b'\n').map(<[u8]>::to_vec)).collect(),
        "address" => addresses(),
        "header" | "dot" => prefixed(&[0, 0, 0, 0, 0, 0, 0, 7, 9], mails()),
        "rules" => prefixed(b"aide@solarmora.com\nclient@example.org\nmail.example.org\n", files("rules", "toml")),
        "spf" => zones(),
        "origin" => [0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9].iter().map(|kind| [&[*kind, 1], ORIGIN].concat()).collect(),
        "proxy" => prefixed(&[2], PROXY.iter().map(|header| header.to_vec()).collect()),
        "replies" => prefixed(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1], REPLIES.iter().map(|text| text.to_vec()).collect()),
        "srs" => prefixed(&[7, 9, 3, 1, b'x'], SRS.iter().map(|text| text.as_bytes().to_vec()).collect()),
        "scrub" => SCRUB.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "fields" => FIELDS.iter().map(|text| [b"\x01\x00", text.as_bytes()].concat()).collect(),
        "mx" => vec![MX.to_vec()],
        "dsn" => [0u8, 1, 2].iter().map(|event| [&[*event], DSN].concat()).collect(),
        _ => Vec::new(),
    }
}

fn prefixed(prefix: &[u8], texts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    texts.into_iter().filter(|text| text.len() <= SEED_OCTETS_MAX).map(|text| [prefix, &text].concat()).collect()
}

/// What the clients of the dialogs send, one stream for each dialog and variant.
fn dialogs() -> Vec<Vec<u8>> {
    let mut streams = Vec::new();
    for text in files("tests/dialogs", "dialog") {
        let text = String::from_utf8_lossy(&text);
        let mut variants: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("@ variant ")).collect();
        if variants.is_empty() {
            variants.push("");
        }
        for variant in variants {
            let mut stream = Vec::new();
            for line in text.lines() {
                match line.split_once(": ").or_else(|| line.split_once(':')) {
                    Some(("C", sent)) => {
                        stream.extend([unescaped(&sent.replace("{V}", variant)), b"\r\n".to_vec()].concat())
                    }
                    Some(("R", sent)) => stream.extend(unescaped(&sent.replace("{V}", variant))),
                    _ if line == "@ hello" => stream.extend_from_slice(b"EHLO client.example\r\n"),
                    Some(_) | None => {}
                }
            }
            streams.push(stream);
        }
    }
    streams
}

/// The escapes of a dialog, without its repetitions.
fn unescaped(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        octets.extend_from_slice(before.as_bytes());
        let hex = after.get(1..3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (octet, length) = match (after.chars().next(), hex) {
            (Some('r'), _) => (b'\r', 1),
            (Some('n'), _) => (b'\n', 1),
            (Some('t'), _) => (b'\t', 1),
            (Some('0'), _) => (0, 1),
            (Some('x'), Some(octet)) => (octet, 3),
            (Some(_) | None, _) => (b'\\', usize::from(after.starts_with('\\'))),
        };
        octets.push(octet);
        rest = &after[length..];
    }
    octets.extend_from_slice(rest.as_bytes());
    octets
}

/// What stands in angle brackets in the dialogs.
fn addresses() -> Vec<Vec<u8>> {
    let streams = dialogs();
    let paths = streams.iter().flat_map(|stream| stream.split(|&octet| octet == b'\n'));
    let inside = paths.filter_map(|line| {
        let start = line.iter().position(|&octet| octet == b'<')? + 1;
        let end = line.iter().rposition(|&octet| octet == b'>')?;
        line.get(start..end).map(<[u8]>::to_vec)
    });
    inside.collect()
}

/// The golden messages and the notices.
fn mails() -> Vec<Vec<u8>> {
    files("tests", "eml")
}

/// The zones of the SPF vectors, a record a line.
fn zones() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(root().join("src/auth/spf/vectors.txt")).unwrap_or_default();
    let zone = |story: &str| {
        let mut seed = b"\x00h.example\nu@n.example\n".to_vec();
        for line in story.lines() {
            let mut words = line.splitn(3, ' ').skip(1);
            let (kind, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            match kind {
                "TXT" | "A" | "PTR" => seed.extend(format!("{}{value}\n", &kind[..1]).into_bytes()),
                "AAAA" => seed.extend(format!("A{value}\n").into_bytes()),
                "MX" => seed.extend(format!("M{}\n", value.split(' ').next_back().unwrap_or_default()).into_bytes()),
                "SERVFAIL" => seed.extend_from_slice(b"!\n"),
                _ => {}
            }
        }
        seed
    };
    text.split("\n== ").skip(1).map(zone).filter(|seed| seed.len() <= SEED_OCTETS_MAX).collect()
}

/// The files below a folder of the main package that end so, in the order of their names; for `rules` those of the
/// configurations, too.
fn files(folder: &str, extension: &str) -> Vec<Vec<u8>> {
    let mut folders = vec![root().join(folder)];
    if folder == "rules" {
        folders.push(root().join("tests/configs"));
    }
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == extension) {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// The main package, of which this one is a folder.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|folder| folder.join("tests/dialogs").is_dir()).unwrap_or(here)
}

const ORIGIN: &[u8] =
    b"client.example\nmail.client.example\nReceived: from x (y [203.0.113.1]) by z; date\nSubject: a\n";

const PROXY: &[&[u8]] = &[
    b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 25\r\nEHLO a\r\n",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 65535 0\r\n",
    b"PROXY UNKNOWN what ever 1 2 3\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\xdb\xf4\0\x19EHLO a\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x19",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x04what",
];

const REPLIES: &[&[u8]] = &[
    b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n250-2.0.0 queued\r\n250 2.0.0 as 7\r\n",
    b"250 a\r\n450 b\r\n354 c\r\n554 d\r\n250 r\r\n250 a\r\n250 b\r\n354 c\r\n250 d\r\n",
    b"550-5.1.1 no\r\n550 5.1.1 such\n421\r\n",
    b"250 a\r\n550 b\r\n503 c\r\n250 r\r\n550 a\r\n503 b\r\n503 c\r\n",
];

const SRS: &[&str] = &[
    "client@example.org",
    "\"a b\"@example.org",
    "SRS0=HHHH=TT=orig.example=user@first.example",
    "SRS1=XXXX=first.example==HHHH=TT=orig.example=user@second.example",
    "SRS0=GesK=JK=example.org=client",
    "r\u{e9}seau=x@[192.0.2.1]",
];

const SCRUB: &[&str] = &[
    "Support+key91x@a1b2c3.org.eu17.case.salesforce.com\naide@solarmora.com\n550 5.1.1 <*>: no such user",
    "case@mon-crm.com\nbugs@solarmora.com\n554 bounces+*@here, case%40mon-crm.com and aide@solarmora.com",
];

const FIELDS: &[&str] = &[
    "EHLO client.example\nMAIL FROM:<client@example.org> SMTPUTF8\nRCPT TO:<aide@solarmora.com>\na.example\ns1\nmail.a.example\n",
    "EHLO [192.0.2.1]\nMAIL FROM:<>\nRCPT TO:<\"a b\"@solarmora.com>\na.example; dmarc=pass\n\"s\\\n\n",
];

const MX: &[u8] =
    b"\x00\x00\x00\x00\x00\x00\x00\x07\x00mx2.solarmora.com\nours.example\n\x01\x02\x02\x63\x09\x09\x09\x08\0\0\0\0a.example\n\x02\x01\x01\x05mx.solarmora.com\n";

const DSN: &[u8] = b"MAIL FROM:<client@example.org> ENVID=Q+3D1 RET=HDRS\nRCPT TO:<aide@solarmora.com> \
ORCPT=rfc822;Aide@solarmora.com\ncase@mon-crm.com\n550 5.1.1 <case@mon-crm.com>: no\nSubject: a\nFrom: b\n\tc\n";

/// Longer ones are slow, and say no more.
const SEED_OCTETS_MAX: usize = 4000;
