use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;
#[derive(Debug, thiserror::Error)]
pub enum ProxyConfigError {
    #[error("stub")]
    Stub,
}
/// Istio's ProxyConfig for this machine: the settings that we act on, and the whole of it as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    pub discovery_address: String, // default istiod.istio-system.svc:15012
    pub drain_duration: Duration,  // 45s
    pub termination_drain_duration: Duration, // 5s
    pub admin_port: u16,           // 15000
    pub status_port: u16,          // 15020
    pub concurrency: Option<u32>,
    pub service_cluster: Option<String>,
    /// proxyMetadata: ISTIO_META_* and agent settings
    pub metadata: BTreeMap<String, String>,
    /// The effective ProxyConfig as protojson (camelCase, durations "45s"); goes into node metadata PROXY_CONFIG.
    pub raw: Map<String, Value>,
}
impl ProxyConfig {
    /// `raw` = `defaultConfig` of mesh.yaml (or `mesh.proxyConfig` of our config.yaml). Reports the field's path, what was found, what was expected.
    pub fn from_json(_raw: Map<String, Value>) -> Result<Self, Vec<ProxyConfigError>> {
        todo!()
    }
}
impl Default for ProxyConfig {
    fn default() -> Self {
        todo!()
    }
}
