//! `mesh`: the mesh that the machine joins.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustls_pki_types::ServerName;

use crate::config::paths::Paths;
use crate::config::reader::Reader;
use crate::controlplane::Endpoint;
use crate::identity::TrustDomain;
use crate::workload::ProxyConfig;

/// Where the control plane is, whom it must be, and what it wants of proxies.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// istiod.
    pub discovery: Endpoint,
    /// The certificate service; by default istiod.
    pub ca: Endpoint,
    /// Dial this host or IP instead of resolving istiod's name.
    pub connect_to: Option<String>,
    /// The name that istiod's certificate must carry.
    pub server_name: Option<String>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Our cluster.
    pub cluster_id: String,
    /// The mesh's ID.
    pub mesh_id: String,
    /// PEM roots that the control plane's certificate must lead to.
    pub root_cert: PathBuf,
    /// Istio's ProxyConfig.
    pub proxy_config: ProxyConfig,
    /// Node metadata, names without the prefix `ISTIO_META_`.
    pub metadata: BTreeMap<String, String>,
}

impl Mesh {
    pub(super) fn read(reader: &mut Reader<'_>, paths: &Paths) -> Option<Self> {
        let proxy_config = match ProxyConfig::from_json(reader.tree("mesh.proxyConfig")) {
            Ok(config) => Some(config),
            Err(errors) => {
                for error in errors {
                    let field = error.field;
                    let what = match field {
                        // Its values are not for messages.
                        "proxyMetadata" => "expected a map of texts".to_owned(),
                        _ => format!("found {}, expected {}", error.found, error.expected),
                    };
                    reader.wrong(&format!("mesh.proxyConfig.{field}"), what);
                }
                None
            }
        };
        let usual = proxy_config.as_ref().map(|config| config.discovery_address.clone());
        let usual = usual.unwrap_or_else(|| ProxyConfig::default().discovery_address);
        let discovery: Option<Endpoint> = reader.parse("mesh.discoveryAddress", &usual);
        let ca = reader.parse("mesh.caAddress", "").or_else(|| discovery.clone());
        let connect_to = host(reader, "mesh.connectTo");
        let server_name = host(reader, "mesh.serverName");
        let trust_domain = reader.parse("mesh.trustDomain", "cluster.local");
        let cluster_id = identifier(reader, "mesh.clusterId", "Kubernetes");
        let mesh_id = identifier(reader, "mesh.meshId", "").unwrap_or_default();
        let root_cert = reader.path("mesh.rootCert", "root-cert.pem");
        let metadata = reader.map("mesh.metadata");
        Some(Self {
            discovery: discovery?,
            ca: ca?,
            connect_to,
            server_name,
            trust_domain: trust_domain?,
            cluster_id: cluster_id?,
            mesh_id,
            root_cert: super::below(&paths.config_directory(), &root_cert?),
            proxy_config: proxy_config?,
            metadata,
        })
    }
}

fn host(reader: &mut Reader<'_>, setting: &str) -> Option<String> {
    let text = reader.text(setting, "")?;
    if ServerName::try_from(text.as_str()).is_err() {
        let what = format!("found {text:?}, expected a DNS name or an IP address without a port");
        reader.wrong(setting, what);
    }
    Some(text)
}

/// istiod gets it in a gRPC header, which carries ASCII only.
fn identifier(reader: &mut Reader<'_>, setting: &str, default: &str) -> Option<String> {
    let text = reader.text(setting, default)?;
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.len() > IDENTIFIER {
        let what = format!("expected at most {IDENTIFIER} visible ASCII letters, found others");
        reader.wrong(setting, what);
    }
    Some(text)
}

/// Far more than any name of a cluster or mesh has.
const IDENTIFIER: usize = 253;
