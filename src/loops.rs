//! By what mail that goes round in circles is known. Pure.
//!
//! [`Marks`] is our own word: a field that says by which rule a copy went out, with a keyed hash, so that nobody else can have
//! mail refused by writing one. The others are what a CRM that answers itself looks like: [`is_automatic`], [`fingerprint`],
//! [`is_answer`]. Those are anybody's to write, and hold mail at the most.

use aws_lc_rs::{constant_time, hmac};

use crate::clock::Timestamp;
use crate::message::{Field, Header};

/// Writes and reads our marks. The key of a month is made of the secret and the month's number: a mark counts in the month
/// of its day and in the next, and what somebody finds in an old message is worth nothing.
#[derive(Debug)]
pub struct Marks {
    secret: hmac::Key,
}

/// A mark that we wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    month: i64,
    rule: String,
}

impl Marks {
    /// `None` where the secret is too short to be one.
    #[must_use]
    pub fn new(secret: &str) -> Option<Marks> {
        let secret = secret.trim();
        (secret.len() >= SECRET_OCTETS_MIN)
            .then(|| Marks { secret: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()) })
    }

    /// The field of a copy that goes out by `rule`, with its CRLF.
    #[must_use]
    pub fn field(&self, rule: &str, now: Timestamp) -> String {
        let month = month(now);
        let rule = self.hash(month, "rule", rule);
        let seal = self.hash(month, "seal", &rule);
        format!("{FIELD}: {month} {rule} {seal}\r\n")
    }

    /// Reads the value of such a field; `None` where it is not ours or too old.
    #[must_use]
    pub fn read(&self, value: &[u8], now: Timestamp) -> Option<Mark> {
        let text = str::from_utf8(value).ok()?;
        let words: Vec<&str> = text.split_ascii_whitespace().take(4).collect();
        let [number, rule, seal] = words[..] else { return None };
        let number: i64 = number.parse().ok()?;
        // A clock that was set back finds marks of tomorrow.
        if !(-1..=1).contains(&month(now).checked_sub(number)?) {
            return None;
        }
        let ours = self.hash(number, "seal", rule);
        constant_time::verify_slices_are_equal(ours.as_bytes(), seal.as_bytes()).ok()?;
        Some(Mark { month: number, rule: rule.to_owned() })
    }

    /// The copy that bore this mark went out by `rule`.
    #[must_use]
    pub fn is_of(&self, mark: &Mark, rule: &str) -> bool {
        self.hash(mark.month, "rule", rule) == mark.rule
    }

    /// Half of a SHA-256: 128 bits are beyond guessing, and the field stays one short line.
    fn hash(&self, month: i64, what: &str, of: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&self.secret, month.to_string().as_bytes()).as_ref());
        let tag = hmac::sign(&key, format!("{what}\0{of}").as_bytes());
        tag.as_ref().iter().take(HASH_OCTETS).map(|octet| format!("{octet:02x}")).collect()
    }
}

fn month(at: Timestamp) -> i64 {
    at.0.div_euclid(MONTH_MS)
}

/// A program sent it, and says so (RFC 3834 §5, and what was usual before it): the null sender is told apart by its caller.
#[must_use]
pub fn is_automatic(header: &Header, head: &[u8]) -> bool {
    header.fields.iter().any(|field| {
        let word = || word(field, head);
        match field.name.as_str() {
            "auto-submitted" => word() != "no",
            "precedence" => ["bulk", "junk", "auto_reply", "list"].contains(&word().as_str()),
            "x-autoreply" | "x-autorespond" | "x-auto-response-suppress" => true,
            _ => false,
        }
    })
}

/// It says that it answers something.
#[must_use]
pub fn is_answer(header: &Header) -> bool {
    header.fields.iter().any(|field| ["in-reply-to", "references"].contains(&field.name.as_str()))
}

/// The field that a CRM writes into what it sends, by which it would know its own mail: its name as we show it.
#[must_use]
pub fn fingerprint(header: &Header, head: &[u8]) -> Option<&'static str> {
    let shown = |field: &Field| match field.name.as_str() {
        "x-mailer" if text(field, head).trim().eq_ignore_ascii_case("zendesk mailer") => {
            Some("X-Mailer: Zendesk Mailer")
        }
        "x-jira-fingerprint" => Some("X-JIRA-FingerPrint"),
        "x-sfdc-autoresponse" => Some("X-SFDC-AutoResponse"),
        "x-rt-loop-prevention" => Some("X-RT-Loop-Prevention"),
        _ => None,
    };
    header.fields.iter().find_map(shown)
}

/// The value of a mark's field, or of any other.
#[must_use]
pub fn value<'h>(field: &Field, head: &'h [u8]) -> &'h [u8] {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let whole = head.get(place(field.range.start)..place(field.range.end)).unwrap_or_default();
    let colon = memchr::memchr(b':', whole).map_or(whole.len(), |at| at + 1);
    &whole[colon..]
}

fn text<'h>(field: &Field, head: &'h [u8]) -> std::borrow::Cow<'h, str> {
    String::from_utf8_lossy(value(field, head))
}

/// The first word of a value in lower case, without parameters and comments behind it.
fn word(field: &Field, head: &[u8]) -> String {
    let text = text(field, head);
    let first = text.trim().split(|c: char| c.is_whitespace() || c == ';' || c == '(').next();
    first.unwrap_or_default().to_ascii_lowercase()
}

/// The field that bears our mark.
pub const FIELD: &str = "X-Pointsman-Loop";
/// 128 bits, in letters and digits.
const SECRET_OCTETS_MIN: usize = 20;
const HASH_OCTETS: usize = 16;
/// 30 days. Mail that has been on its way for longer is in no loop.
const MONTH_MS: i64 = 30 * 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_292_431_000);

    fn marks(secret: &str) -> Marks {
        Marks::new(secret).unwrap()
    }

    fn value_of(field: &str) -> Vec<u8> {
        let header = Header::index(field.as_bytes());
        assert_eq!((header.fields.len(), header.fields[0].name.as_str()), (1, "x-pointsman-loop"));
        value(&header.fields[0], field.as_bytes()).to_vec()
    }

    #[test]
    fn a_mark_is_known_by_its_rule_and_its_secret() {
        let ours = marks("a secret of twenty octets");
        let field = ours.field("aide to the CRM", NOW);
        assert!(field.len() < 100 && field.ends_with("\r\n"), "{field}");
        let mark = ours.read(&value_of(&field), NOW).unwrap();
        assert!(ours.is_of(&mark, "aide to the CRM") && !ours.is_of(&mark, "another"));
        assert_eq!(marks("another secret of twenty").read(&value_of(&field), NOW), None);
        assert!(Marks::new("short").is_none() && Marks::new("").is_none());
    }

    #[test]
    fn what_was_altered_or_is_no_mark_is_not_ours() {
        let ours = marks("a secret of twenty octets");
        let value = String::from_utf8(value_of(&ours.field("rule", NOW))).unwrap();
        for at in 0..value.trim().len() {
            let mut other = value.trim().as_bytes().to_vec();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(ours.read(&other, NOW), None, "{at}");
        }
        for value in ["", "1", "1 2 3", &format!("{value} x"), "é", "99999999999999999999 a b"] {
            assert_eq!(ours.read(value.as_bytes(), NOW), None, "{value}");
        }
    }

    #[test]
    fn a_mark_counts_for_a_month_at_least_and_for_two_at_most() {
        let ours = marks("a secret of twenty octets");
        let value = value_of(&ours.field("rule", NOW));
        let later = |months: i64| Timestamp(NOW.0 + months * MONTH_MS);
        assert!(ours.read(&value, later(1)).is_some() && ours.read(&value, later(-1)).is_some());
        assert!(ours.read(&value, later(2)).is_none() && ours.read(&value, later(-2)).is_none());
    }

    #[test]
    fn automatic_mail_says_so_in_several_ways() {
        for (head, want) in [
            ("Auto-Submitted: auto-replied\r\n", true),
            ("auto-submitted : Auto-Generated; x=y\r\n", true),
            ("Auto-Submitted: no\r\n", false),
            ("Auto-Submitted: No (a person)\r\n", false),
            ("Precedence: bulk\r\n", true),
            ("Precedence:\r\n Auto_Reply\r\n", true),
            ("Precedence: first-class\r\n", false),
            ("X-Auto-Response-Suppress: All\r\n", true),
            ("X-Autoreply: yes\r\n", true),
            ("Subject: auto-submitted\r\n", false),
        ] {
            assert_eq!(is_automatic(&Header::index(head.as_bytes()), head.as_bytes()), want, "{head}");
        }
    }

    #[test]
    fn a_crm_is_known_by_its_fingerprint() {
        for (head, want) in [
            ("X-Mailer: Zendesk Mailer\r\n", Some("X-Mailer: Zendesk Mailer")),
            ("X-Mailer: zendesk mailer \r\n", Some("X-Mailer: Zendesk Mailer")),
            ("X-Mailer: Zendesk Mailer 2\r\n", None),
            ("X-Mailer: Outlook\r\n", None),
            ("X-JIRA-FingerPrint: 0a\r\n", Some("X-JIRA-FingerPrint")),
            ("x-sfdc-autoresponse:\r\n", Some("X-SFDC-AutoResponse")),
            ("X-RT-Loop-Prevention: rt.example\r\n", Some("X-RT-Loop-Prevention")),
            ("X-RT-Ticket: 1\r\n", None),
        ] {
            assert_eq!(fingerprint(&Header::index(head.as_bytes()), head.as_bytes()), want, "{head}");
        }
    }
}
