//! Opening a session on a host: connect, banner, EHLO, STARTTLS. mail-send speaks; nobody else names it.
//!
//! mail-send drops what a server says behind a reply and reads without a limit, so it is handed our stream one line
//! at a time and bounded in all. What the server said beyond its answer to EHLO was asked by nobody: the session is
//! refused, and so it is behind the 220 to STARTTLS. Where TLS does not come about, a route that requires or verifies
//! it is deferred, never relayed in clear text; an opportunistic one goes on in a new connection without, and says so.
//! AUTH is said inside TLS only, between EHLO and the first MAIL.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use mail_send::{Credentials, SmtpClient};
use smtp_proto::EhloResponse;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

use crate::relay::route::{Chunking, Demand, Host, Login, Route, TlsMode};
use crate::relay::stream::ByLine;
use crate::reply::{Enhanced, Reply};
use crate::smtp::client::{Answer, Capabilities, Session, Stage, TlsLack, Verdict};
use crate::smtp::reply_reader::{REPLY_TEXT_OCTETS_MAX, ReplyReader};
use crate::tls::{CertificateError, Connector, HANDSHAKE_TIMEOUT, TOO_LONG};

pub use crate::relay::stream::{Duplex, Stream};

/// The port through which the conductor opens sessions.
pub trait Dial: Send + Sync + 'static {
    /// Opens a session on `host`, greeting as `helo`, and reads what it can do. `demand`: what a message asks beyond the
    /// route.
    fn dial<'a>(&'a self, route: &'a Route, host: &'a Host, helo: &'a str, demand: Demand) -> Dialling<'a>;
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
    pub security: Security,
    /// Our address in this session.
    pub local: Option<IpAddr>,
    /// Transactions begun in it.
    pub used: u32,
    /// What its route says about BDAT.
    pub chunking: Chunking,
}

impl Connection {
    /// A session over `stream`, which has said its EHLO.
    #[must_use]
    pub fn new(stream: Stream, capabilities: Capabilities, peer: String, local: Option<IpAddr>) -> Connection {
        let session = Session::new(capabilities);
        let security = Security::Clear;
        Connection {
            stream,
            session,
            replies: ReplyReader::default(),
            wire: Vec::new(),
            peer,
            security,
            local,
            used: 0,
            chunking: Chunking::Auto,
        }
    }
}

impl Connection {
    /// What is sent in it may have been sent with REQUIRETLS (RFC 8689 §4.2.1).
    #[must_use]
    pub fn keeps_to_tls(&self) -> bool {
        self.security == Security::Verified && self.session.capabilities.require_tls
    }
}

/// How a session is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// TLS was not wanted, or not offered.
    Clear,
    /// TLS was offered and failed, in a connection before this one: why.
    ClearAfter(String),
    /// By TLS with whatever certificate.
    Encrypted,
    /// By TLS with a certificate that was verified.
    Verified,
}

/// How long each stage may take (RFC 5321 §4.5.3.2 unless another reason is given).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one address. The RFC leaves it open; a host that answers at all does so within its SYN retries.
    pub connect: Duration,
    pub banner: Duration,
    /// The RFC leaves it open; as for MAIL.
    pub ehlo: Duration,
    /// For the answer to STARTTLS, and again for the handshake.
    pub tls: Duration,
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
            tls: HANDSHAKE_TIMEOUT,
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
            Stage::Tls => self.tls,
            // The RFCs leave it open; it is two commands at the most.
            Stage::Auth => self.ehlo,
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
    timeouts: Timeouts,
    anybody: Connector,
    /// By the file of roots.
    verifying: BTreeMap<Option<PathBuf>, Result<Connector, CertificateError>>,
    /// By the system's roots, for messages that ask for more than their route: read when the first of them comes.
    on_demand: Mutex<Option<Connector>>,
}

impl Dial for TcpDial {
    fn dial<'a>(&'a self, route: &'a Route, host: &'a Host, helo: &'a str, demand: Demand) -> Dialling<'a> {
        Box::pin(self.dial_host(route, host, helo, demand))
    }
}

impl TcpDial {
    /// Reads the roots that these routes ask for. Where they cannot be read every attempt of such a route says so.
    pub fn new<'a>(timeouts: Timeouts, routes: impl IntoIterator<Item = &'a Route>) -> TcpDial {
        let mut verifying = BTreeMap::new();
        for route in routes.into_iter().filter(|route| route.tls == TlsMode::Verify) {
            verifying.entry(route.ca.clone()).or_insert_with(|| Connector::verifying(route.ca.as_deref()));
        }
        TcpDial { timeouts, anybody: Connector::anybody(), verifying, on_demand: Mutex::default() }
    }

    fn connector(&self, route: &Route, demand: Demand) -> Result<Option<Connector>, Answer> {
        match (route.tls, demand) {
            // The administrator knows that there is no TLS on this way.
            (TlsMode::Off, Demand::VerifiedTls) => Err(Answer::RequireTls(TlsLack::Off)),
            (TlsMode::Off, Demand::Usual) => Ok(None),
            (TlsMode::Opportunistic | TlsMode::Require, Demand::Usual) => Ok(Some(self.anybody.clone())),
            (TlsMode::Opportunistic | TlsMode::Require, Demand::VerifiedTls) => self.demanded().map(Some),
            (TlsMode::Verify, _) => match self.verifying.get(&route.ca) {
                Some(Ok(connector)) => Ok(Some(connector.clone())),
                Some(Err(error)) => Err(Answer::Tls(error.to_string())),
                None => Err(Answer::Tls("the roots that the route verifies by were not read".to_owned())),
            },
        }
    }

    fn demanded(&self) -> Result<Connector, Answer> {
        let mut read = self.on_demand.lock().expect("no code panics while it holds this lock");
        if let Some(connector) = &*read {
            return Ok(connector.clone());
        }
        // The file of roots is small, and read once: not worth another thread.
        let connector = Connector::verifying(None).map_err(|error| Answer::Tls(error.to_string()))?;
        Ok(read.insert(connector).clone())
    }

    async fn dial_host(&self, route: &Route, host: &Host, helo: &str, demand: Demand) -> Result<Connection, DialError> {
        let failed = |answer| DialError {
            peer: format!("{}:{}", host.name, host.port),
            local: None,
            verdict: Verdict { stage: Stage::Connect, answer },
        };
        let tls = match demand {
            Demand::Usual => route.tls,
            Demand::VerifiedTls => TlsMode::Verify,
        };
        let connector = self.connector(route, demand).map_err(failed)?;
        let wish = Wish { tls, connector: connector.as_ref() };
        let addresses = self.addresses(host).await.map_err(failed)?;
        let family = |address: &SocketAddr| {
            let ours = route.source.is_none_or(|source| source.is_ipv4() == address.is_ipv4());
            ours && route.family.allows(address.ip())
        };
        let mut last = failed(Answer::Connect(format!("`{}` has no address that we can connect to", host.name)));
        // RFC 5321 §5.1: all addresses of a host are tried, in the order in which they came.
        for address in addresses.into_iter().filter(family).take(ADDRESSES_MAX) {
            match self.dial_address(route, host, address, helo, wish).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where to dial a host. What was looked up and looked at already is not asked for again: a second answer may be
    /// another one, and lead to where the first must not.
    async fn addresses(&self, host: &Host) -> Result<Vec<SocketAddr>, Answer> {
        if !host.addresses.is_empty() {
            return Ok(host.addresses.iter().map(|ip| SocketAddr::new(*ip, host.port)).collect());
        }
        match timeout(self.timeouts.connect, lookup_host((host.name.as_str(), host.port))).await {
            Ok(Ok(addresses)) => Ok(addresses.collect()),
            Ok(Err(error)) => Err(Answer::Connect(format!("cannot look up `{}`: {error}", host.name))),
            Err(_) => Err(Answer::Timeout),
        }
    }

    /// One address: with TLS, and where that fails and the route allows it, in a new connection without.
    async fn dial_address(
        &self,
        route: &Route,
        host: &Host,
        address: SocketAddr,
        helo: &str,
        wish: Wish<'_>,
    ) -> Result<Connection, DialError> {
        let error = match self.open(route, host, address, helo, wish).await {
            Err(error) if error.verdict.stage == Stage::Tls => error,
            other => return other,
        };
        match (wish.tls, error.verdict.answer) {
            (TlsMode::Opportunistic, Answer::Tls(why)) => {
                let clear = Wish { tls: TlsMode::Off, connector: None };
                let mut connection = self.open(route, host, address, helo, clear).await?;
                connection.security = Security::ClearAfter(why);
                Ok(connection)
            }
            (_, answer) => Err(DialError { verdict: Verdict { stage: Stage::Tls, answer }, ..error }),
        }
    }

    async fn open(
        &self,
        route: &Route,
        host: &Host,
        address: SocketAddr,
        helo: &str,
        wish: Wish<'_>,
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
        let Wish { tls, connector } = wish;
        let wanted = connector.map(|connector| Wanted { connector, host, ip: address.ip(), tls });
        match begin(tcp, helo, &self.timeouts, wanted, route.login.as_ref()).await {
            Ok((stream, capabilities, security)) => {
                let chunking = route.chunking;
                Ok(Connection { security, chunking, ..Connection::new(stream, capabilities, peer, local) })
            }
            Err(verdict) => Err(DialError { peer, local, verdict }),
        }
    }
}

/// How much TLS a session is to have, and by whom it is made.
#[derive(Clone, Copy)]
struct Wish<'a> {
    tls: TlsMode,
    connector: Option<&'a Connector>,
}

/// How a session is to come to TLS.
struct Wanted<'a> {
    connector: &'a Connector,
    host: &'a Host,
    ip: IpAddr,
    tls: TlsMode,
}

/// Banner, EHLO, and where TLS is wanted STARTTLS, the handshake and EHLO again. What the server said in clear text, its
/// capabilities first, counts for nothing inside TLS (RFC 3207 §4.2).
async fn begin(
    tcp: TcpStream,
    helo: &str,
    timeouts: &Timeouts,
    wanted: Option<Wanted<'_>>,
    login: Option<&Login>,
) -> Result<(Stream, Capabilities, Security), Verdict> {
    let mut client = SmtpClient { stream: ByLine::new(tcp), timeout: timeouts.ehlo };
    hear_banner(&mut client, timeouts).await?;
    let offered = say_hello(&mut client, helo).await?;
    let failed = |why: String| Verdict { stage: Stage::Tls, answer: Answer::Tls(why) };
    let wanted = match wanted {
        Some(wanted) if offered.starttls => wanted,
        Some(Wanted { tls: TlsMode::Require | TlsMode::Verify, .. }) => {
            return Err(failed("the host does not offer STARTTLS, which the route requires".to_owned()));
        }
        // No configuration comes to this. A password is not for whoever listens.
        _ if login.is_some() => return Err(failed("AUTH is for sessions inside TLS".to_owned())),
        Some(_) | None => {
            // RFC 8689 §2: in clear text it means nothing, whoever says it.
            let capabilities = Capabilities { require_tls: false, ..offered.capabilities };
            return Ok((Stream::Tcp(client.stream.inner), capabilities, Security::Clear));
        }
    };
    client.timeout = timeouts.tls;
    match client.cmd(b"STARTTLS\r\n").await {
        // What stands behind the 220 may be somebody's who wants it to be read as an answer inside TLS.
        Ok(reply) if reply.code == 220 && client.stream.held.is_empty() => {}
        Ok(reply) if reply.code == 220 => {
            return Err(failed("the host said more behind its 220 to STARTTLS".to_owned()));
        }
        Ok(reply) => {
            let reply = remote(reply.code, reply.esc, reply.message);
            return Err(failed(format!("the host refused STARTTLS: {reply}")));
        }
        Err(error) => return Err(failed(format!("no answer to STARTTLS: {}", shown(&error.to_string())))),
    }
    let Wanted { connector, host, ip, .. } = wanted;
    let stream = match timeout(timeouts.tls, connector.connect(client.stream.inner, &host.name, ip)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(failed(format!("TLS with `{}` failed: {}", host.name, shown(&why)))),
        Err(_) => return Err(failed(format!("TLS with `{}` failed: {TOO_LONG}", host.name))),
    };
    let mut client = SmtpClient { stream: ByLine::new(stream), timeout: timeouts.ehlo };
    let hello = say_hello(&mut client, helo).await.map_err(|verdict| match verdict.answer {
        // A server that turns our side of the handshake down says so behind its own (RFC 8446 §4.4.2.4).
        Answer::Lost(why) => failed(format!("TLS with `{}` broke off: {}", host.name, shown(&why))),
        _ => verdict,
    })?;
    if let Some(login) = login {
        authenticate(&mut client, login, &hello).await?;
    }
    let security = if connector.verifies() { Security::Verified } else { Security::Encrypted };
    Ok((Stream::Other(Box::new(client.stream.inner)), hello.capabilities, security))
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

/// Banner and EHLO in clear text. Gives the stream back, with nothing unread.
pub async fn greet<S>(stream: S, helo: &str, timeouts: &Timeouts) -> Result<(S, Capabilities), Verdict>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut client = SmtpClient { stream: ByLine::new(stream), timeout: timeouts.ehlo };
    hear_banner(&mut client, timeouts).await?;
    let hello = say_hello(&mut client, helo).await?;
    Ok((client.stream.inner, hello.capabilities))
}

async fn hear_banner<S>(client: &mut SmtpClient<ByLine<S>>, timeouts: &Timeouts) -> Result<(), Verdict>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let failed = |answer| Verdict { stage: Stage::Banner, answer };
    let banner = match timeout(timeouts.banner, client.read()).await {
        Ok(Ok(banner)) => remote(banner.code, banner.esc, banner.message),
        Ok(Err(error)) => return Err(failed(answer_of(error, client.stream.ended))),
        Err(_) => return Err(failed(Answer::Timeout)),
    };
    match banner.code {
        220 => Ok(()),
        400..600 => Err(failed(Answer::Reply(banner))),
        _ => Err(failed(Answer::Garbled("the banner is no 220"))),
    }
}

/// Says who we are. PLAIN and LOGIN only: inside TLS nothing else is safer, and they are what hosts offer.
async fn authenticate<S>(client: &mut SmtpClient<ByLine<S>>, login: &Login, hello: &Hello) -> Result<(), Verdict>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let failed = |answer| Verdict { stage: Stage::Auth, answer };
    let mut offered = EhloResponse::new(String::new());
    offered.auth_mechanisms = hello.auth & (smtp_proto::AUTH_PLAIN | smtp_proto::AUTH_LOGIN);
    let credentials = Credentials::new(login.user.clone(), login.password.clone());
    match client.authenticate(&credentials, &offered).await.map(|_| ()) {
        Ok(()) if client.stream.held.is_empty() => Ok(()),
        Ok(()) => Err(failed(Answer::Garbled("the server spoke out of turn"))),
        Err(mail_send::Error::AuthenticationFailed(reply)) => {
            Err(failed(classed(remote(reply.code, reply.esc, reply.message))))
        }
        Err(mail_send::Error::UnsupportedAuthMechanism) => {
            Err(failed(Answer::Garbled("the server offers neither AUTH PLAIN nor AUTH LOGIN")))
        }
        Err(error) => Err(failed(answer_of(error, client.stream.ended))),
    }
}

/// The answer to EHLO.
struct Hello {
    capabilities: Capabilities,
    starttls: bool,
    /// The mechanisms of AUTH, as smtp-proto counts them.
    auth: u64,
}

/// EHLO, or HELO where EHLO is refused (RFC 5321 §3.2). Afterwards nothing is unread.
async fn say_hello<S>(client: &mut SmtpClient<ByLine<S>>, helo: &str) -> Result<Hello, Verdict>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let failed = |answer| Verdict { stage: Stage::Ehlo, answer };
    let hello = match client.ehlo(helo).await {
        Ok(ehlo) => Hello {
            starttls: ehlo.has_capability(smtp_proto::EXT_START_TLS),
            auth: ehlo.auth_mechanisms,
            capabilities: Capabilities {
                pipelining: ehlo.has_capability(smtp_proto::EXT_PIPELINING),
                eight_bit_mime: ehlo.has_capability(smtp_proto::EXT_8BIT_MIME),
                smtputf8: ehlo.has_capability(smtp_proto::EXT_SMTP_UTF8),
                dsn: ehlo.has_capability(smtp_proto::EXT_DSN),
                require_tls: ehlo.has_capability(smtp_proto::EXT_REQUIRE_TLS),
                chunking: ehlo.has_capability(smtp_proto::EXT_CHUNKING),
                size: ehlo.has_capability(smtp_proto::EXT_SIZE),
                // RFC 1870 §4: zero, or no number, is no limit.
                size_max: Some(ehlo.size as u64).filter(|&size| size > 0),
            },
        },
        Err(mail_send::Error::UnexpectedReply(reply)) if (500..600).contains(&reply.code) => {
            match client.cmd(format!("HELO {helo}\r\n")).await {
                Ok(reply) if reply.code == 250 => {
                    Hello { capabilities: Capabilities::default(), starttls: false, auth: 0 }
                }
                Ok(reply) => return Err(failed(classed(remote(reply.code, reply.esc, reply.message)))),
                Err(error) => return Err(failed(answer_of(error, client.stream.ended))),
            }
        }
        Err(error) => return Err(failed(answer_of(error, client.stream.ended))),
    };
    if !client.stream.held.is_empty() {
        return Err(failed(Answer::Garbled("the server spoke out of turn")));
    }
    Ok(hello)
}

/// Words that a peer may have chosen, as they may stand in a log, a table and a terminal.
fn shown(text: &str) -> String {
    let mut text = Reply::with_text(400, Enhanced(4, 0, 0), text).text.into_owned();
    text.truncate(text.floor_char_boundary(GREETING_TEXT_MAX));
    text
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
    let text = Cow::Owned(shown(message.trim_end()));
    Reply { code, enhanced: (u16::from(esc[0]) == code / 100).then_some(enhanced), text }
}

/// A host with more addresses than this is tried long enough.
const ADDRESSES_MAX: usize = 8;
const GREETING_TEXT_MAX: usize = REPLY_TEXT_OCTETS_MAX;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    use crate::tls::tests::Authority;
    use crate::tls::{self, MaybeTls};

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
            chunking: false,
            dsn: true,
            require_tls: false,
            size: true,
            size_max: Some(1000),
        };
        assert_eq!(result, Ok(want));
        assert_eq!(heard, "EHLO mx.example\r\n");
        let (result, _) = greeted(&["220 hello\r\n", "250-crm\r\n250 SIZE\r\n"]).await;
        assert_eq!(result, Ok(Capabilities { size: true, ..Capabilities::default() }));
    }

    #[tokio::test(start_paused = true)]
    async fn chunking_is_an_offer_that_is_noticed() {
        let (result, _) = greeted(&["220 hello\r\n", "250-crm\r\n250 CHUNKING\r\n"]).await;
        assert_eq!(result, Ok(Capabilities { chunking: true, ..Capabilities::default() }));
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
        let host = Host { name: "localhost".to_owned(), port, addresses: Vec::new() };
        let route = Route {
            hosts: vec![host.clone()],
            tls: TlsMode::Off,
            source: Some("127.0.0.1".parse().unwrap()),
            concurrency: 1,
            ..Route::named("crm")
        };
        let dial = TcpDial::new(Timeouts::rfc5321(), []);
        let connection =
            dial.dial(&route, &host, "mx.example", Demand::Usual).await.unwrap_or_else(|e| panic!("{e:?}"));
        assert!(connection.session.capabilities.pipelining);
        assert_eq!(connection.peer, format!("localhost[127.0.0.1]:{port}"));
        assert!(server.await.is_ok());
    }

    #[tokio::test]
    async fn a_host_that_was_looked_up_is_dialled_where_it_was_found() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"421 busy\r\n").await.unwrap();
        });
        // Whoever asked for the name again would not find it.
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|ip| ip.parse().unwrap()).to_vec();
        let host = Host { name: "mx.crm.invalid".to_owned(), port, addresses };
        let route =
            Route { port, private_networks: true, tls: TlsMode::Off, concurrency: 1, ..Route::named("default") };
        let dial = TcpDial::new(Timeouts::rfc5321(), []);
        let error = dial.dial(&route, &host, "mx.example", Demand::Usual).await.map(|_| ()).unwrap_err();
        assert_eq!((error.peer, error.verdict.stage), (format!("mx.crm.invalid[127.0.0.1]:{port}"), Stage::Banner));
        assert!(server.await.is_ok());
    }

    #[tokio::test]
    async fn a_message_may_demand_more_than_its_route() {
        use TlsMode::{Off, Opportunistic, Require, Verify};
        let authority = Authority::new();
        for (habit, name, tls, want) in [
            (Habit::Sound, "localhost", Verify, "Verified"),
            (Habit::Sound, "other.example", Verify, "not valid for name"),
            // The test's authority is none of the system's.
            (Habit::Sound, "localhost", Require, "UnknownIssuer"),
            (Habit::Sound, "localhost", Opportunistic, "UnknownIssuer"),
            (Habit::NotOffered, "localhost", Opportunistic, "does not offer STARTTLS"),
            (Habit::Broken, "localhost", Opportunistic, "corrupt"),
            (Habit::Sound, "localhost", Off, "Off"),
        ] {
            let (port, sessions) = host_that(habit, tls::Server::open(authority.issue(name, 2096)).unwrap()).await;
            let host = Host { name: "localhost".to_owned(), port, addresses: Vec::new() };
            let route = Route { tls, ca: Some(authority.ca()), ..route_to(host.clone()) };
            let dial = TcpDial::new(Timeouts::rfc5321(), [&route]);
            let got = match dial.dial(&route, &host, "mx.example", Demand::VerifiedTls).await {
                Ok(connection) => format!("{:?}", connection.security),
                Err(error) => format!("{:?}", error.verdict.answer),
            };
            assert!(got.contains(want), "{habit:?} {name} {tls:?}: {got}");
            assert_eq!(sessions.load(Ordering::Relaxed), usize::from(tls != Off), "never another one in clear text");
        }
    }

    /// A host that offers AUTH in clear text and inside TLS, and answers it so. What it heard behind EHLO inside TLS.
    async fn host_with_auth(
        offer: &'static str,
        answers: &'static [&'static str],
        server: tls::Server,
    ) -> (u16, Heard) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await?;
            let mut stream = MaybeTls::Plain(tcp);
            stream.write_all(b"220 hi\r\n").await?;
            hear(&mut stream).await?;
            stream.write_all(b"250-hi\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n").await?;
            assert_eq!(hear(&mut stream).await?, b"STARTTLS\r\n", "nothing is said about who we are in clear text");
            stream.write_all(b"220 go\r\n").await?;
            assert!(stream.accept(&server).await.is_ok());
            hear(&mut stream).await?;
            stream.write_all(offer.as_bytes()).await?;
            let mut heard = Vec::new();
            for answer in answers {
                heard.extend(hear(&mut stream).await?);
                stream.write_all(answer.as_bytes()).await?;
                stream.flush().await?;
            }
            // It is kept open until the client leaves.
            let _ = hear(&mut stream).await;
            Ok(String::from_utf8(heard).unwrap())
        });
        (port, heard)
    }

    type Heard = tokio::task::JoinHandle<io::Result<String>>;

    #[tokio::test]
    async fn a_route_with_a_user_says_who_we_are_inside_tls_only() {
        let authority = Authority::new();
        let plain = "AUTH PLAIN AGp1ZHkAcHc=\r\n";
        let login = "AUTH LOGIN\r\nanVkeQ==\r\ncHc=\r\n";
        // What is offered, what is answered; how it ends, and what was heard.
        type Case = (&'static str, &'static [&'static str], &'static str, &'static str);
        let cases: [Case; 7] = [
            ("250-hi\r\n250 AUTH PLAIN LOGIN\r\n", &["235 2.7.0 ok\r\n"], "taken", plain),
            (
                "250-hi\r\n250 AUTH LOGIN\r\n",
                &["334 VXNlcm5hbWU6\r\n", "334 UGFzc3dvcmQ6\r\n", "235 ok\r\n"],
                "taken",
                login,
            ),
            ("250-hi\r\n250 AUTH PLAIN\r\n", &["535 5.7.8 no\r\n"], "auth: 535 5.7.8 no", plain),
            ("250-hi\r\n250 AUTH PLAIN\r\n", &["454 4.7.0 later\r\n"], "auth: 454 4.7.0 later", plain),
            ("250-hi\r\n250 AUTH PLAIN\r\n", &["235 ok\r\n250 more\r\n"], "out of turn", plain),
            ("250-hi\r\n250 AUTH CRAM-MD5\r\n", &[], "neither AUTH PLAIN nor AUTH LOGIN", ""),
            ("250-hi\r\n250 SIZE 9\r\n", &[], "neither AUTH PLAIN nor AUTH LOGIN", ""),
        ];
        for (offer, answers, want, said) in cases {
            let server = tls::Server::open(authority.issue("localhost", 2096)).unwrap();
            let (port, heard) = host_with_auth(offer, answers, server).await;
            let host = Host { name: "localhost".to_owned(), port, addresses: Vec::new() };
            let login = Some(Login { user: "judy".to_owned(), password: "pw".to_owned() });
            let route = Route { tls: TlsMode::Verify, ca: Some(authority.ca()), login, ..route_to(host.clone()) };
            let dial = TcpDial::new(Timeouts::rfc5321(), [&route]);
            let got = match dial.dial(&route, &host, "mx.example", Demand::Usual).await {
                Ok(_) => "taken".to_owned(),
                Err(error) => format!("{}: {}", error.verdict.stage, crate::relay::outcome::words(&error.verdict)),
            };
            assert!(got.contains(want), "{offer:?}: {got}");
            assert_eq!(heard.await.unwrap().unwrap(), said, "{offer:?}");
        }
        let (port, _) =
            host_that(Habit::NotOffered, tls::Server::open(authority.issue("localhost", 2096)).unwrap()).await;
        let host = Host { name: "localhost".to_owned(), port, addresses: Vec::new() };
        let login = Some(Login { user: "judy".to_owned(), password: "pw".to_owned() });
        assert_eq!(format!("{:?}", login.as_ref().unwrap()), "Login { user: \"judy\", .. }");
        let route = Route { tls: TlsMode::Opportunistic, login, ..route_to(host.clone()) };
        let dial = TcpDial::new(Timeouts::rfc5321(), [&route]);
        let error = dial.dial(&route, &host, "mx.example", Demand::Usual).await.map(|_| ()).unwrap_err();
        assert!(matches!(&error.verdict.answer, Answer::Tls(why) if why.contains("inside TLS")), "{error:?}");
    }

    fn route_to(host: Host) -> Route {
        Route {
            port: host.port,
            hosts: vec![host],
            tls: TlsMode::Off,
            source: Some("127.0.0.1".parse().unwrap()),
            concurrency: 1,
            ..Route::named("crm")
        }
    }

    /// What a host does about STARTTLS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Habit {
        NotOffered,
        Sound,
        Refused,
        /// Somebody put a reply behind the 220.
        Injected,
        /// Says 220 and knows no TLS.
        Broken,
        /// Makes the handshake and closes.
        Closes,
    }

    /// A host of this habit: where, and how many sessions it has seen.
    async fn host_that(habit: Habit, server: tls::Server) -> (u16, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sessions = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&sessions);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                seen.fetch_add(1, Ordering::Relaxed);
                // The client may leave at any point.
                let _ = one_session(habit, MaybeTls::Plain(tcp), &server).await;
            }
        });
        (port, sessions)
    }

    async fn one_session(habit: Habit, mut stream: MaybeTls<TcpStream>, server: &tls::Server) -> io::Result<()> {
        stream.write_all(b"220 hi\r\n").await?;
        hear(&mut stream).await?;
        let offer: &[u8] = match habit {
            Habit::NotOffered => b"250-hi\r\n250 SIZE 10\r\n",
            _ => b"250-hi\r\n250-SIZE 10\r\n250 STARTTLS\r\n",
        };
        stream.write_all(offer).await?;
        match &*hear(&mut stream).await? {
            b"" => return Ok(()),
            heard => assert_eq!(heard, b"STARTTLS\r\n"),
        }
        stream
            .write_all(match habit {
                Habit::Refused => b"454 4.7.0 not now\r\n",
                Habit::Injected => b"220 go\r\n250 SIZE 9\r\n",
                _ => b"220 go\r\n",
            })
            .await?;
        if habit == Habit::Broken {
            hear(&mut stream).await?;
            return stream.write_all(b"250 what?\r\n").await;
        }
        if stream.accept(server).await.is_ok() && habit != Habit::Closes {
            hear(&mut stream).await?;
            stream.write_all(b"250-hi\r\n250 PIPELINING\r\n").await?;
            stream.flush().await?;
            hear(&mut stream).await?;
        }
        Ok(())
    }

    /// What one read brings.
    async fn hear(stream: &mut MaybeTls<TcpStream>) -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        stream.read_buf(&mut heard).await?;
        Ok(heard)
    }

    #[tokio::test]
    async fn how_each_route_gets_on_with_each_host() {
        use Habit::{Broken, Closes, Injected, NotOffered, Refused, Sound};
        use TlsMode::{Off, Opportunistic, Require, Verify};
        let authority = Authority::new();
        // certificate's name, habit, route; what comes of it; sessions
        for (name, habit, tls, want, sessions) in [
            ("localhost", Sound, Off, "Clear", 1),
            ("localhost", NotOffered, Opportunistic, "Clear", 1),
            ("localhost", Sound, Opportunistic, "Encrypted", 1),
            ("other.example", Sound, Opportunistic, "Encrypted", 1),
            ("localhost", Refused, Opportunistic, "the host refused STARTTLS: 454 4.7.0 not now", 2),
            ("localhost", Injected, Opportunistic, "said more behind its 220", 2),
            ("localhost", Broken, Opportunistic, "corrupt", 2),
            ("localhost", Closes, Opportunistic, "broke off", 2),
            ("other.example", Sound, Require, "Encrypted", 1),
            ("localhost", NotOffered, Require, "does not offer STARTTLS", 1),
            ("localhost", Refused, Require, "the host refused STARTTLS: 454 4.7.0 not now", 1),
            ("localhost", Injected, Require, "said more behind its 220", 1),
            ("localhost", Broken, Require, "corrupt", 1),
            ("localhost", Closes, Require, "broke off", 1),
            ("localhost", Sound, Verify, "Verified", 1),
            ("other.example", Sound, Verify, "not valid for name", 1),
            ("localhost", NotOffered, Verify, "does not offer STARTTLS", 1),
            ("localhost", Broken, Verify, "corrupt", 1),
        ] {
            let case = format!("{name} {habit:?} {tls:?}");
            let (port, seen) = host_that(habit, tls::Server::open(authority.issue(name, 2096)).unwrap()).await;
            let host = Host { name: "localhost".to_owned(), port, addresses: Vec::new() };
            let route = Route {
                hosts: vec![host.clone()],
                tls,
                ca: Some(authority.ca()),
                source: Some("127.0.0.1".parse().unwrap()),
                concurrency: 1,
                ..Route::named("crm")
            };
            let dial = TcpDial::new(Timeouts::rfc5321(), [&route]);
            let got = match dial.dial(&route, &host, "mx.example", Demand::Usual).await {
                Ok(Connection { security, session, .. }) => {
                    let encrypted = matches!(security, Security::Encrypted | Security::Verified);
                    assert_eq!(session.capabilities.pipelining, encrypted, "{case}");
                    assert_eq!(
                        session.capabilities.size, !encrypted,
                        "what was said in clear text is forgotten: {case}"
                    );
                    assert!(encrypted || !matches!(tls, Require | Verify), "{case}");
                    format!("{security:?}")
                }
                Err(error) => {
                    assert_eq!(error.verdict.stage, Stage::Tls, "{case}");
                    assert_eq!(crate::relay::outcome::result(&error.verdict), "tls", "{case}");
                    assert!(matches!(tls, Require | Verify), "{case}");
                    format!("{:?}", error.verdict.answer)
                }
            };
            assert!(got.contains(want), "{case}: {got}");
            assert_eq!(seen.load(Ordering::Relaxed), sessions, "{case}");
        }
    }

    #[tokio::test]
    async fn a_route_whose_roots_were_not_read_is_never_dialled() {
        let host = Host { name: "127.0.0.1".to_owned(), port: 1, addresses: Vec::new() };
        let route = Route { hosts: vec![host.clone()], tls: TlsMode::Verify, concurrency: 1, ..Route::named("crm") };
        let dial = TcpDial::new(Timeouts::rfc5321(), []);
        let error = dial.dial(&route, &host, "mx.example", Demand::Usual).await.map(|_| ()).unwrap_err();
        assert!(matches!(error.verdict.answer, Answer::Tls(_)));
    }
}
