//! The data path: redirect rules by a live probe, names by a live query.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::time::timeout;

use super::finding::{Blame, Finding, Id};
use super::{Case, LIMIT};
use crate::agent::{CapturePlan, PlanError, outline};
use crate::base::trouble::chain;
use crate::capture::{ApplyError, Found, blocking};
use crate::dns;
use crate::envoy::{ProxyUser, UserError};
use crate::workload::Workload;

pub(super) async fn examine(
    case: &Case<'_>,
    workload: Option<&Workload>,
    user: &Result<Option<ProxyUser>, UserError>,
) -> Vec<Finding> {
    let (Some(workload), Ok(user)) = (workload, user) else { return Vec::new() };
    let plan = outline::capture(case.settings, &case.patient.paths, workload, *user);
    let captured = matches!(plan, Ok(Some(_)));
    let firewall = firewall(plan.as_ref().ok().and_then(Option::as_ref)).await;
    let (capture, names) = tokio::join!(capture(case, plan), names(case, captured));
    [Some(capture), Some(names), firewall].into_iter().flatten().collect()
}

/// A host firewall that drops what is redirected: the rules work, and nobody is answered.
async fn firewall(plan: Option<&CapturePlan>) -> Option<Finding> {
    let found = timeout(LIMIT, blocking(&plan?.config)).await.ok().flatten()?;
    let port = found.port;
    let cause = format!(
        "the host's firewall ({}) drops by default and does not name port {port}, to which inbound \
         connections are redirected",
        found.place
    );
    let mend = format!(
        "allow TCP to port {port} there, beside the application's ports: `ufw allow {port}/tcp`, \
         `firewall-cmd --permanent --add-port={port}/tcp`, or a rule of the host's own"
    );
    Some(Finding::warning(Id::Capture, cause).mend(mend))
}

async fn capture(case: &Case<'_>, plan: Result<Option<CapturePlan>, PlanError>) -> Finding {
    let id = Id::Capture;
    let plan = match plan {
        Ok(Some(plan)) => plan,
        Ok(None) => return Finding::skipped(id, "capture.mode is none"),
        Err(PlanError::CaptureNeedsRoot) => {
            return Finding::skipped(id, "only root can look at the rules: try it with sudo");
        }
        Err(error) => {
            let mend = "see proxy.user and capture in `vm-agent config show`".to_owned();
            return Finding::failed(id, chain(&error)).mend(mend).blame(Blame::Configuration);
        }
    };
    let status = case.patient.daemon.status();
    let runs = status.is_some();
    let said = status.and_then(|status| status.pointer("/capture/phase")).and_then(Value::as_str);
    match timeout(LIMIT, look(&plan)).await {
        Ok(Ok((Found::Absent, _))) if said == Some("active") => Finding::failed(
            id,
            "the redirect rules are not in place any more",
        )
        .mend(
            "put them in order: `vm-agent capture apply`; `nft monitor` shows who takes them away"
                .to_owned(),
        ),
        Ok(Ok(finding)) => judge(finding, runs),
        Ok(Err(error)) => Finding::failed(id, chain(&error)).mend(error.hint()),
        Err(_) => {
            let cause = format!("the host's rules could not be read within {LIMIT:?}");
            Finding::failed(id, cause).mend("try it by hand: `nft list ruleset`".to_owned())
        }
    }
}

/// The rules as they are, and what a live connection saw of them.
async fn look(plan: &CapturePlan) -> Result<(Found, Option<String>), ApplyError> {
    let found = plan.capture.look().await?;
    let probed = match found {
        Found::Intact => Some(plan.capture.probe(&plan.current()).await?),
        Found::Absent | Found::Broken => None,
    };
    Ok((found, probed))
}

fn judge((found, probed): (Found, Option<String>), runs: bool) -> Finding {
    let id = Id::Capture;
    match (found, probed) {
        (Found::Intact, probed) => {
            Finding::ok(id, format!("the rules are in place: {}", probed.unwrap_or_default()))
        }
        (Found::Broken, _) => {
            let mend = if runs {
                "the agent puts them in order every few seconds; where that does not last, `nft monitor` \
                 shows who changes them"
            } else {
                "put them in order: `vm-agent capture apply`"
            };
            Finding::failed(id, "somebody else changed or removed the redirect rules")
                .mend(mend.to_owned())
        }
        (Found::Absent, _) if runs => {
            Finding::skipped(id, "the rules are not in place; they come once the proxy is ready")
        }
        (Found::Absent, _) => Finding::skipped(id, "the rules are not in place, as no agent runs"),
    }
}

/// Asks the agent for istiod's name, as an application would: any answer will do.
async fn names(case: &Case<'_>, captured: bool) -> Finding {
    let id = Id::Names;
    let Some(config) = outline::names(case.settings, &case.patient.paths, captured) else {
        return Finding::skipped(id, "the agent answers no DNS queries (dns, capture.mode)");
    };
    if case.patient.daemon.status().is_none() {
        return Finding::skipped(id, "only a running agent answers");
    }
    let is_here = |at: &&SocketAddr| at.is_ipv4();
    let Some(at) = config.listen.iter().find(is_here).or_else(|| config.listen.first()).copied()
    else {
        return Finding::skipped(id, "the agent listens nowhere for DNS queries");
    };
    let name = &case.outline.discovery.endpoint.host;
    match timeout(LIMIT, dns::probe(at, name)).await {
        Ok(Ok(heard)) if heard.failed => {
            let cause = format!("DNS at {at} answers, but the resolvers behind it do not");
            Finding::warning(id, cause)
                .mend("look at dns.upstreams and /etc/resolv.conf".to_owned())
                .evidence(format!("the answer for {name}: {}", heard.words))
        }
        Ok(Ok(heard)) => Finding::ok(id, format!("{at} answers for {name}: {}", heard.words)),
        Ok(Err(error)) => {
            let cause = format!("DNS at {at} does not answer for {name}: {error}");
            let mend = "look at dns.upstreams and /etc/resolv.conf, and restart the agent if dns.port \
                        or dns.listen were changed: `systemctl restart vm-agent`";
            Finding::failed(id, cause).mend(mend.to_owned())
        }
        Err(_) => {
            let cause = format!("DNS at {at} did not answer within {LIMIT:?}");
            Finding::failed(id, cause)
                .mend("restart the agent: `systemctl restart vm-agent`".to_owned())
        }
    }
}
