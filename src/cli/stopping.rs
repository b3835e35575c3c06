//! The hidden subcommands that the service manager runs around the agent's end (`ExecStop=`,
//! `ExecStopPost=`). It has them do what the agent itself must not: ask what the service manager does.

use super::capture::{self, failure as capture_failure};
use super::exit::{Exit, Failure};
use super::logs;
use super::options::{Global, Overrides};
use super::run::runtime;
use super::{settings, status};
use crate::agent::tidy_up;
use crate::base::trouble::chain;
use crate::capture::{Capture, FailPolicy, Restored};
use crate::status::{Wish, order};
use crate::systemd::{self, Job};

/// Before the agent is sent the signal: in a restart it steps aside instead.
pub(super) fn before(global: &Global) -> Result<(), Failure> {
    let job = runtime()?.block_on(systemd::job());
    match job.map_err(|error| Failure::new(Exit::Host, error))? {
        Some(Job::Restart) => {
            let socket = settings::paths(global).admin_socket();
            order(&socket, Wish::StepAside).map_err(status::failure)
        }
        _ => Ok(()),
    }
}

/// When it has ended.
pub(super) fn after(global: &Global) -> Result<(), Failure> {
    logs::start(global, logs::Wanted { level: "info", json: false });
    let paths = settings::paths(global);
    let policy = policy(global);
    runtime()?.block_on(async {
        let job = systemd::job().await.unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::warn!(error, "Cannot tell a stop from a crash; taking it for a crash.");
            None
        });
        tidy_up(&paths, policy, job).await.map_err(capture::failure)
    })
}

/// At boot, before the network: puts the last rules back where the policy was closed. The agent puts
/// them in order when it starts.
pub(super) fn restore(global: &Global) -> Result<(), Failure> {
    logs::start(global, logs::Wanted { level: "info", json: false });
    let capture = Capture::new(settings::paths(global).capture_journal());
    match runtime()?.block_on(capture.restore()).map_err(capture_failure)? {
        Restored::Nothing => tracing::info!("There are no redirect rules of an earlier boot."),
        Restored::Intact => tracing::info!("The redirect rules are in place."),
        Restored::Restored => {
            tracing::info!(
                "Restored the redirect rules of the last boot (capture.failPolicy: closed)."
            );
        }
    }
    Ok(())
}

/// Rules of which nobody can tell what should become of them stay: traffic around the proxy may be
/// worse than none. A machine that has left has no configuration, and no use for them.
fn policy(global: &Global) -> FailPolicy {
    if !settings::paths(global).config_file().exists() && global.config.is_none() {
        return FailPolicy::Open;
    }
    let loaded = settings::from_file(global, &Overrides::default())
        .and_then(|document| settings::load(&document, global));
    match loaded {
        Ok(loaded) => loaded.settings.capture.fail_policy,
        Err(failure) => {
            let error = format!("{:#}", failure.error);
            tracing::warn!(error, "The configuration is unusable; the redirect rules stay.");
            FailPolicy::Closed
        }
    }
}
