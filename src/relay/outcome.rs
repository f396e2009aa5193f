//! What the remote's answer means for a leg. Pure: the table of answers, one row a branch.
//!
//! | Answer | Outcome |
//! |---|---|
//! | 2xx to the final dot | delivered |
//! | 4xx, timeout, TLS failure, broken or garbled session | retry on the queue's schedule |
//! | 5xx at the banner, EHLO, AUTH or MAIL; at RCPT one that names our address or a block list; after it, a 5.7.1 that names our address | the route's fault: next host, then retry |
//! | 5.1.x, 551 | the target does not exist: our configuration is wrong; hold, hourly |
//! | 5.3.4, 5.2.3, 552, our own look at SIZE | too large |
//! | 5.7.x about authentication | quarantine, remote-auth |
//! | no verified TLS, or no REQUIRETLS, for a message that requires it | retry where TLS failed; else refused for good |
//! | other 5.7.x | quarantine, remote-content |
//! | any other 5xx | refused for good: ended, where somebody may decide so, else quarantine |
//!
//! Without an enhanced code, RCPT's 550, 551 and 553 are read as 5.1.1, any 552 as 5.3.4. The enhanced code wins
//! over the reply code where there is one: `552 5.7.0` is a content filter's. What an outcome does to the queue's
//! state stands in [`Outcome::state`].

use std::net::IpAddr;
use std::time::Duration;

use crate::queue::{Reason, State};
use crate::relay::breaker::Health;
use crate::reply::{Enhanced, Reply};
use crate::smtp::client::{Answer, Stage, TlsLack, Verdict};

/// What becomes of a leg after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    Delivered,
    /// Again on the queue's schedule.
    Retry(Reason),
    /// Our configuration is wrong: again after the wait, with an alert, and nobody is told meanwhile.
    Hold(Reason, Duration),
    Quarantine(Reason),
    /// Refused for good.
    Bounce(Reason),
    /// The route's own fault: its next host, and after the last one a retry.
    RouteFault,
}

/// What a remote may name when it means us rather than the message.
#[derive(Clone, Copy, Debug)]
pub struct Us {
    /// The local address of the session.
    pub address: Option<IpAddr>,
}

/// Reads a verdict.
pub fn read(verdict: &Verdict, us: Us) -> Outcome {
    match &verdict.answer {
        Answer::Reply(reply) if reply.is_permanent() => read_refusal(verdict.stage, reply, us),
        Answer::Reply(reply) if reply.is_transient() => Outcome::Retry(Reason::Tempfail),
        Answer::Reply(_) if verdict.stage == Stage::Dot => Outcome::Delivered,
        // A yes before the final dot decides nothing; no machine of ours makes such a verdict.
        Answer::Reply(_) | Answer::Lost(_) | Answer::Garbled(_) => Outcome::Retry(Reason::Lost),
        Answer::Timeout => Outcome::Retry(Reason::Timeout),
        Answer::Connect(_) => Outcome::Retry(Reason::Connect),
        Answer::Tls(_) => Outcome::Retry(Reason::Tls),
        Answer::Smtputf8Missing => Outcome::Bounce(Reason::Smtputf8),
        Answer::TooLarge { .. } => Outcome::Bounce(Reason::TooLarge),
        // A certificate is renewed in hours; what is not offered today will not be tomorrow.
        Answer::RequireTls(TlsLack::Session(_)) => Outcome::Retry(Reason::Tls),
        Answer::RequireTls(TlsLack::Extension | TlsLack::Off | TlsLack::Host) => Outcome::Bounce(Reason::RequireTls),
    }
}

fn read_refusal(stage: Stage, reply: &Reply, us: Us) -> Outcome {
    match stage {
        Stage::Connect | Stage::Banner | Stage::Ehlo | Stage::Tls | Stage::Auth | Stage::Mail => {
            return Outcome::RouteFault;
        }
        Stage::Rcpt | Stage::Data | Stage::Body | Stage::Dot => {}
    }
    let enhanced = reply.enhanced.unwrap_or(match (stage, reply.code) {
        (_, 552) => Enhanced(5, 3, 4),
        (Stage::Rcpt, 550 | 551 | 553) => Enhanced(5, 1, 1),
        _ => Enhanced(5, 0, 0),
    });
    let text = reply.text.to_ascii_lowercase();
    // A refusal of the target's name is about that name, whatever else the text mentions.
    if enhanced.1 == 1 || reply.code == 551 {
        return Outcome::Hold(Reason::UnknownTarget, UNKNOWN_TARGET_AGAIN);
    }
    if is_about_us(stage, reply.enhanced, &text, us) {
        return Outcome::RouteFault;
    }
    match (enhanced.1, enhanced.2) {
        (3, 4) | (2, 3) => Outcome::Bounce(Reason::TooLarge),
        (7, detail) if is_authentication(detail, &text) => Outcome::Quarantine(Reason::RemoteAuth),
        (7, _) => Outcome::Quarantine(Reason::RemoteContent),
        _ => Outcome::Bounce(Reason::Permfail),
    }
}

/// What a verdict says of the destination itself.
pub fn health(verdict: &Verdict, us: Us) -> Health {
    match &verdict.answer {
        Answer::Reply(reply) if reply.is_permanent() => match read_refusal(verdict.stage, reply, us) {
            Outcome::RouteFault => Health::Ill,
            // It has judged a message.
            Outcome::Delivered
            | Outcome::Retry(_)
            | Outcome::Hold(..)
            | Outcome::Quarantine(_)
            | Outcome::Bounce(_) => Health::Well,
        },
        Answer::Reply(reply) if reply.is_transient() => {
            // RFC 3463 §3.2, §3.3: X.1 and X.2 are about an address and its mailbox; so is 450 by RFC 5321 §4.2.3.
            let of_mailbox = match reply.enhanced {
                Some(enhanced) => matches!(enhanced.1, 1 | 2),
                None => reply.code == 450,
            };
            if verdict.stage == Stage::Rcpt && of_mailbox { Health::Unknown } else { Health::Ill }
        }
        Answer::Reply(_) => Health::Well,
        Answer::Lost(_) | Answer::Garbled(_) | Answer::Timeout | Answer::Connect(_) | Answer::Tls(_) => Health::Ill,
        // We looked at what it offers and at what this leg needs.
        Answer::Smtputf8Missing | Answer::TooLarge { .. } | Answer::RequireTls(_) => Health::Unknown,
    }
}

/// Whether the refusal is of us, the client, and not of what we bring. Once the remote has seen the message, a list that
/// it names may list a link in it; then only a refusal for policy that names our address is about us.
fn is_about_us(stage: Stage, enhanced: Option<Enhanced>, text: &str, us: Us) -> bool {
    match stage {
        Stage::Connect | Stage::Banner | Stage::Ehlo | Stage::Tls | Stage::Auth | Stage::Mail => true,
        Stage::Rcpt => names_us(text, us) || BLOCK_LISTS.iter().any(|words| has_words(text, words)),
        Stage::Data | Stage::Body | Stage::Dot => {
            let policy = enhanced.is_none_or(|enhanced| (enhanced.1, enhanced.2) == (7, 1));
            // «SPF fail: 192.0.2.1 is not permitted» is about the sender's domain; another host of ours says the same.
            policy && names_us(text, us) && !is_authentication(1, text)
        }
    }
}

/// `rbl` stands in `an RBL:` and `rbl.example`, not in `garbled`.
fn has_words(text: &str, words: &str) -> bool {
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(words)
        .any(|(at, _)| !in_word(text[..at].chars().next_back()) && !in_word(text[at + words.len()..].chars().next()))
}

fn names_us(text: &str, us: Us) -> bool {
    // `1.2.3.4` is not named by `11.2.3.45`, nor `::1` by `2001:db8::1`.
    let part = |c: char| c.is_ascii_alphanumeric() || c == ':';
    us.address.is_some_and(|address| {
        let address = address.to_string();
        text.match_indices(&address).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let mut after = text[at + address.len()..].chars();
            // A full stop may end the sentence, or go on with the number.
            let goes_on = match after.next() {
                Some('.') => after.next().is_some_and(|c| c.is_ascii_digit()),
                c => c.is_some_and(part),
            };
            !goes_on && !before.is_some_and(|c| part(c) || c == '.')
        })
    })
}

/// RFC 7372 and RFC 8601 name 20 to 29; 509 and 515 are Microsoft's for DMARC; 5.7.1 is told apart by its words.
fn is_authentication(detail: u16, text: &str) -> bool {
    matches!(detail, 20..=29 | 509 | 515)
        || ["dmarc", "dkim", "spf", "sender policy", "authenticat"].iter().any(|word| text.contains(word))
}

impl Outcome {
    /// The outcome for a leg whose recipient nobody put in another's place: the one that the sender wrote to, or the one
    /// that a notification goes to. That he is unknown there is not the fault of our rules, and mends itself in no hour.
    pub fn of_kept_recipient(self) -> Outcome {
        match self {
            Outcome::Hold(reason, _) => Outcome::Bounce(reason),
            Outcome::Delivered
            | Outcome::Retry(_)
            | Outcome::Quarantine(_)
            | Outcome::Bounce(_)
            | Outcome::RouteFault => self,
        }
    }

    /// The state and reason that the outcome puts a leg in, and when it is due again there. `expired` says that
    /// the attempt was made after the queue's `expire`; `retry` is the schedule's answer; `refused`, what becomes of
    /// a leg that is refused for good.
    #[must_use]
    pub fn state(&self, expired: Expiry, retry: Duration, refused: Refused) -> (State, Reason, Option<Duration>) {
        let again = |reason| match expired {
            Expiry::Reached => (State::Expired, Reason::Expired, None),
            Expiry::Ahead => (State::Queued, reason, Some(retry)),
        };
        match self {
            Outcome::Delivered => (State::Delivered, Reason::Sent, None),
            Outcome::Retry(reason) => again(*reason),
            Outcome::RouteFault => again(Reason::Route),
            Outcome::Hold(reason, wait) => match expired {
                Expiry::Ahead => (State::Held, *reason, Some(*wait)),
                // What failed for our own fault and can be told to nobody is looked at by an operator before it goes.
                Expiry::Reached => match refused {
                    Refused::Ends => (State::Expired, Reason::Expired, None),
                    Refused::Waits => (State::Quarantined, *reason, None),
                },
            },
            Outcome::Quarantine(reason) => (State::Quarantined, *reason, None),
            Outcome::Bounce(reason) => match refused {
                Refused::Ends => (State::Bounced, *reason, None),
                Refused::Waits => (State::Quarantined, *reason, None),
            },
        }
    }
}

/// What becomes of a leg that its target refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Somebody is told, or nobody shall be.
    Ends,
    /// There is nobody whom we may tell, and the message must not end in silence: an operator looks at it.
    Waits,
}

/// Whether a leg may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Ahead,
    Reached,
}

/// The metric's label for an attempt.
#[must_use]
pub fn result(verdict: &Verdict) -> &'static str {
    match &verdict.answer {
        Answer::Reply(reply) if reply.is_permanent() => "permfail",
        Answer::Reply(reply) if reply.is_transient() => "tempfail",
        // RCPT's for a probe, which asks for no more.
        Answer::Reply(_) if matches!(verdict.stage, Stage::Dot | Stage::Rcpt) => "ok",
        Answer::Smtputf8Missing | Answer::TooLarge { .. } => "permfail",
        Answer::Timeout => "timeout",
        Answer::Tls(_) | Answer::RequireTls(_) => "tls",
        Answer::Reply(_) | Answer::Lost(_) | Answer::Garbled(_) | Answer::Connect(_) => "connect",
    }
}

/// The verdict in words, for the ledger: the remote's reply as it is, or what we saw.
#[must_use]
pub fn words(verdict: &Verdict) -> String {
    let stage = verdict.stage;
    // RFC 1047: between the final dot and its answer the message may have been taken.
    let unknown =
        if stage == Stage::Dot { ": the outcome is unknown, the remote may have taken the message" } else { "" };
    match &verdict.answer {
        Answer::Reply(reply) => reply.to_string(),
        Answer::Lost(error) => format!("connection lost at {stage}: {error}{unknown}"),
        Answer::Garbled(what) => format!("not understood at {stage}: {what}{unknown}"),
        Answer::Timeout => format!("no answer in time at {stage}{unknown}"),
        Answer::Connect(error) | Answer::Tls(error) => error.clone(),
        Answer::Smtputf8Missing => "5.6.7 the remote does not announce SMTPUTF8, which the message needs".to_owned(),
        Answer::RequireTls(TlsLack::Extension) => {
            "5.7.30 the sender requires TLS all the way, and the remote does not offer REQUIRETLS".to_owned()
        }
        Answer::RequireTls(TlsLack::Off) => {
            "5.7.10 the sender requires TLS all the way, and the route says `tls = \"off\"`".to_owned()
        }
        Answer::RequireTls(TlsLack::Host) => {
            "5.7.10 the sender requires TLS all the way, and the names of the hosts come from DNS, which anybody may forge"
                .to_owned()
        }
        Answer::RequireTls(TlsLack::Session(why)) => format!("the sender requires TLS all the way: {why}"),
        Answer::TooLarge { limit } => format!("5.3.4 the remote takes messages of at most {limit} octets"),
    }
}

/// An administrator mends a target in hours, not in minutes.
const UNKNOWN_TARGET_AGAIN: Duration = Duration::from_secs(60 * 60);

/// What replies say when a list of bad clients refused us: whole words, in lower case.
const BLOCK_LISTS: [&str; 19] = [
    "blocklist",
    "blocklists",
    "blocklisted",
    "block list",
    "blacklist",
    "blacklists",
    "blacklisted",
    "black list",
    "denylist",
    "denylisted",
    "dnsbl",
    "dnsbls",
    "rbl",
    "rbls",
    "spamhaus",
    "spamcop",
    "barracudacentral",
    "sorbs.net",
    "client host",
];

#[cfg(test)]
mod tests {
    use super::*;

    const US: Us = Us { address: Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1))) };

    fn reply(text: &str) -> Reply {
        let mut reader = crate::smtp::reply_reader::ReplyReader::default();
        reader.space().extend_from_slice(format!("{text}\r\n").as_bytes());
        reader.next_reply().unwrap().unwrap()
    }

    #[test]
    fn the_table_of_replies() {
        use Stage::{Banner, Body, Data, Dot, Ehlo, Mail, Rcpt};
        let hold = || Outcome::Hold(Reason::UnknownTarget, Duration::from_secs(3600));
        let (auth, content) = (Outcome::Quarantine(Reason::RemoteAuth), Outcome::Quarantine(Reason::RemoteContent));
        let (permfail, large) = (Outcome::Bounce(Reason::Permfail), Outcome::Bounce(Reason::TooLarge));
        let retry = Outcome::Retry(Reason::Tempfail);
        let fault = Outcome::RouteFault;
        for (stage, text, want) in [
            (Dot, "250 2.0.0 taken", Outcome::Delivered),
            (Dot, "250", Outcome::Delivered),
            (Banner, "421 busy", retry.clone()),
            (Banner, "554 no", fault.clone()),
            (Ehlo, "550 5.7.1 who are you", fault.clone()),
            (Mail, "550 5.7.1 not from you", fault.clone()),
            (Mail, "530 5.7.0 authentication required", fault.clone()),
            (Stage::Auth, "535 5.7.8 wrong password", fault.clone()),
            (Mail, "552 5.3.4 large", fault.clone()),
            (Mail, "451 4.7.1 later", retry.clone()),
            (Rcpt, "450 4.2.1 greylisted", retry.clone()),
            (Rcpt, "452 4.2.2 full", retry.clone()),
            (Rcpt, "550 5.1.1 no such user", hold()),
            (Rcpt, "550 5.1.10 null mx", hold()),
            (Rcpt, "550 no such user", hold()),
            (Rcpt, "551 5.7.1 moved", hold()),
            (Rcpt, "553 no", hold()),
            (Rcpt, "554 no", permfail.clone()),
            (Rcpt, "552 full", large.clone()),
            (Rcpt, "552 5.2.2 over quota", permfail.clone()),
            (Rcpt, "550 5.7.1 relaying denied", content.clone()),
            (Rcpt, "554 5.7.1 listed at zen.spamhaus.org", fault.clone()),
            (Rcpt, "554 5.7.1 [192.0.2.1]: access denied", fault.clone()),
            (Rcpt, "554 5.7.1 192.0.2.1.", fault.clone()),
            (Rcpt, "554 5.7.1 192.0.2.11 is fine", content.clone()),
            (Rcpt, "554 5.7.1 10.192.0.2.1 and 192.0.2.1.7 too", content.clone()),
            (Rcpt, "550 5.1.1 x see spamhaus", hold()),
            (Rcpt, "550 5.0.0 garbled recipient", permfail.clone()),
            (Rcpt, "550 5.7.1 marbles are not accepted", content.clone()),
            (Rcpt, "554 5.7.1 you are in our RBL", fault.clone()),
            (Rcpt, "554 5.7.1 see http://rbl.example/", fault.clone()),
            (Rcpt, "554 5.7.0 blacklisted", fault.clone()),
            (Rcpt, "554 5.7.1 Client host [198.51.100.7] blocked", fault.clone()),
            (Data, "554 5.7.1 client host [192.0.2.1] blocked", fault.clone()),
            (Dot, "550 5.6.0 garbled MIME", permfail.clone()),
            (Dot, "550 5.6.0 marbled body", permfail.clone()),
            (Dot, "550 5.6.0 no mail from 192.0.2.1 has such MIME", permfail.clone()),
            (Dot, "554 5.7.1 a link is listed in the Spamhaus DBL", content.clone()),
            (Dot, "554 5.7.1 a link is on a blocklist", content.clone()),
            (Dot, "554 5.7.1 Client host [192.0.2.1] blocked by zen.spamhaus.org", fault.clone()),
            (Dot, "554 Client host [192.0.2.1] blocked", fault.clone()),
            (Dot, "554 5.7.0 192.0.2.1 has sent a virus", content.clone()),
            (Dot, "550 5.7.26 SPF did not pass with [192.0.2.1]", auth.clone()),
            (Dot, "550 5.7.1 SPF fail, 192.0.2.1 is not permitted", auth.clone()),
            (Data, "451 later", retry.clone()),
            (Data, "554 5.5.1 no valid recipients", permfail.clone()),
            (Body, "552 5.3.4 large", large.clone()),
            (Dot, "452 4.3.1 disk", retry),
            (Dot, "550 5.1.1 gone", hold()),
            (Dot, "551 gone", hold()),
            (Dot, "552 large", large.clone()),
            (Dot, "552 5.3.4 large", large.clone()),
            (Dot, "550 5.2.3 large", large),
            (Dot, "552 5.7.0 potential security issue", content.clone()),
            (Dot, "550 5.7.26 unauthenticated", auth.clone()),
            (Dot, "550 5.7.509 access denied", auth.clone()),
            (Dot, "550 5.7.1 DMARC policy", auth),
            (Dot, "550 5.7.1 spam", content.clone()),
            (Dot, "554 5.7.1 spam", content),
            (Dot, "550 no", permfail.clone()),
            (Dot, "554 no", permfail.clone()),
            (Dot, "554 5.6.0 bad mime", permfail),
        ] {
            let verdict = Verdict { stage, answer: Answer::Reply(reply(text)) };
            assert_eq!(read(&verdict, US), want, "{text} at {stage}");
        }
    }

    #[test]
    fn the_table_of_silences() {
        for (answer, want, label) in [
            (Answer::Lost("reset".into()), Outcome::Retry(Reason::Lost), "connect"),
            (Answer::Garbled("x"), Outcome::Retry(Reason::Lost), "connect"),
            (Answer::Timeout, Outcome::Retry(Reason::Timeout), "timeout"),
            (Answer::Connect("refused".into()), Outcome::Retry(Reason::Connect), "connect"),
            (Answer::Tls("expired".into()), Outcome::Retry(Reason::Tls), "tls"),
            (Answer::Smtputf8Missing, Outcome::Bounce(Reason::Smtputf8), "permfail"),
            (Answer::TooLarge { limit: 1 }, Outcome::Bounce(Reason::TooLarge), "permfail"),
        ] {
            let verdict = Verdict { stage: Stage::Dot, answer };
            assert_eq!((read(&verdict, US), result(&verdict)), (want, label));
        }
    }

    #[test]
    fn a_loss_after_the_final_dot_says_that_the_outcome_is_unknown() {
        let lost = |stage| words(&Verdict { stage, answer: Answer::Lost("reset".into()) });
        assert!(lost(Stage::Dot).contains("outcome is unknown"));
        assert!(!lost(Stage::Data).contains("outcome is unknown"));
    }

    #[test]
    fn only_what_would_be_tried_again_expires() {
        let wait = Duration::from_secs(60);
        let state = |outcome: Outcome, expiry| outcome.state(expiry, wait, Refused::Waits);
        let retry = || Outcome::Retry(Reason::Tempfail);
        assert_eq!(state(retry(), Expiry::Ahead), (State::Queued, Reason::Tempfail, Some(wait)));
        assert_eq!(state(retry(), Expiry::Reached), (State::Expired, Reason::Expired, None));
        assert_eq!(state(Outcome::RouteFault, Expiry::Ahead), (State::Queued, Reason::Route, Some(wait)));
        assert_eq!(state(Outcome::RouteFault, Expiry::Reached), (State::Expired, Reason::Expired, None));
        assert_eq!(state(Outcome::Delivered, Expiry::Reached), (State::Delivered, Reason::Sent, None));
        let hold = Outcome::Hold(Reason::UnknownTarget, UNKNOWN_TARGET_AGAIN);
        assert_eq!(state(hold.clone(), Expiry::Ahead).0, State::Held);
        assert_eq!(state(hold.clone(), Expiry::Reached), (State::Quarantined, Reason::UnknownTarget, None));
        assert_eq!(hold.state(Expiry::Reached, wait, Refused::Ends), (State::Expired, Reason::Expired, None));
    }

    #[test]
    fn a_refused_message_does_not_vanish() {
        for outcome in [Outcome::Bounce(Reason::Permfail), Outcome::Quarantine(Reason::RemoteContent)] {
            assert_eq!(outcome.state(Expiry::Reached, Duration::ZERO, Refused::Waits).0, State::Quarantined);
        }
        let content = Outcome::Quarantine(Reason::RemoteContent);
        assert_eq!(content.state(Expiry::Reached, Duration::ZERO, Refused::Ends).0, State::Quarantined);
        let bounce = Outcome::Bounce(Reason::Permfail);
        assert_eq!(bounce.state(Expiry::Ahead, Duration::ZERO, Refused::Ends).0, State::Bounced);
    }

    #[test]
    fn what_is_said_of_one_message_is_not_said_of_the_destination() {
        use Health::{Ill, Unknown, Well};
        for (stage, text, want) in [
            (Stage::Dot, "250 taken", Well),
            (Stage::Dot, "554 5.7.1 spam", Well),
            (Stage::Rcpt, "550 5.1.1 no such user", Well),
            (Stage::Rcpt, "452 4.2.2 full", Unknown),
            (Stage::Rcpt, "450 4.1.1 not now", Unknown),
            (Stage::Rcpt, "450 busy mailbox", Unknown),
            (Stage::Rcpt, "451 4.7.1 greylisted", Ill),
            (Stage::Rcpt, "452 4.3.1 no room", Ill),
            (Stage::Rcpt, "554 5.7.1 listed by spamhaus", Ill),
            (Stage::Dot, "452 4.2.2 full", Ill),
            (Stage::Mail, "421 too many", Ill),
            (Stage::Mail, "550 5.7.1 not from you", Ill),
        ] {
            let verdict = Verdict { stage, answer: Answer::Reply(reply(text)) };
            assert_eq!(health(&verdict, US), want, "{stage:?} {text}");
        }
        for (answer, want) in [
            (Answer::Timeout, Ill),
            (Answer::Lost("gone".to_owned()), Ill),
            (Answer::Tls("bad".to_owned()), Ill),
            (Answer::Smtputf8Missing, Unknown),
            (Answer::TooLarge { limit: 1 }, Unknown),
        ] {
            assert_eq!(health(&Verdict { stage: Stage::Mail, answer }, US), want);
        }
    }
}
