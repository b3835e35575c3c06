//! Tokens that the Kubernetes API makes for our own service account (TokenRequest,
//! `authentication.k8s.io/v1`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::{RungError, Token};
use crate::identity::SpiffeId;
use crate::kube::{Client, Object};

/// The maker of our tokens.
pub(super) struct Kubernetes {
    pub(super) client: Arc<Client>,
    pub(super) account: Object,
    pub(super) life: Duration,
    pub(super) kept: Option<PathBuf>,
}

impl Kubernetes {
    /// A new token. It dies with whatever our credential dies with: an operator who takes that away
    /// shall not have to look for what was made with it.
    pub(super) async fn obtain(&self, audience: &str) -> Result<Token, RungError> {
        let credential = self.client.token_file().and_then(|path| Token::read(path).ok());
        let bound = credential.as_ref().and_then(|token| token.claims().bound_to.as_ref());
        let (client, account) = (&self.client, &self.account);
        let issued = client.request_bound_token(account, &[audience], self.life, bound).await;
        let issued = issued.map_err(RungError::Kube)?;
        Ok(Token::parse(issued.token.expose_secret())?.ending(issued.expires_at))
    }
}

/// Our service account.
pub(super) fn account(id: &SpiffeId) -> Object {
    Object {
        group_version: "v1",
        resource: "serviceaccounts",
        namespace: id.namespace().to_string(),
        name: id.service_account().to_string(),
    }
}
