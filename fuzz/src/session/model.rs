//! Where commands, messages and chunks end, by the plainest reading of the RFCs, octet by octet.

use pointsman::smtp::line::LINE_OCTETS_MAX;

use super::conductor::Told;

/// What is known from the octets and from the answers' codes.
#[derive(Debug, Default)]
pub(super) struct Model {
    place: Place,
    /// The line, or the message with its dots, so far.
    text: Vec<u8>,
    /// The chunks of a message so far.
    chunks: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Line,
    /// In a line whose fault was told: its end is awaited.
    BadLine,
    Message,
    Chunk {
        left: u64,
    },
}

impl Model {
    /// A message has just been asked for.
    pub(super) fn waits(&self) -> bool {
        self.place == Place::Message && self.text.is_empty()
    }

    /// Takes an octet; how many replies are due.
    pub(super) fn octet(&mut self, octet: u8) -> usize {
        let after_cr = self.text.last() == Some(&b'\r');
        if !matches!(self.place, Place::Chunk { .. }) {
            self.text.push(octet);
        }
        match self.place {
            // RFC 5321 §2.3.8: CRLF ends a line, and neither may stand alone.
            Place::Line if octet == b'\n' && after_cr => self.line_is_whole(),
            Place::Line if after_cr || matches!(octet, b'\n' | 0) => self.fault(octet),
            Place::Line if self.text.len() == LINE_OCTETS_MAX - 1 && octet != b'\r' => self.fault(octet),
            Place::Line => 0,
            Place::BadLine if octet == b'\n' && after_cr => {
                self.text.clear();
                self.place = Place::Line;
                0
            }
            Place::BadLine => 0,
            // RFC 5321 §4.1.1.4.
            Place::Message => usize::from(self.text == b".\r\n" || self.text.ends_with(b"\r\n.\r\n")),
            Place::Chunk { left } => {
                self.chunks.push(octet);
                self.place = if left == 1 { Place::Line } else { Place::Chunk { left: left - 1 } };
                usize::from(left == 1)
            }
        }
    }

    fn fault(&mut self, octet: u8) -> usize {
        self.place = Place::BadLine;
        self.text = vec![octet];
        1
    }

    fn line_is_whole(&mut self) -> usize {
        let line = String::from_utf8_lossy(&self.text).trim_end_matches([' ', '\r', '\n']).to_ascii_uppercase();
        self.text.clear();
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let is_bdat = !line.starts_with(' ') && words.next() == Some("BDAT");
        let size = is_bdat.then(|| words.next()?.parse::<u64>().ok()).flatten();
        match size {
            // RFC 3030 §2: so many octets follow, and the answer comes behind them.
            Some(left) if left > 0 && !line.contains('+') => {
                self.place = Place::Chunk { left };
                0
            }
            Some(_) | None => 1,
        }
    }

    /// Hears the code of the reply to the last octet, and what the conductor was told.
    pub(super) fn heard(&mut self, code: Option<u16>, told: &[(usize, Told)]) {
        for (_, told) in told {
            match told {
                Told::Message(_, octets) if self.place == Place::Message => assert_eq!(*octets, undotted(&self.text)),
                Told::Message(_, octets) => assert_eq!(*octets, self.chunks),
                Told::Mail(_) | Told::Reset(_) => {}
                Told::Hello(..) | Told::Tls | Told::Recipient(_) | Told::Data(_) | Told::Close(_) => continue,
            }
            self.chunks.clear();
        }
        match (code, self.place) {
            (Some(354), Place::Line) => self.place = Place::Message,
            (Some(code), Place::Message) => {
                assert_ne!(code, 354);
                self.place = Place::Line;
            }
            (_, Place::Line | Place::BadLine | Place::Message | Place::Chunk { .. }) => return,
        }
        self.text.clear();
    }
}

/// RFC 5321 §4.5.2: a dot that begins a line is dropped, and a lone one is the end.
fn undotted(text: &[u8]) -> Vec<u8> {
    let text = text.strip_suffix(b".\r\n").expect("a message ends in a dot");
    let mut message = Vec::new();
    for line in text.split_inclusive(|&octet| octet == b'\n') {
        message.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    message
}
