//! Routes that look up the hosts of each target's domain.

use super::*;

const ZONE: &str = "\
two.example MX 20 second.example
two.example MX 10 first.example
first.example A 9.9.9.1
second.example A 9.9.9.2
well.example A 9.9.9.3
dead.example MX 10 gone.example
gone.example A 9.9.9.4
null.example MX 0 .
inner.example MX 10 db.inner.example
db.inner.example A 10.0.0.5
loop.example MX 10 mx.example
greeting.example MX 10 Other-Name.example.
address.example MX 10 lb.address.example
lb.address.example A 9.9.9.25
own-name.example MX 10 lb.own-name.example
lb.own-name.example A 9.9.9.26
mx.example A 9.9.9.26
silent.example SERVFAIL MX
";

/// It answers every RCPT with a 4xx that is not about the mailbox.
pub(super) fn failing_for_an_hour(at: Duration) -> Way {
    if at < HOUR { Way::Rcpt("451 4.7.1 our own trouble") } else { Way::Well }
}

pub(super) fn world(moods: &[(&'static str, Mood)]) -> World {
    world_with(moods, mx_route("default", 4))
}

fn world_with(moods: &[(&'static str, Mood)], route: Route) -> World {
    let route = Route { helo: Some("other-name.example".to_owned()), ..route };
    World::of(vec![route], moods.iter().copied().collect(), ZONE, 5 * DAY)
}

impl World {
    fn leg_to(&self, message: i64, domain: &str) -> OwnedLeg {
        OwnedLeg { target: Mailbox::parse(&format!("cases@{domain}")).unwrap(), ..self.leg(message, "default") }
    }

    pub(super) fn accept_to(&self, message: i64, domain: &str) {
        self.accept_leg(self.leg_to(message, domain));
    }

    fn hosts_of(&self, message: i64) -> Vec<&'static str> {
        self.crm.taken.lock().unwrap().get(&message).cloned().unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn the_best_host_that_answers_takes_the_mail() {
    let refuses: Mood = |_| Way::Mail("550 5.7.1 we do not talk to you");
    let cases: [(Mood, &str); 3] = [(well, "first.example"), (dead, "second.example"), (refuses, "second.example")];
    for (first, want) in cases {
        let world = world(&[("first.example", first), ("second.example", well)]);
        world.accept_to(1, "two.example");
        sleep(MINUTE / 2).await;
        assert_eq!(world.hosts_of(1), [want]);
        assert_eq!(world.state(1), (State::Delivered, Reason::Sent));
        assert_eq!(world.store.look(1, |row| row.attempts.len()), 1, "the next host is no further attempt");
        world.outbound.shutdown(MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_domain_does_not_delay_another_on_its_route() {
    let world = world(&[("gone.example", dead), ("well.example", well)]);
    for message in 1..=240 {
        world.accept_to(message, if message % 2 == 0 { "well.example" } else { "dead.example" });
        sleep(MINUTE / 2).await;
        assert!(world.handover.reserve("default").is_some(), "the route is handed mail throughout");
    }
    for message in 1..=240 {
        let (attempts, received) = world.store.look(message, |row| (row.attempts.clone(), row.leg.received));
        if message % 2 == 0 {
            assert!(attempts[0].started.since(received) < Duration::from_secs(1), "{message}");
            assert_eq!(world.hosts_of(message), ["well.example"]);
        } else {
            assert_eq!(world.state(message), (State::Queued, Reason::Connect));
        }
    }
    // Two hours with 120 legs on their schedules: one dial for all that are due, not one for each.
    let dials = world.crm.dials.lock().unwrap()["gone.example"].len();
    assert!(dials <= 240, "{dials}");
    world.outbound.shutdown(MINUTE).await;
    assert_eq!(world.store.owned(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_domains_backlog_does_not_delay_another() {
    let world = world(&[("gone.example", dead), ("well.example", well)]);
    for message in 1..=2_000 {
        world.store.add(world.leg_to(message, "dead.example"), START);
    }
    world.store.add(world.leg_to(2_001, "well.example"), START.after(Duration::from_millis(1)));
    world.handover.wake("default");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.state(2_001), (State::Delivered, Reason::Sent));
    world.outbound.shutdown(MINUTE).await;
    assert_eq!(world.store.owned(), 0);
}

#[tokio::test(start_paused = true)]
async fn more_legs_than_have_a_place_come_through_once() {
    let world = world(&[("well.example", well)]);
    for message in 1..=3_000 {
        world.store.add(world.leg_to(message, "well.example"), START);
    }
    for message in 3_001..=3_200 {
        world.accept_to(message, "well.example");
    }
    // Whoever moves is waited for: nothing goes back to the store for later.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.store.states("default"), BTreeMap::from([(State::Delivered, 3_200)]));
    assert!((1..=3_200).all(|message| world.crm.taken(message) == 1));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_domain_without_a_host_for_us_is_held_and_says_why() {
    let world = world(&[]);
    let cases = [
        ("null.example", Reason::UnknownTarget, "null MX"),
        ("nowhere.example", Reason::UnknownTarget, "does not exist"),
        ("inner.example", Reason::NoHosts, "private-networks"),
        ("[127.0.0.1]", Reason::NoHosts, "private-networks"),
        ("loop.example", Reason::Loop, "ourselves"),
        ("greeting.example", Reason::Loop, "ourselves"),
        ("address.example", Reason::Loop, "ourselves"),
        ("own-name.example", Reason::Loop, "ourselves"),
    ];
    for (message, (domain, ..)) in (1..).zip(cases) {
        world.accept_to(message, domain);
    }
    sleep(MINUTE).await;
    for (message, (domain, reason, why)) in (1..).zip(cases) {
        assert_eq!(world.state(message), (State::Held, reason), "{domain}");
        world.store.look(message, |row| {
            assert!(row.detail.contains(why), "{domain}: {}", row.detail);
            assert!(row.attempts.len() == 1 && row.due.unwrap().since(START) >= HOUR);
        });
    }
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_private_host_is_dialled_where_the_route_says_so() {
    let route = Route { private_networks: true, ..mx_route("default", 4) };
    let world = world_with(&[("db.inner.example", well)], route);
    world.accept_to(1, "inner.example");
    sleep(MINUTE).await;
    assert_eq!(world.hosts_of(1), ["db.inner.example"]);
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_domain_of_which_dns_says_nothing_is_tried_again() {
    let world = world(&[]);
    world.accept_to(1, "silent.example");
    sleep(10 * MINUTE).await;
    assert_eq!(world.state(1), (State::Queued, Reason::Connect));
    world.store.look(1, |row| {
        assert!(row.attempts.len() >= 2, "{:?}", row.attempts);
        assert!(
            row.detail.contains("DNS gave no answer") && row.attempts[0].host == "silent.example",
            "{}",
            row.detail
        );
    });
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_the_wait_of_a_domain() {
    let mood: Mood = |at| if at < 3 * HOUR { Way::Dead } else { Way::Well };
    let world = world(&[("gone.example", mood)]);
    for message in 1..=360 {
        world.accept_to(message, "dead.example");
        sleep(MINUTE / 2).await;
    }
    assert_eq!(world.store.states("default"), BTreeMap::from([(State::Queued, 360)]));
    // From here on it is well; whatever waits is made due, and the domain is in its back-off.
    let rows = || world.store.rows.lock().unwrap();
    rows().values_mut().filter(|row| !row.owned && row.due.is_some()).for_each(|row| row.due = Some(START));
    world.handover.probe("default");
    sleep(MINUTE).await;
    assert_eq!(world.store.states("default"), BTreeMap::from([(State::Delivered, 360)]));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_domain_is_given_back_to_an_operator() {
    let world = world_with(&[("well.example", |_| Way::HangAtDot)], mx_route("default", 1));
    for message in 1..=10 {
        world.accept_to(message, "well.example");
        tokio::task::yield_now().await;
    }
    sleep(MINUTE).await;
    assert_eq!(world.store.owned(), 10);
    let recalled = world.handover.recall(["default"]).await;
    assert_eq!(world.store.owned(), 1, "only the leg that is under way");
    drop(recalled);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.store.owned(), 10, "the lane goes on");
    world.outbound.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_literal_is_dialled_by_its_address() {
    let world = world(&[("9.9.9.9", well)]);
    world.accept_to(1, "[9.9.9.9]");
    sleep(MINUTE).await;
    assert_eq!(world.hosts_of(1), ["9.9.9.9"]);
    world.outbound.shutdown(MINUTE).await;
}
