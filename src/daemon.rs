//! The whole daemon put together: ports opened, conductors started, signals heard, mail drained.
//!
//! `serve` and `demo` both start a [`Daemon`]; tests can, too. The order matters: the store before the ports, so that
//! nothing is accepted that could not be kept, and `addresses.json` last, so that who reads it can connect.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::address::Mailbox;
use crate::admin::control::{self, Control};
use crate::admin::drain::{End, Ending};
use crate::admin::http::{self, Health, Metrics};
use crate::admin::pause;
use crate::admin::probe::Door;
use crate::auth::key_file::{self, Found};
use crate::auth::sign::Signer;
use crate::auth::verify::Checker;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, KeyPlace, Listener};
use crate::contain::{contain, supervise, trip};
use crate::dns::Dns;
use crate::dns::cache::Cache;
use crate::dns::resolver::Resolver;
use crate::events;
use crate::id::{Chance, Ids, LegId};
use crate::inbound::{Inbound, Parts, Ruling, Scorer};
use crate::listen::{self, Inherited};
use crate::outbound::{self, Outbound, Ports};
use crate::queue::handover::Handover;
use crate::queue::sqlite::{self, Filter, MessageRow, Mode, Observer, SqliteStore};
use crate::queue::{Reason, State, Store};
use crate::relay::dial::{TcpDial, Timeouts};
use crate::smtp::settings::Settings;
use crate::supervisor;
use crate::tls::{self, ListenerTls};

/// A running daemon.
pub struct Daemon {
    inbound: Arc<Inbound>,
    outbound: Outbound,
    store: Arc<SqliteStore>,
    tasks: Vec<JoinHandle<()>>,
    ending: Arc<Ending>,
    data: PathBuf,
    /// In the order of the configuration.
    pub listeners: Vec<SocketAddr>,
    /// The HTTP side, where there is one.
    pub admin: Option<SocketAddr>,
}

impl Daemon {
    /// Opens the queue and the ports, and starts to serve. Must be called inside a tokio runtime. Where it fails nothing
    /// was accepted. `inherited` are the sockets that a service manager holds for us.
    pub async fn start(config: Config, clock: Arc<dyn Clock>, inherited: Inherited) -> anyhow::Result<Daemon> {
        remove_addresses(&config.data)?;
        let metrics = Metrics::install()?;
        let handover = Arc::new(Handover::new(config.routes.keys().cloned(), LANE_PLACES));
        let store = open_store(&config, &clock, &handover)?;
        pause::keep(&store, &handover, clock.now()).await?;
        look_at_mode(&config.data);
        let certificate = open_certificate(&config, clock.now())?;
        let listen::Open { listeners, admin } = listen::open(inherited, &config).await?;
        let control_socket = control::bind(&config.data)?;

        let dns = open_dns(&config)?;
        let chance = Arc::new(Chance::from_system());
        let ids = Arc::new(Ids::after(store.max_message_id().await?));
        let parts = Parts {
            clock: Arc::clone(&clock),
            chance: Arc::clone(&chance),
            ids: Arc::clone(&ids),
            store: Arc::clone(&store) as Arc<dyn Store>,
            handover: Arc::clone(&handover),
            checker: checker(&config, &dns)?,
            dns: Arc::clone(&dns),
        };
        let inbound = Inbound::new(parts, ruling(&config, certificate.clone())?);
        let addresses = listeners.iter().map(|(_, listener)| listener.local_addr()).collect::<Result<Vec<_>, _>>()?;
        let ports = Ports {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store) as Arc<dyn Store>,
            dial: Arc::new(TcpDial::new(TIMEOUTS, config.routes.values().map(|route| &**route))?),
            chance,
            ids,
            handover: Arc::clone(&handover),
            dns,
        };
        let outbound = start_outbound(&config, ports, &addresses);

        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        let ending = Arc::new(Ending::default());
        let control = Control {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            inbound: Arc::clone(&inbound),
            handover,
            hostname: config.hostname.clone(),
            listeners: addresses.iter().map(SocketAddr::to_string).collect(),
            doors: doors(&config.listeners, &addresses),
            admin: admin_address.map(|address| address.to_string()),
            started: clock.now(),
            data: config.data.clone(),
            min_free: config.queue.min_free,
            ending: Arc::clone(&ending),
        };
        let mut tasks = Tasks { tasks: Vec::new(), inbound: &inbound, store: &store, ending: &ending };
        tasks.beside_the_mail(metrics, (control, control_socket), admin);
        tasks.watch_feeders(outbound.faulted());
        tasks.keep_certificate(certificate, &config.listeners);
        tasks.listen(listeners, &config.listeners);
        let mut tasks = tasks.tasks;
        write_addresses(&config.data, &addresses, admin_address)?;
        tasks.push(tokio::spawn(supervisor::keep_alive()));
        events::serving(&format!("{addresses:?}"), admin_address);
        supervisor::ready("taking mail");
        let (data, listeners) = (config.data, addresses);
        Ok(Daemon { inbound, outbound, store, tasks, ending, data, listeners, admin: admin_address })
    }

    /// Waits until a part of it says that it is to end, and why.
    pub async fn ended(&self) -> End {
        self.ending.wait().await
    }

    /// Takes no more mail, lets what is under way finish for a few seconds, and closes the queue. Whatever could not
    /// finish stays in the queue.
    pub async fn drain(self) {
        events::draining();
        supervisor::stopping();
        // Who looks for the addresses of a daemon that takes mail must not find these.
        let _ = remove_addresses(&self.data);
        tokio::join!(self.inbound.drain(DRAIN), self.outbound.shutdown(DRAIN));
        for task in self.tasks {
            task.abort();
        }
        // The socket of a daemon that is gone would only be answered with «connection refused».
        let _ = std::fs::remove_file(control::socket_path(&self.data));
        drop(self.store);
        events::stopped();
    }

    /// The newest messages, whole.
    pub async fn latest_messages(&self, count: usize) -> anyhow::Result<Vec<MessageRow>> {
        let rows = self.store.query(Filter { limit: count * LEGS_LOOKED_AT, ..Filter::default() }).await?;
        let mut messages = Vec::new();
        for id in control::messages_of(rows.iter().map(|row| row.id.message)).into_iter().take(count) {
            messages.extend(self.store.message(id).await?);
        }
        Ok(messages)
    }

    /// Waits until no leg is queued any more, for `limit` at most.
    pub async fn settled(&self, limit: Duration) {
        let queued = || self.store.open_legs().iter().any(|(_, state, legs)| *state == State::Queued && *legs > 0);
        let none_queued = async {
            while queued() {
                tokio::time::sleep(SETTLE_LOOK).await;
            }
        };
        // What is still queued then is told as it stands.
        let _ = tokio::time::timeout(limit, none_queued).await;
    }
}

/// The daemon's own tasks. What panics in one is contained, and begun anew where that is possible.
struct Tasks<'a> {
    tasks: Vec<JoinHandle<()>>,
    inbound: &'a Arc<Inbound>,
    store: &'a Arc<SqliteStore>,
    ending: &'a Arc<Ending>,
}

impl Tasks<'_> {
    fn beside_the_mail(&mut self, metrics: Metrics, control: (Control, UnixListener), admin: Option<TcpListener>) {
        let (control, socket) = (Arc::new(control.0), Arc::new(control.1));
        let serve = move || Arc::clone(&control).serve(Arc::clone(&socket));
        self.tasks.push(tokio::spawn(supervise("control", serve)));
        let (store, inbound, ending) = (Arc::clone(self.store), Arc::clone(self.inbound), Arc::clone(self.ending));
        let house = metrics.clone();
        let keep = move || housekeeping(house.clone(), Arc::clone(&store), Arc::clone(&inbound), Arc::clone(&ending));
        self.tasks.push(tokio::spawn(supervise("housekeeping", keep)));
        if let Some(admin) = admin {
            let serve = http::serve(admin, Arc::new(health(metrics, self.store, self.inbound)));
            self.tasks.push(tokio::spawn(ends_with("http", serve, Arc::clone(self.ending))));
        }
    }

    fn watch_feeders(&mut self, faulted: watch::Receiver<bool>) {
        self.tasks.push(tokio::spawn(watch_feeders(faulted, Arc::clone(self.ending))));
    }

    fn keep_certificate(&mut self, server: Option<Arc<tls::Server>>, listeners: &[Listener]) {
        let Some(server) = server else { return };
        let names = listeners.iter().filter(|listener| listener.tls != ListenerTls::Off);
        let names: Vec<String> = names.map(|listener| listener.name.clone()).collect();
        let clock = Arc::clone(&self.inbound.clock);
        let keep = move || keep_certificate(Arc::clone(&server), names.clone(), Arc::clone(&clock));
        self.tasks.push(tokio::spawn(supervise("certificate", keep)));
    }

    fn listen(&mut self, sockets: Vec<(String, TcpListener)>, listeners: &[Listener]) {
        for ((name, socket), Listener { tls, .. }) in sockets.into_iter().zip(listeners) {
            let (inbound, socket, name, tls) =
                (Arc::clone(self.inbound), Arc::new(socket), Arc::<str>::from(name), *tls);
            let listen = move || Arc::clone(&inbound).listen(Arc::clone(&socket), Arc::clone(&name), tls);
            self.tasks.push(tokio::spawn(supervise("listener", listen)));
        }
    }
}

fn open_store(config: &Config, clock: &Arc<dyn Clock>, handover: &Arc<Handover>) -> anyhow::Result<Arc<SqliteStore>> {
    let retention = sqlite::Retention {
        ledger: config.retention.ledger,
        bodies: config.retention.bodies,
        quarantine: config.retention.quarantine,
    };
    let options = sqlite::Options {
        retention,
        min_free: config.queue.min_free,
        mode: Mode::Threaded,
        clock: Arc::clone(clock),
        observer: Arc::new(StoreEvents { handover: Arc::clone(handover) }),
    };
    let store = SqliteStore::open(&config.data, options);
    Ok(Arc::new(store.with_context(|| format!("cannot open the queue in `{}`", config.data.display()))?))
}

/// What the store tells goes into metrics, and wakes lanes.
struct StoreEvents {
    handover: Arc<Handover>,
}

impl Observer for StoreEvents {
    fn committed(&self, took: Duration, messages: usize) {
        events::group_committed(messages, took);
    }

    fn due(&self, route: &str) {
        self.handover.wake(route);
    }

    fn quarantine_over(&self, leg: LegId, route: &str) {
        events::quarantine_over(&leg, route, State::Discarded.as_str(), Reason::Expired.as_str());
    }

    fn ready(&self, ready: bool) {
        events::store_ready(ready);
    }
}

fn ruling(config: &Config, tls: Option<Arc<tls::Server>>) -> anyhow::Result<Ruling> {
    let postmaster = match config.rules.postmaster() {
        Some(mailbox) => mailbox,
        // Without a domain of ours nobody takes it; the rules will say so.
        None => Mailbox::parse(&format!("postmaster@{}", config.hostname)).context("the hostname is no domain")?,
    };
    let limits = config.limits;
    let session = Settings::new(config.hostname.clone(), postmaster, limits.message_size, limits.recipients);
    Ok(Ruling {
        session: Arc::new(session),
        rules: Arc::clone(&config.rules),
        routes: config.routes.clone(),
        legs_max: limits.legs,
        client_sessions_max: limits.sessions_per_client,
        balancers: config.listeners.iter().map(|listener| (listener.name.clone(), listener.proxy.clone())).collect(),
        tls,
        srs: config.srs.clone(),
        auth: config.auth.clone(),
        spam: config.spam.clone().map(|settings| Arc::new(Scorer::new(settings))),
        upstream: config.upstream.clone(),
    })
}

fn start_outbound(config: &Config, ports: Ports, listeners: &[SocketAddr]) -> Outbound {
    let settings = outbound::Settings {
        hostname: config.hostname.clone(),
        retry: config.queue.retry.clone(),
        expire: config.queue.expire,
        timeouts: TIMEOUTS,
        addresses: listeners.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect(),
        signer: signer(config),
    };
    Outbound::start(ports, settings, config.routes.values().map(|route| (**route).clone()).collect())
}

/// What notifications are signed with. Without a key they go out unsigned: better than not at all.
fn signer(config: &Config) -> Option<Arc<Signer>> {
    let dkim = config.dkim.as_ref()?;
    let opened = match &dkim.key {
        KeyPlace::Own(path) => key_file::open_or_make(path),
        KeyPlace::Given(path) => key_file::open(path).map(|key| (key, Found::There)),
    };
    match opened {
        Ok((key, found)) => {
            if found == Found::Made {
                events::dkim_key_made(&dkim.key.path().display().to_string(), dkim.selector.as_str());
            }
            Some(Arc::new(Signer::new(key, dkim.selector.clone())))
        }
        Err(error) => {
            events::dkim_key_unusable(&error);
            None
        }
    }
}

fn open_certificate(config: &Config, now: Timestamp) -> anyhow::Result<Option<Arc<tls::Server>>> {
    let Some(files) = &config.tls else { return Ok(None) };
    let server = tls::Server::open(files.clone())?;
    if server.expires() <= now {
        events::certificate_expired(server.expires());
    }
    Ok(Some(Arc::new(server)))
}

/// Reads the certificate anew when its files change, as a renewal leaves them, and at SIGHUP.
async fn keep_certificate(server: Arc<tls::Server>, listeners: Vec<String>, clock: Arc<dyn Clock>) {
    // Where signals cannot be heard the files are still looked at.
    let mut hang_up = signal(SignalKind::hangup()).ok();
    let tell_expiry = |expires| listeners.iter().for_each(|name| events::certificate_expiry(name, expires));
    let mut seen = stamps(server.files());
    tell_expiry(server.expires());
    loop {
        let asked = async {
            match &mut hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::time::timeout(CERTIFICATE_LOOK, asked).await.is_ok();
        let stamps = stamps(server.files());
        if !asked && stamps == seen {
            continue;
        }
        seen = stamps;
        match server.reload(clock.now()) {
            Ok(expires) => {
                events::certificate_reloaded(expires);
                tell_expiry(expires);
            }
            // Also between the writing of one file and the other; then the next look finds both.
            Err(error) => events::certificate_kept(&error),
        }
    }
}

/// What tells that a file was written anew.
fn stamps(files: &tls::Files) -> [Option<(u64, i64, i64)>; 2] {
    [&files.certificate, &files.key].map(|path| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.ino(), data.mtime(), data.mtime_nsec()))
    })
}

/// What checks who sent a message, where that is wanted.
fn checker(config: &Config, dns: &Arc<dyn Dns>) -> anyhow::Result<Option<Arc<Checker>>> {
    if config.auth.is_none() {
        return Ok(None);
    }
    Ok(Some(Arc::new(Checker::new(Arc::clone(dns))?)))
}

fn open_dns(config: &Config) -> anyhow::Result<Arc<dyn Dns>> {
    let resolver = Resolver::new(&config.dns_servers).context("cannot set up the DNS resolver")?;
    Ok(Arc::new(Cache::new(resolver)))
}

fn doors(listeners: &[Listener], addresses: &[SocketAddr]) -> Vec<Door> {
    let all = listeners.iter().zip(addresses);
    all.map(|(listener, address)| Door { name: listener.name.clone(), address: *address, tls: listener.tls }).collect()
}

fn health(metrics: Metrics, store: &Arc<SqliteStore>, inbound: &Arc<Inbound>) -> Health {
    let (for_gauges, for_ready) = (Arc::clone(store), Arc::clone(store));
    let (lanes, taking) = (Arc::clone(&inbound.handover), Arc::clone(inbound));
    Health {
        metrics,
        refresh: Box::new(move || {
            for (route, state, legs) in for_gauges.open_legs() {
                events::open_legs(&route, state.as_str(), legs);
            }
            for (route, still) in lanes.standing() {
                events::route_standing(&route, still);
            }
            events::data_free(for_gauges.free_bytes());
        }),
        ready: Box::new(move || match taking.is_draining() {
            true => Err("draining".to_owned()),
            false => for_ready.readiness().map_err(str::to_owned),
        }),
    }
}

/// What is due every few seconds beside the mail.
async fn housekeeping(metrics: Metrics, store: Arc<SqliteStore>, inbound: Arc<Inbound>, ending: Arc<Ending>) {
    let mut known: Vec<(String, State)> = Vec::new();
    loop {
        trip("housekeeping");
        if !store.is_alive() {
            events::ends_by_fault("the queue's writer");
            ending.end(End::Fault);
        }
        metrics.upkeep();
        if let Ok(oldest) = store.oldest().await {
            report_oldest(&mut known, oldest, inbound.clock.now());
        }
        // Where the store cannot, the next round can.
        let _ = pause::keep(&store, &inbound.handover, inbound.clock.now()).await;
        tokio::time::sleep(HOUSEKEEPING).await;
    }
}

/// For a part that cannot be begun anew: with it the daemon ends.
async fn ends_with(part: &'static str, work: impl Future<Output = ()>, ending: Arc<Ending>) {
    if contain(part, work).await.is_err() {
        events::ends_by_fault(part);
        ending.end(End::Fault);
    }
}

/// A feeder that panicked leaves its route standing still, and its legs to the next start.
async fn watch_feeders(mut faulted: watch::Receiver<bool>, ending: Arc<Ending>) {
    // An error means that the way out has ended in its own time.
    if faulted.wait_for(|&faulted| faulted).await.is_ok() {
        events::ends_by_fault("the feeder of a route");
        ending.end(End::Fault);
    }
}

/// Sets the age of the oldest leg wherever one is, and 0 where one was.
fn report_oldest(known: &mut Vec<(String, State)>, oldest: Vec<(String, State, Timestamp)>, now: Timestamp) {
    for (route, state) in known.iter() {
        if !oldest.iter().any(|(r, s, _)| r == route && s == state) {
            events::oldest_leg(route, state.as_str(), Duration::ZERO);
        }
    }
    for (route, state, arrived) in oldest {
        events::oldest_leg(&route, state.as_str(), now.since(arrived));
        if !known.iter().any(|(r, s)| *r == route && *s == state) {
            known.push((route, state));
        }
    }
}

fn addresses_path(data: &Path) -> PathBuf {
    data.join("addresses.json")
}

fn remove_addresses(data: &Path) -> anyhow::Result<()> {
    let path = addresses_path(data);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the old `{}`", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where we listen, for scripts that chose port 0. It appears whole, once every listener accepts.
fn write_addresses(data: &Path, listeners: &[SocketAddr], admin: Option<SocketAddr>) -> anyhow::Result<()> {
    let path = addresses_path(data);
    let part = path.with_extension("json.part");
    let text = serde_json::json!({ "listeners": listeners, "admin": admin }).to_string();
    std::fs::write(&part, text + "\n")
        .and_then(|()| std::fs::rename(&part, &path))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// The runtime that everything runs on: a thread for each processor.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Waits for SIGTERM or SIGINT.
pub async fn until_signalled() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// What this process creates from now on, others can neither read nor enter: the queue holds people's mail. Call it before
/// anything is written.
pub fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
}

/// A data directory that was there before us may be open to everybody; to change that is its owner's business.
fn look_at_mode(data: &Path) {
    if let Ok(metadata) = std::fs::metadata(data)
        && metadata.mode() & 0o007 != 0
    {
        events::data_is_open(&data.display().to_string(), metadata.mode() & 0o7777);
    }
}

/// Raises the limit on open files to what the system allows: a session and a delivery need one each.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it cannot be raised, connections beyond it wait in the backlog.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

const TIMEOUTS: Timeouts = Timeouts::rfc5321();
/// Legs that wait in memory for each route. Beyond them the queue on disk serves as well, at some cost.
const LANE_PLACES: usize = 1_000;
/// SIGTERM to exit in under five seconds, as service managers and operators expect.
const DRAIN: Duration = Duration::from_secs(3);
/// A renewal comes weeks before it is needed.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(60);
const HOUSEKEEPING: Duration = Duration::from_secs(5);
const SETTLE_LOOK: Duration = Duration::from_millis(5);
/// Legs of one message are next to each other; more than the demonstration makes.
const LEGS_LOOKED_AT: usize = 10;
