//! A stand-in for a CRM, for `demo`: takes every message and tells what arrived.
//!
//! Just enough of RFC 5321 for our own relay to deliver to; it trusts its client and stores nothing.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::clock::Timestamp;

/// A message as the stand-in received it.
#[derive(Debug)]
pub(super) struct Case {
    pub number: u32,
    pub at: Timestamp,
    pub sender: String,
    pub recipient: String,
    /// The lines of the message, without dot-stuffing, CRLF kept.
    pub message: Vec<u8>,
}

/// Listens on a free loopback port; every case that arrives comes out of the receiver.
pub(super) async fn start(now: fn() -> Timestamp) -> std::io::Result<(SocketAddr, mpsc::Receiver<Case>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (cases, receiver) = mpsc::channel(CASES_WAITING_MAX);
    tokio::spawn(async move {
        let counter = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        while let Ok((stream, _)) = listener.accept().await {
            let (cases, counter) = (cases.clone(), counter.clone());
            tokio::spawn(async move {
                let next = move || counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                // A client that goes away in mid-session is no event for a demonstration.
                let _ = serve(stream, cases, next, now).await;
            });
        }
    });
    Ok((address, receiver))
}

async fn serve(
    stream: TcpStream,
    cases: mpsc::Sender<Case>,
    next: impl Fn() -> u32,
    now: fn() -> Timestamp,
) -> std::io::Result<()> {
    // Each reply is awaited: Nagle's algorithm would hold it back.
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 crm.example ESMTP stand-in CRM\r\n").await?;
    let (mut sender, mut recipient) = (String::new(), String::new());
    let mut line = String::new();
    while read_line(&mut stream, &mut line).await? {
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => "250-crm.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n".to_owned(),
            "MAIL" => {
                sender = path(&line);
                "250 2.1.0 ok\r\n".to_owned()
            }
            "RCPT" => {
                recipient = path(&line);
                "250 2.1.5 ok\r\n".to_owned()
            }
            "DATA" => {
                stream.write_all(b"354 go ahead\r\n").await?;
                let message = read_message(&mut stream).await?;
                let number = next();
                let case = Case { number, at: now(), sender: sender.clone(), recipient: recipient.clone(), message };
                // Nobody looks any more: the demonstration ends.
                let _ = cases.send(case).await;
                format!("250 2.0.0 opened as case {number:05}\r\n")
            }
            "QUIT" => {
                stream.write_all(b"221 2.0.0 bye\r\n").await?;
                return Ok(());
            }
            _ => "250 2.0.0 ok\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).await?;
    }
    Ok(())
}

async fn read_line(stream: &mut BufReader<TcpStream>, line: &mut String) -> std::io::Result<bool> {
    line.clear();
    let mut bytes = Vec::new();
    let read = stream.read_until(b'\n', &mut bytes).await?;
    line.push_str(String::from_utf8_lossy(&bytes).trim_end());
    Ok(read > 0)
}

async fn read_message(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let start = message.len();
        if stream.read_until(b'\n', &mut message).await? == 0 || &message[start..] == b".\r\n" {
            message.truncate(start);
            return Ok(message);
        }
        if message[start] == b'.' {
            message.remove(start);
        }
    }
}

fn path(line: &str) -> String {
    let inner = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map(|(path, _)| path.to_owned()).unwrap_or_default()
}

/// More than anybody sends by hand before he reads.
const CASES_WAITING_MAX: usize = 100;
