//! Probes that are on their way in: messages of our own, known by a Message-ID that nobody can guess.
//!
//! The mark is not in the message for anybody to write, but here, for as long as the probe runs: a Message-ID that is
//! not expected is a Message-ID like any other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::queue::Errand;

/// What is expected.
#[derive(Debug, Default)]
pub struct Probes(Mutex<HashMap<String, Errand>>);

/// A probe is expected until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Expected<'a> {
    probes: &'a Probes,
    message_id: String,
}

impl Probes {
    /// Expects a message with this Message-ID. `None`: too many are expected.
    pub fn expect(&self, message_id: &str, errand: Errand) -> Option<Expected<'_>> {
        let mut probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if probes.len() >= PROBES_MAX {
            return None;
        }
        probes.insert(message_id.to_owned(), errand);
        Some(Expected { probes: self, message_id: message_id.to_owned() })
    }

    /// What the legs of a message shall do, where it is a probe.
    #[must_use]
    pub fn errand(&self, message_id: &str) -> Option<Errand> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(message_id).copied()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.probes.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.message_id);
    }
}

/// At one time: a probe is a person's, or a monitor's once a minute.
const PROBES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_known_while_it_is_expected_and_there_are_so_many() {
        let probes = Probes::default();
        let first = probes.expect("<1@x>", Errand::AskRcpt).unwrap();
        assert_eq!((probes.errand("<1@x>"), probes.errand("<2@x>")), (Some(Errand::AskRcpt), None));
        let more: Vec<_> =
            (2..=PROBES_MAX).map(|n| probes.expect(&format!("<{n}@x>"), Errand::Deliver).unwrap()).collect();
        assert!(probes.expect("<one past>", Errand::Deliver).is_none());
        drop(first);
        assert_eq!(probes.errand("<1@x>"), None);
        drop(more);
        assert!(probes.0.lock().unwrap().is_empty());
    }
}
