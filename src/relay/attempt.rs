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

use crate::queue::body::BodyReader;
use crate::queue::{OwnedLeg, StoreError};
use crate::relay::dial::{Connection, Timeouts};
use crate::reply::Reply;
use crate::smtp::client::{Answer, Order, Reuse, Stage, Step, Transaction, Verdict};
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
    let reused = connection.used > 0;
    connection.used += 1;
    let order = Order {
        sender: &leg.sender,
        recipient: &leg.target,
        body: leg.body_type,
        utf8_header: leg.smtputf8 && has_utf8_header(connection, leg, first.as_deref()),
        size: leg.size(),
    };
    connection.wire.clear();
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
            Step::SendBody => match send(connection, leg, first.clone(), &mut body, timeouts).await {
                Ok(()) => {}
                Err(Unsent::Body(error)) => return Ended::Unread(error, Reuse::Close),
                Err(Unsent::Remote(answer)) => {
                    return Ended::Verdict(Verdict { stage: Stage::Body, answer }, Reuse::Close);
                }
            },
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

/// Sends the message. What is left in `wire`, the final dot with it, is for the caller to flush.
async fn send(
    connection: &mut Connection,
    leg: &OwnedLeg,
    first: Option<Bytes>,
    body: &mut BodyReader,
    timeouts: &Timeouts,
) -> Result<(), Unsent> {
    if !connection.replies.is_empty() {
        return Err(Unsent::Remote(Answer::Garbled("the remote answered before it was asked")));
    }
    let mut stuffer = Stuffer::new();
    stuffer.stuff(&leg.prefix, &mut connection.wire);
    let mut next = first;
    while let Some(piece) = next {
        for part in piece.chunks(PART_OCTETS) {
            stuffer.stuff(part, &mut connection.wire);
            if connection.wire.len() >= WRITE_OCTETS {
                flush(connection, timeouts).await.map_err(Unsent::Remote)?;
                heard_early(connection).await.map_err(Unsent::Remote)?;
            }
        }
        next = body.next().await.map_err(Unsent::Body)?;
    }
    stuffer.finish(&mut connection.wire);
    Ok(())
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
    match connection.replies.next_reply() {
        Ok(Some(reply)) if !reply.is_positive() => Err(Answer::Reply(reply)),
        Ok(Some(_)) => Err(Answer::Garbled("the remote answered before the message ended")),
        // The rest of its line will come, and be noticed behind the next piece or the final dot.
        Ok(None) => Ok(()),
        Err(bad) => Err(Answer::Garbled(bad.as_str())),
    }
}

/// A whole message of the size that is kept in memory, with its prefix, leaves in one write.
const WRITE_OCTETS: usize = 128 * 1024;
const PART_OCTETS: usize = 32 * 1024;
/// What an idle session keeps of its buffer.
const WIRE_KEPT_OCTETS: usize = 16 * 1024;
