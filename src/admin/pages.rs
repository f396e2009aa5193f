//! A long list, asked for a page at a time, newest first, so that neither the list nor an action on it ends silently at
//! what one question may give. What is accepted meanwhile is newer than the first page and never seen. Pure.

use crate::id::{LegId, MessageId};
use crate::queue::sqlite::{Filter, LegRow, Order, ROWS_MAX};

/// Where a list stands.
#[derive(Debug)]
pub struct Pages {
    filter: Filter,
    /// Rows of one page.
    size: usize,
    /// Rows that are still wanted; `None`: all.
    wanted: Option<usize>,
    after: Option<LegId>,
    /// The last page was not full.
    over: bool,
}

impl Pages {
    /// The filter's own `limit` says how many rows are wanted; 0: all. `size` is cut to [`ROWS_MAX`].
    #[must_use]
    pub fn new(filter: Filter, size: usize) -> Pages {
        let wanted = (filter.limit > 0).then_some(filter.limit);
        Pages { filter, size: size.clamp(1, ROWS_MAX), wanted, after: None, over: false }
    }

    /// The question for the next page; none when the list is complete.
    #[must_use]
    pub fn question(&self) -> Option<Filter> {
        let limit = self.wanted.map_or(self.size, |wanted| wanted.min(self.size));
        if self.over || limit == 0 {
            return None;
        }
        Some(Filter { before: self.after, limit, order: Order::NewestFirst, ..self.filter.clone() })
    }

    /// The answer to the last question.
    pub fn answered(&mut self, rows: &[LegRow]) {
        let asked = self.question().map_or(0, |question| question.limit);
        self.over = rows.len() < asked;
        self.after = rows.last().map(|row| row.id).or(self.after);
        self.wanted = self.wanted.map(|wanted| wanted.saturating_sub(rows.len()));
    }
}

/// The messages of a list of legs, each once, in its order.
#[derive(Debug)]
pub struct Messages {
    pages: Pages,
    wanted: Option<usize>,
    last: Option<MessageId>,
}

impl Messages {
    /// The filter's `limit` counts messages; 0: all.
    #[must_use]
    pub fn new(filter: Filter) -> Messages {
        let wanted = (filter.limit > 0).then_some(filter.limit);
        Messages { pages: Pages::new(Filter { limit: 0, ..filter }, MESSAGE_PAGE), wanted, last: None }
    }

    /// As [`Pages::question`].
    #[must_use]
    pub fn question(&self) -> Option<Filter> {
        if self.wanted == Some(0) { None } else { self.pages.question() }
    }

    /// The answer to the last question; gives the messages that it brought.
    #[must_use]
    pub fn answered(&mut self, rows: &[LegRow]) -> Vec<MessageId> {
        self.pages.answered(rows);
        let mut new = Vec::new();
        // The legs of a message stand together in this order, if need be across two pages.
        for id in rows.iter().map(|row| row.id.message) {
            if self.last != Some(id) && self.wanted != Some(0) {
                self.last = Some(id);
                self.wanted = self.wanted.map(|wanted| wanted - 1);
                new.push(id);
            }
        }
        new
    }
}

/// Legs at one time; messages are read one by one anyway.
const MESSAGE_PAGE: usize = 200;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::SystemClock;
    use crate::queue::Store;
    use crate::queue::fixtures::{leg, message};
    use crate::queue::sqlite::{Mode, Options, Retention, SqliteStore, Unobserved};

    async fn store(dir: &std::path::Path) -> SqliteStore {
        let retention = Retention { ledger: Duration::MAX, bodies: Duration::ZERO, quarantine: Duration::MAX };
        let (clock, observer) = (Arc::new(SystemClock::new()), Arc::new(Unobserved));
        let options = Options { retention, min_free: 0, mode: Mode::Inline, clock, observer };
        let store = SqliteStore::open(dir, options).unwrap();
        for id in 1..=5 {
            let _ = store.commit(message(id), vec![leg(1), leg(2)]).await.unwrap();
        }
        store
    }

    #[tokio::test]
    async fn a_list_is_complete_whatever_the_size_of_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let all: Vec<LegId> =
            (1..=5).rev().flat_map(|id| [2, 1].map(|n| LegId { message: MessageId(id), n })).collect();
        for (filter, size, limit) in [
            (Filter::default(), 3, 0),
            (Filter::open(), 3, 0),
            (Filter::open(), 10, 0),
            (Filter::open(), 5, 0),
            (Filter::default(), 100, 0),
            (Filter::open(), 3, 7),
            (Filter::open(), 3, 3),
            (Filter::open(), 3, 11),
        ] {
            let mut pages = Pages::new(Filter { limit, ..filter }, size);
            let mut found = Vec::new();
            while let Some(question) = pages.question() {
                let rows = store.query(question).await.unwrap();
                assert!(rows.len() <= size);
                pages.answered(&rows);
                found.extend(rows.into_iter().map(|row| row.id));
                // What comes meanwhile is not of this list, and does not make it endless.
                let new = store.max_message_id().await.unwrap().0 + 1;
                let _ = store.commit(message(new), vec![leg(1)]).await.unwrap();
            }
            if limit == 0 {
                found.retain(|id| id.message.0 <= 5);
                assert_eq!(found, all, "pages of {size}");
            } else {
                assert_eq!(found.len(), limit, "pages of {size}");
            }
        }
    }

    #[tokio::test]
    async fn each_message_comes_once_though_its_legs_stand_on_two_pages() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        for (limit, expected) in [(0, vec![5, 4, 3, 2, 1]), (2, vec![5, 4])] {
            let mut messages = Messages::new(Filter { limit, ..Filter::default() });
            messages.pages.size = 3;
            let mut found = Vec::new();
            while let Some(question) = messages.question() {
                found.extend(messages.answered(&store.query(question).await.unwrap()).iter().map(|id| id.0));
            }
            assert_eq!(found, expected);
        }
    }
}
