//! Renewal, for ever: on our own timer, by the wall clock, whether anybody subscribes or not.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::schedule::{renewal_share, renewal_time};
use super::{RenewalPhase, Vault};
use crate::base::backoff::{Backoff, Retry};
use crate::base::trouble::Trouble;
use crate::ca::{Csr, IssueError, Issuer};
use crate::identity::{Candidate, KeyError, KeyPair, Refusal};

/// Gets the first certificate and renews it until `stop`. The old certificate stays in use until
/// a new one was believed.
pub async fn renew<I: Issuer>(vault: Vault, issuer: I, stop: CancellationToken) {
    let forever = Rotation { backoff: fresh_backoff(), vault, issuer }.run();
    tokio::select! {
        () = forever => {}
        () = stop.cancelled() => {}
    }
}

struct Rotation<I> {
    vault: Vault,
    issuer: I,
    backoff: Backoff,
}

/// A round that brought no new identity.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("cannot make a certificate request")]
    Key(#[from] KeyError),
    #[error("no new certificate")]
    Issue(#[from] IssueError),
    #[error("refused the certificate that the authority sent")]
    Refused(#[from] Refusal),
}

impl<I: Issuer> Rotation<I> {
    async fn run(mut self) {
        loop {
            if let Some(at) = self.due() {
                self.wait_until(at).await;
            }
            self.round().await;
        }
    }

    /// When the current certificate is due; `None` when there is none, or it is over.
    fn due(&self) -> Option<SystemTime> {
        let now = self.vault.clock().now();
        let current = self.vault.subscribe().borrow().clone();
        let current = current.filter(|identity| identity.is_valid_at(now))?;
        let config = self.vault.config();
        let share = renewal_share(config.renew_at, config.jitter, &mut rand::rng());
        Some(renewal_time(current.received_at(), current.not_after(), share))
    }

    /// Waits by the wall clock: a machine that slept, or whose clock was set, notices within
    /// [`LOOK`].
    async fn wait_until(&self, at: SystemTime) {
        self.vault.report(|state| {
            state.phase = RenewalPhase::Waiting;
            state.next_attempt = Some(at);
        });
        loop {
            let now = self.vault.clock().now();
            let left = at.duration_since(now).unwrap_or(Duration::ZERO);
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => self.vault.store_again(),
                () = self.vault.asked_to_renew() => return,
            }
        }
    }

    /// One request; after a failure the pause that fits it.
    async fn round(&mut self) {
        self.vault.report(|state| {
            state.attempts = state.attempts.saturating_add(1);
            state.next_attempt = None;
        });
        let started = Instant::now();
        match self.request().await {
            Ok(()) => {
                self.backoff.reset();
                let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.vault.report(|state| {
                    state.issued = state.issued.saturating_add(1);
                    state.phase = RenewalPhase::Waiting;
                    state.last_latency_ms = Some(took);
                    state.restored = false;
                    state.trouble = None;
                });
            }
            Err(error) => self.pause_after(&error).await,
        }
    }

    async fn request(&self) -> Result<(), RoundError> {
        let config = self.vault.config();
        let key = make_key(config.key_algorithm).await?;
        let csr = Csr { pem: key.csr_pem(&config.id)?, ttl: config.ttl };
        let issued = self.issuer.issue(&csr).await?;
        let candidate = Candidate {
            chain_pem: issued.chain_pem,
            key_pem: key.private_key_pem().clone(),
            roots: issued.roots,
        };
        let identity = self.vault.admit(candidate)?;
        let not_after = crate::base::clock::rfc3339(identity.not_after());
        tracing::info!(id = %identity.id(), serial = identity.serial(), not_after, "New certificate.");
        Ok(())
    }

    async fn pause_after(&mut self, error: &RoundError) {
        let delay = self.backoff.delay_for(error.retry());
        let now = self.vault.clock().now();
        let trouble = self.trouble(error, now);
        tracing::warn!(%trouble, retry_in = ?delay, "No new certificate; keeping what we have.");
        self.vault.report(|state| {
            state.phase = RenewalPhase::Retrying;
            state.failures = state.failures.saturating_add(1);
            state.next_attempt = now.checked_add(delay);
            state.trouble = Some(trouble);
        });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.vault.asked_to_renew() => {}
        }
    }

    fn trouble(&self, error: &RoundError, now: SystemTime) -> Trouble {
        let since = self.vault.renewal().borrow().trouble.as_ref().map_or(now, |old| old.since);
        Trouble::new(error, error.hint(), error.retry(), since)
    }
}

impl RoundError {
    fn retry(&self) -> Retry {
        match self {
            Self::Issue(error) => error.retry(),
            // A clock that is a little behind catches up; the rest needs somebody.
            Self::Refused(Refusal::NotYetValid { .. }) | Self::Key(_) => Retry::Soon,
            Self::Refused(_) => Retry::Later,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Issue(error) => error.hint(),
            Self::Refused(Refusal::Expired { .. } | Refusal::NotYetValid { .. }) => {
                Some("check this machine's clock (`timedatectl`)".to_owned())
            }
            Self::Refused(Refusal::OtherIdentity { .. }) => Some(
                "the token or certificate belongs to another service account: check \
                 workload.serviceAccount and join again with the right token"
                    .to_owned(),
            ),
            Self::Refused(Refusal::Untrusted { .. }) => {
                Some("the mesh's root changed: join again with the new root-cert.pem".to_owned())
            }
            _ => None,
        }
    }
}

/// RSA keys take long enough to hold up everything else.
async fn make_key(algorithm: crate::identity::KeyAlgorithm) -> Result<KeyPair, KeyError> {
    use crate::identity::KeyAlgorithm::{EcdsaP256, EcdsaP384};
    match algorithm {
        EcdsaP256 | EcdsaP384 => KeyPair::generate(algorithm),
        _ => tokio::task::spawn_blocking(move || KeyPair::generate(algorithm))
            .await
            .unwrap_or(Err(KeyError::Interrupted)),
    }
}

/// A lost istiod is found again within seconds of its return; a thousand agents that lost it
/// together do not all come back in the same moment.
fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}

/// The wall clock is looked at at least this often.
const LOOK: Duration = Duration::from_secs(30);
