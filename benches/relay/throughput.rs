//! Messages a second from the source through a relay into the sink.
//!
//! A run's clock starts with smtp-source and stops when the sink has read its last message. After the warm-up the
//! contenders take turns; a relay's ratio is taken to the direct run of the same round, and the median of the ratios
//! is what the project promises.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::contender::{Contender, System};
use crate::report::{Report, median};
use crate::sender::Sender;
use crate::tools::{Shipment, Sink, Source};

/// One way of sending, and what is wanted of it.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    name: &'static str,
    title: &'static str,
    shipment: Shipment,
    /// The share of the messages that Postfix gets, one in so many: enough for a steady rate, without an hour's wait.
    postfix_divisor: u32,
    /// The message is signed, and we check who sent it.
    is_checked: bool,
    /// Ours as promised.
    wanted: Wanted,
    /// Postfix's ratio to direct as it was when the promise was made.
    postfix_then: f64,
}

/// What a rate is promised to be, in the same round.
#[derive(Clone, Copy)]
enum Wanted {
    OfDirect(f64),
    OfPostfix(f64),
}

pub(crate) const CONNECTION: Load = Load {
    name: "connection",
    title: "4 KiB, one message a connection, 50 sessions",
    shipment: Shipment { messages: 20_000, sessions: 50, bytes: 4096, is_persistent: false },
    postfix_divisor: 10,
    is_checked: false,
    wanted: Wanted::OfDirect(0.7),
    postfix_then: 0.08,
};

pub(crate) const CHECKED: Load = Load {
    name: "checked",
    title: "4 KiB, signed, one message a connection, 50 sessions; SPF, DKIM and DMARC verified by us only",
    is_checked: true,
    wanted: Wanted::OfPostfix(3.0),
    ..CONNECTION
};

pub(crate) const PERSISTENT: Load = Load {
    name: "persistent",
    title: "4 KiB, persistent connections, 50 sessions",
    shipment: Shipment { messages: 40_000, sessions: 50, bytes: 4096, is_persistent: true },
    postfix_divisor: 20,
    is_checked: false,
    wanted: Wanted::OfDirect(0.45),
    postfix_then: 0.03,
};

pub(crate) const LARGE: Load = Load {
    name: "large",
    title: "1 MiB, persistent connections, 20 sessions",
    shipment: Shipment { messages: 800, sessions: 20, bytes: 1024 * 1024, is_persistent: true },
    postfix_divisor: 2,
    is_checked: false,
    wanted: Wanted::OfDirect(0.7),
    postfix_then: 0.41,
};

impl Load {
    /// The same with a tenth of the messages.
    pub(crate) fn tenth(&self) -> Load {
        Load { shipment: Shipment { messages: self.shipment.messages / 10, ..self.shipment }, ..*self }
    }

    /// Whoever sends it, where who sent it is checked.
    pub(crate) fn sender(&self) -> anyhow::Result<Option<Sender>> {
        self.is_checked.then(|| Sender::start(self.shipment.bytes)).transpose()
    }

    fn shipment_for(&self, system: System) -> Shipment {
        let divisor = match system {
            System::Direct | System::Pointsman => 1,
            System::Postfix => self.postfix_divisor,
        };
        Shipment { messages: (self.shipment.messages / divisor).max(self.shipment.sessions), ..self.shipment }
    }
}

/// What one run cost.
struct Run {
    messages: u32,
    elapsed: Duration,
    /// The relay's, until its queue was empty.
    cpu: Duration,
}

impl Run {
    fn per_second(&self) -> f64 {
        f64::from(self.messages) / self.elapsed.as_secs_f64()
    }

    fn cpu_us_per_message(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / f64::from(self.messages)
    }
}

/// Runs all rounds of a load and reports them. A contender that fails takes no further part: what it still holds
/// would spoil its next run.
pub(crate) fn measure(
    load: &Load,
    rounds: u32,
    mut contenders: Vec<Contender>,
    sender: Option<&Sender>,
    report: &Report,
) -> anyhow::Result<()> {
    report.progress(load.title);
    let mut tally: Vec<Tally> = Vec::new();
    // Round 0 warms up: caches, the relays' processes and data bases.
    for round in 0..=rounds {
        let mut direct = None;
        let mut failed = Vec::new();
        for (place, contender) in contenders.iter().enumerate() {
            let system = contender.system();
            let run = match run(load, contender, sender) {
                Ok(run) => run,
                Err(error) => {
                    report.missing(&format!("{} with {}", load.name, system.name()), &error)?;
                    failed.push(place);
                    continue;
                }
            };
            let rate = run.per_second();
            if system == System::Direct {
                direct = Some(rate);
            }
            let ratio = direct.map(|direct| rate / direct);
            report.progress(&format!("round {round}: {:<9} {rate:>8.0}/s", system.name()));
            if round == 0 {
                continue;
            }
            report.record(&json!({
                "load": load.name, "system": system.name(), "round": round, "messages": run.messages,
                "seconds": run.elapsed.as_secs_f64(), "per_second": rate, "ratio": ratio,
                "cpu_us_per_message": run.cpu_us_per_message(),
            }));
            note(&mut tally, system, &run, ratio);
        }
        failed.into_iter().rev().for_each(|place| drop(contenders.remove(place)));
    }
    print(load, rounds, &tally, report);
    Ok(())
}

fn run(load: &Load, contender: &Contender, sender: Option<&Sender>) -> anyhow::Result<Run> {
    let shipment = load.shipment_for(contender.system());
    let mut sink = Sink::until(shipment.messages, contender.sink())?;
    let cpu_before = contender.cpu()?;
    let started = Instant::now();
    let verified_before = contender.verified()?;
    let mut source = Source::start(&shipment, sender.map(Sender::message), contender.entry())?;
    let ended = sink.wait(&mut source, RUN_LIMIT)?;
    drop(sink);
    contender.drain().context("after the run")?;
    let cpu = contender.cpu()?.saturating_sub(cpu_before);
    if let (Some(_), Some(before), Some(after)) = (sender, verified_before, contender.verified()?) {
        let verified = after - before;
        ensure!(u64::from(shipment.messages) <= verified, "only {verified} messages passed SPF, DKIM and DMARC");
    }
    Ok(Run { messages: shipment.messages, elapsed: ended.duration_since(started), cpu })
}

/// Twenty times what the slowest contender needs on two cores and an SSD.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// The runs of one system.
struct Tally {
    system: System,
    rates: Vec<f64>,
    /// Empty where nothing was sent directly.
    ratios: Vec<f64>,
    cpu_us: Vec<f64>,
}

fn note(tally: &mut Vec<Tally>, system: System, run: &Run, ratio: Option<f64>) {
    let place = tally.iter().position(|known| known.system == system).unwrap_or_else(|| {
        tally.push(Tally { system, rates: Vec::new(), ratios: Vec::new(), cpu_us: Vec::new() });
        tally.len() - 1
    });
    tally[place].rates.push(run.per_second());
    tally[place].ratios.extend(ratio);
    tally[place].cpu_us.push(run.cpu_us_per_message());
}

fn print(load: &Load, rounds: u32, tally: &[Tally], report: &Report) {
    let (all, fewer) = (load.shipment_for(System::Direct).messages, load.shipment_for(System::Postfix).messages);
    report.line(&format!("\n{}; median of {rounds} rounds of {all} messages ({fewer} for Postfix)", load.title));
    report.line("  system      messages/s   of direct (least to most)   wanted   CPU per message");
    for Tally { system, rates, ratios, cpu_us } in tally {
        let (rate, ratio, cpu_us) = (median(rates), median(ratios), median(cpu_us));
        let least = ratios.iter().copied().reduce(f64::min).unwrap_or(f64::NAN);
        let most = ratios.iter().copied().reduce(f64::max).unwrap_or(f64::NAN);
        let (wanted, end) = match system {
            System::Direct => (String::new(), String::new()),
            System::Pointsman => wanted(load.wanted, ratio, rates, tally),
            System::Postfix => (format!("({})", load.postfix_then), String::new()),
        };
        let cpu = match system {
            System::Direct => String::new(),
            System::Pointsman | System::Postfix => format!("{:.0} us", cpu_us.unwrap_or(f64::NAN)),
        };
        report.line(&format!(
            "  {:<9} {:>12.0} {:>11.3} ({least:.3} to {most:.3}) {wanted:>8} {cpu:>17}{end}",
            system.name(),
            rate.unwrap_or(f64::NAN),
            ratio.unwrap_or(f64::NAN),
        ));
        let (of_direct, of_postfix) = match load.wanted {
            Wanted::OfDirect(share) => (Some(share), None),
            Wanted::OfPostfix(times) => (None, Some(times)),
        };
        let ours = *system == System::Pointsman;
        report.record(&json!({
            "load": load.name, "system": system.name(), "median_per_second": rate, "median_ratio": ratio,
            "median_cpu_us_per_message": cpu_us,
            "wanted_ratio": of_direct.filter(|_| ours), "wanted_of_postfix": of_postfix.filter(|_| ours),
        }));
    }
}

/// What our rate is promised to be, and the verdict.
fn wanted(wanted: Wanted, of_direct: Option<f64>, rates: &[f64], tally: &[Tally]) -> (String, String) {
    match wanted {
        Wanted::OfDirect(share) => (share.to_string(), verdict(of_direct.map(|ratio| share <= ratio)).to_owned()),
        Wanted::OfPostfix(times) => {
            let postfix = tally.iter().find(|one| one.system == System::Postfix);
            // Round by round, as the ratios to direct are.
            let ratios = postfix.map(|one| rates.iter().zip(&one.rates).map(|(ours, theirs)| ours / theirs).collect());
            let ratio = ratios.and_then(|ratios: Vec<f64>| median(&ratios));
            let end = ratio.map(|ratio| format!("   {ratio:.1} of Postfix's, wanted {times}"));
            (String::new(), end.unwrap_or_default() + verdict(ratio.map(|ratio| times <= ratio)))
        }
    }
}

/// The end of a line that a promise stands on.
pub(crate) fn verdict(is_kept: Option<bool>) -> &'static str {
    match is_kept {
        Some(true) => "   reached",
        Some(false) => "   FELL SHORT",
        None => "",
    }
}
