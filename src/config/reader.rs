//! Reads typed settings out of a document: what is wrong is collected, what is read is known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::document::{Document, Leaf};
use super::names::unknown_name;
use super::secret;
use crate::base::problem::Problem;

/// A setting as it counts, and where it came from.
#[derive(Clone, Debug, Serialize)]
pub struct Effective {
    /// Its path.
    pub setting: String,
    /// Its value.
    pub value: Value,
    /// `FILE:LINE`, a flag, or `default`.
    pub origin: String,
}

/// The reader of one document.
pub(super) struct Reader<'a> {
    document: &'a Document,
    known: Vec<Vec<String>>,
    /// What each setting takes, in the words of a complaint.
    takes: BTreeMap<String, String>,
    problems: Vec<Problem>,
    effective: Vec<Effective>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(document: &'a Document) -> Self {
        Self {
            document,
            known: Vec::new(),
            takes: BTreeMap::new(),
            problems: Vec::new(),
            effective: Vec::new(),
        }
    }

    /// A text, parsed; `None` when it is not set. A wrong one is a problem.
    pub(super) fn parse<T>(&mut self, setting: &str, default: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(setting, default)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.wrong(setting, error.to_string());
                None
            }
        }
    }

    /// A text; an empty one, or none, is the default, and an empty default is `None`.
    pub(super) fn text(&mut self, setting: &str, default: &str) -> Option<String> {
        let value = self.take(setting, Value::from(default), TEXT, plain_text)?;
        if value.is_empty() && !default.is_empty() {
            return Some(default.to_owned());
        }
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn path(&mut self, setting: &str, default: &str) -> Option<PathBuf> {
        let text = self.text(setting, default);
        self.takes(setting, "a path");
        text.map(PathBuf::from)
    }

    /// A span of time longer than none.
    pub(super) fn duration(&mut self, setting: &str, default: &str) -> Option<Duration> {
        let duration = self.duration_or_zero(setting, default)?;
        if duration.is_zero() {
            self.wrong(setting, "it is zero".to_owned());
            return None;
        }
        Some(duration)
    }

    /// A span of time, `0s` being none.
    pub(super) fn duration_or_zero(&mut self, setting: &str, default: &str) -> Option<Duration> {
        let text = self.text(setting, default);
        self.takes(setting, "a span of time");
        let text = text?;
        match super::duration(&text) {
            Ok(duration) => Some(duration),
            Err(what) => {
                self.wrong(setting, what);
                None
            }
        }
    }

    pub(super) fn flag(&mut self, setting: &str, default: bool) -> bool {
        let value = self.take(setting, Value::from(default), "true or false", Value::as_bool);
        value.unwrap_or(default)
    }

    /// A number within a range; `None` when it is not set and has no default.
    pub(super) fn number(
        &mut self,
        setting: &str,
        default: Option<u64>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let default = default.map_or(Value::Null, Value::from);
        self.take(setting, default, &expected, |value| {
            value.as_u64().filter(|number| range.contains(number))
        })
    }

    /// A share between two bounds.
    pub(super) fn share(&mut self, setting: &str, default: f64, low: f64, high: f64) -> f64 {
        let expected = format!("a number from {low} to {high}");
        let value = self.take(setting, Value::from(default), &expected, |value| {
            value.as_f64().filter(|number| (low..=high).contains(number))
        });
        value.unwrap_or(default)
    }

    pub(super) fn texts(&mut self, setting: &str) -> Vec<String> {
        let list = self.take(setting, Value::Array(Vec::new()), "a list of texts", |value| {
            let list = value.as_array()?.iter();
            list.map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        list.unwrap_or_default()
    }

    /// A list: of texts and numbers, or one text with commas. `default` is such a text.
    pub(super) fn list(&mut self, setting: &str, default: &str) -> Vec<String> {
        let parts = |text: &str| -> Vec<String> {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let expected = "a list, or a text such as \"80,8080\"";
        let list = self.take(setting, Value::from(default), expected, |value| match value {
            Value::Array(items) => items.iter().map(plain_text).collect::<Option<Vec<_>>>(),
            other => plain_text(other).map(|text| parts(&text)),
        });
        list.unwrap_or_default()
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        setting: &str,
        default: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let found = self.text(setting, default);
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let (last, first) = words.split_last()?;
        let expected = format!("{} or {last}", first.join(", "));
        self.takes(setting, &expected);
        let found = found?;
        let chosen = choices.iter().find(|(word, _)| *word == found);
        if chosen.is_none() {
            self.wrong(setting, format!("found {found:?}, expected {expected}"));
        }
        chosen.map(|(_, value)| *value)
    }

    /// A map of names to plain values, as texts. Each value keeps its own origin.
    pub(super) fn map(&mut self, setting: &str) -> BTreeMap<String, String> {
        let at = self.whole_map(setting);
        let mut map = BTreeMap::new();
        let leaves: Vec<_> =
            self.document.below(&at).map(|(path, leaf)| (path.clone(), leaf.clone())).collect();
        for (path, leaf) in leaves {
            let name = path.get(at.len()..).unwrap_or_default().join(".");
            // What a higher layer sets to null is not set.
            if leaf.value.is_null() {
                continue;
            }
            match plain_text(&leaf.value) {
                Some(value) => drop(map.insert(name, value)),
                None => self.unlike(&path, &leaf, TEXT),
            }
            self.show(&path.join("."), leaf.value, &leaf.origin);
        }
        map
    }

    /// A tree that is not ours to understand.
    pub(super) fn tree(&mut self, setting: &str) -> Map<String, Value> {
        let at = self.whole_map(setting);
        let mut tree = Document::new();
        let leaves: Vec<_> =
            self.document.below(&at).map(|(path, leaf)| (path.clone(), leaf.clone())).collect();
        for (path, leaf) in leaves {
            self.show(&path.join("."), leaf.value.clone(), &leaf.origin);
            tree.set(path.get(at.len()..).unwrap_or_default(), leaf.value, &leaf.origin);
        }
        match tree.tree() {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// Reports a setting's value as wrong.
    pub(super) fn wrong(&mut self, setting: &str, what: String) {
        let at = path_of(setting);
        let inside = self.document.below(&at).next().map(|(_, leaf)| leaf);
        match self.document.leaf(&at).or(inside).cloned() {
            Some(leaf) => self.wrong_at(&at, &leaf, what),
            None => self.problems.push(Problem::new("configuration", setting, what)),
        }
    }

    /// Reports what is wrong with one entry of a map.
    pub(super) fn wrong_in(&mut self, setting: &str, key: &str, what: String) {
        let mut at = path_of(setting);
        at.push(key.to_owned());
        self.wrong_leaf(&at, what);
    }

    /// Reports the value at a path as wrong. Keys of maps may have dots.
    pub(super) fn wrong_leaf(&mut self, at: &[String], what: String) {
        match self.document.leaf(at).cloned() {
            Some(leaf) => self.wrong_at(at, &leaf, what),
            None => self.problems.push(Problem::new("configuration", at.join("."), what)),
        }
    }

    /// Where the value at a path stands.
    pub(super) fn origin(&self, at: &[String]) -> String {
        let leaf = self.document.leaf(at);
        leaf.map_or_else(|| "configuration".to_owned(), |leaf| leaf.origin.clone())
    }

    /// Reports every setting that nobody has read.
    pub(super) fn report_unknown(&mut self) {
        let is_known = |path: &Vec<String>| self.known.iter().any(|known| path.starts_with(known));
        let unknown: Vec<_> = self
            .document
            .paths()
            .filter(|(path, _)| !is_known(path))
            .map(|(path, leaf)| (path.clone(), leaf.clone()))
            .collect();
        let mut told = BTreeSet::new();
        for (path, leaf) in unknown {
            // An empty section says nothing wrong.
            if leaf.value.is_null() || leaf.value.as_object().is_some_and(Map::is_empty) {
                continue;
            }
            // A section is told once, not for each of its settings.
            let (at, what) = unknown_name(&path, &self.known);
            if told.insert(at.clone()) {
                self.problems.push(Problem::new(leaf.origin, at, what));
            }
        }
    }

    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Effective>) {
        (self.problems, self.effective)
    }

    /// The paths of all settings that were asked for.
    pub(super) fn into_known(self) -> Vec<Vec<String>> {
        self.known
    }

    /// All settings of an empty document: path, what it takes, default.
    pub(super) fn into_defaults(self) -> impl Iterator<Item = (String, String, Value)> {
        let mut takes = self.takes;
        self.effective.into_iter().map(move |one| {
            let takes = takes.remove(&one.setting).unwrap_or_default();
            (one.setting, takes, one.value)
        })
    }

    /// Whether a layer says something of a setting.
    pub(super) fn is_set(&self, setting: &str) -> bool {
        let at = path_of(setting);
        self.document.leaf(&at).is_some_and(|leaf| !leaf.value.is_null())
            || self.document.below(&at).next().is_some()
    }

    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    fn take<T>(
        &mut self,
        setting: &str,
        default: Value,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let at = path_of(setting);
        self.known.push(at.clone());
        self.takes(setting, expected);
        let inside =
            self.document.below(&at).next().map(|(path, leaf)| (path.clone(), leaf.clone()));
        if let Some((_, leaf)) = inside {
            self.wrong_at(&at, &leaf, format!("found a map, expected {expected}"));
            return None;
        }
        let leaf = self.document.leaf(&at).filter(|leaf| !leaf.value.is_null()).cloned();
        let Some(leaf) = leaf else {
            let value = read(&default);
            self.show(setting, default, "default");
            return value;
        };
        let value = read(&leaf.value);
        if value.is_none() {
            self.unlike(&at, &leaf, expected);
        }
        self.show(setting, leaf.value, &leaf.origin);
        value
    }

    /// Where a map's entries begin; a plain value in its place is a problem.
    fn whole_map(&mut self, setting: &str) -> Vec<String> {
        let at = path_of(setting);
        self.known.push(at.clone());
        self.takes(setting, "a map");
        let leaf = self.document.leaf(&at).cloned();
        let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        match leaf.filter(|leaf| !empty(&leaf.value)) {
            Some(leaf) => self.unlike(&at, &leaf, "a map"),
            None if self.document.below(&at).next().is_none() => {
                self.show(setting, Value::Object(Map::new()), "default");
            }
            None => {}
        }
        at
    }

    /// The words for what a setting takes; the last ones count.
    fn takes(&mut self, setting: &str, words: &str) {
        self.takes.insert(setting.to_owned(), words.to_owned());
    }

    fn unlike(&mut self, at: &[String], leaf: &Leaf, expected: &str) {
        let found = secret::masked(at, &leaf.value).to_string();
        let found: String = found.chars().take(100).collect();
        self.wrong_at(at, leaf, format!("found {found}, expected {expected}"));
    }

    fn wrong_at(&mut self, at: &[String], leaf: &Leaf, what: String) {
        self.problems.push(Problem::new(leaf.origin.clone(), at.join("."), what));
    }

    fn show(&mut self, setting: &str, value: Value, origin: &str) {
        let (setting, origin) = (setting.to_owned(), origin.to_owned());
        let value = secret::masked(&path_of(&setting), &value);
        self.effective.push(Effective { setting, value, origin });
    }
}

fn path_of(setting: &str) -> Vec<String> {
    setting.split('.').map(str::to_owned).collect()
}

/// A value as text where it has one spelling only: `1.10` and `1.1` are the same number, so such
/// a one must be in quotes.
fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

const TEXT: &str = "a text (in quotes if it looks like something else)";
