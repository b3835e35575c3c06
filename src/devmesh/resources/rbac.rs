//! Who may call: AuthorizationPolicies as Envoy's filters (`pilot/pkg/security/authz/builder`).
//! What denies comes first, and where something is allowed, nothing else is.

use std::collections::BTreeMap;

use super::pack;
use crate::devmesh::policy::{Action, Operation, Policy, PortText, Rule, Source};
use crate::proto::envoy::permission::{self, Rule as Permitted};
use crate::proto::envoy::principal::{self, Authenticated, Identifier};
use crate::proto::envoy::rules;
use crate::proto::envoy::string_matcher::Pattern;
use crate::proto::envoy::{
    Filter, HeaderMatcher, HttpFilter, HttpRbac, NetworkRbac, PathMatcher, Permission,
    Policy as Permits, Principal, RegexMatcher, Rules, StringMatcher,
};

/// What the filter sees of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// Requests.
    Http,
    /// Connections alone.
    Tcp,
}

/// The filters of a port that speaks HTTP.
pub(super) fn http(policies: &[&Policy]) -> Vec<HttpFilter> {
    let filter = |rules| HttpFilter {
        name: "envoy.filters.http.rbac".to_owned(),
        typed_config: Some(pack(HTTP, &HttpRbac { rules: Some(rules) })),
    };
    rules(policies, Layer::Http).into_iter().map(filter).collect()
}

/// The filters of any other port.
pub(super) fn network(policies: &[&Policy]) -> Vec<Filter> {
    let filter = |rules| {
        let rbac = NetworkRbac { rules: Some(rules), stat_prefix: "tcp.".to_owned() };
        let name = "envoy.filters.network.rbac".to_owned();
        Filter { name, typed_config: Some(pack(NETWORK, &rbac)) }
    };
    rules(policies, Layer::Tcp).into_iter().map(filter).collect()
}

fn rules(policies: &[&Policy], layer: Layer) -> Vec<Rules> {
    let mut all = Vec::new();
    for (action, word) in
        [(Action::Deny, rules::Action::Deny), (Action::Allow, rules::Action::Allow)]
    {
        let chosen: Vec<_> = policies.iter().filter(|policy| policy.action == action).collect();
        if chosen.is_empty() {
            continue;
        }
        let mut made = BTreeMap::new();
        for policy in chosen {
            for (number, rule) in policy.rules.iter().enumerate() {
                let name =
                    format!("ns[{}]-policy[{}]-rule[{number}]", policy.namespace, policy.name);
                made.extend(permits(rule, action, layer).map(|permits| (name, permits)));
            }
        }
        all.push(Rules { action: word.into(), policies: made });
    }
    all
}

/// `None` for a rule that can never hold there.
fn permits(rule: &Rule, action: Action, layer: Layer) -> Option<Permits> {
    let mut permissions = Vec::new();
    for operation in rule.operations() {
        // Of a mere connection nobody knows whether it is allowed by what it asks for; what a
        // denial says of requests is left out, which denies more.
        if layer == Layer::Tcp && operation.is_about_requests() && action == Action::Allow {
            continue;
        }
        permissions.push(permission(operation, layer));
    }
    if rule.operations().next().is_none() {
        permissions.push(Permission { rule: Some(Permitted::Any(true)) });
    }
    let mut principals: Vec<_> = rule.sources().map(principal).collect();
    if principals.is_empty() {
        principals.push(Principal { identifier: Some(Identifier::Any(true)) });
    }
    (!permissions.is_empty()).then_some(Permits { permissions, principals })
}

impl Operation {
    fn is_about_requests(&self) -> bool {
        let all = [&self.paths, &self.not_paths, &self.methods, &self.not_methods];
        all.iter().any(|texts| !texts.is_empty())
    }
}

fn permission(operation: &Operation, layer: Layer) -> Permission {
    let path = |text: &String| Permitted::UrlPath(PathMatcher { path: Some(glob(text, "")) });
    let method = |text: &String| {
        let name = ":method".to_owned();
        Permitted::Header(HeaderMatcher { name, string_match: Some(glob(text, "")) })
    };
    let port = |port: &PortText| Permitted::DestinationPort(port.0.into());
    let mut all = Vec::new();
    if layer == Layer::Http {
        all.extend(one_of(&operation.paths, path));
        all.extend(one_of(&operation.not_paths, path).map(not));
        all.extend(one_of(&operation.methods, method));
        all.extend(one_of(&operation.not_methods, method).map(not));
    }
    all.extend(one_of(&operation.ports, port));
    all.extend(one_of(&operation.not_ports, port).map(not));
    let rule = if all.is_empty() {
        Permitted::Any(true)
    } else {
        Permitted::AndRules(permission::Set { rules: all })
    };
    Permission { rule: Some(rule) }
}

fn one_of<T>(texts: &[T], rule: impl Fn(&T) -> Permitted) -> Option<Permission> {
    let rules: Vec<_> = texts.iter().map(|text| Permission { rule: Some(rule(text)) }).collect();
    let any = Permitted::OrRules(permission::Set { rules });
    (!texts.is_empty()).then_some(Permission { rule: Some(any) })
}

fn not(permission: Permission) -> Permission {
    Permission { rule: Some(Permitted::NotRule(Box::new(permission))) }
}

fn principal(source: &Source) -> Principal {
    let by = |names: &[String], name: fn(&str) -> StringMatcher| {
        let one = |text: &String| Principal {
            identifier: Some(Identifier::Authenticated(Authenticated {
                principal_name: Some(name(text)),
            })),
        };
        let ids: Vec<_> = names.iter().map(one).collect();
        let any = Identifier::OrIds(principal::Set { ids });
        (!names.is_empty()).then_some(Principal { identifier: Some(any) })
    };
    let not = |one: Principal| Principal { identifier: Some(Identifier::NotId(Box::new(one))) };
    let account: fn(&str) -> StringMatcher = |text| glob(text, "spiffe://");
    let mut ids = Vec::new();
    ids.extend(by(&source.principals, account));
    ids.extend(by(&source.not_principals, account).map(not));
    ids.extend(by(&source.namespaces, of_namespace));
    ids.extend(by(&source.not_namespaces, of_namespace).map(not));
    let identifier = if ids.is_empty() {
        Identifier::Any(true)
    } else {
        Identifier::AndIds(principal::Set { ids })
    };
    Principal { identifier: Some(identifier) }
}

/// A text that may begin or end with `*`, behind what all such texts begin with.
fn glob(text: &str, head: &str) -> StringMatcher {
    let pattern = if text == "*" {
        Pattern::SafeRegex(RegexMatcher { regex: ".+".to_owned() })
    } else if let Some(start) = text.strip_suffix('*') {
        Pattern::Prefix(format!("{head}{start}"))
    } else if let Some(end) = text.strip_prefix('*') {
        Pattern::Suffix(end.to_owned())
    } else {
        Pattern::Exact(format!("{head}{text}"))
    };
    StringMatcher { pattern: Some(pattern) }
}

/// Identities of a namespace.
fn of_namespace(text: &str) -> StringMatcher {
    let letter = |letter: char| match letter {
        '*' => "[^/]*".to_owned(),
        plain if plain.is_ascii_alphanumeric() => plain.to_string(),
        other => format!("\\{other}"),
    };
    let regex = format!(".*/ns/{}/.*", text.chars().map(letter).collect::<String>());
    StringMatcher { pattern: Some(Pattern::SafeRegex(RegexMatcher { regex })) }
}

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
