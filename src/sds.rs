//! The secret discovery service: the only opening between the vault and the proxy.
//!
//! It answers over a Unix socket, to processes of allowed users, in both flavours of the protocol
//! (Istio `security/pkg/nodeagent/sds` has one). Before the first identity exists a request waits.

mod files;
mod flavour;
mod name;
mod server;
mod session;
mod source;

use std::sync::atomic::{AtomicU64, Ordering};

pub use files::{Files, FilesConfig};
pub use name::SecretName;
pub use server::{Config, serve};

/// What was served since the start.
#[derive(Debug, Default)]
pub struct Counters {
    streams: AtomicU64,
    pushes: AtomicU64,
    rejected: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Streams that were opened.
    pub streams: u64,
    /// Secrets that were sent.
    pub pushes: u64,
    /// Responses that the proxy refused.
    pub rejected: u64,
}

impl Counters {
    /// The counters now.
    #[must_use]
    pub fn snapshot(&self) -> Counts {
        Counts {
            streams: self.streams.load(Ordering::Relaxed),
            pushes: self.pushes.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
        }
    }

    fn add_stream(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    fn add_pushes(&self, count: usize) {
        self.pushes.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn add_rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
