//! How we authenticate to the API server.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::error::KubeError;
use crate::base::clock::rfc3339;
use crate::base::fsio;
use crate::identity::{Claims, check_token};

/// A credential for the Kubernetes API.
pub enum Auth {
    /// A bearer token in a file, read again for every call.
    TokenFile(PathBuf),
    /// A bearer token.
    Token(SecretString),
    /// A client certificate with its key, PEM.
    ClientCertificate {
        /// The leaf and its intermediates.
        chain_pem: Vec<u8>,
        /// The private key.
        key_pem: SecretString,
    },
}

/// A token that is newer than the one in the file, and could not be written there.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Option<SecretString>>);

impl Spare {
    pub(super) fn put(&self, token: Option<SecretString>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// The token, while it lives.
    fn alive(&self, now: SystemTime) -> Option<SecretString> {
        let token = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        token.filter(|token| end(token.expose_secret()).is_none_or(|end| end > now))
    }
}

/// When a token ends, where it tells.
fn end(token: &str) -> Option<SystemTime> {
    Claims::read(token).ok().and_then(|claims| claims.expires_at)
}

impl Auth {
    /// The bearer token now, the spare one where the file's has ended; `None` for a client
    /// certificate.
    pub(super) fn bearer(
        &self,
        now: SystemTime,
        spare: &Spare,
    ) -> Result<Option<SecretString>, KubeError> {
        match self {
            Self::ClientCertificate { .. } => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::TokenFile(path) => {
                let text = fsio::read_text(path, TOKEN_BYTES).map_err(KubeError::Credential)?;
                let text = Zeroizing::new(text);
                let text = text.trim();
                check_token(text)
                    .map_err(|source| KubeError::MalformedToken { path: path.clone(), source })?;
                if let Some(end) = end(text).filter(|end| *end <= now) {
                    if let Some(spare) = spare.alive(now) {
                        return Ok(Some(spare));
                    }
                    let (path, expired_at) = (path.clone(), rfc3339(end));
                    return Err(KubeError::ExpiredToken { path, expired_at, now: rfc3339(now) });
                }
                Ok(Some(SecretString::from(text)))
            }
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenFile(path) => write!(f, "TokenFile({})", path.display()),
            Self::Token(_) => f.write_str("Token([secret])"),
            Self::ClientCertificate { .. } => f.write_str("ClientCertificate([secret])"),
        }
    }
}

/// Tokens are one or two kilobytes.
const TOKEN_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::trouble::chain;

    #[test]
    fn a_file_that_holds_no_token_is_named_and_nothing_of_it_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kube-token");
        let bearer = |content: &str| {
            fsio::replace(&path, content.as_bytes(), fsio::SECRET).unwrap();
            Auth::TokenFile(path.clone()).bearer(SystemTime::UNIX_EPOCH, &Spare::default())
        };
        for (content, words) in [
            ("", "it is empty"),
            ("\u{feff}secret", "byte-order mark"),
            ("secret\u{0}", "control character"),
        ] {
            let error = chain(&bearer(content).unwrap_err());
            assert!(error.contains(words) && error.contains("kube-token"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let opaque = bearer("opaque-token\n").unwrap().unwrap();
        assert_eq!(opaque.expose_secret(), "opaque-token");
    }
}
