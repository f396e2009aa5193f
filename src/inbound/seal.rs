//! ARC seals, where a route wants them: one set for each domain of ours that the message is for.
//!
//! What cannot be sealed goes out without: a seal is nobody's due.

use std::collections::HashMap;

use super::checks::Checked;
use super::journey::{Arrived, made_message_id, store_refusal};
use super::planned::Planned;
use super::{Inbound, Ruling};
use crate::auth::Word;
use crate::auth::seal::{self, BodyHash, Sealing};
use crate::events;
use crate::id::MessageId;
use crate::message::Header;
use crate::queue::{BodyReader, StoreError, StoredBody};
use crate::reply::Refusal;

impl Inbound {
    /// Seals the copies whose routes want it. A body that stands in a file is read once more for it.
    pub(super) async fn seal(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        header: &Header,
        body: &StoredBody,
        (checked, id): (&Checked, MessageId),
        planned: &mut [Planned],
    ) -> Result<(), Refusal> {
        let wants = |plan: &Planned| ruling.routes.get(&plan.leg.route).is_some_and(|route| route.arc_seal);
        let (Some(signer), Some(chain), true) = (&ruling.signer, checked.chain(), planned.iter().any(wants)) else {
            return Ok(());
        };
        let head = message.head.as_bytes();
        let body_hash = body_hash(body, head.len()).await.map_err(|error| store_refusal(&error))?;
        let made = made_message_id(ruling, checked, id);
        let made = made.map_or_else(String::new, |made| format!("Message-ID: {made}\r\n"));
        let mut sets: HashMap<String, String> = HashMap::new();
        for plan in planned.iter_mut().filter(|plan| wants(plan)) {
            let domain = plan.alias.domain();
            if !ruling.rules.is_ours(domain) {
                continue;
            }
            let sealing = || Sealing {
                head,
                fields: &header.fields,
                cuts: &checked.cuts,
                message_id: &made,
                body_hash,
                results: &checked.results,
                chain,
                domain,
                selector: signer.selector(),
                now: message.at,
            };
            let set = sets.entry(domain.as_str().to_owned()).or_insert_with(|| {
                let set = seal::set(&sealing(), |octets| signer.sign_octets(octets));
                let set = set.inspect_err(|error| events::unsealed(id, error));
                set.ok().flatten().unwrap_or_default()
            });
            plan.seal.clone_from(set);
        }
        Ok(())
    }
}

impl Checked {
    /// What the chain was found to be; `None` where that was not asked, or where a signature says that there is no seal.
    fn chain(&self) -> Option<Word> {
        let may_seal = seal::FIELDS.iter().all(|name| self.may_add(name));
        self.report().arc.as_ref().filter(|_| may_seal).map(|arc| arc.result)
    }
}

/// The hash of what stands behind the empty line that ends the header section of `head` octets.
async fn body_hash(message: &StoredBody, head: usize) -> Result<[u8; 32], StoreError> {
    let header = 0..(head as u64 + EMPTY_LINE).min(message.len());
    let mut reader = BodyReader::new(message, std::slice::from_ref(&header));
    let mut hash = BodyHash::default();
    while let Some(piece) = reader.next().await? {
        hash.push(&piece);
    }
    Ok(hash.finish())
}

/// CRLF.
const EMPTY_LINE: u64 = 2;
