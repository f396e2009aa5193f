//! Erasing what is kept of a person or a message, on their request: dry first, then for good.
//!
//! Backups, logs and what a CRM has taken are not here, and the answer says so. The book of commands keeps a digest.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::control::{Asker, Control, Line, Stop};
use super::peer::Peer;
use crate::address::Mailbox;
use crate::events;
use crate::id::MessageId;
use crate::queue::sqlite::Whose;

/// What is meant, as typed: one of the three.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EraseSelect {
    pub address: Option<String>,
    pub id: Option<String>,
    pub message_id: Option<String>,
    /// Open legs go, too.
    pub open: bool,
}

impl EraseSelect {
    fn whose(&self) -> Result<Whose, String> {
        match (&self.address, &self.id, &self.message_id) {
            (Some(address), None, None) => match Mailbox::parse(address.trim_matches(['<', '>'])) {
                Ok(mailbox) => Ok(Whose::Address(mailbox.as_str().to_owned())),
                Err(error) => Err(format!("`{address}` is no address: {error}")),
            },
            (None, Some(id), None) => id.parse::<MessageId>().map(Whose::Message).map_err(|error| error.to_string()),
            (None, None, Some(id)) => Ok(Whose::MessageId(id.clone())),
            _ => Err("say whose: --address, --id or --message-id".to_owned()),
        }
    }
}

impl Control {
    pub(super) async fn erase(
        &self,
        asker: &mut Asker,
        peer: &Peer,
        select: &EraseSelect,
        dry_run: bool,
    ) -> Result<(), Stop> {
        let whose = select.whose()?;
        let begun = match dry_run {
            true => None,
            false => Some(self.audit_begin(peer, "erase", &whose.mark()).await?),
        };
        let erased = self.store.erase(whose, select.open, dry_run).await;
        if let Some(begun) = begun {
            let outcome = match &erased {
                Ok(erased) => format!("{} messages, {} refusals", erased.messages.len(), erased.refused),
                Err(error) => format!("failed: {error}"),
            };
            events::operated(&peer.to_string(), "erase", "", erased.as_ref().map_or(0, |erased| erased.messages.len()));
            self.audit_end(begun, &outcome).await;
        }
        let erased = erased?;
        let each = erased.messages.iter().map(|id| one(*id, if dry_run { "would be erased" } else { "erased" }));
        asker.tell(each).await?;
        let stays = "stays: a leg of it is open or being sent";
        asker.tell(erased.open.iter().map(|id| one(*id, stays))).await?;
        let (messages, open, refused) = (erased.messages.len(), erased.open.len(), erased.refused);
        let word = if dry_run { "would be erased" } else { "erased" };
        let text = format!(
            "{messages} messages and {refused} refusals {word}, {open} stay\n\
             not erased: backups, logs, and what was delivered; see to those, too\n"
        );
        let object = json!({
            "messages": messages, "refused": refused, "open": open, "dry_run": dry_run, "ok": open == 0,
        });
        asker.tell([Line::Told { text, object }]).await
    }

    /// Unlinks no body until the asker hangs up.
    pub(super) async fn keep_bodies(&self, asker: &mut Asker, peer: &Peer) -> Result<(), Stop> {
        let begun = self.audit_begin(peer, "backup", "").await?;
        let kept = self.store.keep_bodies();
        asker.tell([Line::Told { text: String::new(), object: json!({ "kept": true }) }]).await?;
        asker.gone().await;
        drop(kept);
        self.audit_end(begun, "the asker is done").await;
        Ok(())
    }
}

fn one(id: MessageId, what: &str) -> Line {
    Line::Told { text: format!("{id}  {what}\n"), object: json!({ "message": id.to_string(), "result": what }) }
}
