//! One session on one stream: reads, feeds the protocol machine, does what it asks, writes what it says.
//!
//! The machine (`smtp::session`) decides everything about the protocol; this shell only carries bytes and answers
//! its questions from the rules and the queue. It keeps no buffer of its own while it waits, so that an idle
//! session costs little: bytes are read into a scratch buffer that all sessions of a thread share.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

use super::journey::{self, Arrived};
use super::pace::Pace;
use super::{Inbound, Ruling};
use crate::address::{Mailbox, ReversePath};
use crate::contain::trip;
use crate::envelope::{Client, Envelope};
use crate::events;
use crate::message::{Head, Header};
use crate::queue::{BodyWriter, Queued, Refused, StoreError};
use crate::reply::{self, Refusal, Reply};
use crate::rules::{Action, Fact, Verdict};
use crate::smtp::session::{Cause, Ending, Event, FEED_OCTETS_MAX, Opening, Security, Session};
use crate::tls::{ListenerTls, MaybeTls};

/// A session and all that it owns.
pub(super) struct Connection<'a, S> {
    inbound: &'a Arc<Inbound>,
    ruling: Arc<Ruling>,
    stream: MaybeTls<S>,
    listener: &'a str,
    tls: ListenerTls,
    session: Session,
    client: Client,
    incoming: Option<Incoming>,
    pace: Pace,
    draining: watch::Receiver<bool>,
}

/// A message that is arriving.
struct Incoming {
    head: Head,
    body: BodyWriter,
    /// Set once the body could not be written: the rest is read and thrown away, and the client gets a 4xx.
    broken: Option<StoreError>,
}

/// What the next step of the loop is, copied out of the machine's borrow.
enum Next {
    On,
    Wait,
    StartTls,
    End(Envelope),
    Close(&'static str),
}

impl<'a, S> Connection<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn new(
        inbound: &'a Arc<Inbound>,
        ruling: Arc<Ruling>,
        stream: S,
        peer: SocketAddr,
        listener: &'a str,
        tls: ListenerTls,
    ) -> Self {
        let security = match tls {
            ListenerTls::Implicit => Security::Up,
            ListenerTls::StartTls if ruling.offers_tls() => Security::Offered,
            ListenerTls::StartTls | ListenerTls::Off => Security::Plain,
        };
        let session = Session::with_security(Arc::clone(&ruling.session), security);
        let ip = peer.ip().to_canonical();
        let client = Client { ip, ptr: None, helo: String::new(), extended: false, tls: false };
        let draining = inbound.draining.subscribe();
        let pace = Pace::new(inbound.clock.monotonic());
        let stream = MaybeTls::Plain(stream);
        Connection { inbound, ruling, stream, listener, tls, session, client, incoming: None, pace, draining }
    }

    /// Runs the session to its end, and says how it ended.
    pub(super) async fn run(&mut self) -> &'static str {
        // RFC 8314 §3.3: the handshake comes before the banner, and without it there is no session.
        if self.tls == ListenerTls::Implicit && !self.secure().await {
            return "tls";
        }
        let opening = if self.spoke_early().await { Opening::Early } else { Opening::Polite };
        self.session.greet(opening);
        loop {
            match self.step().await {
                Next::On => {}
                Next::Wait => {
                    if self.wait().await.is_err() {
                        // The client is gone; what it was sending is dropped by the machine.
                        self.session.feed_eof();
                    }
                }
                Next::StartTls => self.start_tls().await,
                Next::End(envelope) => self.finish(envelope).await,
                Next::Close(why) => {
                    // The client may be gone already; there is nobody left to tell.
                    let told = self.flush().await;
                    // TLS has a farewell, for which a client that does not read must not be waited for.
                    let _ = tokio::time::timeout(TURN_AWAY_TIMEOUT, self.stream.shutdown()).await;
                    if why == CUT && told.is_ok() {
                        self.linger().await;
                    }
                    return why;
                }
            }
        }
    }

    /// After a panic of ours: tells the client that there is nothing more to be had here, and closes. What was not
    /// answered with a 250 is his to send again.
    pub(super) async fn part(&mut self) {
        let mut octets = Vec::new();
        reply::FAULT.write(&mut octets);
        // He is told if he listens; there is no session any more to protect.
        let _ = tokio::time::timeout(TURN_AWAY_TIMEOUT, async {
            self.stream.write_all(&octets).await?;
            self.stream.shutdown().await
        })
        .await;
    }

    /// Does what the machine wants next.
    async fn step(&mut self) -> Next {
        match self.session.poll() {
            Event::Wait => return Next::Wait,
            Event::StartTls => return Next::StartTls,
            Event::Hello { name, extended } => {
                self.client.helo = name.to_owned();
                self.client.extended = extended;
            }
            Event::Mail(_) => {
                // Policy on the sender has its place here. Without space nothing is begun that could not be kept.
                let accepting = self.inbound.store.accepting();
                let answer = if accepting { Ok(()) } else { Err(Refusal::new(reply::DISK_FULL)) };
                self.session.answer_mail(answer);
            }
            Event::Recipient { recipient, envelope } => {
                let answer =
                    recipient_answer(self.inbound, &self.ruling, &self.client, self.listener, recipient, envelope)
                        .await;
                self.session.answer_recipient(answer);
            }
            Event::Data(_) => {
                trip("session");
                let body = self.inbound.store.write_body();
                self.incoming = Some(Incoming { head: Head::default(), body, broken: None });
                self.pace.message_begins(self.inbound.clock.monotonic());
                self.session.answer_data(Ok(()));
            }
            Event::Body(octets) => {
                self.pace.received(octets.len());
                if let Some(incoming) = &mut self.incoming {
                    incoming.take(octets).await;
                }
            }
            Event::End(envelope) => return Next::End(envelope.clone()),
            Event::Reset(cause) => self.reset(&cause),
            Event::Close(ending) => return Next::Close(describe(ending)),
        }
        Next::On
    }

    /// Says the 220, then makes the handshake. What the client said before it is forgotten on both sides of the machine.
    async fn start_tls(&mut self) {
        if self.flush().await.is_err() || !self.secure().await {
            return self.session.feed_eof();
        }
        self.client.helo.clear();
        self.client.extended = false;
        self.session.tls_up();
    }

    /// Makes the handshake. After a failure the stream is closed.
    async fn secure(&mut self) -> bool {
        let made = match &self.ruling.tls {
            Some(server) => self.stream.accept(server).await,
            None => Err("there is no certificate".to_owned()),
        };
        self.client.tls = made.is_ok();
        events::tls_accepted(self.listener, self.client.ip, made.as_deref());
        self.client.tls
    }

    fn reset(&mut self, cause: &Cause) {
        let incoming = self.incoming.take();
        if incoming.is_some() {
            self.pace.message_ends(false, self.inbound.clock.monotonic());
        }
        match (cause, incoming) {
            // Who has no recipient has no message; each of his recipients was told by itself.
            (Cause::Refused { envelope, .. }, None) if envelope.recipients.is_empty() => {}
            // A first chunk that is too large is refused before it is taken.
            (Cause::Refused { reply, envelope }, incoming) => {
                let (head, size) = incoming.map_or_else(Default::default, |i| (i.head, i.body.len()));
                self.tell_refused(&envelope.sender, &envelope.recipients, &head, size, reply);
            }
            (Cause::Asked | Cause::Closed, Some(_)) => events::message_aborted(self.listener, self.client.ip),
            (Cause::Asked | Cause::Closed, None) => {}
        }
    }

    /// The message is whole: takes it through its journey and answers.
    async fn finish(&mut self, envelope: Envelope) {
        let Some(incoming) = self.incoming.take() else {
            return self.session.finish::<Queued>(Err(Refusal::new(reply::LOCAL_ERROR)));
        };
        let (sender, recipients) = (envelope.sender.clone(), envelope.recipients.clone());
        let Incoming { head, body, broken } = incoming;
        let size = body.len();
        let result = match broken {
            Some(error) => Err(journey::store_refusal(&error)),
            None => {
                let arrived = Arrived {
                    listener: self.listener,
                    client: &self.client,
                    envelope,
                    head: &head,
                    at: self.inbound.clock.now(),
                };
                // In a box of its own: what a message needs on its way an idle session must not hold ready.
                Box::pin(self.inbound.last_dot(&self.ruling, arrived, body)).await
            }
        };
        trip("session-queued");
        if let Err(refusal) = &result {
            self.tell_refused(&sender, &recipients, &head, size, refusal.reply());
        }
        self.pace.message_ends(result.is_ok(), self.inbound.clock.monotonic());
        self.session.finish(result);
    }

    /// One line for the message, and for `trace` a row for each recipient.
    fn tell_refused(&self, sender: &ReversePath, recipients: &[Mailbox], head: &Head, size: u64, reply: &Reply) {
        let sender = sender.to_string();
        let list = journey::list(recipients);
        let header = Header::index(head.as_bytes());
        events::message_refused(self.listener, self.client.ip, &sender, &list, size, reply);
        for recipient in recipients {
            record_refused(self.inbound, &self.client, self.listener, &sender, recipient.as_str(), reply, &header);
        }
    }

    /// Reads on after our last word until the client has closed its side, so that it hears us: a socket that is closed
    /// with octets unread is reset, and the reset overtakes what was said (RFC 9293 §3.6.1).
    async fn linger(&mut self) {
        let stream = &mut self.stream;
        let read_on = async {
            let mut left = LINGER_OCTETS_MAX;
            while left > 0 {
                match read_away(stream).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
        };
        tokio::select! {
            () = read_on => {}
            () = tokio::time::sleep(LINGER) => {}
            _ = self.draining.wait_for(|&on| on) => {}
        }
    }

    /// Writes what is to be said, reads what comes and feeds it.
    async fn wait(&mut self) -> io::Result<()> {
        self.flush().await?;
        let limit = self.session.timeout().min(self.pace.left(self.inbound.clock.monotonic()));
        let between_messages = self.incoming.is_none();
        let (stream, session) = (&mut self.stream, &mut self.session);
        let read = tokio::time::timeout(limit, read_into(stream, session));
        tokio::select! {
            biased;
            // A transaction under way may finish; who only waits is told to come back.
            _ = self.draining.wait_for(|&on| on), if between_messages => {
                self.session.shut_down();
                Ok(())
            }
            read = read => match read {
                Ok(Ok(0)) => { self.session.feed_eof(); Ok(()) }
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => { self.session.timed_out(); Ok(()) }
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.session.output().is_empty() {
            return Ok(());
        }
        // A client that does not read is as gone as one that does not write.
        let (stream, output) = (&mut self.stream, self.session.output());
        let write = async {
            stream.write_all(output).await?;
            // TLS may keep the end of what it took.
            stream.flush().await
        };
        tokio::time::timeout(WRITE_TIMEOUT, write).await.map_err(|_| io::ErrorKind::TimedOut)??;
        self.session.flushed();
        Ok(())
    }

    /// Whether octets of the client's were seen before the banner. We look once and do not wait: who speaks while the
    /// banner is on its way is not noticed, and one who spoke just before we looked may not be. A wait would catch more
    /// and cost each honest client as much, one message a connection being the commonest mail; what such a peer sends is
    /// read as commands in either case, and no message can come of it before the 354.
    async fn spoke_early(&mut self) -> bool {
        let mut octet = [0u8; 1];
        let stream = &mut self.stream;
        std::future::poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut octet);
            let ready = Pin::new(&mut *stream).poll_read(cx, &mut buffer).is_ready();
            // End of file without a word is no talk: the session will see it.
            Poll::Ready(ready && !buffer.filled().is_empty())
        })
        .await
    }
}

impl Incoming {
    async fn take(&mut self, octets: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        self.head.push(octets);
        self.broken = self.body.write(octets).await.err();
    }
}

/// Tells a client why there is no session, and closes.
pub(super) async fn turn_away<S: AsyncWrite + Unpin>(mut stream: S, reply: Reply) {
    let mut octets = Vec::new();
    reply.write(&mut octets);
    // It is told if it listens; there is no session to protect.
    let _ = tokio::time::timeout(TURN_AWAY_TIMEOUT, stream.write_all(&octets)).await;
}

/// What the rules say about a recipient while the message is still unknown, and the mail host where it is his.
async fn recipient_answer(
    inbound: &Inbound,
    ruling: &Ruling,
    client: &Client,
    listener: &str,
    recipient: &Mailbox,
    envelope: &Envelope,
) -> Result<(), Refusal> {
    let now = inbound.clock.now();
    let verdict = ruling.decide(&journey::facts(client, envelope, recipient, now), Fact::Unknown, now).verdict;
    let refused = match verdict {
        Verdict::Accept { action: Action::Relay, legs } => {
            match envelope.declared_size.and_then(|size| ruling.refuses_size(size, legs.iter())) {
                Some(refusal) => Some(refusal),
                // In a box of its own: an idle session must not hold ready what few recipients need.
                None if legs.iter().any(|leg| ruling.is_to_mailhost(leg)) => {
                    Box::pin(inbound.ask_mailhost(ruling, recipient, &legs)).await.err()
                }
                None => None,
            }
        }
        Verdict::Accept { .. } | Verdict::Undecided => None,
        Verdict::Reject(refusal) | Verdict::Defer(refusal) => Some(refusal),
    };
    match refused {
        None => {
            events::recipient_accepted();
            Ok(())
        }
        Some(refusal) => {
            let sender = envelope.sender.to_string();
            let recipient = recipient.as_str();
            events::recipient_refused(client.ip, &client.helo, &sender, recipient, refusal.reply());
            record_refused(inbound, client, listener, &sender, recipient, refusal.reply(), &Header::default());
            Err(refusal)
        }
    }
}

/// Keeps a refusal for `trace`.
fn record_refused(
    inbound: &Inbound,
    client: &Client,
    listener: &str,
    sender: &str,
    recipient: &str,
    reply: &Reply,
    header: &Header,
) {
    inbound.store.record_refused(Refused {
        at: inbound.clock.now(),
        listener: listener.to_owned(),
        client: client.ip,
        helo: client.helo.clone(),
        sender: sender.to_owned(),
        recipient: recipient.to_owned(),
        reply: reply.to_string(),
        from: header.from.clone(),
        subject: header.subject.clone(),
        message_id: header.message_id.clone(),
    });
}

fn describe(ending: &Ending) -> &'static str {
    match ending {
        Ending::Quit => "quit",
        Ending::Gone => "gone",
        Ending::Cut(_) => CUT,
    }
}

/// Reads once and feeds what came; the number of octets, 0 at the end of the stream.
async fn read_into<S: AsyncRead + Unpin>(stream: &mut S, session: &mut Session) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            session.feed(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

/// Reads once and forgets what came; the number of octets, 0 at the end of the stream.
async fn read_away<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

thread_local! {
    /// Borrowed only inside one poll, so one for each thread is enough for all its sessions.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; FEED_OCTETS_MAX].into_boxed_slice());
}

/// RFC 5321 §4.5.3.2 names no limit for our replies; the command timeout is what a client has for anything else.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(2);
/// How we end a session ourselves, in the log.
const CUT: &str = "cut";
/// A client that hears us closes within a round trip; who goes on talking costs no more than this.
const LINGER: Duration = Duration::from_secs(1);
/// What a client may have sent while our last reply was on its way: more than most windows, a moment's work to discard.
const LINGER_OCTETS_MAX: usize = 1024 * 1024;
