//! What somebody else's file may set on a machine. A join source comes from the operator of the
//! mesh, who decides about identity and traffic in it, but is not root on its machines.

use serde_json::{Map, Value};

/// A setting with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its path.
    pub path: Vec<String>,
    /// Its value.
    pub value: Value,
}

/// The settings of a bundle that only the machine's own configuration or command line may have: paths
/// of files, programs, listening addresses, what takes the machine out of the mesh's policies.
#[must_use]
pub fn outside(settings: &Map<String, Value>) -> Vec<Setting> {
    let is_allowed = |setting: &Setting| {
        let path = setting.path.join(".");
        let below = |allowed: &str| {
            path == allowed || path.strip_prefix(allowed).is_some_and(|rest| rest.starts_with('.'))
        };
        ALLOWED.iter().any(|allowed| below(allowed))
            && !REFUSED.iter().any(|refused| below(refused))
    };
    leaves(settings).into_iter().filter(|setting| !is_allowed(setting)).collect()
}

/// The programs that a source would have a machine run.
#[must_use]
pub fn programs(document: &Value) -> Vec<Setting> {
    let program = |at: &&[&str]| {
        let value = at.iter().try_fold(document, |value, name| value.get(name))?;
        let path = at.iter().map(|&name| name.to_owned()).collect();
        Some(Setting { path, value: value.clone() })
    };
    PROGRAMS.iter().filter_map(program).collect()
}

/// All settings, each with its path; a list is one value.
#[must_use]
pub fn leaves(settings: &Map<String, Value>) -> Vec<Setting> {
    let mut found = Vec::new();
    let mut open: Vec<(Vec<String>, &Map<String, Value>)> = vec![(Vec::new(), settings)];
    while let Some((at, map)) = open.pop() {
        for (name, value) in map {
            let mut path = at.clone();
            path.push(name.clone());
            match value {
                Value::Object(inner) if !inner.is_empty() => open.push((path, inner)),
                _ => found.push(Setting { path, value: value.clone() }),
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// What `vm-agent bundle create` writes, and what is as harmless: the workload, the mesh, the life
/// of certificates and registrations, levels of logs, and Istio's own lists of redirected traffic.
const ALLOWED: [&str; 40] = [
    "capture.dropInvalid",
    "capture.excludeInboundPorts",
    "capture.excludeInterfaces",
    "capture.excludeOutboundGroups",
    "capture.excludeOutboundPorts",
    "capture.excludeOutboundRanges",
    "capture.guestInterfaces",
    "capture.inboundPorts",
    "capture.includeOutboundGroups",
    "capture.includeOutboundPorts",
    "capture.interception",
    "capture.loopbackRange",
    "capture.outboundRanges",
    "dns.allQueries",
    "dns.domain",
    "dns.enabled",
    "health.host",
    "health.probe",
    "identity.keyAlgorithm",
    "identity.renewAt",
    "identity.renewJitter",
    "identity.ttl",
    "log",
    "mesh",
    "proxy.concurrency",
    "proxy.logLevel",
    "proxy.terminationDrainDuration",
    "registration.gracePeriod",
    "registration.kubernetes.server",
    "registration.leaveDelay",
    "registration.mode",
    "registration.removeOnStop",
    "registration.removeStaleAfter",
    "registration.takeOverAfter",
    "status.metricsAccess",
    "status.proxyMetrics",
    "workload",
    "workload.facts.budget",
    "workload.facts.source",
    "workload.facts.tags",
];

/// What is not, although a whole above it is.
const REFUSED: [&str; 3] =
    ["mesh.rootCert", "workload.facts.address", "workload.facts.instanceData"];

/// Where a source can name a program.
const PROGRAMS: [&[&str]; 2] =
    [&["health", "probe", "exec"], &["mesh", "proxyConfig", "readinessProbe", "exec"]];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(settings: &Value) -> Vec<String> {
        let found = outside(settings.as_object().unwrap());
        found.into_iter().map(|setting| setting.path.join(".")).collect()
    }

    #[test]
    fn a_bundle_sets_what_create_writes_and_nothing_of_the_machine() {
        let usual = json!({
            "workload": {"namespace": "vms", "labels": {"a": "b"}, "facts": {"source": "none"}},
            "mesh": {"discoveryAddress": "i:1", "proxyConfig": {"concurrency": 1}},
            "registration": {"mode": "kubernetes", "kubernetes": {"server": "https://k"}},
            "health": {"probe": {"exec": {"command": ["/bin/true"]}}},
        });
        assert_eq!(paths(&usual), Vec::<String>::new());
        for hostile in [
            json!({"proxy": {"binary": "/tmp/x"}}),
            json!({"proxy": {"extraArgs": ["--x"]}}),
            json!({"proxy": {"user": "root"}}),
            json!({"capture": {"mode": "none"}}),
            json!({"capture": {"failPolicy": "open"}}),
            json!({"dns": {"listen": "0.0.0.0:53"}}),
            json!({"dns": {"upstreams": ["192.0.2.1"]}}),
            json!({"status": {"access": "any"}}),
            json!({"status": {"applicationMetrics": "http://127.0.0.1/"}}),
            json!({"identity": {"exportDirectory": "/etc"}}),
            json!({"identity": {"files": {"keyFile": "/etc/shadow"}}}),
            json!({"mesh": {"rootCert": "/etc/shadow"}}),
            json!({"workload": {"facts": {"instanceData": "/etc/shadow"}}}),
            json!({"registration": {"force": true}}),
            json!({"logs": {}}),
        ] {
            assert_eq!(paths(&hostile).len(), 1, "{hostile}");
        }
    }

    #[test]
    fn a_probe_that_runs_a_program_is_found_wherever_it_stands() {
        let exec = json!({"exec": {"command": ["id"]}});
        assert_eq!(programs(&json!({"health": {"probe": exec}})).len(), 1);
        let found = programs(&json!({"mesh": {"proxyConfig": {"readinessProbe": exec}}}));
        assert_eq!(found[0].path.join("."), "mesh.proxyConfig.readinessProbe.exec");
        assert!(programs(&json!({"health": {"probe": {"tcpSocket": {"port": 1}}}})).is_empty());
    }
}
