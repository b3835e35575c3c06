//! `proxy`: Envoy.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::reader::Reader;

/// How Envoy is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its binary; by default the first of `$PATH`, then `/usr/local/bin/envoy`.
    pub binary: Option<PathBuf>,
    /// Whom it runs as.
    pub user: Option<String>,
    /// Its log level, with components as Istio writes it.
    pub log_level: String,
    /// The port of its admin interface, where it is not the ProxyConfig's.
    pub admin_port: Option<u16>,
    /// Its worker threads, where they are not the ProxyConfig's.
    pub concurrency: Option<u32>,
    /// How long it serves what it has when it is stopped, where it is not the ProxyConfig's.
    pub termination_drain: Option<Duration>,
    /// Further arguments.
    pub extra_args: Vec<String>,
}

impl Proxy {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let binary = reader.path("proxy.binary", "");
        let user = reader.text("proxy.user", "");
        let log_level = reader.text("proxy.logLevel", "warning");
        let admin_port = reader.number("proxy.adminPort", None, 1..=65_535);
        let concurrency = reader.number("proxy.concurrency", None, 0..=1024);
        let termination_drain = reader.duration("proxy.terminationDrainDuration", "");
        let extra_args = reader.texts("proxy.extraArgs");
        Some(Self {
            binary,
            user,
            log_level: log_level?,
            admin_port: admin_port.and_then(|port| u16::try_from(port).ok()),
            concurrency: concurrency.and_then(|workers| u32::try_from(workers).ok()),
            termination_drain,
            extra_args,
        })
    }
}
