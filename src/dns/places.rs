//! How many questions may be under way at once: altogether, and about one domain.
//!
//! Each question that is under way holds a socket, and one to a dead name server holds it for seconds. The limit on all
//! of them bounds the descriptors; the limit on those about one domain sees to it that the dead servers of one sender
//! keep nobody else's questions waiting. Whoever waits for a place does so within the wait for his answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Question;

pub(super) struct Places {
    all: Arc<Semaphore>,
    domains: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A place among all and one among those of a domain; both are free again when it is dropped.
pub(super) struct Place {
    #[expect(dead_code, reason = "kept for its Drop")]
    of_domain: (Arc<Semaphore>, Option<OwnedSemaphorePermit>),
    #[expect(dead_code, reason = "kept for its Drop")]
    of_all: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new() -> Places {
        Places { all: Arc::new(Semaphore::new(ALL_MAX)), domains: Mutex::default() }
    }

    /// Waits for a place.
    pub(super) async fn take(&self, question: &Question) -> Place {
        let domain = self.domain(question);
        // First of the domain: whoever waits for that must not hold a place that others could use. Neither is ever closed.
        let of_domain = Arc::clone(&domain).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Place { of_domain: (domain, of_domain), of_all }
    }

    fn domain(&self, question: &Question) -> Arc<Semaphore> {
        let name = domain(question);
        let mut domains = self.domains.lock().expect("nobody panics while holding the places");
        if let Some(known) = domains.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        // Those that nobody asks about any more go when there are more of them than there can be places.
        if domains.len() >= DOMAINS_KEPT_MAX {
            domains.retain(|_, places| places.strong_count() > 0);
        }
        let places = Arc::new(Semaphore::new(DOMAIN_MAX));
        domains.insert(name, Arc::downgrade(&places));
        places
    }
}

/// What belongs to one owner, roughly: the last two labels, or three where the second is as short as in `co.uk`.
/// Addresses by their first half.
fn domain(question: &Question) -> String {
    let name = match question {
        Question::Txt(name) | Question::Mx(name) | Question::A(name) | Question::Aaaa(name) => name,
        Question::Ptr(std::net::IpAddr::V4(v4)) => return format!("{:x}", v4.to_bits() >> 16),
        Question::Ptr(std::net::IpAddr::V6(v6)) => return format!("{:x}", v6.to_bits() >> 96),
    };
    let second = name.rsplit('.').nth(1).unwrap_or_default();
    let labels = if second.len() <= 3 { 3 } else { 2 };
    let start = name.rmatch_indices('.').nth(labels - 1).map_or(0, |(dot, _)| dot + 1);
    name[start..].to_owned()
}

/// Up to two sockets each, one for the question and one for its repetition. Behind a resolver that works no question
/// takes long enough to meet this.
const ALL_MAX: usize = 1024;
/// More than a burst of mail from one provider asks before the first answers are in the cache.
const DOMAIN_MAX: usize = 64;
const DOMAINS_KEPT_MAX: usize = 8 * ALL_MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn txt(name: &str) -> Question {
        Question::Txt(name.into())
    }

    async fn is_full(places: &Places, question: &Question) -> bool {
        tokio::time::timeout(Duration::from_secs(1), places.take(question)).await.is_err()
    }

    #[test]
    fn whose_questions_are_counted_together() {
        for (name, want) in [
            ("a.b.example.org", "example.org"),
            ("example.org", "example.org"),
            ("s1._domainkey.mail.example.co.uk", "example.co.uk"),
            ("example.co.uk", "example.co.uk"),
            ("_dmarc.org", "_dmarc.org"),
            ("org", "org"),
        ] {
            assert_eq!(domain(&txt(name)), want, "{name}");
        }
        let of = |ip: &str| domain(&Question::Ptr(ip.parse().unwrap()));
        assert_eq!(of("192.0.2.1"), of("192.0.200.1"));
        assert_ne!(of("192.0.2.1"), of("192.1.2.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8:1::1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_domain_has_its_places_and_no_more_and_takes_none_of_the_others() {
        let places = Places::new();
        let mut held = Vec::new();
        for n in 0..DOMAIN_MAX {
            held.push(places.take(&txt(&format!("n{n}.stuck.example"))).await);
        }
        assert!(is_full(&places, &txt("more.stuck.example")).await);
        assert!(!is_full(&places, &txt("other.example")).await);
        held.pop();
        assert!(!is_full(&places, &txt("more.stuck.example")).await);
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_have_their_places_and_no_more() {
        let places = Places::new();
        let mut held = Vec::new();
        for n in 0..ALL_MAX {
            held.push(places.take(&txt(&format!("stuck{n}.example"))).await);
        }
        assert!(is_full(&places, &txt("more.example")).await);
        held.clear();
        assert!(!is_full(&places, &txt("more.example")).await);
    }

    #[tokio::test]
    async fn domains_that_nobody_asks_about_are_forgotten() {
        let places = Places::new();
        for n in 0..3 * DOMAINS_KEPT_MAX {
            drop(places.take(&txt(&format!("once{n}.example"))).await);
        }
        assert!(places.domains.lock().unwrap().len() <= DOMAINS_KEPT_MAX);
    }
}
