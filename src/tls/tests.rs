//! Both sides against each other over a pipe in memory, and certificates made for the occasion.

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::clock::{Clock, SystemClock};

/// A folder with an authority of its own, `ca.pem`, and what it issued last.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        Authority { folder, issuer: rcgen::Issuer::new(parameters, key) }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate for `name` that expires in March of `year`, in place of the last.
    pub(crate) fn issue(&self, name: &str, year: i32) -> Files {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        parameters.not_after = rcgen::date_time_ymd(year, 3, 1);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let file = |name: &str| self.folder.path().join(name);
        let files = Files { certificate: file("certificate.pem"), key: file("key.pem") };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

const LATER: i32 = 2096;

fn localhost() -> IpAddr {
    IpAddr::from([127, 0, 0, 1])
}

/// A session: our accepting end, and what the connecting end got.
async fn meet(
    server: &Server,
    connector: &Connector,
    name: &str,
) -> (MaybeTls<DuplexStream>, Result<ClientStream<DuplexStream>, String>) {
    let (ours, theirs) = duplex(4096);
    let mut stream = MaybeTls::Plain(ours);
    let (_, client) = tokio::join!(stream.accept(server), connector.connect(theirs, name, localhost()));
    (stream, client)
}

/// Octets pass from end to end.
async fn talk(server: &mut MaybeTls<DuplexStream>, client: &mut ClientStream<DuplexStream>) {
    let mut heard = [0; 5];
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(&heard).await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn who_verifies_wants_the_name_and_the_root_and_the_time() {
    let authority = Authority::new();
    let anybody = Connector::anybody();
    let verifying = Connector::verifying(Some(&authority.ca())).unwrap();
    let stranger = Connector::verifying(None).unwrap();
    for (issued, year, called, trusted, fault) in [
        ("crm.example", LATER, "crm.example", true, ""),
        ("127.0.0.1", LATER, "127.0.0.1", true, ""),
        ("crm.example", LATER, "other.example", false, "not valid for name"),
        ("crm.example", LATER, "127.0.0.1", false, "not valid for name"),
        ("crm.example", 2001, "crm.example", false, "expired"),
        ("crm.example", LATER, "crm_1.example!", false, "no name"),
    ] {
        let server = Server::open(authority.issue(issued, year)).unwrap();
        let (mut ours, theirs) = meet(&server, &verifying, called).await;
        assert_eq!(theirs.is_ok(), trusted, "{issued} {called}");
        match theirs {
            Ok(mut theirs) => talk(&mut ours, &mut theirs).await,
            Err(why) => assert!(why.contains(fault), "{why}"),
        }
        let (_, theirs) = meet(&server, &stranger, called).await;
        assert!(theirs.is_err(), "nobody knows this authority");
        let (mut ours, theirs) = meet(&server, &anybody, called).await;
        talk(&mut ours, &mut theirs.unwrap()).await;
    }
}

#[tokio::test]
async fn a_reload_changes_the_next_handshake_and_no_session() {
    let authority = Authority::new();
    let server = Server::open(authority.issue("old.example", LATER)).unwrap();
    let verifying = Connector::verifying(Some(&authority.ca())).unwrap();
    let (mut ours, theirs) = meet(&server, &verifying, "old.example").await;
    let mut theirs = theirs.unwrap();

    let before = server.expires().unwrap();
    authority.issue("new.example", LATER - 1);
    let expires = server.reload(SystemClock::new().now()).unwrap();
    assert!(expires < before && Some(expires) == server.expires());
    talk(&mut ours, &mut theirs).await;
    assert!(meet(&server, &verifying, "new.example").await.1.is_ok());
    assert!(meet(&server, &verifying, "old.example").await.1.is_err());
}

#[tokio::test]
async fn what_cannot_be_used_leaves_the_old_certificate_in_place() {
    let authority = Authority::new();
    let files = authority.issue("mx.example", LATER);
    let server = Server::open(files.clone()).unwrap();
    let (expires, now) = (server.expires().unwrap(), SystemClock::new().now());
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let (certificate, key) = (read(&files.certificate), read(&files.key));
    authority.issue("mx.example", LATER);
    let (other_certificate, other_key) = (read(&files.certificate), read(&files.key));
    authority.issue("mx.example", 2001);
    let (old_certificate, old_key) = (read(&files.certificate), read(&files.key));
    let damaged = certificate.replacen("MII", "MIJ", 1);
    for (certificate, key, fault, at_key) in [
        (&*certificate, &*other_key, "is not that of the first certificate", true),
        (&other_certificate, &key, "is not that of the first certificate", true),
        ("", &key, "holds no certificate", false),
        (&key, &key, "holds no certificate", false),
        (&certificate, "", "holds no private key", true),
        (&certificate, &certificate, "holds no private key", true),
        (&damaged, &key, "cannot be", false),
        (&certificate[..200], &key, "cannot be", false),
        (&old_certificate, &old_key, "expired at 2001-03-01", false),
    ] {
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        let error = server.reload(now).unwrap_err();
        assert!(error.to_string().contains(fault), "{fault}: {error}");
        assert_eq!(error.path() == files.key, at_key, "{error}");
        assert_eq!(server.expires(), Some(expires));
    }
    // At the start there is no other: it is used, and said.
    assert!(Server::open(files.clone()).unwrap().expires().unwrap() < now);
    std::fs::remove_file(&files.key).unwrap();
    assert!(server.reload(now).unwrap_err().to_string().starts_with("cannot read"));
    let verifying = Connector::verifying(Some(&authority.ca())).unwrap();
    assert!(meet(&server, &verifying, "mx.example").await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_comes_to_nothing_closes_the_stream() {
    let authority = Authority::new();
    let server = Server::open(authority.issue("mx.example", LATER)).unwrap();
    for (sent, closed, why) in [
        (&b"EHLO clear\r\nMAIL FROM:<a@b>\r\n"[..], false, "corrupt"),
        // An alert that says goodbye before anything was said.
        (&[21, 3, 3, 0, 2, 1, 0], true, "eof"),
        // A client that knows TLS 1.0 alone.
        (TLS_1_0_HELLO, false, "incompatible"),
        (b"", true, "eof"),
        // Silence, and a record that never ends.
        (b"", false, TOO_LONG),
        (&[22, 3, 1, 0x3f, 0xff, 1, 0], false, TOO_LONG),
    ] {
        let (ours, mut theirs) = duplex(4096);
        theirs.write_all(sent).await.unwrap();
        if closed {
            theirs.shutdown().await.unwrap();
        }
        let mut stream = MaybeTls::Plain(ours);
        let error = stream.accept(&server).await.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
        assert!(matches!(stream, MaybeTls::Closed));
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0);
        assert!(stream.write_all(b"421 later\r\n").await.is_err());
    }
}

#[tokio::test]
async fn after_the_end_of_tls_clear_text_is_not_read() {
    let authority = Authority::new();
    let server = Server::open(authority.issue("mx.example", LATER)).unwrap();
    let (mut ours, theirs) = meet(&server, &Connector::anybody(), "mx.example").await;
    let mut theirs = theirs.unwrap();
    talk(&mut ours, &mut theirs).await;
    // What Python's `unwrap` does: TLS says goodbye, and the connection goes on in clear text.
    let (raw, session) = theirs.get_mut();
    session.send_close_notify();
    let mut farewell = Vec::new();
    session.write_tls(&mut farewell).unwrap();
    farewell.extend_from_slice(b"x");
    raw.write_all(&farewell).await.unwrap();
    let mut heard = Vec::new();
    assert_eq!(ours.read_to_end(&mut heard).await.unwrap(), 0);
}

#[tokio::test]
async fn a_second_session_brings_no_ticket() {
    let authority = Authority::new();
    let server = Server::open(authority.issue("mx.example", LATER)).unwrap();
    let connector = Connector::anybody();
    for _ in 0..2 {
        let (mut ours, theirs) = meet(&server, &connector, "mx.example").await;
        let mut theirs = theirs.unwrap();
        talk(&mut ours, &mut theirs).await;
        assert_eq!(theirs.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(theirs.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    }
}

/// The hello of a client of 1999: version 3.1 and TLS_RSA_WITH_AES_128_CBC_SHA.
const TLS_1_0_HELLO: &[u8] = &[
    22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
    23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0, 0, 2, 0, 0x2f, 1, 0,
];
