//! Service-account tokens: signed by the mesh, checked by the mesh. It never logs one.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::lock;
use crate::base::clock::unix_seconds;

/// The audience that istiod asks for.
pub const ISTIO_AUDIENCE: &str = "istio-ca";
/// The audience of the API server's own tokens.
pub const KUBERNETES_AUDIENCE: &str = "https://kubernetes.default.svc";

/// Makes and checks tokens.
pub(super) struct Tokens {
    key: hmac::Key,
    admin: String,
    deleted: Mutex<BTreeSet<Account>>,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Account {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Its name as a Kubernetes user.
    pub(super) fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// What a token shall say.
pub(super) struct Claims<'a> {
    pub(super) account: &'a Account,
    pub(super) audiences: &'a [&'a str],
    pub(super) life: Duration,
}

impl Tokens {
    /// With fresh secrets, to be kept where tokens shall outlive the process.
    pub(super) fn fresh() -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "admin": text(&rand::random::<[u8; 24]>()), "key": text(&rand::random::<[u8; 32]>()),
        })
    }

    /// `None` for what does not come from [`Tokens::fresh`].
    pub(super) fn new(secrets: &Value) -> Option<Self> {
        let text = |name: &str| secrets.get(name).and_then(Value::as_str);
        let key = URL_SAFE_NO_PAD.decode(text("key")?).ok()?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Some(Self { key, admin: text("admin")?.to_owned(), deleted: Mutex::default() })
    }

    /// The administrator's token.
    pub(super) fn admin(&self) -> &str {
        &self.admin
    }

    /// A token with the claims of a Kubernetes service-account token. A life of zero is over.
    pub(super) fn make(&self, claims: &Claims<'_>, now: SystemTime) -> String {
        let (account, now) = (claims.account, unix_seconds(now));
        let payload = json!({
            "aud": claims.audiences,
            "exp": now.saturating_add(claims.life.as_secs()),
            "iat": now,
            "iss": "https://kubernetes.default.svc.cluster.local",
            "jti": super::store::random_uid(),
            "kubernetes.io": {"namespace": account.namespace, "serviceaccount": {"name": account.name}},
            "nbf": now,
            "sub": account.user(),
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let body = format!("{}.{}", encode(&json!({"alg": "HS256"})), encode(&payload));
        let tag = hmac::sign(&self.key, body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// From now on the account's tokens are refused, as when a service account is deleted. Its
    /// certificates stay valid.
    pub(super) fn delete(&self, account: Account) {
        lock(&self.deleted).insert(account);
    }

    /// The account exists anew.
    pub(super) fn revive(&self, account: &Account) {
        lock(&self.deleted).remove(account);
    }

    /// True for `Bearer` with the administrator's token.
    pub(super) fn is_admin(&self, authorization: &str) -> bool {
        authorization.strip_prefix("Bearer ") == Some(self.admin.as_str())
    }

    /// The account behind `authorization: Bearer …`; `None` when it is not acceptable: a foreign
    /// signature, another audience than any of these, expired, or its account deleted.
    pub(super) fn check(
        &self,
        authorization: &str,
        audiences: &[&str],
        now: SystemTime,
    ) -> Option<Account> {
        let token = authorization.strip_prefix("Bearer ")?;
        let (body, tag) = token.rsplit_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.key, body.as_bytes(), &tag).ok()?;
        let claims = URL_SAFE_NO_PAD.decode(body.split_once('.')?.1).ok()?;
        let claims: Value = serde_json::from_slice(&claims).ok()?;
        let fits = claims.get("aud")?.as_array()?.iter();
        let fits = fits.filter_map(Value::as_str).any(|one| audiences.contains(&one));
        let lives = claims.get("exp")?.as_u64()? > unix_seconds(now);
        let subject = claims.get("sub")?.as_str()?.strip_prefix("system:serviceaccount:")?;
        let (namespace, name) = subject.split_once(':')?;
        let account = Account::new(namespace, name);
        (fits && lives && !lock(&self.deleted).contains(&account)).then_some(account)
    }
}
