//! Names of secrets, as Istio writes them.

use std::path::Path;

/// A name of Istio's (`pkg/model/authentication.go`, `pkg/security/security.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretName<'a> {
    /// `default`: our certificate and key.
    Workload,
    /// `ROOTCA`: our roots.
    Roots,
    /// `file-cert:CERT~KEY`.
    FileCertificate {
        /// PEM: the leaf first.
        certificate: &'a Path,
        /// Its private key, PEM.
        key: &'a Path,
    },
    /// `file-root:PATH`.
    FileRoots(&'a Path),
    /// `file-root:system`: the system's bundle.
    SystemRoots,
}

impl<'a> SecretName<'a> {
    /// The name's meaning; `None` for a name that is not one of Istio's. It comes from the network:
    /// istiod copies the paths of DestinationRules and Gateways.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        match text {
            "default" => return Some(Self::Workload),
            "ROOTCA" => return Some(Self::Roots),
            "file-root:system" => return Some(Self::SystemRoots),
            _ => {}
        }
        if let Some(path) = text.strip_prefix("file-root:") {
            return Some(Self::FileRoots(Path::new(path)));
        }
        let (certificate, key) = text.strip_prefix("file-cert:")?.split_once('~')?;
        Some(Self::FileCertificate { certificate: Path::new(certificate), key: Path::new(key) })
    }

    /// Whether it comes from files.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self, Self::FileCertificate { .. } | Self::FileRoots(_) | Self::SystemRoots)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_istios_names_have_a_meaning() {
        let pair = SecretName::FileCertificate {
            certificate: Path::new("/a/c.pem"),
            key: Path::new("/a/k.pem"),
        };
        assert_eq!(SecretName::parse("file-cert:/a/c.pem~/a/k.pem"), Some(pair));
        assert_eq!(SecretName::parse("file-root:system"), Some(SecretName::SystemRoots));
        for unknown in ["", "defaults", "file-cert:/a", "kubernetes://secret"] {
            assert_eq!(SecretName::parse(unknown), None, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(file-root:|file-cert:|)[^~]*~?.*") {
            let is_file = SecretName::parse(&text).is_some_and(|name| name.is_file());
            prop_assert!(!is_file || text.starts_with("file-"));
        }
    }
}
