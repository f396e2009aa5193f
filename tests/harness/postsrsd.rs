//! postsrsd, another implementation of SRS: asked over its two look-up ports, as Postfix asks it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use super::postfix::free_port;
use super::{find, wait_for};

/// A running postsrsd. It ends when this is dropped.
pub struct Postsrsd {
    process: Child,
    forward: SocketAddr,
    reverse: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Postsrsd {
    /// The first secret signs, all verify.
    pub fn start(domain: &str, secrets: &[&str]) -> Postsrsd {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join("secrets");
        std::fs::write(&file, secrets.join("\n")).expect("the secrets can be written");
        let (forward, reverse) = (free_port(), free_port());
        let process = Command::new(find("postsrsd").expect("the test looked for postsrsd"))
            .arg(format!("-s{}", file.display()))
            .arg(format!("-d{domain}"))
            .args(["-l127.0.0.1".to_owned(), format!("-f{}", forward.port()), format!("-r{}", reverse.port())])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postsrsd starts");
        for port in [forward, reverse] {
            wait_for("postsrsd to listen", || TcpStream::connect(port).ok());
        }
        Postsrsd { process, forward, reverse, _folder: folder }
    }

    /// `None` where it does not rewrite the address.
    pub fn forward(&self, sender: &str) -> Option<String> {
        ask(self.forward, sender)
    }

    /// `None` where it does not know the address for one of its own.
    pub fn reverse(&self, recipient: &str) -> Option<String> {
        ask(self.reverse, recipient)
    }
}

/// Postfix's tcp_table(5): `get key`, answered by `200 value` or `500 text`.
fn ask(port: SocketAddr, key: &str) -> Option<String> {
    let mut stream = TcpStream::connect(port).expect("postsrsd listens");
    stream.write_all(format!("get {key}\n").as_bytes()).expect("postsrsd reads");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("postsrsd answers");
    line.trim_end().strip_prefix("200 ").map(str::to_owned)
}

impl Drop for Postsrsd {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
