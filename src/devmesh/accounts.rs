//! Tokens of service accounts, and what callers ask about themselves.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::State;
use super::answer::{Act, Refusal};
use super::catalog::text;
use super::kind::Resource;
use super::kube::{User, authorize, may, parse};
use super::token::{Account, Claims, KUBERNETES_AUDIENCE};
use crate::base::clock::rfc3339;

pub(super) fn router() -> Router<Arc<State>> {
    let reviews = "/apis/authorization.k8s.io/v1";
    Router::new()
        .route("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", post(token))
        .route(&format!("{reviews}/selfsubjectaccessreviews"), post(review))
        .route("/apis/authentication.k8s.io/v1/selfsubjectreviews", post(whoami))
}

async fn token(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let plural = "serviceaccounts/token";
    let wanted = Act { verb: "create", plural, group: "", namespace: &namespace, name: &name };
    authorize(&state, &user, &wanted)?;
    state.known(Resource::ServiceAccounts, &namespace, &name)?;
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
    body: Bytes,
) -> Result<Response, Refusal> {
    let mut review = parse(&body)?;
    let spec = review.get("spec").cloned().unwrap_or_default();
    let of = |name: &str| text(&spec, &format!("/resourceAttributes/{name}")).to_owned();
    let (verb, part, group) = (of("verb"), of("subresource"), of("group"));
    let (namespace, name) = (of("namespace"), of("name"));
    let plural = match part.as_str() {
        "" => of("resource"),
        part => format!("{}/{part}", of("resource")),
    };
    let verb = VERBS.into_iter().find(|known| *known == verb).unwrap_or("other");
    let act = Act { verb, plural: &plural, group: &group, namespace: &namespace, name: &name };
    let allowed = may(&state, &user, &act);
    if let Some(review) = review.as_object_mut() {
        review.insert("status".to_owned(), json!({"allowed": allowed}));
    }
    Ok((StatusCode::CREATED, Json(review)).into_response())
}

/// Everybody may ask who they are.
async fn whoami(Extension(user): Extension<User>, body: Bytes) -> Result<Response, Refusal> {
    let mut review = parse(&body)?;
    let mut groups = vec!["system:authenticated"];
    if user.admin {
        groups.insert(0, "system:masters");
    }
    if let Some(review) = review.as_object_mut() {
        let who = json!({"username": user.name, "groups": groups});
        review.insert("status".to_owned(), json!({"userInfo": who}));
    }
    Ok((StatusCode::CREATED, Json(review)).into_response())
}

const VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];
/// Kubernetes' own default lifetime of a requested token.
const TOKEN_SECONDS: u64 = 3600;
