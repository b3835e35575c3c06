//! `workload`: who the machine is, under the field names of the WorkloadEntry spec.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::reader::Reader;
use crate::identity::{Namespace, ServiceAccount};
use crate::workload::{Address, Locality, is_subdomain, label_problem, port_problem};

/// What the operator says of the machine; the rest is found out at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name; by default the short host name.
    pub name: Option<String>,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
    /// The WorkloadGroup that it belongs to.
    pub group: Option<String>,
    /// What others connect to; by default the source address of the route to istiod.
    pub address: Option<Address>,
    /// Its addresses; by default those of its interfaces.
    pub instance_ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its named ports.
    pub ports: BTreeMap<String, u16>,
    /// Its network.
    pub network: String,
    /// Where it runs.
    pub locality: Option<Locality>,
    /// Its share of the load.
    pub weight: Option<u32>,
}

impl Workload {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let name = object_name(reader, "workload.name");
        let namespace = reader.parse("workload.namespace", "");
        if !reader.is_set("workload.namespace") {
            reader.wrong("workload.namespace", "missing: the workload's namespace".to_owned());
        }
        let service_account = reader.parse("workload.serviceAccount", "default");
        let group = object_name(reader, "workload.group");
        let address = reader.parse("workload.address", "");
        let instance_ips = instance_ips(reader);
        let labels = labels(reader);
        let ports = ports(reader);
        if matches!(address, Some(Address::Socket(_))) && !ports.is_empty() {
            let what = "a machine whose address is a socket has no ports".to_owned();
            reader.wrong("workload.ports", what);
        }
        let network = network(reader);
        let locality = reader.parse("workload.locality", "");
        let weight = reader.number("workload.weight", None, 0..=u64::from(u32::MAX));
        Some(Self {
            name,
            namespace: namespace?,
            service_account: service_account?,
            group,
            address,
            instance_ips,
            labels,
            ports,
            network,
            locality,
            weight: weight.and_then(|weight| u32::try_from(weight).ok()),
        })
    }
}

fn object_name(reader: &mut Reader<'_>, setting: &str) -> Option<String> {
    let name = reader.text(setting, "")?;
    if !is_subdomain(&name) {
        let what = format!("found {name:?}, expected 1 to 253 of a-z, 0-9, '-' and '.'");
        reader.wrong(setting, what);
    }
    Some(name)
}

/// Istio carries it as the value of the label `topology.istio.io/network`.
fn network(reader: &mut Reader<'_>) -> String {
    let network = reader.text("workload.network", "").unwrap_or_default();
    if let Some(what) = label_problem("topology.istio.io/network", &network) {
        reader.wrong("workload.network", what);
    }
    network
}

fn instance_ips(reader: &mut Reader<'_>) -> Vec<IpAddr> {
    let setting = "workload.instanceIps";
    let texts = reader.texts(setting);
    let parsed: Vec<Result<IpAddr, _>> = texts.iter().map(|text| text.parse()).collect();
    for (text, ip) in texts.iter().zip(&parsed) {
        if ip.is_err() {
            reader.wrong(setting, format!("found {text:?}, expected IP addresses"));
        }
    }
    parsed.into_iter().flatten().collect()
}

fn labels(reader: &mut Reader<'_>) -> BTreeMap<String, String> {
    let labels = reader.map("workload.labels");
    for (key, value) in &labels {
        if let Some(what) = label_problem(key, value) {
            reader.wrong_in("workload.labels", key, what);
        }
    }
    if labels.len() > LABELS {
        reader.wrong("workload.labels", format!("more than {LABELS} labels"));
    }
    labels
}

fn ports(reader: &mut Reader<'_>) -> BTreeMap<String, u16> {
    let mut ports = BTreeMap::new();
    for (name, value) in reader.map("workload.ports") {
        let expected = || format!("found {value:?}, expected a port from 1 to 65535");
        let number = value.parse::<u64>().map_err(|_| expected());
        let port = number.and_then(|number| match port_problem(&name, number) {
            Some(what) => Err(what),
            None => u16::try_from(number).map_err(|_| expected()),
        });
        match port {
            Ok(port) => drop(ports.insert(name, port)),
            Err(what) => reader.wrong_in("workload.ports", &name, what),
        }
    }
    if ports.len() > PORTS {
        reader.wrong("workload.ports", format!("more than {PORTS} ports"));
    }
    ports
}

/// istiod's limits (istio/api `networking/v1alpha3/workload_entry.proto`).
const LABELS: usize = 256;
const PORTS: usize = 128;
