//! What clients of a mesh are given: roots, tokens, certificates, a kubeconfig, and what a machine
//! joins with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{DistinguishedName, DnType, KeyPair};
use secrecy::SecretString;
use serde_json::json;

use super::join::JoinSpec;
use super::pki::{self, DAY, Order};
use super::state::ISTIOD;
use super::token::{Account, Claims, ISTIO_AUDIENCE};
use super::{Mesh, MeshError, lock};

/// A certificate with its key, for a client.
pub struct ClientIdentity {
    /// Leaf and intermediate, PEM.
    pub chain_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: SecretString,
}

impl Mesh {
    /// All roots, of istiod and of the Kubernetes API, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        lock(&self.state.authorities).roots_pem()
    }

    /// A token of a service account; one with a life of zero has expired.
    #[must_use]
    pub fn token(&self, namespace: &str, account: &str, audience: &str, life: Duration) -> String {
        let account = Account::new(namespace, account);
        let claims = Claims { account: &account, audiences: &[audience], life };
        self.state.tokens.make(&claims, self.state.options.clock.now())
    }

    /// The token of the Kubernetes API's administrator.
    #[must_use]
    pub fn admin_token(&self) -> &str {
        self.state.tokens.admin()
    }

    /// A kubeconfig of the Kubernetes API's administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let roots = lock(&self.state.authorities).kubernetes.root_pem();
        let roots = STANDARD.encode(roots);
        let server = format!("https://{}", self.kube_address);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "devmesh",
            "clusters": [{
                "name": "devmesh",
                "cluster": {"server": server, "certificate-authority-data": roots},
            }],
            "users": [{"name": "admin", "user": {"token": self.admin_token()}}],
            "contexts": [{"name": "devmesh", "context": {"cluster": "devmesh", "user": "admin"}}],
        });
        format!("{config:#}\n")
    }

    /// A certificate of a workload, valid between these times, signed as the mesh signs now.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn workload_certificate(
        &self,
        id: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<ClientIdentity, MeshError> {
        self.sign(Order::workload(id, not_before, not_after)?)
    }

    /// A client certificate of a Kubernetes user for a day; the group `system:masters` may do
    /// everything.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn user_certificate(
        &self,
        user: &str,
        groups: &[&str],
    ) -> Result<ClientIdentity, MeshError> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, user);
        for &group in groups {
            subject.push(DnType::OrganizationName, group);
        }
        let now = self.state.options.clock.now();
        let (not_before, not_after) = (pki::before(now, DAY), pki::after(now, DAY));
        self.sign(Order { names: Vec::new(), subject, not_before, not_after })
    }

    fn sign(&self, order: Order) -> Result<ClientIdentity, MeshError> {
        let key = KeyPair::generate()?;
        let authority = Arc::clone(&lock(&self.state.authorities).signing);
        let leaf = authority.sign(order, &key)?.pem();
        let chain_pem = leaf + &authority.intermediate_pem().unwrap_or_default();
        Ok(ClientIdentity { chain_pem, key_pem: key.serialize_pem().into() })
    }

    /// What istioctl would write for a WorkloadGroup and its service account, with a token that
    /// lives an hour. The fields can be changed before [`super::write_join_directory`].
    #[must_use]
    pub fn join_spec(&self, namespace: &str, group: &str, service_account: &str) -> JoinSpec {
        let options = &self.state.options;
        let life = Duration::from_secs(3600);
        JoinSpec {
            group: group.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), group.to_owned())]),
            ports: BTreeMap::new(),
            probe: None,
            discovery_address: format!("{ISTIOD}:{}", self.address.port()),
            gateway: Some(self.address.ip()),
            cluster_id: options.cluster_id.clone(),
            mesh_id: options.mesh_id.clone(),
            network: String::new(),
            trust_domain: options.trust_domain.clone(),
            auto_register: true,
            capture_dns: true,
            root_pem: self.root_pem(),
            token: self.token(namespace, service_account, ISTIO_AUDIENCE, life),
        }
    }
}
