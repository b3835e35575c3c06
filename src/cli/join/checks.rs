//! What is checked before anything changes the host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{kubernetes, proofs};
use crate::agent::{CapturePlan, Plan, StartError};
use crate::base::backoff::Retry;
use crate::base::clock::{self, SharedClock};
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::Global;
use crate::cli::progress::Progress;
use crate::cli::run::{make_plan, plan_failure, start_failure};
use crate::cli::service::Service;
use crate::config::{Kubernetes, Settings};
use crate::controlplane::{Dialer, read_roots};
use crate::credential::{Config, Ladder, LadderError, Source, Token, TokenError};
use crate::doctor::{is_held, is_locked, needed_ports};
use crate::envoy::{living, version_of};
use crate::identity::SpiffeId;
use crate::join::Files;
use crate::kube::Client;
use crate::secrets::Source as IdentitySource;

/// What is checked.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) global: &'a Global,
    pub(super) settings: &'a Settings,
    /// The command that makes a fresh bundle; empty without one.
    pub(super) renew_with: &'a str,
    /// Where the source lies; empty where flags say it all.
    pub(super) place: &'a str,
    /// Whether this process becomes the daemon.
    pub(super) foreground: bool,
    /// Whether the machine is in a mesh and serves. Then nothing that works is given up for what
    /// has not been proved.
    pub(super) serves: bool,
}

/// Checks, in the order in which a person would mend them: the credential, the proxy, this host,
/// the control plane. Returns the redirect rules that come, where there are any.
pub(super) async fn all(
    inputs: &Inputs<'_>,
    files: &Files,
    progress: &Progress,
) -> Result<Option<CapturePlan>, Failure> {
    let Inputs { settings, place, .. } = *inputs;
    let clock = clock::system();
    let is_good = said(token(settings, files, &clock), inputs, files, progress)?;
    let scratch = Scratch::new(settings, files)?;
    let examined = Box::pin(examine(inputs, (files, &scratch), is_good, progress)).await;
    examined.map_err(|failure| scratch.named(failure, place))
}

async fn examine(
    inputs: &Inputs<'_>,
    (files, scratch): (&Files, &Scratch),
    is_good: bool,
    progress: &Progress,
) -> Result<Option<CapturePlan>, Failure> {
    let Inputs { global, settings, renew_with, foreground, serves, .. } = *inputs;
    let clock = clock::system();
    kubernetes::check(&scratch.settings, files, renew_with, &clock, progress).await?;
    let mut plan = make_plan(global, &scratch.settings, &clock).await.map_err(plan_failure)?;
    let version = version_of(&plan.envoy.binary, plan.envoy.user).await;
    let version = version.map_err(|error| {
        let hint = error.hint();
        Failure::new(Exit::Proxy, error).hint(hint)
    })?;
    progress.note("envoy", &format!("{} ({version})", plan.envoy.binary.display()));
    // The service that runs already is started anew, and holds the ports meanwhile.
    let locked = is_locked(&plan.paths.lock_file());
    let again = !foreground && locked && Service::installed(global).is_some();
    if !again {
        running(&plan)?;
    }
    let kube = kube_client(&mut plan, &clock)?;
    let proofs = proofs::Proofs { plan: &plan, kube: kube.as_ref(), clock: &clock, serves };
    proofs.registration(progress).await?;
    if !is_good {
        credential(&plan, kube.as_ref(), &clock, progress).await?;
    }
    match living(&plan.paths.run_directory()) {
        // The ports are its own.
        Some(pid) if !again => {
            progress.note("proxy", &format!("Envoy of an earlier agent is running, pid {pid}"))
        }
        _ if again => {}
        _ => ports(settings)?,
    }
    control_plane(&plan, &clock, progress).await?;
    proofs.identity(progress).await?;
    Ok(plan.capture)
}

/// The token that came with the source or lies in a file, if there is one: it can be judged before
/// anything is asked.
fn token(
    settings: &Settings,
    files: &Files,
    clock: &SharedClock,
) -> Option<Result<Token, TokenError>> {
    let mut sources = settings.credential.sources.iter();
    let path = sources.find_map(|source| match source {
        Source::TokenFile(path) => Some(path),
        _ => None,
    });
    let token = match (files.new_token(), path) {
        (Some((_, token)), _) => Token::parse(token.expose_secret()),
        (None, Some(path)) => Token::read(path),
        (None, None) => return None,
    };
    let audience = &settings.credential.audience;
    let judged = |token: Token| token.check(&id(settings), audience, clock.now()).map(|()| token);
    Some(token.and_then(judged))
}

fn id(settings: &Settings) -> SpiffeId {
    SpiffeId::new(
        settings.mesh.trust_domain.clone(),
        settings.workload.namespace.clone(),
        settings.workload.service_account.clone(),
    )
}

/// Whether the token of the file is good. One that is known to be useless is said before it is
/// sent, and ends the join when there is nothing else.
fn said(
    token: Option<Result<Token, TokenError>>,
    inputs: &Inputs<'_>,
    files: &Files,
    progress: &Progress,
) -> Result<bool, Failure> {
    let Inputs { settings, renew_with, place, .. } = *inputs;
    match token {
        None => Ok(false),
        Some(Ok(token)) => {
            let audience = &settings.credential.audience;
            let id = id(settings);
            progress.note("token", &format!("for {id}, audience {audience}{}", left(&token)));
            Ok(true)
        }
        Some(Err(error)) if has_other_sources(settings) => {
            progress.warn(&format!("{} (another credential is tried)", chain(&error)), None);
            Ok(false)
        }
        Some(Err(error)) => {
            let hint = kubernetes::fresh_bundle(renew_with).unwrap_or_else(|| {
                let (namespace, audience) =
                    (&settings.workload.namespace, &settings.credential.audience);
                let account = &settings.workload.service_account;
                format!(
                    "make a new one with `istioctl x workload entry configure` (or `kubectl -n \
                     {namespace} create token {account} --audience {audience}`) and run `vm-agent \
                     join` again with it"
                )
            });
            let error = anyhow::Error::new(error);
            let error = match files.new_token() {
                Some(_) if !place.is_empty() => {
                    error.context(format!("the istio-token of {place}"))
                }
                _ => error,
            };
            Err(Failure::new(Exit::Credential, error).hint(hint))
        }
    }
}

fn has_other_sources(settings: &Settings) -> bool {
    settings.credential.sources.iter().any(|source| match source {
        Source::TokenFile(_) => false,
        Source::Kubernetes { .. } => settings.registration.kubernetes.is_some(),
        Source::Command(_) | Source::Gce { .. } | Source::OidcTokenFile(_) => true,
    })
}

fn kube_client(plan: &mut Plan, clock: &SharedClock) -> Result<Option<Arc<Client>>, Failure> {
    let kube = plan.kube.take().map(|config| Client::new(config, Arc::clone(clock)));
    let kube = kube.transpose().map_err(|error| start_failure(StartError::Kube(error)))?;
    Ok(kube.map(Arc::new))
}

/// The best token that can be had from somebody. A machine without any has its certificate from
/// elsewhere; somebody who is merely away is waited for.
async fn credential(
    plan: &Plan,
    kube: Option<&Arc<Client>>,
    clock: &SharedClock,
    progress: &Progress,
) -> Result<(), Failure> {
    let ladder = Ladder::new(plan.credential.clone(), kube, Arc::clone(clock));
    match ladder.token().await {
        Ok(bearer) => {
            progress.note("credential", &format!("from {}{}", bearer.rung, left(&bearer.token)));
        }
        Err(LadderError::None)
            if matches!(plan.secrets.source, IdentitySource::Istiod)
                && !plan.paths.identity().exists() =>
        {
            let error = anyhow::anyhow!(
                "there is no token for istiod, and this machine has no certificate yet"
            );
            let hint = "`istioctl x workload entry configure` writes istio-token into its \
                        directory; or name another source below credential";
            return Err(Failure::new(Exit::Credential, error).hint(hint.to_owned()));
        }
        Err(LadderError::None) => {}
        Err(error) if error.retry() == Retry::Soon => {
            progress.warn(&format!("{} (it is tried again)", chain(&error)), None);
        }
        Err(error) => {
            let hint = error.hint();
            return Err(Failure::new(Exit::Credential, error).hint(hint));
        }
    }
    Ok(())
}

fn left(token: &Token) -> String {
    let now = clock::system().now();
    let left = token.expires_at().and_then(|end| end.duration_since(now).ok());
    let left = left.map(|left| i64::try_from(left.as_secs()).unwrap_or(i64::MAX));
    left.map(|left| format!(", valid for {}", crate::cli::status::span(left))).unwrap_or_default()
}

/// The settings with the source's files in a directory of their own, since nothing may be placed
/// before the checks have passed.
struct Scratch {
    settings: Settings,
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new(settings: &Settings, files: &Files) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(Exit::Host, error);
        let directory = tempfile::Builder::new().prefix("vm-agent-").tempdir().map_err(failed)?;
        let mut settings = settings.clone();
        let placed = |error: fsio::FileError| Failure::new(Exit::Host, error);
        if let Some((target, pem)) = files.new_root_cert()
            && target == settings.mesh.root_cert
        {
            let path = directory.path().join("root-cert.pem");
            fsio::replace(&path, pem.as_bytes(), fsio::SECRET).map_err(placed)?;
            settings.mesh.root_cert = path;
        }
        if let (Some((_, pem)), Some(Kubernetes::Parts { ca_file, .. })) =
            (&files.kube_ca, &mut settings.registration.kubernetes)
        {
            *ca_file = directory.path().join("kube-ca.pem");
            fsio::replace(ca_file, pem.as_bytes(), fsio::SECRET).map_err(placed)?;
        }
        for source in &mut settings.credential.sources {
            match (source, files.new_token()) {
                (Source::TokenFile(path), Some((target, token))) if path == target => {
                    *path = directory.path().join("istio-token");
                    let token = token.expose_secret().as_bytes();
                    fsio::replace(path, token, fsio::SECRET).map_err(placed)?;
                }
                (Source::Kubernetes { kept, .. }, _) => *kept = None,
                _ => {}
            }
        }
        if let Some(Kubernetes::Parts { token_file, .. }) = &mut settings.registration.kubernetes
            && let Some((target, token)) = files.new_kube_token()
            && token_file == target
        {
            *token_file = directory.path().join("kube-token");
            let token = token.expose_secret().as_bytes();
            fsio::replace(token_file, token, fsio::SECRET).map_err(placed)?;
        }
        Ok(Self { settings, directory })
    }

    /// A failure that names these copies, with the names that a person knows.
    fn named(&self, failure: Failure, place: &str) -> Failure {
        let text = chain(failure.error.as_ref());
        let inner = self.directory.path().display().to_string();
        if place.is_empty() || !text.contains(&inner) {
            return failure;
        }
        let is_directory = Path::new(place).is_dir();
        let name = |text: String, (file, field): (&str, &str)| {
            let known = if is_directory {
                format!("{place}/{file}")
            } else {
                format!("{field} of {place}")
            };
            text.replace(&format!("{inner}/{file}"), &known)
        };
        let error = anyhow::anyhow!(COPIES.into_iter().fold(text, name));
        Failure { error, ..failure }
    }
}

fn running(plan: &Plan) -> Result<(), Failure> {
    let path = plan.paths.lock_file();
    if is_locked(&path) { Err(start_failure(StartError::Running { path })) } else { Ok(()) }
}

/// The ports that the agent and Envoy need on this machine.
fn ports(settings: &Settings) -> Result<(), Failure> {
    for (port, what) in needed_ports(settings) {
        if let Err(source) = is_held(port) {
            let error =
                anyhow::Error::new(source).context(format!("port {port} is needed for {what}"));
            let hint = format!("see who holds it: `ss -ltnp 'sport = :{port}'`");
            return Err(Failure::new(Exit::Host, error).hint(hint));
        }
    }
    Ok(())
}

/// What cannot heal by itself ends the join; an istiod that is merely away is waited for.
async fn control_plane(
    plan: &Plan,
    clock: &SharedClock,
    progress: &Progress,
) -> Result<(), Failure> {
    let tokens = Config::without_tokens(plan.credential.id.clone());
    let tokens = Ladder::new(tokens, None, Arc::clone(clock));
    let nobody = watch::channel(None).1;
    let dialer = Dialer::new(plan.discovery.clone(), tokens, nobody, Arc::clone(clock));
    roots(plan)?;
    let failure = |error: crate::controlplane::DialError| {
        let hint = error.hint();
        Failure::new(Exit::ControlPlane, error).hint(hint)
    };
    let istiod = dialer.resolve().await.map_err(failure)?;
    let endpoint = &plan.discovery.endpoint;
    match timeout(DIAL_LIMIT, dialer.dial()).await {
        Ok(Ok(_)) => progress.note("control plane", &format!("{endpoint} at {istiod}")),
        Ok(Err(error)) if error.retry() != Retry::Soon => return Err(failure(error)),
        Ok(Err(error)) => progress.warn(&format!("{} (it is tried again)", chain(&error)), None),
        Err(_) => progress.warn(&format!("{endpoint} does not answer (it is tried again)"), None),
    }
    Ok(())
}

fn roots(plan: &Plan) -> Result<(), Failure> {
    let path = &plan.discovery.root_cert;
    read_roots(path).map(drop).map_err(|error| {
        let error = anyhow::Error::new(error)
            .context(format!("the mesh's root {} cannot be used", path.display()));
        Failure::new(Exit::Configuration, error)
            .hint("name the mesh's root-cert.pem with --set mesh.rootCert=FILE".to_owned())
    })
}

/// The copies of a source's files, and the fields of a bundle that they come from.
const COPIES: [(&str, &str); 4] = [
    ("root-cert.pem", "trust.mesh"),
    ("kube-ca.pem", "trust.kubernetes"),
    ("istio-token", "credential.istioToken"),
    ("kube-token", "credential.kubernetesToken"),
];
/// A person waits for it.
const DIAL_LIMIT: Duration = Duration::from_secs(8);
