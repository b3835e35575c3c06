//! The vault: the only place where a private key rests. It opens no socket.

mod export;
mod persist;
mod rotation;
mod schedule;
mod vault;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub use rotation::renew;
pub use vault::Vault;

use crate::base::clock;
use crate::base::trouble::Trouble;
use crate::identity::{KeyAlgorithm, SpiffeId};

/// What the vault keeps, where, and when it is renewed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ours; a certificate for anybody else is refused.
    pub id: SpiffeId,
    /// Where the last good identity is kept (mode 0700).
    pub state_directory: PathBuf,
    /// PEM roots that a certificate must lead to. Read again for every candidate.
    pub root_cert: PathBuf,
    /// The kind of key to make.
    pub key_algorithm: KeyAlgorithm,
    /// The lifetime to ask for.
    pub ttl: Duration,
    /// The share of its life after which a certificate is renewed, 0 to 1.
    pub renew_at: f64,
    /// The largest random change of that share, to either side.
    pub jitter: f64,
    /// Where key, chain and roots are written for other programs.
    pub export_directory: Option<PathBuf>,
}

/// What the renewal loop does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RenewalPhase {
    /// A request is on its way.
    #[default]
    Requesting,
    /// The last request failed.
    Retrying,
    /// The certificate is fresh.
    Waiting,
}

/// The renewal loop's report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RenewalState {
    /// What it does now.
    pub phase: RenewalPhase,
    /// Certificates that were issued and believed.
    pub issued: u64,
    /// Requests.
    pub attempts: u64,
    /// Requests that failed, and answers that were refused.
    pub failures: u64,
    /// When it tries next, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub next_attempt: Option<SystemTime>,
    /// Milliseconds that the last successful request took.
    pub last_latency_ms: Option<u64>,
    /// Whether the identity in use was found on disk at the start.
    pub restored: bool,
    /// Why there is no fresh certificate.
    pub trouble: Option<Trouble>,
    /// Why the identity could not be kept on disk.
    pub storage_trouble: Option<Trouble>,
}

#[cfg(test)]
mod tests;
