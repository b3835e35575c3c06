//! What a bearer token says about itself (JSON Web Token, RFC 7519). The signature is not checked:
//! that is the part of the server that gets the token.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::base::clock::from_unix_seconds;

/// Why a text is no token. Never holds a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// Some editors put one before a text.
    #[error("it begins with a byte-order mark (save the file without one)")]
    ByteOrderMark,
    /// It cannot be sent in a header (RFC 6750).
    #[error(
        "it contains a space, a control character or a character that is not ASCII, at byte {at}"
    )]
    Character {
        /// Counted from 0.
        at: usize,
    },
    /// Header, claims and signature are separated by dots.
    #[error("it has not three parts")]
    Parts,
    /// The claims are not base64url.
    #[error("its second part is not base64url")]
    Encoding,
    /// The claims are not JSON.
    #[error("its second part is not JSON")]
    Json,
    /// The claims are JSON of another kind.
    #[error("its second part is not a JSON object")]
    Object,
}

/// The claims that matter to its bearer. What it does not say is left to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// When it was made (`iat`), by the clock of its maker.
    pub issued_at: Option<SystemTime>,
    /// Its end (`exp`).
    pub expires_at: Option<SystemTime>,
    /// For whom it is (`aud`).
    pub audiences: Vec<String>,
    /// The Kubernetes service account whose it is (`sub`).
    pub account: Option<Account>,
    /// The object with which it dies before its end.
    pub bound_to: Option<BoundObject>,
}

/// A Kubernetes service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The object to which a service-account token is bound: once it is deleted, the API server refuses
/// the token (Kubernetes `TokenRequest`, `spec.boundObjectRef`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundObject {
    /// `Secret` or `Pod`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its UID: another object of the same name is not the same.
    pub uid: String,
}

impl Claims {
    /// Reads the claims of a token; white space around it does not count.
    ///
    /// # Errors
    /// When it is no JSON Web Token.
    pub fn read(token: &str) -> Result<Self, ClaimsError> {
        let token = token.trim();
        check_token(token)?;
        let mut parts = token.split('.');
        let (_, payload, _) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(head), Some(payload), Some(tag), None) => (head, payload, tag),
            _ if token.is_empty() => return Err(ClaimsError::Empty),
            _ => return Err(ClaimsError::Parts),
        };
        let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
        let payload = Zeroizing::new(payload.map_err(|_| ClaimsError::Encoding)?);
        let claims: Value = serde_json::from_slice(&payload).map_err(|_| ClaimsError::Json)?;
        if !claims.is_object() {
            return Err(ClaimsError::Object);
        }
        Ok(Self {
            issued_at: time(&claims, "iat"),
            expires_at: time(&claims, "exp"),
            audiences: audiences(&claims),
            account: account(&claims),
            bound_to: BOUND.into_iter().find_map(|kind| bound_to(&claims, kind)),
        })
    }

    /// How long it lives in all, where it tells.
    #[must_use]
    pub fn life(&self) -> Option<Duration> {
        self.expires_at?.duration_since(self.issued_at?).ok()
    }
}

/// Whether a text without white space around it can be sent as a bearer token: an HTTP header would
/// carry some of what no token contains, and the server's answer would not say what is wrong.
///
/// # Errors
/// With what no token contains.
pub fn check_token(token: &str) -> Result<(), ClaimsError> {
    if token.is_empty() {
        return Err(ClaimsError::Empty);
    }
    if token.starts_with('\u{feff}') {
        return Err(ClaimsError::ByteOrderMark);
    }
    match token.bytes().position(|byte| !byte.is_ascii_graphic()) {
        Some(at) => Err(ClaimsError::Character { at }),
        None => Ok(()),
    }
}

/// A moment in seconds since the epoch, with or without a fraction.
fn time(claims: &Value, name: &str) -> Option<SystemTime> {
    let value = claims.get(name)?;
    if let Some(seconds) = value.as_u64() {
        return Some(from_unix_seconds(seconds));
    }
    let after = Duration::try_from_secs_f64(value.as_f64()?).ok()?;
    Some(from_unix_seconds(after.as_secs()))
}

/// One text, or a list of them.
fn audiences(claims: &Value) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => {
            many.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// From `sub`: `system:serviceaccount:NAMESPACE:NAME`.
fn account(claims: &Value) -> Option<Account> {
    let sub = claims.get("sub")?.as_str()?;
    let (namespace, name) = sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some(Account { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn bound_to(claims: &Value, (claim, kind): (&str, &'static str)) -> Option<BoundObject> {
    let object = claims.get("kubernetes.io")?.get(claim)?;
    let text = |field| object.get(field).and_then(Value::as_str).map(str::to_owned);
    Some(BoundObject { kind, name: text("name")?, uid: text("uid")? })
}

/// The private claim of each kind of object (Kubernetes `pkg/serviceaccount/claims.go`).
const BOUND: [(&str, &str); 2] = [("secret", "Secret"), ("pod", "Pod")];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(claims: &Value) -> Claims {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        Claims::read(&format!("e30.{payload}.c2ln\n")).unwrap()
    }

    #[test]
    fn a_token_tells_its_life_its_account_and_what_it_is_bound_to() {
        let secret = json!({"namespace": "vms", "secret": {"name": "vm1", "uid": "u"}});
        let claims = read(&json!({
            "iat": 1000, "exp": 4600.5, "aud": "x", "sub": "system:serviceaccount:vms:client",
            "kubernetes.io": secret,
        }));
        assert_eq!(claims.life(), Some(Duration::from_secs(3600)));
        assert_eq!(claims.audiences, ["x"]);
        let account = Account { namespace: "vms".to_owned(), name: "client".to_owned() };
        assert_eq!(claims.account, Some(account));
        let bound = BoundObject { kind: "Secret", name: "vm1".to_owned(), uid: "u".to_owned() };
        assert_eq!(claims.bound_to, Some(bound));
    }

    #[test]
    fn what_no_header_can_carry_is_no_token() {
        let cases = [
            ("", ClaimsError::Empty),
            ("\u{feff}a.e30.b", ClaimsError::ByteOrderMark),
            ("a.e30.b\u{7f}", ClaimsError::Character { at: 7 }),
            ("a.e30\n.b", ClaimsError::Character { at: 5 }),
            ("a b.e30.c", ClaimsError::Character { at: 1 }),
            ("a.e30.\u{e9}", ClaimsError::Character { at: 6 }),
        ];
        for (token, error) in cases {
            assert_eq!(Claims::read(token), Err(error), "{token:?}");
        }
    }

    #[test]
    fn what_a_token_does_not_say_is_not_made_up() {
        let claims = read(&json!({"sub": "1234", "exp": "soon", "iat": -1, "aud": 7}));
        assert_eq!(claims, Claims::default());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", inner in ".*") {
            drop(Claims::read(&text));
            drop(Claims::read(&format!("a.{}.c", URL_SAFE_NO_PAD.encode(inner))));
        }
    }
}
