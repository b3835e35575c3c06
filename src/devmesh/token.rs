//! Service-account tokens: signed by the mesh, checked by the mesh.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::base::clock::{Clock, SystemClock, unix_seconds};

/// Makes and checks tokens.
pub(super) struct Tokens {
    key: hmac::Key,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()) }
    }

    pub(super) fn make(
        &self,
        namespace: &str,
        name: &str,
        audience: &str,
        life: Duration,
    ) -> String {
        let now = unix_seconds(SystemClock.now());
        let claims = json!({
            "aud": [audience],
            "iat": now,
            "exp": now.saturating_add(life.as_secs()),
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let body = format!("{}.{}", encode(&json!({"alg": "HS256"})), encode(&claims));
        let tag = hmac::sign(&self.key, body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// The account behind `authorization: Bearer …`; `None` when it is not acceptable.
    pub(super) fn check(&self, authorization: &str, audience: &str) -> Option<Account> {
        let token = authorization.strip_prefix("Bearer ")?;
        let (body, tag) = token.rsplit_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.key, body.as_bytes(), &tag).ok()?;
        let claims = URL_SAFE_NO_PAD.decode(body.split_once('.')?.1).ok()?;
        let claims: Value = serde_json::from_slice(&claims).ok()?;
        let fits = claims.get("aud")?.as_array()?.iter().any(|one| one == audience);
        let lives = claims.get("exp")?.as_u64()? > unix_seconds(SystemClock.now());
        let subject = claims.get("sub")?.as_str()?.strip_prefix("system:serviceaccount:")?;
        let (namespace, name) = subject.split_once(':')?;
        let account = Account { namespace: namespace.to_owned(), name: name.to_owned() };
        (fits && lives).then_some(account)
    }
}
