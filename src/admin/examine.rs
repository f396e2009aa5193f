//! The doctor at the daemon's bedside: what is at work now is what is examined, as the daemon's own user.

use super::control::{Asker, Control, Line, Stop};
use super::doctor::{self, Finding, Ledger, Part, Subject, User};
use crate::queue::StoreError;
use crate::queue::sqlite::Filter;

impl Control {
    pub(super) async fn examine(&self, asker: &mut Asker) -> Result<(), Stop> {
        let ruling = self.inbound.ruling();
        let subject = Subject {
            hostname: self.hostname(),
            data: self.data.clone(),
            min_free: self.store.min_free(),
            config: self.config.clone(),
            rules: ruling.rules.clone(),
            routes: ruling.routes.clone(),
            paused: self.store.pauses().await?,
            open: self.store.open_legs(),
            tls: ruling.tls.as_ref().map(|server| server.files().clone()),
            srs: ruling.srs.as_ref().map(|srs| srs.domain().clone()),
            has_upstream: !ruling.upstream.is_empty(),
            listeners: self.doors.iter().map(|door| door.address).collect(),
            user: User::Me,
            now: self.clock.now(),
        };
        let state = match self.store.readiness() {
            _ if self.inbound.is_draining() => {
                Finding::fault("daemon", "", "it drains", "it ends when nothing is left")
            }
            Ok(()) => Finding::ok("daemon", "", format!("takes mail, {} sessions", self.inbound.sessions())),
            Err(why) => Finding::fault("daemon", "", why, "new mail is answered 4xx until this is mended"),
        };
        asker.tell([line(&state)]).await?;
        let found = doctor::ledger(self.ledger(), subject.now).await;
        asker.tell(found.iter().map(line)).await?;
        for part in Part::ALL {
            let found = doctor::look(part, &subject, &*ruling.dns).await;
            asker.tell(found.iter().map(line)).await?;
        }
        Ok(())
    }

    async fn ledger(&self) -> Result<Ledger, StoreError> {
        let balance = self.store.balance().await?;
        let newest = self.store.query(Filter { limit: 1, ..Filter::default() }).await?;
        Ok(Ledger { balance, newest: newest.first().map(|leg| leg.received) })
    }
}

/// A finding as a line of an answer.
#[must_use]
pub fn line(finding: &Finding) -> Line {
    Line::Told { text: finding.text(), object: serde_json::to_value(finding).expect("a finding is JSON") }
}
