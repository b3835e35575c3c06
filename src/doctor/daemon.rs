//! The daemon: whether it runs, and what it says of its rooms.

use serde_json::Value;

use super::finding::{Blame, Finding, Id};
use super::host::is_locked;
use super::{Answer, Patient};
use crate::config::Paths;

/// What the daemon's process and its status say.
pub(super) fn examine(patient: &Patient) -> Vec<Finding> {
    let mut all = vec![process(&patient.paths, &patient.daemon)];
    let Some(status) = patient.daemon.status() else {
        let silent = |id| Finding::skipped(id, "only a running agent can tell");
        all.extend(TOLD.map(silent));
        return all;
    };
    let ready = is(status, "/ready");
    all.extend([
        certificate(status),
        registration(status),
        stream(status),
        proxy(status),
        health(status),
        in_the_mesh(status, ready),
    ]);
    all.extend(conditions(status, ready));
    all
}

/// A lock that nobody holds was left by an agent that died: one that ends removes it.
fn process(paths: &Paths, daemon: &Answer) -> Finding {
    let (id, lock) = (Id::Daemon, paths.lock_file());
    match daemon {
        Answer::Status(status) => {
            let text = |at: &str| status.pointer(at).map(ToString::to_string).unwrap_or_default();
            let version = status.pointer("/version").and_then(Value::as_str);
            let words = format!("the agent runs, pid {}, phase {}", text("/pid"), text("/phase"));
            if version == Some(env!("CARGO_PKG_VERSION")) {
                return Finding::ok(id, words);
            }
            let cause = format!("the agent that runs is version {}", version.unwrap_or("unknown"));
            Finding::warning(id, cause)
                .mend("restart it: `systemctl restart vm-agent`".to_owned())
                .evidence(format!("this program is {}", env!("CARGO_PKG_VERSION")))
        }
        Answer::Silence(why) => Finding::failed(id, why.clone())
            .mend("look at its log (`journalctl -u vm-agent`), or use sudo".to_owned())
            .blame(Blame::Host),
        Answer::Nobody if is_locked(&lock) => {
            let cause = format!("an agent holds {} and does not answer", lock.display());
            Finding::failed(id, cause)
                .mend(format!("find it with `fuser {}` and restart it", lock.display()))
        }
        Answer::Nobody if lock.exists() => {
            let cause =
                format!("the agent has died: {} is there and nobody holds it", lock.display());
            Finding::failed(id, cause)
                .mend("`systemctl restart vm-agent` (or `vm-agent run`); `journalctl -u vm-agent` says why it died".to_owned())
        }
        Answer::Nobody => Finding::warning(id, "no agent runs")
            .mend("`vm-agent join SOURCE`, or `systemctl start vm-agent`".to_owned()),
    }
}

fn certificate(status: &Value) -> Finding {
    let id = text(status, "/identity/id");
    if is(status, "/identity/valid") {
        let end = text(status, "/identity/not_after");
        return Finding::ok(Id::Certificate, format!("{id}, valid until {end}"));
    }
    Finding::failed(Id::Certificate, format!("there is no valid certificate for {id}"))
        .mend("see why: `vm-agent status`, `journalctl -u vm-agent`".to_owned())
}

fn registration(status: &Value) -> Finding {
    let at = |field| text(status, &format!("/registration/{field}"));
    let entry = format!("WorkloadEntry {}/{} (by {})", at("namespace"), at("name"), at("mode"));
    match at("phase").as_str() {
        "registered" => Finding::ok(Id::Registration, format!("{entry} stands")),
        "off" => Finding::skipped(Id::Registration, "somebody else registers this machine"),
        phase => Finding::skipped(Id::Registration, format!("{entry} is {phase}")),
    }
}

fn stream(status: &Value) -> Finding {
    let phase = text(status, "/control_plane/phase");
    let endpoint = text(status, "/control_plane/endpoint");
    let refused = status.pointer("/control_plane/last_rejection").and_then(Value::as_str);
    let finding = match phase.as_str() {
        "connected" => Finding::ok(Id::Stream, format!("connected to {endpoint}")),
        _ => Finding::skipped(Id::Stream, format!("the stream to {endpoint} is {phase}")),
    };
    refused.into_iter().fold(finding, |finding, words| {
        finding.evidence(format!("the proxy refused last: {words}"))
    })
}

fn proxy(status: &Value) -> Finding {
    let id = Id::ProxyProcess;
    let (phase, version) = (text(status, "/proxy/phase"), text(status, "/proxy/version"));
    let finding = match phase.as_str() {
        "ready" => Finding::ok(id, format!("Envoy {version} is ready")),
        "draining" => Finding::warning(id, "the proxy is draining"),
        "drained" => Finding::failed(id, "somebody has taken the proxy out of traffic")
            .mend("take it back: `vm-agent proxy undrain`".to_owned()),
        _ => Finding::failed(id, format!("the proxy is not ready: it is {phase}"))
            .mend("see what it says: `journalctl -u vm-agent | grep envoy`".to_owned()),
    };
    let last = status.pointer("/proxy/last_exit").and_then(Value::as_str);
    last.into_iter()
        .fold(finding, |finding, words| finding.evidence(format!("it ended last with: {words}")))
}

fn health(status: &Value) -> Finding {
    let (id, probe) = (Id::Health, text(status, "/health/probe"));
    match text(status, "/health/health/is").as_str() {
        "healthy" => Finding::ok(id, format!("the application is healthy ({probe})")),
        "unhealthy" => {
            let why = text(status, "/health/health/message");
            Finding::failed(id, format!("the application is unhealthy: {why}"))
                .mend("mend the application, or the probe in health.probe".to_owned())
                .evidence(probe)
        }
        _ => Finding::skipped(id, format!("not checked yet ({probe})")),
    }
}

fn in_the_mesh(status: &Value, ready: bool) -> Finding {
    if ready {
        return Finding::ok(Id::Ready, "this machine is in the mesh");
    }
    let phase = text(status, "/phase");
    Finding::failed(Id::Ready, format!("this machine is not in the mesh: it is {phase}"))
        .mend("wait for it: `vm-agent wait --for ready`".to_owned())
}

/// What the daemon says is wrong belongs to the check of the same thing. A machine that is in the
/// mesh all the same is warned.
fn conditions(status: &Value, ready: bool) -> Vec<Finding> {
    let all = status.pointer("/conditions").and_then(Value::as_array);
    let one = |condition: &Value| {
        let room = text(condition, "/room");
        let (_, id) = ROOMS.iter().find(|(name, _)| *name == room)?;
        let what = text(condition, "/what");
        let mild = ready || matches!(id, Id::Address | Id::Names);
        let finding = if mild { Finding::warning(*id, what) } else { Finding::failed(*id, what) };
        let hint = condition.pointer("/hint").and_then(Value::as_str).map(str::to_owned);
        let since = format!("the daemon has said so since {}", text(condition, "/since"));
        Some(finding.mend(hint).evidence(since))
    };
    all.into_iter().flatten().filter_map(one).collect()
}

fn is(status: &Value, at: &str) -> bool {
    status.pointer(at).and_then(Value::as_bool) == Some(true)
}

fn text(status: &Value, at: &str) -> String {
    status.pointer(at).and_then(Value::as_str).unwrap_or("unknown").to_owned()
}

/// The rooms of a status' conditions, and the check that each belongs to.
const ROOMS: [(&str, Id); 15] = [
    ("capture", Id::Capture),
    ("clock", Id::Clock),
    ("configuration", Id::Configuration),
    ("control-plane", Id::Stream),
    ("credential", Id::Token),
    ("dns", Id::Names),
    ("facts", Id::Address),
    ("identity", Id::Certificate),
    ("proxy", Id::ProxyProcess),
    ("proxy-binary", Id::ProxyProcess),
    ("proxy-configuration", Id::ProxyProcess),
    ("registration", Id::Registration),
    ("roots", Id::Root),
    ("secrets", Id::ProxyProcess),
    ("storage", Id::Disk),
];
/// What only the daemon knows.
const TOLD: [Id; 6] =
    [Id::Certificate, Id::Registration, Id::Stream, Id::ProxyProcess, Id::Health, Id::Ready];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_condition_is_a_failure_of_its_check_and_a_warning_where_the_machine_is_ready() {
        let wrong = json!({"conditions": [
            {"room": "registration", "what": "no group", "hint": "make it", "since": "then"},
            {"room": "attic", "what": "of a newer agent"},
        ]});
        let found = conditions(&wrong, false);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].id, found[0].state), (Id::Registration, State::Failed));
        assert_eq!(found[0].mend.as_deref(), Some("make it"));
        assert_eq!(conditions(&wrong, true)[0].state, State::Warning);
    }

    #[test]
    fn every_room_of_a_status_has_its_check() {
        let source = include_str!("../status/model.rs");
        let (_, rooms) = source.split_once("wrong([").unwrap();
        let (rooms, _) = rooms.split_once("]);").unwrap();
        let named = rooms.lines().filter_map(|line| line.split('"').nth(1));
        let named: std::collections::BTreeSet<_> = named.collect();
        assert_eq!(named.len(), ROOMS.len());
        for room in named {
            assert!(ROOMS.iter().any(|(name, _)| *name == room), "{room}");
        }
    }
}
