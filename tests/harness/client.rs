//! A small blocking SMTP client that does what it is told, right or wrong.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{Certificates, PATIENCE};

/// A reply as it came: the lines' texts joined with a newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub text: String,
}

impl Reply {
    /// The message's id out of `250 2.0.0 queued as <message>`.
    pub fn queued_as(&self) -> String {
        let id = self.text.strip_prefix("2.0.0 queued as ");
        id.filter(|_| self.code == 250)
            .unwrap_or_else(|| panic!("not the 250 of a queued message: {self:?}"))
            .to_owned()
    }
}

/// A session.
pub struct Client {
    stream: BufReader<Wire>,
}

/// What a session runs on.
enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.read(buffer),
            Wire::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Clear(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// A TLS client's side that trusts this authority alone.
fn trusting(certificates: &Certificates) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.ca()).expect("it is PEM")).expect("it is an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("the provider has suites for them");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

impl Client {
    /// Connects and reads nothing yet, not even the banner.
    pub fn try_raw(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream: BufReader::new(Wire::Clear(stream)) })
    }

    /// Says STARTTLS and makes the handshake with a server called `name`; EHLO is left to the test.
    pub fn start_tls(mut self, name: &str, certificates: &Certificates) -> Client {
        let reply = self.say("STARTTLS");
        assert_eq!(reply.code, 220, "{reply:?}");
        let Wire::Clear(mut stream) = self.stream.into_inner() else { panic!("TLS inside TLS") };
        let name = ServerName::try_from(name.to_owned()).expect("it is a name");
        let mut tls = ClientConnection::new(trusting(certificates), name).expect("the configuration is sound");
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).unwrap_or_else(|e| panic!("no handshake: {e}"));
        }
        Client { stream: BufReader::new(Wire::Tls(Box::new(StreamOwned::new(tls, stream)))) }
    }

    /// A session inside TLS that has said EHLO.
    pub fn connect_tls(address: SocketAddr, name: &str, certificates: &Certificates) -> Client {
        let mut client = Client::connect(address).start_tls(name, certificates);
        assert_eq!(client.say("EHLO client.example.org").code, 250);
        client
    }

    /// Says the farewell of TLS and nothing more; what is sent from now on goes in clear text, below it.
    pub fn leave_tls(&mut self) {
        let Wire::Tls(stream) = self.stream.get_mut() else { panic!("it is in clear text") };
        stream.conn.send_close_notify();
        stream.flush().expect("the farewell can be sent");
    }

    /// Sends octets below TLS.
    pub fn send_below(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.stream.get_mut() {
            Wire::Clear(stream) => stream.write_all(bytes),
            Wire::Tls(stream) => stream.sock.write_all(bytes),
        }
    }

    /// Closes our side.
    pub fn hang_up(&mut self) {
        let socket = match self.stream.get_mut() {
            Wire::Clear(stream) => stream,
            Wire::Tls(stream) => &mut stream.sock,
        };
        // The server may have closed first.
        let _ = socket.shutdown(Shutdown::Write);
    }

    /// Connects, and greets with EHLO.
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|e| panic!("no session with {address}: {e}"))
    }

    /// As [`Client::connect`], for a daemon that may be gone.
    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        let mut client = Client::try_raw(address)?;
        for reply in [client.try_reply()?, client.try_say("EHLO client.example.org")?] {
            if reply.code >= 400 {
                return Err(io::Error::other(format!("{reply:?}")));
            }
        }
        Ok(client)
    }

    /// Sends a line and reads the reply.
    pub fn say(&mut self, line: &str) -> Reply {
        self.try_say(line).unwrap_or_else(|e| panic!("no reply to `{line}`: {e}"))
    }

    pub fn try_say(&mut self, line: &str) -> io::Result<Reply> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.try_reply()
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply().unwrap_or_else(|e| panic!("no reply: {e}"))
    }

    /// Reads a reply of any number of lines. The end of the stream is an error, so that nobody takes it for a yes.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut texts = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let bad = || io::Error::other(format!("not a reply: {line:?}"));
            let code: u16 = line.get(..3).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
            let text = line[3..].strip_suffix("\r\n").ok_or_else(bad)?;
            texts.push(text.get(1..).unwrap_or_default().to_owned());
            if !text.starts_with('-') {
                return Ok(Reply { code, text: texts.join("\n") });
            }
        }
    }

    /// True when the peer has closed the connection and said nothing more.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.try_reply(), Err(e) if e.kind() == io::ErrorKind::UnexpectedEof || e.kind() == io::ErrorKind::ConnectionReset)
    }

    /// A whole transaction, whose commands must all be taken; the answer is the reply to the final dot.
    pub fn deliver(&mut self, sender: &str, recipients: &[&str], message: &[u8]) -> Reply {
        self.try_deliver(sender, recipients, message).unwrap_or_else(|e| panic!("the transaction broke: {e}"))
    }

    pub fn try_deliver(&mut self, sender: &str, recipients: &[&str], message: &[u8]) -> io::Result<Reply> {
        let mut commands = vec![format!("MAIL FROM:<{sender}>")];
        commands.extend(recipients.iter().map(|recipient| format!("RCPT TO:<{recipient}>")));
        self.try_transaction(&commands, message)
    }

    /// As [`Client::try_deliver`], with the commands before DATA as they are.
    pub fn try_transaction(&mut self, commands: &[String], message: &[u8]) -> io::Result<Reply> {
        for command in commands.iter().map(String::as_str).chain(["DATA"]) {
            let reply = self.try_say(command)?;
            if reply.code >= 400 {
                return Err(io::Error::other(format!("`{command}` was refused: {reply:?}")));
            }
        }
        self.send(&stuffed(message))?;
        self.try_reply()
    }
}

/// The message as DATA carries it: dots doubled, the end added (RFC 5321 §4.5.2).
pub fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !message.is_empty() && !message.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

#[test]
fn only_dots_at_the_start_of_a_line_are_doubled() {
    for (plain, sent) in [("", ".\r\n"), (".\r\n", "..\r\n.\r\n"), ("a.b\r\n..c", "a.b\r\n...c\r\n.\r\n")] {
        assert_eq!(stuffed(plain.as_bytes()), sent.as_bytes(), "{plain:?}");
    }
}
