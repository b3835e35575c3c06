//! What the Kubernetes API says of itself: its version, groups and resources.

use axum::Json;
use serde_json::{Value, json};

use super::kind::{API_VERSION, GROUP, Resource};

pub(super) async fn version() -> Json<Value> {
    Json(
        json!({"major": "1", "minor": "35", "gitVersion": "v1.35.0-devmesh", "platform": "linux/amd64"}),
    )
}

pub(super) async fn core_versions() -> Json<Value> {
    Json(json!({"kind": "APIVersions", "versions": ["v1"]}))
}

pub(super) async fn core_resources() -> Json<Value> {
    let token = json!({
        "name": "serviceaccounts/token", "singularName": "", "namespaced": true,
        "group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest", "verbs": ["create"],
    });
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [token],
    }))
}

pub(super) async fn groups() -> Json<Value> {
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [about_group()]}))
}

pub(super) async fn group_versions() -> Json<Value> {
    let mut group = about_group();
    if let Some(group) = group.as_object_mut() {
        group.insert("kind".to_owned(), json!("APIGroup"));
        group.insert("apiVersion".to_owned(), json!("v1"));
    }
    Json(group)
}

fn about_group() -> Value {
    let version = json!({"groupVersion": API_VERSION, "version": "v1"});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

pub(super) async fn resources() -> Json<Value> {
    let here = Resource::ALL.into_iter().filter(|resource| resource.group() == GROUP);
    let about = here.map(|resource| {
        json!({
            "name": resource.plural(), "singularName": resource.kind().to_lowercase(),
            "namespaced": true, "kind": resource.kind(), "shortNames": resource.api().short,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        })
    });
    let resources: Vec<Value> = about.collect();
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION,
        "resources": resources,
    }))
}
