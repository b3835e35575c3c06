//! The ladder of credentials for istiod: bearer tokens from several sources, tried in order, so
//! that a machine whose certificate has ended finds its way back alone.

mod api;
mod asked;
mod command;
mod error;
mod gce;
mod keeper;
mod kept;
mod kubernetes;
mod ladder;
mod pace;
mod state;
mod token;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;
use serde::Serialize;

pub use command::CommandError;
pub use error::{LadderError, RungError, SpentRung};
pub use gce::MetadataError;
pub use ladder::{Bearer, Ladder};
pub use state::{Phase, RungState, State};
pub use token::{Token, TokenError};

use crate::identity::SpiffeId;

/// The tokens that may be used, and what they must be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The identity that a token must belong to.
    pub id: SpiffeId,
    /// The audience that a token must name.
    pub audience: String,
    /// Where tokens come from, the best first.
    pub sources: Vec<Source>,
    /// The token for the Kubernetes API that lies in our own state directory, and is ours to renew.
    pub own_kube_token: PathBuf,
}

impl Config {
    /// No token at all.
    #[must_use]
    pub fn without_tokens(id: SpiffeId) -> Self {
        let (audience, own_kube_token) = (String::new(), PathBuf::new());
        Self { id, audience, sources: Vec::new(), own_kube_token }
    }
}

/// Where a token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, read again at every use.
    TokenFile(PathBuf),
    /// The Kubernetes API makes one (TokenRequest), where we have a credential for it.
    Kubernetes {
        /// How long it shall live. The server may give less.
        life: Duration,
        /// Where it is kept over a restart.
        kept: Option<PathBuf>,
    },
    /// A program prints one.
    Command(Vec<String>),
    /// Google's metadata server makes one.
    Gce {
        /// Where the metadata server is.
        address: Authority,
    },
    /// A file that the platform keeps, read again at every use.
    OidcTokenFile(PathBuf),
}

/// A step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// [`Source::TokenFile`].
    TokenFile,
    /// [`Source::Kubernetes`].
    Kubernetes,
    /// [`Source::Command`].
    Command,
    /// [`Source::Gce`].
    Platform,
    /// [`Source::OidcTokenFile`].
    OidcTokenFile,
}

impl Source {
    /// Its place on the ladder.
    #[must_use]
    pub fn rung(&self) -> Rung {
        match self {
            Self::TokenFile(_) => Rung::TokenFile,
            Self::Kubernetes { .. } => Rung::Kubernetes,
            Self::Command(_) => Rung::Command,
            Self::Gce { .. } => Rung::Platform,
            Self::OidcTokenFile(_) => Rung::OidcTokenFile,
        }
    }
}

impl Rung {
    /// Its name in status and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenFile => "token-file",
            Self::Kubernetes => "kubernetes",
            Self::Command => "command",
            Self::Platform => "platform",
            Self::OidcTokenFile => "oidc-token-file",
        }
    }

    /// The setting that makes it one of the ladder's.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match self {
            Self::TokenFile => "credential.tokenFile",
            Self::Kubernetes => "credential.kubernetes",
            Self::Command => "credential.command",
            Self::Platform => "credential.platform",
            Self::OidcTokenFile => "credential.oidcTokenFile",
        }
    }

    /// Whether we can have a new token made when the old one ends.
    #[must_use]
    pub fn is_renewed(self) -> bool {
        matches!(self, Self::Kubernetes | Self::Command | Self::Platform)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
