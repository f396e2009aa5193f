//! What our daemon takes of memory: idle, per idle connection, and under large messages.
//!
//! Read from /proc, so it is what the kernel gave the process, shared pages of its program included. Each part has a
//! daemon of its own, because an allocator does not hand everything back.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use serde_json::json;

use crate::contender::{Contender, System};
use crate::latency::Client;
use crate::machine;
use crate::pointsman::Pointsman;
use crate::report::Report;
use crate::throughput::verdict;
use crate::tools::{Shipment, Sink, Source};

const CONNECTIONS: usize = 10_000;
/// Both ends of a connection are counted, each in its own process; the rest is ours and the daemon's own.
pub(crate) const FILES_WANTED: u64 = CONNECTIONS as u64 + 1_000;
/// Enough to keep two cores at it.
const OPENERS: usize = 4;

const LARGE: Shipment = Shipment { messages: 50, sessions: 50, bytes: 25 * MIB as u32, is_persistent: true };
/// 1.25 GiB to disk and back.
const LARGE_LIMIT: Duration = Duration::from_secs(180);

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const IDLE_WANTED: u64 = 20 * MIB;
const CONNECTION_WANTED: u64 = 20 * KIB;
const LARGE_WANTED: u64 = 200 * MIB;

/// Measures and prints all three.
pub(crate) fn measure(report: &Report) -> anyhow::Result<()> {
    report.progress("memory");
    report.line("\nMemory of pointsman");
    idle(report)?;
    large_messages(report).context("50 messages of 25 MiB at once")
}

fn idle(report: &Report) -> anyhow::Result<()> {
    // Nothing is sent: the route may lead nowhere.
    let daemon = Pointsman::start(machine::free_port()?, None)?;
    let idle = machine::memory_of(daemon.id())?.resident;
    print(report, "idle", idle, IDLE_WANTED);

    let clients = connect_many(daemon.address()).context("10,000 idle connections")?;
    let busy = machine::memory_of(daemon.id())?.resident;
    let each = busy.saturating_sub(idle) / clients.len() as u64;
    print(report, "each of 10,000 idle connections", each, CONNECTION_WANTED);
    Ok(())
}

/// All connections after their EHLO, open as long as they are held.
fn connect_many(to: SocketAddr) -> anyhow::Result<Vec<Client>> {
    let openers: Vec<_> = (0..OPENERS)
        .map(|_| {
            thread::spawn(move || {
                let mut clients = Vec::with_capacity(CONNECTIONS / OPENERS);
                for count in 0..CONNECTIONS / OPENERS {
                    machine::check_interrupt()?;
                    clients.push(Client::connect(to).with_context(|| format!("one opener stopped after {count}"))?);
                }
                anyhow::Ok(clients)
            })
        })
        .collect();
    let mut all = Vec::with_capacity(CONNECTIONS);
    for opener in openers {
        all.extend(opener.join().map_err(|_| anyhow!("an opener panicked"))??);
    }
    ensure!(all.len() == CONNECTIONS, "{} connections instead of {CONNECTIONS}", all.len());
    Ok(all)
}

fn large_messages(report: &Report) -> anyhow::Result<()> {
    let contender = Contender::start(System::Pointsman, None)?;
    let daemon = contender.relay_id().context("pointsman is a process")?;
    let idle = machine::memory_of(daemon)?.resident;
    let mut sink = Sink::until(LARGE.messages, contender.sink())?;
    let mut source = Source::start(&LARGE, None, contender.entry())?;
    sink.wait(&mut source, LARGE_LIMIT)?;
    let over_idle = machine::memory_of(daemon)?.peak.saturating_sub(idle);
    print(report, "50 messages of 25 MiB at once, over idle", over_idle, LARGE_WANTED);
    Ok(())
}

fn print(report: &Report, what: &str, bytes: u64, wanted: u64) {
    let shown = |bytes: u64| {
        if bytes < MIB {
            format!("{:.1} KiB", bytes as f64 / KIB as f64)
        } else {
            format!("{:.1} MiB", bytes as f64 / MIB as f64)
        }
    };
    let verdict = verdict(Some(bytes < wanted));
    report.line(&format!("  {what:<42} {:>10}   wanted under {}{verdict}", shown(bytes), shown(wanted)));
    report.record(&json!({ "load": "memory", "system": "pointsman", "what": what, "bytes": bytes, "wanted": wanted }));
}
