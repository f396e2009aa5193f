//! The conductor against a scripted CRM, a store in memory and tokio's paused time: a day passes in seconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::time::{Instant, sleep};

use super::*;
use crate::address::{Mailbox, ReversePath};
use crate::clock::TokioClock;
use crate::dns::zone::Zone;
use crate::envelope::BodyType;
use crate::envelope::{Notify, RecipientDsn};
use crate::id::MessageId;
use crate::queue::{
    Answer as StoreAnswer, Attempt, BodyWriter, Dsn, Errand, FollowUp, NewLeg, NewMessage, NoticeTo, Notices, Queued,
    Reason, Refused, Settled, Settlement, State, StoredBody,
};
use crate::relay::dial::{Connection, DialError, Dialling, Stream, greet};
use crate::relay::{Demand, Host, TlsMode};
use crate::smtp::client::{Answer, Stage, Verdict};
use crate::srs::{Original, ReturnPath};

mod breaker;
mod mx;
mod pace;

const START: Timestamp = Timestamp(1_800_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A leg in the store.
struct Row {
    leg: OwnedLeg,
    state: State,
    reason: Reason,
    detail: String,
    due: Option<Timestamp>,
    owned: bool,
    cut_off: bool,
    attempts: Vec<Attempt>,
    dsn: Option<Dsn>,
    /// The notifications that came with its settlements: `action to recipient by route`.
    told: Vec<String>,
}

#[derive(Default)]
struct MemoryStore {
    rows: Mutex<BTreeMap<LegId, Row>>,
    panic_at_settle: Mutex<u32>,
}

impl MemoryStore {
    fn add(&self, leg: OwnedLeg, due: Timestamp) {
        let row = Row {
            state: State::Queued,
            reason: Reason::Accepted,
            detail: String::new(),
            due: Some(due),
            owned: false,
            cut_off: false,
            attempts: Vec::new(),
            dsn: None,
            told: Vec::new(),
            leg,
        };
        assert!(self.rows.lock().unwrap().insert(row.leg.id, row).is_none());
    }

    fn look<T>(&self, message: i64, read: impl FnOnce(&Row) -> T) -> T {
        read(&self.rows.lock().unwrap()[&id(message)])
    }

    fn states(&self, route: &str) -> BTreeMap<State, usize> {
        let mut states = BTreeMap::new();
        for row in self.rows.lock().unwrap().values().filter(|row| row.leg.route == route) {
            *states.entry(row.state).or_default() += 1;
        }
        states
    }

    fn owned(&self) -> usize {
        self.rows.lock().unwrap().values().filter(|row| row.owned).count()
    }
}

/// What a notification says, and to whom; it must be one.
fn notification(follow_up: &FollowUp) -> String {
    let FollowUp::Message(message, legs) = follow_up else { panic!("{follow_up:?}") };
    assert_eq!(message.sender, ReversePath::Null);
    let [leg] = &legs[..] else { panic!("{legs:?}") };
    assert_eq!((&leg.sender, leg.state, &leg.notices), (&ReversePath::Null, State::Queued, &Notices::default()));
    let text = String::from_utf8(message.body.in_memory().unwrap().to_vec()).unwrap();
    assert!(!text.contains("cases"), "it names the target:\n{text}");
    assert!(text.contains("\r\nSubject: 1\r\n"), "it has not the original's header:\n{text}");
    let action = text.lines().find_map(|line| line.strip_prefix("Action: ")).unwrap();
    format!("{action} to {} by {}", leg.target, leg.route)
}

fn id(message: i64) -> LegId {
    LegId { message: MessageId(message), n: 1 }
}

impl Store for MemoryStore {
    fn write_body(&self) -> BodyWriter {
        unreachable!("the way out writes no body")
    }

    fn accepting(&self) -> bool {
        true
    }

    fn commit(&self, _: NewMessage, _: Vec<NewLeg>) -> StoreAnswer<'_, Queued> {
        unreachable!("the way out commits nothing")
    }

    fn settle(&self, settlements: Vec<Settlement>) -> StoreAnswer<'_, Vec<Settled>> {
        Box::pin(async move {
            let panics = std::mem::take(&mut *self.panic_at_settle.lock().unwrap());
            assert!(panics == 0, "the test wants a panic here");
            let mut rows = self.rows.lock().unwrap();
            let settle = |s: Settlement| {
                let row = rows.get_mut(&s.leg).unwrap();
                if !row.owned {
                    return Settled::NotOurs;
                }
                assert!(row.state.is_open(), "{} is final", s.leg);
                (row.state, row.reason, row.detail, row.due, row.owned) = (s.state, s.reason, s.detail, s.due, false);
                if let Some(attempt) = s.attempt {
                    row.leg.attempts += 1;
                    row.attempts.push(attempt);
                }
                row.dsn = s.dsn;
                for follow_up in &s.follow_ups {
                    match follow_up {
                        FollowUp::Redirect(to) => {
                            (row.leg.target, row.leg.route) = (to.target.clone(), to.route.clone());
                            row.leg.sender.clone_from(&to.sender);
                        }
                        FollowUp::Message(..) | FollowUp::Leg(_) => row.told.push(notification(follow_up)),
                    }
                }
                Settled::Done
            };
            Ok(settlements.into_iter().map(settle).collect())
        })
    }

    fn claim(&self, route: &str, now: Timestamp, limit: usize) -> StoreAnswer<'_, Vec<OwnedLeg>> {
        let mut rows = self.rows.lock().unwrap();
        let is_due = |row: &&mut Row| {
            let waits = matches!(row.state, State::Queued | State::Held);
            row.leg.route == route && waits && !row.owned && row.due.is_some_and(|due| due <= now)
        };
        let mut due: Vec<&mut Row> = rows.values_mut().filter(is_due).collect();
        due.sort_by_key(|row| row.due);
        let take = |row: &mut Row| {
            row.owned = true;
            row.leg.clone()
        };
        let legs = due.into_iter().take(limit).map(take).collect();
        Box::pin(async { Ok(legs) })
    }

    fn release(&self, legs: Vec<LegId>, due: Timestamp, how: GivenBack) -> StoreAnswer<'_, ()> {
        let mut rows = self.rows.lock().unwrap();
        for leg in legs {
            let row = rows.get_mut(&leg).unwrap();
            assert!(row.owned);
            (row.owned, row.due) = (false, Some(due));
            row.cut_off |= how != GivenBack::Unattempted;
        }
        Box::pin(async { Ok(()) })
    }

    fn next_due(&self) -> StoreAnswer<'_, Vec<(String, Timestamp)>> {
        let mut dues = BTreeMap::new();
        for row in self.rows.lock().unwrap().values().filter(|row| !row.owned) {
            if let (State::Queued | State::Held, Some(due)) = (row.state, row.due) {
                let earliest = dues.entry(row.leg.route.clone()).or_insert(due);
                *earliest = due.min(*earliest);
            }
        }
        Box::pin(async { Ok(dues.into_iter().collect()) })
    }

    fn originals(&self, _: Vec<ReturnPath>) -> StoreAnswer<'_, Vec<Option<Original>>> {
        unreachable!("the way out asks for no return path")
    }

    fn record_refused(&self, _: Refused) {}
}

/// How a host of the CRM behaves, as a function of the time since the start.
type Mood = fn(Duration) -> Way;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Well,
    Dead,
    /// This reply to RCPT.
    Rcpt(&'static str),
    /// This reply to MAIL.
    Mail(&'static str),
    /// Takes the message, then hangs up without a word.
    DropAfterDot,
    /// Takes the message, and says nothing for a day.
    HangAtDot,
    /// Serves one message well, and closes a while after it.
    DropIdle,
    /// Refuses a session while as many are open.
    Sessions(usize),
}

/// What the CRM has: for each message how many times, and which host took it.
#[derive(Default)]
struct Crm {
    moods: BTreeMap<&'static str, Mood>,
    taken: Mutex<BTreeMap<i64, Vec<&'static str>>>,
    dials: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
    commands: Mutex<Vec<String>>,
    open: Mutex<BTreeMap<&'static str, usize>>,
}

impl Crm {
    fn taken(&self, message: i64) -> usize {
        self.taken.lock().unwrap().get(&message).map_or(0, Vec::len)
    }
}

struct FakeDial {
    crm: Arc<Crm>,
    started: Instant,
}

impl Dial for FakeDial {
    fn dial<'a>(&'a self, _: &'a Route, host: &'a Host, helo: &'a str, _: Demand) -> Dialling<'a> {
        Box::pin(async move {
            let at = self.started.elapsed();
            let (&name, &mood) = self.crm.moods.get_key_value(&*host.name).unwrap();
            self.crm.dials.lock().unwrap().entry(name).or_default().push(at);
            let failed = |verdict| DialError { peer: name.to_owned(), local: None, verdict };
            let full = match mood(at) {
                Way::Dead => {
                    let answer = Answer::Connect("connection refused".to_owned());
                    return Err(failed(Verdict { stage: Stage::Connect, answer }));
                }
                Way::Sessions(most) => self.crm.open.lock().unwrap().get(name).is_some_and(|&open| open >= most),
                _ => false,
            };
            let (ours, theirs) = tokio::io::duplex(256 * 1024);
            *self.crm.open.lock().unwrap().entry(name).or_default() += 1;
            tokio::spawn(serve(Arc::clone(&self.crm), name, mood, theirs, self.started, full));
            let (stream, capabilities) = greet(ours, helo, &Timeouts::rfc5321()).await.map_err(failed)?;
            Ok(Connection::new(Stream::Other(Box::new(stream)), capabilities, name.to_owned(), None))
        })
    }
}

async fn serve(crm: Arc<Crm>, name: &'static str, mood: Mood, io: DuplexStream, started: Instant, full: bool) {
    // A client that hangs up ends the session; there is nobody to tell.
    let _ = session(&crm, name, mood, io, started, full).await;
    *crm.open.lock().unwrap().get_mut(name).unwrap() -= 1;
}

async fn session(
    crm: &Crm,
    name: &'static str,
    mood: Mood,
    io: DuplexStream,
    started: Instant,
    full: bool,
) -> std::io::Result<()> {
    let mut io = BufReader::new(io);
    if full {
        return io.write_all(b"421 4.7.0 too many sessions\r\n").await;
    }
    io.write_all(b"220 crm\r\n").await?;
    let (mut line, mut rcpt) = (String::new(), false);
    loop {
        line.clear();
        if io.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let way = mood(started.elapsed());
        let verb = line.split([' ', '\r']).next().unwrap().to_owned();
        crm.commands.lock().unwrap().push(format!("{name} {verb}"));
        let reply = match (&*verb, way) {
            ("EHLO", _) => "250-crm\r\n250-PIPELINING\r\n250 SIZE",
            ("MAIL", Way::Mail(reply)) => reply,
            ("RCPT", Way::Rcpt(reply)) => reply,
            ("RCPT", _) => {
                rcpt = true;
                "250 2.1.5 ok"
            }
            ("DATA", _) if !rcpt => "503 5.5.1 no recipients",
            ("DATA", way) => {
                io.write_all(b"354 go\r\n").await?;
                let message = read_message(&mut io).await?;
                crm.taken.lock().unwrap().entry(message).or_default().push(name);
                if way == Way::DropAfterDot {
                    return Ok(());
                }
                if way == Way::HangAtDot {
                    sleep(DAY).await;
                }
                rcpt = false;
                io.write_all(b"250 2.0.0 taken\r\n").await?;
                if way == Way::DropIdle {
                    return Ok(());
                }
                continue;
            }
            ("QUIT", _) => return io.write_all(b"221 bye\r\n").await,
            _ => "250 2.0.0 ok",
        };
        io.write_all(reply.as_bytes()).await?;
        io.write_all(b"\r\n").await?;
    }
}

/// Reads to the final dot; gives the number in the message, and checks that it is whole.
async fn read_message(io: &mut BufReader<DuplexStream>) -> std::io::Result<i64> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == ".\r\n" {
            break;
        }
        lines.push(line);
    }
    let number = lines[1].trim_end().strip_prefix("Subject: ").unwrap().parse().unwrap();
    assert_eq!(lines[0], "Delivered-To: aide@solarmora.com\r\n");
    assert_eq!(lines[2..], ["\r\n".to_owned(), "..dot\r\n".to_owned(), "no end\r\n".to_owned()]);
    Ok(number)
}

/// A world: routes whose hosts have moods, a store, a clock, the conductor.
struct World {
    store: Arc<MemoryStore>,
    crm: Arc<Crm>,
    handover: Arc<Handover>,
    clock: Arc<TokioClock>,
    outbound: Outbound,
}

impl World {
    fn new(routes: &[(&str, &[(&'static str, Mood)])]) -> World {
        World::with(routes, 4, Duration::from_secs(5 * 24 * 3600))
    }

    fn with(routes: &[(&str, &[(&'static str, Mood)])], concurrency: usize, expire: Duration) -> World {
        let moods = routes.iter().flat_map(|(_, hosts)| hosts.iter().copied()).collect();
        let host = |(name, _): &(&str, Mood)| Host { name: (*name).to_owned(), port: 25, addresses: Vec::new() };
        let route = |(name, hosts): &(&str, &[(&'static str, Mood)])| Route {
            hosts: hosts.iter().map(host).collect(),
            ..mx_route(name, concurrency)
        };
        World::of(routes.iter().map(route).collect(), moods, "", expire)
    }

    fn of(routes: Vec<Route>, moods: BTreeMap<&'static str, Mood>, zone: &str, expire: Duration) -> World {
        let crm = Arc::new(Crm { moods, ..Crm::default() });
        let store = Arc::new(MemoryStore::default());
        let clock = Arc::new(TokioClock::starting_at(START));
        let handover = Arc::new(Handover::new(routes.iter().map(|route| route.name.clone()), 8));
        let ports = Ports {
            clock: clock.clone(),
            store: store.clone(),
            chance: Arc::new(Chance::seeded(1)),
            ids: Arc::new(Ids::after(MessageId(1_000))),
            handover: handover.clone(),
        };
        let settings = Settings {
            hostname: "mx.example".to_owned(),
            retry: [1, 5, 15, 30, 60].map(|minutes| minutes * MINUTE).to_vec(),
            expire,
            timeouts: Timeouts::rfc5321(),
            addresses: vec!["9.9.9.25".parse().unwrap()],
            signer: None,
        };
        let routes = routes.into_iter().map(|route| (route.name.clone(), Arc::new(route))).collect();
        let dial = Arc::new(FakeDial { crm: Arc::clone(&crm), started: Instant::now() });
        let outbound = Outbound::start(
            ports,
            Ways { settings, routes, dial, dns: Arc::new(Zone::parse(zone)), srs: None, is_ours: Arc::new(|_| false) },
        );
        World { store, crm, handover, clock, outbound }
    }

    fn leg(&self, message: i64, route: &str) -> OwnedLeg {
        OwnedLeg {
            id: id(message),
            epoch: 1,
            alias: "aide@solarmora.com".to_owned(),
            target: Mailbox::parse("cases@crm.example").unwrap(),
            target_name: None,
            route: route.to_owned(),
            sender: ReversePath::parse("client@example.org").unwrap(),
            attempts: 0,
            received: self.clock.now(),
            prefix: b"Delivered-To: aide@solarmora.com\r\n".to_vec(),
            cuts: Vec::new(),
            errand: Errand::Deliver,
            notices: Notices::default(),
            body_type: BodyType::SevenBit,
            smtputf8: false,
            require_tls: false,
            body: StoredBody::from_bytes(format!("Subject: {message}\r\n\r\n.dot\r\nno end").into_bytes()),
            online: None,
        }
    }

    /// Accepts a message as the inbound side does: handed over in memory, or committed due.
    fn accept(&self, message: i64, route: &str) {
        self.accept_with(message, route, Notices::default());
    }

    fn accept_with(&self, message: i64, route: &str, notices: Notices) {
        self.accept_leg(OwnedLeg { notices, ..self.leg(message, route) });
    }

    fn accept_leg(&self, leg: OwnedLeg) {
        self.store.add(leg.clone(), self.clock.now());
        let route = &leg.route;
        match self.handover.reserve(route) {
            Some(slot) => {
                self.store.rows.lock().unwrap().get_mut(&leg.id).unwrap().owned = true;
                slot.fill(leg);
            }
            None => self.handover.wake(route),
        }
    }

    fn waits(&self, message: i64) -> Vec<Duration> {
        self.store
            .look(message, |row| row.attempts.windows(2).map(|pair| pair[1].started.since(pair[0].started)).collect())
    }

    fn state(&self, message: i64) -> (State, Reason) {
        self.store.look(message, |row| (row.state, row.reason))
    }
}

/// A route that looks its hosts up.
fn mx_route(name: &str, concurrency: usize) -> Route {
    Route { tls: TlsMode::Off, concurrency, ..Route::named(name) }
}

fn well(_: Duration) -> Way {
    Way::Well
}

fn dead(_: Duration) -> Way {
    Way::Dead
}

/// Seven minutes here, seven minutes away: out of step with the hourly retry.
fn flapping(at: Duration) -> Way {
    if (at.as_secs() / 420).is_multiple_of(2) { Way::Well } else { Way::Dead }
}

fn full_for_six_hours(at: Duration) -> Way {
    if at < 6 * HOUR { Way::Rcpt("452 4.2.2 over quota") } else { Way::Well }
}

/// Takes the message that comes at the start and says nothing.
fn forgetful(at: Duration) -> Way {
    if at < MINUTE / 2 { Way::DropAfterDot } else { Way::Well }
}

#[tokio::test(start_paused = true)]
async fn a_day_of_mail_with_failing_targets() {
    let routes: [(&str, &[(&'static str, Mood)]); 5] = [
        ("well", &[("well", well)]),
        ("dead", &[("dead", dead)]),
        ("flapping", &[("flapping", flapping)]),
        ("full", &[("full", full_for_six_hours)]),
        ("forgetful", &[("forgetful", forgetful)]),
    ];
    let world = World::with(&routes, 4, 12 * HOUR);
    let mut number = 0;
    for _ in 0..24 * 6 {
        for (route, _) in routes {
            number += 1;
            world.accept(number, route);
        }
        sleep(10 * MINUTE).await;
    }
    sleep(3 * HOUR).await;

    for route in ["well", "flapping", "full", "forgetful"] {
        assert_eq!(world.store.states(route), BTreeMap::from([(State::Delivered, 144)]), "{route}");
    }
    // Everything once, but for the one whose outcome was unknown.
    for message in 1..=number {
        let expected = match message {
            5 => 2,
            n if n % 5 == 2 => 0,
            _ => 1,
        };
        assert_eq!(world.crm.taken(message), expected, "message {message}");
    }
    assert!(world.store.look(5, |row| row.attempts[0].reply.contains("outcome is unknown")));

    // A neighbour's trouble costs nobody a second.
    for message in (1..=number).step_by(5) {
        world.store.look(message, |row| {
            assert_eq!(row.attempts.len(), 1);
            assert!(row.attempts[0].started.since(row.leg.received) < Duration::from_secs(1), "message {message}");
        });
    }

    // The dead host: what is older than 12 hours was given up, at a failed attempt; the younger waits on.
    let states = world.store.states("dead");
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), [State::Queued, State::Expired]);
    for message in (2..=number).step_by(5) {
        world.store.look(message, |row| {
            let age = row.attempts.last().unwrap().started.since(row.leg.received);
            match row.state {
                State::Expired => assert!((12 * HOUR..14 * HOUR).contains(&age), "{age:?}"),
                _ => assert!(age < 12 * HOUR && row.reason == Reason::Connect),
            }
        });
    }
    // Its first leg kept to the schedule: ±10 %, and at most a minute more, for the lane waits before it dials.
    let waits = world.waits(2);
    for (wait, minutes) in waits.iter().zip([1, 5, 15, 30, 60, 60, 60]) {
        let planned = minutes * MINUTE;
        assert!((planned.mul_f64(0.9)..planned.mul_f64(1.1) + 2 * MINUTE).contains(wait), "{waits:?}");
    }
    // One dial answers for all that wait with it.
    let attempts: usize =
        (2..=number).step_by(5).map(|message| world.store.look(message, |row| row.attempts.len())).sum();
    let dials = world.crm.dials.lock().unwrap()["dead"].len();
    assert!(dials < attempts, "{dials} dials, {attempts} attempts");
    world.outbound.shutdown(MINUTE).await;
    assert_eq!(world.store.owned(), 0);
}

#[tokio::test(start_paused = true)]
async fn messages_share_a_session_and_it_ends_with_quit() {
    let world = World::with(&[("crm", &[("crm", well)])], 1, DAY);
    for message in 1..=50 {
        world.store.add(world.leg(message, "crm"), START);
    }
    world.handover.wake("crm");
    sleep(MINUTE).await;
    assert_eq!(world.store.states("crm"), BTreeMap::from([(State::Delivered, 50)]));
    assert_eq!(world.crm.dials.lock().unwrap()["crm"].len(), 1);
    assert_eq!(world.crm.commands.lock().unwrap().last().unwrap(), "crm QUIT", "idle sessions are closed");
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_are_renewed_after_their_share_and_never_exceed_the_concurrency() {
    let world = World::with(&[("crm", &[("crm", well)])], 3, DAY);
    let messages = i64::from(crate::relay::pool::SESSION_MESSAGES_MAX) * 3 + 100;
    for message in 1..=messages {
        world.store.add(world.leg(message, "crm"), START);
    }
    world.handover.wake("crm");
    sleep(MINUTE).await;
    assert_eq!(world.store.states("crm").get(&State::Delivered).map(|&n| n as i64), Some(messages));
    let dials = world.crm.dials.lock().unwrap()["crm"].len();
    assert!((4..=6).contains(&dials), "{dials}");
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_peer_closed_while_idle_costs_no_attempt() {
    let world = World::with(&[("crm", &[("crm", |_| Way::DropIdle)])], 1, DAY);
    for message in 1..=20 {
        world.accept(message, "crm");
        if message % 2 == 0 {
            sleep(Duration::from_secs(1)).await;
        }
    }
    sleep(Duration::from_secs(1)).await;
    for message in 1..=20 {
        assert_eq!(world.state(message), (State::Delivered, Reason::Sent));
        assert_eq!(world.store.look(message, |row| row.attempts.len()), 1);
        assert_eq!(world.crm.taken(message), 1);
    }
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn the_next_host_is_tried_when_one_is_away_or_finds_fault_with_us() {
    for first in [dead as Mood, |_| Way::Mail("550 5.7.1 not from you"), |_| Way::Rcpt("554 5.7.1 listed by spamhaus")]
    {
        let world = World::new(&[("crm", &[("a", first), ("b", well)])]);
        world.accept(1, "crm");
        sleep(MINUTE).await;
        assert_eq!(world.state(1), (State::Delivered, Reason::Sent));
        assert_eq!(world.crm.taken.lock().unwrap()[&1], ["b"]);
        assert_eq!(world.store.look(1, |row| row.attempts.len()), 1);
        world.outbound.shutdown(MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_remotes_answer_decides_the_state() {
    let cases: [(Mood, State, Reason); 7] = [
        (|_| Way::Rcpt("550 5.1.1 no such user"), State::Held, Reason::UnknownTarget),
        (|_| Way::Rcpt("552 5.3.4 too large"), State::Quarantined, Reason::TooLarge),
        (|_| Way::Rcpt("550 5.7.26 dmarc"), State::Quarantined, Reason::RemoteAuth),
        (|_| Way::Rcpt("550 5.7.1 spam"), State::Quarantined, Reason::RemoteContent),
        (|_| Way::Rcpt("554 5.0.0 no"), State::Quarantined, Reason::Permfail),
        (|_| Way::Rcpt("450 4.0.0 later"), State::Queued, Reason::Tempfail),
        (|_| Way::Mail("550 no"), State::Queued, Reason::Route),
    ];
    for (mood, state, reason) in cases {
        let world = World::new(&[("crm", &[("crm", mood)])]);
        world.accept(1, "crm");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.state(1), (state, reason));
        assert_eq!(world.store.look(1, |row| row.due.is_some()), state != State::Quarantined);
        world.outbound.shutdown(MINUTE).await;
    }
}

/// What one message told by the time its leg ended, or for a day and a half.
async fn told(mood: Mood, to: NoticeTo, notify: Option<&str>) -> (State, Option<Dsn>, Vec<String>) {
    let world = World::with(&[("crm", &[("crm", mood)])], 1, DAY);
    let asked = RecipientDsn { notify: notify.map(|text| Notify::parse(text).unwrap()), orcpt: None };
    world.accept_with(1, "crm", Notices { to, asked, ..Notices::default() });
    sleep(36 * HOUR).await;
    let told = world.store.look(1, |row| (row.state, row.dsn, row.told.clone()));
    world.outbound.shutdown(MINUTE).await;
    told
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_is_told_to_whom_it_may_be_told_and_else_it_waits() {
    let sender = || NoticeTo::Sender(Mailbox::parse("client@example.org").unwrap());
    let admin = || NoticeTo::Admin { address: Mailbox::parse("admin@example.net").unwrap(), route: "post".to_owned() };
    let refuses: Mood = |_| Way::Rcpt("554 5.0.0 cases@crm.example: no");
    let to_sender = || vec!["failed to client@example.org by default".to_owned()];
    for (to, notify, want) in [
        (NoticeTo::Nobody, None, (State::Quarantined, None, vec![])),
        (NoticeTo::Suppressed, None, (State::Bounced, Some(Dsn::Suppressed), vec![])),
        (sender(), None, (State::Bounced, Some(Dsn::Sent), to_sender())),
        (sender(), Some("FAILURE"), (State::Bounced, Some(Dsn::Sent), to_sender())),
        (sender(), Some("NEVER"), (State::Bounced, Some(Dsn::Suppressed), vec![])),
        (admin(), None, (State::Bounced, Some(Dsn::Admin), vec!["failed to admin@example.net by post".to_owned()])),
    ] {
        assert_eq!(told(refuses, to.clone(), notify).await, want, "{to:?} {notify:?}");
    }
    // What looks like spam to the CRM is told to nobody.
    let spam: Mood = |_| Way::Rcpt("550 5.7.1 spam");
    assert_eq!(told(spam, sender(), None).await, (State::Quarantined, None, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_told_once_and_then_the_end() {
    let sender = || NoticeTo::Sender(Mailbox::parse("client@example.org").unwrap());
    let both = ["delayed to client@example.org by default", "failed to client@example.org by default"];
    for mood in [(|_| Way::Rcpt("450 later")) as Mood, |_| Way::Dead] {
        let (state, dsn, notices) = told(mood, sender(), None).await;
        assert_eq!((state, dsn), (State::Expired, Some(Dsn::Sent)));
        assert_eq!(notices, both);
        assert_eq!(told(mood, NoticeTo::Nobody, None).await, (State::Expired, Some(Dsn::None), vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_told_only_to_who_asked() {
    let sender = || NoticeTo::Sender(Mailbox::parse("client@example.org").unwrap());
    let well: Mood = |_| Way::Well;
    let relayed = vec!["relayed to client@example.org by default".to_owned()];
    assert_eq!(told(well, sender(), Some("SUCCESS")).await, (State::Delivered, None, relayed));
    for (to, notify) in [(sender(), None), (sender(), Some("FAILURE")), (NoticeTo::Nobody, Some("SUCCESS"))] {
        assert_eq!(told(well, to, notify).await, (State::Delivered, None, vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_recipient_of_a_notification_holds_nothing() {
    let unknown: Mood = |_| Way::Rcpt("550 5.1.1 no such user");
    let world = World::new(&[("default", &[("crm", unknown)])]);
    let leg = world.leg(1, "default");
    let alias = leg.target.as_str().to_owned();
    world.accept_leg(OwnedLeg { alias, sender: ReversePath::Null, ..leg });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.state(1), (State::Quarantined, Reason::UnknownTarget));
    world.outbound.shutdown(MINUTE).await;
    for (zone, state) in [("crm.example MX 0 .", State::Quarantined), ("other.example A 9.9.9.9", State::Quarantined)] {
        let world = World::of(vec![mx_route("default", 1)], BTreeMap::new(), zone, DAY);
        let leg = world.leg(1, "default");
        let alias = leg.target.as_str().to_owned();
        world.accept_leg(OwnedLeg { alias, sender: ReversePath::Null, ..leg });
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.state(1), (state, Reason::UnknownTarget), "{zone}");
        world.outbound.shutdown(MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_leg_goes_when_the_target_exists() {
    let mood: Mood = |at| if at < 90 * MINUTE { Way::Rcpt("550 5.1.1 who?") } else { Way::Well };
    let world = World::new(&[("crm", &[("crm", mood)])]);
    world.accept(1, "crm");
    sleep(3 * HOUR).await;
    assert_eq!(world.state(1), (State::Delivered, Reason::Sent));
    assert_eq!(world.store.look(1, |row| row.attempts.len()), 3);
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_destination_is_dialled_ever_more_rarely_and_mail_flows_again_within_a_minute() {
    let mood: Mood = |at| if at < HOUR { Way::Dead } else { Way::Well };
    let world = World::with(&[("crm", &[("crm", mood)])], 20, DAY);
    for message in 1..=3600 {
        world.accept(message, "crm");
        sleep(Duration::from_secs(1)).await;
    }
    let dials = world.crm.dials.lock().unwrap()["crm"].len();
    assert!((55..90).contains(&dials), "{dials}");
    assert!(world.handover.reserve("crm").is_none(), "nothing is handed to a lane that backs off");
    sleep(62 * Duration::from_secs(1)).await;
    assert!(world.handover.reserve("crm").is_some());
    sleep(70 * MINUTE).await;
    assert_eq!(world.store.states("crm"), BTreeMap::from([(State::Delivered, 3600)]));
    assert!((1..=3600).all(|message| world.crm.taken(message) == 1));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_retry_ends_a_wait_with_one_dial() {
    let world = World::with(&[("crm", &[("crm", dead)])], 20, DAY);
    let dials = || world.crm.dials.lock().unwrap()["crm"].len();
    for message in 1..=600 {
        world.accept(message, "crm");
        sleep(Duration::from_secs(1)).await;
    }
    let (trouble, wait) = (world.handover.troubles().remove(0), Duration::from_secs(60));
    assert_eq!(trouble.0, "crm");
    // Right after a failed dial: the next is a minute away.
    let before = dials();
    while dials() == before {
        sleep(Duration::from_millis(100)).await;
    }
    let before = dials();
    world.handover.wake("crm");
    sleep(wait / 4).await;
    assert_eq!(dials(), before, "new mail alone does not end a wait");
    world.handover.probe("crm");
    sleep(wait / 4).await;
    assert_eq!(dials(), before + 1);
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_limits_sessions_is_not_a_dead_one() {
    let world = World::with(&[("crm", &[("crm", |_| Way::Sessions(2))])], 10, DAY);
    for message in 1..=500 {
        world.store.add(world.leg(message, "crm"), START);
    }
    world.handover.wake("crm");
    sleep(10 * MINUTE).await;
    assert_eq!(world.store.states("crm"), BTreeMap::from([(State::Delivered, 500)]));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn legs_without_a_way_are_held_and_say_why() {
    let world = World::new(&[("mx", &[])]);
    world.accept(1, "mx");
    world.store.add(world.leg(2, "gone"), START);
    sleep(2 * MINUTE).await;
    assert_eq!(world.state(1), (State::Held, Reason::UnknownTarget));
    assert_eq!(world.state(2), (State::Held, Reason::Route));
    // To ask DNS in vain is an attempt; where there is no route none can be made.
    for (message, attempts) in [(1, 1), (2, 0)] {
        world.store.look(message, |row| {
            assert!(row.attempts.len() == attempts && !row.detail.is_empty() && !row.owned);
            assert!(row.due.unwrap().since(START) >= HOUR);
        });
    }
    // Once an hour for five days, and then somebody looks at it.
    sleep(6 * DAY).await;
    assert_eq!(world.state(1), (State::Quarantined, Reason::UnknownTarget));
    world.store.look(1, |row| assert!((115..=125).contains(&row.attempts.len()), "{}", row.attempts.len()));
    assert_eq!(world.state(2), (State::Held, Reason::Route));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_does_not_lose_its_leg() {
    let world = World::new(&[("crm", &[("crm", |at| if at < MINUTE { Way::Rcpt("450 later") } else { Way::Well })])]);
    *world.store.panic_at_settle.lock().unwrap() = 1;
    world.accept(1, "crm");
    sleep(10 * MINUTE).await;
    assert_eq!(world.state(1), (State::Held, Reason::Lost), "what panicked once may do so again: not at once");
    sleep(HOUR).await;
    assert_eq!(world.state(1), (State::Delivered, Reason::Sent));
    world.outbound.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_transactions_and_gives_the_rest_back() {
    let world = World::with(&[("crm", &[("crm", well)])], 1, DAY);
    for message in 1..=500 {
        world.store.add(world.leg(message, "crm"), START);
    }
    let slot = world.handover.reserve("crm").unwrap();
    world.handover.wake("crm");
    while world.store.states("crm").get(&State::Delivered).is_none_or(|&n| n < 5) {
        tokio::task::yield_now().await;
    }
    drop(slot);
    let (store, crm) = (Arc::clone(&world.store), Arc::clone(&world.crm));
    world.outbound.shutdown(MINUTE).await;
    let states = store.states("crm");
    assert_eq!(store.owned(), 0);
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), [State::Queued, State::Delivered]);
    let taken: usize = (1..=500).map(|message| crm.taken(message)).sum();
    assert_eq!(states[&State::Delivered], taken, "what the CRM took is settled");
    assert_eq!(crm.commands.lock().unwrap().last().unwrap(), "crm QUIT");
}

#[tokio::test(start_paused = true)]
async fn a_recall_leaves_only_what_a_worker_has_in_its_hands() {
    let world = World::with(&[("crm", &[("crm", |at| if at < HOUR { Way::HangAtDot } else { Way::Well })])], 1, DAY);
    for message in 1..=40 {
        world.accept(message, "crm");
        tokio::task::yield_now().await;
    }
    sleep(MINUTE).await;
    assert!(world.store.owned() > 8, "{} wait in memory", world.store.owned());
    let recalled = world.handover.recall(["crm", "unknown"]).await;
    assert_eq!(world.store.owned(), 1, "the one that hangs");
    world.handover.wake("crm");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.store.owned(), 1, "nothing is taken while an operator is at it");
    drop(recalled);
    sleep(Duration::from_secs(1)).await;
    assert!(world.store.owned() > 8, "the lane goes on");
    let (store, crm) = (Arc::clone(&world.store), Arc::clone(&world.crm));
    // Who forgets to let go does not stop the mail, nor the shutdown.
    let recalled = world.handover.recall(["crm"]).await;
    sleep(MINUTE).await;
    assert!(store.owned() > 8);
    drop(recalled);
    let recalled = world.handover.recall(["crm"]).await;
    world.outbound.shutdown(Duration::from_secs(5)).await;
    drop(recalled);
    assert_eq!((store.owned(), (1..=40).map(|message| crm.taken(message)).sum::<usize>()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_shutdown_cuts_off_is_noted_and_what_waited_is_not() {
    let world = World::with(&[("crm", &[("crm", |_| Way::HangAtDot)])], 1, DAY);
    for message in 1..=3 {
        world.accept(message, "crm");
    }
    sleep(MINUTE).await;
    let (store, crm) = (Arc::clone(&world.store), Arc::clone(&world.crm));
    world.outbound.shutdown(Duration::from_secs(5)).await;
    assert_eq!((store.owned(), crm.taken(1)), (0, 1));
    assert_eq!([1, 2, 3].map(|message| store.look(message, |row| row.cut_off)), [true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_large_message_leaves_in_pieces_and_whole() {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let world = World::new(&[]);
    let mut leg = world.leg(1, "crm");
    let text = ".23456789\r\n".repeat(100_000);
    leg.body = StoredBody::from_bytes(text.clone().into_bytes());
    leg.cuts = vec![0..11, 110..220];
    let server = tokio::spawn(async move {
        let mut heard = Vec::new();
        theirs.write_all(b"250 a\r\n").await.unwrap();
        theirs.write_all(b"250 b\r\n354 c\r\n").await.unwrap();
        while !heard.ends_with(b"\r\n.\r\n") {
            theirs.read_buf(&mut heard).await.unwrap();
        }
        theirs.write_all(b"250 d\r\n").await.unwrap();
        String::from_utf8(heard).unwrap()
    });
    let capabilities = crate::smtp::client::Capabilities { pipelining: true, ..Default::default() };
    let mut connection = Connection::new(Stream::Other(Box::new(ours)), capabilities, String::new(), None);
    // The 354 stands in the buffer together with the other replies: nothing has been answered too early.
    let ended = crate::relay::attempt::attempt(&mut connection, &leg, &Timeouts::rfc5321()).await;
    let crate::relay::attempt::Ended::Verdict(verdict, _) = ended else { panic!("{ended:?}") };
    assert_eq!(crate::relay::outcome::result(&verdict), "ok");
    let heard = server.await.unwrap();
    let prefix = "MAIL FROM:<client@example.org>\r\nRCPT TO:<cases@crm.example>\r\nDATA\r\n";
    let field = "Delivered-To: aide@solarmora.com\r\n";
    let body = "..23456789\r\n".repeat(100_000 - 11);
    assert!(heard == format!("{prefix}{field}{body}.\r\n"), "{} octets", heard.len());
    world.outbound.shutdown(MINUTE).await;
}
