//! A day of mail in seconds: both conductors, the real rules and the real store, on a clock that is turned by hand.
//!
//! Clients come in over in-memory streams, CRMs answer on others; only sockets and the disk's syncs are missing. tokio's
//! paused time jumps to the next timer whenever everybody waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::address::Mailbox;
use pointsman::clock::{Clock, Timestamp, TokioClock};
use pointsman::diagnostic::{Report, Source};
use pointsman::dns::{Dns, DnsError, Pending, Question};
use pointsman::id::{Chance, Ids, MessageId};
use pointsman::inbound::{Inbound, Parts, Ruling};
use pointsman::outbound::{Outbound, Ports, Settings as OutboundSettings, Ways};
use pointsman::queue::handover::Handover;
use pointsman::queue::sqlite::{Filter, LegRow, Mode, Options, Retention, SqliteStore, Unobserved};
use pointsman::queue::{State, Store};
use pointsman::relay::dial::{Connection, Dial, DialError, Dialling, Stream, Timeouts, greet};
use pointsman::relay::{Demand, Host, Route, TlsMode};
use pointsman::rules::{self, RuleSet, Surroundings};
use pointsman::smtp::client::{Answer, Stage, Verdict};
use pointsman::smtp::settings::Settings;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};

const HOUR: Duration = Duration::from_secs(60 * 60);

#[tokio::test(start_paused = true)]
async fn a_day_of_mail_with_failing_targets_loses_nothing() {
    let world = World::new();
    for minute in 0..24 * 60 {
        let alias = ["well@d.example", "busy@d.example", "dead@d.example"][minute % 3];
        assert!(world.send(alias).await.starts_with("250 2.0.0 queued as "));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    tokio::time::sleep(2 * HOUR).await;

    let legs = world.legs().await;
    assert_eq!(legs.len(), 24 * 60);
    assert_eq!(count(&legs, "well", State::Delivered), 480);
    // It said 452 for the first six hours, and everything came through afterwards, each message once.
    assert_eq!(count(&legs, "busy", State::Delivered), 480);
    assert_eq!(count(&legs, "dead", State::Queued), 480);
    for (route, mails) in [("well", 480), ("busy", 480), ("dead", 0)] {
        assert_eq!(world.crms.taken(route), mails, "{route}");
    }
    let slowest = legs.iter().filter(|leg| leg.route == "well").map(|leg| leg.ended.unwrap().since(leg.received)).max();
    assert!(slowest.unwrap() < Duration::from_secs(1), "the others' trouble must not delay it: {slowest:?}");
    // 1, 5, 15, 30 minutes, then each hour: some 27 attempts for the oldest, and none without a wait.
    let attempts = legs.iter().filter(|leg| leg.route == "dead").map(|leg| leg.attempts).max().unwrap();
    assert!((20..40).contains(&attempts), "{attempts}");
    world.assert_balance().await;

    // Whatever is left is given up when its time is over, and says so.
    tokio::time::sleep(30 * HOUR).await;
    let legs = world.legs().await;
    assert_eq!(count(&legs, "dead", State::Expired), 480);
    world.assert_balance().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_an_octet_a_minute_is_cut_off() {
    let world = World::new();
    let mut client = world.connect().await;
    for command in ["EHLO c.example", "MAIL FROM:<a@c.example>", "RCPT TO:<well@d.example>", "DATA"] {
        say(&mut client, command).await;
    }
    let started = tokio::time::Instant::now();
    let mut sent = 0;
    while client.write_all(b"x").await.is_ok() && sent < 1000 {
        sent += 1;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("421 4.4.2"), "{rest}");
    assert!(started.elapsed() < Duration::from_secs(15 * 60));
    assert!(world.legs().await.is_empty());
    assert!(world.send("well@d.example").await.starts_with("250 "), "the next one is served");
}

fn count(legs: &[LegRow], route: &str, state: State) -> usize {
    legs.iter().filter(|leg| leg.route == route && leg.state == state).count()
}

/// A daemon without sockets.
struct World {
    clock: Arc<TokioClock>,
    store: Arc<SqliteStore>,
    inbound: Arc<Inbound>,
    crms: Arc<Crms>,
    _outbound: Outbound,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(TokioClock::starting_at(Timestamp(1_795_292_431_000)));
        let options = Options {
            retention: Retention { ledger: 1000 * HOUR, bodies: Duration::ZERO, quarantine: 1000 * HOUR },
            min_free: 0,
            mode: Mode::Inline,
            clock: clock.clone(),
            observer: Arc::new(Unobserved),
        };
        let store = Arc::new(SqliteStore::open(folder.path(), options).unwrap());
        let routes: BTreeMap<String, Arc<Route>> =
            ["well", "busy", "dead"].map(|name| (name.to_owned(), route(name))).into();
        let handover = Arc::new(Handover::new(routes.keys().cloned(), 100));
        let chance = Arc::new(Chance::seeded(1));
        let ids = Arc::new(Ids::after(MessageId(0)));
        let crms = Arc::new(Crms { clock: clock.clone(), started: clock.now(), taken: Mutex::default() });
        let parts = Parts {
            clock: clock.clone(),
            chance: chance.clone(),
            ids: ids.clone(),
            store: store.clone(),
            handover: handover.clone(),
        };
        let postmaster = Mailbox::parse("postmaster@d.example").unwrap();
        let session = Settings::new("mx.d.example".to_owned(), postmaster, 1 << 20, 100);
        let rules = Arc::new(rule_set());
        // Every route names its hosts.
        let dns = Arc::new(NoDns);
        let ruling = Ruling {
            srs: None,
            marks: None,
            signer: None,
            auth: None,
            spam: None,
            upstream: Vec::new(),
            mailhosts: None,
            session: Arc::new(session),
            rules,
            routes: routes.clone(),
            legs_max: 10,
            dns: dns.clone(),
            checker: None,
            listeners: BTreeMap::new(),
            sessions_max: 100,
            client_sessions_max: 50,
            memory_max: u64::MAX,
            tls: None,
        };
        let ports = Ports { clock: clock.clone(), store: store.clone(), chance, ids, handover };

        let minutes = [1, 5, 15, 30, 60].map(|minutes| Duration::from_secs(minutes * 60));
        let settings = OutboundSettings {
            hostname: "mx.d.example".to_owned(),
            retry: minutes.to_vec(),
            expire: 30 * HOUR,
            timeouts: Timeouts::rfc5321(),
            addresses: Vec::new(),
            signer: None,
        };
        let outbound = Outbound::start(
            ports,
            Ways { settings, routes, dial: crms.clone(), dns, srs: None, is_ours: Arc::new(|_| false) },
        );
        World { clock, store, inbound: Inbound::new(parts, ruling), crms, _outbound: outbound, _folder: folder }
    }

    /// A session that has read its banner.
    async fn connect(&self) -> BufReader<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let inbound = Arc::clone(&self.inbound);
        tokio::spawn(async move { inbound.serve(theirs, "192.0.2.1:4711".parse().unwrap(), "mx").await });
        let mut client = BufReader::new(ours);
        read_reply(&mut client).await;
        client
    }

    /// Sends one message and gives the answer to its final dot.
    async fn send(&self, recipient: &str) -> String {
        let mut client = self.connect().await;
        let rcpt = format!("RCPT TO:<{recipient}>");
        for command in ["EHLO c.example", "MAIL FROM:<a@c.example>", &rcpt, "DATA"] {
            say(&mut client, command).await;
        }
        say(&mut client, &format!("Subject: {}\r\n\r\nHello.\r\n.", self.clock.now())).await
    }

    async fn legs(&self) -> Vec<LegRow> {
        self.store.query(Filter::default()).await.unwrap()
    }

    async fn assert_balance(&self) {
        let balance = self.store.balance().await.unwrap();
        assert!(balance.holds(), "{balance:?}");
        assert!(self.store.accepting());
    }
}

async fn say(client: &mut BufReader<DuplexStream>, command: &str) -> String {
    client.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
    read_reply(client).await
}

async fn read_reply(client: &mut BufReader<DuplexStream>) -> String {
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await.unwrap();
        if line.as_bytes().get(3) != Some(&b'-') {
            return line;
        }
    }
}

fn rule_set() -> RuleSet {
    let text = r#"
        [domain."d.example"]
        role = "well@crm.example"
        [target]
        well = { address = "well@crm.example", route = "well" }
        busy = { address = "busy@crm.example", route = "busy" }
        dead = { address = "dead@crm.example", route = "dead" }
        [alias."d.example"]
        well = { to = "well" }
        busy = { to = "busy" }
        dead = { to = "dead" }
    "#;
    let routes = ["well", "busy", "dead", "default"].map(|name| (name.to_owned(), true)).into();
    let surroundings = Surroundings {
        routes: &routes,
        looks_up_mx: true,
        checks: [true; 4],
        scores: true,
        now: Timestamp(0),
        read: &|_, _| Err("there are no files".to_owned()),
    };
    let mut report = Report::default();
    let parsed = rules::parse(&[Source::new("rules.toml", text)], &surroundings, &mut report);
    parsed.unwrap_or_else(|| panic!("{}", report.render(false))).rules
}

fn route(name: &str) -> Arc<Route> {
    Arc::new(Route {
        hosts: vec![Host { name: format!("{name}.crm.example"), port: 25, addresses: Vec::new() }],
        tls: TlsMode::Off,
        concurrency: 5,
        ..Route::named(name)
    })
}

struct NoDns;

impl Dns for NoDns {
    fn ask<'a>(&'a self, _: &'a Question) -> Pending<'a> {
        Box::pin(async { Err(DnsError::Temporary) })
    }
}

/// The CRMs: `well` takes all, `busy` says 452 for six hours, `dead` does not answer.
struct Crms {
    clock: Arc<TokioClock>,
    started: Timestamp,
    taken: Mutex<BTreeMap<String, usize>>,
}

impl Crms {
    fn taken(&self, route: &str) -> usize {
        self.taken.lock().unwrap().get(route).copied().unwrap_or(0)
    }

    fn is_busy(&self, route: &str) -> bool {
        route == "busy" && self.clock.now().since(self.started) < 6 * HOUR
    }
}

impl Dial for Crms {
    fn dial<'a>(&'a self, route: &'a Route, host: &'a Host, helo: &'a str, _: Demand) -> Dialling<'a> {
        Box::pin(async move {
            let failed = |verdict| DialError { peer: host.name.clone(), local: None, verdict };
            if route.name == "dead" {
                let answer = Answer::Connect("connection refused".to_owned());
                return Err(failed(Verdict { stage: Stage::Connect, answer }));
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            tokio::spawn(serve(BufReader::new(theirs), self.is_busy(&route.name)));
            let stream: Stream = Stream::Other(Box::new(ours));
            let (stream, capabilities) = greet(stream, helo, &Timeouts::rfc5321()).await.map_err(failed)?;
            if !self.is_busy(&route.name) {
                // One message a session, below: the session counts it.
                *self.taken.lock().unwrap().entry(route.name.clone()).or_default() += 1;
            }
            Ok(Connection::new(stream, capabilities, host.name.clone(), None))
        })
    }
}

/// Takes one message, or says 452 at RCPT, and goes.
async fn serve(mut stream: BufReader<DuplexStream>, busy: bool) {
    // The relay may hang up at any point; there is nobody left to answer then.
    let _ = stream.write_all(b"220 crm.example\r\n").await;
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        let reply: &[u8] = match line.split([' ', '\r']).next().unwrap() {
            "RCPT" if busy => b"452 4.2.2 full\r\n",
            "DATA" if busy => b"503 5.5.1 no recipient\r\n",
            "DATA" => b"354 go\r\n",
            "." => b"250 2.0.0 case opened\r\n",
            "QUIT" => b"221 2.0.0 bye\r\n",
            verb if ["EHLO", "MAIL", "RCPT", "RSET"].contains(&verb) => b"250 ok\r\n",
            _ => b"",
        };
        let ends = line == ".\r\n" || line.starts_with("QUIT") || (busy && line.starts_with("DATA"));
        let _ = stream.write_all(reply).await;
        if ends {
            return;
        }
        line.clear();
    }
}
