//! The client's side of a session after EHLO: replies are read, one transaction at a time is led.
//!
//! [`Transaction`] is a machine that is handed each reply and says
//! what comes next: wait, send the body, or done. With PIPELINING the whole envelope and DATA leave in one write,
//! and the machine then reads one reply for each command, whatever the first ones said. With CHUNKING, where it is
//! wanted, the message leaves in one chunk behind an accepted RCPT, in as many round trips and without dots.
//!
//! A reply to no command means that the two sides no longer talk about the same thing: the session is not used again.
//!
//! Left out: banner, EHLO, STARTTLS and AUTH (`relay::dial`), several recipients in a transaction.

use std::collections::VecDeque;
use std::fmt;

use crate::address::{Mailbox, ReversePath};
use crate::envelope::{BodyType, RecipientDsn, Ret};
use crate::reply::Reply;
use crate::smtp::xtext;

/// What the server announced in its answer to EHLO, as far as we make use of it. After HELO: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub pipelining: bool,
    pub eight_bit_mime: bool,
    pub smtputf8: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 8689. Counts inside TLS only.
    pub require_tls: bool,
    /// SIZE was announced.
    pub size: bool,
    /// The largest message that it takes, in octets; `None` where it names no limit.
    pub size_max: Option<u64>,
}

/// Where in a session something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Connect,
    Banner,
    Ehlo,
    /// STARTTLS, the handshake, and the first words inside it.
    Tls,
    /// AUTH, where the route has a user.
    Auth,
    /// RSET before a further transaction, too: it belongs to the transaction that it opens.
    Mail,
    Rcpt,
    Data,
    /// While the message is sent.
    Body,
    /// After the final dot.
    Dot,
}

impl Stage {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Connect => "connect",
            Stage::Banner => "banner",
            Stage::Ehlo => "ehlo",
            Stage::Tls => "tls",
            Stage::Auth => "auth",
            Stage::Mail => "mail",
            Stage::Rcpt => "rcpt",
            Stage::Data => "data",
            Stage::Body => "body",
            Stage::Dot => "dot",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a try to hand a leg over ended, in the remote's words or in ours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    pub stage: Stage,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The reply that decided. Positive only at [`Stage::Dot`], and for a probe at [`Stage::Rcpt`].
    Reply(Reply),
    /// The connection broke: our error.
    Lost(String),
    /// What came is no reply, or not one to what was asked.
    Garbled(&'static str),
    /// No answer within the stage's time.
    Timeout,
    /// No connection came about: our error.
    Connect(String),
    Tls(String),
    /// The message needs SMTPUTF8, which the server does not announce (RFC 6531 §3.4). Nothing was sent.
    Smtputf8Missing,
    /// RFC 8689 §4.2.1: the message needs verified TLS and a server that offers REQUIRETLS. Nothing was sent.
    RequireTls(TlsLack),
    /// The message is larger than the server's announced limit, in octets (RFC 1870 §6). Nothing was sent.
    TooLarge {
        limit: u64,
    },
}

/// What a way out has not that REQUIRETLS needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsLack {
    /// The server does not offer REQUIRETLS, and so would not keep the promise.
    Extension,
    /// The route says `tls = "off"`.
    Off,
    /// DNS named the host, and nobody vouches for what DNS said.
    Host,
    /// TLS with a verified certificate did not come about this time: our error.
    Session(String),
}

/// One message for one recipient, as MAIL and RCPT will say it.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    pub sender: &'a ReversePath,
    pub recipient: &'a Mailbox,
    pub body: BodyType,
    /// Header fields that are UTF-8. Addresses speak for themselves.
    pub utf8_header: bool,
    /// RFC 8689: REQUIRETLS is passed on where it is offered.
    pub require_tls: bool,
    /// BDAT is wanted, where it is announced.
    pub chunk: bool,
    /// Octets of the message before dot-stuffing.
    pub size: u64,
    /// What is passed on about notifications, where the server knows them.
    pub dsn: Dsn<'a>,
}

/// The parameters of RFC 3461.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dsn<'a> {
    pub ret: Option<Ret>,
    pub envid: Option<&'a str>,
    pub asked: Option<&'a RecipientDsn>,
}

/// What outlives a transaction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Session {
    pub capabilities: Capabilities,
    /// The last transaction was left open by a refusal after MAIL.
    needs_reset: bool,
}

impl Session {
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Session {
        Session { capabilities, needs_reset: false }
    }
}

/// A transaction under way.
#[derive(Debug)]
pub struct Transaction {
    /// Whose reply is awaited.
    awaited: Command,
    pipelined: bool,
    /// `Some`: the message goes in one chunk of this size, not by DATA.
    chunk: Option<u64>,
    /// Without PIPELINING: the commands that wait for their turn. Else empty.
    held: VecDeque<Vec<u8>>,
    /// MAIL was accepted, so that the server holds a transaction.
    open: bool,
    recipient_taken: bool,
    /// The reply that refused; what still comes is read and not believed.
    refused: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Rset,
    Mail,
    Rcpt,
    Data,
    /// A dot without a message, because DATA was accepted and RCPT was not.
    LoneDot,
    Dot,
}

impl Command {
    fn stage(self) -> Stage {
        match self {
            Command::Rset | Command::Mail => Stage::Mail,
            Command::Rcpt => Stage::Rcpt,
            Command::Data => Stage::Data,
            Command::LoneDot | Command::Dot => Stage::Dot,
        }
    }
}

/// What the machine asks for next. What it wrote to `out` is sent first.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Read a reply; this stage's time runs.
    Wait(Stage),
    /// Send the message, then read a reply.
    SendBody(Framing),
    /// Over. The session may be used again, unless `Close`.
    Done(Verdict, Reuse),
}

/// How a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With added dots and the final one.
    Dots,
    /// As it stands, which must be exactly so many octets.
    Chunk { octets: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Keep,
    Close,
}

impl Transaction {
    /// Begins a transaction and appends its first command or commands to `out`.
    ///
    /// An error means that this server cannot take the message; nothing was written, the session is unharmed.
    pub fn begin(session: &Session, order: &Order<'_>, out: &mut Vec<u8>) -> Result<Transaction, Verdict> {
        let capabilities = &session.capabilities;
        // RFC 6531 §3.4: without SMTPUTF8 no such message may be sent. A U-label domain alone is no obstacle:
        // its A-label form is the same domain.
        let utf8_local = |mailbox: &Mailbox| !mailbox.local().is_ascii();
        let utf8 = order.utf8_header || utf8_local(order.recipient) || order.sender.mailbox().is_some_and(utf8_local);
        if utf8 && !capabilities.smtputf8 {
            return Err(Verdict { stage: Stage::Mail, answer: Answer::Smtputf8Missing });
        }
        // RFC 8689 §4.2.1. Whether the session is verified is for the one to say who opened it.
        let may_fall_back = *order.sender == ReversePath::Null;
        if order.require_tls && !capabilities.require_tls && !may_fall_back {
            return Err(Verdict { stage: Stage::Mail, answer: Answer::RequireTls(TlsLack::Extension) });
        }
        if let Some(limit) = capabilities.size_max.filter(|&limit| order.size > limit) {
            return Err(Verdict { stage: Stage::Mail, answer: Answer::TooLarge { limit } });
        }

        let needs_smtputf8 = utf8 || !(order.recipient.is_ascii() && order.sender.as_str().is_ascii());
        let mut transaction = Transaction {
            awaited: if session.needs_reset { Command::Rset } else { Command::Mail },
            pipelined: capabilities.pipelining,
            chunk: (capabilities.chunking && order.chunk).then_some(order.size),
            held: VecDeque::new(),
            open: false,
            recipient_taken: false,
            refused: None,
        };
        if session.needs_reset {
            out.extend_from_slice(b"RSET\r\n");
        }
        let mail_now = transaction.pipelined || !session.needs_reset;
        transaction.write_or_hold(mail_now, out, |out| {
            write_mail(capabilities, order, needs_smtputf8 && capabilities.smtputf8, out)
        });
        let pipelined = transaction.pipelined;
        transaction.write_or_hold(pipelined, out, |out| {
            out.extend_from_slice(b"RCPT TO:<");
            write_path(order.recipient, capabilities.smtputf8, out);
            out.push(b'>');
            if let Some(asked) = order.dsn.asked.filter(|_| capabilities.dsn) {
                write_asked(asked, out);
            }
            out.extend_from_slice(b"\r\n");
        });
        // RFC 2920 §3.1: DATA may be the last command of a group. So may BDAT, but then a message would be sent to nobody
        // as often as RCPT is refused.
        if transaction.chunk.is_none() {
            transaction.write_or_hold(pipelined, out, |out| out.extend_from_slice(b"DATA\r\n"));
        }
        Ok(transaction)
    }

    fn write_or_hold(&mut self, now: bool, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if now {
            write(out);
        } else {
            let mut line = Vec::new();
            write(&mut line);
            self.held.push_back(line);
        }
    }

    /// The stage whose reply is awaited.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.awaited.stage()
    }

    /// Takes the reply to the oldest command without one; appends what is to be sent to `out`.
    pub fn reply(&mut self, session: &mut Session, reply: Reply, out: &mut Vec<u8>) -> Step {
        // RFC 5321 §3.8: 421 may answer any command, and the server closes behind it.
        if reply.code == 421 {
            let verdict = self.refused.take().unwrap_or(Verdict { stage: self.stage(), answer: Answer::Reply(reply) });
            return Step::Done(verdict, Reuse::Close);
        }
        let positive = (200..300).contains(&reply.code);
        match self.awaited {
            Command::Rset if positive => {
                session.needs_reset = false;
                self.await_reply(Command::Mail, out)
            }
            Command::Rset => self.garbled("RSET was refused"),
            Command::Mail => {
                self.open = positive;
                self.envelope_reply(session, reply, Command::Rcpt, out)
            }
            Command::Rcpt => {
                self.recipient_taken = positive;
                self.envelope_reply(session, reply, Command::Data, out)
            }
            Command::Data => self.data_reply(session, reply, out),
            Command::LoneDot => {
                session.needs_reset = false;
                self.over(session, Reuse::Keep)
            }
            Command::Dot if (300..400).contains(&reply.code) => self.garbled("a 3xx answers the final dot"),
            // To bounce a message over it would be wrong: another try may lead to a host that keeps its word.
            Command::Dot if self.chunk.is_some() && matches!(reply.code, 500..=504) => {
                self.garbled("BDAT was announced and not understood")
            }
            Command::Dot => {
                session.needs_reset = false;
                Step::Done(Verdict { stage: Stage::Dot, answer: Answer::Reply(reply) }, Reuse::Keep)
            }
        }
    }

    /// A reply to MAIL or RCPT. `next` is the command behind it.
    fn envelope_reply(&mut self, session: &mut Session, reply: Reply, next: Command, out: &mut Vec<u8>) -> Step {
        if (300..400).contains(&reply.code) {
            return self.garbled("a 3xx answers MAIL or RCPT");
        }
        if !reply.is_positive() && self.refused.is_none() {
            self.refused = Some(Verdict { stage: self.stage(), answer: Answer::Reply(reply) });
        }
        if self.refused.is_some() && !self.pipelined {
            return self.over(session, Reuse::Keep);
        }
        match (next, self.chunk) {
            (Command::Data, Some(size)) => self.chunk_turn(session, size, out),
            (_, _) => self.await_reply(next, out),
        }
    }

    /// The envelope is answered, and the message would come next, in a chunk of `size` octets.
    fn chunk_turn(&mut self, session: &mut Session, size: u64, out: &mut Vec<u8>) -> Step {
        match &self.refused {
            None => {
                out.extend_from_slice(format!("BDAT {size} LAST\r\n").as_bytes());
                self.awaited = Command::Dot;
                Step::SendBody(Framing::Chunk { octets: size })
            }
            // It refused MAIL and took RCPT: who knows what it holds open.
            Some(_) if self.recipient_taken => self.over(session, Reuse::Close),
            Some(_) => self.over(session, Reuse::Keep),
        }
    }

    fn data_reply(&mut self, session: &mut Session, reply: Reply, out: &mut Vec<u8>) -> Step {
        match (reply.code, &self.refused) {
            (354, None) => {
                self.awaited = Command::Dot;
                Step::SendBody(Framing::Dots)
            }
            // RFC 2920 §3.1: the server waits for a message that has no recipient; an empty one ends it.
            (354, Some(_)) if !self.recipient_taken => {
                out.extend_from_slice(b".\r\n");
                self.await_reply(Command::LoneDot, out)
            }
            // It refused MAIL and took the rest: an empty message might be delivered. Closing sends none.
            (354, Some(_)) => self.over(session, Reuse::Close),
            (200..400, None) => self.garbled("DATA was answered by neither 354 nor a refusal"),
            (_, None) => {
                self.refused = Some(Verdict { stage: Stage::Data, answer: Answer::Reply(reply) });
                self.over(session, Reuse::Keep)
            }
            (_, Some(_)) => self.over(session, Reuse::Keep),
        }
    }

    fn await_reply(&mut self, command: Command, out: &mut Vec<u8>) -> Step {
        self.awaited = command;
        if let Some(line) = self.held.pop_front() {
            out.extend_from_slice(&line);
        }
        Step::Wait(self.stage())
    }

    fn over(&mut self, session: &mut Session, reuse: Reuse) -> Step {
        if self.awaited != Command::LoneDot {
            session.needs_reset |= self.open;
        }
        let verdict = self.refused.take().expect("over() is reached by a refusal only");
        Step::Done(verdict, reuse)
    }

    fn garbled(&mut self, what: &'static str) -> Step {
        let garbled = Verdict { stage: self.stage(), answer: Answer::Garbled(what) };
        // A refusal that was understood counts for more than the noise behind it.
        Step::Done(self.refused.take().unwrap_or(garbled), Reuse::Close)
    }
}

fn write_mail(capabilities: &Capabilities, order: &Order<'_>, smtputf8: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"MAIL FROM:<");
    if let Some(sender) = order.sender.mailbox() {
        write_path(sender, capabilities.smtputf8, out);
    }
    out.push(b'>');
    if capabilities.size {
        out.extend_from_slice(b" SIZE=");
        out.extend_from_slice(order.size.to_string().as_bytes());
    }
    // A next hop without 8BITMIME gets the message as it is: re-encoding it would break its signatures.
    if capabilities.eight_bit_mime && order.body == BodyType::EightBitMime {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if smtputf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if capabilities.require_tls && order.require_tls {
        out.extend_from_slice(b" REQUIRETLS");
    }
    if let Some(ret) = order.dsn.ret.filter(|_| capabilities.dsn) {
        out.extend_from_slice(format!(" RET={}", ret.as_str()).as_bytes());
    }
    if let Some(envid) = order.dsn.envid.filter(|_| capabilities.dsn) {
        out.extend_from_slice(format!(" ENVID={}", xtext::encode(envid)).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// RFC 3461 §5.2.1: as it was given to us.
fn write_asked(asked: &RecipientDsn, out: &mut Vec<u8>) {
    if let Some(notify) = asked.notify {
        out.extend_from_slice(format!(" NOTIFY={notify}").as_bytes());
    }
    if let Some(orcpt) = &asked.orcpt {
        out.extend_from_slice(format!(" ORCPT={};{}", orcpt.address_type, xtext::encode(&orcpt.address)).as_bytes());
    }
}

/// A parsed mailbox holds nothing that could end the path or the line.
fn write_path(mailbox: &Mailbox, utf8: bool, out: &mut Vec<u8>) {
    if utf8 || mailbox.is_ascii() {
        out.extend_from_slice(mailbox.as_str().as_bytes());
        return;
    }
    out.extend_from_slice(mailbox.local().as_bytes());
    out.push(b'@');
    out.extend_from_slice(mailbox.domain().as_str().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Notify, OriginalRecipient};
    use crate::smtp::reply_reader::tests::read_all;

    const ALL: Capabilities = Capabilities {
        pipelining: true,
        eight_bit_mime: true,
        smtputf8: true,
        chunking: false,
        dsn: true,
        require_tls: false,
        size: true,
        size_max: None,
    };

    struct Envelope {
        sender: ReversePath,
        recipient: Mailbox,
    }

    fn envelope(sender: &str, recipient: &str) -> Envelope {
        Envelope { sender: ReversePath::parse(sender).unwrap(), recipient: Mailbox::parse(recipient).unwrap() }
    }

    impl Envelope {
        fn order(&self) -> Order<'_> {
            Order {
                sender: &self.sender,
                recipient: &self.recipient,
                body: BodyType::SevenBit,
                utf8_header: false,
                require_tls: false,
                chunk: false,
                size: 1000,
                dsn: Dsn::default(),
            }
        }
    }

    /// Plays a server's replies against one transaction; gives what was sent in order, and how it ended.
    fn play(session: &mut Session, order: &Order<'_>, replies: &str) -> (String, Verdict, Reuse) {
        let mut out = Vec::new();
        let mut transaction = Transaction::begin(session, order, &mut out).unwrap();
        for reply in read_all(replies.as_bytes()).unwrap() {
            out.push(b'|');
            match transaction.reply(session, reply, &mut out) {
                Step::Wait(_) => {}
                Step::SendBody(Framing::Dots) => out.extend_from_slice(b"BODY"),
                Step::SendBody(Framing::Chunk { octets }) => {
                    out.extend_from_slice(format!("{octets} OCTETS").as_bytes());
                }
                Step::Done(verdict, reuse) => {
                    return (String::from_utf8(out).unwrap().replace("\r\n", "/"), verdict, reuse);
                }
            }
        }
        panic!("not over after {replies:?}");
    }

    #[test]
    fn transactions() {
        let mail = "MAIL FROM:<a@b> SIZE=1000/RCPT TO:<c@d>/DATA/";
        let cases: [(&str, &str, &str, u16, Reuse, bool); 11] = [
            // replies, stage, sent behind the first write, code, reuse, needs a reset
            ("250 a\r\n250 b\r\n354 c\r\n250 d\r\n", "dot", "|||BODY|", 250, Reuse::Keep, false),
            ("250 a\r\n250 b\r\n354 c\r\n550 d\r\n", "dot", "|||BODY|", 550, Reuse::Keep, false),
            ("550 a\r\n503 b\r\n503 c\r\n", "mail", "|||", 550, Reuse::Keep, false),
            ("250 a\r\n550 b\r\n503 c\r\n", "rcpt", "|||", 550, Reuse::Keep, true),
            ("250 a\r\n450 b\r\n354 c\r\n554 d\r\n", "rcpt", "|||./|", 450, Reuse::Keep, false),
            ("550 a\r\n250 b\r\n354 c\r\n", "mail", "|||", 550, Reuse::Close, false),
            ("250 a\r\n250 b\r\n451 c\r\n", "data", "|||", 451, Reuse::Keep, true),
            ("421 a\r\n", "mail", "|", 421, Reuse::Close, false),
            ("250 a\r\n550 b\r\n421 c\r\n", "rcpt", "|||", 550, Reuse::Close, false),
            ("250 a\r\n250 b\r\n354 c\r\n421 d\r\n", "dot", "|||BODY|", 421, Reuse::Close, false),
            ("250 a\r\n550 b\r\n354 c\r\n421 d\r\n", "rcpt", "|||./|", 550, Reuse::Close, false),
        ];
        let letter = envelope("a@b", "c@d");
        for (replies, stage, then, code, reuse, reset) in cases {
            let mut session = Session::new(ALL);
            let (sent, verdict, reused) = play(&mut session, &letter.order(), replies);
            assert_eq!(sent, format!("{mail}{then}"), "{replies:?}");
            assert_eq!((verdict.stage.as_str(), reused), (stage, reuse), "{replies:?}");
            assert!(matches!(&verdict.answer, Answer::Reply(reply) if reply.code == code), "{replies:?}: {verdict:?}");
            assert_eq!(session.needs_reset, reset, "{replies:?}");
        }
    }

    #[test]
    fn a_wanted_chunk_follows_an_accepted_recipient_only() {
        let mail = "MAIL FROM:<a@b> SIZE=1000/RCPT TO:<c@d>/";
        let chunk = "||BDAT 1000 LAST/1000 OCTETS|";
        let letter = envelope("a@b", "c@d");
        let order = Order { chunk: true, ..letter.order() };
        for (replies, stage, then, reuse, reset) in [
            ("250 a\r\n250 b\r\n250 c\r\n", "dot", chunk, Reuse::Keep, false),
            ("250 a\r\n250 b\r\n554 c\r\n", "dot", chunk, Reuse::Keep, false),
            ("250 a\r\n250 b\r\n421 c\r\n", "dot", chunk, Reuse::Close, false),
            ("250 a\r\n550 b\r\n", "rcpt", "||", Reuse::Keep, true),
            ("550 a\r\n503 b\r\n", "mail", "||", Reuse::Keep, false),
            ("550 a\r\n250 b\r\n", "mail", "||", Reuse::Close, false),
        ] {
            let mut session = Session::new(Capabilities { chunking: true, ..ALL });
            let (sent, verdict, reused) = play(&mut session, &order, replies);
            assert_eq!(sent, format!("{mail}{then}"), "{replies:?}");
            assert_eq!((verdict.stage.as_str(), reused), (stage, reuse), "{replies:?}");
            assert_eq!(session.needs_reset, reset, "{replies:?}");
        }
        for replies in ["250 a\r\n250 b\r\n354 c\r\n", "250 a\r\n250 b\r\n502 c\r\n"] {
            let mut session = Session::new(Capabilities { chunking: true, ..ALL });
            let (_, verdict, reuse) = play(&mut session, &order, replies);
            assert!(matches!(verdict.answer, Answer::Garbled(_)), "{verdict:?}");
            assert_eq!(reuse, Reuse::Close);
        }
        let mut slow = Session::new(Capabilities { chunking: true, ..Capabilities::default() });
        let (sent, ..) = play(&mut slow, &order, "250 a\r\n250 b\r\n250 c\r\n");
        assert_eq!(sent, "MAIL FROM:<a@b>/|RCPT TO:<c@d>/|BDAT 1000 LAST/1000 OCTETS|");
        // Unwanted, or not announced, it is DATA.
        for (chunk, chunking) in [(false, true), (true, false)] {
            let mut session = Session::new(Capabilities { chunking, ..ALL });
            let order = Order { chunk, ..letter.order() };
            let (sent, ..) = play(&mut session, &order, "250 a\r\n250 b\r\n354 c\r\n250 d\r\n");
            assert!(sent.ends_with("DATA/|||BODY|"), "{sent}");
        }
    }

    #[test]
    fn what_is_no_answer_ends_the_session() {
        let letter = envelope("a@b", "c@d");
        for replies in
            ["354 a\r\n", "250 a\r\n354 b\r\n", "250 a\r\n250 b\r\n250 c\r\n", "250 a\r\n250 b\r\n354 c\r\n354 d\r\n"]
        {
            let (_, verdict, reuse) = play(&mut Session::new(ALL), &letter.order(), replies);
            assert!(matches!(verdict.answer, Answer::Garbled(_)), "{replies:?}");
            assert_eq!(reuse, Reuse::Close);
        }
    }

    #[test]
    fn without_pipelining_each_command_waits_for_its_reply() {
        let letter = envelope("", "c@d");
        let mut session = Session::new(Capabilities::default());
        let (sent, ..) = play(&mut session, &letter.order(), "250 a\r\n550 b\r\n");
        assert_eq!(sent, "MAIL FROM:<>/|RCPT TO:<c@d>/|");
        let (sent, ..) = play(&mut session, &letter.order(), "250 r\r\n250 a\r\n250 b\r\n354 c\r\n250 d\r\n");
        assert_eq!(sent, "RSET/|MAIL FROM:<>/|RCPT TO:<c@d>/|DATA/|BODY|");
    }

    #[test]
    fn an_open_transaction_is_reset_in_the_same_write() {
        let letter = envelope("a@b", "c@d");
        let mut session = Session { capabilities: ALL, needs_reset: true };
        let (sent, verdict, _) = play(&mut session, &letter.order(), "250 r\r\n250 a\r\n250 b\r\n354 c\r\n250 d\r\n");
        assert_eq!(sent, "RSET/MAIL FROM:<a@b> SIZE=1000/RCPT TO:<c@d>/DATA/||||BODY|");
        assert_eq!(verdict.stage, Stage::Dot);
        assert!(!session.needs_reset);
    }

    #[test]
    fn what_was_asked_about_notifications_is_passed_on_where_it_is_understood() {
        let letter = envelope("a@b", "c@d");
        let orcpt = OriginalRecipient { address_type: "rfc822".into(), address: "C+x@d".into() };
        let asked = RecipientDsn { notify: Notify::parse("DELAY,FAILURE"), orcpt: Some(orcpt) };
        let dsn = Dsn { ret: Some(Ret::Headers), envid: Some("Q=1"), asked: Some(&asked) };
        for (capabilities, want) in [
            (
                Capabilities { size: false, ..ALL },
                "MAIL FROM:<a@b> RET=HDRS ENVID=Q+3D1/RCPT TO:<c@d> NOTIFY=FAILURE,DELAY ORCPT=rfc822;C+2Bx@d/DATA/",
            ),
            (Capabilities { dsn: false, size: false, ..ALL }, "MAIL FROM:<a@b>/RCPT TO:<c@d>/DATA/"),
        ] {
            let mut out = Vec::new();
            Transaction::begin(&Session::new(capabilities), &Order { dsn, ..letter.order() }, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap().replace("\r\n", "/"), want);
        }
    }

    #[test]
    fn requiretls_is_passed_on_or_nothing_is_sent() {
        let offers = Capabilities { require_tls: true, size: false, ..ALL };
        let not = Capabilities { require_tls: false, ..offers };
        let lack = Err(Verdict { stage: Stage::Mail, answer: Answer::RequireTls(TlsLack::Extension) });
        for (capabilities, sender, want) in [
            (offers, "a@b", Ok("MAIL FROM:<a@b> REQUIRETLS/RCPT TO:<c@d>/DATA/".to_owned())),
            (not, "a@b", lack),
            // RFC 8689 §5: a notification is told all the same.
            (offers, "", Ok("MAIL FROM:<> REQUIRETLS/RCPT TO:<c@d>/DATA/".to_owned())),
            (not, "", Ok("MAIL FROM:<>/RCPT TO:<c@d>/DATA/".to_owned())),
        ] {
            let letter = envelope(sender, "c@d");
            let order = Order { require_tls: true, ..letter.order() };
            let mut out = Vec::new();
            let begun = Transaction::begin(&Session::new(capabilities), &order, &mut out);
            let sent = String::from_utf8(out).unwrap().replace("\r\n", "/");
            assert_eq!(begun.map(|_| sent), want, "{sender:?}");
        }
    }

    #[test]
    fn parameters_are_given_where_announced_and_needed() {
        let mail = |capabilities, sender, recipient, body, utf8_header| {
            let letter = envelope(sender, recipient);
            let mut out = Vec::new();
            let order = Order { body, utf8_header, ..letter.order() };
            Transaction::begin(&Session::new(capabilities), &order, &mut out)
                .map(|_| String::from_utf8(out).unwrap().replace("\r\n", "/").replace("DATA/", ""))
                .map_err(|verdict| verdict.answer)
        };
        let (seven, eight) = (BodyType::SevenBit, BodyType::EightBitMime);
        let plain = Capabilities { pipelining: true, ..Capabilities::default() };
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(mail(ALL, "a@b", "c@d", eight, false), ok("MAIL FROM:<a@b> SIZE=1000 BODY=8BITMIME/RCPT TO:<c@d>/"));
        assert_eq!(mail(plain, "a@b", "c@d", eight, false), ok("MAIL FROM:<a@b>/RCPT TO:<c@d>/"));
        assert_eq!(mail(ALL, "é@b", "c@d", seven, false), ok("MAIL FROM:<é@b> SIZE=1000 SMTPUTF8/RCPT TO:<c@d>/"));
        assert_eq!(mail(ALL, "a@b", "c@d", seven, true), ok("MAIL FROM:<a@b> SIZE=1000 SMTPUTF8/RCPT TO:<c@d>/"));
        assert_eq!(mail(plain, "é@b", "c@d", seven, false), Err(Answer::Smtputf8Missing));
        assert_eq!(mail(plain, "a@b", "é@d", seven, false), Err(Answer::Smtputf8Missing));
        assert_eq!(mail(plain, "a@b", "c@d", seven, true), Err(Answer::Smtputf8Missing));
        assert_eq!(
            mail(plain, "a@b", "c@exämple.fr", seven, false),
            ok("MAIL FROM:<a@b>/RCPT TO:<c@xn--exmple-cua.fr>/")
        );
        let at = Capabilities { size_max: Some(1000), ..ALL };
        assert!(mail(at, "a@b", "c@d", seven, false).is_ok());
        let below = Capabilities { size_max: Some(999), ..ALL };
        assert_eq!(mail(below, "a@b", "c@d", seven, false), Err(Answer::TooLarge { limit: 999 }));
    }
}
