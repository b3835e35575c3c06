//! A bundle's settings: what istioctl would write for the group, and what it leaves out.

use serde_json::{Map, Value, json};

use super::facts::Mesh;
use super::{OperatorError, Order, ParseYaml, Registration, Tree};
use crate::join::translate;

/// The settings, in the form of `config.yaml`.
pub(super) fn settings(
    order: &Order,
    mesh: &Mesh,
    parse_yaml: ParseYaml,
    warnings: &mut Vec<String>,
) -> Result<Tree, OperatorError> {
    let group = &order.group;
    let origin = format!("WorkloadGroup {}/{}", group.namespace, group.name);
    let mut config = mesh.proxy_config.clone();
    for text in &group.proxy_configs {
        let at = format!("{origin}: annotation proxy.istio.io/config");
        if let Value::Object(over) = parse_yaml(text, &at)? {
            overlay(&mut config, over);
        }
    }
    config.insert("discoveryAddress".to_owned(), json!(mesh.discovery_address));
    if let Some(probe) = &group.probe {
        config.insert("readinessProbe".to_owned(), probe.clone());
    }
    let who = Map::from_iter([(METADATA.to_owned(), Value::Object(who(order, mesh, &config)))]);
    overlay(&mut config, who);
    let (mut tree, strange) = translate(config, &origin)?;
    warnings.extend(strange.iter().map(ToString::to_string));
    set(&mut tree, "workload", "group", json!(group.name));
    set(
        &mut tree,
        "workload",
        "locality",
        group.template.get("locality").cloned().unwrap_or_default(),
    );
    set(&mut tree, "workload", "weight", group.template.get("weight").cloned().unwrap_or_default());
    set(&mut tree, "workload", "name", json!(order.machines.name));
    set(&mut tree, "mesh", "connectTo", json!(mesh.gateway));
    match &order.registration {
        Registration::Istiod => set(&mut tree, "registration", "mode", json!("istiod")),
        Registration::Kubernetes { server, .. } => {
            set(&mut tree, "registration", "mode", json!("kubernetes"));
            set(&mut tree, "registration", "kubernetes", json!({"server": server}));
        }
    }
    match tree {
        Value::Object(tree) => Ok(tree),
        _ => Ok(Tree::new()),
    }
}

/// The variables that say who a machine of the group is.
fn who(order: &Order, mesh: &Mesh, config: &Tree) -> Tree {
    let group = &order.group;
    let text = |name: &str| group.template.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut all = Tree::new();
    let mut say = |name: &str, value: String| drop(all.insert(name.to_owned(), json!(value)));
    say("ISTIO_METAJSON_LABELS", json!(group.machine_labels()).to_string());
    say("POD_NAMESPACE", group.namespace.clone());
    say("SERVICE_ACCOUNT", group.service_account.clone());
    say("TRUST_DOMAIN", mesh.trust_domain.clone());
    say("ISTIO_META_CLUSTER_ID", mesh.cluster_id.clone());
    let mesh_id = config.get("meshId").and_then(Value::as_str).unwrap_or_default();
    say("ISTIO_META_MESH_ID", mesh_id.to_owned());
    say("ISTIO_META_NETWORK", text("network").to_owned());
    say("ISTIO_META_WORKLOAD_NAME", group.name.clone());
    let ports = group.template.get("ports").and_then(Value::as_object).into_iter().flatten();
    let mut ports: Vec<_> = ports.collect();
    ports.sort_by_key(|(name, _)| *name);
    if !ports.is_empty() {
        let numbers: Vec<String> = ports.iter().map(|(_, port)| port.to_string()).collect();
        say("ISTIO_INBOUND_PORTS", numbers.join(","));
        let port = |(name, port): &(&String, &Value)| json!({"name": name, "containerPort": port});
        let ports: Vec<Value> = ports.iter().map(port).collect();
        say("ISTIO_META_POD_PORTS", json!(ports).to_string());
    }
    all
}

/// One ProxyConfig over another: what it says replaces, metadata are merged.
fn overlay(config: &mut Tree, over: Tree) {
    for (name, value) in over {
        match (config.get_mut(&name), value) {
            (Some(Value::Object(mine)), Value::Object(theirs)) if name == METADATA => {
                mine.extend(theirs);
            }
            (_, value) => drop(config.insert(name, value)),
        }
    }
}

fn set(tree: &mut Value, section: &str, name: &str, value: Value) {
    if value.is_null() || value == "" {
        return;
    }
    if let Some(tree) = tree.as_object_mut()
        && let Some(section) = tree.entry(section).or_insert_with(|| json!({})).as_object_mut()
    {
        section.insert(name.to_owned(), value);
    }
}

/// Takes a setting out, and the sections that are empty then.
pub(super) fn remove(tree: &mut Tree, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        tree.shift_remove(first);
        return;
    }
    if let Some(Value::Object(section)) = tree.get_mut(first) {
        remove(section, rest);
        if section.is_empty() {
            tree.shift_remove(first);
        }
    }
}

const METADATA: &str = "proxyMetadata";

#[cfg(test)]
mod tests;
