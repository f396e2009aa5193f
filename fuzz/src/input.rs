//! The octets of a fuzzer, taken apart.
//!
//! What chooses stands in front, in single octets, and what is read by the code under test follows as it is: so a seed is
//! a few zeros before a real message, and a change of one octet is a change of one thing.

/// What is left of an input. Where it has run out it gives zeros and empty texts.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    #[must_use]
    pub fn new(octets: &'a [u8]) -> Input<'a> {
        Input(octets)
    }

    pub fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn flag(&mut self) -> bool {
        self.octet() % 2 == 1
    }

    pub fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.octet()))
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.octet()) % choices.len()]
    }

    /// Octets up to the next line feed, which is dropped.
    pub fn line(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|&octet| octet == b'\n');
        let line = &self.0[..end.unwrap_or(self.0.len())];
        self.0 = &self.0[end.map_or(self.0.len(), |end| end + 1)..];
        line
    }

    /// A line as far as it is UTF-8.
    pub fn text(&mut self) -> &'a str {
        let line = self.line();
        match std::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&line[..error.valid_up_to()]).unwrap_or_default(),
        }
    }

    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Places at which `length` octets are cut, the end included, as `seed` has it: between pieces of 1 to `most` octets.
#[must_use]
pub fn cuts(length: usize, seed: u64, most: usize) -> Vec<usize> {
    let (mut chance, mut at, mut places) = (seed, 0, Vec::new());
    while at < length {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let piece = 1 + usize::try_from(chance >> 33).unwrap_or(0) % most.max(1);
        at = (at + piece).min(length);
        places.push(at);
    }
    places
}

/// The octets as a message that a session has let through: every line ends in CRLF, and there is no other CR, LF or NUL.
#[must_use]
pub fn sound(octets: &[u8]) -> Vec<u8> {
    let mut sound = Vec::with_capacity(octets.len() + 16);
    for &octet in octets {
        match octet {
            b'\n' => sound.extend_from_slice(b"\r\n"),
            b'\r' | 0 => {}
            octet => sound.push(octet),
        }
    }
    sound
}
