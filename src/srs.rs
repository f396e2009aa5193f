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
//! Left out: rewritten addresses over 64 octets, which need a store for an opaque id ([`TooLong`]).

use aws_lc_rs::hmac;

use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;

/// The domain of our return paths, and the secrets.
#[derive(Clone, Debug)]
pub struct Srs {
    domain: Domain,
    /// The first signs, all verify.
    // Invariant: never empty.
    keys: Vec<hmac::Key>,
}

/// The rewritten address would have a local part over 64 octets (RFC 5321 §4.5.3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten sender would have a local part over 64 octets")]
pub struct TooLong;

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

/// What is known about the message that a return path was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Original {
    /// Its sender authenticated for the domain of the return path.
    Authenticated,
    Unauthenticated,
    /// The ledger does not know it (any more).
    Unknown,
}

/// What becomes of mail to an address in our SRS domain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Return {
    /// On to the sender of the original message.
    Relay(Mailbox),
    /// A true hash, but whoever is named there may never have written to us: a return to him would be backscatter.
    Quarantine(Mailbox),
    /// 550 5.1.1.
    Refuse(Invalid),
}

impl Srs {
    /// `None` without a secret, or with an empty one: that would sign for everybody.
    #[must_use]
    pub fn new(domain: Domain, secrets: &[Vec<u8>]) -> Option<Srs> {
        let sound = !secrets.is_empty() && secrets.iter().all(|secret| !secret.is_empty());
        let key = |secret: &Vec<u8>| hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
        sound.then(|| Srs { domain, keys: secrets.iter().map(key).collect() })
    }

    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The reverse-path that the next hop is told for a message from `sender` to `target`: rewritten where the mail
    /// leaves our domains and the sender is none of ours. The null sender stays what it is.
    ///
    /// `is_ours` tells our domains; the SRS domain is ours in any case.
    pub fn reverse_path(
        &self,
        sender: &ReversePath,
        target: &Mailbox,
        now: Timestamp,
        is_ours: impl Fn(&Domain) -> bool,
    ) -> Result<ReversePath, TooLong> {
        let ours = |domain: &Domain| *domain == self.domain || is_ours(domain);
        match sender {
            ReversePath::Mailbox(mailbox) if !ours(mailbox.domain()) && !ours(target.domain()) => {
                self.rewrite(mailbox, now).map(ReversePath::Mailbox)
            }
            ReversePath::Mailbox(_) | ReversePath::Null => Ok(sender.clone()),
        }
    }

    /// What becomes of mail to `recipient`, an address in [`Srs::domain`].
    pub fn returned(&self, recipient: &Mailbox, now: Timestamp, original: Original) -> Return {
        match (self.restore(recipient, now), original) {
            (Ok(sender), Original::Authenticated) => Return::Relay(sender),
            (Ok(sender), Original::Unauthenticated | Original::Unknown) => Return::Quarantine(sender),
            (Err(invalid), _) => Return::Refuse(invalid),
        }
    }

    /// The address in our domain that leads back to `sender`.
    pub fn rewrite(&self, sender: &Mailbox, now: Timestamp) -> Result<Mailbox, TooLong> {
        let local = sender.plain_local();
        let host = sender.domain().as_str();
        let rewritten = match Tagged::read(&local) {
            // Whoever rewrote it first is asked to restore it; his hash is his business.
            Some(Tagged::Srs0 { rest }) => self.srs1(host, rest),
            Some(Tagged::Srs1 { host, rest, .. }) => self.srs1(host, rest),
            None => {
                let day = day_letters(day(now));
                let hash = hash(&self.keys[0], &[&day, host, &local]);
                format!("SRS0={hash}={day}={host}={local}")
            }
        };
        Mailbox::from_parts(&rewritten, &self.domain).map_err(|_| TooLong)
    }

    fn srs1(&self, host: &str, rest: &str) -> String {
        let hash = hash(&self.keys[0], &[host, rest]);
        format!("SRS1={hash}={host}={rest}")
    }

    /// The sender that `recipient` was made of.
    pub fn restore(&self, recipient: &Mailbox, now: Timestamp) -> Result<Mailbox, Invalid> {
        let local = recipient.plain_local();
        match Tagged::read(&local).ok_or(Invalid::Form)? {
            Tagged::Srs1 { hash, host, rest } => {
                self.verify(hash, &[host, rest])?;
                // The separator that the first forwarder chose stands in front of what he wrote.
                address(&format!("SRS0{rest}"), host)
            }
            Tagged::Srs0 { rest } => {
                let mut parts = rest[1..].splitn(4, '=');
                let mut part = || parts.next().ok_or(Invalid::Form);
                let (hash, then, host, local) = (part()?, part()?, part()?, part()?);
                self.verify(hash, &[then, host, local])?;
                let then = read_day(then).ok_or(Invalid::Form)?;
                // The day counts modulo 1024: one that seems to lie ahead is nearly three years old, not new.
                let age = (day(now) + DAYS - then) % DAYS;
                if age > AGE_DAYS_MAX {
                    return Err(Invalid::Age);
                }
                address(local, host)
            }
        }
    }

    fn verify(&self, given: &str, parts: &[&str]) -> Result<(), Invalid> {
        let genuine = self.keys.iter().any(|key| hash(key, parts).eq_ignore_ascii_case(given));
        if genuine { Ok(()) } else { Err(Invalid::Hash) }
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

fn day(now: Timestamp) -> u64 {
    now.since(Timestamp(0)).as_secs() / (24 * 60 * 60) % DAYS
}

fn day_letters(day: u64) -> String {
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
const AGE_DAYS_MAX: u64 = 21;

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
            assert_eq!(ours().rewrite(&mailbox(sender), NOW).unwrap().as_str(), address);
            assert_eq!(ours().restore(&mailbox(&address), NOW).unwrap().as_str(), sender);
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
            assert_eq!(ours().rewrite(&mailbox(second), NOW).unwrap().as_str(), rewritten);
        }
        // An address literal needs quotes here; the hash is the same.
        let literal = ours().rewrite(&mailbox("u@[1.2.3.4]"), NOW).unwrap();
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
            assert_eq!(ours().restore(&mailbox(address), NOW).unwrap(), mailbox("client@example.org"), "{address}");
        }
    }

    #[test]
    fn what_is_not_ours_leads_nowhere() {
        for (local, want) in [
            ("client", Invalid::Form),
            ("SRS0", Invalid::Form),
            ("SRS0=", Invalid::Form),
            ("SRS0=GesK=JK=example.org", Invalid::Form),
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
            assert_eq!(ours().restore(&address, NOW), Err(want), "{local}");
        }
    }

    #[test]
    fn a_shifted_border_has_the_same_hash() {
        // Not what one would want: libsrs2 hashes the bare parts, and what it wrote must be read.
        let shifted = mailbox("SRS0=GesK=JK=example.or=gclient@srs.solarmora.com");
        assert_eq!(ours().restore(&shifted, NOW).unwrap().as_str(), "gclient@example.or");
    }

    #[test]
    fn a_return_path_lives_21_days() {
        let address = ours().rewrite(&mailbox("client@example.org"), NOW).unwrap();
        assert!(ours().restore(&address, later(21)).is_ok());
        assert_eq!(ours().restore(&address, later(22)), Err(Invalid::Age));
        assert_eq!(ours().restore(&address, later(-1)), Err(Invalid::Age));
        // The two letters have come round.
        assert!(ours().restore(&address, later(1024)).is_ok());
        // An SRS1 address has no day: the first forwarder knows the age.
        let address = ours().rewrite(&mailbox("SRS0=H=TT=o.example=u@first.example"), NOW).unwrap();
        assert!(ours().restore(&address, later(500)).is_ok());
    }

    #[test]
    fn the_day_counts_around_its_end() {
        let last = Timestamp(1023 * DAY);
        let address = ours().rewrite(&mailbox("client@example.org"), last).unwrap();
        assert!(ours().restore(&address, Timestamp(last.0 + 21 * DAY)).is_ok());
        assert_eq!(ours().restore(&address, Timestamp(last.0 + 22 * DAY)), Err(Invalid::Age));
    }

    #[test]
    fn the_first_secret_signs_and_all_verify() {
        let (old, new, both) = (srs(&["old"]), srs(&["new"]), srs(&["new", "old"]));
        let sender = mailbox("client@example.org");
        let before = old.rewrite(&sender, NOW).unwrap();
        assert_eq!(both.restore(&before, NOW).unwrap(), sender);
        assert_eq!(new.restore(&before, NOW), Err(Invalid::Hash));
        assert_eq!(both.rewrite(&sender, NOW).unwrap().as_str(), new.rewrite(&sender, NOW).unwrap().as_str());
        let domain = Domain::parse("srs.example").unwrap();
        assert!(Srs::new(domain.clone(), &[]).is_none());
        assert!(Srs::new(domain, &[b"good".to_vec(), Vec::new()]).is_none());
    }

    #[test]
    fn a_local_part_of_64_octets_fits_and_one_of_65_does_not() {
        // `SRS0=HHHH=JK=example.org=` has 25 octets.
        for (octets, fits) in [(39, true), (40, false)] {
            let sender = mailbox(&format!("{}@example.org", "x".repeat(octets)));
            assert_eq!(ours().rewrite(&sender, NOW).is_ok(), fits, "{octets}");
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
            let path = ours().reverse_path(&sender, &mailbox(target), NOW, is_ours).unwrap();
            assert_eq!(path != sender, rewritten, "{sender} to {target}");
        }
    }

    #[test]
    fn a_return_goes_on_only_to_who_is_known_to_have_written() {
        let sender = mailbox("client@example.org");
        let address = ours().rewrite(&sender, NOW).unwrap();
        let returned = |address, original| ours().returned(address, NOW, original);
        assert_eq!(returned(&address, Original::Authenticated), Return::Relay(sender.clone()));
        assert_eq!(returned(&address, Original::Unauthenticated), Return::Quarantine(sender.clone()));
        assert_eq!(returned(&address, Original::Unknown), Return::Quarantine(sender));
        let forged = mailbox("SRS0=AAAA=JK=example.org=client@srs.solarmora.com");
        assert_eq!(returned(&forged, Original::Authenticated), Return::Refuse(Invalid::Hash));
    }

    proptest! {
        #[test]
        fn what_is_rewritten_is_restored(local in "[a-z0-9=+.\"\\\\ éSR-]{1,30}", host in "[a-z]{1,8}\\.[a-z]{2,4}", age in 0i64..=21) {
            let Ok(sender) = Mailbox::from_parts(&local, &Domain::parse(&host).unwrap()) else { return Ok(()) };
            let Ok(address) = ours().rewrite(&sender, NOW) else { return Ok(()) };
            prop_assert_eq!(ours().restore(&address, later(age)).unwrap(), sender);
        }

        #[test]
        fn a_changed_letter_breaks_the_hash(at in 0usize..36, letter in "[a-z0-9=+.-]") {
            let address = ours().rewrite(&mailbox("client@example.org"), NOW).unwrap();
            let mut local = address.plain_local();
            prop_assume!(at < local.len() && !local[at..=at].eq_ignore_ascii_case(&letter));
            local.replace_range(at..=at, &letter);
            let Ok(changed) = Mailbox::from_parts(&local, address.domain()) else { return Ok(()) };
            // The separator behind the tag is nobody's secret.
            prop_assert!(at == 4 || ours().restore(&changed, NOW).is_err());
        }

        #[test]
        fn nothing_makes_it_panic(local in "\\PC{1,60}") {
            if let Ok(address) = Mailbox::from_parts(&local, ours().domain()) {
                let _ = ours().restore(&address, NOW);
                let _ = ours().rewrite(&address, NOW);
            }
        }
    }
}
