//! How we authenticate to the API server.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use secrecy::SecretString;

use super::error::KubeError;
use crate::base::clock::rfc3339;
use crate::base::fsio;
use crate::identity::Claims;

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

impl Auth {
    /// The bearer token now; `None` for a client certificate.
    pub(super) fn bearer(&self, now: SystemTime) -> Result<Option<SecretString>, KubeError> {
        match self {
            Self::ClientCertificate { .. } => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::TokenFile(path) => {
                let text = fsio::read_text(path, TOKEN_BYTES).map_err(KubeError::Credential)?;
                let text = text.trim();
                let end = Claims::read(text).ok().and_then(|claims| claims.expires_at);
                if let Some(end) = end.filter(|end| *end <= now) {
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
