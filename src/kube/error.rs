//! What the API server said, and what to do about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::base::backoff::Retry;
use crate::base::fsio::FileError;
use crate::identity::ClaimsError;

/// What was asked of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Server-side apply.
    Apply,
    /// Make a new one.
    Create,
    /// Delete.
    Delete,
    /// Read.
    Get,
    /// Read all.
    List,
    /// Make a token of a service account.
    RequestToken,
    /// Follow changes.
    Watch,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apply => "apply",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::List => "list",
            Self::RequestToken => "make a token for",
            Self::Watch => "watch",
        })
    }
}

/// A call that failed. Never holds a token.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The server's URL cannot be used.
    #[error("{found:?} is no Kubernetes API server: expected https://HOST[:PORT]")]
    Server {
        /// The text.
        found: String,
    },
    /// The server's roots, or our certificate, cannot be used.
    #[error("cannot use the TLS settings for the Kubernetes API: {why}")]
    Tls {
        /// What is wrong.
        why: String,
    },
    /// A credential file cannot be read.
    #[error("cannot use the credential for the Kubernetes API")]
    Credential(#[source] FileError),
    /// Our token file holds something that is no token.
    #[error("the token in {} cannot be sent", path.display())]
    MalformedToken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ClaimsError,
    },
    /// Our token is over.
    #[error("the token in {} expired at {expired_at}; this machine's clock says {now}", path.display())]
    ExpiredToken {
        /// The file.
        path: PathBuf,
        /// RFC 3339.
        expired_at: String,
        /// RFC 3339.
        now: String,
    },
    /// The server could not be reached, or hung up.
    #[error("cannot {verb} {what} at {server}")]
    Transport {
        /// What was asked.
        verb: Verb,
        /// Of which object.
        what: String,
        /// Of whom.
        server: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is larger than any that we ask for.
    #[error("the answer to {verb} {what} has more than {limit} bytes")]
    TooLarge {
        /// What was asked.
        verb: Verb,
        /// Of which object.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// The answer is not what was asked for.
    #[error("the Kubernetes API answered {verb} {what} with rubbish")]
    Rubbish {
        /// What was asked.
        verb: Verb,
        /// Of which object.
        what: String,
    },
    /// The server said no.
    #[error("the Kubernetes API refused to {verb} {what}: {message} ({reason}, {code})")]
    Refused {
        /// What was asked.
        verb: Verb,
        /// Of which object.
        what: String,
        /// The HTTP status.
        code: u16,
        /// Kubernetes' reason, such as `Forbidden`.
        reason: String,
        /// The server's words.
        message: String,
        /// When the server asks to come back.
        retry_after: Option<Duration>,
        /// Fields that others own, when an apply was refused for them.
        conflicts: Vec<FieldConflict>,
    },
}

/// A field that an apply would have changed, and who owns it
/// (Kubernetes `apimachinery/pkg/util/managedfields`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldConflict {
    /// Such as `.spec.address`.
    pub field: String,
    /// The owner's name as a field manager; empty when the server does not tell.
    pub manager: String,
}

impl FieldConflict {
    /// The conflict that one cause of a `Status` object tells.
    fn read(cause: &Value) -> Option<Self> {
        let text = |name: &str| cause.get(name).and_then(Value::as_str);
        if text("reason") != Some("FieldManagerConflict") {
            return None;
        }
        let manager = text("message").unwrap_or_default().split('"').nth(1).unwrap_or_default();
        Some(Self { field: text("field")?.to_owned(), manager: manager.to_owned() })
    }
}

impl KubeError {
    /// The refusal that a `Status` object tells, under the HTTP status that it came with.
    pub(super) fn refused(
        verb: Verb,
        what: &str,
        status: &Value,
        code: u16,
        retry_after: Option<Duration>,
    ) -> Self {
        let text = |field: &str| status.get(field).and_then(Value::as_str).map(str::to_owned);
        Self::Refused {
            verb,
            what: what.to_owned(),
            code,
            reason: text("reason").unwrap_or_else(|| "no reason".to_owned()),
            message: text("message").unwrap_or_else(|| "it gave no message".to_owned()),
            retry_after,
            conflicts: conflicts(status),
        }
    }

    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Transport { source, .. } if is_clock(source) => Retry::Soon,
            Self::Transport { source, .. } if is_tls(source) => Retry::Later,
            Self::Transport { .. } => Retry::Soon,
            Self::Refused { code: 410 | 429 | 500..=599, .. } => Retry::Soon,
            // Somebody wrote at the same time.
            Self::Refused { code: 409, reason, conflicts, .. }
                if conflicts.is_empty() && reason == "Conflict" =>
            {
                Retry::Soon
            }
            Self::Credential(_)
            | Self::ExpiredToken { .. }
            | Self::MalformedToken { .. }
            | Self::Refused { .. }
            | Self::Rubbish { .. } => Retry::Later,
            Self::Server { .. } | Self::Tls { .. } | Self::TooLarge { .. } => Retry::Never,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }

    /// The fields for whose owners an apply was refused.
    #[must_use]
    pub fn conflicts(&self) -> &[FieldConflict] {
        if let Self::Refused { conflicts, .. } = self { conflicts } else { &[] }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused { code: 401, .. }
            | Self::ExpiredToken { .. }
            | Self::MalformedToken { .. } => {
                "have a fresh bundle made (`vm-agent bundle create GROUP -n NAMESPACE`) and join with \
                 it, or put a new token (`kubectl create token SERVICE-ACCOUNT -n NAMESPACE`) into the \
                 file that registration.kubernetes.tokenFile names"
            }
            Self::Refused { code: 403, verb: Verb::RequestToken, .. } => {
                "let the service account make its own tokens: a Role with verb create on \
                 serviceaccounts/token and its own name in resourceNames, bound to it"
            }
            Self::Refused { code: 403, .. } => {
                "allow it in the workload's namespace: a Role with verbs get, list, watch, \
                 create, patch, delete on workloadentries of networking.istio.io, bound to the service account"
            }
            Self::Refused { code: 404, .. } => {
                "check the namespace, and that Istio's CRDs are installed (`kubectl get crd \
                 workloadentries.networking.istio.io`)"
            }
            Self::Refused { code: 409, .. } => {
                "somebody else owns these fields; --set registration.force=true takes them over"
            }
            Self::Refused { .. } | Self::Rubbish { .. } | Self::TooLarge { .. } => return None,
            Self::Transport { source, .. } if is_clock(source) => {
                "set this machine's clock (`timedatectl set-ntp true`); if it is right, the API \
                 server's own certificate is over"
            }
            Self::Transport { source, .. } if is_tls(source) => {
                "check registration.kubernetes.caFile: it must hold the root of this API server"
            }
            Self::Transport { .. } | Self::Server { .. } => {
                "check registration.kubernetes.server, and that it can be reached from here"
            }
            Self::Credential(_) | Self::Tls { .. } => "check registration.kubernetes",
        };
        Some(hint.to_owned())
    }
}

fn conflicts(status: &Value) -> Vec<FieldConflict> {
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    causes.into_iter().flatten().filter_map(FieldConflict::read).collect()
}

/// Whether the TLS library refused the server.
fn is_tls(error: &reqwest::Error) -> bool {
    tls_cause(error).is_some()
}

/// Whether the server's certificate is not valid by our clock.
fn is_clock(error: &reqwest::Error) -> bool {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        tls_cause(error),
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        ))
    )
}

fn tls_cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref());
        if let Some(found) = cause.downcast_ref().or(inner) {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refused_apply_names_the_fields_and_their_owners() {
        let cause = |reason: &str, message: &str| json!({"reason": reason, "message": message, "field": ".spec.weight"});
        let status = json!({"reason": "Conflict", "message": "no", "details": {"causes": [
            cause("FieldManagerConflict", "conflict with \"kubectl-edit\" using networking.istio.io/v1 at 2026-01-01T00:00:00Z"),
            cause("FieldManagerConflict", "conflict"),
            cause("FieldValueInvalid", "\"x\""),
        ]}});
        let error = KubeError::refused(Verb::Apply, "workloadentries vms/vm1", &status, 409, None);
        let owners: Vec<_> = error.conflicts().iter().map(|one| one.manager.as_str()).collect();
        assert_eq!(owners, ["kubectl-edit", ""]);
        assert_eq!(error.retry(), Retry::Later);
        let stale = KubeError::refused(Verb::Apply, "x", &json!({"reason": "Conflict"}), 409, None);
        assert_eq!(stale.retry(), Retry::Soon, "somebody wrote at the same time");
    }
}
