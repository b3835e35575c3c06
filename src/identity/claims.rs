//! What a service-account token says about itself (RFC 7519, Kubernetes' bound tokens). The
//! signature is not checked: that is the server's part.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::base::clock::from_unix_seconds;

/// The claims of a token. Whoever holds them does not hold the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenClaims {
    /// Who made it.
    pub issuer: String,
    /// Whose it is, such as `system:serviceaccount:vms:client`.
    pub subject: String,
    /// For which servers.
    pub audiences: Vec<String>,
    /// Its end, where it names one.
    pub expires_at: Option<SystemTime>,
}

impl TokenClaims {
    /// Reads them.
    ///
    /// # Errors
    /// With what is wrong with the token, and no part of it.
    pub fn parse(token: &str) -> Result<Self, &'static str> {
        let mut parts = token.trim().split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("it has not three parts");
        };
        let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
        let payload = payload.map_err(|_| "its second part is not base64url")?;
        let claims: Value =
            serde_json::from_slice(&payload).map_err(|_| "its second part is not JSON")?;
        let text =
            |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => {
                many.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let expires_at = claims.get("exp").and_then(Value::as_u64).map(from_unix_seconds);
        Ok(Self { issuer: text("iss"), subject: text("sub"), audiences, expires_at })
    }

    /// Whether its life is over.
    #[must_use]
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether it is of the same account and issuer as the other one, and lives longer.
    #[must_use]
    pub fn outlives(&self, other: &Self) -> bool {
        let same = (&self.issuer, &self.subject) == (&other.issuer, &other.subject);
        same && match (self.expires_at, other.expires_at) {
            (Some(mine), Some(others)) => mine > others,
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn claims(claims: &Value) -> TokenClaims {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        TokenClaims::parse(&format!("e30.{payload}.c2ln\n")).unwrap()
    }

    #[test]
    fn a_token_outlives_another_only_of_the_same_account() {
        let one = claims(&json!({"iss": "k", "sub": "a", "aud": ["x", "y"], "exp": 1000}));
        assert_eq!(one.audiences, ["x", "y"]);
        assert!(one.is_over(from_unix_seconds(1000)) && !one.is_over(from_unix_seconds(999)));
        let later = claims(&json!({"iss": "k", "sub": "a", "aud": "x", "exp": 1001}));
        let other = claims(&json!({"iss": "k", "sub": "b", "exp": 1001}));
        let endless = claims(&json!({"iss": "k", "sub": "a"}));
        assert!(later.outlives(&one) && !one.outlives(&later) && !one.outlives(&one));
        assert!(!other.outlives(&one) && endless.outlives(&one) && !one.outlives(&endless));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            drop(TokenClaims::parse(&text));
        }
    }
}
