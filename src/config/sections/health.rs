//! `health`: how the application is checked.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::reader::Reader;
use crate::health::Config;
use crate::workload::ProxyConfig;

/// Checks of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The probe; its target is found out at the start. Without one the machine is as healthy as
    /// its proxy.
    pub probe: Option<Config>,
    /// Where probes go that name no host; by default the machine's address.
    pub host: Option<IpAddr>,
}

impl Health {
    /// Ours, or what the WorkloadGroup says.
    pub(super) fn read(reader: &mut Reader<'_>, mesh: Option<&ProxyConfig>) -> Self {
        let own = reader.tree("health.probe");
        let host = reader.parse("health.host", "");
        let of_mesh = mesh.and_then(|mesh| mesh.raw.get("readinessProbe")?.as_object().cloned());
        let (setting, tree) = match of_mesh {
            Some(tree) if own.is_empty() => ("mesh.proxyConfig.readinessProbe", tree),
            _ => ("health.probe", own),
        };
        if tree.is_empty() {
            return Self { probe: None, host };
        }
        let probe = match Config::from_json(&tree, IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            Ok(probe) => Some(probe),
            Err(errors) => {
                for error in errors {
                    let at = error.field.split('.').next().unwrap_or_default();
                    let at =
                        if at.is_empty() { setting.to_owned() } else { format!("{setting}.{at}") };
                    reader.wrong(&at, error.to_string());
                }
                None
            }
        };
        Self { probe, host }
    }
}
