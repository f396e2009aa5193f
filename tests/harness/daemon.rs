//! The daemon under test: its directory ([`Site`]), its process ([`Daemon`]), and its command line.
//!
//! A site outlives its daemon, so that a test can kill one and start the next on the same data; the types say which
//! of the two there is. What the daemon logs is kept in the site and printed when a test fails.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use pointsman::auth::sign::Key;
use serde_json::Value;
use tempfile::TempDir;

use super::{Certificates, Client, Crm, program, wait_for};

/// Rules of a daemon that is the CRM: it takes what ours sends to it.
pub const CRM_RULES: &str = r#"
[domain."mon-crm.com"]
role = "admin@example.net"

[target]
inbox = { address = "inbox@example.net", route = "crm" }

[alias."mon-crm.com"]
case = { to = "inbox" }
"#;

/// Our aliases and where they go, unless a test brings its own rules.
pub const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }
ventes     = { address = "ventes@mon-crm.com", route = "crm" }

[[rule]]
name  = "aide to the CRM"
when  = { recipient = "aide@solarmora.com" }
to    = "salesforce"

[alias."solarmora.com"]
ventes   = { to = "ventes" }
factures = { to = "salesforce", also = ["ventes"] }
"#;

/// What a test wants of its daemon; everything else is the same for all.
pub struct Setup {
    rules: String,
    hosts: Vec<SocketAddr>,
    data: Option<PathBuf>,
    retry: &'static str,
    concurrency: usize,
    listener_tls: &'static str,
    route_tls: String,
    min_free: &'static str,
    log: &'static str,
    route: String,
    more: String,
}

impl Setup {
    /// A daemon whose route `crm` leads to `crm`. A deferred leg waits for an hour, that is, for the test's word.
    pub fn new(crm: SocketAddr) -> Setup {
        Setup {
            rules: RULES.into(),
            hosts: vec![crm],
            data: None,
            retry: "1h",
            concurrency: 5,
            listener_tls: "off",
            route_tls: "\"off\"".into(),
            min_free: "1MiB",
            log: "json",
            route: String::new(),
            more: String::new(),
        }
    }

    pub fn rules(mut self, rules: &str) -> Setup {
        self.rules = rules.into();
        self
    }

    /// A further host of the route, tried after the others.
    pub fn host(mut self, host: SocketAddr) -> Setup {
        self.hosts.push(host);
        self
    }

    /// The data directory, where it must lie on a certain file system.
    pub fn data(mut self, data: &Path) -> Setup {
        self.data = Some(data.into());
        self
    }

    pub fn retry(mut self, retry: &'static str) -> Setup {
        self.retry = retry;
        self
    }

    pub fn concurrency(mut self, concurrency: usize) -> Setup {
        self.concurrency = concurrency;
        self
    }

    /// What the listener does about TLS, with this certificate.
    pub fn listener_tls(mut self, tls: &'static str, files: &Certificates) -> Setup {
        self.listener_tls = tls;
        let (certificate, key) = (files.certificate().display().to_string(), files.key().display().to_string());
        self.more(&format!("[tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n"))
    }

    /// What the route `crm` asks for, its certificates verified by this authority.
    pub fn route_tls(mut self, tls: &str, ca: &Certificates) -> Setup {
        let roots = if tls == "verify" { format!("\nca = \"{}\"", ca.ca().display()) } else { String::new() };
        self.route_tls = format!("\"{tls}\"{roots}");
        self
    }

    /// Below this much free space no new mail is taken.
    pub fn min_free(mut self, min_free: &'static str) -> Setup {
        self.min_free = min_free;
        self
    }

    /// The log's format: json or text.
    pub fn log(mut self, log: &'static str) -> Setup {
        self.log = log;
        self
    }

    /// Further keys of the route `crm`.
    pub fn route(mut self, toml: &str) -> Setup {
        self.route = toml.into();
        self
    }

    /// Further sections of pointsman.toml.
    pub fn more(mut self, toml: &str) -> Setup {
        self.more = toml.into();
        self
    }

    /// The same, behind what other calls have put there.
    pub fn also(mut self, toml: &str) -> Setup {
        self.more.push_str(toml);
        self
    }

    /// Writes the files.
    pub fn site(self) -> Site {
        let dir = tempfile::Builder::new().prefix("pointsman-").tempdir().expect("a temporary directory");
        let data = self.data.unwrap_or_else(|| dir.path().join("data"));
        let hosts: Vec<String> = self.hosts.iter().map(|host| format!("\"{host}\"")).collect();
        let config = format!(
            r#"
hostname = "mx.solarmora.com"
data     = "{data}"
rules    = ["rules/*.toml"]

[[listener]]
name    = "mx"
address = "127.0.0.1:0"
tls     = "{listener_tls}"

# Few tests look up an MX (tests/mx.rs): whatever has no route of its own goes to the CRM, too.
[route.default]
hosts = [{hosts}]
tls   = "off"
message-size = "1GiB"
header-size  = "1MiB"

[route.crm]
hosts       = [{hosts}]
message-size = "1GiB"
header-size  = "1MiB"
tls         = {route_tls}
concurrency = {concurrency}
{route}

[queue]
retry    = ["{retry}"]
min-free = "{min_free}"

[admin]
address    = "127.0.0.1:0"
token-file = "admin.token"

[log]
format = "{log}"

{more}
"#,
            data = data.display(),
            hosts = hosts.join(", "),
            concurrency = self.concurrency,
            retry = self.retry,
            listener_tls = self.listener_tls,
            route_tls = self.route_tls,
            min_free = self.min_free,
            log = self.log,
            route = self.route,
            more = self.more,
        );
        fs::create_dir(dir.path().join("rules")).unwrap();
        fs::write(dir.path().join("rules/solarmora.toml"), self.rules).unwrap();
        fs::write(dir.path().join("pointsman.toml"), config).unwrap();
        Site { dir, data, environment: Vec::new(), held: None }
    }

    pub fn start(self) -> Daemon {
        let site = self.site();
        if site.data().starts_with(site.path()) {
            fs::DirBuilder::new().mode(0o750).create(site.data()).unwrap();
            let mut file = fs::OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o600).open(site.data().join("dkim.key"));
            file.unwrap().write_all(dkim_key().as_bytes()).unwrap();
        }
        site.start()
    }
}

/// A key that most daemons of this process find: to make one takes a tenth of a second and more.
fn dkim_key() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| Key::generate().expect("a key can be made").to_pem())
}

/// A configuration and its data, with no daemon on it.
pub struct Site {
    dir: TempDir,
    data: PathBuf,
    environment: Vec<(OsString, OsString)>,
    held: Option<(String, TcpListener)>,
}

impl Site {
    /// The next daemons get this variable; an empty value takes it away again.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.environment.push((name.into(), value.into()));
        }
    }

    /// The next daemons are handed this socket under `name`, as systemd does (sd_listen_fds(3)); it stays open between
    /// them.
    pub fn hold(&mut self, name: &str, socket: TcpListener) {
        self.held = Some((name.to_owned(), socket));
    }

    /// Starts a daemon and waits until it accepts.
    pub fn start(self) -> Daemon {
        self.try_start().unwrap_or_else(|(site, status)| panic!("the daemon ended at once: {status}\n{}", site.log()))
    }

    /// Starts a daemon and sends it a signal once `file` is in its data directory; tells how it ended.
    pub fn start_and_signal(&self, file: &str, name: &str) -> ExitStatus {
        let mut process = self.spawn();
        while !self.data.join(file).exists() {
            assert!(process.0.try_wait().unwrap().is_none(), "it ended before it made {file}:\n{}", self.log());
            std::thread::yield_now();
        }
        super::run(Command::new("sh").args(["-c", &format!("kill -{name} {}", process.0.id())]));
        wait_for("the daemon to end", || process.0.try_wait().unwrap())
    }

    fn spawn(&self) -> Process {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = match &self.held {
            None => {
                let mut command = Command::new(program());
                command.stdin(Stdio::null());
                command
            }
            // A child's descriptors cannot be chosen here but for its standard ones; a shell can, and keeps the process.
            Some((name, socket)) => {
                let mut command = Command::new("sh");
                command.args(["-c", HAND_OVER]).arg(program()).env("LISTEN_FDNAMES", name);
                command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
                command
            }
        };
        let child = command
            .args(["serve", "--config"])
            .arg(self.config())
            .envs(self.environment.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the daemon's program can be started");
        Process(child)
    }

    /// Starts a daemon; hands the site back where it ends instead of accepting.
    pub fn try_start(self) -> Result<Daemon, (Site, ExitStatus)> {
        let addresses_file = self.data.join("addresses.json");
        // After a kill the old one is still there; the daemon removes it too, but perhaps after our first look.
        let _ = fs::remove_file(&addresses_file);
        let mut process = self.spawn();
        let came = wait_for("data/addresses.json", || match process.0.try_wait().unwrap() {
            Some(status) => Some(Err(status)),
            None => fs::read_to_string(&addresses_file).ok().map(Ok),
        });
        let addresses = match came {
            Ok(addresses) => addresses,
            Err(status) => return Err((self, status)),
        };
        let addresses: Value = serde_json::from_str(&addresses).expect("addresses.json is JSON");
        let address = |value: &Value| value.as_str().unwrap().parse::<SocketAddr>().unwrap();
        let (smtp, admin) = (address(&addresses["listeners"][0]), address(&addresses["admin"]));
        Ok(Daemon { process, site: self, smtp, admin })
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("pointsman.toml")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Changes a line of pointsman.toml.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "the configuration has no `{from}`");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    pub fn write_rules(&self, rules: &str) {
        fs::write(self.dir.path().join("rules/solarmora.toml"), rules).unwrap();
    }

    /// Runs a command against this site: `["queue", "list", "--json"]`.
    pub fn cli(&self, arguments: &[&str]) -> Cli {
        // A command that hangs ends as 124, which no test expects.
        let output = Command::new("timeout")
            .arg(super::PATIENCE.as_secs().to_string())
            .arg(program())
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .output()
            .expect("the program can be started");
        Cli {
            what: arguments.join(" "),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("we write UTF-8"),
            err: String::from_utf8(output.stderr).expect("we write UTF-8"),
        }
    }

    /// The lines of a `--json` list; the command must succeed.
    pub fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let cli = self.cli(&arguments).succeeds();
        cli.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Waits until the leg is in `state`, and gives its row.
    pub fn wait_for_leg(&self, leg: &str, state: &str) -> Value {
        wait_for(&format!("leg {leg} to be {state}"), || {
            self.rows(&["trace", "--id", leg, "--reveal"])
                .into_iter()
                .find(|row| row["id"] == leg && row["state"] == state)
        })
    }

    pub fn log(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the daemon's last log lines:\n{}\n---", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Cli {
    what: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Cli {
    /// The exit code must be this one.
    pub fn exits(self, code: i32) -> Cli {
        assert_eq!(self.code, Some(code), "`pointsman {}` said:\n{}\n{}", self.what, self.out, self.err);
        self
    }

    pub fn succeeds(self) -> Cli {
        self.exits(0)
    }

    /// It says each of these words, on either stream.
    pub fn says(self, words: &[&str]) -> Cli {
        for word in words {
            let said = self.out.contains(word) || self.err.contains(word);
            assert!(said, "`pointsman {}` does not say `{word}`:\n{}\n{}", self.what, self.out, self.err);
        }
        self
    }
}

/// A running daemon on its site.
pub struct Daemon {
    process: Process,
    site: Site,
    /// Where it takes mail.
    pub smtp: SocketAddr,
    /// Where it serves metrics and health.
    pub admin: SocketAddr,
}

impl std::ops::Deref for Daemon {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Daemon {
    /// The usual pair: a CRM that takes all, and a daemon that relays to it.
    pub fn with_crm() -> (Daemon, Crm) {
        let crm = Crm::start();
        (Setup::new(crm.address()).start(), crm)
    }

    /// Hands in a small message from client@example.org; gives its id.
    pub fn send(&self, recipient: &str) -> String {
        self.send_bytes(
            recipient,
            b"From: client@example.org\r\nSubject: panne\r\nMessage-ID: <1@example.org>\r\n\r\nAu secours.\r\n",
        )
    }

    pub fn send_bytes(&self, recipient: &str, message: &[u8]) -> String {
        let mut client = Client::connect(self.smtp);
        let reply = client.deliver("client@example.org", &[recipient], message);
        client.say("QUIT");
        reply.queued_as()
    }

    /// Waits until the log has these words: its lines are gathered for a moment before they are written.
    pub fn wait_for_log(&self, words: &str) {
        wait_for(&format!("a line of the log with {words}"), || self.log().contains(words).then_some(()));
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// A session that a load balancer brings: as whose it says. The listener must believe it (`proxy`).
    pub fn client_from(&self, client: &str) -> Client {
        let mut session = Client::try_raw(self.smtp).unwrap();
        let family = if client.contains(':') { "TCP6" } else { "TCP4" };
        let us = if client.contains(':') { "2001:db8:f::1" } else { "192.0.2.1" };
        session.send(format!("PROXY {family} {client} {us} 40000 25\r\n").as_bytes()).unwrap();
        session
    }

    /// How many sockets it has open. Its files say nothing: the store opens them when it first needs them.
    pub fn sockets(&self) -> usize {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let open = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        open.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill9(self) -> Site {
        drop(self.process);
        self.site
    }

    pub fn signal(&self, name: &str) {
        super::run(Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]));
    }

    /// Waits until it has ended by itself.
    pub fn wait(self) -> (Site, ExitStatus) {
        let Daemon { mut process, site, .. } = self;
        let status = wait_for("the daemon to end", || process.0.try_wait().unwrap());
        (site, status)
    }

    /// GET from the admin listener: status and body.
    pub fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).expect("the admin listener accepts");
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer in UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), body.to_owned())
    }
}

/// Passes standard input on as the first of systemd's sockets.
const HAND_OVER: &str = r#"exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" "$@""#;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
