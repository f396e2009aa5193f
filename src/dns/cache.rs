//! Answers that are kept: records as long as their TTL says (within bounds), "there is nothing" for a minute, and no
//! answer at all for seconds, so that a dead name server costs one wait and not one for each message.
//!
//! Two generations stand in for an eviction order: what is asked for lives in the young one; when that is full, it
//! becomes the old one and the former old one goes. So every step is constant in time and the size is bounded in
//! octets. Two messages that ask the same at the same time both ask: merging them is not worth its locks.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::{Dns, DnsError, Found, Pending, Question, Records};

/// A cache before another [`Dns`].
pub struct Cache<D> {
    dns: D,
    kept: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<Question, Entry>,
    /// What the young generation takes, estimated.
    young_octets: usize,
    old: HashMap<Question, Entry>,
}

#[derive(Clone)]
struct Entry {
    answer: Result<Found, DnsError>,
    until: tokio::time::Instant,
}

impl<D: Dns> Cache<D> {
    #[must_use]
    pub fn new(dns: D) -> Cache<D> {
        Cache { dns, kept: Mutex::default() }
    }

    fn kept(&self, question: &Question) -> Option<Result<Found, DnsError>> {
        let now = tokio::time::Instant::now();
        let mut kept = self.kept.lock().expect("nobody panics while holding the cache");
        if let Some(entry) = kept.young.get(question) {
            return (now < entry.until).then(|| entry.answer.clone());
        }
        let entry = kept.old.remove(question).filter(|entry| now < entry.until)?;
        kept.keep(question, entry.clone());
        Some(entry.answer)
    }

    fn keep(&self, question: &Question, answer: &Result<Found, DnsError>) {
        let life = match answer {
            Ok(found) => found.ttl.clamp(TTL_MIN, TTL_MAX),
            Err(DnsError::NotFound | DnsError::NoRecords) => NOTHING_KEPT,
            Err(DnsError::Temporary) => FAILURE_KEPT,
            // It says something about the one who asked, not about the name.
            Err(DnsError::OverBudget) => return,
        };
        let entry = Entry { answer: answer.clone(), until: tokio::time::Instant::now() + life };
        self.kept.lock().expect("nobody panics while holding the cache").keep(question, entry);
    }
}

impl Generations {
    fn keep(&mut self, question: &Question, entry: Entry) {
        let size = size(question, &entry);
        if self.young_octets + size > GENERATION_OCTETS_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_octets = 0;
        }
        self.young_octets += size;
        if let Some(before) = self.young.insert(question.clone(), entry) {
            self.young_octets = self.young_octets.saturating_sub(self::size(question, &before));
        }
    }
}

fn size(question: &Question, entry: &Entry) -> usize {
    let name = match question {
        Question::Txt(name) | Question::Mx(name) | Question::A(name) | Question::Aaaa(name) => name.len(),
        Question::Ptr(_) => 0,
    };
    let records = match entry.answer.as_ref().map(|found| &found.records) {
        Ok(Records::Txt(all)) => all.iter().map(|one| one.len() + ENTRY_OCTETS / 4).sum(),
        Ok(Records::Mx(all)) => all.iter().map(|one| one.exchange.len() + ENTRY_OCTETS / 4).sum(),
        Ok(Records::Ptr(all)) => all.iter().map(|one| one.len() + ENTRY_OCTETS / 4).sum(),
        Ok(Records::A(all)) => all.len() * 4,
        Ok(Records::Aaaa(all)) => all.len() * 16,
        Err(_) => 0,
    };
    name + records + ENTRY_OCTETS
}

impl<D: Dns> Dns for Cache<D> {
    fn ask<'a>(&'a self, question: &'a Question) -> Pending<'a> {
        Box::pin(async move {
            if let Some(answer) = self.kept(question) {
                return answer;
            }
            let answer = self.dns.ask(question).await;
            self.keep(question, &answer);
            answer
        })
    }
}

/// A TTL of 0 is honoured by nobody who has a thousand messages a second to check.
const TTL_MIN: Duration = Duration::from_secs(5);
/// A key that is withdrawn in haste should not live on for days.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Shorter than RFC 2308 allows: somebody who has just published a record is trying it out now.
const NOTHING_KEPT: Duration = Duration::from_secs(60);
/// RFC 2308 §7 allows five minutes; the wait of one look-up is what we want to save.
const FAILURE_KEPT: Duration = Duration::from_secs(10);
/// Some 20,000 answers of the usual size in each of the two generations.
const GENERATION_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// What an entry takes beside its texts.
const ENTRY_OCTETS: usize = 200;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dns::zone::Zone;

    async fn asked(cache: &Cache<Arc<Zone>>, zone: &Zone, question: &Question) -> usize {
        let before = zone.asked();
        // What it answers is not the point here.
        let _ = cache.ask(question).await;
        zone.asked() - before
    }

    #[tokio::test(start_paused = true)]
    async fn every_kind_of_answer_has_its_life() {
        let zone = Arc::new(Zone::parse("there.example A 192.0.2.1\nfails.example SERVFAIL"));
        let cache = Cache::new(Arc::clone(&zone));
        for (name, life) in [
            ("there.example", Duration::from_secs(300)),
            ("nothing.example", NOTHING_KEPT),
            ("fails.example", FAILURE_KEPT),
        ] {
            let question = Question::A(name.into());
            assert_eq!(asked(&cache, &zone, &question).await, 1, "{name}");
            tokio::time::advance(life - Duration::from_millis(1)).await;
            assert_eq!(asked(&cache, &zone, &question).await, 0, "{name}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(asked(&cache, &zone, &question).await, 1, "{name}");
        }
    }

    /// hostile.md, DNS: TTL 0 is not asked for each message, and TTL 2³¹ not believed for decades.
    #[tokio::test(start_paused = true)]
    async fn dns_lives_without_end_or_none_are_bounded() {
        let zone = Arc::new(Zone::parse("there.example A 192.0.2.1"));
        let question = Question::A("there.example".into());
        for (seconds, life) in [(0, TTL_MIN), (1 << 31, TTL_MAX), (u64::from(u32::MAX), TTL_MAX)] {
            let cache = Cache::new(Arc::clone(&zone));
            let found = zone.ask(&question).await.unwrap();
            cache.keep(&question, &Ok(Found { ttl: Duration::from_secs(seconds), ..found }));
            tokio::time::advance(life - Duration::from_millis(1)).await;
            assert_eq!(asked(&cache, &zone, &question).await, 0, "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(asked(&cache, &zone, &question).await, 1, "{seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_size_is_bounded_and_what_is_in_use_stays() {
        let zone = Arc::new(Zone::parse("there.example A 192.0.2.1"));
        let cache = Cache::new(Arc::clone(&zone));
        let used = Question::A("there.example".into());
        cache.ask(&used).await.unwrap();
        for n in 0..200_000 {
            let question = Question::Txt(format!("{n}.other.example"));
            cache.keep(&question, &Err(DnsError::NotFound));
            if n % 1000 == 0 {
                cache.ask(&used).await.unwrap();
            }
        }
        assert_eq!(zone.asked(), 1);
        let kept = cache.kept.lock().unwrap();
        let entries = kept.young.len() + kept.old.len();
        assert!(kept.young_octets <= GENERATION_OCTETS_MAX);
        assert!(entries <= 2 * GENERATION_OCTETS_MAX / ENTRY_OCTETS, "{entries}");
    }
}
