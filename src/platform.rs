//! What this host is, and what its cloud says of it. It reports, and decides nothing.

mod addresses;
mod changes;
mod cloud;
mod fact;
mod facts;
mod host;
mod instance_data;
mod machine_id;
mod metadata;
mod record;
mod survey;
mod template;

pub use addresses::{addresses, host_name, interface_addresses};
pub use changes::NetworkChanges;
pub use cloud::{Provider, Told, ask, aws_document, azure_compute, gcp_name};
pub use fact::{Fact, UnknownFact};
pub use facts::{Cloud, Facts, Host};
pub use instance_data::parse as cloud_init;
pub use machine_id::MachineId;
pub use metadata::MetadataError;
pub use record::{Record, RecordError};
pub use survey::{Survey, survey};
pub use template::{Syntax, Template, TemplateError};

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::base::clock;
use crate::base::trouble::Trouble;

/// Where facts about the cloud come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who is asked.
    pub source: Source,
    /// The metadata service.
    pub address: SocketAddr,
    /// What cloud-init wrote down.
    pub instance_data: PathBuf,
    /// Tags that are asked for by name, at most [`TAGS`].
    pub tags: BTreeSet<String>,
    /// Whether all other tags are asked for as well, where the cloud lists them with their values.
    pub other_tags: bool,
}

/// Who is asked for facts about the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// cloud-init's file, and the cloud that the machine's firmware names.
    Auto,
    /// cloud-init's file only.
    CloudInit,
    /// This cloud's metadata service only.
    Metadata(Provider),
    /// Nobody.
    None,
}

/// Where the facts in use came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The cloud's metadata service, since this start.
    Metadata,
    /// The metadata service, before this start.
    Remembered,
    /// cloud-init's file.
    CloudInit,
    /// Nothing is known of a cloud.
    #[default]
    None,
}

/// The facts at one moment. There is no secret among them, and no identifier of the machine from
/// which its machine ID could be told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FactsState {
    /// Host and cloud.
    #[serde(flatten)]
    pub facts: Facts,
    /// Where those about the cloud came from.
    pub source: Origin,
    /// When the cloud said so, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub learned_at: Option<SystemTime>,
    /// Why something that is wanted is not known, or no longer so.
    pub trouble: Option<Trouble>,
}

/// Every cloud's own address for it; those of AWS, Azure and Google agree.
pub const METADATA_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);
/// Where cloud-init writes it for everyone to read.
pub const INSTANCE_DATA: &str = "/run/cloud-init/instance-data.json";
/// How long a metadata service is asked where nothing waits for it. It is on the machine's own
/// host, and answers within milliseconds or not at all.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// AWS and Azure have at most 50 tags on a machine.
pub const TAGS: usize = 64;

#[cfg(test)]
mod tests;
