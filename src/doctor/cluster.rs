//! The Kubernetes API: whether it knows us, what we may do, and what it has of this machine.

use tokio::time::timeout;

use super::finding::{Blame, Finding, Id};
use super::{Case, LIMIT};
use crate::agent::{known_machine, outline};
use crate::base::trouble::chain;
use crate::config::RegistrationMode;
use crate::kube::{Client, KubeError, Object};
use crate::registry::{Holder, Sight};
use crate::workload::Workload;

/// What keeping an entry true takes.
pub const VERBS: [&str; 4] = ["get", "create", "patch", "delete"];

/// Those of [`VERBS`] that we may not do with the WorkloadEntries of a namespace.
///
/// # Errors
/// When the server cannot be reached, or does not know us.
pub async fn may_write_entries(
    client: &Client,
    namespace: &str,
) -> Result<Vec<&'static str>, KubeError> {
    client.forbidden(&VERBS, &object("workloadentries", namespace, "")).await
}

/// What is forbidden, in words.
#[must_use]
pub fn forbidden_words(missing: &[&str], namespace: &str, account: &str) -> String {
    format!(
        "the Kubernetes API does not let service account {namespace}/{account} {} workloadentries \
         in {namespace} (Forbidden)",
        missing.join(", ")
    )
}

/// What allows it.
#[must_use]
pub fn forbidden_hint() -> String {
    "allow it in the workload's namespace: a Role with verbs get, create, patch, delete on \
     workloadentries of networking.istio.io, bound to the service account"
        .to_owned()
}

pub(super) async fn examine(case: &Case<'_>, workload: Option<&Workload>) -> Vec<Finding> {
    let client = match case.kube() {
        Ok(Some(client)) => client,
        Ok(None) => {
            let none = |id| Finding::skipped(id, "no Kubernetes API is configured");
            return [Id::Kubernetes, Id::Rights, Id::Group, Id::Entry].map(none).into();
        }
        Err(cause) => {
            let mend = "check registration.kubernetes, and the files that it names".to_owned();
            let finding = Finding::failed(Id::Kubernetes, cause).mend(mend);
            return vec![finding.blame(Blame::Configuration)];
        }
    };
    let namespace = case.settings.workload.namespace.as_str();
    let missing = match timeout(LIMIT, may_write_entries(&client, namespace)).await {
        Ok(Ok(missing)) => missing,
        Ok(Err(error)) => {
            // A token that is over by this clock is not sent; the clock may be what is wrong.
            if matches!(error, KubeError::ExpiredToken { .. }) {
                timeout(LIMIT, client.ask_time()).await.unwrap_or_default();
            }
            return vec![refused(&error)];
        }
        Err(_) => {
            let cause = format!("the Kubernetes API did not answer within {LIMIT:?}");
            let mend =
                "check that it runs and can be reached: `kubectl get --raw /readyz`".to_owned();
            let finding = Finding::failed(Id::Kubernetes, cause).mend(mend);
            return vec![finding.blame(Blame::ControlPlane)];
        }
    };
    let mut all = vec![Finding::ok(Id::Kubernetes, "the Kubernetes API answers and knows us")];
    all.push(rights(case, &missing));
    let (group, entry) = tokio::join!(group(case, &client), entry(case, &client, workload));
    all.extend([group, entry]);
    all
}

fn object(resource: &'static str, namespace: &str, name: &str) -> Object {
    Object {
        group_version: "networking.istio.io/v1",
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// A call that did not come through at all.
fn refused(error: &KubeError) -> Finding {
    let spent = error.code() == Some(401) || matches!(error, KubeError::ExpiredToken { .. });
    let blame = match error {
        _ if spent => Blame::Credential,
        KubeError::Transport { .. } | KubeError::Refused { .. } | KubeError::Rubbish { .. } => {
            Blame::ControlPlane
        }
        _ => Blame::Configuration,
    };
    Finding::failed(Id::Kubernetes, chain(error)).mend(error.hint()).blame(blame)
}

fn rights(case: &Case<'_>, missing: &[&str]) -> Finding {
    let (namespace, account) = (case.outline.id.namespace(), case.outline.id.service_account());
    if case.settings.registration.mode != RegistrationMode::Kubernetes {
        return Finding::skipped(Id::Rights, "the agent writes no WorkloadEntry by itself");
    }
    if missing.is_empty() {
        let words = format!("{namespace}/{account} may write its WorkloadEntries");
        return Finding::ok(Id::Rights, words);
    }
    let cause = forbidden_words(missing, namespace.as_str(), account.as_str());
    let asked = format!("asked by SelfSubjectAccessReview: {}", VERBS.join(", "));
    Finding::failed(Id::Rights, cause).mend(forbidden_hint()).evidence(asked)
}

/// An object of the registry, or the finding that says why there is none.
async fn get(client: &Client, id: Id, object: &Object) -> Result<serde_json::Value, Finding> {
    let what = format!("{} {}/{}", object.resource, object.namespace, object.name);
    match timeout(LIMIT, client.get(object)).await {
        Ok(Ok(found)) if found.get("spec").is_some() => Ok(found),
        Ok(Ok(_)) => {
            let cause = format!("the Kubernetes API answered get {what} with rubbish");
            let mend = "check registration.kubernetes.server: it must be the API server itself";
            Err(Finding::failed(Id::Kubernetes, cause).mend(mend.to_owned()))
        }
        Ok(Err(error)) if error.code() == Some(403) => {
            Err(Finding::skipped(id, format!("this credential may not read {what}")))
        }
        Ok(Err(error)) if error.code() == Some(404) => {
            Err(Finding::failed(id, format!("there is no {what}")))
        }
        Ok(Err(error)) => Err(Finding::failed(id, chain(&error)).mend(error.hint())),
        Err(_) => Err(Finding::failed(id, format!("no answer about {what} within {LIMIT:?}"))),
    }
}

async fn group(case: &Case<'_>, client: &Client) -> Finding {
    let (namespace, account) = (case.outline.id.namespace(), case.outline.id.service_account());
    let Some(name) = &case.settings.workload.group else {
        return Finding::skipped(Id::Group, "the machine belongs to no WorkloadGroup");
    };
    let found = match get(client, Id::Group, &object("workloadgroups", namespace.as_str(), name))
        .await
    {
        Ok(found) => found,
        Err(finding) => {
            let mend = format!(
                "make it: `istioctl x workload group create --name {name} --namespace {namespace} --serviceAccount {account}`"
            );
            return if finding.mend.is_none() { finding.mend(mend) } else { finding };
        }
    };
    let said = found.pointer("/spec/template/serviceAccount").and_then(serde_json::Value::as_str);
    match said.filter(|said| !said.is_empty() && *said != account.as_str()) {
        Some(other) => {
            let cause = format!(
                "WorkloadGroup {namespace}/{name} is for service account {other}, not for {account}"
            );
            Finding::failed(Id::Group, cause).mend(format!(
                "set workload.serviceAccount to {other}, or workload.group to a group of {account}"
            ))
        }
        None => Finding::ok(Id::Group, format!("WorkloadGroup {namespace}/{name} is there")),
    }
}

async fn entry(case: &Case<'_>, client: &Client, workload: Option<&Workload>) -> Finding {
    let id = Id::Entry;
    let mode = case.settings.registration.mode;
    let Some(workload) = workload.filter(|_| mode != RegistrationMode::None) else {
        return Finding::skipped(id, "it is not known which WorkloadEntry is this machine's");
    };
    let (namespace, name) =
        (case.outline.id.namespace(), outline::registration(case.settings, workload).name);
    let what = format!("WorkloadEntry {namespace}/{name}");
    let status = case.patient.daemon.status();
    let registered = status.and_then(|status| status.pointer("/registration/registered"));
    let registered = registered.and_then(serde_json::Value::as_bool) == Some(true);
    let found = match get(client, id, &object("workloadentries", namespace.as_str(), &name)).await {
        Ok(found) => found,
        Err(finding) if finding.cause.starts_with("there is no") && !registered => {
            return Finding::ok(id, format!("{what} is not there yet: it comes with the agent"));
        }
        Err(finding) => {
            return finding.mend(
                "restart the agent, which makes it anew: `systemctl restart vm-agent`".to_owned(),
            );
        }
    };
    let machine = known_machine(&case.patient.paths);
    let mut sight = Sight::of(&found, machine.as_ref());
    // A proxy that is not ready is a matter of its own, of which the verdict is the consequence.
    let proxy = status.and_then(|status| status.pointer("/proxy/phase"));
    if proxy.and_then(serde_json::Value::as_str) != Some("ready") {
        sight.health = None;
    }
    judge(&sight, workload, &what, status.is_some())
}

fn judge(sight: &Sight, workload: &Workload, what: &str, runs: bool) -> Finding {
    let (id, own) = (Id::Entry, workload.address.to_string());
    let at = format!("its address is {}", sight.address);
    if sight.holder == Holder::Other {
        let namespace = workload.id.namespace();
        let mend = format!(
            "give this machine another name (--set workload.name=NAME), or, if that machine is \
             gone: `kubectl delete workloadentry {} -n {namespace}`",
            workload.name
        );
        return Finding::failed(id, format!("{what} belongs to another machine"))
            .mend(mend)
            .evidence(at);
    }
    match &sight.health {
        Some(health) if !health.healthy && runs => {
            let cause = format!("istiod holds {what} for unhealthy: {}", health.message);
            let mend = "mend the application, or the probe in health.probe".to_owned();
            return Finding::failed(id, cause).mend(mend).blame(Blame::NotReady).evidence(at);
        }
        _ => {}
    }
    if runs && sight.address != own {
        let mend = "`vm-agent reload`, or see `vm-agent status`".to_owned();
        return Finding::warning(id, format!("{what} has another address than this machine"))
            .mend(mend)
            .evidence(at)
            .evidence(format!("this machine's is {own}"));
    }
    Finding::ok(id, format!("{what} is there")).evidence(at)
}
