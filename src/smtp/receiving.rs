//! A message while it comes in: its end, its size and its soundness.
//!
//! What is wrong with a message is noted and told at its real end, in one fixed order, so that the answer does not
//! depend on how the bytes were cut. From the first fault on nothing more of it is passed on: nobody will
//! want it, and it would fill a disk.

use std::ops::Range;

use memchr::memchr_iter;

use crate::reply;
use crate::reply::Reply;
use crate::smtp::dot::{Decoder, Piece};

/// The receiving end of DATA.
#[derive(Clone, Debug)]
pub struct Receiving {
    decoder: Decoder,
    message_octets_max: u64,
    header_octets_max: u64,
    octets: u64,
    header: Header,
    unsound: bool,
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
        Receiving {
            decoder: Decoder::new(),
            message_octets_max,
            header_octets_max,
            octets: 0,
            header: Header::Inside { octets: 0, line: 0 },
            unsound: false,
        }
    }

    /// Looks at the front of `input`. Returns how many octets of it are done with, and what came of them.
    pub fn read(&mut self, input: &[u8]) -> (usize, Progress) {
        let (read, piece) = self.decoder.next(input);
        let progress = match piece {
            Piece::Partial => Progress::Partial,
            Piece::Text(text) => {
                self.octets += text.len() as u64;
                self.header.measure(text);
                match self.verdict() {
                    // The text is the end of what was read: an added dot may stand before it.
                    Ok(()) => Progress::Text(read - text.len()..read),
                    Err(_) => Progress::Dropped,
                }
            }
            Piece::Fault => {
                self.unsound = true;
                Progress::Dropped
            }
            Piece::End => Progress::End(self.verdict()),
        };
        (read, progress)
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
}
