//! The kinds of objects that the Kubernetes API serves, and how it calls them. What they mean is
//! not known here.

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Istio's AuthorizationPolicy.
    AuthorizationPolicies,
    /// Istio's PeerAuthentication.
    PeerAuthentications,
    /// Istio's ServiceEntry.
    ServiceEntries,
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
    pub(super) version: &'static str,
    /// What kubectl takes for the plural.
    pub(super) short: &'static [&'static str],
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::AuthorizationPolicies,
        Self::PeerAuthentications,
        Self::ServiceEntries,
        Self::WorkloadEntries,
        Self::WorkloadGroups,
    ];

    pub(super) fn api(self) -> &'static Api {
        match self {
            Self::AuthorizationPolicies => &AUTHORIZATION_POLICIES,
            Self::PeerAuthentications => &PEER_AUTHENTICATIONS,
            Self::ServiceEntries => &SERVICE_ENTRIES,
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

    /// Group and version, such as `networking.istio.io/v1`.
    #[must_use]
    pub fn api_version(self) -> String {
        let Api { group, version, .. } = self.api();
        if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") }
    }

    /// `workloadentries.networking.istio.io`, as messages name a resource.
    pub(super) fn full(self) -> String {
        let Api { plural, group, .. } = self.api();
        if group.is_empty() { (*plural).to_owned() } else { format!("{plural}.{group}") }
    }

    pub(super) fn named(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.plural() == plural)
    }
}

static AUTHORIZATION_POLICIES: Api = Api {
    plural: "authorizationpolicies",
    kind: "AuthorizationPolicy",
    group: SECURITY,
    version: "v1",
    short: &["ap"],
};
static PEER_AUTHENTICATIONS: Api = Api {
    plural: "peerauthentications",
    kind: "PeerAuthentication",
    group: SECURITY,
    version: "v1",
    short: &["pa"],
};
static SERVICE_ENTRIES: Api = Api {
    plural: "serviceentries",
    kind: "ServiceEntry",
    group: GROUP,
    version: "v1",
    short: &["se"],
};
static WORKLOAD_ENTRIES: Api = Api {
    plural: "workloadentries",
    kind: "WorkloadEntry",
    group: GROUP,
    version: "v1",
    short: &["we"],
};
static WORKLOAD_GROUPS: Api = Api {
    plural: "workloadgroups",
    kind: "WorkloadGroup",
    group: GROUP,
    version: "v1",
    short: &["wg"],
};

/// The API group of the registry's objects.
pub const GROUP: &str = "networking.istio.io";
/// The API version of the registry's objects.
pub const API_VERSION: &str = "networking.istio.io/v1";
const SECURITY: &str = "security.istio.io";
