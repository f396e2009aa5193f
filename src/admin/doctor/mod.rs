//! The doctor: looks at everything that mail stands on, and says of each what is wrong and what to do.
//!
//! The same examination is made by the daemon, as its own user and from its own place in the network, and where none runs
//! by the command line, as far as it can. Nothing is changed but a file that is written, synced and removed again. Every
//! question has a limit in time; what nobody answered is unknown, which is no fault of anybody's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::address::Domain;
use crate::clock::Timestamp;
use crate::dns::Dns;
use crate::queue::State;
use crate::queue::sqlite::PauseRow;
use crate::relay::Route;
use crate::rules::RuleSet;
use crate::tls;

mod ground;
mod names;
mod routes;
mod user;

pub use ground::{Ledger, ledger};
pub use user::User;

/// What is examined.
pub struct Subject {
    pub hostname: String,
    pub data: PathBuf,
    pub min_free: u64,
    /// The file on disk, which the next start or reload would read.
    pub config: PathBuf,
    pub rules: Arc<RuleSet>,
    pub routes: BTreeMap<String, Arc<Route>>,
    pub paused: Vec<PauseRow>,
    /// Open legs by route and state.
    pub open: Vec<(String, State, u64)>,
    pub tls: Option<tls::Files>,
    pub srs: Option<Domain>,
    /// Mail comes by hosts that hand it to us, so our domains' MX are theirs.
    pub has_upstream: bool,
    pub listeners: Vec<SocketAddr>,
    /// As whom files must be readable.
    pub user: User,
    pub now: Timestamp,
}

/// What one look found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    /// Of what: a route, a domain, a file.
    pub subject: String,
    pub result: Judgement,
    pub detail: String,
    /// What to do; empty where there is nothing to do.
    pub help: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    Ok,
    Finding,
    /// Nobody answered, or we may not look.
    Unknown,
}

impl Finding {
    #[must_use]
    pub fn ok(check: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Finding {
        let (subject, detail) = (subject.into(), detail.into());
        Finding { check, subject, result: Judgement::Ok, detail, help: String::new() }
    }

    #[must_use]
    pub fn fault(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
        help: impl Into<String>,
    ) -> Finding {
        let (subject, detail, help) = (subject.into(), detail.into(), help.into());
        Finding { check, subject, result: Judgement::Finding, detail, help }
    }

    #[must_use]
    pub fn unknown(check: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding { result: Judgement::Unknown, ..Finding::ok(check, subject, detail) }
    }

    /// As a person reads it, a line or two.
    #[must_use]
    pub fn text(&self) -> String {
        let word = match self.result {
            Judgement::Ok => "ok",
            Judgement::Finding => "FINDING",
            Judgement::Unknown => "unknown",
        };
        let subject = if self.subject.is_empty() { String::new() } else { format!(" {}", self.subject) };
        let help = if self.help.is_empty() { String::new() } else { format!("\n{:9}-> {}", "", self.help) };
        format!("{word:8} {}{subject}: {}{help}\n", self.check, crate::events::quoted(&self.detail))
    }
}

/// A part of the examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What stands on this machine.
    Ground,
    /// What the DNS says of us.
    Names,
    /// The ways out.
    Routes,
}

impl Part {
    /// The quick ones first.
    pub const ALL: [Part; 3] = [Part::Ground, Part::Names, Part::Routes];
}

/// Looks at one part. Ends in bounded time.
pub async fn look(part: Part, subject: &Subject, dns: &dyn Dns) -> Vec<Finding> {
    match part {
        Part::Ground => ground::look(subject).await,
        Part::Names => within(NAMES_WAIT, "dns", names::look(subject, dns)).await,
        Part::Routes => within(ROUTES_WAIT, "route", routes::look(subject, dns)).await,
    }
}

/// The group's findings, or that it took too long.
async fn within(limit: Duration, check: &'static str, look: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let found = tokio::time::timeout(limit, look).await;
    found.unwrap_or_else(|_| vec![Finding::unknown(check, "", format!("not done within {} s", limit.as_secs()))])
}

/// Each question has its own limit; this is for all of them together.
const NAMES_WAIT: Duration = Duration::from_secs(30);
const ROUTES_WAIT: Duration = Duration::from_secs(45);
