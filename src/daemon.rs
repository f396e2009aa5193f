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
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::control::{self, Control};
use crate::admin::drain::{End, Ending};
use crate::admin::http::{self, Health, Metrics};
use crate::admin::pause;
use crate::admin::probe::Door;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Listener};
use crate::contain::{contain, supervise, trip};
use crate::events;
use crate::id::{Chance, Ids, LegId};
use crate::inbound::{self, Inbound, Ruling};
use crate::listen::{self, Inherited};
use crate::outbound::{self, Outbound, Ports, Ways};
use crate::queue::handover::Handover;
use crate::queue::sqlite::{self, Filter, MessageRow, Mode, Observer, SqliteStore};
use crate::queue::{Reason, State, Store};
use crate::reload::live::{self, Fixed};
use crate::reload::start::Chosen;
use crate::reload::{self, Keeper};
use crate::supervisor;

/// A running daemon.
pub struct Daemon {
    inbound: Arc<Inbound>,
    outbound: Arc<Outbound>,
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
    /// was accepted. `inherited` are the sockets that a service manager holds for us; `hang_ups` what SIGHUP is heard by.
    pub async fn start(
        chosen: Chosen,
        clock: Arc<dyn Clock>,
        inherited: Inherited,
        hang_ups: Option<Signal>,
    ) -> anyhow::Result<Daemon> {
        let config = &chosen.loaded.config;
        remove_addresses(&config.data)?;
        let metrics = Metrics::install()?;
        let handover = Arc::new(Handover::new(config.routes.keys().cloned(), outbound::LANE_PLACES));
        let store = open_store(config, &clock, &handover)?;
        pause::keep(&store, &handover, clock.now()).await?;
        look_at_mode(&config.data);
        let listen::Open { listeners, admin } = listen::open(inherited, config).await?;
        let control_socket = control::bind(&config.data)?;
        let addresses = listeners.iter().map(|(_, listener)| listener.local_addr()).collect::<Result<Vec<_>, _>>()?;
        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        let ending = Arc::new(Ending::default());

        let fixed = Fixed {
            data: config.data.clone(),
            listeners: config.listeners.iter().map(|listener| (listener.name.clone(), listener.address)).collect(),
            bound: addresses.clone(),
            admin: config.admin.as_ref().map(|admin| admin.address),
        };
        let live::Built { ruling, ways, lookup, .. } = live::build(config, &fixed, None, clock.now())?;
        let ids = Arc::new(Ids::after(store.max_message_id().await?));
        let (inbound, outbound) = conductors(&clock, &store, &handover, ids, ruling, ways);
        let mut tasks = Tasks { tasks: Vec::new(), inbound: &inbound, store: &store, ending: &ending };
        tasks.listen(listeners);

        let (data, path) = (config.data.clone(), config.path.clone());
        let doors = doors(&config.listeners, &addresses);
        let parts = reload::Parts {
            clock: Arc::clone(&clock),
            inbound: Arc::clone(&inbound),
            outbound: Arc::clone(&outbound),
            store: Arc::clone(&store),
            fixed,
            lookup,
        };
        let (keeper, reloads) = Keeper::new(parts, chosen);
        let control = Control {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            inbound: Arc::clone(&inbound),
            handover,
            reloads,
            listeners: addresses.iter().map(SocketAddr::to_string).collect(),
            doors,
            admin: admin_address.map(|address| address.to_string()),
            started: clock.now(),
            data: data.clone(),
            config: path,
            ending: Arc::clone(&ending),
        };
        tasks.beside_the_mail(metrics, (control, control_socket), admin);
        tasks.watch_feeders(outbound.faulted());
        tasks.reload(keeper, hang_ups);
        let mut tasks = tasks.tasks;
        write_addresses(&data, &addresses, admin_address)?;
        tasks.push(tokio::spawn(supervisor::keep_alive()));
        events::serving(&format!("{addresses:?}"), admin_address);
        supervisor::ready("serving");
        let listeners = addresses;
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

    fn reload(&mut self, keeper: Keeper, hang_ups: Option<Signal>) {
        self.tasks.push(tokio::spawn(keeper.run(hang_ups)));
    }

    fn listen(&mut self, sockets: Vec<(String, TcpListener)>) {
        for (name, socket) in sockets {
            let (inbound, socket, name) = (Arc::clone(self.inbound), Arc::new(socket), Arc::<str>::from(name));
            let listen = move || Arc::clone(&inbound).listen(Arc::clone(&socket), Arc::clone(&name));
            self.tasks.push(tokio::spawn(supervise("listener", listen)));
        }
    }
}

/// The two conductors, on the same ground.
fn conductors(
    clock: &Arc<dyn Clock>,
    store: &Arc<SqliteStore>,
    handover: &Arc<Handover>,
    ids: Arc<Ids>,
    ruling: Ruling,
    ways: Ways,
) -> (Arc<Inbound>, Arc<Outbound>) {
    let chance = Arc::new(Chance::from_system());
    let parts = inbound::Parts {
        clock: Arc::clone(clock),
        chance: Arc::clone(&chance),
        ids: Arc::clone(&ids),
        store: Arc::clone(store) as Arc<dyn Store>,
        handover: Arc::clone(handover),
    };
    let ports = Ports {
        clock: Arc::clone(clock),
        store: Arc::clone(store) as Arc<dyn Store>,
        chance,
        ids,
        handover: Arc::clone(handover),
    };
    (Inbound::new(parts, ruling), Arc::new(Outbound::start(ports, ways)))
}

fn open_store(config: &Config, clock: &Arc<dyn Clock>, handover: &Arc<Handover>) -> anyhow::Result<Arc<SqliteStore>> {
    let options = sqlite::Options {
        retention: live::retention(config),
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

fn doors(listeners: &[Listener], addresses: &[SocketAddr]) -> Vec<Door> {
    let all = listeners.iter().zip(addresses);
    all.map(|(listener, address)| Door { name: listener.name.clone(), address: *address }).collect()
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
            for (route, still, open) in lanes.standing() {
                events::route_standing(&route, still, open);
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

/// What SIGHUP is heard by, from now on.
#[must_use]
pub fn hang_ups(runtime: &tokio::runtime::Runtime) -> Option<Signal> {
    let _inside = runtime.enter();
    signal(SignalKind::hangup()).ok()
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

/// SIGTERM to exit in under five seconds, as service managers and operators expect.
const DRAIN: Duration = Duration::from_secs(3);
const HOUSEKEEPING: Duration = Duration::from_secs(5);
const SETTLE_LOOK: Duration = Duration::from_millis(5);
/// Legs of one message are next to each other; more than the demonstration makes.
const LEGS_LOOKED_AT: usize = 10;
