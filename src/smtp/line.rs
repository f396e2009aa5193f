//! Cuts input into command lines.
//!
//! Only CRLF ends a line. A bare CR, a bare LF or a NUL makes the whole line, up to its CRLF, a fault: it is never
//! executed and never becomes two commands, whatever another server on the path took it for (RFC 5321 §2.3.8).
//! A fault is told once, at the octet that makes it, so that a client that ends its lines in LF hears at once why
//! nothing happens; the rest of its line is then thrown away without being kept.
//!
//! The bytes stay the caller's. A reader remembers only whether it is in the middle of a bad line and how far.

use memchr::{memchr3, memmem};

/// The state between two calls of [`LineReader::next`].
#[derive(Clone, Debug, Default)]
pub struct LineReader {
    /// `Some` inside a line whose fault has been told: the octets thrown away since.
    skipped: Option<usize>,
}

/// What stands at the front of the input.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Nothing whole yet. More input is needed.
    Partial,
    /// A line without its CRLF: at most [`LINE_OCTETS_MAX`] less two octets, free of CR, LF and NUL.
    Whole(&'a [u8]),
    /// The line holds a bare CR, a bare LF or a NUL. What stands before it.
    BareControl(&'a [u8]),
    /// The line is longer than [`LINE_OCTETS_MAX`]. How it begins.
    TooLong(&'a [u8]),
    /// A bad line went on for more than [`SKIPPED_OCTETS_MAX`]: nobody sends that by mistake.
    Flood,
}

impl LineReader {
    /// Looks at the front of `input`. Returns how many octets of it are done with, and what they were. The caller
    /// drops these octets before the next call, and appends to what remains: never more than
    /// [`LINE_OCTETS_MAX`] after `Partial`.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> (usize, Line<'a>) {
        match self.skipped {
            None => self.read(input),
            Some(skipped) => self.skip(input, skipped),
        }
    }

    fn read<'a>(&mut self, input: &'a [u8]) -> (usize, Line<'a>) {
        let found = memchr3(b'\r', b'\n', 0, input);
        if found.unwrap_or(input.len()) > TEXT_OCTETS_MAX {
            self.skipped = Some(0);
            return (TEXT_OCTETS_MAX + 1, Line::TooLong(&input[..TEXT_OCTETS_MAX]));
        }
        let Some(at) = found else { return (0, Line::Partial) };
        match (input[at], input.get(at + 1)) {
            (b'\r', Some(b'\n')) => (at + 2, Line::Whole(&input[..at])),
            (b'\r', None) => (0, Line::Partial),
            (_, _) => {
                self.skipped = Some(0);
                (at + 1, Line::BareControl(&input[..at]))
            }
        }
    }

    fn skip<'a>(&mut self, input: &'a [u8], skipped: usize) -> (usize, Line<'a>) {
        let end = memmem::find(input, b"\r\n");
        // A CR at the very end may be half of the CRLF: it stays.
        let dead = end.unwrap_or(input.len() - usize::from(input.ends_with(b"\r")));
        if skipped + dead > SKIPPED_OCTETS_MAX {
            return (input.len(), Line::Flood);
        }
        let Some(end) = end else {
            self.skipped = Some(skipped + dead);
            return (dead, Line::Partial);
        };
        self.skipped = None;
        let (read, line) = self.read(&input[end + 2..]);
        (end + 2 + read, line)
    }
}

/// RFC 5321 §4.5.3.1.4 asks for 512 octets with the CRLF, and every extension adds its parameters to that. A path
/// of 256 octets and all parameters that we know stay under 400; what a later extension may add (RFC 4954: 12,288
/// for AUTH, which we do not offer) does not concern us. Four times the minimum is kind to everybody.
pub const LINE_OCTETS_MAX: usize = 2048;

/// How much of one bad line is thrown away before the session ends: 64 KiB, one read of the socket.
pub const SKIPPED_OCTETS_MAX: usize = 64 * 1024;

const TEXT_OCTETS_MAX: usize = LINE_OCTETS_MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a reader says about `input` fed in pieces of `size` octets.
    fn lines(input: &[u8], size: usize) -> Vec<String> {
        let (mut reader, mut buffer, mut said) = (LineReader::default(), Vec::new(), Vec::new());
        for piece in input.chunks(size) {
            buffer.extend_from_slice(piece);
            loop {
                let (read, line) = reader.next(&buffer);
                let text = match line {
                    Line::Partial => String::new(),
                    Line::Whole(text) => format!("whole {}", text.escape_ascii()),
                    Line::BareControl(_) => "bare".to_owned(),
                    Line::TooLong(_) => "long".to_owned(),
                    Line::Flood => "flood".to_owned(),
                };
                let (partial, flood) = (line == Line::Partial, line == Line::Flood);
                buffer.drain(..read);
                if flood {
                    said.push(text);
                    return said;
                }
                if partial {
                    assert!(buffer.len() <= LINE_OCTETS_MAX, "a partial line is bounded");
                    break;
                }
                said.push(text);
            }
        }
        said
    }

    fn check(input: &[u8], want: &[&str]) {
        for size in [1, 2, 3, 7, 4096, usize::MAX] {
            assert_eq!(lines(input, size), want, "{} by {size}", input.escape_ascii());
        }
    }

    #[test]
    fn only_crlf_ends_a_line() {
        check(b"NOOP\r\nQUIT\r\n", &["whole NOOP", "whole QUIT"]);
        check(b"\r\n", &["whole "]);
        check(b"NOOP", &[]);
        check(b"NOOP\r", &[]);
    }

    #[test]
    fn a_bare_control_makes_one_fault_of_the_whole_line() {
        check(b"EHLO a\nMAIL FROM:<x>\r\nQUIT\r\n", &["bare", "whole QUIT"]);
        check(b"EHLO a\rMAIL\r\nQUIT\r\n", &["bare", "whole QUIT"]);
        check(b"EHLO a\0\n\r\r\nQUIT\r\n", &["bare", "whole QUIT"]);
        check(b"A\r\r\nB\r\n", &["bare", "whole B"]);
        check(b"EHLO a\nMAIL FROM:<x>\n", &["bare"]);
    }

    #[test]
    fn a_line_at_the_limit_and_one_past_it() {
        for (length, want) in [(2046, "whole"), (2047, "long"), (2048, "long"), (60_000, "long")] {
            let mut input = vec![b'x'; length];
            input.extend_from_slice(b"\r\nQUIT\r\n");
            for size in [1, 1000, usize::MAX] {
                let said = lines(&input, size);
                assert!(said[0].starts_with(want), "{length} by {size}");
                assert_eq!(said[1..], ["whole QUIT"]);
            }
        }
    }

    #[test]
    fn an_endless_line_is_thrown_away_up_to_the_limit_and_not_one_past_it() {
        let fault = TEXT_OCTETS_MAX + 1;
        for (skipped, want) in [(SKIPPED_OCTETS_MAX, "whole QUIT"), (SKIPPED_OCTETS_MAX + 1, "flood")] {
            let mut input = vec![b'x'; fault + skipped];
            input.extend_from_slice(b"\r\nQUIT\r\n");
            for size in [1, 1000, usize::MAX] {
                assert_eq!(lines(&input, size), ["long", want]);
            }
        }
    }
}
