//! Clouds that can be asked.

mod aws;
mod azure;
mod gcp;

pub use aws::document as aws_document;
pub use azure::compute as azure_compute;
pub use gcp::last_name as gcp_name;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use super::Config;
use super::facts::Cloud;
use super::metadata::{MetadataError, Service};

/// A cloud with a metadata service that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon's.
    Aws,
    /// Microsoft's.
    Azure,
    /// Google's.
    Gcp,
}

impl Provider {
    /// The cloud of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Aws, Self::Azure, Self::Gcp].into_iter().find(|cloud| cloud.name() == name)
    }

    /// Its name in settings and templates.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
        }
    }
}

/// What a cloud told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The facts.
    pub cloud: Cloud,
    /// Tags that could not be read, which says nothing of whether they are there.
    pub unread: BTreeSet<String>,
}

/// Asks a cloud for what it knows of this machine.
///
/// # Errors
/// When it does not answer in time, refuses, or something else answers in its place.
pub async fn ask(provider: Provider, config: &Config) -> Result<Told, MetadataError> {
    let service = Service { address: config.address, cloud: provider.name() };
    let answer = async {
        match provider {
            Provider::Aws => aws::ask(&service, config).await,
            Provider::Azure => azure::ask(&service, config).await,
            Provider::Gcp => gcp::ask(&service, config).await,
        }
    };
    let silent = |_| MetadataError::Silent { address: config.address, limit: LIMIT };
    timeout(LIMIT, answer).await.map_err(silent)?
}

/// The service is on the machine's own host: it answers within milliseconds or not at all.
const LIMIT: Duration = Duration::from_secs(5);
/// What is asked beside the machine's place may take this long; it is left out otherwise.
const EXTRAS: Duration = Duration::from_millis(300);
