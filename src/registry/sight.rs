//! What a WorkloadEntry shows to somebody who only looks.

use serde_json::Value;

use super::machine::Machine;
use super::tenant;

/// A WorkloadEntry as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Whose it is.
    pub holder: Holder,
    /// Its address.
    pub address: String,
    /// What istiod holds of its health; `None` while nothing has been reported.
    pub health: Option<Verdict>,
}

/// Whose an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This machine's.
    Us,
    /// Another machine's.
    Other,
    /// It does not say, as with entries that istiod or a person made.
    Unmarked,
}

/// The condition `Healthy` of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is an endpoint.
    pub healthy: bool,
    /// The words of the last report.
    pub message: String,
}

impl Sight {
    /// Reads an object of the API server. `us` is `None` for a machine that has no id yet.
    #[must_use]
    pub fn of(entry: &Value, us: Option<&Machine>) -> Self {
        let holder = match tenant::machine(entry) {
            None => Holder::Unmarked,
            Some(hash) if us.is_some_and(|us| us.hash() == hash) => Holder::Us,
            Some(_) => Holder::Other,
        };
        let text = |object: &Value, field: &str| {
            object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let conditions = entry.pointer("/status/conditions").and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        let condition = conditions.find(|condition| text(condition, "type") == "Healthy");
        let health = condition.map(|condition| Verdict {
            healthy: tenant::is_healthy(entry),
            message: text(condition, "message"),
        });
        let address = entry.get("spec").map(|spec| text(spec, "address")).unwrap_or_default();
        Self { holder, address, health }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::MACHINE;

    #[test]
    fn an_entry_shows_whose_it_is_and_how_it_is() {
        let (us, other) = (Machine::of("one"), Machine::of("two"));
        let entry = |machine: &Machine| {
            json!({
                "metadata": {"annotations": {MACHINE: machine.hash()}},
                "spec": {"address": "10.0.0.1"},
                "status": {"conditions": [{"type": "Healthy", "status": "False", "message": "no"}]},
            })
        };
        let sight = Sight::of(&entry(&us), Some(&us));
        let health = Some(Verdict { healthy: false, message: "no".to_owned() });
        assert_eq!(sight, Sight { holder: Holder::Us, address: "10.0.0.1".to_owned(), health });
        assert_eq!(Sight::of(&entry(&other), Some(&us)).holder, Holder::Other);
        assert_eq!(Sight::of(&json!({}), Some(&us)).holder, Holder::Unmarked);
    }
}
