//! Microsoft's: the instance metadata service, which wants a header and the version of its answer
//! (Azure: "Azure Instance Metadata Service for virtual machines").

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;

use super::Told;
use crate::platform::facts::{Cloud, clean};
use crate::platform::metadata::{MetadataError, Question, Service};
use crate::platform::{Config, TAGS};

pub(super) async fn ask(service: &Service, config: &Config) -> Result<Told, MetadataError> {
    let header = (HeaderName::from_static("metadata"), HeaderValue::from_static("true"));
    let question = Question { method: Method::GET, path: COMPUTE, headers: &[header] };
    let answer = service.ask(&question).await?;
    let mut cloud = answer
        .and_then(|answer| compute(&answer.body))
        .ok_or_else(|| service.rubbish(COMPUTE, "no location"))?;
    cloud.tags.retain(|key, _| config.other_tags || config.tags.contains(key));
    Ok(Told { cloud, ..Told::default() })
}

/// The facts of a description of a machine; `None` where it has another form.
#[must_use]
pub fn compute(bytes: &[u8]) -> Option<Cloud> {
    let tree: Value = serde_json::from_slice(bytes).ok()?;
    let fact = |key: &str| clean(tree.get(key)?.as_str()?);
    let tag = |tag: &Value| {
        let text = |key: &str| clean(tag.get(key)?.as_str()?);
        Some((text("name")?, text("value")?))
    };
    let tags = tree.get("tagsList").and_then(Value::as_array).into_iter().flatten();
    let tags: BTreeMap<String, String> = tags.take(TAGS).filter_map(tag).collect();
    Some(Cloud {
        name: Some("azure".to_owned()),
        region: Some(fact("location")?),
        // Empty for a machine that is in no zone.
        zone: fact("zone"),
        instance_id: fact("vmId"),
        instance_name: fact("name"),
        instance_type: fact("vmSize"),
        project: None,
        tags,
    })
}

/// The first version with everything that is read here; all newer ones answer to it.
const COMPUTE: &str = "/metadata/instance/compute?api-version=2019-08-15&format=json";
