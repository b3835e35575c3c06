//! The WorkloadEntry of a machine that leaves.

use std::sync::Arc;

use tokio::sync::watch;

use crate::agent::{StartError, join_proxy_group, machine};
use crate::base::clock;
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::Global;
use crate::cli::run::{make_plan, plan_failure, start_failure};
use crate::config::{RegistrationMode, Settings};
use crate::kube::Client;
use crate::registry::{Config, Direct, RemoveError};

/// Removes the entry in the mode `kubernetes`; in the mode `istiod` it goes with the stream. Says
/// what has become of it.
pub(super) async fn remove(
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
    // A closed fail policy leaves rules in place, which lead to nobody now.
    join_proxy_group(settings).map_err(start_failure)?;
    let clock = clock::system();
    let plan = make_plan(global, settings, &clock).await.map_err(plan_failure)?;
    let Some(kube) = plan.kube else { return Ok(None) };
    let client = Client::new(kube, Arc::clone(&clock));
    let client = client.map_err(|error| start_failure(StartError::Kube(error)))?;
    let machine = machine(&plan.paths);
    let machine = machine.map_err(|error| start_failure(StartError::File(error)))?;
    let (force, take_over_after) = (plan.registration.force, plan.registration.take_over_after);
    let record = Some(plan.paths.entry_record());
    let config = Config { machine, force, take_over_after, record };
    let entry = format!("{}/{}", plan.workload.id.namespace(), plan.registration.name);
    let workload = watch::channel(Arc::new(plan.workload)).1;
    let direct = Direct::new(Arc::new(client), workload, config, clock);
    match direct.remove().await {
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
