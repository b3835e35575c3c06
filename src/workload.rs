//! Who this VM claims to be in the mesh: names, labels, address, network, locality, ports.

mod address;
mod labels;
mod locality;
mod proxy_config;

pub use address::{Address, AddressError, source_address_towards};
pub use labels::{is_subdomain, label_problem, port_problem};
pub use locality::{Locality, LocalityError};
pub use proxy_config::{ProxyConfig, ProxyConfigError, parse_duration};

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::identity::SpiffeId;

/// This machine as the mesh shall see it. Complete and valid by the time it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// POD_NAME: the machine's name in the mesh, and the WorkloadEntry's name in `kubernetes` mode.
    pub name: String,
    /// Its identity; namespace and service account are read from here.
    pub id: SpiffeId,
    /// The WorkloadGroup that istiod registers it into (`istiod` mode).
    pub group: Option<String>,
    /// What other workloads connect to.
    pub address: Address,
    /// INSTANCE_IPS: this machine's addresses, the advertised one first when it is an IP.
    pub instance_ips: Vec<IpAddr>,
    /// Labels for selection and telemetry.
    pub labels: BTreeMap<String, String>,
    /// Named ports that differ from the ServiceEntry's.
    pub ports: BTreeMap<String, u16>,
    /// The mesh network's name, empty where there is one network.
    pub network: String,
    /// Where it runs.
    pub locality: Option<Locality>,
    /// Load-balancing weight.
    pub weight: Option<u32>,
}

/// The name that istiod gives the WorkloadEntry of an auto-registered machine: of a name that is
/// too long the end is kept (Istio `pilot/pkg/autoregistration/controller.go`).
#[must_use]
pub fn auto_registered_name(group: &str, first_ip: IpAddr, network: &str) -> String {
    let mut name = format!("{group}-{}", first_ip.to_string().replace(':', "-"));
    if !network.is_empty() {
        name = format!("{name}-{network}");
    }
    let start = name.len().saturating_sub(NAME_BYTES);
    name.get(start..).unwrap_or_default().to_owned()
}

/// Kubernetes' limit for object names.
const NAME_BYTES: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_registered_names_are_istiods() {
        let name = |group: &str, ip: &str, network: &str| {
            auto_registered_name(group, ip.parse().unwrap(), network)
        };
        assert_eq!(name("client", "10.0.0.1", ""), "client-10.0.0.1");
        assert_eq!(name("client", "fd00::1", "n1"), "client-fd00--1-n1");
        let long = name(&"g".repeat(260), "10.0.0.1", "");
        assert!(long.len() == 253 && long.ends_with("-10.0.0.1"));
    }
}
