//! Objects as tables, which kubectl prints (`meta.k8s.io/v1`).

use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use serde_json::{Value, json};

use super::catalog::text;
use super::kind::Resource;
use crate::base::clock::parse_rfc3339;

/// True when the caller takes a table.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // The first form that the caller names is the one that it likes best.
    accept.split(',').next().is_some_and(|first| first.contains("as=Table"))
}

/// A table of objects.
pub(super) fn of(resource: Resource, objects: &[Value], revision: &str, now: SystemTime) -> Value {
    let column = |name: &str, kind: &str, about: &str| json!({"name": name, "type": "string", "format": kind, "description": about, "priority": 0});
    let mut columns = vec![column("Name", "name", "The name within its namespace.")];
    columns.extend(resource.api().columns.iter().map(|(name, path)| column(name, "", path)));
    columns.push(column("Age", "", "The time since it was made."));
    let rows: Vec<Value> = objects.iter().map(|object| row(resource, object, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn row(resource: Resource, object: &Value, now: SystemTime) -> Value {
    let mut cells = vec![json!(text(object, "/metadata/name"))];
    for (_, path) in resource.api().columns {
        let cell = match object.pointer(path) {
            // A list is shown as kubectl shows a list of texts.
            Some(Value::Array(items)) => json!(json!(items).to_string()),
            Some(value) => value.clone(),
            None => json!(""),
        };
        cells.push(cell);
    }
    let born = parse_rfc3339(text(object, "/metadata/creationTimestamp"));
    let age = born.map(|born| now.duration_since(born).unwrap_or_default());
    cells.push(age.map_or_else(|| json!("<unknown>"), |age| json!(words(age))));
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let partial = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
    });
    json!({"cells": cells, "object": partial})
}

/// Kubernetes' short words for a time (`apimachinery/pkg/util/duration`).
fn words(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if !seconds.is_multiple_of(60) => format!("{minutes}m{}s", seconds % 60),
        120..10800 => format!("{minutes}m"),
        10800..28800 if !minutes.is_multiple_of(60) => format!("{hours}h{}m", minutes % 60),
        10800..172_800 => format!("{hours}h"),
        172_800..691_200 if !hours.is_multiple_of(24) => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_as_kubectl_tells_them() {
        let told = |seconds| words(Duration::from_secs(seconds));
        assert_eq!(
            [told(0), told(119), told(125), told(600), told(3600)],
            ["0s", "119s", "2m5s", "10m", "60m"]
        );
        assert_eq!(
            [told(11_000), told(90_000), told(180_000), told(800_000)],
            ["3h3m", "25h", "2d2h", "9d"]
        );
    }
}
