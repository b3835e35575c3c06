//! The snapshot: plain data, versioned, without a field that could hold a secret.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::credential::{self as ladder, CredentialView, seconds_until};
use crate::base::backoff::Retry;
use crate::base::clock::{self, SharedClock, Skew, SkewGauge, rfc3339};
use crate::base::trouble::Trouble;
use crate::base::{printable, redact};
use crate::capture::CaptureState;
use crate::credential;
use crate::dns::{self, DnsState};
use crate::envoy::{ProxyPhase, ProxyState};
use crate::health;
use crate::identity::IssuedIdentity;
use crate::platform::FactsState;
use crate::registry::{RegistrationPhase, RegistrationState};
use crate::sds::Counters;
use crate::secrets::RenewalState;
use crate::workload::Workload;
use crate::xds::UpstreamState;

/// The version of the JSON form; it grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// Where the agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Waiting for its first certificate.
    Certifying,
    /// Waiting for the registration.
    Registering,
    /// Waiting for the proxy.
    Starting,
    /// In the mesh.
    Ready,
    /// In the mesh, but taken out of traffic.
    Drained,
    /// On its way out.
    Draining,
}

/// The agent at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The agent's version.
    pub version: &'static str,
    /// The agent's process.
    pub pid: u32,
    /// Where it stands.
    pub phase: Phase,
    /// In the mesh: valid identity, registered, proxy ready.
    pub ready: bool,
    /// Who it claims to be.
    pub workload: WorkloadView,
    /// What is known of the machine and its cloud.
    pub facts: FactsState,
    /// Its certificate.
    pub identity: IdentityView,
    /// Certificate and tokens.
    pub credential: CredentialView,
    /// The line to istiod.
    pub control_plane: ControlPlaneView,
    /// The configuration that it was started with, and what was read since.
    pub configuration: ConfigurationState,
    /// Its WorkloadEntry.
    pub registration: RegistrationState,
    /// Envoy.
    pub proxy: ProxyState,
    /// The host's redirect rules.
    pub capture: CaptureState,
    /// Names for applications.
    pub dns: DnsState,
    /// The application.
    pub health: health::State,
    /// Secrets given to Envoy.
    pub sds: SdsView,
    /// This machine's clock beside others', where somebody told the time.
    pub clock: Option<Skew>,
    /// How long the start took.
    pub timings: Timings,
    /// All that is wrong now, by room.
    pub conditions: Vec<Condition>,
}

/// Who the machine claims to be.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadView {
    name: String,
    namespace: String,
    service_account: String,
    address: String,
    network: String,
    locality: Option<String>,
    labels: std::collections::BTreeMap<String, String>,
}

/// The current certificate and its renewal.
#[derive(Clone, Debug, Serialize)]
pub struct IdentityView {
    /// The SPIFFE ID that the machine has or wants.
    pub id: String,
    /// Whether a certificate is there and valid now.
    pub valid: bool,
    serial: Option<String>,
    issuer: Option<String>,
    key: Option<String>,
    not_before: Option<String>,
    not_after: Option<String>,
    /// Seconds until it expires; negative when it has.
    pub expires_in: Option<i64>,
    /// The renewal loop's report.
    pub renewal: RenewalState,
}

/// The line to istiod.
#[derive(Clone, Debug, Serialize)]
pub struct ControlPlaneView {
    endpoint: String,
    /// Its phase and counters.
    #[serde(flatten)]
    pub upstream: UpstreamState,
}

/// The configuration since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigurationState {
    /// How often it was read again.
    pub reads: u64,
    /// When a good one was read last, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub read_at: Option<SystemTime>,
    /// Settings that have changed and count only after a restart.
    pub restart: Vec<String>,
    /// Why the one that was read last is not taken.
    pub trouble: Option<Trouble>,
}

/// What SDS served.
#[derive(Clone, Debug, Serialize)]
pub struct SdsView {
    /// Streams that were opened.
    pub streams: u64,
    /// Secrets that were sent.
    pub pushes: u64,
    /// Secrets that the proxy refused.
    pub rejected: u64,
}

/// Something that is wrong, and in which room.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    /// `identity`, `credential`, `storage`, `roots`, `clock`, `control-plane`, `configuration`,
    /// `registration`,
    /// `proxy`, `proxy-binary`, `proxy-configuration`, `secrets`, `capture`, `dns`, `facts`.
    pub room: &'static str,
    /// What, since when, and what to do.
    #[serde(flatten)]
    pub trouble: Trouble,
}

/// Milliseconds from the agent's start; absent until it happened.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timings {
    /// To the first valid certificate.
    pub certificate_ms: Option<u64>,
    /// To the registration.
    pub registered_ms: Option<u64>,
    /// To the proxy being ready.
    pub proxy_ready_ms: Option<u64>,
    /// To everything being ready.
    pub ready_ms: Option<u64>,
}

/// The rooms' own reports, from which a snapshot is made at any time.
pub struct Board {
    /// The clock for what is valid now.
    pub clock: SharedClock,
    /// How wrong it is.
    pub skew: SkewGauge,
    /// When the agent started.
    pub started: Instant,
    /// Who the machine claims to be.
    pub workload: watch::Receiver<Arc<Workload>>,
    /// The configuration since the start.
    pub configuration: watch::Receiver<ConfigurationState>,
    /// What is known of the machine and its cloud.
    pub facts: watch::Receiver<FactsState>,
    /// Where istiod is.
    pub endpoint: String,
    /// The vault's current identity.
    pub identity: watch::Receiver<Option<Arc<IssuedIdentity>>>,
    /// The ladder of tokens.
    pub credential: watch::Receiver<credential::State>,
    /// The vault's renewal loop.
    pub renewal: watch::Receiver<RenewalState>,
    /// The relay's counters and phase.
    pub upstream: watch::Receiver<UpstreamState>,
    /// The WorkloadEntry.
    pub registration: watch::Receiver<RegistrationState>,
    /// Envoy.
    pub proxy: watch::Receiver<ProxyState>,
    /// The host's redirect rules.
    pub capture: watch::Receiver<CaptureState>,
    /// Names for applications, where they are answered.
    pub names: Option<dns::Handle>,
    /// The application.
    pub health: watch::Receiver<health::State>,
    /// What SDS served.
    pub sds: Arc<Counters>,
    /// What is wrong with the files of Envoy's secrets.
    pub secret_files: watch::Receiver<Option<Trouble>>,
    /// Set once the agent is on its way out.
    pub draining: watch::Receiver<bool>,
    /// Kept by the agent's timekeeper.
    pub timings: watch::Receiver<Timings>,
}

impl Board {
    /// The agent now as it is shown: without control characters and overlong texts of peers.
    #[must_use]
    pub fn shown(&self) -> serde_json::Value {
        let mut shown = serde_json::to_value(self.snapshot()).unwrap_or_default();
        redact::redact(&mut shown);
        printable::sanitize(&mut shown);
        shown
    }

    /// The agent now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.clock.now();
        let upstream = self.upstream.borrow().clone();
        let configuration = self.configuration.borrow().clone();
        let registration = self.registration.borrow().clone();
        let proxy = self.proxy.borrow().clone();
        let capture = self.capture.borrow().clone();
        let dns = self.names.as_ref().map(dns::Handle::snapshot).unwrap_or_default();
        let identity = self.identity(now);
        let certificate = self.identity.borrow().clone();
        let tokens = self.credential.borrow().clone();
        let tokens_trouble = ladder::trouble(&tokens, certificate.as_deref(), now);
        let settled = registration.is_settled() && capture.is_settled();
        let phase = self.phase(&identity, &registration, &proxy, settled);
        let facts = self.facts.borrow().clone();
        let secret_files = self.secret_files.borrow().clone();
        let clock = self.skew.now(now);
        let conditions = wrong([
            ("identity", &identity.renewal.trouble),
            ("credential", &tokens_trouble),
            ("storage", &identity.renewal.storage_trouble),
            ("roots", &identity.renewal.roots_trouble),
            ("clock", &clock.and_then(|skew| clock_trouble(&skew))),
            ("control-plane", &upstream.trouble),
            ("proxy-configuration", &upstream.rejected_configuration),
            ("control-plane", &upstream.services.trouble),
            ("configuration", &configuration.trouble),
            ("registration", &registration.trouble),
            ("proxy", &proxy.trouble),
            ("proxy-binary", &proxy.rejected_replacement),
            ("secrets", &secret_files),
            ("capture", &capture.trouble),
            ("dns", &dns.trouble),
            ("facts", &facts.trouble),
        ]);
        Snapshot {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            phase,
            ready: phase == Phase::Ready,
            workload: self.workload(),
            facts,
            identity,
            credential: ladder::view(&tokens, certificate.as_deref(), now),
            control_plane: ControlPlaneView { endpoint: self.endpoint.clone(), upstream },
            configuration,
            registration,
            proxy,
            capture,
            dns,
            health: self.health.borrow().clone(),
            sds: self.sds(),
            clock,
            timings: *self.timings.borrow(),
            conditions,
        }
    }

    /// How long the agent has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn phase(
        &self,
        identity: &IdentityView,
        registration: &RegistrationState,
        proxy: &ProxyState,
        settled: bool,
    ) -> Phase {
        if *self.draining.borrow() {
            Phase::Draining
        } else if !identity.valid {
            Phase::Certifying
        } else if proxy.phase == ProxyPhase::Ready && settled {
            Phase::Ready
        } else if proxy.phase == ProxyPhase::Drained && settled {
            Phase::Drained
        } else if registration.phase == RegistrationPhase::Failed {
            Phase::Registering
        } else {
            Phase::Starting
        }
    }

    fn identity(&self, now: SystemTime) -> IdentityView {
        let current = self.identity.borrow().clone();
        let renewal = self.renewal.borrow().clone();
        IdentityView {
            id: self.workload.borrow().id.to_string(),
            valid: current.as_ref().is_some_and(|identity| identity.is_valid_at(now)),
            serial: current.as_ref().map(|identity| identity.serial().to_owned()),
            issuer: current.as_ref().map(|identity| identity.issuer().to_owned()),
            key: current.as_ref().map(|identity| identity.key_kind().to_owned()),
            not_before: current.as_ref().map(|identity| rfc3339(identity.not_before())),
            not_after: current.as_ref().map(|identity| rfc3339(identity.not_after())),
            expires_in: current.as_ref().map(|identity| seconds_until(identity.not_after(), now)),
            renewal,
        }
    }

    fn workload(&self) -> WorkloadView {
        let workload = self.workload.borrow();
        WorkloadView {
            name: workload.name.clone(),
            namespace: workload.id.namespace().to_string(),
            service_account: workload.id.service_account().to_string(),
            address: workload.address.to_string(),
            network: workload.network.clone(),
            locality: workload.locality.as_ref().map(ToString::to_string),
            labels: workload.labels.clone(),
        }
    }

    fn sds(&self) -> SdsView {
        let counts = self.sds.snapshot();
        SdsView { streams: counts.streams, pushes: counts.pushes, rejected: counts.rejected }
    }
}

/// Certificates and tokens are refused by a clock that is far off, or by everybody else.
fn clock_trouble(skew: &Skew) -> Option<Trouble> {
    (skew.certain() > FAR_OFF).then(|| Trouble {
        what: format!("this machine's clock is {}", skew.words()),
        hint: Some("set it: `timedatectl set-ntp true`".to_owned()),
        // A time service may do so any moment.
        retry: Retry::Soon,
        since: skew.measured_at,
    })
}

fn wrong<const N: usize>(rooms: [(&'static str, &Option<Trouble>); N]) -> Vec<Condition> {
    let wrong = rooms.into_iter().filter_map(|(room, trouble)| Some((room, trouble.clone()?)));
    wrong.map(|(room, trouble)| Condition { room, trouble }).collect()
}

/// istiod's own allowance is two minutes.
const FAR_OFF: Duration = Duration::from_secs(60);
