//! What operators are shown, as JSON and as text: the queue's rows with their words, and the filter they ask by.
//!
//! The same views answer over the control socket, in `--json` output and, without a daemon, straight from the disk.
//! Field names are an interface.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::configuration::ConfigurationView;
use crate::clock::Timestamp;
use crate::events;
use crate::id::{LegId, MessageId};
use crate::queue::sqlite::{ActionRow, AttemptRow, Filter, LegRow, MessageRow, Order, RefusedFilter};
use crate::queue::{Reason, Refused, State};
use crate::units;

/// A filter as typed: words, not yet looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Select {
    /// A message's or a leg's.
    pub id: Option<String>,
    pub recipient: Option<String>,
    pub target: Option<String>,
    pub route: Option<String>,
    pub state: Vec<String>,
    pub reason: Option<String>,
    pub sender: Option<String>,
    pub from: Option<String>,
    pub subject: Option<String>,
    pub message_id: Option<String>,
    pub client: Option<String>,
    /// An instant (RFC 3339), or how long ago (`2h`).
    pub since: Option<String>,
    pub until: Option<String>,
    pub limit: Option<usize>,
    /// Addresses of targets are shown.
    pub reveal: bool,
}

impl Select {
    /// The filter meant, with `states` where none is typed. The error says which word is wrong and what would be right.
    pub fn filter(&self, now: Timestamp, states: &[State]) -> Result<Filter, String> {
        let (message, n) = self.id.as_deref().map(parse_id).transpose()?.map_or((None, None), |(id, n)| (Some(id), n));
        let mut typed = self.state.iter().map(|word| parse_state(word)).collect::<Result<Vec<State>, String>>()?;
        if typed.is_empty() {
            typed = states.to_vec();
        }
        Ok(Filter {
            message,
            n,
            recipient: self.recipient.clone(),
            target: self.target.clone(),
            route: self.route.clone(),
            states: typed,
            reason: self.reason.as_deref().map(parse_reason).transpose()?,
            sender: self.sender.clone(),
            from: self.from.clone(),
            subject: self.subject.clone(),
            message_id: self.message_id.clone(),
            client: self.client.clone(),
            since: self.since.as_deref().map(|word| parse_time(word, now)).transpose()?,
            until: self.until.as_deref().map(|word| parse_time(word, now)).transpose()?,
            ended: None,
            before: None,
            limit: self.limit.unwrap_or(0),
            order: Order::NewestFirst,
        })
    }

    /// The options of the command line that say the same, for the log: a target's address is a secret and masked.
    #[must_use]
    pub fn typed(&self) -> String {
        let target = self.target.as_ref().map(|t| if t.contains('@') { events::masked(t) } else { t.clone() });
        let one = [
            ("id", &self.id),
            ("recipient", &self.recipient),
            ("target", &target),
            ("route", &self.route),
            ("reason", &self.reason),
            ("sender", &self.sender),
            ("from", &self.from),
            ("subject", &self.subject),
            ("message-id", &self.message_id),
            ("client", &self.client),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let given = one.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        let states = self.state.iter().map(|state| ("state", state.clone()));
        let limit = self.limit.map(|limit| ("limit", limit.to_string()));
        let options: Vec<String> =
            given.chain(states).chain(limit).map(|(name, value)| format!("--{name} {value}")).collect();
        if options.is_empty() { "all".to_owned() } else { options.join(" ") }
    }

    /// Whether nothing narrows the choice: an action on everything must be meant.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        let texts = [
            &self.id,
            &self.recipient,
            &self.target,
            &self.route,
            &self.reason,
            &self.sender,
            &self.from,
            &self.subject,
            &self.message_id,
            &self.client,
            &self.since,
            &self.until,
        ];
        texts.iter().all(|text| text.is_none()) && self.state.is_empty()
    }

    /// Takes the word [`REFUSED`] out of the states, and says what is asked for besides legs. Recipients and messages
    /// that were refused have no id, target, route or reason.
    #[must_use]
    pub fn take_refused(&mut self) -> Asked {
        let leg_only = [&self.id, &self.target, &self.route, &self.reason];
        let may_mean_refused = leg_only.iter().all(|text| text.is_none());
        let words = self.state.len();
        self.state.retain(|word| word != REFUSED);
        match (may_mean_refused, words == self.state.len(), self.state.is_empty()) {
            (true, true, true) | (true, false, false) => Asked::Both,
            (true, false, true) => Asked::Refused,
            (false, false, true) => Asked::Nothing,
            (_, true, _) | (false, false, false) => Asked::Legs,
        }
    }

    /// The refusals meant.
    pub fn refused(&self, now: Timestamp) -> Result<RefusedFilter, String> {
        Ok(RefusedFilter {
            recipient: self.recipient.clone(),
            from: self.from.clone(),
            subject: self.subject.clone(),
            message_id: self.message_id.clone(),
            sender: self.sender.clone(),
            client: self.client.clone(),
            since: self.since.as_deref().map(|word| parse_time(word, now)).transpose()?,
            until: self.until.as_deref().map(|word| parse_time(word, now)).transpose()?,
            limit: self.limit.unwrap_or(REFUSED_LINES),
        })
    }
}

/// What `trace` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Legs,
    Refused,
    Both,
    /// The words contradict each other: nothing that was refused has an id, say.
    Nothing,
}

/// The state of what has no leg.
pub const REFUSED: &str = "refused";
/// Refusals in one answer, where nobody asks for more.
const REFUSED_LINES: usize = 100;

fn parse_id(word: &str) -> Result<(MessageId, Option<u16>), String> {
    if let Ok(id) = word.parse::<MessageId>() {
        return Ok((id, None));
    }
    word.parse::<LegId>().map(|leg| (leg.message, Some(leg.n))).map_err(|error| error.to_string())
}

fn parse_state(word: &str) -> Result<State, String> {
    State::parse(word)
        .ok_or_else(|| format!("`{word}` is no state; there are: {}", words(State::ALL.map(State::as_str))))
}

fn parse_reason(word: &str) -> Result<Reason, String> {
    Reason::parse(word)
        .ok_or_else(|| format!("`{word}` is no reason; there are: {}", words(Reason::ALL.map(Reason::as_str))))
}

fn words<const N: usize>(words: [&str; N]) -> String {
    words.join(", ")
}

/// An instant, or how long ago. The error says what would be right.
pub fn parse_time(word: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(ago) = units::duration(word) {
        return Ok(Timestamp(now.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))));
    }
    let instant: Result<jiff::Timestamp, _> = word.parse();
    instant.map(|instant| Timestamp(instant.as_millisecond())).map_err(|_| {
        format!(
            "`{word}` is no time: expected how long ago, such as `2h`, or an instant such as `2026-11-21T20:00:00Z`"
        )
    })
}

/// A leg in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LegView {
    pub id: String,
    pub message: String,
    pub recipient: String,
    pub target: String,
    pub target_name: Option<String>,
    pub earlier_targets: Vec<String>,
    pub route: String,
    pub state: String,
    pub reason: String,
    pub detail: String,
    pub attempts: u32,
    pub received: String,
    /// When it entered its state.
    pub since: String,
    pub due: Option<String>,
    pub ended: Option<String>,
    pub in_flight: bool,
    pub sender: String,
    pub from: String,
    pub subject: String,
    pub message_id: String,
    pub client: String,
    pub size: u64,
    pub rules: Vec<String>,
    pub actor: Option<String>,
    /// An operator paused its route: by whom, and until when.
    #[serde(default)]
    pub paused: Option<String>,
    /// What became of the notification: sent, admin, suppressed, none.
    #[serde(default)]
    pub dsn: Option<String>,
    /// The last attempt's answer word for word, and who gave it.
    pub reply: Option<String>,
    pub host: Option<String>,
}

impl From<LegRow> for LegView {
    fn from(row: LegRow) -> LegView {
        LegView {
            id: row.id.to_string(),
            message: row.id.message.to_string(),
            recipient: row.recipient,
            target: row.target,
            target_name: row.target_name,
            earlier_targets: row.earlier_targets,
            route: row.route,
            state: row.state.to_string(),
            reason: row.reason.to_string(),
            detail: row.detail,
            attempts: row.attempts,
            received: row.received.to_string(),
            since: row.since.to_string(),
            due: row.due.map(|at| at.to_string()),
            ended: row.ended.map(|at| at.to_string()),
            in_flight: row.in_flight,
            sender: row.message_sender,
            from: row.from,
            subject: row.subject,
            message_id: row.message_id,
            client: row.client,
            size: row.size,
            rules: row.rules,
            actor: row.actor,
            paused: row.paused.map(|pause| format!("by {} {}", pause.actor, super::pause::end_of(pause.until))),
            dsn: row.dsn,
            reply: row.last.as_ref().map(|last| last.reply.clone()),
            host: row.last.map(|last| last.host),
        }
    }
}

/// A message whole, with its legs and all that happened to them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MessageView {
    pub message: String,
    pub received: String,
    pub listener: String,
    pub client: String,
    pub ptr: Option<String>,
    pub helo: String,
    pub protocol: String,
    /// It was sent with REQUIRETLS.
    pub require_tls: bool,
    pub sender: String,
    pub from: String,
    pub subject: String,
    pub message_id: String,
    pub size: u64,
    pub rules_hash: String,
    /// The header fields that every copy carries.
    #[serde(default)]
    pub header_added: String,
    /// What was known when the rules decided.
    pub facts: Option<Box<RawValue>>,
    /// The leg whose end made this message.
    pub cause: Option<String>,
    pub legs: Vec<LegView>,
    pub attempts: Vec<AttemptView>,
    pub actions: Vec<ActionView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptView {
    pub leg: String,
    pub number: u32,
    pub started: String,
    pub took_ms: u64,
    pub host: String,
    pub stage: String,
    pub result: String,
    pub reply: String,
}

/// What an operator did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActionView {
    pub leg: String,
    pub at: String,
    pub actor: String,
    pub operation: String,
    pub detail: String,
}

impl From<MessageRow> for MessageView {
    fn from(row: MessageRow) -> MessageView {
        let id = row.id;
        let leg = |n: u16| LegId { message: id, n }.to_string();
        MessageView {
            message: id.to_string(),
            received: row.received.to_string(),
            listener: row.listener,
            client: row.client,
            ptr: row.ptr,
            helo: row.helo,
            protocol: row.protocol,
            require_tls: row.require_tls,
            sender: row.sender,
            from: row.from,
            subject: row.subject,
            message_id: row.message_id,
            size: row.size,
            rules_hash: row.rules_hash,
            header_added: String::from_utf8_lossy(&row.prefix).into_owned(),
            facts: RawValue::from_string(row.facts).ok(),
            cause: row.cause.map(|leg| leg.to_string()),
            legs: row.legs.into_iter().map(LegView::from).collect(),
            attempts: row.attempts.into_iter().map(|attempt| attempt_view(leg(attempt.n), attempt)).collect(),
            actions: row.actions.into_iter().map(|action| action_view(leg(action.n), action)).collect(),
        }
    }
}

fn attempt_view(leg: String, row: AttemptRow) -> AttemptView {
    AttemptView {
        leg,
        number: row.number,
        started: row.started.to_string(),
        took_ms: u64::try_from(row.took.as_millis()).unwrap_or(u64::MAX),
        host: row.host,
        stage: row.stage,
        result: row.result,
        reply: row.reply,
    }
}

fn action_view(leg: String, row: ActionRow) -> ActionView {
    ActionView { leg, at: row.at.to_string(), actor: row.actor, operation: row.operation, detail: row.detail }
}

/// A recipient or message that was refused: it has no leg.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefusedView {
    /// Always `refused`.
    pub state: String,
    /// What a leg has and this has not is there and null, so that a script can rely on the keys.
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default)]
    pub target: Option<String>,
    #[serde(default)]
    pub route: Option<String>,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub attempts: u32,
    pub at: String,
    pub listener: String,
    pub client: String,
    pub helo: String,
    pub sender: String,
    pub recipient: String,
    pub reply: String,
    /// Of a message that was refused at its end.
    #[serde(default)]
    pub from: String,
    #[serde(default)]
    pub subject: String,
    #[serde(default)]
    pub message_id: String,
}

impl From<Refused> for RefusedView {
    fn from(row: Refused) -> RefusedView {
        RefusedView {
            state: REFUSED.to_owned(),
            id: None,
            message: None,
            target: None,
            route: None,
            reason: None,
            attempts: 0,
            at: row.at.to_string(),
            listener: row.listener,
            client: row.client.to_string(),
            helo: row.helo,
            sender: row.sender,
            recipient: row.recipient,
            reply: row.reply,
            from: row.from,
            subject: row.subject,
            message_id: row.message_id,
        }
    }
}

/// How the daemon is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    pub version: String,
    pub hostname: String,
    pub uptime_seconds: u64,
    pub rule_set: String,
    #[serde(default)]
    pub configuration: ConfigurationView,
    pub listeners: Vec<String>,
    pub admin: Option<String>,
    pub sessions: usize,
    /// New mail is taken.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub not_ready: Option<String>,
    /// An operator drains it.
    #[serde(default)]
    pub draining: bool,
    #[serde(default)]
    pub pid: u32,
    #[serde(default)]
    pub data: String,
    #[serde(default)]
    pub data_free_bytes: u64,
    /// Below so much free space no new mail is taken.
    #[serde(default)]
    pub min_free_bytes: u64,
    #[serde(default)]
    pub certificate_expires: Option<String>,
    pub open: Vec<OpenView>,
    /// Routes that operators paused.
    #[serde(default)]
    pub paused: Vec<serde_json::Value>,
    #[serde(default)]
    pub backing_off: Vec<BackOffView>,
}

/// A route that is left alone: no host of it can be reached, or most attempts fail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackOffView {
    pub route: String,
    /// The one of its domains that does, where the route looks up its hosts.
    #[serde(default)]
    pub domain: Option<String>,
    /// Nobody dials before; `None`: the wait is over, and the next leg that is due is tried.
    pub until: Option<String>,
    pub why: String,
}

/// Open legs of one route in one state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenView {
    pub route: String,
    pub state: String,
    pub legs: u64,
    pub oldest_seconds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_word_is_answered_with_the_right_ones() {
        let now = Timestamp(1_000_000);
        let error = |select: Select| select.filter(now, &[]).unwrap_err();
        assert!(
            error(Select { state: vec!["lost".into()], ..Select::default() }).contains("queued, held, quarantined")
        );
        assert!(error(Select { reason: Some("x".into()), ..Select::default() }).contains("unknown-target"));
        assert!(error(Select { since: Some("soon".into()), ..Select::default() }).contains("2h"));
        assert!(error(Select { id: Some("7".into()), ..Select::default() }).contains("13 letters"));
    }

    #[test]
    fn refused_is_a_state_that_only_trace_knows() {
        let asked = |state: &[&str], id: Option<&str>| {
            let state = state.iter().map(|&word| word.to_owned()).collect();
            let mut select = Select { state, id: id.map(str::to_owned), ..Select::default() };
            (select.take_refused(), select.state.join(" "))
        };
        let id = Some("0000000000001");
        for (state, id, want) in [
            (&[][..], None, (Asked::Both, "")),
            (&["refused"], None, (Asked::Refused, "")),
            (&["held"], None, (Asked::Legs, "held")),
            (&["refused", "held"], None, (Asked::Both, "held")),
            (&[], id, (Asked::Legs, "")),
            (&["refused"], id, (Asked::Nothing, "")),
            (&["refused", "held"], id, (Asked::Legs, "held")),
        ] {
            assert_eq!(asked(state, id), (want.0, want.1.to_owned()), "{state:?} {id:?}");
        }
    }

    #[test]
    fn times_are_instants_or_ages() {
        let now = Timestamp(10_000_000);
        assert_eq!(parse_time("1h", now), Ok(Timestamp(6_400_000)));
        assert_eq!(parse_time("1970-01-01T00:00:01Z", now), Ok(Timestamp(1_000)));
    }
}
