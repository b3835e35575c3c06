//! Certificate requests of the Kubernetes API (`certificates.k8s.io/v1`), with a signer that signs
//! what was approved.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, stream};
use rcgen::{CertificateSigningRequestParams, DistinguishedName};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::answer::{Act, Refusal};
use super::kube::{User, authorize};
use super::pki::{self, DAY, Order};
use super::{State, lock};
use crate::base::clock::rfc3339;

/// What becomes of new certificate requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Approval {
    /// They are approved and signed at once.
    Given,
    /// They wait for [`super::Mesh::approve_request`].
    #[default]
    Awaited,
    /// They are denied with these words.
    Denied(&'static str),
}

/// The requests by name.
#[derive(Default)]
pub(super) struct Requests {
    kept: watch::Sender<BTreeMap<String, Value>>,
    revision: Mutex<u64>,
    approval: Mutex<Approval>,
}

impl Requests {
    pub(super) fn set_approval(&self, approval: Approval) {
        *lock(&self.approval) = approval;
    }

    pub(super) fn names(&self) -> watch::Receiver<BTreeMap<String, Value>> {
        self.kept.subscribe()
    }

    fn put(&self, name: &str, mut request: Value) -> Value {
        let revision = {
            let mut revision = lock(&self.revision);
            *revision += 1;
            revision.to_string()
        };
        if let Some(metadata) = request.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), json!(revision));
        }
        self.kept.send_modify(|kept| drop(kept.insert(name.to_owned(), request.clone())));
        request
    }

    pub(super) fn remove(&self, name: &str) -> bool {
        self.kept.send_if_modified(|kept| kept.remove(name).is_some())
    }
}

pub(super) fn router() -> Router<Arc<State>> {
    let all = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    Router::new()
        .route(all, get(follow).post(create))
        .route(&format!("{all}/{{name}}"), get(read).delete(remove))
}

/// Signs a request as approved; false when there is no such one, or it is none.
pub(super) fn approve(state: &State, name: &str) -> bool {
    let found = state.requests.kept.borrow().get(name).cloned();
    let Some(mut request) = found else { return false };
    let Some(certificate) = sign(state, &request) else { return false };
    let now = rfc3339(state.options.clock.now());
    let condition = json!({
        "type": "Approved", "status": "True", "reason": "Devmesh", "message": "approved",
        "lastUpdateTime": now, "lastTransitionTime": now,
    });
    let status = json!({"conditions": [condition], "certificate": STANDARD.encode(certificate)});
    if let Some(request) = request.as_object_mut() {
        request.insert("status".to_owned(), status);
    }
    state.requests.put(name, request);
    true
}

/// The chain, PEM.
fn sign(state: &State, request: &Value) -> Option<String> {
    let pem = request.pointer("/spec/request")?.as_str()?;
    let pem = String::from_utf8(STANDARD.decode(pem).ok()?).ok()?;
    let csr = CertificateSigningRequestParams::from_pem(&pem).ok()?;
    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_u64);
    let now = state.options.clock.now();
    let order = Order {
        names: csr.params.subject_alt_names,
        subject: DistinguishedName::new(),
        not_before: pki::before(now, BACKDATED),
        not_after: pki::after(now, seconds.map_or(DAY, Duration::from_secs)),
    };
    let authority = Arc::clone(&lock(&state.authorities).signing);
    let leaf = authority.sign(order, &csr.public_key).ok()?;
    Some(leaf.pem() + &authority.intermediate_pem().unwrap_or_default())
}

fn act<'a>(verb: &'static str, name: &'a str) -> Act<'a> {
    let (plural, group) = ("certificatesigningrequests", "certificates.k8s.io");
    Act { verb, plural, group, namespace: "", name }
}

async fn create(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Json(mut request): Json<Value>,
) -> Result<Response, Refusal> {
    authorize(&state, &user, &act("create", ""))?;
    let text = |path: &str| request.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let name = text("/metadata/name").ok_or_else(|| Refusal::invalid("metadata.name: Required"))?;
    if text("/spec/signerName").is_none() || text("/spec/request").is_none() {
        return Err(Refusal::invalid("spec.signerName, spec.request: Required value"));
    }
    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_u64);
    if seconds.is_some_and(|seconds| seconds < LEAST_SECONDS) {
        return Err(Refusal::invalid("spec.expirationSeconds: may not specify less than 600"));
    }
    if let Some(spec) = request.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("username".to_owned(), json!(user.name));
    }
    let approval = *lock(&state.requests.approval);
    if let (Approval::Denied(message), Some(request)) = (approval, request.as_object_mut()) {
        let denied =
            json!({"type": "Denied", "status": "True", "reason": "Devmesh", "message": message});
        request.insert("status".to_owned(), json!({"conditions": [denied]}));
    }
    let kept = state.requests.put(&name, request);
    if approval == Approval::Given {
        approve(&state, &name);
    }
    Ok((StatusCode::CREATED, Json(kept)).into_response())
}

async fn read(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    authorize(&state, &user, &act("get", &name))?;
    let found = state.requests.kept.borrow().get(&name).cloned();
    found.map(Json).ok_or_else(Refusal::no_such_path)
}

async fn remove(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    authorize(&state, &user, &act("delete", &name))?;
    let removed = state.requests.remove(&name);
    let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    if removed { Ok(Json(gone)) } else { Err(Refusal::no_such_path()) }
}

/// A watch of one request; lists are nobody's need.
async fn follow(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Query(options): Query<BTreeMap<String, String>>,
) -> Result<Response, Refusal> {
    authorize(&state, &user, &act("watch", ""))?;
    let selector = options.get("fieldSelector").map(String::as_str).unwrap_or_default();
    let name = selector.strip_prefix("metadata.name=").map(str::to_owned);
    let Some(name) = name.filter(|_| options.get("watch").is_some_and(|watch| watch == "true"))
    else {
        return Err(Refusal::bad_request("only a watch of one request is served"));
    };
    let last = options.get("resourceVersion").cloned();
    let start = Following { kept: state.requests.names(), name, last, shown: None };
    let lines = stream::unfold(Some(start), |following| async {
        let (line, following) = following?.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), following))
    });
    let lines = lines.take_until(tokio::time::sleep(state.options.longest_watch));
    Ok(Body::from_stream(lines).into_response())
}

/// One watch.
struct Following {
    kept: watch::Receiver<BTreeMap<String, Value>>,
    name: String,
    /// The revision that the caller has seen.
    last: Option<String>,
    shown: Option<Value>,
}

impl Following {
    /// The next line, and the watch unless it is over.
    async fn next(mut self) -> Option<(String, Option<Self>)> {
        loop {
            let now = self.kept.borrow_and_update().get(&self.name).cloned();
            let Some(now) = now else {
                let last = self.shown.unwrap_or_else(|| json!({"metadata": {"name": self.name}}));
                return Some((line("DELETED", &last), None));
            };
            let revision = now.pointer("/metadata/resourceVersion").and_then(Value::as_str);
            if revision != self.last.as_deref() {
                self.last = revision.map(str::to_owned);
                self.shown = Some(now.clone());
                return Some((line("MODIFIED", &now), Some(self)));
            }
            self.kept.changed().await.ok()?;
        }
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// As the mesh's own authority does.
const BACKDATED: Duration = Duration::from_secs(120);
/// Kubernetes' least lifetime.
const LEAST_SECONDS: u64 = 600;
