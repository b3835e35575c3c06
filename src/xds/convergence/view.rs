//! What one stream has shown of the services of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::xds::scan::{Assignment, inbound_port};

/// What istiod has sent on one stream, and what it has been told there.
#[derive(Default)]
pub(super) struct View {
    /// When the stream reported the workload healthy; `None` while it has not, or not any more.
    pub(super) reported: Option<Instant>,
    /// Whether the workload is healthy, as istiod has heard, or is about to.
    pub(super) is_healthy: bool,
    /// Whether Envoy held clusters at the beginning of the stream.
    pub(super) envoy_holds: bool,
    /// Whether Envoy held the clusters of all services then; not known of state-of-the-world streams.
    pub(super) envoy_serves: bool,
    /// The names of inbound clusters; `None` before the first response for clusters.
    inbound: Option<BTreeSet<String>>,
    /// Whether inbound clusters came after the first response for clusters.
    pub(super) late: bool,
    /// Whether clusters were pushed after the report: istiod has taken note of it.
    pub(super) pushed: bool,
    /// Clusters whose endpoints contain this machine, with its ports.
    named: BTreeMap<String, BTreeSet<u16>>,
    /// Clusters of which this machine was an endpoint before, and which exist.
    present: BTreeSet<String>,
    /// Whether endpoints of a cluster contained this machine while it was healthy and then did not.
    pub(super) dropped: bool,
    /// Whether responses for Envoy are held back: they are out of date by now.
    pub(super) held: bool,
    /// How long istiod took for its first response.
    pub(super) answer: Duration,
    /// Responses with listeners.
    pub(super) listeners_sent: u64,
    /// How many of them Envoy has answered.
    pub(super) listeners_acknowledged: u64,
}

impl View {
    /// Takes the names in a response for clusters. `complete` means that it names all clusters.
    pub(super) fn clusters<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str>,
        removed: impl Iterator<Item = &'a str>,
        complete: bool,
        sources: &BTreeMap<u16, BTreeSet<String>>,
    ) {
        self.pushed |= self.reported.is_some() && self.inbound.is_some();
        let before = self.inbound.take();
        let mut inbound = before.clone().unwrap_or_default();
        if complete {
            inbound.clear();
            self.present.clear();
        }
        for name in removed {
            inbound.remove(name);
            self.present.remove(name);
            self.named.remove(name);
        }
        for name in names {
            if inbound_port(name).is_some() {
                if inbound.len() < CLUSTERS && name.len() <= NAME {
                    inbound.insert(name.to_owned());
                }
            } else if sources.values().any(|clusters| clusters.contains(name)) {
                self.present.insert(name.to_owned());
            }
        }
        if complete {
            self.named.retain(|name, _| self.present.contains(name));
        }
        self.late |= before.is_some_and(|before| !inbound.is_subset(&before));
        self.inbound = Some(inbound);
    }

    /// Takes the endpoints of one cluster; returns this machine's ports among them.
    pub(super) fn endpoints(&mut self, of: &Assignment<'_>, own: &[String]) -> BTreeSet<u16> {
        let Some(cluster) = of.cluster() else { return BTreeSet::new() };
        let ports: BTreeSet<u16> = of.ports_at(own).take(CLUSTERS).collect();
        if ports.is_empty() {
            self.dropped |= self.named.remove(cluster).is_some() && self.reported.is_some();
        } else if self.named.len() < CLUSTERS && cluster.len() <= NAME {
            self.named.insert(cluster.to_owned(), ports.clone());
            self.present.insert(cluster.to_owned());
        }
        ports
    }

    /// Whether Envoy has all listeners that were sent.
    pub(super) fn has_listeners(&self) -> bool {
        self.listeners_sent > 0 && self.listeners_acknowledged >= self.listeners_sent
    }

    /// The ports that istiod configures Envoy to serve; `None` before it has sent clusters.
    pub(super) fn ports(&self) -> Option<BTreeSet<u16>> {
        let inbound = self.inbound.as_ref()?;
        Some(inbound.iter().filter_map(|name| inbound_port(name)).collect())
    }

    /// The ports of this machine that other workloads are sent to.
    pub(super) fn named_ports(&self) -> BTreeSet<u16> {
        self.named.values().flatten().copied().collect()
    }

    /// Whether at least one of these clusters exists.
    pub(super) fn has_any(&self, clusters: &BTreeSet<String>) -> bool {
        clusters.iter().any(|name| self.present.contains(name))
    }
}

/// Services of one machine, far above what a machine has; and the longest name of a cluster that is
/// kept, in bytes.
pub(super) const CLUSTERS: usize = 256;
pub(super) const NAME: usize = 512;
