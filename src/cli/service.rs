//! The service manager, from outside: `systemctl` and `journalctl`, where systemd runs the machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::exit::{Exit, Failure};
use super::options::Global;
use crate::doctor::Unit;

/// The agent's service, as the systemd of a root keeps it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    root: PathBuf,
}

impl Service {
    /// The service of this root; `None` where systemd does not run it.
    pub(super) fn of(global: &Global) -> Option<Self> {
        let runs = global.root.join("run/systemd/system").exists();
        runs.then(|| Self { root: global.root.clone() })
    }

    /// The service, where its unit is installed.
    pub(super) fn installed(global: &Global) -> Option<Self> {
        let installed = |service: &Self| {
            let mut directories = UNIT_DIRECTORIES.iter();
            directories.any(|directory| service.root.join(directory).join(UNIT).exists())
        };
        Self::of(global).filter(installed)
    }

    /// Has it start at each boot.
    pub(super) fn enable(&self) -> Result<(), Failure> {
        self.systemctl(&["enable", UNIT], QUICK)
    }

    /// Starts it now; a running one is started anew. It does not wait for the start.
    pub(super) fn restart(&self) -> Result<(), Failure> {
        self.systemctl(&["restart", "--no-block", UNIT], QUICK)
    }

    /// Has it not start at the next boot.
    pub(super) fn disable(&self) -> Result<(), Failure> {
        self.systemctl(&["disable", UNIT], QUICK)
    }

    /// Stops it, and waits for its end.
    pub(super) fn stop(&self) -> Result<(), Failure> {
        self.systemctl(&["stop", UNIT], STOP)
    }

    /// Has it not be shown as failed any more. One that did not fail is fine.
    pub(super) fn forget_failure(&self) {
        drop(self.systemctl(&["reset-failed", UNIT], QUICK));
    }

    /// Whether it starts at each boot.
    pub(super) fn is_enabled(&self) -> bool {
        self.systemctl(&["is-enabled", "--quiet", UNIT], QUICK).is_ok()
    }

    /// As systemd shows it; `None` where systemd does not answer.
    pub(super) fn shown(&self) -> Option<Unit> {
        let all = self.properties("LoadState,ActiveState,UnitFileState,Result,ExecMainStatus")?;
        Some(Unit {
            load: value(&all, "LoadState"),
            active: value(&all, "ActiveState"),
            file: value(&all, "UnitFileState"),
            result: value(&all, "Result"),
            status: value(&all, "ExecMainStatus"),
        })
    }

    /// Its last run; `None` where systemd does not answer.
    pub(super) fn last_run(&self) -> Option<Run> {
        let names = "ActiveState,SubState,Job,Result,ExecMainStatus,InvocationID";
        Some(Run::read(&self.properties(names)?))
    }

    /// The last lines that a run of it wrote to the journal.
    pub(super) fn words(&self, run: &Run) -> String {
        let this = format!("_SYSTEMD_INVOCATION_ID={}", run.invocation);
        let args = [&*this, "--lines", LAST_LINES, "--output", "cat", "--no-pager", "--quiet"];
        self.journalctl(&args).unwrap_or_default().trim_end().to_owned()
    }

    /// The end of its log.
    fn log(&self) -> Result<String, Failure> {
        self.journalctl(&["--unit", UNIT, "--lines", LINES, "--no-pager", "--quiet"])
    }

    fn properties(&self, names: &str) -> Option<String> {
        let which = format!("--property={names}");
        self.run("systemctl", &["show", UNIT, &which], QUICK).ok()
    }

    fn systemctl(&self, args: &[&str], limit: &str) -> Result<(), Failure> {
        self.run("systemctl", args, limit).map(drop)
    }

    fn journalctl(&self, args: &[&str]) -> Result<String, Failure> {
        self.run("journalctl", args, QUICK)
    }

    /// The machine's own systemd is asked as usual; of another root only what can be done from
    /// outside is done, and systemctl refuses the rest.
    fn run(&self, program: &str, args: &[&str], limit: &str) -> Result<String, Failure> {
        let root = format!("--root={}", self.root.display());
        let root = (self.root != Path::new("/")).then_some(root.as_str());
        let all: Vec<&str> =
            [limit, program].into_iter().chain(root).chain(args.iter().copied()).collect();
        output("timeout", &all, program)
    }
}

/// One run of the service, from its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// `ActiveState`.
    active: String,
    /// `SubState`.
    sub: String,
    /// Whether systemd is about to start or stop it.
    pending: bool,
    /// `Result`, such as `exit-code`.
    result: String,
    /// `ExecMainStatus`: its exit status, or the signal that ended it.
    pub(super) status: u8,
    invocation: String,
}

impl Run {
    fn read(shown: &str) -> Self {
        Self {
            active: value(shown, "ActiveState"),
            sub: value(shown, "SubState"),
            pending: !matches!(&*value(shown, "Job"), "" | "0"),
            result: value(shown, "Result"),
            status: value(shown, "ExecMainStatus").parse().unwrap_or_default(),
            invocation: value(shown, "InvocationID"),
        }
    }

    /// Whether it runs, or is on its way there for the first time.
    pub(super) fn is_active(&self) -> bool {
        matches!(&*self.active, "active" | "reloading")
    }

    /// Whether there is nothing to stop: no process, and none to come.
    pub(super) fn is_over(&self) -> bool {
        matches!(&*self.active, "failed" | "inactive") && !self.pending
    }

    /// How it ended; `None` while it has not.
    pub(super) fn end(&self) -> Option<String> {
        let ended = match (&*self.active, &*self.sub) {
            (_, sub) if sub.starts_with("auto-restart") => true,
            ("failed" | "inactive", _) => !self.pending,
            _ => false,
        };
        ended.then(|| match &*self.result {
            "exit-code" => format!("it ended with status {}", self.status),
            "signal" | "core-dump" => format!("signal {} ended it", self.status),
            "" | "success" => "systemd did not start it".to_owned(),
            other => format!("systemd says {other}"),
        })
    }
}

/// The service as systemd shows it; `None` where systemd does not run this root.
pub(super) fn shown(global: &Global) -> Option<Unit> {
    Service::of(global)?.shown()
}

/// The end of the service's log.
///
/// # Errors
/// With the reason why there is none.
pub(super) fn log(global: &Global) -> Result<String, String> {
    let service = Service::of(global).ok_or("systemd does not keep the log of this root")?;
    service.log().map_err(|failure| format!("{:#}", failure.error))
}

/// A line `NAME=VALUE` of what systemctl shows.
fn value(shown: &str, name: &str) -> String {
    let line = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_default().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "the one place that calls the service manager")]
fn output(program: &str, args: &[&str], what: &str) -> Result<String, Failure> {
    let ended = std::process::Command::new(program).args(args).stdin(Stdio::null()).output();
    let words = args.iter().skip_while(|word| **word != what).copied().collect::<Vec<_>>();
    let failed = |why: String| {
        let error = anyhow::anyhow!("`{}` failed: {why}", words.join(" "));
        Failure::new(Exit::Host, error)
    };
    let output = ended.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    if output.status.code() == Some(TIMED_OUT) {
        return Err(failed("it did not end in time".to_owned()));
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The unit's name.
pub(super) const UNIT: &str = "vm-agent.service";
/// Where units are installed, below a root.
const UNIT_DIRECTORIES: [&str; 3] =
    ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
/// Seconds after which a service manager that hangs is left.
const QUICK: &str = "10";
/// A stop drains the proxy first: the unit's own limit is a minute.
const STOP: &str = "90";
/// What timeout(1) ends with when the time is over.
const TIMED_OUT: i32 = 124;
/// Lines of the log that tell how it came to this.
const LINES: &str = "500";
/// Lines that tell why a run ended.
const LAST_LINES: &str = "8";

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Run {
        Run::read(text)
    }

    #[test]
    fn a_run_has_ended_when_systemd_neither_keeps_nor_starts_it() {
        let starting = run("ActiveState=inactive\nSubState=dead\nJob=7\nResult=success\n");
        let running = run("ActiveState=activating\nSubState=start\nJob=7\nResult=success\n");
        let active = run("ActiveState=active\nSubState=running\nJob=0\nResult=success\n");
        for alive in [&starting, &running, &active] {
            assert_eq!(alive.end(), None, "{alive:?}");
        }
        assert!(active.is_active() && !running.is_active());
        let failed =
            run("ActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainStatus=4\n");
        assert_eq!((failed.end().as_deref(), failed.status), (Some("it ended with status 4"), 4));
        let looping = "ActiveState=activating\nSubState=auto-restart\nJob=9\nResult=signal\nExecMainStatus=9\n";
        assert_eq!(run(looping).end().as_deref(), Some("signal 9 ended it"));
        let unmet = run("ActiveState=inactive\nSubState=dead\nJob=\nResult=success\n");
        assert_eq!(unmet.end().as_deref(), Some("systemd did not start it"));
    }
}
