//! The tokens of a bundle, and the Secret that they end with.

use std::time::SystemTime;

use secrecy::SecretString;
use serde_json::{Value, json};

use super::{FIELD_MANAGER, Operator, OperatorError, Order, Registration};
use crate::base::clock::rfc3339;
use crate::identity::BoundObject;
use crate::join::{Bundle, BundleMetadata, KubernetesAccess};
use crate::kube::{IssuedToken, KubeError, Object};

/// What was issued.
pub(super) struct Issued {
    /// For the Kubernetes API.
    pub(super) kubernetes: Option<KubernetesAccess>,
    /// For istiod.
    pub(super) istio: SecretString,
    /// When the first of them ends.
    pub(super) expires_at: SystemTime,
    /// The Secret's name.
    pub(super) secret: Option<String>,
}

impl Operator {
    pub(super) async fn credential(
        &self,
        order: &Order,
        warnings: &mut Vec<String>,
    ) -> Result<Issued, OperatorError> {
        let secret = match self.secret(order).await {
            Ok(secret) => Some(secret),
            Err(error) if error.code() == Some(403) => {
                warnings.push(format!("the tokens cannot be revoked one by one: {error}"));
                None
            }
            Err(error) => return Err(error.into()),
        };
        match self.tokens(order, secret.as_ref()).await {
            Ok(issued) => Ok(issued),
            Err(error) => {
                if let Some(BoundObject { name, .. }) = secret {
                    // It holds nothing; that it stays behind is no second error.
                    drop(self.client.delete(&secret_object(&order.group.namespace, &name)).await);
                }
                Err(error.into())
            }
        }
    }

    /// Takes a bundle back that nobody has got: its tokens end with its Secret.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn revoke(&self, bundle: &Bundle) -> Result<(), OperatorError> {
        let BundleMetadata { namespace, secret, .. } = &bundle.metadata;
        if secret.is_empty() {
            return Ok(());
        }
        Ok(self.client.delete(&secret_object(namespace, secret)).await?)
    }

    async fn tokens(
        &self,
        order: &Order,
        secret: Option<&BoundObject>,
    ) -> Result<Issued, KubeError> {
        let istio = self.token(order, &[ISTIO_AUDIENCE], secret).await?;
        let mut expires_at = istio.expires_at;
        let kubernetes = match &order.registration {
            Registration::Istiod => None,
            Registration::Kubernetes { roots, .. } => {
                // The API server knows its own audience.
                let IssuedToken { token, expires_at: end } = self.token(order, &[], secret).await?;
                expires_at = expires_at.min(end);
                Some(KubernetesAccess { roots: roots.clone(), token })
            }
        };
        let secret = secret.map(|secret| secret.name.clone());
        Ok(Issued { kubernetes, istio: istio.token, expires_at, secret })
    }

    async fn token(
        &self,
        order: &Order,
        audiences: &[&str],
        secret: Option<&BoundObject>,
    ) -> Result<IssuedToken, KubeError> {
        let account = Object {
            group_version: "v1",
            resource: "serviceaccounts",
            namespace: order.group.namespace.clone(),
            name: order.group.service_account.clone(),
        };
        self.client.request_bound_token(&account, audiences, order.life, secret).await
    }

    /// An empty Secret: tokens that are bound to it are refused once it is gone.
    async fn secret(&self, order: &Order) -> Result<BoundObject, KubeError> {
        let now = self.clock.now();
        let until = now.checked_add(order.life).unwrap_or(now);
        let group = order.group.name.chars().take(GROUP_LETTERS).collect::<String>();
        let group = group.trim_end_matches(['.', '-']);
        let name = format!("vm-agent-bundle-{group}-{:08x}", rand::random::<u32>());
        let object = secret_object(&order.group.namespace, &name);
        let body = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": order.group.namespace,
                "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER},
                "annotations": {
                    "vm-agent.io/workload-group": order.group.name,
                    "vm-agent.io/join-until": rfc3339(until),
                },
            },
            "type": "Opaque",
        });
        let made = self.client.create(&object, &body).await?;
        let uid = made.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        Ok(BoundObject { kind: "Secret", name, uid: uid.to_owned() })
    }
}

pub(super) fn secret_object(namespace: &str, name: &str) -> Object {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Object { group_version: "v1", resource: "secrets", namespace, name }
}

/// What istiod's certificate service wants in a token (Istio `pkg/config/constants`).
const ISTIO_AUDIENCE: &str = "istio-ca";
/// So that the whole name stays below Kubernetes' 253 letters.
const GROUP_LETTERS: usize = 200;
