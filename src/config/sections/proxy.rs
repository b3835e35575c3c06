//! `proxy`: Envoy.

use std::path::{Component, PathBuf};
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
    /// The directories below which files of certificates and keys are served to it.
    pub secret_directories: Vec<PathBuf>,
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
        let secret_directories = secret_directories(reader);
        Some(Self {
            binary,
            user,
            log_level: log_level?,
            admin_port: admin_port.and_then(|port| u16::try_from(port).ok()),
            concurrency: concurrency.and_then(|workers| u32::try_from(workers).ok()),
            termination_drain,
            extra_args,
            secret_directories,
        })
    }
}

fn secret_directories(reader: &mut Reader<'_>) -> Vec<PathBuf> {
    const SETTING: &str = "proxy.secretDirectories";
    let directories = reader.list(SETTING, SECRET_DIRECTORIES);
    let directories: Vec<PathBuf> = directories.into_iter().map(PathBuf::from).collect();
    let is_plain = |path: &&PathBuf| {
        path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
    };
    if let Some(wrong) = directories.iter().find(|path| !is_plain(path)) {
        let what = format!("{wrong:?} is not an absolute path without `..`");
        reader.wrong(SETTING, what);
    }
    if directories.is_empty() {
        let what = "expected at least one directory";
        reader.wrong(SETTING, what.to_owned());
    }
    directories
}

/// Where Istio's documentation and its agent on virtual machines keep certificates, where Kubernetes
/// and CSI drivers mount them, and the distributions' own trust stores (Debian's and Fedora's links in
/// `/etc` lead to the directories below `/usr`).
const SECRET_DIRECTORIES: &str = "/etc/certs,/etc/istio,/var/run/secrets,/run/secrets,/etc/ssl/certs,/etc/pki,/usr/share/ca-certificates,/usr/local/share/ca-certificates,/usr/share/pki";
