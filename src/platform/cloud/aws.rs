//! Amazon's: the instance metadata service in its second version, which wants a token, made by a
//! PUT, with every question (AWS: EC2 user guide, "Use IMDS").

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
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
    let token = token(service).await?;
    let headers = [(HeaderName::from_static("x-aws-ec2-metadata-token"), token)];
    let talk = Talk { service, headers: &headers };
    let found = talk.get(DOCUMENT).await?;
    let mut cloud = found
        .and_then(|text| document(text.as_bytes()))
        .ok_or_else(|| service.rubbish(DOCUMENT, "no region"))?;
    let (tags, unread) = talk.tags(config, extras).await;
    cloud.instance_name = tags.get(NAME).cloned();
    cloud.tags = tags;
    cloud.tags.retain(|key, _| config.other_tags || config.tags.contains(key));
    Ok(Told { cloud, unread })
}

async fn token(service: &Service) -> Result<HeaderValue, MetadataError> {
    let life = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
    let headers = [(life, HeaderValue::from_static(TOKEN_SECONDS))];
    let question = Question { method: Method::PUT, path: TOKEN, headers: &headers };
    let answer = service.ask(&question).await?;
    let token = answer.and_then(|answer| HeaderValue::from_bytes(&answer.body).ok());
    let mut token = token
        .filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES)
        .ok_or_else(|| service.rubbish(TOKEN, "no token"))?;
    token.set_sensitive(true);
    Ok(token)
}

/// The facts of an instance identity document; `None` where it has another form.
#[must_use]
pub fn document(bytes: &[u8]) -> Option<Cloud> {
    let tree: Value = serde_json::from_slice(bytes).ok()?;
    let fact = |key: &str| clean(tree.get(key)?.as_str()?);
    Some(Cloud {
        name: Some("aws".to_owned()),
        region: Some(fact("region")?),
        zone: fact("availabilityZone"),
        instance_id: fact("instanceId"),
        instance_type: fact("instanceType"),
        ..Cloud::default()
    })
}

/// Questions with a token.
struct Talk<'a> {
    service: &'a Service,
    headers: &'a [(HeaderName, HeaderValue)],
}

impl Talk<'_> {
    async fn get(&self, path: &str) -> Result<Option<String>, MetadataError> {
        let question = Question { method: Method::GET, path, headers: self.headers };
        let answer = self.service.ask(&question).await?;
        Ok(answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// The tag `Name`, and those that are wanted; and those that could not be read in time. Where
    /// tags are not exposed to the machine, which is AWS's default, there are none.
    async fn tags(
        &self,
        config: &Config,
        deadline: Instant,
    ) -> (BTreeMap<String, String>, BTreeSet<String>) {
        let mut wanted = config.tags.clone();
        wanted.insert(NAME.to_owned());
        if config.other_tags {
            let listed = timeout_at(deadline, self.get(TAG_LIST)).await;
            let listed = listed.ok().and_then(Result::ok).flatten().unwrap_or_default();
            wanted.extend(listed.lines().filter_map(clean));
        }
        let (mut tags, mut unread) = (BTreeMap::new(), BTreeSet::new());
        for key in wanted.into_iter().take(TAGS) {
            let path = format!("{TAG_LIST}/{}", segment(&key));
            if let Ok(Ok(value)) = timeout_at(deadline, self.get(&path)).await {
                let value = value.and_then(|value| clean(&value));
                tags.extend(value.map(|value| (key, value)));
            } else {
                tracing::debug!(key, "A tag cannot be read.");
                unread.insert(key);
            }
        }
        (tags, unread)
    }
}

/// What AWS shows as the name of a machine is this tag.
const NAME: &str = "Name";
const TOKEN: &str = "/latest/api/token";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const TAG_LIST: &str = "/latest/meta-data/tags/instance";
/// It is used at once.
const TOKEN_SECONDS: &str = "60";
/// They have 56 letters today.
const TOKEN_BYTES: usize = 1024;
