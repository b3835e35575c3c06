//! The signals that ask a command to end: what it has begun is put in order first.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, Failure};

/// Listens for SIGINT, SIGTERM and SIGHUP.
pub(super) struct Interrupts {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Interrupts {
    /// Listens from now on, also while nobody waits: a signal is kept for [`Self::next`].
    ///
    /// # Errors
    /// When the runtime cannot listen.
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::Host, error));
        Ok(Self {
            int: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
            hup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them, and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
            _ = self.hup.recv() => "SIGHUP",
        }
    }

    /// Waits for Ctrl-C alone.
    pub(super) async fn ctrl_c(&mut self) {
        self.int.recv().await;
    }
}

/// What a command that was interrupted ends with.
pub(super) fn interrupted(signal: &str) -> Failure {
    let error = io::Error::new(io::ErrorKind::Interrupted, format!("interrupted by {signal}"));
    Failure::new(Exit::Interrupted, error)
}
