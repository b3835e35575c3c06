//! Key pairs and certificate signing requests. A key is made here and shown to nobody.

use std::fmt;
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, RsaKeySize, SanType, string::Ia5String};
use secrecy::SecretString;

use super::SpiffeId;

/// The kind of a workload's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on NIST P-256.
    #[default]
    EcdsaP256,
    /// ECDSA on NIST P-384.
    EcdsaP384,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 3072 bits.
    Rsa3072,
    /// RSA with 4096 bits.
    Rsa4096,
}

impl KeyAlgorithm {
    /// Every kind, with the name that settings use.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::EcdsaP256, "ecdsa-p256"),
        (Self::EcdsaP384, "ecdsa-p384"),
        (Self::Rsa2048, "rsa-2048"),
        (Self::Rsa3072, "rsa-3072"),
        (Self::Rsa4096, "rsa-4096"),
    ];
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for KeyAlgorithm {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let kind = Self::ALL.iter().find(|(_, name)| *name == text);
        kind.map(|(kind, _)| *kind).ok_or_else(|| KeyError::Algorithm { found: text.to_owned() })
    }
}

/// A key or a request that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The setting names no kind of key.
    #[error(
        "{found:?} is no key algorithm: expected ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096"
    )]
    Algorithm {
        /// The text.
        found: String,
    },
    /// The thread that made it was lost.
    #[error("the making of a key was interrupted")]
    Interrupted,
    /// The cryptographic library refused.
    #[error("cannot make a {what}")]
    Make {
        /// `key` or `certificate signing request`.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// A private key with its public half. It cannot be printed or copied, and is wiped when dropped.
pub struct KeyPair {
    pair: rcgen::KeyPair,
    pem: SecretString,
}

impl KeyPair {
    /// Makes a new key. RSA takes up to seconds.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        let rsa = |size| rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        let pair = match algorithm {
            KeyAlgorithm::EcdsaP256 => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyAlgorithm::EcdsaP384 => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyAlgorithm::Rsa2048 => rsa(RsaKeySize::_2048),
            KeyAlgorithm::Rsa3072 => rsa(RsaKeySize::_3072),
            KeyAlgorithm::Rsa4096 => rsa(RsaKeySize::_4096),
        };
        let pair = pair.map_err(|source| KeyError::Make { what: "key", source })?;
        let pem = SecretString::from(pair.serialize_pem());
        Ok(Self { pair, pem })
    }

    /// The private key as PEM, PKCS#8 (RFC 5958).
    #[must_use]
    pub fn private_key_pem(&self) -> &SecretString {
        &self.pem
    }

    /// A certificate signing request (PKCS#10, RFC 2986) as PEM whose only name is the identity, as
    /// a critical URI SAN with an empty subject (SPIFFE X509-SVID 2).
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn csr_pem(&self, id: &SpiffeId) -> Result<String, KeyError> {
        let failed = |source| KeyError::Make { what: "certificate signing request", source };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = Ia5String::try_from(id.to_string()).map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let request = params.serialize_request(&self.pair).map_err(failed)?;
        request.pem().map_err(failed)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair([private])")
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::*;

    use super::*;

    #[test]
    fn a_request_names_the_identity_and_nothing_else() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
        for (algorithm, _) in KeyAlgorithm::ALL {
            let key = KeyPair::generate(algorithm).unwrap();
            let pem = key.csr_pem(&id).unwrap();
            let (_, pem) = ::x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
            assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
            let sans: Vec<_> = csr.requested_extensions().unwrap().collect();
            let [ParsedExtension::SubjectAlternativeName(san)] = sans.as_slice() else {
                panic!("{sans:?}")
            };
            assert_eq!(san.general_names, [GeneralName::URI(&id.to_string())]);
        }
    }

    #[test]
    fn the_key_is_pkcs8_and_never_printed() {
        let key = KeyPair::generate(KeyAlgorithm::default()).unwrap();
        assert!(key.private_key_pem().expose_secret().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(!format!("{key:?} {:?}", key.private_key_pem()).contains("BEGIN"));
    }

    #[test]
    fn algorithm_names_round_trip() {
        for (algorithm, name) in KeyAlgorithm::ALL {
            assert_eq!(name.parse::<KeyAlgorithm>().unwrap(), algorithm);
            assert_eq!(algorithm.to_string(), name);
        }
        assert!("dsa".parse::<KeyAlgorithm>().is_err());
    }
}
