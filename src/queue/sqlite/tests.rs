//! The store on a real SQLite in a temporary directory: every state of the table in `mod.rs`, stopped and reopened.

use std::collections::HashMap;

use super::*;
use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::SystemClock;
use crate::id::Chance;
use crate::queue::body::BodyReader;
use crate::queue::fixtures::{leg, message, settlement};
use crate::queue::{Authorship, DedupeKey, FollowUp, NoticeTo, Notices, Reason};
use crate::reply::DeliveryProof;
use crate::srs::{Author, Leads, PathId, Proof, Srs};

const NOW: Timestamp = Timestamp(10_000);
const DAY: Duration = Duration::from_secs(86_400);

/// A wall clock that stands near the fixtures' times, so that the housekeeper finds nothing old.
struct StandingClock(SystemClock);

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        NOW
    }
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

fn options(mode: Mode) -> Options {
    Options {
        retention: Retention { ledger: 30 * DAY, bodies: Duration::ZERO, quarantine: 30 * DAY },
        min_free: 0,
        mode,
        clock: Arc::new(StandingClock(SystemClock::new())),
        observer: Arc::new(Unobserved),
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Option<SqliteStore>,
    mode: Mode,
}

impl std::ops::Deref for Fixture {
    type Target = SqliteStore;
    fn deref(&self) -> &SqliteStore {
        self.store.as_ref().unwrap()
    }
}

impl Fixture {
    fn new(mode: Mode) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(SqliteStore::open(dir.path(), options(mode)).unwrap());
        Fixture { dir, store, mode }
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(SqliteStore::open(self.dir.path(), options(self.mode)).unwrap());
    }

    async fn write_all(&self, len: usize) -> StoredBody {
        let mut writer = self.write_body();
        writer.write(&vec![b'x'; len]).await.unwrap();
        writer.finish().await.unwrap()
    }

    /// What a power cut at this moment leaves: the files as they are now, opened elsewhere.
    fn copy_as_crashed(&self) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        let store = Some(SqliteStore::open(dir.path(), options(self.mode)).unwrap());
        Fixture { dir, store, mode: self.mode }
    }

    fn files(&self) -> usize {
        let shards = std::fs::read_dir(self.shared.ground.bodies()).unwrap();
        shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
    }

    async fn states(&self) -> Vec<State> {
        let order = Order::OldestFirst;
        let rows = self.query(Filter { order, ..Filter::default() }).await.unwrap();
        rows.into_iter().map(|row| row.state).collect()
    }

    async fn assert_balance(&self) {
        let balance = self.balance().await.unwrap();
        assert!(balance.holds(), "{balance:?}");
        let mut counted: HashMap<(String, State), u64> = HashMap::new();
        for row in self.query(Filter::open()).await.unwrap() {
            *counted.entry((row.route, row.state)).or_default() += 1;
        }
        for (route, state, count) in self.open_legs() {
            assert_eq!(count, counted.get(&(route.clone(), state)).copied().unwrap_or(0), "{route} {state}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else if entry.file_name() != "queue.db-shm" {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

async fn read(body: &StoredBody) -> Result<Vec<u8>, StoreError> {
    let (mut reader, mut all) = (BodyReader::new(body, &[]), Vec::new());
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

fn handed_over(n: u16) -> NewLeg {
    NewLeg { handed_over: true, ..leg(n) }
}

#[tokio::test]
async fn who_may_be_told_is_remembered_over_a_crash() {
    let store = Fixture::new(Mode::Inline);
    let to = NoticeTo::Sender(Mailbox::parse("client@example.org").unwrap());
    let notices = Notices { to, envid: Some("Q 1".into()), ..Notices::default() };
    let legs = vec![NewLeg { notices: notices.clone(), ..handed_over(1) }, leg(2)];
    let body = store.write_all(100).await;
    let mut queued = store.commit(NewMessage { body, ..message(7) }, legs).await.unwrap();
    assert_eq!(queued.take_legs()[0].notices, notices, "as it is handed over");
    let claimed = store.copy_as_crashed().claim("crm", NOW, 10).await.unwrap();
    let found: Vec<&Notices> = claimed.iter().map(|leg| &leg.notices).collect();
    assert!(found.contains(&&notices) && found.contains(&&Notices::default()), "{found:?}");
}

#[tokio::test]
async fn a_message_survives_a_stop_after_every_step_of_its_life() {
    for mode in [Mode::Threaded, Mode::Inline] {
        for len in [5_000, 200_000] {
            walk_and_stop(mode, len).await;
        }
    }
}

async fn walk_and_stop(mode: Mode, len: usize) {
    let file = usize::from(len > body::IN_MEMORY_MAX);
    let mut store = Fixture::new(mode);
    // 1 and 2: a body that arrived and was not committed.
    let body = store.write_all(len).await;
    assert_eq!(store.files(), file);
    assert_eq!(store.copy_as_crashed().files(), 0, "swept at start");
    // 3, 4 and 5: committed, one leg handed over, the other ownerless and due.
    let new = NewMessage { body, ..message(7) };
    let mut queued = store.commit(new, vec![handed_over(1), leg(2)]).await.unwrap();
    assert_eq!(queued.reply().to_string(), format!("250 2.0.0 queued as {}", MessageId(7)));
    let ours = queued.take_legs();
    assert_eq!(ours.len(), 1);
    store.assert_balance().await;
    let crashed = store.copy_as_crashed();
    crashed.assert_balance().await;
    assert_eq!(crashed.next_due().await.unwrap(), vec![("crm".to_owned(), Timestamp(1_000))]);
    let claimed = crashed.claim("crm", NOW, 10).await.unwrap();
    assert_eq!(claimed.len(), 2, "the new epoch freed the leg in flight");
    assert_eq!(read(&claimed[0].body).await.unwrap(), vec![b'x'; len]);
    assert_eq!(claimed[0].prefix, ours[0].prefix);
    drop(crashed);
    // 5: the ownerless leg is claimed; nothing is left to claim.
    let mut legs = store.claim("crm", NOW, 10).await.unwrap();
    assert_eq!(legs.len(), 1);
    assert!(store.claim("crm", NOW, 10).await.unwrap().is_empty());
    legs.extend(ours);
    // One leg ends: the body stays for the other.
    let done = store.settle(vec![settlement(&legs[0], State::Delivered)]).await.unwrap();
    assert_eq!(done, [Settled::Done]);
    store.assert_balance().await;
    assert_eq!(store.copy_as_crashed().states().await, [State::Queued, State::Delivered]);
    assert_eq!(store.files(), file);
    // The other is deferred, then claimed by the next start and delivered: 6 and 7.
    let _ = store.settle(vec![settlement(&legs[1], State::Queued)]).await.unwrap();
    drop(legs);
    store.reopen();
    assert!(store.claim("crm", Timestamp(59_999), 10).await.unwrap().is_empty(), "not due yet");
    let legs = store.claim("crm", Timestamp(60_000), 10).await.unwrap();
    assert_eq!(legs[0].attempts, 1);
    let _ = store.settle(vec![settlement(&legs[0], State::Delivered)]).await.unwrap();
    assert_eq!(store.files(), 0);
    assert!(store.body(MessageId(7)).await.unwrap().is_none());
    store.assert_balance().await;
    let shown = store.message(MessageId(7)).await.unwrap().unwrap();
    let attempts: Vec<(u16, u32)> = shown.attempts.iter().map(|attempt| (attempt.n, attempt.number)).collect();
    assert_eq!(attempts, [(1, 1), (1, 2), (2, 1)]);
    store.reopen();
    assert_eq!(store.states().await, [State::Delivered, State::Delivered]);
    assert_eq!(store.max_message_id().await.unwrap(), MessageId(7));
}

impl Fixture {
    async fn operate_on(&self, filter: Filter, operation: &Operation, dry_run: bool) -> Vec<Operated> {
        let rows = self.query(filter).await.unwrap();
        let operations = rows.into_iter().map(|row| (row.id, operation.clone())).collect();
        self.operate(operations, dry_run, "ann", NOW).await.unwrap()
    }

    async fn settle_one(&self, leg: &OwnedLeg, state: State) -> Settled {
        self.settle(vec![settlement(leg, state)]).await.unwrap()[0]
    }
}

#[tokio::test]
async fn an_old_epoch_settles_nothing() {
    let mut store = Fixture::new(Mode::Threaded);
    let legs = store.commit(message(1), vec![handed_over(1)]).await.unwrap().take_legs();
    store.reopen();
    assert_eq!(store.settle_one(&legs[0], State::Delivered).await, Settled::NotOurs);
    let again = store.claim("crm", NOW, 1).await.unwrap();
    assert_eq!(store.settle_one(&legs[0], State::Delivered).await, Settled::NotOurs, "claimed by the new epoch");
    assert_eq!(store.settle_one(&again[0], State::Delivered).await, Settled::Done);
    assert_eq!(store.settle_one(&again[0], State::Delivered).await, Settled::NotOurs, "it is final");
    store.assert_balance().await;
}

#[tokio::test]
async fn a_start_frees_what_any_owner_had_whatever_it_was_called() {
    let mut store = Fixture::new(Mode::Threaded);
    let legs = store.commit(message(1), vec![handed_over(1), handed_over(2)]).await.unwrap().take_legs();
    assert_eq!(legs.len(), 2);
    store.store = None;
    let db = Connection::open(store.dir.path().join("queue.db")).unwrap();
    db.execute("UPDATE leg SET owner = 'mx.old.example', epoch = 7 WHERE n = 1", []).unwrap();
    drop(db);
    store.reopen();
    assert_eq!(store.claim("crm", NOW, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_attempt_that_was_cut_off_leaves_a_trace() {
    let mut store = Fixture::new(Mode::Threaded);
    let legs =
        store.commit(message(1), vec![handed_over(1), handed_over(2), handed_over(3)]).await.unwrap().take_legs();
    store.release(vec![legs[0].id], NOW, GivenBack::Unattempted).await.unwrap();
    store.release(vec![legs[1].id], NOW, GivenBack::CutOff { by: "a restart" }).await.unwrap();
    store.reopen();
    let shown = store.message(MessageId(1)).await.unwrap().unwrap();
    let cut_off = "cut off by a restart; the remote may have taken the message";
    let details: Vec<&str> = shown.legs.iter().map(|leg| leg.detail.as_str()).collect();
    assert_eq!(details, ["", cut_off, cut_off], "the third was freed by the start");
    assert_eq!(shown.actions.iter().map(|action| action.n).collect::<Vec<_>>(), [2, 3]);
    // What was noted stays when the leg has ended well: it explains a second copy.
    let again = store.claim("crm", NOW, 10).await.unwrap();
    for leg in &again {
        assert_eq!(store.settle_one(leg, State::Delivered).await, Settled::Done);
    }
    let shown = store.message(MessageId(1)).await.unwrap().unwrap();
    assert_eq!((shown.actions.len(), shown.actions[1].detail.as_str()), (2, cut_off));
}

#[tokio::test]
async fn legs_that_nobody_took_come_back() {
    for mode in [Mode::Threaded, Mode::Inline] {
        let store = Fixture::new(mode);
        // The session is gone between the commit and the hand-over.
        drop(store.commit(message(1), vec![handed_over(1)]).await.unwrap());
        store.tidy(NOW).await.unwrap();
        let legs = store.claim("crm", NOW, 10).await.unwrap();
        assert_eq!(legs.len(), 1);
        store.release(vec![legs[0].id], Timestamp(20_000), GivenBack::Unattempted).await.unwrap();
        assert!(store.claim("crm", NOW, 10).await.unwrap().is_empty());
        assert_eq!(store.claim("crm", Timestamp(20_000), 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_duplicate_is_suppressed_while_the_first_leg_stands_for_it() {
    let store = Fixture::new(Mode::Inline);
    let key = DedupeKey { hash: [7; 32], window: Duration::from_secs(3600) };
    let keyed = || NewLeg { dedupe: Some(key.clone()), handed_over: true, ..leg(1) };
    let at = |id, ms| NewMessage { received: Timestamp(ms), ..message(id) };
    let twice = vec![keyed(), NewLeg { n: 2, ..keyed() }];
    let mut first = store.commit(at(1, 1_000), twice).await.unwrap();
    assert_eq!(first.duplicates(), [2], "within one message, too");
    let legs = first.take_legs();
    assert_eq!(legs.len(), 1, "a duplicate is not handed over");
    assert_eq!(store.commit(at(2, 1_500), vec![keyed()]).await.unwrap().duplicates(), [1]);
    // Delivered at 2,000: suppressed for an hour from then, and not for one millisecond more.
    assert_eq!(store.settle_one(&legs[0], State::Delivered).await, Settled::Done);
    assert_eq!(store.commit(at(3, 3_601_999), vec![keyed()]).await.unwrap().duplicates(), [1]);
    let mut later = store.commit(at(4, 3_602_000), vec![keyed()]).await.unwrap();
    assert!(later.duplicates().is_empty());
    // The new one failed for good: it stands for nothing.
    assert_eq!(store.settle_one(&later.take_legs()[0], State::Bounced).await, Settled::Done);
    assert!(store.commit(at(5, 3_602_001), vec![keyed()]).await.unwrap().duplicates().is_empty());
    store.assert_balance().await;
}

#[tokio::test]
async fn a_damaged_body_holds_its_leg_and_the_rest_goes_on() {
    let mut store = Fixture::new(Mode::Threaded);
    for id in 1..=3 {
        let body = store.write_all(100_000).await;
        let _ = store.commit(NewMessage { body, ..message(id) }, vec![leg(1)]).await.unwrap();
    }
    let _ = store.commit(message(4), vec![leg(1)]).await.unwrap();
    let path = |name: &str| store.shared.ground.bodies().join(name);
    std::fs::remove_file(path("00/1-0")).unwrap();
    std::fs::write(path("01/1-1"), "short").unwrap();
    store.run_sql("DELETE FROM body WHERE id = 4").await.unwrap();
    let claimed = store.claim("crm", NOW, 10).await.unwrap();
    assert_eq!(claimed.iter().map(|leg| leg.id.message.0).collect::<Vec<_>>(), [3]);
    assert_eq!(store.states().await, [State::Held, State::Held, State::Queued, State::Held]);
    let held = store.query(Filter { reason: Some(Reason::Damaged), ..Filter::default() }).await.unwrap();
    assert!(held[0].detail.contains("missing"), "{}", held[0].detail);
    assert!(held[1].detail.contains("5 of 100000 bytes"), "{}", held[1].detail);
    assert!(!store.balance().await.unwrap().holds());
    store.reopen();
    assert_eq!(store.states().await, [State::Held, State::Held, State::Queued, State::Held], "nothing is deleted");
}

/// Any SQL as work of the writer's.
struct Sql(String);

impl Work for Sql {
    type Output = ();
    fn run(&self, group: &mut writer::Group<'_>) -> rusqlite::Result<()> {
        group.db.execute_batch(&self.0)
    }
}

/// Work that fails as a broken disk does.
struct Broken;

impl Work for Broken {
    type Output = ();
    fn run(&self, _: &mut writer::Group<'_>) -> rusqlite::Result<()> {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
        Err(rusqlite::Error::SqliteFailure(code, None))
    }
}

impl SqliteStore {
    async fn run_sql(&self, sql: &str) -> Result<(), StoreError> {
        self.ask(Sql(sql.to_owned())).await
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_mail_while_deliveries_go_on() {
    let store = Fixture::new(Mode::Threaded);
    let mut legs = Vec::new();
    for id in 1..=20 {
        let body = store.write_all(50_000).await;
        let new = NewMessage { body, ..message(id) };
        legs.extend(store.commit(new, vec![handed_over(1)]).await.unwrap().take_legs());
    }
    store.run_sql("PRAGMA max_page_count = 1").await.unwrap();
    let body = store.write_all(60_000).await;
    let full = store.commit(NewMessage { body, ..message(21) }, vec![leg(1)]).await;
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    assert_eq!(store.settle_one(&legs[0], State::Delivered).await, Settled::Done);
    store.run_sql("PRAGMA max_page_count = 1000000").await.unwrap();
    assert!(store.commit(message(21), vec![leg(1)]).await.is_ok());
    store.assert_balance().await;
}

#[tokio::test]
async fn a_fault_of_the_disk_fails_its_group_and_the_next_commit_proves_a_new_connection() {
    let store = Fixture::new(Mode::Inline);
    let _ = store.commit(message(1), vec![leg(1)]).await.unwrap();
    assert!(matches!(store.ask(Broken).await, Err(StoreError::Write(_))));
    assert!(!store.accepting());
    let _ = store.commit(message(2), vec![leg(1)]).await.unwrap();
    assert!(store.accepting());
    assert_eq!(store.states().await.len(), 2);
    store.assert_balance().await;
}

#[tokio::test]
async fn one_bad_message_does_not_fail_its_group() {
    let store = Fixture::new(Mode::Threaded);
    let _ = store.commit(message(1), vec![leg(1)]).await.unwrap();
    let (first, again, third) = tokio::join!(
        store.commit(message(2), vec![leg(1)]),
        store.commit(message(1), vec![leg(1)]),
        store.commit(message(3), vec![leg(1)]),
    );
    assert!(first.is_ok() && third.is_ok());
    assert!(matches!(again, Err(StoreError::Write(_))));
    assert!(store.ready());
    store.assert_balance().await;
}

#[tokio::test]
async fn below_the_floor_of_free_space_nothing_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), Options { min_free: u64::MAX, ..options(Mode::Inline) }).unwrap();
    assert!(!store.accepting());
    assert!(store.ready());
}

#[test]
fn what_is_no_queue_of_ours_is_refused_and_left_alone() {
    let open = |prepare: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        drop(SqliteStore::open(dir.path(), options(Mode::Inline)).unwrap());
        let path = dir.path().join("queue.db");
        prepare(&path);
        let before = std::fs::read(&path).unwrap();
        let error = SqliteStore::open(dir.path(), options(Mode::Inline)).unwrap_err();
        assert!(std::fs::read(&path).unwrap() == before, "{error}");
        error.to_string()
    };
    let sql = |sql: &'static str| move |path: &Path| Connection::open(path).unwrap().execute_batch(sql).unwrap();
    assert!(open(&sql("PRAGMA user_version = 99")).contains("newer than this program's"));
    assert!(open(&sql("PRAGMA application_id = 1")).contains("another program's"));
    let garbage = open(&|path| std::fs::write(path, vec![7; 100_000]).unwrap());
    assert!(garbage.contains("damaged") && garbage.contains(".recover"), "{garbage}");
    let torn = open(&|path| {
        let mut bytes = std::fs::read(path).unwrap();
        let end = bytes.len();
        bytes[8192..end].fill(0);
        std::fs::write(path, bytes).unwrap();
    });
    assert!(torn.contains("damaged"), "{torn}");
}

#[tokio::test]
async fn a_queue_of_version_1_is_read_as_it_is_and_brought_to_ours_by_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let open = || SqliteStore::open(dir.path(), options(Mode::Threaded)).unwrap();
    let store = open();
    let _ = store.commit(message(1), vec![leg(1)]).await.unwrap();
    drop(store);
    let back = "DROP TABLE return_path; DROP TABLE pause; DROP TABLE audit; ALTER TABLE leg DROP COLUMN errand;
                ALTER TABLE message DROP COLUMN require_tls; PRAGMA user_version = 1";
    Connection::open(dir.path().join("queue.db")).unwrap().execute_batch(back).unwrap();
    let read_only = SqliteStore::open_read_only(dir.path()).unwrap();
    assert_eq!(read_only.query(Filter::default()).await.unwrap().len(), 1);
    assert_eq!(read_only.pauses().await.unwrap(), []);
    drop(read_only);
    let store = open();
    let pause = PauseRow { route: "crm".into(), since: Timestamp(1), until: None, actor: "jean".into() };
    store.pause(pause.clone()).await.unwrap();
    assert_eq!(store.query(Filter::default()).await.unwrap()[0].paused, Some(pause));
    assert_eq!(store.claim("crm", Timestamp(i64::MAX), 10).await.unwrap().len(), 1);
    assert!(store.balance().await.unwrap().holds());
}

#[tokio::test]
async fn the_book_of_commands_keeps_the_newest() {
    let store = Fixture::new(Mode::Inline);
    let row = |n: i64| AuditRow { at: Timestamp(n), action: "pause".into(), ..AuditRow::default() };
    let db = Connection::open(store.dir.path().join("queue.db")).unwrap();
    for n in 1..=3 {
        store.audit_begin(row(n)).await.unwrap();
    }
    db.execute("UPDATE audit SET id = id + ?1 WHERE id > 1", [audit::ROWS_MAX - 2]).unwrap();
    let all = || AuditFilter { limit: 10, ..AuditFilter::default() };
    let begun = store.audit_begin(row(4)).await.unwrap();
    store.audit_end(begun, "done").await.unwrap();
    let kept: Vec<_> = store.audit(all()).await.unwrap().into_iter().map(|row| (row.at.0, row.outcome)).collect();
    assert_eq!(kept, [(4, Some("done".to_owned())), (3, None), (2, None)]);
}

#[tokio::test]
async fn the_log_begins_anew_above_its_limit_and_not_at_it() {
    let store = Fixture::new(Mode::Inline);
    let log = || std::fs::metadata(store.dir.path().join("queue.db-wal")).unwrap().len();
    let pages = shared::LOG_BYTES_MAX / schema::PAGE_SIZE as u64;
    let _ = store.commit(message(1), vec![leg(1)]).await.unwrap();
    let before = log();
    store.shared.set_log_pages(pages);
    let _ = store.commit(message(2), vec![leg(1)]).await.unwrap();
    assert!(log() > before && store.shared.log_pages.load(Ordering::Relaxed) == pages, "at the limit it grows");
    store.shared.set_log_pages(pages + 1);
    let _ = store.commit(message(3), vec![leg(1)]).await.unwrap();
    let longest = log();
    for n in 4..10 {
        let _ = store.commit(message(n), vec![leg(1)]).await.unwrap();
        assert_eq!(log(), longest, "it is written over from its beginning");
    }
    store.assert_balance().await;
}

#[tokio::test]
async fn what_requires_tls_is_read_back_so() {
    let store = Fixture::new(Mode::Inline);
    let needs = NewMessage { require_tls: true, ..message(1) };
    let _ = store.commit(needs, vec![leg(1)]).await.unwrap();
    assert!(store.claim("crm", NOW, 9).await.unwrap()[0].require_tls);
}

#[test]
fn two_daemons_on_one_queue_are_refused() {
    let store = Fixture::new(Mode::Threaded);
    let second = SqliteStore::open(store.dir.path(), options(Mode::Threaded)).unwrap_err();
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
}

#[tokio::test]
async fn the_queue_can_be_read_without_a_daemon() {
    let mut store = Fixture::new(Mode::Threaded);
    let _ = store.commit(message(1), vec![leg(1)]).await.unwrap();
    let beside = SqliteStore::open_read_only(store.dir.path()).unwrap();
    assert_eq!(beside.query(Filter::open()).await.unwrap().len(), 1);
    drop(beside);
    store.store = None;
    let alone = SqliteStore::open_read_only(store.dir.path()).unwrap();
    assert_eq!(alone.query(Filter::open()).await.unwrap().len(), 1);
    let body = alone.body(MessageId(1)).await.unwrap().unwrap();
    assert_eq!(read(&body).await.unwrap(), &message(1).body.in_memory().unwrap()[..]);
    assert!(alone.balance().await.unwrap().holds());
    assert!(alone.refused(&RefusedFilter { limit: 10, ..RefusedFilter::default() }).unwrap().is_empty());
    let nowhere = SqliteStore::open_read_only(&store.dir.path().join("bodies")).unwrap_err();
    assert!(matches!(nowhere, OpenError::Missing { .. }));
}

#[tokio::test]
async fn operators_move_legs_and_leave_their_names() {
    let store = Fixture::new(Mode::Inline);
    let _ = store.commit(message(1), vec![leg(1)]).await.unwrap();
    let id = LegId { message: MessageId(1), n: 1 };
    let retarget = Operation::Retarget(Box::new(Replacement {
        target: Mailbox::parse("other@crm.example").unwrap(),
        target_name: None,
        route: "other".into(),
        sender: ReversePath::Null,
        authorship: None,
        state: State::Queued,
        reason: Reason::Operator,
        detail: String::new(),
        due: Some(NOW),
        rules: Vec::new(),
        prefix: b"X-Original-To: bugs@solarmora.com\r\n".to_vec(),
    }));
    use OperateResult::{Done, NotInThisState};
    for (operation, result, state) in [
        (Operation::Release, NotInThisState, State::Queued),
        (Operation::Hold, Done, State::Held),
        (Operation::Retry, NotInThisState, State::Held),
        (Operation::Deny, NotInThisState, State::Held),
        (Operation::Release, Done, State::Queued),
        (retarget, Done, State::Queued),
        (Operation::Reroute { route: "crm".into() }, Done, State::Queued),
        (Operation::Retry, Done, State::Queued),
        (Operation::Drop, Done, State::Discarded),
        (Operation::Hold, NotInThisState, State::Discarded),
    ] {
        let name = operation.as_str();
        let dry = store.operate_on(Filter::leg(id), &operation, true).await;
        let wet = store.operate_on(Filter::leg(id), &operation, false).await;
        assert_eq!(dry[0].result, result, "{name}");
        assert_eq!((wet[0].result, wet[0].leg.state), (result, state), "{name}");
        store.assert_balance().await;
        if name == "retarget" {
            let owned = store.claim("other", NOW, 1).await.unwrap();
            assert_eq!((owned[0].target.as_str(), &owned[0].sender), ("other@crm.example", &ReversePath::Null));
            assert!(owned[0].prefix.starts_with(b"X-Original-To: bugs@"), "its header fields are the new target's");
            store.release(vec![owned[0].id], NOW, GivenBack::Unattempted).await.unwrap();
        }
    }
    let shown = store.message(MessageId(1)).await.unwrap().unwrap();
    let words: Vec<&str> = shown.actions.iter().map(|action| action.operation.as_str()).collect();
    assert_eq!(words, ["hold", "release", "retarget", "reroute", "retry", "drop"]);
    assert_eq!(shown.legs[0].earlier_targets, ["case1@crm.example"]);
    assert_eq!(shown.legs[0].actor.as_deref(), Some("ann"));
    assert!(store.body(MessageId(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_leg_in_flight_is_not_moved_by_an_operator() {
    let store = Fixture::new(Mode::Inline);
    let legs = store.commit(message(1), vec![handed_over(1)]).await.unwrap().take_legs();
    for operation in [Operation::Hold, Operation::Drop, Operation::Bounce, Operation::Retry] {
        let done = store.operate_on(Filter::default(), &operation, false).await;
        assert_eq!(done[0].result, OperateResult::InFlight);
    }
    assert_eq!(store.settle_one(&legs[0], State::Delivered).await, Settled::Done);
}

#[tokio::test]
async fn what_an_outcome_causes_is_written_with_it() {
    let store = Fixture::new(Mode::Inline);
    let legs = store.commit(message(1), vec![handed_over(1)]).await.unwrap().take_legs();
    let mut to = settlement(&legs[0], State::Bounced);
    to.dsn = Some(crate::queue::Dsn::Sent);
    to.follow_ups =
        vec![FollowUp::Message(Box::new(message(2)), vec![leg(1)]), FollowUp::Leg(Box::new(handed_over(9)))];
    assert_eq!(store.settle(vec![to]).await.unwrap(), [Settled::Done]);
    let first = store.message(MessageId(1)).await.unwrap().unwrap();
    assert_eq!(first.legs.iter().map(|leg| leg.id.n).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(first.legs[0].dsn.as_deref(), Some("sent"));
    assert_eq!(store.message(MessageId(2)).await.unwrap().unwrap().cause, Some(legs[0].id));
    assert_eq!(store.claim("crm", NOW, 10).await.unwrap().len(), 2);
    store.assert_balance().await;
}

#[tokio::test]
async fn a_redirected_leg_keeps_its_id_and_lists_both_targets() {
    let store = Fixture::new(Mode::Inline);
    let legs = store.commit(message(1), vec![handed_over(1)]).await.unwrap().take_legs();
    let redirect = FollowUp::Redirect(Box::new(crate::queue::Redirect {
        target: crate::address::Mailbox::parse("fallback@crm.example").unwrap(),
        target_name: None,
        route: "fallback".into(),
        sender: crate::address::ReversePath::Null,
        authorship: None,
        prefix: Some(b"Delivered-To: bugs@solarmora.com\r\n".to_vec()),
    }));
    let to =
        Settlement { due: Some(Timestamp(2_000)), follow_ups: vec![redirect], ..settlement(&legs[0], State::Queued) };
    assert_eq!(store.settle(vec![to]).await.unwrap(), [Settled::Done]);
    let again = store.claim("fallback", NOW, 10).await.unwrap();
    assert_eq!((again[0].id, again[0].target.as_str()), (legs[0].id, "fallback@crm.example"));
    assert!(again[0].prefix.starts_with(b"Delivered-To: bugs@"), "the new target's header fields go with it");
    let row = store.query(Filter::leg(legs[0].id)).await.unwrap().remove(0);
    assert_eq!(row.earlier_targets, ["case1@crm.example"]);
    store.assert_balance().await;
}

#[tokio::test]
async fn only_final_legs_are_swept_and_old_quarantine_ends_with_a_reason() {
    let store = Fixture::new(Mode::Inline);
    for id in 1..=600 {
        let delivered = NewLeg { state: State::Discarded, reason: Reason::Rule, ..leg(1) };
        let _ = store.commit(message(id), vec![delivered]).await.unwrap();
    }
    let waits = NewLeg { state: State::Quarantined, reason: Reason::Spam, due: None, ..leg(1) };
    let _ = store.commit(message(700), vec![waits]).await.unwrap();
    let _ = store.commit(message(701), vec![leg(1)]).await.unwrap();
    let month = Timestamp(1_000).after(30 * DAY);
    for _ in 0..4 {
        store.tidy(month).await.unwrap();
    }
    assert_eq!(store.states().await.len(), 602, "exactly thirty days old is kept");
    for _ in 0..4 {
        store.tidy(Timestamp(month.0 + 1)).await.unwrap();
        store.assert_balance().await;
    }
    assert_eq!(store.states().await, [State::Discarded, State::Queued]);
    let ended = store.query(Filter { message: Some(MessageId(700)), ..Filter::default() }).await.unwrap();
    assert_eq!((ended[0].reason, ended[0].detail.as_str()), (Reason::Expired, "nobody released it within 30 days"));
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn committed(&self, _: Duration, _: usize) {}
    fn due(&self, _: &str) {}
    fn ready(&self, _: bool) {}
    fn quarantine_over(&self, leg: LegId, route: &str) {
        self.0.lock().unwrap().push(format!("{} of message {} by {route}", leg.n, leg.message.0));
    }
}

#[tokio::test]
async fn the_quarantine_counts_from_when_a_leg_entered_it_and_its_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(Heard::default());
    let observer = Arc::clone(&heard) as Arc<dyn Observer>;
    let store = SqliteStore::open(dir.path(), Options { observer, ..options(Mode::Inline) }).unwrap();
    let mut legs = store.commit(message(1), vec![handed_over(1)]).await.unwrap().take_legs();
    // Refused for good after a week of attempts: only then it comes into the quarantine.
    let at = Timestamp(1_000).after(7 * DAY);
    let deferred = Settlement { at: Timestamp(9_000), due: Some(at), ..settlement(&legs[0], State::Queued) };
    assert_eq!(store.settle(vec![deferred]).await.unwrap(), [Settled::Done]);
    let id = legs[0].id;
    let row = || async { store.query(Filter::leg(id)).await.unwrap().remove(0) };
    assert_eq!(row().await.since, Timestamp(1_000), "it was queued all the time");
    legs = store.claim("crm", at, 1).await.unwrap();
    let refused = Settlement { at, due: None, ..settlement(&legs[0], State::Quarantined) };
    assert_eq!(store.settle(vec![refused]).await.unwrap(), [Settled::Done]);
    store.tidy(at.after(30 * DAY)).await.unwrap();
    assert_eq!((row().await.state, row().await.since), (State::Quarantined, at));
    assert!(heard.0.lock().unwrap().is_empty());
    let over = Timestamp(at.after(30 * DAY).0 + 1);
    store.tidy(over).await.unwrap();
    assert_eq!((row().await.state, row().await.since, row().await.ended), (State::Discarded, over, Some(over)));
    assert_eq!(*heard.0.lock().unwrap(), ["1 of message 1 by crm"]);
}

#[tokio::test]
async fn bodies_are_kept_for_redelivery_where_that_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { bodies: DAY, ..options(Mode::Inline).retention };
    let store = SqliteStore::open(dir.path(), Options { retention, ..options(Mode::Inline) }).unwrap();
    let legs = store.commit(message(1), vec![handed_over(1)]).await.unwrap().take_legs();
    let _ = store.settle(vec![settlement(&legs[0], State::Delivered)]).await.unwrap();
    store.tidy(Timestamp(2_000).after(DAY)).await.unwrap();
    assert!(store.body(MessageId(1)).await.unwrap().is_some());
    store.tidy(Timestamp(2_001).after(DAY)).await.unwrap();
    assert!(store.body(MessageId(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn filters_choose_by_every_field() {
    let store = Fixture::new(Mode::Inline);
    let _ = store.commit(message(1), vec![leg(1), leg(2)]).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let all = Filter::default;
    for (filter, expected) in [
        (all(), 2),
        (Filter { limit: 1, ..all() }, 1),
        (Filter { message: Some(MessageId(2)), ..all() }, 0),
        (Filter { n: Some(2), ..all() }, 1),
        (Filter { recipient: text("AIDE@solarmora.com"), ..all() }, 2),
        (Filter { target: text("Case1@crm.example"), ..all() }, 1),
        (Filter { target: text("salesforce"), ..all() }, 2),
        (Filter { route: text("crm"), ..all() }, 2),
        (Filter { route: text("' OR 1 --"), ..all() }, 0),
        (Filter { states: vec![State::Held, State::Queued], ..all() }, 2),
        (Filter { states: vec![State::Delivered], ..all() }, 0),
        (Filter { reason: Some(Reason::Accepted), ..all() }, 2),
        (Filter { sender: text("<client@example.org>"), ..all() }, 2),
        (Filter { sender: text("<>"), ..all() }, 0),
        (Filter { from: text("client <"), ..all() }, 2),
        (Filter { subject: text("BROKEN"), ..all() }, 2),
        (Filter { subject: text("%"), ..all() }, 0),
        (Filter { message_id: text("1@example.org"), ..all() }, 2),
        (Filter { client: text("192.0.2.1"), ..all() }, 2),
        (Filter { since: Some(Timestamp(1_000)), until: Some(Timestamp(1_001)), ..all() }, 2),
        (Filter { since: Some(Timestamp(1_001)), ..all() }, 0),
        (Filter { until: Some(Timestamp(1_000)), ..all() }, 0),
    ] {
        assert_eq!(store.query(filter.clone()).await.unwrap().len(), expected, "{filter:?}");
    }
    assert_eq!(store.oldest().await.unwrap(), [("crm".to_owned(), State::Queued, Timestamp(1_000))]);
}

#[test]
fn the_ledger_costs_the_dequeue_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = schema::open_writer(&dir.path().join("q.db"), "OFF").unwrap();
    let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {}", claim::DUE_LEGS)).unwrap();
    let lines: Vec<String> =
        plan.query_map(rusqlite::params!["crm", 1, 10], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
    assert!(lines[0].contains("leg_open (route=? AND owner=? AND due<?)"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("SCAN") || line.contains("TEMP B-TREE")), "{lines:?}");
}

#[tokio::test]
async fn whatever_happens_the_ledger_balances() {
    for seed in 0..8 {
        let (chance, mut store) = (Chance::seeded(seed), Fixture::new(Mode::Inline));
        let (mut next, mut mine) = (1, Vec::new());
        let states = [State::Queued, State::Held, State::Quarantined, State::Discarded, State::Delivered];
        let key = |n: u64| Some(DedupeKey { hash: [n as u8; 32], window: Duration::from_secs(1) });
        for step in 0..300 {
            let roll = chance.next();
            let state = states[(roll >> 8) as usize % states.len()];
            match roll % 8 {
                0..3 => {
                    let body = store.write_all(if roll & 64 == 0 { 10 } else { 70_000 }).await;
                    let dedupe = if roll & 128 == 0 { key(roll >> 20 & 3) } else { None };
                    let legs = vec![handed_over(1), NewLeg { state, dedupe, ..leg(2) }];
                    let new = NewMessage { body, ..message(next) };
                    mine.extend(store.commit(new, legs).await.unwrap().take_legs());
                    next += 1;
                }
                3 => mine.extend(store.claim("crm", Timestamp(i64::MAX), 2).await.unwrap()),
                4 if !mine.is_empty() => {
                    let leg = mine.swap_remove((roll >> 16) as usize % mine.len());
                    assert_eq!(store.settle_one(&leg, state).await, Settled::Done);
                }
                5 => {
                    let filter = Filter { message: Some(MessageId((roll >> 16) as i64 % next)), ..Filter::default() };
                    let operation = if roll & 32 == 0 { Operation::Release } else { Operation::Drop };
                    let _ = store.operate_on(filter, &operation, false).await;
                }
                6 if step % 5 == 0 => {
                    mine.clear();
                    store.reopen();
                }
                _ => store.tidy(Timestamp(1_000).after(31 * DAY)).await.unwrap(),
            }
            store.assert_balance().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_groups_and_nothing_is_lost() {
    let rounds: i64 = std::env::var("POINTSMAN_STORE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let store = Arc::new(Fixture::new(Mode::Threaded));
    let clock = SystemClock::new();
    let writers = (0..32_i64).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..rounds {
                let body = store.write_all(4096).await;
                let new = NewMessage { body, facts: "x".repeat(300), ..message(1 + round * 32 + writer) };
                let mut queued = store.commit(new, vec![handed_over(1)]).await.unwrap();
                let legs = queued.take_legs();
                assert_eq!(store.settle_one(&legs[0], State::Delivered).await, Settled::Done);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let (messages, took) = (rounds * 32, clock.monotonic());
    println!("{messages} messages committed and settled in {took:?}: {:.0}/s", messages as f64 / took.as_secs_f64());
    store.assert_balance().await;
    assert_eq!(store.balance().await.unwrap().messages, messages);
}

#[tokio::test]
async fn a_queue_of_the_former_format_drains_under_this_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bodies")).unwrap();
    let path = dir.path().join("queue.db");
    Connection::open(&path).unwrap().execute_batch(include_str!("testdata/format-1.sql")).unwrap();
    let mut store = Fixture { store: None, dir, mode: Mode::Inline };
    store.reopen();
    let legs = store.claim("crm", Timestamp(i64::MAX), 10).await.unwrap();
    assert_eq!(legs.len(), 1);
    let (leg, original) = (&legs[0], &message(1).body);
    assert_eq!((leg.attempts, read(&leg.body).await.unwrap()), (1, original.in_memory().unwrap().to_vec()));
    assert!(!store.query(Filter::open()).await.unwrap()[0].authenticated);
    // What went out before is not known to be anybody's: what comes back of it waits.
    let path = ReturnPath { leads: Leads::To(Mailbox::parse("client@example.org").unwrap()), days: 0..=0 };
    assert_eq!(store.originals(vec![path]).await.unwrap(), [None]);
    assert_eq!(store.settle_one(leg, State::Delivered).await, Settled::Done);
    store.assert_balance().await;
    store.reopen();
    assert_eq!(store.states().await, [State::Delivered]);
}

/// A leg under a return path that was made on `day`.
fn leg_under(n: u16, sender: &str, day: u64, id: Option<&PathId>, proof: Proof) -> NewLeg {
    let author = Author { day, sender: Mailbox::parse(sender).unwrap(), id: id.cloned() };
    NewLeg { authorship: Some(Authorship { author, proof }), ..leg(n) }
}

#[tokio::test]
async fn a_return_path_is_good_while_all_that_went_out_under_it_was_the_sender_s() {
    use Proof::{Proven, Unproven, Withheld};
    for (proofs, want) in [
        (&[Proven][..], Some(Proven)),
        (&[Proven, Proven], Some(Proven)),
        (&[Unproven], Some(Unproven)),
        (&[Proven, Unproven], Some(Unproven)),
        (&[Unproven, Proven], Some(Unproven)),
        (&[Withheld], None),
        (&[Withheld, Proven], Some(Proven)),
        (&[Proven, Withheld], Some(Proven)),
        (&[], None),
    ] {
        let store = Fixture::new(Mode::Inline);
        for (id, proof) in (1..).zip(proofs) {
            let legs = vec![leg_under(1, "client@example.org", 0, None, *proof)];
            let _ = store.commit(message(id), legs).await.unwrap();
        }
        let ask = |sender: &str, days| ReturnPath { leads: Leads::To(Mailbox::parse(sender).unwrap()), days };
        let known = store
            .originals(vec![
                ask("Client@EXAMPLE.org", 0..=0),
                ask("client@example.org", 0..=21),
                ask("client@example.org", 1..=1),
                ask("other@example.org", 0..=0),
            ])
            .await
            .unwrap();
        let proofs_known: Vec<_> = known.into_iter().map(|known| known.map(|known| known.proof)).collect();
        assert_eq!(proofs_known, [want, want, None, None], "{proofs:?}");
        store.assert_balance().await;
    }
}

#[tokio::test]
async fn a_sender_who_stands_in_the_ledger_alone_is_found_by_his_id() {
    let srs = Srs::new(Domain::parse("srs.solarmora.com").unwrap(), &[b"tops3cret".to_vec()]).unwrap();
    let sender = Mailbox::parse(&format!("{}@example.org", "x".repeat(50))).unwrap();
    let rewritten = srs.rewrite(&sender, NOW);
    let path = srs.read(&rewritten.path, NOW).unwrap();
    let store = Fixture::new(Mode::Inline);
    assert_eq!(store.originals(vec![path.clone()]).await.unwrap(), [None]);
    for (id, proof) in [(1, Proof::Withheld), (2, Proof::Proven), (3, Proof::Unproven)] {
        let authorship = Some(Authorship { author: rewritten.author.clone(), proof });
        let _ = store.commit(message(id), vec![NewLeg { authorship, ..leg(1) }]).await.unwrap();
        let known = store.originals(vec![path.clone()]).await.unwrap().remove(0).unwrap();
        assert_eq!((known.sender.unwrap().as_str(), known.proof), (sender.as_str(), proof));
    }
}

#[tokio::test]
async fn return_paths_are_kept_for_21_days_and_their_proof_as_long_as_the_ledger() {
    let id = srs_id();
    for (ledger, days, named, stored) in [
        (30, 21, Some(Proof::Proven), Some(Proof::Proven)),
        (30, 22, None, None),
        (7, 7, Some(Proof::Proven), Some(Proof::Proven)),
        (7, 8, None, Some(Proof::Withheld)),
        (7, 21, None, Some(Proof::Withheld)),
        (7, 22, None, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let retention = Retention { ledger: ledger * DAY, bodies: Duration::ZERO, quarantine: 30 * DAY };
        let clock = Arc::new(SettableClock(std::sync::Mutex::new(NOW)));
        let at = |days: u32| NOW.after(days * DAY);
        let open = || Options { retention, clock: clock.clone(), ..options(Mode::Inline) };
        let store = SqliteStore::open(dir.path(), open()).unwrap();
        let proof = Proof::Proven;
        let legs =
            vec![leg_under(1, "a@example.org", 0, None, proof), leg_under(2, "b@example.org", 0, Some(&id), proof)];
        let _ = store.commit(message(1), legs).await.unwrap();
        *clock.0.lock().unwrap() = at(days);
        let paths = || {
            let named = Leads::To(Mailbox::parse("a@example.org").unwrap());
            [named, Leads::Stored(id.clone())].map(|leads| ReturnPath { leads, days: 0..=0 }).to_vec()
        };
        let proofs =
            |known: Vec<Option<Original>>| known.into_iter().map(|known| known.map(|k| k.proof)).collect::<Vec<_>>();
        store.tidy(at(days)).await.unwrap();
        let known = proofs(store.originals(paths()).await.unwrap());
        assert_eq!(known, [named, stored], "a ledger of {ledger} days after {days}");
    }
}

fn srs_id() -> PathId {
    let srs = Srs::new(Domain::parse("srs.solarmora.com").unwrap(), &[b"tops3cret".to_vec()]).unwrap();
    let sender = Mailbox::parse(&format!("{}@example.org", "x".repeat(50))).unwrap();
    srs.rewrite(&sender, NOW).author.id.unwrap()
}

/// A wall clock that a test turns.
struct SettableClock(std::sync::Mutex<Timestamp>);

impl Clock for SettableClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}
