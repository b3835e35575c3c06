//! Why a rung has no token, and what it says when no rung has one.

use std::time::SystemTime;

use super::{CommandError, MetadataError, Phase, Rung, Token, TokenError};
use crate::base::backoff::Retry;
use crate::base::clock::{parse_rfc3339, rfc3339};
use crate::base::fsio::FileError;
use crate::identity::SpiffeId;
use crate::kube::KubeError;

/// Why a rung has no token. Never holds a part of one.
#[derive(Debug, thiserror::Error)]
pub enum RungError {
    /// The token is known to be useless.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The Kubernetes API did not make one.
    #[error("no token from the Kubernetes API")]
    Kube(#[source] KubeError),
    /// The program did not print one.
    #[error("no token from the program")]
    Command(#[from] CommandError),
    /// The metadata server did not make one.
    #[error("no token from the metadata server")]
    Metadata(#[from] MetadataError),
    /// There is one, but it cannot be kept.
    #[error("cannot keep the new token")]
    Storage(#[source] FileError),
    /// istiod did not accept it.
    #[error("istiod did not accept its token: {message}")]
    Refused {
        /// istiod's words.
        message: String,
    },
}

impl RungError {
    /// What the rung is then.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self {
            Self::Token(TokenError::Expired { .. }) => Phase::Spent,
            Self::Kube(KubeError::ExpiredToken { .. }) => Phase::Spent,
            Self::Token(TokenError::File(error)) if error.is_missing() => Phase::Absent,
            _ => Phase::Failing,
        }
    }

    /// Since when it has been so, where the error tells.
    #[must_use]
    pub fn since(&self) -> Option<SystemTime> {
        match self {
            Self::Token(TokenError::Expired { end, .. }) => Some(*end),
            Self::Kube(KubeError::ExpiredToken { expired_at, .. }) => parse_rfc3339(expired_at),
            _ => None,
        }
    }

    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Kube(error) => error.retry(),
            Self::Command(error) => error.retry(),
            Self::Metadata(error) => error.retry(),
            Self::Storage(_) => Retry::Soon,
            Self::Token(_) | Self::Refused { .. } => Retry::Later,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self, rung: Rung, id: &SpiffeId, audience: &str) -> Option<String> {
        let (namespace, account) = (id.namespace().as_str(), id.service_account().as_str());
        match self {
            Self::Kube(error) => error.hint(),
            Self::Command(error) => error.hint(),
            Self::Metadata(error) => error.hint(),
            Self::Storage(_) => Some("free some space or mend the directory".to_owned()),
            Self::Token(_) | Self::Refused { .. } if rung == Rung::TokenFile => Some(format!(
                "put a new token into the file that credential.tokenFile names (`kubectl create \
                 token {account} -n {namespace} --audience {audience}`), or run `vm-agent join` \
                 with a new bundle or directory"
            )),
            Self::Token(_) => {
                Some(format!("check {}, credential.audience and workload", rung.setting()))
            }
            Self::Refused { .. } => {
                Some(format!("check {}, mesh.clusterId and istiod's log", rung.setting()))
            }
        }
    }
}

/// A rung without a usable token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpentRung {
    /// Which.
    pub rung: Rung,
    /// Why.
    pub why: String,
    /// Since when.
    pub since: SystemTime,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether it can pass by itself.
    pub retry: Retry,
}

/// There is no token for istiod.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LadderError {
    /// No source of tokens is configured, and there is no valid certificate either.
    #[error("there is neither a valid certificate nor a token")]
    None,
    /// The token cannot be sent.
    #[error("the {rung} token has characters that no token has")]
    Characters {
        /// Whose it is.
        rung: Rung,
    },
    /// No source has a usable one.
    #[error("no token is usable: {}", listed(rungs))]
    Spent {
        /// All configured rungs, in order.
        rungs: Vec<SpentRung>,
    },
}

fn listed(rungs: &[SpentRung]) -> String {
    let one = |spent: &SpentRung| {
        format!("{} (since {}): {}", spent.rung.setting(), rfc3339(spent.since), spent.why)
    };
    rungs.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl LadderError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Spent { rungs } if rungs.iter().any(|spent| spent.retry == Retry::Soon) => {
                Retry::Soon
            }
            _ => Retry::Later,
        }
    }

    /// What to do about it: one of these is enough.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let Self::Spent { rungs } = self else { return Some(JOIN.to_owned()) };
        let mut hints: Vec<&str> = Vec::new();
        for hint in rungs.iter().filter_map(|spent| spent.hint.as_deref()) {
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
        if hints.is_empty() { Some(JOIN.to_owned()) } else { Some(hints.join("; or ")) }
    }
}

/// A token with the rung that it is from: an error of the token alone does not say whose it is.
pub(super) fn checked(
    token: Token,
    id: &SpiffeId,
    audience: &str,
    now: SystemTime,
) -> Result<Token, RungError> {
    token.check(id, audience, now)?;
    Ok(token)
}

const JOIN: &str = "make a new credential with `vm-agent bundle create` or `istioctl x workload \
                    entry configure`, and run `vm-agent join` again with it";
