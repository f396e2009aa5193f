//! Message bodies: small ones in memory, later in their table; large ones in a file that is written while they arrive.
//!
//! A body is on the way (a [`BodyWriter`]), then at rest (a [`StoredBody`], cheap to clone), then read as often as
//! needed (a [`BodyReader`]). A file is synced, and its directory, before `finish` returns; it is unlinked when the
//! last clone goes, unless a commit has made the store its owner. What is read back from a disk is hashed on the
//! way, and the reader fails at the end rather than let a damaged body pass for whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_lc_rs::digest;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::id::MessageId;
use crate::queue::budget::{Budget, Permit};
use crate::queue::{Answer, StoreError};

/// Where a message's original bytes are.
#[derive(Clone, Debug)]
pub struct StoredBody {
    len: u64,
    sha256: [u8; 32],
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Memory { bytes: Bytes, _permit: Option<Arc<Permit>> },
    File(Arc<BodyFile>),
    Row { id: MessageId, rows: Arc<dyn BodyRows> },
}

/// The store's own table of small bodies.
pub trait BodyRows: Send + Sync + std::fmt::Debug {
    /// The whole body, at most [`IN_MEMORY_MAX`] bytes.
    fn load(&self, id: MessageId) -> Answer<'_, Bytes>;
}

/// A body's file. Dropped before the store owns it, it is unlinked.
#[derive(Debug)]
pub struct BodyFile {
    path: PathBuf,
    /// `<shard>/<name>`, as the table says it.
    name: String,
    owned_by_store: AtomicBool,
}

/// What a store must write to keep a body.
#[derive(Debug)]
pub enum Keep<'a> {
    Bytes(&'a [u8]),
    File(&'a BodyFile),
    /// It stands in the table already.
    Row,
}

impl StoredBody {
    /// A body that we made ourselves: a notification, a test's message. No budget counts it.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Bytes>) -> StoredBody {
        let bytes = bytes.into();
        StoredBody {
            len: bytes.len() as u64,
            sha256: to_array(&digest::digest(&digest::SHA256, &bytes)),
            place: Place::Memory { bytes, _permit: None },
        }
    }

    pub(crate) fn in_row(id: MessageId, len: u64, sha256: [u8; 32], rows: Arc<dyn BodyRows>) -> StoredBody {
        StoredBody { len, sha256, place: Place::Row { id, rows } }
    }

    pub(crate) fn in_file(path: PathBuf, name: String, len: u64, sha256: [u8; 32]) -> StoredBody {
        let file = BodyFile { path, name, owned_by_store: AtomicBool::new(true) };
        StoredBody { len, sha256, place: Place::File(Arc::new(file)) }
    }

    /// Octets.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The SHA-256 of all its octets.
    #[must_use]
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The whole body where it stands in memory: nothing needs to be awaited then.
    #[must_use]
    pub fn in_memory(&self) -> Option<&Bytes> {
        match &self.place {
            Place::Memory { bytes, .. } => Some(bytes),
            Place::File(_) | Place::Row { .. } => None,
        }
    }

    /// Whether it ends in CRLF, as whatever came by DATA does. Nothing is verified: that is a [`BodyReader`]'s.
    pub async fn ends_line(&self) -> Result<bool, StoreError> {
        if self.len < 2 {
            return Ok(self.is_empty());
        }
        let end = match &self.place {
            Place::Memory { bytes, .. } => bytes.clone(),
            Place::Row { id, rows } => rows.load(*id).await?,
            Place::File(body) => {
                let (path, at) = (body.path.clone(), self.len - 2);
                let read = tokio::task::spawn_blocking(move || read_chunk(None, &path, at, 2)).await;
                read.map_err(|_| StoreError::Closed)??.1
            }
        };
        Ok(end.ends_with(b"\r\n"))
    }

    pub(crate) fn keep(&self) -> Keep<'_> {
        match &self.place {
            Place::Memory { bytes, .. } => Keep::Bytes(bytes),
            Place::File(file) => Keep::File(file),
            Place::Row { .. } => Keep::Row,
        }
    }
}

impl BodyFile {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// From here on only the store unlinks it.
    pub(crate) fn leave_to_store(&self) {
        self.owned_by_store.store(true, Ordering::Relaxed);
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if !self.owned_by_store.load(Ordering::Relaxed) {
            // What cannot be unlinked now has no row: the next start sweeps it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The ground that bodies are written on: a directory of shards and the budget for those in memory.
#[derive(Debug)]
pub struct Bodies {
    dir: PathBuf,
    budget: Budget,
    /// Names begin with it, so that no two starts of the daemon give the same one.
    epoch: u64,
    next: AtomicU64,
    /// Disk work is done by the calling task, for a store that lives on a virtual clock.
    inline: bool,
}

impl Bodies {
    pub(crate) fn new(dir: PathBuf, budget: Budget, epoch: u64, inline: bool) -> Bodies {
        Bodies { dir, budget, epoch, next: AtomicU64::new(0), inline }
    }

    /// Begins a body.
    #[must_use]
    pub fn writer(self: &Arc<Self>) -> BodyWriter {
        BodyWriter {
            ground: Arc::clone(self),
            hash: digest::Context::new(&digest::SHA256),
            len: 0,
            buffer: Vec::new(),
            permit: None,
            spill: None,
        }
    }

    fn create(&self) -> io::Result<(File, BodyFile)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:02x}/{}-{number}", number % SHARDS, self.epoch);
        let path = self.dir.join(&name);
        let file = File::create_new(&path)?;
        Ok((file, BodyFile { path, name, owned_by_store: AtomicBool::new(false) }))
    }
}

/// A body that arrives. Memory: 64 KiB where the budget allows, else two chunks of 128 KiB and a file.
pub struct BodyWriter {
    ground: Arc<Bodies>,
    hash: digest::Context,
    len: u64,
    buffer: Vec<u8>,
    permit: Option<Permit>,
    spill: Option<Spill>,
}

struct Spill {
    file: Arc<File>,
    body: BodyFile,
    /// The chunk that is being written; it comes back empty, to be filled again.
    writing: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl BodyWriter {
    /// Octets so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What has arrived so far, as long as it stands in memory whole.
    #[must_use]
    pub fn in_memory(&self) -> Option<&[u8]> {
        if self.spill.is_none() { Some(&self.buffer) } else { None }
    }

    /// Appends `data`. After an error the body is lost: drop the writer.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<(), StoreError> {
        self.hash.update(data);
        self.len += data.len() as u64;
        if self.spill.is_none() {
            if self.fits_in_memory(data.len()) {
                self.buffer.extend_from_slice(data);
                return Ok(());
            }
            self.start_file().await?;
        }
        while !data.is_empty() {
            let room = CHUNK.saturating_sub(self.buffer.len());
            let (now, later) = data.split_at(room.min(data.len()));
            self.buffer.extend_from_slice(now);
            data = later;
            if self.buffer.len() >= CHUNK {
                self.write_chunk().await?;
            }
        }
        Ok(())
    }

    /// Ends the body. Where it went to a file, the file and its directory entry are on disk when this returns.
    pub async fn finish(mut self) -> Result<StoredBody, StoreError> {
        let place = if self.spill.is_some() {
            self.finish_file().await?
        } else {
            let bytes = Bytes::from(std::mem::take(&mut self.buffer));
            Place::Memory { bytes, _permit: self.permit.take().map(Arc::new) }
        };
        Ok(StoredBody { len: self.len, sha256: to_array(&self.hash.finish()), place })
    }

    /// Makes room for `more` bytes in memory, and says whether that is allowed. Room doubles, and is paid for first.
    fn fits_in_memory(&mut self, more: usize) -> bool {
        let need = self.buffer.len() + more;
        if need > IN_MEMORY_MAX {
            return false;
        }
        let held = self.permit.as_ref().map_or(0, Permit::bytes);
        if need <= held {
            return true;
        }
        let wanted = need.next_power_of_two().clamp(IN_MEMORY_MIN, IN_MEMORY_MAX);
        let granted = match &mut self.permit {
            Some(permit) => self.ground.budget.try_grow(permit, wanted - held),
            None => {
                self.permit = self.ground.budget.try_take(wanted);
                self.permit.is_some()
            }
        };
        if granted {
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
        granted
    }

    async fn start_file(&mut self) -> Result<(), StoreError> {
        let ground = Arc::clone(&self.ground);
        let (file, body) = on_disk(self.ground.inline, move || ground.create()).await?;
        self.spill = Some(Spill { file: Arc::new(file), body, writing: None });
        self.permit = None;
        Ok(())
    }

    /// Sends the full buffer on its way, once the one before it has arrived.
    async fn write_chunk(&mut self) -> Result<(), StoreError> {
        let Some(spill) = &mut self.spill else { return Ok(()) };
        let empty = spill.settle().await?;
        let full = std::mem::replace(&mut self.buffer, empty);
        let file = Arc::clone(&spill.file);
        let write = move || {
            (&*file).write_all(&full)?;
            let mut full = full;
            full.clear();
            Ok(full)
        };
        if self.ground.inline {
            self.buffer = write().map_err(|error| fault(&error))?;
        } else {
            spill.writing = Some(tokio::task::spawn_blocking(write));
        }
        Ok(())
    }

    async fn finish_file(&mut self) -> Result<Place, StoreError> {
        self.write_chunk().await?;
        let mut spill = self.spill.take().expect("only called with a file");
        spill.settle().await?;
        let Spill { file, body, .. } = spill;
        on_disk(self.ground.inline, move || {
            file.sync_all()?;
            // Without its directory entry on disk the synced file is lost in a power cut.
            let dir = body.path.parent().unwrap_or(Path::new("/"));
            File::open(dir)?.sync_all()?;
            Ok(Place::File(Arc::new(body)))
        })
        .await
    }
}

impl Spill {
    /// Waits for the chunk on its way and gives back its emptied buffer.
    async fn settle(&mut self) -> Result<Vec<u8>, StoreError> {
        match self.writing.take() {
            Some(writing) => writing.await.map_err(|_| StoreError::Closed)?.map_err(|error| fault(&error)),
            None => Ok(Vec::new()),
        }
    }
}

/// A body read in order, without the ranges that are cut out.
pub struct BodyReader {
    body: StoredBody,
    cuts: Vec<Range<u64>>,
    /// The next cut that is not behind us.
    cut: usize,
    at: u64,
    chunk: Bytes,
    chunk_start: u64,
    file: Option<Arc<File>>,
    /// Hashes what comes from a disk; `None` for bytes that never left memory.
    hash: Option<digest::Context>,
}

impl BodyReader {
    /// Reads `body` without `cuts`, which are ascending and disjoint.
    #[must_use]
    pub fn new(body: &StoredBody, cuts: &[Range<u64>]) -> BodyReader {
        let hash = body.in_memory().is_none().then(|| digest::Context::new(&digest::SHA256));
        BodyReader {
            body: body.clone(),
            cuts: cuts.to_vec(),
            cut: 0,
            at: 0,
            chunk: Bytes::new(),
            chunk_start: 0,
            file: None,
            hash,
        }
    }

    /// The next piece, at most 128 KiB where it comes from a file; `None` at the end, and only if all that was read
    /// is what was once stored.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.at < self.body.len {
            let chunk_end = self.chunk_start + self.chunk.len() as u64;
            if self.at >= chunk_end {
                self.load().await?;
                continue;
            }
            let cut = self.cuts.get(self.cut).cloned().unwrap_or(u64::MAX..u64::MAX);
            if self.at >= cut.end {
                self.cut += 1;
                continue;
            }
            if self.at >= cut.start {
                self.at = cut.end.min(chunk_end);
                continue;
            }
            let end = cut.start.min(chunk_end);
            let piece = self.chunk.slice(self.offset(self.at)..self.offset(end));
            self.at = end;
            return Ok(Some(piece));
        }
        match self.hash.take().map(digest::Context::finish) {
            Some(hash) if to_array(&hash) != self.body.sha256 => Err(damaged("its SHA-256 is not the stored one")),
            Some(_) | None => Ok(None),
        }
    }

    fn offset(&self, at: u64) -> usize {
        usize::try_from(at - self.chunk_start).expect("a chunk is shorter than memory")
    }

    /// Replaces the chunk by the one that begins at `at`.
    async fn load(&mut self) -> Result<(), StoreError> {
        self.chunk = match &self.body.place {
            Place::Memory { bytes, .. } => bytes.clone(),
            Place::Row { id, rows } => {
                let bytes = rows.load(*id).await?;
                if bytes.len() as u64 != self.body.len {
                    return Err(damaged("its row has another length"));
                }
                bytes
            }
            Place::File(body) => {
                let (path, at) = (body.path.clone(), self.at);
                let wanted = usize::try_from(self.body.len - at).unwrap_or(CHUNK).min(CHUNK);
                let open = self.file.clone();
                let read = tokio::task::spawn_blocking(move || read_chunk(open, &path, at, wanted)).await;
                let (file, chunk) = read.map_err(|_| StoreError::Closed)??;
                self.file = Some(file);
                chunk
            }
        };
        self.chunk_start = self.at;
        if let Some(hash) = &mut self.hash {
            hash.update(&self.chunk);
        }
        Ok(())
    }
}

fn read_chunk(open: Option<Arc<File>>, path: &Path, at: u64, wanted: usize) -> Result<(Arc<File>, Bytes), StoreError> {
    let read = || {
        let file = match open {
            Some(file) => file,
            None => Arc::new(File::open(path)?),
        };
        let mut chunk = vec![0; wanted];
        file.read_exact_at(&mut chunk, at)?;
        Ok((file, Bytes::from(chunk)))
    };
    read().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => damaged("its file is missing"),
        io::ErrorKind::UnexpectedEof => damaged("its file is cut short"),
        // EMFILE and the like pass; EIO comes back at every attempt, which `trace` shows.
        _ => StoreError::Read(format!("{}: {error}", path.display()).into()),
    })
}

/// Runs disk work where it does not block the async threads.
async fn on_disk<T: Send + 'static>(
    inline: bool,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = if inline { work() } else { tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)? };
    done.map_err(|error| fault(&error))
}

pub(crate) fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.into())
}

fn fault(error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Write(format!("body file: {error}").into()),
    }
}

fn to_array(digest: &digest::Digest) -> [u8; 32] {
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Bodies up to this size stand in memory and in their table: SQLite is as fast as files up to about here.
pub const IN_MEMORY_MAX: usize = 64 * 1024;
/// Bodies in memory, over all sessions and hand-overs.
pub const IN_MEMORY_TOTAL: usize = 64 * 1024 * 1024;
/// Directories that body files are spread over, so that none grows large and their syncs do not queue for one.
pub const SHARDS: u64 = 64;
// Most mail has at least this size; less would only mean more doublings.
const IN_MEMORY_MIN: usize = 4096;
// Two of them per large message on its way: 200 at a time take 50 MiB.
const CHUNK: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(budget: usize) -> (tempfile::TempDir, Arc<Bodies>) {
        let dir = tempfile::tempdir().unwrap();
        for shard in 0..SHARDS {
            fs::create_dir(dir.path().join(format!("{shard:02x}"))).unwrap();
        }
        let bodies = Bodies::new(dir.path().to_owned(), Budget::new(budget), 1, false);
        (dir, Arc::new(bodies))
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().map(|shard| fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
    }

    async fn write(bodies: &Arc<Bodies>, bytes: &[u8], step: usize) -> StoredBody {
        let mut writer = bodies.writer();
        for piece in bytes.chunks(step) {
            writer.write(piece).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    async fn read(body: &StoredBody, cuts: &[Range<u64>]) -> Result<Vec<u8>, StoreError> {
        let mut reader = BodyReader::new(body, cuts);
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await? {
            assert!(!piece.is_empty());
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn a_body_of_64_kib_stays_in_memory_and_one_more_byte_makes_a_file() {
        let (dir, bodies) = ground(IN_MEMORY_TOTAL);
        for (len, expected) in [(0, 0), (1, 0), (IN_MEMORY_MAX, 0), (IN_MEMORY_MAX + 1, 1), (3 * CHUNK, 1)] {
            let bytes = sample(len);
            for step in [1000, 64 * 1024, 1024 * 1024] {
                let body = write(&bodies, &bytes, step).await;
                assert_eq!(files(dir.path()), expected, "{len}");
                assert_eq!(body.len(), len as u64);
                assert_eq!(body.sha256(), StoredBody::from_bytes(bytes.clone()).sha256());
                assert_eq!(read(&body, &[]).await.unwrap(), bytes);
            }
        }
        assert_eq!(files(dir.path()), 0, "a body that nobody committed leaves no file");
        assert_eq!(bodies.budget.free(), IN_MEMORY_TOTAL);
    }

    #[tokio::test]
    async fn without_budget_a_small_body_goes_to_a_file() {
        let (dir, bodies) = ground(8192);
        let first = write(&bodies, &sample(5000), 5000).await;
        let second = write(&bodies, &sample(5000), 500).await;
        assert_eq!(files(dir.path()), 1);
        assert_eq!(read(&second, &[]).await.unwrap(), sample(5000));
        drop(first);
        assert_eq!(bodies.budget.free(), 8192);
    }

    #[tokio::test]
    async fn an_aborted_body_leaves_no_file() {
        let (dir, bodies) = ground(0);
        let mut writer = bodies.writer();
        writer.write(&sample(300_000)).await.unwrap();
        assert_eq!(files(dir.path()), 1);
        drop(writer);
        assert_eq!(files(dir.path()), 0);
    }

    #[expect(clippy::single_range_in_vec_init, reason = "lists of cuts, some of which have one")]
    #[tokio::test]
    async fn cuts_are_left_out_wherever_they_lie() {
        let (_dir, bodies) = ground(IN_MEMORY_TOTAL);
        let chunk = CHUNK as u64;
        for len in [1000, 2 * CHUNK + 10] {
            let (bytes, end) = (sample(len), len as u64);
            let body = write(&bodies, &bytes, len).await;
            for cuts in [
                vec![0..10],
                vec![0..end],
                vec![end - 1..end],
                vec![5..5],
                vec![1..2, 2..3, 900..1000],
                vec![chunk - 1..chunk + 1],
                vec![10..2 * chunk + 5],
            ] {
                let kept = |i: u64| !cuts.iter().any(|cut| cut.contains(&i));
                let expected: Vec<u8> = (0..end).filter(|&i| kept(i)).map(|i| bytes[i as usize]).collect();
                assert_eq!(read(&body, &cuts).await.unwrap(), expected, "{len} {cuts:?}");
            }
        }
    }

    #[tokio::test]
    async fn short_missing_and_flipped_files_are_damage() {
        let (_dir, bodies) = ground(0);
        let body = write(&bodies, &sample(300_000), 4096).await;
        let Place::File(file) = &body.place else { panic!("not a file") };
        let path = file.path.clone();
        let mut bytes = fs::read(&path).unwrap();
        bytes[150_000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(read(&body, &[]).await, Err(StoreError::Damaged(_))));
        fs::write(&path, &bytes[..200_000]).unwrap();
        assert!(matches!(read(&body, &[]).await, Err(StoreError::Damaged(_))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(read(&body, &[]).await, Err(StoreError::Damaged(_))));
    }
}
