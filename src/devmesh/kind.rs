//! The kinds of objects that the Kubernetes API serves, and how it calls and shows them. What they
//! mean is not known here.

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Istio's AuthorizationPolicy.
    AuthorizationPolicies,
    /// ConfigMap.
    ConfigMaps,
    /// Event; there are never any.
    Events,
    /// MutatingWebhookConfiguration, which is kept and never called.
    MutatingWebhookConfigurations,
    /// Namespace.
    Namespaces,
    /// Istio's PeerAuthentication.
    PeerAuthentications,
    /// RoleBinding.
    RoleBindings,
    /// Role.
    Roles,
    /// Secret.
    Secrets,
    /// ServiceAccount.
    ServiceAccounts,
    /// Istio's ServiceEntry.
    ServiceEntries,
    /// Service.
    Services,
    /// ValidatingAdmissionPolicy, which is kept and not obeyed.
    ValidatingAdmissionPolicies,
    /// Its binding.
    ValidatingAdmissionPolicyBindings,
    /// Istio's WorkloadEntry.
    WorkloadEntries,
    /// Istio's WorkloadGroup.
    WorkloadGroups,
}

/// How the API calls a kind.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    /// Empty for the core group.
    pub(super) group: &'static str,
    /// What kubectl takes for the plural.
    pub(super) short: &'static [&'static str],
    pub(super) scope: Scope,
    /// What a table shows between name and age: the head, and where the value is.
    pub(super) columns: &'static [(&'static str, &'static str)],
}

/// Whether objects stand in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Cluster,
    Namespaced,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::AuthorizationPolicies,
        Self::ConfigMaps,
        Self::Events,
        Self::MutatingWebhookConfigurations,
        Self::Namespaces,
        Self::PeerAuthentications,
        Self::RoleBindings,
        Self::Roles,
        Self::Secrets,
        Self::ServiceAccounts,
        Self::ServiceEntries,
        Self::Services,
        Self::ValidatingAdmissionPolicies,
        Self::ValidatingAdmissionPolicyBindings,
        Self::WorkloadEntries,
        Self::WorkloadGroups,
    ];

    pub(super) fn api(self) -> &'static Api {
        match self {
            Self::AuthorizationPolicies => &AUTHORIZATION_POLICIES,
            Self::ConfigMaps => &CONFIG_MAPS,
            Self::Events => &EVENTS,
            Self::MutatingWebhookConfigurations => &MUTATING_WEBHOOK_CONFIGURATIONS,
            Self::Namespaces => &NAMESPACES,
            Self::PeerAuthentications => &PEER_AUTHENTICATIONS,
            Self::RoleBindings => &ROLE_BINDINGS,
            Self::Roles => &ROLES,
            Self::Secrets => &SECRETS,
            Self::ServiceAccounts => &SERVICE_ACCOUNTS,
            Self::ServiceEntries => &SERVICE_ENTRIES,
            Self::Services => &SERVICES,
            Self::ValidatingAdmissionPolicies => &VALIDATING_ADMISSION_POLICIES,
            Self::ValidatingAdmissionPolicyBindings => &VALIDATING_ADMISSION_POLICY_BINDINGS,
            Self::WorkloadEntries => &WORKLOAD_ENTRIES,
            Self::WorkloadGroups => &WORKLOAD_GROUPS,
        }
    }

    /// The name in paths, such as `workloadentries`.
    #[must_use]
    pub fn plural(self) -> &'static str {
        self.api().plural
    }

    /// The kind, such as `WorkloadEntry`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        self.api().kind
    }

    /// The group, such as `networking.istio.io`; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        self.api().group
    }

    /// Group and version, such as `networking.istio.io/v1`. All groups have the one version.
    #[must_use]
    pub fn api_version(self) -> String {
        let group = self.group();
        if group.is_empty() { VERSION.to_owned() } else { format!("{group}/{VERSION}") }
    }

    /// `workloadentries.networking.istio.io`, as messages name a resource.
    pub(super) fn full(self) -> String {
        let Api { plural, group, .. } = self.api();
        if group.is_empty() { (*plural).to_owned() } else { format!("{plural}.{group}") }
    }

    /// `WorkloadEntry.networking.istio.io`, as messages name a kind.
    pub(super) fn full_kind(self) -> String {
        let Api { kind, group, .. } = self.api();
        if group.is_empty() { (*kind).to_owned() } else { format!("{kind}.{group}") }
    }

    pub(super) fn is_namespaced(self) -> bool {
        self.api().scope == Scope::Namespaced
    }

    /// True for the kinds that Istio defines.
    pub(super) fn is_custom(self) -> bool {
        [GROUP, SECURITY].contains(&self.group())
    }

    pub(super) fn find(group: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.group() == group && one.plural() == plural)
    }
}

static AUTHORIZATION_POLICIES: Api = Api {
    plural: "authorizationpolicies",
    kind: "AuthorizationPolicy",
    group: SECURITY,
    short: &["ap"],
    scope: Scope::Namespaced,
    columns: &[("Action", "/spec/action")],
};
static CONFIG_MAPS: Api = Api {
    plural: "configmaps",
    kind: "ConfigMap",
    group: CORE,
    short: &["cm"],
    scope: Scope::Namespaced,
    columns: &[],
};
static EVENTS: Api = Api {
    plural: "events",
    kind: "Event",
    group: CORE,
    short: &["ev"],
    scope: Scope::Namespaced,
    columns: &[],
};
static MUTATING_WEBHOOK_CONFIGURATIONS: Api = Api {
    plural: "mutatingwebhookconfigurations",
    kind: "MutatingWebhookConfiguration",
    group: ADMISSION,
    short: &[],
    scope: Scope::Cluster,
    columns: &[],
};
static NAMESPACES: Api = Api {
    plural: "namespaces",
    kind: "Namespace",
    group: CORE,
    short: &["ns"],
    scope: Scope::Cluster,
    columns: &[("Status", "/status/phase")],
};
static PEER_AUTHENTICATIONS: Api = Api {
    plural: "peerauthentications",
    kind: "PeerAuthentication",
    group: SECURITY,
    short: &["pa"],
    scope: Scope::Namespaced,
    columns: &[("Mode", "/spec/mtls/mode")],
};
static ROLE_BINDINGS: Api = Api {
    plural: "rolebindings",
    kind: "RoleBinding",
    group: RBAC,
    short: &[],
    scope: Scope::Namespaced,
    columns: &[("Role", "/roleRef/name")],
};
static ROLES: Api = Api {
    plural: "roles",
    kind: "Role",
    group: RBAC,
    short: &[],
    scope: Scope::Namespaced,
    columns: &[],
};
static SECRETS: Api = Api {
    plural: "secrets",
    kind: "Secret",
    group: CORE,
    short: &[],
    scope: Scope::Namespaced,
    columns: &[("Type", "/type")],
};
static SERVICE_ACCOUNTS: Api = Api {
    plural: "serviceaccounts",
    kind: "ServiceAccount",
    group: CORE,
    short: &["sa"],
    scope: Scope::Namespaced,
    columns: &[],
};
static SERVICE_ENTRIES: Api = Api {
    plural: "serviceentries",
    kind: "ServiceEntry",
    group: GROUP,
    short: &["se"],
    scope: Scope::Namespaced,
    columns: &[
        ("Hosts", "/spec/hosts"),
        ("Location", "/spec/location"),
        ("Resolution", "/spec/resolution"),
    ],
};
static SERVICES: Api = Api {
    plural: "services",
    kind: "Service",
    group: CORE,
    short: &["svc"],
    scope: Scope::Namespaced,
    columns: &[],
};
static VALIDATING_ADMISSION_POLICIES: Api = Api {
    plural: "validatingadmissionpolicies",
    kind: "ValidatingAdmissionPolicy",
    group: ADMISSION,
    short: &[],
    scope: Scope::Cluster,
    columns: &[],
};
static VALIDATING_ADMISSION_POLICY_BINDINGS: Api = Api {
    plural: "validatingadmissionpolicybindings",
    kind: "ValidatingAdmissionPolicyBinding",
    group: ADMISSION,
    short: &[],
    scope: Scope::Cluster,
    columns: &[],
};
static WORKLOAD_ENTRIES: Api = Api {
    plural: "workloadentries",
    kind: "WorkloadEntry",
    group: GROUP,
    short: &["we"],
    scope: Scope::Namespaced,
    columns: &[("Address", "/spec/address")],
};
static WORKLOAD_GROUPS: Api = Api {
    plural: "workloadgroups",
    kind: "WorkloadGroup",
    group: GROUP,
    short: &["wg"],
    scope: Scope::Namespaced,
    columns: &[],
};

/// The API group of the registry's objects.
pub const GROUP: &str = "networking.istio.io";
/// The API version of the registry's objects.
pub const API_VERSION: &str = "networking.istio.io/v1";
/// The one version of all groups.
pub(super) const VERSION: &str = "v1";
const CORE: &str = "";
const SECURITY: &str = "security.istio.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
