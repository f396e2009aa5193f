//! DNS block lists (RFC 5782): which of the configured ones name a client's address.
//!
//! A list that has died does not say so: its domain is sold, and then it lists the whole world, or nothing answers and every
//! message waits. So each list is probed: its test address 127.0.0.2 must be listed and 127.0.0.1 must not (§5). One that fails
//! is ignored, which is said once, and tried again later. Only a sound list is asked about a client, and what it does not answer, or
//! answers with anything but 127.0.0.0/8, is no listing.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use crate::dns::{Budget, Deadline, Dns, DnsError};
use crate::events;
use crate::network;

/// The configured lists, and what is known of their health.
#[derive(Debug)]
pub struct Blocklists {
    lists: Vec<List>,
}

#[derive(Debug)]
struct List {
    zone: String,
    health: Mutex<Health>,
}

/// What the last probe found, and until when that is believed.
#[derive(Clone, Copy, Debug)]
struct Health {
    state: Option<Probe>,
    until: Option<tokio::time::Instant>,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Sound,
    /// It does not list its test address: nobody maintains it any more.
    Dead,
    /// It lists an address that no list may list: it lists everything.
    Wildcard,
    /// It answers, and what it says is no listing: we may not ask, or the domain has another owner.
    Refusing,
    NoAnswer,
}

impl Probe {
    /// As log and documentation have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Probe::Sound => "sound",
            Probe::Dead => "it does not list its test address",
            Probe::Wildcard => "it lists everything",
            Probe::Refusing => "it answers with what is no listing: perhaps it refuses this resolver",
            Probe::NoAnswer => "it gives no answer",
        }
    }

    fn believed(self) -> Duration {
        match self {
            Probe::Sound => SOUND_FOR,
            Probe::Dead | Probe::Wildcard | Probe::Refusing => IGNORED_FOR,
            Probe::NoAnswer => SILENT_FOR,
        }
    }
}

impl Blocklists {
    /// The zones of the lists; those behind [`LISTS_MAX`] are left out.
    #[must_use]
    pub fn new(zones: &[String]) -> Blocklists {
        let list = |zone: &String| List { zone: zone.clone(), health: Mutex::new(Health { state: None, until: None }) };
        Blocklists { lists: zones.iter().take(LISTS_MAX).map(list).collect() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// How many lists name `ip`. Ends in [`LOOK_UP_MAX`]; asks at most three questions a list. An address that is not public stands
    /// in no list, and is not asked for.
    pub async fn count(&self, dns: &dyn Dns, ip: IpAddr) -> usize {
        let ip = ip.to_canonical();
        if !network::is_public(ip) {
            return 0;
        }
        let deadline = Deadline::after(dns, LOOK_UP_MAX);
        let budget = Budget::new(&deadline, QUESTIONS_MAX);
        let reversed = reversed(ip);
        let asked: Vec<Pin<Box<dyn Future<Output = bool> + Send + '_>>> = self
            .lists
            .iter()
            .map(|list| Box::pin(list.names(&budget, &reversed)) as Pin<Box<dyn Future<Output = bool> + Send + '_>>)
            .collect();
        count(asked).await
    }
}

/// Waits for all at the same time; how many are true.
async fn count(mut asked: Vec<Pin<Box<dyn Future<Output = bool> + Send + '_>>>) -> usize {
    let mut listed = 0;
    poll_fn(move |context| {
        asked.retain_mut(|one| match one.as_mut().poll(context) {
            Poll::Ready(is_listed) => {
                listed += usize::from(is_listed);
                false
            }
            Poll::Pending => true,
        });
        if asked.is_empty() { Poll::Ready(listed) } else { Poll::Pending }
    })
    .await
}

impl List {
    async fn names(&self, dns: &dyn Dns, reversed: &str) -> bool {
        if !self.is_sound(dns).await {
            return false;
        }
        match dns.a(&format!("{reversed}.{}", self.zone)).await {
            Ok(addresses) => addresses.iter().any(is_listing),
            Err(DnsError::NotFound | DnsError::NoRecords | DnsError::Temporary | DnsError::OverBudget) => false,
        }
    }

    /// Whether the list may be believed now. Says it where that has changed.
    async fn is_sound(&self, dns: &dyn Dns) -> bool {
        let known = *self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(state), Some(until)) = (known.state, known.until)
            && tokio::time::Instant::now() < until
        {
            return state == Probe::Sound;
        }
        // Whoever comes meanwhile probes as well: the cache before DNS makes one of it.
        let found = self.probe(dns).await;
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let before = health.state.replace(found);
        health.until = Some(tokio::time::Instant::now() + found.believed());
        drop(health);
        match (before, found) {
            (before, found) if before == Some(found) => {}
            (_, Probe::Sound) => events::blocklist_used(&self.zone),
            (_, Probe::Dead | Probe::Wildcard | Probe::Refusing | Probe::NoAnswer) => {
                events::blocklist_ignored(&self.zone, found.as_str());
            }
        }
        found == Probe::Sound
    }

    async fn probe(&self, dns: &dyn Dns) -> Probe {
        let (test, never) = (format!("2.0.0.127.{}", self.zone), format!("1.0.0.127.{}", self.zone));
        let (test, never) = tokio::join!(dns.a(&test), dns.a(&never));
        match (test, never) {
            (Err(error), _) | (_, Err(error)) if !error.is_void() => Probe::NoAnswer,
            (Ok(addresses), _) if !addresses.iter().any(is_listing) => Probe::Refusing,
            (_, Ok(_)) => Probe::Wildcard,
            (Err(_), Err(_)) => Probe::Dead,
            (Ok(_), Err(_)) => Probe::Sound,
        }
    }
}

/// RFC 5782 §2.1: a listing is an address in 127.0.0.0/8. Lists say with 127.255.255.0/24 that they refuse to answer.
fn is_listing(address: &Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    first == 127 && !(second == 255 && third == 255)
}

/// RFC 5782 §2.1 and §2.4: octets, or nibbles, from the last to the first.
fn reversed(ip: IpAddr) -> String {
    let parts: Vec<String> = match ip {
        IpAddr::V4(v4) => v4.octets().iter().rev().map(ToString::to_string).collect(),
        IpAddr::V6(v6) => v6
            .octets()
            .iter()
            .rev()
            .flat_map(|octet| [octet & 15, octet >> 4])
            .map(|nibble| format!("{nibble:x}"))
            .collect(),
    };
    parts.join(".")
}

/// Each costs a look-up a message; who uses more than three or four has copied a list of lists.
pub const LISTS_MAX: usize = 10;
const QUESTIONS_MAX: u32 = 3 * LISTS_MAX as u32;
/// The sender waits meanwhile. A list that is slower than this says nothing.
const LOOK_UP_MAX: Duration = Duration::from_secs(5);
/// A list that turns bad is noticed within minutes.
const SOUND_FOR: Duration = Duration::from_secs(5 * 60);
/// Dead lists seldom rise.
const IGNORED_FOR: Duration = Duration::from_secs(30 * 60);
/// A name server that is away comes back soon.
const SILENT_FOR: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dns::zone::Zone;

    const SOUND: &str = "2.0.0.127.bl.example A 127.0.0.2\n7.100.51.198.bl.example A 127.0.0.4\n";

    async fn listed(zone: &str, lists: &[&str], ip: &str) -> usize {
        let zones: Vec<String> = lists.iter().map(|zone| (*zone).to_owned()).collect();
        Blocklists::new(&zones).count(&Zone::parse(zone), ip.parse().unwrap()).await
    }

    // Documentation networks are not public, so the tests name addresses that are.
    fn of(zone: &str) -> String {
        zone.replace("7.100.51.198", "7.7.7.9")
    }

    #[tokio::test]
    async fn a_sound_list_is_believed() {
        assert_eq!(listed(&of(SOUND), &["bl.example"], "9.7.7.7").await, 1);
        assert_eq!(listed(&of(SOUND), &["bl.example"], "9.7.7.8").await, 0);
        assert_eq!(listed(&of(SOUND), &["bl.example"], "::ffff:9.7.7.7").await, 1);
        let six = "2.0.0.127.bl.example A 127.0.0.2\n1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.6.8.4.1.0.a.2.bl.example A 127.0.0.2";
        assert_eq!(listed(six, &["bl.example"], "2a01:4868::1").await, 1);
        let two = format!("{}{}", of(SOUND), of(SOUND).replace("bl.example", "other.example"));
        assert_eq!(listed(&two, &["bl.example", "other.example", "gone.example"], "9.7.7.7").await, 2);
    }

    #[tokio::test]
    async fn a_list_that_fails_its_probe_condemns_nobody() {
        let client = "7.7.7.9.bl.example A 127.0.0.2\n";
        for (zone, found) in [
            ("2.0.0.127.bl.example A 127.0.0.2\n", Probe::Sound),
            // Nobody maintains it.
            ("www.bl.example A 192.0.2.1\n", Probe::Dead),
            // It lists everything.
            ("2.0.0.127.bl.example A 127.0.0.2\n1.0.0.127.bl.example A 127.0.0.2\n", Probe::Wildcard),
            // The domain was sold, and every name leads to a page with advertisements.
            ("2.0.0.127.bl.example A 192.0.2.1\n1.0.0.127.bl.example A 192.0.2.1\n", Probe::Refusing),
            // Asked through a public resolver.
            ("2.0.0.127.bl.example A 127.255.255.254\n1.0.0.127.bl.example A 127.255.255.254\n", Probe::Refusing),
            ("2.0.0.127.bl.example SERVFAIL\n", Probe::NoAnswer),
            ("2.0.0.127.bl.example A 127.0.0.2\n1.0.0.127.bl.example SERVFAIL\n", Probe::NoAnswer),
        ] {
            let zone = Zone::parse(&format!("{zone}{client}"));
            let lists = Blocklists::new(&["bl.example".to_owned()]);
            assert_eq!(lists.lists[0].probe(&zone).await, found);
            assert_eq!(lists.count(&zone, "9.7.7.7".parse().unwrap()).await, usize::from(found == Probe::Sound));
        }
    }

    #[tokio::test]
    async fn what_is_no_listing_lists_nobody() {
        for answer in ["A 127.255.255.254", "A 192.0.2.1", "SERVFAIL", "TXT listed"] {
            let zone = format!("2.0.0.127.bl.example A 127.0.0.2\n7.7.7.9.bl.example {answer}\n");
            assert_eq!(listed(&zone, &["bl.example"], "9.7.7.7").await, 0, "{answer}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_not_public_is_not_asked_for() {
        let zone = Zone::parse("2.0.0.127.bl.example A 127.0.0.2\n1.0.0.127.bl.example A 127.0.0.2\n");
        for ip in ["127.0.0.1", "10.0.0.1", "192.168.1.1", "::1", "fe80::1"] {
            assert_eq!(Blocklists::new(&["bl.example".to_owned()]).count(&zone, ip.parse().unwrap()).await, 0);
        }
        assert_eq!(zone.asked(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_list_costs_one_wait_and_not_one_for_each_message() {
        let zone = Zone::parse("2.0.0.127.bl.example SILENT\n7.7.7.9.bl.example A 127.0.0.2\n");
        let lists = Blocklists::new(&["bl.example".to_owned()]);
        let before = tokio::time::Instant::now();
        for _ in 0..10 {
            assert_eq!(lists.count(&zone, "9.7.7.7".parse().unwrap()).await, 0);
        }
        assert_eq!(before.elapsed(), LOOK_UP_MAX);
        tokio::time::advance(SILENT_FOR).await;
        assert_eq!(lists.count(&zone, "9.7.7.7".parse().unwrap()).await, 0);
        assert_eq!(before.elapsed(), LOOK_UP_MAX * 2 + SILENT_FOR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_turns_bad_is_noticed() {
        let lists = Blocklists::new(&["bl.example".to_owned()]);
        let client = "9.7.7.7".parse().unwrap();
        assert_eq!(lists.count(&Zone::parse(&of(SOUND)), client).await, 1);
        let wildcard = Zone::parse(&format!("{}1.0.0.127.bl.example A 127.0.0.2\n", of(SOUND)));
        assert_eq!(lists.count(&wildcard, client).await, 1, "not yet");
        tokio::time::advance(SOUND_FOR).await;
        assert_eq!(lists.count(&wildcard, client).await, 0);
        tokio::time::advance(IGNORED_FOR).await;
        assert_eq!(lists.count(&Zone::parse(&of(SOUND)), client).await, 1);
    }

    #[tokio::test]
    async fn as_many_lists_as_are_allowed_are_asked_and_not_one_more() {
        let zones: Vec<String> = (0..=LISTS_MAX).map(|n| format!("bl{n}.example")).collect();
        let text: String = zones.iter().map(|zone| of(SOUND).replace("bl.example", zone)).collect();
        let zone = Arc::new(Zone::parse(&text));
        assert_eq!(Blocklists::new(&zones).count(&zone, "9.7.7.7".parse().unwrap()).await, LISTS_MAX);
        assert_eq!(zone.asked(), 3 * LISTS_MAX);
    }
}
