//! One check and what it found.

use serde::Serialize;

/// A check. The order here is the order of the report: what stands before is looked at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Id {
    /// The configuration file and every setting.
    Configuration,
    /// The state directory: space, and whether it can be written.
    Disk,
    /// The machine's address, and settings that facts complete.
    Address,
    /// istiod's name.
    Dns,
    /// A connection to istiod.
    Tcp,
    /// Whether TLS is spoken there.
    Tls,
    /// This machine's clock, and the times of istiod's certificate.
    Clock,
    /// The mesh's root, and whether istiod's certificate leads to it.
    Root,
    /// The name in istiod's certificate.
    ServerName,
    /// The Kubernetes API: reached, trusted, and it knows us.
    Kubernetes,
    /// The identity kept on disk.
    Identity,
    /// The token for istiod: there, alive, for its audience.
    Token,
    /// Whose the token is: service account and namespace.
    Account,
    /// What we may do there.
    Rights,
    /// The WorkloadGroup.
    Group,
    /// The WorkloadEntry.
    Entry,
    /// The proxy's binary.
    Proxy,
    /// The proxy's user.
    User,
    /// The ports that agent and proxy need.
    Ports,
    /// The service of systemd.
    Unit,
    /// The daemon: running, dead, or silent.
    Daemon,
    /// Which of Istio's filters the proxy's binary knows: what an istiod may not need.
    Flavour,
    /// Whether the daemon gets certificates.
    Certificate,
    /// Whether the registration stands.
    Registration,
    /// The configuration stream to istiod.
    Stream,
    /// The proxy's process and its configuration.
    ProxyProcess,
    /// The redirect rules.
    Capture,
    /// DNS for applications.
    Names,
    /// The application's health.
    Health,
    /// Whether the machine is in the mesh.
    Ready,
}

impl Id {
    /// All checks in order.
    pub const ALL: [Self; 30] = [
        Self::Configuration,
        Self::Disk,
        Self::Address,
        Self::Dns,
        Self::Tcp,
        Self::Tls,
        Self::Clock,
        Self::Root,
        Self::ServerName,
        Self::Kubernetes,
        Self::Identity,
        Self::Token,
        Self::Account,
        Self::Rights,
        Self::Group,
        Self::Entry,
        Self::Proxy,
        Self::User,
        Self::Ports,
        Self::Unit,
        Self::Daemon,
        Self::Flavour,
        Self::Certificate,
        Self::Registration,
        Self::Stream,
        Self::ProxyProcess,
        Self::Capture,
        Self::Names,
        Self::Health,
        Self::Ready,
    ];

    /// Its name in the report, and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Disk => "disk",
            Self::Address => "address",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Clock => "clock",
            Self::Root => "root",
            Self::ServerName => "server-name",
            Self::Identity => "identity",
            Self::Token => "token",
            Self::Account => "account",
            Self::Kubernetes => "kubernetes",
            Self::Rights => "rights",
            Self::Group => "group",
            Self::Entry => "entry",
            Self::Proxy => "proxy",
            Self::Flavour => "flavour",
            Self::User => "user",
            Self::Ports => "ports",
            Self::Unit => "unit",
            Self::Daemon => "daemon",
            Self::Certificate => "certificate",
            Self::Registration => "registration",
            Self::Stream => "stream",
            Self::ProxyProcess => "proxy-process",
            Self::Capture => "capture",
            Self::Names => "names",
            Self::Health => "health",
            Self::Ready => "ready",
        }
    }

    /// The checks without which this one says nothing of its own.
    #[must_use]
    pub fn needs(self) -> &'static [Self] {
        match self {
            Self::Configuration | Self::Disk | Self::Proxy => &[],
            Self::Address | Self::Dns | Self::User | Self::Ports => &[Self::Configuration],
            Self::Tcp => &[Self::Dns],
            Self::Tls => &[Self::Tcp],
            Self::Clock | Self::Root => &[Self::Configuration],
            Self::ServerName => &[Self::Tcp, Self::Tls, Self::Clock, Self::Root],
            Self::Identity | Self::Token => &[Self::Configuration, Self::Disk, Self::Clock],
            Self::Account => &[Self::Token],
            Self::Kubernetes => &[Self::Configuration, Self::Clock],
            Self::Rights => &[Self::Kubernetes],
            Self::Group => &[Self::Kubernetes, Self::Rights],
            Self::Entry => &[Self::Address, Self::Kubernetes, Self::Rights, Self::Group],
            Self::Flavour => &[Self::Proxy],
            Self::Unit => HOST,
            Self::Daemon => {
                &[Self::Configuration, Self::Disk, Self::Ports, Self::Proxy, Self::Unit]
            }
            Self::Certificate => LINE,
            Self::Registration => {
                &[Self::Daemon, Self::Certificate, Self::Rights, Self::Group, Self::Entry]
            }
            Self::Stream => &[Self::Daemon, Self::Certificate, Self::Registration],
            Self::ProxyProcess => &[Self::Daemon, Self::Proxy, Self::User, Self::Stream],
            Self::Capture => {
                &[Self::Configuration, Self::Disk, Self::User, Self::Daemon, Self::ProxyProcess]
            }
            Self::Names => &[Self::Daemon],
            Self::Health => &[Self::Daemon, Self::ProxyProcess],
            Self::Ready => &[
                Self::Daemon,
                Self::Certificate,
                Self::Registration,
                Self::Stream,
                Self::ProxyProcess,
                Self::Capture,
            ],
        }
    }

    fn blame(self) -> Blame {
        match self {
            Self::Configuration | Self::Root | Self::User => Blame::Configuration,
            Self::Disk
            | Self::Address
            | Self::Clock
            | Self::Ports
            | Self::Capture
            | Self::Names => Blame::Host,
            Self::Dns
            | Self::Tcp
            | Self::Tls
            | Self::ServerName
            | Self::Kubernetes
            | Self::Stream => Blame::ControlPlane,
            Self::Identity | Self::Token | Self::Account | Self::Certificate => Blame::Credential,
            Self::Rights | Self::Group | Self::Entry | Self::Registration => Blame::Registration,
            Self::Proxy | Self::Flavour | Self::ProxyProcess => Blame::Proxy,
            Self::Unit | Self::Daemon => Blame::Daemon,
            Self::Health | Self::Ready => Blame::NotReady,
        }
    }
}

/// What the daemon cannot start without.
const HOST: &[Id] = &[Id::Configuration, Id::Disk, Id::Address, Id::Ports, Id::Proxy, Id::User];
/// What a certificate cannot be had without.
const LINE: &[Id] = &[
    Id::Daemon,
    Id::Disk,
    Id::Tcp,
    Id::Tls,
    Id::Clock,
    Id::Root,
    Id::ServerName,
    Id::Token,
    Id::Account,
    Id::Kubernetes,
];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All is as it should be.
    Ok,
    /// Something to know, which does not keep the machine out of the mesh.
    Warning,
    /// It keeps the machine out of the mesh, or will.
    Failed,
    /// There was nothing to check, or a failure before it explains whatever is wrong here.
    Skipped,
}

/// Where the fault lies; it decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The configuration.
    Configuration,
    /// The control plane, or the way to it.
    ControlPlane,
    /// A credential.
    Credential,
    /// No daemon runs, or it does not answer.
    Daemon,
    /// This host.
    Host,
    /// Nothing but that the machine is not ready.
    NotReady,
    /// The proxy.
    Proxy,
    /// The registration.
    Registration,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check.
    pub id: Id,
    /// How it ended.
    pub state: State,
    /// What is so: the cause of a failure, the reason of a skip. Never holds a secret.
    pub cause: String,
    /// What this is known by.
    pub evidence: Vec<String>,
    /// The command or sentence that mends it.
    pub mend: Option<String>,
    /// The failed check for which this one was skipped.
    pub needs: Option<Id>,
    /// Where the fault lies.
    #[serde(skip)]
    pub blame: Blame,
}

impl Finding {
    fn new(id: Id, state: State, cause: impl Into<String>) -> Self {
        let (evidence, mend, needs, blame) = (Vec::new(), None, None, id.blame());
        Self { id, state, cause: cause.into(), evidence, mend, needs, blame }
    }

    pub(in crate::doctor) fn ok(id: Id, what: impl Into<String>) -> Self {
        Self::new(id, State::Ok, what)
    }

    pub(in crate::doctor) fn warning(id: Id, cause: impl Into<String>) -> Self {
        Self::new(id, State::Warning, cause)
    }

    pub(in crate::doctor) fn failed(id: Id, cause: impl Into<String>) -> Self {
        Self::new(id, State::Failed, cause)
    }

    /// There is nothing to check, for this reason.
    pub(in crate::doctor) fn skipped(id: Id, why: impl Into<String>) -> Self {
        Self::new(id, State::Skipped, why)
    }

    /// It says nothing, as that check failed.
    pub(in crate::doctor) fn behind(id: Id, needs: Id) -> Self {
        let cause = format!("not looked at: {} comes first", needs.name());
        Self { needs: Some(needs), ..Self::new(id, State::Skipped, cause) }
    }

    pub(in crate::doctor) fn evidence(mut self, line: impl Into<String>) -> Self {
        self.evidence.push(line.into());
        self
    }

    pub(in crate::doctor) fn mend(mut self, how: impl Into<Option<String>>) -> Self {
        self.mend = how.into();
        self
    }

    pub(in crate::doctor) fn blame(mut self, blame: Blame) -> Self {
        self.blame = blame;
        self
    }
}
