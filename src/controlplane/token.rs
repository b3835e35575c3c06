//! Bearer tokens: what a token says about itself, so that one known to be useless is never sent.
//!
//! The signature is not checked here; that is the server's part (RFC 7519, Kubernetes' bound
//! service-account tokens).

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde_json::Value;

use crate::base::clock::{from_unix_seconds, rfc3339};
use crate::base::fsio::{self, FileError};
use crate::identity::SpiffeId;

/// Why a token is not sent. Never holds a part of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No token is configured, and there is no valid certificate either.
    #[error("there is neither a valid certificate nor a token")]
    None,
    /// The file cannot be read.
    #[error("cannot use the token")]
    File(#[source] FileError),
    /// It is no JWT.
    #[error("the token{} is not a JSON Web Token: {why}", at(path))]
    Malformed {
        /// Its file.
        path: Option<PathBuf>,
        /// What is wrong.
        why: &'static str,
    },
    /// It is over.
    #[error("the token{} expired at {expired_at}; this machine's clock says {now}", at(path))]
    Expired {
        /// Its file.
        path: Option<PathBuf>,
        /// RFC 3339.
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

impl TokenError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(
            "make a new one with `istioctl x workload entry configure` (or `kubectl create token`) \
             and run `vm-agent join` again with it"
                .to_owned(),
        )
    }
}

/// A bearer token and its claims about itself.
pub struct Token {
    secret: SecretString,
    path: Option<PathBuf>,
    expires_at: Option<SystemTime>,
    audiences: Vec<String>,
    subject: Option<(String, String)>,
}

impl Token {
    /// Reads a token file.
    ///
    /// # Errors
    /// When it cannot be read or holds no JWT.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = fsio::read_text(path, FILE_BYTES).map_err(TokenError::File)?;
        Self::new(&text, Some(path.to_owned()))
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
        let claims =
            claims(text).map_err(|why| TokenError::Malformed { path: path.clone(), why })?;
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => {
                many.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            secret: SecretString::from(text),
            path,
            expires_at: claims.get("exp").and_then(Value::as_u64).map(from_unix_seconds),
            audiences,
            subject: subject(&claims),
        })
    }

    /// The token itself.
    #[must_use]
    pub fn secret(&self) -> &SecretString {
        &self.secret
    }

    /// Its end, where it names one.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Whether it is worth sending.
    ///
    /// # Errors
    /// When it is expired at `now`, or for another audience or service account. A claim that it
    /// does not make is left to the server.
    pub fn check(&self, id: &SpiffeId, audience: &str, now: SystemTime) -> Result<(), TokenError> {
        let path = self.path.clone();
        if let Some(end) = self.expires_at.filter(|end| *end <= now) {
            return Err(TokenError::Expired { path, expired_at: rfc3339(end), now: rfc3339(now) });
        }
        if !self.audiences.is_empty() && !self.audiences.iter().any(|name| name == audience) {
            let found = self.audiences.join(", ");
            return Err(TokenError::Audience { path, found, expected: audience.to_owned() });
        }
        let (namespace, account) = (id.namespace().as_str(), id.service_account().as_str());
        match &self.subject {
            Some((ns, sa)) if (ns.as_str(), sa.as_str()) != (namespace, account) => {
                Err(TokenError::Subject {
                    path,
                    found: format!("service account {ns}/{sa}"),
                    expected: format!("{namespace}/{account}"),
                })
            }
            _ => Ok(()),
        }
    }
}

fn claims(text: &str) -> Result<Value, &'static str> {
    let parts: Vec<&str> = text.split('.').collect();
    let [_, payload, _] = parts.as_slice() else {
        return Err(if text.is_empty() { "it is empty" } else { "it has not three parts" });
    };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
    let payload = payload.map_err(|_| "its second part is not base64url")?;
    let claims: Value =
        serde_json::from_slice(&payload).map_err(|_| "its second part is not JSON")?;
    if claims.is_object() { Ok(claims) } else { Err("its second part is not a JSON object") }
}

/// From `sub`: `system:serviceaccount:NAMESPACE:NAME`.
fn subject(claims: &Value) -> Option<(String, String)> {
    let sub = claims.get("sub")?.as_str()?;
    let (namespace, name) = sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some((namespace.to_owned(), name.to_owned()))
}

/// Tokens are one or two kilobytes.
const FILE_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

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
            let error = Token::parse(text).err().unwrap().to_string();
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
