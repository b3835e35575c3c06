//! A join directory in istioctl's format (`istioctl/pkg/workload/workload.go`). It invents
//! nothing: all values come with the specification.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::base::fsio::{self, FileError};

/// What `istioctl x workload entry configure` knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinSpec {
    /// The WorkloadGroup's name.
    pub group: String,
    /// Its namespace.
    pub namespace: String,
    /// Its template's service account.
    pub service_account: String,
    /// Its template's labels.
    pub labels: BTreeMap<String, String>,
    /// Its template's ports.
    pub ports: BTreeMap<String, u16>,
    /// Its readiness probe, as in the WorkloadGroup.
    pub probe: Option<Value>,
    /// istiod's host and port, such as `istiod.istio-system.svc:15012`.
    pub discovery_address: String,
    /// What the hosts file gives istiod's name; `None`: the file is empty.
    pub gateway: Option<IpAddr>,
    /// The cluster's name in the mesh.
    pub cluster_id: String,
    /// The mesh's name.
    pub mesh_id: String,
    /// The network's name, empty for the only one.
    pub network: String,
    /// The trust domain.
    pub trust_domain: String,
    /// `--autoregister`.
    pub auto_register: bool,
    /// `--capture-dns`.
    pub capture_dns: bool,
    /// root-cert.pem.
    pub root_pem: String,
    /// istio-token.
    pub token: String,
}

/// Writes cluster.env, mesh.yaml, root-cert.pem, istio-token and hosts, with istioctl's file mode.
///
/// # Errors
/// When the directory cannot be made or written.
pub fn write_join_directory(directory: &Path, spec: &JoinSpec) -> Result<(), FileError> {
    fsio::make_directory(directory, DIRECTORY_MODE)?;
    let files = [
        ("cluster.env", spec.cluster_env()),
        ("mesh.yaml", spec.mesh_yaml()),
        ("root-cert.pem", spec.root_pem.clone()),
        ("istio-token", spec.token.clone()),
        ("hosts", spec.hosts()),
    ];
    for (name, content) in files {
        fsio::replace(&directory.join(name), content.as_bytes(), FILE_MODE)?;
    }
    Ok(())
}

impl JoinSpec {
    /// Sorted lines `KEY=value`, the values quoted for a shell.
    fn cluster_env(&self) -> String {
        let mut all = self.metadata();
        let ports: Vec<_> = self.ports.values().map(u16::to_string).collect();
        let inbound = if ports.is_empty() { "*".to_owned() } else { ports.join(",") };
        all.extend([
            ("ISTIO_INBOUND_PORTS".to_owned(), inbound),
            ("ISTIO_NAMESPACE".to_owned(), self.namespace.clone()),
            ("ISTIO_SERVICE".to_owned(), format!("{}.{}", self.group, self.namespace)),
            ("ISTIO_SERVICE_CIDR".to_owned(), "*".to_owned()),
            ("ISTIO_LOCAL_EXCLUDE_PORTS".to_owned(), "22,15090,15021,15020".to_owned()),
            ("SERVICE_ACCOUNT".to_owned(), self.service_account.clone()),
        ]);
        all.into_iter().map(|(key, value)| format!("{key}={}\n", quoted(&value))).collect()
    }

    fn mesh_yaml(&self) -> String {
        let mut config = Map::new();
        config.insert("discoveryAddress".to_owned(), json!(self.discovery_address));
        config.insert("meshId".to_owned(), json!(self.mesh_id));
        config.insert("proxyMetadata".to_owned(), json!(self.metadata()));
        if let Some(probe) = &self.probe {
            config.insert("readinessProbe".to_owned(), probe.clone());
        }
        let document = json!({"defaultConfig": config});
        // Text and numbers alone can always be written; JSON is YAML as well.
        serde_saphyr::to_string(&document).unwrap_or_else(|_| document.to_string())
    }

    fn hosts(&self) -> String {
        let host = self.discovery_address.rsplit_once(':').map_or("", |(host, _)| host);
        self.gateway.map(|address| format!("{address} {host}\n")).unwrap_or_default()
    }

    /// The proxy metadata that both files carry.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        let label = |keys: &[&str]| keys.iter().find_map(|&key| self.labels.get(key).cloned());
        let service = label(&[CANONICAL_NAME, "app.kubernetes.io/name", "app"]);
        let service = service.unwrap_or_else(|| self.group.clone());
        let revision = label(&[CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
        let revision = revision.unwrap_or_else(|| "latest".to_owned());
        labels.insert(CANONICAL_NAME.to_owned(), service.clone());
        labels.insert(CANONICAL_REVISION.to_owned(), revision.clone());
        let mut all = BTreeMap::new();
        let mut set = |key: &str, value: String| all.insert(key.to_owned(), value);
        set("CANONICAL_SERVICE", service);
        set("CANONICAL_REVISION", revision);
        set("POD_NAMESPACE", self.namespace.clone());
        set("SERVICE_ACCOUNT", self.service_account.clone());
        set("TRUST_DOMAIN", self.trust_domain.clone());
        set("ISTIO_META_CLUSTER_ID", self.cluster_id.clone());
        set("ISTIO_META_MESH_ID", self.mesh_id.clone());
        set("ISTIO_META_NETWORK", self.network.clone());
        set("ISTIO_META_WORKLOAD_NAME", self.group.clone());
        set("ISTIO_METAJSON_LABELS", json!(labels).to_string());
        if !self.ports.is_empty() {
            let port = |(name, port): (&String, &u16)| json!({"name": name, "containerPort": port, "protocol": ""});
            let ports: Vec<_> = self.ports.iter().map(port).collect();
            set("ISTIO_META_POD_PORTS", Value::Array(ports).to_string());
        }
        if self.capture_dns {
            set("ISTIO_META_DNS_CAPTURE", "true".to_owned());
        }
        if self.auto_register {
            set("ISTIO_META_AUTO_REGISTER_GROUP", self.group.clone());
        }
        all
    }
}

/// Quoted for a shell where it is needed.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r#"'"'"'"#))
    }
}

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// istioctl writes every file, the token too, with this mode.
const FILE_MODE: u32 = 0o744;
/// The directory keeps the token from other users all the same.
const DIRECTORY_MODE: u32 = 0o700;
