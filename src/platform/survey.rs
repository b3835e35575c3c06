//! What can be told at once: the host's own files, and no network.

use std::path::Path;

use super::cloud::Provider;
use super::facts::{Cloud, Facts};
use super::host::{self, Firmware, PLACES, Places};
use super::{Config, Source, instance_data};

/// What is known without asking anybody, and who could be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The host, and what cloud-init says.
    pub facts: Facts,
    /// The cloud whose metadata service can tell more; off-cloud there is none.
    pub provider: Option<Provider>,
    /// Which machine this is, for what is remembered on its disk.
    pub machine: String,
}

/// Looks at the host.
#[must_use]
pub fn survey(config: &Config) -> Survey {
    let (firmware, machine_id) = PLACES;
    let places = Places { firmware: Path::new(firmware), machine_id: Path::new(machine_id) };
    survey_at(&places, config)
}

pub(super) fn survey_at(places: &Places<'_>, config: &Config) -> Survey {
    let firmware = Firmware::read(places.firmware);
    let cloud = match config.source {
        Source::Auto | Source::CloudInit => instance_data::read(&config.instance_data),
        Source::Metadata(_) | Source::None => Cloud::default(),
    };
    let provider = match config.source {
        Source::Auto => {
            let named = cloud.name.as_deref().and_then(Provider::named);
            firmware.provider().or(named)
        }
        Source::Metadata(provider) => Some(provider),
        Source::CloudInit | Source::None => None,
    };
    let host = host::host(&firmware, places.machine_id);
    let machine = host::machine(&firmware, &host, places.machine_id);
    Survey { provider, machine, facts: Facts { host, cloud } }
}
