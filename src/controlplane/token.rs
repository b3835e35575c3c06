use crate::identity::SpiffeId;
use secrecy::SecretString;
use std::path::Path;
use std::time::SystemTime;
/// Why a token is not sent: missing, unreadable, malformed, expired (since), other audience/namespace/service account (found, expected).
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("stub")]
    Stub,
}
/// A bearer token with the claims that it makes about itself (JWT payload, signature NOT checked: istiod does that).
pub struct Token {
    _t: SecretString,
}
impl Token {
    /// reads (bounded, 64 KiB), trims, parses
    pub fn read(_path: &Path) -> Result<Self, TokenError> {
        todo!()
    }
    pub fn parse(_text: &str) -> Result<Self, TokenError> {
        todo!()
    }
    pub fn secret(&self) -> &SecretString {
        todo!()
    }
    pub fn expires_at(&self) -> Option<SystemTime> {
        todo!()
    }
    pub fn audiences(&self) -> &[String] {
        todo!()
    }
    /// namespace, service account from `kubernetes.io` claim or `sub`
    pub fn subject(&self) -> Option<(&str, &str)> {
        todo!()
    }
    /// Err when known to be unusable: expired at `now`, other audience, other namespace or service account.
    pub fn check(
        &self,
        _id: &SpiffeId,
        _audience: &str,
        _now: SystemTime,
    ) -> Result<(), TokenError> {
        todo!()
    }
}
