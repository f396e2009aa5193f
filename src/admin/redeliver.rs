//! What a CRM took and lost goes to it once more, from the bodies that the retention keeps.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::control::{Asker, Control, Line, Stop};
use super::pages::Pages;
use super::peer::Peer;
use super::replan;
use super::view::parse_time;
use crate::clock::Timestamp;
use crate::events;
use crate::queue::State;
use crate::queue::sqlite::{Filter, LegRow, Repeat, Repeated};

/// What is meant, as typed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedeliverSelect {
    pub route: String,
    /// When it was delivered.
    pub since: String,
    pub until: Option<String>,
    /// Also what was redelivered before.
    pub again: bool,
}

#[derive(Default)]
struct Counts {
    done: usize,
    no_body: usize,
    before: usize,
}

impl Control {
    /// Says first how many legs are looked at, then each, and at last how many were redelivered. Whoever hangs up stops it after
    /// a bite.
    pub(super) async fn redeliver(
        &self,
        asker: &mut Asker,
        peer: &Peer,
        select: &RedeliverSelect,
        dry_run: bool,
    ) -> Result<(), Stop> {
        let now = self.clock.now();
        let filter = self.delivered(select, now)?;
        if self.store.bodies_kept().is_zero() {
            return Err(Stop::Failed(
                "nothing can be redelivered: bodies are not kept (`retention.bodies` is 0s); from a reload with another \
                 value on they are"
                    .to_owned(),
            ));
        }
        let total = self.store.count(filter.clone()).await?;
        asker.tell([Line::Told { text: String::new(), object: json!({ "total": total }) }]).await?;
        let until = select.until.as_deref().unwrap_or("now");
        let chosen = format!("--route {} --since {} --until {until}", select.route, select.since);
        let begun = match dry_run {
            true => None,
            false => Some(self.audit_begin(peer, "redeliver", &chosen).await?),
        };
        let mut counts = Counts::default();
        let acted = self.repeat_all(asker, peer, filter, (select.again, dry_run), &mut counts).await;
        if let Some(begun) = begun {
            let by = peer.to_string();
            events::operated(&by, "redeliver", &chosen, counts.done);
            let stopped = if acted.is_err() { ", stopped" } else { "" };
            self.audit_end(begun, &format!("{} legs{stopped}", counts.done)).await;
        }
        acted?;
        let Counts { done, no_body, before } = counts;
        let word = if dry_run { "would be redelivered" } else { "are redelivered" };
        let mut text = format!("{done} legs {word}\n");
        if before > 0 {
            text += &format!("{before} were redelivered before, or are copies: --again takes them, too\n");
        }
        if no_body > 0 {
            text += &format!("{no_body} have no body any more: retention.bodies was over\n");
        }
        let object = json!({
            "redelivered": done, "before": before, "without_body": no_body, "dry_run": dry_run, "ok": no_body == 0,
        });
        asker.tell([Line::Told { text, object }]).await
    }

    /// What the route delivered in that time.
    fn delivered(&self, select: &RedeliverSelect, now: Timestamp) -> Result<Filter, String> {
        let ruling = self.inbound.ruling();
        if !ruling.routes.contains_key(&select.route) {
            let names: Vec<&str> = ruling.routes.keys().map(String::as_str).collect();
            return Err(format!("there is no route `{}`; there are: {}", select.route, names.join(", ")));
        }
        let since = parse_time(&select.since, now)?;
        let until = select.until.as_deref().map_or(Ok(now), |word| parse_time(word, now))?;
        if until <= since {
            return Err("`--until` is not behind `--since`".to_owned());
        }
        Ok(Filter {
            route: Some(select.route.clone()),
            states: vec![State::Delivered],
            ended: Some((since, until)),
            ..Filter::default()
        })
    }

    async fn repeat_all(
        &self,
        asker: &mut Asker,
        peer: &Peer,
        filter: Filter,
        how: (bool, bool),
        counts: &mut Counts,
    ) -> Result<(), Stop> {
        let (ruling, by) = (self.inbound.ruling(), peer.to_string());
        let mut pages = Pages::new(filter, PAGE);
        while let Some(question) = pages.question() {
            let rows = self.store.query(question).await?;
            pages.answered(&rows);
            for bite in rows.chunks(BITE) {
                let now = self.clock.now();
                let repeats: Vec<Repeat> =
                    bite.iter().map(|row| replan::repeat(&ruling, row, now)).collect::<Result<_, _>>()?;
                let repeated = self.store.redeliver(repeats, how, &by, now).await?;
                for one in &repeated {
                    match one {
                        Repeated::Done(_) => counts.done += 1,
                        Repeated::NoBody => counts.no_body += 1,
                        Repeated::Before => counts.before += 1,
                        Repeated::NotDelivered => {}
                    }
                }
                asker.tell(bite.iter().zip(&repeated).map(|(row, one)| line(row, *one))).await?;
            }
        }
        Ok(())
    }
}

fn line(row: &LegRow, repeated: Repeated) -> Line {
    let (result, copy) = match repeated {
        Repeated::Done(copy) => ("redelivered", copy),
        Repeated::NoBody => ("its body is not kept any more", None),
        Repeated::Before => ("it was redelivered before, or is a copy", None),
        Repeated::NotDelivered => ("it was not delivered", None),
    };
    let copy = copy.map(|copy| copy.to_string());
    // Its address is a secret.
    let masked = events::masked(&row.target);
    let target = row.target_name.as_deref().unwrap_or(&masked);
    let by = copy.as_ref().map_or(String::new(), |copy| format!(" by {copy}"));
    Line::Told {
        text: format!("{}  {} to {}: {result}{by}\n", row.id, events::quoted(&row.recipient), events::quoted(target)),
        object: json!({
            "id": row.id.to_string(), "message": row.id.message.to_string(), "recipient": row.recipient,
            "target": masked, "route": row.route, "result": result, "copy": copy,
        }),
    }
}

/// Rows in memory.
const PAGE: usize = 1_000;
/// In one transaction; other mail is committed between two.
const BITE: usize = 100;
