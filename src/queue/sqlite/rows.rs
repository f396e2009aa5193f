//! Rows as questions give them back, and the filter that chooses them.

use std::ops::Range;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use crate::clock::Timestamp;
use crate::id::{LegId, MessageId};
use crate::queue::{Reason, State};

/// A leg with what is known about it, and the columns of its message that a list shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegRow {
    pub id: LegId,
    /// As given at RCPT.
    pub recipient: String,
    pub target: String,
    pub target_name: Option<String>,
    /// Where it was to go before, oldest first.
    pub earlier_targets: Vec<String>,
    pub route: String,
    pub sender: String,
    pub state: State,
    pub reason: Reason,
    pub detail: String,
    /// When it entered its state.
    pub since: Timestamp,
    pub due: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    /// A node owns it and may be sending it now.
    pub in_flight: bool,
    pub attempts: u32,
    pub dsn: Option<String>,
    /// The operator who moved it last.
    pub actor: Option<String>,
    pub rules: Vec<String>,
    /// An operator paused its route, so that it waits though it may be due.
    pub paused: Option<PauseRow>,
    /// The last attempt, where one was made.
    pub last: Option<AttemptRow>,
    pub received: Timestamp,
    pub listener: String,
    pub client: String,
    pub helo: String,
    /// The reverse-path as the client gave it; empty is the null sender.
    pub message_sender: String,
    pub from: String,
    pub subject: String,
    pub message_id: String,
    pub size: u64,
    /// The sender authenticated for the domain of his address.
    pub authenticated: bool,
    /// The names of fields that no copy may carry: a signature says that they are not there.
    pub withheld: Vec<String>,
    /// Its own header fields name its target.
    pub names_target: bool,
}

/// A route that an operator paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PauseRow {
    pub route: String,
    pub since: Timestamp,
    /// `None`: until somebody resumes it.
    pub until: Option<Timestamp>,
    pub actor: String,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    pub n: u16,
    /// Counted from 1 within its leg.
    pub number: u32,
    pub started: Timestamp,
    pub took: Duration,
    pub host: String,
    pub stage: String,
    pub result: String,
    pub reply: String,
}

/// What an operator did to a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionRow {
    pub n: u16,
    pub at: Timestamp,
    pub actor: String,
    pub operation: String,
    pub detail: String,
}

/// A message whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRow {
    pub id: MessageId,
    pub received: Timestamp,
    pub listener: String,
    pub client: String,
    pub ptr: Option<String>,
    pub helo: String,
    pub protocol: String,
    pub sender: String,
    pub body_type: String,
    pub smtputf8: bool,
    pub require_tls: bool,
    pub size: u64,
    pub from: String,
    pub subject: String,
    pub message_id: String,
    pub prefix: Vec<u8>,
    /// JSON.
    pub facts: String,
    pub rules_hash: String,
    /// The leg whose end made this message.
    pub cause: Option<LegId>,
    pub legs: Vec<LegRow>,
    /// By leg, then by number.
    pub attempts: Vec<AttemptRow>,
    pub actions: Vec<ActionRow>,
}

/// Which legs. All that is given must hold; addresses match whole and without case, `from` and `subject` in part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub message: Option<MessageId>,
    /// One leg of `message`.
    pub n: Option<u16>,
    pub recipient: Option<String>,
    /// The target's address or its name in the rules.
    pub target: Option<String>,
    pub route: Option<String>,
    /// Any of these; empty: any.
    pub states: Vec<State>,
    pub reason: Option<Reason>,
    pub sender: Option<String>,
    pub from: Option<String>,
    pub subject: Option<String>,
    /// With or without angle brackets.
    pub message_id: Option<String>,
    pub client: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// When the leg ended: from, and up to but not with.
    pub ended: Option<(Timestamp, Timestamp)>,
    /// What comes after this leg, newest first: the next page of a list.
    pub before: Option<LegId>,
    /// Cut to [`ROWS_MAX`], which 0 means, too.
    pub limit: usize,
    pub order: Order,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

impl Filter {
    /// One leg.
    #[must_use]
    pub fn leg(id: LegId) -> Filter {
        Filter { message: Some(id.message), n: Some(id.n), ..Filter::default() }
    }

    /// The open legs.
    #[must_use]
    pub fn open() -> Filter {
        Filter { states: vec![State::Queued, State::Held, State::Quarantined], ..Filter::default() }
    }

    fn only_open(&self) -> bool {
        !self.states.is_empty() && self.states.iter().all(|state| state.is_open())
    }

    /// The condition in SQL and its values.
    fn condition(&self) -> (String, Vec<Value>) {
        let mut terms: Vec<String> = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        let mut term = |text: &str, value: Value| {
            values.push(value);
            terms.push(text.replace('?', &format!("?{}", values.len())));
        };
        if let Some(id) = self.message {
            term("leg.message = ?", id.0.into());
        }
        if let Some(n) = self.n {
            term("leg.n = ?", i64::from(n).into());
        }
        if let Some(text) = &self.recipient {
            term("lower(leg.alias) = ?", text.to_lowercase().into());
        }
        if let Some(text) = &self.target {
            term("? IN (lower(leg.target), lower(leg.target_name))", text.to_lowercase().into());
        }
        if let Some(text) = &self.route {
            term("leg.route = ?", text.clone().into());
        }
        if let Some(reason) = self.reason {
            term("leg.reason = ?", reason.as_str().to_owned().into());
        }
        if let Some(text) = &self.sender {
            term("lower(message.sender) = ?", text.trim_matches(['<', '>']).to_lowercase().into());
        }
        if let Some(text) = &self.from {
            term("instr(lower(message.header_from), ?)", text.to_lowercase().into());
        }
        if let Some(text) = &self.subject {
            term("instr(lower(message.subject), ?)", text.to_lowercase().into());
        }
        if let Some(text) = &self.message_id {
            term("trim(message.message_id, '<>') = ?", text.trim_matches(['<', '>']).to_owned().into());
        }
        if let Some(text) = &self.client {
            term("message.client = ?", text.clone().into());
        }
        if let Some(since) = self.since {
            term("message.received >= ?", since.0.into());
        }
        if let Some(until) = self.until {
            term("message.received < ?", until.0.into());
        }
        if let Some((from, to)) = self.ended {
            term("leg.ended >= ?", from.0.into());
            term("leg.ended < ?", to.0.into());
        }
        if let Some(leg) = self.before {
            values.extend([leg.message.0.into(), i64::from(leg.n).into()]);
            terms.push(format!("(leg.message, leg.n) < (?{}, ?{})", values.len() - 1, values.len()));
        }
        if !self.states.is_empty() {
            let words: Vec<String> = self.states.iter().map(|state| format!("'{state}'")).collect();
            terms.push(format!("leg.state IN ({})", words.join(", ")));
            if self.only_open() {
                terms.push("leg.ended IS NULL".to_owned());
            }
        }
        (if terms.is_empty() { "1".to_owned() } else { terms.join(" AND ") }, values)
    }
}

/// The legs that the filter chooses.
pub(super) fn legs(db: &Connection, filter: &Filter) -> rusqlite::Result<Vec<LegRow>> {
    let (condition, values) = filter.condition();
    let order = match filter.order {
        Order::NewestFirst => "leg.message DESC, leg.n DESC",
        Order::OldestFirst => "leg.message, leg.n",
    };
    let limit = if filter.limit == 0 { ROWS_MAX } else { filter.limit.min(ROWS_MAX) };
    // What waits is found by the small index of open legs, whatever the order: the ledger may be a thousand times it.
    let index = if filter.only_open() && filter.message.is_none() { "INDEXED BY leg_open" } else { "" };
    let question = format!(
        "SELECT leg.*, message.received, message.listener, message.client, message.helo,
                message.sender AS message_sender, message.header_from, message.subject, message.message_id, message.size,
                message.facts,
                pause.since AS paused_since, pause.until AS paused_until, pause.actor AS paused_by
         FROM leg {index} JOIN message ON message.id = leg.message
         LEFT JOIN pause ON pause.route = leg.route AND leg.due IS NOT NULL AND leg.ended IS NULL
         WHERE {condition} ORDER BY {order} LIMIT {limit}"
    );
    let mut question = db.prepare_cached(&question)?;
    question.query_map(params_from_iter(values), leg_row)?.collect()
}

/// How many legs the filter chooses, whatever its limit.
pub(super) fn count(db: &Connection, filter: &Filter) -> rusqlite::Result<usize> {
    let (condition, values) = filter.condition();
    let question = format!("SELECT count(*) FROM leg JOIN message ON message.id = leg.message WHERE {condition}");
    db.prepare_cached(&question)?.query_row(params_from_iter(values), |row| row.get::<_, i64>(0)).map(|n| n as usize)
}

fn leg_row(row: &Row<'_>) -> rusqlite::Result<LegRow> {
    let id = LegId { message: MessageId(row.get("message")?), n: row.get("n")? };
    let (state, reason): (String, String) = (row.get("state")?, row.get("reason")?);
    let attempts = row.get("attempts")?;
    let started: Option<i64> = row.get("started")?;
    let facts = Facts::read(&row.get::<_, String>("facts")?);
    let prefix: Vec<u8> = row.get("prefix")?;
    let last = match started {
        Some(_) => Some(attempt_row(row, attempts)?),
        None => None,
    };
    Ok(LegRow {
        id,
        recipient: row.get("alias")?,
        target: row.get("target")?,
        target_name: row.get("target_name")?,
        earlier_targets: list_from_json(row.get("earlier_targets")?),
        route: row.get("route")?,
        sender: row.get("sender")?,
        // A word that we did not write: show the leg as waiting for an operator rather than not at all.
        state: State::parse(&state).unwrap_or(State::Held),
        reason: Reason::parse(&reason).unwrap_or(Reason::Damaged),
        detail: row.get("detail")?,
        since: Timestamp(row.get("since")?),
        due: row.get::<_, Option<i64>>("due")?.map(Timestamp),
        ended: row.get::<_, Option<i64>>("ended")?.map(Timestamp),
        in_flight: row.get::<_, Option<String>>("owner")?.is_some(),
        attempts,
        dsn: row.get("dsn")?,
        actor: row.get("actor")?,
        rules: list_from_json(row.get("rules")?),
        paused: paused_row(row)?,
        last,
        received: Timestamp(row.get("received")?),
        listener: row.get("listener")?,
        client: row.get("client")?,
        helo: row.get("helo")?,
        message_sender: row.get("message_sender")?,
        from: row.get("header_from")?,
        subject: row.get("subject")?,
        message_id: row.get("message_id")?,
        size: row.get::<_, i64>("size")? as u64,
        authenticated: facts.authenticated,
        withheld: facts.withheld,
        names_target: memchr::memmem::find(&prefix, b"X-Forwarded-To: ").is_some(),
    })
}

fn paused_row(row: &Row<'_>) -> rusqlite::Result<Option<PauseRow>> {
    let Some(since) = row.get::<_, Option<i64>>("paused_since")? else { return Ok(None) };
    Ok(Some(PauseRow {
        route: row.get("route")?,
        since: Timestamp(since),
        until: row.get::<_, Option<i64>>("paused_until")?.map(Timestamp),
        actor: row.get("paused_by")?,
    }))
}

/// What was found when the message came in; nothing was, where the facts do not say.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Facts {
    authenticated: bool,
    withheld: Vec<String>,
}

impl Facts {
    fn read(facts: &str) -> Facts {
        serde_json::from_str(facts).unwrap_or_default()
    }
}

/// The columns of an attempt, which a leg has for its last one and the table for the others.
pub(super) fn attempt_row(row: &Row<'_>, number: u32) -> rusqlite::Result<AttemptRow> {
    Ok(AttemptRow {
        n: row.get("n")?,
        number,
        started: Timestamp(row.get("started")?),
        took: Duration::from_millis(row.get::<_, i64>("took")? as u64),
        host: row.get("host")?,
        stage: row.get("stage")?,
        result: row.get("result")?,
        reply: row.get("reply")?,
    })
}

pub(super) fn json_list(list: &[String]) -> String {
    serde_json::to_string(list).expect("a list of texts is JSON")
}

fn list_from_json(json: Option<String>) -> Vec<String> {
    json.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default()
}

/// `None` for no ranges, which is nearly always.
pub(super) fn ranges_to_json(ranges: &[Range<u64>]) -> Option<String> {
    let pairs: Vec<[u64; 2]> = ranges.iter().map(|range| [range.start, range.end]).collect();
    (!pairs.is_empty()).then(|| serde_json::to_string(&pairs).expect("a list of numbers is JSON"))
}

/// `None` where the text is no list of ranges.
pub(super) fn ranges_from_json(json: Option<String>) -> Option<Vec<Range<u64>>> {
    let Some(json) = json else { return Some(Vec::new()) };
    let pairs: Vec<[u64; 2]> = serde_json::from_str(&json).ok()?;
    let mut end = 0;
    for [from, to] in &pairs {
        if *from < end || to < from {
            return None;
        }
        end = *to;
    }
    Some(pairs.into_iter().map(|[from, to]| from..to).collect())
}

/// Rows that one question gives back at the most: about 10 MiB.
pub const ROWS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::single_range_in_vec_init, reason = "a list of cuts may have one")]
    #[test]
    fn ranges_are_read_back_as_written_and_nonsense_is_refused() {
        for ranges in [vec![], vec![0..5], vec![1..2, 2..9]] {
            assert_eq!(ranges_from_json(ranges_to_json(&ranges)), Some(ranges));
        }
        for text in ["", "[", "[[1]]", "[[2,1]]", "[[5,6],[1,2]]", "{}"] {
            assert_eq!(ranges_from_json(Some(text.to_owned())), None, "{text}");
        }
    }
}
