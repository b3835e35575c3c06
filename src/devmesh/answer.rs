//! What the API server says when it does not do as asked: `Status` objects in Kubernetes' words
//! (`apimachinery/pkg/api/errors`).

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::Code;

use super::apply::{self, Conflict};
use super::kind::Resource;

/// A refusal in the form of a `Status` object.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    body: Box<Value>,
}

impl Refusal {
    fn new(code: StatusCode, reason: &str, message: &str, details: Option<Value>) -> Self {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code.as_u16(),
        });
        if let (Some(details), Some(body)) = (details, body.as_object_mut()) {
            body.insert("details".to_owned(), details);
        }
        Self { code, body: Box::new(body) }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", None)
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message, None)
    }

    pub(super) fn invalid(message: &str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, None)
    }

    /// An object that does not fit its kind, with the causes of the details.
    pub(super) fn unfit(resource: Resource, name: &str, causes: &[Value]) -> Self {
        let text = |cause: &Value, key: &str| {
            cause.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let all: Vec<String> = causes
            .iter()
            .map(|cause| format!("{}: {}", text(cause, "field"), text(cause, "message")))
            .collect();
        let all = if let [only] = all.as_slice() {
            only.clone()
        } else {
            format!("[{}]", all.join(", "))
        };
        let kind = resource.full_kind();
        let words = format!("{kind} {name:?} is invalid: {all}");
        let details = json!({
            "name": name, "group": resource.group(), "kind": resource.kind(), "causes": causes,
        });
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &words, Some(details))
    }

    pub(super) fn internal(words: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", words, None)
    }

    pub(super) fn method() -> Self {
        let words = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", words, Some(json!({})))
    }

    /// Its words.
    pub(super) fn message(&self) -> &str {
        self.body.get("message").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn no_such_path() -> Self {
        let words = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", words, Some(json!({})))
    }

    pub(super) fn media_type() -> Self {
        let words = "the body of the request was in an unknown format - accepted media types \
                     include: application/json-patch+json, application/merge-patch+json, \
                     application/apply-patch+yaml";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", words, None)
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let words = format!("{} {name:?} not found", resource.full());
        Self::new(StatusCode::NOT_FOUND, "NotFound", &words, Some(details(resource, name)))
    }

    pub(super) fn exists(resource: Resource, name: &str) -> Self {
        let words = format!("{} {name:?} already exists", resource.full());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", &words, Some(details(resource, name)))
    }

    pub(super) fn stale(resource: Resource, name: &str) -> Self {
        let words = format!(
            "Operation cannot be fulfilled on {} {name:?}: the object has been modified; \
             please apply your changes to the latest version and try again",
            resource.full()
        );
        Self::new(StatusCode::CONFLICT, "Conflict", &words, Some(details(resource, name)))
    }

    /// The changes since that revision are not known any more.
    pub(super) fn expired(revision: u64) -> Self {
        let words = format!("too old resource version: {revision}");
        Self::new(StatusCode::GONE, "Expired", &words, None)
    }

    /// The `Status` object alone.
    pub(super) fn into_status(self) -> Value {
        *self.body
    }

    pub(super) fn conflicts(conflicts: &[Conflict]) -> Self {
        let cause = |conflict: &Conflict| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {}", conflict.manager),
                "field": conflict.field,
            })
        };
        let causes: Vec<_> = conflicts.iter().map(cause).collect();
        let (words, details) = (apply::message(conflicts), json!({"causes": causes}));
        Self::new(StatusCode::CONFLICT, "Conflict", &words, Some(details))
    }

    /// A refusal of the authorizer. A subresource is named in the act, not in the subject.
    pub(super) fn forbidden(user: &str, act: &Act<'_>) -> Self {
        let Act { verb, plural, group, namespace, name } = act;
        let kind = plural.split('/').next().unwrap_or_default();
        let full = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let subject = if name.is_empty() { full } else { format!("{full} {name:?}") };
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        let words = format!(
            "{subject} is forbidden: User {user:?} cannot {verb} resource {plural:?} in API group \
             {group:?} {place}"
        );
        let details = json!({"name": name, "group": group, "kind": kind});
        Self::new(StatusCode::FORBIDDEN, "Forbidden", &words, Some(details))
    }

    /// The HTTP answer that means the same as a gRPC status.
    pub(super) fn of(status: &tonic::Status) -> Self {
        let (code, reason) = match status.code() {
            Code::Unauthenticated => return Self::unauthorized(),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, "Forbidden"),
            Code::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
            Code::AlreadyExists => (StatusCode::CONFLICT, "AlreadyExists"),
            Code::Aborted => (StatusCode::CONFLICT, "Conflict"),
            Code::InvalidArgument => (StatusCode::BAD_REQUEST, "BadRequest"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        };
        Self::new(code, reason, status.message(), None)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.code, Json(*self.body)).into_response()
    }
}

/// What somebody wants to do.
pub(super) struct Act<'a> {
    pub(super) verb: &'static str,
    pub(super) plural: &'a str,
    /// Empty for the core group.
    pub(super) group: &'a str,
    /// Empty for all namespaces.
    pub(super) namespace: &'a str,
    /// Empty for a collection.
    pub(super) name: &'a str,
}

/// The `Status` after a deletion.
pub(super) fn deleted(resource: Resource, object: &Value) -> Value {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let mut details = details(resource, name);
    if let (Some(details), Some(uid)) = (details.as_object_mut(), object.pointer("/metadata/uid")) {
        details.insert("uid".to_owned(), uid.clone());
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })
}

fn details(resource: Resource, name: &str) -> Value {
    json!({"name": name, "group": resource.group(), "kind": resource.plural()})
}
