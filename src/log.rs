//! Where log lines go: to standard output, by a thread of their own.
//!
//! A line is two things to a mail server: wanted, and never worth a delay. So lines gather in memory and are written
//! together, some twenty times a second; a reader that stands still costs lines, which are counted, not mail. What was
//! not written yet is lost with the process, which is why the ledger, and not the log, is the record of mail.
//! (A queue that wakes its writer for each line cost 15 µs a message, a tenth of all the work.)

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Text,
}

/// Sends the process's log to standard output. `RUST_LOG` chooses what is logged; `info` unless it is set. Call it once.
/// What is left is written when the guard is dropped.
pub fn install(format: Format) -> io::Result<Guard> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let (lines, guard) = Lines::start(io::stdout())?;
    let (layer, handle) = reload::Layer::new(layer(format, lines.clone()));
    tracing_subscriber::registry().with(filter).with(layer).init();
    // A second call has panicked in `init`.
    let _ = INSTALLED.set(Installed { lines, handle });
    Ok(guard)
}

/// Lines look like this from now on, where [`install`] was called.
pub fn set_format(format: Format) {
    if let Some(Installed { lines, handle }) = INSTALLED.get() {
        // It fails without a subscriber only, and there is one.
        let _ = handle.reload(layer(format, lines.clone()));
    }
}

type Filtered = Layered<EnvFilter, Registry>;
type Formatted = Box<dyn Layer<Filtered> + Send + Sync>;

struct Installed {
    lines: Lines,
    handle: reload::Handle<Formatted, Filtered>,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

fn layer(format: Format, lines: Lines) -> Formatted {
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_target(false);
    match format {
        Format::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        Format::Text => layer.with_ansi(false).boxed(),
    }
}

/// The end of the log that lines are put into.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// Rings when the log ends, or has grown long.
    bell: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// Lines that found no room since the last writing.
    dropped: u64,
    ended: bool,
}

impl Lines {
    /// Starts a thread that writes to `out`.
    fn start(out: impl Write + Send + 'static) -> io::Result<(Lines, Guard)> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), bell: Condvar::new() });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || write_out(&for_thread, out))?;
        Ok((Lines(Arc::clone(&shared)), Guard { shared, thread: Some(thread) }))
    }
}

fn write_out(shared: &Shared, mut out: impl Write) {
    let mut text = Vec::new();
    loop {
        let (dropped, ended) = {
            let waiting = shared.waiting.lock().expect(NO_PANIC);
            let quiet = |waiting: &mut Waiting| !waiting.ended && waiting.text.len() < WRITE_EARLY;
            let (mut waiting, _) = shared.bell.wait_timeout_while(waiting, GATHER, quiet).expect(NO_PANIC);
            text.clear();
            std::mem::swap(&mut text, &mut waiting.text);
            (std::mem::take(&mut waiting.dropped), waiting.ended)
        };
        if dropped > 0 {
            text.extend_from_slice(format!("{{\"event\":\"log-lines-dropped\",\"lines\":{dropped}}}\n").as_bytes());
        }
        // Nobody may be reading any more; mail goes on.
        let _ = out.write_all(&text).and_then(|()| out.flush());
        if ended {
            return;
        }
        text.shrink_to(WRITE_EARLY);
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> &'a Lines {
        self
    }
}

/// Takes one whole line at each call, as the formatter writes them.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.waiting.lock().expect(NO_PANIC);
        if waiting.text.len() + line.len() > WAITING_MAX {
            waiting.dropped += 1;
            return Ok(line.len());
        }
        let was_short = waiting.text.len() < WRITE_EARLY;
        waiting.text.extend_from_slice(line);
        if was_short && waiting.text.len() >= WRITE_EARLY {
            self.0.bell.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the log; dropped, it writes what is left.
pub struct Guard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.waiting.lock().expect(NO_PANIC).ended = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was about the log alone.
            let _ = thread.join();
        }
    }
}

const NO_PANIC: &str = "no code panics while it holds this lock";
/// People who watch a log see no delay under a tenth of a second.
const GATHER: Duration = Duration::from_millis(50);
/// A write of this size costs no more for each line than a larger one.
const WRITE_EARLY: usize = 64 * 1024;
/// Some 20,000 messages' worth: a reader that stands still for longer loses lines.
const WAITING_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_logged_is_written_at_the_end_in_order() {
        let sink = Sink::default();
        let (lines, guard) = Lines::start(sink.clone()).unwrap();
        (0..1000).for_each(|n| (&lines).write_all(format!("{n}\n").as_bytes()).unwrap());
        drop(guard);
        let wanted: String = (0..1000).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(sink.0.lock().unwrap().clone()).unwrap(), wanted);
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_says_so() {
        let sink = Sink::default();
        let stuck = sink.0.lock().unwrap();
        let (lines, guard) = Lines::start(sink.clone()).unwrap();
        let line = [b'x'; 1024];
        // The writer may hold one swapped-out buffer besides what waits.
        (0..3 * WAITING_MAX / line.len()).for_each(|_| (&lines).write_all(&line).unwrap());
        drop(stuck);
        drop(guard);
        let written = sink.0.lock().unwrap().clone();
        assert!(written.len() <= 2 * WAITING_MAX + 1024);
        assert!(String::from_utf8_lossy(&written).contains("log-lines-dropped"));
    }
}
