//! The machine under the benchmark: processes and their cost, ports, directories, limits.
//!
//! Linux only: costs are read from /proc. Everything that is started is held by a guard that ends it, and every wait
//! has a limit and listens to ctrl-C, so that an interrupted run leaves neither daemons nor directories behind.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

/// A child that does not outlive us.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Process(child))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs; one that has ended is reaped.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Whether it has ended with a failure.
    pub(crate) fn has_failed(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(status)) if !status.success())
    }

    /// Waits for its end, and tells whether that was a success.
    pub(crate) fn has_succeeded(&mut self) -> bool {
        self.0.wait().is_ok_and(|status| status.success())
    }

    pub(crate) fn take_stdout(&mut self) -> Option<impl Read + Send + 'static> {
        self.0.stdout.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks `probe` until it has something; the error says what was waited for.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        check_interrupt()?;
        ensure!(started.elapsed() < limit, "no {what} after {limit:?}");
        thread::sleep(PROBE_PAUSE);
    }
}

/// Short beside anything waited for, long beside the cost of a look.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn wait_for_listener(address: SocketAddr) -> anyhow::Result<()> {
    wait_for(&format!("listener on {address}"), START_LIMIT, || Ok(TcpStream::connect(address).ok().map(drop)))
}

/// How long a server may take to come up; they take well under a second each.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Turns ctrl-C into an error of the next wait, so that the guards run.
pub(crate) fn watch_for_interrupt() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch signals")?;
    thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

pub(crate) fn check_interrupt() -> anyhow::Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// A program by name. The system's directories are searched too: a user's PATH often lacks them.
pub(crate) fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is missing; on Debian: apt-get install postfix"))
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A loopback port that nobody listens on, another one with each call.
///
/// Below the range from which the kernel takes local ports: a load opens thousands of those, and one of them would
/// sooner or later sit on our port while no sink listens there.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Two runs at once begin at different places.
    let first = u16::try_from(std::process::id() % 10_000).expect("less than 10,000") + 20_000;
    loop {
        let port = first + TAKEN.fetch_add(1, Ordering::Relaxed);
        ensure!(port < 32_000, "no free loopback port below 32,000");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

/// A directory for one daemon. It lies under `/var/tmp` unless TMPDIR is set: `/tmp` is often memory, where a sync
/// costs nothing. Others may walk through it, for Postfix's daemons are other users.
pub(crate) fn scratch(name: &str) -> anyhow::Result<TempDir> {
    let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let directory = tempfile::Builder::new()
        .prefix(&format!("pointsman-{name}-"))
        .tempdir_in(&base)
        .with_context(|| format!("cannot create a directory under {}", base.display()))?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).context("cannot open the directory")?;
    Ok(directory)
}

/// CPU time that a process and all its descendants have used, those that have ended included.
pub(crate) fn cpu_of_tree(root: u32) -> anyhow::Result<Duration> {
    let processes: Vec<ProcessTimes> = fs::read_dir("/proc")
        .context("cannot read /proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(ProcessTimes::read)
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(processes.iter().filter(|process| process.parent == parent).map(|process| process.id));
        next += 1;
    }
    let ticks: u64 = processes.iter().filter(|process| tree.contains(&process.id)).map(|process| process.ticks).sum();
    Ok(Duration::from_millis(ticks * (1000 / TICKS_PER_SECOND)))
}

/// USER_HZ, in which /proc counts: 100 on every architecture that Debian releases for.
const TICKS_PER_SECOND: u64 = 100;

struct ProcessTimes {
    id: u32,
    parent: u32,
    /// Its own and those of children that it has reaped, in user and in kernel mode.
    ticks: u64,
}

impl ProcessTimes {
    /// `None` where the process has just ended.
    fn read(id: u32) -> Option<ProcessTimes> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // proc_pid_stat(5): the name in parentheses may hold anything; after it come state, parent and so on.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(ProcessTimes { id, parent: fields.get(1)?.parse().ok()?, ticks })
    }
}

/// A process's memory in bytes: what it has now, and the most that it ever had.
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) peak: u64,
}

pub(crate) fn memory_of(process: u32) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the daemon is gone")?;
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Ok(Memory {
        resident: bytes("VmRSS").context("/proc tells no VmRSS")?,
        peak: bytes("VmHWM").context("/proc tells no VmHWM")?,
    })
}

/// Starts this program anew under a higher limit of open files where the present one is below `wanted`. Our children
/// inherit it. Without `unsafe` a process cannot raise its own limit, so prlimit(1) does it.
pub(crate) fn allow_files(wanted: u64) -> anyhow::Result<()> {
    let limits = fs::read_to_string("/proc/self/limits").context("cannot read our limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of open files")?;
    let mut values = line.split_whitespace().map(|value| value.parse().unwrap_or(u64::MAX));
    let (Some(soft), Some(hard)) = (values.next(), values.next()) else { bail!("cannot read `{line}`") };
    if wanted <= soft || std::env::var_os(RESTARTED).is_some() {
        return Ok(());
    }
    // Only root may raise the hard limit; others get as far as it goes, and the memory test says if that is too low.
    let hard = if is_root() { hard.max(wanted) } else { hard };
    let limit = format!("--nofile={}:{hard}", wanted.min(hard));
    let program = std::env::current_exe().context("cannot find this program")?;
    let error =
        Command::new("prlimit").arg(limit).arg(program).args(std::env::args_os().skip(1)).env(RESTARTED, "1").exec();
    Err(error).context("cannot run prlimit; on Debian: apt-get install util-linux")
}

/// Set in the second life, so that there is no third.
const RESTARTED: &str = "POINTSMAN_BENCH_RESTARTED";

/// What a reader must know to judge the figures: cores, what else ran, and on what the queues lie.
pub(crate) fn describe(place: &Path) -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (mount, kind) = file_system(place).unwrap_or(("?".into(), "?".into()));
    let mut text = format!(
        "{cores} cores, load {load} at the start, Linux {}; queues under {} ({kind} on {mount}).\n\
         Source, relay and sink share the cores: compare ratios within a round, not figures across machines.",
        kernel.trim(),
        place.parent().unwrap_or(place).display(),
    );
    if load.parse::<f64>().is_ok_and(|load| load > QUIET_LOAD) {
        text.push_str("\nCAUTION: the machine is busy with something else; the ratios will wander.");
    }
    if kind == "tmpfs" {
        text.push_str("\nCAUTION: the queues lie in memory, so a sync costs nothing; set TMPDIR to a disk.");
    }
    text
}

/// One core half busy: below that, our own start alone explains it.
const QUIET_LOAD: f64 = 0.5;

/// Mount point and type of the file system that holds `place`.
fn file_system(place: &Path) -> Option<(String, String)> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        })
        .filter(|(mount, _)| place.starts_with(mount))
        .max_by_key(|(mount, _)| mount.len())
}
