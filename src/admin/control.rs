//! The control socket: the command line's way to the running daemon.
//!
//! One request a connection, as one line of JSON; the answer is any number of lines `{"leg": …}`, `{"message": …}` and so
//! on, and a last one `{"end": …}` or `{"error": …}`. Who may open the socket (mode 0660) may do all of it; each
//! action names the peer's user in the ledger.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::audit::AuditSelect;
use super::configuration::{AcceptedView, ReloadView, history};
use super::drain::Ending;
use super::erase::EraseSelect;
pub use super::operate::Action;
use super::operate::{self, Operator, Prepared, Told};
use super::pages::{Messages, Pages};
use super::pause;
use super::peer::Peer;
use super::probe::{Door, Wanted};
use super::redeliver::RedeliverSelect;
use super::view::{BackOffView, LegView, MessageView, OpenView, RefusedView, Select, StatusView};
use crate::clock::{Clock, Timestamp};
use crate::contain::{contain, trip};
use crate::events;
use crate::id::MessageId;
use crate::inbound::Inbound;
use crate::queue::handover::{Handover, Trouble};
use crate::queue::sqlite::{Filter, ROWS_MAX, SqliteStore};
use crate::queue::{State, StoreError};
use crate::reload::{Ask, Reloads};

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Request {
    /// Legs, one line each.
    Legs {
        select: Select,
        scope: Scope,
    },
    /// Messages whole.
    Messages {
        select: Select,
        scope: Scope,
    },
    /// Refused recipients and messages.
    Refused {
        select: Select,
    },
    /// Acts on legs.
    Operate {
        select: Select,
        scope: Scope,
        action: Action,
        dry_run: bool,
    },
    Status,
    /// Commands that acted, and who gave them.
    Audit {
        select: AuditSelect,
    },
    /// What goes by the route waits.
    Pause {
        route: String,
        /// As typed; absent: until it is resumed.
        duration: Option<String>,
    },
    Resume {
        route: String,
    },
    /// To look at everything that mail stands on.
    Doctor,
    /// That no body is unlinked until the asker hangs up: he copies them.
    KeepBodies,
    Erase {
        select: EraseSelect,
        dry_run: bool,
    },
    /// What a route delivered goes out once more.
    Redeliver {
        select: RedeliverSelect,
        dry_run: bool,
    },
    /// One message of our own, through a listener.
    Probe {
        alias: String,
        sender: Option<String>,
        to_crm: bool,
    },
    /// No new mail; deliver what there is, and end.
    Drain,
    /// To take the files on the disk; with a time, for so long unless they are confirmed.
    Reload {
        confirm_seconds: Option<u64>,
        /// Findings are drawn for a terminal.
        coloured: bool,
    },
    Confirm,
    /// To put an accepted set in force again.
    RollBack {
        hash: String,
        coloured: bool,
    },
    /// What was accepted.
    History,
}

/// Which legs are meant where no state is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Queued and held.
    Queue,
    Quarantine,
    /// All that are open.
    Open,
    All,
}

impl Scope {
    /// The states that it stands for; none: any.
    #[must_use]
    pub fn states(self) -> &'static [State] {
        match self {
            Scope::Queue => &[State::Queued, State::Held],
            Scope::Quarantine => &[State::Quarantined],
            Scope::Open => &[State::Queued, State::Held, State::Quarantined],
            Scope::All => &[],
        }
    }
}

/// A line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    Leg(Box<LegView>),
    Message(Box<MessageView>),
    Refused(Box<RefusedView>),
    /// `note` is what else there is to say: where it goes, or why not.
    Operated {
        leg: Box<LegView>,
        result: String,
        note: String,
    },
    Status(Box<StatusView>),
    /// Of any kind, as a script and as a person read it.
    Told {
        object: serde_json::Value,
        text: String,
    },
    Reload(Box<ReloadView>),
    Accepted(AcceptedView),
    /// All was said; the number of lines before.
    End(usize),
    Error(String),
}

impl Request {
    /// It asks for the addresses of targets.
    #[must_use]
    pub fn reveals(&self) -> bool {
        match self {
            Request::Legs { select, .. }
            | Request::Messages { select, .. }
            | Request::Refused { select }
            | Request::Operate { select, .. } => select.reveal,
            Request::Status
            | Request::Reload { .. }
            | Request::Confirm
            | Request::RollBack { .. }
            | Request::History
            | Request::Audit { .. }
            | Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Doctor
            | Request::KeepBodies
            | Request::Erase { .. }
            | Request::Redeliver { .. }
            | Request::Probe { .. }
            | Request::Drain => false,
        }
    }
}

/// The daemon's side.
pub struct Control {
    pub clock: Arc<dyn Clock>,
    pub store: Arc<SqliteStore>,
    pub inbound: Arc<Inbound>,
    pub handover: Arc<Handover>,
    pub reloads: Reloads,
    pub listeners: Vec<String>,
    pub doors: Vec<Door>,
    pub admin: Option<String>,
    pub started: Timestamp,
    pub data: PathBuf,
    /// The configuration's file.
    pub config: PathBuf,
    pub ending: Arc<Ending>,
}

/// Where the socket of a data directory is.
#[must_use]
pub fn socket_path(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// Opens the socket, in place of one that a dead daemon left: the caller holds the lock of `data`.
pub fn bind(data: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    let path = socket_path(data);
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove the old `{}`", path.display()))?;
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(&path, mode).with_context(|| format!("cannot protect `{}`", path.display()))?;
    Ok(listener)
}

impl Control {
    /// Answers until the task is dropped.
    pub async fn serve(self: Arc<Self>, listener: Arc<UnixListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = Arc::clone(&self);
                    tokio::spawn(async move {
                        // The asker may hang up before he has heard all; there is nobody left to tell.
                        let _ = contain("control", control.answer(stream)).await;
                    });
                }
                Err(error) => {
                    events::accept_failed("control", &error);
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn answer(&self, stream: UnixStream) -> std::io::Result<()> {
        let peer = Peer::of(&stream);
        let (reading, writing) = stream.into_split();
        let mut request = String::new();
        let mut reading = BufReader::new(reading.take(REQUEST_OCTETS_MAX));
        tokio::time::timeout(ASK_TIMEOUT, reading.read_line(&mut request)).await??;
        let mut asker = Asker { writing, lines: 0, reveal: false, reading };
        let performed = match serde_json::from_str::<Request>(&request) {
            Ok(request) => self.perform(&mut asker, request, &peer).await,
            Err(error) => Err(Stop::Failed(format!("the daemon does not understand the request: {error}"))),
        };
        let last = match performed {
            Ok(()) => Line::End(asker.lines),
            Err(Stop::Failed(error)) => Line::Error(error),
            Err(Stop::Gone(error)) => return Err(error),
        };
        asker.write([last]).await?;
        asker.writing.shutdown().await
    }

    async fn perform(&self, asker: &mut Asker, request: Request, peer: &Peer) -> Result<(), Stop> {
        trip("control");
        let now = self.clock.now();
        asker.reveal = request.reveals();
        match request {
            Request::Legs { select, scope } => self.tell_legs(asker, select.filter(now, scope.states())?).await?,
            Request::Messages { select, scope } => {
                self.tell_messages(asker, select.filter(now, scope.states())?).await?
            }
            Request::Refused { select } => {
                let rows = self.store.refused(select.refused(now)?).await?;
                asker.tell(rows.into_iter().map(|row| Line::Refused(Box::new(row.into())))).await?;
            }
            Request::Operate { select, scope, action, dry_run } => {
                let filter = select.filter(now, scope.states())?;
                let by = &peer.to_string();
                let operator = Operator { store: &self.store, inbound: &self.inbound, by, dry_run, now };
                let word = if scope == Scope::Quarantine { "quarantine" } else { "queue" };
                let command = format!("{word} {}", action.as_str());
                let begun = match dry_run {
                    true => None,
                    false => Some(self.audit_begin(peer, &command, &select.typed()).await?),
                };
                let mut done = 0;
                let acted = self.operate(asker, &operator, (filter, &select.typed()), &action, &mut done).await;
                if let Some(begun) = begun {
                    self.audit_end(begun, &outcome(&acted, done)).await;
                }
                acted?;
            }
            Request::Status => {
                let status = self.status(now).await?;
                asker.tell([Line::Status(Box::new(status))]).await?;
            }
            Request::Reload { confirm_seconds, coloured } => {
                let confirm = confirm_seconds.map(Duration::from_secs);
                self.change(asker, peer, Ask::Reload { confirm }, coloured).await?;
            }
            Request::Confirm => self.change(asker, peer, Ask::Confirm, false).await?,
            Request::RollBack { hash, coloured } => self.change(asker, peer, Ask::RollBack { hash }, coloured).await?,
            Request::History => {
                let entries = history(&self.reloads.told().history);
                asker.tell(entries.into_iter().map(Line::Accepted)).await?;
            }
            Request::Audit { select } => self.audit(asker, &select, now).await?,
            Request::Pause { route, duration } => {
                self.pause(asker, peer, (&route, duration.as_deref()), now).await?;
            }
            Request::Resume { route } => self.resume(asker, peer, &route).await?,
            Request::Doctor => self.examine(asker).await?,
            Request::KeepBodies => self.keep_bodies(asker, peer).await?,
            Request::Erase { select, dry_run } => self.erase(asker, peer, &select, dry_run).await?,
            Request::Redeliver { select, dry_run } => self.redeliver(asker, peer, &select, dry_run).await?,
            Request::Probe { alias, sender, to_crm } => {
                let wanted = Wanted { alias: &alias, sender: sender.as_deref(), to_crm };
                self.probe(asker, peer, wanted).await?;
            }
            Request::Drain => self.drain(asker, peer).await?,
        }
        Ok(())
    }

    async fn tell_legs(&self, asker: &mut Asker, filter: Filter) -> Result<(), Stop> {
        let mut pages = Pages::new(filter, ROWS_MAX);
        while let Some(question) = pages.question() {
            let rows = self.store.query(question).await?;
            pages.answered(&rows);
            asker.tell(rows.into_iter().map(|row| Line::Leg(Box::new(row.into())))).await?;
        }
        Ok(())
    }

    async fn tell_messages(&self, asker: &mut Asker, filter: Filter) -> Result<(), Stop> {
        let mut messages = Messages::new(filter);
        while let Some(question) = messages.question() {
            for id in messages.answered(&self.store.query(question).await?) {
                let row = self.store.message(id).await?;
                asker.tell(row.map(|row| Line::Message(Box::new(row.into())))).await?;
            }
        }
        Ok(())
    }

    /// Acts on all legs that the filter chooses, however many, a page at a time. Whoever hangs up stops it after a bite.
    async fn operate(
        &self,
        asker: &mut Asker,
        operator: &Operator<'_>,
        (filter, chosen): (Filter, &str),
        action: &Action,
        done: &mut usize,
    ) -> Result<(), Stop> {
        let ruling = self.inbound.ruling();
        let prepared = operate::prepare(action, &ruling)?;
        let mut seen = 0;
        let acted = self.act(asker, operator, &prepared, filter.clone(), (&mut seen, done)).await;
        if !operator.dry_run {
            events::operated(operator.by, action.as_str(), chosen, *done);
        }
        acted?;
        if seen == 0 && filter.message.is_some() && !self.exists(&filter).await? {
            return Err(Stop::Failed("nothing found: there is no leg with this id".to_owned()));
        }
        Ok(())
    }

    async fn act(
        &self,
        asker: &mut Asker,
        operator: &Operator<'_>,
        prepared: &Prepared,
        filter: Filter,
        (seen, done): (&mut usize, &mut usize),
    ) -> Result<(), Stop> {
        let ruling = self.inbound.ruling();
        let mut pages = Pages::new(filter, ROWS_MAX);
        while let Some(question) = pages.question() {
            let rows = self.store.query(question).await?;
            pages.answered(&rows);
            *seen += rows.len();
            for bite in operate::bites(rows) {
                let told = operator.act(&ruling, prepared, bite).await?;
                *done += told.iter().filter(|told| told.done).count();
                if prepared.is_retry() && !operator.dry_run {
                    let routes: BTreeSet<&str> = told.iter().map(|told| told.leg.route.as_str()).collect();
                    routes.into_iter().for_each(|route| self.handover.probe(route));
                }
                asker.tell(told.into_iter().map(Line::from)).await?;
            }
        }
        Ok(())
    }

    /// Whether there is a leg, in whatever state, with the id that the filter names.
    async fn exists(&self, filter: &Filter) -> Result<bool, Stop> {
        let any = Filter { message: filter.message, n: filter.n, limit: 1, ..Filter::default() };
        Ok(!self.store.query(any).await?.is_empty())
    }

    /// Ours, as sessions that begin now say it.
    pub(super) fn hostname(&self) -> String {
        self.inbound.ruling().session.hostname.clone()
    }

    async fn status(&self, now: Timestamp) -> Result<StatusView, StoreError> {
        let oldest = self.store.oldest().await?;
        let open = self.store.open_legs().into_iter().filter(|(_, _, legs)| *legs > 0);
        let open = open.map(|(route, state, legs)| {
            let arrived = oldest.iter().find(|(r, s, _)| *r == route && *s == state).map_or(now, |(_, _, at)| *at);
            OpenView { route, state: state.to_string(), legs, oldest_seconds: now.since(arrived).as_secs() }
        });
        Ok(StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: self.hostname(),
            uptime_seconds: now.since(self.started).as_secs(),
            rule_set: self.inbound.ruling().rules.short_hash().to_owned(),
            configuration: (&self.reloads.told()).into(),
            listeners: self.listeners.clone(),
            admin: self.admin.clone(),
            sessions: self.inbound.sessions(),
            ready: self.store.readiness().is_ok(),
            not_ready: self.store.readiness().err().map(str::to_owned),
            draining: self.inbound.is_draining(),
            pid: std::process::id(),
            data: self.data.display().to_string(),
            data_free_bytes: self.store.free_bytes(),
            min_free_bytes: self.store.min_free(),
            certificate_expires: self
                .inbound
                .ruling()
                .tls
                .as_ref()
                .and_then(|tls| tls.expires())
                .map(|at| at.to_string()),
            open: open.collect(),
            paused: self.store.pauses().await?.iter().map(pause::view).collect(),
            backing_off: self.handover.troubles().into_iter().map(|trouble| back_off_view(trouble, now)).collect(),
        })
    }
}

/// Each message once, in the order in which its legs came.
pub fn messages_of(ids: impl Iterator<Item = MessageId>) -> Vec<MessageId> {
    let mut seen = std::collections::HashSet::new();
    ids.filter(|id| seen.insert(*id)).collect()
}

/// How an action on legs ended, for the book of commands.
fn outcome(acted: &Result<(), Stop>, done: usize) -> String {
    match acted {
        Ok(()) => format!("{done} legs changed"),
        Err(Stop::Failed(why)) => format!("{done} legs changed, then: {why}"),
        Err(Stop::Gone(_)) => format!("{done} legs changed, then the asker hung up"),
    }
}

/// The end of the socket that hears the answer.
pub struct Asker {
    writing: OwnedWriteHalf,
    lines: usize,
    /// He wants the addresses of targets, too.
    reveal: bool,
    reading: BufReader<Take<OwnedReadHalf>>,
}

impl Asker {
    pub(super) async fn tell(&mut self, lines: impl IntoIterator<Item = Line>) -> Result<(), Stop> {
        self.write(lines).await.map_err(Stop::Gone)
    }

    /// Waits until the asker hangs up. What he says more is not heard.
    pub(super) async fn gone(&mut self) {
        let mut octets = [0; 64];
        while let Ok(1..) = self.reading.read(&mut octets).await {}
    }

    async fn write(&mut self, lines: impl IntoIterator<Item = Line>) -> std::io::Result<()> {
        let mut text = String::new();
        for line in lines {
            let line = if self.reveal { line } else { line.masked() };
            text.push_str(&serde_json::to_string(&line)?);
            text.push('\n');
            self.lines += 1;
        }
        tokio::time::timeout(ASK_TIMEOUT, self.writing.write_all(text.as_bytes())).await?
    }
}

/// Why an answer ends before its end.
pub enum Stop {
    /// The asker is told.
    Failed(String),
    /// He hung up, or does not listen.
    Gone(std::io::Error),
}

impl From<String> for Stop {
    fn from(error: String) -> Stop {
        Stop::Failed(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Failed(error.to_string())
    }
}

impl From<Told> for Line {
    fn from(told: Told) -> Line {
        Line::Operated { leg: Box::new(told.leg.into()), result: told.result.to_owned(), note: told.note }
    }
}

fn back_off_view((route, domain, trouble): (String, Option<String>, Trouble), now: Timestamp) -> BackOffView {
    BackOffView { route, domain, until: (now < trouble.until).then(|| trouble.until.to_string()), why: trouble.why }
}

/// A request is a filter and an action.
const REQUEST_OCTETS_MAX: u64 = 64 * 1024;
/// How long an asker may take to read a page of the answer, or to ask. A long list has no limit but this one.
const ASK_TIMEOUT: Duration = Duration::from_secs(120);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
