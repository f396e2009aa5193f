//! Under a service manager: sockets that it holds for us, what it is told, and the units in `deploy/systemd`.
//!
//! systemd does not run where tests do. So the harness passes a socket as systemd would, and what a manager is told is
//! read from a socket of our own; systemd's own tools rate the unit and activate a socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::harness::{Client, Crm, PATIENCE, Setup, Site, alone, has, program, run, wait_for};

/// Clients that send at the same time, and how often the daemon is replaced under them.
const CLIENTS: usize = 4;
const RESTARTS: usize = 3;
/// Messages that are taken between two restarts.
const BETWEEN: usize = 40;

#[test]
fn an_upgrade_under_a_held_socket_refuses_no_connection_and_loses_or_repeats_no_message() {
    let _heavy = alone();
    let crm = Crm::start();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut site = Setup::new(crm.address()).retry("1s").concurrency(20).site();
    site.hold("mx", socket);
    let stream = Arc::new(Stream::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.send(address))
        })
        .collect();
    let mut daemon = site.start();
    assert_eq!(daemon.smtp, address);
    for _ in 0..RESTARTS {
        let before = stream.taken();
        wait_for("mail to flow", || (stream.taken() >= before + BETWEEN).then_some(()));
        daemon.signal("TERM");
        let (site, status) = daemon.wait();
        assert!(status.success(), "{status}");
        // Nobody serves now, and nobody is refused.
        drop(TcpStream::connect(address).expect("the socket is held"));
        daemon = site.start();
    }
    let before = stream.taken();
    wait_for("mail to flow to the last daemon", || (stream.taken() >= before + BETWEEN).then_some(()));
    stream.stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());

    let acknowledged = stream.acknowledged.lock().unwrap().clone();
    crm.wait_for_mails(acknowledged.len());
    wait_for("the queue to be empty", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    for mail in crm.mails() {
        let text = String::from_utf8(mail.bytes).unwrap();
        let (_, number) = text.split_once("Subject: ").unwrap();
        *arrived.entry(number.lines().next().unwrap().to_owned()).or_default() += 1;
    }
    let once: BTreeMap<String, usize> = acknowledged.iter().map(|number| (number.to_string(), 1)).collect();
    assert_eq!(arrived, once, "what was acknowledged is at the CRM, once");
    assert_eq!(*stream.refused.lock().unwrap(), Vec::<String>::new(), "no connection is refused or cut off");
}

/// Numbered messages, one a connection, as most mail comes.
#[derive(Default)]
struct Stream {
    next: AtomicUsize,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<usize>>,
    /// Connections that failed, or broke without a reply.
    refused: Mutex<Vec<String>>,
}

impl Stream {
    fn taken(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn send(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            // A sender whom we ask to come back (421) does so with the same message.
            while let Err(error) = self.send_one(to, number) {
                if error.kind() != ErrorKind::Other || !error.to_string().contains("421") {
                    self.refused.lock().unwrap().push(format!("message {number}: {error:?}"));
                    return;
                }
            }
            self.acknowledged.lock().unwrap().push(number);
        }
    }

    fn send_one(&self, to: SocketAddr, number: usize) -> io::Result<()> {
        let mut client = Client::try_connect(to)?;
        let message = format!("Message-ID: <{number}@example.org>\r\nSubject: {number}\r\n\r\nbody\r\n");
        let reply = client.try_deliver("client@example.org", &["aide@solarmora.com"], message.as_bytes())?;
        if reply.code != 250 {
            return Err(io::Error::other(format!("{reply:?}")));
        }
        // What comes after its 250 is no matter of this message's.
        let _ = client.try_say("QUIT");
        Ok(())
    }
}

#[test]
fn sockets_that_do_not_fit_the_configuration_end_the_start_and_say_why() {
    let mut site = Setup::new(SocketAddr::from(([127, 0, 0, 1], 9))).site();
    let here = || TcpListener::bind("127.0.0.1:0").unwrap();
    for (name, listener, says) in [
        (
            "smtps",
            "127.0.0.1:1",
            "no listener has that name (FileDescriptorName=) or address; there are: `mx` on 127.0.0.1:1",
        ),
        ("mx", "127.0.0.1:1", "let them say the same"),
    ] {
        site.reconfigure("address = \"127.0.0.1:0\"\ntls", &format!("address = \"{listener}\"\ntls"));
        site.hold(name, here());
        let Err((refused, status)) = site.try_start() else { panic!("it serves: {says}") };
        assert_eq!(status.code(), Some(1));
        assert!(refused.log().contains(says), "{}", refused.log());
        refused.reconfigure(&format!("address = \"{listener}\"\ntls"), "address = \"127.0.0.1:0\"\ntls");
        site = refused;
    }
    // A connection instead of a listener: a unit with Accept=yes.
    let listener = here();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    site.hold("mx", TcpListener::from(std::os::fd::OwnedFd::from(connection)));
    let Err((refused, status)) = site.try_start() else { panic!("it serves on a connection") };
    assert_eq!(status.code(), Some(1));
    assert!(refused.log().contains("`Accept=no`"), "{}", refused.log());
}

#[test]
fn the_manager_is_told_of_start_life_and_end() {
    let crm = Crm::start();
    let mut site = Setup::new(crm.address()).site();
    let path = site.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    site.set_environment("NOTIFY_SOCKET", path.to_str().unwrap());
    site.set_environment("WATCHDOG_USEC", "300000");
    let heard = || {
        let mut buffer = [0; 500];
        let length = manager.recv(&mut buffer).expect("the manager is told something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let until = |wanted: &str| while !heard().lines().any(|line| line == wanted) {};
    let daemon = site.start();
    until("READY=1");
    // Twice: it goes on.
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    daemon.signal("TERM");
    until("STOPPING=1");
    assert!(daemon.wait().1.success());
}

#[test]
fn systemd_hands_the_port_over_at_the_first_connection() {
    let test = "systemd_hands_the_port_over_at_the_first_connection";
    if !has(test, "systemd-socket-activate") {
        return;
    }
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    // It takes no port 0; a port that was just free is.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut activated = activate(&site, address);
    let mut client = wait_for("the port", || Client::try_raw(address).ok());
    assert_eq!(client.reply().code, 220);
    client.say("EHLO client.example.org");
    client.deliver("client@example.org", &["aide@solarmora.com"], b"Subject: panne\r\n\r\n").queued_as();
    crm.wait_for_mails(1);
    run(Command::new("sh").args(["-c", &format!("kill -TERM {}", activated.id())]));
    assert!(activated.wait().unwrap().success(), "{}", fs::read_to_string(site.path().join("activated")).unwrap());
}

/// systemd's tool becomes the daemon once somebody connects.
fn activate(site: &Site, address: SocketAddr) -> Child {
    let log = fs::File::create(site.path().join("activated")).unwrap();
    Command::new("systemd-socket-activate")
        .args(["--fdname=mx", "-l", &address.to_string()])
        .arg(program())
        .args(["serve", "--config"])
        .arg(site.config())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn the_unit_is_rated_below_two() {
    if !has("the_unit_is_rated_below_two", "systemd-analyze") {
        return;
    }
    for (dropped_in, most) in [(None, 2.0), (Some("50-bind-port-25.conf"), 2.0)] {
        let folder = tempfile::tempdir().unwrap();
        let unit = folder.path().join("pointsman.service");
        let more = dropped_in.map_or_else(String::new, |name| fs::read_to_string(units().join(name)).unwrap());
        fs::write(&unit, fs::read_to_string(units().join("pointsman.service")).unwrap() + &more).unwrap();
        let said = run(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(&unit));
        let rating = said.rsplit_once("exposure level for pointsman.service: ").expect("a rating").1;
        let rating: f64 = rating.split_whitespace().next().unwrap().parse().unwrap();
        assert!(rating < most, "{dropped_in:?}: {said}");
    }
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    if !has("systemd_understands_every_line_of_the_units", "systemd-analyze") {
        return;
    }
    // The programs that the units name must be there: ours stands in for the installed one.
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for name in ["pointsman.service", "pointsman.socket"] {
        let text = fs::read_to_string(units().join(name)).unwrap();
        let text = text.replace("/usr/bin/pointsman", program().to_str().unwrap());
        files.push(folder.path().join(name));
        fs::write(files.last().unwrap(), text).unwrap();
    }
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("pointsman")).collect();
    assert_eq!(ours, Vec::<&str>::new());
}

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd")
}
