//! What the Kubernetes API says of itself: its version, groups and resources, and enough of
//! OpenAPI for kubectl to know that the server checks fields.

use std::collections::BTreeSet;

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::answer::Refusal;
use super::kind::{Resource, VERSION};

pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/version", get(version))
        .route("/api", get(core_versions))
        .route("/api/v1", get(core_resources))
        .route("/apis", get(groups))
        .route("/apis/{group}", get(group))
        .route("/apis/{group}/{version}", get(resources))
        .route("/openapi/v3", get(documents))
        .route("/openapi/v3/api/v1", get(core_document))
        .route("/openapi/v3/apis/{group}/{version}", get(document))
}

async fn version() -> Json<Value> {
    Json(
        json!({"major": "1", "minor": "35", "gitVersion": "v1.35.0-devmesh", "platform": "linux/amd64"}),
    )
}

async fn core_versions() -> Json<Value> {
    Json(json!({"kind": "APIVersions", "versions": [VERSION]}))
}

async fn core_resources() -> Json<Value> {
    Json(list(""))
}

async fn groups() -> Json<Value> {
    let groups: Vec<Value> = names().into_iter().map(about).collect();
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

async fn group(Path(group): Path<String>) -> Result<Json<Value>, Refusal> {
    let mut found = about(known(&group)?);
    if let Some(found) = found.as_object_mut() {
        found.insert("kind".to_owned(), json!("APIGroup"));
        found.insert("apiVersion".to_owned(), json!("v1"));
    }
    Ok(Json(found))
}

async fn resources(Path((group, version)): Path<(String, String)>) -> Result<Json<Value>, Refusal> {
    let group = known(&group)?;
    if version == VERSION { Ok(Json(list(group))) } else { Err(Refusal::no_such_path()) }
}

async fn documents() -> Json<Value> {
    let mut paths = Map::new();
    let mut add = |path: String| {
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    };
    add("api/v1".to_owned());
    for group in names() {
        add(format!("apis/{group}/{VERSION}"));
    }
    Json(json!({"paths": paths}))
}

async fn core_document() -> Json<Value> {
    Json(describe(""))
}

async fn document(Path((group, version)): Path<(String, String)>) -> Result<Json<Value>, Refusal> {
    let group = known(&group)?;
    if version == VERSION { Ok(Json(describe(group))) } else { Err(Refusal::no_such_path()) }
}

/// The named groups.
fn names() -> BTreeSet<&'static str> {
    let kept = Resource::ALL.into_iter().map(Resource::group).filter(|group| !group.is_empty());
    kept.chain(ELSEWHERE.iter().map(|(group, _)| *group))
        .filter(|group| !group.is_empty())
        .collect()
}

fn known(group: &str) -> Result<&'static str, Refusal> {
    names().into_iter().find(|name| *name == group).ok_or_else(Refusal::no_such_path)
}

fn about(group: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/{VERSION}"), "version": VERSION});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn list(group: &str) -> Value {
    let kept = Resource::ALL.into_iter().filter(|resource| resource.group() == group);
    let mut all: Vec<Value> = kept
        .map(|resource| {
            json!({
                "name": resource.plural(),
                "singularName": resource.kind().to_lowercase(),
                "namespaced": resource.is_namespaced(),
                "kind": resource.kind(),
                "shortNames": resource.api().short,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    for (_, (name, kind)) in ELSEWHERE.iter().filter(|(of, _)| *of == group) {
        let namespaced = *name == "serviceaccounts/token";
        all.push(json!({
            "name": name, "singularName": "", "namespaced": namespaced, "kind": kind,
            "verbs": ["create"],
        }));
    }
    let version = if group.is_empty() { VERSION.to_owned() } else { format!("{group}/{VERSION}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": all})
}

/// The part of a group's document in which kubectl looks for the option `fieldValidation`.
fn describe(group: &str) -> Value {
    let mut paths = Map::new();
    let option = json!([{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]);
    for resource in Resource::ALL.into_iter().filter(|resource| resource.group() == group) {
        let kind = json!({"group": group, "version": VERSION, "kind": resource.kind()});
        let place = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        let namespace = if resource.is_namespaced() { "/namespaces/{namespace}" } else { "" };
        let path = format!("{place}/{VERSION}{namespace}/{}/{{name}}", resource.plural());
        let patch = json!({
            "parameters": option, "x-kubernetes-group-version-kind": kind,
            "x-kubernetes-action": "patch",
            "responses": {"200": {"description": "OK"}},
        });
        paths.insert(path, json!({"patch": patch}));
    }
    let about = json!({"title": "devmesh", "version": VERSION});
    json!({"openapi": "3.0.0", "info": about, "paths": paths, "components": {"schemas": {}}})
}

/// What is served without being kept: group, name and kind.
const ELSEWHERE: [(&str, (&str, &str)); 5] = [
    ("", ("serviceaccounts/token", "TokenRequest")),
    ("authentication.k8s.io", ("selfsubjectreviews", "SelfSubjectReview")),
    ("authorization.k8s.io", ("selfsubjectaccessreviews", "SelfSubjectAccessReview")),
    ("authorization.k8s.io", ("selfsubjectrulesreviews", "SelfSubjectRulesReview")),
    ("certificates.k8s.io", ("certificatesigningrequests", "CertificateSigningRequest")),
];
