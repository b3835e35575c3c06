//! Tokens that the Kubernetes API makes for our own service account (TokenRequest,
//! `authentication.k8s.io/v1`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::{RungError, Token};
use crate::identity::{Account, BoundObject, Claims, SpiffeId};
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
        let bound = credential.as_ref().and_then(|token| binding(token.claims(), &self.account));
        let (client, account) = (&self.client, &self.account);
        let issued = client.request_bound_token(account, &[audience], self.life, bound).await;
        let issued = issued.map_err(RungError::Kube)?;
        Ok(Token::parse(issued.token.expose_secret())?.ending(issued.expires_at))
    }
}

/// What our credential is bound to, where our tokens can be bound to it too: an operator's own
/// credential may be of another namespace, or of a Pod that runs as somebody else.
fn binding<'a>(credential: &'a Claims, ours: &Object) -> Option<&'a BoundObject> {
    let Account { namespace, name } = credential.account.as_ref()?;
    let bound = credential.bound_to.as_ref()?;
    let fits = *namespace == ours.namespace && (bound.kind == "Secret" || *name == ours.name);
    fits.then_some(bound)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_bind_tokens_of_our_account_binds_them() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
        let binds = |namespace: &str, name: &str, kind| {
            let account = Account { namespace: namespace.to_owned(), name: name.to_owned() };
            let bound = BoundObject { kind, name: "one".to_owned(), uid: "u".to_owned() };
            let (account, bound_to) = (Some(account), Some(bound));
            binding(&Claims { account, bound_to, ..Claims::default() }, &super::account(&id))
                .is_some()
        };
        assert!(binds("vms", "client", "Secret") && binds("vms", "client", "Pod"));
        assert!(binds("vms", "admin", "Secret"), "the Secret lies where ours would");
        assert!(!binds("vms", "admin", "Pod"), "the API server wants the Pod's own account");
        assert!(!binds("ops", "admin", "Secret") && !binds("ops", "client", "Pod"));
    }
}
