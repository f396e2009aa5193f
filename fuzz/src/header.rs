//! A message's header: every field is found where it stands, however it arrives, and what is cut leaves the rest as it was
//! and nothing of what only we may say.

use pointsman::auth::cuts;
use pointsman::message::{HEAD_OCTETS_MAX, Head, Header};

use super::input::{Input, cuts as places, sound};

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (seed, most) = (input.number(), usize::from(input.octet()));
    let message = sound(input.rest());

    let head = pushed(&message, &places(message.len(), seed, most));
    assert_eq!(head, pushed(&message, &[message.len()]));
    assert!(message.starts_with(&head) && head.len() <= HEAD_OCTETS_MAX);
    assert_eq!(head, plain_head(&message));

    let header = Header::index(&head);
    let mut end = 0;
    for field in &header.fields {
        let (start, stop) = (place(field.range.start), place(field.range.end));
        assert!(end <= start && start < stop && stop <= head.len(), "{:?} behind {end}", field.range);
        assert!(start == 0 || head[..start].ends_with(b"\n"), "it begins a line: {:?}", field.range);
        assert!(stop == head.len() || head[..stop].ends_with(b"\n"), "it ends a line: {:?}", field.range);
        let name = head[start..stop].split(|&octet| octet == b':').next().unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(name).trim_ascii_end().to_ascii_lowercase(), field.name);
        end = stop;
    }
    for text in [&header.from, &header.subject, &header.message_id] {
        assert!(text.chars().count() <= 300 && !text.contains(char::is_control), "{text:?}");
    }
    // RFC 5321 §6.3: no spelling hides a hop from the count of hops.
    assert_eq!(header.hops(), plain_fields(&head, "received").len());
    assert_cut(&head, &header);
}

fn assert_cut(head: &[u8], header: &Header) {
    let found = cuts::find(&header.fields, head, OURS);
    let (mut rest, mut from) = (Vec::new(), 0);
    for cut in &found {
        assert!(header.fields.iter().any(|field| field.range == cut.range && field.name == cut.name));
        rest.extend_from_slice(&head[from..place(cut.range.start)]);
        from = place(cut.range.end);
    }
    rest.extend_from_slice(&head[from..]);
    let removed: usize = found.iter().map(|cut| place(cut.range.end - cut.range.start)).sum();
    assert_eq!(rest.len() + removed, head.len());

    let again = Header::index(&rest);
    assert_eq!(cuts::find(&again.fields, &rest, OURS), [], "what is left is left alone");
    for value in plain_fields(&rest, "authentication-results") {
        let unfolded = value.replace("\r\n", "").replace('"', "");
        let id = unfolded.trim_ascii_start();
        assert!(!id.to_ascii_lowercase().starts_with(&format!("{OURS};")), "only we write this: {value:?}");
    }
    for name in ["x-spam-flag", "x-zammad-ticket-owner", "x-pointsman-spam", "received-spf"] {
        assert!(plain_fields(&rest, name).is_empty(), "{name} is left");
    }
}

fn pushed(message: &[u8], places: &[usize]) -> Vec<u8> {
    let (mut head, mut from) = (Head::default(), 0);
    for &to in places {
        head.push(&message[from..to]);
        from = to;
    }
    head.as_bytes().to_vec()
}

/// All before the first empty line.
fn plain_head(message: &[u8]) -> &[u8] {
    let mut end = 0;
    for line in message.split_inclusive(|&octet| octet == b'\n') {
        if line == b"\r\n" {
            return &message[..end];
        }
        end += line.len();
    }
    message
}

/// The values of the fields with this name, as the plainest reader sees them: a line that begins with the name, spaces, and a
/// colon, and the lines behind it that begin with white space.
fn plain_fields(head: &[u8], name: &str) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    let mut inside = false;
    for line in head.split_inclusive(|&octet| octet == b'\n') {
        let text = String::from_utf8_lossy(line);
        if text.starts_with([' ', '\t']) {
            if let Some(value) = values.last_mut().filter(|_| inside) {
                value.push_str(&text);
            }
            continue;
        }
        let value =
            text.split_once(':').filter(|(given, _)| given.trim_end_matches([' ', '\t']).eq_ignore_ascii_case(name));
        inside = value.is_some();
        values.extend(value.map(|(_, value)| value.to_owned()));
    }
    values
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("a header is short")
}

const OURS: &str = "mx.solarmora.com";
