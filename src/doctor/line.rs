//! The way to istiod: its name, a connection, TLS, the times, the root and the name in its
//! certificate. One dial, whose error tells how far it came.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::Case;
use super::finding::{Blame, Finding, Id};
use crate::base::clock::{Skew, rfc3339};
use crate::base::trouble::chain;
use crate::controlplane::{DialError, Dialer, Step, read_roots};
use crate::credential::{Config, Ladder};

/// What was found.
pub(super) struct Line {
    pub(super) findings: Vec<Finding>,
    /// Why istiod's certificate is not valid by our clock, where it is not.
    pub(super) clock: Option<String>,
}

pub(super) async fn examine(case: &Case<'_>) -> Line {
    let config = &case.outline.discovery;
    let tokens = Config::without_tokens(case.outline.id.clone());
    let tokens = Ladder::new(tokens, None, Arc::clone(&case.patient.clock));
    let nobody = watch::channel(None).1;
    let dialer = Dialer::new(config.clone(), tokens, nobody, Arc::clone(&case.patient.clock));
    let roots = read_roots(&config.root_cert);
    let mut findings = Vec::new();
    let root = match &roots {
        Ok(roots) => {
            Ok(format!("{} trusts {}", config.root_cert.display(), roots.subjects().join("; ")))
        }
        Err(error) => Err(chain(error)),
    };
    match dialer.reach().await {
        Ok(peer) => findings.extend(reached(case, peer)),
        Err(error) => {
            findings.extend(out_of_reach(case, &error));
            findings.push(match root {
                Ok(evidence) => Finding::skipped(Id::Root, "istiod's certificate was not seen")
                    .evidence(evidence),
                Err(cause) => unusable(case, cause),
            });
            return Line { findings, clock: None };
        }
    }
    let root = match root {
        Ok(root) => root,
        Err(cause) => {
            findings.push(Finding::behind(Id::Tls, Id::Root));
            findings.push(unusable(case, cause));
            return Line { findings, clock: None };
        }
    };
    let outcome = dialer.dial().await;
    let clock = outcome.as_ref().err().filter(|error| matches!(error, DialError::Clock { .. }));
    let clock = clock.map(|error| chain(error));
    findings.extend(shown(case, &outcome.map(drop), &dialer.server_name(), root));
    Line { findings, clock }
}

fn unusable(case: &Case<'_>, cause: String) -> Finding {
    Finding::failed(Id::Root, cause).mend(fetch_root(case))
}

fn reached(case: &Case<'_>, peer: SocketAddr) -> [Finding; 2] {
    let config = &case.outline.discovery;
    let words = match &config.connect_to {
        Some(host) => format!("{host} (mesh.connectTo) is {}", peer.ip()),
        None => format!("{} is {}", config.endpoint.host, peer.ip()),
    };
    let tcp = format!("{} accepts connections at {peer}", config.endpoint);
    [Finding::ok(Id::Dns, words), Finding::ok(Id::Tcp, tcp)]
}

fn out_of_reach(case: &Case<'_>, error: &DialError) -> Vec<Finding> {
    let config = &case.outline.discovery;
    let is_name =
        matches!(error, DialError::Resolve { .. } | DialError::Late { step: Step::Resolve, .. });
    if is_name {
        let resolvers = crate::capture::nameservers(std::path::Path::new("/etc/resolv.conf"));
        let resolvers: Vec<_> = resolvers.iter().map(ToString::to_string).collect();
        let evidence = format!("/etc/resolv.conf names {}", resolvers.join(", "));
        return vec![Finding::failed(Id::Dns, chain(error)).mend(error.hint()).evidence(evidence)];
    }
    let host = config.connect_to.as_ref().unwrap_or(&config.endpoint.host);
    let port = config.endpoint.port;
    vec![
        Finding::ok(Id::Dns, format!("{host} has an address")),
        Finding::failed(Id::Tcp, chain(error)).mend(format!(
            "check that istiod runs and that nothing between here and it closes the port: \
                 `nc -vz {host} {port}`"
        )),
    ]
}

/// The way to the mesh's root.
fn fetch_root(case: &Case<'_>) -> String {
    format!(
        "fetch the mesh's root: `kubectl get configmap istio-ca-root-cert -n {} -o \
         jsonpath='{{.data.root-cert\\.pem}}' > {}`",
        case.outline.id.namespace(),
        case.outline.discovery.root_cert.display()
    )
}

/// What the handshake says of each step.
fn shown(
    case: &Case<'_>,
    outcome: &Result<(), DialError>,
    name: &str,
    root: String,
) -> Vec<Finding> {
    let tls = Finding::ok(Id::Tls, "istiod speaks TLS and HTTP/2");
    let good_root = || Finding::ok(Id::Root, "istiod's certificate leads to the mesh's root");
    let error = match outcome {
        Ok(()) => {
            let name = Finding::ok(Id::ServerName, format!("istiod's certificate is for {name}"));
            return vec![tls, good_root().evidence(root), name];
        }
        Err(error) => error,
    };
    let cause = chain(error);
    match error {
        DialError::Clock { .. } => vec![
            tls,
            Finding::behind(Id::Root, Id::Clock).evidence(root),
            Finding::behind(Id::ServerName, Id::Clock),
        ],
        DialError::Untrusted { .. } | DialError::RootFile(_) => vec![
            tls,
            Finding::failed(Id::Root, cause)
                .blame(Blame::ControlPlane)
                .mend(fetch_root(case))
                .evidence(root),
        ],
        DialError::OtherName { .. } | DialError::ServerName { .. } => vec![
            tls,
            good_root().evidence(root),
            Finding::failed(Id::ServerName, cause).mend(error.hint()),
        ],
        _ => vec![
            Finding::failed(Id::Tls, cause).mend(TLS.to_owned()),
            Finding::behind(Id::Root, Id::Tls).evidence(root),
        ],
    }
}

/// This machine's clock: beside others' where somebody told the time, and by what was made in its
/// future. A server's certificate that is over is the server's fault where the clock is right.
pub(super) fn clock(
    case: &Case<'_>,
    certificate: Option<String>,
    issued_at: Option<SystemTime>,
) -> Finding {
    let now = case.patient.clock.now();
    let daemon = case.patient.daemon.status().and_then(|status| status.get("clock"));
    let told =
        daemon.filter(|clock| !clock.is_null()).map(|clock| format!("the daemon measured {clock}"));
    let finding = judge(case.skew.now(now), certificate, issued_at, now);
    told.into_iter().fold(finding, Finding::evidence)
}

fn judge(
    skew: Option<Skew>,
    certificate: Option<String>,
    issued_at: Option<SystemTime>,
    now: SystemTime,
) -> Finding {
    let shows = format!("this machine's clock shows {}", rfc3339(now));
    let is_far = skew.filter(|skew| skew.certain() > FAR_OFF);
    if let Some(skew) = is_far {
        let cause = format!("this machine's clock is {}", skew.words());
        let finding = Finding::failed(Id::Clock, cause).mend(SET.to_owned()).evidence(shows);
        return certificate.into_iter().fold(finding, Finding::evidence);
    }
    if let Some(cause) = certificate {
        let finding = Finding::failed(Id::Clock, cause).blame(Blame::ControlPlane).evidence(shows);
        return match skew {
            Some(skew) => finding
                .evidence(format!("the clock is right: it is {}", skew.words()))
                .mend("have istiod's certificate renewed: `kubectl rollout restart deployment istiod -n istio-system`".to_owned()),
            None => finding.mend(format!("{SET}; if it is right already, istiod's certificate is over")),
        };
    }
    let ahead = issued_at.and_then(|at| at.duration_since(now).ok());
    if let Some(ahead) = ahead.filter(|ahead| *ahead > FAR_OFF) {
        let cause = format!(
            "this machine's clock is at least {} s behind: the token was made in its future",
            ahead.as_secs()
        );
        return Finding::failed(Id::Clock, cause).mend(SET.to_owned()).evidence(shows);
    }
    match skew {
        Some(skew) => Finding::ok(Id::Clock, format!("this machine's clock is {}", skew.words())),
        None => Finding::ok(Id::Clock, "nothing says that this machine's clock is wrong"),
    }
    .evidence(shows)
}

/// istiod's own allowance is two minutes.
const FAR_OFF: Duration = Duration::from_secs(60);
const SET: &str = "set this machine's clock: `timedatectl set-ntp true`";
const TLS: &str = "check that mesh.discoveryAddress names istiod's TLS port (usually 15012) and no \
                   proxy in between ends TLS";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{Witness, from_unix_seconds};
    use crate::doctor::State;

    fn at(seconds: u64) -> SystemTime {
        from_unix_seconds(1_790_000_000 + seconds)
    }

    fn skew(theirs: u64, ours: u64) -> Skew {
        Skew::of_answer(at(theirs), Duration::ZERO, at(ours), Witness::KubernetesApi)
    }

    #[test]
    fn a_servers_old_certificate_is_the_servers_fault_where_the_clock_is_right() {
        let over = || Some("the certificate of istiod expired".to_owned());
        let right = judge(Some(skew(100, 100)), over(), None, at(100));
        assert!(right.mend.unwrap().contains("rollout restart"));
        let wrong = judge(Some(skew(100, 9000)), over(), None, at(9000));
        assert!(wrong.cause.contains("ahead of the Kubernetes API"), "{}", wrong.cause);
        assert_eq!(wrong.blame, Blame::Host);
        let unknown = judge(None, over(), None, at(100)).mend.unwrap();
        assert!(unknown.contains("timedatectl") && unknown.contains("istiod's certificate"));
    }

    #[test]
    fn a_token_from_the_future_tells_that_the_clock_is_behind() {
        let behind = judge(None, None, Some(at(500)), at(100));
        assert!(behind.cause.contains("at least 400 s behind"), "{}", behind.cause);
        assert_eq!(judge(None, None, Some(at(130)), at(100)).state, State::Ok);
    }
}
