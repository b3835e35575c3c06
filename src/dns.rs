//! Names for applications: those of the mesh from istiod's name table, everything else from the
//! host's resolvers. It never decides which queries arrive here; the redirect rules do.
//!
//! Answers have the meaning of Istio's DNS proxy (`pkg/dns/client`), with these differences: all
//! search domains count; the last table is kept on disk, so that names outlive a restart without a
//! control plane; queries for other types of a mesh name's addresses (HTTPS, SVCB) are answered
//! with nothing instead of asking the world; the host's resolvers are used from the first moment,
//! are read anew when they change, and one that fails is not asked for a while; what they said is
//! kept for a short time, and for longer when none of them answers (RFC 8767).

mod answer;
mod cache;
mod clients;
mod exchange;
mod forward;
mod probe;
mod resolvers;
mod serve;
mod server;
mod shares;
mod state;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::cidr::Cidr;

pub use answer::{Question, Reply, Transport, answer_packet};
pub use probe::{Heard, probe};
pub use resolvers::parse as parse_resolv_conf;
pub use server::{Doors, Handle, KeptDoor, OpenError, Server};
pub use state::DnsState;
pub use table::Table;

/// How names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where queries arrive, by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The addresses that are answered beside this machine's own.
    pub allow_from: Vec<Cidr>,
    /// Who answers for names that the mesh does not have.
    pub upstreams: Upstreams,
    /// The domain of the workload in its cluster, such as `vms.svc.cluster.local`.
    pub domain: String,
    /// Where the last table is kept.
    pub last_table: PathBuf,
}

/// Who answers for names that the mesh does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// The resolvers of a resolv.conf, which is read anew when it changes.
    ResolvConf(PathBuf),
    /// These.
    Fixed(Vec<SocketAddr>),
}

/// The limit for an answer from the resolvers, all tries together.
const FORWARD_LIMIT: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests;
