//! What is wanted no faster, or no more of: the rows of the table of profiles that speak of time.

use super::*;
use crate::relay::profile::{Rate, Wishes};

/// A world whose one route leads to a host that takes all, after its first, cautious day.
async fn world(wishes: Wishes) -> World {
    let host = Host { name: "well".to_owned(), port: 25, addresses: Vec::new() };
    let route = Route { hosts: vec![host], wishes, ..mx_route("crm", 4) };
    let world = World::of(vec![route], [("well", well as Mood)].into(), "", 5 * DAY);
    sleep(DAY).await;
    world
}

impl World {
    /// Accepts `count` messages at once, the same but for what `subject` makes of their numbers.
    fn accept_to_system(&self, first: i64, count: i64, target: &str, subject: fn(i64) -> i64) {
        for n in first..first + count {
            let body = format!("Subject: {}\r\n\r\n.dot\r\nno end", subject(n)).into_bytes();
            let target = Mailbox::parse(target).unwrap();
            self.accept_leg(OwnedLeg { target, body: StoredBody::from_bytes(body), ..self.leg(n, "crm") });
        }
    }

    /// When each attempt was made, in order.
    fn attempts(&self) -> Vec<Timestamp> {
        let rows = self.store.rows.lock().unwrap();
        let mut times: Vec<Timestamp> =
            rows.values().flat_map(|row| row.attempts.iter().map(|attempt| attempt.started)).collect();
        times.sort_unstable();
        times
    }

    fn most_within(&self, window: Duration) -> usize {
        let times = self.attempts();
        let within = |from: &Timestamp| times.iter().filter(|at| *at >= from && at.since(*from) < window).count();
        times.iter().map(within).max().unwrap_or(0)
    }

    fn delivered(&self) -> usize {
        self.store.states("crm").get(&State::Delivered).copied().unwrap_or(0)
    }
}

/// The number in the subject is what the stand-in counts by; here all are the same mail.
fn same(_: i64) -> i64 {
    1
}

fn own(n: i64) -> i64 {
    n
}

const SALESFORCE: &str = "case@key.org.eu1.case.salesforce.com";

#[tokio::test(start_paused = true)]
async fn salesforce_gets_ten_identical_mails_in_a_minute_and_others_do_not_wait() {
    let world = world(Wishes::default()).await;
    world.accept_to_system(1, 35, SALESFORCE, same);
    world.accept_to_system(101, 20, SALESFORCE, own);
    sleep(MINUTE / 2).await;
    assert_eq!(world.delivered(), 30, "ten of the one mail, and each of the others");
    let waiting = (1..=35).map(|n| world.state(n)).filter(|state| *state == (State::Queued, Reason::Rate));
    assert_eq!(waiting.count(), 25);
    sleep(4 * MINUTE).await;
    assert_eq!(world.delivered(), 55, "deferred, and none dropped");
    assert_eq!(world.attempts().len(), 55, "to wait is no attempt");
    let first = world.attempts()[0];
    let identical: Vec<Timestamp> = world.attempts().into_iter().filter(|at| at.since(first) > MINUTE / 2).collect();
    assert_eq!(identical.len(), 25);
    for from in &identical {
        assert!(identical.iter().filter(|at| *at >= from && at.since(*from) < MINUTE).count() <= 10);
    }
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn freshdesk_gets_forty_mails_of_a_sender_in_half_an_hour() {
    let world = world(Wishes::default()).await;
    world.accept_to_system(1, 100, "help@solarmora.freshdesk.com", own);
    sleep(MINUTE).await;
    assert_eq!(world.delivered(), 40);
    sleep(70 * MINUTE).await;
    assert_eq!(world.delivered(), 100);
    assert_eq!(world.most_within(30 * MINUTE), 40);
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn gmail_gets_fifty_mails_in_a_minute() {
    let world = world(Wishes::default()).await;
    world.accept_to_system(1, 130, "cases@gmail.com", own);
    sleep(MINUTE / 2).await;
    assert_eq!(world.delivered(), 50);
    sleep(3 * MINUTE).await;
    assert_eq!(world.delivered(), 130);
    assert_eq!(world.most_within(MINUTE), 50);
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn above_a_route_s_ceiling_legs_are_held_until_there_is_room() {
    let ceiling = Some(Rate { count: 5, window: HOUR });
    let world = world(Wishes { ceiling, ..Wishes::default() }).await;
    world.accept_to_system(1, 12, "help@generic.example", own);
    sleep(MINUTE).await;
    assert_eq!(world.delivered(), 5);
    assert_eq!(world.store.states("crm")[&State::Held], 7);
    let held = (1..=12).find(|n| world.state(*n).0 == State::Held).unwrap();
    assert_eq!(world.state(held).1, Reason::Rate);
    assert!(world.store.look(held, |row| row.detail.contains("ceiling of 5/h")));
    assert!(world.store.look(held, |row| row.due.is_some()), "it goes on by itself");
    sleep(2 * HOUR + 10 * MINUTE).await;
    assert_eq!(world.delivered(), 12);
    assert_eq!(world.most_within(HOUR), 5);
    world.outbound.shutdown(MINUTE).await;
}
