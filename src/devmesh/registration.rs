//! istiod's checks of a new stream, its auto-registration and its health reports
//! (`pilot/pkg/xds/auth.go`, `pilot/pkg/autoregistration`). It opens no stream itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;

use super::ca::Caller;
use super::catalog::whose;
use super::kind::Resource;
use super::proxy::Proxy;
use super::seen::{SeenHealth, record};
use super::store::Key;
use super::{State, lock};
use crate::base::clock::rfc3339;
use crate::proto::discovery::Node;

/// A registered machine's connection. The entry counts as disconnected when it is dropped.
pub(super) struct Registered {
    state: Arc<State>,
    key: Key,
}

/// Admits a stream by its first request: the proxy, and what stands for its WorkloadEntry where
/// one was made.
pub(super) fn admit(
    state: &Arc<State>,
    caller: &Caller,
    node: Option<&Node>,
) -> Result<(Proxy, Option<Registered>), Status> {
    let node = node.filter(|node| !node.id.is_empty());
    let node = node.ok_or_else(|| Status::invalid_argument("missing node information"))?;
    if node.id.split('~').count() != 4 {
        let words = format!("missing parts in the service node {:?}", node.id);
        return Err(Status::invalid_argument(words));
    }
    let proxy = Proxy::read(node);
    let (namespace, account) = (proxy.text("NAMESPACE"), proxy.text("SERVICE_ACCOUNT"));
    let id = &caller.id;
    let same = id.namespace().as_str() == namespace
        && (account.is_empty() || id.service_account().as_str() == account);
    if !same {
        let words =
            format!("authorization failed: no identities ([{id}]) matched {namespace}/{account}");
        return Err(Status::permission_denied(words));
    }
    let group = proxy.text("AUTO_REGISTER_GROUP");
    let registered = match (group, proxy.text("WORKLOAD_ENTRY")) {
        ("", "") => None,
        ("", entry) => follow(state, caller, namespace, entry)?,
        (group, _) => Some(register(state, caller, &proxy, group)?),
    };
    Ok((proxy, registered))
}

/// Stands for an entry that the machine has made itself: its health is told there, and its end.
fn follow(
    state: &Arc<State>,
    caller: &Caller,
    namespace: &str,
    name: &str,
) -> Result<Option<Registered>, Status> {
    let Some(entry) = state.objects.get(Resource::WorkloadEntries, namespace, name) else {
        return Ok(None);
    };
    let account = entry.pointer("/spec/serviceAccount").and_then(Value::as_str).unwrap_or_default();
    if account != caller.id.service_account().as_str() {
        let words = format!("{} may not use the WorkloadEntry {namespace}/{name}", caller.id);
        return Err(Status::permission_denied(words));
    }
    let key = Key::new(Resource::WorkloadEntries, namespace, name);
    let now = nanos(state.options.clock.now());
    *lock(&state.live).entry(key.clone()).or_default() += 1;
    let _gone = state.objects.modify(&key, |live| {
        set(live, "istio.io/connectedAt", &now);
        unset(live, "istio.io/disconnectedAt");
    });
    Ok(Some(Registered { state: Arc::clone(state), key }))
}

fn register(
    state: &Arc<State>,
    caller: &Caller,
    proxy: &Proxy,
    group: &str,
) -> Result<Registered, Status> {
    let namespace = proxy.text("NAMESPACE");
    let found = state.objects.get(Resource::WorkloadGroups, namespace, group);
    let found = found.ok_or_else(|| {
        Status::failed_precondition(format!("cannot find WorkloadGroup {namespace}/{group}"))
    })?;
    let ip = proxy.text("INSTANCE_IPS").split(',').next().unwrap_or_default();
    if ip.is_empty() {
        return Err(Status::failed_precondition("the proxy has no IP address to register"));
    }
    let mut entry = entry(proxy, &found, group, ip);
    let account = entry.pointer("/spec/serviceAccount").and_then(Value::as_str).unwrap_or_default();
    if !account.is_empty() && account != caller.id.service_account().as_str() {
        let words = format!(
            "auto-registration WorkloadEntry of {} failed: {} may not use the service account {account:?}",
            caller.id, caller.id
        );
        return Err(Status::permission_denied(words));
    }
    let name = entry_name(group, ip, proxy.text("NETWORK"));
    let now = nanos(state.options.clock.now());
    set(&mut entry, "istio.io/connectedAt", &now);
    let key = Key::new(Resource::WorkloadEntries, namespace, &name);
    // Counted first: the end of an older stream must not mark the entry as disconnected now.
    *lock(&state.live).entry(key.clone()).or_default() += 1;
    let registered = Registered { state: Arc::clone(state), key: key.clone() };
    let kept = state.objects.modify(&key, |live| {
        set(live, "istio.io/connectedAt", &now);
        unset(live, "istio.io/disconnectedAt");
    });
    if !kept {
        state.objects.put(Resource::WorkloadEntries, namespace, &name, entry);
    }
    state.see(|seen| record(&mut seen.registered, key.path()));
    Ok(registered)
}

impl Registered {
    fn path(&self) -> String {
        self.key.path()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut live = lock(&self.state.live);
        let left = live.get_mut(&self.key).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left > 0 {
            return;
        }
        live.remove(&self.key);
        let now = nanos(self.state.options.clock.now());
        // The entry may have been deleted by somebody meanwhile.
        let _gone = self.state.objects.modify(&self.key, |entry| {
            unset(entry, "istio.io/connectedAt");
            set(entry, "istio.io/disconnectedAt", &now);
        });
    }
}

/// Takes a health report into the entry's status. `unhealthy` is `None` for a healthy machine.
pub(super) fn report(state: &State, registered: Option<&Registered>, unhealthy: Option<String>) {
    if let Some(registered) = registered {
        note(state, &registered.key, unhealthy.as_deref());
    }
    let entry = registered.map(Registered::path);
    state.see(|seen| record(&mut seen.health, SeenHealth { entry, unhealthy }));
}

/// Writes the condition `Healthy` of an entry.
fn note(state: &State, key: &Key, unhealthy: Option<&str>) {
    let at = rfc3339(state.options.clock.now());
    let condition = json!({
        "type": "Healthy",
        "status": if unhealthy.is_none() { "True" } else { "False" },
        "message": unhealthy.unwrap_or_default(),
        "lastProbeTime": at,
        "lastTransitionTime": at,
    });
    // The entry may have been deleted by somebody meanwhile.
    let _gone = state.objects.modify(key, |entry| {
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("status".to_owned(), json!({"conditions": [condition]}));
        }
    });
}

/// After a start nobody is connected, whatever the objects of an earlier run say.
pub(super) fn nobody_is_connected(state: &State) {
    let now = nanos(state.options.clock.now());
    for entry in state.objects.list(Resource::WorkloadEntries, None) {
        let connected = "/metadata/annotations/istio.io~1connectedAt";
        if entry.pointer(connected).is_none() {
            continue;
        }
        let (namespace, name) = whose(&entry);
        let key = Key::new(Resource::WorkloadEntries, namespace, name);
        // Nobody else changes objects yet.
        let _there = state.objects.modify(&key, |entry| {
            unset(entry, "istio.io/connectedAt");
            set(entry, "istio.io/disconnectedAt", &now);
        });
    }
}

/// Removes the auto-registered entries that have been disconnected for at least the grace time, and
/// says of those that machines made themselves that they are not healthy.
pub(super) fn sweep(state: &State, grace: Duration) -> usize {
    let now = state.options.clock.now();
    let mut removed = 0;
    for entry in state.objects.list(Resource::WorkloadEntries, None) {
        let text = |path| entry.pointer(path).and_then(Value::as_str);
        let since = text("/metadata/annotations/istio.io~1disconnectedAt");
        let since = since.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        let due = since.is_some_and(|at| {
            SystemTime::from(at).checked_add(grace).is_some_and(|due| due <= now)
        });
        let (Some(namespace), Some(name)) = (text("/metadata/namespace"), text("/metadata/name"))
        else {
            continue;
        };
        if due && text("/metadata/annotations/istio.io~1autoRegistrationGroup").is_none() {
            let status = text("/status/conditions/0/status");
            if status != Some("False") {
                let key = Key::new(Resource::WorkloadEntries, namespace, name);
                note(state, &key, Some("the machine has disconnected"));
            }
            continue;
        }
        if due && state.objects.delete(Resource::WorkloadEntries, namespace, name).is_some() {
            removed += 1;
            state.see(|seen| record(&mut seen.removed, format!("{namespace}/{name}")));
        }
    }
    removed
}

/// The WorkloadEntry that a group's template and this node make.
fn entry(proxy: &Proxy, group: &Value, group_name: &str, ip: &str) -> Value {
    let object = |path| group.pointer(path).and_then(Value::as_object).cloned();
    let mut spec = object("/spec/template").unwrap_or_default();
    let mut labels = spec.get("labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.extend(object("/spec/metadata/labels").unwrap_or_default());
    let own = proxy.metadata.get("LABELS").and_then(Value::as_object).cloned();
    labels.extend(own.unwrap_or_default());
    labels.shift_remove("istio-locality");
    spec.insert("address".to_owned(), json!(ip));
    spec.insert("labels".to_owned(), json!(labels));
    for (field, value) in [("network", proxy.text("NETWORK")), ("locality", &proxy.locality)] {
        if !value.is_empty() {
            spec.insert(field.to_owned(), json!(value));
        }
    }
    let mut annotations = Map::new();
    annotations.insert("istio.io/autoRegistrationGroup".to_owned(), json!(group_name));
    annotations.insert("istio.io/workloadController".to_owned(), json!("devmesh"));
    let probe = proxy.metadata.get("PROXY_CONFIG").and_then(|all| all.get("readinessProbe"));
    if probe.is_some() {
        annotations.insert("proxy.istio.io/health-checks-enabled".to_owned(), json!("true"));
    }
    annotations.extend(object("/spec/metadata/annotations").unwrap_or_default());
    let uid = group.pointer("/metadata/uid").cloned().unwrap_or_default();
    let owner = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "name": group_name,
        "uid": uid, "controller": true,
    });
    json!({
        "metadata": {"labels": labels, "annotations": annotations, "ownerReferences": [owner]},
        "spec": spec,
    })
}

/// istiod's name of an auto-registered entry: of a long one, the end.
fn entry_name(group: &str, ip: &str, network: &str) -> String {
    let mut name = format!("{group}-{}", ip.replace(':', "-"));
    if !network.is_empty() {
        name = format!("{name}-{network}");
    }
    let start = name.len().saturating_sub(MAX_NAME);
    name.get(start..).unwrap_or(&name).to_owned()
}

fn set(object: &mut Value, annotation: &str, value: &str) {
    if let Some(annotations) = annotations(object) {
        annotations.insert(annotation.to_owned(), json!(value));
    }
}

fn unset(object: &mut Value, annotation: &str) {
    if let Some(annotations) = annotations(object) {
        annotations.shift_remove(annotation);
    }
}

fn annotations(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = object.as_object_mut()?.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut()?.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
}

fn nanos(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

/// Kubernetes' limit of a name.
const MAX_NAME: usize = 253;
