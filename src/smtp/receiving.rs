//! A message while it comes in, by DATA or in chunks: its end, its size and its soundness.
//!
//! What is wrong with a message is noted and told at its real end, in one fixed order, so that the answer does not
//! depend on how the bytes were cut. From the first fault on nothing more of it is passed on: nobody will
//! want it, and it would fill a disk.

use std::ops::Range;

use memchr::{memchr_iter, memchr3};

use crate::reply;
use crate::reply::Reply;
use crate::smtp::dot::{Decoder, Piece};

/// The receiving end of DATA.
#[derive(Clone, Debug)]
pub struct Receiving {
    decoder: Decoder,
    measure: Measure,
}

/// The receiving end of BDAT (RFC 3030): all chunks of one message. Dots mean nothing here, and its end is known from
/// outside. That lines end in CRLF, and nothing else looks like an end of line, holds as in DATA: the message may be
/// relayed by it.
#[derive(Clone, Debug)]
pub struct Chunks {
    /// The octet before the next one was a CR, in this chunk or in an earlier one.
    after_cr: bool,
    measure: Measure,
}

/// What came of the front of the input.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More input is needed.
    Partial,
    /// Where in the given input the next octets of the message stand; not empty.
    Text(Range<usize>),
    /// Octets went by that nobody needs.
    Dropped,
    /// The final dot, and what is to be answered where the message cannot be taken.
    End(Result<(), Reply>),
}

#[derive(Clone, Debug)]
struct Measure {
    message_octets_max: u64,
    header_octets_max: u64,
    octets: u64,
    header: Header,
    unsound: bool,
}

/// Measures what comes before the first empty line.
#[derive(Clone, Copy, Debug)]
enum Header {
    /// Octets up to the last line end, and since then.
    Inside {
        octets: u64,
        line: u64,
    },
    Over {
        octets: u64,
    },
}

impl Receiving {
    /// Both limits are in octets of the message as it is stored.
    #[must_use]
    pub fn new(message_octets_max: u64, header_octets_max: u64) -> Receiving {
        Receiving { decoder: Decoder::new(), measure: Measure::new(message_octets_max, header_octets_max) }
    }

    /// Looks at the front of `input`. Returns how many octets of it are done with, and what came of them.
    pub fn read(&mut self, input: &[u8]) -> (usize, Progress) {
        let (read, piece) = self.decoder.next(input);
        let progress = match piece {
            Piece::Partial => Progress::Partial,
            Piece::Text(text) => match self.measure.take(text) {
                // The text is the end of what was read: an added dot may stand before it.
                Ok(()) => Progress::Text(read - text.len()..read),
                Err(_) => Progress::Dropped,
            },
            Piece::Fault => {
                self.measure.unsound = true;
                Progress::Dropped
            }
            Piece::End => Progress::End(self.measure.verdict()),
        };
        (read, progress)
    }
}

impl Chunks {
    /// Both limits are in octets.
    #[must_use]
    pub fn new(message_octets_max: u64, header_octets_max: u64) -> Chunks {
        Chunks { after_cr: false, measure: Measure::new(message_octets_max, header_octets_max) }
    }

    /// Whether the message is still within its limit with a further chunk of `size` octets.
    #[must_use]
    pub fn has_room(&self, size: u64) -> bool {
        self.measure.octets.saturating_add(size) <= self.measure.message_octets_max
    }

    /// Takes the next octets of a chunk; whether they are to be passed on.
    pub fn take(&mut self, text: &[u8]) -> bool {
        if !self.measure.unsound {
            self.measure.unsound = self.has_bare_control(text);
        }
        self.measure.take(text).is_ok()
    }

    /// What is to be answered at the end of a chunk.
    ///
    /// # Errors
    /// The refusal that ends the message.
    pub fn verdict(&mut self, last: bool) -> Result<(), Reply> {
        // Behind a CR nothing comes any more.
        self.measure.unsound |= last && self.after_cr;
        self.measure.verdict()
    }

    fn has_bare_control(&mut self, text: &[u8]) -> bool {
        let Some(&end) = text.last() else { return false };
        if self.after_cr && text[0] != b'\n' {
            return true;
        }
        let mut at = usize::from(self.after_cr);
        self.after_cr = end == b'\r';
        while let Some(found) = memchr3(b'\r', b'\n', 0, &text[at..]) {
            match (text[at + found], text.get(at + found + 1)) {
                (b'\r', Some(b'\n')) => at += found + 2,
                // The octet behind it may come later.
                (b'\r', None) => return false,
                (_, _) => return true,
            }
        }
        false
    }
}

impl Measure {
    fn new(message_octets_max: u64, header_octets_max: u64) -> Measure {
        let header = Header::Inside { octets: 0, line: 0 };
        Measure { message_octets_max, header_octets_max, octets: 0, header, unsound: false }
    }

    fn take(&mut self, text: &[u8]) -> Result<(), Reply> {
        self.octets += text.len() as u64;
        self.header.measure(text);
        self.verdict()
    }

    fn verdict(&self) -> Result<(), Reply> {
        if self.unsound {
            return Err(reply::BAD_MESSAGE_BYTES);
        }
        if self.octets > self.message_octets_max {
            return Err(reply::MESSAGE_TOO_LARGE);
        }
        if self.header.octets() > self.header_octets_max {
            return Err(reply::HEADER_TOO_LARGE);
        }
        Ok(())
    }
}

impl Header {
    fn measure(&mut self, text: &[u8]) {
        let Header::Inside { octets, line } = self else { return };
        let mut from = 0;
        // Line ends are CRLF, or the message is refused anyway.
        for line_end in memchr_iter(b'\n', text) {
            *line += (line_end + 1 - from) as u64;
            from = line_end + 1;
            if *line == 2 {
                *self = Header::Over { octets: *octets };
                return;
            }
            *octets += *line;
            *line = 0;
        }
        *line += (text.len() - from) as u64;
    }

    /// Without the empty line. A line that has only begun does not count before it is longer than an empty one.
    fn octets(self) -> u64 {
        match self {
            Header::Inside { octets, line } if line > 2 => octets + line,
            Header::Inside { octets, .. } | Header::Over { octets } => octets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on `input`, which ends in its final dot, fed in pieces of `size` octets, and what was passed on.
    fn receive(input: &[u8], size: usize, message_max: u64, header_max: u64) -> (Result<(), Reply>, Vec<u8>) {
        let mut receiving = Receiving::new(message_max, header_max);
        let (mut buffer, mut text) = (Vec::new(), Vec::new());
        for piece in input.chunks(size) {
            buffer.extend_from_slice(piece);
            loop {
                let (read, progress) = receiving.read(&buffer);
                let partial = progress == Progress::Partial;
                match progress {
                    Progress::Text(range) => text.extend_from_slice(&buffer[range]),
                    Progress::Dropped | Progress::Partial => {}
                    Progress::End(verdict) => return (verdict, text),
                }
                buffer.drain(..read);
                if partial {
                    break;
                }
            }
        }
        panic!("no end in {}", input.escape_ascii());
    }

    fn check(input: &[u8], message_max: u64, header_max: u64, want: Result<(), Reply>) {
        for size in [1, 2, 5, usize::MAX] {
            let (verdict, _) = receive(input, size, message_max, header_max);
            assert_eq!(verdict, want, "{} by {size}", input.escape_ascii());
        }
    }

    #[test]
    fn a_message_at_the_limit_and_one_past_it() {
        check(b"a: b\r\n\r\n..\r\n.\r\n", 11, 100, Ok(()));
        check(b"a: b\r\n\r\n..\r\n.\r\n", 10, 100, Err(reply::MESSAGE_TOO_LARGE));
        check(b".\r\n", 0, 0, Ok(()));
    }

    #[test]
    fn a_header_at_the_limit_and_one_past_it() {
        let sound: &[&[u8]] =
            &[b"a: b\r\n\r\nlong body text\r\n.\r\n", b"a: b\r\n.\r\n", b"\r\nlong body text\r\n.\r\n"];
        for input in sound {
            check(input, 100, 6, Ok(()));
        }
        check(b"a: bc\r\n\r\nx\r\n.\r\n", 100, 6, Err(reply::HEADER_TOO_LARGE));
        check(b"a: b\r\nc\r\n.\r\n", 100, 6, Err(reply::HEADER_TOO_LARGE));
        check(b"no empty line at all\r\n.\r\n", 100, 6, Err(reply::HEADER_TOO_LARGE));
    }

    #[test]
    fn of_several_faults_the_worst_is_told_wherever_they_stand() {
        check(b"0123456789\r\n\0\r\n.\r\n", 10, 6, Err(reply::BAD_MESSAGE_BYTES));
        check(b"\n0123456789\r\n.\r\n", 10, 6, Err(reply::BAD_MESSAGE_BYTES));
        check(b"0123456789\r\n\r\n.\r\n", 10, 6, Err(reply::MESSAGE_TOO_LARGE));
    }

    #[test]
    fn nothing_is_passed_on_after_a_fault() {
        let (_, text) = receive(b"a\r\n\0b\r\nc\r\n.\r\n", usize::MAX, 100, 100);
        assert_eq!(text, b"a\r\n");
    }

    /// The verdict on a message in chunks of `size` octets, each fed in pieces of `cut`, and what was passed on.
    fn chunked(message: &[u8], size: usize, cut: usize) -> (Result<(), Reply>, Vec<u8>) {
        let (mut chunks, mut text) = (Chunks::new(20, 8), Vec::new());
        let mut rest = message.chunks(size).peekable();
        while let Some(chunk) = rest.next() {
            for piece in chunk.chunks(cut) {
                if chunks.take(piece) {
                    text.extend_from_slice(piece);
                }
            }
            let verdict = chunks.verdict(rest.peek().is_none());
            if verdict.is_err() || rest.peek().is_none() {
                return (verdict, text);
            }
        }
        (chunks.verdict(true), text)
    }

    #[test]
    fn chunks_are_judged_alike_however_they_are_cut() {
        for (message, want) in [
            (&b""[..], Ok(())),
            (b"a: b\r\n\r\n.\r\n..\r\n", Ok(())),
            (b"a: b\r\n\r\n.", Ok(())),
            (b"\r\n\r\n\r\n", Ok(())),
            (b"a: b\r\n\r\n\n", Err(reply::BAD_MESSAGE_BYTES)),
            (b"\na", Err(reply::BAD_MESSAGE_BYTES)),
            (b"a\r", Err(reply::BAD_MESSAGE_BYTES)),
            (b"a\r\r\n", Err(reply::BAD_MESSAGE_BYTES)),
            (b"a\rb", Err(reply::BAD_MESSAGE_BYTES)),
            (b"a\0b", Err(reply::BAD_MESSAGE_BYTES)),
            (b"a: b\r\n\r\n0123456789ab", Ok(())),
            (b"a: b\r\n\r\n0123456789abc", Err(reply::MESSAGE_TOO_LARGE)),
            (b"a: bcdef\r\n", Err(reply::HEADER_TOO_LARGE)),
        ] {
            for size in 1..=message.len().max(1) {
                for cut in [1, 2, 3, 100] {
                    let (verdict, text) = chunked(message, size, cut);
                    assert_eq!(verdict, want, "{} by {size} and {cut}", message.escape_ascii());
                    assert!(message.starts_with(&text) && (want.is_err() || text == message));
                }
            }
        }
    }

    #[test]
    fn room_for_a_chunk_ends_at_the_limit() {
        let mut chunks = Chunks::new(10, 10);
        assert!(chunks.take(b"\r\n45"));
        assert!(chunks.has_room(6) && !chunks.has_room(7) && !chunks.has_room(u64::MAX));
    }
}
