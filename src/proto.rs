//! Messages of the protocols that the agent speaks: generated code, and what reads them within limits.
//!
//! `src/proto/gen` is made from `src/proto/idl` by `make gen`; `tests/proto_bootstrap.rs` fails
//! when the two differ.
#![allow(
    missing_docs,
    unnameable_types,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    clippy::too_many_lines,
    clippy::use_self,
    reason = "generated code"
)]

/// The encoding of messages that hold secrets.
pub mod codec;
/// The fields of a message without its decoding.
pub mod fields;
/// Istio's name table within limits.
pub mod names;

/// Envoy's aggregated discovery service and its messages.
#[path = "proto/gen/envoy.service.discovery.v3.rs"]
#[rustfmt::skip]
pub mod discovery;

/// Envoy's secret discovery service.
#[path = "proto/gen/envoy.service.secret.v3.rs"]
#[rustfmt::skip]
pub mod sds;

/// Envoy's TLS secrets.
#[path = "proto/gen/envoy.extensions.transport_sockets.tls.v3.rs"]
#[rustfmt::skip]
pub mod tls;

/// Istio's certificate service.
#[path = "proto/gen/istio.v1.auth.rs"]
#[rustfmt::skip]
pub mod istio_ca;

/// Istio's name table.
#[path = "proto/gen/istio.networking.nds.v1.rs"]
#[rustfmt::skip]
pub mod nds;

/// SPIFFE's Workload API. Its package has no name.
#[path = "proto/gen/_.rs"]
#[rustfmt::skip]
pub mod spiffe;

/// Envoy's configuration, as far as the development mesh sends it.
#[cfg(feature = "devmesh")]
#[path = "proto/gen/vm_agent.envoy.rs"]
#[rustfmt::skip]
pub mod envoy;
