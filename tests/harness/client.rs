//! A small blocking SMTP client that does what it is told, right or wrong.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

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
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects and reads nothing yet, not even the banner.
    pub fn try_raw(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream: BufReader::new(stream) })
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
        self.stream.get_mut().write_all(bytes)
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
