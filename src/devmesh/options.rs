//! What kind of mesh it shall be.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::pki::DAY;
use super::policy::MutualTls;
use crate::base::clock::{self, SharedClock};

/// What kind of mesh it shall be. The default is istiod's.
#[derive(Clone)]
pub struct Options {
    /// The directory with objects and keys; `None`: they are gone with the mesh.
    pub state: Option<PathBuf>,
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// The only cluster that a token's bearer may claim to be in.
    pub cluster_id: String,
    /// The mesh's name, for join directories.
    pub mesh_id: String,
    /// The lifetime of certificates where none is asked for.
    pub default_ttl: Duration,
    /// The longest lifetime that may be asked for.
    pub max_ttl: Duration,
    /// True: an intermediate signs, and is part of every chain.
    pub intermediate: bool,
    /// Where istiod listens; port 0 for one of the system's choice. A loopback or
    /// a private address.
    pub listen: SocketAddr,
    /// Where the Kubernetes API listens, likewise.
    pub kube_listen: SocketAddr,
    /// Where the administrator's door is, if there is one: plain HTTP.
    pub admin_listen: Option<SocketAddr>,
    /// What workloads ask of their callers where no PeerAuthentication says it.
    pub mutual_tls: MutualTls,
    /// How long a disconnected machine's entry is left.
    pub grace: Duration,
    /// How often such entries are swept away; `None`: only by [`super::Mesh::sweep`].
    pub sweep_every: Option<Duration>,
    /// The shortest lifetime of a token that may be asked of the Kubernetes API.
    pub least_token_life: Duration,
    /// The longest lifetime that such a token is given, whatever is asked for.
    pub longest_token_life: Duration,
    /// When the Kubernetes API ends a watch, whatever is asked for.
    pub longest_watch: Duration,
    /// The port of the machines' status servers, where each is asked every second how it is;
    /// `None`: nobody is asked.
    pub status_port: Option<u16>,
    /// The clock of certificates, tokens and objects.
    pub clock: SharedClock,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            state: None,
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            mesh_id: "devmesh".to_owned(),
            default_ttl: DAY,
            max_ttl: 90 * DAY,
            intermediate: false,
            listen: any,
            kube_listen: any,
            admin_listen: None,
            mutual_tls: MutualTls::Strict,
            grace: Duration::from_secs(10),
            sweep_every: None,
            least_token_life: Duration::from_secs(600),
            longest_token_life: 365 * DAY,
            // The API server ends one after half an hour to an hour.
            longest_watch: Duration::from_secs(1800),
            status_port: None,
            clock: clock::system(),
        }
    }
}
