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
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::redecide;
use super::view::{BackOffView, LegView, MessageView, OpenView, RefusedView, Select, StatusView};
use crate::address::Mailbox;
use crate::clock::{Clock, Timestamp};
use crate::events;
use crate::id::MessageId;
use crate::inbound::Inbound;
use crate::queue::handover::{Handover, Trouble};
use crate::queue::sqlite::{Filter, OperateResult, Operated, Operation, SqliteStore};
use crate::queue::{State, StoreError};

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

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Retry,
    Hold,
    Release,
    Bounce,
    Drop,
    Deny,
    /// To a target's name or an address.
    Retarget {
        to: String,
    },
    Reroute {
        route: String,
    },
    Redecide,
}

/// A line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    Leg(Box<LegView>),
    Message(Box<MessageView>),
    Refused(Box<RefusedView>),
    Operated {
        leg: Box<LegView>,
        result: String,
    },
    Status(StatusView),
    /// All was said; the number of lines before.
    End(usize),
    Error(String),
}

/// The daemon's side.
pub struct Control {
    pub clock: Arc<dyn Clock>,
    pub store: Arc<SqliteStore>,
    pub inbound: Arc<Inbound>,
    pub handover: Arc<Handover>,
    pub hostname: String,
    pub listeners: Vec<String>,
    pub admin: Option<String>,
    pub started: Timestamp,
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
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = Arc::clone(&self);
                    tokio::spawn(async move {
                        // The asker may hang up before he has heard all; there is nobody left to tell.
                        let _ = tokio::time::timeout(ASK_TIMEOUT, control.answer(stream)).await;
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
        let by = stream.peer_cred().map_or_else(|_| "unknown".to_owned(), |peer| format!("uid {}", peer.uid()));
        let (reading, mut writing) = stream.into_split();
        let mut request = String::new();
        BufReader::new(reading.take(REQUEST_OCTETS_MAX)).read_line(&mut request).await?;
        let lines = match serde_json::from_str::<Request>(&request) {
            Ok(request) => self.perform(request, &by).await,
            Err(error) => Err(format!("the daemon does not understand the request: {error}")),
        };
        let lines = lines.map_or_else(
            |error| vec![Line::Error(error)],
            |mut lines| {
                lines.push(Line::End(lines.len()));
                lines
            },
        );
        for line in lines {
            let mut text = serde_json::to_string(&line)?;
            text.push('\n');
            writing.write_all(text.as_bytes()).await?;
        }
        writing.shutdown().await
    }

    async fn perform(&self, request: Request, by: &str) -> Result<Vec<Line>, String> {
        let now = self.clock.now();
        match request {
            Request::Legs { select, scope } => {
                let rows = self.store.query(select.filter(now, scope.states())?).await.map_err(told)?;
                Ok(rows.into_iter().map(|row| Line::Leg(Box::new(row.into()))).collect())
            }
            Request::Messages { select, scope } => {
                let rows = self.store.query(select.filter(now, scope.states())?).await.map_err(told)?;
                let mut lines = Vec::new();
                for id in messages_of(rows.iter().map(|row| row.id.message)) {
                    if let Some(row) = self.store.message(id).await.map_err(told)? {
                        lines.push(Line::Message(Box::new(row.into())));
                    }
                }
                Ok(lines)
            }
            Request::Refused { select } => {
                let rows = self.store.refused(select.refused(now)?).await.map_err(told)?;
                Ok(rows.into_iter().map(|row| Line::Refused(Box::new(row.into()))).collect())
            }
            Request::Operate { select, scope, action, dry_run } => {
                let filter = select.filter(now, scope.states())?;
                self.operate(filter, &select.typed(), action, dry_run, by, now).await
            }
            Request::Status => Ok(vec![Line::Status(self.status(now).await?)]),
        }
    }

    async fn operate(
        &self,
        filter: Filter,
        chosen: &str,
        action: Action,
        dry_run: bool,
        by: &str,
        now: Timestamp,
    ) -> Result<Vec<Line>, String> {
        let word = action.as_str();
        let is_retry = matches!(action, Action::Retry);
        let operated = match self.operation(action)? {
            Some(operation) => self.store.operate(filter, operation, dry_run, by, now).await.map_err(told)?,
            None => self.redecide(filter, dry_run, by, now).await?,
        };
        let done = operated.iter().filter(|operated| operated.result == OperateResult::Done).count();
        if !dry_run {
            events::operated(by, word, chosen, done);
            if is_retry {
                let routes: BTreeSet<&str> = operated.iter().map(|operated| operated.leg.route.as_str()).collect();
                routes.into_iter().for_each(|route| self.handover.probe(route));
            }
            for Operated { leg, .. } in operated.iter().filter(|operated| operated.result == OperateResult::Done) {
                events::leg_entered(&leg.route, leg.state.as_str(), leg.reason.as_str());
            }
        }
        Ok(operated.into_iter().map(|operated| operated_line(operated, dry_run)).collect())
    }

    /// The store's operation; none for `redecide`, which is another one for each leg.
    fn operation(&self, action: Action) -> Result<Option<Operation>, String> {
        let ruling = self.inbound.ruling();
        let known_route = |route: String| {
            let names = || ruling.routes.keys().cloned().collect::<Vec<_>>().join(", ");
            if ruling.routes.contains_key(&route) {
                Ok(route)
            } else {
                Err(format!("there is no route `{route}`; there are: {}", names()))
            }
        };
        Ok(Some(match action {
            Action::Retry => Operation::Retry,
            Action::Hold => Operation::Hold,
            Action::Release => Operation::Release,
            Action::Bounce => Operation::Bounce,
            Action::Drop => Operation::Drop,
            Action::Deny => Operation::Deny,
            Action::Reroute { route } => Operation::Reroute { route: known_route(route)? },
            Action::Retarget { to } => match ruling.rules.target(&to) {
                Some(target) if target.as_str() != to => {
                    Operation::Retarget { target, target_name: Some(to), route: None }
                }
                _ => {
                    let target = Mailbox::parse(&to).map_err(|error| format!("`{to}` is no target: {error}"))?;
                    Operation::Retarget { target, target_name: None, route: None }
                }
            },
            Action::Redecide => return Ok(None),
        }))
    }

    /// Decides each leg anew by today's rules.
    async fn redecide(&self, filter: Filter, dry_run: bool, by: &str, now: Timestamp) -> Result<Vec<Operated>, String> {
        let ruling = self.inbound.ruling();
        let rows = self.store.query(filter).await.map_err(told)?;
        let mut operated = Vec::new();
        for row in rows {
            let Some(message) = self.store.message(row.id.message).await.map_err(told)? else { continue };
            let replacement = redecide::leg(&ruling.rules, &message, &row, now)?;
            let one = Filter::leg(row.id);
            let moved = self.store.operate(one, Operation::Redecide(replacement), dry_run, by, now).await;
            operated.extend(moved.map_err(told)?);
        }
        Ok(operated)
    }

    async fn status(&self, now: Timestamp) -> Result<StatusView, String> {
        let oldest = self.store.oldest().await.map_err(told)?;
        let open = self.store.open_legs().into_iter().filter(|(_, _, legs)| *legs > 0);
        let open = open.map(|(route, state, legs)| {
            let arrived = oldest.iter().find(|(r, s, _)| *r == route && *s == state).map_or(now, |(_, _, at)| *at);
            OpenView { route, state: state.to_string(), legs, oldest_seconds: now.since(arrived).as_secs() }
        });
        Ok(StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: self.hostname.clone(),
            uptime_seconds: now.since(self.started).as_secs(),
            rule_set: self.inbound.ruling().rules.short_hash().to_owned(),
            listeners: self.listeners.clone(),
            admin: self.admin.clone(),
            sessions: self.inbound.sessions(),
            ready: self.store.readiness().is_ok(),
            not_ready: self.store.readiness().err().map(str::to_owned),
            open: open.collect(),
            backing_off: self.handover.troubles().into_iter().map(|trouble| back_off_view(trouble, now)).collect(),
        })
    }
}

impl Action {
    /// Whether it gives mail up or sends it elsewhere: on everything at once that must be meant.
    #[must_use]
    pub fn is_drastic(&self) -> bool {
        match self {
            Action::Retry | Action::Hold | Action::Release => false,
            Action::Bounce
            | Action::Drop
            | Action::Deny
            | Action::Retarget { .. }
            | Action::Reroute { .. }
            | Action::Redecide => true,
        }
    }

    /// The command's word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Hold => "hold",
            Action::Release => "release",
            Action::Bounce => "bounce",
            Action::Drop => "drop",
            Action::Deny => "deny",
            Action::Retarget { .. } => "retarget",
            Action::Reroute { .. } => "reroute",
            Action::Redecide => "redecide",
        }
    }
}

/// Each message once, in the order in which its legs came.
pub fn messages_of(ids: impl Iterator<Item = MessageId>) -> Vec<MessageId> {
    let mut seen = std::collections::HashSet::new();
    ids.filter(|id| seen.insert(*id)).take(MESSAGES_MAX).collect()
}

fn operated_line(operated: Operated, dry_run: bool) -> Line {
    let result = match (operated.result, dry_run) {
        (OperateResult::Done, false) => "done",
        (OperateResult::Done, true) => "would be done",
        (OperateResult::InFlight, _) => "in flight: its attempt is under way, try again when it has ended",
        (OperateResult::NotInThisState, _) => "does not apply to its state",
    };
    Line::Operated { leg: Box::new(operated.leg.into()), result: result.to_owned() }
}

fn back_off_view((route, trouble): (String, Trouble), now: Timestamp) -> BackOffView {
    BackOffView { route, until: (now < trouble.until).then(|| trouble.until.to_string()), why: trouble.why }
}

fn told(error: StoreError) -> String {
    error.to_string()
}

/// A request is a filter and an action.
const REQUEST_OCTETS_MAX: u64 = 64 * 1024;
/// An action on ten thousand legs takes a second.
const ASK_TIMEOUT: Duration = Duration::from_secs(120);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Messages told whole in one answer: more than anybody reads.
pub const MESSAGES_MAX: usize = 1_000;
