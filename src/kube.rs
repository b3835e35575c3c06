//! The few calls to the Kubernetes API that the agent makes, and the credentials for them.

mod access;
mod auth;
mod client;
mod elsewhere;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod kubeconfig;
mod watch;

pub use auth::Auth;
pub use client::{Client, IssuedToken, Object, Version};
pub use error::{FieldConflict, KubeError, Verb};
pub use kubeconfig::{Chosen, KubeconfigError, Kubeconfigs, from_kubeconfig, from_kubeconfigs};
pub use watch::{Watch, WatchEvent};

use std::path::PathBuf;

/// Where the API server is, whom we trust there, and who we are to it.
#[derive(Debug)]
pub struct Config {
    /// `https://host:port`.
    pub server: String,
    /// PEM roots of the server.
    pub ca: Ca,
    /// Our credential.
    pub auth: Auth,
    /// The name that the server's certificate carries, where the URL has another.
    pub tls_server_name: Option<String>,
}

/// The roots of the API server.
#[derive(Clone, Debug)]
pub enum Ca {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}
