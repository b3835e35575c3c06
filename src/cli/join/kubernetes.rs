//! Checks of the Kubernetes API: that it is there, knows us, and lets us do what we shall do.

use std::sync::Arc;
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};

use crate::base::backoff::Retry;
use crate::base::clock::{SharedClock, rfc3339};
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::config::{Kubernetes, RegistrationMode, Settings};
use crate::identity::TokenClaims;
use crate::join::Files;
use crate::kube::{Auth, Ca, Client, Config, KubeError, Object, from_kubeconfig};

/// Who we are to the API server.
enum Who {
    /// By what the settings name.
    Settings,
    /// By a token that is not placed yet, or shall not be.
    Token(SecretString),
}

/// Checks it, in the mode that needs it. Of a bundle's token and the one that is here already, the
/// one that lives longer and is taken stays.
pub(super) async fn check(
    settings: &Settings,
    files: &mut Files,
    renew_with: &str,
    clock: &SharedClock,
    progress: &mut Progress,
) -> Result<(), Failure> {
    if settings.registration.mode != RegistrationMode::Kubernetes {
        return Ok(());
    }
    let Some(api) = &settings.registration.kubernetes else { return Ok(()) };
    let Some((path, fresh)) = &files.kube_token else {
        return judge(
            settings,
            ask(api, Who::Settings, settings, clock).await,
            renew_with,
            progress,
        );
    };
    let now = clock.now();
    let claims = |token: &str| TokenClaims::parse(token).ok();
    let fresh_claims = claims(fresh.expose_secret());
    let kept = fsio::read_text(path, TOKEN_BYTES).ok().map(SecretString::from);
    let outlives = |kept: &SecretString| {
        let (kept, fresh) = (claims(kept.expose_secret())?, fresh_claims.as_ref()?);
        (kept.outlives(fresh) && !kept.is_over(now)).then_some(())
    };
    if let Some(kept) = kept.filter(|kept| outlives(kept).is_some()) {
        let answer = ask(api, Who::Token(kept), settings, clock).await;
        let refused = matches!(&answer, Err(error) if error.code() == Some(401));
        if !refused {
            // The agent's own renewal of it is newer than the bundle.
            files.kube_token = None;
            return judge(settings, answer, renew_with, progress);
        }
    }
    if let Some(end) = fresh_claims.filter(|claims| claims.is_over(now)).and_then(|c| c.expires_at)
    {
        return Err(expired(end, now, renew_with));
    }
    let answer = ask(api, Who::Token(fresh.clone()), settings, clock).await;
    judge(settings, answer, renew_with, progress)
}

fn expired(end: SystemTime, now: SystemTime, renew_with: &str) -> Failure {
    let error = anyhow::anyhow!(
        "the bundle expired at {}; this machine's clock says {}",
        rfc3339(end),
        rfc3339(now)
    );
    Failure::new(Exit::Credential, error).hint(fresh_bundle(renew_with))
}

/// The way to a new bundle.
pub(in crate::cli) fn fresh_bundle(renew_with: &str) -> Option<String> {
    let hint = |command| format!("make a fresh bundle where the cluster is operated: `{command}`");
    (!renew_with.is_empty()).then(|| hint(renew_with))
}

/// What we may not do.
async fn ask(
    api: &Kubernetes,
    who: Who,
    settings: &Settings,
    clock: &SharedClock,
) -> Result<Vec<&'static str>, KubeError> {
    let entries = Object {
        group_version: "networking.istio.io/v1",
        resource: "workloadentries",
        namespace: settings.workload.namespace.to_string(),
        name: String::new(),
    };
    let Some(config) = config(api, who) else { return Ok(Vec::new()) };
    Client::new(config, Arc::clone(clock))?.forbidden(&VERBS, &entries).await
}

/// `None` for a kubeconfig that cannot be used: the plan has said that.
fn config(api: &Kubernetes, who: Who) -> Option<Config> {
    match api {
        Kubernetes::Kubeconfig { path, context } => from_kubeconfig(path, context.as_deref()).ok(),
        Kubernetes::Parts { server, ca_file, token_file } => Some(Config {
            server: server.clone(),
            ca: Ca::File(ca_file.clone()),
            auth: match who {
                Who::Settings => Auth::TokenFile(token_file.clone()),
                Who::Token(token) => Auth::Token(token),
            },
            tls_server_name: None,
        }),
    }
}

fn judge(
    settings: &Settings,
    answer: Result<Vec<&'static str>, KubeError>,
    renew_with: &str,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let workload = &settings.workload;
    let user = format!("{}/{}", workload.namespace, workload.service_account);
    let error = match answer {
        Ok(missing) if missing.is_empty() => {
            progress.done("kubernetes", &format!("the API lets {user} write its WorkloadEntries"));
            return Ok(());
        }
        Ok(missing) => {
            let error = anyhow::anyhow!(
                "the Kubernetes API does not let service account {user} {} workloadentries in {} (Forbidden)",
                missing.join(", "),
                workload.namespace
            );
            let hint = "allow it in the workload's namespace: a Role with verbs get, create, patch, \
                        delete on workloadentries of networking.istio.io, bound to the service account";
            return Err(Failure::new(Exit::Registration, error).hint(hint.to_owned()));
        }
        Err(error) => error,
    };
    if error.retry() == Retry::Soon {
        progress.warn(&format!("{} (it is tried again)", chain(&error)));
        return Ok(());
    }
    let spent = error.code() == Some(401) || matches!(error, KubeError::ExpiredToken { .. });
    let (exit, hint) = match &error {
        _ if spent => (Exit::Credential, fresh_bundle(renew_with).or_else(|| error.hint())),
        KubeError::Transport { .. } => (Exit::ControlPlane, error.hint()),
        _ => (Exit::Registration, error.hint()),
    };
    Err(Failure::new(exit, error).hint(hint))
}

/// What keeping an entry true takes.
const VERBS: [&str; 4] = ["get", "create", "patch", "delete"];
/// Tokens are one or two kilobytes.
const TOKEN_BYTES: u64 = 64 << 10;
