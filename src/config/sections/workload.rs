//! `workload`: who the machine is, under the field names of the WorkloadEntry spec.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use super::facts::Facts;
use super::templates::{Field, Filling, Templates, Unfilled};
use crate::config::reader::Reader;
use crate::identity::{Namespace, ServiceAccount};
use crate::platform::{self, Fact, Syntax};
use crate::workload::{Address, Locality, is_subdomain, label_problem, port_problem};

/// What the operator says of the machine; the rest is found out at the start. A setting that is a
/// template is not set until facts fill it in.
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
    /// What is asked about the machine.
    pub facts: Facts,
    /// The settings that are templates.
    pub templates: Templates,
}

impl Workload {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut templates = Templates::default();
        let found = templates.literal(reader, Field::Name);
        let name = checked(reader, "workload.name", found, |text| name(&text).map(|()| text));
        let namespace = reader.parse("workload.namespace", "");
        if !reader.is_set("workload.namespace") {
            reader.wrong("workload.namespace", "missing: the workload's namespace".to_owned());
        }
        let service_account = reader.parse("workload.serviceAccount", "default");
        let group = object_name(reader, "workload.group");
        let instance_ips = instance_ips(reader);
        let labels = labels(reader, &mut templates);
        let ports = ports(reader);
        let found = templates.literal(reader, Field::Address);
        let address = checked(reader, "workload.address", found, |text| address(&text, &ports));
        let found = templates.literal(reader, Field::Network);
        let network =
            checked(reader, "workload.network", found, |text| network(&text).map(|()| text));
        let found = templates.literal(reader, Field::Locality);
        let locality = checked(reader, "workload.locality", found, |text| parsed(&text));
        let facts = Facts::read(reader);
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
            network: network.unwrap_or_default(),
            locality,
            weight: weight.and_then(|weight| u32::try_from(weight).ok()),
            facts: facts?.with_tags(templates.facts()),
            templates,
        })
    }

    /// What a cloud has to tell before the machine can be named.
    pub fn needs(&self) -> impl Iterator<Item = &Fact> {
        self.templates.needs().filter(|fact| fact.is_of_cloud())
    }

    /// Whether anything that a cloud can tell is of use.
    #[must_use]
    pub fn wants_cloud(&self) -> bool {
        let labelled = LOCALITY_LABELS.iter().any(|label| self.labels.contains_key(*label));
        let placed = self.locality.is_some() || self.templates.has(&Field::Locality) || labelled;
        !placed || !self.facts.labels.is_empty() || self.templates.facts().any(Fact::is_of_cloud)
    }

    /// Whether the address is said: by itself, or by a template.
    #[must_use]
    pub fn has_address(&self) -> bool {
        self.address.is_some() || self.templates.has(&Field::Address)
    }

    /// The address that is said; `None` when it has to be found out.
    ///
    /// # Errors
    /// When it is a template that the facts do not fill in.
    pub fn said_address(&self, facts: &platform::Facts) -> Result<Option<Address>, Unfilled> {
        let mut filling = Filling::new(facts, None);
        let filled = filling.fill_address(self);
        filling.finish()?;
        Ok(filled.or_else(|| self.address.clone()))
    }

    /// The settings with all templates filled in, and the tags that become labels. Where no
    /// locality is said, that of a label counts, and then the cloud's place.
    ///
    /// # Errors
    /// With every template that the facts do not fill in, or that breaks a rule then.
    pub fn complete(&self, facts: &platform::Facts, address: &Address) -> Result<Self, Unfilled> {
        let mut whole = self.clone();
        let mut filling = Filling::new(facts, Some(address));
        let said = self.templates.has(&Field::Locality);
        filling.fill(&mut whole);
        whole.address = Some(address.clone());
        for (key, tag) in &self.facts.labels {
            let value = facts.cloud.tags.get(tag).and_then(|value| Syntax::Label.fit(value));
            if let Some(value) = value.filter(|_| !whole.labels.contains_key(key)) {
                whole.labels.insert(key.clone(), value);
            }
        }
        if whole.labels.len() > LABELS {
            filling.wrong("workload.facts.tags", format!("more than {LABELS} labels"));
        }
        if whole.locality.is_none() && !said {
            whole.locality = labelled(&whole.labels).or_else(|| place(&facts.cloud));
        }
        filling.finish().map(|()| whole)
    }
}

/// The locality that a label says, with dots for slashes, which labels cannot have (Istio
/// `pkg/bootstrap/config.go`).
fn labelled(labels: &BTreeMap<String, String>) -> Option<Locality> {
    let said = LOCALITY_LABELS.iter().find_map(|label| labels.get(*label))?;
    said.replace('.', "/").parse().ok()
}

/// The cloud's region and zone, as Istio's agent takes them (`pkg/bootstrap/platform`).
fn place(cloud: &platform::Cloud) -> Option<Locality> {
    let part = |fact: &Option<String>| fact.as_ref().and_then(|text| Syntax::Locality.fit(text));
    let (region, zone) = (part(&cloud.region)?, part(&cloud.zone).unwrap_or_default());
    Some(Locality { region, zone, sub_zone: String::new() })
}

/// A text that follows its rule.
fn checked<T>(
    reader: &mut Reader<'_>,
    setting: &str,
    text: Option<String>,
    rule: impl FnOnce(String) -> Result<T, String>,
) -> Option<T> {
    match rule(text?) {
        Ok(value) => Some(value),
        Err(what) => {
            reader.wrong(setting, what);
            None
        }
    }
}

pub(super) fn name(text: &str) -> Result<(), String> {
    let what = || format!("found {text:?}, expected 1 to 253 of a-z, 0-9, '-' and '.'");
    is_subdomain(text).then_some(()).ok_or_else(what)
}

/// A socket is one place, which has no ports.
pub(super) fn address(text: &str, ports: &BTreeMap<String, u16>) -> Result<Address, String> {
    let address: Address = parsed(text)?;
    if matches!(address, Address::Socket(_)) && !ports.is_empty() {
        return Err("a machine whose address is a socket has no ports".to_owned());
    }
    Ok(address)
}

/// Istio carries it as the value of the label `topology.istio.io/network`.
pub(super) fn network(text: &str) -> Result<(), String> {
    label("topology.istio.io/network", text)
}

pub(super) fn label(key: &str, value: &str) -> Result<(), String> {
    label_problem(key, value).map_or(Ok(()), Err)
}

pub(super) fn parsed<T>(text: &str) -> Result<T, String>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn object_name(reader: &mut Reader<'_>, setting: &str) -> Option<String> {
    let text = reader.text(setting, "");
    checked(reader, setting, text, |text| name(&text).map(|()| text))
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

fn labels(reader: &mut Reader<'_>, templates: &mut Templates) -> BTreeMap<String, String> {
    let all = reader.map("workload.labels");
    if all.len() > LABELS {
        reader.wrong("workload.labels", format!("more than {LABELS} labels"));
    }
    let mut labels = BTreeMap::new();
    for (key, value) in all {
        // A template's key is as good as another's.
        if let Err(what) = label(&key, "") {
            reader.wrong_in("workload.labels", &key, what);
            continue;
        }
        let Some(value) = templates.take(reader, Field::Label(key.clone()), value) else {
            continue;
        };
        match label(&key, &value) {
            Ok(()) => drop(labels.insert(key, value)),
            Err(what) => reader.wrong_in("workload.labels", &key, what),
        }
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

/// In the order in which Istio looks for them.
const LOCALITY_LABELS: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];
/// istiod's limits (istio/api `networking/v1alpha3/workload_entry.proto`).
const LABELS: usize = 256;
const PORTS: usize = 128;
