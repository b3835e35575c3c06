//! The ladder of credentials.

use crate::config::{Paths, Settings};
use crate::credential::Config;
use crate::identity::SpiffeId;

pub(super) fn credential(settings: &Settings, paths: &Paths, id: &SpiffeId) -> Config {
    Config {
        id: id.clone(),
        audience: settings.credential.audience.clone(),
        sources: settings.credential.sources.clone(),
        own_kube_token: paths.kube_token_file(),
    }
}
