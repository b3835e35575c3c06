use super::{Roots, SpiffeId};
use secrecy::SecretString;
use std::sync::Arc;
use std::time::SystemTime;

/// What a certificate source returned, not believed yet.
pub struct Candidate {
    /// Leaf first, intermediates, roots may trail (istiod's last element(s)).
    pub chain_pem: String,
    pub key_pem: SecretString,
    /// Roots that came with it; None keeps the trusted ones.
    pub roots: Option<Roots>,
}

/// Why a candidate was refused. (wrong id, wrong key, untrusted chain, expired, not yet valid, malformed, …)
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("stub")]
    Stub,
}

/// A verified identity. Exists only verified. Debug shows no key.
pub struct IssuedIdentity {
    id: SpiffeId,
}
impl IssuedIdentity {
    /// chain reaches `trust`, leaf has exactly `expected` as its only URI SAN, key matches, clock inside validity
    pub fn verify(
        _candidate: Candidate,
        _expected: &SpiffeId,
        _trust: &Roots,
        _now: SystemTime,
    ) -> Result<Self, Refusal> {
        todo!()
    }
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
    /// leaf + intermediates, PEM (no root)
    pub fn chain_pem(&self) -> &str {
        todo!()
    }
    pub fn key_pem(&self) -> &SecretString {
        todo!()
    }
    pub fn roots(&self) -> &Roots {
        todo!()
    }
    /// serial as lower-case hex
    pub fn serial(&self) -> &str {
        todo!()
    }
    pub fn issuer(&self) -> &str {
        todo!()
    }
    /// "ECDSA P-256", "RSA 2048"…
    pub fn key_kind(&self) -> &str {
        todo!()
    }
    pub fn not_before(&self) -> SystemTime {
        todo!()
    }
    pub fn not_after(&self) -> SystemTime {
        todo!()
    }
    /// when it was verified first (start of its life for the renewal clock)
    pub fn received_at(&self) -> SystemTime {
        todo!()
    }
    pub fn is_valid_at(&self, _now: SystemTime) -> bool {
        todo!()
    }
    /// for TLS client authentication
    pub fn certified_key(&self) -> Arc<rustls::sign::CertifiedKey> {
        todo!()
    }
}
