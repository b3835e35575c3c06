//! Checks of the Kubernetes API: that it is there, knows us, and lets us do what we shall do.

use std::sync::Arc;
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};

use crate::base::backoff::Retry;
use crate::base::clock::{SharedClock, rfc3339};
use crate::base::trouble::chain;
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::config::{Kubernetes, RegistrationMode, Settings};
use crate::doctor::{forbidden_hint, forbidden_words, may_write_entries};
use crate::identity::Claims;
use crate::join::Files;
use crate::kube::{Auth, Ca, Client, Config, KubeError, from_kubeconfig};

/// Checks it, in the mode that needs it. A token that is here already and was made after the
/// bundle's stays, and so is the one that is tried.
pub(super) async fn check(
    settings: &Settings,
    files: &Files,
    renew_with: &str,
    clock: &SharedClock,
    progress: &Progress,
) -> Result<(), Failure> {
    if settings.registration.mode != RegistrationMode::Kubernetes {
        return Ok(());
    }
    let Some(api) = &settings.registration.kubernetes else { return Ok(()) };
    let now = clock.now();
    let fresh = files.new_kube_token().map(|(_, token)| token);
    let claims = fresh.and_then(|token| Claims::read(token.expose_secret()).ok());
    if let Some(end) = claims.and_then(|claims| claims.expires_at).filter(|end| *end <= now) {
        return Err(expired(end, now, renew_with));
    }
    judge(settings, ask(api, fresh, settings, clock).await, renew_with, progress)
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
    token: Option<&SecretString>,
    settings: &Settings,
    clock: &SharedClock,
) -> Result<Vec<&'static str>, KubeError> {
    let Some(config) = config(api, token) else { return Ok(Vec::new()) };
    let client = Client::new(config, Arc::clone(clock))?;
    may_write_entries(&client, settings.workload.namespace.as_str()).await
}

/// `None` for a kubeconfig that cannot be used: the plan has said that.
fn config(api: &Kubernetes, token: Option<&SecretString>) -> Option<Config> {
    match api {
        Kubernetes::Kubeconfig { path, context } => from_kubeconfig(path, context.as_deref()).ok(),
        Kubernetes::Parts { server, ca_file, token_file } => Some(Config {
            server: server.clone(),
            ca: Ca::File(ca_file.clone()),
            auth: match token {
                None => Auth::TokenFile(token_file.clone()),
                Some(token) => Auth::Token(token.clone()),
            },
            tls_server_name: None,
        }),
    }
}

fn judge(
    settings: &Settings,
    answer: Result<Vec<&'static str>, KubeError>,
    renew_with: &str,
    progress: &Progress,
) -> Result<(), Failure> {
    let workload = &settings.workload;
    let user = format!("{}/{}", workload.namespace, workload.service_account);
    let error = match answer {
        Ok(missing) if missing.is_empty() => {
            progress.note("kubernetes", &format!("the API lets {user} write its WorkloadEntries"));
            return Ok(());
        }
        Ok(missing) => {
            let (namespace, account) = (&workload.namespace, &workload.service_account);
            let words = forbidden_words(&missing, namespace.as_str(), account.as_str());
            let error = anyhow::anyhow!(words);
            return Err(Failure::new(Exit::Registration, error).hint(forbidden_hint()));
        }
        Err(error) => error,
    };
    if error.retry() == Retry::Soon {
        progress.warn(&format!("{} (it is tried again)", chain(&error)), None);
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
