//! The book of commands: who did what, when, to what, and how it ended.
//!
//! Whatever acts is written down, synced, before it acts; if that cannot be done it does not act. What was cut off by a
//! crash stands there without an end.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::control::{Asker, Control, Line, Stop};
use super::peer::Peer;
use super::view::parse_time;
use crate::clock::Timestamp;
use crate::events::{self, quoted};
use crate::queue::sqlite::{AuditFilter, AuditRow};

/// A filter as typed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSelect {
    /// A user's name or number.
    pub user: Option<String>,
    /// A command, or its first words: `queue`, `queue drop`.
    pub action: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    pub limit: Option<usize>,
}

/// A command that was begun, for [`Control::audit_end`].
#[must_use]
pub struct Begun(i64);

impl Control {
    /// Writes down that a command is about to act; `chosen` says on what, without intake addresses.
    pub async fn audit_begin(&self, peer: &Peer, action: &str, chosen: &str) -> Result<Begun, Stop> {
        let row = AuditRow {
            at: self.clock.now(),
            uid: peer.uid,
            pid: peer.pid,
            user: peer.user.clone(),
            action: action.to_owned(),
            chosen: quoted(chosen).to_string(),
            outcome: None,
        };
        let begun = self.store.audit_begin(row).await.map(Begun);
        begun.map_err(|error| Stop::Failed(format!("nothing was done, because it could not be written down: {error}")))
    }

    /// Writes down how it ended. The command was done in any case: where this fails the log has it.
    pub async fn audit_end(&self, begun: Begun, outcome: &str) {
        if let Err(error) = self.store.audit_end(begun.0, outcome).await {
            events::audit_failed(&error, outcome);
        }
    }

    pub(super) async fn audit(&self, asker: &mut Asker, select: &AuditSelect, now: Timestamp) -> Result<(), Stop> {
        let time = |word: &Option<String>| word.as_deref().map(|word| parse_time(word, now)).transpose();
        let filter = AuditFilter {
            user: select.user.clone(),
            action: select.action.clone(),
            since: time(&select.since)?,
            until: time(&select.until)?,
            limit: select.limit.unwrap_or(LINES),
        };
        let rows = self.store.audit(filter).await?;
        asker.tell(rows.iter().map(line)).await
    }
}

fn line(row: &AuditRow) -> Line {
    let AuditRow { at, uid, pid, user, action, chosen, outcome } = row;
    let peer = Peer { uid: *uid, pid: *pid, user: user.clone() };
    let pid = pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let ended = outcome.as_deref().unwrap_or("no end is known: it is under way, or was cut off");
    Line::Told {
        text: format!("{at}  {peer}{pid}: {action} {chosen}: {}\n", quoted(ended)),
        object: json!({
            "at": at.to_string(), "uid": uid, "pid": row.pid, "user": user, "action": action, "chosen": chosen,
            "outcome": outcome,
        }),
    }
}

/// Commands in one answer where nobody asks for more.
const LINES: usize = 1_000;
