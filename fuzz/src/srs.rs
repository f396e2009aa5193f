//! Rewritten senders: each leads back, by any of our secrets and for three weeks; and what we did not write leads nowhere.

use std::time::Duration;

use pointsman::address::{Domain, Mailbox};
use pointsman::clock::Timestamp;
use pointsman::srs::{AGE_DAYS_MAX, Invalid, Leads, Original, Proof, Return, Rewritten, Srs};

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let day = u64::from(input.octet()) << 8 | u64::from(input.octet());
    let (age, place, letter) = (u32::from(input.octet() % 22), usize::from(input.octet()), input.octet());
    let (now, text) = (Timestamp(0).after(DAY * day_of(day)), input.text());

    if let Ok(address) = Mailbox::from_parts(text, ours().domain()) {
        assert_ours(&address, now);
    }
    let Ok(sender) = Mailbox::parse(text) else { return };
    let Rewritten { path, author } = ours().rewrite(&sender, now);
    assert!(path.domain() == ours().domain() && path.local().len() <= 64);
    assert_eq!(author.day, now.day());
    let later = now.after(DAY * age);
    let read = ours().read(&path, later).expect("what we write leads back");
    assert!(read.days.contains(&author.day), "{read:?}");
    match (&read.leads, &author.id) {
        (Leads::To(to), None) => assert_eq!(to.as_str(), author.sender.as_str()),
        (Leads::Stored(id), Some(own)) => assert_eq!((id, author.sender.as_str()), (own, sender.as_str())),
        (leads, id) => panic!("{leads:?} for {id:?}"),
    }
    let local = sender.plain_local();
    if is_tagged(&local, "SRS0") {
        // What stands behind the tag is the first forwarder's business.
        assert_eq!((&author.sender.plain_local()[4..], author.sender.domain()), (&local[4..], sender.domain()));
    } else if !is_tagged(&local, "SRS1") {
        assert_eq!((author.sender.plain_local(), author.sender.domain()), (local, sender.domain()));
    }
    assert_eq!(after_the_turn().read(&path, later).as_ref(), Ok(&read), "the old secret verifies");
    for (proof, original) in
        [(Proof::Proven, true), (Proof::Unproven, true), (Proof::Withheld, true), (Proof::Proven, false)]
    {
        let known = original.then(|| Original { sender: Some(author.sender.clone()), proof });
        let relayed = matches!(read.judge(known.as_ref()), Return::Relay(to) if to == author.sender);
        assert_eq!(relayed, proof == Proof::Proven && original, "only to who proved himself");
    }
    if is_tagged(&path.plain_local(), "SRS0") {
        let late = now.after(DAY * u32::try_from(AGE_DAYS_MAX + 1).unwrap_or(0));
        assert_eq!(ours().read(&path, late), Err(Invalid::Age));
    }
    assert_hash_counts(&path, place, letter, later);
}

/// Another letter in the hash, and it is no hash of ours.
fn assert_hash_counts(address: &Mailbox, place: usize, letter: u8, now: Timestamp) {
    let mut local = address.plain_local().into_bytes();
    let at = "SRS0=".len() + place % 4;
    if !letter.is_ascii_alphanumeric() || letter.eq_ignore_ascii_case(&local[at]) {
        return;
    }
    local[at] = letter;
    let local = String::from_utf8(local).expect("a letter was put for a letter");
    let changed = Mailbox::from_parts(&local, address.domain()).expect("a letter was put for a letter");
    assert_eq!(ours().read(&changed, now), Err(Invalid::Hash));
}

/// Where a stranger's address names a sender we would have written that hash ourselves.
fn assert_ours(address: &Mailbox, now: Timestamp) {
    let Ok(read) = ours().read(address, now) else { return };
    assert!(read.days.end() - read.days.start() <= AGE_DAYS_MAX && *read.days.end() <= now.day(), "{read:?}");
    let Leads::To(sender) = read.leads else { return };
    let then = Timestamp(0).after(DAY * u32::try_from(*read.days.start()).unwrap_or(0));
    let Rewritten { path, author } = ours().rewrite(&sender, then);
    let (local, again) = (address.plain_local(), path.plain_local());
    let hash = |local: &str| local["SRS0=".len()..][..4].to_ascii_lowercase();
    // A sender that looks rewritten himself becomes SRS1, and a long one an id.
    if author.id.is_none() && local[..4].eq_ignore_ascii_case(&again[..4]) {
        assert_eq!(hash(&local), hash(&again), "{local} for {again}");
    }
}

fn is_tagged(local: &str, tag: &str) -> bool {
    local.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(tag))
}

fn day_of(day: u64) -> u32 {
    // From 1971 on, so that three weeks before it is a day, too.
    365 + u32::try_from(day).unwrap_or(0)
}

fn ours() -> Srs {
    srs(&["tops3cret"])
}

fn after_the_turn() -> Srs {
    srs(&["new", "tops3cret"])
}

fn srs(secrets: &[&str]) -> Srs {
    let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
    let domain = Domain::parse("srs.solarmora.com").expect("it is a domain");
    Srs::new(domain, &secrets).expect("there is a secret")
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
