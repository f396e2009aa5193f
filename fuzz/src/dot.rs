//! Dots: what is stuffed is decoded to itself, the end stands nowhere but at the end, and no cut changes anything.

use pointsman::smtp::dot::{Decoder, Piece, Stuffer};

use super::input::{Input, cuts, sound};

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (seed, most) = (input.number(), usize::from(input.octet()));
    let octets = input.rest();

    // Any octets, as a stranger sends them.
    assert_eq!(decoded(octets, &cuts(octets.len(), seed, most)), decoded(octets, &[octets.len()]));

    // A message, as we send it.
    let message = sound(octets);
    let (mut stuffer, mut wire, mut from) = (Stuffer::new(), Vec::new(), 0);
    for to in cuts(message.len(), seed, most) {
        stuffer.stuff(&message[from..to], &mut wire);
        from = to;
    }
    stuffer.finish(&mut wire);
    let end = first_end(&[b"\r\n", wire.as_slice()].concat());
    assert_eq!(end, wire.len() - b".\r\n".len(), "the end stands at the end alone");
    let whole =
        if message.is_empty() || message.ends_with(b"\r\n") { message } else { [&message, &b"\r\n"[..]].concat() };
    let places = cuts(wire.len(), seed.rotate_left(7), most);
    assert_eq!(decoded(&wire, &places), (whole, false, Some(wire.len())));
}

/// Where the first `CRLF.CRLF` stands.
fn first_end(wire: &[u8]) -> usize {
    wire.windows(5).position(|five| five == b"\r\n.\r\n").expect("a message has an end")
}

/// The message, whether it has a fault, and where its end is.
fn decoded(octets: &[u8], places: &[usize]) -> (Vec<u8>, bool, Option<usize>) {
    let (mut decoder, mut message, mut fault) = (Decoder::new(), Vec::new(), false);
    let (mut from, mut buffer) = (0, Vec::new());
    for &to in places {
        buffer.extend_from_slice(&octets[from..to]);
        from = to;
        loop {
            let (read, piece) = decoder.next(&buffer);
            match piece {
                Piece::Text(text) => message.extend_from_slice(text),
                Piece::Fault => fault = true,
                Piece::End => return (message, fault, Some(to - buffer.len() + read)),
                Piece::Partial => {}
            }
            let partial = piece == Piece::Partial;
            buffer.drain(..read);
            if partial {
                break;
            }
        }
        assert!(buffer.len() <= 2, "what waits is bounded");
    }
    // Half an end belongs to no message.
    (message, fault, None)
}
