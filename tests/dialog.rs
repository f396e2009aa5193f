//! Dialog files: what a client says and what it must hear, played against whatever speaks SMTP.
//!
//! `tests/dialogs/README.md` tells the format. The same file is played at two levels: here against the machine
//! alone, in microseconds, once in the writes that it shows and once octet by octet; and through [`TcpPeer`]
//! against anything that listens. The machine's stand-in conductor answers as the daemon does under the configuration that
//! the README names.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::address::Mailbox;
use pointsman::reply;
use pointsman::reply::{DeliveryProof, Enhanced, Refusal, Reply};
use pointsman::smtp::session::{Event, FEED_OCTETS_MAX, Opening, Session};
use pointsman::smtp::settings::Settings;

/// A dialog file, read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialog {
    pub(crate) name: String,
    /// Why it can be played against the machine only.
    pub(crate) machine_only: Option<String>,
    /// Why it is not to be played octet by octet.
    pub(crate) uncut: Option<String>,
    /// Limits of the server that it is written against; the README's where `None`.
    pub(crate) message_size: Option<u64>,
    pub(crate) recipients: Option<usize>,
    /// The dialog is played once for each of these, put in the place of `{V}`. At least one.
    pub(crate) variants: Vec<Vec<u8>>,
    /// With the number of the line where it stands.
    pub(crate) steps: Vec<(usize, Step)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Octets to send, `{V}` as [`VARIANT`]. Those that follow each other are one write.
    Send(Vec<u8>),
    /// A reply line, or its beginning where the text ends in `...`.
    Line(String),
    /// A whole reply with this code.
    Reply(String),
    /// The server closes, without another octet.
    Closed,
    /// The client closes its side.
    HangUp,
    /// So many messages were accepted so far.
    Accepted(usize),
    /// The last accepted message, as its sender wrote it.
    Message(Vec<u8>),
    /// Machine only: the client was silent too long; the daemon stops; the client spoke before the banner.
    TimeOut,
    ShutDown,
    Early,
}

/// Whatever answers.
pub(crate) trait Peer {
    /// Sends these octets in one write.
    fn send(&mut self, bytes: &[u8]);
    fn hang_up(&mut self);
    /// The next line without its CRLF; `None` where nothing more comes.
    fn line(&mut self) -> Option<String>;
    /// The server has closed the connection and nothing is left to be read.
    fn closed(&mut self) -> bool;
    /// The messages accepted in this dialog, in order, without what the server put before them.
    fn accepted(&mut self) -> Vec<Vec<u8>>;
    /// The steps that only a machine can do.
    fn by_hand(&mut self, step: &Step);
}

impl Dialog {
    /// Reads all of `folder`'s dialogs, in the order of their names.
    pub(crate) fn load_all(folder: &Path) -> Vec<Dialog> {
        let files = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.expect("the folder stays").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "dialog"));
        paths.sort();
        assert!(!paths.is_empty(), "no dialogs in {}", folder.display());
        paths.iter().map(|path| Dialog::load(path)).collect()
    }

    pub(crate) fn load(path: &Path) -> Dialog {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        Dialog::parse(name, &text)
    }

    /// Panics with file and line where the text is no dialog: a wrong test is a failed test.
    pub(crate) fn parse(name: String, text: &str) -> Dialog {
        let mut dialog = Dialog { name, ..Dialog::default() };
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if dialog.read_line(number, line).is_none() {
                panic!("{}:{number}: cannot read `{line}`; tests/dialogs/README.md tells the format", dialog.name);
            }
        }
        if dialog.variants.is_empty() {
            dialog.variants.push(Vec::new());
        }
        dialog
    }

    fn read_line(&mut self, number: usize, line: &str) -> Option<()> {
        if let Some(option) = line.strip_prefix("@ ") {
            return self.read_option(number, option);
        }
        let (key, text) = line.split_once(": ").or_else(|| line.split_once(':')).unwrap_or((line, ""));
        let (key, times) = match key.split_once('*') {
            Some((key, times)) => (key, times.parse().ok()?),
            None => (key, 1),
        };
        let step = match key {
            "C" => Step::Send([unescape(text)?, b"\r\n".to_vec()].concat()),
            "R" => Step::Send(unescape(text)?),
            "S" => Step::Line(text.to_owned()),
            "S+" => Step::Reply(text.to_owned()),
            "CLOSED" => Step::Closed,
            "HANG UP" => Step::HangUp,
            "ACCEPTED" => Step::Accepted(text.parse().ok()?),
            "MESSAGE" => Step::Message(unescape(text)?),
            "TIME OUT" => Step::TimeOut,
            "SHUT DOWN" => Step::ShutDown,
            "EARLY" => Step::Early,
            _ => return None,
        };
        self.steps.extend(std::iter::repeat_n((number, step), times));
        Some(())
    }

    fn read_option(&mut self, number: usize, option: &str) -> Option<()> {
        let (key, value) = option.split_once(' ').unwrap_or((option, ""));
        match key {
            "machine-only" => self.machine_only = Some(value.to_owned()),
            "uncut" => self.uncut = Some(value.to_owned()),
            "message-size" => self.message_size = Some(value.parse().ok()?),
            "recipients" => self.recipients = Some(value.parse().ok()?),
            "variant" => self.variants.push(unescape(value)?),
            "hello" => {
                self.steps.push((number, Step::Reply("220".to_owned())));
                self.steps.push((number, Step::Send(b"EHLO client.example\r\n".to_vec())));
                self.steps.push((number, Step::Reply("250".to_owned())));
            }
            _ => return None,
        }
        Some(())
    }

    /// Plays the dialog with `variant`. `cut`: the client's octets are sent one by one.
    ///
    /// # Errors
    /// File, line, what was expected and what came.
    pub(crate) fn play(&self, peer: &mut dyn Peer, variant: &[u8], cut: Cut) -> Result<(), String> {
        let mut pending = Vec::new();
        for (number, step) in &self.steps {
            if let Step::Send(bytes) = step {
                pending.extend(put_variant(bytes, variant));
                continue;
            }
            send(peer, &mut pending, cut);
            check_step(peer, step, variant)
                .map_err(|e| format!("{}:{number} with `{}`, {cut:?}: {e}", self.name, variant.escape_ascii()))?;
        }
        send(peer, &mut pending, cut);
        Ok(())
    }
}

/// How the client's octets are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    AsWritten,
    ByOctet,
}

fn send(peer: &mut dyn Peer, pending: &mut Vec<u8>, cut: Cut) {
    match cut {
        Cut::AsWritten if pending.is_empty() => {}
        Cut::AsWritten => peer.send(pending),
        Cut::ByOctet => pending.chunks(1).for_each(|octet| peer.send(octet)),
    }
    pending.clear();
}

fn check_step(peer: &mut dyn Peer, step: &Step, variant: &[u8]) -> Result<(), String> {
    match step {
        Step::Send(_) => {}
        Step::Line(want) => {
            let line = peer.line().ok_or_else(|| format!("expected `{want}`, nothing came"))?;
            let fits = match want.strip_suffix("...") {
                Some(prefix) => line.starts_with(prefix),
                None => line == *want,
            };
            if !fits {
                return Err(format!("expected `{want}`, got `{line}`"));
            }
        }
        Step::Reply(code) => loop {
            let line = peer.line().ok_or_else(|| format!("expected a reply {code}, nothing came"))?;
            if !line.starts_with(code.as_str()) {
                return Err(format!("expected a reply {code}, got `{line}`"));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                break;
            }
        },
        Step::Closed => match (peer.line(), peer.closed()) {
            (Some(line), _) => return Err(format!("expected the end, got `{line}`")),
            (None, false) => return Err("expected the end, the connection is open".to_owned()),
            (None, true) => {}
        },
        Step::HangUp => peer.hang_up(),
        Step::Accepted(want) => {
            let count = peer.accepted().len();
            if count != *want {
                return Err(format!("expected {want} accepted messages, there are {count}"));
            }
        }
        Step::Message(want) => {
            let want = put_variant(want, variant);
            let message = peer.accepted().pop().ok_or("no message was accepted")?;
            if message != want {
                return Err(format!("expected `{}`, got `{}`", want.escape_ascii(), message.escape_ascii()));
            }
        }
        Step::TimeOut | Step::ShutDown | Step::Early => peer.by_hand(step),
    }
    Ok(())
}

/// An octet that no UTF-8 has: the place of `{V}`.
const VARIANT: u8 = 0xf8;

fn put_variant(bytes: &[u8], variant: &[u8]) -> Vec<u8> {
    bytes.split(|&b| b == VARIANT).collect::<Vec<_>>().join(variant)
}

/// `\r \n \t \0 \\ \xHH`, `{V}`, and `{12xtext}` for a text twelve times.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '{']) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if let Some(inner) = rest.strip_prefix('{') {
            // Braces of another kind stand for themselves: they may be part of an address.
            match inner.split_once('}').and_then(|(inner, after)| Some((expand(inner)?, after))) {
                Some((expanded, after)) => {
                    bytes.extend(expanded);
                    rest = after;
                }
                None => {
                    bytes.push(b'{');
                    rest = inner;
                }
            }
            continue;
        }
        let escape = rest.as_bytes().get(1)?;
        let length = if *escape == b'x' { 4 } else { 2 };
        bytes.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => u8::from_str_radix(rest.get(2..4)?, 16).ok()?,
            _ => return None,
        });
        rest = &rest[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

fn expand(inner: &str) -> Option<Vec<u8>> {
    if inner == "V" {
        return Some(vec![VARIANT]);
    }
    let (times, text) = inner.split_once('x')?;
    let times: usize = times.parse().ok()?;
    Some(unescape(text)?.repeat(times))
}

/// The machine, with a conductor that answers as the daemon does.
pub(crate) struct Machine {
    session: Session,
    greeted: bool,
    said: Vec<u8>,
    message: Vec<u8>,
    accepted: Vec<Vec<u8>>,
}

impl Machine {
    pub(crate) fn new(dialog: &Dialog) -> Machine {
        let postmaster = Mailbox::parse("postmaster@solarmora.com").expect("it is an address");
        let settings = Settings::new(
            "mx.solarmora.com".to_owned(),
            postmaster,
            dialog.message_size.unwrap_or(50 * 1024 * 1024),
            dialog.recipients.unwrap_or(100),
        );
        let session = Session::new(Arc::new(settings));
        Machine { session, greeted: false, said: Vec::new(), message: Vec::new(), accepted: Vec::new() }
    }

    fn greet(&mut self) {
        if !self.greeted {
            self.greeted = true;
            self.session.greet(Opening::Polite);
            self.run();
        }
    }

    fn run(&mut self) {
        loop {
            match self.session.poll() {
                Event::Wait | Event::Close(_) => break,
                Event::Hello { .. } => {}
                // Not offered here: TLS has tests of its own.
                Event::StartTls => self.session.tls_up(),
                Event::Mail(_) => self.session.answer_mail(Ok(())),
                Event::Recipient { recipient, .. } => {
                    let answer = answer(recipient);
                    self.session.answer_recipient(answer);
                }
                Event::Data(_) => self.session.answer_data(Ok(())),
                Event::Body(text) => self.message.extend_from_slice(text),
                Event::End(_) => {
                    self.accepted.push(std::mem::take(&mut self.message));
                    self.session.finish(Ok(Remembered));
                }
                Event::Reset(_) => self.message.clear(),
            }
        }
        self.said.extend_from_slice(self.session.output());
        self.session.flushed();
    }
}

fn answer(recipient: &Mailbox) -> Result<(), Refusal> {
    if recipient.domain().as_str() != "solarmora.com" {
        return Err(Refusal::new(reply::NOT_OURS));
    }
    match recipient.key().split('@').next() {
        Some("aide" | "ventes" | "postmaster" | "abuse") => Ok(()),
        _ => Err(Refusal::new(reply::NO_SUCH_RECIPIENT)),
    }
}

struct Remembered;

impl DeliveryProof for Remembered {
    fn reply(&self) -> Reply {
        Reply::new(250, Enhanced(2, 0, 0), "queued as 0000000000000")
    }
}

impl Peer for Machine {
    fn send(&mut self, bytes: &[u8]) {
        self.greet();
        for piece in bytes.chunks(FEED_OCTETS_MAX) {
            self.session.feed(piece);
            self.run();
        }
    }

    fn hang_up(&mut self) {
        self.greet();
        self.session.feed_eof();
        self.run();
    }

    fn line(&mut self) -> Option<String> {
        self.greet();
        let end = self.said.windows(2).position(|pair| pair == b"\r\n")?;
        let line = String::from_utf8(self.said[..end].to_vec()).expect("replies are ASCII");
        self.said.drain(..end + 2);
        Some(line)
    }

    fn closed(&mut self) -> bool {
        matches!(self.session.poll(), Event::Close(_)) && self.said.is_empty()
    }

    fn accepted(&mut self) -> Vec<Vec<u8>> {
        self.accepted.clone()
    }

    fn by_hand(&mut self, step: &Step) {
        match step {
            Step::Early => {
                self.greeted = true;
                self.session.greet(Opening::Early);
            }
            Step::TimeOut => {
                self.greet();
                self.session.timed_out();
            }
            Step::ShutDown => {
                self.greet();
                self.session.shut_down();
            }
            other => panic!("{other:?} is not done by hand"),
        }
        self.run();
    }
}

/// A connection to anything that listens.
pub(crate) struct TcpPeer {
    stream: TcpStream,
    received: VecDeque<u8>,
    accepted: Box<dyn FnMut() -> Vec<Vec<u8>>>,
}

impl TcpPeer {
    /// `accepted` tells the messages that the server accepted since, without the fields that it put before them.
    pub(crate) fn connect(to: SocketAddr, accepted: Box<dyn FnMut() -> Vec<Vec<u8>>>) -> TcpPeer {
        let stream = TcpStream::connect(to).expect("somebody listens");
        // A reply that takes longer than this is a failure.
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
        stream.set_nodelay(true).expect("the delay can be switched off");
        TcpPeer { stream, received: VecDeque::new(), accepted }
    }

    /// Reads once; `false` at the end of the stream or of our patience.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.received.extend(&buffer[..count]);
                true
            }
        }
    }
}

impl Peer for TcpPeer {
    fn send(&mut self, bytes: &[u8]) {
        // A server that closes while we speak is told apart by what follows.
        let _ = self.stream.write_all(bytes);
    }

    fn hang_up(&mut self) {
        // The same.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn line(&mut self) -> Option<String> {
        loop {
            let (head, tail) = self.received.as_slices();
            let line_end = head.iter().chain(tail).position(|&b| b == b'\n');
            if let Some(end) = line_end {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let line = line.strip_suffix(b"\r\n").expect("reply lines end in CRLF");
                return Some(String::from_utf8(line.to_vec()).expect("replies are ASCII"));
            }
            if !self.read() {
                return None;
            }
        }
    }

    fn closed(&mut self) -> bool {
        let mut buffer = [0; 1];
        match self.stream.read(&mut buffer) {
            Ok(count) => count == 0,
            // A server that closes with octets of ours unread resets the connection.
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    fn accepted(&mut self) -> Vec<Vec<u8>> {
        (self.accepted)()
    }

    fn by_hand(&mut self, step: &Step) {
        panic!("{step:?} needs `@ machine-only`");
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogs"))
}

#[test]
fn dialogs_on_the_machine() {
    let mut failures = Vec::new();
    for dialog in Dialog::load_all(folder()) {
        for variant in &dialog.variants {
            for cut in [Cut::AsWritten, Cut::ByOctet] {
                if cut == Cut::ByOctet && dialog.uncut.is_some() {
                    continue;
                }
                let mut machine = Machine::new(&dialog);
                let played = dialog.play(&mut machine, variant, cut);
                failures.extend(played.err());
                if !machine.said.is_empty() {
                    failures.push(format!("{}: unexpected at its end: {}", dialog.name, machine.said.escape_ascii()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// A blocking server of one connection around the machine: shows that the TCP player plays the same.
fn serve_once(listener: &TcpListener, mut machine: Machine, accepted: &Mutex<Vec<Vec<u8>>>) {
    let (mut stream, _) = listener.accept().expect("the player connects");
    let mut buffer = vec![0; FEED_OCTETS_MAX];
    machine.greet();
    loop {
        *accepted.lock().expect("nobody panics with it") = machine.accepted.clone();
        if stream.write_all(&machine.said).is_err() {
            return;
        }
        machine.said.clear();
        if machine.closed() {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => machine.hang_up(),
            Ok(count) => machine.send(&buffer[..count]),
        }
    }
}

#[test]
fn dialogs_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    for dialog in Dialog::load_all(folder()) {
        if dialog.machine_only.is_some() {
            continue;
        }
        for variant in &dialog.variants {
            let accepted = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&accepted);
            let mut peer = None;
            std::thread::scope(|scope| {
                scope.spawn(|| serve_once(&listener, Machine::new(&dialog), &accepted));
                let tell = move || seen.lock().expect("nobody panics with it").clone();
                let peer = peer.insert(TcpPeer::connect(address, Box::new(tell)));
                let played = dialog.play(peer, variant, Cut::AsWritten);
                peer.hang_up();
                played.unwrap_or_else(|e| panic!("{e}"));
            });
        }
    }
}

#[test]
fn a_dialog_that_does_not_hold_fails() {
    for text in ["@ hello\nC: NOOP\nS: 251 ...", "@ hello\nCLOSED", "@ hello\nACCEPTED: 1", "@ hello\nC: NOOP\nS+: 500"]
    {
        let dialog = Dialog::parse("wrong".to_owned(), text);
        assert!(dialog.play(&mut Machine::new(&dialog), b"", Cut::AsWritten).is_err(), "{text}");
    }
}

#[test]
fn escapes_are_read() {
    assert_eq!(unescape(r"a\r\n\0\\\x85{3xab}{V}${run}").unwrap(), b"a\r\n\0\\\x85ababab\xf8${run}");
    assert!(unescape(r"\q").is_none());
}

/// A reply that no dialog brings about is one that nobody has seen.
#[test]
fn every_reply_of_the_machine_is_produced_by_a_dialog() {
    let source = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
    };
    let expected: Vec<String> = std::fs::read_dir(folder())
        .expect("the folder is there")
        .map(|file| std::fs::read_to_string(file.expect("it stays").path()).expect("dialogs are UTF-8"))
        .flat_map(|text| text.lines().filter(|line| line.starts_with('S')).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let catalogue = source("src/reply.rs");
    let session = ["src/smtp/session.rs", "src/smtp/session/chunking.rs"];
    for file in ["src/smtp/command.rs", "src/smtp/receiving.rs"].into_iter().chain(session) {
        let code = source(file);
        let code = code.split("#[cfg(test)]").next().expect("there is code before the tests");
        for name in code.split("reply::").skip(1).map(|rest| {
            rest.split(|c: char| !c.is_ascii_uppercase() && c != '_' && !c.is_ascii_digit()).next().unwrap_or("")
        }) {
            let Some(at) = catalogue.find(&format!("pub const {name}: Reply")) else { continue };
            let text = catalogue[at..].split('"').nth(1).expect("a reply has a text");
            assert!(expected.iter().any(|line| line.ends_with(text)), "no dialog expects {name}, `{text}`");
        }
    }
}
