//! A SPIFFE Workload API on this machine, such as SPIRE's agent: who asks it is known to it by the
//! socket, and gets certificates with their keys. It verifies nothing.

mod client;
mod socket;
mod svid;

pub use client::{Updates, WorkloadApiError};
pub use socket::{Socket, SocketError};
pub use svid::{SvidError, choose};

/// What a Workload API pushes.
pub use crate::proto::spiffe::X509svidResponse as Answer;
