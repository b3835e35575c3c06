//! What we may do, asked before we need it (Kubernetes' SelfSubjectAccessReview).

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::{Client, KubeError, Object};

impl Client {
    /// Those of `verbs`, such as `patch`, that we may not do with an object. A server that does not
    /// answer such questions is believed to allow all.
    ///
    /// # Errors
    /// When the server cannot be reached, or does not know us (code 401).
    pub async fn forbidden<'a>(
        &self,
        verbs: &[&'a str],
        object: &Object,
    ) -> Result<Vec<&'a str>, KubeError> {
        let asked = verbs.iter().map(|verb| self.may(verb, object));
        let answers = try_join_all(asked).await?;
        let refused = verbs.iter().zip(answers).filter(|(_, allowed)| !allowed);
        Ok(refused.map(|(verb, _)| *verb).collect())
    }

    async fn may(&self, verb: &str, object: &Object) -> Result<bool, KubeError> {
        let review = Object {
            group_version: "authorization.k8s.io/v1",
            resource: "selfsubjectaccessreviews",
            namespace: String::new(),
            name: String::new(),
        };
        let group = object.group_version.split_once('/').map_or("", |(group, _)| group);
        let Object { resource, namespace, name, .. } = object;
        let body = json!({
            "apiVersion": review.group_version, "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "namespace": namespace, "verb": verb, "group": group, "resource": resource, "name": name,
            }},
        });
        match self.create(&review, &body).await {
            Ok(answer) => {
                let allowed = answer.pointer("/status/allowed").and_then(Value::as_bool);
                Ok(allowed.unwrap_or(true))
            }
            Err(error) if matches!(error.code(), Some(403..=405)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
