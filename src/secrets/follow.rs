//! What followers have in common: certificates that somebody else renews are taken as they come,
//! and what is wrong with them is said.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::vault::CLOCK_HINT;
use super::{RenewalPhase, Vault};
use crate::base::backoff::Retry;
use crate::base::trouble::Trouble;
use crate::identity::{IssuedIdentity, Refusal};

impl Vault {
    /// A look at the source begins.
    pub(super) fn looks(&self) {
        self.report(|state| state.attempts = state.attempts.saturating_add(1));
    }

    /// A certificate was taken over.
    pub(super) fn took(&self, identity: &IssuedIdentity) {
        let not_after = crate::base::clock::rfc3339(identity.not_after());
        let (id, serial, source) = (identity.id(), identity.serial(), self.config().source.name());
        tracing::info!(%id, serial, not_after, source, "New certificate.");
        self.report(|state| {
            state.issued = state.issued.saturating_add(1);
            state.phase = RenewalPhase::Following;
            state.next_attempt = None;
            state.restored = false;
        });
    }

    /// Something is wrong with the source. It is logged when it changes.
    pub(super) fn fails(&self, error: &dyn Error, hint: Option<String>, retry: Retry) {
        let now = self.clock().now();
        self.report(|state| {
            let since = state.trouble.as_ref().map_or(now, |old| old.since);
            let trouble = Trouble::new(error, hint, retry, since);
            if state.trouble.as_ref().is_none_or(|old| old.what != trouble.what) {
                tracing::warn!(%trouble, "No new certificate; keeping what we have.");
            }
            state.phase = RenewalPhase::Following;
            state.failures = state.failures.saturating_add(1);
            state.trouble = Some(trouble);
        });
    }

    /// The current identity, when it is over or soon will be.
    pub(super) fn ending(&self) -> Option<Arc<IssuedIdentity>> {
        let now = self.clock().now();
        let current = self.subscribe().borrow().clone()?;
        let life = current.not_after().duration_since(current.not_before());
        let left = current.not_after().duration_since(now).unwrap_or(Duration::ZERO);
        let soon = life.unwrap_or(Duration::ZERO).mul_f64(LAST_PART).min(LAST_DAY);
        (left <= soon).then_some(current)
    }
}

/// A certificate that nobody has renewed.
#[derive(Debug, thiserror::Error)]
#[error("the certificate {from} ends at {} and has not been renewed", crate::base::clock::rfc3339(*end))]
pub(super) struct Ending {
    /// Its source, with the preposition.
    pub(super) from: String,
    pub(super) end: SystemTime,
}

/// What to do about a refused certificate of somebody else's.
pub(super) fn refusal_hint(refusal: &Refusal) -> Option<String> {
    let hint = match refusal {
        Refusal::NotYetValid { .. } => CLOCK_HINT,
        Refusal::Expired { .. } => "renew it, or check this machine's clock (`timedatectl`)",
        Refusal::OtherIdentity { .. } => {
            "check workload.namespace, workload.serviceAccount and mesh.trustDomain against the \
             certificate"
        }
        Refusal::Untrusted { .. } => {
            "name the root that it leads to: in mesh.rootCert, or where the source has it"
        }
        Refusal::Malformed { .. } | Refusal::OtherKey => return None,
    };
    Some(hint.to_owned())
}

/// A certificate is renewed long before this part of its life, or it is forgotten.
const LAST_PART: f64 = 0.1;
const LAST_DAY: Duration = Duration::from_secs(24 * 3600);
