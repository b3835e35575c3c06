//! Two machines with one machine ID, such as two copies of one disk. Both write the same entry under
//! the same field manager, so the API server sees no conflict between them. They tell each other
//! apart by an instance ID, which a machine draws once a boot, and the entry names the instance that
//! holds it.
//!
//! *The rule:* the instance that holds the entry keeps it for as long as it answers; the other one
//! does not register. Who finds the entry held by another instance writes a challenge into it, with
//! its own instance and address, and changes nothing else. A holder that runs sees the challenge and
//! applies the entry again, which removes the challenge. Without that answer within
//! [`ANSWER_LIMIT`] the holder is gone (it was this machine before its reboot, or it has died), and
//! the challenger takes the entry. No challenge is needed where the entry has this machine's address
//! already, unless the entry was lost to the other instance while this one ran.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::course::{Cause, Course, Look};
use super::direct::{Direct, RegisterError};
use super::fields::revision;
use super::machine::Machine;
use super::tenant::{annotation, machine};
use super::{MACHINE, entry};
use crate::base::trouble::Trouble;
use crate::kube::Object;
use crate::workload::Workload;

/// The other machine with our ID, as its challenge tells.
pub(super) struct Rival {
    address: String,
    seen: Instant,
}

/// What an entry shows of the instances that want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Another instance asks whether the holder runs; its address.
    Challenged(String),
    /// Another instance holds the entry.
    Taken,
    /// Another process writes as our instance: the memory of this machine was copied, too.
    Cloned,
}

/// What a changed entry shows to the instance that holds it, and that has written `kept` last.
pub(super) fn sign(live: &Value, kept: &Value, instance: &str, manager: &str) -> Option<Sign> {
    if machine(live) != machine(kept) {
        return None;
    }
    if holder(live).is_some_and(|holder| holder != instance) {
        return Some(Sign::Taken);
    }
    if address(live) != address(kept) && writes_address(live, manager) {
        return Some(Sign::Cloned);
    }
    let (challenger, address) = annotation(live, CHALLENGE)?.split_once(' ')?;
    (challenger != instance).then(|| Sign::Challenged(address.chars().take(ADDRESS).collect()))
}

/// The instance that holds an entry.
pub(super) fn holder(entry: &Value) -> Option<&str> {
    annotation(entry, INSTANCE)
}

/// Whether another machine with this machine's ID holds an entry.
pub(super) fn is_rivals(entry: &Value, us: &Machine) -> bool {
    us.instance().zip(holder(entry)).is_some_and(|(ours, holder)| ours != holder)
}

/// A new instance ID.
#[must_use]
pub fn new_instance() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Course<'_> {
    /// The entry as it should be, with the instance that holds it.
    pub(super) fn wanted(&self, workload: &Workload) -> Value {
        let mut wanted = entry(workload, &self.direct.config.machine);
        annotate(&mut wanted, INSTANCE, &self.instance);
        wanted
    }

    /// Asks the instance that holds the entry, if that is another one. `Ok(Some(look))` when it has
    /// answered; the revision at which the entry may be taken otherwise, where there is an entry.
    pub(super) async fn ask_holder(
        &mut self,
        object: &Object,
        workload: &Arc<Workload>,
    ) -> Result<Answer, RegisterError> {
        let Direct { client, config, .. } = self.direct;
        let live = match client.get(object).await {
            Err(error) if error.code() == Some(404) => return Ok(Answer::Free(None)),
            live => live?,
        };
        let own = workload.address.to_string();
        let is_other = holder(&live).is_some_and(|holder| holder != self.instance);
        let is_ours = machine(&live) == Some(config.machine.hash());
        if !is_other || !is_ours || (!self.was_taken && address(&live) == Some(own.as_str())) {
            return Ok(Answer::Free(None));
        }
        let challenge = format!("{} {own}", self.instance);
        let manager = config.machine.field_manager();
        let body = challenged(&live, &challenge);
        let mut live = client.apply(object, &body, &manager, false).await?;
        let end = Instant::now() + ANSWER_LIMIT;
        while Instant::now() < end {
            sleep(POLL).await;
            live = match client.get(object).await {
                Err(error) if error.code() == Some(404) => return Ok(Answer::Free(None)),
                live => live?,
            };
            if annotation(&live, CHALLENGE) != Some(challenge.as_str()) {
                return Ok(Answer::Held(self.relinquish(object, live, own)));
            }
        }
        tracing::warn!(
            entry = object.name,
            address = address(&live),
            "Took over the WorkloadEntry of another instance of this machine, which did not answer"
        );
        Ok(Answer::Free(Some(revision(&live))))
    }

    fn relinquish(&mut self, object: &Object, live: Value, own: String) -> Look {
        let error = RegisterError::Duplicate {
            entry: format!("{}/{}", object.namespace, object.name),
            address: address(&live).unwrap_or("an unknown address").to_owned(),
            own,
        };
        self.was_taken = true;
        let now = self.direct.clock.now();
        self.lost(Trouble::new(&error, error.hint(), error.retry(), now));
        Look { kept: live.clone(), live, settled: false }
    }

    /// Takes note of what a changed entry shows of other instances.
    pub(super) fn rivalry(&mut self, live: &Value, look: &Look) -> Option<Cause> {
        // Only the holder answers.
        self.uid.as_ref()?;
        let manager = self.direct.config.machine.field_manager();
        match sign(live, &look.kept, &self.instance, &manager)? {
            Sign::Challenged(address) => {
                self.rival = Some(Rival { address, seen: Instant::now() });
                return Some(Cause::Challenge);
            }
            Sign::Taken => {}
            Sign::Cloned => self.instance = new_instance(),
        }
        tracing::warn!(
            entry = self.workload.borrow().name,
            address = address(live),
            "Another machine with this machine's ID has written the WorkloadEntry"
        );
        (self.uid, self.was_taken) = (None, true);
        Some(Cause::Challenge)
    }

    /// Shows the machine that has our ID as a condition, for as long as it keeps asking.
    pub(super) fn show_rival(&mut self) {
        self.rival.take_if(|rival| rival.seen.elapsed() > RIVAL_LIMIT);
        if self.uid.is_some() {
            self.was_taken = false;
        }
        let Some(rival) = self.rival.as_ref().filter(|_| self.uid.is_some()) else { return };
        let workload = Arc::clone(&self.workload.borrow());
        let error = RegisterError::Rival {
            entry: format!("{}/{}", workload.id.namespace(), workload.name),
            address: rival.address.clone(),
            own: workload.address.to_string(),
        };
        let condition = Trouble::new(&error, error.hint(), error.retry(), self.direct.clock.now());
        let is_new = self.told_of.replace(rival.address.clone()).as_ref() != Some(&rival.address);
        if is_new {
            tracing::warn!(error = %condition, "Another machine has this machine's ID");
        }
        self.direct.state.send_modify(|state| {
            state.trouble.get_or_insert(condition);
        });
    }
}

/// What the holder of an entry has answered.
pub(super) enum Answer {
    /// It runs.
    Held(Look),
    /// There is none; the entry is taken only if it is still of this revision.
    Free(Option<String>),
}

/// The entry as it is, with a challenge.
pub(super) fn challenged(live: &Value, challenge: &str) -> Value {
    let kept = |name: &str| annotation(live, name).map(|value| (name.to_owned(), json!(value)));
    let kept = [MACHINE, INSTANCE, HEALTH_CHECKS].into_iter().filter_map(kept);
    let annotations: serde_json::Map<String, Value> = kept.collect();
    let part = |at: &str| live.pointer(at).cloned().unwrap_or_else(|| json!({}));
    let mut body = json!({
        "apiVersion": part("/apiVersion"),
        "kind": part("/kind"),
        "metadata": {
            "name": part("/metadata/name"),
            "namespace": part("/metadata/namespace"),
            "resourceVersion": revision(live),
            "labels": part("/metadata/labels"),
            "annotations": annotations,
        },
        "spec": part("/spec"),
    });
    annotate(&mut body, CHALLENGE, challenge);
    body
}

fn annotate(entry: &mut Value, name: &str, value: &str) {
    if let Some(all) = entry.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        all.insert(name.to_owned(), json!(value));
    }
}

/// The address in an entry.
fn address(entry: &Value) -> Option<&str> {
    entry.pointer("/spec/address")?.as_str()
}

/// Whether this field manager owns the entry's address.
fn writes_address(entry: &Value, manager: &str) -> bool {
    let managers = entry.pointer("/metadata/managedFields").and_then(Value::as_array);
    managers.into_iter().flatten().any(|one| {
        one.get("manager").and_then(Value::as_str) == Some(manager)
            && one.pointer("/fieldsV1/f:spec/f:address").is_some()
    })
}

/// The annotation with the instance that holds an entry.
const INSTANCE: &str = "vm-agent.io/instance";
/// The annotation with the instance and the address of a machine that asks for the holder.
const CHALLENGE: &str = "vm-agent.io/challenge";
const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";
/// A holder that watches its entry answers within two calls of the API.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(500);
/// A machine that was refused asks about once a minute.
const RIVAL_LIMIT: Duration = Duration::from_secs(180);
/// The longest address that is shown: a DNS name.
pub(super) const ADDRESS: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn an_entry(instance: &str, address: &str) -> Value {
        json!({
            "metadata": {
                "annotations": {MACHINE: "m", INSTANCE: instance},
                "managedFields": [
                    {"manager": "vm-agent-m", "fieldsV1": {"f:spec": {"f:address": {}}}},
                ],
            },
            "spec": {"address": address},
        })
    }

    fn seen(live: &Value) -> Option<Sign> {
        sign(live, &an_entry("i", "10.0.0.1"), "i", "vm-agent-m")
    }

    #[test]
    fn an_entry_shows_who_else_wants_it() {
        assert_eq!(seen(&an_entry("i", "10.0.0.1")), None);
        assert_eq!(seen(&an_entry("j", "10.0.0.2")), Some(Sign::Taken));
        assert_eq!(seen(&an_entry("j", "10.0.0.1")), Some(Sign::Taken));
        assert_eq!(seen(&an_entry("i", "10.0.0.2")), Some(Sign::Cloned));
        let mut edited = an_entry("i", "10.0.0.2");
        edited["metadata"]["managedFields"] =
            json!([{"manager": "kubectl-edit", "fieldsV1": {"f:spec": {"f:address": {}}}}]);
        assert_eq!(seen(&edited), None, "a person's edit is no clone");
        let mut asked = an_entry("i", "10.0.0.1");
        asked["metadata"]["annotations"][CHALLENGE] = json!("j 10.0.0.2");
        assert_eq!(seen(&asked), Some(Sign::Challenged("10.0.0.2".to_owned())));
        asked["metadata"]["annotations"][CHALLENGE] = json!("i 10.0.0.1");
        assert_eq!(seen(&asked), None, "our own");
    }

    #[test]
    fn a_challenge_changes_nothing_else() {
        let live = an_entry("i", "10.0.0.1");
        let body = challenged(&live, "j 10.0.0.2");
        assert_eq!(body["spec"], live["spec"]);
        assert_eq!(holder(&body), Some("i"));
        assert_eq!(annotation(&body, CHALLENGE), Some("j 10.0.0.2"));
    }
}
