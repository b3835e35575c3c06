//! What the service manager is doing with our unit. A stop and a restart begin with the same signal;
//! the job tells them apart (systemctl(1), `list-jobs`).

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::base::fsio::{self, FileError};

/// What is being done with our unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// It is stopped and started again.
    Restart,
    /// It is stopped, and stays so.
    Stop,
    /// Anything else, such as a start or a reload.
    Other,
}

/// Why the service manager did not say what it is doing.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// It cannot be asked.
    #[error("cannot run systemctl")]
    Ask(#[source] io::Error),
    /// We cannot tell who we are.
    #[error("cannot find out which unit this is")]
    Cgroup(#[from] FileError),
    /// It said no.
    #[error("systemctl failed: {said}")]
    Failed {
        /// What it said.
        said: String,
    },
    /// It hangs.
    #[error("systemctl did not answer within {} s", LIMIT.as_secs())]
    Silent,
}

/// Asks what is being done with the unit that this process belongs to. `None` where it belongs to
/// none, or nothing is being done with it.
///
/// # Errors
/// When the service manager cannot be asked, or does not answer.
pub async fn job() -> Result<Option<Job>, JobError> {
    let groups = fsio::read_text(Path::new("/proc/self/cgroup"), CGROUP_BYTES)?;
    let Some(unit) = unit_of(&groups) else { return Ok(None) };
    #[expect(clippy::disallowed_methods, reason = "the one place that asks for our own job")]
    let asked = Command::new("systemctl")
        .args(["list-jobs", "--plain", "--no-legend", "--no-pager", "--", unit])
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, asked).await.map_err(|_| JobError::Silent)?;
    let output = output.map_err(JobError::Ask)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(JobError::Failed { said: said.trim().chars().take(SAID).collect() });
    }
    Ok(job_of(&String::from_utf8_lossy(&output.stdout), unit))
}

/// The service or socket that a process of these groups belongs to (cgroups(7), `/proc/PID/cgroup`).
fn unit_of(groups: &str) -> Option<&str> {
    let path = |line: &&str| line.starts_with("0::/") || line.contains(":name=systemd:");
    let lines = groups.lines().filter(path);
    // A process of a unit may be in a group below the unit's.
    lines.filter_map(|line| line.rsplit('/').find(|part| is_unit(part))).next()
}

fn is_unit(name: &str) -> bool {
    [".service", ".socket"].iter().any(|kind| name.ends_with(kind))
}

/// The unit's job in lines of number, unit, type and state.
fn job_of(listed: &str, unit: &str) -> Option<Job> {
    let mut lines = listed.lines().map(|line| line.split_whitespace().skip(1));
    let kind = lines.find_map(|mut words| {
        let is_ours = words.next() == Some(unit);
        words.next().filter(|_| is_ours)
    })?;
    Some(match kind {
        "restart" | "try-restart" => Job::Restart,
        "stop" => Job::Stop,
        _ => Job::Other,
    })
}

const PATH: &str = "/usr/bin:/bin";
/// It answers in milliseconds; what hangs must not hold up the stop.
const LIMIT: Duration = Duration::from_secs(2);
/// Some fifteen lines of paths.
const CGROUP_BYTES: u64 = 64 * 1024;
/// Characters of an error that are quoted.
const SAID: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_found_in_either_kind_of_groups() {
        assert_eq!(unit_of("0::/system.slice/vm-agent.service\n"), Some("vm-agent.service"));
        let below = "0::/system.slice/vm-agent.service/.control\n";
        assert_eq!(unit_of(below), Some("vm-agent.service"));
        let old = "12:memory:/a\n1:name=systemd:/system.slice/own.service\n0::/\n";
        assert_eq!(unit_of(old), Some("own.service"));
        let socket = "0::/system.slice/vm-agent-proxy.socket\n";
        assert_eq!(unit_of(socket), Some("vm-agent-proxy.socket"));
        for none in ["", "0::/user.slice/user-0.slice/session-1.scope\n", "3:memory:/x.service\n"] {
            assert_eq!(unit_of(none), None, "{none}");
        }
    }

    #[test]
    fn the_type_of_the_units_own_job_is_told() {
        let listed = "  12 network-online.target start waiting\n\
                      731 vm-agent.service         restart running\n";
        assert_eq!(job_of(listed, "vm-agent.service"), Some(Job::Restart));
        assert_eq!(
            job_of("731 vm-agent.service stop running\n", "vm-agent.service"),
            Some(Job::Stop)
        );
        assert_eq!(
            job_of("7 vm-agent.service start running", "vm-agent.service"),
            Some(Job::Other)
        );
        assert_eq!(job_of(listed, "other.service"), None);
        for none in ["", "No jobs running.", "731", "731 vm-agent.service"] {
            assert_eq!(job_of(none, "vm-agent.service"), None, "{none}");
        }
    }
}
