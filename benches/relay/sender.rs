//! A sender who does everything right: SPF, a DKIM signature, a DMARC policy, and the name server that publishes them.
//!
//! The server answers from this process over UDP on loopback, so that the relay really asks, and caches what it hears.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use mail_auth::crypto::{RsaKey, Sha256};
use mail_auth::dkim::DkimSigner;
use mail_auth::headers::HeaderWriter;
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use tempfile::NamedTempFile;

use crate::tools::SENDER;

/// The sender's message, and his name server while this lives.
pub(crate) struct Sender {
    message: NamedTempFile,
    name_server: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Signs a message of so many octets with RSA of 2048 bits, as most of the world does.
    pub(crate) fn start(bytes: u32) -> anyhow::Result<Sender> {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).context("cannot make a key")?;
        let public: String = pair.public_key_pem().lines().filter(|line| !line.starts_with('-')).collect();
        let (_, domain) = SENDER.split_once('@').context("an address has an @")?;
        let zone = vec![
            (domain.to_owned(), "v=spf1 ip4:127.0.0.1 -all".to_owned()),
            (format!("_dmarc.{domain}"), "v=DMARC1; p=reject".to_owned()),
            (format!("{SELECTOR}._domainkey.{domain}"), format!("v=DKIM1; p={public}")),
        ];
        let mut message = NamedTempFile::new().context("cannot create a file for the message")?;
        message.write_all(&signed(&pair, domain, bytes)?).context("cannot write the message")?;

        let socket = UdpSocket::bind("127.0.0.1:0").context("cannot open the name server's socket")?;
        // Only so that the thread sees its end.
        socket.set_read_timeout(Some(LOOK_PAUSE)).context("cannot bound the name server's wait")?;
        let name_server = socket.local_addr().context("the name server has no address")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut packet = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                if let Some(answer) = answer(&zone, &packet[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Sender { message, name_server, stop, thread: Some(thread) })
    }

    /// The file with the message, as `smtp-source -F` reads it.
    pub(crate) fn message(&self) -> &std::path::Path {
        self.message.path()
    }

    pub(crate) fn name_server(&self) -> SocketAddr {
        self.name_server
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A name server that panicked has been missed long before.
            let _ = thread.join();
        }
    }
}

/// The message with lone line feeds, which smtp-source turns into CRLF.
fn signed(pair: &KeyPair, domain: &str, bytes: u32) -> anyhow::Result<Vec<u8>> {
    let mut message = format!(
        "From: A client <{SENDER}>\r\nTo: <aide@solarmora.com>\r\nSubject: A question\r\n\
         Date: Fri, 27 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@{domain}>\r\n\r\n"
    );
    while message.len() < bytes as usize {
        message.push_str(LINE);
    }
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.serialize_der()).map_err(anyhow::Error::msg)?;
    let key = RsaKey::<Sha256>::from_key_der(key).context("cannot read the key")?;
    let signer = DkimSigner::from_key(key).domain(domain).selector(SELECTOR);
    let signature = signer
        .headers(["From", "To", "Subject", "Date", "Message-ID"])
        .header_canonicalization(mail_auth::dkim::Canonicalization::Relaxed)
        .body_canonicalization(mail_auth::dkim::Canonicalization::Relaxed)
        .sign(message.as_bytes())
        .context("cannot sign")?;
    Ok(format!("{}{message}", signature.to_header()).replace("\r\n", "\n").into_bytes())
}

/// RFC 1035 §4: TXT of a name that is there; any other name does not exist.
fn answer(zone: &[(String, String)], question: &[u8]) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    while *question.get(at)? != 0 {
        let label = question.get(at + 1..at + 1 + usize::from(question[at]))?;
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        name.push('.');
        at += 1 + label.len();
    }
    let end = at + 5;
    let kind = question.get(at + 1..at + 3)?;
    let record = zone.iter().find(|(owner, _)| owner == name.trim_end_matches('.'));
    let texts = record.filter(|_| kind == [0, 16]).map(|(_, text)| text);
    let mut out = question[..2].to_vec();
    out.extend([0x85, 0x80 | if record.is_some() { 0 } else { NX_DOMAIN }, 0, 1, 0, u8::from(texts.is_some())]);
    out.extend([0, 0, 0, 0]);
    out.extend(question.get(12..end)?);
    if let Some(text) = texts {
        let data: Vec<u8> = text.as_bytes().chunks(255).flat_map(|s| [&[s.len() as u8], s].concat()).collect();
        // The name that was asked for, TXT, IN, an hour.
        out.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0x0e, 0x10]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

const SELECTOR: &str = "s1";
const NX_DOMAIN: u8 = 3;
const LINE: &str = "The points are set, and every train is written in the book of its pointsman.\r\n";
const LOOK_PAUSE: Duration = Duration::from_millis(100);
