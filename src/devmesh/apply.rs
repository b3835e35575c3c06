//! Server-side apply as far as the agent can tell it from the real one: who owns which field, and
//! what is a conflict. A field is an entry of the spec, of a map in it, of the labels or of the
//! annotations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::base::clock::rfc3339;

/// Who writes fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    name: String,
    operation: Operation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

impl Manager {
    pub(super) fn new(name: &str, operation: Operation) -> Self {
        Self { name: name.to_owned(), operation }
    }
}

/// A field that somebody else owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// The owner as Kubernetes writes it.
    pub(super) manager: String,
    /// Such as `.spec.address`.
    pub(super) field: String,
}

type Path = Vec<String>;

/// One entry of `managedFields`.
struct Owner {
    manager: Manager,
    api_version: String,
    time: String,
    fields: BTreeSet<Path>,
}

/// The object after an apply.
pub(super) fn apply(
    mut live: Value,
    wanted: &Value,
    manager: &Manager,
    force: bool,
    now: SystemTime,
) -> Result<Value, Vec<Conflict>> {
    let wanted_fields = fields(wanted);
    let live_fields = fields(&live);
    let mut owners = owners(&live);
    let own = owners.iter().position(|owner| owner.manager == *manager);
    let own = own.map(|at| owners.remove(at));
    let differs = |path: &Path| {
        wanted_fields.get(path).is_some_and(|value| live_fields.get(path) != Some(value))
    };
    let mut conflicts = Vec::new();
    for owner in &mut owners {
        for path in owner.fields.iter().filter(|path| differs(path)) {
            conflicts.push(Conflict { manager: owner.words(), field: dotted(path) });
        }
        owner.fields.retain(|path| !differs(path));
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    let before = own.map(|own| own.fields).unwrap_or_default();
    for path in before.iter().filter(|path| !wanted_fields.contains_key(*path)) {
        if !owners.iter().any(|owner| owner.fields.contains(path)) {
            remove(&mut live, path);
        }
    }
    for (path, value) in &wanted_fields {
        set(&mut live, path, value.clone());
    }
    keep_references(&mut live, wanted);
    let fields = wanted_fields.into_keys().collect();
    let api_version = api_version(&live);
    owners.push(Owner { manager: manager.clone(), api_version, time: rfc3339(now), fields });
    write_owners(&mut live, owners);
    Ok(live)
}

/// The object after a create or an update: labels, annotations, spec and status are replaced, and
/// changed fields change their owner.
pub(super) fn update(mut live: Value, wanted: &Value, manager: &Manager, now: SystemTime) -> Value {
    let (before, after) = (fields(&live), fields(wanted));
    let mut owners = owners(&live);
    let changed: BTreeSet<Path> = after
        .iter()
        .filter(|(path, value)| before.get(*path) != Some(value))
        .map(|(path, _)| path.clone())
        .collect();
    for owner in &mut owners {
        owner.fields.retain(|path| after.contains_key(path) && !changed.contains(path));
    }
    for path in before.keys() {
        remove(&mut live, path);
    }
    for (path, value) in after {
        set(&mut live, &path, value);
    }
    if let (Some(live), Some(status)) = (live.as_object_mut(), wanted.get("status")) {
        live.insert("status".to_owned(), status.clone());
    }
    keep_references(&mut live, wanted);
    let mut own = owners.iter().position(|owner| owner.manager == *manager).map_or_else(
        || Owner {
            manager: manager.clone(),
            api_version: api_version(&live),
            time: String::new(),
            fields: BTreeSet::new(),
        },
        |at| owners.remove(at),
    );
    own.fields.extend(changed);
    own.time = rfc3339(now);
    owners.push(own);
    write_owners(&mut live, owners);
    live
}

/// True when nothing but times of ownership differs.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.shift_remove("managedFields");
        }
        object
    };
    let owned = |object: &Value| {
        let owners = owners(object).into_iter();
        owners.map(|owner| (owner.manager.name, owner.fields)).collect::<BTreeMap<_, _>>()
    };
    bare(one) == bare(other) && owned(one) == owned(other)
}

/// The API server's words for conflicts.
pub(super) fn message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.manager, only.field
        );
    }
    let mut by_manager = BTreeMap::<&str, Vec<&str>>::new();
    for conflict in conflicts {
        by_manager.entry(&conflict.manager).or_default().push(&conflict.field);
    }
    let part = |(manager, fields): (&str, Vec<&str>)| {
        let lines: Vec<_> = fields.iter().map(|field| format!("- {field}")).collect();
        format!("conflicts with {manager}:\n{}", lines.join("\n"))
    };
    let parts: Vec<_> = by_manager.into_iter().map(part).collect();
    format!("Apply failed with {} conflicts: {}", conflicts.len(), parts.join("\n"))
}

impl Owner {
    fn words(&self) -> String {
        let Self { manager, api_version, time, .. } = self;
        match manager.operation {
            Operation::Apply => format!("{:?}", manager.name),
            Operation::Update => format!("{:?} using {api_version} at {time}", manager.name),
        }
    }
}

/// The fields of an object and their values.
fn fields(object: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    for head in ["labels", "annotations"] {
        let map = object.pointer(&format!("/metadata/{head}")).and_then(Value::as_object);
        for (key, value) in map.into_iter().flatten() {
            found.insert(vec!["metadata".to_owned(), head.to_owned(), key.clone()], value.clone());
        }
    }
    // A spec, or whatever kinds without one have in its place.
    let body = object.as_object().into_iter().flatten();
    let body = body.filter(|(key, _)| !APART.contains(&key.as_str()));
    let (deep, flat): (Vec<_>, Vec<_>) =
        body.partition(|(_, value)| value.as_object().is_some_and(|map| !map.is_empty()));
    for (head, value) in flat {
        found.insert(vec![head.clone()], value.clone());
    }
    let inner = |(head, value)| Value::as_object(value).map(|map| (head, map));
    let inner = deep.into_iter().filter_map(inner);
    for (head, key, value) in
        inner.flat_map(|(head, map)| map.iter().map(move |(key, value)| (head, key, value)))
    {
        let path = vec![head.clone(), key.clone()];
        match value.as_object().filter(|map| !map.is_empty()) {
            Some(map) => found.extend(map.iter().map(|(inner, value)| {
                let mut path = path.clone();
                path.push(inner.clone());
                (path, value.clone())
            })),
            None => {
                found.insert(path, value.clone());
            }
        }
    }
    found
}

fn api_version(object: &Value) -> String {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn owners(object: &Value) -> Vec<Owner> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().filter_map(owner).collect()
}

fn owner(entry: &Value) -> Option<Owner> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let operation =
        if text("operation")? == "Apply" { Operation::Apply } else { Operation::Update };
    let mut fields = BTreeSet::new();
    collect(entry.get("fieldsV1")?, &mut Vec::new(), &mut fields);
    let time = text("time").unwrap_or_default().to_owned();
    let api_version = text("apiVersion").unwrap_or_default().to_owned();
    Some(Owner { manager: Manager::new(text("manager")?, operation), api_version, time, fields })
}

fn collect(tree: &Value, at: &mut Path, found: &mut BTreeSet<Path>) {
    for (key, below) in tree.as_object().into_iter().flatten() {
        at.push(key.trim_start_matches("f:").to_owned());
        if below.as_object().is_none_or(Map::is_empty) {
            found.insert(at.clone());
        } else {
            collect(below, at, found);
        }
        at.pop();
    }
}

fn write_owners(object: &mut Value, owners: Vec<Owner>) {
    let entry = |owner: Owner| {
        let mut tree = json!({});
        for path in &owner.fields {
            let keys: Path = path.iter().map(|key| format!("f:{key}")).collect();
            set(&mut tree, &keys, json!({}));
        }
        json!({
            "manager": owner.manager.name,
            "operation": owner.manager.operation.word(),
            "apiVersion": owner.api_version,
            "time": owner.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": tree,
        })
    };
    let left = owners.into_iter().filter(|owner| !owner.fields.is_empty());
    let entries = Value::Array(left.map(entry).collect());
    set(object, &["metadata".to_owned(), "managedFields".to_owned()], entries);
}

/// Owner references are taken over as they are.
fn keep_references(live: &mut Value, wanted: &Value) {
    if let Some(references) = wanted.pointer("/metadata/ownerReferences") {
        let path = ["metadata".to_owned(), "ownerReferences".to_owned()];
        set(live, &path, references.clone());
    }
}

fn set(object: &mut Value, path: &[String], value: Value) {
    let Some((last, above)) = path.split_last() else { return };
    let mut at = object;
    for key in above {
        let Some(map) = at.as_object_mut() else { return };
        let below = map.entry(key.clone()).or_insert_with(|| json!({}));
        if !below.is_object() {
            *below = json!({});
        }
        at = below;
    }
    if let Some(map) = at.as_object_mut() {
        map.insert(last.clone(), value);
    }
}

fn remove(object: &mut Value, path: &[String]) {
    let Some((last, above)) = path.split_last() else { return };
    let mut at = &mut *object;
    for key in above {
        let Some(below) = at.get_mut(key) else { return };
        at = below;
    }
    if let Some(map) = at.as_object_mut() {
        map.shift_remove(last);
    }
    // A map that has lost its last entry goes as well, but never the spec or the metadata.
    let empty = at.as_object().is_some_and(Map::is_empty);
    if empty && above.len() > 1 {
        remove(object, above);
    }
}

fn dotted(path: &[String]) -> String {
    // Keys with dots in them are written as the API server writes them all: with a dot before.
    path.iter().map(|key| format!(".{key}")).collect()
}

/// What is not owned field by field.
const APART: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];
