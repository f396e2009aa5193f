//! How much a message looks like spam: has the score made by whoever makes it, and brings it to where it is used.
//!
//! What cannot be scored now is taken, deferred or scored by ourselves, as `on-error` says; it is never refused for good.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::checks::{Checked, PERMIT_WAIT, busy};
use super::journey::{Arrived, store_refusal};
use super::{Inbound, Ruling};
use crate::address::{Domain, ReversePath};
use crate::dns::Dns;
use crate::events;
use crate::id::MessageId;
use crate::message::Header;
use crate::message::content::CONTENT_OCTETS_MAX;
use crate::queue::budget::Permit;
use crate::queue::{BodyReader, StoreError, StoredBody};
use crate::reply::{self, Refusal};
use crate::spam::blocklist::Blocklists;
use crate::spam::evidence::{Evidence, Peer, Reading};
use crate::spam::rspamd::RspamdError;
use crate::spam::{self, Band, Engine, OnError, Settings, SpamReport, builtin, rspamd};

/// What scores mail: the settings, whom block lists are asked through, and what is known of their health.
pub struct Scorer {
    pub settings: Settings,
    dns: Arc<dyn Dns>,
    blocklists: Blocklists,
}

impl Scorer {
    #[must_use]
    pub fn new(settings: Settings, dns: Arc<dyn Dns>) -> Scorer {
        Scorer { blocklists: Blocklists::new(&settings.blocklists), dns, settings }
    }

    /// How bad a message with this report is.
    #[must_use]
    pub fn band(&self, report: &SpamReport) -> Band {
        self.settings.bands.of(report)
    }
}

/// What was found out about a message.
pub(super) struct Scored {
    /// `None` where no score was made.
    report: Option<SpamReport>,
    pub band: Band,
    /// The field that marks a copy; `None` where adding it would break a signature that counts.
    field: Option<String>,
}

impl Scored {
    pub(super) fn none() -> Scored {
        Scored { report: None, band: Band::Clean, field: None }
    }

    /// The score as rules compare it.
    pub(super) fn score(&self) -> Option<f64> {
        self.report.as_ref().map(|report| report.score)
    }

    pub(super) fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// As it is recorded; [`SpamReport::recorded`] reads it back.
    pub(super) fn record(&self) -> Value {
        let Some(report) = &self.report else { return Value::Null };
        let mut record = report.record();
        record["band"] = json!(self.band.as_str());
        record["may_mark"] = json!(self.field.is_some());
        record
    }

    /// Why a copy is treated as spam, in a line.
    pub(super) fn why(&self) -> String {
        self.report.as_ref().map_or_else(String::new, SpamReport::summary)
    }
}

impl Inbound {
    /// Scores the message where that is wanted. A refusal is a 451: the score cannot be made now, or the engine asks for another
    /// try. What a high score does is decided with the rules.
    pub(super) async fn score(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        header: &Header,
        body: &StoredBody,
        checked: &Checked,
        id: MessageId,
    ) -> Result<Scored, Refusal> {
        let Some(scorer) = &ruling.spam else { return Ok(Scored::none()) };
        let settings = &scorer.settings;
        let report = match &settings.engine {
            Engine::Builtin => self.builtin(ruling, scorer, message, header, body, checked).await?,
            Engine::Rspamd(rspamd) => match self.ask_rspamd(ruling, rspamd, message, body, checked, id).await? {
                Ok(verdict) if verdict.try_again => return Err(Refusal::new(reply::SPAM_LATER)),
                Ok(verdict) => verdict.report,
                Err(error) => {
                    events::score_failed(id, error.as_str(), &error, settings.on_error.as_str());
                    match settings.on_error {
                        OnError::Accept => return Ok(Scored::none()),
                        OnError::Defer => return Err(Refusal::new(reply::SPAM_UNKNOWN)),
                        OnError::Builtin => self.builtin(ruling, scorer, message, header, body, checked).await?,
                    }
                }
            },
        };
        events::scored(report.score);
        let band = match (scorer.band(&report), &message.envelope.sender) {
            // Who refuses a notification destroys it: nobody is left to be told.
            (Band::Reject, ReversePath::Null) => Band::Quarantine,
            (band, _) => band,
        };
        let field = checked.may_add(spam::FIELD).then(|| report.field());
        Ok(Scored { report: Some(report), band, field })
    }

    async fn builtin(
        &self,
        ruling: &Ruling,
        scorer: &Scorer,
        message: &Arrived<'_>,
        header: &Header,
        body: &StoredBody,
        checked: &Checked,
    ) -> Result<SpamReport, Refusal> {
        let client = checked.client.as_ref();
        let listed = match client {
            Some((ip, _)) => scorer.blocklists.count(scorer.dns.as_ref(), *ip).await,
            None => 0,
        };
        let (reading, _permit) = self.read(body).await?;
        let is_ours = |domain: &str| Domain::parse(domain).is_ok_and(|domain| ruling.rules.is_ours(&domain));
        Ok(builtin::score(&Evidence {
            client: client.map(|(ip, helo)| Peer { ip: *ip, helo }),
            sender: &message.envelope.sender,
            auth: checked.report(),
            header,
            reading: &reading,
            listed,
            hostname: &ruling.session.hostname,
            is_ours: &is_ours,
            received: message.at,
        }))
    }
}

impl Inbound {
    /// What a reader would see of the message, and the part of the budget that it holds where it does not stand in memory.
    async fn read(&self, body: &StoredBody) -> Result<(Reading, Option<Permit>), Refusal> {
        if let Some(bytes) = body.in_memory() {
            return Ok((Reading::of(bytes), None));
        }
        let permit = self.verification.take(READING_OCTETS, PERMIT_WAIT).await.ok_or_else(busy)?;
        let mut beginning = Vec::new();
        let mut reader = BodyReader::new(body, &[]);
        while beginning.len() < CONTENT_OCTETS_MAX {
            let Some(piece) = reader.next().await.map_err(|error| store_refusal(&error))? else { break };
            beginning.extend_from_slice(&piece);
        }
        // It fails where the reading panics or the runtime ends.
        let reading = tokio::task::spawn_blocking(move || Reading::of(&beginning)).await;
        Ok((reading.map_err(|_| Refusal::new(reply::LOCAL_ERROR))?, Some(permit)))
    }

    /// Hands the message to rspamd, a piece at a time. The outer error is ours.
    async fn ask_rspamd(
        &self,
        ruling: &Ruling,
        settings: &rspamd::Settings,
        message: &Arrived<'_>,
        body: &StoredBody,
        checked: &Checked,
        id: MessageId,
    ) -> Result<Result<rspamd::Verdict, RspamdError>, Refusal> {
        let _permit = match body.in_memory() {
            Some(_) => None,
            None => Some(self.verification.take(STREAMED_OCTETS, PERMIT_WAIT).await.ok_or_else(busy)?),
        };
        let (ip, helo) = checked.client.clone().unwrap_or((message.client.ip, message.client.helo.clone()));
        let envelope = rspamd::Envelope {
            ip,
            helo: &helo,
            ptr: checked.ptr.as_deref(),
            sender: &message.envelope.sender,
            recipients: &message.envelope.recipients,
            hostname: &ruling.session.hostname,
            id: &id.to_string(),
            size: body.len(),
        };
        let (to_rspamd, pieces) = mpsc::channel(PIECES_WAITING);
        let feed = async move {
            let mut reader = BodyReader::new(body, &[]);
            while let Some(piece) = reader.next().await? {
                // Where rspamd has heard enough, its answer says why.
                if to_rspamd.send(piece).await.is_err() {
                    break;
                }
            }
            drop(to_rspamd);
            pending::<Result<Infallible, StoreError>>().await
        };
        tokio::select! {
            verdict = rspamd::check(settings, &envelope, pieces) => Ok(verdict),
            failed = feed => match failed {
                Err(error) => Err(store_refusal(&error)),
                Ok(never) => match never {},
            },
        }
    }
}

/// Pieces of a body that wait for rspamd to read them.
const PIECES_WAITING: usize = 2;
/// Those, the one that is being sent and the one that is being read, 128 KiB each.
const STREAMED_OCTETS: usize = (PIECES_WAITING + 2) * 128 * 1024;
/// The beginning of a message, decoded text and HTML, and the text in lower case.
const READING_OCTETS: usize = 8 * CONTENT_OCTETS_MAX;
