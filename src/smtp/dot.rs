//! The transparency of DATA (RFC 5321 §4.5.2), in both directions.
//!
//! Inbound, the [`Decoder`] takes the added dots out and finds the end. Its theory: `CRLF.CRLF` ends a message
//! and nothing else does. A bare CR, a bare LF or a NUL is a fault of the message; the decoder tells it and goes
//! on to the real end, so that the sender hears the refusal there and none of his text is taken for a command.
//! It repairs nothing: what it yields are slices of its input. Lines may have any length; RFC 5321 §4.5.3.1.6 names
//! what must be taken at least, and who breaks a long line changes the message.
//!
//! Outbound, the [`Stuffer`] adds the dots and the end. It is for messages that came through a decoder, so it
//! counts on CRLF line ends and does not look for others.

use memchr::{memchr3, memmem};

/// Takes a message out of DATA's input.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// What was consumed last ended in CRLF, or nothing was yet.
    line_start: bool,
}

/// What stands at the front of the input.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// More input is needed; at most two octets stay unconsumed.
    Partial,
    /// Octets of the message, never empty.
    Text(&'a [u8]),
    /// One octet that no message may have: a bare CR, a bare LF or a NUL.
    Fault,
    /// The final dot. The decoder is done.
    End,
}

impl Decoder {
    #[must_use]
    pub fn new() -> Decoder {
        Decoder { line_start: true }
    }

    /// Looks at the front of `input`. Returns how many octets of it are done with, and what they were. The
    /// caller drops these before the next call. Cutting the input elsewhere changes the pieces, never their sum.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> (usize, Piece<'a>) {
        if !self.line_start || input.first() != Some(&b'.') {
            return self.text(input, 0);
        }
        match *input {
            [b'.'] | [b'.', b'\r'] => (0, Piece::Partial),
            [b'.', b'\r', b'\n', ..] => (3, Piece::End),
            // The dot was added by the client, or should have been: §4.5.2 removes it whatever follows.
            _ => {
                self.line_start = false;
                self.text(input, 1)
            }
        }
    }

    /// Yields text from `start` to the next place where something has to be decided.
    fn text<'a>(&mut self, input: &'a [u8], start: usize) -> (usize, Piece<'a>) {
        let mut at = start;
        while let Some(found) = memchr3(b'\r', b'\n', 0, &input[at..]) {
            let special = at + found;
            match (input[special], input.get(special + 1)) {
                (b'\r', Some(b'\n')) => {
                    at = special + 2;
                    if matches!(input.get(at), Some(b'.') | None) {
                        self.line_start = true;
                        return (at, Piece::Text(&input[start..at]));
                    }
                }
                // Half of a CRLF, perhaps: it stays for the next call.
                (b'\r', None) => return self.cut(input, start, special),
                (_, _) if special > start => return self.cut(input, start, special),
                (_, _) => {
                    self.line_start = false;
                    return (special + 1, Piece::Fault);
                }
            }
        }
        self.cut(input, start, input.len())
    }

    fn cut<'a>(&mut self, input: &'a [u8], start: usize, end: usize) -> (usize, Piece<'a>) {
        if start == end {
            return (end, Piece::Partial);
        }
        self.line_start = input[..end].ends_with(b"\r\n");
        (end, Piece::Text(&input[start..end]))
    }
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

/// Puts a message into DATA's form.
#[derive(Clone, Debug)]
pub struct Stuffer {
    /// How much of a CRLF the input ended with: 0, 1 or 2 octets. The beginning counts as after a CRLF.
    line_end: usize,
}

impl Stuffer {
    #[must_use]
    pub fn new() -> Stuffer {
        Stuffer { line_end: 2 }
    }

    /// Appends `input`, the next octets of the message, to `out` with the dots that they need.
    pub fn stuff(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if input.is_empty() {
            return;
        }
        // A dot whose CRLF, or half of it, came with the call before.
        let mut copied = match self.line_end {
            2 if input[0] == b'.' => add_dot(input, 0, 0, out),
            1 if input.starts_with(b"\n.") => add_dot(input, 0, 1, out),
            _ => 0,
        };
        for line_end in memmem::find_iter(input, b"\r\n.") {
            copied = add_dot(input, copied, line_end + 2, out);
        }
        out.extend_from_slice(&input[copied..]);
        self.line_end = match input {
            [.., b'\r', b'\n'] => 2,
            [b'\n'] if self.line_end == 1 => 2,
            [.., b'\r'] => 1,
            _ => 0,
        };
    }

    /// Appends the end of the message: the CRLF of its last line where that is missing, and the final dot.
    pub fn finish(self, out: &mut Vec<u8>) {
        let missing = &b"\r\n"[self.line_end..];
        out.extend_from_slice(missing);
        out.extend_from_slice(b".\r\n");
    }
}

/// Copies up to the dot at `dot` and adds one before it. Returns where copying goes on.
fn add_dot(input: &[u8], copied: usize, dot: usize, out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&input[copied..dot]);
    out.push(b'.');
    dot
}

impl Default for Stuffer {
    fn default() -> Stuffer {
        Stuffer::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The message, whether it had a fault, and what was left behind its end; `None` without an end.
    fn decode(input: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, bool, Vec<u8>)> {
        let (mut decoder, mut buffer) = (Decoder::new(), Vec::new());
        let (mut message, mut fault) = (Vec::new(), false);
        let mut from = 0;
        for to in cuts.iter().copied().chain([input.len()]) {
            buffer.extend_from_slice(&input[from..to]);
            from = to;
            loop {
                let (read, piece) = decoder.next(&buffer);
                match piece {
                    Piece::Partial => {
                        buffer.drain(..read);
                        assert!(buffer.len() <= 2);
                        break;
                    }
                    Piece::Text(text) => message.extend_from_slice(text),
                    Piece::Fault => fault = true,
                    Piece::End => {
                        buffer.drain(..read);
                        buffer.extend_from_slice(&input[to..]);
                        return Some((message, fault, buffer));
                    }
                }
                buffer.drain(..read);
            }
        }
        None
    }

    fn check(input: &[u8], want: &[u8]) {
        let (message, fault, left) = decode(input, &[]).expect("it has an end");
        assert_eq!((message.as_slice(), fault), (want, false), "{}", input.escape_ascii());
        assert!(left.is_empty());
    }

    #[test]
    fn dots_are_removed_once() {
        check(b".\r\n", b"");
        check(b"..\r\n.\r\n", b".\r\n");
        check(b".x\r\n.\r\n", b"x\r\n");
        check(b"...\r\n..x\r\n.\r\n", b"..\r\n.x\r\n");
        check(b"a.\r\n.b\r\n\r\n.\r\n", b"a.\r\nb\r\n\r\n");
        check(b"a\r\n. \r\n.\r\n", b"a\r\n \r\n");
    }

    /// Look-alikes of the end; those with `true` hold an octet that no message may have.
    const LOOK_ALIKES: &[(&[u8], bool)] = &[
        (b"\n.\n", true),
        (b"\n.\r\n", true),
        (b"\n.\r", true),
        (b"\r.\n", true),
        (b"\r.\r", true),
        (b"\r.\r\n", true),
        (b"\r\n.\n", true),
        (b"\r\n.\r", true),
        (b"\r\n.\r\r\n", true),
        (b"\r\r\n.\r\r\n", true),
        (b"\n\r.\n\r", true),
        (b"\r\n\0.\r\n", true),
        (b"\r\n.\0\r\n", true),
        (b"\r\n. \r\n", false),
        (b"\r\n .\r\n", false),
        (b"\r\n.\t\r\n", false),
        (b"\r\n\x0b.\r\n", false),
        (b"\x0b.\x0b", false),
        (b"\x0c.\x0c", false),
        (b"\x85.\x85", false),
        (b"\xc2\x85.\xc2\x85", false),
        (b"\xe2\x80\xa8.\xe2\x80\xa8", false),
        (b"\x1e.\x1e", false),
        (b"\n\n.\n\n", true),
        (b"\r\n..\r\n", false),
        (b"\r\n..\n", true),
        (b"\n..\n", true),
        (b"\x8d\x8a.\x8d\x8a", false),
    ];

    #[test]
    fn no_look_alike_ends_a_message_wherever_it_is_cut() {
        for (look_alike, bad) in LOOK_ALIKES {
            let input = [b"first", *look_alike, b"MAIL FROM:<x@y>\r\n.\r\nleft"].concat();
            let whole = decode(&input, &[]).expect("it has an end");
            assert_eq!((whole.1, whole.2.as_slice()), (*bad, &b"left"[..]), "{}", look_alike.escape_ascii());
            assert!(whole.0.ends_with(b"MAIL FROM:<x@y>\r\n"));
            for cut in 0..input.len() {
                assert_eq!(decode(&input, &[cut]).as_ref(), Some(&whole), "{} at {cut}", look_alike.escape_ascii());
            }
            let everywhere: Vec<usize> = (0..input.len()).collect();
            assert_eq!(decode(&input, &everywhere), Some(whole));
        }
    }

    #[test]
    fn a_bare_cr_before_the_real_end_does_not_hide_it() {
        let (message, fault, left) = decode(b"first\r\r\n.\r\nleft", &[]).unwrap();
        assert_eq!((message.as_slice(), fault, left.as_slice()), (&b"first\r\n"[..], true, &b"left"[..]));
    }

    #[test]
    fn stuffing_adds_dots_and_the_end_only() {
        for (message, want) in [
            (&b""[..], &b".\r\n"[..]),
            (b".", b"..\r\n.\r\n"),
            (b"a", b"a\r\n.\r\n"),
            (b"a\r\n", b"a\r\n.\r\n"),
            (b"a\r", b"a\r\n.\r\n"),
            (b".\r\n.\r\n\r\n.", b"..\r\n..\r\n\r\n..\r\n.\r\n"),
            (b"a\r\n.b\r\n..\r\n", b"a\r\n..b\r\n...\r\n.\r\n"),
        ] {
            for size in 1..=message.len().max(1) {
                let (mut stuffer, mut out) = (Stuffer::new(), Vec::new());
                message.chunks(size).for_each(|piece| stuffer.stuff(piece, &mut out));
                stuffer.finish(&mut out);
                assert_eq!(out.escape_ascii().to_string(), want.escape_ascii().to_string());
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_stuffed_is_decoded_to_itself(
            lines in proptest::collection::vec("[.a]{0,4}", 0..20),
            cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let message: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let (mut stuffer, mut wire) = (Stuffer::new(), Vec::new());
            message.as_bytes().chunks(3).for_each(|piece| stuffer.stuff(piece, &mut wire));
            stuffer.finish(&mut wire);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < wire.len()).collect();
            cuts.sort_unstable();
            prop_assert_eq!(decode(&wire, &cuts), Some((message.into_bytes(), false, Vec::new())));
        }

        #[test]
        fn any_cut_of_any_input_decodes_the_same(
            input in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(0u8), Just(b'a')], 0..60),
            cuts in proptest::collection::vec(0usize..60, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= input.len()).collect();
            cuts.sort_unstable();
            prop_assert_eq!(decode(&input, &cuts), decode(&input, &[]));
        }
    }
}
