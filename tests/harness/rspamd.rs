//! The real rspamd: a normal worker on a loopback port with nothing but its built-in rules, no Redis and no DNS.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use super::postfix::free_port;
use super::{find, wait_for};

/// A running rspamd. It ends when this is dropped.
pub struct Rspamd {
    process: Child,
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Rspamd {
    pub fn start() -> Rspamd {
        let folder = tempfile::Builder::new().prefix("pointsman-rspamd-").tempdir().expect("a temporary directory");
        let address = free_port();
        let path = folder.path().display();
        // A list of top-level domains of our own: to compile the whole one takes half a minute.
        std::fs::write(folder.path().join("tld"), "example\ncom\norg\n").expect("the list can be written");
        let config = format!(
            r#"
options {{
    pidfile = "{path}/pid"; tempdir = "{path}"; hs_cache_dir = "{path}"; url_tld = "{path}/tld";
    filters = [];
    dns {{ nameserver = ["127.0.0.1:1"]; timeout = 1s; retransmits = 1; }}
}}
logging {{ type = "file"; filename = "{path}/log"; level = "info"; }}
worker "normal" {{ bind_socket = "{address}"; count = 1; }}
lua = "/usr/share/rspamd/rules/rspamd.lua";
actions {{ reject = 15; "add header" = 6; greylist = 4; }}
multimap {{
    SUBJECT_TEN {{ type = "header"; header = "subject"; regexp = true; map = "{path}/ten"; score = 10.0; }}
    SUBJECT_SOFT {{ type = "header"; header = "subject"; regexp = true; map = "{path}/soft"; prefilter = true; action = "soft reject"; }}
    FROM_CLIENT {{ type = "ip"; map = "{path}/client"; score = 1.5; }}
    FROM_SENDER {{ type = "from"; map = "{path}/sender"; score = 2.5; }}
    FOR_RECIPIENT {{ type = "rcpt"; map = "{path}/recipient"; score = 3.5; }}
}}
modules {{ path = "/usr/share/rspamd/plugins/multimap.lua"; }}
"#
        );
        for (map, line) in [
            ("ten", "/^ten points/\n"),
            ("soft", "/^later/\n"),
            ("client", "127.0.0.1\n"),
            ("sender", "known@example.org\n"),
            ("recipient", "ventes@solarmora.com\n"),
        ] {
            std::fs::write(folder.path().join(map), line).expect("the map can be written");
        }
        let file = folder.path().join("rspamd.conf");
        std::fs::write(&file, config).expect("the configuration can be written");
        let process = Command::new(find("rspamd").expect("the test looked for rspamd"))
            .args(["--no-fork", "--insecure", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rspamd starts");
        let rspamd = Rspamd { process, address, _folder: folder };
        wait_for("rspamd to listen", || TcpStream::connect(address).ok());
        rspamd
    }
}

impl Drop for Rspamd {
    fn drop(&mut self) {
        // Asked to, it ends its workers, too. It may have ended by itself; then there is nothing to end.
        let _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.process.id())]).status();
        let _ = self.process.wait();
    }
}
