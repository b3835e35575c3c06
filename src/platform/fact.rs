//! The facts that templates can name.

use std::fmt;
use std::str::FromStr;

/// A fact by its name in templates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// `address`
    Address,
    /// `arch`
    Arch,
    /// `cloud.name`
    CloudName,
    /// `cloud.region`
    CloudRegion,
    /// `cloud.zone`
    CloudZone,
    /// `hostname`
    HostName,
    /// `cloud.instanceId`
    InstanceId,
    /// `cloud.instanceName`
    InstanceName,
    /// `cloud.instanceType`
    InstanceType,
    /// `machine.id`
    MachineId,
    /// `os.name`
    OsName,
    /// `os.version`
    OsVersion,
    /// `cloud.tag.KEY`
    Tag(String),
}

/// There is no such fact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no fact {name:?}")]
pub struct UnknownFact {
    /// Its name.
    pub name: String,
}

impl Fact {
    /// Every name, but for tags, whose names are the cloud's.
    pub const NAMES: [&'static str; 12] = [
        "address",
        "arch",
        "cloud.instanceId",
        "cloud.instanceName",
        "cloud.instanceType",
        "cloud.name",
        "cloud.region",
        "cloud.zone",
        "hostname",
        "machine.id",
        "os.name",
        "os.version",
    ];

    /// Whether only a cloud can tell it.
    #[must_use]
    pub fn is_of_cloud(&self) -> bool {
        self.to_string().starts_with("cloud.")
    }
}

impl FromStr for Fact {
    type Err = UnknownFact;

    fn from_str(name: &str) -> Result<Self, UnknownFact> {
        Ok(match name {
            "address" => Self::Address,
            "arch" => Self::Arch,
            "cloud.instanceId" => Self::InstanceId,
            "cloud.instanceName" => Self::InstanceName,
            "cloud.instanceType" => Self::InstanceType,
            "cloud.name" => Self::CloudName,
            "cloud.region" => Self::CloudRegion,
            "cloud.zone" => Self::CloudZone,
            "hostname" => Self::HostName,
            "machine.id" => Self::MachineId,
            "os.name" => Self::OsName,
            "os.version" => Self::OsVersion,
            _ => match name.strip_prefix(TAG).filter(|key| !key.is_empty()) {
                Some(key) => Self::Tag(key.to_owned()),
                None => return Err(UnknownFact { name: name.to_owned() }),
            },
        })
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Address => "address",
            Self::Arch => "arch",
            Self::CloudName => "cloud.name",
            Self::CloudRegion => "cloud.region",
            Self::CloudZone => "cloud.zone",
            Self::HostName => "hostname",
            Self::InstanceId => "cloud.instanceId",
            Self::InstanceName => "cloud.instanceName",
            Self::InstanceType => "cloud.instanceType",
            Self::MachineId => "machine.id",
            Self::OsName => "os.name",
            Self::OsVersion => "os.version",
            Self::Tag(key) => return write!(f, "{TAG}{key}"),
        };
        f.write_str(name)
    }
}

const TAG: &str = "cloud.tag.";
