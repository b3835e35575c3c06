//! Renewal, for ever: on our own timer, by the wall clock, whether anybody subscribes or not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::schedule::{Due, renewal_share};
use super::vault::CLOCK_HINT;
use super::{RenewalPhase, Vault};
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::{Skew, Witness};
use crate::base::trouble::Trouble;
use crate::ca::{Csr, IssueError, Issuer, Pending};
use crate::identity::{Candidate, IssuedIdentity, KeyError, KeyPair, Refusal};

/// Gets the first certificate and renews it until `stop`. The old certificate stays in use until
/// a new one was believed.
pub async fn renew<I: Issuer>(vault: Vault, issuer: I, stop: CancellationToken) {
    let forever = Rotation {
        backoff: fresh_backoff(),
        vault,
        issuer,
        planned: None,
        issued: None,
        odd_lifetime: false,
    }
    .run();
    tokio::select! {
        () = forever => {}
        () = stop.cancelled() => {}
    }
}

struct Rotation<I> {
    vault: Vault,
    issuer: I,
    backoff: Backoff,
    /// When the certificate of this serial number is renewed. Decided once, so that neither
    /// failures nor a clock that is set draw a new lot.
    planned: Option<(String, Due)>,
    /// When the last certificate was issued.
    issued: Option<Instant>,
    /// Whether the last lifetime was out of the ordinary, which is reported once.
    odd_lifetime: bool,
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
            self.vault.restore_again().await;
            if let Some(due) = self.due() {
                self.wait_until(due).await;
            }
            self.wait_for_floor().await;
            self.round().await;
        }
    }

    /// When the current certificate is due; `None` when there is none, or it is not valid now.
    fn due(&mut self) -> Option<Due> {
        let now = self.vault.clock().now();
        let current = self.vault.subscribe().borrow().clone();
        let current = current.filter(|identity| identity.is_valid_at(now))?;
        match &self.planned {
            Some((serial, due)) if serial == current.serial() => Some(*due),
            _ => {
                let config = self.vault.config();
                let share = renewal_share(config.renew_at, config.jitter, &mut rand::rng());
                let due = Due::new(current.received_at(), current.not_after(), share, now);
                self.planned = Some((current.serial().to_owned(), due));
                Some(due)
            }
        }
    }

    /// However short certificates live, the authority is not asked more often than this, unless a
    /// person does.
    async fn wait_for_floor(&self) {
        let Some(next) = self.issued.and_then(|at| at.checked_add(FLOOR)) else { return };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = self.vault.asked_to_renew() => {}
        }
    }

    fn note_lifetime(&mut self, identity: &IssuedIdentity) {
        let lifetime = identity.not_after().duration_since(identity.received_at());
        let lifetime = lifetime.unwrap_or_default();
        let is_odd = !(SHORTEST..=LONGEST).contains(&lifetime);
        if is_odd && !self.odd_lifetime {
            tracing::warn!(
                seconds = lifetime.as_secs(),
                "The certificate authority issues certificates of an unusual lifetime."
            );
        }
        self.odd_lifetime = is_odd;
    }

    /// Waits by the wall clock: a machine that slept, or whose clock was set, notices within
    /// [`LOOK`]. A clock that was set back does not delay it: see [`Due`].
    async fn wait_until(&self, due: Due) {
        let fresh = !due.left(self.vault.clock().now()).is_zero();
        self.vault.report(|state| {
            state.phase = RenewalPhase::Waiting;
            state.next_attempt = Some(due.at());
            if fresh {
                // A certificate that was over by a wrong clock is not any more.
                state.trouble = None;
            }
        });
        loop {
            let now = self.vault.clock().now();
            let left = due.left(now);
            let current = self.vault.subscribe().borrow().clone();
            if left.is_zero() || current.is_none_or(|identity| !identity.is_valid_at(now)) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => self.vault.store_again().await,
                () = self.vault.asked_to_renew() => return,
            }
        }
    }

    /// One request; after a failure the pause that fits it.
    async fn round(&mut self) {
        self.vault.report(|state| {
            state.phase = RenewalPhase::Requesting;
            state.attempts = state.attempts.saturating_add(1);
            state.next_attempt = None;
        });
        let started = Instant::now();
        match self.request().await {
            Ok(identity) => {
                self.backoff.reset();
                self.issued = Some(Instant::now());
                self.note_lifetime(&identity);
                let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.vault.report(|state| {
                    state.issued = state.issued.saturating_add(1);
                    state.phase = RenewalPhase::Waiting;
                    state.last_latency_ms = Some(took);
                    state.restored = false;
                    state.roots_trouble = None;
                });
            }
            Err(error) => self.pause_after(&error).await,
        }
    }

    async fn request(&self) -> Result<Arc<IssuedIdentity>, RoundError> {
        let config = self.vault.config();
        let key = make_key(config.key_algorithm).await?;
        let (ttl, key_algorithm) = (config.ttl, config.key_algorithm);
        let csr = Csr { pem: key.csr_pem(&config.id)?, ttl, key_algorithm };
        let started = Instant::now();
        let issued = self.issuer.issue(&csr, &|pending| self.say(pending)).await?;
        let took = started.elapsed();
        let candidate = Candidate {
            chain_pem: issued.chain_pem,
            key_pem: key.private_key_pem().clone(),
            anchors: issued.anchors,
        };
        let identity = match self.vault.admit(candidate).await {
            Ok(identity) => identity,
            Err(refusal) => {
                if matches!(refusal, Refusal::Untrusted { .. }) {
                    // With newer roots the next answer may be believed.
                    self.issuer.refresh_roots().await;
                }
                return Err(refusal.into());
            }
        };
        let validity = (identity.not_before(), identity.not_after());
        if let Some(signed_at) = self.issuer.signed_at(&csr, validity.0, validity.1) {
            // The answer was at most held since; then the clock has said more already.
            let skew = Skew::of_answer(signed_at, took, identity.received_at(), Witness::Istiod);
            config.skew.note(skew);
        }
        let not_after = crate::base::clock::rfc3339(identity.not_after());
        tracing::info!(id = %identity.id(), serial = identity.serial(), not_after, "New certificate.");
        Ok(identity)
    }

    /// A person has to do something, which may take days.
    fn say(&self, pending: &Pending) {
        let now = self.vault.clock().now();
        self.vault.report(|state| {
            if state.phase != RenewalPhase::Approval {
                let hint = Some(pending.hint());
                let trouble = Trouble::new(pending, hint, Retry::Later, now);
                tracing::warn!(%trouble, "A certificate waits for a person.");
                state.trouble = Some(trouble);
            }
            state.phase = RenewalPhase::Approval;
        });
    }

    async fn pause_after(&mut self, error: &RoundError) {
        let delay = self.backoff.delay_for(error.retry()).max(error.least_pause());
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
            Self::Key(_) => Retry::Soon,
            Self::Refused(_) => Retry::Later,
        }
    }

    fn least_pause(&self) -> Duration {
        if let Self::Issue(error) = self { error.least_pause() } else { Duration::ZERO }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Issue(error) => error.hint(),
            Self::Refused(Refusal::Expired { .. } | Refusal::NotYetValid { .. }) => {
                Some(CLOCK_HINT.to_owned())
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

/// Certificates for a few seconds would otherwise be renewed several times a second.
const FLOOR: Duration = Duration::from_secs(2);
/// Less leaves no time to try again, more cannot be taken back: nobody issues such certificates for
/// workloads on purpose.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// The wall clock is looked at at least this often.
const LOOK: Duration = Duration::from_secs(30);
