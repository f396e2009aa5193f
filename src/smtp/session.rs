//! The server's side of a session: the machine between the bytes of a peer and the conductor.
//!
//! The conductor's loop is dumb: [`Session::poll`] says what to do next. On [`Event::Wait`] it writes out
//! [`Session::output`], calls [`Session::flushed`], reads at most [`FEED_OCTETS_MAX`] octets within
//! [`Session::timeout`] and feeds them. On a question (`Mail`, `Recipient`, `Data`, `End`) it calls the answer of that
//! name; until then `poll` repeats the question. The rest it takes note of.
//!
//! The theory: what a stream of bytes means does not depend on how it was cut, and each command gets one reply, in
//! order. The one exception is time: octets that were fed before the 354 was said were sent before it was seen, by a
//! peer that is not in step with us, and end the session, because such a message could be commands to one and
//! text to another. Where DATA is refused its would-be text is read as commands, as RFC 2920 has it; they fail,
//! and too many failures end the session too. A chunk (BDAT, in `chunking`) says its length first, so it is never read as
//! anything else, wanted or not.
//!
//! A transaction, from an accepted MAIL on, ends in exactly one of: `finish` with a proof or a refusal, or
//! [`Event::Reset`]. A message that breaks the rules of the protocol never reaches `End`: the machine answers it
//! at its real end, by itself.
//!
//! Left out: time itself, the total deadline of a session, the TLS handshake, and every judgement about who may send what.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::address::{Mailbox, ReversePath};
use crate::envelope::{DsnRequest, Envelope, RecipientDsn};
use crate::reply;
use crate::reply::{DeliveryProof, Refusal, Reply};
use crate::smtp::command;
use crate::smtp::command::{Chunk, Command, MailParameters, Recipient};
use crate::smtp::foreign;
use crate::smtp::foreign::Likeness;
use crate::smtp::line::{Line, LineReader};
use crate::smtp::receiving::{Chunks, Progress, Receiving};
use crate::smtp::settings::Settings;

mod chunking;
mod event;
mod starttls;

pub use event::{Cause, Ending, Event, Opening};
pub use starttls::Security;

use chunking::Reading;

/// One inbound session.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    security: Security,
    /// What was fed and not consumed starts at `consumed`.
    input: Vec<u8>,
    consumed: usize,
    output: Vec<u8>,
    lines: LineReader,
    state: State,
    hello: Option<Hello>,
    transaction: Option<Transaction>,
    counters: Counters,
    /// Notices that `poll` has still to give, in this order.
    dropped: Option<Cause>,
    greeted: bool,
    /// The daemon wants to stop, as soon as no answer is owed.
    stopping: bool,
}

#[derive(Debug)]
enum State {
    /// The banner has not been said.
    New,
    /// The first octets tell whether the peer speaks SMTP at all.
    First,
    Commands,
    /// The conductor owes an answer.
    Asking(Question),
    /// Between the 354 and the final dot.
    Message(Receiving),
    /// In the octets of a chunk.
    Chunk(Reading),
    Closed(Ending),
}

#[derive(Debug)]
enum Question {
    StartTls,
    Mail(Transaction),
    Recipient(Mailbox, RecipientDsn),
    Data,
    /// DATA's question, put by the first chunk, which comes in any case.
    FirstChunk(Chunk),
    End,
}

#[derive(Debug)]
struct Hello {
    name: String,
    extended: bool,
}

/// What dies at RSET.
#[derive(Debug)]
struct Transaction {
    envelope: Envelope,
    /// Accepted RCPT commands; a repeated recipient stands in the envelope once.
    recipients_accepted: usize,
    recipients_asked: usize,
    /// `Some` from the first BDAT on: its message so far.
    chunks: Option<Chunks>,
}

/// Counted since the last accepted message.
#[derive(Debug, Default)]
struct Counters {
    errors: usize,
    refusals: usize,
    commands: usize,
}

impl Session {
    /// A session that waits for [`Session::greet`].
    #[must_use]
    pub fn new(settings: Arc<Settings>) -> Session {
        Session {
            settings,
            security: Security::Plain,
            input: Vec::new(),
            consumed: 0,
            output: Vec::new(),
            lines: LineReader::default(),
            state: State::New,
            hello: None,
            transaction: None,
            counters: Counters::default(),
            dropped: None,
            greeted: false,
            stopping: false,
        }
    }

    /// Says the banner, or refuses a peer that spoke before it.
    pub fn greet(&mut self, opening: Opening) {
        debug_assert!(matches!(self.state, State::New), "the banner is said once");
        match opening {
            Opening::Early => self.cut(reply::EARLY_TALKER),
            Opening::Polite => {
                reply::write_greeting(&self.settings.hostname, &mut self.output);
                self.state = State::First;
            }
        }
    }

    /// Takes octets from the peer, at most [`FEED_OCTETS_MAX`], after [`Event::Wait`] only. So what is buffered is
    /// bounded by one feed and the rest of one line.
    pub fn feed(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= FEED_OCTETS_MAX, "one feed is bounded");
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        self.input.drain(..self.consumed);
        self.consumed = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The peer has closed its side. Half a command is no command, half a message no message.
    pub fn feed_eof(&mut self) {
        self.end(Ending::Gone);
    }

    /// The peer was silent for longer than [`Session::timeout`].
    pub fn timed_out(&mut self) {
        self.cut(reply::TIMEOUT);
    }

    /// The daemon stops. Where an answer is owed it is given first, so that no message that is on disk goes
    /// unacknowledged.
    pub fn shut_down(&mut self) {
        match self.state {
            State::Asking(_) => self.stopping = true,
            State::New | State::First | State::Commands | State::Message(_) | State::Chunk(_) | State::Closed(_) => {
                self.cut(reply::SHUTTING_DOWN)
            }
        }
    }

    /// How long the next read may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match self.state {
            State::Message(_) | State::Chunk(_) => self.settings.timeouts.data_block,
            State::New | State::First | State::Commands | State::Asking(_) | State::Closed(_) => {
                self.settings.timeouts.command
            }
        }
    }

    /// What is to be written to the peer. All of a pipelined group's replies stand in it together. It is bounded by
    /// [`FEED_OCTETS_MAX`] and the limits on commands.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The output was written. Gives its memory back: ten thousand idle sessions are cheap only if each is.
    pub fn flushed(&mut self) {
        self.output = Vec::new();
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Event<'_> {
        loop {
            if self.stopping {
                self.shut_down();
            }
            if let Some(cause) = self.dropped.take() {
                return Event::Reset(cause);
            }
            if self.greeted {
                self.greeted = false;
                return self.hello_event();
            }
            let step = match &mut self.state {
                State::New => Step::Wait,
                State::First => self.read_first(),
                State::Commands => self.read_command(),
                State::Message(receiving) => {
                    let (read, progress) = receiving.read(&self.input[self.consumed..]);
                    let start = self.consumed;
                    self.consumed += read;
                    self.advance(start, progress)
                }
                State::Chunk(_) => self.read_chunk(),
                State::Asking(_) | State::Closed(_) => return self.standing_event(),
            };
            match step {
                Step::On => {}
                Step::Body(range) => return Event::Body(&self.input[range]),
                Step::Wait => {
                    if self.consumed == self.input.len() {
                        self.input = Vec::new();
                        self.consumed = 0;
                    }
                    return Event::Wait;
                }
            }
        }
    }

    fn hello_event(&self) -> Event<'_> {
        let hello = self.hello.as_ref().expect("a greeting was just read");
        Event::Hello { name: &hello.name, extended: hello.extended }
    }

    /// What the state itself says, as often as it is asked: an open question, or the end.
    fn standing_event(&self) -> Event<'_> {
        let envelope = || &self.transaction.as_ref().expect("these questions belong to a transaction").envelope;
        match &self.state {
            State::Asking(Question::StartTls) => Event::StartTls,
            State::Asking(Question::Mail(transaction)) => Event::Mail(&transaction.envelope),
            State::Asking(Question::Recipient(recipient, _)) => Event::Recipient { recipient, envelope: envelope() },
            State::Asking(Question::Data | Question::FirstChunk(_)) => Event::Data(envelope()),
            State::Asking(Question::End) => Event::End(envelope()),
            State::Closed(ending) => Event::Close(ending),
            State::New | State::First | State::Commands | State::Message(_) | State::Chunk(_) => Event::Wait,
        }
    }

    /// Turns away peers that speak another protocol before a line of theirs is read as a command.
    fn read_first(&mut self) -> Step {
        match foreign::likeness(&self.input[self.consumed..]) {
            Likeness::Same => self.cut(reply::WRONG_PROTOCOL),
            Likeness::SoFar => return Step::Wait,
            Likeness::None => self.state = State::Commands,
        }
        Step::On
    }

    fn read_command(&mut self) -> Step {
        let (read, line) = self.lines.next(&self.input[self.consumed..]);
        self.consumed += read;
        let parsed = match line {
            Line::Whole(text) => command::parse(text),
            // Whatever it should have been, a message follows it.
            Line::BareControl(text) | Line::TooLong(text) if command::is_bdat(text) => Ok(Command::Bdat(None)),
            Line::BareControl(_) => Err(reply::BARE_CONTROL),
            Line::TooLong(_) => Err(reply::LINE_TOO_LONG),
            Line::Partial => return Step::Wait,
            Line::Flood => {
                self.cut(reply::TOO_MANY_ERRORS);
                return Step::On;
            }
        };
        match parsed {
            Ok(command) => self.execute(command),
            Err(reply) => self.complain(reply),
        }
        Step::On
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Ehlo { name } => self.hello(Hello { name, extended: true }),
            Command::Helo { name } => self.hello(Hello { name, extended: false }),
            Command::Mail { sender, parameters } => self.mail(sender, parameters),
            Command::Rcpt { recipient, dsn } => self.rcpt(recipient, dsn),
            Command::Data => self.data(),
            Command::StartTls => self.start_tls(),
            Command::Rset => {
                self.drop_transaction(Cause::Asked);
                self.idle(reply::OK);
            }
            Command::Noop => self.idle(reply::OK),
            Command::Vrfy => self.idle(reply::CANNOT_VERIFY),
            Command::Help => self.idle(reply::HELP),
            Command::Quit => {
                self.say(&reply::BYE);
                self.end(Ending::Quit);
            }
            Command::Bdat(chunk) => self.bdat(chunk),
        }
    }

    fn hello(&mut self, hello: Hello) {
        if !self.count_idle() {
            return;
        }
        // RFC 5321 §4.1.4: a second EHLO resets, as RSET would.
        self.drop_transaction(Cause::Asked);
        if hello.extended {
            reply::write_ehlo(&self.settings.hostname, &self.capabilities(), &mut self.output);
        } else {
            reply::write_helo(&self.settings.hostname, &mut self.output);
        }
        self.hello = Some(hello);
        self.greeted = true;
    }

    fn mail(&mut self, sender: ReversePath, parameters: MailParameters) {
        if self.hello.is_none() {
            return self.complain(reply::SEND_HELLO_FIRST);
        }
        if self.transaction.is_some() {
            return self.complain(reply::NESTED_MAIL);
        }
        if !self.count_idle() {
            return;
        }
        // RFC 8689 §2: it is offered inside TLS only. The message came in clear text as far as us; it must not seem safe.
        if parameters.require_tls && self.security != Security::Up {
            return self.complain(reply::ENCRYPTION_NEEDED);
        }
        // RFC 1870 §6.1: what is announced as too large need not be sent.
        if parameters.size.is_some_and(|size| size > self.settings.message_size_max) {
            return self.say(&reply::MESSAGE_TOO_LARGE);
        }
        let envelope = Envelope {
            sender,
            recipients: Vec::new(),
            body: parameters.body.unwrap_or_default(),
            smtputf8: parameters.smtputf8,
            declared_size: parameters.size,
            dsn: DsnRequest { ret: parameters.ret, envid: parameters.envid, recipients: Vec::new() },
            require_tls: parameters.require_tls,
        };
        let transaction = Transaction { envelope, recipients_accepted: 0, recipients_asked: 0, chunks: None };
        self.state = State::Asking(Question::Mail(transaction));
    }

    fn rcpt(&mut self, recipient: Recipient, dsn: RecipientDsn) {
        let Some(transaction) = &mut self.transaction else {
            return self.out_of_order();
        };
        if transaction.chunks.is_some() {
            return self.complain(reply::CHUNKS_BEGUN);
        }
        transaction.recipients_asked += 1;
        if transaction.recipients_asked > self.settings.recipients_max.saturating_mul(RCPT_COMMANDS_FACTOR) {
            return self.cut(reply::TOO_MANY_COMMANDS);
        }
        let recipient = match recipient {
            // RFC 6531 §3.4: an internationalised recipient belongs to a transaction that announced it.
            Recipient::Mailbox(mailbox) if !mailbox.is_ascii() && !transaction.envelope.smtputf8 => {
                return self.complain(reply::UTF8_NOT_ANNOUNCED);
            }
            Recipient::Mailbox(mailbox) => mailbox,
            Recipient::Postmaster => self.settings.postmaster.clone(),
        };
        // RFC 5321 §4.5.3.1.10: 452, so that the client sends the others in a further transaction.
        if transaction.recipients_accepted >= self.settings.recipients_max {
            return self.say(&reply::TOO_MANY_RECIPIENTS);
        }
        self.state = State::Asking(Question::Recipient(recipient, dsn));
    }

    fn data(&mut self) {
        match &self.transaction {
            None => self.out_of_order(),
            // No error of the client: it could not know when it sent MAIL, RCPT and DATA together (RFC 2920 §3.1).
            Some(transaction) if transaction.envelope.recipients.is_empty() => self.idle(reply::SEND_RCPT_FIRST),
            // RFC 3030 §2: the client has lost its place, and what it sent of the message is void.
            Some(transaction) if transaction.chunks.is_some() => {
                self.refuse_transaction(reply::CHUNKS_BEGUN);
                self.complain(reply::CHUNKS_BEGUN);
            }
            Some(_) => self.state = State::Asking(Question::Data),
        }
    }

    /// A transaction's command came outside one.
    fn out_of_order(&mut self) {
        let missing = if self.hello.is_none() { reply::SEND_HELLO_FIRST } else { reply::SEND_MAIL_FIRST };
        self.complain(missing);
    }

    /// Answers [`Event::Mail`].
    pub fn answer_mail(&mut self, answer: Result<(), Refusal>) {
        let Some(Question::Mail(transaction)) = self.take_question(|q| matches!(q, Question::Mail(_))) else { return };
        match answer {
            Ok(()) => {
                self.transaction = Some(transaction);
                self.say(&reply::SENDER_OK);
            }
            Err(refusal) => self.refuse(&refusal),
        }
    }

    /// Answers [`Event::Recipient`].
    pub fn answer_recipient(&mut self, answer: Result<(), Refusal>) {
        let Some(Question::Recipient(recipient, dsn)) = self.take_question(|q| matches!(q, Question::Recipient(..)))
        else {
            return;
        };
        if let Err(refusal) = answer {
            return self.refuse(&refusal);
        }
        let transaction = self.transaction.as_mut().expect("RCPT is asked about inside a transaction only");
        transaction.recipients_accepted += 1;
        // Named twice, a recipient gets one copy all the same.
        if !transaction.envelope.recipients.contains(&recipient) {
            transaction.envelope.recipients.push(recipient);
            transaction.envelope.dsn.recipients.push(dsn);
        }
        self.say(&reply::RECIPIENT_OK);
    }

    /// Answers [`Event::Data`]. A refusal of DATA leaves the transaction open, as every refused command does.
    pub fn answer_data(&mut self, answer: Result<(), Refusal>) {
        match self.take_question(|q| matches!(q, Question::Data | Question::FirstChunk(_))) {
            Some(Question::Data) => self.begin_data(answer),
            Some(Question::FirstChunk(chunk)) => self.begin_chunks(chunk, answer),
            Some(Question::StartTls | Question::Mail(_) | Question::Recipient(..) | Question::End) | None => {}
        }
    }

    fn begin_data(&mut self, answer: Result<(), Refusal>) {
        if let Err(refusal) = answer {
            return self.refuse(&refusal);
        }
        if self.consumed < self.input.len() {
            return self.cut(reply::DATA_BEFORE_354);
        }
        self.say(&reply::START_DATA);
        self.state = State::Message(Receiving::new(self.settings.message_size_max, self.settings.header_octets_max));
    }

    /// Answers [`Event::End`] and ends the transaction. Only what proves that the message is on disk can say 250.
    pub fn finish<P: DeliveryProof>(&mut self, answer: Result<P, Refusal>) {
        let Some(Question::End) = self.take_question(|q| matches!(q, Question::End)) else { return };
        self.transaction = None;
        match answer {
            Ok(proof) => {
                self.say(&proof.reply());
                self.counters = Counters::default();
            }
            Err(refusal) => self.say(refusal.reply()),
        }
    }

    /// Takes the open question if it is the one that is being answered. Otherwise the answer changes nothing: a
    /// conductor that has lost its place must not make a session say yes.
    fn take_question(&mut self, is_answered: fn(&Question) -> bool) -> Option<Question> {
        match std::mem::replace(&mut self.state, State::Commands) {
            State::Asking(question) if is_answered(&question) => Some(question),
            other => {
                debug_assert!(false, "an answer without its question");
                self.state = other;
                None
            }
        }
    }

    /// Takes the next piece of a message, which was read from `start` on.
    fn advance(&mut self, start: usize, progress: Progress) -> Step {
        match progress {
            Progress::Partial => return Step::Wait,
            Progress::Dropped => {}
            Progress::Text(range) => return Step::Body(start + range.start..start + range.end),
            Progress::End(Ok(())) => self.state = State::Asking(Question::End),
            Progress::End(Err(reply)) => {
                self.state = State::Commands;
                self.say(&reply);
                self.refuse_transaction(reply);
            }
        }
        Step::On
    }

    fn say(&mut self, reply: &Reply) {
        reply.write(&mut self.output);
    }

    /// Answers a command that is wrong in itself.
    fn complain(&mut self, reply: Reply) {
        self.counters.errors += 1;
        if self.counters.errors > self.settings.errors_max {
            return self.cut(reply::TOO_MANY_ERRORS);
        }
        self.say(&reply);
    }

    /// Answers what the conductor does not want.
    fn refuse(&mut self, refusal: &Refusal) {
        self.counters.refusals += 1;
        if self.counters.refusals > self.settings.refusals_max {
            return self.cut(reply::TOO_MANY_ERRORS);
        }
        self.say(refusal.reply());
    }

    /// Answers a command that brings no message forward.
    fn idle(&mut self, reply: Reply) {
        if self.count_idle() {
            self.say(&reply);
        }
    }

    /// Counts a command that brings no message forward; `false` where it was the one too many.
    fn count_idle(&mut self) -> bool {
        self.counters.commands += 1;
        let within = self.counters.commands <= self.settings.commands_max;
        if !within {
            self.cut(reply::TOO_MANY_COMMANDS);
        }
        within
    }

    fn drop_transaction(&mut self, cause: Cause) {
        if self.transaction.take().is_some() {
            self.dropped = Some(cause);
        }
    }

    /// Ends a transaction whose message is refused.
    fn refuse_transaction(&mut self, reply: Reply) {
        if let Some(transaction) = self.transaction.take() {
            self.dropped = Some(Cause::Refused { reply, envelope: Box::new(transaction.envelope) });
        }
    }

    fn cut(&mut self, reply: Reply) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        self.say(&reply);
        self.end(Ending::Cut(reply));
    }

    fn end(&mut self, ending: Ending) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        self.drop_transaction(Cause::Closed);
        self.state = State::Closed(ending);
        // What follows is not looked at.
        self.input = Vec::new();
        self.consumed = 0;
    }
}

enum Step {
    On,
    Wait,
    Body(Range<usize>),
}

/// What one feed may bring: a read of the socket.
pub const FEED_OCTETS_MAX: usize = 64 * 1024;

/// RCPT commands of one transaction, as a multiple of the recipients that may be accepted.
const RCPT_COMMANDS_FACTOR: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reply::Enhanced;
    use crate::smtp::settings::{COMMANDS_MAX, ERRORS_MAX};

    /// A conductor of the simplest kind: it takes everything but recipients whose local part is `refused`.
    struct Conductor {
        session: Session,
        said: Vec<u8>,
        told: Vec<String>,
        message: Vec<u8>,
    }

    struct OnDisk;

    impl DeliveryProof for OnDisk {
        fn reply(&self) -> Reply {
            Reply::new(250, Enhanced(2, 0, 0), "queued as 1")
        }
    }

    impl Conductor {
        fn with(change: impl FnOnce(&mut Settings)) -> Conductor {
            let postmaster = Mailbox::parse("postmaster@solarmora.com").unwrap();
            let mut settings = Settings::new("mx.solarmora.com".to_owned(), postmaster, 1000, 3);
            change(&mut settings);
            let mut session = Session::new(Arc::new(settings));
            session.greet(Opening::Polite);
            let mut conductor = Conductor { session, said: Vec::new(), told: Vec::new(), message: Vec::new() };
            conductor.run();
            conductor.said.clear();
            conductor
        }

        fn new() -> Conductor {
            Conductor::with(|_| {})
        }

        fn send(&mut self, bytes: &[u8]) -> &mut Conductor {
            for piece in bytes.chunks(FEED_OCTETS_MAX) {
                self.session.feed(piece);
                self.run();
            }
            self
        }

        fn run(&mut self) {
            loop {
                match self.session.poll() {
                    Event::Wait => break,
                    Event::Close(ending) => {
                        self.told.push(format!("close {ending:?}"));
                        break;
                    }
                    Event::Hello { name, extended } => self.told.push(format!("hello {name} {extended}")),
                    Event::StartTls => self.session.tls_up(),
                    Event::Mail(_) => self.session.answer_mail(Ok(())),
                    Event::Recipient { recipient, .. } => {
                        let refused = recipient.local() == "refused";
                        let answer = if refused { Err(Refusal::new(reply::NO_SUCH_RECIPIENT)) } else { Ok(()) };
                        self.session.answer_recipient(answer);
                    }
                    Event::Data(_) => self.session.answer_data(Ok(())),
                    Event::Body(text) => self.message.extend_from_slice(text),
                    Event::End(envelope) => {
                        let message = self.message.escape_ascii();
                        self.told.push(format!("message {} {:?}: {message}", envelope.sender, envelope.recipients));
                        self.message.clear();
                        self.session.finish(Ok(OnDisk));
                    }
                    Event::Reset(cause) => {
                        self.message.clear();
                        self.told.push(match cause {
                            Cause::Refused { reply, envelope } => {
                                format!("refused {} {:?}: {reply}", envelope.sender, envelope.recipients)
                            }
                            Cause::Asked | Cause::Closed => format!("reset {cause:?}"),
                        });
                    }
                }
            }
            self.said.extend_from_slice(self.session.output());
            self.session.flushed();
        }

        /// The codes that were said since the last call, one for each last line of a reply.
        fn codes(&mut self) -> Vec<u16> {
            let said = String::from_utf8(std::mem::take(&mut self.said)).expect("replies are ASCII");
            let last = |line: &&str| line.as_bytes()[3] == b' ';
            said.lines().filter(last).map(|line| line[..3].parse().expect("a reply has a code")).collect()
        }

        fn closed(&mut self) -> bool {
            matches!(self.session.poll(), Event::Close(_))
        }
    }

    const HELLO: &[u8] = b"EHLO a\r\n";
    const MAIL: &[u8] = b"MAIL FROM:<a@b>\r\n";
    const RCPT: &[u8] = b"RCPT TO:<aide@solarmora.com>\r\n";
    const DATA: &[u8] = b"DATA\r\n";

    #[test]
    fn a_pipelined_group_is_answered_in_order_and_in_one_write() {
        let mut conductor = Conductor::new();
        conductor.send(HELLO).codes();
        conductor.send(&[MAIL, b"RCPT TO:<refused@x>\r\n", RCPT, DATA].concat());
        assert_eq!(conductor.codes(), [250, 550, 250, 354]);
        conductor.send(b"a: b\r\n\r\n..\r\n.\r\nQUIT\r\n");
        assert_eq!(conductor.codes(), [250, 221]);
        assert!(conductor.told[1].ends_with(": a: b\\r\\n\\r\\n.\\r\\n"), "{:?}", conductor.told);
        assert_eq!(conductor.told[2], "close Quit");
    }

    #[test]
    fn a_message_sent_before_the_354_ends_the_session() {
        let mut conductor = Conductor::new();
        conductor.send(&[HELLO, MAIL, RCPT, DATA, b"text\r\n.\r\n"].concat());
        assert_eq!(conductor.codes(), [250, 250, 250, 554]);
        assert!(conductor.closed());
        assert_eq!(conductor.told[1], "reset Closed");
    }

    #[test]
    fn a_question_is_repeated_until_it_is_answered() {
        let mut conductor = Conductor::new();
        conductor.send(HELLO);
        conductor.session.feed(MAIL);
        assert!(matches!(conductor.session.poll(), Event::Mail(_)));
        assert!(matches!(conductor.session.poll(), Event::Mail(_)));
        conductor.session.answer_mail(Err(Refusal::new(reply::DISK_FULL)));
        assert_eq!(conductor.session.poll(), Event::Wait);
        conductor.run();
        conductor.said.clear();
        assert_eq!(conductor.send(RCPT).codes(), [503], "no transaction began");
    }

    #[test]
    fn a_transaction_that_ends_without_a_message_is_reset_once() {
        for (ending, want) in [
            (&b"RSET\r\nRSET\r\n"[..], vec!["reset Asked"]),
            (b"EHLO b\r\n", vec!["reset Asked", "hello b true"]),
            (b"QUIT\r\n", vec!["reset Closed", "close Quit"]),
        ] {
            let mut conductor = Conductor::new();
            conductor.send(&[HELLO, MAIL, RCPT].concat()).told.clear();
            assert_eq!(conductor.send(ending).told, want);
        }
        for end in [Session::feed_eof, Session::timed_out, Session::shut_down] {
            for stage in [MAIL, RCPT, DATA, b"half a mess"] {
                let stages = [HELLO, MAIL, RCPT, DATA, b"half a mess"];
                let until = stages.iter().position(|s| *s == stage).unwrap();
                let mut conductor = Conductor::new();
                stages[..=until].iter().for_each(|s| {
                    conductor.send(s);
                });
                conductor.told.clear();
                end(&mut conductor.session);
                conductor.run();
                assert_eq!(conductor.told.len(), 2);
                assert_eq!(conductor.told[0], "reset Closed");
            }
        }
    }

    #[test]
    fn the_end_of_input_says_nothing_but_silence_and_shutdown_say_421() {
        for (end, want) in [
            (Session::feed_eof as fn(&mut Session), vec![]),
            (Session::timed_out, vec![421]),
            (Session::shut_down, vec![421]),
        ] {
            let mut conductor = Conductor::new();
            end(&mut conductor.session);
            conductor.run();
            assert_eq!(conductor.codes(), want);
            conductor.send(b"NOOP\r\n");
            assert!(conductor.codes().is_empty(), "a closed session stays closed");
            assert_eq!(conductor.session.input.len(), 0, "and keeps nothing");
        }
    }

    #[test]
    fn a_message_that_is_being_stored_is_acknowledged_before_the_shutdown() {
        let mut conductor = Conductor::new();
        conductor.send(&[HELLO, MAIL, RCPT, DATA].concat()).codes();
        conductor.session.feed(b".\r\nNOOP\r\n");
        assert!(matches!(conductor.session.poll(), Event::End(_)));
        conductor.session.shut_down();
        assert!(matches!(conductor.session.poll(), Event::End(_)));
        conductor.session.finish(Ok(OnDisk));
        conductor.run();
        assert_eq!(conductor.codes(), [250, 421]);
        assert!(conductor.closed());
    }

    #[test]
    fn an_early_talker_gets_no_banner() {
        let postmaster = Mailbox::parse("postmaster@x").unwrap();
        let mut session = Session::new(Arc::new(Settings::new("mx".to_owned(), postmaster, 1, 1)));
        session.greet(Opening::Early);
        assert_eq!(session.poll(), Event::Close(&Ending::Cut(reply::EARLY_TALKER)));
        assert!(session.output().starts_with(b"554 5.5.1 "));
    }

    /// Sends `line` once more than `limit` allows; the last time it must be the end.
    fn check_limit(before: &[u8], line: &[u8], limit: usize, want: u16) {
        let mut conductor = Conductor::new();
        conductor.send(before).codes();
        for _ in 0..limit {
            assert_eq!(conductor.send(line).codes(), [want], "{}", line.escape_ascii());
            assert!(!conductor.closed());
        }
        assert_eq!(conductor.send(line).codes(), [421]);
        assert!(conductor.closed());
    }

    #[test]
    fn each_limit_holds_at_the_limit_and_ends_the_session_one_past_it() {
        check_limit(b"", b"JUNK\r\n", ERRORS_MAX, 500);
        check_limit(b"", b"a\nb\r\n", ERRORS_MAX, 500);
        check_limit(b"", RCPT, ERRORS_MAX, 503);
        check_limit(b"", b"NOOP\r\n", COMMANDS_MAX, 250);
        check_limit(b"", b"RSET\r\n", COMMANDS_MAX, 250);
        check_limit(b"", b"VRFY x\r\n", COMMANDS_MAX, 252);
        check_limit(b"", HELLO, COMMANDS_MAX, 250);
        check_limit(HELLO, b"MAIL FROM:<> SIZE=1001\r\n", COMMANDS_MAX - 1, 552);
        check_limit(&[HELLO, MAIL].concat(), DATA, COMMANDS_MAX - 2, 503);
        check_limit(&[HELLO, MAIL].concat(), b"RCPT TO:<refused@x>\r\n", 3 * RCPT_COMMANDS_FACTOR, 550);
        let mut harvested = Conductor::with(|settings| settings.refusals_max = 2);
        harvested.send(&[HELLO, MAIL].concat()).codes();
        assert_eq!(harvested.send(&b"RCPT TO:<refused@x>\r\n".repeat(3)).codes(), [550, 550, 421]);
        let mut many = Conductor::new();
        many.send(&[HELLO, MAIL, &RCPT.repeat(3)].concat()).codes();
        assert_eq!(many.send(RCPT).codes(), [452]);
        assert_eq!(many.send(DATA).codes(), [354], "those before it are served");
    }

    #[test]
    fn an_accepted_message_clears_what_was_counted() {
        let mut conductor = Conductor::new();
        conductor.send(HELLO);
        for _ in 0..3 {
            conductor.send(&b"NOOP\r\n".repeat(COMMANDS_MAX - 2));
            conductor.send(&[MAIL, RCPT, DATA].concat()).codes();
            assert_eq!(conductor.send(b".\r\n").codes(), [250]);
        }
    }

    #[test]
    fn a_recipient_named_twice_gets_one_copy() {
        let mut conductor = Conductor::new();
        conductor.send(&[HELLO, MAIL, RCPT, b"RCPT TO:<Aide@SOLARMORA.com>\r\n", DATA].concat());
        assert_eq!(conductor.codes(), [250, 250, 250, 250, 354]);
        conductor.send(b".\r\n");
        assert_eq!(conductor.told[1].matches("solarmora").count(), 2, "one mailbox, with its domain beside it");
    }

    #[test]
    fn a_million_chunks_of_one_octet_keep_memory_flat() {
        let mut conductor = Conductor::with(|settings| settings.message_size_max = CHUNKS);
        conductor.send(&[HELLO, MAIL, RCPT].concat()).codes();
        let octet = |at: u64| if at.is_multiple_of(2) { b'\r' } else { b'\n' };
        let (mut feed, mut answers, mut octets) = (Vec::new(), 0, 0);
        for at in 0..CHUNKS {
            feed.extend_from_slice(b"BDAT 1\r\n");
            feed.push(octet(at));
            if feed.len() < FEED_OCTETS_MAX - 9 && at + 1 < CHUNKS {
                continue;
            }
            conductor.send(&feed);
            feed.clear();
            answers += std::mem::take(&mut conductor.said).split(|&b| b == b'\n').count() - 1;
            octets += std::mem::take(&mut conductor.message).len() as u64;
            assert!(conductor.session.input.capacity() <= 2 * FEED_OCTETS_MAX);
            assert_eq!(conductor.session.output.capacity(), 0);
        }
        assert_eq!((answers as u64, octets), (CHUNKS, CHUNKS));
        assert_eq!(conductor.send(b"BDAT 0 LAST\r\n").codes(), [250]);
        const CHUNKS: u64 = 1_000_000;
    }

    #[test]
    fn a_chunk_is_answered_before_what_was_pipelined_behind_it() {
        let mut conductor = Conductor::new();
        conductor.send(&[HELLO, MAIL, RCPT].concat()).codes();
        conductor.session.feed(b"BDAT 4\r\na\r\nbBDAT 3 LAST\r\nc\r\nMAIL FROM:<>\r\nQUIT\r\n");
        let mut events = Vec::new();
        loop {
            match conductor.session.poll() {
                Event::Data(_) => conductor.session.answer_data(Ok(())),
                Event::Body(text) => events.push(text.escape_ascii().to_string()),
                Event::End(_) => {
                    events.push("end".to_owned());
                    conductor.session.finish(Ok(OnDisk));
                }
                Event::Mail(_) => conductor.session.answer_mail(Ok(())),
                Event::Close(_) => break,
                _ => {}
            }
        }
        assert_eq!(events, ["a\\r\\nb", "c\\r\\n", "end"]);
        conductor.run();
        assert_eq!(conductor.codes(), [250, 250, 250, 221]);
    }

    #[test]
    fn a_message_that_the_protocol_refuses_keeps_its_envelope() {
        let long = [b"a: b\r\n\r\n".as_slice(), &[b'x'; 900], b"\r\n", &[b'x'; 900], b"\r\n.\r\n"].concat();
        for message in [&b"bare \n line feed\r\n.\r\n"[..], &long] {
            let mut conductor = Conductor::new();
            conductor.send(&[HELLO, MAIL, RCPT, DATA].concat()).send(message);
            let told = conductor.told.last().unwrap();
            assert!(told.starts_with("refused a@b [") && told.contains("aide@solarmora.com"), "{told}");
        }
        for chunk in [&b"BDAT 9 LAST\r\nbare \n feed"[..], b"BDAT 2000 LAST\r\n", b"BDAT 3\r\na\r\nDATA\r\n"] {
            let mut conductor = Conductor::new();
            conductor.send(&[HELLO, MAIL, RCPT].concat()).send(chunk);
            let told = conductor.told.iter().find(|told| told.starts_with("refused a@b ["));
            assert!(told.is_some_and(|told| told.contains("aide@solarmora.com")), "{:?}", conductor.told);
        }
    }

    #[test]
    fn a_first_chunk_that_the_conductor_refuses_is_thrown_away_with_its_transaction() {
        let mut conductor = Conductor::new();
        conductor.send(&[HELLO, MAIL, RCPT].concat()).codes();
        conductor.session.feed(b"BDAT 6\r\nRSET\r\nBDAT 6 LAST\r\nRSET\r\n");
        assert!(matches!(conductor.session.poll(), Event::Data(_)));
        conductor.session.answer_data(Err(Refusal::new(reply::LOCAL_ERROR)));
        conductor.run();
        assert_eq!(conductor.codes(), [451, 503]);
        let told = conductor.told.last().unwrap();
        assert!(told.starts_with("refused a@b [") && told.ends_with(&reply::LOCAL_ERROR.to_string()), "{told}");
        assert!(conductor.message.is_empty());
    }

    #[test]
    fn silence_and_shutdown_in_a_chunk_leave_no_message() {
        for end in [Session::timed_out, Session::shut_down] {
            let mut conductor = Conductor::new();
            conductor.send(&[HELLO, MAIL, RCPT, b"BDAT 9 LAST\r\n12345678"].concat()).codes();
            assert_eq!(conductor.session.timeout(), conductor.session.settings.timeouts.data_block);
            end(&mut conductor.session);
            conductor.run();
            assert_eq!(conductor.codes(), [421]);
            assert_eq!(conductor.told[1], "reset Closed");
        }
    }

    #[test]
    fn an_idle_session_holds_no_buffers() {
        let mut conductor = Conductor::new();
        conductor.send(&[HELLO, MAIL, RCPT, DATA].concat()).send(&b"text\r\n".repeat(9000)).send(b".\r\n");
        assert_eq!((conductor.session.input.capacity(), conductor.session.output.capacity()), (0, 0));
        assert!(size_of::<Session>() < 1024);
    }

    /// What a server must answer, in forty lines.
    #[derive(Default)]
    struct Model {
        hello: bool,
        mail: bool,
        rcpt: bool,
        data: bool,
        quit: bool,
    }

    impl Model {
        fn answer(&mut self, command: &str) -> Option<u16> {
            if self.quit || self.data {
                return None;
            }
            let verb = command.split(' ').next().unwrap_or_default();
            Some(match verb {
                "EHLO" | "HELO" => {
                    *self = Model { hello: true, ..Model::default() };
                    250
                }
                "RSET" => {
                    *self = Model { hello: self.hello, ..Model::default() };
                    250
                }
                "MAIL" if !self.hello || self.mail => 503,
                "MAIL" => {
                    self.mail = true;
                    250
                }
                "RCPT" if !self.mail => 503,
                "RCPT" => {
                    self.rcpt = true;
                    250
                }
                "DATA" if !self.rcpt => 503,
                "DATA" => {
                    self.data = true;
                    354
                }
                "NOOP" => 250,
                "VRFY" => 252,
                "STARTTLS" => 502,
                "QUIT" => {
                    self.quit = true;
                    221
                }
                _ => 500,
            })
        }
    }

    const COMMANDS: &[&str] = &[
        "HELO a",
        "EHLO a",
        "MAIL FROM:<a@b>",
        "RCPT TO:<aide@solarmora.com>",
        "DATA",
        "RSET",
        "NOOP",
        "VRFY x",
        "STARTTLS",
        "QUIT",
        "JUNK",
    ];

    fn check_order(order: &[&str]) {
        let (mut conductor, mut model) = (Conductor::with(|settings| settings.recipients_max = 9), Model::default());
        for command in order {
            let want: Vec<u16> = model.answer(command).into_iter().collect();
            assert_eq!(conductor.send(format!("{command}\r\n").as_bytes()).codes(), want, "{order:?} at {command}");
        }
        assert_eq!(conductor.closed(), model.quit, "{order:?}");
        if model.data {
            assert_eq!(conductor.send(b".\r\nRCPT TO:<a@b>\r\nDATA\r\n").codes(), [250, 503, 503], "{order:?}");
        }
    }

    #[test]
    fn all_orders_of_two_and_three_commands_are_answered_as_the_model_says() {
        let begun: &[&[&str]] = &[&[], &COMMANDS[1..2], &COMMANDS[1..3], &COMMANDS[1..4], &COMMANDS[1..5]];
        for begin in begun {
            for one in COMMANDS {
                for two in COMMANDS {
                    check_order(&[begin, &[*one, *two][..]].concat());
                    for three in COMMANDS {
                        check_order(&[begin, &[*one, *two, *three][..]].concat());
                    }
                }
            }
        }
    }

    fn fragment() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            "EHLO a\r\n",
            "MAIL FROM:<a@b>\r\nRCPT TO:<aide@x>\r\n",
            "MAIL FROM:<a@b>\r\nRCPT TO:<aide@x>\r\n",
            "RCPT TO:<refused@x>\r\n",
            "DATA\r\n",
            "DATA\r\n",
            "DATA\r\n",
            ".\r\n",
            "\r\n.\r\n",
            "..\r\n",
            "a: b\r\n",
            "\r\n",
            "\r",
            "\n",
            "\0",
            ".",
            "text",
            "RSET\r\n",
            "QUIT\r\n",
            "BDAT 1\r\n",
            "BDAT 4\r\nab\r\n",
            "BDAT 6\r\nRSET\r\n",
            "BDAT 3 LAST\r\n.\r\n",
            "BDAT 0 LAST\r\n",
            "BDAT x\r\n",
            "GET / HTTP/1.0\r\n",
        ])
    }

    fn play(writes: &[Vec<u8>], cut: impl Fn(usize) -> usize) -> (String, Vec<String>) {
        let mut conductor = Conductor::with(|settings| {
            settings.message_size_max = 40;
            settings.header_octets_max = 20;
        });
        for write in writes {
            let mut rest = write.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
                conductor.send(now);
                rest = later;
            }
        }
        conductor.session.feed_eof();
        conductor.run();
        conductor.told.dedup();
        (conductor.said.escape_ascii().to_string(), conductor.told)
    }

    proptest! {
        #[test]
        fn what_a_stream_means_does_not_depend_on_how_it_is_cut(
            begun in any::<bool>(),
            fragments in proptest::collection::vec(fragment(), 0..24),
            size in 1usize..9,
        ) {
            // A write ends after DATA: what comes before the 354 is refused by time, the exception.
            let mut writes = vec![if begun { HELLO.to_vec() } else { Vec::new() }];
            for fragment in fragments {
                writes.last_mut().expect("it never shrinks").extend_from_slice(fragment.as_bytes());
                if fragment == "DATA\r\n" {
                    writes.push(Vec::new());
                }
            }
            let whole = play(&writes, |length| length);
            prop_assert_eq!(&play(&writes, |_| 1), &whole);
            prop_assert_eq!(&play(&writes, |_| size), &whole);
            prop_assert_eq!(&play(&writes, |length| (length * 7 + size) % 13), &whole);
        }

        #[test]
        fn no_input_panics_or_grows_the_buffer(input in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut conductor = Conductor::new();
            for piece in input.chunks(512) {
                conductor.send(piece);
                prop_assert!(conductor.session.input.len() <= crate::smtp::line::LINE_OCTETS_MAX);
            }
        }
    }
}
