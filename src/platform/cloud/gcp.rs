//! Google's: the metadata server, which wants and gives a header that no browser sends (Google
//! Cloud: Compute Engine, "About VM metadata").

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue, Method};
use tokio::time::{Instant, timeout_at};

use super::Told;
use crate::platform::facts::{Cloud, clean};
use crate::platform::metadata::{MetadataError, Question, Service, segment};
use crate::platform::{Config, TAGS};

pub(super) async fn ask(
    service: &Service,
    config: &Config,
    extras: Instant,
) -> Result<Told, MetadataError> {
    let (zone, id, name, size, project) = tokio::try_join!(
        get(service, "instance/zone"),
        get(service, "instance/id"),
        get(service, "instance/name"),
        get(service, "instance/machine-type"),
        get(service, "project/project-id"),
    )?;
    let zone = zone.and_then(|zone| last_name(&zone));
    let zone = zone.ok_or_else(|| service.rubbish("instance/zone", "no zone"))?;
    let (tags, unread) = attributes(service, config, extras).await;
    let cloud = Cloud {
        name: Some("gcp".to_owned()),
        region: Some(region(&zone).to_owned()),
        zone: Some(zone),
        instance_id: id.and_then(|id| clean(&id)),
        instance_name: name.and_then(|name| clean(&name)),
        instance_type: size.and_then(|size| last_name(&size)),
        project: project.and_then(|project| clean(&project)),
        tags,
    };
    Ok(Told { cloud, unread })
}

/// What stands last in `projects/123/zones/europe-west1-b`.
#[must_use]
pub fn last_name(path: &str) -> Option<String> {
    clean(path.trim().rsplit('/').next().unwrap_or_default())
}

/// The zone without its last part.
fn region(zone: &str) -> &str {
    zone.rsplit_once('-').map_or(zone, |(region, _)| region)
}

/// Attributes by name. All of them would be too much: keys and scripts are among them.
async fn attributes(
    service: &Service,
    config: &Config,
    deadline: Instant,
) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let (mut found, mut unread) = (BTreeMap::new(), BTreeSet::new());
    for key in config.tags.iter().take(TAGS) {
        let path = format!("instance/attributes/{}", segment(key));
        if let Ok(Ok(value)) = timeout_at(deadline, get(service, &path)).await {
            let value = value.and_then(|value| clean(&value));
            found.extend(value.map(|value| (key.clone(), value)));
        } else {
            tracing::debug!(key, "An attribute cannot be read.");
            unread.insert(key.clone());
        }
    }
    (found, unread)
}

async fn get(service: &Service, path: &str) -> Result<Option<String>, MetadataError> {
    let flavour = (FLAVOUR, HeaderValue::from_static(GOOGLE));
    let whole = format!("/computeMetadata/v1/{path}");
    let question = Question { method: Method::GET, path: &whole, headers: &[flavour] };
    let Some(answer) = service.ask(&question).await? else { return Ok(None) };
    if answer.headers.get(FLAVOUR).is_none_or(|flavour| flavour != GOOGLE) {
        return Err(service.rubbish(path, "no header Metadata-Flavor"));
    }
    Ok(Some(String::from_utf8_lossy(&answer.body).into_owned()))
}

const FLAVOUR: HeaderName = HeaderName::from_static("metadata-flavor");
const GOOGLE: &str = "Google";
