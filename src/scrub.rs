//! Keeping a secret address out of somebody else's words: out of notifications, and out of the log. Pure.

use crate::address::Mailbox;

/// `text` without what could tell `target`, in at most [`TEXT_CHARS_MAX`] printable ASCII characters.
///
/// A remote repeats the address that it refused: whole, without its domain, in VERP or percent signs, or with its
/// tag cut off. So each longer word of the local part goes, wherever it stands, and so does the domain, which holds
/// the key with some CRMs. Short words go where they stand alone: without that a target `a@` would leave nothing of
/// the text. In the end no word with an `@` stays, because an address in it is the target in a form that we did not
/// think of, or another secret; only `alias`, which the sender knows, may stand.
///
/// A remote that encodes the address (base64, a hash) is not seen through.
#[must_use]
pub fn scrub(text: &str, target: &Mailbox, alias: &str) -> String {
    // Only ASCII changes case here, so that places in the one text are places in the other.
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut lower = clean.to_ascii_lowercase();
    for (secret, reach) in secrets(target) {
        // Most replies name nothing, and each attempt has one.
        if lower.contains(&secret) {
            clean = replace(&clean, &lower, &secret, reach);
            lower = clean.to_ascii_lowercase();
        }
    }
    let words = clean.split(' ').map(|word| match word.contains('@') {
        true if !word.trim_matches(|c: char| !c.is_alphanumeric()).eq_ignore_ascii_case(alias) => GONE,
        true | false => word,
    });
    let clean = words.collect::<Vec<_>>().join(" ");
    // Cut last, so that no half of a secret is left at the cut. RFC 3464 §2.3.6 wants ASCII.
    clean.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).take(TEXT_CHARS_MAX).collect()
}

/// Where a secret is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Anywhere,
    WholeWord,
}

/// Everything that must go, in lower case, the longest first.
fn secrets(target: &Mailbox) -> Vec<(String, Reach)> {
    let local = target.plain_local();
    let domain = target.domain().as_str();
    let given_domain = target.as_str()[target.local().len() + 1..].to_owned();
    let mut secrets = vec![
        (target.as_str().to_owned(), Reach::Anywhere),
        (format!("{local}@{domain}"), Reach::Anywhere),
        (given_domain, Reach::Anywhere),
        (domain.to_owned(), Reach::Anywhere),
    ];
    let words = local.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    for word in words.chain([target.local(), local.as_str()]) {
        let reach = if word.len() >= WORD_OCTETS_MIN { Reach::Anywhere } else { Reach::WholeWord };
        secrets.push((word.to_owned(), reach));
    }
    // The last two labels are the vendor's name.
    let labels: Vec<&str> = domain.split('.').collect();
    let keys = labels.iter().take(labels.len().saturating_sub(2)).filter(|label| label.len() >= WORD_OCTETS_MIN);
    secrets.extend(keys.map(|label| ((*label).to_owned(), Reach::Anywhere)));
    secrets.iter_mut().for_each(|(secret, _)| secret.make_ascii_lowercase());
    secrets.sort_by_key(|(secret, _)| std::cmp::Reverse(secret.len()));
    secrets
}

/// `lower` is `text` in lower case.
fn replace(text: &str, lower: &str, secret: &str, reach: Reach) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut copied = 0;
    for (at, found) in lower.match_indices(secret) {
        let end = at + found.len();
        let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let alone = !in_word(text[..at].chars().next_back()) && !in_word(text[end..].chars().next());
        if reach == Reach::WholeWord && !alone {
            continue;
        }
        clean.push_str(&text[copied..at]);
        clean.push_str(GONE);
        copied = end;
    }
    clean.push_str(&text[copied..]);
    clean
}

const GONE: &str = "[...]";
/// A reply's line has 512 octets (RFC 5321 §4.5.3.1.5); of several lines the first words say it.
const TEXT_CHARS_MAX: usize = 500;
/// Shorter words are in every sentence.
const WORD_OCTETS_MIN: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(text: &str, target: &str) -> String {
        scrub(text, &Mailbox::parse(target).unwrap(), "aide@solarmora.com")
    }

    #[test]
    fn the_target_is_named_in_no_form() {
        let target = "Support+key91x@a1b2c3.org.eu17.case.salesforce.com";
        for (text, want) in [
            ("550 5.7.1 no", "550 5.7.1 no"),
            ("554 <support+KEY91X@A1b2c3.org.eu17.case.salesforce.com> rejected", "554 <[...]> rejected"),
            ("554 support+key91x: full", "554 [...]: full"),
            ("554 key91x", "554 [...]"),
            ("554 b=support+2Bkey91x=a1b2c3.org.eu17.case.salesforce.com", "554 b=[...]+2B[...]=[...]"),
            ("554 support%2Bkey91x%40a1b2c3.org.eu17", "554 [...]%2B[...]%40[...].org.[...]"),
            ("554 the case a1b2c3", "554 the [...] [...]"),
            ("554 ask postmaster@salesforce.com", "554 ask [...]"),
            ("554 aide@solarmora.com is full", "554 aide@solarmora.com is full"),
            ("554 <aide@solarmora.com>: no", "554 <aide@solarmora.com>: no"),
            ("554 see https://salesforce.com/help", "554 see https://salesforce.com/help"),
        ] {
            assert_eq!(clean(text, target), want, "{text}");
        }
    }

    #[test]
    fn short_words_go_where_they_stand_alone() {
        assert_eq!(
            clean("554 a b has a bad day, crab cr", "a.cr@x.example"),
            "554 [...] b has [...] bad day, crab [...]"
        );
        assert_eq!(clean("554 x y", "\"x y\"@d.example"), "554 [...]");
    }

    #[test]
    fn the_words_are_short_printable_ascii() {
        assert_eq!(clean("554 a\r\nTo: é\0", "k@d.example"), "554 a  To: ? ");
        assert_eq!(clean(&"x ".repeat(300), "k@d.example").len(), 500);
    }

    proptest! {
        #[test]
        fn an_address_of_any_form_is_gone(before in "[ -?A-~é]{0,30}", after in "[ -?A-~é]{0,30}", local in "[a-z]{4,9}", case in any::<bool>()) {
            let target = format!("{local}@crm.example");
            let named = if case { target.to_uppercase() } else { target.clone() };
            let got = clean(&format!("{before}{named}{after}"), &target).to_lowercase();
            prop_assert!(!got.contains(&local) || GONE.contains(&local), "{got}");
        }
    }
}
