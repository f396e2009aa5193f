//! Postfix's pair of test programs: `smtp-source` sends, `smtp-sink` swallows.
//!
//! `smtp-sink -M n` ends when it has read its n-th message, and that end is our clock. It does not answer that
//! message any more, so a relay keeps it and tries again: see `Contender::drain`.

use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::NamedTempFile;

use crate::machine::{self, Process};

/// The address that the load is sent to, and what the relays make of it.
pub(crate) const ALIAS: &str = "aide@solarmora.com";
pub(crate) const TARGET: &str = "case@mon-crm.com";
pub(crate) const SENDER: &str = "client@example.org";

/// Fails with the line that installs what is missing.
pub(crate) fn check() -> anyhow::Result<()> {
    ["smtp-source", "smtp-sink"].into_iter().try_for_each(|program| machine::find(program).map(drop))
}

/// A running `smtp-sink`.
pub(crate) struct Sink {
    process: Process,
    ended: Receiver<Instant>,
    errors: NamedTempFile,
}

impl Sink {
    /// One that ends with its `messages`-th message.
    pub(crate) fn until(messages: u32, address: SocketAddr) -> anyhow::Result<Sink> {
        Sink::start(&["-M", &messages.to_string()], address)
    }

    /// One that ends when it is dropped.
    pub(crate) fn endless(address: SocketAddr) -> anyhow::Result<Sink> {
        Sink::start(&[], address)
    }

    fn start(options: &[&str], address: SocketAddr) -> anyhow::Result<Sink> {
        let mut command = Command::new(machine::find("smtp-sink")?);
        if machine::is_root() {
            // As root it refuses to run without a user to become.
            command.args(["-u", "postfix"]);
        }
        command.args(options).args(["-m", SESSIONS_MAX, &address.to_string(), BACKLOG]);
        let (errors, stderr) = error_file()?;
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr))?;
        let mut output = process.take_stdout().context("smtp-sink has no output")?;
        let (sender, ended) = channel();
        thread::spawn(move || {
            // It prints nothing: the pipe closes when it ends, to the microsecond and without polling.
            let _ = output.read_to_end(&mut Vec::new());
            let _ = sender.send(Instant::now());
        });
        machine::wait_for_listener(address)?;
        Ok(Sink { process, ended, errors })
    }

    /// Waits until it has all its messages; says when that was.
    ///
    /// # Errors
    /// After `limit`, or when `source` has failed, for then they will never come.
    pub(crate) fn wait(&mut self, source: &mut Source, limit: Duration) -> anyhow::Result<Instant> {
        let started = Instant::now();
        let mut source_failed = false;
        loop {
            match self.ended.recv_timeout(LOOK_PAUSE) {
                Ok(ended) => {
                    // Its pipe closes too when it could not take the port, say.
                    ensure!(self.process.has_succeeded(), "smtp-sink failed: {}", complaint(&self.errors));
                    return Ok(ended);
                }
                Err(RecvTimeoutError::Disconnected) => bail!("smtp-sink's watcher is gone"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            machine::check_interrupt()?;
            // Sending straight to the sink, the source fails by rights when the sink goes: hence the second look.
            ensure!(!source_failed, "smtp-source failed: {}", complaint(&source.errors));
            source_failed = source.process.has_failed();
            let in_time = started.elapsed() < limit;
            ensure!(in_time, "the sink lacks messages after {limit:?}; it says: `{}`", complaint(&self.errors));
        }
    }
}

/// Beyond what any relay opens at once; more would wait in the backlog.
const SESSIONS_MAX: &str = "256";
/// 50 sessions that come anew for each message never fill it.
const BACKLOG: &str = "1000";
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// A running `smtp-source`.
pub(crate) struct Source {
    process: Process,
    errors: NamedTempFile,
}

/// What to send.
#[derive(Clone, Copy)]
pub(crate) struct Shipment {
    pub(crate) messages: u32,
    pub(crate) sessions: u32,
    pub(crate) bytes: u32,
    /// Many messages a connection rather than one.
    pub(crate) is_persistent: bool,
}

impl Source {
    /// Starts to send; `message` is the file of a signed one.
    pub(crate) fn start(shipment: &Shipment, message: Option<&Path>, to: SocketAddr) -> anyhow::Result<Source> {
        let (errors, stderr) = error_file()?;
        let mut command = Command::new(machine::find("smtp-source")?);
        if shipment.is_persistent {
            command.arg("-d");
        }
        match message {
            Some(file) => command.arg("-F").arg(file),
            None => command.args(["-l", &shipment.bytes.to_string()]),
        };
        command
            .args(["-s", &shipment.sessions.to_string()])
            .args(["-m", &shipment.messages.to_string()])
            .args(["-f", SENDER, "-t", ALIAS])
            .arg(to.to_string());
        let process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr))?;
        Ok(Source { process, errors })
    }
}

/// Where a program may complain without disturbing the table.
fn error_file() -> anyhow::Result<(NamedTempFile, File)> {
    let file = NamedTempFile::new().context("cannot create a file for errors")?;
    let writer = file.reopen().context("cannot open the file for errors")?;
    Ok((file, writer))
}

/// The last thing that a program said; one that is unhappy says the same a hundred times.
fn complaint(errors: &NamedTempFile) -> String {
    let text = fs::read_to_string(errors.path()).unwrap_or_default();
    text.lines().next_back().unwrap_or_default().to_owned()
}
