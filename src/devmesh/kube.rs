//! The part of the Kubernetes API that the agent and a newcomer use: who calls, and which room
//! answers. Objects are answered for in `rest`, and kept in `store`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State as Shared};
use axum::http::header::DATE;
use axum::http::{HeaderMap, HeaderValue, Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;

use super::answer::{Act, Refusal};
use super::faults::{Fault, Service};
use super::kind::Resource;
use super::seen::{SeenCall, record};
use super::target::Target;
use super::tls::Peer;
use super::token::{ISTIO_AUDIENCE, KUBERNETES_AUDIENCE};
use super::{State, accounts, csr, discovery, rest, watch, wire};
use crate::base::clock::http_date;

pub(super) fn router(state: Arc<State>) -> Router {
    let well = || get(|| async { "ok" });
    discovery::router()
        .route("/readyz", well())
        .route("/livez", well())
        .route("/healthz", well())
        .merge(accounts::router())
        .merge(csr::router())
        .fallback(rest::any)
        .method_not_allowed_fallback(rest::any)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&state), enter))
        .with_state(state)
}

/// A Kubernetes user.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) admin: bool,
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
        let verb = verb(request.method(), request.uri());
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
    state.known(Resource::ServiceAccounts, &account.namespace, &account.name).ok()?;
    Some(User { name: account.user(), admin: false })
}

pub(super) fn authorize(state: &State, user: &User, act: &Act<'_>) -> Result<(), Refusal> {
    if may(state, user, act) {
        return Ok(());
    }
    let refusal = Refusal::forbidden(&user.name, act);
    state.deny(&user.name, "kubernetes", refusal.message());
    Err(refusal)
}

/// Whether somebody may do something.
pub(super) fn may(state: &State, user: &User, act: &Act<'_>) -> bool {
    user.admin || state.permissions.allow(&state.objects, &user.name, act)
}

pub(super) fn parse(body: &[u8]) -> Result<Value, Refusal> {
    let text = || std::str::from_utf8(body).ok();
    let parsed = if wire::is_it(body) {
        wire::read(body)
    } else {
        let json = serde_json::from_slice(body).ok();
        json.or_else(|| serde_saphyr::from_str(text()?).ok())
    };
    let words = "error decoding the body: it is neither JSON nor YAML, nor protocol buffers of a \
                 known kind";
    parsed.filter(Value::is_object).ok_or_else(|| Refusal::bad_request(words))
}

/// Kubernetes' verb of a call, for the record.
fn verb(method: &Method, uri: &Uri) -> &'static str {
    let options = Query::<BTreeMap<String, String>>::try_from_uri(uri).unwrap_or_default().0;
    match Target::read(uri.path()) {
        Some(target) => target.verb(method, &options),
        None if method == Method::GET && watch::is_wanted(&options) => "watch",
        None => match method.as_str() {
            "GET" => "get",
            "POST" => "create",
            "DELETE" => "delete",
            _ => "other",
        },
    }
}
