//! What cloud-init wrote down: `/run/cloud-init/instance-data.json`, of which the keys under `v1`
//! are the same for every cloud (cloud-init: instance-data).

use std::path::Path;

use serde_json::Value;

use super::facts::{Cloud, clean};
use crate::base::fsio;

/// The facts of a file; nothing where there is none.
pub(super) fn read(path: &Path) -> Cloud {
    match fsio::read(path, BYTES) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.is_missing() => Cloud::default(),
        Err(error) => {
            let error = crate::base::trouble::chain(&error);
            tracing::warn!(error, "What cloud-init wrote down cannot be read.");
            Cloud::default()
        }
    }
}

/// The facts of a text of cloud-init's; nothing where it has another form.
#[must_use]
pub fn parse(bytes: &[u8]) -> Cloud {
    let tree: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let fact = |key: &str| {
        let value = tree.pointer(&format!("/v1/{key}"))?.as_str()?;
        let is_word = NOTHING.iter().any(|word| value.eq_ignore_ascii_case(word));
        clean(value).filter(|value| !is_word && !value.starts_with(REDACTED))
    };
    let Some(name) = fact("cloud_name") else { return Cloud::default() };
    Cloud {
        // Google's cloud is called so everywhere else.
        name: Some(if name == "gce" { "gcp".to_owned() } else { name.to_lowercase() }),
        region: fact("region"),
        zone: fact("availability_zone"),
        instance_id: fact("instance_id"),
        ..Cloud::default()
    }
}

/// What cloud-init says where it knows nothing.
const NOTHING: [&str; 4] = ["", "none", "unknown", "nocloud"];
/// How a value begins that not everyone may read.
const REDACTED: &str = "redacted for";
/// User data is left out of this file; what is in it has some kilobytes.
const BYTES: u64 = 1 << 20;
