//! The part of the Kubernetes API that the agent and a newcomer use: Istio's registry objects and
//! tokens of service accounts, with permissions and discovery. Objects are kept in `store`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::header::DATE;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::answer::{self, Act, Refusal};
use super::discovery::{core_resources, core_versions, group_versions, groups, resources, version};
use super::faults::{Fault, Service};
use super::kind::{GROUP, Resource};
use super::seen::{SeenCall, record};
use super::store::{Key, Preconditions, Write, WriteRefusal};
use super::tls::Peer;
use super::token::{Account, Claims, ISTIO_AUDIENCE, KUBERNETES_AUDIENCE};
use super::watch::{self, Scope};
use super::{State, csr};
use crate::base::clock::{http_date, rfc3339};

pub(super) fn router(state: Arc<State>) -> Router {
    let mut routes = Router::new();
    for group in ["/apis/networking.istio.io/v1", "/apis/security.istio.io/v1"] {
        routes = routes
            .route(&format!("{group}/{{plural}}"), get(list_all))
            .route(&format!("{group}/namespaces/{{namespace}}/{{plural}}"), get(list).post(create))
            .route(
                &format!("{group}/namespaces/{{namespace}}/{{plural}}/{{name}}"),
                get(read).patch(apply).put(update).delete(remove),
            );
    }
    routes
        .route("/version", get(version))
        .route("/readyz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/healthz", get(|| async { "ok" }))
        .route("/api", get(core_versions))
        .route("/api/v1", get(core_resources))
        .route("/apis", get(groups))
        .route("/apis/networking.istio.io", get(group_versions))
        .route("/apis/networking.istio.io/v1", get(resources))
        .route("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", post(token))
        .route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", post(review))
        .merge(csr::router())
        .fallback(|| async { Refusal::no_such_path() })
        .method_not_allowed_fallback(|| async { Refusal::no_such_path() })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&state), enter))
        .with_state(state)
}

type Place = Path<(String, String, String)>;
type Options = Query<BTreeMap<String, String>>;

/// A Kubernetes user.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    admin: bool,
}

/// Lets faults happen, and finds out who calls.
async fn enter(
    Shared(state): Shared<Arc<State>>,
    mut request: Request,
    next: axum::middleware::Next,
) -> Response {
    match state.faults.pass(Service::Kube).await {
        Err(status) => return Refusal::of(&status).into_response(),
        Ok(Fault::Rubbish) => return "<html>rubbish</html>".into_response(),
        Ok(_) => {}
    }
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let user = user(&state, &peer, request.headers());
    state.see(|seen| {
        let verb = verb(request.method().as_str(), request.uri());
        let path = request.uri().path().to_owned();
        let user = user.as_ref().map(|user| user.name.clone()).unwrap_or_default();
        record(&mut seen.calls, SeenCall { verb, path, user });
    });
    let public = ["/version", "/readyz", "/livez", "/healthz"].contains(&request.uri().path());
    match user {
        Some(user) => {
            request.extensions_mut().insert(user);
        }
        None if public => {}
        None => return Refusal::unauthorized().into_response(),
    }
    let mut response = next.run(request).await;
    if let Ok(date) = HeaderValue::try_from(http_date(state.options.clock.now())) {
        response.headers_mut().insert(DATE, date);
    }
    response
}

/// The user by client certificate, else by token.
fn user(state: &State, peer: &Peer, headers: &HeaderMap) -> Option<User> {
    if let Some(name) = &peer.user {
        let admin = peer.groups.iter().any(|group| group == "system:masters");
        return Some(User { name: name.clone(), admin });
    }
    let bearer = headers.get("authorization")?.to_str().ok()?;
    if state.tokens.is_admin(bearer) {
        return Some(User { name: "admin".to_owned(), admin: true });
    }
    let audiences = [KUBERNETES_AUDIENCE, ISTIO_AUDIENCE];
    let account = state.tokens.check(bearer, &audiences, state.options.clock.now())?;
    Some(User { name: account.user(), admin: false })
}

pub(super) fn authorize(state: &State, user: &User, act: &Act<'_>) -> Result<(), Refusal> {
    let allowed = user.admin || state.permissions.allow(&user.name, act);
    if allowed { Ok(()) } else { Err(Refusal::forbidden(&user.name, act)) }
}

fn act<'a>(verb: &'static str, resource: Resource, namespace: &'a str, name: &'a str) -> Act<'a> {
    Act { verb, plural: resource.plural(), group: resource.group(), namespace, name }
}

fn resource(plural: &str) -> Result<Resource, Refusal> {
    Resource::named(plural).ok_or_else(Refusal::no_such_path)
}

async fn read(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, plural, name)): Place,
) -> Result<Json<Value>, Refusal> {
    let resource = resource(&plural)?;
    authorize(&state, &user, &act("get", resource, &namespace, &name))?;
    let found = state.objects.get(resource, &namespace, &name);
    found.map(Json).ok_or_else(|| Refusal::not_found(resource, &name))
}

async fn list_all(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path(plural): Path<String>,
    Query(options): Options,
) -> Result<Response, Refusal> {
    listed(&state, &user, (&plural, ""), &options)
}

async fn list(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, plural)): Path<(String, String)>,
    Query(options): Options,
) -> Result<Response, Refusal> {
    listed(&state, &user, (&plural, &namespace), &options)
}

fn listed(
    state: &State,
    user: &User,
    (plural, namespace): (&str, &str),
    options: &BTreeMap<String, String>,
) -> Result<Response, Refusal> {
    let resource = resource(plural)?;
    let scope = Scope::new(resource, namespace, options);
    if watch::is_wanted(options) {
        authorize(state, user, &act("watch", resource, namespace, ""))?;
        return watch::follow(&state.objects, scope, options, state.options.longest_watch);
    }
    authorize(state, user, &act("list", resource, namespace, ""))?;
    let items = state.objects.list(resource, Some(namespace).filter(|name| !name.is_empty()));
    let items: Vec<Value> = items.into_iter().filter(|item| scope.has(item)).collect();
    Ok(Json(json!({
        "apiVersion": resource.api_version(),
        "kind": format!("{}List", resource.kind()),
        "metadata": {"resourceVersion": state.objects.revision().to_string()},
        "items": items,
    }))
    .into_response())
}

async fn apply(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, plural, name)): Place,
    Query(options): Options,
    headers: HeaderMap,
    body: String,
) -> Result<Response, Refusal> {
    let key = Key::new(resource(&plural)?, &namespace, &name);
    authorize(&state, &user, &act("patch", key.resource, &namespace, &name))?;
    let media = headers.get("content-type").and_then(|value| value.to_str().ok());
    if !media.is_some_and(|media| media.starts_with("application/apply-patch+yaml")) {
        return Err(Refusal::media_type());
    }
    let manager = options.get("fieldManager").map(String::as_str).unwrap_or_default();
    if manager.is_empty() {
        let words = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is \
                     required for apply patch";
        return Err(Refusal::invalid(words));
    }
    let object = object(&body, &key)?;
    if state.objects.get(key.resource, &namespace, &name).is_none() {
        authorize(&state, &user, &act("create", key.resource, &namespace, &name))?;
    }
    let force = options.get("force").is_some_and(|force| force == "true");
    write(&state, &key, object, &Write::Apply { manager, force })
}

async fn update(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, plural, name)): Place,
    Query(options): Options,
    body: String,
) -> Result<Response, Refusal> {
    let key = Key::new(resource(&plural)?, &namespace, &name);
    authorize(&state, &user, &act("update", key.resource, &namespace, &name))?;
    let object = object(&body, &key)?;
    write(&state, &key, object, &Write::Update { manager: manager(&options) })
}

async fn create(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, plural)): Path<(String, String)>,
    Query(options): Options,
    body: String,
) -> Result<Response, Refusal> {
    let resource = resource(&plural)?;
    authorize(&state, &user, &act("create", resource, &namespace, ""))?;
    let name = parse(&body)?.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned);
    let name = name.ok_or_else(|| Refusal::invalid("metadata.name: Required value"))?;
    let key = Key::new(resource, &namespace, &name);
    let object = object(&body, &key)?;
    write(&state, &key, object, &Write::Create { manager: manager(&options) })
}

async fn remove(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, plural, name)): Place,
    body: String,
) -> Result<Json<Value>, Refusal> {
    let key = Key::new(resource(&plural)?, &namespace, &name);
    authorize(&state, &user, &act("delete", key.resource, &namespace, &name))?;
    let options = if body.is_empty() { Value::Null } else { parse(&body)? };
    let text = |path| options.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let wanted = Preconditions {
        uid: text("/preconditions/uid"),
        revision: text("/preconditions/resourceVersion"),
    };
    let removed = state.objects.remove(&key, &wanted);
    let removed = removed.map_err(|_| Refusal::stale(key.resource, &name))?;
    let removed = removed.ok_or_else(|| Refusal::not_found(key.resource, &name))?;
    Ok(Json(answer::deleted(key.resource, &removed)))
}

fn write(state: &State, key: &Key, object: Value, how: &Write<'_>) -> Result<Response, Refusal> {
    let (resource, name) = (key.resource, &key.name);
    let written = state.objects.write(key, object, how);
    let (object, created) = written.map_err(|refusal| match refusal {
        WriteRefusal::Exists => Refusal::exists(resource, name),
        WriteRefusal::Missing => Refusal::not_found(resource, name),
        WriteRefusal::Stale => Refusal::stale(resource, name),
        WriteRefusal::Conflicts(conflicts) => Refusal::conflicts(&conflicts),
    })?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((code, Json(object)).into_response())
}

fn manager(options: &BTreeMap<String, String>) -> &str {
    options.get("fieldManager").map_or("unknown", String::as_str)
}

/// The body as an object that fits its path.
fn object(body: &str, key: &Key) -> Result<Value, Refusal> {
    let object = parse(body)?;
    let text = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let expected = key.resource.api_version();
    if version != expected || kind != key.resource.kind() {
        let words = format!(
            "the object provided is unrecognized: found {kind:?} of {version:?}, expected {:?} of \
             {expected:?}",
            key.resource.kind()
        );
        return Err(Refusal::bad_request(&words));
    }
    let name = text("/metadata/name");
    if name != key.name {
        let words = format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            key.name
        );
        return Err(Refusal::bad_request(&words));
    }
    let namespace = text("/metadata/namespace");
    if !namespace.is_empty() && namespace != key.namespace {
        let words = "the namespace of the provided object does not match the namespace sent on \
                     the request";
        return Err(Refusal::bad_request(words));
    }
    Ok(object)
}

fn parse(body: &str) -> Result<Value, Refusal> {
    let parsed = serde_json::from_str(body).or_else(|_| serde_saphyr::from_str(body));
    parsed
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| Refusal::bad_request("error decoding the body: it is neither JSON nor YAML"))
}

async fn token(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, name)): Path<(String, String)>,
    body: String,
) -> Result<Response, Refusal> {
    let plural = "serviceaccounts/token";
    let wanted = Act { verb: "create", plural, group: "", namespace: &namespace, name: &name };
    authorize(&state, &user, &wanted)?;
    let mut request = parse(&body)?;
    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_u64);
    let seconds = seconds.unwrap_or(TOKEN_SECONDS);
    let asked = Duration::from_secs(seconds);
    if asked < state.options.least_token_life {
        let words = format!(
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid \
             value: {seconds}: may not specify a duration less than 10 minutes"
        );
        return Err(Refusal::invalid(&words));
    }
    let audiences = request.pointer("/spec/audiences").and_then(Value::as_array).cloned();
    let audiences = audiences.unwrap_or_default();
    let mut audiences: Vec<&str> = audiences.iter().filter_map(Value::as_str).collect();
    if audiences.is_empty() {
        audiences.push(KUBERNETES_AUDIENCE);
    }
    let life = asked.min(state.options.longest_token_life);
    let account = Account::new(&namespace, &name);
    let now = state.options.clock.now();
    let claims = Claims { account: &account, audiences: &audiences, life };
    let expires = now.checked_add(life).map(rfc3339);
    let status = json!({"token": state.tokens.make(&claims, now), "expirationTimestamp": expires});
    if let Some(request) = request.as_object_mut() {
        request.insert("kind".to_owned(), json!("TokenRequest"));
        request.insert("apiVersion".to_owned(), json!("authentication.k8s.io/v1"));
        request.insert("status".to_owned(), status);
    }
    Ok((StatusCode::CREATED, Json(request)).into_response())
}

/// Everybody may ask what they may do themselves.
async fn review(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    body: String,
) -> Result<Response, Refusal> {
    let mut review = parse(&body)?;
    let text = |name: &str| {
        let found =
            review.pointer("/spec/resourceAttributes").and_then(|of| of.get(name)?.as_str());
        found.unwrap_or_default().to_owned()
    };
    let (verb, plural, namespace) = (text("verb"), text("resource"), text("namespace"));
    let verb = VERBS.into_iter().find(|known| *known == verb).unwrap_or("other");
    let act = Act { verb, plural: &plural, group: GROUP, namespace: &namespace, name: "" };
    let allowed = authorize(&state, &user, &act).is_ok();
    if let Some(review) = review.as_object_mut() {
        review.insert("status".to_owned(), json!({"allowed": allowed}));
    }
    Ok((StatusCode::CREATED, Json(review)).into_response())
}

/// Kubernetes' verb of a call.
fn verb(method: &str, uri: &Uri) -> &'static str {
    let plural = uri.path().rsplit('/').next().unwrap_or_default();
    match method {
        "GET" if uri.query().is_some_and(|query| query.contains("watch=true")) => "watch",
        "GET" if Resource::named(plural).is_some() => "list",
        "GET" => "get",
        "PATCH" => "patch",
        "PUT" => "update",
        "POST" => "create",
        "DELETE" => "delete",
        _ => "other",
    }
}

const VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];
/// Kubernetes' own default lifetime of a requested token.
const TOKEN_SECONDS: u64 = 3600;
