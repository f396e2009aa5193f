//! rspamd, asked over HTTP (`POST /checkv2`): the one place that speaks to it.
//!
//! The message goes there as it is, in pieces while it is read, with what we know of its envelope in header fields of the
//! request; back comes JSON with a score and the symbols behind it. One connection a message, a time limit on the whole, and a
//! bounded reply. Our bands decide by the score; of rspamd's own actions only two count: `soft reject`, which asks for another
//! try, and a `reject` that its score does not explain, because a module forced it.

use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{Signal, SpamReport};
use crate::address::{Mailbox, ReversePath};

/// Where rspamd is and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// Sent with every message where it is set.
    pub password: Option<String>,
    /// For all of it: connecting, sending, judging.
    pub timeout: Duration,
}

/// What rspamd is told beside the message.
#[derive(Clone, Debug)]
pub struct Envelope<'a> {
    pub ip: IpAddr,
    pub helo: &'a str,
    /// The client's confirmed name.
    pub ptr: Option<&'a str>,
    pub sender: &'a ReversePath,
    pub recipients: &'a [Mailbox],
    /// Our own name.
    pub hostname: &'a str,
    /// The message's id, as our log has it.
    pub id: &'a str,
    /// Octets of the message.
    pub size: u64,
}

/// What rspamd says.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub report: SpamReport,
    /// It asks that the client try again later: greylisting, or a rate that was exceeded.
    pub try_again: bool,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum RspamdError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no verdict within {0:?}")]
    Timeout(Duration),
    #[error("the exchange broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer is over {REPLY_OCTETS_MAX} octets")]
    TooLong,
    #[error("its answer is not understood: {0}")]
    Unreadable(&'static str),
    #[error("the request cannot be written")]
    Request,
}

impl RspamdError {
    /// The metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            RspamdError::Connect(_) => "connect",
            RspamdError::Timeout(_) => "timeout",
            RspamdError::Http(_) | RspamdError::Request => "broken",
            RspamdError::Status(_) | RspamdError::TooLong | RspamdError::Unreadable(_) => "unreadable",
        }
    }
}

/// Asks for a verdict. `pieces` are the message's octets in order, as many as the envelope says: where they end early, so
/// does the exchange, with an error.
pub async fn check(
    settings: &Settings,
    envelope: &Envelope<'_>,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<Verdict, RspamdError> {
    let exchange = exchange(settings, envelope, pieces);
    let reply = tokio::time::timeout(settings.timeout, exchange)
        .await
        .map_err(|_| RspamdError::Timeout(settings.timeout))??;
    read(&reply)
}

async fn exchange(
    settings: &Settings,
    envelope: &Envelope<'_>,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<Bytes, RspamdError> {
    let stream = TcpStream::connect((settings.host.as_str(), settings.port)).await.map_err(RspamdError::Connect)?;
    // The last piece should not wait for an acknowledgement; where it fails nothing is lost.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_OCTETS_MAX).handshake(TokioIo::new(stream)).await?;
    let request = request(settings, envelope, pieces)?;
    let mut asked = pin!(async {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => collect(response.into_body()).await,
            other => Err(RspamdError::Status(other)),
        }
    });
    // The connection does the work while we wait for the answer; it may end first, when all has been read.
    tokio::select! {
        biased;
        reply = &mut asked => reply,
        ended = connection => {
            ended?;
            asked.await
        }
    }
}

fn request(
    settings: &Settings,
    envelope: &Envelope<'_>,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<Request<Message>, RspamdError> {
    let mut request = Request::new(Message { pieces, left: envelope.size });
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = hyper::Uri::from_static("/checkv2");
    let sender = match envelope.sender {
        ReversePath::Null => "<>".to_owned(),
        ReversePath::Mailbox(sender) => format!("<{sender}>"),
    };
    let mut fields = vec![
        ("host", format!("{}:{}", settings.host, settings.port)),
        ("ip", envelope.ip.to_canonical().to_string()),
        ("helo", envelope.helo.to_owned()),
        ("hostname", envelope.ptr.unwrap_or("unknown").to_owned()),
        ("from", sender),
        ("queue-id", envelope.id.to_owned()),
        ("mta-name", envelope.hostname.to_owned()),
        ("user-agent", "pointsman".to_owned()),
    ];
    fields.extend(envelope.recipients.iter().map(|recipient| ("rcpt", format!("<{recipient}>"))));
    fields.extend(settings.password.iter().map(|password| ("password", password.clone())));
    for (name, value) in fields {
        // What a client said may not be sayable here: then rspamd does not learn it.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            request.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    if request.headers().contains_key("host") { Ok(request) } else { Err(RspamdError::Request) }
}

/// The message on its way: pieces as they come, and never more or fewer octets than were announced.
struct Message {
    pieces: mpsc::Receiver<Bytes>,
    left: u64,
}

/// The message ended before its announced length.
#[derive(Debug, thiserror::Error)]
#[error("the message cannot be read to its end")]
struct CutShort;

impl Body for Message {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.pieces.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(piece)) if piece.len() as u64 <= self.left => {
                self.left -= piece.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(_) | None) => Poll::Ready(Some(Err(CutShort))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

async fn collect(body: Incoming) -> Result<Bytes, RspamdError> {
    let mut body = pin!(body);
    let mut reply = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let Ok(piece) = frame?.into_data() else { continue };
        if reply.len() + piece.len() > REPLY_OCTETS_MAX {
            return Err(RspamdError::TooLong);
        }
        reply.extend_from_slice(&piece);
    }
    Ok(reply.freeze())
}

/// Reads the answer.
fn read(reply: &[u8]) -> Result<Verdict, RspamdError> {
    let reply: Value = serde_json::from_slice(reply).map_err(|_| RspamdError::Unreadable("it is no JSON"))?;
    let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
    let score = number(&reply["score"]).ok_or(RspamdError::Unreadable("there is no score"))?;
    let action = reply["action"].as_str().ok_or(RspamdError::Unreadable("there is no action"))?;
    let mut signals = Vec::new();
    for (name, symbol) in reply["symbols"].as_object().into_iter().flatten() {
        let points = number(&symbol["score"]).unwrap_or_default();
        signals.push(Signal { name: symbol_name(name).into(), points });
    }
    let explained = number(&reply["required_score"]).is_some_and(|required| score >= required);
    let mut report = SpamReport::new(score, signals);
    report.forced = action == "reject" && !explained;
    Ok(Verdict { report, try_again: action == "soft reject" })
}

/// A symbol's name as it may stand in a header field and in a log.
fn symbol_name(name: &str) -> String {
    let sane = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.chars().take(SYMBOL_CHARS_MAX).map(sane).collect()
}

/// `http://name:port`, the port 11333 unless it is named. The error says what would be accepted.
pub fn endpoint(url: &str) -> Result<(String, u16), String> {
    let expected = || "expected rspamd's address, such as `http://127.0.0.1:11333`".to_owned();
    let rest = match url.strip_prefix("http://") {
        Some(rest) => rest.strip_suffix('/').unwrap_or(rest),
        None if url.starts_with("https://") => {
            return Err("rspamd is spoken to in clear text: write `http://`".to_owned());
        }
        None => return Err(expected()),
    };
    let uri: hyper::http::uri::Authority = rest.parse().map_err(|_| expected())?;
    let host = uri.host().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port().map(|port| port.as_u16());
    let odd_port = rest.ends_with(':') || port == Some(0) || (port.is_none() && rest != uri.host());
    if host.is_empty() || odd_port { Err(expected()) } else { Ok((host.to_owned(), port.unwrap_or(PORT))) }
}

/// Of rspamd's normal worker.
const PORT: u16 = 11_333;
/// Some 200 symbols with their options are 40 KiB.
const REPLY_OCTETS_MAX: usize = 1024 * 1024;
/// The head of its answer; hyper's own default is 400 KiB.
const HEAD_OCTETS_MAX: usize = 64 * 1024;
/// The longest that rspamd brings has some 40.
const SYMBOL_CHARS_MAX: usize = 64;
