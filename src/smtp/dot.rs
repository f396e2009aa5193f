//! Transparency (RFC 5321 §4.5.2): what stands between 354 and the final dot.
//!
//! The stuffer knows only whether the next octet begins a line, so that a message may come in pieces of any size.

use memchr::memmem;

/// Adds the dots that DATA needs, and the end of data. One for each message.
pub struct Stuffer {
    at_line_start: bool,
    last: Last,
    line_dot: memmem::Finder<'static>,
}

/// How the octets so far end, as far as the end of data depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    LineEnd,
    Cr,
    Other,
}

impl Default for Stuffer {
    fn default() -> Stuffer {
        Stuffer::new()
    }
}

impl Stuffer {
    #[must_use]
    pub fn new() -> Stuffer {
        // The 354 line has just ended: an empty message is `.CRLF` alone.
        Stuffer { at_line_start: true, last: Last::LineEnd, line_dot: memmem::Finder::new(b"\n.") }
    }

    /// Appends `input`, a piece of the message, to `out` with each line's leading dot doubled.
    ///
    /// A line begins after any LF. Accepted messages have none without its CR; were one to slip through, the
    /// extra dot keeps a lax receiver from seeing an end of data in it.
    pub fn stuff(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let Some(&last) = input.last() else { return };
        // 1/64 more than the input spares nearly every message a second allocation.
        out.reserve(input.len() + input.len() / 64 + END_OCTETS);
        if self.at_line_start && input[0] == b'.' {
            out.push(b'.');
        }
        let mut copied = 0;
        for at in self.line_dot.find_iter(input) {
            out.extend_from_slice(&input[copied..=at]);
            out.push(b'.');
            copied = at + 1;
        }
        out.extend_from_slice(&input[copied..]);

        let after_cr = if input.len() >= 2 { input[input.len() - 2] == b'\r' } else { self.last == Last::Cr };
        self.at_line_start = last == b'\n';
        self.last = match last {
            b'\n' if after_cr => Last::LineEnd,
            b'\r' => Last::Cr,
            _ => Last::Other,
        };
    }

    /// Appends the end of data, and before it the CRLF that the last line may lack.
    pub fn finish(self, out: &mut Vec<u8>) {
        match self.last {
            Last::LineEnd => {}
            // A second CR would stand bare on the wire.
            Last::Cr => out.push(b'\n'),
            Last::Other => out.extend_from_slice(b"\r\n"),
        }
        out.extend_from_slice(b".\r\n");
    }
}

// CRLF, dot, CRLF.
const END_OCTETS: usize = 5;

#[cfg(test)]
mod stuffer_tests {
    use super::*;

    fn stuffed(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut stuffer, mut out) = (Stuffer::new(), Vec::new());
        for piece in pieces {
            stuffer.stuff(piece, &mut out);
        }
        stuffer.finish(&mut out);
        out
    }

    const CASES: [(&[u8], &[u8]); 11] = [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"..\r\n.x\r\n", b"...\r\n..x\r\n.\r\n"),
        (b"a.\r\n.\r\nb", b"a.\r\n..\r\nb\r\n.\r\n"),
        (b"\r\n\r\n.\r\n", b"\r\n\r\n..\r\n.\r\n"),
        (b"\xff\0.\r\n", b"\xff\0.\r\n.\r\n"),
        (b"a\n.\r\n", b"a\n..\r\n.\r\n"),
    ];

    #[test]
    fn each_leading_dot_is_doubled_and_the_end_is_a_line_of_its_own() {
        for (input, want) in CASES {
            assert_eq!(stuffed(&[input]), want, "{input:?}");
        }
    }

    #[test]
    fn the_pieces_do_not_matter() {
        for (input, want) in CASES {
            for at in 0..=input.len() {
                assert_eq!(stuffed(&[&input[..at], &input[at..]]), want, "{input:?} at {at}");
            }
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(stuffed(&bytes), want, "{input:?} by octets");
        }
    }
}
