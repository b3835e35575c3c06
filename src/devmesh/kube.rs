//! The part of the Kubernetes API that the agent uses: WorkloadEntries, read, applied and deleted,
//! with service-account tokens, permissions, and refusals in Kubernetes' own form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{State, lock, tls};
use crate::base::tasks::Tasks;

/// Objects and permissions.
#[derive(Default)]
pub(super) struct Store {
    entries: Mutex<BTreeMap<String, Value>>,
    granted: Mutex<BTreeSet<String>>,
}

impl Store {
    pub(super) fn get(&self, key: &str) -> Option<Value> {
        lock(&self.entries).get(key).cloned()
    }

    pub(super) fn put(&self, key: &str, object: Value) {
        lock(&self.entries).insert(key.to_owned(), object);
    }

    pub(super) fn grant(&self, namespace: &str, account: &str) {
        lock(&self.granted).insert(format!("system:serviceaccount:{namespace}:{account}"));
    }
}

pub(super) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    state: Arc<State>,
    tasks: Tasks,
) -> Result<(), std::io::Error> {
    let entry = get(read).patch(apply).delete(remove);
    let path = "/apis/networking.istio.io/v1/namespaces/{namespace}/workloadentries/{name}";
    let router = Router::new().route(path, entry).with_state(state);
    let mut connections = tls::accept(listener, acceptor, &tasks);
    while let Some(Ok(connection)) = connections.next().await {
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn("kube-connection", async move {
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(connection), service).await);
        });
    }
    Ok(())
}

type At = Path<(String, String)>;

async fn read(
    Shared(state): Shared<Arc<State>>,
    Path((namespace, name)): At,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refuse(&state, &headers, "get", &namespace, &name) {
        return refusal;
    }
    match state.kube.get(&format!("{namespace}/{name}")) {
        Some(found) => Json(found).into_response(),
        None => status(StatusCode::NOT_FOUND, "NotFound", format!("{RESOURCE} {name:?} not found")),
    }
}

async fn apply(
    Shared(state): Shared<Arc<State>>,
    Path((namespace, name)): At,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(refusal) = refuse(&state, &headers, "patch", &namespace, &name) {
        return refusal;
    }
    let Ok(mut object) = serde_json::from_str::<Value>(&body) else {
        return status(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "the body is not an object".to_owned(),
        );
    };
    let manager = query.get("fieldManager").cloned().unwrap_or_default();
    let key = format!("{namespace}/{name}");
    let owner = state.kube.get(&key).and_then(|found| {
        found.pointer("/metadata/managedFields/0/manager")?.as_str().map(str::to_owned)
    });
    let force = query.get("force").is_some_and(|force| force == "true");
    if let Some(owner) = owner.filter(|owner| *owner != manager && !force) {
        let words = format!("Apply failed with 1 conflict: conflict with {owner:?}: .spec.address");
        return status(StatusCode::CONFLICT, "Conflict", words);
    }
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        let managers = json!([{"manager": manager, "operation": "Apply"}]);
        metadata.insert("managedFields".to_owned(), managers);
    }
    state.kube.put(&key, object.clone());
    Json(object).into_response()
}

async fn remove(
    Shared(state): Shared<Arc<State>>,
    Path((namespace, name)): At,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refuse(&state, &headers, "delete", &namespace, &name) {
        return refusal;
    }
    match lock(&state.kube.entries).remove(&format!("{namespace}/{name}")) {
        Some(_) => Json(json!({"kind": "Status", "status": "Success"})).into_response(),
        None => status(StatusCode::NOT_FOUND, "NotFound", format!("{RESOURCE} {name:?} not found")),
    }
}

/// What the API server says to a caller without a valid token or without permission.
fn refuse(
    state: &State,
    headers: &HeaderMap,
    verb: &str,
    namespace: &str,
    name: &str,
) -> Option<Response> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    let account = bearer.and_then(|bearer| state.tokens.check(bearer, AUDIENCE));
    let Some(account) = account else {
        return Some(status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".to_owned()));
    };
    let user = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
    if account.namespace == namespace && lock(&state.kube.granted).contains(&user) {
        return None;
    }
    let words = format!(
        "{RESOURCE} {name:?} is forbidden: User {user:?} cannot {verb} resource \"workloadentries\" in \
         API group \"networking.istio.io\" in the namespace {namespace:?}"
    );
    Some(status(StatusCode::FORBIDDEN, "Forbidden", words))
}

fn status(code: StatusCode, reason: &str, message: String) -> Response {
    let body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    });
    (code, Json(body)).into_response()
}

const RESOURCE: &str = "workloadentries.networking.istio.io";
/// The audience of the API server's own tokens.
const AUDIENCE: &str = "https://kubernetes.default.svc";
