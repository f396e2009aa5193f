//! A stand-in for the CRM: an SMTP server of threads that follows a script and remembers everything.
//!
//! By default it takes all mail. A test may change the script at any time, take the server down (its port refuses,
//! its sessions break) and up again on the same port. It is strict: a bare CR or LF from us is noted, and the next
//! look at its mails fails the test.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use super::PATIENCE;

/// Where in a session the script is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connect,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    Dot,
    Rset,
    Quit,
}

/// What the script may do instead of the usual yes.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These lines, without their last CRLF.
    Say(String),
    /// Close without a word.
    Hangup,
    /// These octets as they are, and close.
    Raw(Vec<u8>),
    /// These lines, without their last CRLF, an octet at a time.
    Drip(String),
}

/// A transaction whose final dot was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The whole command lines: `MAIL FROM:<…> SIZE=…`.
    pub mail: String,
    /// Those that were taken.
    pub rcpts: Vec<String>,
    /// The message, dots undone, as it came.
    pub bytes: Vec<u8>,
    /// The session's number, counted from 1.
    pub session: usize,
    /// The final dot was answered with a yes.
    pub taken: bool,
}

impl Mail {
    /// The addresses between the angle brackets of its RCPTs.
    pub fn recipients(&self) -> Vec<&str> {
        self.rcpts.iter().map(|rcpt| path(rcpt)).collect()
    }

    /// The address between the angle brackets of MAIL.
    pub fn sender(&self) -> &str {
        path(&self.mail)
    }
}

fn path(command: &str) -> &str {
    let start = command.find('<').map_or(0, |at| at + 1);
    let end = command.rfind('>').unwrap_or(command.len());
    &command[start..end]
}

type Script = Arc<dyn Fn(Stage, &str) -> Option<Answer> + Send + Sync>;

/// The running server.
pub struct Crm {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// The state, also after a test has failed while it looked at it: the next panic would abort all tests.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    script: Script,
    ear: Arc<dyn Fn(&str) + Send + Sync>,
    mails: Vec<Mail>,
    sessions: usize,
    /// Counts how often the server went down: a session of an earlier generation ends.
    generation: usize,
    up: bool,
    streams: Vec<TcpStream>,
    keep_bodies: bool,
    faults: Vec<String>,
}

/// Holds every final dot until it is dropped.
pub struct Gate {
    reached: mpsc::Receiver<()>,
    _let_go: mpsc::Sender<()>,
}

impl Gate {
    /// Waits for a client at the final dot.
    pub fn reached(&self) {
        self.reached.recv().expect("the CRM outlives its gate");
    }
}

impl Crm {
    /// Answers no final dot until the gate is dropped.
    pub fn gate(&self) -> Gate {
        let (at_dot, reached) = mpsc::channel();
        let (let_go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        self.follow(move |stage, _| {
            if stage == Stage::Dot {
                // The test may have what it wants already.
                let _ = at_dot.send(());
                // Ends when the test says so, or has ended itself.
                let _ = wait.lock().unwrap().recv();
            }
            None
        });
        Gate { reached, _let_go: let_go }
    }

    /// A server on a free loopback port that takes everything.
    pub fn start() -> Crm {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = State {
            script: Arc::new(|_, _| None),
            ear: Arc::new(|_| {}),
            mails: Vec::new(),
            sessions: 0,
            generation: 0,
            up: true,
            streams: Vec::new(),
            keep_bodies: true,
            faults: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let crm = Crm { address: listener.local_addr().unwrap(), shared };
        crm.serve(listener, 0);
        crm
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the script is asked first; `None` is the usual yes.
    pub fn follow(&self, script: impl Fn(Stage, &str) -> Option<Answer> + Send + Sync + 'static) {
        self.shared.state().script = Arc::new(script);
    }

    /// Answers one stage with `reply`, all others with yes.
    pub fn answer(&self, at: Stage, reply: &'static str) {
        self.follow(move |stage, _| (stage == at).then(|| Answer::Say(reply.to_owned())));
    }

    /// Every command line from now on is told to `ear`.
    pub fn hear(&self, ear: impl Fn(&str) + Send + Sync + 'static) {
        self.shared.state().ear = Arc::new(ear);
    }

    /// Takes everything again.
    pub fn take_all(&self) {
        self.follow(|_, _| None);
    }

    /// Messages are read and counted, but not kept: where gigabytes pass.
    pub fn keep_no_bodies(&self) {
        self.shared.state().keep_bodies = false;
    }

    /// Open sessions break; new ones are welcome.
    pub fn end_sessions(&self) {
        for stream in std::mem::take(&mut self.shared.state().streams) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The port refuses from now on, and open sessions break.
    pub fn go_down(&self) {
        self.stop();
        super::wait_for("the CRM's port to refuse", || TcpStream::connect(self.address).is_err().then_some(()));
    }

    fn stop(&self) {
        let streams = {
            let mut state = self.shared.state();
            state.up = false;
            state.generation += 1;
            std::mem::take(&mut state.streams)
        };
        for stream in streams {
            // It may have ended by itself; all we want is that it is not open.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which then sees its generation gone and drops the listener.
        let _ = TcpStream::connect(self.address);
    }

    /// Listens again on the same port.
    pub fn come_up(&self) {
        let listener = super::wait_for("the CRM's old port", || TcpListener::bind(self.address).ok());
        let generation = {
            let mut state = self.shared.state();
            state.up = true;
            state.generation
        };
        self.serve(listener, generation);
    }

    /// All mails that were taken so far.
    pub fn mails(&self) -> Vec<Mail> {
        let state = self.shared.state();
        assert_eq!(state.faults, Vec::<String>::new(), "the daemon broke the protocol towards the CRM");
        state.mails.iter().filter(|mail| mail.taken).cloned().collect()
    }

    /// All transactions whose final dot was seen, refused ones too.
    pub fn transactions(&self) -> Vec<Mail> {
        self.shared.state().mails.clone()
    }

    pub fn sessions(&self) -> usize {
        self.shared.state().sessions
    }

    /// Waits until at least `count` mails were taken.
    pub fn wait_for_mails(&self, count: usize) -> Vec<Mail> {
        self.wait_until(&format!("{count} mails at the CRM"), |mails| {
            mails.iter().filter(|m| m.taken).count() >= count
        });
        self.mails()
    }

    /// Waits until `count` final dots were seen, whatever was answered.
    pub fn wait_for_transactions(&self, count: usize) {
        self.wait_until(&format!("{count} transactions at the CRM"), |mails| mails.len() >= count);
    }

    fn wait_until(&self, what: &str, seen: impl Fn(&[Mail]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state();
        while !seen(&state.mails) {
            let left = deadline.checked_duration_since(Instant::now());
            let left =
                left.unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}; seen: {}", state.mails.len()));
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn serve(&self, listener: TcpListener, generation: usize) {
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let session = {
                    let mut state = shared.state();
                    if state.generation != generation {
                        return;
                    }
                    state.sessions += 1;
                    state.streams.push(stream.try_clone().expect("a descriptor is left"));
                    state.sessions
                };
                let shared = Arc::clone(&shared);
                // A session that breaks is the daemon's to notice; the mails tell what came of it.
                thread::spawn(move || Session { shared, session }.run(stream));
            }
        });
    }
}

impl Drop for Crm {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Session {
    shared: Arc<Shared>,
    session: usize,
}

/// The usual answer to EHLO.
pub const EHLO: &str = "250-crm.example\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES";

impl Session {
    fn run(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::with_capacity(64 * 1024, stream.try_clone()?);
        let mut output = stream;
        self.answer(&mut output, Stage::Connect, "", "220 crm.example ESMTP stand-in")?;
        let (mut mail, mut rcpts, mut chunks) = (None, Vec::new(), Vec::new());
        loop {
            let Some(line) = self.line(&mut input)? else { return Ok(()) };
            let line = String::from_utf8_lossy(&line).into_owned();
            let ear = Arc::clone(&self.shared.state().ear);
            ear(&line);
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => {
                    self.answer(&mut output, Stage::Ehlo, &line, EHLO)?;
                }
                "HELO" => {
                    self.answer(&mut output, Stage::Ehlo, &line, "250 crm.example")?;
                }
                "MAIL" => {
                    rcpts.clear();
                    mail = self.answer(&mut output, Stage::Mail, &line, "250 2.1.0 ok")?.then_some(line);
                }
                "RCPT" if mail.is_none() => output.write_all(b"503 5.5.1 MAIL first\r\n")?,
                "RCPT" => {
                    if self.answer(&mut output, Stage::Rcpt, &line, "250 2.1.5 ok")? {
                        rcpts.push(line);
                    }
                }
                "DATA" if rcpts.is_empty() => output.write_all(b"554 5.5.1 no valid recipients\r\n")?,
                "DATA" => {
                    if self.answer(&mut output, Stage::Data, &line, "354 go ahead")? {
                        let Some(bytes) = self.message(&mut input)? else { return Ok(()) };
                        self.end(&mut output, mail.take().unwrap_or_default(), std::mem::take(&mut rcpts), bytes)?;
                    }
                }
                "BDAT" => {
                    let mut words = line.split(' ').skip(1);
                    let size: usize = words.next().and_then(|size| size.parse().ok()).expect("BDAT has a size");
                    let mut chunk = vec![0; size];
                    input.read_exact(&mut chunk)?;
                    chunks.append(&mut chunk);
                    if words.next().is_some() {
                        let bytes = std::mem::take(&mut chunks);
                        self.end(&mut output, mail.take().unwrap_or_default(), std::mem::take(&mut rcpts), bytes)?;
                    } else {
                        output.write_all(b"250 2.0.0 chunk\r\n")?;
                    }
                }
                "RSET" => {
                    self.answer(&mut output, Stage::Rset, &line, "250 2.0.0 ok")?;
                    (mail, rcpts, chunks) = (None, Vec::new(), Vec::new());
                }
                "QUIT" => {
                    self.answer(&mut output, Stage::Quit, &line, "221 2.0.0 bye")?;
                    return Ok(());
                }
                _ => output.write_all(b"502 5.5.1 what?\r\n")?,
            }
        }
    }

    /// Says what the script says, or else `usual`. True where that is a yes.
    fn answer(&self, output: &mut TcpStream, stage: Stage, line: &str, usual: &str) -> io::Result<bool> {
        let script = Arc::clone(&self.shared.state().script);
        let said = match script(stage, line) {
            None => usual.to_owned(),
            Some(Answer::Say(said)) => said,
            Some(Answer::Drip(said)) => {
                for octet in format!("{said}\r\n").bytes() {
                    output.write_all(&[octet])?;
                }
                return Ok(said.starts_with(['2', '3']));
            }
            Some(Answer::Raw(octets)) => {
                output.write_all(&octets)?;
                output.shutdown(Shutdown::Both)?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Some(Answer::Hangup) => {
                // Whatever the daemon sent already is thrown away with the connection.
                output.shutdown(Shutdown::Both)?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        };
        output.write_all(format!("{said}\r\n").as_bytes())?;
        Ok(said.starts_with(['2', '3']))
    }

    /// The end of a message: first written down, then answered, as a real server does it.
    fn end(&self, output: &mut TcpStream, mail: String, rcpts: Vec<String>, bytes: Vec<u8>) -> io::Result<()> {
        let script = Arc::clone(&self.shared.state().script);
        let first = rcpts.first().cloned().unwrap_or_default();
        let said = script(Stage::Dot, &first);
        // A connection that is closed after the dot leaves the message taken: the outcome that only the CRM knows.
        let taken = match &said {
            None | Some(Answer::Hangup) => true,
            Some(Answer::Say(text) | Answer::Drip(text)) => text.starts_with('2'),
            Some(Answer::Raw(octets)) => octets.starts_with(b"2"),
        };
        let record = Mail { mail, rcpts, bytes, session: self.session, taken };
        self.shared.state().mails.push(record);
        self.shared.changed.notify_all();
        match said {
            None => output.write_all(b"250 2.0.0 case opened\r\n"),
            Some(Answer::Say(text) | Answer::Drip(text)) => output.write_all(format!("{text}\r\n").as_bytes()),
            Some(Answer::Raw(octets)) => {
                output.write_all(&octets)?;
                output.shutdown(Shutdown::Both)?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Some(Answer::Hangup) => {
                output.shutdown(Shutdown::Both)?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    /// A line without its CRLF; `None` at the end of the stream.
    fn line(&self, input: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(None);
        }
        line.pop();
        if line.pop_if(|&mut b| b == b'\r').is_none() || line.iter().any(|b| matches!(b, b'\r' | 0)) {
            let fault = format!("bare CR, LF or NUL in {:?}", String::from_utf8_lossy(&line));
            self.shared.state().faults.push(fault);
        }
        Ok(Some(line))
    }

    fn message(&self, input: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
        let keep = self.shared.state().keep_bodies;
        let mut message = Vec::new();
        loop {
            let Some(line) = self.line(input)? else { return Ok(None) };
            if line == b"." {
                return Ok(Some(message));
            }
            if keep {
                message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                message.extend_from_slice(b"\r\n");
            }
        }
    }
}

#[test]
fn the_stand_in_follows_its_script_and_survives_an_outage() {
    let crm = Crm::start();
    let mut client = super::Client::connect(crm.address());
    assert_eq!(client.deliver("a@b.example", &["c@d.example"], b"Subject: x\r\n\r\n.\r\n..y\r\n").code, 250);
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!((mail.sender(), mail.recipients()), ("a@b.example", vec!["c@d.example"]));
    assert_eq!(mail.bytes, b"Subject: x\r\n\r\n.\r\n..y\r\n");

    crm.answer(Stage::Dot, "450 4.2.0 later");
    assert_eq!(client.deliver("a@b.example", &["c@d.example"], b"\r\n").code, 450);
    assert_eq!((crm.mails().len(), crm.transactions().len()), (1, 2));

    crm.go_down();
    assert!(client.is_closed());
    assert!(super::Client::try_connect(crm.address()).is_err());
    crm.come_up();
    crm.take_all();
    super::Client::connect(crm.address()).deliver("a@b.example", &["c@d.example"], b"\r\n");
    assert_eq!((crm.wait_for_mails(2).len(), crm.sessions()), (2, 2));
}
