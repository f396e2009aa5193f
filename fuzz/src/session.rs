//! A session: one stream of octets has one meaning, however it is cut, and each command gets one reply, in order.
//!
//! The stream is fed octet by octet beside a [`Model`] that knows nothing of commands but where they, a message and a
//! chunk end, and says how many replies are due after each octet. Then it is fed in pieces, once as a client sends it that
//! waits for 354 and for TLS: nothing may differ; and once as one that does not wait: then the session may end there, and
//! that is all that may differ.

use std::collections::BTreeSet;

use pointsman::reply::{DATA_BEFORE_354, Reply, STARTTLS_PIPELINED};
use pointsman::smtp::foreign::{Likeness, likeness};

use super::input::{Input, cuts};

mod conductor;
mod model;

use conductor::{Conductor, Shape, Told};
use model::Model;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = Shape::read(&mut input);
    let (seed, most) = (input.number(), 1 + usize::from(input.octet()));
    let stream = input.rest();

    let (whole, waits) = octet_by_octet(&shape, stream);
    let mut places: BTreeSet<usize> = cuts(stream.len(), seed, most).into_iter().collect();
    let hasty = in_pieces(&shape, stream, &places);
    places.extend(&waits);
    let patient = in_pieces(&shape, stream, &places);
    assert_eq!(text(&patient.said), text(&whole.said), "cut at {places:?}");
    assert_eq!(patient.told, whole.told, "cut at {places:?}");
    assert_no_more_than(&hasty, &whole);
}

/// What was said and told, and the places at which a client has to wait.
fn octet_by_octet(shape: &Shape, stream: &[u8]) -> (Conductor, Vec<usize>) {
    let (mut conductor, mut model) = (Conductor::new(shape), Model::default());
    let (mut waits, mut due, mut wrong) = (Vec::new(), 0, 0);
    for (at, octet) in stream.iter().enumerate() {
        let (said, told) = (conductor.said.len(), conductor.told.len());
        due += model.octet(*octet);
        conductor.feed(&[*octet]);
        let replies = codes(&conductor.said[said..]);
        // Until it is known that the peer speaks SMTP nothing is answered.
        if likeness(&stream[..=at]) == Likeness::SoFar {
            assert!(replies.is_empty());
            continue;
        }
        if conductor.is_closed() {
            assert!(replies.len() <= due.max(1), "{replies:?} where {due} are due, and the end");
            break;
        }
        assert_eq!(replies.len(), due, "replies {replies:?} at octet {at}");
        due = 0;
        wrong += replies.iter().filter(|code| matches!(code, 500 | 501 | 502 | 555)).count();
        assert!(wrong <= conductor.errors_max(), "{wrong} commands were wrong, and it goes on");
        let told = &conductor.told[told..];
        model.heard(replies.last().copied(), told);
        if replies.last() == Some(&250) && told.iter().any(|(_, told)| matches!(told, Told::Message(..))) {
            wrong = 0;
        }
        if model.waits() || told.iter().any(|(_, told)| *told == Told::Tls) {
            waits.push(at + 1);
        }
    }
    conductor.end();
    (conductor, waits)
}

fn in_pieces(shape: &Shape, stream: &[u8], places: &BTreeSet<usize>) -> Conductor {
    let (mut conductor, mut from) = (Conductor::new(shape), 0);
    for &to in places {
        conductor.feed(&stream[from..to]);
        from = to;
    }
    conductor.end();
    conductor
}

/// Who does not wait hears the same up to the place where he should have, and there the end.
fn assert_no_more_than(hasty: &Conductor, whole: &Conductor) {
    if hasty.said == whole.said {
        assert_eq!(hasty.told, whole.told);
        return;
    }
    let ends_with = |reply: &Reply| hasty.said.strip_suffix(written(reply).as_slice());
    let before = ends_with(&DATA_BEFORE_354).or_else(|| ends_with(&STARTTLS_PIPELINED));
    let before = before.unwrap_or_else(|| panic!("{} for {}", text(&hasty.said), text(&whole.said)));
    assert!(whole.said.starts_with(before), "{} for {}", text(&hasty.said), text(&whole.said));
    let known = hasty.told.iter().take_while(|(at, _)| *at <= before.len());
    let ended = |told: &Told| matches!(told, Told::Reset(_) | Told::Close(_));
    for (theirs, ours) in known.zip(&whole.told).filter(|(theirs, _)| !ended(&theirs.1)) {
        assert_eq!(theirs, ours);
    }
    assert!(hasty.told.len() <= whole.told.len() + 2);
}

fn written(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::new();
    reply.write(&mut out);
    out
}

/// The code of each whole reply.
fn codes(said: &[u8]) -> Vec<u16> {
    let said = std::str::from_utf8(said).expect("replies are ASCII");
    assert!(said.is_empty() || said.ends_with("\r\n"), "{said:?}");
    let lines = said.split_terminator("\r\n");
    let code = |line: &str| {
        assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')), "{line:?}");
        assert!(matches!(line.as_bytes()[3], b' ' | b'-'), "{line:?}");
        line[..3].parse::<u16>().expect("a reply begins with its code")
    };
    lines.map(|line| (code(line), line)).filter(|(_, line)| line.as_bytes()[3] == b' ').map(|(code, _)| code).collect()
}

fn text(said: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(said)
}
