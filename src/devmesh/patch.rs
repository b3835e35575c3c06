//! Changes of an object as patches: RFC 7396 and RFC 6902.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Why a patch cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum PatchError {
    #[error("error decoding patch: {0}")]
    Form(#[from] serde_json::Error),
    #[error("the server rejected our request due to an error in our request: no such path {0:?}")]
    Path(String),
    #[error("testing value {0} failed")]
    Test(String),
}

/// A merge patch. What a strategic merge patch says to its server alone is left out: the lists of
/// the kinds here are replaced as a whole.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(fields) = object.as_object_mut() else { return };
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() {
            fields.shift_remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Step {
    Add { path: String, value: Value },
    Copy { from: String, path: String },
    Move { from: String, path: String },
    Remove { path: String },
    Replace { path: String, value: Value },
    Test { path: String, value: Value },
}

/// A JSON patch: all of its steps, or an error.
pub(super) fn steps(object: &mut Value, patch: &str) -> Result<(), PatchError> {
    for step in serde_json::from_str::<Vec<Step>>(patch)? {
        match step {
            Step::Add { path, value } => add(object, &path, value)?,
            Step::Copy { from, path } => {
                let value = at(object, &from)?.clone();
                add(object, &path, value)?;
            }
            Step::Move { from, path } => {
                let value = remove(object, &from)?;
                add(object, &path, value)?;
            }
            Step::Remove { path } => drop(remove(object, &path)?),
            Step::Replace { path, value } => {
                let place = object.pointer_mut(&path).ok_or(PatchError::Path(path))?;
                *place = value;
            }
            Step::Test { path, value } => {
                if *at(object, &path)? != value {
                    return Err(PatchError::Test(path));
                }
            }
        }
    }
    Ok(())
}

fn at<'a>(object: &'a Value, path: &str) -> Result<&'a Value, PatchError> {
    object.pointer(path).ok_or_else(|| PatchError::Path(path.to_owned()))
}

/// The container of a place, and the last part of its path.
fn parent<'a>(object: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), PatchError> {
    let gone = || PatchError::Path(path.to_owned());
    let (above, last) = path.rsplit_once('/').ok_or_else(gone)?;
    let container = object.pointer_mut(above).ok_or_else(gone)?;
    Ok((container, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    let gone = || PatchError::Path(path.to_owned());
    match parent(object, path)? {
        (Value::Object(fields), last) => drop(fields.insert(last, value)),
        (Value::Array(items), last) => {
            let place = if last == "-" { Some(items.len()) } else { last.parse().ok() };
            let place = place.filter(|place| *place <= items.len()).ok_or_else(gone)?;
            items.insert(place, value);
        }
        _ => return Err(gone()),
    }
    Ok(())
}

fn remove(object: &mut Value, path: &str) -> Result<Value, PatchError> {
    let gone = || PatchError::Path(path.to_owned());
    match parent(object, path)? {
        (Value::Object(fields), last) => fields.shift_remove(&last).ok_or_else(gone),
        (Value::Array(items), last) => {
            let place = last.parse().ok().filter(|place| *place < items.len()).ok_or_else(gone)?;
            Ok(items.remove(place))
        }
        _ => Err(gone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_sets_replaces_and_takes_away() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
        merge(
            &mut object,
            &json!({"a": {"b": null, "d": {"e": 3}}, "list": [3], "$retainKeys": []}),
        );
        assert_eq!(object, json!({"a": {"c": 2, "d": {"e": 3}}, "list": [3]}));
    }

    #[test]
    fn a_json_patch_does_its_steps_in_order_or_says_which_cannot_be_done() {
        let start = json!({"m": {"a/b": 1}, "l": [1, 2]});
        let mut object = start.clone();
        let patch = r#"[{"op":"test","path":"/m/a~1b","value":1},{"op":"add","path":"/l/1","value":9},
            {"op":"add","path":"/l/-","value":3},{"op":"remove","path":"/l/0"},
            {"op":"copy","from":"/l/0","path":"/m/c"},{"op":"move","from":"/m/a~1b","path":"/m/d"},
            {"op":"replace","path":"/m/c","value":"x"}]"#;
        steps(&mut object, patch).unwrap();
        assert_eq!(object, json!({"m": {"c": "x", "d": 1}, "l": [9, 2, 3]}));
        for wrong in [
            r#"[{"op":"test","path":"/l/0","value":2}]"#,
            r#"[{"op":"remove","path":"/none"}]"#,
            r#"[{"op":"replace","path":"/l/7","value":2}]"#,
            r#"[{"op":"add","path":"/l/4","value":2}]"#,
            r#"[{"op":"jump","path":"/l"}]"#,
            "{}",
        ] {
            assert!(steps(&mut start.clone(), wrong).is_err(), "{wrong}");
        }
    }
}
