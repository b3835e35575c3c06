//! vm-agent brings a virtual machine into an Istio mesh and keeps it there.
//!
//! Rooms in layer order, each of which may import only from the ones above it
//! (`tests/architecture.rs` holds the exact table; `docs/architecture.md` explains it).

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests put files and faults where they need them")
)]

pub mod base;
pub mod proto;

pub mod capture;
pub mod dns;
pub mod health;
pub mod identity;
pub mod platform;
pub mod systemd;

pub mod kube;
pub mod spiffe;
pub mod workload;

pub mod credential;

pub mod controlplane;

pub mod ca;
pub mod envoy;
pub mod join;
pub mod operator;
pub mod registry;
pub mod xds;

pub mod secrets;

pub mod sds;

pub mod config;
pub mod status;

pub mod agent;

pub mod doctor;

pub mod cli;

#[cfg(feature = "devmesh")]
pub mod devmesh;
