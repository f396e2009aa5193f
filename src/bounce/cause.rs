//! Why a leg did not arrive, as its sender may be told: a status code, our words, and whether the remote's are shown.

use std::time::Duration;

use crate::bounce::compose::Reported;
use crate::reply::{Enhanced, Reply};
use crate::smtp::client::{Answer, TlsLack, Verdict};

/// The reason that a notification gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub status: Enhanced,
    /// The remote's own words, unscrubbed.
    pub remote: Option<String>,
    /// Ours. They name no address and no host: which one is behind an alias is not the sender's business.
    pub own: String,
}

/// Reads the last attempt's verdict. `given_up_after` is the queue's patience where that has ended.
#[must_use]
pub fn cause(verdict: &Verdict, event: Reported, given_up_after: Option<Duration>) -> Cause {
    let of_verdict = match event {
        // RFC 3464 §2.3.4: a success, as far as we know of it.
        Reported::Relayed => return Cause { status: Enhanced(2, 0, 0), remote: None, own: String::new() },
        Reported::Failed | Reported::Delayed { .. } => read(&verdict.answer),
    };
    let needs_tls = matches!(verdict.answer, Answer::RequireTls(_));
    match given_up_after {
        // RFC 8689 §4.2.1: it says what was missing, however long we tried.
        Some(patience) if needs_tls => Cause {
            status: Enhanced(5, 7, 10),
            own: format!("for {}, {}", days(patience), of_verdict.own),
            ..of_verdict
        },
        // RFC 3463 §3.5: X.4.7, delivery time expired; class 4 says that it might have worked another day.
        Some(patience) => Cause {
            status: Enhanced(4, 4, 7),
            own: format!("for {}, {}", days(patience), of_verdict.own),
            ..of_verdict
        },
        None => of_verdict,
    }
}

fn read(answer: &Answer) -> Cause {
    let cause = |status, own: &str| Cause { status, remote: None, own: own.to_owned() };
    match answer {
        Answer::Reply(reply) => Cause {
            status: status(reply),
            remote: Some(reply.to_string()),
            own: if reply.is_permanent() {
                "the other system refused it.".to_owned()
            } else {
                "the other system did not take it.".to_owned()
            },
        },
        Answer::TooLarge { limit } => {
            cause(Enhanced(5, 3, 4), &format!("it is larger than the {limit} octets that the other system takes."))
        }
        Answer::Smtputf8Missing => {
            cause(Enhanced(5, 6, 7), "the other system takes no mail with internationalised addresses or header.")
        }
        // RFC 8689 §4.2.1 names the codes.
        Answer::RequireTls(TlsLack::Extension) => cause(
            Enhanced(5, 7, 30),
            "it was sent with REQUIRETLS, and the other system does not promise to keep it encrypted.",
        ),
        Answer::RequireTls(TlsLack::Off | TlsLack::Host) => cause(
            Enhanced(5, 7, 10),
            "it was sent with REQUIRETLS, and there is no verified secure connection to the other system.",
        ),
        Answer::RequireTls(TlsLack::Session(_)) => cause(
            Enhanced(4, 7, 10),
            "it was sent with REQUIRETLS, and no verified secure connection to the other system could be made.",
        ),
        Answer::Lost(_) | Answer::Garbled(_) => cause(Enhanced(4, 4, 2), "the connection to the other system broke."),
        Answer::Timeout => cause(Enhanced(4, 4, 2), "the other system did not answer in time."),
        Answer::Connect(_) => cause(Enhanced(4, 4, 1), "the other system could not be reached."),
        Answer::Tls(_) => cause(Enhanced(4, 7, 5), "no secure connection to the other system could be made."),
    }
}

/// The reply's own code where it belongs to the reply's class, else what the class says.
fn status(reply: &Reply) -> Enhanced {
    let class = if reply.is_permanent() { 5 } else { 4 };
    match reply.enhanced {
        Some(enhanced) if enhanced.0 == class => enhanced,
        Some(_) | None if reply.code == 552 => Enhanced(5, 3, 4),
        Some(_) | None => Enhanced(class, 0, 0),
    }
}

fn days(time: Duration) -> String {
    let hours = time.as_secs().div_ceil(60 * 60);
    match (hours / 24, hours % 24) {
        (0, 1) => "an hour".to_owned(),
        (0, hours) => format!("{hours} hours"),
        (1, 0) => "a day".to_owned(),
        (days, 0) => format!("{days} days"),
        (_, _) => format!("{hours} hours"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::client::Stage;

    fn of(answer: Answer, given_up_after: Option<Duration>) -> (String, bool, String) {
        let cause = cause(&Verdict { stage: Stage::Dot, answer }, Reported::Failed, given_up_after);
        (cause.status.to_string(), cause.remote.is_some(), cause.own)
    }

    #[test]
    fn only_a_reply_is_told_word_for_word() {
        let host = || "cannot connect to key.crm.example [192.0.2.7]".to_owned();
        for (answer, status, remote) in [
            (Answer::Reply(Reply::new(554, Enhanced(5, 6, 0), "no")), "5.6.0", true),
            (Answer::Reply(Reply::new(554, Enhanced(4, 6, 0), "no")), "5.0.0", true),
            (Answer::Reply(Reply { code: 552, enhanced: None, text: "no".into() }), "5.3.4", true),
            (Answer::Reply(Reply { code: 451, enhanced: None, text: "no".into() }), "4.0.0", true),
            (Answer::TooLarge { limit: 1000 }, "5.3.4", false),
            (Answer::Smtputf8Missing, "5.6.7", false),
            (Answer::RequireTls(TlsLack::Extension), "5.7.30", false),
            (Answer::RequireTls(TlsLack::Off), "5.7.10", false),
            (Answer::RequireTls(TlsLack::Host), "5.7.10", false),
            (Answer::RequireTls(TlsLack::Session(host())), "4.7.10", false),
            (Answer::Lost(host()), "4.4.2", false),
            (Answer::Garbled("x"), "4.4.2", false),
            (Answer::Timeout, "4.4.2", false),
            (Answer::Connect(host()), "4.4.1", false),
            (Answer::Tls(host()), "4.7.5", false),
        ] {
            let (got, shown, own) = of(answer, None);
            assert_eq!((got.as_str(), shown), (status, remote), "{own}");
            assert!(!own.contains("example"), "{own}");
        }
        assert!(of(Answer::TooLarge { limit: 1000 }, None).2.contains("1000 octets"));
    }

    #[test]
    fn what_is_given_up_says_after_how_long() {
        for (hours, want) in [(1, "an hour"), (5, "5 hours"), (24, "a day"), (36, "36 hours"), (120, "5 days")] {
            let (status, _, own) = of(Answer::Timeout, Some(Duration::from_secs(hours * 3600)));
            assert_eq!(status, "4.4.7");
            assert_eq!(own, format!("for {want}, the other system did not answer in time."));
            let untold = Answer::RequireTls(TlsLack::Session("expired".to_owned()));
            assert_eq!(of(untold, Some(Duration::from_secs(hours * 3600))).0, "5.7.10");
        }
    }
}
