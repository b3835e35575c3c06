//! Entries of machines that never came back are removed by those that are there. Istiod has taken
//! them out of all traffic long before.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::entry::{MANAGED_BY, MANAGED_BY_LABEL};
use super::{object, tenant};
use crate::base::trouble::chain;
use crate::kube::{Client, KubeError, Object, Version};
use crate::workload::Workload;

/// Looks for entries that nobody will come back to.
pub struct Sweep {
    /// The Kubernetes API.
    pub client: Arc<Client>,
    /// This machine: only entries of its service account are touched, and never its own.
    pub workload: Arc<Workload>,
    /// After which absence, by the API server's clock, an entry goes.
    pub after: Duration,
}

impl Sweep {
    /// Looks from time to time until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let forever = async {
            let mut said = false;
            loop {
                tokio::time::sleep(pause(self.after)).await;
                match self.look().await {
                    Ok(()) => said = false,
                    Err(error) if error.code() == Some(403) => {
                        if !std::mem::replace(&mut said, true) {
                            let error = chain(&error);
                            tracing::warn!(error, "Entries of machines that are gone stay.");
                        }
                    }
                    Err(error) => {
                        tracing::debug!(error = chain(&error), "Could not look for old entries.");
                    }
                }
            }
        };
        tokio::select! {
            () = forever => {}
            () = stop.cancelled() => {}
        }
    }

    async fn look(&self) -> Result<(), KubeError> {
        let own = object(&self.workload);
        let all = Object { name: String::new(), ..own.clone() };
        let selector = format!("{MANAGED_BY_LABEL}={MANAGED_BY}");
        let list = self.client.list(&all, Some(&selector)).await?;
        let items = list.get("items").and_then(Value::as_array);
        // A clock of ours that is wrong would make all of them old.
        let now = self.client.server_time();
        let stale = items
            .into_iter()
            .flatten()
            .filter(|entry| is_stale(entry, &self.workload, self.after, now));
        for entry in stale.take(AT_ONCE) {
            self.remove(entry, &all).await?;
        }
        Ok(())
    }

    async fn remove(&self, entry: &Value, all: &Object) -> Result<(), KubeError> {
        let (Some(version), Some(name)) = (Version::of(entry), name(entry)) else { return Ok(()) };
        let object = Object { name: name.to_owned(), ..all.clone() };
        match self.client.delete_only(&object, &version).await {
            Ok(()) => {
                let entry = object.name;
                tracing::info!(entry, "Removed the WorkloadEntry of a machine that is gone.");
                Ok(())
            }
            // It has come back in this moment.
            Err(error) if error.code() == Some(409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Many machines shall neither look nor remove in the same moment.
fn pause(after: Duration) -> Duration {
    after.mul_f64(SHARE).min(PERIOD).mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Whether a sibling of `own` left its entry behind and has been gone since `after` or longer.
fn is_stale(entry: &Value, own: &Workload, after: Duration, now: SystemTime) -> bool {
    let account = entry.pointer("/spec/serviceAccount").and_then(Value::as_str);
    let left = tenant::left_at(entry).and_then(|left| now.duration_since(left).ok());
    account == Some(own.id.service_account().as_str())
        && name(entry) != Some(own.name.as_str())
        && tenant::machine(entry).is_some()
        && !tenant::is_healthy(entry)
        && left.is_some_and(|ago| ago >= after)
}

fn name(entry: &Value) -> Option<&str> {
    entry.pointer("/metadata/name")?.as_str()
}

/// How often somebody looks, at most.
const PERIOD: Duration = Duration::from_secs(3600);
/// How often somebody looks where the absence is shorter: an entry stays that much longer.
const SHARE: f64 = 0.25;
/// A whole site that is off shall not vanish in one moment.
const AT_ONCE: usize = 5;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::clock::{from_unix_seconds, rfc3339};
    use crate::registry::entry::tests::workload;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn only_entries_of_siblings_that_are_long_gone_are_stale() {
        let own = workload();
        let now = from_unix_seconds(1_000_000);
        let left = |ago: u64| json!({"istio.io/disconnectedAt": rfc3339(from_unix_seconds(1_000_000 - ago))});
        let entry = |change: &dyn Fn(&mut Value)| {
            let mut entry = json!({
                "metadata": {"name": "vm2", "annotations": left(86_400)},
                "spec": {"serviceAccount": "client"},
            });
            entry["metadata"]["annotations"]["vm-agent.io/machine"] = json!("1");
            change(&mut entry);
            is_stale(&entry, &own, DAY, now)
        };
        assert!(entry(&|_| {}));
        assert!(!entry(&|entry| entry["metadata"]["name"] = json!("vm1")), "its own");
        assert!(!entry(&|entry| entry["spec"]["serviceAccount"] = json!("other")));
        assert!(!entry(&|entry| entry["metadata"]["annotations"] = left(86_400)), "no agent's");
        let annotate = |entry: &mut Value, name: &str, value: Value| {
            entry["metadata"]["annotations"][name] = value;
        };
        let recently = left(86_399)["istio.io/disconnectedAt"].clone();
        assert!(!entry(&|entry| annotate(entry, "istio.io/disconnectedAt", recently.clone())));
        assert!(!entry(&|entry| annotate(entry, "istio.io/disconnectedAt", Value::Null)));
        let day_ago = left(86_400)["istio.io/disconnectedAt"].clone();
        let connected =
            |entry: &mut Value| annotate(entry, "istio.io/connectedAt", day_ago.clone());
        assert!(entry(&connected), "istiod went down with it, and has cleaned up since");
        assert!(!entry(&|entry| {
            connected(entry);
            entry["status"] = json!({"conditions": [{"type": "Healthy", "status": "False"}]});
        }));
        assert!(!entry(&|entry| annotate(entry, "istio.io/connectedAt", recently.clone())));
        assert!(!entry(&|entry| {
            entry["status"] = json!({"conditions": [{"type": "Healthy", "status": "True"}]});
        }));
    }

    #[test]
    fn siblings_do_not_look_in_the_same_moment() {
        let pauses: Vec<_> = (0..50).map(|_| pause(3 * DAY)).collect();
        assert!(pauses.iter().all(|pause| (PERIOD / 2..=PERIOD).contains(pause)));
        assert!(pauses.iter().collect::<std::collections::BTreeSet<_>>().len() > 40);
        assert!(pause(Duration::from_secs(8)) <= Duration::from_secs(2));
    }
}
