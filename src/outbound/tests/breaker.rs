//! A destination that answers and does not do its work: it is tried by one leg at a time, and its neighbours notice nothing.

use super::mx::{failing_for_an_hour, world};
use super::*;
use crate::relay::breaker::ATTEMPTS_MIN;
use crate::relay::fallback::{Diversion, Fallback};

const MESSAGES: i64 = 200;

#[tokio::test(start_paused = true)]
async fn a_failing_route_parks_its_legs_and_slows_no_other() {
    let routes: [(&str, &[(&'static str, Mood)]); 2] =
        [("crm", &[("crm", failing_for_an_hour)]), ("archive", &[("archive", well)])];
    let world = World::with(&routes, 4, DAY);
    for message in 1..=MESSAGES {
        world.store.add(world.leg(message, "crm"), START);
    }
    world.handover.wake("crm");
    sleep(30 * MINUTE).await;
    let attempts = || (1..=MESSAGES).map(|m| world.store.look(m, |row| row.attempts.len())).collect::<Vec<_>>();
    let made: usize = attempts().iter().sum();
    assert!((ATTEMPTS_MIN + 25..ATTEMPTS_MIN + 40).contains(&made), "{made}: one a minute");
    assert!(attempts().iter().filter(|n| **n == 0).count() > 130, "what is parked burns no attempt");
    assert!(world.store.owned() <= 1, "what is parked belongs to the store");
    assert!(world.handover.reserve("crm").is_none() && world.handover.reserve("archive").is_some());
    let (route, domain, trouble) = world.handover.troubles().remove(0);
    assert_eq!((&*route, domain), ("crm", None));
    assert!(trouble.why.starts_with("most attempts fail: 451 4.7.1"), "{}", trouble.why);
    // What was handed over while the lane closed finds its way into the store, too.
    for message in 1_001..=1_020 {
        world.accept(message, "crm");
        world.accept(message + 1_000, "archive");
        sleep(MINUTE / 2).await;
        assert_eq!(world.state(message + 1_000), (State::Delivered, Reason::Sent));
        world.store.look(message + 1_000, |row| assert!(row.attempts[0].started.since(row.leg.received) < MINUTE / 60));
    }
    // It works again: one leg shows it, and all others follow within the minute.
    sleep(HOUR - world.clock.now().since(START)).await;
    sleep(MINUTE + MINUTE / 60).await;
    let (untried, left) = (1..=MESSAGES).map(|m| world.store.look(m, |row| (row.attempts.len(), row.state))).fold(
        (0, 0),
        |(tried, left), (attempts, state)| {
            let first = state == State::Delivered && attempts == 1;
            (tried + usize::from(first), left + usize::from(attempts == 0))
        },
    );
    assert!(untried > 110 && left == 0, "{untried} were delivered at their first attempt, {left} wait");
    assert!(world.handover.reserve("crm").is_some() && world.handover.troubles().is_empty());
    sleep(2 * HOUR).await;
    assert_eq!(world.store.states("crm"), BTreeMap::from([(State::Delivered, MESSAGES as usize + 20)]));
    assert!((1..=MESSAGES).all(|message| world.crm.taken(message) == 1));
    world.outbound.shutdown(MINUTE).await;
    assert_eq!(world.store.owned(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_opens_no_breaker() {
    let full: Mood = |_| Way::Rcpt("452 4.2.2 over quota");
    let world = World::with(&[("crm", &[("crm", full)])], 4, DAY);
    for message in 1..=MESSAGES {
        world.store.add(world.leg(message, "crm"), START);
    }
    world.handover.wake("crm");
    sleep(MINUTE / 2).await;
    assert!((1..=MESSAGES).all(|message| world.store.look(message, |row| row.attempts.len()) == 1));
    assert!(world.handover.reserve("crm").is_some());
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_domain_does_not_delay_another_on_its_route() {
    let world = world(&[("first.example", failing_for_an_hour), ("second.example", dead), ("well.example", well)]);
    for message in 1..=MESSAGES {
        world.accept_to(message, "two.example");
    }
    sleep(5 * MINUTE).await;
    let (route, domain, _) = world.handover.troubles().remove(0);
    assert_eq!((&*route, domain.as_deref()), ("default", Some("two.example")));
    let made: usize = (1..=MESSAGES).map(|m| world.store.look(m, |row| row.attempts.len())).sum();
    assert!(made < ATTEMPTS_MIN + 15, "{made} attempts");
    for message in 1_001..=1_020 {
        world.accept_to(message, "well.example");
        sleep(MINUTE / 4).await;
        assert_eq!(world.state(message), (State::Delivered, Reason::Sent));
        world.store.look(message, |row| assert!(row.attempts[0].started.since(row.leg.received) < MINUTE / 60));
    }
    sleep(3 * HOUR).await;
    assert_eq!(world.store.states("default"), BTreeMap::from([(State::Delivered, MESSAGES as usize + 20)]));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_failing_or_dead_route_parks_goes_on_to_its_fallback_target_in_time() {
    for mood in [failing_for_an_hour as Mood, dead] {
        let route = |name: &'static str| Route {
            hosts: vec![Host { name: name.to_owned(), port: 25, addresses: Vec::new() }],
            ..mx_route(name, 4)
        };
        let to = Diversion {
            target: Mailbox::parse("sales@other.example").unwrap(),
            target_name: None,
            route: "other".to_owned(),
            after: 10 * MINUTE,
            on_auth: false,
        };
        let crm = Route { fallback: Fallback { route: None, to: Some(to) }, ..route("crm") };
        let moods = BTreeMap::from([("crm", mood), ("other", well)]);
        let world = World::of(vec![crm, route("other")], moods, "", DAY);
        for message in 1..=MESSAGES {
            world.store.add(world.leg(message, "crm"), START);
        }
        world.handover.wake("crm");
        sleep(9 * MINUTE).await;
        assert_eq!(world.store.states("other"), BTreeMap::new(), "it is not time yet");
        sleep(4 * MINUTE).await;
        let gone = world.store.states("other").get(&State::Delivered).copied().unwrap_or_default();
        assert!(gone > 100, "{gone} went on");
        sleep(3 * HOUR).await;
        assert_eq!(world.store.states("other"), BTreeMap::from([(State::Delivered, MESSAGES as usize)]));
        assert!((1..=MESSAGES).all(|message| world.crm.taken(message) == 1));
        world.outbound.shutdown(MINUTE).await;
        assert_eq!(world.store.owned(), 0);
    }
}
