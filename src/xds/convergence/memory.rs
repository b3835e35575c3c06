//! What is known of the services of this machine over streams, and over restarts of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::view::CLUSTERS;
use crate::base::fsio::{self, FileError};
use crate::workload::Workload;

/// What outlives a stream.
#[derive(Default)]
pub(super) struct Memory {
    /// Ports that istiod has configured Envoy to serve; `None` while that is not known.
    pub(super) expected: Option<BTreeSet<u16>>,
    /// The clusters of which this machine is an endpoint with a port.
    pub(super) sources: BTreeMap<u16, BTreeSet<String>>,
    /// Ports that other workloads are sent to, and for which istiod has no inbound configuration
    /// however often it is asked: services of other namespaces.
    pub(super) unserved: BTreeSet<u16>,
    /// Resubscriptions since the services were last complete.
    pub(super) tries: u32,
    /// Since when services have been missing.
    pub(super) lacking_since: Option<Instant>,
    /// Since when they have been complete.
    pub(super) complete_since: Option<Instant>,
    /// Resubscriptions without any evidence since something has changed; `None` when the services
    /// of that change have come, or are not waited for any more.
    pub(super) unproven: Option<u32>,
    /// Whether the last report was that the workload is unhealthy.
    pub(super) was_unhealthy: bool,
    /// Resubscriptions since the agent's start.
    pub(super) resubscriptions: u64,
}

impl Memory {
    /// Notes which cluster has this machine as an endpoint.
    pub(super) fn source(&mut self, port: u16, cluster: &str) {
        let count: usize = self.sources.values().map(BTreeSet::len).sum();
        if count < CLUSTERS {
            self.sources.entry(port).or_default().insert(cluster.to_owned());
        }
    }

    /// Something has changed that istiod derives the services from.
    pub(super) fn changed(&mut self) {
        self.tries = 0;
        self.unserved.clear();
        self.lacking_since = None;
        self.unproven = Some(0);
    }
}

/// The expected ports on disk, with the workload that they belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) workload: Subject,
    pub(super) ports: BTreeSet<u16>,
}

/// What of a workload decides which services select it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Subject {
    id: String,
    address: String,
    labels: BTreeMap<String, String>,
    ports: BTreeMap<String, u16>,
    network: String,
}

impl Subject {
    pub(super) fn of(workload: &Workload) -> Self {
        let Workload { id, address, labels, ports, network, .. } = workload;
        Self {
            id: id.to_string(),
            address: address.to_string(),
            labels: labels.clone(),
            ports: ports.clone(),
            network: network.clone(),
        }
    }
}

impl Record {
    /// The ports that were kept for this workload.
    pub(super) fn read(path: &Path, workload: &Subject) -> Option<BTreeSet<u16>> {
        let record: Self = serde_json::from_slice(&fsio::read(path, FILE_BYTES).ok()?).ok()?;
        (record.workload == *workload).then_some(record.ports)
    }

    /// Keeps them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        fsio::replace(path, &serde_json::to_vec(self).unwrap_or_default(), fsio::SECRET)
    }
}

/// Labels are bounded.
const FILE_BYTES: u64 = 1 << 20;
