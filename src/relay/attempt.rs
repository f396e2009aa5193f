//! One transaction on an open session: read, feed the machine, act, write.
//!
//! The prefix, the original without its cuts, and the final dot go through one buffer: a small message leaves in one
//! write, a large one in pieces, each with its own time. Nothing is sent behind a body that cannot be read to its
//! end: the session is closed without the dot, so that the remote keeps nothing (RFC 5321 §4.1.1.4).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::envelope::Notify;
use crate::queue::body::BodyReader;
use crate::queue::{Errand, OwnedLeg, StoreError};
use crate::relay::Chunking;
use crate::relay::dial::{Connection, Timeouts};
use crate::reply::Reply;
use crate::smtp::client::{Answer, Capabilities, Dsn, Framing, Order, Reuse, Stage, Step, Transaction, Verdict};
use crate::smtp::dot::Stuffer;
use crate::smtp::reply_reader::REPLY_READ_OCTETS;

/// How a transaction ended.
#[derive(Debug)]
#[must_use]
pub enum Ended {
    Verdict(Verdict, Reuse),
    /// The session had been used before and was gone before the remote answered anything in this transaction: no
    /// attempt was made.
    Stale,
    /// Our own body could not be read. The message was not handed over.
    Unread(StoreError, Reuse),
}

/// Relays `leg` in a transaction of its own.
pub async fn attempt(connection: &mut Connection, leg: &OwnedLeg, timeouts: &Timeouts) -> Ended {
    // A damaged body in memory or in its row is found here, before the session knows of the message.
    let mut body = BodyReader::new(&leg.body, &leg.cuts);
    let first = match body.next().await {
        Ok(first) => first,
        Err(error) => return Ended::Unread(error, Reuse::Keep),
    };
    let chunk = match wants_chunk(connection, leg).await {
        Ok(chunk) => chunk,
        Err(error) => return Ended::Unread(error, Reuse::Keep),
    };
    let reused = connection.used > 0;
    connection.used += 1;
    let order = Order {
        sender: &leg.sender,
        recipient: &leg.target,
        body: leg.body_type,
        utf8_header: leg.smtputf8 && has_utf8_header(connection, leg, first.as_deref()),
        require_tls: leg.require_tls,
        chunk,
        size: leg.size(),
        dsn: passed_on(leg),
    };
    connection.wire.clear();
    if leg.errand == Errand::AskRcpt {
        let capabilities = connection.session.capabilities;
        // One command at a time: DATA must not be on its way before RCPT is answered.
        connection.session.capabilities = Capabilities { pipelining: false, chunking: false, ..capabilities };
        let ended = ask_rcpt(connection, &order, reused, timeouts).await;
        connection.session.capabilities = capabilities;
        return ended;
    }
    let mut transaction = match Transaction::begin(&connection.session, &order, &mut connection.wire) {
        Ok(transaction) => transaction,
        Err(verdict) => return Ended::Verdict(verdict, Reuse::Keep),
    };
    let mut answered = false;
    loop {
        let reply = match exchange(connection, transaction.stage(), timeouts).await {
            Ok(reply) => reply,
            Err(Answer::Lost(_) | Answer::Garbled(_) | Answer::Reply(_)) if reused && !answered => return Ended::Stale,
            Err(answer) => return Ended::Verdict(Verdict { stage: transaction.stage(), answer }, Reuse::Close),
        };
        // RFC 5321 §3.8: 421 is how a server ends a session that was idle for too long.
        if reused && !answered && reply.code == 421 {
            return Ended::Stale;
        }
        answered = true;
        match transaction.reply(&mut connection.session, reply, &mut connection.wire) {
            Step::Wait(_) => {}
            Step::SendBody(framing) => {
                match send(connection, leg, Frame::new(framing), first.clone(), &mut body, timeouts).await {
                    Ok(()) => {}
                    Err(Unsent::Body(error)) => return Ended::Unread(error, Reuse::Close),
                    Err(Unsent::Remote(answer)) => {
                        return Ended::Verdict(Verdict { stage: Stage::Body, answer }, Reuse::Close);
                    }
                }
            }
            Step::Done(verdict, reuse) => {
                // Whoever spoke out of turn would answer the next message before it is sent.
                let reuse = if connection.replies.is_empty() { reuse } else { Reuse::Close };
                connection.wire.clear();
                connection.wire.shrink_to(WIRE_KEPT_OCTETS);
                return Ended::Verdict(verdict, reuse);
            }
        }
    }
}

/// Leads a transaction as far as the answer to RCPT, which is the verdict, and ends it by RSET (RFC 5321 §4.1.1.5):
/// nothing was handed over.
async fn ask_rcpt(connection: &mut Connection, order: &Order<'_>, reused: bool, timeouts: &Timeouts) -> Ended {
    let mut transaction = match Transaction::begin(&connection.session, order, &mut connection.wire) {
        Ok(transaction) => transaction,
        Err(verdict) => return Ended::Verdict(verdict, Reuse::Keep),
    };
    let mut answered = false;
    loop {
        let stage = transaction.stage();
        let reply = match exchange(connection, stage, timeouts).await {
            Ok(reply) if reused && !answered && reply.code == 421 => return Ended::Stale,
            Ok(reply) => reply,
            Err(Answer::Lost(_) | Answer::Garbled(_) | Answer::Reply(_)) if reused && !answered => return Ended::Stale,
            Err(answer) => return Ended::Verdict(Verdict { stage, answer }, Reuse::Close),
        };
        answered = true;
        match transaction.reply(&mut connection.session, reply.clone(), &mut connection.wire) {
            Step::Done(verdict, reuse) => return Ended::Verdict(verdict, reuse),
            // RCPT was taken, and DATA stands in the wire, not sent.
            Step::Wait(Stage::Data) => {
                connection.wire.clear();
                connection.wire.extend_from_slice(b"RSET\r\n");
                let reset = exchange(connection, Stage::Mail, timeouts).await;
                let reuse = if reset.is_ok_and(|reply| reply.is_positive()) { Reuse::Keep } else { Reuse::Close };
                return Ended::Verdict(Verdict { stage: Stage::Rcpt, answer: Answer::Reply(reply) }, reuse);
            }
            Step::Wait(_) => {}
            // Without pipelining and chunks none comes before DATA was sent.
            Step::SendBody(_) => return Ended::Verdict(Verdict { stage, answer: Answer::Reply(reply) }, Reuse::Close),
        }
    }
}

/// Whether the message goes by BDAT, where the host announces it. DATA puts a CRLF behind a message that has none, which
/// only BDAT brings in; a host that cannot do what it announces costs such a message some attempts, and then the CRLF.
async fn wants_chunk(connection: &Connection, leg: &OwnedLeg) -> Result<bool, StoreError> {
    Ok(match connection.chunking {
        _ if !connection.session.capabilities.chunking => false,
        Chunking::On => true,
        Chunking::Off => false,
        Chunking::Auto => leg.attempts < CHUNK_ATTEMPTS_MAX && !leg.body.ends_line().await?,
    })
}

/// What the next host is told about notifications. It knows the target, and would name it in what it tells the sender;
/// so where the target is not what the sender wrote to, only NEVER is passed on, and we answer for the rest.
fn passed_on(leg: &OwnedLeg) -> Dsn<'_> {
    let asked = &leg.notices.asked;
    if leg.keeps_recipient() {
        return Dsn { ret: leg.notices.ret, envid: leg.notices.envid.as_deref(), asked: Some(asked) };
    }
    Dsn { asked: (asked.notify == Some(Notify::Never)).then_some(asked), ..Dsn::default() }
}

/// A message that came with SMTPUTF8 may not need it. Only where the remote does not know it do we look.
fn has_utf8_header(connection: &Connection, leg: &OwnedLeg, first: Option<&[u8]>) -> bool {
    if connection.session.capabilities.smtputf8 {
        return true;
    }
    let first = first.unwrap_or_default();
    let header_end = memchr::memmem::find(first, b"\r\n\r\n").unwrap_or(first.len());
    !leg.prefix.is_ascii() || !first[..header_end].is_ascii()
}

/// Sends what stands in `wire`, then reads one reply.
async fn exchange(connection: &mut Connection, stage: Stage, timeouts: &Timeouts) -> Result<Reply, Answer> {
    flush(connection, timeouts).await?;
    match timeout(timeouts.of(stage), read_reply(connection)).await {
        Ok(result) => result,
        Err(_) => Err(Answer::Timeout),
    }
}

async fn read_reply(connection: &mut Connection) -> Result<Reply, Answer> {
    loop {
        match connection.replies.next_reply() {
            Ok(Some(reply)) => return Ok(reply),
            Ok(None) => {}
            Err(bad) => return Err(Answer::Garbled(bad.as_str())),
        }
        match connection.stream.read_buf(connection.replies.space()).await {
            Ok(0) => return Err(Answer::Lost("the remote closed the connection".to_owned())),
            Ok(_) => {}
            Err(error) => return Err(Answer::Lost(error.to_string())),
        }
    }
}

/// Writes all of `wire` within the time for a block, and empties it.
async fn flush(connection: &mut Connection, timeouts: &Timeouts) -> Result<(), Answer> {
    if connection.wire.is_empty() {
        return Ok(());
    }
    let written = timeout(timeouts.block, async {
        connection.stream.write_all(&connection.wire).await?;
        connection.stream.flush().await
    });
    let written = written.await;
    connection.wire.clear();
    match written {
        Ok(Ok(())) => Ok(()),
        Err(_) => Err(Answer::Timeout),
        Ok(Err(error)) => Err(last_words(connection, &error, timeouts).await),
    }
}

/// A server that closes on us has often said why: its refusal counts for more than our broken pipe.
async fn last_words(connection: &mut Connection, error: &io::Error, timeouts: &Timeouts) -> Answer {
    match timeout(timeouts.quit, read_reply(connection)).await {
        Ok(Ok(reply)) if !reply.is_positive() => Answer::Reply(reply),
        _ => Answer::Lost(error.to_string()),
    }
}

enum Unsent {
    Body(StoreError),
    Remote(Answer),
}

/// Sends the message. What is left in `wire`, its end always with it, is for the caller to flush.
async fn send(
    connection: &mut Connection,
    leg: &OwnedLeg,
    mut frame: Frame,
    first: Option<Bytes>,
    body: &mut BodyReader,
    timeouts: &Timeouts,
) -> Result<(), Unsent> {
    if !connection.replies.is_empty() {
        return Err(Unsent::Remote(read_early(connection)));
    }
    frame.put(&leg.prefix, &mut connection.wire)?;
    let mut next = first;
    while let Some(piece) = next {
        for part in piece.chunks(PART_OCTETS) {
            frame.put(part, &mut connection.wire)?;
            if connection.wire.len() >= WRITE_OCTETS && !frame.is_full() {
                flush(connection, timeouts).await.map_err(Unsent::Remote)?;
                heard_early(connection).await.map_err(Unsent::Remote)?;
            }
        }
        next = body.next().await.map_err(Unsent::Body)?;
    }
    frame.finish(&mut connection.wire)
}

/// What a message is wrapped in on its way.
enum Frame {
    Dots(Stuffer),
    /// The octets that were announced and not yet put.
    Chunk {
        left: u64,
    },
}

impl Frame {
    fn new(framing: Framing) -> Frame {
        match framing {
            Framing::Dots => Frame::Dots(Stuffer::new()),
            Framing::Chunk { octets } => Frame::Chunk { left: octets },
        }
    }

    fn put(&mut self, part: &[u8], wire: &mut Vec<u8>) -> Result<(), Unsent> {
        match self {
            Frame::Dots(stuffer) => stuffer.stuff(part, wire),
            Frame::Chunk { left } => {
                // What went beyond it would be commands to the remote.
                *left = left.checked_sub(part.len() as u64).ok_or_else(wrong_size)?;
                wire.extend_from_slice(part);
            }
        }
        Ok(())
    }

    /// With what was put, the remote would have it all. A chunk ends by itself, so its last octets stay with us until the
    /// body is known to be sound.
    fn is_full(&self) -> bool {
        matches!(self, Frame::Chunk { left: 0 })
    }

    fn finish(self, wire: &mut Vec<u8>) -> Result<(), Unsent> {
        match self {
            Frame::Dots(stuffer) => stuffer.finish(wire),
            Frame::Chunk { left: 0 } => {}
            Frame::Chunk { .. } => return Err(wrong_size()),
        }
        Ok(())
    }
}

fn wrong_size() -> Unsent {
    Unsent::Body(StoreError::Damaged("the body has not the size that its leg says".into()))
}

/// Looks, without waiting, whether the remote ended the transaction amid the message: the rest need not be sent.
async fn heard_early(connection: &mut Connection) -> Result<(), Answer> {
    let mut space = [0; REPLY_READ_OCTETS];
    let mut buffer = ReadBuf::new(&mut space);
    let stream = &mut connection.stream;
    let read = poll_fn(|cx| match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
        Poll::Pending => Poll::Ready(None),
        Poll::Ready(result) => Poll::Ready(Some(result)),
    });
    match read.await {
        None => return Ok(()),
        Some(Err(error)) => return Err(Answer::Lost(error.to_string())),
        Some(Ok(())) if buffer.filled().is_empty() => {
            return Err(Answer::Lost("the remote closed the connection".to_owned()));
        }
        Some(Ok(())) => connection.replies.space().extend_from_slice(buffer.filled()),
    }
    Err(read_early(connection))
}

/// What the remote said before the message had ended. A yes to half a message is none, and half a line neither.
fn read_early(connection: &mut Connection) -> Answer {
    match connection.replies.next_reply() {
        Ok(Some(reply)) if !reply.is_positive() => Answer::Reply(reply),
        Ok(_) => Answer::Garbled("the remote answered before the message ended"),
        Err(bad) => Answer::Garbled(bad.as_str()),
    }
}

/// Attempts by BDAT for the sake of a missing CRLF.
const CHUNK_ATTEMPTS_MAX: u32 = 3;
/// A whole message of the size that is kept in memory, with its prefix, leaves in one write.
const WRITE_OCTETS: usize = 128 * 1024;
const PART_OCTETS: usize = 32 * 1024;
/// What an idle session keeps of its buffer.
const WIRE_KEPT_OCTETS: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::StoredBody;
    use crate::queue::fixtures::owned_leg;
    use crate::relay::dial::Stream;
    use crate::relay::outcome::{result, words};

    enum Act {
        /// Says this after it has heard something.
        Say(&'static str),
        /// Says this at once.
        Blurt(&'static str),
        /// Hears everything and says nothing.
        Hang,
        /// Reads nothing any more.
        Stall,
    }

    /// One attempt against a server that acts in order and then closes.
    async fn against(acts: Vec<Act>, used: u32, body: Vec<u8>) -> Ended {
        let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
        let server = tokio::spawn(async move {
            // Room for a whole write at a time.
            let mut heard = Vec::with_capacity(2 << 20);
            for act in acts {
                let text = match act {
                    Act::Say(text) => {
                        // A server that finds the client gone has nothing left to do.
                        let Ok(1..) = theirs.read_buf(&mut heard).await else { return };
                        text
                    }
                    Act::Blurt(text) => text,
                    Act::Hang => {
                        while let Ok(1..) = theirs.read_buf(&mut heard).await {}
                        return;
                    }
                    Act::Stall => std::future::pending().await,
                };
                if theirs.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let capabilities = Capabilities { pipelining: true, ..Capabilities::default() };
        let mut connection = Connection::new(Stream::Other(Box::new(ours)), capabilities, String::new(), None);
        connection.used = used;
        let mut leg = owned_leg(1);
        leg.body = StoredBody::from_bytes(body);
        let ended = attempt(&mut connection, &leg, &Timeouts::rfc5321()).await;
        drop(connection);
        server.abort();
        ended
    }

    fn small() -> Vec<u8> {
        b"A: b\r\n\r\nc\r\n".to_vec()
    }

    fn large() -> Vec<u8> {
        b"1234567\r\n".repeat(100_000)
    }

    const READY: &str = "250 a\r\n250 b\r\n354 c\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_remote_that_misbehaves_at_each_stage() {
        use Act::{Blurt, Hang, Say, Stall};
        // acts, body, stage, result, words
        type Case = (Vec<Act>, Vec<u8>, &'static str, &'static str, &'static str);
        let cases: Vec<Case> = vec![
            (vec![Say(READY), Say("250 d\r\n")], small(), "dot", "ok", "250 d"),
            (vec![Say("")], small(), "mail", "connect", "lost"),
            (vec![Say("250 a\r\n")], small(), "rcpt", "connect", "lost"),
            (vec![Say("250 a\r\n250 b\r\n")], small(), "data", "connect", "lost"),
            (vec![Say(READY), Say("")], small(), "dot", "connect", "outcome is unknown"),
            (vec![Say("")], large(), "mail", "connect", "lost"),
            (vec![Hang], small(), "mail", "timeout", "no answer"),
            (vec![Say("250 a\r\n"), Hang], small(), "rcpt", "timeout", "no answer"),
            (vec![Say("250 a\r\n250 b\r\n"), Hang], small(), "data", "timeout", "no answer"),
            (vec![Say(READY), Hang], small(), "dot", "timeout", "outcome is unknown"),
            (vec![Say(READY), Stall], large(), "body", "timeout", "no answer"),
            (vec![Say(READY), Say("552 5.3.4 big\r\n"), Hang], large(), "body", "permfail", "552 5.3.4 big"),
            (vec![Say(READY), Blurt("552 5.3.4 big\r\n"), Hang], large(), "body", "permfail", "552 5.3.4 big"),
            (vec![Say("250 a\r\n250 b\r\n354 c\r\n250 d\r\n"), Hang], small(), "body", "connect", "not understood"),
            (vec![Say(READY), Say("999 x\r\n")], small(), "dot", "connect", "outcome is unknown"),
            (vec![Say("250-a\r\n550 b\r\n"), Hang], small(), "mail", "connect", "not understood"),
            (vec![Say("250 a\r\n250 b\r\n250 c\r\n"), Hang], small(), "data", "connect", "not understood"),
            (vec![Say("421 4.3.2 bye\r\n")], small(), "mail", "tempfail", "421 4.3.2 bye"),
        ];
        for (n, (acts, body, stage, want, said)) in cases.into_iter().enumerate() {
            let ended = against(acts, 0, body).await;
            let Ended::Verdict(verdict, reuse) = ended else { panic!("case {n}: {ended:?}") };
            let words = words(&verdict);
            assert!(verdict.stage.as_str() == stage && result(&verdict) == want, "case {n}: {verdict:?}");
            assert!(words.contains(said), "case {n}: {words}");
            assert_eq!(reuse == Reuse::Keep, want == "ok", "case {n}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_used_session_that_answered_nothing_is_stale() {
        use Act::{Blurt, Say};
        assert!(matches!(against(vec![Say("")], 1, small()).await, Ended::Stale));
        assert!(matches!(against(vec![Blurt("421 idle\r\n")], 1, small()).await, Ended::Stale));
        assert!(matches!(against(vec![Say("250 a\r\n")], 1, small()).await, Ended::Verdict(..)));
        assert!(matches!(against(vec![Say("550 no\r\n503 b\r\n503 c\r\n")], 1, small()).await, Ended::Verdict(..)));
    }

    #[tokio::test(start_paused = true)]
    async fn octets_behind_the_last_reply_end_the_session() {
        let acts = vec![Act::Say(READY), Act::Say("250 d\r\n250 extra\r\n")];
        let ended = against(acts, 0, small()).await;
        assert!(matches!(&ended, Ended::Verdict(verdict, Reuse::Close) if result(verdict) == "ok"), "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_chunk_carries_the_message_as_it_stands() {
        for body in [small(), large(), b"a: b\r\n\r\n.\r\n..no line end".to_vec()] {
            let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
            let capabilities = Capabilities { pipelining: true, chunking: true, ..Capabilities::default() };
            let mut connection = Connection::new(Stream::Other(Box::new(ours)), capabilities, String::new(), None);
            connection.chunking = Chunking::On;
            let mut leg = owned_leg(1);
            leg.body = StoredBody::from_bytes(body.clone());
            let sent = [&leg.prefix[..], &body].concat();
            let message = [format!("BDAT {} LAST\r\n", leg.size()).as_bytes(), &sent].concat();
            let server = tokio::spawn(async move {
                let mut heard = Vec::new();
                while heard.windows(2).filter(|pair| pair == b"\r\n").nth(1).is_none() {
                    theirs.read_buf(&mut heard).await.unwrap();
                }
                theirs.write_all(b"250 a\r\n250 b\r\n").await.unwrap();
                let mut chunk = vec![0; message.len()];
                theirs.read_exact(&mut chunk).await.unwrap();
                theirs.write_all(b"250 c\r\n").await.unwrap();
                chunk == message
            });
            let ended = attempt(&mut connection, &leg, &Timeouts::rfc5321()).await;
            assert!(matches!(&ended, Ended::Verdict(verdict, Reuse::Keep) if result(verdict) == "ok"), "{ended:?}");
            assert!(server.await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_chunk_is_wanted_where_data_would_change_the_message() {
        use Chunking::{Auto, Off, On};
        for (mode, announced, body, attempts, want) in [
            (Auto, true, "a: b\r\n\r\nc\r\n", 0, false),
            (Auto, true, "a: b\r\n\r\nc", 0, true),
            (Auto, true, "a: b\r\n\r\nc", CHUNK_ATTEMPTS_MAX - 1, true),
            (Auto, true, "a: b\r\n\r\nc", CHUNK_ATTEMPTS_MAX, false),
            (Auto, true, "\n", 0, true),
            (Auto, true, "", 0, false),
            (Auto, false, "a: b\r\n\r\nc", 0, false),
            (On, true, "a: b\r\n\r\nc\r\n", 9, true),
            (On, false, "a: b\r\n\r\nc", 0, false),
            (Off, true, "a: b\r\n\r\nc", 0, false),
        ] {
            let capabilities = Capabilities { chunking: announced, ..Capabilities::default() };
            let stream = Stream::Other(Box::new(tokio::io::duplex(1).0));
            let mut connection = Connection::new(stream, capabilities, String::new(), None);
            connection.chunking = mode;
            let mut leg = owned_leg(1);
            (leg.body, leg.attempts) = (StoredBody::from_bytes(body.as_bytes().to_vec()), attempts);
            assert_eq!(wants_chunk(&connection, &leg).await.unwrap(), want, "{mode:?} {announced} {body:?} {attempts}");
        }
    }

    #[test]
    fn a_chunk_never_holds_more_or_less_than_was_announced() {
        let mut wire = Vec::new();
        let chunk = || Frame::new(Framing::Chunk { octets: 3 });
        let mut whole = chunk();
        assert!(whole.put(b"ab", &mut wire).is_ok() && !whole.is_full());
        assert!(whole.put(b"c", &mut wire).is_ok() && whole.is_full() && whole.finish(&mut wire).is_ok());
        let mut over = chunk();
        assert!(over.put(b"abcd", &mut wire).is_err());
        let mut under = chunk();
        assert!(under.put(b"ab", &mut wire).is_ok() && under.finish(&mut wire).is_err());
        assert_eq!(wire, b"abcab", "nothing beyond the announced size is put");
    }
}
