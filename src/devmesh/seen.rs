//! What the mesh has seen: counters and records, to wait for. It never decides anything.

use std::time::Duration;

use tokio::sync::watch;

/// Everything seen since the start. The records keep the newest [`RECORDS`] each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Certificate requests that came with a client certificate.
    pub by_certificate: u64,
    /// Certificate requests that came with a token alone.
    pub by_token: u64,
    /// Certificate requests that were refused.
    pub refused: u64,
    /// Configuration streams.
    pub streams: u64,
    /// Configuration streams that have ended.
    pub streams_ended: u64,
    /// Responses that a proxy took.
    pub acks: u64,
    /// Responses that a proxy refused.
    pub nacks: u64,
    /// TLS connections, of all services.
    pub connections: u64,
    /// TCP connections whose TLS handshake failed.
    pub failed_handshakes: u64,
    /// Certificate requests with a known caller, oldest first.
    pub csrs: Vec<SeenCsr>,
    /// Callers of configuration streams, oldest first.
    pub callers: Vec<SeenCaller>,
    /// WorkloadEntries made or taken over by auto-registration, `namespace/name`.
    pub registered: Vec<String>,
    /// WorkloadEntries that the sweep removed, `namespace/name`.
    pub removed: Vec<String>,
    /// Responses taken, with their type URL and nonce.
    pub acked: Vec<SeenAnswer>,
    /// Responses refused, with the proxy's words.
    pub rejections: Vec<SeenAnswer>,
    /// Health reports that were taken in.
    pub health: Vec<SeenHealth>,
    /// Health reports that came before the stream's first other request: istiod ignores them.
    pub ignored_health: u64,
    /// Calls of the Kubernetes API.
    pub calls: Vec<SeenCall>,
}

/// How a caller proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// With a client certificate of this serial number, lower-case hex without colons.
    Certificate {
        /// The serial number.
        serial: String,
    },
    /// With a bearer token.
    Token,
}

/// A certificate request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenCsr {
    /// The caller's SPIFFE ID.
    pub id: String,
    /// The caller's proof.
    pub proof: Proof,
    /// The lifetime asked for; zero or less means the default. Seconds.
    pub asked_seconds: i64,
    /// The issued certificate's serial number, lower-case hex; `None` when none was issued.
    pub serial: Option<String>,
}

/// The caller of a configuration stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenCaller {
    /// The caller's SPIFFE ID.
    pub id: String,
    /// The caller's proof.
    pub proof: Proof,
    /// True for the delta flavour.
    pub delta: bool,
}

/// A response taken or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAnswer {
    /// The type of its resources.
    pub type_url: String,
    /// The response's nonce.
    pub nonce: String,
    /// Why it was refused; empty when it was taken.
    pub message: String,
}

/// A health report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenHealth {
    /// The entry that it is about, `namespace/name`; `None` without auto-registration.
    pub entry: Option<String>,
    /// `None`: healthy. Else why not.
    pub unhealthy: Option<String>,
}

/// A call of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenCall {
    /// Kubernetes' verb: get, list, create, update, patch, delete.
    pub verb: &'static str,
    /// The path.
    pub path: String,
    /// The user; empty when unknown.
    pub user: String,
}

/// Looks at what the mesh has seen.
#[derive(Clone, Debug)]
pub struct Witness {
    seen: watch::Receiver<Seen>,
}

/// What was waited for did not happen.
#[derive(Debug, thiserror::Error)]
#[error("not seen within {DEADLINE:?}; seen so far: {0:#?}")]
pub struct NotSeen(pub Box<Seen>);

impl Witness {
    pub(super) fn new(seen: watch::Receiver<Seen>) -> Self {
        Self { seen }
    }

    /// What has been seen until now. Let go of it before awaiting anything.
    #[must_use]
    pub fn borrow(&self) -> watch::Ref<'_, Seen> {
        self.seen.borrow()
    }

    /// Waits until the condition holds, at most [`DEADLINE`].
    ///
    /// # Errors
    /// When it does not hold in time; the error shows what was seen instead.
    pub async fn wait_for(
        &mut self,
        condition: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen, NotSeen> {
        let waited = tokio::time::timeout(DEADLINE, self.seen.wait_for(condition)).await;
        if let Ok(Ok(seen)) = waited {
            return Ok(seen.clone());
        }
        drop(waited);
        Err(NotSeen(Box::new(self.seen.borrow().clone())))
    }
}

/// Adds a record and lets go of the oldest one above the bound.
pub(super) fn record<T>(records: &mut Vec<T>, one: T) {
    if records.len() >= RECORDS {
        records.remove(0);
    }
    records.push(one);
}

/// Above every test's need, and small enough for a mesh that runs for weeks.
pub const RECORDS: usize = 1000;
/// Longer than any step of a test on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);
