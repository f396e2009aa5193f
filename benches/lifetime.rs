//! How long a daemon takes to begin and to end: from its start to the first banner with many rules, and from SIGTERM to
//! its exit with a full queue.
//!
//! The queue is filled over SMTP with legs for a host that refuses connections, so that it is as full as a day's outage
//! makes it. Each figure is wall-clock time, the median of a few lives. `cargo lifetime-bench` builds and runs it; the
//! exit code is 1 where a promise is not kept.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lifetime-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<bool> {
    let folder = tempfile::Builder::new().prefix("pointsman-lifetime-").tempdir()?;
    let address = free_port()?;
    let config = write_site(folder.path(), address)?;
    let mut is_kept = true;

    let mut begins = Vec::new();
    for _ in 0..LIVES {
        let (daemon, took) = Daemon::start(&config, address)?;
        begins.push(took);
        daemon.end()?;
    }
    is_kept &= print(&format!("start to first banner, {RULES} rules"), &mut begins, BEGIN_MAX);

    let (daemon, _) = Daemon::start(&config, address)?;
    let began = Instant::now();
    fill(address)?;
    println!("{LEGS} legs for a dead route, accepted within {:.1} s", began.elapsed().as_secs_f64());
    let (mut begins, mut ends) = (Vec::new(), vec![daemon.end()?]);
    for _ in 0..LIVES {
        let (daemon, took) = Daemon::start(&config, address)?;
        begins.push(took);
        // Some clients are always there, and do nothing.
        let idle = (0..IDLE).map(|_| greet(address)).collect::<anyhow::Result<Vec<_>>>()?;
        ends.push(daemon.end()?);
        drop(idle);
    }
    is_kept &= print(&format!("start to first banner, {LEGS} legs in the queue, too"), &mut begins, BEGIN_MAX);
    is_kept &= print(&format!("SIGTERM to exit, {LEGS} legs in the queue, {IDLE} idle clients"), &mut ends, END_MAX);
    Ok(is_kept)
}

/// Prints the median and the worst; whether the median keeps the promise.
fn print(what: &str, times: &mut [Duration], most: Duration) -> bool {
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {:.0} ms, at worst {:.0} ms (wanted: {:.0} ms)", ms(median), ms(worst), ms(most));
    median <= most
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A daemon with many aliases, all of which lead to a port that refuses.
fn write_site(folder: &Path, address: SocketAddr) -> anyhow::Result<std::path::PathBuf> {
    let dead = free_port()?;
    let config = folder.join("pointsman.toml");
    let text = format!(
        "hostname = \"mx.solarmora.com\"\ndata = \"{}\"\nrules = [\"rules.toml\"]\n[[listener]]\nname = \"mx\"\n\
         address = \"{address}\"\n[route.dead]\nhosts = [\"{dead}\"]\ntls = \"off\"\n[queue]\nmin-free = \"1MiB\"\n",
        folder.join("data").display()
    );
    fs::write(&config, text)?;
    let mut rules = String::from(
        "[domain.\"solarmora.com\"]\nrole = \"admin@example.net\"\n\
         [target]\ncrm = { address = \"case@crm.example\", route = \"dead\" }\n[alias.\"solarmora.com\"]\n",
    );
    for number in 0..RULES {
        writeln!(rules, "a{number} = {{ to = \"crm\" }}")?;
    }
    fs::write(folder.join("rules.toml"), rules)?;
    Ok(config)
}

/// Hands in messages with as many recipients as one may have.
fn fill(address: SocketAddr) -> anyhow::Result<()> {
    let mut client = greet(address)?;
    for message in 0..LEGS / RECIPIENTS {
        client.say("MAIL FROM:<client@example.org>", "250")?;
        let first = message * RECIPIENTS;
        let recipients: Vec<String> = (first..first + RECIPIENTS)
            .map(|number| format!("RCPT TO:<a{}@solarmora.com>\r\n", number % RULES))
            .collect();
        client.stream.get_mut().write_all(recipients.concat().as_bytes())?;
        for _ in recipients {
            client.expect("250")?;
        }
        client.say("DATA", "354")?;
        client.say(&format!("Subject: {message}\r\nMessage-ID: <{message}@example.org>\r\n\r\nbody\r\n."), "250")?;
    }
    client.say("QUIT", "221")
}

struct Daemon(Child);

impl Daemon {
    /// Until it greets a client. It is dialled without a pause: what the dialling costs is a part of the figure.
    fn start(config: &Path, address: SocketAddr) -> anyhow::Result<(Daemon, Duration)> {
        let began = Instant::now();
        let log = fs::File::create(config.with_extension("log"))?;
        let child = Command::new(env!("CARGO_BIN_EXE_pointsman"))
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        let mut daemon = Daemon(child);
        while began.elapsed() < PATIENCE {
            if let Ok(stream) = TcpStream::connect(address) {
                Client::new(stream)?.expect("220")?;
                return Ok((daemon, began.elapsed()));
            }
            if let Some(status) = daemon.0.try_wait()? {
                bail!("the daemon ended ({status}): {}", fs::read_to_string(config.with_extension("log"))?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("the daemon does not listen")
    }

    /// SIGTERM; how long it takes until it has ended.
    fn end(mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let pid = i32::try_from(self.0.id()).context("a process id")?;
        let pid = rustix::process::Pid::from_raw(pid).context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.0.wait()?;
        if !status.success() {
            bail!("the daemon ended with {status}");
        }
        Ok(began.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn new(stream: TcpStream) -> anyhow::Result<Client> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    fn say(&mut self, text: &str, code: &str) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(format!("{text}\r\n").as_bytes())?;
        self.expect(code)
    }

    /// Reads a reply of any number of lines.
    fn expect(&mut self, code: &str) -> anyhow::Result<()> {
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            if !line.starts_with(code) {
                bail!("expected {code}, and got {line:?}");
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

fn greet(address: SocketAddr) -> anyhow::Result<Client> {
    let mut client = Client::new(TcpStream::connect(address)?)?;
    client.expect("220")?;
    client.say("EHLO client.example.org", "250")?;
    Ok(client)
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What a large site has.
const RULES: usize = 10_000;
/// A CRM that is away for a day, at more than one message a second.
const LEGS: usize = 100_000;
/// RFC 5321 §4.5.3.1.8: what every server takes.
const RECIPIENTS: usize = 100;
const IDLE: usize = 40;
const LIVES: usize = 5;
/// A restart that nobody notices.
const BEGIN_MAX: Duration = Duration::from_millis(300);
/// What service managers and operators have patience for.
const END_MAX: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
