//! Opening a session on a host: connect, banner, EHLO. mail-send speaks; nobody else names it.
//!
//! mail-send drops what a server says behind a reply and reads without a limit, so it is handed our stream one line
//! at a time and bounded in all. What the server said beyond its answer to EHLO was asked by nobody: the session is
//! refused. STARTTLS and AUTH have their place between EHLO and the first MAIL; until they stand here, a route that
//! requires TLS is deferred, never relayed in clear text.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mail_send::SmtpClient;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

use crate::relay::route::{Host, Route, TlsMode};
use crate::reply::{Enhanced, Reply};
use crate::smtp::client::{Answer, Capabilities, Session, Stage, Verdict};
use crate::smtp::reply_reader::{REPLY_LINE_OCTETS_MAX, REPLY_TEXT_OCTETS_MAX, ReplyReader};

/// The port through which the conductor opens sessions.
pub trait Dial: Send + Sync + 'static {
    /// Opens a session on `host`, greeting as `helo`, and reads what it can do.
    fn dial<'a>(&'a self, route: &'a Route, host: &'a Host, helo: &'a str) -> Dialling<'a>;
}

pub type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Connection, DialError>> + Send + 'a>>;

/// Why there is no session.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no session with {peer}")]
pub struct DialError {
    /// Host, and address where it has come to one.
    pub peer: String,
    /// Whom the last address saw us as.
    pub local: Option<IpAddr>,
    pub verdict: Verdict,
}

/// A session, ready for MAIL.
pub struct Connection {
    pub stream: Stream,
    pub session: Session,
    pub replies: ReplyReader,
    /// What goes out next; kept for its memory.
    pub wire: Vec<u8>,
    /// `host[address]:port`, for people.
    pub peer: String,
    /// Our address in this session.
    pub local: Option<IpAddr>,
    /// Transactions begun in it.
    pub used: u32,
}

impl Connection {
    /// A session over `stream`, which has said its EHLO.
    #[must_use]
    pub fn new(stream: Stream, capabilities: Capabilities, peer: String, local: Option<IpAddr>) -> Connection {
        let session = Session::new(capabilities);
        Connection { stream, session, replies: ReplyReader::default(), wire: Vec::new(), peer, local, used: 0 }
    }
}

/// What a session runs on. TCP stands unboxed, because every octet passes here.
pub enum Stream {
    Tcp(TcpStream),
    Other(Box<dyn Duplex>),
}

/// Reads and writes.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// How long each stage may take (RFC 5321 §4.5.3.2 unless another reason is given).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one address. The RFC leaves it open; a host that answers at all does so within its SYN retries.
    pub connect: Duration,
    pub banner: Duration,
    /// The RFC leaves it open; as for MAIL.
    pub ehlo: Duration,
    pub mail: Duration,
    pub rcpt: Duration,
    pub data: Duration,
    /// For each write of a piece of the message.
    pub block: Duration,
    /// For the answer to the final dot.
    pub dot: Duration,
    /// For the farewell, which nobody needs: QUIT is courtesy.
    pub quit: Duration,
}

impl Timeouts {
    /// The values of RFC 5321.
    #[must_use]
    pub const fn rfc5321() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(30),
            banner: Duration::from_secs(5 * 60),
            ehlo: Duration::from_secs(5 * 60),
            mail: Duration::from_secs(5 * 60),
            rcpt: Duration::from_secs(5 * 60),
            data: Duration::from_secs(2 * 60),
            block: Duration::from_secs(3 * 60),
            dot: Duration::from_secs(10 * 60),
            quit: Duration::from_secs(5),
        }
    }

    /// For a reply at `stage`.
    #[must_use]
    pub fn of(&self, stage: Stage) -> Duration {
        match stage {
            Stage::Connect => self.connect,
            Stage::Banner => self.banner,
            Stage::Ehlo => self.ehlo,
            Stage::Mail => self.mail,
            Stage::Rcpt => self.rcpt,
            Stage::Data => self.data,
            Stage::Body => self.block,
            Stage::Dot => self.dot,
        }
    }
}

/// The real adapter: TCP.
pub struct TcpDial {
    pub timeouts: Timeouts,
}

impl Dial for TcpDial {
    fn dial<'a>(&'a self, route: &'a Route, host: &'a Host, helo: &'a str) -> Dialling<'a> {
        Box::pin(self.dial_host(route, host, helo))
    }
}

impl TcpDial {
    async fn dial_host(&self, route: &Route, host: &Host, helo: &str) -> Result<Connection, DialError> {
        let failed = |answer| DialError {
            peer: format!("{}:{}", host.name, host.port),
            local: None,
            verdict: Verdict { stage: Stage::Connect, answer },
        };
        match route.tls {
            TlsMode::Off | TlsMode::Opportunistic => {}
            TlsMode::Require | TlsMode::Verify => {
                return Err(failed(Answer::Tls("the route requires TLS, which is not built yet".to_owned())));
            }
        }
        let looked_up = timeout(self.timeouts.connect, lookup_host((host.name.as_str(), host.port))).await;
        let addresses = match looked_up {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(failed(Answer::Connect(format!("cannot look up `{}`: {error}", host.name)))),
            Err(_) => return Err(failed(Answer::Timeout)),
        };
        let family = |address: &SocketAddr| route.source.is_none_or(|source| source.is_ipv4() == address.is_ipv4());
        let mut last = failed(Answer::Connect(format!("`{}` has no address that we can connect to", host.name)));
        // RFC 5321 §5.1: all addresses of a host are tried, in the order in which they came.
        for address in addresses.filter(family).take(ADDRESSES_MAX) {
            match self.dial_address(route, host, address, helo).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_address(
        &self,
        route: &Route,
        host: &Host,
        address: SocketAddr,
        helo: &str,
    ) -> Result<Connection, DialError> {
        let peer = if host.name.parse::<IpAddr>().is_ok() {
            address.to_string()
        } else {
            format!("{}[{}]:{}", host.name, address.ip(), address.port())
        };
        let failed = |stage, answer| DialError { peer: peer.clone(), local: None, verdict: Verdict { stage, answer } };
        let tcp = match timeout(self.timeouts.connect, connect(route.source, address)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                let words = format!("cannot connect to {address}: {error}");
                return Err(failed(Stage::Connect, Answer::Connect(words)));
            }
            Err(_) => return Err(failed(Stage::Connect, Answer::Timeout)),
        };
        let local = tcp.local_addr().ok().map(|address| address.ip());
        match greet(tcp, helo, &self.timeouts).await {
            Ok((tcp, capabilities)) => Ok(Connection::new(Stream::Tcp(tcp), capabilities, peer, local)),
            Err(verdict) => Err(DialError { peer, local, verdict }),
        }
    }
}

async fn connect(source: Option<IpAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = match source {
        None => TcpStream::connect(address).await?,
        Some(source) => {
            let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.bind(SocketAddr::new(source, 0))?;
            socket.connect(address).await?
        }
    };
    // Our writes are whole groups of commands and whole messages: waiting for more only delays them.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Banner and EHLO, or HELO where EHLO is refused (RFC 5321 §3.2). Gives the stream back, with nothing unread.
pub async fn greet<S>(stream: S, helo: &str, timeouts: &Timeouts) -> Result<(S, Capabilities), Verdict>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut client = SmtpClient { stream: ByLine::new(stream), timeout: timeouts.ehlo };
    let failed = |stage, answer| Verdict { stage, answer };
    let banner = match timeout(timeouts.banner, client.read()).await {
        Ok(Ok(banner)) => remote(banner.code, banner.esc, banner.message),
        Ok(Err(error)) => return Err(failed(Stage::Banner, answer_of(error, client.stream.ended))),
        Err(_) => return Err(failed(Stage::Banner, Answer::Timeout)),
    };
    match banner.code {
        220 => {}
        400..600 => return Err(failed(Stage::Banner, Answer::Reply(banner))),
        _ => return Err(failed(Stage::Banner, Answer::Garbled("the banner is no 220"))),
    }

    let capabilities = match client.ehlo(helo).await {
        Ok(ehlo) => Capabilities {
            pipelining: ehlo.has_capability(smtp_proto::EXT_PIPELINING),
            eight_bit_mime: ehlo.has_capability(smtp_proto::EXT_8BIT_MIME),
            smtputf8: ehlo.has_capability(smtp_proto::EXT_SMTP_UTF8),
            dsn: ehlo.has_capability(smtp_proto::EXT_DSN),
            size: ehlo.has_capability(smtp_proto::EXT_SIZE),
            // RFC 1870 §4: zero, or no number, is no limit.
            size_max: Some(ehlo.size as u64).filter(|&size| size > 0),
        },
        Err(mail_send::Error::UnexpectedReply(reply)) if (500..600).contains(&reply.code) => {
            match client.cmd(format!("HELO {helo}\r\n")).await {
                Ok(reply) if reply.code == 250 => Capabilities::default(),
                Ok(reply) => {
                    let reply = remote(reply.code, reply.esc, reply.message);
                    return Err(failed(Stage::Ehlo, classed(reply)));
                }
                Err(error) => return Err(failed(Stage::Ehlo, answer_of(error, client.stream.ended))),
            }
        }
        Err(error) => return Err(failed(Stage::Ehlo, answer_of(error, client.stream.ended))),
    };
    if !client.stream.held.is_empty() {
        return Err(failed(Stage::Ehlo, Answer::Garbled("the server spoke out of turn")));
    }
    Ok((client.stream.inner, capabilities))
}

fn answer_of(error: mail_send::Error, ended: bool) -> Answer {
    match error {
        mail_send::Error::Timeout => Answer::Timeout,
        mail_send::Error::Io(error) => Answer::Lost(error.to_string()),
        mail_send::Error::UnexpectedReply(reply) => classed(remote(reply.code, reply.esc, reply.message)),
        mail_send::Error::UnparseableReply if ended => Answer::Lost("the server closed the connection".to_owned()),
        mail_send::Error::UnparseableReply => Answer::Garbled("the greeting cannot be understood"),
        error => Answer::Lost(error.to_string()),
    }
}

fn classed(reply: Reply) -> Answer {
    if (400..600).contains(&reply.code) {
        Answer::Reply(reply)
    } else {
        Answer::Garbled("the reply has a strange code")
    }
}

/// A reply as mail-send read it: it has taken the enhanced code out of the text.
fn remote(code: u16, esc: [u8; 3], message: String) -> Reply {
    let enhanced = Enhanced(esc[0], u16::from(esc[1]), u16::from(esc[2]));
    let mut text = Reply::with_text(code, enhanced, message.trim_end()).text.into_owned();
    text.truncate(text.floor_char_boundary(GREETING_TEXT_MAX));
    Reply { code, enhanced: (u16::from(esc[0]) == code / 100).then_some(enhanced), text: Cow::Owned(text) }
}

/// Hands out what the server says line by line, so that mail-send never holds more than it understands.
struct ByLine<S> {
    inner: S,
    held: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl<S> ByLine<S> {
    fn new(inner: S) -> ByLine<S> {
        ByLine { inner, held: Vec::new(), taken: 0, ended: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ByLine<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(end) = memchr::memchr(b'\n', &this.held) {
                let now = (end + 1).min(out.remaining());
                out.put_slice(&this.held[..now]);
                this.held.drain(..now);
                return Poll::Ready(Ok(()));
            }
            if this.held.len() >= GREETING_LINE_MAX || this.taken >= GREETING_OCTETS_MAX {
                return Poll::Ready(Err(io::Error::other("the server's greeting is too long")));
            }
            let mut space = [0; 1024];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            this.taken += buffer.filled().len();
            this.held.extend_from_slice(buffer.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ByLine<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, octets)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, out),
            Stream::Other(other) => Pin::new(other).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, octets),
            Stream::Other(other) => Pin::new(other).poll_write(cx, octets),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Other(other) => Pin::new(other).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Other(other) => Pin::new(other).poll_shutdown(cx),
        }
    }
}

/// A host with more addresses than this is tried long enough.
const ADDRESSES_MAX: usize = 8;
/// As for any reply line.
const GREETING_LINE_MAX: usize = REPLY_LINE_OCTETS_MAX;
/// Banner, EHLO and HELO together; mail-send takes 4 KiB of each.
const GREETING_OCTETS_MAX: usize = 16 * 1024;
const GREETING_TEXT_MAX: usize = REPLY_TEXT_OCTETS_MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that says each text after one read from the client; the first at once.
    async fn greeted(says: &[&str]) -> (Result<Capabilities, Verdict>, String) {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let texts: Vec<String> = says.iter().map(|text| (*text).to_owned()).collect();
        let server = tokio::spawn(async move {
            let mut heard = Vec::new();
            for (n, text) in texts.iter().enumerate() {
                if n > 0 && theirs.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                    break;
                }
                if theirs.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
            }
            String::from_utf8(heard).unwrap()
        });
        let result = greet(ours, "mx.example", &Timeouts::rfc5321()).await.map(|(_, capabilities)| capabilities);
        (result, server.await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn capabilities_are_read() {
        let ehlo = "250-crm\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-X-WHAT ever\r\n250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8\r\n";
        let (result, heard) = greeted(&["220-crm\r\n220 hello\r\n", ehlo]).await;
        let want = Capabilities {
            pipelining: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            size: true,
            size_max: Some(1000),
        };
        assert_eq!(result, Ok(want));
        assert_eq!(heard, "EHLO mx.example\r\n");
        let (result, _) = greeted(&["220 hello\r\n", "250-crm\r\n250 SIZE\r\n"]).await;
        assert_eq!(result, Ok(Capabilities { size: true, ..Capabilities::default() }));
    }

    #[tokio::test(start_paused = true)]
    async fn helo_follows_a_refused_ehlo() {
        let (result, heard) = greeted(&["220 hello\r\n", "500-what\r\n500 is that\r\n", "250 crm\r\n"]).await;
        assert_eq!(result, Ok(Capabilities::default()));
        assert_eq!(heard, "EHLO mx.example\r\nHELO mx.example\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn greetings_that_fail() {
        let many = format!("250-crm\r\n{}250 SIZE\r\n", "250-X-KEYWORD\r\n".repeat(10_000));
        let long = "x".repeat(100_000);
        let wide = format!("220 {}\r\n", "x".repeat(100_000));
        for (says, stage, want) in [
            (vec!["554 5.7.1 go away\r\n"], Stage::Banner, "554 5.7.1 go away"),
            (vec!["421 busy\r\n"], Stage::Banner, "421 busy"),
            (vec!["250 hello\r\n"], Stage::Banner, "not understood"),
            (vec!["hello\r\n"], Stage::Banner, "not understood"),
            (vec![&*long], Stage::Banner, "too long"),
            (vec![&*wide], Stage::Banner, "too long"),
            (vec![], Stage::Banner, "lost"),
            (vec!["220 hello\r\n"], Stage::Ehlo, "lost"),
            (vec!["220 hello\r\n", "421 4.3.2 closing\r\n"], Stage::Ehlo, "421 4.3.2 closing"),
            (vec!["220 hello\r\n", "550 no\r\n", "550 no no\r\n"], Stage::Ehlo, "550 no no"),
            (vec!["220 hello\r\n", "250 crm\r\n250 ok\r\n"], Stage::Ehlo, "out of turn"),
            (vec!["220 hello\r\n", &*many], Stage::Ehlo, "not understood"),
        ] {
            let (result, _) = greeted(&says).await;
            let verdict = result.expect_err(want);
            let words = crate::relay::outcome::words(&verdict);
            assert!(verdict.stage == stage && words.contains(want), "{want}: {verdict:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_costs_the_stage_its_time() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        let verdict = greet(ours, "mx.example", &Timeouts::rfc5321()).await.map(|_| ()).unwrap_err();
        assert_eq!(verdict, Verdict { stage: Stage::Banner, answer: Answer::Timeout });
        assert_eq!(begun.elapsed(), Duration::from_secs(300));
    }

    #[tokio::test]
    async fn a_route_that_requires_tls_is_never_dialled_in_clear_text() {
        let dial = TcpDial { timeouts: Timeouts::rfc5321() };
        let host = Host { name: "127.0.0.1".to_owned(), port: 1 };
        for tls in [TlsMode::Require, TlsMode::Verify] {
            let route = Route {
                name: "crm".to_owned(),
                hosts: vec![host.clone()],
                tls,
                helo: None,
                source: None,
                concurrency: 1,
                dedupe: None,
            };
            let error = dial.dial(&route, &host, "mx.example").await.map(|_| ()).unwrap_err();
            assert!(matches!(error.verdict.answer, Answer::Tls(_)));
        }
    }

    #[tokio::test]
    async fn a_session_over_tcp() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"220 hi\r\n").await.unwrap();
            let mut heard = Vec::new();
            tcp.read_buf(&mut heard).await.unwrap();
            tcp.write_all(b"250-hi\r\n250 PIPELINING\r\n").await.unwrap();
            tcp
        });
        let host = Host { name: "localhost".to_owned(), port };
        let route = Route {
            name: "crm".to_owned(),
            hosts: vec![host.clone()],
            tls: TlsMode::Off,
            helo: None,
            source: Some("127.0.0.1".parse().unwrap()),
            concurrency: 1,
            dedupe: None,
        };
        let dial = TcpDial { timeouts: Timeouts::rfc5321() };
        let connection = dial.dial(&route, &host, "mx.example").await.unwrap_or_else(|e| panic!("{e:?}"));
        assert!(connection.session.capabilities.pipelining);
        assert_eq!(connection.peer, format!("localhost[127.0.0.1]:{port}"));
        assert!(server.await.is_ok());
    }
}
