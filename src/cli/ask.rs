//! The commands that ask the daemon, or, without one, the queue on disk.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::{Ended, Output, render};
use crate::admin::control::{self, Action, Line, Request, Scope};
use crate::admin::view::{Asked, Select};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::queue::sqlite::{OpenError, ReadOnly, SqliteStore};

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
    /// Send legs by another route
    Reroute {
        /// The route that they shall take (--route chooses the legs that take it now)
        #[arg(long, value_name = "ROUTE")]
        to_route: String,
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
        QueueCommand::Reroute { to_route, acting } => (acting, Action::Reroute { route: to_route.clone() }),
    };
    act(config, acting, action, Scope::Queue)
}

pub(super) fn quarantine(config: &Path, command: &QuarantineCommand) -> anyhow::Result<Ended> {
    match command {
        QuarantineCommand::List(listing) => legs(config, listing, Scope::Quarantine),
        QuarantineCommand::Show(listing) => show(config, listing, Scope::Quarantine),
        QuarantineCommand::Release(acting) => act(config, acting, Action::Release, Scope::Quarantine),
        QuarantineCommand::Deny(acting) => act(config, acting, Action::Deny, Scope::Quarantine),
    }
}

/// Journeys as text, legs as JSON; refused recipients with both where the filter may mean them.
pub(super) fn trace(config: &Path, args: &TraceArgs) -> anyhow::Result<Ended> {
    let mut select = args.listing.filter.select();
    let asked = select.take_refused();
    let json = args.listing.output.json;
    if !json {
        select.limit = select.limit.or(Some(JOURNEYS_SHOWN));
    }
    let source = Source::open(config)?;
    let request = if json {
        Request::Legs { select: select.clone(), scope: Scope::All }
    } else {
        Request::Messages { select: select.clone(), scope: Scope::All }
    };
    let (legs, refused) = match asked {
        Asked::Legs => (true, false),
        Asked::Refused => (false, true),
        Asked::Both => (true, true),
        Asked::Nothing => (false, false),
    };
    let mut lines = if legs { source.ask(&request)? } else { Vec::new() };
    if refused {
        lines.extend(source.ask(&Request::Refused { select })?);
    }
    print(&lines, json);
    if lines.is_empty() && !json {
        println!("nothing found");
    }
    Ok(Ended::Done)
}

pub(super) fn status(config: &Path, json: bool) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    print(&ask_daemon(&socket, &Request::Status)?, json);
    Ok(Ended::Done)
}

fn legs(config: &Path, listing: &Listing, scope: Scope) -> anyhow::Result<Ended> {
    let source = Source::open(config)?;
    let select = listing.filter.select();
    let lines = source.ask(&Request::Legs { select: select.clone(), scope })?;
    print(&lines, listing.output.json);
    if lines.is_empty() && !listing.output.json {
        println!("no legs");
    }
    // Who looks for a message here must not think that it is gone. Who names a state gets that one.
    if scope == Scope::Queue && select.state.is_empty() && !listing.output.json {
        let everything = Select { limit: None, ..select };
        let quarantined = source.ask(&Request::Legs { select: everything, scope: Scope::Quarantine })?.len();
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
    let lines = Source::open(config)?.ask(&Request::Messages { select, scope })?;
    print(&lines, listing.output.json);
    if lines.is_empty() {
        eprintln!("pointsman: nothing found");
        return Ok(Ended::Findings);
    }
    Ok(Ended::Done)
}

/// Acts, and says what became of each leg. Ends with findings where a leg that was meant was not changed.
fn act(config: &Path, acting: &Acting, action: Action, scope: Scope) -> anyhow::Result<Ended> {
    let select = acting.filter.select();
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    if select.is_everything() && !acting.all && action.is_drastic() {
        eprintln!("pointsman: name the legs by id or by a filter, or say --all");
        return Ok(Ended::Usage);
    }
    let scope = if select.id.is_some() { Scope::Open } else { scope };
    // What is being attempted anyway needs no retry.
    let in_flight_will_do = matches!(action, Action::Retry);
    let lines = ask_daemon(&socket, &Request::Operate { select, scope, action, dry_run: acting.dry_run })?;
    print(&lines, acting.output.json);
    let count = |ending: &str| {
        lines.iter().filter(|line| matches!(line, Line::Operated { result, .. } if result.contains(ending))).count()
    };
    let (done, in_flight) = (count("done"), if in_flight_will_do { count("in flight") } else { 0 });
    if !acting.output.json {
        println!("{done} of {} legs{}", lines.len(), if acting.dry_run { " would be changed" } else { " changed" });
    }
    Ok(if done + in_flight == lines.len() { Ended::Done } else { Ended::Findings })
}

fn not_running() -> Ended {
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

    fn ask(&self, request: &Request) -> anyhow::Result<Vec<Line>> {
        match self {
            Source::Daemon(socket) => ask_daemon(socket, request),
            Source::Disk(store) => ask_disk(store, request),
        }
    }
}

/// The socket of the daemon, where one answers.
fn daemon(config: &Path) -> anyhow::Result<Option<PathBuf>> {
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

fn data_dir(config: &Path) -> anyhow::Result<PathBuf> {
    Config::data_dir(config).map_err(|report| anyhow::anyhow!("{}", report.render(false)))
}

fn ask_daemon(socket: &Path, request: &Request) -> anyhow::Result<Vec<Line>> {
    let mut stream = UnixStream::connect(socket).context("the daemon is gone")?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    stream.write_all(text.as_bytes()).context("cannot ask the daemon")?;
    let mut lines = Vec::new();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).context("the daemon's answer broke off")? == 0 {
            bail!("the daemon's answer broke off");
        }
        match serde_json::from_str(&line).context("the daemon's answer is not understood")? {
            Line::End(_) => return Ok(lines),
            Line::Error(error) => bail!(error),
            other => lines.push(other),
        }
    }
}

/// Answers what can be answered without a daemon.
fn ask_disk(store: &ReadOnly, request: &Request) -> anyhow::Result<Vec<Line>> {
    let now = SystemClock::new().now();
    let wrong = |error: String| anyhow::anyhow!(error);
    crate::daemon::runtime()?.block_on(async {
        match request {
            Request::Legs { select, scope } => {
                let rows = store.query(select.filter(now, scope.states()).map_err(wrong)?).await?;
                Ok(rows.into_iter().map(|row| Line::Leg(Box::new(row.into()))).collect())
            }
            Request::Messages { select, scope } => {
                let rows = store.query(select.filter(now, scope.states()).map_err(wrong)?).await?;
                let mut lines = Vec::new();
                for id in control::messages_of(rows.iter().map(|row| row.id.message)) {
                    lines.extend(store.message(id).await?.map(|row| Line::Message(Box::new(row.into()))));
                }
                Ok(lines)
            }
            Request::Refused { select } => {
                let rows = store.refused(&select.refused(now).map_err(wrong)?)?;
                Ok(rows.into_iter().map(|row| Line::Refused(Box::new(row.into()))).collect())
            }
            Request::Operate { .. } | Request::Status => bail!("the daemon is not running"),
        }
    })
}

fn print(lines: &[Line], json: bool) {
    if json {
        lines.iter().for_each(|line| println!("{}", render::json(line)));
    } else {
        print!("{}", render::text(lines));
    }
}

/// Journeys that `trace` tells where nobody asks for more.
const JOURNEYS_SHOWN: usize = 20;
