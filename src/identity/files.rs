//! Certificates and keys in PEM files that others keep: only what parses is passed on.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::issued::{Refusal, fit_key, parse_chain};
use super::roots::{certificate_pem, pem};

/// A certificate chain with the private key of its leaf, both PEM, with nothing else that the files
/// contained.
pub struct PemPair {
    /// The leaf first, then the rest in the order of the file.
    pub chain_pem: String,
    /// The key in the encoding of the file: PKCS#8, PKCS#1 or SEC1.
    pub key_pem: SecretString,
}

impl PemPair {
    /// Reads the pair.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] when one of them is not what it should be, [`Refusal::OtherKey`] when
    /// the leaf certifies another key.
    pub fn read(chain: &[u8], key: Zeroizing<Vec<u8>>) -> Result<Self, Refusal> {
        let chain = parse_chain(chain)?;
        if chain.is_empty() {
            return Err(Refusal::Malformed { why: "there is no certificate".to_owned() });
        }
        let unreadable = || Refusal::Malformed { why: "its private key cannot be read".to_owned() };
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| unreadable())?;
        let label = match &key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let key_pem = SecretString::from(pem(label, key.secret_der()));
        fit_key(&chain, &key_pem)?;
        Ok(Self { chain_pem: chain.iter().map(|der| certificate_pem(der)).collect(), key_pem })
    }

    /// The key, for who sends it.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key_pem.expose_secret().as_bytes()
    }
}

/// The X.509 certificates of a PEM file, PEM, with nothing else that the file contained; `None` when
/// there is none. A certificate that does not parse is left out: a system's bundle may have some that
/// are out of the ordinary, and a peer that leads to another one must not be lost by them.
#[must_use]
pub fn certificates_of(file: &[u8]) -> Option<String> {
    let found = CertificateDer::pem_slice_iter(file).take(CERTIFICATES).filter_map(Result::ok);
    let found = found.filter(|der| x509_parser::parse_x509_certificate(der).is_ok());
    let text: String = found.map(|der| certificate_pem(&der)).collect();
    (!text.is_empty()).then_some(text)
}

/// A system's bundle has about 150.
const CERTIFICATES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn read(chain: &str, key: &str) -> Result<PemPair, Refusal> {
        PemPair::read(chain.as_bytes(), Zeroizing::new(key.as_bytes().to_vec()))
    }

    #[test]
    fn a_pair_is_passed_on_without_what_stands_beside_it() {
        let (chain, key) = pair();
        let found = read(&format!("secret\n{chain}secret"), &format!("{chain}secret\n{key}"));
        let found = found.unwrap();
        assert!(!found.chain_pem.contains("secret") && !found.chain_pem.contains("PRIVATE"));
        assert!(!found.key_pem.expose_secret().contains("secret"));
        assert_eq!(found.chain_pem.lines().count(), chain.lines().count());
        read(&found.chain_pem, found.key_pem.expose_secret()).unwrap();
    }

    #[test]
    fn halves_of_two_pairs_and_files_that_hold_neither_are_refused() {
        let ((chain, key), (other, _)) = (pair(), pair());
        assert!(matches!(read(&other, &key), Err(Refusal::OtherKey)));
        for (chain, key) in [("", &*key), ("root:x:0:0", &key), (&chain, "root:*:1"), (&chain, "")]
        {
            assert!(matches!(read(chain, key), Err(Refusal::Malformed { .. })));
        }
    }

    #[test]
    fn of_a_file_of_roots_only_certificates_are_passed_on() {
        let ((chain, key), (other, _)) = (pair(), pair());
        let broken = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        let found = certificates_of(format!("{chain}{broken}{key}{other}").as_bytes()).unwrap();
        assert_eq!(found.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(!found.contains("PRIVATE"));
        for nothing in ["", "root:*:20228", &key, broken] {
            assert!(certificates_of(nothing.as_bytes()).is_none());
        }
    }
}
