//! YAML in and out, in one place: bounded, without surprises of YAML 1.1, and with the line of
//! every key. It knows no setting.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use crate::base::problem::Problem;

/// The largest configuration that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// The line of each key, from 1, by its path.
pub type Lines = BTreeMap<Vec<String>, u64>;

/// Parses YAML (so JSON too). An empty text is an empty map.
///
/// # Errors
/// With the line, and without quoting the text.
pub fn parse(text: &str, origin: &str) -> Result<Value, Problem> {
    parse_with_lines(text, origin).map(|(value, _)| value)
}

/// Parses one value as YAML would: `5` is a number, `true` a flag, `[a, b]` a list.
///
/// # Errors
/// When it is no YAML.
pub fn parse_value(text: &str, origin: &str) -> Result<Value, Problem> {
    if text.is_empty() {
        return Ok(Value::from(""));
    }
    // One value has no lines worth telling.
    parse(text, origin).map_err(|problem| Problem { origin: origin.to_owned(), ..problem })
}

/// Parses YAML and tells where each key stands.
///
/// # Errors
/// As [`parse`].
pub fn parse_with_lines(text: &str, origin: &str) -> Result<(Value, Lines), Problem> {
    if text.len() as u64 > MAX_BYTES {
        let what = format!("it is larger than {MAX_BYTES} bytes");
        return Err(Problem::new(origin, "", what));
    }
    let tree = serde_saphyr::from_str_with_options::<Tree>(text, options()).map_err(|error| {
        let line = error.location().map(|at| format!(":{}", at.line())).unwrap_or_default();
        let words = error.to_string();
        let words = words.lines().next().unwrap_or_default();
        let words: String = words.trim_start_matches("error: ").chars().take(200).collect();
        Problem::new(format!("{origin}{line}"), "", format!("it is no valid YAML: {words}"))
    })?;
    let mut lines = Lines::new();
    match tree.flatten(&mut Vec::new(), &mut lines) {
        Value::Null => Ok((Value::Object(Map::new()), lines)),
        value => Ok((value, lines)),
    }
}

/// Writes YAML; `None` for a value that has no YAML form, which no map of texts and numbers is.
#[must_use]
pub fn write(value: &Value) -> Option<String> {
    serde_saphyr::to_string(value).ok()
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: MAX_EVENTS,
            max_nodes: MAX_EVENTS,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_EVENTS,
            max_replay_stack_depth: 8,
            max_alias_expansions_per_anchor: MAX_ALIASES,
        },
        // `no` is a country and 010 is a name; neither is turned into something else.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    }
}

/// A parsed text whose map keys know their line.
enum Tree {
    Plain(Value),
    List(Vec<Self>),
    Map(Vec<(Spanned<String>, Self)>),
}

impl Tree {
    fn flatten(self, at: &mut Vec<String>, lines: &mut Lines) -> Value {
        match self {
            Self::Plain(value) => value,
            // What is inside a list has the line of the list.
            Self::List(list) => {
                list.into_iter().map(|item| item.flatten(at, &mut Lines::new())).collect()
            }
            Self::Map(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    at.push(key.value.clone());
                    lines.insert(at.clone(), key.referenced.line());
                    map.insert(key.value, value.flatten(at, lines));
                    at.pop();
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Tree, E> {
        Ok(Tree::Plain(flag.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Plain(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Plain(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Plain(number.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Plain(text.into()))
    }

    fn visit_string<E>(self, text: String) -> Result<Tree, E> {
        Ok(Tree::Plain(text.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Plain(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Plain(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Tree, D::Error> {
        Tree::deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}

/// A configuration has some hundred values; what needs more is an attack or a mistake.
const MAX_EVENTS: usize = 100_000;
/// Anchors save typing in a hand-written file; nobody types this many.
const MAX_ALIASES: usize = 100;

#[cfg(test)]
mod tests;
