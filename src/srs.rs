//! The Sender Rewriting Scheme: a reverse-path of our own that leads back to the sender. Pure.
//!
//! `client@example.org` becomes `SRS0=HHHH=TT=example.org=client@srs.solarmora.com`: a keyed hash, the day, and the
//! sender. So the next hop's SPF finds us, and what it returns comes back here, where [`Srs::restore`] reads the sender
//! out of it if the hash is ours and the day is not long past. A sender that was rewritten by somebody else becomes
//! SRS1, which names that first forwarder and jumps over all between: a return then goes to the first one.
//!
//! Hash, day and order of the parts are those of libsrs2 and postsrsd, so that their secrets and their addresses in
//! flight stay good when a forwarder is replaced: HMAC-SHA1 over the parts in lower case, cut to four letters of
//! base64, which are compared without case because some hosts fold it. That is some twenty bits: enough that nobody
//! aims at a chosen address unseen, not enough to let answers be tried without limit. Who asks must count. The parts
//! are hashed without anything between them, so that `example.org=client` and `example.or=gclient` have the same hash:
//! whoever holds a true address can shift that border, which others' hosts would not forgive us to prevent.
//!
//! Where that would be over 64 octets, which RFC 5321 does not allow, the address holds an id instead of the sender,
//! `SRS0=HHHH=TT=id`, and the ledger holds the sender. It has one part less than any other's, so nobody takes it for his own.
//! The ledger also knows whether the sender proved who he is ([`Author`]): only then does a return go on to him.

use std::ops::RangeInclusive;

use aws_lc_rs::hmac;

use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;

/// The domain of our return paths, and the secrets.
#[derive(Clone, Debug)]
pub struct Srs {
    // Invariant: at most `DOMAIN_OCTETS_MAX`.
    domain: Domain,
    /// The first signs, all verify.
    // Invariant: never empty.
    keys: Vec<hmac::Key>,
}

/// A reverse-path of ours, and what the ledger must keep for what comes back by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    pub path: Mailbox,
    pub author: Author,
}

/// Who is behind a return path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// When the path was made, in days since 1970.
    pub day: u64,
    /// Whom a return goes to: the sender or, where he was rewritten before, the first forwarder.
    pub sender: Mailbox,
    /// What the path holds where it has no room for the sender.
    pub id: Option<PathId>,
}

/// Stands for a sender; upper-case letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathId(String);

impl PathId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a genuine return path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnPath {
    pub leads: Leads,
    /// When it was made, in days since 1970. SRS1 does not say.
    pub days: RangeInclusive<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    To(Mailbox),
    /// To the sender that the ledger has under this id.
    Stored(PathId),
}

/// Why an address in our SRS domain leads nowhere. The peer is told nothing but "no such address".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("it has not the form of a rewritten address")]
    Form,
    #[error("its hash is none of ours")]
    Hash,
    #[error("it is older than {AGE_DAYS_MAX} days")]
    Age,
}

/// What the ledger knows of the messages that went out with a return path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// Where the path does not name him.
    pub sender: Option<Mailbox>,
    pub proof: Proof,
}

/// Whether they were the sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All authenticated for the domain that a return goes to.
    Proven,
    /// One did not.
    Unproven,
    /// None that did not authenticate has gone out, and none that did: nothing can have come back.
    Withheld,
}

/// What becomes of mail that comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Return {
    /// On to the sender of the original message.
    Relay(Mailbox),
    /// A true hash, but whoever is named there may never have written to us: a return to him would be backscatter. `why`
    /// says what is missing.
    Quarantine { to: Mailbox, why: &'static str },
    /// A true hash, and the ledger has forgotten whom it stands for.
    Lost { why: &'static str },
}

impl Srs {
    /// `None` without a secret, or with an empty one: that would sign for everybody. Nor for a domain over
    /// [`DOMAIN_OCTETS_MAX`].
    #[must_use]
    pub fn new(domain: Domain, secrets: &[Vec<u8>]) -> Option<Srs> {
        let fits = domain.as_str().len() <= DOMAIN_OCTETS_MAX;
        let sound = fits && !secrets.is_empty() && secrets.iter().all(|secret| !secret.is_empty());
        let key = |secret: &Vec<u8>| hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
        sound.then(|| Srs { domain, keys: secrets.iter().map(key).collect() })
    }

    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The reverse-path that the next hop is told for a message from `sender` to `target`: rewritten where the mail
    /// leaves our domains and the sender is none of ours. `None`: the sender's own; the null sender stays what it is.
    ///
    /// `is_ours` tells our domains; the SRS domain is ours in any case.
    pub fn reverse_path(
        &self,
        sender: &ReversePath,
        target: &Mailbox,
        now: Timestamp,
        is_ours: impl Fn(&Domain) -> bool,
    ) -> Option<Rewritten> {
        let ours = |domain: &Domain| *domain == self.domain || is_ours(domain);
        match sender {
            ReversePath::Mailbox(mailbox) if !ours(mailbox.domain()) && !ours(target.domain()) => {
                Some(self.rewrite(mailbox, now))
            }
            ReversePath::Mailbox(_) | ReversePath::Null => None,
        }
    }

    /// The address in our domain that leads back to `sender`.
    #[must_use]
    pub fn rewrite(&self, sender: &Mailbox, now: Timestamp) -> Rewritten {
        let local = sender.plain_local();
        let host = sender.domain().as_str();
        let today = now.day();
        let rewritten = match Tagged::read(&local) {
            // Whoever rewrote it first is asked to restore it; his hash is his business.
            Some(Tagged::Srs0 { rest }) => self.srs1(host, rest),
            Some(Tagged::Srs1 { host, rest, .. }) => self.srs1(host, rest),
            None => {
                let day = day_letters(today);
                let hash = hash(&self.keys[0], &[&day, host, &local]);
                format!("SRS0={hash}={day}={host}={local}")
            }
        };
        // Whom it leads to is what it is read as: one rule, and none for what cannot be read.
        let path = Mailbox::from_parts(&rewritten, &self.domain).ok();
        let leads = path.as_ref().and_then(|path| self.read(path, now).ok()).map(|read| read.leads);
        match (path, leads) {
            (Some(path), Some(Leads::To(to))) => {
                Rewritten { path, author: Author { day: today, sender: to, id: None } }
            }
            (Some(_) | None, _) => self.shortened(sender, today),
        }
    }

    /// The address with an id instead of the sender. The same sender has the same one all day.
    fn shortened(&self, sender: &Mailbox, today: u64) -> Rewritten {
        let day = day_letters(today);
        let id = PathId(id(&self.keys[0], &[&today.to_string(), sender.as_str()]));
        let hash = hash(&self.keys[0], &[&day, NO_HOST, id.as_str()]);
        let path = Mailbox::from_parts(&format!("SRS0={hash}={day}={}", id.as_str()), &self.domain);
        let path = path.expect("33 octets fit a local part, and the domain leaves room for them");
        Rewritten { path, author: Author { day: today, sender: sender.clone(), id: Some(id) } }
    }

    fn srs1(&self, host: &str, rest: &str) -> String {
        let hash = hash(&self.keys[0], &[host, rest]);
        format!("SRS1={hash}={host}={rest}")
    }

    /// What `recipient`, an address in [`Srs::domain`], was made of.
    pub fn read(&self, recipient: &Mailbox, now: Timestamp) -> Result<ReturnPath, Invalid> {
        let local = recipient.plain_local();
        let today = now.day();
        match Tagged::read(&local).ok_or(Invalid::Form)? {
            Tagged::Srs1 { hash, host, rest } => {
                self.verify(hash, &[host, rest])?;
                // The separator that the first forwarder chose stands in front of what he wrote.
                let leads = Leads::To(address(&format!("SRS0{rest}"), host)?);
                Ok(ReturnPath { leads, days: today.saturating_sub(AGE_DAYS_MAX)..=today })
            }
            Tagged::Srs0 { rest } => {
                let mut parts = rest[1..].splitn(4, '=');
                let mut part = || parts.next().ok_or(Invalid::Form);
                let (hash, then, third) = (part()?, part()?, part()?);
                let leads = match part() {
                    Ok(local) => {
                        self.verify(hash, &[then, third, local])?;
                        address(local, third).map(Leads::To)
                    }
                    Err(_) => {
                        let id = PathId(third.to_ascii_uppercase());
                        self.verify(hash, &[then, NO_HOST, id.as_str()])?;
                        Ok(Leads::Stored(id))
                    }
                };
                let then = read_day(then).ok_or(Invalid::Form)?;
                // The day counts modulo 1024: one that seems to lie ahead is nearly three years old, not new.
                let age = (today + DAYS - then) % DAYS;
                if age > AGE_DAYS_MAX {
                    return Err(Invalid::Age);
                }
                let made = today.saturating_sub(age);
                Ok(ReturnPath { leads: leads?, days: made..=made })
            }
        }
    }

    fn verify(&self, given: &str, parts: &[&str]) -> Result<(), Invalid> {
        let genuine = self.keys.iter().any(|key| hash(key, parts).eq_ignore_ascii_case(given));
        if genuine { Ok(()) } else { Err(Invalid::Hash) }
    }
}

impl ReturnPath {
    /// What becomes of mail that comes back by it, by what the ledger knows; `None` where that is nothing (any more).
    pub fn judge(&self, original: Option<&Original>) -> Return {
        let named = match &self.leads {
            Leads::To(sender) => Some(sender),
            Leads::Stored(_) => original.and_then(|original| original.sender.as_ref()),
        };
        match (named, original.map(|original| original.proof)) {
            (Some(sender), Some(Proof::Proven)) => Return::Relay(sender.clone()),
            (Some(sender), Some(Proof::Unproven)) => Return::Quarantine { to: sender.clone(), why: UNPROVEN },
            (Some(sender), Some(Proof::Withheld) | None) => Return::Quarantine { to: sender.clone(), why: UNKNOWN },
            (None, _) => Return::Lost { why: FORGOTTEN },
        }
    }
}

/// A local part in the form of a rewritten one.
enum Tagged<'a> {
    /// `rest` begins with the separator.
    Srs0 {
        rest: &'a str,
    },
    Srs1 {
        hash: &'a str,
        host: &'a str,
        rest: &'a str,
    },
}

impl<'a> Tagged<'a> {
    fn read(local: &'a str) -> Option<Tagged<'a>> {
        let (tag, rest) = local.split_at_checked(4)?;
        // Only the separator behind the tag may differ from forwarder to forwarder.
        let inner = rest.strip_prefix(['=', '+', '-'])?;
        if tag.eq_ignore_ascii_case("SRS0") {
            return Some(Tagged::Srs0 { rest });
        }
        if !tag.eq_ignore_ascii_case("SRS1") {
            return None;
        }
        let (hash, inner) = inner.split_once('=')?;
        let (host, rest) = inner.split_once('=')?;
        // Without a host and a separator nobody could be asked to restore it.
        let sound = !host.is_empty() && rest.starts_with(['=', '+', '-']);
        sound.then_some(Tagged::Srs1 { hash, host, rest })
    }
}

fn address(local: &str, host: &str) -> Result<Mailbox, Invalid> {
    let domain = Domain::parse(host).map_err(|_| Invalid::Form)?;
    Mailbox::from_parts(local, &domain).map_err(|_| Invalid::Form)
}

/// Four letters of base64: the first three octets of the HMAC over all parts in lower case.
fn hash(key: &hmac::Key, parts: &[&str]) -> String {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part.to_ascii_lowercase().as_bytes()));
    let tag = context.sign();
    let bits = tag.as_ref()[..3].iter().fold(0u32, |bits, octet| (bits << 8) | u32::from(*octet));
    [18, 12, 6, 0].map(|shift| char::from(BASE64[(bits >> shift) as usize & 63])).iter().collect()
}

/// Twenty letters of base32: a hundred bits of the HMAC over all parts.
fn id(key: &hmac::Key, parts: &[&str]) -> String {
    let mut context = hmac::Context::with_key(key);
    // With what no rewritten address begins, so that no hash that we hand out is the start of an id.
    context.update(b"=id=");
    parts.iter().for_each(|part| context.update(&[part.as_bytes(), b"="].concat()));
    let tag = context.sign();
    let (mut bits, mut held, mut id) = (0u32, 0, String::new());
    for octet in tag.as_ref() {
        (bits, held) = ((bits << 8) | u32::from(*octet), held + 8);
        while held >= 5 && id.len() < ID_LETTERS {
            held -= 5;
            id.push(char::from(BASE32[(bits >> held) as usize & 31]));
        }
    }
    id
}

fn day_letters(day: u64) -> String {
    let day = day % DAYS;
    [day >> 5, day].map(|bits| char::from(BASE32[bits as usize & 31])).iter().collect()
}

/// `None` where it is no pair of letters that we would write.
fn read_day(text: &str) -> Option<u64> {
    let digit = |letter: u8| BASE32.iter().position(|&known| known == letter.to_ascii_uppercase());
    match text.as_bytes() {
        [high, low] => Some((digit(*high)? as u64) << 5 | digit(*low)? as u64),
        _ => None,
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// What two letters of base32 count.
const DAYS: u64 = 1024;
/// libsrs2's default; a message that could not be delivered is given up long before.
pub const AGE_DAYS_MAX: u64 = 21;
/// An address has 254 octets; the longest of our local parts has 64, quotes included.
pub const DOMAIN_OCTETS_MAX: usize = 254 - 64 - 1;
const ID_LETTERS: usize = 20;
/// Stands where others hash a host: no host begins so.
const NO_HOST: &str = "=";
const UNPROVEN: &str = "a return to a sender in whose name somebody wrote that day who did not authenticate";
const UNKNOWN: &str = "a return to a sender of whom the ledger has no message of that day";
const FORGOTTEN: &str = "a return to a sender whom the ledger has no longer";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 24 * 60 * 60 * 1000;
    /// The day of the vectors that postsrsd 1.10 made: 2026-11-22, `JK`.
    const NOW: Timestamp = Timestamp(20_778 * DAY + 1);

    fn srs(secrets: &[&str]) -> Srs {
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
        Srs::new(Domain::parse("srs.solarmora.com").unwrap(), &secrets).unwrap()
    }

    fn ours() -> Srs {
        srs(&["tops3cret"])
    }

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Whom an address leads to, where it names him.
    fn restored(srs: &Srs, address: &Mailbox, now: Timestamp) -> Result<Mailbox, Invalid> {
        match srs.read(address, now)?.leads {
            Leads::To(sender) => Ok(sender),
            Leads::Stored(id) => panic!("{address} holds the id {id:?}"),
        }
    }

    fn later(days: i64) -> Timestamp {
        Timestamp(NOW.0 + days * DAY)
    }

    #[test]
    fn the_vectors_that_postsrsd_made() {
        for (sender, rewritten) in [
            ("client@example.org", "SRS0=GesK=JK=example.org=client"),
            ("Client.Name+tag@example.org", "SRS0=HlHp=JK=example.org=Client.Name+tag"),
            ("a=b=c@x.org", "SRS0=q5q7=JK=x.org=a=b=c"),
            ("SRS0=HHHH=TT=orig.example=user@first.example", "SRS1=XrUD=first.example==HHHH=TT=orig.example=user"),
            ("SRS0+HHHH=TT=orig.example=user@first.example", "SRS1=FrTH=first.example=+HHHH=TT=orig.example=user"),
        ] {
            let address = format!("{rewritten}@srs.solarmora.com");
            assert_eq!(ours().rewrite(&mailbox(sender), NOW).path.as_str(), address);
            assert_eq!(restored(&ours(), &mailbox(&address), NOW).unwrap().as_str(), sender);
        }
        // A second forwarder's address names the first one, whatever the second one's hash and separator are.
        for (second, rewritten) in [
            (
                "SRS1=XXXX=first.example==HHHH=TT=orig.example=user@second.example",
                "SRS1=XrUD=first.example==HHHH=TT=orig.example=user@srs.solarmora.com",
            ),
            (
                "SRS1-XXXX=first.example=+HHHH=TT=orig.example=user@second.example",
                "SRS1=FrTH=first.example=+HHHH=TT=orig.example=user@srs.solarmora.com",
            ),
        ] {
            assert_eq!(ours().rewrite(&mailbox(second), NOW).path.as_str(), rewritten);
        }
        // An address literal needs quotes here; the hash is the same.
        let literal = ours().rewrite(&mailbox("u@[1.2.3.4]"), NOW).path;
        assert_eq!(literal.as_str(), "\"SRS0=ev0w=JK=[1.2.3.4]=u\"@srs.solarmora.com");
    }

    #[test]
    fn separators_and_case_may_change_on_the_way() {
        for address in [
            "SRS0=GesK=JK=example.org=client@srs.solarmora.com",
            "SRS0+GesK=JK=example.org=client@srs.solarmora.com",
            "SRS0-GesK=JK=example.org=client@srs.solarmora.com",
            "srs0=gesk=jk=example.org=client@srs.solarmora.com",
            "SRS0=GESK=JK=EXAMPLE.ORG=CLIENT@srs.solarmora.com",
        ] {
            assert_eq!(restored(&ours(), &mailbox(address), NOW).unwrap(), mailbox("client@example.org"), "{address}");
        }
    }

    #[test]
    fn what_is_not_ours_leads_nowhere() {
        for (local, want) in [
            ("client", Invalid::Form),
            ("SRS0", Invalid::Form),
            ("SRS0=", Invalid::Form),
            ("SRS0=GesK=JK", Invalid::Form),
            ("SRS0=GesK=JK=example.org", Invalid::Hash),
            ("SRS0:GesK=JK=example.org=client", Invalid::Form),
            ("SRS2=GesK=JK=example.org=client", Invalid::Form),
            ("SRS1=XrUD", Invalid::Form),
            ("SRS1=XrUD=first.example", Invalid::Form),
            ("SRS1=XrUD=first.example=HHHH", Invalid::Form),
            ("SRS1=XrUD===HHHH", Invalid::Form),
            ("SRS0=GesL=JK=example.org=client", Invalid::Hash),
            ("SRS0=Ges=JK=example.org=client", Invalid::Hash),
            ("SRS0=GesKK=JK=example.org=client", Invalid::Hash),
            ("SRS0==JK=example.org=client", Invalid::Hash),
            ("SRS0=GesK=JL=example.org=client", Invalid::Hash),
            ("SRS0=GesK=JK=example.com=client", Invalid::Hash),
            ("SRS0=GesK=JK=example.org=clients", Invalid::Hash),
            ("SRS1=XrUE=first.example==HHHH=TT=orig.example=user", Invalid::Hash),
            ("SRS1=XrUD=other.example==HHHH=TT=orig.example=user", Invalid::Hash),
        ] {
            let Ok(address) = Mailbox::parse(&format!("\"{local}\"@srs.solarmora.com")) else { panic!("{local}") };
            assert_eq!(restored(&ours(), &address, NOW), Err(want), "{local}");
        }
    }

    #[test]
    fn a_shifted_border_has_the_same_hash() {
        // Not what one would want: libsrs2 hashes the bare parts, and what it wrote must be read.
        let shifted = mailbox("SRS0=GesK=JK=example.or=gclient@srs.solarmora.com");
        assert_eq!(restored(&ours(), &shifted, NOW).unwrap().as_str(), "gclient@example.or");
    }

    #[test]
    fn a_return_path_lives_21_days() {
        let address = ours().rewrite(&mailbox("client@example.org"), NOW).path;
        assert!(restored(&ours(), &address, later(21)).is_ok());
        assert_eq!(restored(&ours(), &address, later(22)), Err(Invalid::Age));
        assert_eq!(restored(&ours(), &address, later(-1)), Err(Invalid::Age));
        // The two letters have come round.
        assert!(restored(&ours(), &address, later(1024)).is_ok());
        // An SRS1 address has no day: the first forwarder knows the age.
        let address = ours().rewrite(&mailbox("SRS0=H=TT=o.example=u@first.example"), NOW).path;
        assert!(restored(&ours(), &address, later(500)).is_ok());
    }

    #[test]
    fn the_day_counts_around_its_end() {
        let last = Timestamp(1023 * DAY);
        let address = ours().rewrite(&mailbox("client@example.org"), last).path;
        assert!(restored(&ours(), &address, Timestamp(last.0 + 21 * DAY)).is_ok());
        assert_eq!(restored(&ours(), &address, Timestamp(last.0 + 22 * DAY)), Err(Invalid::Age));
    }

    #[test]
    fn the_first_secret_signs_and_all_verify() {
        let (old, new, both) = (srs(&["old"]), srs(&["new"]), srs(&["new", "old"]));
        let sender = mailbox("client@example.org");
        let before = old.rewrite(&sender, NOW).path;
        assert_eq!(restored(&both, &before, NOW).unwrap(), sender);
        assert_eq!(restored(&new, &before, NOW), Err(Invalid::Hash));
        assert_eq!(both.rewrite(&sender, NOW), new.rewrite(&sender, NOW));
        let domain = Domain::parse("srs.example").unwrap();
        assert!(Srs::new(domain.clone(), &[]).is_none());
        assert!(Srs::new(domain, &[b"good".to_vec(), Vec::new()]).is_none());
    }

    #[test]
    fn a_local_part_of_64_octets_names_its_sender_and_one_of_65_holds_an_id() {
        // `SRS0=HHHH=JK=example.org=` has 25 octets.
        for (octets, fits) in [(39, true), (40, false)] {
            let sender = mailbox(&format!("{}@example.org", "x".repeat(octets)));
            let Rewritten { path, author } = ours().rewrite(&sender, NOW);
            assert_eq!(author.id.is_none(), fits, "{octets}");
            assert_eq!((author.day, &author.sender), (20_778, &sender));
            let read = ours().read(&path, later(21)).unwrap();
            assert_eq!(read.days, 20_778..=20_778);
            match author.id {
                None => assert_eq!((path.local().len(), read.leads), (64, Leads::To(sender))),
                Some(id) => assert_eq!((path.local().len(), read.leads), (33, Leads::Stored(id))),
            }
            assert_eq!(ours().read(&path, later(22)), Err(Invalid::Age));
        }
        // What was rewritten before counts as well, and leads to the first forwarder by its id.
        let forwarded = mailbox(&format!("SRS0=HHHH=TT=orig.example={}@first.example", "x".repeat(30)));
        let Rewritten { path, author } = ours().rewrite(&forwarded, NOW);
        assert_eq!(author.sender, forwarded);
        assert_eq!(ours().read(&path, NOW).unwrap().leads, Leads::Stored(author.id.unwrap()));
    }

    #[test]
    fn an_id_is_the_sender_s_of_that_day_under_that_secret() {
        let long = |letter: &str| mailbox(&format!("{}@example.org", letter.repeat(50)));
        let id = |srs: &Srs, sender: &Mailbox, days| srs.rewrite(sender, later(days)).author.id.unwrap();
        let first = id(&ours(), &long("x"), 0);
        assert_eq!(first, id(&ours(), &long("x"), 0));
        assert_ne!(first, id(&ours(), &long("y"), 0));
        assert_ne!(first, id(&ours(), &long("x"), 1));
        assert_ne!(first, id(&ours(), &long("x"), 1024));
        assert_ne!(first, id(&srs(&["another"]), &long("x"), 0));
        assert_eq!(first.as_str().len(), ID_LETTERS);

        let path = ours().rewrite(&long("x"), NOW).path;
        let folded = mailbox(&path.as_str().to_lowercase());
        assert_eq!(ours().read(&folded, NOW).unwrap().leads, Leads::Stored(first.clone()));
        assert_eq!(srs(&["another"]).read(&path, NOW), Err(Invalid::Hash));
        assert_eq!(srs(&["another", "tops3cret"]).read(&path, NOW).unwrap().leads, Leads::Stored(first.clone()));
        // Its hash is not that of a host and a local part that make the same letters.
        let (hash, host) = (&path.local()[5..9], &first.as_str()[..8]);
        let shifted = mailbox(&format!("SRS0={hash}=JK={host}={}@srs.solarmora.com", &first.as_str()[8..]));
        assert_eq!(ours().read(&shifted, NOW), Err(Invalid::Hash));
    }

    #[test]
    fn the_domain_leaves_room_for_every_local_part() {
        for (octets, fits) in [(DOMAIN_OCTETS_MAX, true), (DOMAIN_OCTETS_MAX + 1, false)] {
            let labels = "abcdefghi.".repeat((octets - 1) / 10);
            let domain = format!("{labels}{}", "x".repeat(octets - labels.len()));
            let srs = Srs::new(Domain::parse(&domain).unwrap(), &[b"tops3cret".to_vec()]);
            assert_eq!(srs.is_some(), fits, "{octets}");
            if let Some(srs) = srs {
                let path = srs.rewrite(&mailbox(&format!("{}@example.org", "x".repeat(39))), NOW).path;
                assert_eq!(path.as_str().len(), 254);
            }
        }
    }

    #[test]
    fn only_what_leaves_us_and_is_not_ours_is_rewritten() {
        let is_ours = |domain: &Domain| domain.as_str() == "solarmora.com";
        for (sender, target, rewritten) in [
            ("client@example.org", "case@crm.example", true),
            ("client@example.org", "ventes@solarmora.com", false),
            ("ventes@solarmora.com", "case@crm.example", false),
            ("SRS0=H=TT=o.example=u@srs.solarmora.com", "case@crm.example", false),
            ("", "case@crm.example", false),
        ] {
            let sender = ReversePath::parse(sender).unwrap();
            let path = ours().reverse_path(&sender, &mailbox(target), NOW, is_ours);
            assert_eq!(path.is_some(), rewritten, "{sender} to {target}");
        }
    }

    #[test]
    fn a_return_goes_on_only_to_who_is_known_to_have_written() {
        let sender = mailbox("client@example.org");
        let named = ReturnPath { leads: Leads::To(sender.clone()), days: 0..=0 };
        let stored = ReturnPath { leads: Leads::Stored(PathId("ID".to_owned())), days: 0..=0 };
        let original = |sender: Option<&Mailbox>, proof| Original { sender: sender.cloned(), proof };
        let waits = |why| Return::Quarantine { to: sender.clone(), why };
        for (proof, want) in [
            (Proof::Proven, Return::Relay(sender.clone())),
            (Proof::Unproven, waits(UNPROVEN)),
            (Proof::Withheld, waits(UNKNOWN)),
        ] {
            assert_eq!(named.judge(Some(&original(None, proof))), want);
            assert_eq!(stored.judge(Some(&original(Some(&sender), proof))), want);
            assert_eq!(stored.judge(Some(&original(None, proof))), Return::Lost { why: FORGOTTEN });
        }
        assert_eq!(named.judge(None), waits(UNKNOWN));
        assert_eq!(stored.judge(None), Return::Lost { why: FORGOTTEN });
    }

    proptest! {
        #[test]
        fn what_is_rewritten_is_restored(local in "[a-z0-9=+.\"\\\\ éSR-]{1,30}", host in "[a-z]{1,8}\\.[a-z]{2,4}", age in 0i64..=21) {
            let Ok(sender) = Mailbox::from_parts(&local, &Domain::parse(&host).unwrap()) else { return Ok(()) };
            let Rewritten { path, author } = ours().rewrite(&sender, NOW);
            let leads = ours().read(&path, later(age)).unwrap().leads;
            prop_assert_eq!(leads, author.id.map_or(Leads::To(sender), Leads::Stored));
        }

        #[test]
        fn a_changed_letter_breaks_the_hash(at in 0usize..36, letter in "[a-z0-9=+.-]") {
            let address = ours().rewrite(&mailbox("client@example.org"), NOW).path;
            let mut local = address.plain_local();
            prop_assume!(at < local.len() && !local[at..=at].eq_ignore_ascii_case(&letter));
            local.replace_range(at..=at, &letter);
            let Ok(changed) = Mailbox::from_parts(&local, address.domain()) else { return Ok(()) };
            // The separator behind the tag is nobody's secret.
            prop_assert!(at == 4 || ours().read(&changed, NOW).is_err());
        }

        #[test]
        fn nothing_makes_it_panic(local in "\\PC{1,60}") {
            if let Ok(address) = Mailbox::from_parts(&local, ours().domain()) {
                let _ = restored(&ours(), &address, NOW);
                let _ = ours().rewrite(&address, NOW);
            }
        }
    }
}
