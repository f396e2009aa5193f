//! The one task that changes the configuration.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};

use super::accepted::{Accepted, Aside, Index, Pending};
use super::live::{self, Built, Fixed, Lookup};
use super::start::{self, Chosen, first_error, short};
use super::{ASKS_MAX, Answer, Ask, Changes, Identity, Outcome, Reloads, Told};
use crate::actor::Actor;
use crate::clock::Clock;
use crate::config::{Config, FileSet, Loaded, Origin};
use crate::contain::{contain, trip};
use crate::diagnostic::{Diagnostic, Report};
use crate::events;
use crate::inbound::{Inbound, Ruling};
use crate::outbound::{Outbound, no_such_route};
use crate::queue::sqlite::{Filter, Operation, ROWS_MAX, SqliteStore};
use crate::queue::{Reason, State};
use crate::supervisor;
use crate::tls;

/// What the keeper works on.
pub struct Parts {
    pub clock: Arc<dyn Clock>,
    pub inbound: Arc<Inbound>,
    pub outbound: Arc<Outbound>,
    pub store: Arc<SqliteStore>,
    pub fixed: Fixed,
    pub lookup: Lookup,
}

/// Owns what is in force.
pub struct Keeper {
    parts: Parts,
    config: Arc<Config>,
    accepted: Accepted,
    index: Index,
    stale: Option<String>,
    confirm_by: Option<tokio::time::Instant>,
    /// Of the certificate's files, as they were read last.
    stamps: Option<Stamps>,
    asks: mpsc::Receiver<(Ask, Actor, oneshot::Sender<Answer>)>,
    told: Arc<RwLock<Told>>,
}

/// What is to be put in force, and how it came about.
struct Change {
    loaded: Loaded,
    by: Actor,
    how: &'static str,
    /// The index once it is in force, but for its entry.
    index: Index,
    stale: Option<String>,
}

impl Keeper {
    /// Records what the start chose, and what is in force from now on. `chosen` is what `parts` was built of.
    #[must_use]
    pub fn new(parts: Parts, chosen: Chosen) -> (Keeper, Reloads) {
        let Chosen { loaded, refused: _, stale, troubles, accepted, mut index, is_news } = chosen;
        troubles.iter().for_each(|trouble| events::configuration_not_kept(trouble));
        if is_news {
            let hash = loaded.config.prints.whole.clone();
            // Mail is more than the next start's convenience.
            if let Err(error) = accepted.write(&mut index, Some((&hash, &loaded.files))) {
                events::configuration_not_kept(&format!("{error:#}"));
            }
        }
        events::configuration_stale(stale.as_deref());
        let (sender, asks) = mpsc::channel(ASKS_MAX);
        let told = Arc::new(RwLock::new(Told::default()));
        let config = Arc::new(loaded.config);
        let mut keeper = Keeper {
            parts,
            config,
            accepted,
            index,
            stale,
            confirm_by: None,
            stamps: None,
            asks,
            told: Arc::clone(&told),
        };
        keeper.tell();
        keeper.note_certificate();
        (keeper, Reloads { asks: sender, told })
    }

    /// Works until the task is dropped. What panics in one change is no reason not to take the next: what is in force
    /// changes in one step.
    pub async fn run(mut self, mut hang_ups: Option<Signal>) {
        loop {
            let _ = contain("reload", self.turn(&mut hang_ups)).await;
        }
    }

    async fn turn(&mut self, hang_ups: &mut Option<Signal>) {
        let deadline = self.confirm_by;
        tokio::select! {
            Some((ask, by, answer)) = self.asks.recv() => {
                trip("reload");
                let answered = self.answer(ask, by).await;
                // Whoever asked may have gone; what was done stays done.
                let _ = answer.send(answered);
            }
            () = heard(hang_ups) => self.hang_up().await,
            () = until(deadline) => self.give_up().await,
            () = tokio::time::sleep(LOOK) => self.look().await,
        }
    }

    async fn answer(&mut self, ask: Ask, by: Actor) -> Answer {
        match ask {
            Ask::Reload { confirm } => self.reload(by, confirm).await,
            Ask::Confirm => self.confirm(),
            Ask::RollBack { hash } => self.roll_back(by, &hash).await,
        }
    }

    /// SIGHUP: files that were set aside stay so, because whoever renews a certificate says it, too.
    async fn hang_up(&mut self) {
        let by = Actor::Signal("SIGHUP");
        supervisor::reloading();
        match self.read_disk().await {
            Ok(loaded) if self.index.aside.as_ref().is_some_and(|aside| aside.hash == loaded.config.prints.whole) => {
                events::configuration_refused(&by, 0, "the files are set aside: say `pointsman reload` to take them");
            }
            Ok(loaded) => {
                let pending = self.index.pending.clone();
                let index = Index { aside: None, pending, ..self.index.clone() };
                self.take(Change { loaded, by, how: "reload", index, stale: None }).await;
            }
            Err(report) => {
                self.refuse(&by, report, Some("the files on the disk were refused"));
            }
        }
        self.renew_certificate();
        let status = match &self.stale {
            None => "taking mail".to_owned(),
            Some(why) => format!("taking mail; {why}"),
        };
        supervisor::ready(&status);
    }

    async fn reload(&mut self, by: Actor, confirm: Option<Duration>) -> Answer {
        let loaded = match self.read_disk().await {
            Ok(loaded) => loaded,
            Err(report) => return self.refuse(&by, report, Some("the files on the disk were refused")),
        };
        let mut index = Index { aside: None, ..self.index.clone() };
        let is_same = loaded.config.prints.whole == self.config.prints.whole;
        let confirm_by = match confirm {
            Some(wait) if !is_same || index.pending.is_some() => {
                // What was not confirmed itself is nothing to come back to.
                let confirmed = index.pending.as_ref().map(|pending| pending.back_to.clone());
                let back_to = confirmed.unwrap_or_else(|| self.config.prints.whole.clone());
                let until = self.parts.clock.now().after(wait).0;
                index.pending = Some(Pending { until, back_to });
                Some(tokio::time::Instant::now() + wait)
            }
            // Said once more without a word about it, the same still has to be confirmed.
            Some(_) | None if is_same => self.confirm_by,
            Some(_) | None => {
                index.pending = None;
                None
            }
        };
        let how = if confirm.is_some() { "reload, to be confirmed" } else { "reload" };
        let mut answer = self.take(Change { loaded, by, how, index, stale: None }).await;
        if answer.result != Outcome::Refused {
            self.confirm_by = confirm_by;
            self.tell();
            answer.notes.extend(self.to_be_confirmed());
        }
        self.renew_certificate();
        answer
    }

    fn confirm(&mut self) -> Answer {
        let mut answer = self.nothing_done(Report::default());
        if self.index.pending.is_none() {
            answer.notes.push("nothing waits to be confirmed".to_owned());
            return answer;
        }
        let mut index = Index { pending: None, ..self.index.clone() };
        match self.accepted.write(&mut index, None) {
            Ok(()) => {
                (self.index, self.confirm_by) = (index, None);
                self.tell();
                answer.result = Outcome::Unchanged;
                answer.notes.push(format!("{} is confirmed and stays", short(&answer.now.hash)));
            }
            Err(error) => answer.notes.push(format!("it could not be written down: {error:#}")),
        }
        answer
    }

    async fn roll_back(&mut self, by: Actor, prefix: &str) -> Answer {
        let found = self.index.find(prefix).map(|entry| entry.hash.clone());
        let hash = match found {
            Ok(hash) => hash,
            Err(why) => return self.refuse(&by, error(why), None),
        };
        let why = format!("rolled back by {} at {}", by.name(), self.parts.clock.now());
        self.bring_back(by, "rollback", hash, why).await
    }

    /// Nobody confirmed in time.
    async fn give_up(&mut self) {
        self.confirm_by = None;
        let Some(pending) = self.index.pending.clone() else { return };
        let why = "they were not confirmed in time".to_owned();
        let answer = self.bring_back(Actor::Timer, "not confirmed", pending.back_to, why).await;
        if answer.result == Outcome::Refused {
            // It stays what it is, and the next start tries again.
            self.tell();
        }
    }

    /// Puts an accepted set in force again. The files on the disk, where they are others, are set aside.
    async fn bring_back(&mut self, by: Actor, how: &'static str, hash: String, why: String) -> Answer {
        let (path, accepted) = (self.config.path.clone(), self.accepted.clone());
        let wanted = hash.clone();
        let read = blocking(move || {
            let set = accepted.set(&wanted).map_err(|unread| error(format!("{unread:#}")))?;
            let loaded = Config::vet(&path, Origin::Kept(&set))?;
            // What the disk holds now is what no start shall take by itself.
            let on_disk = Config::vet(&path, Origin::Disk).map(|disk| disk.config.prints.whole);
            Ok((loaded, on_disk))
        });
        let (loaded, on_disk) = match read.await {
            Ok(read) => read,
            Err(report) => return self.refuse(&by, report, None),
        };
        let mut index = Index { pending: None, aside: None, ..self.index.clone() };
        let stale = match on_disk {
            Ok(disk) if disk == hash => None,
            Ok(disk) => {
                index.aside = Some(Aside { hash: disk, why: why.clone() });
                Some(format!("the files on the disk are set aside: {why}"))
            }
            Err(report) => Some(format!("the files on the disk are wrong: {}", first_error(&report))),
        };
        let mut answer = self.take(Change { loaded, by, how, index, stale }).await;
        if answer.result != Outcome::Refused {
            self.confirm_by = None;
            self.tell();
            if self.stale.is_some() {
                answer.notes.push(format!(
                    "the files on the disk say something else: they are not taken by a start or SIGHUP until they change, \
                     and by `pointsman reload` at once ({})",
                    self.config.path.display()
                ));
            }
        }
        answer
    }

    async fn read_disk(&self) -> Result<Loaded, Report> {
        let path = self.config.path.clone();
        blocking(move || Config::vet(&path, Origin::Disk)).await
    }

    /// Builds it, writes it down and puts it in force.
    async fn take(&mut self, change: Change) -> Answer {
        let Change { loaded, by, how, mut index, stale } = change;
        let Loaded { config, report, files } = loaded;
        let (config, old) = (Arc::new(config), Arc::clone(&self.config));
        let is_same = config.prints.whole == old.prints.whole;
        // Half a checkout, or a folder that is not mounted: nobody means to refuse all mail with 550.
        if config.rules.counts().domains == 0 && old.rules.counts().domains > 0 {
            let mut report = report;
            report.append(error(NO_DOMAIN.to_owned()));
            return self.refuse(&by, report, Some("the files on the disk were refused"));
        }
        if !is_same {
            let entry = start::entry_of(&config, &by, self.parts.clock.now(), how);
            index.entries.push(entry);
        }
        let writes = (!is_same || index != self.index).then_some(index);
        let prepared = self.prepare(Arc::clone(&config), files, writes).await;
        let (built, changes, index) = match prepared {
            Ok(prepared) => prepared,
            Err(failed) => {
                let mut report = report;
                report.append(failed);
                return self.refuse(&by, report, None);
            }
        };
        let came = config.routes.keys().filter(|route| !old.routes.contains_key(*route)).cloned().collect();
        // From here on nothing fails.
        self.parts.lookup = built.swap_in(&self.parts.inbound, &self.parts.outbound, &self.parts.store);
        self.config = config;
        self.index = index.unwrap_or_else(|| self.index.clone());
        self.stale = stale;
        self.tell();
        self.bring_routes_back(came).await;
        let waits = self.parts.fixed.waits(&self.config);
        if !is_same {
            events::without_function(&self.config.inert);
            if !waits.is_empty() {
                events::waits_for_restart(&waits.join(", "));
            }
        }
        let result = if is_same { Outcome::Unchanged } else { Outcome::Taken };
        let word = if by == Actor::Timer { "rolled-back" } else { result.as_str() };
        let now = identity(&self.config);
        events::configuration_taken(word, &by, short(&now.hash), short(&now.rule_set), &changes.summary());
        events::configuration_stale(self.stale.as_deref());
        let mut notes = self.strays();
        if !waits.is_empty() {
            let keys = waits.join("`, `");
            notes.push(format!("`{keys}`: what it says now waits for a restart; everything else is in force"));
        }
        Answer { result, report, changes, before: identity(&old), now, notes }
    }

    /// All that can fail: build, compare, write down.
    async fn prepare(
        &self,
        config: Arc<Config>,
        files: FileSet,
        index: Option<Index>,
    ) -> Result<(Built, Changes, Option<Index>), Report> {
        let before: Arc<Ruling> = self.parts.inbound.ruling();
        let (old, fixed, lookup) = (Arc::clone(&self.config), self.parts.fixed.clone(), self.parts.lookup.clone());
        let (accepted, now) = (self.accepted.clone(), self.parts.clock.now());
        blocking(move || {
            let built = live::build(&config, &fixed, Some((&before, &lookup)), now);
            let built = built.map_err(|failed| error(format!("{failed:#}")))?;
            let changes = Changes::between(&old, &config);
            let mut index = index;
            if let Some(index) = &mut index {
                let set = Some((config.prints.whole.as_str(), &files));
                accepted
                    .write(index, set)
                    .map_err(|failed| error(format!("cannot keep what was accepted: {failed:#}")))?;
            }
            Ok((built, changes, index))
        })
        .await
    }

    /// Nothing changes. `stale`: what that says of the files on the disk.
    fn refuse(&mut self, by: &Actor, report: Report, stale: Option<&str>) -> Answer {
        let why = first_error(&report);
        events::configuration_refused(by, report.errors(), &why);
        if let Some(stale) = stale {
            self.stale = Some(format!("{stale}: {why}"));
            events::configuration_stale(self.stale.as_deref());
            self.tell();
        }
        self.nothing_done(report)
    }

    fn nothing_done(&self, report: Report) -> Answer {
        let (before, now) = (identity(&self.config), identity(&self.config));
        Answer { result: Outcome::Refused, report, changes: Changes::default(), before, now, notes: Vec::new() }
    }

    fn to_be_confirmed(&self) -> Option<String> {
        let pending = self.index.pending.as_ref()?;
        Some(format!(
            "unless you say `pointsman rules confirm` by {}, {} comes back",
            crate::clock::Timestamp(pending.until),
            short(&pending.back_to)
        ))
    }

    /// Routes that have open legs and are not there.
    fn strays(&self) -> Vec<String> {
        let open = self.parts.store.open_legs().into_iter();
        let gone: BTreeSet<String> = open
            .filter(|(route, _, legs)| *legs > 0 && !self.config.routes.contains_key(route))
            .map(|(route, ..)| route)
            .collect();
        let note = |route: String| {
            format!(
                "there is no route `{route}` any more, and it has open legs: they are held as they come due \
                 (`pointsman queue reroute --on-route {route} --route R` sends them by another)"
            )
        };
        gone.into_iter().map(note).collect()
    }

    /// Legs that were held for want of their route go on.
    async fn bring_routes_back(&self, routes: Vec<String>) {
        for route in routes {
            let detail = no_such_route(&route);
            let held = Filter { route: Some(route.clone()), states: vec![State::Held], ..Filter::default() };
            let mut released = 0;
            loop {
                let filter = Filter { reason: Some(Reason::Route), limit: ROWS_MAX, ..held.clone() };
                // Where the store cannot be read, they go on within the hour.
                let Ok(rows) = self.parts.store.query(filter).await else { break };
                let legs = rows.iter().filter(|row| row.detail == detail).map(|row| (row.id, Operation::Release));
                let legs: Vec<_> = legs.collect();
                let (count, full) = (legs.len(), rows.len() == ROWS_MAX);
                let now = self.parts.clock.now();
                if count == 0 || self.parts.store.operate(legs, false, "reload", now).await.is_err() {
                    break;
                }
                released += count;
                if !full {
                    break;
                }
            }
            if released > 0 {
                events::route_is_back(&route, released);
                self.parts.inbound.handover.wake(&route);
            }
        }
    }

    /// What is looked at now and then without being asked: a renewed certificate, and whether the disk agrees again.
    async fn look(&mut self) {
        if self.certificate().is_some_and(|server| Some(stamps(server.files())) != self.stamps) {
            self.renew_certificate();
        }
        if self.stale.is_some()
            && let Ok(disk) = self.read_disk().await
            && disk.config.prints.whole == self.config.prints.whole
        {
            self.stale = None;
            events::configuration_stale(None);
            self.tell();
        }
    }

    /// Reads the certificate anew; one that cannot be used leaves the old one in place.
    fn renew_certificate(&mut self) {
        let Some(server) = self.certificate() else { return };
        match server.reload(self.parts.clock.now()) {
            Ok(expires) => events::certificate_reloaded(expires),
            // Also between the writing of one file and the other; then the next look finds both.
            Err(error) => events::certificate_kept(&error),
        }
        self.note_certificate();
    }

    fn note_certificate(&mut self) {
        let ruling = self.parts.inbound.ruling();
        self.stamps = ruling.tls.as_ref().map(|server| stamps(server.files()));
        if let Some(expires) = ruling.tls.as_ref().and_then(|server| server.expires()) {
            live::with_certificate(&ruling).for_each(|name| events::certificate_expiry(name, expires));
        }
    }

    fn certificate(&self) -> Option<Arc<tls::Server>> {
        self.parts.inbound.ruling().tls.clone()
    }

    fn tell(&self) {
        let told = Told {
            path: self.config.path.clone(),
            identity: identity(&self.config),
            since: self.index.current().map_or_else(|| self.parts.clock.now(), |entry| entry.at()),
            stale: self.stale.clone(),
            confirm_by: self.index.pending.as_ref().map(|pending| crate::clock::Timestamp(pending.until)),
            waits: self.parts.fixed.waits(&self.config),
            history: self.index.entries.clone(),
        };
        *self.told.write().expect("no code panics while it holds this lock") = told;
    }
}

fn identity(config: &Config) -> Identity {
    Identity { hash: config.prints.whole.clone(), rule_set: config.rules.hash().to_owned() }
}

fn error(what: String) -> Report {
    let mut report = Report::default();
    report.add(Diagnostic::error(what));
    report
}

/// Reads, parses and writes where that delays nobody's mail. A panic there is an error like any other.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Report> + Send + 'static) -> Result<T, Report> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => Err(error(format!("a fault of ours while it was read: {failed}"))),
    }
}

async fn heard(hang_ups: &mut Option<Signal>) {
    match hang_ups {
        Some(hang_ups) => {
            hang_ups.recv().await;
        }
        // Where signals cannot be heard there are still operators.
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

type Stamps = [Option<(u64, i64, i64)>; 2];

/// What tells that a file was written anew.
fn stamps(files: &tls::Files) -> Stamps {
    let stamp = |path: &PathBuf| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.ino(), data.mtime(), data.mtime_nsec()))
    };
    [stamp(&files.certificate), stamp(&files.key)]
}

const NO_DOMAIN: &str = "no file declares a domain any more: every recipient would be refused for good";
/// A renewal comes weeks before it is needed.
const LOOK: Duration = Duration::from_secs(60);
