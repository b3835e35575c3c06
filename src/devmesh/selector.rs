//! Label and field selectors of the Kubernetes API (`apimachinery/pkg/labels`).

use serde_json::Value;

use super::catalog::text;

/// What an object must be to be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Need>,
    /// Where in the object, as a JSON pointer, and what.
    fields: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Has(String),
    HasNot(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    /// The selectors of a call; empty texts choose everything.
    pub(super) fn new(labels: &str, fields: &str) -> Self {
        let field = |text: &str| {
            let (path, value) = text.split_once('=')?;
            let pointer = format!("/{}", path.replace('.', "/"));
            Some((pointer, value.trim_start_matches('=').to_owned()))
        };
        Self {
            labels: parts(labels).iter().map(|part| Need::read(part)).collect(),
            fields: fields.split(',').filter_map(field).collect(),
        }
    }

    pub(super) fn has(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        let label = |key: &str| labels.and_then(|labels| labels.get(key)?.as_str());
        self.fields.iter().all(|(pointer, value)| text(object, pointer) == value)
            && self.labels.iter().all(|need| match need {
                Need::Has(key) => label(key).is_some(),
                Need::HasNot(key) => label(key).is_none(),
                Need::In(key, values) => {
                    label(key).is_some_and(|value| values.iter().any(|one| one == value))
                }
                Need::NotIn(key, values) => {
                    label(key).is_none_or(|value| values.iter().all(|one| one != value))
                }
            })
    }
}

impl Need {
    fn read(text: &str) -> Self {
        let owned = |text: &str| text.trim().to_owned();
        let set = |text: &str| -> Vec<String> {
            let inner = text.trim().trim_start_matches('(').trim_end_matches(')');
            inner.split(',').map(owned).collect()
        };
        if let Some((key, values)) = text.split_once(" notin ") {
            Self::NotIn(owned(key), set(values))
        } else if let Some((key, values)) = text.split_once(" in ") {
            Self::In(owned(key), set(values))
        } else if let Some((key, value)) = text.split_once("!=") {
            Self::NotIn(owned(key), vec![owned(value)])
        } else if let Some((key, value)) = text.split_once('=') {
            Self::In(owned(key), vec![owned(value.trim_start_matches('='))])
        } else if let Some(key) = text.trim().strip_prefix('!') {
            Self::HasNot(owned(key))
        } else {
            Self::Has(owned(text))
        }
    }
}

/// The text between commas that stand in no parentheses.
fn parts(text: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0_u32);
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match parts.last_mut() {
            Some(part) if letter != ',' || depth > 0 => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_choose_by_labels_and_fields() {
        let object = json!({"metadata": {"name": "vm1", "labels": {"app": "a", "team": "red"}}});
        let has = |labels: &str| Selector::new(labels, "").has(&object);
        for fits in [
            "",
            "app=a",
            "app==a,team=red",
            "app in (a, b),team",
            "app!=b",
            "!x",
            "x notin (y)",
            "app in (b,a)",
        ] {
            assert!(has(fits), "{fits}");
        }
        for other in ["app=b", "app in (b,c)", "!app", "x", "app!=a", "app notin (a)"] {
            assert!(!has(other), "{other}");
        }
        assert!(Selector::new("", "metadata.name=vm1").has(&object));
        assert!(!Selector::new("app=a", "metadata.name=vm2").has(&object));
    }
}
