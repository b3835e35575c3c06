//! `vm-agent run`: the daemon. `join --foreground` becomes it, too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Exit, Failure};
use super::logs;
use super::options::{Global, Overrides};
use super::settings;
use crate::agent::{
    Agent, Configuration, Plan, PlanError, Reason, StartError, join_proxy_group, plan,
};
use crate::base::backoff::Retry;
use crate::base::clock::{self, SharedClock};
use crate::base::program::raise_open_files;
use crate::base::trouble::chain;
use crate::config::Settings;
use crate::systemd::{Kept, ServiceManager};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let document = settings::from_file(global, &args.overrides)?;
    let loaded = settings::load(&document, global)?;
    let log = &loaded.settings.log;
    let _written = logs::start_daemon(global, logs::Wanted { level: &log.level, json: log.json });
    let configuration = settings::configuration(global, loaded, args.overrides);
    // Callers must not use up what the agent needs for its own connections.
    raise_open_files();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let mut agent = Box::pin(start(global, configuration)).await?;
        let reason = agent.reason().await;
        finish(agent, reason).await
    });
    // A read that hangs in a file system must not keep the process from ending.
    runtime.shutdown_background();
    ended
}

/// The runtime of every command that waits for anything. One thread: the agent relays and waits,
/// and a second thread would cost memory and save nothing.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let built = builder.enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    built.map_err(|error| Failure::new(Exit::Host, error))
}

/// Starts the agent. A machine whose network is not up yet is waited for; a service manager does not
/// have to wait with us.
pub(super) async fn start(global: &Global, configuration: Configuration) -> Result<Agent, Failure> {
    let clock = clock::system();
    join_proxy_group(&configuration.loaded.settings).map_err(start_failure)?;
    // Before any program is started that could inherit them.
    let kept = Kept::take();
    let plan = loop {
        let plan = Box::pin(make_plan(global, &configuration.loaded.settings, &clock));
        match ServiceManager.watched(PLAN_LIMIT, plan).await {
            Err(error @ PlanError::Address { .. }) => {
                tracing::warn!(error = chain(&error), "Waiting for the network.");
                ServiceManager.ready("Waiting for the network");
                ServiceManager.watched(PLAN_LIMIT, tokio::time::sleep(NETWORK_LOOK)).await;
            }
            made => break made.map_err(plan_failure)?,
        }
    };
    let start = Box::pin(Agent::start(plan, configuration, kept, clock));
    ServiceManager.watched(PLAN_LIMIT, start).await.map_err(start_failure)
}

/// The plan for this host.
pub(super) async fn make_plan(
    global: &Global,
    settings: &Settings,
    clock: &SharedClock,
) -> Result<Plan, PlanError> {
    let launcher = PathBuf::from("/proc/self/exe");
    plan(settings, &settings::paths(global), launcher, search_path(), clock).await
}

/// Stops the agent; an end that nobody asked for is a failure.
pub(super) async fn finish(agent: Agent, reason: Reason) -> Result<(), Failure> {
    agent.stop(&reason).await;
    match reason {
        Reason::Quit | Reason::StepAside | Reason::Stop => Ok(()),
        Reason::Broken(ended) => {
            let error = match ended.error {
                Some(why) => anyhow::anyhow!("task {} failed: {why}", ended.name),
                None => anyhow::anyhow!("task {} exited unexpectedly", ended.name),
            };
            Err(Failure::new(Exit::Other, error))
        }
    }
}

pub(super) fn plan_failure(error: PlanError) -> Failure {
    let (exit, hint) = match &error {
        PlanError::Binary(error) => (Exit::Proxy, error.hint()),
        PlanError::Address { .. } => {
            (Exit::Host, Some("name it with --address IP-OR-NAME".to_owned()))
        }
        PlanError::CaptureNeedsRoot => {
            (Exit::Host, Some("try it with sudo, or set capture.mode to none".to_owned()))
        }
        // What is not known now may be known when the service manager tries again.
        PlanError::Facts { source, .. } if source.retry != Retry::Never => (
            Exit::Host,
            Some("see `vm-agent facts`; {{FACT | default \"TEXT\"}} does without".to_owned()),
        ),
        PlanError::Facts { .. }
        | PlanError::CaptureOfRoot
        | PlanError::Group { .. }
        | PlanError::Kubeconfig(_)
        | PlanError::User(_) => (Exit::Configuration, None),
    };
    Failure::new(exit, error).hint(hint)
}

pub(super) fn start_failure(error: StartError) -> Failure {
    let (exit, hint) = match &error {
        StartError::Running { .. } => (
            Exit::AlreadyRunning,
            Some("`vm-agent status` shows it; use another --root for a second agent".to_owned()),
        ),
        StartError::Kube(error) => (Exit::Configuration, error.hint()),
        StartError::NoKubernetes => (Exit::Configuration, None),
        StartError::Port { .. } => {
            (Exit::Host, Some("end the program that holds the port, or set status.port".to_owned()))
        }
        StartError::Dns(_) => (
            Exit::Host,
            Some("end the program that holds the port, or set dns.port or dns.enabled".to_owned()),
        ),
        StartError::Group(_) if nix::unistd::geteuid().is_root() => {
            let hint = "a service has the group that its unit names: `systemctl edit vm-agent`, \
                        and Group= with that of proxy.user";
            (Exit::Host, Some(hint.to_owned()))
        }
        StartError::File(_) | StartError::Group(_) | StartError::Signals(_) => {
            (Exit::Host, (!nix::unistd::geteuid().is_root()).then(|| "try it with sudo".to_owned()))
        }
    };
    Failure::new(exit, error).hint(hint)
}

pub(super) fn search_path() -> Option<OsString> {
    std::env::var_os("PATH")
}

/// Looking up names and asking the cloud, each with limits of its own.
const PLAN_LIMIT: Duration = Duration::from_secs(80);
/// For files and the system's lookups of names.
const BLOCKING_THREADS: usize = 64;
/// How often a missing network is looked for.
const NETWORK_LOOK: Duration = Duration::from_secs(2);
