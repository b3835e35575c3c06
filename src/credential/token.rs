//! Bearer tokens: what a token says about itself, so that one known to be useless is never sent.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::base::clock::rfc3339;
use crate::base::fsio::{self, FileError};
use crate::identity::{Account, Claims, ClaimsError, SpiffeId};

/// Why a token is not sent. Never holds a part of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot use the token")]
    File(#[source] FileError),
    /// It is no JWT.
    #[error("the token{} is not a JSON Web Token", at(path))]
    Malformed {
        /// Its file.
        path: Option<PathBuf>,
        /// What is wrong.
        #[source]
        source: ClaimsError,
    },
    /// It is over.
    #[error("the token{} expired at {expired_at}; this machine's clock says {now}", at(path))]
    Expired {
        /// Its file.
        path: Option<PathBuf>,
        /// Its end.
        end: SystemTime,
        /// Its end, RFC 3339.
        expired_at: String,
        /// RFC 3339.
        now: String,
    },
    /// It is meant for another server.
    #[error("the token{} is for audience {found}, not for {expected}", at(path))]
    Audience {
        /// Its file.
        path: Option<PathBuf>,
        /// The audiences that it names.
        found: String,
        /// The one that is needed.
        expected: String,
    },
    /// It belongs to another service account.
    #[error("the token{} is for {found}, not for {expected}", at(path))]
    Subject {
        /// Its file.
        path: Option<PathBuf>,
        /// `namespace/service account` that it names.
        found: String,
        /// `namespace/service account` that is needed.
        expected: String,
    },
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" in {}", path.display())).unwrap_or_default()
}

/// A bearer token and its claims about itself.
#[derive(Clone)]
pub struct Token {
    secret: SecretString,
    path: Option<PathBuf>,
    claims: Claims,
}

impl Token {
    /// Reads a token file.
    ///
    /// # Errors
    /// When it cannot be read or holds no JWT.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = fsio::read_text(path, FILE_BYTES).map_err(TokenError::File)?;
        Self::new(&Zeroizing::new(text), Some(path.to_owned()))
    }

    /// Reads the claims of a token; white space around it is dropped.
    ///
    /// # Errors
    /// When it is no JWT.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        Self::new(text, None)
    }

    fn new(text: &str, path: Option<PathBuf>) -> Result<Self, TokenError> {
        let text = text.trim();
        match Claims::read(text) {
            Ok(claims) => Ok(Self { secret: SecretString::from(text), path, claims }),
            Err(source) => Err(TokenError::Malformed { path, source }),
        }
    }

    /// The same token, which somebody says to end at `end` already.
    #[must_use]
    pub fn ending(mut self, end: SystemTime) -> Self {
        let own = self.claims.expires_at.unwrap_or(end);
        self.claims.expires_at = Some(own.min(end));
        self
    }

    /// The token itself.
    #[must_use]
    pub fn secret(&self) -> &SecretString {
        &self.secret
    }

    /// What it says of itself.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Its end, where it names one.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.claims.expires_at
    }

    /// How long it lives in all: by the clock of its maker where it tells when it was made, else
    /// since `received_at`.
    #[must_use]
    pub fn life(&self, received_at: SystemTime) -> Option<Duration> {
        let since = self.claims.issued_at.unwrap_or(received_at);
        self.claims.expires_at?.duration_since(since).ok()
    }

    /// Whether both are the same text.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.secret.expose_secret() == other.secret.expose_secret()
    }

    /// Whether it is worth sending.
    ///
    /// # Errors
    /// When it is expired at `now`, or for another audience or service account. A claim that it
    /// does not make is left to the server.
    pub fn check(&self, id: &SpiffeId, audience: &str, now: SystemTime) -> Result<(), TokenError> {
        let path = self.path.clone();
        self.check_end(now)?;
        let audiences = &self.claims.audiences;
        if !audiences.is_empty() && !audiences.iter().any(|name| name == audience) {
            let (found, expected) = (audiences.join(", "), audience.to_owned());
            return Err(TokenError::Audience { path, found, expected });
        }
        self.check_account(id)
    }

    /// Whether it is still alive.
    ///
    /// # Errors
    /// When it is expired at `now`.
    pub fn check_end(&self, now: SystemTime) -> Result<(), TokenError> {
        let Some(end) = self.claims.expires_at.filter(|end| *end <= now) else { return Ok(()) };
        let (path, expired_at) = (self.path.clone(), rfc3339(end));
        Err(TokenError::Expired { path, end, expired_at, now: rfc3339(now) })
    }

    /// Whether it is ours.
    ///
    /// # Errors
    /// When it names another service account.
    pub fn check_account(&self, id: &SpiffeId) -> Result<(), TokenError> {
        let (namespace, account) = (id.namespace().as_str(), id.service_account().as_str());
        match &self.claims.account {
            Some(Account { namespace: ns, name }) if (&**ns, &**name) != (namespace, account) => {
                Err(TokenError::Subject {
                    path: self.path.clone(),
                    found: format!("service account {ns}/{name}"),
                    expected: format!("{namespace}/{account}"),
                })
            }
            _ => Ok(()),
        }
    }
}

/// Tokens are one or two kilobytes.
const FILE_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::base::clock::from_unix_seconds;
    use crate::base::trouble::chain;

    fn token(claims: &Value) -> Token {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        Token::parse(&format!("e30.{payload}.c2ln\n")).unwrap()
    }

    fn check(claims: &Value) -> Result<(), TokenError> {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
        token(claims).check(&id, "istio-ca", from_unix_seconds(1_000))
    }

    #[test]
    fn a_token_known_to_be_useless_is_refused_with_what_was_found() {
        let sub = "system:serviceaccount:vms:client";
        check(&json!({"aud": ["istio-ca"], "exp": 1001, "sub": sub})).unwrap();
        check(&json!({"aud": "istio-ca"})).unwrap();
        let cases = [
            (json!({"exp": 1000}), "expired at 1970-01-01T00:16:40Z"),
            (json!({"aud": ["x", "y"]}), "for audience x, y, not for istio-ca"),
            (
                json!({"sub": "system:serviceaccount:vms:other"}),
                "for service account vms/other, not for vms/client",
            ),
            (json!({"sub": "system:serviceaccount:prod:client"}), "prod/client"),
        ];
        for (claims, words) in cases {
            let error = check(&claims).unwrap_err().to_string();
            assert!(error.contains(words), "{error} / {words}");
        }
    }

    #[test]
    fn what_is_no_token_is_said_without_showing_it() {
        for text in ["", "secret", "a.b", "a.!!.c", "a.aGk.c"] {
            let error = chain(&Token::parse(text).err().unwrap());
            assert!(error.contains("JSON Web Token") && !error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            drop(Token::parse(&text));
        }
    }
}
