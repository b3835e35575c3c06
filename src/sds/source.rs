//! Where a named secret comes from: the vault, or files that somebody else keeps.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;

use secrecy::ExposeSecret;

use crate::base::fsio::{self, FileError};
use crate::base::trouble::chain;
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

/// A name of Istio's (`pkg/model/authentication.go`, `pkg/security/security.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// `default`: our certificate and key.
    Workload,
    /// `ROOTCA`: our roots.
    Roots,
    /// `file-cert:CERT~KEY`.
    FileCertificate { certificate: &'a Path, key: &'a Path },
    /// `file-root:PATH`, or the system's bundle for `file-root:system`.
    FileRoot(Option<&'a Path>),
}

impl<'a> Name<'a> {
    /// The name's meaning; `None` for a name that nobody knows.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        match text {
            "default" => return Some(Self::Workload),
            "ROOTCA" => return Some(Self::Roots),
            "file-root:system" => return Some(Self::FileRoot(None)),
            _ => {}
        }
        if let Some(path) = text.strip_prefix("file-root:") {
            return Some(Self::FileRoot(Some(Path::new(path))));
        }
        let (certificate, key) = text.strip_prefix("file-cert:")?.split_once('~')?;
        Some(Self::FileCertificate { certificate: Path::new(certificate), key: Path::new(key) })
    }

    /// Whether it comes from files, which nobody tells us about when they change.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::FileCertificate { .. } | Self::FileRoot(_))
    }

    /// The secret now; `None` while there is none, with the reason in the log.
    pub(super) fn read(&self, name: &str, identity: Option<&IssuedIdentity>) -> Option<Versioned> {
        match self {
            Self::Workload => identity.map(|identity| {
                let key = identity.key_pem().expose_secret().as_bytes();
                certificate(name, identity.chain_pem().as_bytes(), key)
            }),
            Self::Roots => identity.map(|identity| roots(name, identity.roots().pem().as_bytes())),
            Self::FileCertificate { certificate: chain, key } => {
                let chain = logged(name, fsio::read(chain, FILE_BYTES))?;
                let key = zeroize::Zeroizing::new(logged(name, fsio::read(key, FILE_BYTES))?);
                Some(certificate(name, &chain, &key))
            }
            Self::FileRoot(Some(path)) => {
                Some(roots(name, &logged(name, fsio::read(path, FILE_BYTES))?))
            }
            Self::FileRoot(None) => {
                let bundle = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
                let bundle =
                    bundle.unwrap_or_else(|| Path::new("/etc/ssl/certs/ca-certificates.crt"));
                Some(roots(name, &logged(name, fsio::read(bundle, FILE_BYTES))?))
            }
        }
    }
}

fn logged(name: &str, read: Result<Vec<u8>, FileError>) -> Option<Vec<u8>> {
    if let Err(error) = &read {
        tracing::warn!(name, error = chain(error), "Cannot serve a file secret; trying again.");
    }
    read.ok()
}

fn certificate(name: &str, chain: &[u8], key: &[u8]) -> Versioned {
    let certificate =
        TlsCertificate { certificate_chain: Some(inline(chain)), private_key: Some(inline(key)) };
    // The version is visible in the proxy's admin pages: it is made of the public part alone.
    versioned(name, Type::TlsCertificate(certificate), chain)
}

fn roots(name: &str, pem: &[u8]) -> Versioned {
    let context = CertificateValidationContext { trusted_ca: Some(inline(pem)), crl: None };
    versioned(name, Type::ValidationContext(context), pem)
}

fn versioned(name: &str, content: Type, public: &[u8]) -> Versioned {
    let mut digest = DefaultHasher::new();
    public.hash(&mut digest);
    let version = format!("{:016x}", digest.finish());
    Versioned { secret: Secret { name: name.to_owned(), r#type: Some(content) }, version }
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) }
}

/// Debian and Alpine; Fedora and RHEL (two places); openSUSE; OpenELEC; Alpine's link.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];
/// A system's bundle is some hundred kilobytes.
const FILE_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_istios_names_have_a_meaning() {
        let pair = Name::FileCertificate {
            certificate: Path::new("/a/c.pem"),
            key: Path::new("/a/k.pem"),
        };
        assert_eq!(Name::parse("file-cert:/a/c.pem~/a/k.pem"), Some(pair));
        assert_eq!(Name::parse("file-root:system"), Some(Name::FileRoot(None)));
        for unknown in ["", "defaults", "file-cert:/a", "kubernetes://secret"] {
            assert_eq!(Name::parse(unknown), None, "{unknown}");
        }
    }
}
