//! Root certificates: the trust that everything else is measured against.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::base::clock::from_unix_seconds;

/// Why a text yields no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// There is no certificate in it.
    #[error("it holds no certificate (expected -----BEGIN CERTIFICATE-----)")]
    Empty,
    /// A PEM block is broken.
    #[error("certificate {number} is broken")]
    Pem {
        /// Counted from 1.
        number: usize,
        /// What the parser said.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A block holds no X.509 certificate.
    #[error("certificate {number} is not an X.509 certificate")]
    Certificate {
        /// Counted from 1.
        number: usize,
    },
    /// Bytes that are no sequence of certificates.
    #[error("it is no sequence of DER certificates")]
    Der,
    /// More certificates than any mesh has.
    #[error("it holds more than {COUNT} certificates")]
    TooMany,
}

/// A set of root certificates: never empty, parsed, without duplicates, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    certificates: Arc<[CertificateDer<'static>]>,
    pem: Arc<str>,
}

/// What can be shown of a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootCertificate {
    /// Its subject.
    pub subject: String,
    /// The SHA-256 of its DER, in hexadecimal.
    pub sha256: String,
    /// Its end.
    pub not_after: SystemTime,
}

impl RootCertificate {
    fn new(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
        Some(Self {
            subject: certificate.subject().to_string(),
            sha256: hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after: from_unix_seconds(end),
        })
    }
}

impl Roots {
    /// Every certificate of a PEM text; what stands between the blocks is skipped.
    ///
    /// # Errors
    /// When there is none, or one is broken.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RootsError> {
        let mut found = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let number = found.len().saturating_add(1);
            let certificate = certificate.map_err(|source| RootsError::Pem { number, source })?;
            if x509_parser::parse_x509_certificate(&certificate).is_err() {
                return Err(RootsError::Certificate { number });
            }
            if number > COUNT {
                return Err(RootsError::TooMany);
            }
            found.push(certificate.into_owned());
        }
        if found.is_empty() { Err(RootsError::Empty) } else { Ok(Self::collect(found)) }
    }

    /// Certificates in DER one after the other, as SPIFFE's Workload API sends them.
    ///
    /// # Errors
    /// When there is none, or something else among them.
    pub fn from_der(der: &[u8]) -> Result<Self, RootsError> {
        let found = split_der(der).ok_or(RootsError::Der)?;
        match found.len() {
            0 => Err(RootsError::Empty),
            count if count > COUNT => Err(RootsError::TooMany),
            _ => Ok(Self::collect(found)),
        }
    }

    /// The PEM text: the certificates alone.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Whether one of them is among the other ones.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.certificates.iter().any(|root| other.certificates.contains(root))
    }

    /// Whether all of them are among the other ones.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.certificates.iter().all(|root| other.certificates.contains(root))
    }

    /// These roots and the other ones.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::collect(self.certificates.iter().chain(other.certificates.iter()).cloned().collect())
    }

    /// The roots as TLS uses them.
    #[must_use]
    pub fn store(&self) -> rustls::RootCertStore {
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(self.certificates.iter().cloned());
        store
    }

    /// The subjects, for errors that say who is trusted.
    #[must_use]
    pub fn subjects(&self) -> Vec<String> {
        let subject = |der: &CertificateDer<'_>| {
            let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
            Some(certificate.subject().to_string())
        };
        self.certificates.iter().filter_map(subject).collect()
    }

    /// What can be shown of each.
    #[must_use]
    pub fn shown(&self) -> Vec<RootCertificate> {
        self.certificates.iter().filter_map(RootCertificate::new).collect()
    }

    fn collect(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut unique: Vec<CertificateDer<'static>> = Vec::new();
        for certificate in certificates {
            if !unique.contains(&certificate) {
                unique.push(certificate);
            }
        }
        let pem: String = unique.iter().map(AsRef::as_ref).map(certificate_pem).collect();
        Self { certificates: unique.into(), pem: pem.into() }
    }
}

/// The roots that come with a certificate, and who answers for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchors {
    /// None came: those that are trusted stay.
    Trusted,
    /// The authority's. A new one is believed when it stands beside one that is known.
    Sent(Roots),
    /// Those of a source that is believed as it stands: the operator's file, the SPIFFE agent.
    Vouched(Roots),
}

impl Anchors {
    /// What a certificate may lead to.
    pub(super) fn trust(&self, known: &Roots) -> Roots {
        match self {
            Self::Sent(roots) if roots.meets(known) => known.union(roots),
            Self::Vouched(roots) => known.union(roots),
            Self::Trusted | Self::Sent(_) => known.clone(),
        }
    }

    /// What peers are verified against from now on.
    pub(super) fn roots(self, known: &Roots) -> Roots {
        match self {
            Self::Trusted => known.clone(),
            Self::Sent(roots) => roots,
            Self::Vouched(roots) => known.union(&roots),
        }
    }
}

/// The certificates of a DER sequence; `None` when something else is among them.
pub(super) fn split_der(mut der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der).ok()?;
        let (one, _) = der.split_at_checked(der.len().checked_sub(rest.len())?)?;
        if one.is_empty() || found.len() > COUNT {
            return None;
        }
        found.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Some(found)
}

/// A certificate as a PEM block (RFC 7468).
pub(super) fn certificate_pem(der: &[u8]) -> String {
    pem("CERTIFICATE", der)
}

/// Bytes as a PEM block (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    // Its full size from the start: a key must not be left behind in smaller buffers.
    let mut pem = String::with_capacity(text.len().saturating_mul(2).saturating_add(100));
    pem.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// A multi-root mesh has a handful; each costs time in every handshake.
const COUNT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn duplicates_are_dropped_and_the_order_is_kept() {
        let (one, two) = (root(), root());
        let text = format!("# a comment\n{one}{two}\n{one}");
        let roots = Roots::from_pem(text.as_bytes()).unwrap();
        assert_eq!(roots.certificates().len(), 2);
        assert_eq!(Roots::from_pem(roots.pem().as_bytes()).unwrap(), roots);
        assert_eq!(roots.union(&roots), roots);
        assert_eq!(roots.store().len(), 2);
        let shown = roots.shown();
        assert_eq!((shown.len(), shown[0].sha256.len()), (2, 64));
        assert_ne!(shown[0].sha256, shown[1].sha256);
    }

    #[test]
    fn a_text_without_certificates_is_no_trust() {
        assert!(matches!(Roots::from_pem(b"hello"), Err(RootsError::Empty)));
        let fake = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            Roots::from_pem(fake.as_bytes()),
            Err(RootsError::Certificate { number: 1 })
        ));
        let cut = root().replace("-----END CERTIFICATE-----", "");
        assert!(Roots::from_pem(cut.as_bytes()).is_err());
    }
}
