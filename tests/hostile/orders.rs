//! The state machine: every order of two and of three commands against a reference model.
//!
//! The model is a page long and knows three facts: greeted, in a transaction, with recipients. It is played from a new
//! session and from one that has a transaction with a recipient, so that DATA is seen to be taken and refused.

use crate::dialog::{Dialog, Machine, Peer};

/// The commands, and what the model calls them.
const COMMANDS: [&str; 11] = [
    "HELO client.example",
    "EHLO client.example",
    "MAIL FROM:<a@example.org>",
    "RCPT TO:<aide@solarmora.com>",
    "DATA",
    "RSET",
    "NOOP",
    "VRFY aide@solarmora.com",
    "STARTTLS",
    "QUIT",
    "FROBNICATE",
];

#[derive(Clone, Copy, Debug, Default)]
struct Model {
    greeted: bool,
    open: bool,
    recipients: usize,
    closed: bool,
    messages: usize,
}

impl Model {
    /// The codes that must be said, RFC 5321 §4.1.4 and §4.3.2. A DATA that is taken is answered with an empty message.
    fn expect(&mut self, command: &str) -> Vec<&'static str> {
        match &command[..4] {
            _ if self.closed => vec![],
            "HELO" | "EHLO" => {
                (self.greeted, self.open, self.recipients) = (true, false, 0);
                vec!["250"]
            }
            "MAIL" if self.greeted && !self.open => {
                self.open = true;
                vec!["250"]
            }
            "RCPT" if self.open => {
                self.recipients += 1;
                vec!["250"]
            }
            "DATA" if self.recipients > 0 => {
                (self.open, self.recipients) = (false, 0);
                self.messages += 1;
                vec!["354", "250"]
            }
            "MAIL" | "RCPT" | "DATA" => vec!["503"],
            "RSET" => {
                (self.open, self.recipients) = (false, 0);
                vec!["250"]
            }
            "NOOP" => vec!["250"],
            "VRFY" => vec!["252"],
            "STAR" => vec!["502"],
            "QUIT" => {
                self.closed = true;
                vec!["221"]
            }
            _ => vec!["500"],
        }
    }
}

/// The code of the next reply, of one line or several.
fn code(machine: &mut Machine) -> Option<String> {
    loop {
        let line = machine.line()?;
        if line.as_bytes()[3] == b' ' {
            return Some(line[..3].to_owned());
        }
    }
}

fn play(before: &[&str], order: &[&str]) {
    let mut machine = Machine::new(&Dialog::default());
    let mut model = Model::default();
    assert_eq!(code(&mut machine).as_deref(), Some("220"));
    for command in before.iter().chain(order) {
        let wanted = model.expect(command);
        machine.send(format!("{command}\r\n").as_bytes());
        for (n, want) in wanted.iter().enumerate() {
            if n == 1 {
                machine.send(b".\r\n");
            }
            assert_eq!(code(&mut machine).as_deref(), Some(*want), "{command} in {before:?} {order:?}");
        }
        assert_eq!(code(&mut machine), None, "more than one reply to {command} in {before:?} {order:?}");
        assert_eq!(machine.closed(), model.closed, "{command} in {before:?} {order:?}");
    }
    assert_eq!(machine.accepted().len(), model.messages, "{before:?} {order:?}");
}

#[test]
fn every_order_of_two_and_three_commands_follows_the_model() {
    let recipient = ["EHLO a.example", "MAIL FROM:<b@example.org>", "RCPT TO:<ventes@solarmora.com>"];
    let mut orders = 0;
    for before in [&[][..], &recipient[..1], &recipient] {
        for first in COMMANDS {
            for second in COMMANDS {
                play(before, &[first, second]);
                orders += 1;
                for third in COMMANDS {
                    play(before, &[first, second, third]);
                    orders += 1;
                }
            }
        }
    }
    assert_eq!(orders, 3 * (11 * 11 + 11 * 11 * 11));
}

/// Postfix 20260803, 20260812: after a refusal at its end nothing of a transaction is left.
#[test]
fn after_a_refused_message_the_envelope_is_empty() {
    let head = ["EHLO a.example", "MAIL FROM:<b@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"];
    for second in ["RCPT TO:<aide@solarmora.com>", "DATA", "BDAT 1 LAST"] {
        let mut machine = Machine::new(&Dialog::default());
        machine.send(format!("{}\r\n", head.join("\r\n")).as_bytes());
        machine.send(b"bare\nLF\r\n.\r\n");
        machine.send(format!("{second}\r\nx").as_bytes());
        let codes: Vec<String> = std::iter::from_fn(|| code(&mut machine)).collect();
        assert_eq!(codes, ["220", "250", "250", "250", "354", "554", "503"], "{second}");
        assert!(machine.accepted().is_empty());
    }
}

/// VRFY and EXPN tell nobody who exists (RFC 5321 §7.3): the replies are the same to the letter, and no look-up is made
/// that could take another time.
#[test]
fn vrfy_and_expn_say_the_same_of_whoever_is_asked() {
    let mut replies = Vec::new();
    for name in ["aide@solarmora.com", "nobody@solarmora.com", "aide", "root", "<>", "x@elsewhere.example", "\u{e9}"] {
        let mut machine = Machine::new(&Dialog::default());
        machine.send(format!("EHLO a.example\r\nVRFY {name}\r\nEXPN {name}\r\n").as_bytes());
        let lines: Vec<String> = std::iter::from_fn(|| machine.line()).collect();
        replies.push(lines[lines.len() - 2..].to_vec());
    }
    assert!(replies[0][0].starts_with("252 ") && replies[0][1].starts_with("502 "), "{replies:?}");
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:#?}");
}
