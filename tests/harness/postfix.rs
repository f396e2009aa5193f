//! Postfix and its test tools as our peers: a private instance, `smtp-sink`, `smtp-source`.
//!
//! The instance lives in a temporary directory (configuration, queue, data, mailboxes) and listens on one loopback
//! port; the machine's own Postfix is not touched. Its daemons drop to the user `postfix`, so all of this needs root.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{find, run, user_ids, wait_for};

/// A private Postfix.
pub struct Postfix {
    dir: TempDir,
    master: Child,
    address: SocketAddr,
}

impl Postfix {
    /// One that takes mail for mon-crm.com into a maildir: see [`Postfix::mails`].
    pub fn as_crm() -> Postfix {
        Postfix::as_crm_with("")
    }

    /// As [`Postfix::as_crm`], with further lines of main.cf.
    pub fn as_crm_with(more: &str) -> Postfix {
        let (uid, gid) = user_ids("postfix");
        Postfix::start(&format!(
            "virtual_mailbox_domains = mon-crm.com\n\
             virtual_mailbox_base = $queue_directory/../mail\n\
             virtual_mailbox_maps = static:inbox/\n\
             virtual_minimum_uid = 1\n\
             virtual_uid_maps = static:{uid}\n\
             virtual_gid_maps = static:{gid}\n{more}"
        ))
    }

    /// One that hands all it gets to `daemon`, as a mail host in front of us would.
    pub fn as_upstream(daemon: SocketAddr) -> Postfix {
        Postfix::as_upstream_with(daemon, "")
    }

    /// As [`Postfix::as_upstream`], with further lines of main.cf.
    pub fn as_upstream_with(daemon: SocketAddr, more: &str) -> Postfix {
        Postfix::start(&format!("relayhost = [{}]:{}\nmydestination =\n{more}", daemon.ip(), daemon.port()))
    }

    fn start(role: &str) -> Postfix {
        let dir = open_dir();
        let path = dir.path();
        for (name, owner) in [("etc", "root"), ("queue", "root"), ("data", "postfix"), ("mail", "postfix")] {
            owned_dir(&path.join(name), owner);
        }
        let address = free_port();
        let shown = path.display();
        let main = format!(
            "compatibility_level = 3.6\n\
             queue_directory = {shown}/queue\n\
             data_directory = {shown}/data\n\
             maillog_file = {shown}/mail.log\n\
             maillog_file_prefixes = {shown}\n\
             myhostname = postfix.example.net\n\
             mydestination =\n\
             inet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\n\
             mynetworks = 127.0.0.0/8\n\
             alias_maps =\n\
             alias_database =\n\
             smtputf8_enable = yes\n\
             minimal_backoff_time = 1s\n\
             queue_run_delay = 1s\n\
             {role}"
        );
        fs::write(path.join("etc/main.cf"), main).unwrap();
        fs::write(path.join("etc/master.cf"), master_cf(address)).unwrap();
        let master = Command::new(find("postfix").expect("the test asked whether Postfix is there"))
            .args(["-c", &format!("{shown}/etc"), "start-fg"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path.join("start.log")).unwrap())
            .spawn()
            .expect("Postfix can be started");
        let postfix = Postfix { dir, master, address };
        wait_for("Postfix to accept", || TcpStream::connect(address).ok());
        postfix
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The messages in the maildir as Postfix stored them: LF, Return-Path, X-Original-To, Delivered-To and its own
    /// Received above ours.
    pub fn mails(&self) -> Vec<Vec<u8>> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("mail/inbox/new")) else { return Vec::new() };
        entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    pub fn wait_for_mails(&self, count: usize) -> Vec<Vec<u8>> {
        wait_for(&format!("{count} mails in Postfix's maildir"), || Some(self.mails()).filter(|m| m.len() >= count))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("mail.log")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let started = fs::read_to_string(self.dir.path().join("start.log")).unwrap_or_default();
            eprintln!("--- Postfix's log:\n{started}\n{}---", self.log());
        }
        let etc = self.dir.path().join("etc");
        let stop = Command::new(find("postfix").expect("it was started")).arg("-c").arg(etc).arg("stop").output();
        // Where it cannot be stopped politely, its master is the child that we may kill.
        if !stop.is_ok_and(|output| output.status.success()) {
            let _ = self.master.kill();
        }
        let _ = self.master.wait();
    }
}

/// Only the services that these tests use, none of them in a chroot, which would lack /etc.
fn master_cf(address: SocketAddr) -> String {
    let mut text = format!("{address} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n");
    for (service, program) in [
        ("pickup unix n - n 60 1", "pickup"),
        ("cleanup unix n - n - 0", "cleanup"),
        ("qmgr unix n - n 1 1", "qmgr"),
        ("rewrite unix - - n - -", "trivial-rewrite"),
        ("bounce unix - - n - 0", "bounce"),
        ("defer unix - - n - 0", "bounce"),
        ("trace unix - - n - 0", "bounce"),
        ("verify unix - - n - 1", "verify"),
        ("flush unix n - n 1000? 0", "flush"),
        ("proxymap unix - - n - -", "proxymap"),
        ("smtp unix - - n - -", "smtp"),
        ("relay unix - - n - -", "smtp"),
        ("showq unix n - n - -", "showq"),
        ("error unix - - n - -", "error"),
        ("retry unix - - n - -", "error"),
        ("discard unix - - n - -", "discard"),
        ("virtual unix - n n - -", "virtual"),
        ("anvil unix - - n - 1", "anvil"),
        ("scache unix - - n - 1", "scache"),
        ("tlsmgr unix - - n 1000? 1", "tlsmgr"),
    ] {
        text.push_str(&format!("{service} {program}\n"));
    }
    text
}

/// Postfix's `smtp-sink`, which dumps each transaction into a file of its own.
pub struct SmtpSink {
    dir: TempDir,
    process: Child,
    address: SocketAddr,
}

/// A dumped transaction. `smtp-sink` writes lines with LF and notes the envelope in fields of its own.
#[derive(Debug)]
pub struct Dump {
    pub sender: String,
    pub recipients: Vec<String>,
    /// What came after DATA, with LF.
    pub message: String,
}

impl SmtpSink {
    /// Starts one; `options` such as `["-8"]` take abilities away.
    pub fn start(options: &[&str]) -> SmtpSink {
        let dir = open_dir();
        owned_dir(&dir.path().join("dumps"), "postfix");
        let address = free_port();
        let process = Command::new(find("smtp-sink").expect("the test asked whether it is there"))
            .args(["-u", "postfix", "-d", &format!("{}/dumps/mail.", dir.path().display())])
            .args(options)
            .args([&address.to_string(), "100"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("smtp-sink can be started");
        let sink = SmtpSink { dir, process, address };
        wait_for("smtp-sink to accept", || TcpStream::connect(address).ok());
        sink
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The transactions that have ended, that is, whose files hold a whole message.
    pub fn dumps(&self) -> Vec<Dump> {
        let entries = fs::read_dir(self.dir.path().join("dumps")).unwrap();
        entries
            .filter_map(|entry| parse_dump(&String::from_utf8_lossy(&fs::read(entry.unwrap().path()).ok()?)))
            .collect()
    }

    pub fn wait_for_dumps(&self, count: usize) -> Vec<Dump> {
        wait_for(&format!("{count} dumps of smtp-sink"), || Some(self.dumps()).filter(|dumps| dumps.len() >= count))
    }
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Takes a dump apart: X-Client-Addr … X-Rcpt-Args, a Received of two continuation lines, then the message.
fn parse_dump(text: &str) -> Option<Dump> {
    let (mut sender, mut recipients) = (String::new(), Vec::new());
    let mut lines = text.split_inclusive('\n');
    for line in lines.by_ref() {
        let (name, value) = line.split_once(": ")?;
        match name {
            "X-Mail-Args" => sender = value.trim().to_owned(),
            "X-Rcpt-Args" => recipients.push(value.trim().to_owned()),
            "Received" => break,
            _ => {}
        }
    }
    let rest: String = lines.collect();
    let own_received_ends =
        rest.lines().take_while(|line| line.starts_with(['\t', ' '])).map(|line| line.len() + 1).sum();
    // It adds an empty line when the transaction ends.
    let message = rest.get(own_received_ends..)?.strip_suffix('\n')?.to_owned();
    Some(Dump { sender, recipients, message })
}

/// Postfix's `smtp-source` with its own options, to the end.
pub fn smtp_source(to: SocketAddr, options: &[&str]) -> String {
    let source = find("smtp-source").expect("the test asked whether it is there");
    run(Command::new(source).args(options).arg(to.to_string()))
}

/// A loopback port that was free just now. Postfix cannot be handed a socket; whoever takes the port in between
/// makes the test fail, not pass.
pub(super) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free loopback port")
}

/// A temporary directory that other users may walk through.
fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pointsman-peer-").tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn owned_dir(path: &Path, owner: &str) -> PathBuf {
    fs::create_dir(path).unwrap();
    let (uid, gid) = user_ids(owner);
    chown(path, Some(uid), Some(gid)).expect("root may give a directory away");
    path.to_owned()
}
