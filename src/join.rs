//! Joining: a source is read and translated, and its parts are placed on the host, all or none.

mod istioctl;
mod layout;
mod shell;

use std::path::PathBuf;

use secrecy::SecretString;
use serde_json::Value;

use crate::base::problem::Problem;

pub use istioctl::read_directory;
pub use layout::{Files, Layout, wipe};

/// What a join source says.
#[derive(Debug)]
pub struct Source {
    /// Where it lies.
    pub directory: PathBuf,
    /// Settings, in the form of `config.yaml`.
    pub document: Value,
    /// The mesh's roots, PEM.
    pub root_pem: Option<String>,
    /// The token.
    pub token: Option<SecretString>,
    /// What is strange, but no error.
    pub warnings: Vec<Problem>,
}

impl Source {
    /// The file that a setting came from.
    #[must_use]
    pub fn origin(&self, setting: &[String]) -> String {
        let setting: Vec<&str> = setting.iter().map(String::as_str).collect();
        let file = match setting.as_slice() {
            ["mesh", "connectTo", ..] => "hosts",
            ["mesh", "discoveryAddress" | "proxyConfig", ..] => "mesh.yaml",
            [] => "istio-token",
            _ => "cluster.env",
        };
        self.directory.join(file).display().to_string()
    }
}
