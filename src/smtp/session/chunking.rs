//! BDAT (RFC 3030): a message in chunks, each with its length before it and an answer behind it.
//!
//! The theory: once a length is said, exactly so many octets belong to the chunk, whatever stands in them and
//! whatever we think of it. A chunk that is not wanted is thrown away and answered at its end; it is never read as
//! commands. Where the length cannot be understood, or is more than we care to throw away, the session ends, because
//! nobody knows where the next command would begin.
//!
//! A chunk that is refused ends its transaction: what follows would be a message with a hole in it (RFC 3030 §2 forbids
//! the client to go on). Chunks already on the way find no transaction and are thrown away with a 503 each.

use crate::reply;
use crate::reply::{Refusal, Reply};
use crate::smtp::command::Chunk;
use crate::smtp::receiving::Chunks;

use super::{Question, Session, State, Step, Transaction};

/// A chunk that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    /// Octets that have still to come.
    left: u64,
    fate: Fate,
}

#[derive(Debug)]
enum Fate {
    Keep {
        last: bool,
    },
    /// Thrown away, then answered.
    Drop(Answer),
}

/// How a chunk that was thrown away is answered.
#[derive(Debug)]
enum Answer {
    /// A command in the wrong place.
    Complain(Reply),
    /// A command that brings nothing forward, which the client could not know.
    Idle(Reply),
    /// The conductor's word.
    Refuse(Refusal),
    /// The last reply.
    Cut(Reply),
}

impl Session {
    /// BDAT was read, and its octets come next.
    pub(super) fn bdat(&mut self, chunk: Option<Chunk>) {
        let Some(chunk) = chunk else {
            return self.cut(reply::BAD_CHUNK);
        };
        // An empty chunk before the last is as good as a NOOP. One with an octet is bounded by the message's size.
        if chunk.size == 0 && !chunk.last && !self.count_idle() {
            return;
        }
        let Some(transaction) = &self.transaction else {
            let missing = if self.hello.is_none() { reply::SEND_HELLO_FIRST } else { reply::SEND_MAIL_FIRST };
            return self.throw_away(chunk, Answer::Complain(missing));
        };
        // A client that pipelines could not know (RFC 2920 §3.1).
        if transaction.envelope.recipients.is_empty() {
            self.refuse_transaction(reply::SEND_RCPT_FIRST);
            return self.throw_away(chunk, Answer::Idle(reply::SEND_RCPT_FIRST));
        }
        let has_room = match &transaction.chunks {
            Some(chunks) => chunks.has_room(chunk.size),
            None => chunk.size <= self.settings.message_size_max,
        };
        if !has_room {
            self.refuse_transaction(reply::MESSAGE_TOO_LARGE);
            return self.throw_away(chunk, Answer::Cut(reply::MESSAGE_TOO_LARGE));
        }
        self.state = match transaction.chunks {
            Some(_) => State::Chunk(Reading::keep(chunk)),
            None => State::Asking(Question::FirstChunk(chunk)),
        };
    }

    /// The conductor said whether a message may come whose first chunk does come.
    pub(super) fn begin_chunks(&mut self, chunk: Chunk, answer: Result<(), Refusal>) {
        if let Err(refusal) = answer {
            self.refuse_transaction(refusal.reply().clone());
            return self.throw_away(chunk, Answer::Refuse(refusal));
        }
        let transaction = self.transaction.as_mut().expect("a first chunk is asked about inside a transaction only");
        transaction.chunks = Some(Chunks::new(self.settings.message_size_max, self.settings.header_octets_max));
        self.state = State::Chunk(Reading::keep(chunk));
    }

    fn throw_away(&mut self, chunk: Chunk, answer: Answer) {
        if chunk.size > self.settings.message_size_max.saturating_mul(THROWN_AWAY_FACTOR) {
            return self.cut(answer.into_reply());
        }
        self.state = State::Chunk(Reading { left: chunk.size, fate: Fate::Drop(answer) });
    }

    /// Takes what the input has of the chunk.
    pub(super) fn read_chunk(&mut self) -> Step {
        let State::Chunk(reading) = &mut self.state else { return Step::On };
        if reading.left == 0 {
            return self.end_chunk();
        }
        let start = self.consumed;
        let here = self.input.len() - start;
        if here == 0 {
            return Step::Wait;
        }
        let read = usize::try_from(reading.left).map_or(here, |left| left.min(here));
        reading.left -= read as u64;
        self.consumed += read;
        let text = start..self.consumed;
        let kept = match reading.fate {
            Fate::Keep { .. } => chunks_of(&mut self.transaction).take(&self.input[text.clone()]),
            Fate::Drop(_) => false,
        };
        if kept { Step::Body(text) } else { Step::On }
    }

    fn end_chunk(&mut self) -> Step {
        let State::Chunk(reading) = std::mem::replace(&mut self.state, State::Commands) else { return Step::On };
        match reading.fate {
            Fate::Keep { last } => match chunks_of(&mut self.transaction).verdict(last) {
                Ok(()) if last => self.state = State::Asking(Question::End),
                Ok(()) => self.say(&reply::CHUNK_OK),
                Err(reply) => {
                    self.say(&reply);
                    self.refuse_transaction(reply);
                }
            },
            Fate::Drop(Answer::Complain(reply)) => self.complain(reply),
            Fate::Drop(Answer::Idle(reply)) => self.idle(reply),
            Fate::Drop(Answer::Refuse(refusal)) => self.refuse(&refusal),
            Fate::Drop(Answer::Cut(reply)) => self.cut(reply),
        }
        Step::On
    }
}

fn chunks_of(transaction: &mut Option<Transaction>) -> &mut Chunks {
    let chunks = transaction.as_mut().and_then(|transaction| transaction.chunks.as_mut());
    chunks.expect("a chunk is kept only inside a transaction that has begun its message")
}

impl Reading {
    fn keep(chunk: Chunk) -> Reading {
        Reading { left: chunk.size, fate: Fate::Keep { last: chunk.last } }
    }
}

impl Answer {
    fn into_reply(self) -> Reply {
        match self {
            Answer::Complain(reply) | Answer::Idle(reply) | Answer::Cut(reply) => reply,
            Answer::Refuse(refusal) => refusal.reply().clone(),
        }
    }
}

/// A client that is just above the limit shall hear it rather than see a broken connection, and try again for days. So
/// much is read to that end of one chunk, in messages of the largest size.
const THROWN_AWAY_FACTOR: u64 = 4;
