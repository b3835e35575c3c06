//! `vm-agent leave`: out of the mesh, and nothing left behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use super::run::{make_plan, plan_failure, runtime, start_failure};
use super::screen::{self, Paint, paint};
use super::{capture, service, settings};
use crate::agent::{StartError, join_proxy_group, machine};
use crate::base::clock;
use crate::config::{Loaded, Paths, RegistrationMode};
use crate::envoy::{end_leftover, living};
use crate::join::wipe;
use crate::kube::Client;
use crate::registry::{Config, Direct, RemoveError};
use crate::status::{self, Wish};

/// Arguments of `leave`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave even when the WorkloadEntry cannot be removed
    #[arg(long)]
    force: bool,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let paths = settings::paths(global);
    let joined = paths.config_file().exists() || global.config.is_some();
    stop_agent(global)?;
    if joined {
        match deregister(global) {
            Err(failure) if args.force => screen::failure(&failure),
            result => result?,
        }
    }
    // Whatever the fail policy left in place, and what a killed agent could not take away.
    capture::remove(global)?;
    end_proxy(&paths)?;
    let directories = [paths.run_directory(), paths.state_directory(), paths.config_directory()];
    let existed = directories.iter().any(|directory| directory.exists());
    wipe(paths.root(), &directories).map_err(|error| {
        let hint = (!nix::unistd::geteuid().is_root()).then(|| "try it with sudo".to_owned());
        Failure::new(Exit::Host, error).hint(hint)
    })?;
    let words =
        if existed { "this machine has left the mesh" } else { "this machine was not in a mesh" };
    screen::say(&format!("{} {words}", paint(Paint::Good, "✓")));
    Ok(())
}

/// Drains and stops the daemon, and waits for its end.
fn stop_agent(global: &Global) -> Result<(), Failure> {
    if service::is_ours(global) {
        service::disable()?;
    }
    let socket = settings::paths(global).admin_socket();
    if status::order(&socket, Wish::Stop).is_err() {
        return Ok(());
    }
    screen::say("  draining the proxy and stopping the agent …");
    let looks = STOP_LIMIT.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if status::ask(&socket).is_err() && !settings::paths(global).lock_file().exists() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    let error = anyhow::anyhow!("the agent did not stop within {STOP_LIMIT:?}");
    Err(Failure::new(Exit::Other, error)
        .hint("look at its log, then end it and leave again".to_owned()))
}

/// The proxy of an agent that was killed runs on.
fn end_proxy(paths: &Paths) -> Result<(), Failure> {
    let directory = paths.run_directory();
    if living(&directory).is_none() {
        return Ok(());
    }
    screen::say("  draining the proxy that an agent left …");
    runtime()?.block_on(end_leftover(&directory));
    match living(&directory) {
        None => Ok(()),
        Some(pid) => {
            let error = anyhow::anyhow!("the proxy (process {pid}) cannot be ended");
            let hint = (!nix::unistd::geteuid().is_root()).then(|| "try it with sudo".to_owned());
            Err(Failure::new(Exit::Host, error).hint(hint))
        }
    }
}

/// In the mode `kubernetes` the entry is ours to remove; in `istiod` it goes with the stream.
fn deregister(global: &Global) -> Result<(), Failure> {
    let document = settings::from_file(global, &Overrides::default())?;
    let Loaded { settings, .. } = settings::load(&document, global)?;
    if settings.registration.mode != RegistrationMode::Kubernetes {
        return Ok(());
    }
    // A closed fail policy leaves rules in place, which lead to nobody now.
    join_proxy_group(&settings).map_err(start_failure)?;
    runtime()?.block_on(async {
        let clock = clock::system();
        let plan = make_plan(global, &settings, &clock).await.map_err(plan_failure)?;
        let Some(kube) = plan.kube else { return Ok(()) };
        let client = Client::new(kube, Arc::clone(&clock));
        let client = client.map_err(|error| start_failure(StartError::Kube(error)))?;
        let machine = machine(&plan.paths);
        let machine = machine.map_err(|error| start_failure(StartError::File(error)))?;
        let (force, take_over_after) = (plan.registration.force, plan.registration.take_over_after);
        let config = Config { machine, force, take_over_after };
        let workload = watch::channel(Arc::new(plan.workload)).1;
        let direct = Direct::new(Arc::new(client), workload, config, clock);
        direct.remove().await.map_err(|error| {
            let hint = match &error {
                RemoveError::Kube(error) => error.hint(),
                RemoveError::NotOurs { .. } => None,
            };
            let hint =
                hint.unwrap_or_else(|| "`vm-agent leave --force` leaves all the same".to_owned());
            Failure::new(Exit::Registration, error).hint(hint)
        })
    })
}

/// Draining takes as long as the mesh's settings say, some seconds as a rule.
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
