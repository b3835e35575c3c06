//! The daemon's log writer: lines wait in a bounded queue for a thread of their own, so that a reader
//! that is slow or stuck costs lines and never holds up the agent.

use std::io;
use std::sync::OnceLock;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// A writer to standard error, and what writes the rest of its lines when it is dropped. The first one
/// counts in [`dropped_lines`].
pub fn writer() -> (NonBlocking, WorkerGuard) {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    // Only tests make a second one.
    drop(DROPPED.set(writer.error_counter()));
    (writer, guard)
}

/// How many lines were dropped so far, as the queue was full.
#[must_use]
pub fn dropped_lines() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
/// Some seconds of a busy log; a line has at most a few kilobytes.
const QUEUE: usize = 4096;
