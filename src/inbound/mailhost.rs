//! The mail host behind us, asked whether it has somebody's mailbox before we take mail for him.
//!
//! Whoever is unknown there is refused at RCPT, as the mail host itself would have done: what is taken and bounced later
//! goes to whoever was named as the sender. It is asked over SMTP, in a session of its own that ends behind RCPT, with the
//! null sender, so that nothing can come of it. A yes is kept for a day and a no for an hour; whatever is neither is no
//! answer, and the client is told to come back.
//!
//! Left out: recipients of whom a rule cannot tell yet whether they are the mail host's. They are taken unasked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::planned::Planned;
use super::{Inbound, Ruling};
use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::envelope::BodyType;
use crate::events;
use crate::id::{LegId, MessageId};
use crate::queue::{Errand, Notices, OwnedLeg, Reason, StoredBody};
use crate::relay::attempt::{Ended, attempt};
use crate::relay::dial::{Dial, Timeouts};
use crate::relay::outcome::{self, Outcome, Us};
use crate::relay::pool::{Kept, Open};
use crate::relay::{Demand, Host, Route};
use crate::reply::{self, Refusal};
use crate::rules::{LegKind, LegPlan};
use crate::smtp::client::{Answer, Stage};

/// What asks mail hosts, and what they said.
pub struct Mailhosts {
    dial: Arc<dyn Dial>,
    known: Arc<Known>,
}

/// What was said of late; it outlives a reload.
struct Known {
    /// By route and address: whether there is such a mailbox, and until when (monotonic) that is believed.
    answers: Mutex<HashMap<String, (Mailboxes, Duration)>>,
    /// Questions at one time.
    asking: Semaphore,
}

/// What a mail host says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mailboxes {
    There,
    Unknown,
}

impl Mailhosts {
    /// `before` is what asked until now: what it knows goes on.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>, before: Option<&Mailhosts>) -> Mailhosts {
        let known = before.map(|before| Arc::clone(&before.known));
        let fresh = || Arc::new(Known { answers: Mutex::default(), asking: Semaphore::new(QUESTIONS_MAX) });
        Mailhosts { dial, known: known.unwrap_or_else(fresh) }
    }
}

impl Known {
    fn answer(&self, key: &str, now: Duration) -> Option<Mailboxes> {
        let answers = self.answers.lock().expect(NO_PANIC);
        answers.get(key).filter(|(_, until)| now < *until).map(|(answer, _)| *answer)
    }

    fn keep(&self, key: String, answer: Mailboxes, now: Duration) {
        let mut answers = self.answers.lock().expect(NO_PANIC);
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, (_, until)| now < *until);
        }
        // Who fills it with made-up names makes us ask again, and nothing else.
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, (answer, _)| *answer == Mailboxes::There);
        }
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        let kept = match answer {
            Mailboxes::There => THERE_KEPT,
            Mailboxes::Unknown => UNKNOWN_KEPT,
        };
        answers.insert(key, (answer, now + kept));
    }
}

impl Inbound {
    /// Refuses a recipient whom the mail host of one of the `legs` does not have.
    pub(super) async fn ask_mailhost(
        &self,
        ruling: &Ruling,
        recipient: &Mailbox,
        legs: &[LegPlan],
    ) -> Result<(), Refusal> {
        let Some(mailhosts) = &ruling.mailhosts else { return Ok(()) };
        let unchanged = |leg: &&LegPlan| leg.kind == LegKind::Mailbox && leg.target == *recipient;
        let leg = legs.iter().filter(unchanged).find(|leg| ruling.is_to_mailhost(leg));
        let route = leg.and_then(|leg| ruling.routes.get(&leg.route)).filter(|route| !route.hosts.is_empty());
        // RFC 5321 §4.5.1: these are taken whatever anybody says.
        let Some(route) = route.filter(|_| !is_role(recipient)) else { return Ok(()) };
        let key = format!("{} {}", route.name, recipient.key());
        let answer = match mailhosts.known.answer(&key, self.clock.monotonic()) {
            Some(answer) => Ok(answer),
            None => {
                let helo = route.helo.as_deref().unwrap_or(&ruling.session.hostname);
                let asked = tokio::time::timeout(ANSWER_MAX, mailhosts.ask(route, recipient, helo));
                let answer = asked.await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                if let Ok(answer) = answer {
                    mailhosts.known.keep(key, answer, self.clock.monotonic());
                }
                answer
            }
        };
        match answer {
            Ok(Mailboxes::There) => Ok(()),
            Ok(Mailboxes::Unknown) => Err(Refusal::new(reply::NO_SUCH_RECIPIENT)),
            Err(why) => {
                events::mailhost_unsure(&route.name, &why);
                Err(Refusal::new(reply::MAILHOST_UNSURE))
            }
        }
    }

    /// Holds what the mail host itself has sent us and would get back: it does not have that mailbox.
    pub(super) async fn turn_from_mailhost(&self, ruling: &Ruling, client: IpAddr, planned: &mut [Planned]) {
        for plan in planned.iter_mut().filter(|plan| plan.goes_out() && ruling.is_to_mailhost(&plan.leg)) {
            let Some(route) = ruling.routes.get(&plan.leg.route) else { continue };
            if is_one_of(ruling, &route.hosts, client).await {
                plan.hold(Reason::Loop, "it came from the mail host, and would go back to it".to_owned(), None);
            }
        }
    }
}

impl Mailhosts {
    /// The error says why nothing is known.
    async fn ask(&self, route: &Route, recipient: &Mailbox, helo: &str) -> Result<Mailboxes, String> {
        let _permit = self.known.asking.acquire().await.map_err(|_| "we are shutting down".to_owned())?;
        let timeouts = Timeouts::rfc5321();
        let question = question(route, recipient);
        let mut why = String::new();
        for (at, host) in route.hosts.iter().enumerate() {
            let mut connection = match self.dial.dial(route, host, helo, Demand::Usual).await {
                Ok(connection) => connection,
                Err(error) => {
                    why = outcome::words(&error.verdict);
                    continue;
                }
            };
            let us = Us { address: connection.local };
            let ended = attempt(&mut connection, &question, &timeouts).await;
            Kept::new(connection, route.hosts.clone().into(), at, &Open::default()).quit(&timeouts).await;
            let verdict = match ended {
                Ended::Verdict(verdict, _) => verdict,
                // It is fresh, and its body is in memory.
                Ended::Stale | Ended::Unread(..) => continue,
            };
            why = outcome::words(&verdict);
            let is_yes =
                matches!(&verdict.answer, Answer::Reply(reply) if !reply.is_permanent() && !reply.is_transient());
            match (verdict.stage, outcome::read(&verdict, us)) {
                (Stage::Rcpt, _) if is_yes => return Ok(Mailboxes::There),
                (Stage::Rcpt, Outcome::Hold(..) | Outcome::Bounce(_)) => return Ok(Mailboxes::Unknown),
                // The next host may know.
                (_, Outcome::RouteFault) => {}
                _ => return Err(why),
            }
        }
        Err(why)
    }
}

/// Nothing is handed over, so there is no message behind it.
fn question(route: &Route, recipient: &Mailbox) -> OwnedLeg {
    OwnedLeg {
        id: LegId { message: MessageId(0), n: 1 },
        epoch: 0,
        alias: recipient.as_str().to_owned(),
        target: recipient.clone(),
        target_name: None,
        route: route.name.clone(),
        sender: ReversePath::Null,
        attempts: 0,
        received: Timestamp(0),
        prefix: Vec::new(),
        cuts: Vec::new(),
        notices: Notices::default(),
        errand: Errand::AskRcpt,
        body_type: BodyType::SevenBit,
        smtputf8: !recipient.as_str().is_ascii(),
        require_tls: false,
        online: None,
        body: StoredBody::from_bytes(Vec::new()),
    }
}

fn is_role(recipient: &Mailbox) -> bool {
    let key = recipient.key();
    let local = key.rsplit_once('@').map_or("", |(local, _)| local);
    local == "postmaster" || local == "abuse"
}

/// Whether a host of these has the address. What DNS does not say is no finding: the hops of a message end any loop.
async fn is_one_of(ruling: &Ruling, hosts: &[Host], client: IpAddr) -> bool {
    for host in hosts {
        if let Ok(ip) = host.name.parse::<IpAddr>() {
            if ip == client {
                return true;
            }
            continue;
        }
        let found = match client {
            IpAddr::V4(client) => ruling.dns.a(&host.name).await.is_ok_and(|all| all.contains(&client)),
            IpAddr::V6(client) => ruling.dns.aaaa(&host.name).await.is_ok_and(|all| all.contains(&client)),
        };
        if found {
            return true;
        }
    }
    false
}

/// A mailbox is hardly ever deleted.
const THERE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// A new colleague should not have to wait.
const UNKNOWN_KEPT: Duration = Duration::from_secs(60 * 60);
/// A client waits five minutes for the answer to RCPT (RFC 5321 §4.5.3.2.3), and has other recipients.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Sessions with a mail host besides those that carry mail.
const QUESTIONS_MAX: usize = 20;
/// At some 150 octets each, three megabytes.
const ANSWERS_MAX: usize = 20_000;
const NO_PANIC: &str = "no code panics while it holds this lock";

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known { answers: Mutex::default(), asking: Semaphore::new(1) }
    }

    #[test]
    fn a_yes_is_believed_for_a_day_and_a_no_for_an_hour() {
        let known = known();
        known.keep("a".into(), Mailboxes::There, Duration::ZERO);
        known.keep("b".into(), Mailboxes::Unknown, Duration::ZERO);
        let at = |key: &str, seconds: u64| known.answer(key, Duration::from_secs(seconds));
        assert_eq!((at("a", 86_399), at("a", 86_400)), (Some(Mailboxes::There), None));
        assert_eq!((at("b", 3_599), at("b", 3_600)), (Some(Mailboxes::Unknown), None));
        assert_eq!(at("c", 0), None);
    }

    #[test]
    fn made_up_names_push_out_no_mailbox() {
        let known = known();
        known.keep("jean".into(), Mailboxes::There, Duration::ZERO);
        for n in 0..ANSWERS_MAX + 10 {
            known.keep(n.to_string(), Mailboxes::Unknown, Duration::ZERO);
        }
        assert_eq!(known.answer("jean", Duration::ZERO), Some(Mailboxes::There));
        assert!(known.answers.lock().unwrap().len() <= ANSWERS_MAX);
    }
}
