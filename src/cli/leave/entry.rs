//! The WorkloadEntry of a machine that leaves.

use std::sync::Arc;

use crate::agent::{
    Outline, StartError, join_proxy_group, known_instance, known_machine, last_name, outline,
};
use crate::base::clock;
use crate::base::trouble::chain;
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::Global;
use crate::cli::run::{plan_failure, start_failure};
use crate::cli::settings;
use crate::config::{RegistrationMode, Settings};
use crate::kube::Client;
use crate::registry::{Machine, RemoveError, place, remove};

/// Removes the entry in the mode `kubernetes`; in the mode `istiod` it goes with the stream. Says
/// what has become of it.
pub(super) async fn deregister(
    global: &Global,
    settings: &Settings,
) -> Result<Option<String>, Failure> {
    match settings.registration.mode {
        RegistrationMode::None => return Ok(None),
        RegistrationMode::Istiod => {
            return Ok(Some("istiod removes the WorkloadEntry by itself".to_owned()));
        }
        RegistrationMode::Kubernetes => {}
    }
    let paths = settings::paths(global);
    // A closed fail policy leaves rules in place, which lead to nobody now. Without the proxy's user
    // there is no group that they exempt; whether they are in the way is for the call to find out.
    if let Err(error) = join_proxy_group(settings) {
        tracing::debug!(error = chain(&error), "The proxy's group cannot be taken on.");
    }
    let Some(kube) = outline::kubernetes(settings).map_err(plan_failure)? else { return Ok(None) };
    // A machine without an id has no entry that it could tell from others'.
    let machine = known_machine(&paths).unwrap_or_else(|| Machine::of("unknown"));
    let machine = machine.with_instance(known_instance(&paths));
    let clock = clock::system();
    let client = Client::new(kube, Arc::clone(&clock));
    let client = client.map_err(|error| start_failure(StartError::Kube(error)))?;
    let name = match last_name(&paths) {
        Some(name) => name,
        None => {
            let outline = Outline::new(settings, &paths);
            let found = outline.workload(settings, &paths, &clock).await;
            found.map_err(plan_failure)?.0.name
        }
    };
    let object = place(settings.workload.namespace.as_str(), &name);
    let entry = format!("{}/{}", object.namespace, object.name);
    match remove(&client, &object, &machine).await {
        Ok(()) => Ok(Some(format!("the WorkloadEntry {entry} is removed"))),
        Err(error) => {
            let hint = match &error {
                RemoveError::Kube(error) => error.hint(),
                RemoveError::NotOurs { .. } => None,
            };
            Err(Failure::new(Exit::Registration, error).hint(hint))
        }
    }
}

/// What would become of it.
pub(super) fn preview(settings: &Settings) -> Option<String> {
    match settings.registration.mode {
        RegistrationMode::None => None,
        RegistrationMode::Istiod => Some("let istiod remove the WorkloadEntry".to_owned()),
        RegistrationMode::Kubernetes => {
            let namespace = &settings.workload.namespace;
            Some(format!("remove this machine's WorkloadEntry in the namespace {namespace}"))
        }
    }
}
