//! Who must prove who they are, and who may call whom: PeerAuthentication and
//! AuthorizationPolicy, as far as the mesh serves them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::catalog::{selects, spec, whose};
use super::kind::Resource;
use super::store::Objects;

/// Whether a workload takes calls without mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MutualTls {
    /// It takes only those.
    Disable,
    /// It takes both.
    Permissive,
    /// It takes none of them.
    #[default]
    Strict,
}

/// What is done with calls that a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Deny,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) action: Action,
    pub(super) rules: Vec<Rule>,
    pub(super) selector: BTreeMap<String, String>,
}

/// A rule of a policy: it holds when one of the sources and one of the operations hold. An empty
/// list holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rule {
    from: Vec<From>,
    to: Vec<To>,
}

impl Rule {
    pub(super) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.from.iter().map(|from| &from.source)
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.to.iter().map(|to| &to.operation)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct From {
    source: Source,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct To {
    operation: Operation,
}

/// Who calls. Each text may begin or end with `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Source {
    /// Such as `cluster.local/ns/vms/sa/client`.
    pub(super) principals: Vec<String>,
    pub(super) not_principals: Vec<String>,
    pub(super) namespaces: Vec<String>,
    pub(super) not_namespaces: Vec<String>,
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Operation {
    pub(super) paths: Vec<String>,
    pub(super) not_paths: Vec<String>,
    pub(super) methods: Vec<String>,
    pub(super) not_methods: Vec<String>,
    pub(super) ports: Vec<PortText>,
    pub(super) not_ports: Vec<PortText>,
}

/// A port, which policies write as a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct PortText(pub(super) u16);

impl TryFrom<String> for PortText {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// All policies.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Policies {
    pub(super) authorization: Vec<Policy>,
    authentication: Vec<Authentication>,
}

#[derive(Debug, PartialEq, Eq)]
struct Authentication {
    namespace: String,
    selector: BTreeMap<String, String>,
    mode: Option<MutualTls>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthorizationSpec {
    selector: Selector,
    action: String,
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthenticationSpec {
    selector: Selector,
    mtls: Mtls,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mtls {
    mode: String,
}

impl Policies {
    pub(super) fn read(objects: &Objects) -> Self {
        let all = |resource| objects.list(resource, None);
        let authorization = all(Resource::AuthorizationPolicies);
        let authentication = all(Resource::PeerAuthentications);
        Self {
            authorization: authorization.iter().filter_map(Policy::read).collect(),
            authentication: authentication.iter().filter_map(Authentication::read).collect(),
        }
    }

    /// The policies of a workload.
    pub(super) fn of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &Policy> {
        self.authorization.iter().filter(move |policy| {
            (policy.namespace == namespace || policy.namespace == ROOT_NAMESPACE)
                && selects(&policy.selector, labels)
        })
    }

    /// What a workload asks of its callers: the most special one that says something counts, and
    /// the mesh's default where none does.
    pub(super) fn mutual_tls(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        default: MutualTls,
    ) -> MutualTls {
        let own = |one: &&Authentication| one.namespace == namespace;
        let special = |one: &&Authentication| {
            !one.selector.is_empty() && own(one) && selects(&one.selector, labels)
        };
        let general = |one: &&Authentication| one.selector.is_empty();
        let all = self.authentication.iter();
        let special = all.clone().filter(special).find_map(|one| one.mode);
        let of_namespace = all.clone().filter(general).filter(own).find_map(|one| one.mode);
        let of_mesh = all.filter(general).filter(|one| one.namespace == ROOT_NAMESPACE);
        special
            .or(of_namespace)
            .or_else(|| of_mesh.into_iter().find_map(|one| one.mode))
            .unwrap_or(default)
    }
}

impl Policy {
    fn read(object: &Value) -> Option<Self> {
        let (namespace, name) = whose(object);
        let spec: AuthorizationSpec = spec(object)?;
        let action = match spec.action.as_str() {
            "" | "ALLOW" => Action::Allow,
            "DENY" => Action::Deny,
            other => {
                tracing::warn!(
                    "AuthorizationPolicy {namespace}/{name} is left out: the action {other} is not served here."
                );
                return None;
            }
        };
        Some(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            action,
            rules: spec.rules,
            selector: spec.selector.match_labels,
        })
    }
}

impl Authentication {
    fn read(object: &Value) -> Option<Self> {
        let spec: AuthenticationSpec = spec(object)?;
        let mode = match spec.mtls.mode.as_str() {
            "STRICT" => Some(MutualTls::Strict),
            "PERMISSIVE" => Some(MutualTls::Permissive),
            "DISABLE" => Some(MutualTls::Disable),
            _ => None,
        };
        let namespace = whose(object).0.to_owned();
        Some(Self { namespace, selector: spec.selector.match_labels, mode })
    }
}

/// Policies of this namespace are the whole mesh's.
const ROOT_NAMESPACE: &str = "istio-system";
