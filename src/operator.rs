//! What the cluster's operator does for machines: finds out what they have to know, grants them the
//! least rights, and makes join bundles.

mod credential;
mod error;
mod facts;
mod gateway;
mod grants;
mod group;
mod policy;
mod settings;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

pub use error::OperatorError;
pub use grants::{Grants, Manifest};
pub use group::Group;

use crate::base::clock::{SharedClock, rfc3339};
use crate::base::problem::{Problem, Problems};
use crate::identity::Roots;
use crate::join::{Bundle, BundleMetadata, Setting, outside, programs};
use crate::kube::{Client, Object};

/// Our name towards Kubernetes' field ownership, and on what we make.
pub const FIELD_MANAGER: &str = "vm-agent-operator";

/// What an operator has others do.
#[derive(Clone, Copy)]
pub struct Doors {
    /// Parses YAML; the second text is its place, for the problem.
    pub parse_yaml: ParseYaml,
    /// Says what a machine would find wrong with settings.
    pub check_settings: fn(&Map<String, Value>) -> Result<(), Problems>,
}

/// Parses YAML; the second text is its place.
pub type ParseYaml = fn(&str, &str) -> Result<Value, Problem>;

/// Where Istio is, and how machines get there.
#[derive(Clone, Debug)]
pub struct Istio {
    /// The namespace of its control plane.
    pub namespace: String,
    /// The revision of the control plane, where it has one.
    pub revision: Option<String>,
    /// istiod's `host:port`, where the mesh's own is not meant.
    pub discovery_address: Option<String>,
    /// What machines dial to reach istiod: an IP address or a name.
    pub gateway: Option<String>,
    /// The Service of the gateway, `NAME` or `NAME.NAMESPACE`, where no gateway is named.
    pub gateway_service: String,
    /// The cluster's name in the mesh, where the mesh's own is not meant.
    pub cluster_id: Option<String>,
}

/// Who writes the WorkloadEntries of the machines.
#[derive(Clone, Debug)]
pub enum Registration {
    /// istiod; the machines get no rights in Kubernetes.
    Istiod,
    /// The machines themselves.
    Kubernetes {
        /// The API server as machines reach it, `https://host:port`.
        server: String,
        /// Its roots.
        roots: Roots,
    },
}

/// Which machines a bundle is for.
#[derive(Clone, Debug, Default)]
pub struct Machines {
    /// The only one.
    pub name: Option<String>,
    /// What their names begin with; empty where any name will do.
    pub name_prefix: String,
    /// How many there are. Nobody counts.
    pub uses: Option<u64>,
    /// Keys of labels, besides those of the WorkloadGroup, that machines set as they like.
    pub free_labels: Vec<String>,
    /// Whether machines may register a host name in the place of an address.
    pub host_names: bool,
}

/// What a bundle shall be.
#[derive(Clone, Debug)]
pub struct Order {
    /// The machines' WorkloadGroup.
    pub group: Group,
    /// Where Istio is.
    pub istio: Istio,
    /// Who registers.
    pub registration: Registration,
    /// Which machines.
    pub machines: Machines,
    /// How long its tokens shall live.
    pub life: Duration,
    /// The command that makes such a bundle, for later.
    pub renew_with: String,
}

/// A bundle without its tokens.
#[derive(Debug)]
pub struct Prepared {
    settings: Map<String, Value>,
    roots: Roots,
    warnings: Vec<String>,
}

/// A bundle, and what an operator has to know of it.
#[derive(Debug)]
pub struct Made {
    /// The bundle.
    pub bundle: Bundle,
    /// When its tokens end. The server may grant less, or more, than was asked for.
    pub expires_at: SystemTime,
    /// What is strange, but no error.
    pub warnings: Vec<String>,
}

/// The cluster's operator.
pub struct Operator {
    client: Arc<Client>,
    doors: Doors,
    clock: SharedClock,
}

impl Operator {
    /// An operator who does what this client may do.
    #[must_use]
    pub fn new(client: Arc<Client>, doors: Doors, clock: SharedClock) -> Self {
        Self { client, doors, clock }
    }

    /// Reads a WorkloadGroup.
    ///
    /// # Errors
    /// When it does not exist, cannot be read, or is strange.
    pub async fn group(&self, namespace: &str, name: &str) -> Result<Group, OperatorError> {
        let object = group::object(namespace, name);
        let found = self.client.get(&object).await.map_err(|error| match error.code() {
            Some(404) => {
                OperatorError::NoGroup { namespace: namespace.to_owned(), name: name.to_owned() }
            }
            _ => error.into(),
        })?;
        Group::from_value(&found, namespace)
    }

    /// Other WorkloadGroups of the namespace whose machines have the same service account. Without
    /// the right to list them there are none that we know of.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses for another reason.
    pub async fn siblings(&self, group: &Group) -> Result<Vec<Group>, OperatorError> {
        let collection = group::object(&group.namespace, "");
        let list = match self.client.list(&collection, None).await {
            Err(error) if error.code() == Some(403) => return Ok(Vec::new()),
            list => list?,
        };
        let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
        let read = |item: &Value| {
            // The items of a list do not say what they are.
            let mut item = item.clone();
            let fields = item.as_object_mut()?;
            fields.insert("apiVersion".to_owned(), "networking.istio.io/v1".into());
            fields.insert("kind".to_owned(), "WorkloadGroup".into());
            Group::from_value(&item, &group.namespace).ok()
        };
        let is_sibling = |other: &Group| {
            other.service_account == group.service_account && other.name != group.name
        };
        Ok(items.filter_map(read).filter(is_sibling).collect())
    }

    /// Whether the bundle's tokens can be bound to a Secret: that takes the right to create one.
    ///
    /// # Errors
    /// When the server cannot be reached, or does not know us.
    pub async fn may_bind(&self, group: &Group) -> Result<bool, OperatorError> {
        let secrets = credential::secret_object(&group.namespace, "");
        Ok(self.client.forbidden(&["create"], &secrets).await?.is_empty())
    }

    /// Asks whether a manifest could be applied, and changes nothing.
    ///
    /// # Errors
    /// When the server cannot be reached, or would refuse.
    pub async fn check(&self, manifest: &Manifest) -> Result<(), OperatorError> {
        let Manifest { object, body, only_if_missing } = manifest;
        if *only_if_missing && self.found(object).await?.is_some() {
            return Ok(());
        }
        self.client.apply_dry_run(object, body, FIELD_MANAGER).await?;
        Ok(())
    }

    /// Makes a manifest so, and says what was done: `Role vms/details created`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn apply(&self, manifest: &Manifest) -> Result<String, OperatorError> {
        let Manifest { object, body, only_if_missing } = manifest;
        let title = manifest.title();
        let before = self.found(object).await?;
        if *only_if_missing && before.is_some() {
            return Ok(format!("{title} exists"));
        }
        let after = self.client.apply(object, body, FIELD_MANAGER, false).await?;
        let revision =
            |object: &Value| object.pointer("/metadata/resourceVersion").map(Value::to_string);
        let done = match before {
            None => "created",
            Some(before) if revision(&before) == revision(&after) => "unchanged",
            Some(_) => "updated",
        };
        Ok(format!("{title} {done}"))
    }

    async fn found(&self, object: &Object) -> Result<Option<Value>, OperatorError> {
        match self.client.get(object).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a bundle for this order says, as far as it has no tokens. Reads only.
    ///
    /// # Errors
    /// When the mesh does not say what machines have to know, or the server refuses.
    pub async fn prepare(&self, order: &Order) -> Result<Prepared, OperatorError> {
        let mut warnings = Vec::new();
        let mesh = self.mesh(order, &mut warnings).await?;
        let mut settings = settings::settings(order, &mesh, self.doors.parse_yaml, &mut warnings)?;
        for Setting { path, .. } in outside(&settings) {
            settings::remove(&mut settings, &path);
            let path = path.join(".");
            warnings.push(format!(
                "{path} is not in the bundle, as it is for each machine to say: `vm-agent join \
                 --set {path}=…`"
            ));
        }
        (self.doors.check_settings)(&settings)?;
        for Setting { path, .. } in programs(&Value::Object(settings.clone())) {
            warnings.push(format!(
                "{} names a program: machines join with --allow-exec",
                path.join(".")
            ));
        }
        Ok(Prepared { settings, roots: mesh.roots, warnings })
    }

    /// Makes a bundle. The only objects that it makes in the cluster are the Secret that the
    /// bundle's tokens end with, and the tokens.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn bundle(&self, order: &Order, prepared: Prepared) -> Result<Made, OperatorError> {
        let Prepared { settings, roots, mut warnings } = prepared;
        let issued = self.credential(order, &mut warnings).await?;
        let expires_at = issued.expires_at;
        let metadata = BundleMetadata {
            group: order.group.name.clone(),
            namespace: order.group.namespace.clone(),
            created: rfc3339(self.clock.now()),
            name_prefix: order.machines.name_prefix.clone(),
            uses: order.machines.uses,
            secret: issued.secret.unwrap_or_default(),
            renew_with: order.renew_with.clone(),
        };
        let tokens = (issued.kubernetes, Some(issued.istio));
        let bundle = Bundle::new(metadata, settings, roots, tokens);
        Ok(Made { bundle, expires_at, warnings })
    }

    /// An object of the core group.
    async fn core(
        &self,
        resource: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, OperatorError> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let object = Object { group_version: "v1", resource, namespace, name };
        match self.client.get(&object).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A map as YAML has it.
type Tree = Map<String, Value>;
