//! A probe: one real message through a real listener, by the rules and the queue to the next hop, and what became of it.
//!
//! The daemon is its own client: it dials one of its listeners, is answered like anybody, and follows the legs. Who sent
//! it is known, so it is not checked; nobody else can send one, because it is known by a word that only this probe has.
//! Unless it is meant for the CRM its legs end at the answer to RCPT, also after a restart: that stands in their rows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use super::control::{Asker, Control, Line, Stop};
use super::peer::Peer;
use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::envelope::BodyType;
use crate::events::{masked, quoted};
use crate::id::{self, LegId, MessageId};
use crate::queue::sqlite::{LegRow, Operation};
use crate::queue::{Errand, Notices, OwnedLeg, State, StoredBody};
use crate::relay::attempt::{Ended, attempt};
use crate::relay::dial::{Dial, TcpDial, Timeouts};
use crate::relay::outcome;
use crate::relay::{Demand, Host, Route};
use crate::scrub::scrub;
use crate::smtp::client::Reuse;
use crate::tls::ListenerTls;

/// A listener as a probe sees it.
#[derive(Clone, Debug)]
pub struct Door {
    pub name: String,
    pub address: SocketAddr,
}

/// What a probe is asked to be.
pub(super) struct Wanted<'a> {
    pub alias: &'a str,
    pub sender: Option<&'a str>,
    pub to_crm: bool,
}

impl Control {
    pub(super) async fn probe(&self, asker: &mut Asker, peer: &Peer, wanted: Wanted<'_>) -> Result<(), Stop> {
        let alias = Mailbox::parse(wanted.alias).map_err(|error| format!("`{}`: {error}", wanted.alias))?;
        let sender = match wanted.sender {
            Some(word) => {
                ReversePath::parse(word.trim_matches(['<', '>'])).map_err(|error| format!("`{word}`: {error}"))?
            }
            // There at every domain of ours, and never answered by a machine.
            None => ReversePath::parse(&format!("postmaster@{}", alias.domain())).map_err(|error| error.to_string())?,
        };
        let door = self.door()?;
        let errand = if wanted.to_crm { Errand::Deliver } else { Errand::AskRcpt };
        let message_id = format!("<probe.{}@{}>", id::secret_word(), self.hostname());
        let busy = || Stop::Failed("too many probes at once: try again in a moment".to_owned());
        let expected = self.inbound.probes.expect(&message_id, errand).ok_or_else(busy)?;
        let chosen = format!("{alias}{}", if wanted.to_crm { " --to-crm" } else { "" });
        let begun = self.audit_begin(peer, "probe", &chosen).await?;
        let sent = self.send_probe(&door, &alias, &sender, &message_id).await;
        drop(expected);
        let ended = match sent {
            Ok(id) => {
                let text = format!("taken by listener {} as {id}\n", door.name);
                asker.tell([told(&text, json!({ "probe": id.to_string(), "listener": door.name }))]).await?;
                let followed = self.follow(asker, id, errand).await;
                self.clear(id, errand, peer).await;
                followed?
            }
            Err(why) => {
                let text = format!("not taken by listener {}: {}\n", door.name, quoted(&why));
                asker.tell([told(&text, json!({ "probe": null, "listener": door.name, "reply": why }))]).await?;
                false
            }
        };
        let word = if ended { "passed" } else { "failed" };
        self.audit_end(begun, word).await;
        asker.tell([told(&format!("probe {word}\n"), json!({ "ok": ended }))]).await
    }

    /// A listener that takes a client from this machine as it comes.
    fn door(&self) -> Result<Door, String> {
        let ruling = self.inbound.ruling();
        let fits = |door: &&Door| {
            let ip = reached_at(door.address).ip();
            let manner = ruling.manner(&door.name);
            manner.tls != ListenerTls::Implicit && !manner.proxy.iter().any(|network| network.contains(ip))
        };
        self.doors.iter().find(fits).cloned().ok_or_else(|| {
            "no listener takes a probe: each begins with TLS, or wants a PROXY header from this machine".to_owned()
        })
    }

    /// Hands the probe in as any client would; the message's id, or what was answered instead.
    async fn send_probe(
        &self,
        door: &Door,
        alias: &Mailbox,
        sender: &ReversePath,
        message_id: &str,
    ) -> Result<MessageId, String> {
        let now = self.clock.now();
        let at = reached_at(door.address);
        let host = Host { name: at.ip().to_string(), port: at.port(), addresses: vec![at.ip()] };
        let route =
            Route { hosts: vec![host.clone()], private_networks: true, concurrency: 1, ..Route::named("probe") };
        let timeouts = Timeouts { connect: STEP, banner: STEP, ehlo: STEP, tls: STEP, ..STEPS };
        let dial = TcpDial::new(timeouts, []);
        let dialled = dial.dial(&route, &host, &self.hostname(), Demand::Usual).await;
        let mut connection = dialled.map_err(|error| outcome::words(&error.verdict))?;
        let message = compose(alias, sender, message_id, &self.hostname(), now);
        let ended = attempt(&mut connection, &leg(alias, sender, message, now), &timeouts).await;
        let verdict = match ended {
            Ended::Verdict(verdict, Reuse::Keep | Reuse::Close) => verdict,
            Ended::Stale => return Err("the listener closed the connection".to_owned()),
            Ended::Unread(error, _) => return Err(error.to_string()),
        };
        let words = outcome::words(&verdict);
        let id = words.rsplit_once("queued as ").and_then(|(_, id)| id.parse().ok());
        id.filter(|_| outcome::result(&verdict) == "ok").ok_or(words)
    }

    /// Tells what happens to the legs until there is nothing more to wait for. Whether all of them came through.
    async fn follow(&self, asker: &mut Asker, id: MessageId, errand: Errand) -> Result<bool, Stop> {
        let until = self.clock.monotonic() + PATIENCE;
        let mut known: Vec<(u16, State, u32)> = Vec::new();
        loop {
            let legs = self.store.message(id).await?.map(|message| message.legs).unwrap_or_default();
            for leg in &legs {
                let seen = (leg.id.n, leg.state, leg.attempts);
                if !known.contains(&seen) {
                    known.push(seen);
                    asker.tell([leg_line(leg, errand)]).await?;
                }
            }
            let waits = |leg: &LegRow| leg.state == State::Queued && leg.attempts == 0 && leg.paused.is_none();
            if !legs.is_empty() && !legs.iter().any(waits) {
                return Ok(legs.iter().all(|leg| came_through(leg, errand)));
            }
            if self.clock.monotonic() >= until {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A probe that is not for the CRM leaves nothing behind: what waits for an operator, or for its route, is dropped.
    async fn clear(&self, id: MessageId, errand: Errand, peer: &Peer) {
        if errand == Errand::Deliver {
            return;
        }
        let Ok(Some(message)) = self.store.message(id).await else { return };
        let open = message.legs.iter().filter(|leg| leg.state.is_open());
        let drops = open.map(|leg| (leg.id, Operation::Drop)).collect();
        // A leg that is under way ends by itself; one that cannot be dropped now asks for RCPT, and ends.
        let _ = self.store.operate(drops, false, &peer.to_string(), self.clock.now()).await;
    }
}

fn came_through(leg: &LegRow, errand: Errand) -> bool {
    match errand {
        Errand::Deliver => leg.state == State::Delivered,
        Errand::AskRcpt => leg.last.as_ref().is_some_and(|last| last.result == "ok"),
    }
}

fn leg_line(leg: &LegRow, errand: Errand) -> Line {
    let LegRow { id, target, target_name, route, state, reason, detail, .. } = leg;
    let (host, stage, reply) = leg.last.as_ref().map_or(("", "", ""), |last| (&last.host, &last.stage, &last.reply));
    let shown = masked(target);
    let target_word = target_name.as_deref().unwrap_or(&shown);
    let hide =
        |text: &str| Mailbox::parse(target).map_or_else(|_| text.to_owned(), |to| scrub(text, &to, &leg.recipient));
    let (reply, detail) = (&hide(reply), &hide(detail));
    let what = match (leg.last.is_some(), leg.paused.is_some(), errand) {
        (true, _, Errand::AskRcpt) => format!("{} answered at {stage}: {}", quoted(host), quoted(reply)),
        (true, _, Errand::Deliver) => format!("{state} ({reason}), {} at {stage}: {}", quoted(host), quoted(reply)),
        (false, true, _) => "waits: its route is paused".to_owned(),
        (false, false, _) if detail.is_empty() => format!("{state} ({reason})"),
        (false, false, _) => format!("{state} ({reason}): {}", quoted(detail)),
    };
    told(
        &format!("leg {id} to {} by route {route}: {what}\n", quoted(target_word)),
        json!({
            "leg": id.to_string(), "target": shown, "target_name": target_name, "route": route,
            "state": state.as_str(), "reason": reason.as_str(), "host": host, "stage": stage, "reply": reply,
            "ok": came_through(leg, errand),
        }),
    )
}

fn told(text: &str, object: serde_json::Value) -> Line {
    Line::Told { text: text.to_owned(), object }
}

/// Where a client on this machine finds a listener: one on all addresses by the loopback one.
fn reached_at(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn compose(alias: &Mailbox, sender: &ReversePath, message_id: &str, hostname: &str, now: Timestamp) -> Vec<u8> {
    let from = sender.mailbox().map_or_else(|| format!("postmaster@{hostname}"), ToString::to_string);
    format!(
        "Date: {}\r\nFrom: Pointsman probe <{from}>\r\nTo: <{alias}>\r\nSubject: Pointsman probe\r\n\
         Message-ID: {message_id}\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\r\n\
         An administrator of {hostname} tests the way of mail for {alias}.\r\nPlease close the case that it opened.\r\n",
        now.rfc5322()
    )
    .into_bytes()
}

/// A message of our own as our client hands it in: not a leg of the queue's.
pub(super) fn leg(alias: &Mailbox, sender: &ReversePath, message: Vec<u8>, now: Timestamp) -> OwnedLeg {
    OwnedLeg {
        id: LegId { message: MessageId(0), n: 0 },
        epoch: 0,
        alias: alias.to_string(),
        target: alias.clone(),
        target_name: None,
        route: "probe".to_owned(),
        sender: sender.clone(),
        attempts: 0,
        received: now,
        prefix: Vec::new(),
        cuts: Vec::new(),
        notices: Notices::default(),
        errand: Errand::Deliver,
        body_type: BodyType::SevenBit,
        smtputf8: !(alias.is_ascii() && sender.as_str().is_ascii()),
        require_tls: false,
        body: StoredBody::from_bytes(message),
        online: None,
    }
}

/// We are on the same machine; the checks behind the final dot are not made for a probe.
const STEP: Duration = Duration::from_secs(10);
const STEPS: Timeouts =
    Timeouts { mail: STEP, rcpt: STEP, data: STEP, block: STEP, dot: STEP, quit: STEP, ..Timeouts::rfc5321() };
/// Longer than a slow CRM takes to answer RCPT. What is deferred by then is told as it stands.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(100);
