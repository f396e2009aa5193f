//! A conductor for a session: its answers depend on what it is asked and on nothing else, and it holds what it hears
//! against the order in which a transaction goes.

use std::sync::Arc;

use pointsman::address::Mailbox;
use pointsman::envelope::Envelope;
use pointsman::reply::{DISK_FULL, DeliveryProof, Enhanced, NO_SUCH_RECIPIENT, Refusal, Reply};
use pointsman::smtp::session::{Cause, Ending, Event, FEED_OCTETS_MAX, Opening, Security, Session};
use pointsman::smtp::settings::Settings;

use super::super::input::Input;

/// What a session is like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    settings: Arc<Settings>,
    security: Security,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Gone,
    Silence,
    ShutDown,
}

impl Shape {
    pub(super) fn read(input: &mut Input<'_>) -> Shape {
        let postmaster = Mailbox::parse("postmaster@solarmora.com").expect("it is an address");
        let mut settings = Settings::new("mx.solarmora.com".to_owned(), postmaster, 1000, 3);
        settings.message_size_max = input.one_of(&[10_000, 100, 0]);
        settings.header_octets_max = input.one_of(&[1000, 30]);
        (settings.errors_max, settings.refusals_max, settings.commands_max) =
            input.one_of(&[(20, 100, 100), (2, 1, 6), (0, 0, 3)]);
        Shape {
            settings: Arc::new(settings),
            security: input.one_of(&[Security::Offered, Security::Plain, Security::Up]),
            end: input.one_of(&[End::Gone, End::Silence, End::ShutDown]),
        }
    }
}

/// What the conductor was told or asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Hello(String, bool),
    Tls,
    Mail(Envelope),
    Recipient(String),
    Data(Envelope),
    Message(Envelope, Vec<u8>),
    Reset(Cause),
    Close(Ending),
}

pub(super) struct Conductor {
    session: Session,
    shape: Shape,
    pub(super) said: Vec<u8>,
    /// Each with the number of octets that had been said before.
    pub(super) told: Vec<(usize, Told)>,
    message: Vec<u8>,
    /// A transaction is open.
    open: bool,
}

impl Conductor {
    pub(super) fn new(shape: &Shape) -> Conductor {
        let session = Session::with_security(shape.settings.clone(), shape.security);
        let (said, told, message) = (Vec::new(), Vec::new(), Vec::new());
        let mut conductor = Conductor { session, shape: shape.clone(), said, told, message, open: false };
        conductor.session.greet(Opening::Polite);
        conductor.run();
        conductor.said.clear();
        conductor
    }

    pub(super) fn feed(&mut self, octets: &[u8]) {
        for piece in octets.chunks(FEED_OCTETS_MAX) {
            self.session.feed(piece);
            self.run();
        }
    }

    /// As many commands may be wrong between two messages.
    pub(super) fn errors_max(&self) -> usize {
        self.shape.settings.errors_max
    }

    /// The stream is over.
    pub(super) fn end(&mut self) {
        match self.shape.end {
            End::Gone => self.session.feed_eof(),
            End::Silence => self.session.timed_out(),
            End::ShutDown => self.session.shut_down(),
        }
        self.run();
        assert!(self.is_closed() && !self.open, "a session that has ended leaves nothing open");
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.told.last(), Some((_, Told::Close(_))))
    }

    fn run(&mut self) {
        if self.is_closed() {
            assert!(matches!(self.session.poll(), Event::Close(_)), "nothing comes after the end");
            assert!(self.session.output().is_empty());
            return;
        }
        while self.step() {}
        self.said.extend_from_slice(self.session.output());
        self.session.flushed();
    }

    /// `false` where the session waits or has ended.
    fn step(&mut self) -> bool {
        let told = match self.session.poll() {
            Event::Wait => return false,
            Event::Hello { name, extended } => Told::Hello(name.to_owned(), extended),
            Event::StartTls => Told::Tls,
            Event::Mail(envelope) => Told::Mail(envelope.clone()),
            Event::Recipient { recipient, envelope } => {
                assert!(envelope.recipients.len() < self.shape.settings.recipients_max);
                Told::Recipient(recipient.as_str().to_owned())
            }
            Event::Data(envelope) => Told::Data(envelope.clone()),
            Event::Body(octets) => {
                assert!(self.open && !octets.is_empty());
                self.message.extend_from_slice(octets);
                assert!(self.message.len() as u64 <= self.shape.settings.message_size_max);
                return true;
            }
            Event::End(envelope) => Told::Message(envelope.clone(), std::mem::take(&mut self.message)),
            Event::Reset(cause) => Told::Reset(cause),
            Event::Close(ending) => Told::Close(ending.clone()),
        };
        let at = self.said.len() + self.session.output().len();
        self.answer(&told);
        let goes_on = !matches!(told, Told::Close(_));
        self.told.push((at, told));
        goes_on
    }

    fn answer(&mut self, told: &Told) {
        match told {
            Told::Hello(..) | Told::Tls | Told::Mail(_) | Told::Close(_) => assert!(!self.open, "{told:?}"),
            Told::Recipient(_) | Told::Data(_) | Told::Message(..) | Told::Reset(_) => assert!(self.open, "{told:?}"),
        }
        match told {
            Told::Hello(..) | Told::Close(_) => {}
            Told::Tls => self.session.tls_up(),
            Told::Mail(envelope) => {
                assert!(envelope.recipients.is_empty());
                let answer = judge(envelope.sender.as_str());
                self.open = answer.is_ok();
                self.session.answer_mail(answer);
            }
            Told::Recipient(recipient) => self.session.answer_recipient(judge(recipient)),
            Told::Data(envelope) => {
                assert!(!envelope.recipients.is_empty());
                self.session.answer_data(judge(envelope.recipients[0].as_str().trim_start_matches('d')));
            }
            Told::Message(_, octets) => {
                self.open = false;
                let answer = if octets.starts_with(b"r") { Err(Refusal::new(DISK_FULL)) } else { Ok(OnDisk) };
                self.session.finish(answer);
            }
            Told::Reset(_) => {
                self.open = false;
                self.message.clear();
            }
        }
    }
}

/// Whoever begins with an `r` is refused, with a `t` for now.
fn judge(address: &str) -> Result<(), Refusal> {
    match address.as_bytes().first() {
        Some(b'r') => Err(Refusal::new(NO_SUCH_RECIPIENT)),
        Some(b't') => Err(Refusal::new(DISK_FULL)),
        _ => Ok(()),
    }
}

struct OnDisk;

impl DeliveryProof for OnDisk {
    fn reply(&self) -> Reply {
        Reply::new(250, Enhanced(2, 0, 0), "queued as 1")
    }
}
