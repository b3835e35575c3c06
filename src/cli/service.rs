//! The service manager, from outside: `systemctl`, where systemd runs the machine.

use std::path::Path;
use std::process::Stdio;

use super::exit::{Exit, Failure};
use super::options::Global;
use crate::doctor::Unit;

/// Whether this command line speaks of the installed service: systemd runs, its unit is there, and
/// the root is the machine's own.
pub(super) fn is_ours(global: &Global) -> bool {
    let unit = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"]
        .iter()
        .any(|directory| Path::new(directory).join(UNIT).exists());
    is_managed(global) && unit
}

/// Starts the service now and at each boot; a running one is started anew.
pub(super) fn enable() -> Result<(), Failure> {
    systemctl(&["enable", UNIT])?;
    systemctl(&["restart", "--no-block", UNIT])
}

/// What the service is, to be put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// It starts at each boot.
    enabled: bool,
    /// It runs.
    active: bool,
}

impl Before {
    /// As it is now.
    pub(super) fn look() -> Self {
        let is = |what| systemctl(&[what, "--quiet", UNIT]).is_ok();
        Self { enabled: is("is-enabled"), active: is("is-active") }
    }

    /// Puts a service that was disabled meanwhile back as it was.
    pub(super) fn restore(self) -> Result<(), Failure> {
        self.steps().into_iter().try_for_each(systemctl)
    }

    fn steps(self) -> Vec<&'static [&'static str]> {
        let enable = self.enabled.then_some(&["enable", UNIT][..]);
        let start = self.active.then_some(&["restart", "--no-block", UNIT][..]);
        enable.into_iter().chain(start).collect()
    }
}

/// Stops the service, now and at each boot.
pub(super) fn disable() -> Result<(), Failure> {
    systemctl(&["disable", "--now", UNIT])
}

/// The service as systemd shows it; `None` where systemd does not run this machine, or the root is
/// not the machine's own.
pub(super) fn shown(global: &Global) -> Option<Unit> {
    if !is_managed(global) {
        return None;
    }
    let properties = "--property=LoadState,ActiveState,UnitFileState,Result,ExecMainStatus";
    let text = output("timeout", &[LIMIT, "systemctl", "show", UNIT, properties]).ok()?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    };
    Some(Unit {
        load: value("LoadState"),
        active: value("ActiveState"),
        file: value("UnitFileState"),
        result: value("Result"),
        status: value("ExecMainStatus"),
    })
}

/// The end of the service's log.
///
/// # Errors
/// With the reason why there is none.
pub(super) fn log(global: &Global) -> Result<String, String> {
    if !is_managed(global) {
        return Err("systemd does not keep the log of this root".to_owned());
    }
    let args = [LIMIT, "journalctl", "--unit", UNIT, "--lines", LINES, "--no-pager", "--quiet"];
    output("timeout", &args).map_err(|failure| format!("{:#}", failure.error))
}

fn is_managed(global: &Global) -> bool {
    global.root == Path::new("/") && Path::new("/run/systemd/system").exists()
}

fn systemctl(args: &[&str]) -> Result<(), Failure> {
    output("systemctl", args).map(drop)
}

#[expect(clippy::disallowed_methods, reason = "the one place that calls the service manager")]
fn output(program: &str, args: &[&str]) -> Result<String, Failure> {
    let ended = std::process::Command::new(program).args(args).stdin(Stdio::null()).output();
    let failed = |why: String| {
        let error = anyhow::anyhow!("`{program} {}` failed: {why}", args.join(" "));
        Failure::new(Exit::Host, error)
    };
    let output = ended.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

const UNIT: &str = "vm-agent.service";
/// Seconds after which a service manager that hangs is left.
const LIMIT: &str = "5";
/// Lines of the log that tell how it came to this.
const LINES: &str = "500";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_so_before_is_put_back() {
        let steps = |enabled, active| Before { enabled, active }.steps();
        assert!(steps(false, false).is_empty(), "a machine that joined for the first time");
        assert_eq!(
            steps(true, true),
            [&["enable", UNIT][..], &["restart", "--no-block", UNIT][..]],
            "a machine in the mesh goes on as before"
        );
        assert_eq!(steps(false, true).len(), 1);
    }
}
