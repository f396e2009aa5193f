//! SMTP smuggling: what may look like the end of a message, in every cut, in clear text and inside TLS; and what of it
//! leaves us again.
//!
//! What must come of a stream is said by ten lines of reference ([`reference`]) that know nothing of our parser. The
//! dialogs `smuggling-*` show the same cases one by one.

use crate::dialog::{Dialog, Machine, Peer};
use crate::harness::{Certificates, Client, Crm, Setup, wait_for};

/// The thirty, as the literature has them. The two that are the end of a message are marked.
const LOOK_ALIKES: [(&[u8], bool); 30] = [
    (b"\n.\n", false),
    (b"\n.\r\n", false),
    (b"\n.\r", false),
    (b"\r.\n", false),
    (b"\r.\r", false),
    (b"\r.\r\n", false),
    (b"\r\n.\n", false),
    (b"\r\n.\r", false),
    (b"\r\n.\r\r\n", false),
    (b"\r\r\n.\r\r\n", false),
    (b"\r\r\n.\r\n", true),
    (b"\n\r.\n\r", false),
    (b"\r\n\0.\r\n", false),
    (b"\r\n.\0\r\n", false),
    (b"\r\n. \r\n", false),
    (b"\r\n .\r\n", false),
    (b"\r\n.\t\r\n", false),
    (b"\r\n\x0b.\r\n", false),
    (b"\x0b.\x0b", false),
    (b"\x0c.\x0c", false),
    (b"\x85.\x85", false),
    ("\u{85}.\u{85}".as_bytes(), false),
    ("\u{2028}.\u{2028}".as_bytes(), false),
    (b"\x1e.\x1e", false),
    (b"\n\n.\n\n", false),
    (b"\r\n..\r\n", false),
    (b"\r\n..\n", false),
    (b"\n..\n", false),
    (b"\x8d\x8a.\x8d\x8a", false),
    (b"\r\n.\r\n", true),
];

const ENVELOPE: &[u8] = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<aide@solarmora.com>\r\nDATA\r\n";
const HEAD: &[u8] = b"Subject: first\r\n\r\n";
/// What would be a second transaction, if the look-alike were an end.
const SMUGGLED: &[u8] = b"MAIL FROM:<smuggled@example.org>\r\nRCPT TO:<aide@solarmora.com>\r\nDATA\r\n\
    Subject: second\r\n\r\n.\r\n";
/// Where buffers like to end, and no boundary at all.
const BOUNDARIES: [usize; 6] = [0, 4095, 4096, 8192, 16384, 65536];

/// Text whose look-alike begins one octet before the boundary, counted from the first octet behind the 354.
fn text(look_alike: &[u8], boundary: usize) -> Vec<u8> {
    let line = b"0123456789abcdef\r\n";
    let mut text = HEAD.to_vec();
    while text.len() + line.len() + 8 < boundary {
        text.extend_from_slice(line);
    }
    let rest = boundary.saturating_sub(text.len() + 1);
    text.extend(std::iter::repeat_n(b'x', rest));
    if boundary == 0 {
        text.extend_from_slice(b"first");
    }
    text.extend_from_slice(look_alike);
    text.extend_from_slice(SMUGGLED);
    text
}

/// RFC 5321 §4.1.1.4 and §4.5.2, read naively: the first CRLF.CRLF is the end; a bare CR, a bare LF or a NUL before it
/// makes the whole refused. The message, or `None`, and how many octets were text.
fn reference(text: &[u8]) -> (Option<Vec<u8>>, usize) {
    let end = text.windows(5).position(|five| five == b"\r\n.\r\n").expect("every text has an end");
    let sound = String::from_utf8_lossy(&text[..end + 2]).replace("\r\n", "");
    let message = text[..end + 2].split_inclusive(|&octet| octet == b'\n');
    let message = message.map(|line| line.strip_prefix(b".").unwrap_or(line)).collect::<Vec<_>>().concat();
    ((!sound.contains(['\r', '\n', '\0'])).then_some(message), end + 5)
}

/// Plays one stream: the cuts are the ends of the writes, counted in the text. All that was said and taken.
fn play(peer: &mut dyn Peer, text: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<Vec<u8>>) {
    peer.send(b"EHLO client.example\r\n");
    peer.send(ENVELOPE);
    // Everything up to the 354 has to be there before the text leaves.
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.starts_with("354")) {
        said.push(peer.line().expect("the 354 comes"));
    }
    said.clear();
    let mut from = 0;
    for &cut in cuts.iter().chain([&text.len()]) {
        peer.send(&text[from..cut]);
        from = cut;
    }
    peer.send(b"QUIT\r\n");
    said.extend(std::iter::from_fn(|| peer.line()).map(|line| line[..3].to_owned()));
    (said, peer.accepted())
}

fn machine() -> Machine {
    Machine::new(&Dialog::default())
}

#[test]
fn every_cut_of_every_look_alike_means_the_same() {
    for (look_alike, is_end) in LOOK_ALIKES {
        for boundary in BOUNDARIES {
            let text = text(look_alike, boundary);
            let (message, read) = reference(&text);
            let case = format!("`{}` at {boundary}", look_alike.escape_ascii());
            if is_end {
                // What follows in the same write came before its 354: it is no message, whatever it is.
                let (said, accepted) = play(&mut machine(), &text, &[]);
                assert_eq!(accepted, Vec::from_iter(message), "{case}");
                assert_eq!(said.last().map(String::as_str), Some("554"), "{case}: {said:?}");
                continue;
            }
            assert_eq!(read, text.len(), "{case}: it is no end");
            let want = match &message {
                Some(message) => (vec!["250".to_owned(), "221".to_owned()], vec![message.clone()]),
                None => (vec!["554".to_owned(), "221".to_owned()], Vec::new()),
            };
            let start = text.len() - SMUGGLED.len() - look_alike.len();
            let mut cuts: Vec<Vec<usize>> = vec![Vec::new(), (1..text.len()).collect()];
            cuts.extend((start.saturating_sub(1)..=start + look_alike.len() + 1).map(|cut| vec![cut]));
            cuts.push((start..start + look_alike.len()).collect());
            for cut in cuts {
                assert_eq!(play(&mut machine(), &text, &cut), want, "{case}, {} cuts, {:?}", cut.len(), cut.first());
            }
        }
    }
}

/// The same over the wire: in one write, octet by octet, and cut inside the look-alike.
#[test]
fn the_daemon_reads_a_look_alike_alike_in_clear_text_and_inside_tls() {
    let (crm, certificates) = (Crm::start(), Certificates::new("mx.solarmora.com"));
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &certificates).start();
    let mut taken = 0;
    for (look_alike, _) in LOOK_ALIKES.into_iter().filter(|(_, is_end)| !is_end) {
        // Octet by octet is a write for each, so only where the text is short.
        let cases = BOUNDARIES.into_iter().flat_map(|at| [(at, Cuts::None), (at, Cuts::Inside)]);
        for (boundary, cuts) in cases.chain([(0, Cuts::All)]) {
            let text = text(look_alike, boundary);
            let start = text.len() - SMUGGLED.len() - look_alike.len();
            let cut = match cuts {
                Cuts::None => Vec::new(),
                Cuts::Inside => vec![start + 1],
                Cuts::All => (start - 3..text.len()).collect(),
            };
            let (message, _) = reference(&text);
            for tls in [false, true] {
                let case = format!("`{}` at {boundary}, tls {tls}, {} cuts", look_alike.escape_ascii(), cut.len());
                let mut client = match tls {
                    false => Client::connect(daemon.smtp),
                    true => Client::connect_tls(daemon.smtp, "mx.solarmora.com", &certificates),
                };
                for line in ["MAIL FROM:<a@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
                    assert!(client.say(line).code < 400, "{case}");
                }
                let mut from = 0;
                for end in cut.iter().copied().chain([text.len()]) {
                    client.send(&text[from..end]).unwrap_or_else(|e| panic!("{case}: {e}"));
                    from = end;
                }
                let reply = client.reply();
                assert_eq!(reply.code, if message.is_some() { 250 } else { 554 }, "{case}: {reply:?}");
                taken += usize::from(message.is_some());
                assert_eq!(client.say("RCPT TO:<aide@solarmora.com>").code, 503, "{case}");
            }
        }
    }
    let mails = crm.wait_for_mails(taken);
    assert_eq!(mails.len(), taken);
    assert!(mails.iter().all(|mail| mail.sender() == "a@example.org"));
}

#[derive(Clone, Copy)]
enum Cuts {
    None,
    Inside,
    All,
}

/// By DATA and by BDAT, in one chunk and in two that part inside the look-alike. The sink notes a bare CR, LF or NUL on
/// its wire and undoes the dots as RFC 5321 says; so a message that is the same there was stuffed exactly.
#[test]
fn whatever_came_in_leaves_with_exact_dots_and_no_bare_octet() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    let mut client = Client::connect(daemon.smtp);
    let mut taken = Vec::new();
    let dots: [&[u8]; 6] =
        [b"\r\n\r\n.\r\n.", b".", b"\r\n.x\r\n..\r\n...\r\n", b"\r\n\r\n\r\n.\r\n", b"x.\r\n", b".."];
    for look_alike in LOOK_ALIKES.map(|(look_alike, _)| look_alike).into_iter().chain(dots) {
        let message = [HEAD, b"first", look_alike, b"\r\nlast\r\n"].concat();
        let start = HEAD.len() + b"first".len();
        let sound = !String::from_utf8_lossy(&message).replace("\r\n", "").contains(['\r', '\n', '\0']);
        for cut in (start..=start + look_alike.len()).chain([message.len()]) {
            for line in ["MAIL FROM:<a@example.org>", "RCPT TO:<aide@solarmora.com>"] {
                assert!(client.say(line).code < 400);
            }
            let (first, last) = message.split_at(cut);
            let mut chunks = format!("BDAT {}\r\n", first.len()).into_bytes();
            chunks.extend_from_slice(first);
            chunks.extend_from_slice(format!("BDAT {} LAST\r\n", last.len()).as_bytes());
            chunks.extend_from_slice(last);
            client.send(&chunks).unwrap();
            let replies = [client.reply(), client.reply()];
            let accepted = replies[1].code == 250;
            assert_eq!(accepted, sound, "`{}` cut at {cut}: {replies:?}", look_alike.escape_ascii());
            if sound {
                taken.push(message.clone());
            } else {
                assert!(replies.iter().any(|reply| reply.code == 554), "{replies:?}");
                // Too many refusals would end a session.
                client = Client::connect(daemon.smtp);
            }
        }
        if sound {
            client.deliver("a@example.org", &["aide@solarmora.com"], &message);
            taken.push(message);
        }
    }
    crm.wait_for_mails(taken.len());
    let mut got: Vec<Vec<u8>> = crm.mails().into_iter().map(|mail| mail.bytes).collect();
    for message in taken {
        let found = got.iter().position(|mail| mail.ends_with(&message));
        got.remove(found.unwrap_or_else(|| panic!("it did not arrive as it was: `{}`", message.escape_ascii())));
    }
    wait_for("nothing to wait", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    assert!(got.is_empty());
}
