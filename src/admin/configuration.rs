//! What operators are shown of the configuration: what is in force, what a reload did, what was accepted when.
//!
//! Field names are an interface.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::{Asker, Control, Line, Stop};
use super::peer::Peer;
use crate::actor::Actor;
use crate::config::files::short;
use crate::reload::accepted::Entry;
use crate::reload::{Answer, Ask, CONFIRM_MAX, CONFIRM_MIN, Changes, Told};
use crate::rules::difference::{Names, Retargeted};

impl Control {
    /// Has the keeper do it, writes down who wanted it, and tells what came of it.
    pub(super) async fn change(&self, asker: &mut Asker, peer: &Peer, ask: Ask, coloured: bool) -> Result<(), Stop> {
        let (command, chosen, ask) = match ask {
            Ask::Reload { confirm } => {
                let confirm = confirm.map(|wait| wait.clamp(CONFIRM_MIN, CONFIRM_MAX));
                let chosen = confirm.map_or_else(String::new, |wait| format!("--confirm {}s", wait.as_secs()));
                ("reload", chosen, Ask::Reload { confirm })
            }
            Ask::Confirm => ("rules confirm", String::new(), ask),
            Ask::RollBack { hash } => ("rules rollback", hash.clone(), Ask::RollBack { hash }),
        };
        let begun = self.audit_begin(peer, command, &chosen).await?;
        let by = Actor::Peer { who: peer.to_string(), pid: peer.pid };
        let Some(answer) = self.reloads.ask(ask, by).await else {
            self.audit_end(begun, "failed: the daemon stops, or met a fault of its own").await;
            let why = "the daemon stops, or met a fault of its own (its log has the panic): see what is in force with `status`";
            return Err(Stop::Failed(why.to_owned()));
        };
        self.audit_end(begun, &format!("{}: {}", answer.result.as_str(), short(&answer.now.hash))).await;
        asker.tell([Line::Reload(Box::new(ReloadView::of(answer, coloured)))]).await
    }
}

/// What is in force, in `status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigurationView {
    pub path: String,
    pub hash: String,
    pub rule_set: String,
    /// When it was accepted.
    pub since: String,
    /// Why it is not what the files on the disk say.
    pub stale: Option<String>,
    /// Unless it is confirmed by then, what was before comes back.
    pub confirm_by: Option<String>,
    /// Keys that wait for a restart.
    pub waits_for_restart: Vec<String>,
}

impl From<&Told> for ConfigurationView {
    fn from(told: &Told) -> ConfigurationView {
        ConfigurationView {
            path: told.path.display().to_string(),
            hash: told.identity.hash.clone(),
            rule_set: told.identity.rule_set.clone(),
            since: told.since.to_string(),
            stale: told.stale.clone(),
            confirm_by: told.confirm_by.map(|until| until.to_string()),
            waits_for_restart: told.waits.iter().map(|key| (*key).to_owned()).collect(),
        }
    }
}

/// What a reload, a confirmation or a rollback came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadView {
    /// taken, unchanged or refused.
    pub result: String,
    /// What is in force now.
    pub hash: String,
    pub rule_set: String,
    /// What was in force before.
    pub hash_before: String,
    pub rule_set_before: String,
    pub errors: usize,
    pub warnings: usize,
    /// As `check --json` has them, [`FINDINGS_MAX`] at the most.
    pub findings: Vec<Value>,
    /// The same, drawn.
    pub drawn: String,
    pub changes: ChangesView,
    pub notes: Vec<String>,
}

/// What another configuration changes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChangesView {
    pub files: NamesView,
    pub sections: Vec<String>,
    pub routes: NamesView,
    pub domains: NamesView,
    pub targets: NamesView,
    pub rules: NamesView,
    pub aliases: NamesView,
    pub retargeted: Vec<RetargetedView>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NamesView {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

/// An alias or a rule that sends mail elsewhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetargetedView {
    pub name: String,
    pub from: Vec<String>,
    pub to: Vec<String>,
}

impl ReloadView {
    /// `coloured`: its findings are drawn for a terminal.
    #[must_use]
    pub fn of(answer: Answer, coloured: bool) -> ReloadView {
        let Answer { result, report, changes, before, now, notes } = answer;
        ReloadView {
            result: result.as_str().to_owned(),
            hash: now.hash,
            rule_set: now.rule_set,
            hash_before: before.hash,
            rule_set_before: before.rule_set,
            errors: report.errors(),
            warnings: report.warnings(),
            findings: report.diagnostics().iter().take(FINDINGS_MAX).map(|finding| finding.json()).collect(),
            drawn: report.render(coloured),
            changes: changes.into(),
            notes,
        }
    }
}

impl From<Changes> for ChangesView {
    fn from(changes: Changes) -> ChangesView {
        let Changes { files, sections, routes, rules } = changes;
        let retargeted = |Retargeted { name, from, to }| RetargetedView { name, from, to };
        ChangesView {
            files: files.into(),
            sections: sections.into_iter().map(str::to_owned).collect(),
            routes: routes.into(),
            domains: rules.domains.into(),
            targets: rules.targets.into(),
            rules: rules.rules.into(),
            aliases: rules.aliases.into(),
            retargeted: rules.retargeted.into_iter().map(retargeted).collect(),
        }
    }
}

impl From<Names> for NamesView {
    fn from(names: Names) -> NamesView {
        let Names { added, removed, changed } = names;
        NamesView { added, removed, changed }
    }
}

/// One acceptance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptedView {
    pub hash: String,
    pub rule_set: String,
    pub at: String,
    pub by: String,
    pub pid: Option<i32>,
    /// start, reload, rollback …
    pub how: String,
    /// It is in force, or would be at the next start.
    pub current: bool,
}

/// Newest first.
#[must_use]
pub fn history(entries: &[Entry]) -> Vec<AcceptedView> {
    let view = |(n, entry): (usize, &Entry)| AcceptedView {
        hash: entry.hash.clone(),
        rule_set: entry.rule_set.clone(),
        at: entry.at().to_string(),
        by: entry.by.clone(),
        pid: entry.pid,
        how: entry.how.clone(),
        current: n == 0,
    };
    entries.iter().rev().enumerate().map(view).collect()
}

/// As people see a hash.
#[must_use]
pub fn shown(hash: &str) -> &str {
    short(hash)
}

/// More than anybody mends at once; `check --json` has them all.
const FINDINGS_MAX: usize = 1_000;
