//! What a proxy says of itself with its first request (`pilot/pkg/model/context.go`). Whether it
//! may say so is checked in `registration`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use prost_types::value::Kind;
use serde_json::{Map, Value, json};

use crate::proto::discovery::{Locality, Node};

/// A proxy.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxy {
    /// The node's ID, such as `sidecar~10.0.0.7~vm1.vms~vms.svc.cluster.local`.
    pub(super) id: String,
    pub(super) metadata: Map<String, Value>,
    /// `region/zone/subzone`.
    pub(super) locality: String,
}

impl Proxy {
    pub(super) fn read(node: &Node) -> Self {
        let metadata = node.metadata.iter().flat_map(|metadata| &metadata.fields);
        let metadata = metadata.map(|(key, value)| (key.clone(), to_json(value))).collect();
        let locality = node.locality.as_ref().map(locality).unwrap_or_default();
        Self { id: node.id.clone(), metadata, locality }
    }

    /// A text of the metadata; empty when it says nothing.
    pub(super) fn text(&self, key: &str) -> &str {
        self.metadata.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> &str {
        self.text("NAMESPACE")
    }

    /// The machine's name: the third part of the ID without the namespace.
    pub(super) fn name(&self) -> &str {
        let named = self.id.split('~').nth(2).unwrap_or_default();
        named.rsplit_once('.').map_or(named, |(name, _)| name)
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.metadata.get("LABELS").and_then(Value::as_object);
        let texts = labels.into_iter().flatten();
        texts.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// Its addresses; the first one is the one that others use.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let all = self.text("INSTANCE_IPS").split(',');
        all.filter_map(|address| address.parse().ok()).collect()
    }

    /// True when it has addresses, and no IPv4 among them.
    pub(super) fn is_ipv6(&self) -> bool {
        let addresses = self.addresses();
        !addresses.is_empty() && addresses.iter().all(IpAddr::is_ipv6)
    }

    /// True when inbound connections reach it by transparent sockets.
    pub(super) fn is_transparent(&self) -> bool {
        self.text("INTERCEPTION_MODE") == "TPROXY"
    }
}

fn locality(at: &Locality) -> String {
    let parts = [&at.region, &at.zone, &at.sub_zone];
    let known = parts.iter().take_while(|part| !part.is_empty());
    known.map(|part| part.as_str()).collect::<Vec<_>>().join("/")
}

fn to_json(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::BoolValue(yes)) => json!(yes),
        Some(Kind::StructValue(all)) => Value::Object(
            all.fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect(),
        ),
        Some(Kind::ListValue(all)) => Value::Array(all.values.iter().map(to_json).collect()),
    }
}
