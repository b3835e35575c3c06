//! The few calls to the Kubernetes API that the agent makes, and the credentials for them.

mod auth;
mod client;
mod error;
mod kubeconfig;
mod watch;

pub use auth::Auth;
pub use client::{Client, IssuedToken, Object, Version};
pub use error::{FieldConflict, KubeError, Verb};
pub use kubeconfig::{KubeconfigError, from_kubeconfig};
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
}

/// The roots of the API server.
#[derive(Clone, Debug)]
pub enum Ca {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}
