//! What the systems behind targets take: a catalogue of intake systems, and what of it holds for one target. Pure.
//!
//! A [`Profile`] says what kind of system a target is. `auto` tells it by the target's domain, so what holds
//! ([`Terms`]) is a function of the route's keys and of that domain. Each value knows where it comes from: a vendor
//! documents it, we chose it with caution because no figure was found, or the administrator wrote it into the route.
//!
//! Left out: what is done about the values. That is the conductors' (`inbound::terms`, `outbound::pace`).

use std::fmt;
use std::time::Duration;

use crate::address::Domain;

/// A kind of system that takes mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    Salesforce,
    Zendesk,
    Hubspot,
    Jsm,
    Freshdesk,
    Helpscout,
    Front,
    Intercom,
    Kayako,
    Zammad,
    Osticket,
    Rt,
    /// A mailbox that somebody polls: Issuetrak, Thulium, Gmail.
    Mailbox,
    Generic,
    /// Mailboxes of people behind us: the recipient is unchanged, and the host decides.
    Mailhost,
}

impl Profile {
    pub const ALL: [Profile; 15] = [
        Profile::Salesforce,
        Profile::Zendesk,
        Profile::Hubspot,
        Profile::Jsm,
        Profile::Freshdesk,
        Profile::Helpscout,
        Profile::Front,
        Profile::Intercom,
        Profile::Kayako,
        Profile::Zammad,
        Profile::Osticket,
        Profile::Rt,
        Profile::Mailbox,
        Profile::Generic,
        Profile::Mailhost,
    ];

    /// The word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Salesforce => "salesforce",
            Profile::Zendesk => "zendesk",
            Profile::Hubspot => "hubspot",
            Profile::Jsm => "jsm",
            Profile::Freshdesk => "freshdesk",
            Profile::Helpscout => "helpscout",
            Profile::Front => "front",
            Profile::Intercom => "intercom",
            Profile::Kayako => "kayako",
            Profile::Zammad => "zammad",
            Profile::Osticket => "osticket",
            Profile::Rt => "rt",
            Profile::Mailbox => "mailbox",
            Profile::Generic => "generic",
            Profile::Mailhost => "mailhost",
        }
    }

    /// What `auto` makes of a target in this domain.
    #[must_use]
    pub fn of(domain: &Domain) -> Profile {
        Profile::ALL.into_iter().find(|profile| profile.row().has(domain)).unwrap_or(Profile::Generic)
    }

    fn row(self) -> &'static Row {
        &CATALOGUE[self as usize]
    }

    /// Two aliases that lead to one target make one case: the alias is no part of what tells duplicates apart.
    #[must_use]
    pub fn forces_dedupe(self) -> bool {
        self == Profile::Salesforce
    }

    /// Mailboxes of people: what is done for the sake of a CRM's cases is left out.
    #[must_use]
    pub fn is_mailhost(self) -> bool {
        self == Profile::Mailhost
    }

    /// The system refuses what SPF does not pass for: `[srs]` is needed.
    #[must_use]
    pub fn needs_srs(self) -> bool {
        self == Profile::Jsm
    }

    /// Mail that is all but spam does harm there: it is judged as spam from the tag band on.
    #[must_use]
    pub fn is_strict_on_spam(self) -> bool {
        self == Profile::Helpscout
    }

    /// From names the alias itself: a mail that the system wrote, which would make a case of its own answer.
    #[must_use]
    pub fn holds_mail_from_the_alias(self) -> bool {
        self == Profile::Hubspot
    }

    /// Header fields of which one, present, says that the system wrote the mail itself; in lower case. Such a mail is
    /// discarded.
    #[must_use]
    pub fn own_answers(self) -> &'static [&'static str] {
        self.row().own_answers
    }

    /// Characters that To with Cc, or Subject, may have at the most.
    #[must_use]
    pub fn field_chars_max(self) -> Option<usize> {
        self.row().field_chars_max
    }

    /// Addresses in Cc of which the system takes no more.
    #[must_use]
    pub fn cc_max(self) -> Option<usize> {
        self.row().cc_max
    }

    /// The domains that the vendor signs his own mail with, such as the one that verifies a forwarding address.
    #[must_use]
    pub fn vendors(self) -> &'static [&'static str] {
        self.row().vendors
    }

    /// What an administrator should know besides.
    #[must_use]
    pub fn notes(self) -> &'static [&'static str] {
        self.row().notes
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a value comes from, and of when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// The vendor documents it, or the system's source says so.
    Documented(&'static str),
    /// No figure was found, and this one is ours.
    Conservative(&'static str),
    /// The route says so.
    User,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Basis::Documented(date) => write!(f, "documented, {date}"),
            Basis::Conservative(date) => write!(f, "conservative, {date}"),
            Basis::User => f.write_str("user"),
        }
    }
}

/// A value, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value<T> {
    pub value: T,
    pub basis: Basis,
}

impl<T> Value<T> {
    fn or(self, written: Option<T>) -> Value<T> {
        written.map_or(self, |value| Value { value, basis: Basis::User })
    }
}

/// So many in so long a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// Never 0.
    pub count: u32,
    /// Never zero.
    pub window: Duration,
}

/// As it is written: `600/h`, `10/60s`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window.as_secs() {
            1 => write!(f, "{}/s", self.count),
            60 => write!(f, "{}/m", self.count),
            3_600 => write!(f, "{}/h", self.count),
            86_400 => write!(f, "{}/d", self.count),
            seconds if seconds % 3_600 == 0 => write!(f, "{}/{}h", self.count, seconds / 3_600),
            seconds if seconds % 60 == 0 => write!(f, "{}/{}m", self.count, seconds / 60),
            seconds => write!(f, "{}/{seconds}s", self.count),
        }
    }
}

/// A rate for each of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pace {
    pub rate: Rate,
    pub per: Per,
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per {}", self.rate, self.per.as_str())
    }
}

/// Which mails are counted together. Always those to one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Per {
    /// The same From, Subject and body.
    Message,
    /// The same address in From.
    Sender,
    Target,
}

impl Per {
    pub const ALL: [Per; 3] = [Per::Message, Per::Sender, Per::Target];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Per::Message => "message",
            Per::Sender => "sender",
            Per::Target => "target",
        }
    }
}

/// What the system does with mail that a machine wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Automatic {
    /// It makes a case of it, as of any.
    Taken,
    /// It puts it aside, where nobody looks.
    Suspended,
    /// It throws it away.
    Dropped,
}

impl Automatic {
    pub const ALL: [Automatic; 3] = [Automatic::Taken, Automatic::Suspended, Automatic::Dropped];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Automatic::Taken => "taken",
            Automatic::Suspended => "suspended",
            Automatic::Dropped => "dropped",
        }
    }
}

/// What becomes of mail whose DMARC fails at the next hop for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AtRisk {
    /// It goes there and is counted.
    Relay,
    Hold,
    Quarantine,
    /// It goes to the fallback target, or is quarantined where there is none.
    Fallback,
}

impl AtRisk {
    pub const ALL: [AtRisk; 4] = [AtRisk::Relay, AtRisk::Hold, AtRisk::Quarantine, AtRisk::Fallback];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AtRisk::Relay => "relay",
            AtRisk::Hold => "hold",
            AtRisk::Quarantine => "quarantine",
            AtRisk::Fallback => "fallback",
        }
    }
}

/// What a route says of the systems that it leads to. `None`: nothing; an inner `None`: `off`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `None`: `auto`.
    pub profile: Option<Profile>,
    pub message_size: Option<u64>,
    pub header_size: Option<u64>,
    pub pace: Option<Option<Pace>>,
    pub pace_alert: Option<Option<Pace>>,
    pub ceiling: Option<Rate>,
    pub automatic: Option<Automatic>,
    pub at_risk: Option<AtRisk>,
    pub dedupe: Option<Option<Duration>>,
}

/// What holds for one target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Terms {
    pub profile: Profile,
    pub chosen: Chosen,
    /// Octets of a whole message at the most; `None`: its host says so itself.
    pub message_size: Value<Option<u64>>,
    /// Octets of the header section at the most.
    pub header_size: Value<Option<u64>>,
    /// Above it legs are deferred.
    pub pace: Value<Option<Pace>>,
    /// Above it somebody is told, and nothing else happens.
    pub pace_alert: Value<Option<Pace>>,
    pub automatic: Value<Automatic>,
    pub at_risk: Value<AtRisk>,
    /// For how long the same message is not sent again to the same target.
    pub dedupe: Value<Option<Duration>>,
    /// Above it legs are held. Only a route has one.
    pub ceiling: Option<Rate>,
}

/// Who chose the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chosen {
    ByDomain,
    ByRoute,
}

impl Wishes {
    /// What holds for targets in `domain` that are reached through `hosts`.
    #[must_use]
    pub fn terms<'h>(&self, domain: &Domain, mut hosts: impl Iterator<Item = &'h str>) -> Terms {
        let (profile, chosen) = match self.profile {
            Some(profile) => (profile, Chosen::ByRoute),
            None => (Profile::of(domain), Chosen::ByDomain),
        };
        let row = profile.row();
        // A polled mailbox may be anybody's; the figure is Google's.
        let no_google = profile == Profile::Mailbox && !row.has(domain) && !hosts.any(is_googles);
        let pace = if no_google { conservative(None) } else { row.pace };
        Terms {
            profile,
            chosen,
            message_size: row.message_size.or(self.message_size.map(Some)),
            header_size: row.header_size.or(self.header_size.map(Some)),
            pace: pace.or(self.pace),
            pace_alert: row.pace_alert.or(self.pace_alert),
            automatic: row.automatic.or(self.automatic),
            at_risk: row.at_risk.or(self.at_risk),
            dedupe: row.dedupe.or(self.dedupe),
            ceiling: self.ceiling,
        }
    }
}

impl Terms {
    /// Each value by its key in the route, as it would be written there, and where it comes from.
    #[must_use]
    pub fn listed(&self) -> Vec<(&'static str, String, String)> {
        let octets = |octets: Option<u64>| octets.map_or_else(off, |octets| format!("{octets}B"));
        let pace = |pace: Option<Pace>| pace.map_or_else(off, |pace| pace.to_string());
        let hours = |time: Option<Duration>| time.map_or_else(off, shown);
        let mut listed = vec![
            ("message-size", octets(self.message_size.value), self.message_size.basis),
            ("header-size", octets(self.header_size.value), self.header_size.basis),
            ("pace", pace(self.pace.value), self.pace.basis),
            ("pace-alert", pace(self.pace_alert.value), self.pace_alert.basis),
            ("automatic", self.automatic.value.as_str().to_owned(), self.automatic.basis),
            ("dmarc-at-risk", self.at_risk.value.as_str().to_owned(), self.at_risk.basis),
            ("dedupe", hours(self.dedupe.value), self.dedupe.basis),
        ];
        listed.extend(self.ceiling.map(|rate| ("ceiling", rate.to_string(), Basis::User)));
        listed.into_iter().map(|(key, value, basis)| (key, value, basis.to_string())).collect()
    }
}

fn off() -> String {
    "off".to_owned()
}

fn shown(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

fn is_googles(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    [".google.com", ".googlemail.com", ".gmail.com"].iter().any(|end| host.ends_with(end))
}

/// A profile as it is known.
struct Row {
    /// `*.` in front: everything below it, and not itself.
    domains: &'static [&'static str],
    message_size: Value<Option<u64>>,
    header_size: Value<Option<u64>>,
    pace: Value<Option<Pace>>,
    pace_alert: Value<Option<Pace>>,
    automatic: Value<Automatic>,
    at_risk: Value<AtRisk>,
    dedupe: Value<Option<Duration>>,
    own_answers: &'static [&'static str],
    field_chars_max: Option<usize>,
    cc_max: Option<usize>,
    vendors: &'static [&'static str],
    notes: &'static [&'static str],
}

impl Row {
    fn has(&self, domain: &Domain) -> bool {
        let domain = domain.as_str().to_ascii_lowercase();
        self.domains.iter().any(|pattern| match pattern.strip_prefix('*') {
            Some(end) => domain.ends_with(end),
            None => domain == *pattern,
        })
    }
}

/// When the catalogue was gone through last. A value that is looked up anew gets a date of its own.
const SEEN: &str = "2026-11";

const fn documented<T>(value: T) -> Value<T> {
    Value { value, basis: Basis::Documented(SEEN) }
}

const fn conservative<T>(value: T) -> Value<T> {
    Value { value, basis: Basis::Conservative(SEEN) }
}

const fn pace(count: u32, seconds: u64, per: Per) -> Option<Pace> {
    Some(Pace { rate: Rate { count, window: Duration::from_secs(seconds) }, per })
}

/// What nobody says anything else about.
const USUAL: Row = Row {
    domains: &[],
    // As Exchange Online and Gmail send at the most.
    message_size: conservative(Some(25_000_000)),
    header_size: conservative(Some(64_000)),
    pace: documented(None),
    pace_alert: documented(None),
    automatic: documented(Automatic::Taken),
    at_risk: documented(AtRisk::Relay),
    // A second mail is better than a lost one.
    dedupe: conservative(None),
    own_answers: &[],
    field_chars_max: None,
    cc_max: None,
    vendors: &[],
    notes: &[],
};

const MIB: u64 = 1024 * 1024;

/// In the order of [`Profile::ALL`].
static CATALOGUE: [Row; 15] = [
    // salesforce
    Row {
        domains: &["*.case.salesforce.com"],
        message_size: documented(Some(35_000_000)),
        // Above 32,000 characters it bounces.
        header_size: documented(Some(30_000)),
        // Above 15 a minute it makes no cases any more.
        pace: documented(pace(10, 60, Per::Message)),
        dedupe: documented(Some(Duration::from_secs(60 * 60))),
        own_answers: &["x-sfdc-autoresponse"],
        field_chars_max: Some(4_000),
        vendors: &["salesforce.com"],
        notes: &[
            "the alias must stand in To, Cc or Bcc of the customer's message, and be a routing address there",
            "two aliases on one target would make two cases: the second copy is a duplicate, whatever its alias",
        ],
        ..USUAL
    },
    // zendesk
    Row {
        domains: &["*.zendesk.com"],
        pace_alert: conservative(pace(15, 60 * 60, Per::Sender)),
        automatic: documented(Automatic::Suspended),
        cc_max: Some(48),
        vendors: &["zendesk.com"],
        notes: &["Reply-To wins over From there"],
        ..USUAL
    },
    // hubspot
    Row {
        domains: &["*.hubspot-inbox.com", "*.hs-inbox.com"],
        vendors: &["hubspot.com", "hubspotemail.net"],
        notes: &["mail whose From is the alias itself is held"],
        ..USUAL
    },
    // jsm
    Row {
        domains: &["*.atlassian.net"],
        message_size: documented(Some(25_000_000)),
        automatic: documented(Automatic::Dropped),
        // DMARC is enforced there.
        at_risk: documented(AtRisk::Fallback),
        vendors: &["atlassian.com", "atlassian.net"],
        notes: &["it wants `[srs]`", "an issue key in the subject makes a comment of a mail"],
        ..USUAL
    },
    // freshdesk
    Row {
        domains: &["*.freshdesk.com"],
        message_size: documented(Some(20_000_000)),
        // Above 50 it deletes the user.
        pace: documented(pace(40, 30 * 60, Per::Sender)),
        vendors: &["freshdesk.com", "freshworks.com"],
        ..USUAL
    },
    // helpscout
    Row {
        domains: &["*.helpscoutapp.com", "*.helpscout.net"],
        message_size: conservative(Some(20_000_000)),
        vendors: &["helpscout.com", "helpscout.net"],
        notes: &["spam poisons its sender there: from the tag band on mail is treated as in the quarantine band"],
        ..USUAL
    },
    // front
    Row {
        domains: &["in.frontapp.com"],
        message_size: conservative(Some(20_000_000)),
        vendors: &["front.com", "frontapp.com"],
        ..USUAL
    },
    // intercom
    Row {
        domains: &["incoming.intercom.io", "*.intercom-mail.com"],
        message_size: conservative(Some(20_000_000)),
        vendors: &["intercom.io", "intercom.com"],
        notes: &["From must not be rewritten, and is not"],
        ..USUAL
    },
    // kayako
    Row {
        domains: &["*.kayako.com"],
        message_size: documented(Some(10 * MIB)),
        automatic: documented(Automatic::Suspended),
        vendors: &["kayako.com"],
        ..USUAL
    },
    // zammad
    Row { message_size: documented(Some(10 * MIB)), ..USUAL },
    // osticket
    Row { message_size: conservative(Some(8 * MIB)), notes: &["it needs Delivered-To, which every copy has"], ..USUAL },
    // rt
    Row { message_size: documented(Some(10 * MIB)), notes: &["it threads by the tag in the subject alone"], ..USUAL },
    // mailbox
    Row { domains: &["gmail.com", "googlemail.com"], pace: documented(pace(50, 60, Per::Target)), ..USUAL },
    // generic
    USUAL,
    // mailhost
    Row { message_size: documented(None), header_size: documented(None), dedupe: documented(None), ..USUAL },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn auto(text: &str) -> Terms {
        Wishes::default().terms(&domain(text), std::iter::empty())
    }

    #[test]
    fn auto_tells_the_profile_by_the_targets_domain() {
        for (name, profile) in [
            ("key.00d1.eu12.case.salesforce.com", Profile::Salesforce),
            ("KEY.org.case.SalesForce.com", Profile::Salesforce),
            ("case.salesforce.com", Profile::Generic),
            ("solarmora.zendesk.com", Profile::Zendesk),
            ("evilzendesk.com", Profile::Generic),
            ("zendesk.com.evil.example", Profile::Generic),
            ("42.hubspot-inbox.com", Profile::Hubspot),
            ("42.hs-inbox.com", Profile::Hubspot),
            ("solarmora.atlassian.net", Profile::Jsm),
            ("solarmora.freshdesk.com", Profile::Freshdesk),
            ("x.helpscoutapp.com", Profile::Helpscout),
            ("x.helpscout.net", Profile::Helpscout),
            ("in.frontapp.com", Profile::Front),
            ("other.frontapp.com", Profile::Generic),
            ("incoming.intercom.io", Profile::Intercom),
            ("x.intercom-mail.com", Profile::Intercom),
            ("solarmora.kayako.com", Profile::Kayako),
            ("gmail.com", Profile::Mailbox),
            ("solarmora.com", Profile::Generic),
        ] {
            assert_eq!(Profile::of(&domain(name)), profile, "{name}");
        }
    }

    #[test]
    fn the_table_of_profiles() {
        let at = |profile| {
            let terms =
                Wishes { profile: Some(profile), ..Wishes::default() }.terms(&domain("x.example"), [].into_iter());
            let pace = terms.pace.value.or(terms.pace_alert.value).map_or_else(off, |pace| pace.to_string());
            let star = if matches!(terms.message_size.basis, Basis::Conservative(_)) { "*" } else { "" };
            let size = terms.message_size.value.map_or_else(off, |size| format!("{size}{star}"));
            let header = terms.header_size.value.map_or_else(off, |size| size.to_string());
            format!("{size} {header} {pace} {} {}", terms.automatic.value.as_str(), terms.at_risk.value.as_str())
        };
        for (profile, row) in [
            (Profile::Salesforce, "35000000 30000 10/m per message taken relay"),
            (Profile::Zendesk, "25000000* 64000 15/h per sender suspended relay"),
            (Profile::Hubspot, "25000000* 64000 off taken relay"),
            (Profile::Jsm, "25000000 64000 off dropped fallback"),
            (Profile::Freshdesk, "20000000 64000 40/30m per sender taken relay"),
            (Profile::Helpscout, "20000000* 64000 off taken relay"),
            (Profile::Front, "20000000* 64000 off taken relay"),
            (Profile::Intercom, "20000000* 64000 off taken relay"),
            (Profile::Kayako, "10485760 64000 off suspended relay"),
            (Profile::Zammad, "10485760 64000 off taken relay"),
            (Profile::Osticket, "8388608* 64000 off taken relay"),
            (Profile::Rt, "10485760 64000 off taken relay"),
            (Profile::Mailbox, "25000000* 64000 off taken relay"),
            (Profile::Generic, "25000000* 64000 off taken relay"),
            (Profile::Mailhost, "off off off taken relay"),
        ] {
            assert_eq!(at(profile), row, "{profile}");
        }
    }

    #[test]
    fn dedupe_is_forced_for_salesforce_and_none_for_a_mail_host() {
        let terms = auto("k.case.salesforce.com");
        assert_eq!(terms.dedupe.value, Some(Duration::from_secs(3600)));
        assert!(terms.profile.forces_dedupe());
        let host = Wishes { profile: Some(Profile::Mailhost), ..Wishes::default() };
        let terms = host.terms(&domain("solarmora.com"), ["smtp.google.com"].into_iter());
        assert_eq!((terms.dedupe.value, terms.pace.value), (None, None));
        assert!(!terms.profile.forces_dedupe());
    }

    #[test]
    fn gmail_is_paced_and_other_polled_mailboxes_are_not() {
        assert_eq!(auto("gmail.com").pace.value.unwrap().to_string(), "50/m per target");
        let mailbox = Wishes { profile: Some(Profile::Mailbox), ..Wishes::default() };
        let paced =
            |hosts: &[&str]| mailbox.terms(&domain("cases.example"), hosts.iter().copied()).pace.value.is_some();
        assert!(paced(&["aspmx.l.google.com"]));
        assert!(!paced(&["mail.cases.example"]) && !paced(&[]));
    }

    #[test]
    fn what_the_route_says_wins_and_says_so() {
        let wishes = Wishes {
            message_size: Some(1_000),
            pace: Some(None),
            dedupe: Some(None),
            ceiling: Some(Rate { count: 600, window: Duration::from_secs(3600) }),
            ..Wishes::default()
        };
        let terms = wishes.terms(&domain("k.case.salesforce.com"), [].into_iter());
        assert_eq!(terms.profile, Profile::Salesforce);
        let listed = terms.listed();
        let of = |key: &str| {
            let (_, value, basis) = listed.iter().find(|(name, _, _)| *name == key).unwrap();
            format!("{value} ({basis})")
        };
        assert_eq!(of("message-size"), "1000B (user)");
        assert_eq!(of("pace"), "off (user)");
        assert_eq!(of("dedupe"), "off (user)");
        assert_eq!(of("ceiling"), "600/h (user)");
        assert_eq!(of("header-size"), "30000B (documented, 2026-11)");
        assert_eq!(of("dmarc-at-risk"), "relay (documented, 2026-11)");
        assert_eq!(auto("x.example").listed()[0].2, "conservative, 2026-11");
    }
}
