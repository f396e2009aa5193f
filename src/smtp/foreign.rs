//! Peers that came to the wrong port: their first octets tell.
//!
//! The point is not politeness. A browser can be made to post a form to port 25 whose body is SMTP; read line by
//! line, its header is some errors and its body a session.

/// How the first octets of a session resemble another protocol.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// It is one.
    Same,
    /// It may become one. More input is needed.
    SoFar,
    /// It is none that we know.
    None,
}

/// Compares `input`, all that a session has brought so far.
pub fn likeness(input: &[u8]) -> Likeness {
    if OPENINGS.iter().any(|opening| input.starts_with(opening)) {
        return Likeness::Same;
    }
    if OPENINGS.iter().any(|opening| opening.starts_with(input)) { Likeness::SoFar } else { Likeness::None }
}

/// A browser that is made to post a form here sends SMTP commands as its body; a TLS or PROXY peer is misconfigured.
const OPENINGS: &[&[u8]] = &[
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PRI * HTTP/",
    b"SSH-",
    b"PROXY ",
    // The PROXY protocol's second version.
    b"\r\n\r\n\0\r\nQUIT\n",
    // A TLS record with a handshake, and RDP's first packet.
    b"\x16\x03",
    b"\x03\x00",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_known_by_their_first_octets() {
        for input in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PROXY TCP4", b"\r\n\r\n\0\r\nQUIT\n\x21", b"SSH-2.0"]
        {
            assert_eq!(likeness(input), Likeness::Same, "{}", input.escape_ascii());
        }
        for input in [&b""[..], b"H", b"HE", b"P", b"\r\n", b"\x16"] {
            assert_eq!(likeness(input), Likeness::SoFar, "{}", input.escape_ascii());
        }
        for input in [&b"HEL"[..], b"EHLO a", b"QUIT", b"\r\nNOOP", b"get /"] {
            assert_eq!(likeness(input), Likeness::None, "{}", input.escape_ascii());
        }
    }
}
