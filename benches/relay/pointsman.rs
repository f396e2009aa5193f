//! Our daemon, as an administrator would start it: a configuration, a rule, a process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::machine::{self, Process};
use crate::tools::{ALIAS, TARGET};

/// A daemon of its own with an empty queue.
pub(crate) struct Pointsman {
    // Before the directory: fields are dropped in order, and the process writes there.
    process: Process,
    #[expect(dead_code, reason = "kept for its Drop, which removes the directory")]
    directory: TempDir,
    smtp: SocketAddr,
    admin: SocketAddr,
}

impl Pointsman {
    /// Starts one whose only route leads to `sink`. Where it is given a name server, it checks who sent.
    pub(crate) fn start(sink: SocketAddr, name_server: Option<SocketAddr>) -> anyhow::Result<Pointsman> {
        let directory = machine::scratch("daemon")?;
        let path = directory.path();
        let checks = name_server.map(|server| format!("\n[dns]\nservers = [\"{server}\"]\n\n[auth]\n"));
        let config = config(&path.join("data").display().to_string(), sink) + &checks.unwrap_or_default();
        fs::write(path.join("pointsman.toml"), config)
            .and_then(|()| fs::write(path.join("rules.toml"), rules()))
            .context("cannot write the daemon's configuration")?;
        let log_path = path.join("log");
        let log = File::create(&log_path).context("cannot create the daemon's log")?;
        let log_again = log.try_clone().context("cannot share the daemon's log")?;
        let mut process = Process::start(
            Command::new(env!("CARGO_BIN_EXE_pointsman"))
                .args(["serve", "--config"])
                .arg(path.join("pointsman.toml"))
                .stdin(Stdio::null())
                .stdout(log_again)
                .stderr(log),
        )?;
        let listening = path.join("data/addresses.json");
        let addresses = machine::wait_for("data/addresses.json", machine::START_LIMIT, || {
            let found = fs::read(&listening).ok();
            let running = found.is_some() || process.is_running();
            ensure!(running, "the daemon ended at once: {}", tail(&fs::read_to_string(&log_path).unwrap_or_default()));
            Ok(found)
        })?;
        let addresses: Value = serde_json::from_slice(&addresses).context("addresses.json is not JSON")?;
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        Ok(Pointsman {
            process,
            directory,
            smtp: address(&addresses["listeners"][0]).context("addresses.json names no listener")?,
            admin: address(&addresses["admin"]).context("addresses.json names no admin address")?,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.smtp
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether no leg is open any more, by its own metrics.
    pub(crate) fn is_empty(&self) -> anyhow::Result<bool> {
        let metrics = self.metrics().context("cannot read the daemon's metrics")?;
        let open: f64 = metrics
            .lines()
            .filter(|line| line.starts_with("pointsman_open_legs{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum();
        Ok(open == 0.0)
    }

    /// How many messages it has seen pass both DKIM and DMARC, and SPF too: the least of the three.
    pub(crate) fn verified(&self) -> anyhow::Result<u64> {
        let metrics = self.metrics().context("cannot read the daemon's metrics")?;
        let passed = |check: &str| {
            let series = format!("pointsman_auth_total{{check=\"{check}\",result=\"pass\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok()).unwrap_or(0.0) as u64
        };
        Ok(passed("spf").min(passed("dkim")).min(passed("dmarc")))
    }

    fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(ADMIN_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(METRICS_BYTES_MAX).read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "`{}`", answer.lines().next().unwrap_or_default());
        Ok(answer)
    }
}

/// A busy daemon answers in milliseconds.
const ADMIN_LIMIT: Duration = Duration::from_secs(10);
/// A hundred times what it prints.
const METRICS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Defaults, except for what makes it ours, and `retry`: the sink goes away once a round without answering its last
/// message, and nobody wants to wait a minute for that one.
fn config(data: &str, sink: SocketAddr) -> String {
    format!(
        r#"
hostname = "mx.solarmora.com"
data     = "{data}"
rules    = ["rules.toml"]

[[listener]]
name    = "mx"
address = "127.0.0.1:0"
tls     = "off"

[route.crm]
hosts = ["{sink}"]
message-size = "50MiB"
tls   = "off"

[queue]
retry = ["1s"]

[admin]
address    = "127.0.0.1:0"
token-file = "admin.token"

[log]
format = "json"
"#
    )
}

fn rules() -> String {
    let (local, domain) = ALIAS.split_once('@').expect("an address has an @");
    format!(
        r#"
[domain."{domain}"]
role = "admin@mon-crm.com"

[target]
crm = {{ address = "{TARGET}", route = "crm" }}

[alias."{domain}"]
{local} = {{ to = "crm" }}
"#
    )
}

/// The end of a log: where a daemon says why it gave up.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

const TAIL_LINES: usize = 20;
