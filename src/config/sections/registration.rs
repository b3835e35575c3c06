//! `registration`: who writes the WorkloadEntry, and with which credential.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::config::paths::{KUBE_TOKEN, Paths};
use crate::config::reader::Reader;

/// Who writes the WorkloadEntry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationMode {
    /// istiod, from the WorkloadGroup.
    Istiod,
    /// We, through the Kubernetes API.
    Kubernetes,
    /// Nobody here.
    None,
}

impl FromStr for RegistrationMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "istiod" => Ok(Self::Istiod),
            "kubernetes" => Ok(Self::Kubernetes),
            "none" => Ok(Self::None),
            _ => Err(format!("found {text:?}, expected istiod, kubernetes or none")),
        }
    }
}

/// Where the Kubernetes API is, and our credential for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubernetes {
    /// Named one by one.
    Parts {
        /// `https://host:port`.
        server: String,
        /// Its roots.
        ca_file: PathBuf,
        /// Our token.
        token_file: PathBuf,
    },
    /// By a kubeconfig.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Its context, if not the current one.
        context: Option<String>,
    },
}

/// The WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Who writes it.
    pub mode: RegistrationMode,
    /// Whether it is removed when the agent stops.
    pub remove_on_stop: bool,
    /// Whether fields that others own are taken over.
    pub force: bool,
    /// The Kubernetes API, in that mode.
    pub kubernetes: Option<Kubernetes>,
    /// How long others have to hear that the machine is leaving before its proxy drains.
    pub leave_delay: Duration,
    /// After which absence another machine has lost its name to this one.
    pub take_over_after: Duration,
    /// After which absence entries of this service account are removed; zero for never.
    pub remove_stale_after: Duration,
    /// How long istiod keeps the entry of a machine whose stream has ended (istiod's
    /// `PILOT_WORKLOAD_ENTRY_GRACE_PERIOD`).
    pub grace_period: Duration,
}

impl Registration {
    pub(super) fn read(reader: &mut Reader<'_>, paths: &Paths) -> Option<Self> {
        let mode = reader.parse("registration.mode", "istiod");
        let remove_on_stop = reader.flag("registration.removeOnStop", false);
        let force = reader.flag("registration.force", false);
        let kubernetes = kubernetes(reader, paths, mode == Some(RegistrationMode::Kubernetes));
        let leave_delay = reader.duration_or_zero("registration.leaveDelay", "2s");
        let take_over_after = reader.duration_or_zero("registration.takeOverAfter", "5m");
        let remove_stale_after = reader.duration_or_zero("registration.removeStaleAfter", "72h");
        let grace_period = reader.duration_or_zero("registration.gracePeriod", "10s");
        Some(Self {
            mode: mode?,
            remove_on_stop,
            force,
            kubernetes,
            leave_delay: leave_delay?,
            take_over_after: take_over_after?,
            remove_stale_after: remove_stale_after?,
            grace_period: grace_period?,
        })
    }
}

fn kubernetes(reader: &mut Reader<'_>, paths: &Paths, needed: bool) -> Option<Kubernetes> {
    let server = reader.text("registration.kubernetes.server", "");
    let ca_file = reader.path("registration.kubernetes.caFile", "");
    let token_file = reader.path("registration.kubernetes.tokenFile", "");
    let path = reader.path("registration.kubernetes.kubeconfig", "");
    let context = reader.text("registration.kubernetes.context", "");
    let at = |path: PathBuf| super::below(&paths.config_directory(), &path);
    if !check_server(reader, server.as_deref()) {
        return None;
    }
    let parts = server.is_some() || ca_file.is_some() || token_file.is_some();
    match (path, server, ca_file, token_file) {
        (Some(_), ..) if parts => {
            let what = "both a kubeconfig and a server, its CA or a token are named: \
                        set the one or the others";
            reader.wrong("registration.kubernetes.kubeconfig", what.to_owned());
            None
        }
        (Some(path), ..) => Some(Kubernetes::Kubeconfig { path: at(path), context }),
        (None, Some(server), Some(ca_file), Some(token_file)) => {
            if context.is_some() {
                let what = "there is no kubeconfig that could have such a context".to_owned();
                reader.wrong("registration.kubernetes.context", what);
            }
            // The one that a join placed lies with the other secrets.
            let own = token_file == Path::new(KUBE_TOKEN);
            let token_file = if own { paths.kube_token_file() } else { at(token_file) };
            Some(Kubernetes::Parts { server, ca_file: at(ca_file), token_file })
        }
        _ if needed => {
            let what = "kubernetes needs --kubeconfig FILE, or --kube-server URL, --kube-ca FILE \
                        and --kube-token-file FILE (registration.kubernetes)";
            reader.wrong("registration.mode", what.to_owned());
            None
        }
        _ if parts => {
            let what = "expected all three of registration.kubernetes.server, caFile and tokenFile: \
                        one alone is of no use";
            reader.wrong("registration.kubernetes", what.to_owned());
            None
        }
        _ => None,
    }
}

/// A token goes there, so it must be TLS; and what stands before an `@` would be a secret in a
/// file that everyone may read.
fn check_server(reader: &mut Reader<'_>, server: Option<&str>) -> bool {
    let Some(server) = server else { return true };
    let setting = "registration.kubernetes.server";
    let url = server.parse::<http::Uri>().ok().filter(|url| {
        url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty())
    });
    let what = match url {
        Some(url) if url.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            "it holds a user name: expected https://HOST:PORT and a token file".to_owned()
        }
        Some(_) => return true,
        None if server.contains('@') => "it is no URL such as https://HOST:PORT".to_owned(),
        None => format!("found {server:?}, expected https://HOST:PORT"),
    };
    reader.wrong(setting, what);
    false
}
