//! Which incoming fields are cut, because only we may say what they say. Pure.
//!
//! Authentication-Results that bear our authserv-id, in whatever spelling (RFC 8601 §5), and the control fields that
//! help desks or we ourselves obey. Whole fields, by their byte ranges; everything else stays as it is. What a CRM's loop
//! marks say has to be read before the cut.

use std::ops::Range;

use crate::message::Field;

/// A field to cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// In lower case.
    pub name: String,
    pub range: Range<u64>,
    /// A control field rather than a forged Authentication-Results: cutting it breaks a signature that covers it.
    pub control: bool,
}

/// The fields to cut, in the order in which they stand. `head` is the header section that `fields` indexes, and
/// `authserv_id` our own name.
#[must_use]
pub fn find(fields: &[Field], head: &[u8], authserv_id: &str) -> Vec<Cut> {
    let ours = normalised(authserv_id);
    let mut cuts = Vec::new();
    for field in fields {
        let control = is_control(&field.name);
        if control || (field.name == "authentication-results" && is_ours(value(field, head), &ours)) {
            cuts.push(Cut { name: field.name.clone(), range: field.range.clone(), control });
        }
    }
    cuts
}

/// A signature that counts covers a control field: the sender means it, and cutting it would break what he signed.
#[must_use]
pub fn are_signed<'a>(cuts: &[Cut], signed_fields: impl IntoIterator<Item = &'a String>) -> bool {
    signed_fields.into_iter().any(|signed| cuts.iter().any(|cut| cut.control && cut.name.eq_ignore_ascii_case(signed)))
}

fn is_control(name: &str) -> bool {
    CONTROL_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || CONTROL_NAMES.contains(&name)
}

fn value<'h>(field: &Field, head: &'h [u8]) -> &'h [u8] {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let whole = head.get(place(field.range.start)..place(field.range.end)).unwrap_or_default();
    let colon = memchr::memchr(b':', whole).map_or(whole.len(), |at| at + 1);
    &whole[colon..]
}

/// The value names us. What cannot be read is taken for ours: it is worth nothing to anybody.
fn is_ours(value: &[u8], ours: &str) -> bool {
    authserv_id(value).is_none_or(|id| normalised(&id) == ours)
}

/// `[CFWS] authserv-id`: a token or quoted string, here with comments and folding between its atoms too.
fn authserv_id(value: &[u8]) -> Option<String> {
    let mut id = Vec::new();
    let mut rest = skip_cfws(value)?;
    loop {
        rest = match rest.first()? {
            b'"' => take_quoted(&rest[1..], &mut id)?,
            _ => {
                let end =
                    rest.iter().position(|b| matches!(b, 0..=b' ' | 0x7f | b'(' | b';' | b'"')).unwrap_or(rest.len());
                id.extend_from_slice(&rest[..end]);
                &rest[end..]
            }
        };
        rest = skip_cfws(rest)?;
        // A dot on either side of a gap joins the atoms.
        let joined = rest.first() == Some(&b'.') || (id.last() == Some(&b'.') && rest.first() != Some(&b';'));
        if rest.is_empty() || !joined {
            break;
        }
    }
    let id = String::from_utf8(id).ok()?;
    (!id.is_empty()).then_some(id)
}

/// What follows white space and comments, which nest; none where a comment does not end.
fn skip_cfws(mut rest: &[u8]) -> Option<&[u8]> {
    let mut depth = 0usize;
    loop {
        match rest.first() {
            None if depth == 0 => return Some(rest),
            None => return None,
            Some(b'(') => depth += 1,
            Some(b')') if depth > 0 => depth -= 1,
            Some(b'\\') if depth > 0 => rest = rest.get(1..)?,
            // Lenient readers take every control character for white space.
            Some(0..=b' ' | 0x7f) => {}
            Some(_) if depth > 0 => {}
            Some(_) => return Some(rest),
        }
        rest = rest.get(1..)?;
    }
}

/// Takes a quoted string behind its first quote; gives what follows the last.
fn take_quoted<'v>(mut rest: &'v [u8], id: &mut Vec<u8>) -> Option<&'v [u8]> {
    loop {
        let (first, after) = rest.split_first()?;
        rest = after;
        match first {
            b'"' => return Some(rest),
            b'\\' => {
                let (escaped, after) = rest.split_first()?;
                id.push(*escaped);
                rest = after;
            }
            b'\r' | b'\n' => {}
            other => id.push(*other),
        }
    }
}

/// One spelling for each name: A-labels in lower case, no final dot, no white space.
fn normalised(id: &str) -> String {
    let plain: String = id.chars().filter(|c| !c.is_whitespace()).collect();
    let plain = plain.trim_end_matches('.');
    idna::domain_to_ascii(plain).unwrap_or_else(|_| plain.to_lowercase())
}

/// What the help desks behind us obey, and our own.
const CONTROL_PREFIXES: &[&str] = &["x-zammad-", "x-otrs-", "x-rt-", "rt-", "x-spam-", "x-pointsman-"];
const CONTROL_NAMES: &[&str] = &["x-gm-spam", "x-gm-phishy", "x-gm-original-to", "received-spf"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Header;

    fn cut(head: &str, authserv_id: &str) -> Vec<String> {
        let header = Header::index(head.as_bytes());
        let text = |cut: Cut| head[cut.range.start as usize..cut.range.end as usize].to_owned();
        find(&header.fields, head.as_bytes(), authserv_id).into_iter().map(text).collect()
    }

    #[test]
    fn ours_is_cut_in_every_spelling() {
        for value in [
            " mx.solarmora.com; dmarc=pass",
            "mx.solarmora.com;dmarc=pass",
            " MX.SolarMora.COM; none",
            "\tmx.solarmora.com; none",
            "\x0c\x0b mx.solarmora.com; none",
            "mx.solarmora.com\x0c; none",
            "\r\n mx.solarmora.com; none",
            "\r\n\t(a comment) mx.solarmora.com 1; none",
            " (nested (comment \\) ) ) mx.solarmora.com; none",
            " mx.solarmora.com(x); none",
            " \"mx.solarmora.com\"; none",
            " \"mx.solar\\mora.com\"; none",
            " mx.solarmora.com.; none",
            " mx (x) . solarmora.com; none",
            " mx. (x) solarmora.com; none",
            " mx.\"solarmora\".com; none",
            " mx.solarmora.com",
            " mx.solarmora.com ; none",
            " ｍｘ.solarmora.com; none",
            " (never ends; none",
            " \"never ends; none",
            " ; none",
            "",
        ] {
            let head = format!("Subject: a\r\nAuthentication-Results:{value}\r\nFrom: b\r\n");
            let want = format!("Authentication-Results:{value}\r\n");
            assert_eq!(cut(&head, "mx.solarmora.com"), [want], "{value:?}");
        }
        for name in ["AUTHENTICATION-RESULTS", "authentication-results ", "Authentication-results\t"] {
            let head = format!("{name}: mx.solarmora.com; none\r\nFrom: b\r\n");
            assert_eq!(cut(&head, "mx.solarmora.com").len(), 1, "{name:?}");
        }
        assert_eq!(cut("Authentication-Results: mx.xn--exmple-cua.fr; none\r\n", "mx.exämple.fr").len(), 1);
        assert_eq!(cut("Authentication-Results: mx.exämple.fr; none\r\n", "mx.xn--exmple-cua.fr").len(), 1);
    }

    #[test]
    fn foreign_results_stay() {
        for value in [
            " mx.example.org; dmarc=pass",
            " solarmora.com; none",
            " mx.solarmora.com.example; none",
            " xmx.solarmora.com; none",
            " (mx.solarmora.com) mx.example.org; none",
            " mx.example.org; mx.solarmora.com",
        ] {
            let head = format!("Authentication-Results:{value}\r\n");
            assert!(cut(&head, "mx.solarmora.com").is_empty(), "{value:?}");
        }
        assert!(cut("ARC-Authentication-Results: i=1; mx.solarmora.com; none\r\n", "mx.solarmora.com").is_empty());
    }

    #[test]
    fn a_thousand_of_ours_between_foreign_ones_are_all_cut() {
        let pair = "Authentication-Results: mx.solarmora.com; none\r\nAuthentication-Results: mx.example.org; none\r\n";
        let found = cut(&pair.repeat(1000), "mx.solarmora.com");
        assert_eq!(found.len(), 1000);
        assert!(found.iter().all(|text| text.contains("solarmora")));
    }

    #[test]
    fn control_fields_are_cut_and_noticed_where_they_are_signed() {
        let names = [
            "X-Zammad-Ticket-Owner",
            "X-OTRS-Queue",
            "X-RT-Command",
            "RT-Send-CC",
            "X-Gm-Spam",
            "X-Gm-Phishy",
            "X-Gm-Original-To",
            "X-Spam-Flag",
            "Received-SPF",
            "x-pointsman-spam",
        ];
        let head: String = names.iter().map(|name| format!("{name}: 1\r\n")).collect();
        assert_eq!(cut(&head, "mx.solarmora.com").len(), names.len());
        for name in ["X-Spammer", "XX-Spam-Flag", "Received", "X-Gm-Other", "X-Rt"] {
            assert!(cut(&format!("{name}: 1\r\n"), "mx.solarmora.com").is_empty(), "{name}");
        }
        let head = "X-Spam-Flag: YES\r\nAuthentication-Results: mx.solarmora.com; none\r\n";
        let cuts = find(&Header::index(head.as_bytes()).fields, head.as_bytes(), "mx.solarmora.com");
        assert!(are_signed(&cuts, &["from".to_owned(), "X-Spam-Flag".to_owned()]));
        assert!(!are_signed(&cuts, &["from".to_owned(), "authentication-results".to_owned()]));
    }
}
