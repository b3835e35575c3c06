//! Values of settings that are not for other eyes: what its name calls secret in the free-form maps
//! ([`crate::base::redact`] has the list), header values and the arguments of commands. Our own settings hold
//! no other secret: they name files.

use serde_json::Value;

use crate::base::redact::{MASKED, is_secret_name, without_passwords};

/// The value as it may be shown.
pub(super) fn masked(at: &[String], value: &Value) -> Value {
    let secret = is_free_form(at) && at.iter().skip(2).any(|name| is_secret_name(name))
        || is_header_value(at);
    match value {
        _ if secret && !value.is_null() => Value::from(MASKED),
        Value::Array(list) if is_command(at) => {
            let mask = |(index, item): (usize, &Value)| {
                if index == 0 { item.clone() } else { Value::from(MASKED) }
            };
            list.iter().enumerate().map(mask).collect()
        }
        Value::Object(map) => {
            let inner = |(name, value): (&String, &Value)| {
                let mut at = at.to_vec();
                at.push(name.clone());
                (name.clone(), masked(&at, value))
            };
            Value::Object(map.iter().map(inner).collect())
        }
        Value::Array(list) => list.iter().map(|item| masked(at, item)).collect(),
        Value::String(text) => Value::from(without_passwords(text)),
        _ => value.clone(),
    }
}

fn is_free_form(at: &[String]) -> bool {
    let section: Vec<&str> = at.iter().take(2).map(String::as_str).collect();
    section == ["mesh", "proxyConfig"] || section == ["mesh", "metadata"]
}

/// Of a probe: whoever reads it could call the application as the probe does.
fn is_header_value(at: &[String]) -> bool {
    let has = |names: [&str; 2]| at.iter().any(|name| names.contains(&name.as_str()));
    has(["httpHeaders", "http_headers"]) && at.last().is_some_and(|name| name == "value")
}

/// A program with its arguments.
fn is_command(at: &[String]) -> bool {
    let names: Vec<&str> = at.iter().map(String::as_str).collect();
    matches!(names.as_slice(), ["credential" | "health", .., "command"])
}

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
        assert_eq!(show("mesh.metadata.API_KEY", json!("x")), json!("(masked)"));
        let shown = json!(["/bin/mint", "(masked)", "(masked)"]);
        assert_eq!(show("credential.command", json!(["/bin/mint", "--secret", "x"])), shown);
        let probe = json!({
            "httpGet": {"httpHeaders": [{"name": "Authorization", "value": "Basic eA=="}]},
            "exec": {"command": ["/bin/mint", "--secret", "x"]},
        });
        let masked = json!({
            "httpGet": {"httpHeaders": [{"name": "Authorization", "value": "(masked)"}]},
            "exec": {"command": shown},
        });
        assert_eq!(show("health.probe", probe), masked);
    }
}
