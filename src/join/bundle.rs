//! A join bundle: one file with all that a machine needs to join, made by the cluster's operator.

mod parse;

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::{KubernetesAccess, Source, Terms};
use crate::identity::Roots;

/// What a bundle says. There is no other way to one that was read than [`Bundle::parse`].
#[derive(Debug)]
pub struct Bundle {
    /// Whom it is for, and how it was made.
    pub metadata: BundleMetadata,
    /// Settings, in the form of `config.yaml`.
    pub settings: Map<String, Value>,
    /// The mesh's roots.
    pub mesh_roots: Roots,
    /// The Kubernetes API's roots and a token for it, where machines may use it.
    pub kubernetes: Option<KubernetesAccess>,
    /// A token for istiod's certificate service.
    pub istio_token: Option<SecretString>,
    /// Where each setting stands.
    pub(super) origins: BTreeMap<Vec<String>, String>,
}

/// Whom a bundle is for, and how it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleMetadata {
    /// The WorkloadGroup.
    pub group: String,
    /// Its namespace.
    pub namespace: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// What machines' names begin with; empty where any name will do.
    pub name_prefix: String,
    /// For how many machines it is meant. Nobody counts.
    pub uses: Option<u64>,
    /// The Secret that its tokens end with, where there is one.
    pub secret: String,
    /// The command that makes a fresh one.
    pub renew_with: String,
}

impl Bundle {
    /// A bundle of these parts.
    #[must_use]
    pub fn new(
        metadata: BundleMetadata,
        settings: Map<String, Value>,
        mesh_roots: Roots,
        tokens: (Option<KubernetesAccess>, Option<SecretString>),
    ) -> Self {
        let (kubernetes, istio_token) = tokens;
        Self { metadata, settings, mesh_roots, kubernetes, istio_token, origins: BTreeMap::new() }
    }

    /// The file's tree. It holds the tokens.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let BundleMetadata { group, namespace, created, name_prefix, uses, secret, renew_with } =
            &self.metadata;
        let mut metadata = Map::new();
        let mut say = |name: &str, value: Value| {
            if value != "" && !value.is_null() {
                metadata.insert(name.to_owned(), value);
            }
        };
        say("group", json!(group));
        say("namespace", json!(namespace));
        say("created", json!(created));
        say("namePrefix", json!(name_prefix));
        say("uses", json!(uses));
        say("secret", json!(secret));
        say("renewWith", json!(renew_with));
        let mut trust = Map::from_iter([("mesh".to_owned(), json!(self.mesh_roots.pem()))]);
        let mut credential = Map::new();
        if let Some(access) = &self.kubernetes {
            trust.insert("kubernetes".to_owned(), json!(access.roots.pem()));
            let token = json!(access.token.expose_secret());
            credential.insert("kubernetesToken".to_owned(), token);
        }
        if let Some(token) = &self.istio_token {
            credential.insert("istioToken".to_owned(), json!(token.expose_secret()));
        }
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "settings": self.settings,
            "trust": trust,
            "credential": credential,
        })
    }

    /// What a join makes of it.
    #[must_use]
    pub fn into_source(self, place: &str) -> Source {
        let BundleMetadata { name_prefix, renew_with, .. } = self.metadata;
        Source {
            place: place.to_owned(),
            document: Value::Object(self.settings),
            origins: self.origins,
            root_pem: Some(self.mesh_roots.pem().to_owned()),
            token: self.istio_token,
            kubernetes: self.kubernetes,
            terms: Some(Terms { name_prefix, renew_with }),
            warnings: Vec::new(),
        }
    }
}

/// The version of the format that is written, and the only one that is read.
pub(super) const API_VERSION: &str = "vm-agent.io/v1";
pub(super) const KIND: &str = "JoinBundle";

#[cfg(test)]
mod tests;
