//! Pausing a route: what goes by it is accepted and waits in the queue, until somebody resumes it or its time is over.
//!
//! The row in the store is what counts, so that a restart does not set mail going that somebody stopped; the hand-over
//! follows it. An attempt that is under way goes on.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Mutex;

use super::control::{Asker, Control, Line, Stop};
use super::peer::Peer;
use crate::clock::Timestamp;
use crate::events;
use crate::queue::StoreError;
use crate::queue::handover::Handover;
use crate::queue::sqlite::{PauseRow, SqliteStore};
use crate::units;

impl Control {
    pub(super) async fn pause(
        &self,
        asker: &mut Asker,
        peer: &Peer,
        (route, duration): (&str, Option<&str>),
        now: Timestamp,
    ) -> Result<(), Stop> {
        let routes = &self.inbound.ruling().routes;
        if !routes.contains_key(route) {
            let names: Vec<&str> = routes.keys().map(String::as_str).collect();
            return Err(Stop::Failed(format!("there is no route `{route}`; there are: {}", names.join(", "))));
        }
        let until = match duration.map(units::duration).transpose().map_err(|error| format!("--for: {error}"))? {
            Some(wait) if wait.is_zero() => return Err(Stop::Failed("--for: expected more than no time".to_owned())),
            wait => wait.map(|wait| now.after(wait)),
        };
        let chosen = format!("--route {route}{}", duration.map_or_else(String::new, |word| format!(" --for {word}")));
        let _order = ORDER.lock().await;
        let begun = self.audit_begin(peer, "pause", &chosen).await?;
        let pause = PauseRow { route: route.to_owned(), since: now, until, actor: peer.to_string() };
        if let Err(error) = self.store.pause(pause.clone()).await {
            self.audit_end(begun, &format!("failed: {error}")).await;
            return Err(error.into());
        }
        self.handover.pause(route);
        events::route_pause(route, &pause.actor, until, true);
        let end = end_of(until);
        self.audit_end(begun, &format!("paused {end}")).await;
        let text = format!("route {route} is paused {end}; mail is accepted, and waits\n");
        asker.tell([Line::Told { text, object: view(&pause) }]).await
    }

    pub(super) async fn resume(&self, asker: &mut Asker, peer: &Peer, route: &str) -> Result<(), Stop> {
        let _order = ORDER.lock().await;
        let begun = self.audit_begin(peer, "resume", &format!("--route {route}")).await?;
        match resume(&self.store, &self.handover, route, &peer.to_string()).await {
            Ok(true) => {
                self.audit_end(begun, "resumed").await;
                let text = format!("route {route} goes on\n");
                asker.tell([Line::Told { text, object: json!({ "route": route, "paused": false }) }]).await
            }
            Ok(false) => {
                self.audit_end(begun, "it was not paused").await;
                Err(Stop::Failed(format!("route `{route}` is not paused")))
            }
            Err(error) => {
                self.audit_end(begun, &format!("failed: {error}")).await;
                Err(error.into())
            }
        }
    }
}

/// A pause as JSON.
pub(super) fn view(pause: &PauseRow) -> serde_json::Value {
    let PauseRow { route, since, until, actor } = pause;
    json!({
        "route": route, "paused": true, "since": since.to_string(), "until": until.map(|until| until.to_string()),
        "by": actor,
    })
}

/// Until when, as a part of a sentence.
#[must_use]
pub fn end_of(until: Option<Timestamp>) -> String {
    until.map_or_else(|| "until somebody resumes it".to_owned(), |until| format!("until {until}"))
}

/// Ends a pause. False where there was none.
async fn resume(store: &SqliteStore, handover: &Handover, route: &str, by: &str) -> Result<bool, StoreError> {
    let was = store.resume(route).await?;
    handover.resume(route);
    if was.is_some() {
        events::route_pause(route, by, None, false);
    }
    Ok(was.is_some())
}

/// Makes the hand-over follow the rows: those whose time is over are ended, the others stand. At the start, and every few
/// seconds.
pub async fn keep(store: &Arc<SqliteStore>, handover: &Handover, now: Timestamp) -> Result<(), StoreError> {
    let _order = ORDER.lock().await;
    for pause in store.pauses().await? {
        if pause.until.is_some_and(|until| until <= now) {
            resume(store, handover, &pause.route, "the end of its time").await?;
        } else if !handover.is_paused(&pause.route) {
            handover.pause(&pause.route);
        }
    }
    Ok(())
}

/// Rows and lanes change together: between the look at a row and what is made of it nobody else changes either.
static ORDER: Mutex<()> = Mutex::const_new(());
