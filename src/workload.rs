//! Who this VM claims to be in the mesh: names, labels, address, network, locality, ports.

mod address;
mod locality;
mod proxy_config;

pub use address::{Address, AddressError, source_address_towards};
pub use locality::{Locality, LocalityError};
pub use proxy_config::{ProxyConfig, ProxyConfigError};

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
