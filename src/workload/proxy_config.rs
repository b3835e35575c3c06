//! Istio's ProxyConfig: the settings that we act on, and the whole of it for istiod.
//!
//! Defaults: Istio `pkg/config/mesh/mesh.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

/// A setting of ProxyConfig that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: found {found}, expected {expected}")]
pub struct ProxyConfigError {
    /// Its name.
    pub field: &'static str,
    /// Its value, as JSON, cut to a readable length.
    pub found: String,
    /// What it must be.
    pub expected: &'static str,
}

/// The mesh's settings for this machine's proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// istiod's `host:port`.
    pub discovery_address: String,
    /// Envoy's `--drain-time-s`.
    pub drain_duration: Duration,
    /// How long a stopping proxy serves what it has.
    pub termination_drain_duration: Duration,
    /// Envoy's admin port, on localhost.
    pub admin_port: u16,
    /// The agent's status port.
    pub status_port: u16,
    /// Envoy's worker threads; `None` for one per core.
    pub concurrency: Option<u32>,
    /// Envoy's `node.cluster`, where it is set.
    pub service_cluster: Option<String>,
    /// `proxyMetadata`: `ISTIO_META_*` and settings of the agent.
    pub metadata: BTreeMap<String, String>,
    /// All of it as Protobuf JSON, for the node metadata `PROXY_CONFIG`.
    pub raw: Map<String, Value>,
}

impl ProxyConfig {
    /// Reads ProxyConfig in its JSON form (camelCase; durations such as `"45s"`). Unknown settings
    /// are kept for istiod.
    ///
    /// # Errors
    /// All settings of ours that have a wrong form.
    pub fn from_json(mut raw: Map<String, Value>) -> Result<Self, Vec<ProxyConfigError>> {
        let mut fields = Fields { raw: &raw, errors: Vec::new() };
        let mut config = Self {
            discovery_address: fields
                .text("discoveryAddress")
                .unwrap_or_else(|| DISCOVERY.to_owned()),
            drain_duration: fields.duration("drainDuration").unwrap_or(DRAIN),
            termination_drain_duration: fields
                .duration("terminationDrainDuration")
                .unwrap_or(TERMINATION_DRAIN),
            admin_port: fields.port("proxyAdminPort").unwrap_or(15_000),
            status_port: fields.port("statusPort").unwrap_or(15_020),
            concurrency: fields
                .number("concurrency", "a number")
                .and_then(|n| u32::try_from(n).ok()),
            service_cluster: fields.text("serviceCluster").filter(|name| name != "istio-proxy"),
            metadata: fields.texts("proxyMetadata"),
            raw: Map::new(),
        };
        if !fields.errors.is_empty() {
            return Err(fields.errors);
        }
        // 0 means one worker per core.
        config.concurrency = config.concurrency.filter(|&workers| workers > 0);
        raw.insert("discoveryAddress".to_owned(), config.discovery_address.clone().into());
        config.raw = raw;
        Ok(config)
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            discovery_address: DISCOVERY.to_owned(),
            drain_duration: DRAIN,
            termination_drain_duration: TERMINATION_DRAIN,
            admin_port: 15_000,
            status_port: 15_020,
            concurrency: None,
            service_cluster: None,
            metadata: BTreeMap::new(),
            raw: Map::from_iter([("discoveryAddress".to_owned(), DISCOVERY.into())]),
        }
    }
}

/// Parses a Protobuf JSON or Go duration with one unit: `45s`, `1.5s`, `500ms`, `5m`, `24h`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at_checked(split)?;
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok().filter(|number: &f64| *number >= 0.0)?;
    Duration::try_from_secs_f64(number * scale).ok()
}

/// Reads typed fields and collects what is wrong.
struct Fields<'a> {
    raw: &'a Map<String, Value>,
    errors: Vec<ProxyConfigError>,
}

impl Fields<'_> {
    fn read<T>(
        &mut self,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.raw.get(field).filter(|value| !value.is_null())?;
        let parsed = read(value);
        if parsed.is_none() {
            let found = value.to_string().chars().take(100).collect();
            self.errors.push(ProxyConfigError { field, found, expected });
        }
        parsed
    }

    fn text(&mut self, field: &'static str) -> Option<String> {
        self.read(field, "text", |value| value.as_str().map(str::to_owned))
    }

    fn duration(&mut self, field: &'static str) -> Option<Duration> {
        self.read(field, "a duration such as \"45s\"", |value| parse_duration(value.as_str()?))
    }

    fn port(&mut self, field: &'static str) -> Option<u16> {
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|&port| port > 0);
        self.read(field, "a port from 1 to 65535", port)
    }

    fn number(&mut self, field: &'static str, expected: &'static str) -> Option<u64> {
        self.read(field, expected, Value::as_u64)
    }

    fn texts(&mut self, field: &'static str) -> BTreeMap<String, String> {
        let texts = self.read(field, "a map of names to texts", |value| {
            let pair =
                |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            value.as_object()?.iter().map(pair).collect::<Option<BTreeMap<_, _>>>()
        });
        texts.unwrap_or_default()
    }
}

const DISCOVERY: &str = "istiod.istio-system.svc:15012";
const DRAIN: Duration = Duration::from_secs(45);
const TERMINATION_DRAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ProxyConfig, Vec<ProxyConfigError>> {
        ProxyConfig::from_json(value.as_object().unwrap().clone())
    }

    #[test]
    fn nothing_set_means_istios_defaults() {
        assert_eq!(read(json!({})).unwrap(), ProxyConfig::default());
    }

    #[test]
    fn settings_are_read_and_unknown_ones_kept_for_istiod() {
        let config =
            read(json!({"drainDuration": "1.5s", "concurrency": 0, "holdApplication": true,
            "proxyMetadata": {"ISTIO_META_NETWORK": "n"}}))
            .unwrap();
        assert_eq!(
            (config.drain_duration, config.concurrency),
            (Duration::from_millis(1500), None)
        );
        assert_eq!(config.raw["holdApplication"], json!(true));
        assert_eq!(config.metadata["ISTIO_META_NETWORK"], "n");
    }

    #[test]
    fn all_wrong_settings_are_told_at_once() {
        let wrong = json!({"statusPort": 70000, "drainDuration": 45, "proxyMetadata": {"A": 1}});
        let errors = read(wrong).unwrap_err();
        let fields: Vec<_> = errors.iter().map(|error| error.field).collect();
        assert_eq!(fields, ["drainDuration", "statusPort", "proxyMetadata"]);
        assert!(errors[1].to_string().contains("found 70000, expected a port"), "{}", errors[1]);
    }
}
