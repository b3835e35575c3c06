//! YAML in and out, in one place.

use serde_json::Value;

use crate::base::problem::Problem;

/// The largest configuration that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// Parses YAML (so JSON too). An empty text is an empty map.
///
/// # Errors
/// With the line, and without quoting the text.
pub fn parse(text: &str, origin: &str) -> Result<Value, Problem> {
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Null) => Ok(Value::Object(serde_json::Map::new())),
        Ok(value) => Ok(value),
        Err(error) => {
            let line = error.location().map(|at| format!(":{}", at.line())).unwrap_or_default();
            let words = error.to_string();
            let words = words.lines().next().unwrap_or_default();
            let words: String = words.trim_start_matches("error: ").chars().take(200).collect();
            Err(Problem::new(
                format!("{origin}{line}"),
                "",
                format!("it is no valid YAML: {words}"),
            ))
        }
    }
}

/// Parses one value as YAML would: `5` is a number, `true` a flag, `[a, b]` a list.
///
/// # Errors
/// When it is no YAML.
pub fn parse_value(text: &str, origin: &str) -> Result<Value, Problem> {
    if text.is_empty() { Ok(Value::from("")) } else { parse(text, origin) }
}

/// Writes YAML; `None` for a value that has no YAML form, which no map of texts and numbers is.
#[must_use]
pub fn write(value: &Value) -> Option<String> {
    serde_saphyr::to_string(value).ok()
}
