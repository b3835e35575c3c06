//! The service manager, from outside: `systemctl`, where systemd runs the machine.

use std::path::Path;
use std::process::Stdio;

use super::exit::{Exit, Failure};
use super::options::Global;

/// Whether this command line speaks of the installed service: systemd runs, its unit is there, and
/// the root is the machine's own.
pub(super) fn is_ours(global: &Global) -> bool {
    let unit = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"]
        .iter()
        .any(|directory| Path::new(directory).join(UNIT).exists());
    global.root == Path::new("/") && Path::new("/run/systemd/system").exists() && unit
}

/// Starts the service now and at each boot; a running one is started anew.
pub(super) fn enable() -> Result<(), Failure> {
    systemctl(&["enable", UNIT])?;
    systemctl(&["restart", "--no-block", UNIT])
}

/// Stops the service, now and at each boot.
pub(super) fn disable() -> Result<(), Failure> {
    systemctl(&["disable", "--now", UNIT])
}

#[expect(clippy::disallowed_methods, reason = "the one place that calls the service manager")]
fn systemctl(args: &[&str]) -> Result<(), Failure> {
    let ended = std::process::Command::new("systemctl").args(args).stdin(Stdio::null()).output();
    let failed = |why: String| {
        let error = anyhow::anyhow!("`systemctl {}` failed: {why}", args.join(" "));
        Failure::new(Exit::Host, error)
    };
    let output = ended.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

const UNIT: &str = "vm-agent.service";
