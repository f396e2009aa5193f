//! DNS answers laid out for mail-auth as a cache that always hits.
//!
//! What was not asked for is "DNS gave no answer": never an absence, and never a query behind our back.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use mail_auth::dkim::{DkimError, DomainKey};
use mail_auth::dmarc::DmarcRecord;
use mail_auth::dns::TxtRecordParser;
use mail_auth::hickory_resolver::proto::op::ResponseCode;
use mail_auth::{DnsCache, DnssecStatus, Error, Negative, NoCache, RecordSet, ResolverCache, TxtRecord};

use super::{policy, tags};
use crate::dns::DnsError;

/// What TXT gave at a name.
pub(super) type Texts = Result<Arc<[Vec<u8>]>, DnsError>;

#[derive(Default)]
pub(super) struct Answers {
    txt: TxtAnswers,
    a: AddressAnswers,
}

#[derive(Default)]
pub(super) struct TxtAnswers(HashMap<Box<str>, TxtRecord>);

#[derive(Default)]
pub(super) struct AddressAnswers(HashMap<Box<str>, Result<RecordSet<Ipv4Addr>, Negative>>);

impl Answers {
    pub(super) fn add_keys(&mut self, keys: Vec<(String, Texts)>) {
        for (name, texts) in keys {
            let record = match texts {
                Ok(texts) => key(&texts).into(),
                Err(error) => TxtRecord::Error(failed(error)),
            };
            self.txt.0.insert(fully_qualified(&name), record);
        }
    }

    /// The name at which a record that was added stands.
    pub(super) fn place_of(&self, record: &Arc<DmarcRecord>) -> Option<&str> {
        let holds = |held: &TxtRecord| matches!(held, TxtRecord::Dmarc(held) if Arc::ptr_eq(held, record));
        self.txt.0.iter().find(|(_, held)| holds(held)).map(|(name, _)| name.trim_end_matches('.'))
    }

    /// Adds what stands at `_dmarc.` and says whether a policy record does.
    pub(super) fn add_policy(&mut self, name: &str, texts: &Texts) -> bool {
        let record = match texts {
            Ok(texts) => only_policy(texts),
            Err(error) => Err(failed(*error)),
        };
        let found = record.is_ok();
        self.txt.0.insert(fully_qualified(name), record.into());
        found
    }

    /// Says whether a name exists, by its A records.
    pub(super) fn add_existence(&mut self, name: &str, answer: Result<Arc<[Ipv4Addr]>, DnsError>) {
        let code = |code| Err(Negative { code });
        let answer = match answer {
            Ok(records) => Ok(RecordSet { records, dnssec_status: DnssecStatus::Indeterminate }),
            Err(DnsError::NotFound) => code(ResponseCode::NXDomain),
            Err(DnsError::NoRecords) => code(ResponseCode::NoError),
            // In doubt it exists: `np` is for names that certainly do not.
            Err(DnsError::Temporary | DnsError::OverBudget) => code(ResponseCode::ServFail),
        };
        self.a.0.insert(fully_qualified(name), answer);
    }
}

/// RFC 6376 §3.6.2.2 leaves several records undefined; the first that is a key is taken. A key that its owner made for
/// another service or another hash is none (§6.1.2), and the library does not look.
fn key(texts: &[Vec<u8>]) -> Result<DomainKey, Error> {
    let ours: Vec<Vec<u8>> = texts.iter().filter(|text| tags::is_key_for_us(text)).cloned().collect();
    if ours.is_empty() {
        return Err(Error::Dkim(DkimError::UnsupportedKeyType));
    }
    DomainKey::parse_records(&ours)
}

/// RFC 9989 §4.10: several policy records at a name are none.
fn only_policy(texts: &[Vec<u8>]) -> Result<DmarcRecord, Error> {
    let mut ours = texts.iter().filter_map(|text| policy::parse(text));
    match (ours.next(), ours.next()) {
        (Some(record), None) => Ok(record),
        (None, _) | (Some(_), Some(_)) => Err(Error::Dns(mail_auth::DnsError::InvalidRecordType)),
    }
}

fn failed(error: DnsError) -> Error {
    match error {
        DnsError::NotFound => Error::Dns(mail_auth::DnsError::RecordNotFound(ResponseCode::NXDomain)),
        DnsError::NoRecords => Error::Dns(mail_auth::DnsError::RecordNotFound(ResponseCode::NoError)),
        DnsError::Temporary => no_answer(),
        // A permanent error: the message is to blame.
        DnsError::OverBudget => Error::Parse,
    }
}

fn no_answer() -> Error {
    Error::Dns(mail_auth::DnsError::Resolver(String::new()))
}

fn fully_qualified(name: &str) -> Box<str> {
    format!("{}.", name.to_ascii_lowercase()).into()
}

impl ResolverCache<Box<str>, TxtRecord> for TxtAnswers {
    fn get<Q>(&self, name: &Q) -> Option<TxtRecord>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        Some(self.0.get(name).cloned().unwrap_or_else(|| TxtRecord::Error(no_answer())))
    }

    fn remove<Q>(&self, _: &Q) -> Option<TxtRecord>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: TxtRecord, _: Instant) {}
}

impl ResolverCache<Box<str>, Result<RecordSet<Ipv4Addr>, Negative>> for AddressAnswers {
    fn get<Q>(&self, name: &Q) -> Option<Result<RecordSet<Ipv4Addr>, Negative>>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        Some(self.0.get(name).cloned().unwrap_or(Err(Negative { code: ResponseCode::ServFail })))
    }

    fn remove<Q>(&self, _: &Q) -> Option<Result<RecordSet<Ipv4Addr>, Negative>>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Result<RecordSet<Ipv4Addr>, Negative>, _: Instant) {}
}

impl DnsCache for Answers {
    type Txt = TxtAnswers;
    type Mx = NoCache;
    type Ipv4 = AddressAnswers;
    type Ipv6 = NoCache;
    type Ptr = NoCache;

    fn txt(&self) -> Option<&TxtAnswers> {
        Some(&self.txt)
    }

    fn mx(&self) -> Option<&NoCache> {
        None
    }

    fn ipv4(&self) -> Option<&AddressAnswers> {
        Some(&self.a)
    }

    fn ipv6(&self) -> Option<&NoCache> {
        None
    }

    fn ptr(&self) -> Option<&NoCache> {
        None
    }
}
