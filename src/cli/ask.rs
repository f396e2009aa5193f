//! The commands that ask the daemon, or, without one, the queue on disk.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::evidence::{self, Secrets};
use super::{Ended, Output, render};
use crate::admin::control::{self, Action, Line, Request, Scope};
use crate::admin::pages::{Messages, Pages};
use crate::admin::view::{Asked, Select};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::queue::sqlite::{OpenError, ROWS_MAX, ReadOnly, SqliteStore};
use crate::reload::start;

#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// The queued and held legs
    List(Listing),
    /// Their messages, whole
    Show(Listing),
    /// Make legs due now
    Retry(Acting),
    /// Let legs wait until they are released
    Hold(Acting),
    /// Let held legs go on
    Release(Acting),
    /// Give legs up as bounced
    Bounce(Acting),
    /// Give legs up without a word
    Drop(Acting),
    /// Decide legs anew by today's rules
    Redecide(Acting),
    /// Send legs to another target
    Retarget {
        /// A target's name in the rules, or an address
        #[arg(long)]
        to: String,
        #[command(flatten)]
        acting: Acting,
    },
    /// Send legs by another route: here --route is where they shall go
    Reroute {
        /// Only those that take this route now
        #[arg(long, value_name = "ROUTE")]
        on_route: Option<String>,
        #[command(flatten)]
        acting: Acting,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum QuarantineCommand {
    /// The quarantined legs
    List(Listing),
    /// Their messages, whole
    Show(Listing),
    /// Let legs go on to their targets
    Release(Acting),
    /// Give legs up: they are discarded
    Deny(Acting),
}

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(flatten)]
    listing: Listing,
    /// One message, by --id, as text to hand over
    #[arg(long, conflicts_with = "json")]
    evidence: bool,
}

#[derive(Debug, Args)]
pub(super) struct Listing {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Acting {
    #[command(flatten)]
    filter: FilterArgs,
    /// Show which legs are meant, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Act on every leg, where nothing else narrows the choice
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

/// Which legs. All that is given must hold.
#[derive(Debug, Args)]
struct FilterArgs {
    /// A message's id, or a leg's
    #[arg(value_name = "ID", conflicts_with = "id")]
    which: Option<String>,
    /// The same
    #[arg(long)]
    id: Option<String>,
    /// The alias, as given at RCPT
    #[arg(long)]
    recipient: Option<String>,
    /// The final recipient: its name in the rules, or its address
    #[arg(long)]
    target: Option<String>,
    #[arg(long)]
    route: Option<String>,
    /// Repeat it for several; `trace` also knows `refused`, which has no leg
    #[arg(long)]
    state: Vec<String>,
    #[arg(long)]
    reason: Option<String>,
    /// The envelope's sender; "<>" is the null sender
    #[arg(long)]
    sender: Option<String>,
    /// Part of the From field
    #[arg(long)]
    from: Option<String>,
    /// Part of the subject
    #[arg(long)]
    subject: Option<String>,
    #[arg(long)]
    message_id: Option<String>,
    /// The client's address
    #[arg(long, value_name = "IP")]
    client: Option<String>,
    /// An instant, or how long ago: 2026-11-21T20:00:00Z, 2h
    #[arg(long, value_name = "T")]
    since: Option<String>,
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// At the most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Show the addresses of targets: whoever knows one can open cases past us
    #[arg(long)]
    reveal: bool,
}

impl FilterArgs {
    fn select(&self) -> Select {
        Select {
            id: self.id.clone().or_else(|| self.which.clone()),
            recipient: self.recipient.clone(),
            target: self.target.clone(),
            route: self.route.clone(),
            state: self.state.clone(),
            reason: self.reason.clone(),
            sender: self.sender.clone(),
            from: self.from.clone(),
            subject: self.subject.clone(),
            message_id: self.message_id.clone(),
            client: self.client.clone(),
            since: self.since.clone(),
            until: self.until.clone(),
            limit: self.limit,
            reveal: self.reveal,
        }
    }
}

pub(super) fn queue(config: &Path, command: &QueueCommand) -> anyhow::Result<Ended> {
    let (acting, action) = match command {
        QueueCommand::List(listing) => return legs(config, listing, Scope::Queue),
        QueueCommand::Show(listing) => return show(config, listing, Scope::Open),
        QueueCommand::Retry(acting) => (acting, Action::Retry),
        QueueCommand::Hold(acting) => (acting, Action::Hold),
        QueueCommand::Release(acting) => (acting, Action::Release),
        QueueCommand::Bounce(acting) => (acting, Action::Bounce),
        QueueCommand::Drop(acting) => (acting, Action::Drop),
        QueueCommand::Redecide(acting) => (acting, Action::Redecide),
        QueueCommand::Retarget { to, acting } => (acting, Action::Retarget { to: to.clone() }),
        QueueCommand::Reroute { on_route, acting } => {
            let mut select = acting.filter.select();
            let Some(route) = std::mem::replace(&mut select.route, on_route.clone()) else {
                eprintln!("pointsman: say with --route where the legs shall go");
                return Ok(Ended::Usage);
            };
            return act(config, acting, select, Action::Reroute { route }, Scope::Queue);
        }
    };
    act(config, acting, acting.filter.select(), action, Scope::Queue)
}

pub(super) fn quarantine(config: &Path, command: &QuarantineCommand) -> anyhow::Result<Ended> {
    match command {
        QuarantineCommand::List(listing) => legs(config, listing, Scope::Quarantine),
        QuarantineCommand::Show(listing) => show(config, listing, Scope::Quarantine),
        QuarantineCommand::Release(acting) => {
            act(config, acting, acting.filter.select(), Action::Release, Scope::Quarantine)
        }
        QuarantineCommand::Deny(acting) => act(config, acting, acting.filter.select(), Action::Deny, Scope::Quarantine),
    }
}

/// Journeys as text, legs as JSON; refused recipients with both where the filter may mean them.
pub(super) fn trace(config: &Path, args: &TraceArgs) -> anyhow::Result<Ended> {
    let mut select = args.listing.filter.select();
    if args.evidence {
        let secrets = if select.reveal { Secrets::Shown } else { Secrets::Masked };
        // It masks by itself, and has to know what.
        return evidence(config, &Select { reveal: true, ..select }, secrets);
    }
    let asked = select.take_refused();
    let json = args.listing.output.json;
    let source = Source::open(config)?;
    let mut list = List::new(json, select.limit.unwrap_or(JOURNEYS_SHOWN));
    let (legs, refused) = match asked {
        Asked::Legs => (true, false),
        Asked::Refused => (false, true),
        Asked::Both => (true, true),
        Asked::Nothing => (false, false),
    };
    if legs {
        let (select, scope) = (list.asked(&select), Scope::All);
        let request = if json { Request::Legs { select, scope } } else { Request::Messages { select, scope } };
        source.ask(&request, &mut |line| list.take(line))?;
        list.cut();
    }
    if refused {
        source.ask(&Request::Refused { select }, &mut |line| list.take(line))?;
    }
    list.end("nothing found");
    Ok(Ended::Done)
}

fn evidence(config: &Path, select: &Select, secrets: Secrets) -> anyhow::Result<Ended> {
    if select.id.is_none() {
        eprintln!("pointsman: name the message: trace --evidence ID");
        return Ok(Ended::Usage);
    }
    let mut found = None;
    let request = Request::Messages { select: select.clone(), scope: Scope::All };
    Source::open(config)?.ask(&request, &mut |line| {
        if let Line::Message(message) = line {
            found = Some(message);
        }
    })?;
    let Some(message) = found else {
        eprintln!("pointsman: nothing found");
        return Ok(Ended::Findings);
    };
    print!("{}", evidence::render(&message, config, secrets, SystemClock::new().now()));
    Ok(Ended::Done)
}

pub(super) fn status(config: &Path, json: bool) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    let mut list = List::new(json, 1);
    ask_daemon(&socket, &Request::Status, &mut |line| list.take(line))?;
    list.end("");
    Ok(Ended::Done)
}

fn legs(config: &Path, listing: &Listing, scope: Scope) -> anyhow::Result<Ended> {
    let select = listing.filter.select();
    let source = Source::open(config)?;
    let mut list = List::new(listing.output.json, select.limit.unwrap_or(LEGS_SHOWN));
    source.ask(&Request::Legs { select: list.asked(&select), scope }, &mut |line| list.take(line))?;
    list.cut();
    list.end("no legs");
    // Who looks for a message here must not think that it is gone. Who names a state gets that one.
    if scope == Scope::Queue && select.state.is_empty() && !listing.output.json {
        let everything = Select { limit: None, ..select };
        let mut quarantined = 0;
        source.ask(&Request::Legs { select: everything, scope: Scope::Quarantine }, &mut |_| quarantined += 1)?;
        if quarantined > 0 {
            println!("{quarantined} quarantined: see `pointsman quarantine list`");
        }
    }
    Ok(Ended::Done)
}

fn show(config: &Path, listing: &Listing, scope: Scope) -> anyhow::Result<Ended> {
    let select = listing.filter.select();
    // Who names a message wants it in whatever state it is.
    let scope = if select.id.is_some() { Scope::All } else { scope };
    let mut list = List::new(listing.output.json, select.limit.unwrap_or(MESSAGES_SHOWN));
    let request = Request::Messages { select: list.asked(&select), scope };
    Source::open(config)?.ask(&request, &mut |line| list.take(line))?;
    list.cut();
    if list.heard == 0 {
        eprintln!("pointsman: nothing found");
        return Ok(Ended::Findings);
    }
    list.end("");
    Ok(Ended::Done)
}

/// Acts, and says what became of each leg. Ends with findings where a leg that was meant was not changed.
fn act(config: &Path, acting: &Acting, select: Select, action: Action, scope: Scope) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    if select.is_everything() && !acting.all && action.is_drastic() {
        eprintln!("pointsman: name the legs by id or by a filter, or say --all");
        return Ok(Ended::Usage);
    }
    let scope = if select.id.is_some() { Scope::Open } else { scope };
    // What is being attempted anyway needs no retry.
    let in_flight_will_do = matches!(action, Action::Retry);
    let (mut met, mut done, mut in_flight) = (0, 0, 0);
    let mut list = List::new(acting.output.json, usize::MAX);
    ask_daemon(&socket, &Request::Operate { select, scope, action, dry_run: acting.dry_run }, &mut |line| {
        if let Line::Operated { result, .. } = &line {
            met += 1;
            done += usize::from(result.ends_with("done"));
            in_flight += usize::from(in_flight_will_do && result.starts_with("in flight"));
        }
        list.take(line);
    })?;
    list.end("");
    if !acting.output.json {
        println!("{done} of {met} legs{}", if acting.dry_run { " would be changed" } else { " changed" });
    }
    Ok(if done + in_flight == met { Ended::Done } else { Ended::Findings })
}

/// An answer on its way to the terminal: JSON line by line as it comes, however long it is; text when all was heard,
/// because it is a table, and no more of it than was asked for.
pub(super) struct List {
    json: bool,
    /// Lines of text that are shown.
    shown: usize,
    lines: Vec<Line>,
    heard: usize,
    more: bool,
}

impl List {
    pub(super) fn new(json: bool, shown: usize) -> List {
        List { json, shown, lines: Vec::new(), heard: 0, more: false }
    }

    /// What to ask: for text one more than is shown, to see whether there are more.
    fn asked(&self, select: &Select) -> Select {
        let limit = if self.json { select.limit } else { Some(self.shown.saturating_add(1)) };
        Select { limit, ..select.clone() }
    }

    pub(super) fn take(&mut self, line: Line) {
        self.heard += 1;
        if self.json {
            if writeln!(std::io::stdout(), "{}", render::json(&line)).is_err() {
                // Whoever reads has read enough, such as `head`.
                std::process::exit(0);
            }
        } else {
            self.lines.push(line);
        }
    }

    /// All that was limited was heard.
    fn cut(&mut self) {
        self.more = self.lines.len() > self.shown;
        self.lines.truncate(self.shown);
    }

    /// Writes the text; `nothing` where there is none.
    pub(super) fn end(&self, nothing: &str) {
        if self.json {
            return;
        }
        print!("{}", render::text(&self.lines));
        if self.more {
            println!("… and more; use --limit");
        }
        if self.heard == 0 && !nothing.is_empty() {
            println!("{nothing}");
        }
    }
}

pub(super) fn not_running() -> Ended {
    eprintln!("pointsman: the daemon is not running; start it with `pointsman serve`");
    Ended::NotRunning
}

/// Who answers.
enum Source {
    Daemon(PathBuf),
    Disk(Box<ReadOnly>),
}

impl Source {
    /// The daemon where it runs, else its queue.
    fn open(config: &Path) -> anyhow::Result<Source> {
        if let Some(socket) = daemon(config)? {
            return Ok(Source::Daemon(socket));
        }
        let data = data_dir(config)?;
        match SqliteStore::open_read_only(&data) {
            Ok(store) => Ok(Source::Disk(Box::new(store))),
            Err(OpenError::Missing { path }) => bail!("there is no queue in `{}` yet", path.display()),
            Err(error) => Err(error.into()),
        }
    }

    /// `take` hears each line of the answer as it comes.
    fn ask(&self, request: &Request, take: &mut dyn FnMut(Line)) -> anyhow::Result<()> {
        match self {
            Source::Daemon(socket) => ask_daemon(socket, request, take),
            Source::Disk(store) => ask_disk(store, request, take),
        }
    }
}

/// The socket of the daemon, where one answers.
pub(super) fn daemon(config: &Path) -> anyhow::Result<Option<PathBuf>> {
    let socket = control::socket_path(&data_dir(config)?);
    match UnixStream::connect(&socket) {
        Ok(_) => Ok(Some(socket)),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| format!("cannot open `{}`", socket.display()))
        }
        // No socket, or nobody behind it.
        Err(_) => Ok(None),
    }
}

pub(super) fn data_dir(config: &Path) -> anyhow::Result<PathBuf> {
    Config::data_dir(config).or_else(|report| {
        // A daemon may well run on what it accepted before.
        start::data_dir(config).ok_or_else(|| anyhow::anyhow!("{}", report.render(false)))
    })
}

pub(super) fn ask_daemon(socket: &Path, request: &Request, take: &mut dyn FnMut(Line)) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).context("the daemon is gone")?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    stream.write_all(text.as_bytes()).context("cannot ask the daemon")?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).context("the daemon's answer broke off")? == 0 {
            bail!("the daemon's answer broke off");
        }
        match serde_json::from_str(&line).context("the daemon's answer is not understood")? {
            Line::End(_) => return Ok(()),
            Line::Error(error) => bail!(error),
            other => take(other),
        }
    }
}

/// Answers what can be answered without a daemon.
fn ask_disk(store: &ReadOnly, request: &Request, take: &mut dyn FnMut(Line)) -> anyhow::Result<()> {
    let now = SystemClock::new().now();
    let take = &mut |line: Line| take(if request.reveals() { line } else { line.masked() });
    let wrong = |error: String| anyhow::anyhow!(error);
    crate::daemon::runtime()?.block_on(async {
        match request {
            Request::Legs { select, scope } => {
                let mut pages = Pages::new(select.filter(now, scope.states()).map_err(wrong)?, ROWS_MAX);
                while let Some(question) = pages.question() {
                    let rows = store.query(question).await?;
                    pages.answered(&rows);
                    rows.into_iter().for_each(|row| take(Line::Leg(Box::new(row.into()))));
                }
            }
            Request::Messages { select, scope } => {
                let mut messages = Messages::new(select.filter(now, scope.states()).map_err(wrong)?);
                while let Some(question) = messages.question() {
                    for id in messages.answered(&store.query(question).await?) {
                        if let Some(row) = store.message(id).await? {
                            take(Line::Message(Box::new(row.into())));
                        }
                    }
                }
            }
            Request::Refused { select } => {
                let rows = store.refused(&select.refused(now).map_err(wrong)?)?;
                rows.into_iter().for_each(|row| take(Line::Refused(Box::new(row.into()))));
            }
            Request::Operate { .. }
            | Request::Status
            | Request::Reload { .. }
            | Request::Confirm
            | Request::RollBack { .. }
            | Request::History
            | Request::Audit { .. }
            | Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Doctor
            | Request::KeepBodies
            | Request::Erase { .. }
            | Request::Redeliver { .. }
            | Request::Probe { .. }
            | Request::Drain => bail!("the daemon is not running"),
        }
        Ok(())
    })
}

/// Journeys that `trace` tells where nobody asks for more.
const JOURNEYS_SHOWN: usize = 20;
/// A table of which nobody reads more.
const LEGS_SHOWN: usize = 10_000;
const MESSAGES_SHOWN: usize = 1_000;
