//! STARTTLS (RFC 3207): where a session stands with TLS, and what it forgets on the way into it.
//!
//! The session does no TLS. It says 220, asks the conductor for the handshake ([`Event::StartTls`]) and hears
//! [`Session::tls_up`] when it is done. What the peer said before that counts for nothing after it: no name, no
//! envelope, and octets behind STARTTLS, which would be commands in clear text that are answered inside TLS, end the
//! session before the handshake.
//!
//! [`Event::StartTls`]: super::Event::StartTls

use std::sync::Arc;

use super::{Question, Session, State};
use crate::reply;
use crate::smtp::line::LineReader;
use crate::smtp::settings::Settings;

/// Where a session stands with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// In clear text, and there is nothing else.
    Plain,
    /// In clear text, and STARTTLS is announced.
    Offered,
    /// Inside TLS.
    Up,
}

impl Session {
    /// A session that begins inside TLS, or can come to it.
    #[must_use]
    pub fn with_security(settings: Arc<Settings>, security: Security) -> Session {
        Session { security, ..Session::new(settings) }
    }

    pub(super) fn capabilities(&self) -> Vec<String> {
        let mut capabilities = self.settings.capabilities();
        match self.security {
            Security::Offered => capabilities.push("STARTTLS".to_owned()),
            // RFC 3207 §4.2: STARTTLS is not announced inside TLS. RFC 8689 §2: REQUIRETLS is, and nowhere else.
            Security::Up => capabilities.push("REQUIRETLS".to_owned()),
            Security::Plain => {}
        }
        capabilities
    }

    pub(super) fn start_tls(&mut self) {
        match self.security {
            Security::Plain => return self.complain(reply::NOT_IMPLEMENTED),
            Security::Up => return self.complain(reply::TLS_IS_UP),
            Security::Offered => {}
        }
        if self.transaction.is_some() {
            return self.complain(reply::NESTED_MAIL);
        }
        if !self.count_idle() {
            return;
        }
        // RFC 3207 §4: the client waits for the 220. Who does not may be two: one who put words into the other's mouth.
        if self.consumed < self.input.len() {
            return self.cut(reply::STARTTLS_PIPELINED);
        }
        self.say(&reply::READY_FOR_TLS);
        self.state = State::Asking(Question::StartTls);
    }

    /// Answers [`Event::StartTls`](super::Event::StartTls): the handshake is done. Where it failed there is no answer, but
    /// [`Session::feed_eof`].
    pub fn tls_up(&mut self) {
        let Some(Question::StartTls) = self.take_question(|question| matches!(question, Question::StartTls)) else {
            return;
        };
        self.security = Security::Up;
        self.hello = None;
        self.lines = LineReader::default();
        self.input = Vec::new();
        self.consumed = 0;
        // Errors and commands stay counted: TLS is no way to a new measure.
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ending, Event, Opening};
    use super::*;
    use crate::address::Mailbox;

    fn session(security: Security) -> Session {
        let postmaster = Mailbox::parse("postmaster@solarmora.com").unwrap();
        let settings = Settings::new("mx.solarmora.com".to_owned(), postmaster, 1000, 3);
        let mut session = Session::with_security(Arc::new(settings), security);
        session.greet(Opening::Polite);
        session
    }

    /// What is said to `input`, up to the next thing that is not for this conductor to do.
    fn said(session: &mut Session, input: &str) -> String {
        session.feed(input.as_bytes());
        loop {
            match session.poll() {
                Event::Mail(_) => session.answer_mail(Ok(())),
                Event::Recipient { .. } => session.answer_recipient(Ok(())),
                Event::Hello { .. } | Event::Reset(_) => {}
                Event::Wait | Event::StartTls | Event::Close(_) | Event::Data(_) | Event::Body(_) | Event::End(_) => {
                    break;
                }
            }
        }
        let said = String::from_utf8(session.output().to_vec()).unwrap();
        session.flushed();
        said.lines().filter(|line| line.as_bytes()[3] == b' ').map(|line| format!("{} ", &line[..3])).collect()
    }

    /// A session that has just come into TLS.
    fn secured() -> Session {
        let mut session = session(Security::Offered);
        assert_eq!(said(&mut session, "EHLO clear\r\nNOOP\r\nSTARTTLS\r\n"), "220 250 250 220 ");
        assert_eq!(session.poll(), Event::StartTls);
        assert_eq!(session.poll(), Event::StartTls, "asked until it is answered");
        session.tls_up();
        session
    }

    #[test]
    fn starttls_is_announced_where_it_can_be_had() {
        for (security, announced) in [(Security::Plain, false), (Security::Offered, true), (Security::Up, false)] {
            let mut session = session(security);
            session.feed(b"EHLO a\r\n");
            assert!(matches!(session.poll(), Event::Hello { .. }));
            assert_eq!(String::from_utf8_lossy(session.output()).contains("STARTTLS"), announced, "{security:?}");
        }
    }

    #[test]
    fn requiretls_is_offered_and_taken_inside_tls_only() {
        for security in [Security::Plain, Security::Offered, Security::Up] {
            let mut session = session(security);
            session.feed(b"EHLO a\r\n");
            assert!(matches!(session.poll(), Event::Hello { .. }));
            let inside = security == Security::Up;
            assert_eq!(String::from_utf8_lossy(session.output()).contains("REQUIRETLS"), inside, "{security:?}");
            session.flushed();
            session.feed(b"MAIL FROM:<a@b> REQUIRETLS\r\n");
            match session.poll() {
                Event::Mail(envelope) => assert!(inside && envelope.require_tls, "{security:?}"),
                Event::Wait => {
                    assert!(!inside && session.output().starts_with(b"530 5.7.10 "), "{security:?}");
                    // It was no beginning of a transaction.
                    session.flushed();
                    assert_eq!(said(&mut session, "MAIL FROM:<a@b>\r\n"), "250 ");
                }
                other => panic!("{security:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_was_said_in_clear_text_is_forgotten() {
        let mut session = secured();
        assert_eq!(said(&mut session, "MAIL FROM:<a@b>\r\n"), "503 ", "EHLO was forgotten");
        assert_eq!(said(&mut session, "EHLO a\r\nMAIL FROM:<a@b>\r\n"), "250 250 ");
    }

    #[test]
    fn octets_behind_starttls_end_the_session_unread() {
        for behind in ["EHLO x\r\nMAIL FROM:<a@b>\r\n", "x", "\r\n", "\u{16}\u{3}\u{1}"] {
            let mut session = session(Security::Offered);
            assert_eq!(said(&mut session, &format!("EHLO a\r\nSTARTTLS\r\n{behind}")), "220 250 554 ");
            assert_eq!(session.poll(), Event::Close(&Ending::Cut(reply::STARTTLS_PIPELINED)));
        }
    }

    #[test]
    fn starttls_where_it_has_no_place() {
        assert_eq!(said(&mut session(Security::Plain), "EHLO a\r\nSTARTTLS\r\n"), "220 250 502 ");
        assert_eq!(said(&mut session(Security::Up), "EHLO a\r\nSTARTTLS\r\n"), "220 250 503 ");
        assert_eq!(said(&mut secured(), "EHLO a\r\nSTARTTLS\r\nNOOP\r\n"), "250 503 250 ");
        assert_eq!(said(&mut session(Security::Offered), "EHLO a\r\nSTARTTLS now\r\nNOOP\r\n"), "220 250 501 250 ");
        let in_transaction = "EHLO a\r\nMAIL FROM:<a@b>\r\nSTARTTLS\r\nRCPT TO:<a@b>\r\n";
        assert_eq!(said(&mut session(Security::Offered), in_transaction), "220 250 250 503 250 ");
        // Nobody needs EHLO for it, since it is forgotten anyway.
        assert_eq!(said(&mut session(Security::Offered), "STARTTLS\r\n"), "220 220 ");
    }

    #[test]
    fn a_failed_handshake_ends_the_session_without_a_word() {
        let mut session = session(Security::Offered);
        assert_eq!(said(&mut session, "STARTTLS\r\n"), "220 220 ");
        session.feed_eof();
        assert_eq!(session.poll(), Event::Close(&Ending::Gone));
        assert_eq!(session.output(), b"");
    }

    #[test]
    fn a_shut_down_is_told_inside_tls() {
        let mut session = session(Security::Offered);
        assert_eq!(said(&mut session, "STARTTLS\r\n"), "220 220 ");
        session.shut_down();
        assert_eq!(session.poll(), Event::StartTls);
        session.tls_up();
        assert_eq!(session.poll(), Event::Close(&Ending::Cut(reply::SHUTTING_DOWN)));
    }

    #[test]
    fn tls_is_no_way_to_a_new_measure() {
        let mut session = session(Security::Offered);
        let mut replies = String::new();
        for _ in 0..30 {
            replies += &said(&mut session, "NOOP\r\nNOOP\r\nNOOP\r\nSTARTTLS\r\n");
            if session.poll() == Event::StartTls {
                session.tls_up();
            }
        }
        assert!(replies.contains("421"), "{replies}");
    }

    /// Every order of four commands against a model of three facts.
    #[test]
    fn all_orders_of_commands_follow_the_model() {
        let commands = ["EHLO a\r\n", "MAIL FROM:<a@b>\r\n", "RCPT TO:<a@b>\r\n", "RSET\r\n", "STARTTLS\r\n"];
        for order in 0..commands.len().pow(4) {
            let order: Vec<&str> = (0..4).map(|n| commands[order / commands.len().pow(n) % commands.len()]).collect();
            let mut session = session(Security::Offered);
            assert_eq!(said(&mut session, "NOOP\r\n"), "220 250 ");
            let (mut greeted, mut open, mut up) = (false, false, false);
            for command in &order {
                let want = match &command[..4] {
                    "EHLO" => {
                        (greeted, open) = (true, false);
                        "250 "
                    }
                    "MAIL" if greeted && !open => {
                        open = true;
                        "250 "
                    }
                    "RCPT" if open => "250 ",
                    "RSET" => {
                        open = false;
                        "250 "
                    }
                    "STAR" if !up && !open => {
                        (up, greeted) = (true, false);
                        "220 "
                    }
                    _ => "503 ",
                };
                assert_eq!(said(&mut session, command), want, "{command} in {order:?}");
                if session.poll() == Event::StartTls {
                    session.tls_up();
                }
            }
        }
    }
}
