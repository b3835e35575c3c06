//! Joining: a source is read and translated, and its parts are placed on the host, all or none.

mod istioctl;
mod layout;
mod shell;

use secrecy::SecretString;
use serde_json::Value;

use crate::base::problem::Problem;

pub use istioctl::read_directory;
pub use layout::{Files, Layout, wipe};

/// What a join source says.
#[derive(Debug)]
pub struct Source {
    /// Settings, in the form of `config.yaml`.
    pub document: Value,
    /// The mesh's roots, PEM.
    pub root_pem: Option<String>,
    /// The token.
    pub token: Option<SecretString>,
    /// What is strange, but no error.
    pub warnings: Vec<Problem>,
}
