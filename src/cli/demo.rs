//! `demo`: the whole thing in one process, with nothing else installed.
//!
//! It writes a configuration like anybody's into a temporary folder, starts the real daemon on free loopback ports
//! and a stand-in CRM behind it, sends one message through the socket and tells its journey. Then it stays up.

use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;

use super::standin::{self, Case};
use super::{Ended, render};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::daemon::{self, Daemon};
use crate::listen::Inherited;
use crate::reload::start;

/// Runs until SIGINT or SIGTERM, and removes its folder.
pub(super) fn run() -> anyhow::Result<Ended> {
    let runtime = daemon::runtime()?;
    let folder = Folder::create()?;
    runtime.block_on(async {
        let mut daemon = None;
        tokio::select! {
            // Heard from the first moment on: whoever has seen enough early leaves no folder behind either.
            biased;
            signalled = daemon::until_signalled() => signalled?,
            shown = show(&folder, &mut daemon) => shown?,
        }
        if let Some(daemon) = daemon {
            daemon.drain().await;
        }
        Ok(Ended::Done)
    })
}

/// Starts the daemon and its CRM, sends the message, tells its journey and stays up. Ends only where something fails.
async fn show(folder: &Folder, running: &mut Option<Daemon>) -> anyhow::Result<()> {
    let (crm, mut cases) = standin::start(|| SystemClock::new().now()).await.context("cannot start a stand-in CRM")?;
    let file = folder.write_configuration(crm)?;
    let clock = Arc::new(SystemClock::new());
    let chosen = match start::choose(&file, clock.now()) {
        Ok(chosen) => chosen,
        Err(report) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            bail!("the demonstration's own configuration is wrong");
        }
    };
    let daemon = running.insert(Daemon::start(chosen, clock, Inherited::none(), None).await?);
    println!("Pointsman listens on {}; behind it a stand-in CRM on {crm}.", daemon.listeners[0]);
    println!("The rules: mail for aide@solarmora.com goes to the CRM, with a copy to the sales team.\n");

    send_one(daemon.listeners[0]).await.context("the message was not taken")?;
    for _ in 0..LEGS {
        tell(daemon, &mut cases, DELIVERY_WAIT).await?;
    }
    print_journey(daemon).await?;
    print_next_steps(daemon, &file);
    loop {
        tell(daemon, &mut cases, Duration::MAX).await?;
    }
}

/// Sends one message as any client would, and prints the session.
async fn send_one(address: SocketAddr) -> anyhow::Result<()> {
    println!("One message, sent through the socket:");
    let clock = SystemClock::new();
    let stream = TcpStream::connect(address).await?;
    // Each line is answered: Nagle's algorithm would hold the final dot back for 40 ms.
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    for said in ["", "EHLO laptop.example", "MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        talk(&mut stream, said, &clock).await?;
    }
    let date = SystemClock::new().now().rfc5322();
    let message = MESSAGE.replace("{date}", &date).replace('\n', "\r\n");
    println!("  {:>8.2} ms  C: … {} octets …", ms(&clock), message.len());
    stream.write_all(message.as_bytes()).await?;
    talk(&mut stream, ".", &clock).await?;
    talk(&mut stream, "QUIT", &clock).await?;
    println!();
    Ok(())
}

/// Says a line (none: the banner is awaited), reads the reply and prints both with the time.
async fn talk(stream: &mut BufReader<TcpStream>, said: &str, clock: &SystemClock) -> anyhow::Result<()> {
    if !said.is_empty() {
        println!("  {:>8.2} ms  C: {said}", ms(clock));
        stream.write_all(format!("{said}\r\n").as_bytes()).await?;
    }
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            bail!("the connection was closed");
        }
        println!("  {:>8.2} ms  S: {}", ms(clock), line.trim_end());
        if line.starts_with(['4', '5']) {
            bail!("refused: {}", line.trim_end());
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

fn ms(clock: &SystemClock) -> f64 {
    clock.monotonic().as_secs_f64() * 1e3
}

/// Waits for the next case and says that it came.
async fn tell(daemon: &Daemon, cases: &mut Receiver<Case>, wait: Duration) -> anyhow::Result<()> {
    let case = tokio::time::timeout(wait, cases.recv()).await.context("the stand-in CRM got nothing")?;
    let case = case.context("the stand-in CRM ended")?;
    println!(
        "The CRM opened case {:05} at {}: {} octets from <{}> for <{}>.",
        case.number,
        case.at,
        case.message.len(),
        case.sender,
        case.recipient
    );
    daemon.settled(SETTLE_WAIT).await;
    Ok(())
}

async fn print_journey(daemon: &Daemon) -> anyhow::Result<()> {
    println!("\nIts journey, as `pointsman trace` tells it:\n");
    for message in daemon.latest_messages(1).await? {
        println!("{}", render::journey(&message.into()));
    }
    Ok(())
}

fn print_next_steps(daemon: &Daemon, file: &Path) {
    let (listener, config) = (daemon.listeners[0], file.display());
    let program = std::env::current_exe().map_or_else(|_| "pointsman".to_owned(), |path| path.display().to_string());
    println!("It stays up until Ctrl-C. In another terminal:");
    println!("  swaks --server {listener} --from you@example.org --to aide@solarmora.com    another case");
    println!(
        "  swaks --server {listener} --from you@example.org --to nobody@solarmora.com  an address that no rule names"
    );
    println!("  {program} trace --config {config}");
    println!("  {program} explain --config {config} --recipient aide@solarmora.com");
    if let Some(admin) = daemon.admin {
        println!("  curl http://{admin}/metrics");
    }
    println!("The rules are in {}.", file.with_file_name("rules.toml").display());
}

/// The demonstration's folder, removed when it ends.
struct Folder(PathBuf);

impl Folder {
    fn create() -> anyhow::Result<Folder> {
        let Timestamp(now) = SystemClock::new().now();
        let path = std::env::temp_dir().join(format!("pointsman-demo-{}-{now}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Folder(path))
    }

    fn write_configuration(&self, crm: SocketAddr) -> anyhow::Result<PathBuf> {
        let file = self.0.join("pointsman.toml");
        let data = self.0.join("data");
        fs::write(
            &file,
            CONFIGURATION.replace("{data}", &data.display().to_string()).replace("{crm}", &crm.to_string()),
        )?;
        fs::write(self.0.join("rules.toml"), RULES)?;
        Ok(file)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the system's temporary folder: what cannot be removed now is removed at the next boot.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CONFIGURATION: &str = r#"hostname = "mx.solarmora.com"
data     = "{data}"
rules    = ["rules.toml"]

[[listener]]
address = "127.0.0.1:0"

[route.crm]
hosts = ["{crm}"]
tls   = "off"

[admin]
address = "127.0.0.1:0"

[queue]
min-free = "1MiB"

[dkim]
sign = "off"
"#;

const RULES: &str = r#"[domain."solarmora.com"]
role = "admin@example.net"

[target]
salesforce = { address = "aide@key.org.instance.case.salesforce.com", route = "crm" }
ventes     = { address = "ventes@crm.example", route = "crm" }

[alias."solarmora.com"]
aide = { to = "salesforce", also = ["ventes"] }
"#;

const MESSAGE: &str = "Date: {date}
From: Claire Client <client@example.org>
To: aide@solarmora.com
Subject: The inverter shows error 17
Message-ID: <demo-1@laptop.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

Hello,

since this morning the inverter shows error 17. What can I do?

Claire
";

/// The copies that the demonstration's rules make of its message.
const LEGS: usize = 2;
/// A delivery takes milliseconds; a machine that is busy compiling gets patience.
const DELIVERY_WAIT: Duration = Duration::from_secs(20);
const SETTLE_WAIT: Duration = Duration::from_secs(5);
