//! What signatures cover beyond what is there: the fields that must not be added. Pure.
//!
//! `h=` names fields; one that it names more often than the message has it is signed as absent, and adding one breaks the
//! signature (RFC 6376 §5.4.2). A signature that does not count is no reason to leave anything out, but for Message-ID:
//! it is added for others' convenience only, and may yet verify behind us.

use super::DkimVerdict;
use crate::message::{Field, Header};

/// Those of `ours` that may not be added, because a signature of `passing` says that they are not there. `present` says how
/// many fields of a name, in lower case, the copies carry before anything is added.
#[must_use]
pub fn withheld<'a>(
    ours: &[&'static str],
    passing: impl IntoIterator<Item = &'a DkimVerdict>,
    present: impl Fn(&str) -> usize,
) -> Vec<&'static str> {
    let signed: Vec<&Vec<String>> = passing.into_iter().map(|signature| &signature.signed_fields).collect();
    let is_barred = |name: &str| {
        let there = present(&name.to_ascii_lowercase());
        let named = |fields: &&Vec<String>| fields.iter().filter(|field| field.eq_ignore_ascii_case(name)).count();
        signed.iter().any(|fields| named(fields) > there)
    };
    ours.iter().copied().filter(|name| is_barred(name)).collect()
}

/// A signature, whatever it is worth, lists this field in its `h=`.
#[must_use]
pub fn is_listed(header: &Header, head: &[u8], name: &str) -> bool {
    let signatures = header.fields.iter().filter(|field| SIGNATURES.contains(&field.name.as_str()));
    signatures.filter_map(|field| signed_names(value(field, head))).any(|names| {
        names.split(|octet| *octet == b':').any(|listed| listed.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
    })
}

/// The value of the first `h=` (RFC 6376 §3.2).
fn signed_names(list: &[u8]) -> Option<&[u8]> {
    list.split(|octet| *octet == b';').find_map(|tag| {
        let at = memchr::memchr(b'=', tag)?;
        tag[..at].trim_ascii().eq_ignore_ascii_case(b"h").then_some(&tag[at + 1..])
    })
}

fn value<'h>(field: &Field, head: &'h [u8]) -> &'h [u8] {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let whole = head.get(place(field.range.start)..place(field.range.end)).unwrap_or_default();
    let colon = memchr::memchr(b':', whole).map_or(whole.len(), |at| at + 1);
    &whole[colon..]
}

const SIGNATURES: &[&str] = &["dkim-signature", "arc-message-signature"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Word;
    use crate::auth::fixtures::dkim;

    #[test]
    fn what_is_named_more_often_than_it_is_there_is_withheld() {
        let signature = |fields: &[&str]| DkimVerdict {
            signed_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            ..dkim(Word::Pass, "a.example")
        };
        let ours = ["Delivered-To", "X-Original-To"];
        let check = |signatures: &[DkimVerdict], there: usize| withheld(&ours, signatures, |_| there);
        assert_eq!(check(&[signature(&["from", "subject"])], 0), [""; 0]);
        assert_eq!(check(&[signature(&["from", "delivered-to"])], 0), ["Delivered-To"]);
        // The one that is there is the one that is signed: those above it are nobody's.
        assert_eq!(check(&[signature(&["from", "delivered-to"])], 1), [""; 0]);
        assert_eq!(check(&[signature(&["delivered-to", "delivered-to"])], 1), ["Delivered-To"]);
        // Each signature counts for itself.
        assert_eq!(check(&[signature(&["delivered-to"]), signature(&["delivered-to"])], 1), [""; 0]);
        assert_eq!(check(&[signature(&["from"]), signature(&["x-original-to", "delivered-to"])], 0), ours);
    }

    #[test]
    fn a_field_is_listed_by_any_signature_in_any_spelling() {
        for (head, want) in [
            ("DKIM-Signature: v=1; h=from:to; b=x\r\n", false),
            ("DKIM-Signature: v=1; h=from:message-id; b=x\r\n", true),
            ("dkim-signature: v=1; H =\r\n\tFrom :\r\n Message-Id\r\n; b=x\r\n", true),
            ("ARC-Message-Signature: i=1; h=Message-ID\r\n", true),
            ("ARC-Seal: i=1; h=message-id\r\n", false),
            ("DKIM-Signature: v=1; bh=message-id\r\n", false),
            ("DKIM-Signature: h=from\r\nDKIM-Signature: h=message-id\r\n", true),
            ("DKIM-Signature\r\n", false),
            ("X: h=message-id\r\n", false),
        ] {
            assert_eq!(is_listed(&Header::index(head.as_bytes()), head.as_bytes(), "Message-ID"), want, "{head:?}");
        }
    }
}
