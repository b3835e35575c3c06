//! Clouds that can be asked.

mod aws;
mod azure;
mod gcp;

pub use aws::document as aws_document;
pub use azure::compute as azure_compute;
pub use gcp::last_name as gcp_name;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

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

/// Asks a cloud for what it knows of this machine, for at most `limit`. What is asked beside the
/// machine's place may take half of that, and is left out otherwise.
///
/// # Errors
/// When it does not answer in time, refuses, or something else answers in its place.
pub async fn ask(
    provider: Provider,
    config: &Config,
    limit: Duration,
) -> Result<Told, MetadataError> {
    let service = Service { address: config.address, cloud: provider.name() };
    let extras = Instant::now() + limit / 2;
    // Boxed: the start of the agent waits for it in many layers.
    let answer: Pin<Box<dyn Future<Output = _> + Send + '_>> = match provider {
        Provider::Aws => Box::pin(aws::ask(&service, config, extras)),
        Provider::Azure => Box::pin(azure::ask(&service, config)),
        Provider::Gcp => Box::pin(gcp::ask(&service, config, extras)),
    };
    let silent = |_| MetadataError::Silent { address: config.address, limit };
    timeout(limit, answer).await.map_err(silent)?
}
