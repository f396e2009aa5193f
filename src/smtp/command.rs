//! One command line in, one [`Command`] out, or the reply that says what is wrong with it.
//!
//! Strict where two servers might read a line differently: a path stands in angle brackets, its end is the first
//! `>` outside quotes, what follows is parameters that we announced or nothing. Lenient where there is one reading
//! only: letter case of keywords, spaces behind `FROM:` and `TO:`, between parameters and at the end of a line.
//! Addresses are kept letter by letter. Source routes (RFC 5321 §4.1.1.3) are refused rather than ignored: what
//! the client meant and where we would send it could differ.
//!
//! This file knows the grammar, not the session: whether a command may come now is asked elsewhere.

use crate::address::{Mailbox, ReversePath};
use crate::envelope::{BodyType, Notify, OriginalRecipient, RecipientDsn, Ret};
use crate::reply;
use crate::reply::Reply;
use crate::smtp::xtext;

/// A command that we understand.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Ehlo {
        name: String,
    },
    Helo {
        name: String,
    },
    Mail {
        sender: ReversePath,
        parameters: MailParameters,
    },
    Rcpt {
        recipient: Recipient,
        dsn: RecipientDsn,
    },
    Data,
    /// RFC 3207.
    StartTls,
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
    /// RFC 3030. `None` where the argument cannot be understood: then nobody knows how many octets of a message follow,
    /// and none of what follows may be read as a command.
    Bdat(Option<Chunk>),
}

/// The argument of BDAT (RFC 3030 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Octets that follow the command's CRLF, at most [`CHUNK_OCTETS_MAX`].
    pub size: u64,
    /// The message ends with it.
    pub last: bool,
}

/// The argument of RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    Mailbox(Mailbox),
    /// `<postmaster>` without a domain, which every server takes (RFC 5321 §4.5.1).
    Postmaster,
}

/// What may follow MAIL's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// RFC 1870, in octets; a number too large for us is the largest that we know.
    pub size: Option<u64>,
    /// RFC 6152.
    pub body: Option<BodyType>,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461 §4.3.
    pub ret: Option<Ret>,
    /// RFC 3461 §4.4, decoded.
    pub envid: Option<String>,
    /// RFC 8689.
    pub require_tls: bool,
}

/// Understands `line`, which has no CRLF.
///
/// # Errors
/// The 5xx to answer with.
pub fn parse(line: &[u8]) -> Result<Command, Reply> {
    let line = trim_end(line);
    if is_bdat(line) {
        return Ok(Command::Bdat(parse_chunk(&line[BDAT.len()..])));
    }
    let verb_end = line.iter().position(|&b| b == b' ').unwrap_or(line.len());
    let (verb, rest) = line.split_at(verb_end);
    let rest = trim_start(rest);
    match verb.to_ascii_uppercase().as_slice() {
        b"EHLO" => Ok(Command::Ehlo { name: parse_name(rest)? }),
        b"HELO" => Ok(Command::Helo { name: parse_name(rest)? }),
        b"MAIL" => parse_mail(rest),
        b"RCPT" => parse_rcpt(rest),
        b"DATA" => bare(rest, Command::Data),
        b"STARTTLS" => bare(rest, Command::StartTls),
        b"RSET" => bare(rest, Command::Rset),
        b"QUIT" => bare(rest, Command::Quit),
        // RFC 5321 §4.1.1.9: NOOP may have an argument, which means nothing.
        b"NOOP" => Ok(Command::Noop),
        b"HELP" => Ok(Command::Help),
        b"VRFY" if rest.is_empty() => Err(reply::BAD_SYNTAX),
        b"VRFY" => Ok(Command::Vrfy),
        verb if NOT_OFFERED.contains(&verb) => Err(reply::NOT_IMPLEMENTED),
        _ => Err(reply::UNKNOWN_COMMAND),
    }
}

/// Only the space separates (RFC 5321 §4.1.2, SP): what a tab does to another parser is not ours to guess.
fn trim_start(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|&&b| b == b' ').count()..]
}

fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.len() - text.iter().rev().take_while(|&&b| b == b' ').count()]
}

fn bare(rest: &[u8], command: Command) -> Result<Command, Reply> {
    if rest.is_empty() { Ok(command) } else { Err(reply::BAD_SYNTAX) }
}

/// The argument of EHLO and HELO. RFC 5321 §4.1.4 forbids to refuse mail over a name that is not the client's, and
/// real clients send underscores, single labels and bare addresses, so any printable ASCII is taken as long as it
/// can be echoed in a Received field without being quoted.
fn parse_name(text: &[u8]) -> Result<String, Reply> {
    let plain = |&b: &u8| b.is_ascii_graphic() && !b"<>()@;,\"\\".contains(&b);
    if text.is_empty() || text.len() > NAME_OCTETS_MAX || !text.iter().all(plain) {
        return Err(reply::BAD_HELO);
    }
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Whether `line`, or the part of it that can be read, is BDAT however its argument is set off: behind a tab, too, a
/// message may follow.
#[must_use]
pub fn is_bdat(line: &[u8]) -> bool {
    let Some((verb, rest)) = line.split_at_checked(BDAT.len()) else { return false };
    verb.eq_ignore_ascii_case(BDAT) && !rest.first().is_some_and(u8::is_ascii_alphanumeric)
}

/// Strict in all but letter case and spaces: whoever reads another number here than we do takes text for commands.
fn parse_chunk(text: &[u8]) -> Option<Chunk> {
    let mut words = text.strip_prefix(b" ")?.split(|&b| b == b' ').filter(|word| !word.is_empty());
    let digits = words.next().filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let size = std::str::from_utf8(digits).ok()?.parse().ok().filter(|&size| size <= CHUNK_OCTETS_MAX)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return None,
    };
    if words.next().is_some() { None } else { Some(Chunk { size, last }) }
}

fn parse_mail(rest: &[u8]) -> Result<Command, Reply> {
    let (path, parameters) = split_path(rest, b"FROM:").ok_or(reply::BAD_SENDER)?;
    let sender = ReversePath::parse(path).map_err(|_| reply::BAD_SENDER)?;
    let parameters = parse_mail_parameters(parameters)?;
    if !parameters.smtputf8 && !path.is_ascii() {
        return Err(reply::UTF8_NOT_ANNOUNCED);
    }
    Ok(Command::Mail { sender, parameters })
}

fn parse_rcpt(rest: &[u8]) -> Result<Command, Reply> {
    let (path, parameters) = split_path(rest, b"TO:").ok_or(reply::BAD_RECIPIENT)?;
    let recipient = if path.eq_ignore_ascii_case("postmaster") {
        Recipient::Postmaster
    } else {
        Recipient::Mailbox(Mailbox::parse(path).map_err(|_| reply::BAD_RECIPIENT)?)
    };
    Ok(Command::Rcpt { recipient, dsn: parse_rcpt_parameters(parameters)? })
}

/// Splits `FROM:<path> parameters` into what stands between the brackets and what follows them.
fn split_path<'a>(rest: &'a [u8], keyword: &[u8]) -> Option<(&'a str, &'a [u8])> {
    let (head, tail) = rest.split_at_checked(keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let path = trim_start(tail).strip_prefix(b"<")?;
    let end = end_of_path(path)?;
    let parameters = &path[end + 1..];
    // Nothing, or a space and parameters: `<a@b>SIZE=1` has two readings.
    if !matches!(parameters.first(), None | Some(b' ')) {
        return None;
    }
    Some((std::str::from_utf8(&path[..end]).ok()?, parameters))
}

/// The position of the `>` that ends the path: in a quoted string it means nothing (RFC 5321 §4.1.2).
fn end_of_path(path: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, &byte) in path.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Keyword and value of each parameter.
fn parameters(text: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    text.split(|&b| b == b' ').filter(|word| !word.is_empty()).map(|word| match word.iter().position(|&b| b == b'=') {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    })
}

fn parse_mail_parameters(text: &[u8]) -> Result<MailParameters, Reply> {
    let mut parameters = MailParameters::default();
    for (keyword, value) in self::parameters(text) {
        match keyword.to_ascii_uppercase().as_slice() {
            b"SIZE" if parameters.size.is_none() => parameters.size = Some(parse_size(value)?),
            b"BODY" if parameters.body.is_none() => parameters.body = Some(parse_body(value)?),
            b"SMTPUTF8" if !parameters.smtputf8 && value.is_none() => parameters.smtputf8 = true,
            b"SMTPUTF8" if !parameters.smtputf8 => return Err(reply::BAD_SYNTAX),
            b"RET" if parameters.ret.is_none() => parameters.ret = Some(parse_ret(value)?),
            b"ENVID" if parameters.envid.is_none() => parameters.envid = Some(parse_envid(value)?),
            b"REQUIRETLS" if !parameters.require_tls && value.is_none() => parameters.require_tls = true,
            b"REQUIRETLS" if !parameters.require_tls => return Err(reply::BAD_SYNTAX),
            _ => return Err(reply::UNKNOWN_PARAMETER),
        }
    }
    Ok(parameters)
}

fn parse_rcpt_parameters(text: &[u8]) -> Result<RecipientDsn, Reply> {
    let mut dsn = RecipientDsn::default();
    for (keyword, value) in parameters(text) {
        match keyword.to_ascii_uppercase().as_slice() {
            b"NOTIFY" if dsn.notify.is_none() => dsn.notify = Some(parse_notify(value)?),
            b"ORCPT" if dsn.orcpt.is_none() => dsn.orcpt = Some(parse_orcpt(value)?),
            _ => return Err(reply::UNKNOWN_PARAMETER),
        }
    }
    Ok(dsn)
}

fn parse_ret(value: Option<&[u8]>) -> Result<Ret, Reply> {
    value.and_then(|v| str::from_utf8(v).ok()).and_then(Ret::parse).ok_or(reply::BAD_SYNTAX)
}

fn parse_envid(value: Option<&[u8]>) -> Result<String, Reply> {
    value.filter(|v| v.len() <= ENVID_OCTETS_MAX).and_then(xtext::decode).ok_or(reply::BAD_SYNTAX)
}

fn parse_notify(value: Option<&[u8]>) -> Result<Notify, Reply> {
    value.and_then(|v| str::from_utf8(v).ok()).and_then(Notify::parse).ok_or(reply::BAD_SYNTAX)
}

/// `rfc822;xtext`. RFC 6533's raw UTF-8 is refused: its ASCII form says the same, and is what clients send.
fn parse_orcpt(value: Option<&[u8]>) -> Result<OriginalRecipient, Reply> {
    let value = value.filter(|v| v.len() <= ORCPT_OCTETS_MAX).ok_or(reply::BAD_SYNTAX)?;
    let at = value.iter().position(|&b| b == b';').ok_or(reply::BAD_SYNTAX)?;
    let (kind, address) = (&value[..at], &value[at + 1..]);
    let is_atom = !kind.is_empty() && kind.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'-');
    let address = xtext::decode(address).filter(|_| is_atom).ok_or(reply::BAD_SYNTAX)?;
    Ok(OriginalRecipient { address_type: String::from_utf8_lossy(kind).into_owned(), address })
}

/// RFC 1870 §3 allows 20 digits, more than fit: a number beyond ours is too large for every limit anyway.
fn parse_size(value: Option<&[u8]>) -> Result<u64, Reply> {
    let digits = value.filter(|v| !v.is_empty() && v.iter().all(u8::is_ascii_digit)).ok_or(reply::BAD_SYNTAX)?;
    let add = |size: u64, digit: &u8| size.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Ok(digits.iter().fold(0, add))
}

fn parse_body(value: Option<&[u8]>) -> Result<BodyType, Reply> {
    match value.unwrap_or_default().to_ascii_uppercase().as_slice() {
        b"7BIT" => Ok(BodyType::SevenBit),
        b"8BITMIME" => Ok(BodyType::EightBitMime),
        _ => Err(reply::BAD_SYNTAX),
    }
}

const BDAT: &[u8] = b"BDAT";

/// A size beyond this is negative, or another number, to whoever keeps it in 63 bits. Nobody means it.
pub const CHUNK_OCTETS_MAX: u64 = i64::MAX as u64;

/// RFC 3461 §4.4.
const ENVID_OCTETS_MAX: usize = 100;
/// RFC 3461 §4.2.
const ORCPT_OCTETS_MAX: usize = 500;
/// RFC 5321 §4.5.3.1.2, the length of a domain.
const NAME_OCTETS_MAX: usize = 255;

/// Verbs that exist elsewhere and not here: 502 rather than 500 (RFC 5321 §4.2.4).
const NOT_OFFERED: &[&[u8]] = &[
    b"ATRN",
    b"AUTH",
    b"BURL",
    b"ETRN",
    b"EXPN",
    b"LHLO",
    b"SAML",
    b"SEND",
    b"SOML",
    b"TURN",
    b"XCLIENT",
    b"XFORWARD",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(line: &str) -> (String, MailParameters) {
        match parse(line.as_bytes()) {
            Ok(Command::Mail { sender, parameters }) => (sender.as_str().to_owned(), parameters),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &[u8], code: u16) {
        match parse(line) {
            Err(reply) => assert_eq!(reply.code, code, "{}: {reply}", line.escape_ascii()),
            Ok(command) => panic!("{}: {command:?}", line.escape_ascii()),
        }
    }

    #[test]
    fn verbs_in_any_case_with_trailing_spaces() {
        for (line, want) in [
            ("DATA", Command::Data),
            ("data  ", Command::Data),
            ("rSeT", Command::Rset),
            ("QUIT ", Command::Quit),
            ("NOOP <whatever>", Command::Noop),
            ("HELP DATA", Command::Help),
            ("VRFY postmaster", Command::Vrfy),
            ("BDAT 10 LAST", Command::Bdat(Some(Chunk { size: 10, last: true }))),
            ("bdat  0010  last ", Command::Bdat(Some(Chunk { size: 10, last: true }))),
            ("Bdat 0", Command::Bdat(Some(Chunk { size: 0, last: false }))),
            ("BDAT 9223372036854775807", Command::Bdat(Some(Chunk { size: CHUNK_OCTETS_MAX, last: false }))),
            ("ehlo a", Command::Ehlo { name: "a".into() }),
            ("HELO  [192.0.2.1] ", Command::Helo { name: "[192.0.2.1]".into() }),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(want), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused_by_kind() {
        for (line, code) in [
            (&b""[..], 500),
            (b" NOOP", 500),
            (b"NOOPS", 500),
            (b"MAIL\tFROM:<a@b>", 500),
            (b"\xff\xfe", 500),
            (b"NOOP\t", 500),
            (b"DATA now", 501),
            (b"QUIT x", 501),
            (b"RSET x", 501),
            (b"VRFY", 501),
            (b"EHLO", 501),
            (b"AUTH PLAIN AGEAYg==", 502),
            (b"starttls now", 501),
            (b"EXPN list", 502),
            (b"ETRN #,'x", 502),
            (b"XCLIENT ADDR=1.2.3.4", 502),
            (b"LHLO a", 502),
        ] {
            refused(line, code);
        }
    }

    #[test]
    fn a_chunk_of_unclear_size_is_never_an_ordinary_error() {
        for argument in [
            "",
            " ",
            " -1",
            " +5",
            " 0x10",
            " 5,",
            " 5.0",
            " \u{664}",
            " 9223372036854775808",
            " 18446744073709551616",
            " 1000000000000000000000000000000",
            " 5 LASTX",
            " 5 LAST LAST",
            " 5 6",
            " LAST",
            " LAST 5",
            " 5LAST",
            "\t5",
            " 5\tLAST",
            ":5",
        ] {
            assert_eq!(parse(format!("bdat{argument}").as_bytes()), Ok(Command::Bdat(None)), "{argument}");
        }
        refused(b"BDAT5", 500);
        refused(b"BDATA 5", 500);
    }

    #[test]
    fn a_hello_name_can_be_echoed_in_a_header_field() {
        for name in ["a", "my_host", "192.0.2.1", "[IPv6:::1]", "x.y-z.example", "*", &"n".repeat(255)] {
            assert_eq!(parse(format!("EHLO {name}").as_bytes()), Ok(Command::Ehlo { name: name.into() }));
        }
        for name in ["a b", "a(b)", "<a>", "a;b", "a\"b", "a\\b", "a@b", "a,b", "h\u{f4}te", &"n".repeat(256)] {
            refused(format!("EHLO {name}").as_bytes(), 501);
        }
        refused(b"EHLO a\x1b[31m", 501);
        refused(b"EHLO a\tb", 501);
    }

    #[test]
    fn paths_are_kept_letter_by_letter() {
        for (line, want) in [
            ("MAIL FROM:<>", ""),
            ("MAIL FROM:<A.b@Example.ORG>", "A.b@Example.ORG"),
            ("mail from: <a@b>  ", "a@b"),
            ("MAIL  FROM:<a@b>", "a@b"),
            ("MAIL FROM:<\"a>b\"@d>", "\"a>b\"@d"),
            ("MAIL FROM:<\"foo@psres.net> ORCPT=x\"@d>", "\"foo@psres.net> ORCPT=x\"@d"),
            ("MAIL FROM:<\"a\\\"> \"@d>", "\"a\\\"> \"@d"),
            ("MAIL FROM:<${run{/bin/id}}@d>", "${run{/bin/id}}@d"),
            ("MAIL FROM:<u@[IPv6:2001:db8::1]>", "u@[IPv6:2001:db8::1]"),
        ] {
            assert_eq!(mail(line), (want.to_owned(), MailParameters::default()), "{line}");
        }
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        for path in [
            "",
            "a@b",
            "<a@b",
            "a@b>",
            "<<a@b>>",
            "<a@b>x",
            "<a@b>SIZE=1",
            "<a@b><c@d>",
            "<@a,@b:u@d>",
            "<@a:u@d>",
            "<\"a@b>",
            "<a b@d>",
            "<a@evil x>",
            "<\"a@evil x\">",
            "<u@good.com(x)evil.com>",
            "<u@d.>",
            "<u>",
            "<;id;@d>",
            "<a\t@d>",
            "\t<a@d>",
            "<a@d>\t",
            "< a@d>",
            "Name <a@d>",
        ] {
            refused(format!("MAIL FROM:{path}").as_bytes(), 501);
            refused(format!("RCPT TO:{path}").as_bytes(), 501);
        }
        refused(b"MAIL FROM :<a@b>", 501);
        refused(b"MAIL <a@b>", 501);
        refused(b"RCPT FROM:<a@b>", 501);
        refused(b"MAIL FROM:<a\xff@b> SMTPUTF8", 501);
        refused(b"RCPT TO:<>", 501);
        refused(b"RCPT TO:<\"postmaster\">", 501);
    }

    #[test]
    fn the_bare_postmaster_is_a_recipient_of_its_own() {
        for line in ["RCPT TO:<postmaster>", "rcpt to: <PostMaster>"] {
            let want = Command::Rcpt { recipient: Recipient::Postmaster, dsn: RecipientDsn::default() };
            assert_eq!(parse(line.as_bytes()), Ok(want));
        }
    }

    #[test]
    fn parameters_that_we_announce() {
        let (_, parameters) = mail("MAIL FROM:<a@b>  size=123  BODY=8bitmime SMTPUTF8 ");
        let want = MailParameters {
            size: Some(123),
            body: Some(BodyType::EightBitMime),
            smtputf8: true,
            ..MailParameters::default()
        };
        assert_eq!(parameters, want);
        assert_eq!(mail("MAIL FROM:<> BODY=7BIT").1.body, Some(BodyType::SevenBit));
        for (size, want) in [
            ("0", 0),
            ("00018", 18),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551616", u64::MAX),
            ("1000000000000000000000000000000", u64::MAX),
        ] {
            assert_eq!(mail(&format!("MAIL FROM:<> SIZE={size}")).1.size, Some(want));
        }
    }

    #[test]
    fn parameters_that_we_do_not() {
        for (parameters, code) in [
            ("SIZE", 501),
            ("SIZE=", 501),
            ("SIZE=-1", 501),
            ("SIZE=0x10", 501),
            ("SIZE=1=2", 501),
            ("BODY=BINARYMIME", 501),
            ("BODY", 501),
            ("SMTPUTF8=yes", 501),
            ("SIZE=1 SIZE=1", 555),
            ("BODY=7BIT BODY=8BITMIME", 555),
            ("SMTPUTF8 SMTPUTF8", 555),
            ("AUTH=x+0D+0Ay", 555),
            ("RET", 501),
            ("RET=ALL", 501),
            ("RET=FULL RET=HDRS", 555),
            ("ENVID=", 501),
            ("ENVID=a=b", 501),
            ("ENVID=a+0Ab", 501),
            ("ENVID=x ENVID=x", 555),
            ("REQUIRETLS=1", 501),
            ("REQUIRETLS REQUIRETLS", 555),
            ("NOTIFY=NEVER", 555),
            ("ORCPT=rfc822;a@b", 555),
            ("=", 555),
            ("SIZE =1", 501),
            ("<x>", 555),
        ] {
            refused(format!("MAIL FROM:<a@b> {parameters}").as_bytes(), code);
        }
        for (parameters, code) in [
            ("ORCPT=rfc822;a+0Ab", 501),
            ("ORCPT=rfc822;a+0D+0ASTARTTLS", 501),
            ("ORCPT=a@b", 501),
            ("ORCPT=;a@b", 501),
            ("ORCPT=rfc822;", 501),
            ("ORCPT=rf c822;a", 501),
            ("ORCPT=rfc822;é", 501),
            ("ORCPT", 501),
            ("ORCPT=rfc822;a ORCPT=rfc822;a", 555),
            ("NOTIFY", 501),
            ("NOTIFY=", 501),
            ("NOTIFY=NEVER,FAILURE", 501),
            ("NOTIFY=SOMETIMES", 501),
            ("NOTIFY=NEVER NOTIFY=NEVER", 555),
            ("RET=FULL", 555),
            ("SIZE=1", 555),
        ] {
            refused(format!("RCPT TO:<a@b> {parameters}").as_bytes(), code);
        }
    }

    #[test]
    fn what_is_asked_about_notifications() {
        let (_, parameters) = mail("MAIL FROM:<a@b> ret=hdrs ENVID=QQ+2B314159 REQUIRETLS");
        assert_eq!(parameters.ret, Some(Ret::Headers));
        assert_eq!(parameters.envid.as_deref(), Some("QQ+314159"));
        assert!(parameters.require_tls);
        let Ok(Command::Rcpt { dsn, .. }) = parse(b"RCPT TO:<a@b> NOTIFY=failure,DELAY orcpt=rfc822;Bob+2Bx@b") else {
            panic!("it is a RCPT");
        };
        assert_eq!(dsn.notify, Some(Notify::On { success: false, failure: true, delay: true }));
        let orcpt = OriginalRecipient { address_type: "rfc822".into(), address: "Bob+x@b".into() };
        assert_eq!(dsn.orcpt, Some(orcpt));
    }

    #[test]
    fn notification_parameters_at_their_limits_and_one_past_them() {
        assert!(parse(format!("MAIL FROM:<> ENVID={}", "x".repeat(100)).as_bytes()).is_ok());
        refused(format!("MAIL FROM:<> ENVID={}", "x".repeat(101)).as_bytes(), 501);
        assert!(parse(format!("RCPT TO:<a@b> ORCPT=rfc822;{}", "x".repeat(493)).as_bytes()).is_ok());
        refused(format!("RCPT TO:<a@b> ORCPT=rfc822;{}", "x".repeat(494)).as_bytes(), 501);
    }

    #[test]
    fn utf8_needs_its_parameter() {
        refused("MAIL FROM:<réseau@b>".as_bytes(), 553);
        assert!(mail("MAIL FROM:<réseau@b> SMTPUTF8").1.smtputf8);
        // A recipient is checked against its transaction, by the session.
        assert!(parse("RCPT TO:<réseau@b>".as_bytes()).is_ok());
    }
}
