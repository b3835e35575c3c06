//! Secrets as the proxy gets them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use secrecy::ExposeSecret;

use crate::identity::IssuedIdentity;
use crate::proto::tls::data_source::Specifier;
use crate::proto::tls::secret::Type;
use crate::proto::tls::{CertificateValidationContext, DataSource, Secret, TlsCertificate};

/// A secret and the version that tells its content from an earlier one.
#[derive(Clone, Debug)]
pub(super) struct Versioned {
    pub(super) secret: Secret,
    pub(super) version: String,
}

impl Versioned {
    /// Our certificate and key.
    pub(super) fn workload(name: &str, identity: &IssuedIdentity) -> Self {
        let key = identity.key_pem().expose_secret().as_bytes();
        Self::certificate(name, identity.chain_pem().as_bytes(), key)
    }

    /// A certificate chain and the private key of its leaf. The caller has checked that they are a
    /// pair, so the chain alone determines the version, which the proxy's admin pages show.
    pub(super) fn certificate(name: &str, chain: &[u8], key: &[u8]) -> Self {
        let certificate = TlsCertificate {
            certificate_chain: Some(inline(chain)),
            private_key: Some(inline(key)),
        };
        Self::of(name, Type::TlsCertificate(certificate), chain)
    }

    /// Trusted certificates.
    pub(super) fn roots(name: &str, pem: &[u8]) -> Self {
        let context = CertificateValidationContext { trusted_ca: Some(inline(pem)), crl: None };
        Self::of(name, Type::ValidationContext(context), pem)
    }

    fn of(name: &str, content: Type, public: &[u8]) -> Self {
        let mut digest = DefaultHasher::new();
        public.hash(&mut digest);
        let version = format!("{:016x}", digest.finish());
        Self { secret: Secret { name: name.to_owned(), r#type: Some(content) }, version }
    }
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) }
}
