//! Writes log lines on a thread of its own, so that no thread that serves ever waits for the reader of the log.
//!
//! Any thread appends a line to a queue under a short lock; the log thread swaps the queue for an empty one and
//! writes it. A reader that exists and does not read (a full disk under the journal, a stuck container log driver,
//! Ctrl-S) blocks the log thread alone. Lines that find no room are counted and dropped, and the loss is logged
//! once there is room again.
//!
//! Bounds: the queue holds at most [`LOG_QUEUE_BYTES`], and as much again is being written; [`flush`] waits at most
//! [`LOG_FLUSH_MAX`]. Tested with pipes that nobody reads in `tests/e2e_stuck.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::Limited;
use crate::config::journal_stream;
use crate::limits::{LOG_FLUSH_MAX, LOG_QUEUE_BYTES};

/// Lines on their way to standard output.
static QUEUE: Queue = Queue {
    state: Mutex::new(State { waiting: Vec::new(), writing: false, dropped: 0, started: false }),
    changed: Condvar::new(),
    lost: AtomicU64::new(0),
};

/// Whether standard output is the journal, which reads a priority at the beginning of each line.
static IS_JOURNAL: AtomicBool = AtomicBool::new(false);

struct Queue {
    state: Mutex<State>,
    /// Notified when a line is appended and when the log thread has written everything.
    changed: Condvar,
    /// Lines that were dropped or could not be written, since the start.
    lost: AtomicU64,
}

struct State {
    waiting: Vec<u8>,
    /// The log thread is writing what it took.
    writing: bool,
    /// Lines dropped since the loss was logged.
    dropped: u64,
    started: bool,
}

/// Lines of the log that were lost since the start.
pub fn lines_lost() -> u64 {
    QUEUE.lost.load(Relaxed)
}

/// Starts the log thread. Without it (no thread can be made) every line is written by the thread that logs.
pub(super) fn start() {
    IS_JOURNAL.store(is_journal(io::stdout().as_fd()), Relaxed);
    let thread = std::thread::Builder::new().name("log".into()).spawn(|| QUEUE.run());
    QUEUE.lock().started = thread.is_ok();
}

/// Waits until everything logged so far is written, at most [`LOG_FLUSH_MAX`].
pub fn flush() {
    let deadline = Instant::now() + LOG_FLUSH_MAX;
    let mut state = QUEUE.lock();
    while state.started && (state.writing || !state.waiting.is_empty() || state.dropped > 0) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        state = QUEUE.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Puts text among the lines of the log as it stands.
pub fn print(text: &str) {
    QUEUE.push(text.as_bytes());
}

/// Writes last words to standard error, waiting at most [`LOG_FLUSH_MAX`] for its reader.
pub fn last_words(lines: &[String]) {
    let mark = if is_journal(io::stderr().as_fd()) { mark(Level::ERROR) } else { "" };
    let text: String = lines.iter().map(|line| format!("{mark}tidegate: {line}\n")).collect();
    let (done, written) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("last-words".into()).spawn(move || {
        // Without a reader there is nobody to tell.
        let _ = write_all(io::stderr().as_fd(), text.as_bytes());
        let _ = done.send(());
    });
    if thread.is_ok() {
        let _ = written.recv_timeout(LOG_FLUSH_MAX);
    }
}

/// Whether `JOURNAL_STREAM` names that very file (systemd.exec(5)): an inherited variable may be about another.
fn is_journal(fd: BorrowedFd<'_>) -> bool {
    let Some(named) = journal_stream() else { return false };
    let Ok(fd) = fd.try_clone_to_owned() else { return false };
    std::fs::File::from(fd).metadata().is_ok_and(|file| (file.dev(), file.ino()) == named)
}

/// The priority of a line as the journal reads it (sd-daemon(3)).
fn mark(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// Standard output, for lines of one level.
pub(super) struct Lines(Level);

/// Makes a writer for each event, by its level.
pub(super) struct Output;

impl<'a> MakeWriter<'a> for Output {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        Lines(Level::INFO)
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Lines {
        Lines(*event.level())
    }
}

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if IS_JOURNAL.load(Relaxed) {
            QUEUE.push(&marked(mark(self.0), line));
        } else {
            QUEUE.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of an event with that mark before each: the journal takes every line for an entry.
fn marked(mark: &str, event: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(event.len() + mark.len());
    for line in event.split_inclusive(|byte| *byte == b'\n') {
        out.extend_from_slice(mark.as_bytes());
        out.extend_from_slice(line);
    }
    out
}

impl Queue {
    // Nothing in here can panic while it holds the lock, so a poisoned queue is a whole queue.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if !state.started {
            drop(state);
            return self.write(line);
        }
        if state.waiting.len() + line.len() > LOG_QUEUE_BYTES {
            state.dropped += 1;
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// The log thread.
    fn run(&self) {
        let mut lines = Vec::new();
        loop {
            let dropped = {
                let mut state = self.lock();
                state.writing = false;
                self.changed.notify_all();
                while state.waiting.is_empty() {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::swap(&mut state.waiting, &mut lines);
                state.writing = true;
                std::mem::take(&mut state.dropped)
            };
            self.write(&lines);
            lines.clear();
            lines.shrink_to(4096);
            if dropped > 0 {
                tracing::warn!("{dropped} lines of the log were lost: its reader did not keep up");
            }
        }
    }

    fn write(&self, lines: &[u8]) {
        static FAILED: Limited = Limited::every(Duration::from_secs(60));
        let Err((error, written)) = write_all(io::stdout().as_fd(), lines) else { return };
        let rest = lines.get(written..).unwrap_or_default();
        let count = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
        let before = self.lost.fetch_add(count, Relaxed);
        if FAILED.allow().is_some() {
            let mark = if is_journal(io::stderr().as_fd()) { mark(Level::ERROR) } else { "" };
            let text =
                format!("{mark}tidegate: the log cannot be written ({error}); lines lost before: {before}\n");
            // That may be gone as well; then there is nobody to tell.
            let _ = write_all(io::stderr().as_fd(), text.as_bytes());
        }
    }
}

/// Writes everything, waiting where the file does not block by itself. An error comes with the bytes written.
fn write_all(file: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match rustix::io::write(file, rest).map_err(io::Error::from) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares the terminal or pipe may have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&file, PollFlags::OUT)], None);
            }
            Err(error) => return Err((error, written)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_an_event_gets_the_mark() {
        assert_eq!(marked(mark(Level::WARN), b"one\ntwo\n"), b"<4>one\n<4>two\n");
        assert_eq!(marked(mark(Level::TRACE), b"one"), b"<7>one");
    }
}
