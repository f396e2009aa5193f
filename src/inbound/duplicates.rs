//! What makes two legs the same case in a CRM: Message-ID, body, final target and alias.
//!
//! The body alone is hashed, not the header: two copies that came on different ways differ in their Received fields,
//! and are one case all the same. A Message-ID alone would not do either: whoever writes to two aliases wants two cases.

use std::time::Duration;

use aws_lc_rs::digest;

use crate::address::Mailbox;
use crate::queue::{BodyReader, DedupeKey, StoreError, StoredBody};

/// SHA-256 of what stands behind the empty line that ends the header section of `head` octets. Reads a body that stands
/// in a file once more, so it is asked for only where a route suppresses duplicates.
pub(super) async fn body_hash(message: &StoredBody, head: usize) -> Result<[u8; 32], StoreError> {
    let start = (head as u64 + EMPTY_LINE).min(message.len());
    let header = 0..start;
    let mut body = BodyReader::new(message, std::slice::from_ref(&header));
    let mut context = digest::Context::new(&digest::SHA256);
    while let Some(piece) = body.next().await? {
        context.update(&piece);
    }
    Ok(finished(context))
}

/// Whether mail to two aliases that go to one target is two cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aliases {
    /// As it should be: billing@ and legal@ both get theirs.
    Apart,
    /// The CRM makes one case of both anyway, or two of the same sort.
    Together,
}

/// The key of a leg, or `None` without a Message-ID: then nothing is a duplicate.
pub(super) fn key(
    message_id: &str,
    body: &[u8; 32],
    target: &Mailbox,
    (alias, aliases): (&Mailbox, Aliases),
    window: Duration,
) -> Option<DedupeKey> {
    if message_id.is_empty() {
        return None;
    }
    let alias = match aliases {
        Aliases::Apart => alias.key(),
        Aliases::Together => String::new(),
    };
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [message_id.as_bytes(), body, target.key().as_bytes(), alias.as_bytes()] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    Some(DedupeKey { hash: finished(context), window })
}

fn finished(context: digest::Context) -> [u8; 32] {
    context.finish().as_ref().try_into().expect("SHA-256 has 32 octets")
}

/// CRLF.
const EMPTY_LINE: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Head;

    async fn hash(message: &str) -> [u8; 32] {
        let mut head = Head::default();
        head.push(message.as_bytes());
        body_hash(&StoredBody::from_bytes(message.as_bytes().to_vec()), head.as_bytes().len()).await.unwrap()
    }

    #[tokio::test]
    async fn the_header_is_no_part_of_the_body() {
        let plain = hash("A: b\r\n\r\nhello\r\n").await;
        assert_eq!(plain, hash("Received: x\r\nA: b\r\n\r\nhello\r\n").await);
        assert_eq!(plain, hash("\r\nhello\r\n").await);
        assert_ne!(plain, hash("A: b\r\n\r\nhello\r\n\r\n").await);
        // Without an empty line there is no body.
        assert_eq!(hash("A: b\r\n").await, hash("C: d\r\n\r\n").await);
    }

    #[test]
    fn each_part_counts_and_without_a_message_id_nothing_is_a_duplicate() {
        let address = |text: &str| Mailbox::parse(text).unwrap();
        let make = |id: &str, body: u8, target: &str, alias: &str| {
            key(id, &[body; 32], &address(target), (&address(alias), Aliases::Apart), Duration::ZERO)
                .map(|key| key.hash)
        };
        let together = |alias: &str| {
            let (target, alias) = (address("case@crm.example"), address(alias));
            key("<1@x>", &[1; 32], &target, (&alias, Aliases::Together), Duration::ZERO).map(|key| key.hash)
        };
        assert_eq!(together("aide@d.example"), together("bugs@d.example"));
        assert_ne!(together("aide@d.example"), make("<1@x>", 1, "case@crm.example", "aide@d.example"));
        let first = make("<1@x>", 1, "case@crm.example", "aide@d.example");
        assert!(first.is_some());
        assert_eq!(first, make("<1@x>", 1, "CASE@crm.example", "Aide@d.example"));
        for other in [
            make("<2@x>", 1, "case@crm.example", "aide@d.example"),
            make("<1@x>", 2, "case@crm.example", "aide@d.example"),
            make("<1@x>", 1, "other@crm.example", "aide@d.example"),
            make("<1@x>", 1, "case@crm.example", "bugs@d.example"),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(make("", 1, "case@crm.example", "aide@d.example"), None);
    }
}
