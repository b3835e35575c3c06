//! Values that are not for other eyes, told by the names that they have in free-form maps. Our own
//! settings hold no secret: they name files.

use serde_json::Value;

/// The value as it may be shown.
pub(super) fn masked(at: &[String], value: &Value) -> Value {
    let names_file = at
        .last()
        .is_some_and(|name| ["File", "_FILE", "_PATH"].iter().any(|end| name.ends_with(end)));
    let secret = !names_file && is_free_form(at) && at.iter().skip(2).any(|name| is_secret(name));
    match value {
        _ if secret && !value.is_null() => Value::from("(masked)"),
        Value::Object(map) => {
            let inner = |(name, value): (&String, &Value)| {
                let mut at = at.to_vec();
                at.push(name.clone());
                (name.clone(), masked(&at, value))
            };
            Value::Object(map.iter().map(inner).collect())
        }
        Value::Array(list) => list.iter().map(|item| masked(at, item)).collect(),
        Value::String(text) => Value::from(without_password(text)),
        _ => value.clone(),
    }
}

/// `https://user:password@host` without what stands before the `@`.
fn without_password(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => {
            let host_end = rest.find('/').unwrap_or(rest.len());
            match rest.get(..host_end).and_then(|authority| authority.rfind('@')) {
                Some(at) => format!("{scheme}://(masked){}", rest.get(at..).unwrap_or_default()),
                None => text.to_owned(),
            }
        }
        None => text.to_owned(),
    }
}

fn is_free_form(at: &[String]) -> bool {
    let section: Vec<&str> = at.iter().take(2).map(String::as_str).collect();
    section == ["mesh", "proxyConfig"] || section == ["mesh", "metadata"]
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

const WORDS: [&str; 7] =
    ["token", "password", "passwd", "secret", "credential", "authorization", "apikey"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_its_name_calls_secret_is_not_shown() {
        let show = |at: &str, value: Value| {
            masked(&at.split('.').map(str::to_owned).collect::<Vec<_>>(), &value)
        };
        assert_eq!(show("mesh.metadata.MY_TOKEN", json!("x")), json!("(masked)"));
        assert_eq!(show("mesh.metadata.TOKEN_FILE", json!("/x")), json!("/x"));
        assert_eq!(show("credential.tokenFile", json!("/x")), json!("/x"));
        let tracing = json!({"datadog": {"accessToken": "x", "address": "https://u:p@h/p@q"}});
        let shown =
            json!({"datadog": {"accessToken": "(masked)", "address": "https://(masked)@h/p@q"}});
        assert_eq!(show("mesh.proxyConfig.tracing", tracing), shown);
    }
}
