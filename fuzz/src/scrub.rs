//! The secret: an intake address is in nothing that is scrubbed, in whatever words a remote repeats it.

use pointsman::address::Mailbox;
use pointsman::scrub::scrub;

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (target, alias) = (input.text(), input.text());
    let (Ok(target), Ok(alias)) = (Mailbox::parse(target), Mailbox::parse(alias)) else { return };
    let said = String::from_utf8_lossy(input.rest());
    // It is repeated whole, in other letters, in VERP and in percent signs.
    let verp = target.as_str().replace('@', "=");
    let percent = target.as_str().replace('@', "%40").replace('+', "%2B");
    for named in [target.as_str(), &target.as_str().to_ascii_uppercase(), &verp, &percent] {
        assert_secret(&target, &alias, &scrub(&said.replace('*', named), &target, alias.as_str()));
    }
}

pub(super) fn assert_secret(target: &Mailbox, alias: &Mailbox, scrubbed: &str) {
    assert!(scrubbed.len() <= 500 && scrubbed.bytes().all(|b| matches!(b, b' '..=b'~')), "{scrubbed:?}");
    // The alias is what its sender knows, and may stand.
    let rest = scrubbed.to_ascii_lowercase().replace(&alias.as_str().to_ascii_lowercase(), "");
    let local = target.plain_local().to_ascii_lowercase();
    for secret in [target.as_str().to_ascii_lowercase(), target.domain().to_string(), local] {
        assert!(!is_telling(&secret) || !rest.contains(&secret), "{secret:?} in {rest:?}");
    }
}

/// What is long enough to be recognised, and holds none of the signs that are put in another's place.
fn is_telling(secret: &str) -> bool {
    secret.len() >= 4 && !"[...]".contains(secret) && secret.bytes().all(|b| matches!(b, b'!'..=b'>' | b'A'..=b'~'))
}
