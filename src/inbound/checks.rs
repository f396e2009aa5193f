//! Who sent a message: makes the checks before the rules, and brings their results to where they are used.
//!
//! The fields that only we may write are cut from every message, checked or not: a help desk must be able to
//! believe what it reads under our name.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::journey::{Arrived, store_refusal};
use super::{Inbound, Ruling};
use crate::auth::cuts::{self, Cut};
use crate::auth::disposition::{self, Disposition, Settings};
use crate::auth::verify::{Checker, Subject};
use crate::auth::{AuthReport, coverage, results};
use crate::bounce::Authentication;
use crate::events;
use crate::loops::Mark;
use crate::message::Header;
use crate::message::origin::Origin;
use crate::queue::budget::Permit;
use crate::queue::{BodyReader, Reason, StoredBody};
use crate::reply::{self, Refusal};
use crate::rules::AuthFacts;
use crate::stamp;

/// What was found out about a message.
pub(super) struct Checked {
    report: AuthReport,
    /// Our Authentication-Results, or nothing where no check was made.
    pub results: String,
    /// The same, or nothing where it must not be added.
    pub field: String,
    /// The names of fields that we must not add.
    pub withheld: Vec<&'static str>,
    /// The message has no Message-ID, and no signature says so.
    pub needs_message_id: bool,
    /// The marks of ours that it bears; all others are cut.
    pub marks: Vec<Mark>,
    /// Ranges of the original that no copy carries.
    pub cuts: Vec<Range<u64>>,
    /// Why its legs must be quarantined, if they must.
    pub quarantine: Option<(Reason, String)>,
    /// DMARC has it refused, but for the mailboxes of people behind us.
    pub refusal: Option<Refusal>,
    pub authentication: Authentication,
    /// The client's confirmed name.
    pub ptr: Option<String>,
    /// The client outside our own relays, and what it called itself; `None` where a host of ours wrote the message, or
    /// where that cannot be told.
    pub client: Option<(IpAddr, String)>,
}

impl Checked {
    /// Of a message that is not checked at all.
    pub(super) fn unchecked() -> Checked {
        Checked {
            report: AuthReport::default(),
            results: String::new(),
            field: String::new(),
            withheld: Vec::new(),
            needs_message_id: false,
            marks: Vec::new(),
            cuts: Vec::new(),
            quarantine: None,
            refusal: None,
            authentication: Authentication::Absent,
            ptr: None,
            client: None,
        }
    }

    /// The results as rules compare them.
    pub(super) fn facts(&self) -> AuthFacts {
        AuthFacts {
            spf: self.report.spf_word(),
            dkim: self.report.dkim_word(),
            dmarc: self.report.dmarc_word(),
            arc: self.report.arc_word(),
        }
    }

    /// The results as they are recorded.
    pub(super) fn record(&self) -> Value {
        let AuthFacts { spf, dkim, dmarc, arc } = self.facts();
        let ptr = self.report.ptr.as_ref().map(|ptr| ptr.result.as_str());
        let from_domain = self.report.dmarc.as_ref().and_then(|dmarc| dmarc.from_domain.as_ref());
        json!({ "spf": spf, "dkim": dkim, "dmarc": dmarc, "arc": arc, "ptr": ptr, "from_domain": from_domain })
    }

    pub(super) fn report(&self) -> &AuthReport {
        &self.report
    }

    /// Adding a field of this name breaks no signature that counts.
    pub(super) fn may_add(&self, name: &str) -> bool {
        !self.withheld.contains(&name)
    }

    /// DMARC will fail at the next hop.
    pub(super) fn dmarc_at_risk(&self) -> bool {
        self.report.dmarc_at_risk()
    }
}

impl Inbound {
    /// Makes the checks that the administrator wants. A refusal is a 550 by DMARC, or a 451 where we cannot check now.
    pub(super) async fn check(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        header: &Header,
        body: &StoredBody,
    ) -> Result<Checked, Refusal> {
        let head = message.head.as_bytes();
        let (marks, found) = own_marks(ruling, message, header);
        let client = outside(ruling, message, header);
        // Where nobody outside can be told, the peer is checked.
        let (ip, helo) = client.clone().unwrap_or_else(|| (message.client.ip, message.client.helo.clone()));
        let report = self.examine(ruling, message, header, body, (ip, &helo)).await?;
        let (mut quarantine, mut refusal) = (None, None);
        if let Some(settings) = &ruling.auth {
            match disposition::dispose(&report, settings) {
                Disposition::Take => {}
                Disposition::Quarantine(why) => quarantine = Some((Reason::Dmarc, why)),
                // Whom it is for decides: where people behind us have a filter of their own, it is a mark.
                Disposition::Refuse(why) if ruling.has_mailhost() => refusal = Some(why),
                Disposition::Refuse(refusal) => return Err(refusal),
            }
        }
        if cuts::are_signed(&found, report.passing().flat_map(|signature| &signature.signed_fields)) {
            quarantine.get_or_insert_with(|| (Reason::LookAlike, SIGNED_CONTROL.to_owned()));
        }
        let sender = &message.envelope.sender;
        let present = |name: &str| {
            let all = header.fields.iter().filter(|field| field.name == name).count();
            all - found.iter().filter(|cut| cut.name == name).count()
        };
        let withheld = coverage::withheld(stamp::FIELDS, report.passing(), present);
        let results = match &ruling.auth {
            Some(_) => results::field(&report, &ruling.session.hostname, ip, sender),
            None => String::new(),
        };
        let may_tell = !withheld.contains(&stamp::AUTHENTICATION_RESULTS);
        let field = if may_tell { results.clone() } else { String::new() };
        let needs_message_id = present("message-id") == 0 && !coverage::is_listed(header, head, "message-id");
        let authentication = if report.authenticates(sender) { Authentication::Proven } else { Authentication::Absent };
        let ptr = report.ptr.as_ref().and_then(|ptr| ptr.name.clone());
        let cuts = found.into_iter().map(|cut| cut.range).collect();
        Ok(Checked {
            report,
            results,
            field,
            withheld,
            needs_message_id,
            marks,
            cuts,
            quarantine,
            refusal,
            authentication,
            ptr,
            client,
        })
    }

    /// What can be found out about a message that came from `ip`; nothing where nobody is checked.
    async fn examine(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        header: &Header,
        body: &StoredBody,
        (ip, helo): (IpAddr, &str),
    ) -> Result<AuthReport, Refusal> {
        let (Some(checker), Some(settings)) = (&ruling.checker, &ruling.auth) else { return Ok(AuthReport::default()) };
        let subject = Subject {
            ip,
            helo,
            sender: &message.envelope.sender,
            hostname: &ruling.session.hostname,
            head: message.head.as_bytes().len(),
            header,
            message: Bytes::new(),
            now: message.at,
        };
        self.verify(checker, settings, subject, body).await
    }

    /// Reads the message into `subject` and checks it.
    async fn verify(
        &self,
        checker: &Checker,
        settings: &Settings,
        subject: Subject<'_>,
        body: &StoredBody,
    ) -> Result<AuthReport, Refusal> {
        let (_permit, message) = self.whole(body).await?;
        let subject = Subject { message, ..subject };
        let report = checker.check(&settings.checks, &subject).await;
        for (check, word) in [
            ("spf", report.spf_word()),
            ("dkim", report.dkim_word()),
            ("dmarc", report.dmarc_word()),
            ("arc", report.arc_word()),
            ("ptr", report.ptr.as_ref().map(|ptr| ptr.result.as_str())),
        ] {
            if let Some(word) = word {
                events::checked(check, word);
            }
        }
        Ok(report)
    }
}

impl Inbound {
    /// The message's octets in one piece, with a permit to be held as long as they are: whole messages in memory are what a
    /// flood of large ones would cost.
    pub(super) async fn whole(&self, body: &StoredBody) -> Result<(Option<Permit>, Bytes), Refusal> {
        let size = usize::try_from(body.len()).unwrap_or(usize::MAX);
        let permit = match body.in_memory() {
            Some(_) => None,
            None => Some(self.verification.take(size, PERMIT_WAIT).await.ok_or_else(busy)?),
        };
        Ok((permit, whole(body).await?))
    }
}

/// The client outside our own relays, and what it called itself: the peer, unless that is one of them.
fn outside(ruling: &Ruling, message: &Arrived<'_>, header: &Header) -> Option<(IpAddr, String)> {
    if !ruling.upstream.iter().any(|network| network.contains(message.client.ip)) {
        return Some((message.client.ip, message.client.helo.clone()));
    }
    match Origin::trace(message.head.as_bytes(), header, &ruling.upstream) {
        Origin::Outside { ip, helo } => Some((ip, helo.unwrap_or_default())),
        // Written by one of ours, or by one whose Received we cannot read.
        Origin::Inside | Origin::Unreadable => None,
    }
}

/// The marks of ours, which stay for the next time it comes by, and what is cut.
fn own_marks(ruling: &Ruling, message: &Arrived<'_>, header: &Header) -> (Vec<Mark>, Vec<Cut>) {
    let head = message.head.as_bytes();
    let mut found = cuts::find(&header.fields, head, &ruling.session.hostname);
    let mut marks = Vec::new();
    for field in &header.fields {
        if let Some(mark) = ruling.read_mark(field, head, message.at) {
            found.retain(|cut| cut.range != field.range);
            marks.push(mark);
        }
    }
    (marks, found)
}

/// The message's bytes in one piece.
async fn whole(body: &StoredBody) -> Result<Bytes, Refusal> {
    if let Some(bytes) = body.in_memory() {
        return Ok(bytes.clone());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(body.len()).unwrap_or(0));
    let mut reader = BodyReader::new(body, &[]);
    while let Some(piece) = reader.next().await.map_err(|error| store_refusal(&error))? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

pub(super) fn busy() -> Refusal {
    Refusal::new(reply::CHECKS_BUSY)
}

/// Whole messages that are read for verification at one time.
pub(super) const VERIFICATION_OCTETS_MAX: usize = 64 * 1024 * 1024;
/// A message of the largest size is checked in well under a second; who waits longer is better off coming back.
pub(super) const PERMIT_WAIT: Duration = Duration::from_secs(30);
const SIGNED_CONTROL: &str = "a passing signature covers a field that a help desk obeys";
