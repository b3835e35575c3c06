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
    if let Some(since) = annotation(entry, CONNECTED) {
        return Tenant::Alive(format!("has been connected to istiod since {since}"));
    }
    if is_healthy(entry) {
        return Tenant::Alive("is healthy".to_owned());
    }
    let seen = [disconnected_at(entry), created_at(entry), written_at(entry)];
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

/// When its machine's last stream to istiod ended; `None` while one is open, and where there never
/// was one.
pub(super) fn disconnected_at(entry: &Value) -> Option<SystemTime> {
    if annotation(entry, CONNECTED).is_some() {
        return None;
    }
    annotation(entry, DISCONNECTED).and_then(parse_rfc3339)
}

/// Whether istiod holds it for healthy.
pub(super) fn is_healthy(entry: &Value) -> bool {
    let conditions = entry.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        let is =
            |field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
        is("type", "Healthy") && is("status", "True")
    })
}

fn annotation<'a>(entry: &'a Value, name: &str) -> Option<&'a str> {
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
        for alive in [&connected, &healthy, &young, &left, &written, &json!({})] {
            assert!(matches!(judged(alive), Tenant::Alive(_)), "{alive}");
        }
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
