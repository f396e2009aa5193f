//! `doctor`: what is wrong, and what to do about it.
//!
//! Where the daemon runs it examines itself. Where it does not, that is the first finding, and the rest is looked at from
//! here, as far as whoever asks may look: files are judged by the mode bits for the owner of the data directory.

use std::path::Path;

use super::ask::{List, ask_daemon, daemon};
use super::{Ended, Output};
use crate::admin::control::{Line, Request};
use crate::admin::doctor::{self, Finding, Ledger, Part, Subject, User};
use crate::admin::examine;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::dns::resolver::Resolver;
use crate::queue::State;
use crate::queue::sqlite::{Filter, ReadOnly, SqliteStore};

pub(super) fn run(config: &Path, output: Output) -> anyhow::Result<Ended> {
    let mut report = Report::new(output);
    match daemon(config)? {
        Some(socket) => ask_daemon(&socket, &Request::Doctor, &mut |line| report.take(line))?,
        None => crate::daemon::runtime()?.block_on(without_daemon(config, &mut report))?,
    }
    Ok(report.end())
}

/// Prints findings as they come, and counts them.
struct Report {
    json: bool,
    list: List,
    findings: usize,
    unknown: usize,
}

impl Report {
    fn new(output: Output) -> Report {
        Report { json: output.json, list: List::new(output.json, 0), findings: 0, unknown: 0 }
    }

    fn take(&mut self, line: Line) {
        if let Line::Told { object, text } = &line {
            self.findings += usize::from(object["result"] == "finding");
            self.unknown += usize::from(object["result"] == "unknown");
            if !self.json {
                print!("{text}");
            }
        }
        if self.json {
            self.list.take(line);
        }
    }

    fn end(&self) -> Ended {
        if !self.json {
            println!("{} findings, {} unknown", self.findings, self.unknown);
        }
        if self.findings > 0 { Ended::Findings } else { Ended::Done }
    }
}

async fn without_daemon(path: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut tell = |finding: Finding| report.take(examine::line(&finding));
    tell(Finding::fault("daemon", "", "it is not running", "start it: `pointsman serve`, or its unit; see its log"));
    let config = match Config::load(path) {
        Ok((config, _)) => config,
        Err(errors) => {
            let what = format!("the files have {} errors, and nothing else can be looked at", errors.errors());
            tell(Finding::fault("configuration", path.display().to_string(), what, "`pointsman check` shows them"));
            return Ok(());
        }
    };
    let now = SystemClock::new().now();
    let store = match SqliteStore::open_read_only(&config.data) {
        Ok(store) => {
            doctor::ledger(ledger(&store), now).await.into_iter().for_each(&mut tell);
            Some(store)
        }
        Err(error) => {
            tell(Finding::unknown("ledger", "", error.to_string()));
            None
        }
    };
    let (paused, open) = match &store {
        Some(store) => (store.pauses().await.unwrap_or_default(), held(store).await),
        None => (Vec::new(), Vec::new()),
    };
    let subject = Subject {
        hostname: config.hostname.clone(),
        min_free: config.queue.min_free,
        config: path.to_owned(),
        rules: config.rules.clone(),
        routes: config.routes.clone(),
        paused,
        open,
        tls: config.tls.clone(),
        srs: config.srs.as_ref().map(|srs| srs.domain().clone()),
        has_upstream: !config.upstream.is_empty(),
        listeners: config.listeners.iter().map(|listener| listener.address).collect(),
        user: User::owner_of(&config.data),
        data: config.data,
        now,
    };
    let dns = Resolver::new(&config.dns_servers)?;
    for part in Part::ALL {
        doctor::look(part, &subject, &dns).await.into_iter().for_each(&mut tell);
    }
    Ok(())
}

async fn ledger(store: &ReadOnly) -> Result<Ledger, crate::queue::StoreError> {
    let balance = store.balance().await?;
    let newest = store.query(Filter { limit: 1, ..Filter::default() }).await?;
    Ok(Ledger { balance, newest: newest.first().map(|leg| leg.received) })
}

/// Held legs by route, as far as a question's rows reach.
async fn held(store: &ReadOnly) -> Vec<(String, State, u64)> {
    let rows = store.query(Filter { states: vec![State::Held], ..Filter::default() }).await.unwrap_or_default();
    let mut counts = std::collections::BTreeMap::new();
    for row in rows {
        *counts.entry(row.route).or_insert(0) += 1;
    }
    counts.into_iter().map(|(route, legs)| (route, State::Held, legs)).collect()
}
