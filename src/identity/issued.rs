//! Certificates that came back. An [`IssuedIdentity`] exists only verified.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use secrecy::{ExposeSecret, SecretString};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::public_key::PublicKey;

use super::roots::{certificate_pem, pem, split_der};
use super::{Anchors, Roots, SpiffeId};
use crate::base::clock::{from_unix_seconds, rfc3339};

/// What a source of certificates returned: not believed yet.
pub struct Candidate {
    /// PEM: the leaf first, then intermediates; roots may trail.
    pub chain_pem: String,
    /// The private key, PEM PKCS#8.
    pub key_pem: SecretString,
    /// The roots that came with it.
    pub anchors: Anchors,
}

impl Candidate {
    /// From DER: certificates one after the other, the leaf first, and a key in PKCS#8.
    ///
    /// # Errors
    /// When the certificates cannot be told apart.
    pub fn from_der(chain: &[u8], key: &[u8], anchors: Anchors) -> Result<Self, Refusal> {
        let chain = split_der(chain).ok_or_else(|| malformed("it is no sequence of DER"))?;
        let chain_pem = chain.iter().map(|der| certificate_pem(der)).collect();
        Ok(Self { chain_pem, key_pem: SecretString::from(pem("PRIVATE KEY", key)), anchors })
    }
}

/// Why a candidate was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read.
    #[error("the certificate is unusable: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// It belongs to somebody else.
    #[error("the certificate is for {found}, not for {expected}")]
    OtherIdentity {
        /// The names that it carries.
        found: String,
        /// Ours.
        expected: String,
    },
    /// It certifies another key than ours.
    #[error("the certificate is for another key")]
    OtherKey,
    /// No trusted root signed it.
    #[error("the certificate of issuer {issuer:?} leads to no trusted root ({why})")]
    Untrusted {
        /// Who signed it.
        issuer: String,
        /// What the verifier said.
        why: String,
    },
    /// It is over.
    #[error("the certificate expired at {not_after}; this machine's clock says {now}")]
    Expired {
        /// RFC 3339.
        not_after: String,
        /// RFC 3339.
        now: String,
    },
    /// It has not begun.
    #[error("the certificate is valid only from {}; this machine's clock says {}", rfc3339(*starts), rfc3339(*now))]
    NotYetValid {
        /// When it begins.
        starts: SystemTime,
        /// When that was, by our clock.
        now: SystemTime,
    },
}

/// A certificate with its key, verified: its chain reaches a trusted root, it names exactly our
/// identity, it fits the key, and it was valid when it was verified, or will be in at most
/// [`IssuedIdentity::TOLERANCE`].
pub struct IssuedIdentity {
    id: SpiffeId,
    chain_pem: String,
    key_pem: SecretString,
    roots: Roots,
    facts: Facts,
    received_at: SystemTime,
    certified_key: Arc<rustls::sign::CertifiedKey>,
}

/// What a leaf says about itself.
#[derive(Clone, Debug)]
struct Facts {
    serial: String,
    issuer: String,
    key_kind: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl IssuedIdentity {
    /// How far in the future a certificate may begin: clocks that are a little behind are common,
    /// and istiod dates certificates two minutes back itself.
    pub const TOLERANCE: Duration = Duration::from_secs(300);

    /// Believes a candidate, or says why not. `known` is what is trusted already.
    ///
    /// # Errors
    /// [`Refusal`], in the order malformed, other identity, clock, other key, untrusted.
    pub fn verify(
        candidate: Candidate,
        expected: &SpiffeId,
        known: &Roots,
        now: SystemTime,
    ) -> Result<Self, Refusal> {
        let chain = parse_chain(candidate.chain_pem.as_bytes())?;
        let [leaf, rest @ ..] = chain.as_slice() else {
            return Err(malformed("there is no certificate"));
        };
        let facts = check_leaf(leaf, expected, now)?;
        let certified_key = fit_key(&chain, &candidate.key_pem)?;
        let trust = candidate.anchors.trust(known);
        check_chain(leaf, rest, &trust, &facts.issuer, now.max(facts.not_before))?;
        // Roots have no place in what peers are shown: they know theirs.
        let shown = chain.iter().filter(|der| *der == leaf || !is_self_issued(der));
        let shown: Vec<CertificateDer<'static>> = shown.cloned().collect();
        let certified_key = Arc::new(rustls::sign::CertifiedKey::new(shown.clone(), certified_key));
        Ok(Self {
            id: expected.clone(),
            chain_pem: shown.iter().map(|der| certificate_pem(der)).collect(),
            key_pem: candidate.key_pem,
            roots: candidate.anchors.roots(known),
            facts,
            received_at: now,
            certified_key,
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// PEM: the leaf and its intermediates, without a root.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key, PEM PKCS#8.
    #[must_use]
    pub fn key_pem(&self) -> &SecretString {
        &self.key_pem
    }

    /// The roots against which peers are verified.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The serial number in lower-case hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// The issuer's distinguished name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.facts.issuer
    }

    /// The kind of key, such as `ECDSA 256`.
    #[must_use]
    pub fn key_kind(&self) -> &str {
        &self.facts.key_kind
    }

    /// Start of its validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// End of its validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// When it was verified: the start of its life for the renewal clock. (CAs date certificates
    /// back, so the start of the validity would not do.)
    #[must_use]
    pub fn received_at(&self) -> SystemTime {
        self.received_at
    }

    /// Sets when it was first received, for one that was kept on disk.
    #[must_use]
    pub fn with_received_at(mut self, at: SystemTime) -> Self {
        self.received_at = at;
        self
    }

    /// Whether it is valid at this time.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.facts.not_before..self.facts.not_after).contains(&now)
    }

    /// Chain and key for TLS.
    #[must_use]
    pub fn certified_key(&self) -> Arc<rustls::sign::CertifiedKey> {
        Arc::clone(&self.certified_key)
    }
}

impl fmt::Debug for IssuedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("IssuedIdentity");
        shown.field("id", &self.id.to_string()).field("facts", &self.facts).finish_non_exhaustive()
    }
}

fn malformed(why: impl Into<String>) -> Refusal {
    Refusal::Malformed { why: why.into() }
}

pub(super) fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| malformed(format!("{error:?}")))?;
        chain.push(certificate.into_owned());
        if chain.len() > CHAIN {
            return Err(malformed(format!("the chain has more than {CHAIN} certificates")));
        }
    }
    Ok(chain)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refusal> {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed.map(|(_, certificate)| certificate).map_err(|_| malformed("it is not X.509"))
}

fn is_self_issued(der: &CertificateDer<'_>) -> bool {
    parse(der).is_ok_and(|certificate| certificate.subject() == certificate.issuer())
}

fn check_leaf(
    leaf: &CertificateDer<'_>,
    expected: &SpiffeId,
    now: SystemTime,
) -> Result<Facts, Refusal> {
    let leaf = parse(leaf)?;
    check_names(&leaf, expected)?;
    let time = |at: i64| from_unix_seconds(u64::try_from(at).unwrap_or(0));
    let not_before = time(leaf.validity().not_before.timestamp());
    let not_after = time(leaf.validity().not_after.timestamp());
    if now >= not_after {
        return Err(Refusal::Expired { not_after: rfc3339(not_after), now: rfc3339(now) });
    }
    if now.checked_add(IssuedIdentity::TOLERANCE).is_none_or(|latest| latest < not_before) {
        return Err(Refusal::NotYetValid { starts: not_before, now });
    }
    let key_kind = match leaf.public_key().parsed() {
        Ok(PublicKey::EC(point)) => format!("ECDSA {}", point.key_size()),
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        _ => "unknown".to_owned(),
    };
    let serial = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let issuer = leaf.issuer().to_string();
    Ok(Facts { serial, issuer, key_kind, not_before, not_after })
}

/// SPIFFE X509-SVID 2: exactly one URI SAN, which is the identity.
fn check_names(leaf: &X509Certificate<'_>, expected: &SpiffeId) -> Result<(), Refusal> {
    let names = leaf.subject_alternative_name().map_err(|_| malformed("its SAN is broken"))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    if uris == [expected.to_string()] {
        return Ok(());
    }
    let found = if uris.is_empty() { "nobody".to_owned() } else { uris.join(", ") };
    Err(Refusal::OtherIdentity {
        found: found.chars().take(300).collect(),
        expected: expected.to_string(),
    })
}

/// The private key, where the first certificate of the chain is for it.
pub(super) fn fit_key(
    chain: &[CertificateDer<'static>],
    key_pem: &SecretString,
) -> Result<Arc<dyn rustls::sign::SigningKey>, Refusal> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.expose_secret().as_bytes())
        .map_err(|_| malformed("its private key cannot be read"))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| malformed("its private key is of no supported kind"))?;
    let pair = rustls::sign::CertifiedKey::new(chain.to_vec(), Arc::clone(&key));
    pair.keys_match().map_err(|_| Refusal::OtherKey)?;
    Ok(key)
}

fn check_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &Roots,
    issuer: &str,
    now: SystemTime,
) -> Result<(), Refusal> {
    let untrusted =
        |why: webpki::Error| Refusal::Untrusted { issuer: issuer.to_owned(), why: why.to_string() };
    let anchors = trust.store().roots;
    let end = webpki::EndEntityCert::try_from(leaf).map_err(untrusted)?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    end.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        intermediates,
        UnixTime::since_unix_epoch(since),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .map(drop)
    .map_err(untrusted)
}

/// A leaf, a few intermediates, and the roots of a mesh that is changing its root.
const CHAIN: usize = 64;

#[cfg(test)]
mod tests;
