//! How long a client waits between its final dot and the 250, at a rate far below the relay's limit.
//!
//! The schedule is open: message n is due at its own instant, whether or not the ones before it have been answered,
//! and the wait counts from that instant. Everything up to the 354 is spoken ahead, the body goes with the dot.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::contender::{Contender, System};
use crate::machine;
use crate::report::{Report, quantile};
use crate::throughput::verdict;
use crate::tools::{ALIAS, SENDER, Sink};

/// 100 messages a second.
const GAP: Duration = Duration::from_millis(10);
/// Each has 100 ms for a message, so that one slow answer does not delay the next message of the schedule.
const CONNECTIONS: usize = 10;
/// The first second's messages find cold caches and are not counted.
const WARM_UP: usize = 100;
const COUNTED: usize = 1500;
const COUNTED_QUICK: usize = 400;
const MESSAGE_BYTES: usize = 4096;

const P50_WANTED_MS: f64 = 5.0;
const P99_WANTED_MS: f64 = 25.0;

/// Sends to each relay in turn and prints its quantiles.
pub(crate) fn measure(is_quick: bool, contenders: &[Contender], report: &Report) -> anyhow::Result<()> {
    let counted = if is_quick { COUNTED_QUICK } else { COUNTED };
    report.progress("final dot to 250 at 100 messages a second");
    report.line("\n4 KiB at 100 messages a second, final dot to 250");
    report.line("  system           p50        p99        max");
    for contender in contenders {
        let system = contender.system();
        // The sink alone syncs nothing; its answer says nothing about a relay.
        if system == System::Direct {
            continue;
        }
        match waits_ms(contender, counted) {
            Ok(waits) => print(system, &waits, report),
            Err(error) => report.missing(&format!("latency with {}", system.name()), &error)?,
        }
    }
    report.line(&format!("  wanted {P50_WANTED_MS:>10} ms {P99_WANTED_MS:>7} ms"));
    Ok(())
}

fn print(system: System, waits: &[f64], report: &Report) {
    let at = |share| quantile(waits, share).unwrap_or(f64::NAN);
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    let kept = (system == System::Pointsman).then_some(p50 < P50_WANTED_MS && p99 < P99_WANTED_MS);
    report.line(&format!("  {:<9} {p50:>7.2} ms {p99:>7.2} ms {max:>7.2} ms{}", system.name(), verdict(kept)));
    report.record(&json!({
        "load": "latency", "system": system.name(), "messages": waits.len(),
        "p50_ms": p50, "p99_ms": p99, "max_ms": max,
    }));
}

fn waits_ms(contender: &Contender, counted: usize) -> anyhow::Result<Vec<f64>> {
    let sink = Sink::endless(contender.sink())?;
    // Time for all connections to say EHLO before the first message is due.
    let first = Instant::now() + Duration::from_secs(1);
    let entry = contender.entry();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| thread::spawn(move || send_every_nth(entry, first, number, WARM_UP + counted)))
        .collect();
    let mut waits = Vec::with_capacity(counted);
    for client in clients {
        waits.extend(client.join().expect("a client does not panic")?);
    }
    // Its place is taken by the one that the drain starts.
    drop(sink);
    contender.drain().context("after the run")?;
    Ok(waits)
}

/// One connection's share of the schedule: messages `number`, `number + CONNECTIONS` and so on below `end`.
fn send_every_nth(entry: SocketAddr, first: Instant, number: usize, end: usize) -> anyhow::Result<Vec<f64>> {
    let mut client = Client::connect(entry)?;
    let message = message();
    let mut waits = Vec::with_capacity(end / CONNECTIONS);
    for turn in (number..end).step_by(CONNECTIONS) {
        machine::check_interrupt()?;
        client.command(&format!("MAIL FROM:<{SENDER}>\r\n"), "250")?;
        client.command(&format!("RCPT TO:<{ALIAS}>\r\n"), "250")?;
        client.command("DATA\r\n", "354")?;
        let due = first + GAP * u32::try_from(turn).expect("a schedule of minutes");
        thread::sleep(due.saturating_duration_since(Instant::now()));
        client.command(&message, "250")?;
        if WARM_UP <= turn {
            waits.push(due.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(waits)
}

/// A header, lines of 76 characters, the dot.
fn message() -> String {
    let mut text = format!(
        "From: <{SENDER}>\r\nTo: <{ALIAS}>\r\nSubject: latency\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n\r\n"
    );
    while text.len() < MESSAGE_BYTES {
        text.push_str(&"X".repeat(76));
        text.push_str("\r\n");
    }
    text.push_str(".\r\n");
    text
}

/// A blocking SMTP client that takes one reply at a time.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects and says EHLO.
    pub(crate) fn connect(to: SocketAddr) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(to).context("cannot connect")?;
        stream.set_nodelay(true).context("cannot turn Nagle's algorithm off")?;
        stream.set_read_timeout(Some(REPLY_LIMIT)).context("cannot set the time limit")?;
        let mut client = Client { stream: BufReader::with_capacity(REPLY_BYTES, stream) };
        client.expect("220")?;
        client.command("EHLO client.example.org\r\n", "250")?;
        Ok(client)
    }

    /// Sends `text` as it is and wants a reply with `code`.
    fn command(&mut self, text: &str, code: &str) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).context("cannot send")?;
        self.expect(code)
    }

    fn expect(&mut self, code: &str) -> anyhow::Result<()> {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line).with_context(|| format!("no reply {code}"))?;
            ensure!(0 < read, "the connection was closed instead of {code}");
            ensure!(line.starts_with(code), "`{}` instead of {code}", line.trim_end());
            // RFC 5321 §4.2.1: the last line of a reply has a space after the code.
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

/// A relay that takes longer is stuck.
const REPLY_LIMIT: Duration = Duration::from_secs(30);
/// Any reply fits; 10,000 connections each hold such a buffer.
const REPLY_BYTES: usize = 1024;
