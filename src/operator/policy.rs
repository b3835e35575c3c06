//! What a Role cannot say, as admission policies in CEL (Kubernetes `ValidatingAdmissionPolicy`):
//! which WorkloadEntries machines write, and which tokens they make. `packaging/kubernetes/` shows
//! the same with comments.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::grants::place;
use super::{Grants, Group, Manifest};

/// Expressions with what is said where they do not hold. All texts in them are names of Kubernetes,
/// which have no quotes, or quoted by [`text`].
type Rules = Vec<(String, String)>;

impl Grants<'_> {
    /// The policies and their bindings. One set holds for all machines of a service account.
    #[must_use]
    pub fn policy(&self) -> Vec<Manifest> {
        let Group { namespace, service_account: account, .. } = self.group;
        // A namespace has no dots, so two accounts never share a name.
        let entries = Policy {
            name: format!("vm-agent.{namespace}.{account}"),
            group: "networking.istio.io",
            resources: &["workloadentries", "workloadentries/status"],
            operations: &["CREATE", "UPDATE", "DELETE"],
            rules: self.entry_rules(),
        };
        let tokens = Policy {
            name: format!("vm-agent-tokens.{namespace}.{account}"),
            group: "",
            resources: &["serviceaccounts/token"],
            operations: &["CREATE"],
            rules: self.token_rules(),
        };
        [entries, tokens].iter().flat_map(|policy| policy.manifests(self.group)).collect()
    }

    /// Whose entries they write, under which labels, weight and address.
    fn entry_rules(&self) -> Rules {
        let Group { namespace, service_account: account, .. } = self.group;
        let is_ours = |object: &str| {
            format!(
                "has({object}.spec) && has({object}.spec.serviceAccount) && \
                 {object}.spec.serviceAccount == '{account}'"
            )
        };
        let mut rules = vec![
            (
                format!("request.namespace == '{namespace}'"),
                format!(
                    "machines of {namespace}/{account} have no WorkloadEntries in other namespaces"
                ),
            ),
            (
                "!has(request.subResource) || request.subResource == ''".to_owned(),
                "a machine does not write the status of a WorkloadEntry: istiod does".to_owned(),
            ),
            (
                format!("request.operation == 'DELETE' || ({})", is_ours("object")),
                format!("a machine writes WorkloadEntries with its own service account: {account}"),
            ),
            (
                format!("request.operation == 'CREATE' || ({})", is_ours("oldObject")),
                format!("this WorkloadEntry is not of service account {account}"),
            ),
        ];
        let prefix = &self.machines.name_prefix;
        if !prefix.is_empty() {
            rules.push((
                format!(
                    "(request.operation == 'DELETE' ? oldObject : object).metadata.name.startsWith('{prefix}')"
                ),
                format!("names of these machines begin with {prefix}"),
            ));
        }
        rules.extend(self.label_rules());
        rules.push((
            written(&format!(
                "!has(object.spec.weight) || object.spec.weight <= {}",
                self.largest_weight()
            )),
            format!("the weight of these machines is at most {}", self.largest_weight()),
        ));
        rules.push(self.address_rule());
        rules.push((
            written(
                "!has(object.metadata.finalizers) || size(object.metadata.finalizers) == 0 || \
                 (request.operation == 'UPDATE' && has(oldObject.metadata.finalizers) && \
                 object.metadata.finalizers == oldObject.metadata.finalizers)",
            ),
            "a machine sets no finalizers".to_owned(),
        ));
        rules
    }

    /// Labels decide which services send requests to a machine: istiod reads those of the spec and
    /// of the object alike. A label that somebody else has put there may stay.
    fn label_rules(&self) -> Rules {
        let groups: Vec<String> =
            self.all_groups().map(|group| labels(&group.machine_labels())).collect();
        let free: Vec<String> = self.machines.free_labels.iter().map(|key| text(key)).collect();
        let (groups, free) = (groups.join(", "), free.join(", "));
        let rule = |at: &str, own: &str| {
            let kept = format!(
                "request.operation == 'UPDATE' && has(oldObject.{at}) && k in oldObject.{at} && \
                 oldObject.{at}[k] == object.{at}[k]"
            );
            written(&format!(
                "!has(object.{at}) || [{groups}].exists(g, object.{at}.all(k, \
                 (k in g && (g[k] == object.{at}[k] || g[k] == '*')) || \
                 k in [{free}]{own} || ({kept})))"
            ))
        };
        let words = "a machine has the labels of its WorkloadGroup, and no others (vm-agent bundle \
                     create --allow-label KEY)";
        vec![
            (rule("spec.labels", ""), words.to_owned()),
            (rule("metadata.labels", " || k == 'app.kubernetes.io/managed-by'"), words.to_owned()),
        ]
    }

    fn address_rule(&self) -> (String, String) {
        let is_ip = "isIP(object.spec.address) && ip(object.spec.address).isGlobalUnicast()";
        let known = "has(object.spec) && has(object.spec.address)";
        if self.machines.host_names {
            let name = "!isIP(object.spec.address) && object.spec.address.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$') && \
                        object.spec.address != 'localhost' && !object.spec.address.endsWith('.localhost')";
            let rule = written(&format!("{known} && (({is_ip}) || ({name}))"));
            return (
                rule,
                "the address of a machine is an IP address that others reach, or a host name"
                    .to_owned(),
            );
        }
        (
            written(&format!("{known} && {is_ip}")),
            "the address of a machine is an IP address that others reach (vm-agent bundle create \
             --allow-host-names)"
                .to_owned(),
        )
    }

    /// Which tokens of their own account machines make.
    fn token_rules(&self) -> Rules {
        let mut rules = vec![(
            format!(
                "has(object.spec.expirationSeconds) && object.spec.expirationSeconds <= {LONGEST_TOKEN}"
            ),
            format!("a machine's token lives at most {LONGEST_TOKEN} seconds"),
        )];
        if self.bound {
            rules.push((
                "has(object.spec.boundObjectRef) && has(object.spec.boundObjectRef.kind) && \
                 object.spec.boundObjectRef.kind == 'Secret'"
                    .to_owned(),
                "a machine's token is bound to the Secret of its bundle".to_owned(),
            ));
        }
        rules
    }

    fn all_groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(self.group).chain(self.siblings)
    }

    fn largest_weight(&self) -> u64 {
        let weights = self.all_groups().filter_map(|group| group.template.get("weight")?.as_u64());
        weights.max().unwrap_or_default().max(LARGEST_WEIGHT)
    }
}

/// A policy for requests of the machines of one account.
struct Policy {
    name: String,
    group: &'static str,
    resources: &'static [&'static str],
    operations: &'static [&'static str],
    rules: Rules,
}

impl Policy {
    /// The policy and its binding.
    fn manifests(&self, of: &Group) -> [Manifest; 2] {
        let Self { name, group, resources, operations, rules } = self;
        let Group { namespace, service_account: account, .. } = of;
        let rules = rules.iter();
        let rules = rules
            .map(|(expression, message)| json!({"expression": expression, "message": message}));
        let policy = json!({
            "apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                // The server's defaults are said too, so that the same applied by hand is no conflict.
                "matchConstraints": {
                    "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {},
                    "resourceRules": [{
                        "apiGroups": [group], "apiVersions": ["*"],
                        "resources": resources, "operations": operations, "scope": "*",
                    }],
                },
                "matchConditions": [{
                    "name": "by-these-machines",
                    "expression": format!("request.userInfo.username == 'system:serviceaccount:{namespace}:{account}'"),
                }],
                "validations": rules.collect::<Vec<Value>>(),
            },
        });
        let binding = json!({
            "apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        [("validatingadmissionpolicies", policy), ("validatingadmissionpolicybindings", binding)]
            .map(|(resource, body)| {
                let object = place(ADMISSION, resource, "", name);
                Manifest { object, body, only_if_missing: false }
            })
    }
}

/// A rule for what is written; a deletion writes nothing.
fn written(expression: &str) -> String {
    format!("request.operation == 'DELETE' || ({expression})")
}

/// A map of labels in CEL. A value that is a template is the machine's to fill in.
fn labels(labels: &BTreeMap<String, String>) -> String {
    let pair = |(key, value): (&String, &String)| {
        let value = if value.contains("{{") { "*" } else { value };
        format!("{}: {}", text(key), text(value))
    };
    format!("{{{}}}", labels.iter().map(pair).collect::<Vec<_>>().join(", "))
}

/// A text in CEL.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
/// What machines ask for by default (`credential.tokenLife`), seconds.
const LONGEST_TOKEN: u64 = 86_400;
/// Istio's weights are shares; nobody needs more for one machine, unless its group says so.
const LARGEST_WEIGHT: u64 = 1000;
