//! What the cluster says of the mesh: its ConfigMaps, and the gateway's Service.

use serde_json::Value;

use super::{Operator, OperatorError, Order, Tree, gateway};
use crate::identity::Roots;

/// What machines have to know of the mesh.
pub(super) struct Mesh {
    /// Istio's ProxyConfig for all proxies.
    pub(super) proxy_config: Tree,
    /// The trust domain.
    pub(super) trust_domain: String,
    /// istiod's `host:port`.
    pub(super) discovery_address: String,
    /// What machines dial instead, where that is known.
    pub(super) gateway: Option<String>,
    /// The cluster's name in the mesh.
    pub(super) cluster_id: String,
    /// The mesh's roots.
    pub(super) roots: Roots,
}

impl Operator {
    pub(super) async fn mesh(
        &self,
        order: &Order,
        warnings: &mut Vec<String>,
    ) -> Result<Mesh, OperatorError> {
        let istio = &order.istio;
        let mut config = self.mesh_config(order).await?;
        let proxy_config = match config.remove("defaultConfig") {
            Some(Value::Object(proxy_config)) => proxy_config,
            _ => Tree::new(),
        };
        let text = |tree: &Tree, name: &str| {
            tree.get(name)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let discovery_address = istio
            .discovery_address
            .clone()
            .or_else(|| text(&proxy_config, "discoveryAddress"))
            .unwrap_or_else(|| format!("istiod{}.{}.svc:15012", suffix(order), istio.namespace));
        Ok(Mesh {
            trust_domain: text(&config, "trustDomain")
                .unwrap_or_else(|| "cluster.local".to_owned()),
            gateway: self.gateway(order, &discovery_address, warnings).await?,
            cluster_id: self.cluster_id(order).await?,
            roots: self.roots(order).await?,
            proxy_config,
            discovery_address,
        })
    }

    async fn mesh_config(&self, order: &Order) -> Result<Tree, OperatorError> {
        let namespace = order.istio.namespace.clone();
        let name = format!("istio{}", suffix(order));
        let Some(found) = self.core("configmaps", &namespace, &name).await? else {
            return Err(OperatorError::NoMesh { namespace, name });
        };
        let text = found.pointer("/data/mesh").and_then(Value::as_str).unwrap_or_default();
        let origin = format!("data.mesh of ConfigMap {namespace}/{name}");
        match (self.doors.parse_yaml)(text, &origin)? {
            Value::Object(config) => Ok(config),
            _ => Ok(Tree::new()),
        }
    }

    /// Named, or that of the Service. A name of the cluster's inside is of no use outside.
    async fn gateway(
        &self,
        order: &Order,
        discovery: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Option<String>, OperatorError> {
        let istio = &order.istio;
        if istio.gateway.is_some() || istio.discovery_address.is_some() {
            return Ok(istio.gateway.clone());
        }
        let (name, namespace) = gateway::place(&istio.gateway_service, &istio.namespace);
        let service = self.core("services", namespace, name).await?;
        let found = service.as_ref().and_then(gateway::outside_address);
        let host = discovery.rsplit_once(':').map_or(discovery, |(host, _)| host);
        let inside = host.ends_with(".svc") || host.contains(".svc.");
        if found.is_none() && inside {
            let why = if service.is_some() { "has no address outside" } else { "does not exist" };
            warnings.push(format!(
                "machines have to resolve {host} themselves: Service {namespace}/{name} {why} (name \
                 what they shall dial with --gateway IP-OR-NAME)"
            ));
        }
        Ok(found)
    }

    /// Named, or as the sidecar injector has it.
    async fn cluster_id(&self, order: &Order) -> Result<String, OperatorError> {
        if let Some(named) = &order.istio.cluster_id {
            return Ok(named.clone());
        }
        let name = format!("istio-sidecar-injector{}", suffix(order));
        let found = self.core("configmaps", &order.istio.namespace, &name).await?;
        let values = found.as_ref().and_then(|map| map.pointer("/data/values")?.as_str());
        let values: Value =
            values.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let name = values.pointer("/global/multiCluster/clusterName").and_then(Value::as_str);
        Ok(name.filter(|name| !name.is_empty()).unwrap_or(CLUSTER).to_owned())
    }

    async fn roots(&self, order: &Order) -> Result<Roots, OperatorError> {
        let (namespace, name) = (order.group.namespace.clone(), ROOTS.to_owned());
        let found = self.core("configmaps", &namespace, ROOTS).await?;
        let pem = found.as_ref().and_then(|map| map.get("data")?.get("root-cert.pem")?.as_str());
        let Some(pem) = pem else { return Err(OperatorError::NoRoots { namespace, name }) };
        let roots = Roots::from_pem(pem.as_bytes());
        roots.map_err(|source| OperatorError::Roots { namespace, name, source })
    }
}

/// What a revision adds to the names of Istio's objects.
fn suffix(order: &Order) -> String {
    let revision = order.istio.revision.as_deref().filter(|name| !["", "default"].contains(name));
    revision.map(|name| format!("-{name}")).unwrap_or_default()
}

/// The ConfigMap that istiod writes into every namespace.
const ROOTS: &str = "istio-ca-root-cert";
/// The name that istiod takes where nobody gives the cluster one.
const CLUSTER: &str = "Kubernetes";
