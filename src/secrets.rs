//! The vault: the only place where a private key rests. It opens no socket.

mod export;
mod files;
mod follow;
mod kept;
mod persist;
mod rotation;
mod schedule;
mod vault;
mod workload_api;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub use export::remove_export;
pub use files::{Files, follow_files};
pub use kept::{KeptIdentity, Place, forget, look};
pub use rotation::renew;
pub use vault::Vault;
pub use workload_api::follow_workload_api;

use crate::base::clock::{self, SkewGauge};
use crate::base::trouble::Trouble;
use crate::ca::CsrApi;
use crate::identity::{KeyAlgorithm, SpiffeId};
use crate::spiffe::Socket;

/// Where certificates come from. The first two sign our requests, and are renewed by us; the
/// others are kept by somebody else, and followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// istiod, or what speaks its certificate service.
    Istiod,
    /// A signer behind the Kubernetes API.
    Kubernetes(CsrApi),
    /// Files.
    Files(Files),
    /// A SPIFFE Workload API.
    Spiffe(Socket),
}

impl Source {
    /// Its name, as settings have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Istiod => "istiod",
            Self::Kubernetes(_) => "kubernetes",
            Self::Files(_) => "files",
            Self::Spiffe(_) => "spiffe",
        }
    }
}

/// What the vault keeps, where, and when it is renewed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where certificates come from.
    pub source: Source,
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
    /// Takes what certificates say of this machine's clock.
    pub skew: SkewGauge,
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
    /// Somebody must approve the request.
    Approval,
    /// There is a new certificate that is valid only in a moment.
    Holding,
    /// Somebody else renews it, and we take it from there.
    Following,
}

/// The renewal loop's report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RenewalState {
    /// Where certificates come from: `istiod`, `kubernetes`, `files` or `spiffe`.
    pub source: &'static str,
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
    /// When the mesh's root file was last replaced by newer roots, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub roots_replaced_at: Option<SystemTime>,
    /// Why newer roots of the mesh, which are needed, cannot be had.
    pub roots_trouble: Option<Trouble>,
}

#[cfg(test)]
mod tests;
