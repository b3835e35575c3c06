//! What the specs of Istio's kinds may hold, as the CRDs say it, and the API server's words for
//! what they may not. What the mesh cannot obey of a policy is not in here, so nobody believes in
//! a condition that does not hold.

use serde_json::{Value, json};

use super::answer::Refusal;
use super::kind::Resource;

/// The form of a value.
enum Shape {
    /// Anything.
    Free,
    Fields(&'static [(&'static str, Self)]),
    Integer,
    List(&'static Self),
    /// An object whose values are of this form.
    Map(&'static Self),
    Text,
    /// One of these texts.
    Word(&'static [&'static str]),
}

/// Something in a spec that should not be there.
struct Problem {
    path: String,
    what: What,
}

enum What {
    Type { wanted: &'static str, found: Value },
    Unknown,
    Word { wanted: &'static [&'static str], found: String },
}

/// How strictly unknown fields are taken, by the call's option `fieldValidation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strictness {
    /// They are left out.
    Prune,
    /// They are refused.
    Strict,
}

/// Whether an object is all of it, or a part that is applied to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Part,
    Whole,
}

/// Checks an object's spec, and leaves unknown fields out where they are not refused.
pub(super) fn check(
    resource: Resource,
    object: &mut Value,
    (strictness, extent): (Strictness, Extent),
) -> Result<(), Refusal> {
    let Some(shape) = shape(resource) else { return Ok(()) };
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let name = name.to_owned();
    let mut problems = Vec::new();
    if let Some(spec) = object.get_mut("spec") {
        shape.check("spec", spec, &mut problems);
    }
    let is_policy = resource == Resource::AuthorizationPolicies;
    let is_unknown = |problem: &&Problem| matches!(problem.what, What::Unknown);
    let unknown: Vec<String> = problems
        .iter()
        .filter(is_unknown)
        .map(|problem| format!("unknown field {:?}", problem.path))
        .collect();
    if !unknown.is_empty() && (is_policy || strictness == Strictness::Strict) {
        let kind = resource.kind();
        return Err(Refusal::bad_request(&format!(
            "{kind} in version \"v1\" cannot be handled as a {kind}: strict decoding error: {}",
            unknown.join(", ")
        )));
    }
    let mut causes: Vec<Value> =
        problems.iter().filter(|problem| !is_unknown(problem)).map(Problem::cause).collect();
    if extent == Extent::Whole {
        causes.extend(missing(resource, object));
    }
    if causes.is_empty() { Ok(()) } else { Err(Refusal::unfit(resource, &name, &causes)) }
}

/// Fields without which an object means nothing.
fn missing(resource: Resource, object: &Value) -> Option<Value> {
    let path = match resource {
        Resource::ServiceEntries => "spec.hosts",
        Resource::WorkloadGroups => "spec.template",
        _ => return None,
    };
    let found = object.pointer(&format!("/{}", path.replace('.', "/"))).is_some();
    (!found).then(
        || json!({"reason": "FieldValueRequired", "message": "Required value", "field": path}),
    )
}

impl Problem {
    fn cause(&self) -> Value {
        let path = &self.path;
        let (reason, message) = match &self.what {
            What::Type { wanted, found } => {
                let found = type_of(found);
                let words = format!(
                    "Invalid value: {found:?}: {path} in body must be of type {wanted}: {found:?}"
                );
                ("FieldValueTypeInvalid", words)
            }
            What::Word { wanted, found } => {
                let known: Vec<_> = wanted.iter().map(|word| format!("{word:?}")).collect();
                let words =
                    format!("Unsupported value: {found:?}: supported values: {}", known.join(", "));
                ("FieldValueNotSupported", words)
            }
            What::Unknown => ("FieldValueInvalid", "unknown field".to_owned()),
        };
        json!({"reason": reason, "message": message, "field": path})
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Shape {
    fn name(&self) -> &'static str {
        match self {
            Self::Free | Self::Fields(_) | Self::Map(_) => "object",
            Self::Integer => "integer",
            Self::List(_) => "array",
            Self::Text | Self::Word(_) => "string",
        }
    }

    /// Notes the problems of a value, and takes its unknown fields away.
    fn check(&self, path: &str, value: &mut Value, problems: &mut Vec<Problem>) {
        match (self, value) {
            (Self::Free, _) | (Self::Text, Value::String(_)) => {}
            (Self::Integer, Value::Number(number)) if number.is_u64() || number.is_i64() => {}
            (Self::Word(wanted), Value::String(word)) => {
                if !wanted.contains(&word.as_str()) {
                    let what = What::Word { wanted, found: word.clone() };
                    problems.push(Problem { path: path.to_owned(), what });
                }
            }
            (Self::List(of), Value::Array(items)) => {
                for (number, item) in items.iter_mut().enumerate() {
                    of.check(&format!("{path}[{number}]"), item, problems);
                }
            }
            (Self::Map(of), Value::Object(fields)) => {
                for (key, value) in fields {
                    of.check(&format!("{path}.{key}"), value, problems);
                }
            }
            (Self::Fields(known), Value::Object(fields)) => {
                fields.retain(|key, value| {
                    let path = format!("{path}.{key}");
                    match known.iter().find(|(name, _)| name == key) {
                        Some((_, shape)) => {
                            shape.check(&path, value, problems);
                            true
                        }
                        None => {
                            problems.push(Problem { path, what: What::Unknown });
                            false
                        }
                    }
                });
            }
            (shape, found) => {
                let what = What::Type { wanted: shape.name(), found: found.clone() };
                problems.push(Problem { path: path.to_owned(), what });
            }
        }
    }
}

fn shape(resource: Resource) -> Option<&'static Shape> {
    match resource {
        Resource::AuthorizationPolicies => Some(&AUTHORIZATION_POLICY),
        Resource::PeerAuthentications => Some(&PEER_AUTHENTICATION),
        Resource::ServiceEntries => Some(&SERVICE_ENTRY),
        Resource::WorkloadEntries => Some(&WORKLOAD),
        Resource::WorkloadGroups => Some(&WORKLOAD_GROUP),
        _ => None,
    }
}

use Shape::{Fields, Free, Integer, List, Map, Text, Word};

static WORKLOAD: Shape = Fields(&[
    ("address", Text),
    ("labels", Map(&Text)),
    ("locality", Text),
    ("network", Text),
    ("ports", Map(&Integer)),
    ("serviceAccount", Text),
    ("weight", Integer),
]);

static WORKLOAD_GROUP: Shape = Fields(&[
    ("metadata", Fields(&[("annotations", Map(&Text)), ("labels", Map(&Text))])),
    ("probe", Free),
    (
        "template",
        Fields(&[
            ("address", Text),
            ("labels", Map(&Text)),
            ("locality", Text),
            ("network", Text),
            ("ports", Map(&Integer)),
            ("serviceAccount", Text),
            ("weight", Integer),
        ]),
    ),
]);

static PORT: Shape =
    Fields(&[("name", Text), ("number", Integer), ("protocol", Text), ("targetPort", Integer)]);

static SERVICE_ENTRY: Shape = Fields(&[
    ("addresses", List(&Text)),
    ("endpoints", List(&WORKLOAD)),
    ("exportTo", List(&Text)),
    ("hosts", List(&Text)),
    ("location", Word(&["MESH_EXTERNAL", "MESH_INTERNAL"])),
    ("ports", List(&PORT)),
    ("resolution", Word(&["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"])),
    ("subjectAltNames", List(&Text)),
    ("workloadSelector", Fields(&[("labels", Map(&Text))])),
]);

static PEER_AUTHENTICATION: Shape = Fields(&[
    ("mtls", Fields(&[("mode", Word(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]))])),
    ("selector", Fields(&[("matchLabels", Map(&Text))])),
]);

static FROM: Shape = Fields(&[(
    "source",
    Fields(&[
        ("namespaces", List(&Text)),
        ("notNamespaces", List(&Text)),
        ("notPrincipals", List(&Text)),
        ("principals", List(&Text)),
    ]),
)]);

static TO: Shape = Fields(&[(
    "operation",
    Fields(&[
        ("methods", List(&Text)),
        ("notMethods", List(&Text)),
        ("notPaths", List(&Text)),
        ("notPorts", List(&Text)),
        ("paths", List(&Text)),
        ("ports", List(&Text)),
    ]),
)]);

static RULE: Shape = Fields(&[("from", List(&FROM)), ("to", List(&TO))]);

static AUTHORIZATION_POLICY: Shape = Fields(&[
    ("action", Word(&["ALLOW", "DENY"])),
    ("rules", List(&RULE)),
    ("selector", Fields(&[("matchLabels", Map(&Text))])),
]);
