//! Facts: about the host, and about its cloud.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fact::Fact;
use crate::base::printable::is_printable;

/// All that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The host.
    pub host: Host,
    /// Its cloud; empty where there is none.
    pub cloud: Cloud,
}

/// What the host itself tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// The short host name.
    pub hostname: Option<String>,
    /// A hash of the machine ID that is this program's own: it cannot be turned back, and no other
    /// program has the same one.
    pub machine_id: Option<String>,
    /// The operating system, such as `Debian GNU/Linux`.
    pub os_name: Option<String>,
    /// Its version, such as `12`.
    pub os_version: Option<String>,
    /// The kernel's version.
    pub kernel: Option<String>,
    /// The processor's architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// Who made the machine, as its firmware says.
    pub vendor: Option<String>,
    /// What it is, as its firmware says.
    pub product: Option<String>,
}

/// What a cloud says of a machine. Every text is short and without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cloud {
    /// `aws`, `azure`, `gcp`, or what cloud-init calls it.
    pub name: Option<String>,
    /// Such as `eu-west-1`.
    pub region: Option<String>,
    /// Such as `eu-west-1a`.
    pub zone: Option<String>,
    /// Its identifier of the machine.
    pub instance_id: Option<String>,
    /// Its name of the machine.
    pub instance_name: Option<String>,
    /// The machine's size, such as `m7i.large`.
    pub instance_type: Option<String>,
    /// Google's project.
    pub project: Option<String>,
    /// Tags of the machine (Google: attributes): those that were asked for.
    pub tags: BTreeMap<String, String>,
}

impl Facts {
    /// A fact by its name in templates. The machine's address is none that this room knows.
    #[must_use]
    pub fn get(&self, fact: &Fact) -> Option<&str> {
        let (host, cloud) = (&self.host, &self.cloud);
        let found = match fact {
            Fact::Address => &None,
            Fact::Arch => &host.arch,
            Fact::CloudName => &cloud.name,
            Fact::CloudRegion => &cloud.region,
            Fact::CloudZone => &cloud.zone,
            Fact::HostName => &host.hostname,
            Fact::InstanceId => &cloud.instance_id,
            Fact::InstanceName => &cloud.instance_name,
            Fact::InstanceType => &cloud.instance_type,
            Fact::MachineId => &host.machine_id,
            Fact::OsName => &host.os_name,
            Fact::OsVersion => &host.os_version,
            Fact::Tag(key) => return cloud.tags.get(key).map(String::as_str),
        };
        found.as_deref()
    }
}

impl Cloud {
    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These facts, and those of another source where these say nothing.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        for (mine, theirs) in [
            (&mut self.name, other.name),
            (&mut self.region, other.region),
            (&mut self.zone, other.zone),
            (&mut self.instance_id, other.instance_id),
            (&mut self.instance_name, other.instance_name),
            (&mut self.instance_type, other.instance_type),
            (&mut self.project, other.project),
        ] {
            if mine.is_none() {
                *mine = theirs;
            }
        }
        for (key, value) in other.tags {
            self.tags.entry(key).or_insert(value);
        }
        self
    }

    /// The node metadata `PLATFORM_METADATA`, under Istio's names (`pkg/bootstrap/platform`).
    #[must_use]
    pub fn node_metadata(&self) -> BTreeMap<String, String> {
        let (id, name) = (&self.instance_id, &self.instance_name);
        let rows = match self.name.as_deref() {
            Some("aws") => vec![
                ("aws_region", &self.region),
                ("aws_availability_zone", &self.zone),
                ("aws_instance_id", id),
            ],
            Some("azure") => {
                vec![("azure_location", &self.region), ("azure_vmId", id), ("azure_name", name)]
            }
            Some("gcp") => vec![
                ("gcp_project", &self.project),
                ("gcp_location", &self.zone),
                ("gcp_gce_instance", name),
                ("gcp_gce_instance_id", id),
            ],
            _ => Vec::new(),
        };
        let known = rows.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        let mut metadata: BTreeMap<_, _> =
            known.map(|(key, value)| (key.to_owned(), value)).collect();
        if self.name.as_deref() == Some("azure") {
            let tags = self.tags.iter();
            metadata.extend(tags.map(|(key, value)| (format!("azure_{key}"), value.clone())));
        }
        metadata
    }
}

/// A text of another program, fit for a name or a log: short and without control characters;
/// `None` when nothing is left.
pub(super) fn clean(text: &str) -> Option<String> {
    let kept: String = text.chars().filter(|c| is_printable(*c)).take(LETTERS).collect();
    let kept = kept.trim();
    (!kept.is_empty()).then(|| kept.to_owned())
}

/// The longest value of a tag in any of the clouds (AWS, Azure: 256).
const LETTERS: usize = 256;
