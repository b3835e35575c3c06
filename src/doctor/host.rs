//! This host: the configuration file, the disk, the address, users, ports, the service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use nix::sys::statvfs::statvfs;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::finding::{Blame, Finding, Id};
use super::{Case, LIMIT, Patient, Unit};
use crate::agent::{FactsPlan, PlanError, outline};
use crate::base::backoff::Retry;
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::config::{Paths, Settings};
use crate::envoy::{ProxyUser, UserError, living};
use crate::workload::Workload;

pub(super) fn configuration(patient: &Patient) -> Finding {
    let id = Id::Configuration;
    let file = patient.config_file.display();
    let problems = match &patient.configuration {
        Ok(loaded) => {
            let set = loaded.effective.iter().filter(|one| one.origin != "default").count();
            return Finding::ok(id, format!("{file} is good ({set} settings)"));
        }
        Err(problems) => problems,
    };
    let mut all = problems.0.iter().map(ToString::to_string);
    let cause = all.next().unwrap_or_default();
    let mend = if patient.config_file.exists() {
        format!("mend the settings in {file}, and look again with `vm-agent config check`")
    } else {
        "join first: `vm-agent join SOURCE`".to_owned()
    };
    all.fold(Finding::failed(id, cause).mend(mend), Finding::evidence)
}

/// Whether the state directory can be written, and how much room it has. What is written is gone
/// at once.
pub(super) fn disk(paths: &Paths) -> Finding {
    let (id, directory) = (Id::Disk, paths.state_directory());
    if matches!(directory.try_exists(), Ok(false)) {
        let words = format!("{} is not there yet", directory.display());
        return Finding::ok(id, words);
    }
    let room = statvfs(&directory)
        .map(|about| about.blocks_available().saturating_mul(about.fragment_size()) >> 10);
    let room = match room {
        Ok(free) => format!("{free} KiB are free"),
        Err(error) => format!("how much is free cannot be told: {error}"),
    };
    match fsio::try_write(&directory, PROBE_BYTES) {
        Ok(()) => {
            let words = format!("{} can be written, {room}", directory.display());
            Finding::ok(id, words)
        }
        Err(error) => {
            let mend = if nix::unistd::geteuid().is_root() {
                format!(
                    "free some space, or mend it: `df -h {0}; findmnt -T {0}`",
                    directory.display()
                )
            } else {
                "try it with sudo".to_owned()
            };
            Finding::failed(id, chain(&error)).mend(mend).evidence(room)
        }
    }
}

/// The machine's address, with the workload that it makes.
pub(super) fn address(
    found: Result<Result<(Workload, FactsPlan), PlanError>, Elapsed>,
) -> (Finding, Option<Workload>) {
    let id = Id::Address;
    let local =
        matches!(&found, Ok(Ok((workload, _))) if workload.address.to_string().starts_with("127."));
    if let Some(down) = interfaces_that_are_down().filter(|_| !local) {
        let mend = "bring it up: `ip link`, `networkctl`".to_owned();
        let cause = format!("no network interface is up: {down}");
        let workload = found.ok().and_then(Result::ok).map(|(workload, _)| workload);
        return (Finding::failed(id, cause).mend(mend), workload);
    }
    match found {
        Ok(Ok((workload, facts))) => {
            let Workload { name, id: who, address, .. } = &workload;
            let finding = Finding::ok(id, format!("{name} of {who} at {address}"));
            let trouble = facts.state.trouble.as_ref().map(|trouble| trouble.what.clone());
            (trouble.into_iter().fold(finding, Finding::evidence), Some(workload))
        }
        Ok(Err(error)) => {
            let (mend, blame) = match &error {
                PlanError::Facts { source, .. } if source.retry != Retry::Never => (
                    "see what is known: `vm-agent facts`; {{FACT | default \"TEXT\"}} does without",
                    Blame::Host,
                ),
                PlanError::Facts { .. } => {
                    ("mend the template, see `vm-agent facts`", Blame::Configuration)
                }
                _ => (
                    "name it with --set workload.address=IP-OR-NAME, see `ip address`",
                    Blame::Host,
                ),
            };
            let finding = Finding::failed(id, chain(&error)).mend(mend.to_owned()).blame(blame);
            (finding, None)
        }
        Err(_) => {
            let cause = format!("the machine's facts were not known within {LIMIT:?}");
            (Finding::failed(id, cause).mend("ask for them: `vm-agent facts`".to_owned()), None)
        }
    }
}

/// All interfaces but loopback, where there are some and none of them is up (netdevice(7),
/// `operstate` in sysfs; a virtual one often says `unknown`).
fn interfaces_that_are_down() -> Option<String> {
    let all = std::fs::read_dir("/sys/class/net").ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|name| name != "lo")?;
        let state = fsio::read_text(&entry.path().join("operstate"), STATE_BYTES).ok()?;
        Some((name, state.trim().to_owned()))
    });
    let all: Vec<_> = all.collect();
    let is_down = |state: &str| matches!(state, "down" | "lowerlayerdown" | "notpresent");
    let none_is_up = !all.is_empty() && all.iter().all(|(_, state)| is_down(state));
    let words = all.iter().map(|(name, state)| format!("{name} is {state}"));
    none_is_up.then(|| words.collect::<Vec<_>>().join(", "))
}

pub(super) fn user(user: &Result<Option<ProxyUser>, UserError>) -> Finding {
    match user {
        Ok(Some(ProxyUser { uid, gid })) => {
            Finding::ok(Id::User, format!("the proxy runs as user {uid}, group {gid}"))
        }
        Ok(None) => Finding::ok(Id::User, "the proxy runs as this user does, who is not root"),
        Err(error) => {
            let mend = "make the user (`useradd --system istio-proxy`), or name another one in \
                        proxy.user";
            Finding::failed(Id::User, chain(error)).mend(mend.to_owned())
        }
    }
}

/// The ports that agent and proxy listen on, in words.
#[must_use]
pub fn needed_ports(settings: &Settings) -> [(u16, &'static str); 6] {
    [
        (settings.status.listen.port(), "the agent's status server"),
        (15_021, "Envoy's health page"),
        (15_090, "Envoy's metrics"),
        (outline::admin_port(settings), "Envoy's admin interface"),
        (15_001, "Envoy's outbound listener"),
        (15_006, "Envoy's inbound listener"),
    ]
}

/// Whether somebody listens on a port of this machine. A socket that is only bound keeps no
/// listener away, so that two who look at once do not see each other.
///
/// # Errors
/// With what the kernel said, where the port cannot be had.
pub fn is_held(port: u16) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())
}

/// With the daemon running they are its own and its proxy's, and so are those of a proxy that has
/// outlived its agent.
pub(super) async fn ports(case: &Case<'_>) -> Finding {
    let id = Id::Ports;
    let settings = case.settings;
    if case.patient.daemon.status().is_some() {
        let port = settings.status.listen.port();
        let ip = match settings.status.listen.ip() {
            ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        let at = SocketAddr::new(ip, port);
        return match timeout(LIMIT, TcpStream::connect(at)).await {
            Ok(Ok(_)) => Finding::ok(id, format!("the agent's status server answers at {at}")),
            _ => {
                let cause = format!("the agent's status server does not answer at {at}");
                let mend =
                    "restart the agent, if status.port was changed: `systemctl restart vm-agent`";
                Finding::failed(id, cause).mend(mend.to_owned())
            }
        };
    }
    if let Some(pid) = living(&case.patient.paths.run_directory()) {
        let words =
            format!("a proxy of ours (pid {pid}) has outlived its agent and holds its ports");
        return Finding::ok(id, words);
    }
    for (port, what) in needed_ports(settings) {
        if let Err(error) = is_held(port) {
            let cause = format!("port {port} is needed for {what}: {error}");
            let mend = format!("see who holds it: `ss -ltnp 'sport = :{port}'`");
            return Finding::failed(id, cause).mend(mend);
        }
    }
    let all = needed_ports(settings).map(|(port, _)| port.to_string()).join(", ");
    Finding::ok(id, format!("{all} are free"))
}

/// Whether an agent holds the lock.
#[must_use]
pub fn is_locked(lock: &Path) -> bool {
    fsio::open_regular(lock).is_ok_and(|file| file.try_lock().is_err())
}

/// The service, where systemd keeps it.
pub(super) fn unit(unit: Option<&Unit>, runs: bool) -> Finding {
    let id = Id::Unit;
    let Some(unit) = unit else {
        return Finding::skipped(id, "systemd does not keep the agent of this root");
    };
    let Unit { load, active, file, result, status } = unit;
    let shown = format!("{load}, {active}, {file}, last result {result} (status {status})");
    let failed = |cause: &str, mend: &str| {
        Finding::failed(id, cause.to_owned()).mend(mend.to_owned()).evidence(shown.clone())
    };
    match (load.as_str(), active.as_str(), file.as_str()) {
        ("not-found", ..) => Finding::warning(id, "the service vm-agent is not installed")
            .mend("install the package vm-agent".to_owned())
            .evidence(shown),
        ("masked", ..) => failed("the service vm-agent is masked", "`systemctl unmask vm-agent`"),
        (_, "failed", _) => failed(
            "the service vm-agent has failed",
            "`journalctl -u vm-agent -n 50` says why; then `systemctl restart vm-agent`",
        ),
        (_, "active" | "activating" | "reloading", "enabled" | "static") => {
            Finding::ok(id, format!("the service vm-agent is {active} and {file}"))
        }
        (_, "active" | "activating" | "reloading", _) => {
            Finding::warning(id, "the service vm-agent does not start at boot")
                .mend("`systemctl enable vm-agent`".to_owned())
                .evidence(shown)
        }
        _ if runs => Finding::ok(id, "the agent runs, though not as the service").evidence(shown),
        (_, _, "enabled") => {
            failed("the service vm-agent is not running", "`systemctl start vm-agent`")
        }
        _ => Finding::warning(id, "the service vm-agent is not enabled")
            .mend("join (`vm-agent join SOURCE`), or `systemctl enable --now vm-agent`".to_owned())
            .evidence(shown),
    }
}

/// One word.
const STATE_BYTES: u64 = 64;
/// The largest file that we keep there is a name table of some size.
const PROBE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn of(load: &str, active: &str, file: &str) -> Unit {
        let text = str::to_owned;
        let (result, status) = (text("exit-code"), text("9"));
        Unit { load: text(load), active: text(active), file: text(file), result, status }
    }

    #[test]
    fn a_service_is_judged_by_what_systemd_shows() {
        for (shown, runs, state) in [
            (of("loaded", "active", "enabled"), true, State::Ok),
            (of("loaded", "active", "disabled"), true, State::Warning),
            (of("loaded", "failed", "enabled"), false, State::Failed),
            (of("loaded", "inactive", "enabled"), false, State::Failed),
            (of("loaded", "inactive", "disabled"), true, State::Ok),
            (of("loaded", "inactive", "disabled"), false, State::Warning),
            (of("masked", "inactive", "masked"), false, State::Failed),
            (of("not-found", "inactive", ""), false, State::Warning),
        ] {
            assert_eq!(unit(Some(&shown), runs).state, state, "{shown:?}");
        }
        assert_eq!(unit(None, false).state, State::Skipped);
    }

    #[tokio::test]
    async fn a_port_is_held_by_who_listens_and_not_by_who_looks() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_held(port).is_err());
        drop(listener);
        assert!(is_held(port).is_ok() && is_held(port).is_ok());
    }
}
