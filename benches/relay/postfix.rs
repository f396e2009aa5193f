//! A private Postfix that does the same job: one alias, one next hop.
//!
//! Configuration, queue and data lie in a directory of their own; the machine's own Postfix is not touched. All
//! settings are the defaults (so the queue file is synced before the 250), checks are off, and the services are those
//! of Debian's master.cf that such mail passes, not chrooted, because the directory has no copy of /etc. Its log goes
//! to a file of its own, so that a run does not fill the machine's.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::machine::{self, Process};
use crate::tools::{ALIAS, TARGET};

/// A running Postfix.
pub(crate) struct Postfix {
    master: Process,
    directory: TempDir,
    address: SocketAddr,
}

impl Postfix {
    /// Starts one that hands everything to `sink`.
    pub(crate) fn start(sink: SocketAddr) -> anyhow::Result<Postfix> {
        let program = machine::find("postfix")?;
        ensure!(machine::is_root(), "Postfix needs root");
        let directory = machine::scratch("postfix")?;
        let path = directory.path();
        for name in ["etc", "queue", "data"] {
            fs::create_dir(path.join(name)).with_context(|| format!("cannot create {name}"))?;
        }
        let (user, group) = postfix_user()?;
        chown(path.join("data"), Some(user), Some(group)).context("cannot give the data directory away")?;
        let address = machine::free_port()?;
        fs::write(path.join("etc/main.cf"), main_cf(path, sink)).context("cannot write main.cf")?;
        fs::write(path.join("etc/master.cf"), master_cf(address)).context("cannot write master.cf")?;
        let start_log = File::create(path.join("start.log")).context("cannot create start.log")?;
        let master = Process::start(
            Command::new(program)
                .arg("-c")
                .arg(path.join("etc"))
                .arg("start-fg")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(start_log),
        )?;
        let postfix = Postfix { master, directory, address };
        machine::wait_for_listener(address).with_context(|| postfix.complaint())?;
        Ok(postfix)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The master, from which all its processes descend.
    pub(crate) fn id(&self) -> u32 {
        self.master.id()
    }

    /// Whether its queue is empty; where it is not, tells it to try everything now.
    pub(crate) fn is_empty(&self) -> anyhow::Result<bool> {
        let queue = self.directory.path().join("queue");
        if ["maildrop", "incoming", "active", "deferred"].iter().all(|name| !holds_file(&queue.join(name))) {
            return Ok(true);
        }
        let mut flush = Command::new(machine::find("postqueue")?);
        flush.arg("-c").arg(self.directory.path().join("etc")).arg("-f");
        let output = flush.output().context("cannot run postqueue")?;
        ensure!(output.status.success(), "postqueue: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(false)
    }

    fn complaint(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        format!("Postfix says: {}{}", read("start.log"), read("mail.log"))
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let Ok(program) = machine::find("postfix") else { return };
        // `stop` waits until the services have ended. Where it fails, the master is a child that gets killed, and
        // the services end when they notice.
        let _ = Command::new(program).arg("-c").arg(self.directory.path().join("etc")).arg("stop").output();
    }
}

/// A deferred queue is hashed into directories, which stay when they are empty.
fn holds_file(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| if entry.path().is_dir() { holds_file(&entry.path()) } else { true })
}

/// User and group of Postfix's daemons, from the machine's own list: the package created them.
fn postfix_user() -> anyhow::Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let Some(line) = passwd.lines().find(|line| line.starts_with("postfix:")) else { bail!("no user postfix") };
    let mut fields = line.split(':').skip(2).map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(user)), Some(Ok(group))) => Ok((user, group)),
        (_, _) => bail!("cannot read `{line}`"),
    }
}

fn main_cf(path: &Path, sink: SocketAddr) -> String {
    let path = path.display();
    let (host, port) = (sink.ip(), sink.port());
    format!(
        "compatibility_level = 3.6\n\
         queue_directory = {path}/queue\n\
         data_directory = {path}/data\n\
         maillog_file = {path}/mail.log\n\
         maillog_file_prefixes = {path}\n\
         myhostname = mx.solarmora.com\n\
         mydestination =\n\
         alias_maps =\n\
         alias_database =\n\
         inet_interfaces = 127.0.0.1\n\
         inet_protocols = ipv4\n\
         mynetworks = 127.0.0.0/8\n\
         virtual_alias_maps = inline:{{ {{ {ALIAS} = {TARGET} }} }}\n\
         relayhost = [{host}]:{port}\n"
    )
}

/// Name, type, private, unprivileged, chroot, wake-up, limit and program, as master(5) has them.
fn master_cf(address: SocketAddr) -> String {
    format!("{address} inet n - n - - smtpd\n{SERVICES}")
}

const SERVICES: &str = "\
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
";
