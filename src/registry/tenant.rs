//! Who lives in an entry, as istiod's notes on it tell (Istio `pilot/pkg/autoregistration`).

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::machine::{MACHINE, is_agent};
use crate::base::clock::parse_rfc3339;

/// The machine that an entry belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tenant {
    /// It is there; this is how we know.
    Alive(String),
    /// It has been gone for longer than the grace.
    Gone(Duration),
}

/// Whether the machine of this entry is there. One that nobody has seen for `grace` is gone.
pub(super) fn tenant(entry: &Value, now: SystemTime, grace: Duration) -> Tenant {
    let is_long_ago = |since: SystemTime| {
        now.duration_since(since).is_ok_and(|ago| ago >= grace.max(LONGEST_STREAM))
    };
    if let Some(since) = annotation(entry, CONNECTED)
        && !abandoned_at(entry).is_some_and(is_long_ago)
    {
        return Tenant::Alive(format!("has been connected to istiod since {since}"));
    }
    if is_healthy(entry) {
        return Tenant::Alive("is healthy".to_owned());
    }
    let seen = [left_at(entry), created_at(entry), written_at(entry)];
    let Some(seen) = seen.into_iter().flatten().max() else {
        return Tenant::Alive("cannot be judged: its entry has no time of creation".to_owned());
    };
    let ago = now.duration_since(seen).unwrap_or_default();
    if ago < grace {
        return Tenant::Alive(format!("was seen {} seconds ago", ago.as_secs()));
    }
    Tenant::Gone(ago)
}

/// The hash of the machine that an entry belongs to.
pub(super) fn machine(entry: &Value) -> Option<&str> {
    annotation(entry, MACHINE)
}

/// The WorkloadGroup from which istiod made it.
pub(super) fn group(entry: &Value) -> Option<&str> {
    annotation(entry, GROUP)
}

/// When its machine's last stream to istiod ended, as far as istiod has noticed; `None` while one
/// is open, and where there never was one.
pub(super) fn left_at(entry: &Value) -> Option<SystemTime> {
    if annotation(entry, CONNECTED).is_some() {
        return abandoned_at(entry);
    }
    annotation(entry, DISCONNECTED).and_then(parse_rfc3339)
}

/// The last connection of a machine that istiod went down with: nobody noted its end, but a later
/// istiod has taken its health away, which every connected machine has (`shouldCleanupEntry`).
fn abandoned_at(entry: &Value) -> Option<SystemTime> {
    let since = annotation(entry, CONNECTED).and_then(parse_rfc3339)?;
    let is_health = |one: &Value| one.get("type").and_then(Value::as_str) == Some("Healthy");
    (!conditions(entry).any(is_health)).then_some(since)
}

/// Whether istiod holds it for healthy.
pub(super) fn is_healthy(entry: &Value) -> bool {
    conditions(entry).any(|condition| {
        let is =
            |field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
        is("type", "Healthy") && is("status", "True")
    })
}

fn conditions(entry: &Value) -> impl Iterator<Item = &Value> {
    entry.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten()
}

pub(super) fn annotation<'a>(entry: &'a Value, name: &str) -> Option<&'a str> {
    entry.pointer("/metadata/annotations")?.get(name)?.as_str()
}

fn created_at(entry: &Value) -> Option<SystemTime> {
    parse_rfc3339(entry.pointer("/metadata/creationTimestamp")?.as_str()?)
}

/// When an agent last changed it.
fn written_at(entry: &Value) -> Option<SystemTime> {
    let managers = entry.pointer("/metadata/managedFields").and_then(Value::as_array);
    let text = |one: &Value, field: &str| one.get(field).and_then(Value::as_str).map(str::to_owned);
    let agents = managers.into_iter().flatten();
    let agents = agents.filter(|one| text(one, "manager").is_some_and(|name| is_agent(&name)));
    agents.filter_map(|one| parse_rfc3339(&text(one, "time")?)).max()
}

const CONNECTED: &str = "istio.io/connectedAt";
const GROUP: &str = "istio.io/autoRegistrationGroup";
const DISCONNECTED: &str = "istio.io/disconnectedAt";
/// Istiod ends streams after half an hour by its chart's default, and gives up those that are half
/// as old again; a new stream is noted anew.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::clock::from_unix_seconds;

    const GRACE: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> String {
        crate::base::clock::rfc3339(from_unix_seconds(1_000_000 + seconds))
    }

    fn judged(entry: &Value) -> Tenant {
        tenant(entry, from_unix_seconds(1_001_000), GRACE)
    }

    #[test]
    fn a_machine_is_there_while_it_is_connected_healthy_or_was_seen_a_moment_ago() {
        let old = json!({"metadata": {"creationTimestamp": at(0)}});
        assert_eq!(judged(&old), Tenant::Gone(Duration::from_secs(1000)));
        let mut connected = old.clone();
        connected["metadata"]["annotations"] = json!({CONNECTED: at(1)});
        let mut healthy = old.clone();
        healthy["status"] = json!({"conditions": [{"type": "Healthy", "status": "True"}]});
        let young = json!({"metadata": {"creationTimestamp": at(900)}});
        let mut left = old.clone();
        left["metadata"]["annotations"] = json!({DISCONNECTED: at(701)});
        let mut written = old.clone();
        written["metadata"]["managedFields"] = json!([{"manager": "vm-agent-1", "time": at(999)}]);
        let mut starting = connected.clone();
        starting["status"] = json!({"conditions": [{"type": "Healthy", "status": "False"}]});
        assert!(matches!(tenant(&starting, from_unix_seconds(9_000_000), GRACE), Tenant::Alive(_)));
        for alive in [&connected, &healthy, &young, &left, &written, &json!({})] {
            assert!(matches!(judged(alive), Tenant::Alive(_)), "{alive}");
        }
    }

    #[test]
    fn a_machine_is_gone_too_when_istiod_went_down_with_it() {
        let entry = json!({
            "metadata": {"creationTimestamp": at(0), "annotations": {CONNECTED: at(100)}},
        });
        let later = |seconds: u64| tenant(&entry, from_unix_seconds(1_000_100 + seconds), GRACE);
        assert!(matches!(later(3599), Tenant::Alive(_)));
        assert_eq!(later(3600), Tenant::Gone(Duration::from_secs(3600)));
    }

    #[test]
    fn a_machine_is_gone_when_nobody_has_seen_it_for_the_grace() {
        let entry = json!({
            "metadata": {"creationTimestamp": at(0), "annotations": {DISCONNECTED: at(700)},
                "managedFields": [{"manager": "pilot-discovery", "time": at(999)}]},
            "status": {"conditions": [{"type": "Healthy", "status": "False"}]},
        });
        assert_eq!(judged(&entry), Tenant::Gone(GRACE), "what istiod writes is no sign of life");
    }
}
