//! The fields of an entry one by one: which of ours differ, and an entry without some of them.
//! A field is an entry of the spec, of a map in it, of the labels or of the annotations.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

type Path = Vec<String>;

/// Our fields that are not as wanted, written as the API server writes them in conflicts.
pub(super) fn drifted(live: &Value, wanted: &Value) -> Vec<String> {
    let live = fields(live);
    let wanted = fields(wanted);
    let differs = |(path, value): &(&Path, &Value)| live.get(*path) != Some(*value);
    wanted.iter().filter(differs).map(|(path, _)| dotted(path)).collect()
}

/// What is wanted without these fields.
pub(super) fn without(wanted: &Value, fields_of_others: &[&str]) -> Value {
    let mut rest = wanted.clone();
    for path in fields(wanted).keys() {
        if fields_of_others.contains(&dotted(path).as_str()) {
            remove(&mut rest, path);
        }
    }
    rest
}

/// Has an apply fail when the entry is not of this revision any more.
pub(super) fn at_revision(body: &mut Value, revision: Option<String>) {
    if let (Some(revision), Some(metadata)) =
        (revision, body.get_mut("metadata").and_then(Value::as_object_mut))
    {
        metadata.insert("resourceVersion".to_owned(), json!(revision));
    }
}

/// The revision of an entry.
pub(super) fn revision(live: &Value) -> String {
    let revision = live.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    revision.unwrap_or_default().to_owned()
}

fn fields(object: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    let mut add = |at: &[&str], map: Option<&Map<String, Value>>| {
        for (key, value) in map.into_iter().flatten() {
            let mut path: Path = at.iter().map(|part| (*part).to_owned()).collect();
            path.push(key.clone());
            found.insert(path, value.clone());
        }
    };
    for head in ["labels", "annotations"] {
        let map = object.pointer(&format!("/metadata/{head}")).and_then(Value::as_object);
        add(&["metadata", head], map);
    }
    let spec = object.get("spec").and_then(Value::as_object);
    for (key, value) in spec.into_iter().flatten() {
        match value.as_object() {
            Some(map) => add(&["spec", key], Some(map)),
            None => add(&["spec"], Some(&Map::from_iter([(key.clone(), value.clone())]))),
        }
    }
    found
}

fn remove(object: &mut Value, path: &[String]) {
    let Some((last, above)) = path.split_last() else { return };
    let mut at = object;
    for key in above {
        let Some(below) = at.get_mut(key) else { return };
        at = below;
    }
    if let Some(map) = at.as_object_mut() {
        map.shift_remove(last);
    }
}

fn dotted(path: &[String]) -> String {
    path.iter().map(|key| format!(".{key}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_our_own_fields_count_as_drift() {
        let wanted = json!({"metadata": {"labels": {"app": "a", "x.io/b": "c"}},
            "spec": {"address": "10.0.0.1", "labels": {"app": "a"}, "weight": 2}});
        let mut live = wanted.clone();
        live["metadata"]["labels"]["team"] = json!("red");
        live["metadata"]["annotations"] = json!({"istio.io/connectedAt": "now"});
        live["spec"]["network"] = json!("n1");
        live["status"] = json!({"conditions": []});
        assert_eq!(drifted(&live, &wanted), Vec::<String>::new());
        live["spec"]["weight"] = json!(3);
        live["spec"]["labels"] = json!({});
        live["metadata"]["labels"]["x.io/b"] = json!("d");
        assert_eq!(
            drifted(&live, &wanted),
            [".metadata.labels.x.io/b", ".spec.labels.app", ".spec.weight"]
        );
        assert_eq!(drifted(&json!({}), &wanted).len(), 5);
    }

    #[test]
    fn fields_of_others_are_left_out_and_nothing_else() {
        let wanted = json!({"metadata": {"name": "vm1", "labels": {"x.io/b": "c"}}, "spec": {"address": "a", "weight": 2}});
        let rest = without(&wanted, &[".metadata.labels.x.io/b", ".spec.weight", ".spec.none"]);
        let left = json!({"metadata": {"name": "vm1", "labels": {}}, "spec": {"address": "a"}});
        assert_eq!(rest, left);
    }
}
