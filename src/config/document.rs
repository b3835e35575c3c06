//! Layers of settings, the later winning over the earlier, each leaf with its origin.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Settings by path. Maps are merged, everything else is replaced.
#[derive(Clone, Debug, Default)]
pub struct Document {
    leaves: BTreeMap<Vec<String>, Leaf>,
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) value: Value,
    pub(super) origin: String,
}

impl Document {
    /// An empty document.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tree. `origin` tells where a path of it stands.
    pub fn add(&mut self, tree: &Value, origin: &dyn Fn(&[String]) -> String) {
        self.add_below(&mut Vec::new(), tree, origin);
    }

    /// Sets one value. A plain value that stands where the path leads through is replaced.
    pub fn set(&mut self, path: &[String], value: Value, origin: &str) {
        for length in 0..path.len() {
            self.leaves.remove(path.get(..length).unwrap_or_default());
        }
        self.add_below(&mut path.to_vec(), &value, &|_| origin.to_owned());
    }

    /// The whole as a tree, for a file.
    #[must_use]
    pub fn tree(&self) -> Value {
        let mut root = Map::new();
        for (path, leaf) in &self.leaves {
            insert(&mut root, path, leaf.value.clone());
        }
        Value::Object(root)
    }

    pub(super) fn leaf(&self, path: &[String]) -> Option<&Leaf> {
        self.leaves.get(path)
    }

    /// The leaves below a path.
    pub(super) fn below<'a>(
        &'a self,
        path: &'a [String],
    ) -> impl Iterator<Item = (&'a Vec<String>, &'a Leaf)> {
        self.leaves.iter().filter(move |(at, _)| at.len() > path.len() && at.starts_with(path))
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = (&Vec<String>, &Leaf)> {
        self.leaves.iter()
    }

    fn add_below(
        &mut self,
        at: &mut Vec<String>,
        value: &Value,
        origin: &dyn Fn(&[String]) -> String,
    ) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                self.leaves.remove(at);
                for (key, value) in map {
                    at.push(key.clone());
                    self.add_below(at, value, origin);
                    at.pop();
                }
            }
            _ => {
                // A plain value replaces whatever map was there.
                self.leaves.retain(|path, _| !(path.len() > at.len() && path.starts_with(at)));
                let leaf = Leaf { value: value.clone(), origin: origin(at) };
                self.leaves.insert(at.clone(), leaf);
            }
        }
    }
}

fn insert(map: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => drop(map.insert(last.clone(), value)),
        [first, rest @ ..] => {
            let inner = map.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}
