//! Addresses: kept letter by letter, routed by what follows the last unquoted `@`, equal whatever their spelling.

use pointsman::address::{Domain, Mailbox, ReversePath};

pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(domain) = Domain::parse(&text) {
        assert_domain(&domain);
    }
    let Ok(mailbox) = Mailbox::parse(&text) else { return };
    assert_eq!(mailbox.as_str(), text);
    assert_eq!(ReversePath::parse(&text), Ok(ReversePath::Mailbox(mailbox.clone())));
    assert!(text.len() <= 254 && mailbox.local().len() <= 64);
    assert!(!text.chars().any(char::is_control), "it cannot end a command or a header field");
    assert!(!outside_quotes(&text).contains(['<', '>', ' ', ',', ';', '(', ')']), "it cannot leave its brackets");

    let at = last_unquoted_at(&text);
    assert_eq!((mailbox.local(), &text[at + 1..]), (&text[..at], &text[mailbox.local().len() + 1..]));
    assert_eq!(Domain::parse(&text[at + 1..]).as_ref(), Ok(mailbox.domain()));
    assert_domain(mailbox.domain());

    let again = Mailbox::from_parts(&mailbox.plain_local(), mailbox.domain());
    // A name of U-labels is shorter than the A-labels that it is routed by.
    let Ok(again) = again else {
        assert!(
            mailbox.local().len() + mailbox.domain().as_str().len() >= 254,
            "what was taken apart can be put together"
        );
        return;
    };
    assert_eq!(again.plain_local(), mailbox.plain_local());
    assert_eq!(again, mailbox);
    assert_key(&mailbox);
}

/// A name is written in one way, which means itself.
fn assert_domain(domain: &Domain) {
    let name = domain.as_str();
    assert_eq!(Domain::parse(name).as_ref(), Ok(domain));
    assert!(name.len() <= 255 && name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()), "{name}");
    assert!(domain.is_literal() || name.split('.').all(|label| (1..=63).contains(&label.len())), "{name}");
}

/// Case and needless quotes make no other address.
fn assert_key(mailbox: &Mailbox) {
    let key = mailbox.key();
    assert!(key.ends_with(&format!("@{}", mailbox.domain())));
    assert_eq!(key.to_lowercase(), key);
    // Some letters take more octets in lower case.
    if let Ok(same) = Mailbox::parse(&key) {
        assert_eq!(same.key(), key);
        assert_eq!(&same, mailbox);
    }
    if let Ok(same) = Mailbox::parse(&mailbox.as_str().to_ascii_uppercase()) {
        assert_eq!(&same, mailbox);
    }
}

fn last_unquoted_at(text: &str) -> usize {
    let (mut quoted, mut escaped, mut last) = (false, false, None);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '@' if !quoted => last = Some(at),
            _ => {}
        }
    }
    last.expect("an address has an `@`")
}

fn outside_quotes(text: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let mut outside = |c: &char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted,
        }
        false
    };
    text.chars().filter(|c| outside(c)).collect()
}
