//! A server's words: however they are cut, one line more or less makes no other reply, and only a yes to the final dot
//! behind a sent message is a delivery.

use pointsman::address::{Mailbox, ReversePath};
use pointsman::envelope::BodyType;
use pointsman::relay::outcome::{self, Outcome, Us};
use pointsman::reply::Reply;
use pointsman::smtp::client::{Answer, Capabilities, Dsn, Order, Session, Stage, Step, Transaction};
use pointsman::smtp::reply_reader::{
    BadReply, REPLY_LINE_OCTETS_MAX, REPLY_LINES_MAX, REPLY_READ_OCTETS, REPLY_TEXT_OCTETS_MAX, ReplyReader,
};

use super::input::{Input, cuts};

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let capabilities = Capabilities {
        pipelining: input.flag(),
        eight_bit_mime: true,
        smtputf8: true,
        chunking: input.flag(),
        dsn: true,
        require_tls: false,
        size: true,
        size_max: None,
    };
    let (seed, most) = (input.number(), 16 * (1 + usize::from(input.octet())));
    let stream = input.rest();

    let (replies, fault) = read(stream, &cuts(stream.len(), seed, most.min(REPLY_READ_OCTETS)));
    let by_octet: Vec<usize> = (1..=stream.len()).collect();
    assert_eq!(read(stream, &by_octet), (replies.clone(), fault));
    let (codes, sound) = plainly(stream);
    assert_eq!(replies.iter().map(|reply| reply.code).collect::<Vec<_>>(), codes, "one reply for each last line");
    assert_eq!(fault.is_none(), sound);
    for reply in &replies {
        assert!((200..600).contains(&reply.code) && reply.text.len() <= 3 * REPLY_TEXT_OCTETS_MAX);
        assert!(!reply.text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')), "{reply}");
        assert!(reply.enhanced.is_none_or(|enhanced| u16::from(enhanced.0) == reply.code / 100), "{reply}");
    }
    let mut session = Session::new(capabilities);
    let mut rest = replies.into_iter();
    // Sessions are used again, as long as they may be.
    while lead(&mut session, &mut rest) {}
}

/// What was read, and the fault that ended it.
fn read(stream: &[u8], places: &[usize]) -> (Vec<Reply>, Option<BadReply>) {
    let (mut reader, mut replies, mut from) = (ReplyReader::default(), Vec::new(), 0);
    for &to in places {
        let space = reader.space();
        space.extend_from_slice(&stream[from..to]);
        assert!(space.len() <= REPLY_LINE_OCTETS_MAX + REPLY_READ_OCTETS, "what is kept is bounded");
        from = to;
        loop {
            match reader.next_reply() {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(fault) => return (replies, Some(fault)),
            }
        }
    }
    (replies, None)
}

/// The codes of the replies by RFC 5321 §4.2 read plainly, and whether that was all.
fn plainly(stream: &[u8]) -> (Vec<u16>, bool) {
    let (mut codes, mut open, mut lines) = (Vec::new(), None, 0);
    for line in stream.split_inclusive(|&octet| octet == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else { return (codes, line.len() <= REPLY_LINE_OCTETS_MAX) };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let code = text.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
        let code = code.filter(|code| (200..600).contains(code) && text[0] != b'+');
        let last = match text.get(3) {
            None | Some(b' ') => Some(true),
            Some(b'-') => Some(false),
            Some(_) => None,
        };
        let (Some(code), Some(last)) = (code, last) else { return (codes, false) };
        lines += 1;
        if line.len() > REPLY_LINE_OCTETS_MAX || open.is_some_and(|open| open != code) || lines > REPLY_LINES_MAX {
            return (codes, false);
        }
        open = Some(code);
        if last {
            codes.push(code);
            (open, lines) = (None, 0);
        }
    }
    (codes, true)
}

/// Leads a transaction; whether the session may be used again.
fn lead(session: &mut Session, replies: &mut impl Iterator<Item = Reply>) -> bool {
    let sender = ReversePath::parse("client@example.org").expect("it is an address");
    let recipient = Mailbox::parse("case@crm.example").expect("it is an address");
    let body = BodyType::SevenBit;
    let order = Order {
        sender: &sender,
        recipient: &recipient,
        body,
        utf8_header: false,
        require_tls: false,
        size: 7,
        dsn: Dsn::default(),
    };
    let (mut out, mut heard, mut sent) = (Vec::new(), Vec::new(), 0);
    let mut transaction = Transaction::begin(session, &order, &mut out).expect("this server takes everything");
    for reply in replies {
        heard.push(reply.code);
        assert!(heard.len() <= COMMANDS_MAX, "{heard:?}");
        match transaction.reply(session, reply, &mut out) {
            Step::Wait(_) => {}
            Step::SendBody(_) => {
                sent += 1;
                let yes = heard.iter().filter(|code| (200..300).contains(*code)).count();
                assert!(sent == 1 && yes >= 2, "MAIL and RCPT were taken: {heard:?}");
            }
            Step::Done(verdict, reuse) => {
                let positive = matches!(&verdict.answer, Answer::Reply(reply) if reply.is_positive());
                let delivered = outcome::read(&verdict, Us { address: None }) == Outcome::Delivered;
                assert_eq!(delivered, positive && verdict.stage == Stage::Dot, "{verdict:?}");
                assert!(!delivered || (sent == 1 && heard.last().is_some_and(|code| (200..300).contains(code))));
                assert!(out.ends_with(b"\r\n"));
                return reuse == pointsman::smtp::client::Reuse::Keep;
            }
        }
    }
    false
}

/// RSET, MAIL, RCPT, DATA and the dot.
const COMMANDS_MAX: usize = 5;
